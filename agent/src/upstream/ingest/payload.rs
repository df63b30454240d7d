//! The body of a request: rows of a sealed slice, rewritten for a node.
//!
//! A slice holds `offset`, `op` and `system_time`, which are the node's to give; so its file cannot be sent as it is. The
//! rows that are wanted go, without these columns, into a file of the scratch directory that has no name: whatever happens
//! to the process, nothing is left of it. Only a few thousand rows and one row group are in memory, however large the
//! slice is.
//!
//! Rows whose `seq` does not rise are dropped. The node tells rows that it has by `(gateway, seq)`, but two rows of one
//! request it would both keep.
//!
//! The same rows give the same bytes, so that a request that is made again is the same request.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{AsArray as _, BooleanArray, RecordBatchReader as _};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use forebay_storage::slice::row_profile;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection};
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;

use super::ndjson::Lines;
use crate::config::IngestFormat;

/// Columns that a node gives itself.
const RESERVED: [&str; 3] = ["offset", "op", "system_time"];
/// Name of the column that identifies a row within its gateway.
pub(super) const SEQ: &str = "seq";
/// The writer as the file names it, with the number of its profile.
const CREATED_BY: &str = "forebay-ingest/1";
/// Rows in memory at a time, at the most.
const READ_ROWS_MAX: u64 = 4_096;
/// Bytes in memory at a time, by the mean size of a row in the row group where they are largest.
const READ_BYTES: u64 = 4 << 20;

/// A body, ready to be sent.
#[derive(Debug)]
pub struct Payload {
    file: File,
    /// Rows in it.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
}

/// Why a body could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The slice cannot be opened.
    #[error("cannot read the slice {}: {problem}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        problem: io::Error,
    },
    /// The slice is damaged, or is none of ours.
    #[error("cannot read the slice {}: {problem}", path.display())]
    Slice {
        /// Its path.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The scratch directory cannot be written.
    #[error("cannot write a request in {}: {problem}", dir.display())]
    Scratch {
        /// The directory.
        dir: PathBuf,
        /// Why.
        problem: io::Error,
    },
}

/// How many rows a slice has.
///
/// # Errors
/// It cannot be read.
pub fn rows(slice: &Path) -> Result<u64, PayloadError> {
    Ok(rows_of(open(slice)?.metadata()))
}

/// Writes the rows with these numbers, counted from 0, as a body into a file of `scratch`.
///
/// # Errors
/// The slice cannot be read or the scratch directory not written.
pub fn write(slice: &Path, rows: Range<u64>, format: IngestFormat, scratch: &Path) -> Result<Payload, PayloadError> {
    let mut reader = read(slice, &[rows])?;
    let unwritable = |problem| PayloadError::Scratch { dir: scratch.to_owned(), problem };
    let file = fs::create_dir_all(scratch).and_then(|()| tempfile::tempfile_in(scratch)).map_err(unwritable)?;
    let mut body = Body::new(format, &reader.schema(), BufWriter::new(file)).map_err(unwritable)?;
    let mut rising = Rising::default();
    let mut rows = 0;
    for batch in &mut reader {
        let batch = batch.and_then(|batch| rising.filter(&batch)).map_err(|error| damaged(slice, error))?;
        rows += batch.num_rows() as u64;
        body.write(&batch).map_err(unwritable)?;
    }
    let (file, bytes) = body.finish().and_then(rewind).map_err(unwritable)?;
    Ok(Payload { file, rows, bytes })
}

/// The rows with these numbers, ascending, with the columns that a node gets.
///
/// # Errors
/// The slice cannot be read.
pub(super) fn read(slice: &Path, rows: &[Range<u64>]) -> Result<ParquetRecordBatchReader, PayloadError> {
    let builder = open(slice)?;
    let kept: Vec<usize> = kept(builder.schema()).collect();
    let columns = ProjectionMask::roots(builder.parquet_schema(), kept);
    let all = usize::try_from(rows_of(builder.metadata())).unwrap_or(usize::MAX);
    let within = |row: u64| usize::try_from(row).unwrap_or(usize::MAX).min(all);
    let ranges = rows.iter().map(|range| within(range.start)..within(range.end));
    let selected = RowSelection::from_consecutive_ranges(ranges, all);
    let at_a_time = rows_at_a_time(builder.metadata());
    let reader = builder.with_projection(columns).with_row_selection(selected).with_batch_size(at_a_time).build();
    reader.map_err(|error| damaged(slice, error))
}

