//! Checks one slice against the block that names it. Part of [`verify`](super::verify).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch};
use arrow::compute;
use arrow::datatypes::{self as arrow_types, Int64Type, TimestampMillisecondType};
use arrow_digest::{RecordDigest, RecordDigestV0};
use forebay_hash::{Digest, Sha3_256};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::chain::ChainState;
use super::event::DataSlice;
use super::multihash::{HashKind, Multihash};
use super::schema::{DataSchema, DataType};
use super::verify::BATCH_ROWS;

/// What the rows of a slice say.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) rows: u64,
    pub(super) problems: Vec<String>,
    pub(super) notes: Vec<String>,
}

/// Presence, size and physical hash.
pub(super) fn check_file(path: &Path, slice: &DataSlice) -> Result<(), String> {
    let (size, hash) = match hash_file(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err("is missing".to_owned()),
        Err(error) => return Err(format!("cannot be read: {error}")),
    };
    if size != slice.size {
        return Err(format!("has {size} bytes; its block says {}", slice.size));
    }
    if hash != slice.physical_hash {
        return Err(format!("is damaged: its bytes have the hash {hash}"));
    }
    Ok(())
}

/// Columns, offsets, logical hash, event time. The file's physical hash must have been checked.
pub(super) fn check_rows(path: &Path, slice: &DataSlice, state: &ChainState) -> Findings {
    let mut findings = Findings::default();
    if let Err(what) = read_rows(path, slice, state, &mut findings) {
        findings.problems.push(what);
    }
    findings
}

fn hash_file(path: &Path) -> io::Result<(u64, Multihash)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha3_256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            let hash = Multihash::new(HashKind::Sha3_256, hasher.finalize().into());
            return Ok((size, hash));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}

/// The first thing that makes the rest pointless is the error.
fn read_rows(path: &Path, slice: &DataSlice, state: &ChainState, findings: &mut Findings) -> Result<(), String> {
    let file = File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let not_parquet = |error| format!("is not readable as Parquet: {error}");
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(not_parquet)?;
    let columns = builder.schema().clone();
    match &state.schema {
        Some(schema) => check_columns(&columns, schema)?,
        None => findings.notes.push("its columns were not checked: the chain has a legacy schema".to_owned()),
    }
    check_digestible(&columns)?;
    let reader = builder.with_batch_size(BATCH_ROWS).build().map_err(not_parquet)?;

    let mut rows = Rows::new(&columns, slice, state);
    for batch in reader {
        let batch = batch.map_err(|error| format!("is not readable as Parquet: {error}"))?;
        findings.rows += batch.num_rows() as u64;
        rows.check(&batch)?;
    }
    rows.finish(slice, state, findings)
}

/// The same columns in the same order. Nulls are judged by the rows: some writers call every column nullable.
fn check_columns(found: &arrow_types::Schema, schema: &DataSchema) -> Result<(), String> {
    let found = DataSchema::from_arrow(found).map_err(|error| error.to_string())?;
    if found.fields.len() != schema.fields.len() {
        let (found, expected) = (found.fields.len(), schema.fields.len());
        return Err(format!("has {found} columns; the chain's schema has {expected}"));
    }
    for (found, expected) in found.fields.iter().zip(&schema.fields) {
        let is_same = found.data_type.without_option().is_same_type(expected.data_type.without_option());
        if found.name != expected.name || !is_same {
            return Err(format!(
                "has the column `{}` {} where the chain's schema has `{}` {}",
                found.name,
                found.data_type.name(),
                expected.name,
                expected.data_type.name()
            ));
        }
    }
    Ok(())
}

/// arrow-digest panics on types for which the logical hash is not defined.
fn check_digestible(schema: &arrow_types::Schema) -> Result<(), String> {
    let column = schema.fields().iter().find(|field| !is_digestible(field.data_type()));
    column.map_or(Ok(()), |field| {
        let (name, data_type) = (field.name(), field.data_type());
        Err(format!("column `{name}` has the type {data_type}, for which ODF defines no logical hash"))
    })
}

