//! Bodies to columns and back: what a source's reader accepts, and Parquet as the store writes it.

use std::fs::File;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use arrow::array::{RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::json::{LineDelimitedWriter, ReaderBuilder};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::file::properties::{EnabledStatistics, WriterProperties};

/// UTC as a dataset's schema spells it.
pub(crate) const STORED_ZONE: &str = "UTC";
/// UTC as Arrow understands it without a database of time zones.
pub(crate) const WORKING_ZONE: &str = "+00:00";

/// Rows read at a time.
const BATCH_ROWS: usize = 65_536;

/// NDJSON: fields by name, others ignored. Any bad line refuses all of it.
pub(crate) fn from_ndjson(body: &[u8], schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
    let reader = ReaderBuilder::new(Arc::clone(schema)).with_batch_size(BATCH_ROWS).build(Cursor::new(body))?;
    Ok(reader.collect::<Result<_, _>>()?)
}

/// Parquet: columns by name, others dropped, types cast.
pub(crate) fn from_parquet(body: Bytes, schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(body)?.with_batch_size(BATCH_ROWS).build()?;
    reader.map(|batch| conform(&batch?, schema)).collect()
}

fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let columns = schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
        Some(column) => Ok(cast_with_options(column, field.data_type(), &options)?),
        None => {
            ensure!(field.is_nullable(), "the column {} is missing", field.name());
            Ok(new_null_array(field.data_type(), batch.num_rows()))
        }
    });
    Ok(RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_>>()?)?)
}

/// The same instants under another name of UTC.
pub(crate) fn in_zone(batch: &RecordBatch, zone: &str) -> Result<RecordBatch> {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let column = match field.data_type() {
            DataType::Timestamp(..) => cast(column, &millis(zone))?,
            _ => Arc::clone(column),
        };
        fields.push(Field::new(field.name(), column.data_type().clone(), field.is_nullable()));
        columns.push(column);
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// Every timestamp is in milliseconds, whatever a source or a body says: a node casts before it merges.
pub(crate) fn millis(zone: &str) -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some(zone.into()))
}

/// Plain encoding without statistics: a debug build writes a hundred thousand rows in no time.
pub(crate) fn to_parquet(batch: &RecordBatch) -> Result<Vec<u8>> {
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_created_by("forebay-stub-node".to_owned())
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))?;
    writer.write(batch)?;
    Ok(writer.into_inner()?)
}

/// A slice of the store, all of it or the `columns` it has of those.
pub(crate) fn read_slice(path: &Path, columns: Option<&[String]>) -> Result<Vec<RecordBatch>> {
    let reader = slice_reader(path, columns).with_context(|| format!("read {}", path.display()))?;
    Ok(reader.collect::<Result<_, _>>()?)
}

fn slice_reader(path: &Path, columns: Option<&[String]>) -> Result<ParquetRecordBatchReader> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?.with_batch_size(BATCH_ROWS);
    let Some(columns) = columns else {
        return Ok(builder.build()?);
    };
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().map(String::as_str));
    Ok(builder.with_projection(mask).build()?)
}

pub(crate) fn write_lines(batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
    let mut writer = LineDelimitedWriter::new(out);
    writer.write(&in_zone(batch, WORKING_ZONE)?)?;
    Ok(writer.finish()?)
}