impl Payload {
    /// The file, at its beginning.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }
}

fn open(slice: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, PayloadError> {
    let file = File::open(slice).map_err(|problem| PayloadError::Open { path: slice.to_owned(), problem })?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| damaged(slice, error))
}

pub(super) fn damaged(slice: &Path, error: impl std::fmt::Display) -> PayloadError {
    PayloadError::Slice { path: slice.to_owned(), problem: error.to_string() }
}

fn rows_of(metadata: &ParquetMetaData) -> u64 {
    u64::try_from(metadata.file_metadata().num_rows()).unwrap_or(0)
}

/// Indices of the columns that a node gets.
fn kept(schema: &SchemaRef) -> impl Iterator<Item = usize> {
    let fields = schema.fields().iter().enumerate();
    fields.filter(|(_, field)| !RESERVED.contains(&field.name().as_str())).map(|(index, _)| index)
}

fn rows_at_a_time(metadata: &ParquetMetaData) -> usize {
    let row_bytes = |bytes: i64, rows: i64| u64::try_from(bytes / rows.max(1)).unwrap_or(0);
    let groups = metadata.row_groups().iter();
    let widest = groups.map(|group| row_bytes(group.total_byte_size(), group.num_rows())).max();
    let rows = (READ_BYTES / widest.unwrap_or(0).max(1)).clamp(1, READ_ROWS_MAX);
    usize::try_from(rows).unwrap_or(1)
}

fn rewind(file: BufWriter<File>) -> io::Result<(File, u64)> {
    let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    let bytes = file.stream_position()?;
    file.seek(SeekFrom::Start(0))?;
    Ok((file, bytes))
}

/// Keeps the rows whose `seq` is above all before them.
#[derive(Debug, Default)]
struct Rising {
    highest: Option<i64>,
}

impl Rising {
    fn filter(&mut self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let seqs = batch.column_by_name(SEQ).and_then(|column| column.as_primitive_opt::<Int64Type>());
        let seqs = seqs.ok_or_else(|| ArrowError::SchemaError(format!("there is no column {SEQ} of type Int64")))?;
        let rises: BooleanArray = seqs.values().iter().map(|&seq| Some(self.rises(seq))).collect();
        if rises.true_count() == rises.len() { Ok(batch.clone()) } else { filter_record_batch(batch, &rises) }
    }

    fn rises(&mut self, seq: i64) -> bool {
        let rises = self.highest.is_none_or(|highest| seq > highest);
        self.highest = self.highest.max(Some(seq));
        rises
    }
}

/// The rows as they are encoded.
enum Body<W: Write + Send> {
    Parquet(Box<ArrowWriter<W>>),
    Lines(Lines, W),
}

