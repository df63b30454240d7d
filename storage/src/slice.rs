//! A sealed slice: one Parquet file, written once and hashed while it is written.
//!
//! The same rows give the same bytes, however they are cut into batches, so that a seal which is repeated after a crash
//! finds the file it had begun. Parquet cuts its pages by how rows are handed to the writer; hence rows are handed on
//! in pieces of exactly [`PIECE_ROWS`], counted from the first row of the slice, and everything else that could vary is
//! pinned in [`row_profile`] and `profile`. [`CREATED_BY`] names that profile: change one and the other changes too.
//!
//! Memory is bounded by one row group of encoded pages plus one piece, not by the size of the slice.
//!
//! Two hashes, both raw SHA3-256 digests: the physical one over the bytes of the file, and ODF's logical one
//! (`arrow0-sha3-256`, crate `arrow-digest`) over the values, which no encoding changes.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array as _, Date32Array, Int64Array, TimestampMillisecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow_digest::{RecordDigest as _, RecordDigestV0};
use forebay_hash::{Digest as _, Sha3_256};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, Encoding};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion};
use parquet::schema::types::ColumnPath;

use crate::dataset::schema::EVENT_TIME;

/// Rows handed to the Parquet writer at a time.
pub const PIECE_ROWS: usize = 4_096;
/// Rows of a row group: what is held in memory, encoded, until it is written. A multiple of [`PIECE_ROWS`].
pub const ROW_GROUP_ROWS: usize = 65_536;
/// Encoded bytes at which a row group is written before it has all its rows.
pub const ROW_GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The writer as the file names it, with the number of its profile.
pub const CREATED_BY: &str = "forebay/1";

/// Name of the column that identifies a row within its gateway.
const SEQ: &str = "seq";
const MILLIS_PER_DAY: i64 = 86_400_000;

/// Writes one slice to `sink`.
pub struct SliceWriter<W: Write + Send> {
    schema: SchemaRef,
    parquet: ArrowWriter<HashingSink<W>>,
    logical: RecordDigestV0<Sha3_256>,
    /// Rows of the piece that is being gathered, fewer than [`PIECE_ROWS`].
    pending: Vec<RecordBatch>,
    pending_rows: usize,
    rows: u64,
    event_time_max: Option<i64>,
}

/// A finished slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Rows. None is a valid file, but ODF has no use for one.
    pub rows: u64,
    /// Bytes of the file.
    pub size: u64,
    /// Digest of ODF's logical hash.
    pub logical_hash: [u8; 32],
    /// Digest of the file's bytes.
    pub physical_hash: [u8; 32],
    /// Latest event time, milliseconds since 1970; none without rows.
    pub event_time_max: Option<i64>,
}

/// Why a slice could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SliceError {
    /// The batch has other columns than the slice.
    #[error("the batch's columns are not those of the slice")]
    Schema,
    /// ODF's logical hash is not defined for a column's type.
    #[error("column {0:?} has a type that datasets do not use")]
    ColumnType(String),
    /// The sink refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Parquet refused for another reason.
    #[error("failed to encode Parquet: {0}")]
    Parquet(#[source] ParquetError),
    /// Arrow refused.
    #[error("failed to gather rows: {0}")]
    Arrow(#[from] ArrowError),
}

impl<W: Write + Send> SliceWriter<W> {
    /// For the columns of a dataset ([`Columns`](crate::dataset::schema::Columns)).
    pub fn new(schema: SchemaRef, sink: W) -> Result<Self, SliceError> {
        if let Some(field) = schema.fields().iter().find(|field| !is_plain(field.data_type())) {
            return Err(SliceError::ColumnType(field.name().clone()));
        }
        let options = ArrowWriterOptions::new().with_properties(profile(&schema)).with_skip_arrow_metadata(true);
        Ok(Self {
            parquet: ArrowWriter::try_new_with_options(HashingSink::new(sink), Arc::clone(&schema), options)?,
            logical: RecordDigestV0::new(&schema),
            schema,
            pending: Vec::new(),
            pending_rows: 0,
            rows: 0,
            event_time_max: None,
        })
    }

    /// Adds rows.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), SliceError> {
        if batch.schema_ref() != &self.schema {
            return Err(SliceError::Schema);
        }
        self.logical.update(batch);
        self.rows += batch.num_rows() as u64;
        self.event_time_max = self.event_time_max.max(event_time_max(batch));
        let mut start = 0;
        while start < batch.num_rows() {
            let rows = (PIECE_ROWS - self.pending_rows).min(batch.num_rows() - start);
            self.pending.push(batch.slice(start, rows));
            self.pending_rows += rows;
            start += rows;
            if self.pending_rows == PIECE_ROWS {
                self.write_piece()?;
            }
        }
        Ok(())
    }

    /// Writes what is left and the footer. The sink is returned for whatever makes it durable.
    pub fn finish(mut self) -> Result<(W, Slice), SliceError> {
        self.write_piece()?;
        // `into_inner` would drop the kind of an I/O error, and a full disk must be known as such: finish and flush in place.
        self.parquet.finish()?;
        self.parquet.sync()?;
        let (sink, physical_hash, size) = self.parquet.inner_mut().take()?;
        let slice = Slice {
            rows: self.rows,
            size,
            logical_hash: self.logical.finalize().into(),
            physical_hash,
            event_time_max: self.event_time_max,
        };
        Ok((sink, slice))
    }

    fn write_piece(&mut self) -> Result<(), SliceError> {
        let piece = match self.pending.as_slice() {
            [] => return Ok(()),
            [whole] => whole.clone(),
            parts => concat_batches(&self.schema, parts)?,
        };
        self.pending.clear();
        self.pending_rows = 0;
        self.parquet.write(&piece)?;
        Ok(())
    }
}