fn is_digestible(data_type: &arrow_types::DataType) -> bool {
    use arrow_types::DataType as A;
    match data_type {
        A::Struct(fields) => fields.iter().all(|field| is_digestible(field.data_type())),
        A::List(item) | A::LargeList(item) | A::FixedSizeList(item, _) => {
            !item.data_type().is_nested() && is_digestible(item.data_type())
        }
        other => {
            other.is_primitive() && !matches!(other, A::Duration(_) | A::Interval(_))
                || matches!(
                    other,
                    A::Boolean
                        | A::Utf8
                        | A::LargeUtf8
                        | A::Utf8View
                        | A::Binary
                        | A::LargeBinary
                        | A::BinaryView
                        | A::FixedSizeBinary(_)
                )
        }
    }
}

/// The state of reading a slice.
struct Rows {
    digest: RecordDigestV0<Sha3_256>,
    offset_column: String,
    event_time_column: String,
    required_columns: Vec<String>,
    next_offset: u64,
    event_time_max: Option<i64>,
}

impl Rows {
    fn new(columns: &arrow_types::Schema, slice: &DataSlice, state: &ChainState) -> Self {
        let name = |name: &Option<String>, default: &str| name.as_deref().unwrap_or(default).to_owned();
        let fields = state.schema.iter().flat_map(|schema| &schema.fields);
        let required = fields.filter(|field| !field.data_type.is_optional());
        Self {
            digest: RecordDigestV0::new(columns),
            offset_column: name(&state.vocab.offset_column, "offset"),
            event_time_column: name(&state.vocab.event_time_column, "event_time"),
            required_columns: required.map(|field| field.name.clone()).collect(),
            next_offset: slice.start,
            event_time_max: None,
        }
    }

    fn check(&mut self, batch: &RecordBatch) -> Result<(), String> {
        self.digest.update(batch);
        self.check_offsets(batch)?;
        for name in &self.required_columns {
            let nulls = batch.column_by_name(name).map_or(0, |column| column.null_count());
            if nulls > 0 {
                return Err(format!("has nulls in the column `{name}`, which is not optional"));
            }
        }
        let event_time = batch.column_by_name(&self.event_time_column);
        let millis = event_time.and_then(|column| column.as_primitive_opt::<TimestampMillisecondType>());
        self.event_time_max = self.event_time_max.max(millis.and_then(compute::max));
        Ok(())
    }

    fn check_offsets(&mut self, batch: &RecordBatch) -> Result<(), String> {
        let name = &self.offset_column;
        let column = batch.column_by_name(name);
        let offsets: &Int64Array = column
            .and_then(|column| column.as_primitive_opt::<Int64Type>())
            .ok_or_else(|| format!("has no {} column `{name}`", DataType::Int64.name()))?;
        for found in offsets {
            let expected = self.next_offset;
            if found.and_then(|found| u64::try_from(found).ok()) != Some(expected) {
                let found = found.map_or("null".to_owned(), |found| found.to_string());
                return Err(format!("has the offset {found} where {expected} must follow"));
            }
            self.next_offset += 1;
        }
        Ok(())
    }

    fn finish(self, slice: &DataSlice, state: &ChainState, findings: &mut Findings) -> Result<(), String> {
        let hash = Multihash::new(HashKind::Arrow0Sha3_256, self.digest.finalize().into());
        if Some(findings.rows) != slice.rows() {
            let (rows, start, end) = (findings.rows, slice.start, slice.end);
            return Err(format!("has {rows} rows; its block says offsets {start} to {end}"));
        }
        if hash != slice.logical_hash {
            let expected = slice.logical_hash;
            return Err(format!("its rows have the logical hash {hash}; its block says {expected}"));
        }
        let watermark = state.watermark.map(|watermark| watermark.timestamp_millis());
        if self.event_time_max.is_some() && watermark < self.event_time_max {
            findings.notes.push("has rows with an event time after the watermark of its block".to_owned());
        }
        Ok(())
    }
}