impl<W: Write + Send> Body<W> {
    fn new(format: IngestFormat, schema: &SchemaRef, file: W) -> io::Result<Self> {
        Ok(match format {
            IngestFormat::NdJson => Self::Lines(Lines::new(schema), file),
            IngestFormat::Parquet => {
                let profile = row_profile(schema, CREATED_BY).build();
                let options = ArrowWriterOptions::new().with_properties(profile).with_skip_arrow_metadata(true);
                let writer = ArrowWriter::try_new_with_options(file, Arc::clone(schema), options);
                Self::Parquet(Box::new(writer.map_err(io_error)?))
            }
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> io::Result<()> {
        match self {
            Self::Parquet(writer) => writer.write(batch).map_err(io_error),
            Self::Lines(lines, file) => (0..batch.num_rows()).try_for_each(|row| lines.write(batch, row, file)),
        }
    }

    fn finish(self) -> io::Result<W> {
        match self {
            Self::Parquet(writer) => writer.into_inner().map_err(io_error),
            Self::Lines(_, file) => Ok(file),
        }
    }
}

fn io_error(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(cause) => match cause.downcast::<io::Error>() {
            Ok(io) => *io,
            Err(other) => io::Error::other(other),
        },
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use arrow::array::*;
    use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
    use bytes::Bytes;
    use forebay_storage::slice::{ROW_GROUP_ROWS, SliceWriter};

    use super::*;

    #[test]
    fn the_columns_that_a_node_gives_are_left_out_and_all_others_keep_their_order_type_and_values() {
        let slice = Fixture::of(&batch(0..5));

        let back = slice.read_back(0..5);

        let names: Vec<_> = back.schema().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(names, ["event_time", "gateway", "seq", "site", "temp", "raw", "day", "small", "large"]);
        assert_eq!(back, batch(0..5).project(&[3, 4, 5, 6, 7, 8, 9, 10, 11]).unwrap());
    }

    #[test]
    fn rows_are_chosen_by_their_numbers_across_row_groups() {
        let rows = ROW_GROUP_ROWS as i64 + 5_000;
        let slice = Fixture::of(&batch(0..rows));

        assert_eq!(rows_in(&slice), rows as u64);
        for (start, end) in [(0, 1), (4_095, 4_097), (65_530, 65_541), (rows - 1, rows), (0, rows)] {
            let seqs = seqs(&slice.read_back(start as u64..end as u64));
            assert_eq!(seqs, Vec::from_iter(start..end));
        }
    }

    #[test]
    fn the_same_rows_give_the_same_bytes() {
        let (one, other) = (Fixture::of(&batch(0..9_000)), Fixture::of(&batch(0..9_000)));

        for format in [IngestFormat::Parquet, IngestFormat::NdJson] {
            let bytes = one.body(10..8_000, format);
            assert_eq!(bytes, other.body(10..8_000, format));
            assert_ne!(bytes, other.body(10..8_001, format));
        }
    }

    #[test]
    fn rows_whose_seq_does_not_rise_are_dropped() {
        let slice = Fixture::of(&with_seqs(&[1, 2, 2, 3, 1, 3, 4, 4, 4, 9]));

        let payload = write(&slice.path, 0..10, IngestFormat::Parquet, slice.dir.path()).unwrap();

        assert_eq!(payload.rows, 5);
        assert_eq!(seqs(&slice.read_back(0..10)), [1, 2, 3, 4, 9]);
        assert_eq!(seqs(&slice.read_back(2..5)), [2, 3]);
    }

    #[test]
    fn ndjson_is_one_object_a_row() {
        let slice = Fixture::of(&batch(0..2));

        let text = String::from_utf8(slice.body(0..2, IngestFormat::NdJson)).unwrap();

        assert_eq!(
            text,
            "{\"event_time\":\"2026-09-01T00:00:00.000Z\",\"gateway\":\"gw\",\"seq\":0,\"site\":\"s0\",\"raw\":\"00\",\
             \"day\":\"2026-08-01\",\"small\":0,\"large\":18446744073709551615}\n\
             {\"event_time\":\"2026-09-01T00:00:00.001Z\",\"gateway\":\"gw\",\"seq\":1,\"site\":\"s1\",\"temp\":0.5,\"raw\":\"01\",\
             \"day\":\"2026-08-02\",\"small\":1,\"large\":18446744073709551614}\n"
        );
    }

    #[test]
    fn nothing_is_left_in_the_scratch_directory_and_the_length_is_the_files() {
        let slice = Fixture::of(&batch(0..3));
        let scratch = slice.dir.path().join("scratch");

        let payload = write(&slice.path, 0..3, IngestFormat::NdJson, &scratch).unwrap();

        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
        let bytes = payload.bytes;
        let mut text = Vec::new();
        payload.into_file().read_to_end(&mut text).unwrap();
        assert_eq!(text.len() as u64, bytes);
    }

    #[test]
    fn wide_rows_are_read_a_few_at_a_time() {
        let text = |row: u64| "x".repeat(50_000) + &row.to_string();
        let schema = Schema::new(vec![Field::new(SEQ, DataType::Int64, false), Field::new("v", DataType::Utf8, false)]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(0..500)),
            Arc::new(StringArray::from_iter_values((0..500).map(text))),
        ];
        let slice = Fixture::of(&RecordBatch::try_new(Arc::new(schema), columns).unwrap());

        let largest = read(&slice.path, std::slice::from_ref(&(0..500)))
            .unwrap()
            .map(|batch| batch.unwrap().num_rows())
            .max()
            .unwrap();

        assert!((40..=100).contains(&largest), "{largest} rows at a time");
    }

    #[test]
    fn a_slice_that_is_gone_or_damaged_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f1620");
        let problem = || write(&path, 0..1, IngestFormat::Parquet, dir.path()).unwrap_err();

        assert!(matches!(problem(), PayloadError::Open { .. }));
        fs::write(&path, "no Parquet").unwrap();
        assert!(matches!(problem(), PayloadError::Slice { .. }));
        assert!(problem().to_string().contains("f1620"), "{}", problem());
    }

    struct Fixture {
        dir: tempfile::TempDir,
        path: PathBuf,
    }

    impl Fixture {
        fn of(batch: &RecordBatch) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("slice");
            let mut writer = SliceWriter::new(batch.schema(), File::create(&path).unwrap()).unwrap();
            writer.write(batch).unwrap();
            writer.finish().unwrap();
            Self { dir, path }
        }

        fn body(&self, rows: Range<u64>, format: IngestFormat) -> Vec<u8> {
            let payload = write(&self.path, rows, format, self.dir.path()).unwrap();
            let mut bytes = Vec::new();
            payload.into_file().read_to_end(&mut bytes).unwrap();
            bytes
        }

        fn read_back(&self, rows: Range<u64>) -> RecordBatch {
            let bytes = Bytes::from(self.body(rows, IngestFormat::Parquet));
            let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
            let schema = Arc::clone(builder.schema());
            let batches: Vec<_> = builder.build().unwrap().map(Result::unwrap).collect();
            arrow::compute::concat_batches(&schema, &batches).unwrap()
        }
    }

