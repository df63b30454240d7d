//! `verify` reads the rows: a slice whose bytes are as its block says, and whose rows are not.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::{DataType as ArrowType, Field, Schema, SchemaRef, TimeUnit};
use chrono::{DateTime, Utc};
use forebay_storage::durable_fs::DurableFs;
use forebay_storage::odf::multihash::HashKind;
use forebay_storage::odf::{
    AddData, DataSchema, DataSlice, Depth, Event, Multihash, Report, Repository, SetDataSchema, verify,
};
use forebay_storage::slice::SliceWriter;

#[test]
fn a_slice_of_our_own_verifies_down_to_its_rows() {
    let mut dataset = Dataset::new();

    dataset.append(&rows(0, 10_000), |_| {});
    dataset.append(&rows(10_000, 3), |_| {});

    let report = dataset.verify();
    assert_eq!((report.problems, report.notes), (vec![], vec![]));
    assert_eq!((report.slices, report.rows), (2, 10_003));
}

#[test]
fn a_wrong_logical_hash_is_reported() {
    let mut dataset = Dataset::new();

    dataset.append(&rows(0, 5), |event| {
        let slice = event.new_data.as_mut().unwrap();
        slice.logical_hash = Multihash::new(HashKind::Arrow0Sha3_256, [9; 32]);
    });

    dataset.assert_problem("its rows have the logical hash f9680c00120");
}

#[test]
fn offsets_that_are_not_those_of_the_interval_are_reported() {
    let mut dataset = Dataset::new();

    dataset.append(&rows(1, 5), |event| {
        let slice = event.new_data.as_mut().unwrap();
        (slice.start, slice.end) = (0, 4);
    });

    dataset.assert_problem("has the offset 1 where 0 must follow");
}

#[test]
fn fewer_rows_than_the_interval_has_are_reported() {
    let mut dataset = Dataset::new();

    dataset.append(&rows(0, 5), |event| event.new_data.as_mut().unwrap().end = 5);

    dataset.assert_problem("has 5 rows; its block says offsets 0 to 5");
}

#[test]
fn columns_that_are_not_those_of_the_chain_are_reported() {
    let mut dataset = Dataset::new();
    let renamed = RecordBatch::try_new(schema("temperature", true), rows(0, 5).columns().to_vec()).unwrap();

    dataset.append(&renamed, |_| {});

    dataset.assert_problem("has the column `temperature` Option<Float64> where the chain's schema has `value`");
}

#[test]
fn a_null_in_a_column_that_is_not_optional_is_reported() {
    let mut dataset = Dataset::with_schema(&schema("value", false));

    dataset.append(&rows(0, 5), |_| {});

    dataset.assert_problem("has nulls in the column `value`, which is not optional");
}

#[test]
fn bytes_that_are_no_parquet_are_reported_though_their_hash_is_right() {
    let mut dataset = Dataset::new();
    dataset.append_bytes(b"PAR1 but nothing else PAR1", 0..=4, [0; 32], |_| {});

    dataset.assert_problem("is not readable as Parquet");
}

#[test]
fn rows_ahead_of_the_watermark_are_noted() {
    let mut dataset = Dataset::new();

    dataset.append(&rows(0, 5), |event| event.new_watermark = DateTime::from_timestamp_millis(3));

    let report = dataset.verify();
    assert!(report.is_ok());
    assert!(report.notes[0].what.contains("after the watermark"), "{:?}", report.notes);
}

struct Dataset {
    _temp: tempfile::TempDir,
    repository: Repository,
}

impl Dataset {
    fn new() -> Self {
        Self::with_schema(&schema("value", true))
    }

    fn with_schema(schema: &Schema) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut repository = Repository::create(&temp.path().join("d"), DurableFs::new(), time()).unwrap();
        let schema = Some(DataSchema::from_arrow(schema).unwrap());
        let event = Event::SetDataSchema(SetDataSchema { raw_arrow_schema: None, schema });
        repository.append(&[event], time()).unwrap();
        Self { _temp: temp, repository }
    }

    /// Appends a slice of these rows; `change` may make its event wrong.
    fn append(&mut self, batch: &RecordBatch, change: impl FnOnce(&mut AddData)) {
        let (bytes, slice) = {
            let mut writer = SliceWriter::new(batch.schema(), Vec::new()).unwrap();
            writer.write(batch).unwrap();
            writer.finish().unwrap()
        };
        let start = self.repository.state().next_offset.0;
        let interval = start..=start + slice.rows - 1;
        self.append_bytes(&bytes, interval, slice.logical_hash, change);
    }

    fn append_bytes(
        &mut self,
        bytes: &[u8],
        interval: std::ops::RangeInclusive<u64>,
        logical_hash: [u8; 32],
        change: impl FnOnce(&mut AddData),
    ) {
        let physical_hash = Multihash::of(bytes);
        fs::write(self.repository.data_path(&physical_hash), bytes).unwrap();
        let mut event = AddData {
            prev_offset: self.repository.state().prev_offset(),
            new_data: Some(DataSlice {
                logical_hash: Multihash::new(HashKind::Arrow0Sha3_256, logical_hash),
                physical_hash,
                start: *interval.start(),
                end: *interval.end(),
                size: bytes.len() as u64,
            }),
            new_watermark: Some(time()),
            ..AddData::default()
        };
        change(&mut event);
        self.repository.append(&[Event::AddData(Box::new(event))], time()).unwrap();
    }

    fn verify(&self) -> Report {
        verify(self.repository.dir(), Depth::Rows)
    }

    /// There is one problem, of the one slice.
    fn assert_problem(&self, what: &str) {
        let report = self.verify();
        assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
        let problem = &report.problems[0];
        assert!(problem.what.contains(what), "{problem}");
        assert!(File::open(self.repository.dir().join(&problem.file)).is_ok());
        assert_eq!(problem.file.parent(), Some(Path::new("data")));
    }
}

fn schema(value: &str, optional: bool) -> SchemaRef {
    let instant = || ArrowType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("offset", ArrowType::Int64, false),
        Field::new("op", ArrowType::Int32, false),
        Field::new("system_time", instant(), false),
        Field::new("event_time", instant(), false),
        Field::new(value, ArrowType::Float64, optional),
    ]))
}

/// Rows with the offsets from `first`; each event time is its offset, each third value null.
fn rows(first: i64, count: i64) -> RecordBatch {
    let offsets = || first..first + count;
    let instants = |values: Vec<i64>| TimestampMillisecondArray::from(values).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(offsets())),
        Arc::new(Int32Array::from_iter_values(offsets().map(|_| 0))),
        Arc::new(instants(offsets().map(|_| 1_000).collect())),
        Arc::new(instants(offsets().collect())),
        Arc::new(offsets().map(|offset| (offset % 3 != 0).then_some(offset as f64)).collect::<Float64Array>()),
    ];
    RecordBatch::try_new(schema("value", true), columns).unwrap()
}

fn time() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}
