//! A dataset as anyone may read it: its data slices by the public Parquet reader, without our code.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Int64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// The rows of one dataset, in the order of their offsets.
#[derive(Debug)]
pub struct Rows {
    batches: Vec<RecordBatch>,
}

impl Rows {
    /// Reads every slice of the dataset `name`. Offsets must be dense and `seq` must rise, over all slices.
    pub fn read(data_dir: &Path, name: &str) -> Result<Self> {
        Self::read_repository(&data_dir.join("datasets").join(name))
    }

    /// The same for a repository anywhere.
    pub fn read_repository(dir: &Path) -> Result<Self> {
        let head = dir.join("refs/head");
        ensure!(head.is_file(), "{} is not there", head.display());
        let mut slices = BTreeMap::new();
        for entry in fs::read_dir(dir.join("data")).with_context(|| format!("list the slices of {}", dir.display()))? {
            let path = entry?.path();
            let batches = read_slice(&path).with_context(|| format!("read {}", path.display()))?;
            let first = batches.iter().find(|batch| batch.num_rows() > 0).context("a slice without a row")?;
            slices.insert(integers(first, "offset")?[0], batches);
        }
        let rows = Self { batches: slices.into_values().flatten().collect() };
        rows.check_positions()?;
        Ok(rows)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A column of text or bytes, as text.
    pub fn texts(&self, column: &str) -> Result<Vec<String>> {
        let mut texts = Vec::new();
        for batch in &self.batches {
            let array = batch.column_by_name(column).with_context(|| format!("find the column {column}"))?;
            for row in 0..array.len() {
                let bytes = if let Some(array) = array.as_binary_opt::<i32>() {
                    array.value(row)
                } else {
                    array
                        .as_string_opt::<i32>()
                        .with_context(|| format!("{column} is {}", array.data_type()))?
                        .value(row)
                        .as_bytes()
                };
                texts.push(String::from_utf8_lossy(bytes).into_owned());
            }
        }
        Ok(texts)
    }

    /// A column of single precision numbers.
    pub fn floats(&self, column: &str) -> Result<Vec<f32>> {
        let mut floats = Vec::new();
        for batch in &self.batches {
            let array = batch.column_by_name(column).with_context(|| format!("find the column {column}"))?;
            let array = array
                .as_primitive_opt::<Float32Type>()
                .with_context(|| format!("{column} is {}", array.data_type()))?;
            floats.extend_from_slice(array.values());
        }
        Ok(floats)
    }

    /// The `seq` of each row.
    pub fn seqs(&self) -> Result<Vec<i64>> {
        let mut seqs = Vec::new();
        for batch in &self.batches {
            seqs.extend_from_slice(integers(batch, "seq")?);
        }
        Ok(seqs)
    }

    fn check_positions(&self) -> Result<()> {
        let mut next_offset = 0;
        let mut last_seq = -1;
        for batch in &self.batches {
            for (offset, seq) in integers(batch, "offset")?.iter().zip(integers(batch, "seq")?) {
                ensure!(*offset == next_offset, "offset {offset} follows {}", next_offset - 1);
                ensure!(*seq > last_seq, "seq {seq} follows {last_seq} at offset {offset}");
                (next_offset, last_seq) = (offset + 1, *seq);
            }
        }
        Ok(())
    }
}

fn read_slice(path: &Path) -> Result<Vec<RecordBatch>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?.build()?;
    Ok(reader.collect::<Result<_, _>>()?)
}

fn integers<'a>(batch: &'a RecordBatch, column: &str) -> Result<&'a [i64]> {
    let array = batch.column_by_name(column).with_context(|| format!("find the column {column}"))?;
    let array = array.as_primitive_opt::<Int64Type>().with_context(|| format!("{column} is {}", array.data_type()))?;
    Ok(array.values())
}
