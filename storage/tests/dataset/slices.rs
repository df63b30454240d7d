//! Slices: the same rows give the same bytes, and Parquet gives the rows back.

use std::io;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int32Array, Int64Array, StringArray, TimestampMillisecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use forebay_hash::{Digest as _, Sha3_256};
use forebay_storage::dataset::row::RowBuilder;
use forebay_storage::dataset::spec::{DatasetSpec, Format};
use forebay_storage::position::{Offset, Seq};
use forebay_storage::slice::{CREATED_BY, ROW_GROUP_BYTES_MAX, ROW_GROUP_ROWS, Slice, SliceError, SliceWriter};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, Encoding, Repetition};
use parquet::file::metadata::ParquetMetaData;

use crate::support::{RECEIVED_MS, json, message, spec};

const SYSTEM_TIME: i64 = RECEIVED_MS + 5_000;

#[test]
fn the_same_rows_give_the_same_bytes_however_they_are_cut_into_batches() {
    let rows = telemetry(9_000);

    let cuts = [9_000, 4_096, 8_192, 1_000, 333, 7];
    let slices = cuts.map(|batch_rows| write(&batches(&rows, batch_rows)));

    for (cut, (bytes, slice)) in cuts.iter().zip(&slices) {
        assert_eq!(slice, &slices[0].1, "batches of {cut} rows");
        assert!(*bytes == slices[0].0, "batches of {cut} rows");
    }
}

