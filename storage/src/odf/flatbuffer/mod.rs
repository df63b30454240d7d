//! FlatBuffers, as much of it as ODF needs, without `unsafe`.
//!
//! Decision: this is our own encoder and reader. The stock `flatbuffers` runtime needs `unsafe` to push a struct (every
//! ODF block holds a `Timestamp` struct) and its verifier checks a generated schema that would be 10,000 lines here. In
//! return we must match it byte for byte, because a block's hash covers its bytes and a node re-encodes what it serves:
//! a valid block in another layout comes back with another hash. The canonical layout is what the stock *Builder* makes
//! when sub-objects are created depth first in schema order and fields are added in schema order; the published
//! known-answer blocks pin it (`tests/odf_known_answers.rs`).
//!
//! `Builder` writes from the last byte to the first, shares equal vtables and pads to each value's alignment.
//! `Table` reads: every position is checked against the buffer, damage is a [`FlatbufferError`], and the total of
//! what one buffer may make us copy is bounded, so that tables which point at each other cost no more than honest ones.

mod builder;
mod reader;

pub(crate) use builder::{Builder, Offset, Slot};
pub(crate) use reader::{Buffer, Table, required};

/// What is wrong with a buffer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlatbufferError {
    /// A position lies outside of the buffer.
    #[error("FlatBuffers data is cut short or damaged: {what} at byte {at} lies outside of the buffer")]
    OutOfBounds {
        /// Which part.
        what: &'static str,
        /// Where it was looked for.
        at: usize,
    },
    /// A string is not text.
    #[error("FlatBuffers string at byte {at} is not UTF-8")]
    NotUtf8 {
        /// Where it begins.
        at: usize,
    },
    /// Tables within tables, deeper than any schema needs.
    #[error("FlatBuffers tables are nested deeper than {}", reader::DEPTH_MAX)]
    TooDeep,
    /// Parts are shared so often that reading them would cost far more than the buffer's size.
    #[error("FlatBuffers data refers to its own parts too often: refused as an amplification")]
    Amplified,
    /// A field that the schema requires.
    #[error("required field {field} is missing")]
    Missing {
        /// `Table.field`.
        field: &'static str,
    },
    /// A field with a value that means nothing.
    #[error("field {field} has the unknown or impossible value {value}")]
    BadValue {
        /// `Table.field`.
        field: &'static str,
        /// The value.
        value: String,
    },
}

impl FlatbufferError {
    /// A value that `field` cannot have.
    pub(crate) fn bad_value(field: &'static str, value: &impl ToString) -> Self {
        Self::BadValue { field, value: value.to_string() }
    }
}
