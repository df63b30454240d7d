//! The keys of every row that is there, as 64-bit hashes: what Ledger's left-anti join asks. A million keys make one
//! collision in thirty million runs.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use anyhow::{Context, Result};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};

/// The keys that are taken.
#[derive(Debug, Default)]
pub(crate) struct Ledger(HashSet<u64, BuildHasherDefault<AlreadyHashed>>);

#[derive(Debug, Default)]
pub(crate) struct AlreadyHashed(u64);

impl Ledger {
    /// Which rows are new. A key with a null never matches.
    pub(crate) fn new_rows(&self, keys: &[Option<u64>]) -> BooleanArray {
        keys.iter().map(|key| Some(key.is_none_or(|key| !self.0.contains(&key)))).collect()
    }

    pub(crate) fn insert(&mut self, keys: &[Option<u64>]) {
        self.0.extend(keys.iter().flatten());
    }
}

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// A hash of each row's key; absent if a column of it is null.
pub(crate) fn keys(batch: &RecordBatch, columns: &[String]) -> Result<Vec<Option<u64>>> {
    let mut keys = vec![Some(0); batch.num_rows()];
    for name in columns {
        let column = batch.column_by_name(name).with_context(|| format!("find the key column {name}"))?;
        add_column(&mut keys, column)?;
    }
    Ok(keys)
}

fn add_column(keys: &mut [Option<u64>], column: &ArrayRef) -> Result<()> {
    if matches!(column.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
        let texts = cast(column, &DataType::Utf8)?;
        let texts = texts.as_string::<i32>();
        // Most batches are of one gateway.
        let mut last = ("", text_hash(""));
        for (key, text) in keys.iter_mut().zip(texts) {
            if let Some(text) = text.filter(|text| *text != last.0) {
                last = (text, text_hash(text));
            }
            *key = key.zip(text).map(|(key, _)| mixed(key ^ last.1));
        }
    } else {
        let numbers = cast(column, &DataType::Int64)?;
        for (key, number) in keys.iter_mut().zip(numbers.as_primitive::<Int64Type>()) {
            *key = key.zip(number).map(|(key, number)| mixed(key ^ number.cast_unsigned()));
        }
    }
    Ok(())
}

fn text_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| mixed(hash ^ u64::from(byte)))
}

/// A bijection that spreads every bit (the finalizer of SplitMix64).
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