#[test]
fn decoding_in_batches_of_any_size_gives_the_same_slice() {
    let spec = json(&["device: String", "temp: Float32?", "n: UInt8"]);
    let payload = |n: u64| match n % 3 {
        0 => format!(r#"{{"device":"d{}","temp":null,"n":{}}}"#, n % 7, n % 256),
        _ => format!(r#"{{"device":"d{}","temp":{}.25,"n":{}}}"#, n % 7, n % 90, n % 256),
    };
    let seal = |batch_rows: usize| {
        let mut builder = RowBuilder::new(&spec, "gw");
        let mut writer = SliceWriter::new(Arc::clone(builder.columns().schema()), Vec::new()).unwrap();
        let mut offset = 0;
        for n in 0..9_000 {
            builder.push(Seq(n), &message(0, payload(n))).unwrap();
            if builder.len() == batch_rows || n == 8_999 {
                let rows = builder.len() as u64;
                writer.write(&builder.take_batch(Offset(offset), SYSTEM_TIME)).unwrap();
                offset += rows;
            }
        }
        writer.finish().unwrap()
    };

    let whole = seal(100_000);

    assert_eq!(whole.1.rows, 9_000);
    for batch_rows in [1, 100, 4_096, 5_000] {
        assert_eq!(seal(batch_rows), whole, "batches of {batch_rows} rows");
    }
}

#[test]
fn parquet_gives_back_the_rows_and_the_schema() {
    let mut spec = DatasetSpec::messages();
    spec.captures = vec!["site".into(), "device".into()];
    let messages = gather(&spec, [&b"\x00\xff"[..], b"", b"text"]);
    let every_type = [
        "b: Bool?",
        "i8: Int8?",
        "i16: Int16?",
        "i32: Int32?",
        "i64: Int64?",
        "u8: UInt8?",
        "u16: UInt16?",
        "u32: UInt32?",
        "u64: UInt64?",
        "f32: Float32?",
        "f64: Float64?",
        "s: String?",
        "bin: Binary?",
        "d: Date?",
        "t: Timestamp?",
        "a.b: Timestamp(ms)?",
        "j: Json?",
    ];
    let typed = gather(
        &json(&every_type),
        [
            r#"{"b":true,"i8":-128,"i16":-1,"i32":-1,"i64":-9223372036854775808,"u8":255,"u16":65535,"u32":4294967295,
                "u64":18446744073709551615,"f32":1.5,"f64":-0.1,"s":"x","bin":"AP8=","d":"2026-11-22",
                "t":"1901-01-01T00:00:00Z","a.b":5,"j":{"k":[]}}"#,
            "{}",
        ],
    );

    for rows in [messages, typed, telemetry(5_000)] {
        let (bytes, slice) = write(std::slice::from_ref(&rows));
        let (read, _) = read(bytes);

        assert_eq!(read.schema(), rows.schema());
        assert_eq!(read, rows);
        assert_eq!(slice.rows, rows.num_rows() as u64);
    }
}

#[test]
fn the_file_has_the_pinned_profile() {
    let (bytes, _) = write(&[telemetry(ROW_GROUP_ROWS + 1)]);

    let (_, metadata) = read(bytes);

    let file = metadata.file_metadata();
    assert_eq!(file.created_by(), Some(CREATED_BY));
    assert!(file.key_value_metadata().is_none(), "no Arrow schema in the footer");
    let group_rows: Vec<_> = metadata.row_groups().iter().map(|group| group.num_rows()).collect();
    assert_eq!(group_rows, [65_536, 1]);
    for column in metadata.row_group(0).columns() {
        let name = column.column_path().string();
        let is_delta = column.encodings().any(|encoding| encoding == Encoding::DELTA_BINARY_PACKED);
        let grows = ["offset", "system_time", "event_time", "seq", "received_at"].contains(&name.as_str());
        assert_eq!(column.compression(), Compression::SNAPPY, "{name}");
        assert_eq!(is_delta, grows, "{name}");
        assert_eq!(column.dictionary_page_offset().is_some(), !grows, "{name}");
    }
}

#[test]
fn columns_are_stored_as_odf_expects_them() {
    let (bytes, _) = write(&[gather(&json(&["temp: Float32?"]), [r#"{"temp":1}"#])]);

    let (_, metadata) = read(bytes);

    let columns: Vec<_> = metadata
        .file_metadata()
        .schema_descr()
        .columns()
        .iter()
        .map(|column| {
            let required = column.self_type().get_basic_info().repetition() == Repetition::REQUIRED;
            format!(
                "{} {:?} {:?} {}",
                column.name(),
                column.physical_type(),
                column.logical_type_ref(),
                if required { "required" } else { "optional" }
            )
        })
        .collect();
    let millis = "INT64 Some(Timestamp(TimestampType { is_adjusted_to_u_t_c: true, unit: MILLIS })) required";
    assert_eq!(
        columns,
        [
            "offset INT64 None required".to_owned(),
            "op INT32 None required".to_owned(),
            format!("system_time {millis}"),
            format!("event_time {millis}"),
            "gateway BYTE_ARRAY Some(String) required".to_owned(),
            "seq INT64 None required".to_owned(),
            "temp FLOAT None optional".to_owned(),
        ]
    );
}

#[test]
fn the_physical_hash_and_the_size_are_those_of_the_bytes() {
    let (bytes, slice) = write(&[telemetry(5_000)]);

    assert_eq!(slice.size, bytes.len() as u64);
    assert_eq!(slice.physical_hash, <[u8; 32]>::from(Sha3_256::digest(&bytes)));
}

/// Rows and hash as `kamu` computes it.
#[test]
fn the_logical_hash_is_the_one_that_odf_defines() {
    let instants = |values: [i64; 2]| Arc::new(TimestampMillisecondArray::from(values.to_vec()).with_timezone("UTC"));
    let columns: [(&str, ArrayRef, bool); 7] = [
        ("offset", Arc::new(Int64Array::from(vec![0, 1])), false),
        ("op", Arc::new(Int32Array::from(vec![0, 0])), false),
        ("system_time", instants([1_788_264_000_250; 2]), false),
        ("event_time", instants([1_788_263_999_000, 1_788_263_999_500]), false),
        ("device_id", Arc::new(StringArray::from(vec!["a", "b"])), false),
        ("seq", Arc::new(Int64Array::from(vec![1, 2])), false),
        ("value", Arc::new(Float64Array::from(vec![Some(1.5), None])), true),
    ];
    let fields: Vec<_> =
        columns.iter().map(|(name, array, null)| Field::new(*name, array.data_type().clone(), *null)).collect();
    let arrays = columns.into_iter().map(|(_, array, _)| array).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();

    let (_, whole) = write(std::slice::from_ref(&batch));
    let (_, split) = write(&batches(&batch, 1));

    let hex: String = whole.logical_hash.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "ff2b9a8bca5a34207dabb0a143829e5399f28d6450f86ce7d50b261104c8d340");
    assert_eq!(split.logical_hash, whole.logical_hash);
}

#[test]
fn a_slice_knows_its_latest_event_time() {
    let (_, slice) = write(&[telemetry(3)]);
    assert_eq!(slice.event_time_max, Some(RECEIVED_MS));

    let mut by_date = json(&["day: Date"]);
    by_date.event_time = Some("day".into());
    let (_, slice) = write(&[gather(&by_date, [r#"{"day":"1970-01-03"}"#, r#"{"day":"1970-01-02"}"#])]);
    assert_eq!(slice.event_time_max, Some(2 * 86_400_000));
}

#[test]
fn a_slice_without_rows_is_a_valid_file() {
    let (bytes, slice) = write(&[telemetry(0)]);

    assert_eq!((slice.rows, slice.event_time_max), (0, None));
    assert_eq!(read(bytes).0.num_rows(), 0);
}

#[test]
fn other_columns_than_the_slices_are_refused() {
    let mut writer = SliceWriter::new(telemetry(0).schema(), Vec::new()).unwrap();

    let result = writer.write(&gather(&json(&["a: Int8"]), [r#"{"a":1}"#]));

    assert!(matches!(result, Err(SliceError::Schema)));
}

#[test]
fn a_type_without_a_logical_hash_is_refused() {
    let nanos = Field::new("t", DataType::Timestamp(TimeUnit::Nanosecond, None), false);

    let result = SliceWriter::new(Arc::new(Schema::new(vec![nanos])), Vec::new());

    assert!(matches!(result, Err(SliceError::ColumnType(name)) if name == "t"));
}

#[test]
fn a_full_disk_is_known_as_such_at_every_write() {
    let rows = telemetry(5_000);
    let (bytes, _) = write(std::slice::from_ref(&rows));

    for room in (0..bytes.len()).step_by(bytes.len() / 10) {
        let seal = || {
            let mut writer = SliceWriter::new(rows.schema(), Disk { room })?;
            writer.write(&rows)?;
            writer.finish()
        };
        let Err(SliceError::Io(error)) = seal() else { panic!("a disk with room for {room} bytes") };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}

#[test]
fn wide_rows_are_written_before_a_row_group_has_all_its_rows() {
    let noise = noise(ROW_GROUP_BYTES_MAX + 4_096);
    let payloads = noise.chunks(noise.len() / 4_100);
    let rows = gather(&spec(Format::Bytes, &["value: Binary"]), payloads);

    let (bytes, _) = write(&[rows]);

    let (_, metadata) = read(bytes);
    assert_eq!(metadata.num_row_groups(), 2);
}

fn write(batches: &[RecordBatch]) -> (Vec<u8>, Slice) {
    let mut writer = SliceWriter::new(batches[0].schema(), Vec::new()).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.finish().unwrap()
}

fn read(bytes: Vec<u8>) -> (RecordBatch, Arc<ParquetMetaData>) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes)).unwrap();
    let (metadata, schema) = (Arc::clone(reader.metadata()), Arc::clone(reader.schema()));
    let batches: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
    (concat_batches(&schema, &batches).unwrap(), metadata)
}

fn batches(rows: &RecordBatch, batch_rows: usize) -> Vec<RecordBatch> {
    (0..rows.num_rows())
        .step_by(batch_rows)
        .map(|start| rows.slice(start, batch_rows.min(rows.num_rows() - start)))
        .collect()
}

fn gather<P: AsRef<[u8]>>(spec: &DatasetSpec, payloads: impl IntoIterator<Item = P>) -> RecordBatch {
    let mut builder = RowBuilder::new(spec, "gw");
    for (seq, payload) in (0..).map(Seq).zip(payloads) {
        builder.push(seq, &message(spec.captures.len(), payload)).unwrap();
    }
    builder.take_batch(Offset(0), SYSTEM_TIME)
}

/// Rows like those of a site: three devices, readings that wander, some without battery.
fn telemetry(rows: usize) -> RecordBatch {
    let mut spec = json(&["device: String", "temp: Float64", "battery: Float32?"]);
    spec.envelope.received_at = true;
    gather(
        &spec,
        (0..rows).map(|n| {
            let battery = if n % 5 == 0 { "null".to_owned() } else { format!("{}.5", n % 100) };
            format!(r#"{{"device":"dev-{}","temp":{}.{:02},"battery":{battery}}}"#, n % 3, 20 + n % 4, n % 97)
        }),
    )
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    fastrand::Rng::with_seed(1).fill(&mut noise);
    noise
}

struct Disk {
    room: usize,
}

impl io::Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = bytes.len().min(self.room);
        self.room -= written;
        if written == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
