//! Reads back what is on disk: rows by Arrow's Parquet reader, dead letters from the spool, files byte by byte.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::Int64Type;
use forebay_storage::dead_letter::{DeadLetter, NO_DATASET};
use forebay_storage::position::Seq;
use forebay_storage::spool::Spool;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// Rows read at a time.
const BATCH_ROWS: usize = 4_096;
/// Dead letters read at a time.
const LETTERS: usize = 1_024;

/// How often each message, by client and number, is a row.
pub(super) type Rows = BTreeMap<(String, u64), u64>;

/// Every row of a dataset's directory, whichever slice it is in.
pub(super) fn rows(dir: &Path) -> Result<Rows> {
    let mut rows = Rows::new();
    for path in files(&dir.join("data"))? {
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file)
            .and_then(|builder| builder.with_batch_size(BATCH_ROWS).build())
            .with_context(|| format!("read {}", path.display()))?;
        for batch in reader {
            let batch = batch.with_context(|| format!("read {}", path.display()))?;
            for key in keys(&batch).with_context(|| format!("read {}", path.display()))? {
                *rows.entry(key).or_default() += 1;
            }
        }
    }
    Ok(rows)
}

/// Client and number of each row; text begins with its number.
fn keys(batch: &RecordBatch) -> Result<Vec<(String, u64)>> {
    let clients = batch.column_by_name("client_id").context("no column client_id")?;
    let clients = clients.as_string_opt::<i32>().context("client_id is not text")?;
    let numbers: Vec<u64> = match batch.column_by_name("n") {
        Some(numbers) => {
            let numbers = numbers.as_primitive_opt::<Int64Type>().context("n is not Int64")?;
            numbers.values().iter().map(|n| u64::try_from(*n)).collect::<Result<_, _>>()?
        }
        None => {
            let texts = batch.column_by_name("value").context("no column value")?;
            let texts = texts.as_string_opt::<i32>().context("value is not text")?;
            (0..texts.len()).map(|row| leading_number(texts.value(row))).collect::<Result<_>>()?
        }
    };
    Ok(numbers.into_iter().enumerate().map(|(row, n)| (clients.value(row).to_owned(), n)).collect())
}

fn leading_number(text: &str) -> Result<u64> {
    let digits = text.split(' ').next().unwrap_or_default();
    digits.parse().with_context(|| format!("{text:?} does not begin with a number"))
}

/// Every dead letter of the spool.
pub(super) fn dead_letters(spool: &Spool) -> Result<Vec<DeadLetter>> {
    let mut letters = Vec::new();
    let datasets = spool.datasets()?.into_iter().map(|(_, id)| id);
    for dataset in datasets.chain([NO_DATASET]) {
        let mut from = Seq(0);
        loop {
            let more = spool.dead_letters(dataset, from, LETTERS)?;
            let Some(last) = more.last() else { break };
            from = last.seq.next();
            letters.extend(more);
        }
    }
    Ok(letters)
}

/// Whether two repositories have the same blocks, slices and head, byte for byte.
pub(super) fn same_files(one: &Path, other: &Path) -> Result<bool> {
    for folder in ["blocks", "data", "refs"] {
        let (here, there) = (files(&one.join(folder))?, files(&other.join(folder))?);
        if names(&here) != names(&there) {
            return Ok(false);
        }
        for (a, b) in here.iter().zip(&there) {
            if fs::read(a)? != fs::read(b)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn names(files: &[PathBuf]) -> Vec<Option<&std::ffi::OsStr>> {
    files.iter().map(|path| path.file_name()).collect()
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
