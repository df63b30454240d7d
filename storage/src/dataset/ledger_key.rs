//! The key by which a Ledger recognises a row it has already: xxh3-128 over the key columns' values.
//!
//! Each value goes in with its length before it, so that `("ab", "c")` and `("a", "bc")` differ, and in the form in which it
//! is stored, so that `2026-11-22T10:00:00Z` and `2026-11-22T11:00:00+01:00` are one instant and `0.0` and `-0.0` one number.
//! The bytes are part of the disk format: keys are kept in the spool.

use xxhash_rust::xxh3::xxh3_128;

use crate::dataset::decode::scratch::{Cell, Scratch};
use crate::dataset::spec::{DatasetSpec, Merge};

/// Where a key column's values come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KeyColumn {
    Capture(usize),
    Field(usize),
}

/// The key columns of a Ledger; none for other merge strategies.
pub(crate) fn key_columns(spec: &DatasetSpec) -> Option<Vec<KeyColumn>> {
    let Merge::Ledger { primary_key } = &spec.merge else {
        return None;
    };
    let capture = |name: &String| spec.captures.iter().position(|capture| capture == name).map(KeyColumn::Capture);
    let field = |name: &String| spec.fields.iter().position(|field| field.name == *name).map(KeyColumn::Field);
    Some(primary_key.iter().filter_map(|name| capture(name).or_else(|| field(name))).collect())
}

/// Gathers the values of one row's key.
#[derive(Debug, Default)]
pub(crate) struct KeyHasher {
    bytes: Vec<u8>,
}

impl KeyHasher {
    pub(crate) fn push_cell(&mut self, cell: &Cell, scratch: &Scratch) {
        match cell {
            Cell::Bool(value) => self.push(&[u8::from(*value)]),
            Cell::Signed(value) | Cell::Millis(value) => self.push(&value.to_le_bytes()),
            Cell::Unsigned(value) => self.push(&value.to_le_bytes()),
            // Adding zero turns -0.0 into 0.0.
            Cell::Float32(value) => self.push(&(value + 0.0).to_bits().to_le_bytes()),
            Cell::Float64(value) => self.push(&(value + 0.0).to_bits().to_le_bytes()),
            Cell::Date(days) => self.push(&days.to_le_bytes()),
            Cell::Text(_) => self.push(scratch.text_of(cell).unwrap_or_default().as_bytes()),
            Cell::Bytes(_) => self.push(scratch.bytes_of(cell).unwrap_or_default()),
            // Key columns are never optional.
            Cell::Unset | Cell::Null => self.push(&[]),
        }
    }

    pub(crate) fn push(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(value);
    }

    /// The key of what was pushed; starts anew.
    pub(crate) fn finish(&mut self) -> [u8; 16] {
        let key = xxh3_128(&self.bytes).to_be_bytes();
        self.bytes.clear();
        key
    }
}