    fn rows_in(slice: &Fixture) -> u64 {
        rows(&slice.path).unwrap()
    }

    fn seqs(batch: &RecordBatch) -> Vec<i64> {
        batch.column_by_name(SEQ).unwrap().as_primitive::<Int64Type>().values().to_vec()
    }

    fn with_seqs(seqs: &[i64]) -> RecordBatch {
        let whole = batch(0..seqs.len() as i64);
        let mut columns = whole.columns().to_vec();
        columns[5] = Arc::new(Int64Array::from(seqs.to_vec()));
        RecordBatch::try_new(whole.schema(), columns).unwrap()
    }

    /// Rows as a dataset's slice has them, of most types.
    fn batch(rows: Range<i64>) -> RecordBatch {
        let instant = || DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
        let schema = Schema::new(vec![
            Field::new("offset", DataType::Int64, false),
            Field::new("op", DataType::Int32, false),
            Field::new("system_time", instant(), false),
            Field::new("event_time", instant(), false),
            Field::new("gateway", DataType::Utf8, false),
            Field::new(SEQ, DataType::Int64, false),
            Field::new("site", DataType::Utf8, false),
            Field::new("temp", DataType::Float32, true),
            Field::new("raw", DataType::Binary, false),
            Field::new("day", DataType::Date32, false),
            Field::new("small", DataType::UInt8, false),
            Field::new("large", DataType::UInt64, false),
        ]);
        let at = |row: i64| 1_788_220_800_000 + row;
        let count = (rows.end - rows.start) as usize;
        let instants = |of: &dyn Fn(i64) -> i64| {
            Arc::new(TimestampMillisecondArray::from_iter_values(rows.clone().map(of)).with_timezone("UTC"))
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(rows.clone())),
            Arc::new(Int32Array::from(vec![0; count])),
            instants(&|_| at(0)),
            instants(&at),
            Arc::new(StringArray::from(vec!["gw"; count])),
            Arc::new(Int64Array::from_iter_values(rows.clone())),
            Arc::new(StringArray::from_iter_values(rows.clone().map(|row| format!("s{}", row % 3)))),
            Arc::new(Float32Array::from_iter(rows.clone().map(|row| (row % 2 == 1).then_some(row as f32 / 2.0)))),
            Arc::new(BinaryArray::from_iter_values(rows.clone().map(|row| [row as u8]))),
            Arc::new(Date32Array::from_iter_values(rows.clone().map(|row| 20_666 + row as i32))),
            Arc::new(UInt8Array::from_iter_values(rows.clone().map(|row| row as u8))),
            Arc::new(UInt64Array::from_iter_values(rows.clone().map(|row| u64::MAX - row as u64))),
        ];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }
}