/// The `seq` of each row of a slice that [`SliceWriter`] wrote. Holds them all: a slice is bounded.
pub fn read_seqs(path: &Path) -> Result<HashSet<u64>, SliceError> {
    let file =
        File::open(path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)?;
    let only_seq = ProjectionMask::columns(reader.parquet_schema(), [SEQ]);
    let mut seqs = HashSet::new();
    for batch in reader.with_projection(only_seq).build()? {
        let batch = batch?;
        let column = batch.column_by_name(SEQ).and_then(|column| column.as_any().downcast_ref::<Int64Array>());
        let column = column.ok_or_else(|| SliceError::ColumnType(SEQ.to_owned()))?;
        seqs.extend(column.iter().flatten().filter_map(|seq| u64::try_from(seq).ok()));
    }
    Ok(seqs)
}

impl<W: Write + Send> std::fmt::Debug for SliceWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SliceWriter").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl From<ParquetError> for SliceError {
    fn from(error: ParquetError) -> Self {
        match error {
            ParquetError::External(cause) => match cause.downcast::<io::Error>() {
                Ok(io) => Self::Io(*io),
                Err(other) => Self::Parquet(ParquetError::External(other)),
            },
            other => Self::Parquet(other),
        }
    }
}

/// The profile of a slice, pinned.
fn profile(schema: &SchemaRef) -> WriterProperties {
    row_profile(schema, CREATED_BY).set_statistics_enabled(EnabledStatistics::Chunk).build()
}

/// How rows of a dataset are written to Parquet, by whatever writer. Positions and times grow steadily: delta encoding
/// halves the file, and a dictionary would only be in its way. All else has a dictionary, as topics and device names
/// repeat.
#[must_use]
pub fn row_profile(schema: &SchemaRef, created_by: &str) -> WriterPropertiesBuilder {
    let profile = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_created_by(created_by.to_owned())
        .set_compression(Compression::SNAPPY)
        .set_dictionary_enabled(true)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES_MAX));
    let growing = schema.fields().iter().filter(|field| {
        matches!(field.name().as_str(), "offset" | "seq") || matches!(field.data_type(), DataType::Timestamp(..))
    });
    growing.fold(profile, |profile, field| {
        // One path element: a '.' in a column's name does not nest.
        let column = ColumnPath::new(vec![field.name().clone()]);
        profile
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED)
    })
}

/// The types that datasets use; all of them have a logical hash.
fn is_plain(data_type: &DataType) -> bool {
    data_type.is_integer()
        || matches!(
            data_type,
            DataType::Boolean
                | DataType::Float32
                | DataType::Float64
                | DataType::Utf8
                | DataType::Binary
                | DataType::Date32
                | DataType::Timestamp(TimeUnit::Millisecond, _)
        )
}

fn event_time_max(batch: &RecordBatch) -> Option<i64> {
    let column = batch.columns().get(EVENT_TIME)?.as_any();
    if let Some(instants) = column.downcast_ref::<TimestampMillisecondArray>() {
        return instants.iter().flatten().max();
    }
    let days = column.downcast_ref::<Date32Array>()?.iter().flatten().max()?;
    Some(i64::from(days) * MILLIS_PER_DAY)
}

/// Passes bytes on, counts and hashes them.
struct HashingSink<W> {
    /// There until it is taken, at the end.
    sink: Option<W>,
    hasher: Sha3_256,
    size: u64,
}

impl<W: Write> HashingSink<W> {
    fn new(sink: W) -> Self {
        Self { sink: Some(sink), hasher: Sha3_256::new(), size: 0 }
    }

    fn sink(&mut self) -> io::Result<&mut W> {
        self.sink.as_mut().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    fn take(&mut self) -> io::Result<(W, [u8; 32], u64)> {
        let sink = self.sink.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok((sink, std::mem::take(&mut self.hasher).finalize().into(), self.size))
    }
}

impl<W: Write> Write for HashingSink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sink()?.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or(bytes));
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink()?.flush()
    }
}
