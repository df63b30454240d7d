//! One row between its payload and its columns: plain cells, and the texts and bytes that they point to.
//!
//! Reused from row to row, so decoding allocates only for unknown fields.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::dataset::decode::RowError;

/// What a scratch row keeps allocated between rows, bytes: one large payload must not stay in memory for good.
pub(crate) const KEPT_BYTES_MAX: usize = 1024 * 1024;

/// One value, already checked against its field's type.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
    /// The payload has not said.
    Unset,
    Null,
    Bool(bool),
    /// All integers but `UInt64`.
    Signed(i64),
    Unsigned(u64),
    Float32(f32),
    Float64(f64),
    /// A range of [`Scratch::text`].
    Text(Range<usize>),
    /// A range of [`Scratch::bytes`].
    Bytes(Range<usize>),
    /// Days since 1970.
    Date(i32),
    /// Milliseconds since 1970.
    Millis(i64),
}

/// One row being decoded.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// One for each declared field.
    pub(crate) cells: Vec<Cell>,
    pub(crate) text: String,
    pub(crate) bytes: Vec<u8>,
    /// Names of fields that are not declared.
    pub(crate) unknown: BTreeSet<String>,
    /// Those fields as members of a JSON object, without its braces; only when they are kept.
    pub(crate) extra: String,
    /// Why the row is refused, past the error type of the parser.
    pub(crate) refusal: Option<RowError>,
}

impl Scratch {
    /// Makes ready for a row of so many fields.
    pub(crate) fn clear(&mut self, fields: usize) {
        self.cells.clear();
        self.cells.resize(fields, Cell::Unset);
        self.text.clear();
        self.text.shrink_to(KEPT_BYTES_MAX);
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
        self.unknown.clear();
        self.extra.clear();
        self.extra.shrink_to(KEPT_BYTES_MAX);
        self.refusal = None;
    }

    pub(crate) fn push_text(&mut self, text: &str) -> Cell {
        let start = self.text.len();
        self.text.push_str(text);
        Cell::Text(start..self.text.len())
    }

    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) -> Cell {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        Cell::Bytes(start..self.bytes.len())
    }

    /// The text of a cell that has one.
    pub(crate) fn text_of(&self, cell: &Cell) -> Option<&str> {
        let Cell::Text(range) = cell else { return None };
        self.text.get(range.clone())
    }

    /// The bytes of a cell that has some.
    pub(crate) fn bytes_of(&self, cell: &Cell) -> Option<&[u8]> {
        let Cell::Bytes(range) = cell else {
            return None;
        };
        self.bytes.get(range.clone())
    }

    /// The unknown fields as a JSON object, if there are any that are kept.
    pub(crate) fn take_extra(&mut self) -> Option<String> {
        if self.extra.is_empty() {
            return None;
        }
        Some(format!("{{{}}}", std::mem::take(&mut self.extra)))
    }

    /// Adds an unknown field to those that are kept.
    pub(crate) fn push_extra(&mut self, name: &str, json: &str) {
        if !self.extra.is_empty() {
            self.extra.push(',');
        }
        self.extra.push_str(&serde_json::Value::from(name).to_string());
        self.extra.push(':');
        self.extra.push_str(json);
    }
}
