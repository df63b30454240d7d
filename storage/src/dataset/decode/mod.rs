//! From a payload to the cells of one row. Pure.
//!
//! Strict on purpose: what was acknowledged must not be silently altered, so a payload that does not say exactly what the
//! dataset declares is refused with a [`RowError`] and becomes a dead letter.
//!
//! | payload | outcome |
//! | --- | --- |
//! | `1.5` or `"7"` into an integer, `"21.5"` into a float, a number out of range or beyond ±10⁴⁰⁰ | refused |
//! | `1.0` into an integer, `1` into a float | accepted |
//! | a key twice, two objects, a trailing comma, anything after the row | refused |
//! | a number into `Timestamp`, text into `Timestamp(ms)`, an instant without offset | refused |
//! | an instant without offset into `Timestamp(utc)` | accepted as UTC |
//! | an unknown field | counted by name, kept in `extra` on request |
//! | a missing or null optional field; in CSV and text, an empty one | null |
//!
//! A row is decoded into a scratch row as a whole before anything is appended to a column, so a refused one leaves
//! no trace.

mod csv;
mod error;
mod json;
mod scalar;
pub(crate) mod scratch;

use std::collections::HashMap;

pub use error::{Problem, RowError};

use crate::dataset::decode::scratch::{Cell, Scratch};
use crate::dataset::spec::{DatasetSpec, FieldSpec, Format};

/// Reads payloads of one dataset.
#[derive(Debug)]
pub(crate) struct Decoder {
    fields: Fields,
    format: Format,
    csv: csv::Reader,
}

/// Declared fields, found by name.
#[derive(Debug)]
pub(crate) struct Fields {
    list: Vec<FieldSpec>,
    by_name: HashMap<String, usize>,
    keep_unknown: bool,
}

impl Decoder {
    pub(crate) fn new(spec: &DatasetSpec) -> Self {
        let delimiter = match spec.format {
            Format::Csv { delimiter } => delimiter,
            Format::Json | Format::Text | Format::Bytes => b',',
        };
        Self {
            fields: Fields::new(spec),
            format: spec.format.clone(),
            csv: csv::Reader::new(delimiter, spec.fields.len()),
        }
    }

    /// Reads one payload into `scratch`, one cell for each declared field.
    pub(crate) fn decode(&mut self, payload: &[u8], scratch: &mut Scratch) -> Result<(), RowError> {
        scratch.clear(self.fields.list.len());
        match self.format {
            Format::Json => json::decode(text_of(payload)?, &self.fields, scratch)?,
            Format::Csv { .. } => self.csv.decode(text_of(payload)?, &self.fields.list, scratch)?,
            Format::Text => decode_text(text_of(payload)?, &self.fields.list, scratch)?,
            Format::Bytes => decode_bytes(payload, &self.fields.list, scratch),
        }
        self.fields.fill_missing(scratch)
    }
}

impl Fields {
    fn new(spec: &DatasetSpec) -> Self {
        let names = spec.fields.iter().map(|field| field.name.clone());
        Self { list: spec.fields.clone(), by_name: names.zip(0..).collect(), keep_unknown: spec.extra }
    }

    /// Index of a field; `hint` is where it stands when the payload keeps the declared order.
    fn find(&self, name: &str, hint: usize) -> Option<usize> {
        match self.list.get(hint) {
            Some(field) if field.name == name => Some(hint),
            _ => self.by_name.get(name).copied(),
        }
    }

    fn fill_missing(&self, scratch: &mut Scratch) -> Result<(), RowError> {
        for (cell, field) in scratch.cells.iter_mut().zip(&self.list) {
            match cell {
                Cell::Unset if field.optional => *cell = Cell::Null,
                Cell::Unset => return Err(Problem::Missing.of(field)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn text_of(payload: &[u8]) -> Result<&str, RowError> {
    std::str::from_utf8(payload).map_err(|error| RowError::NotUtf8 { at: error.valid_up_to() })
}

fn decode_text(text: &str, fields: &[FieldSpec], scratch: &mut Scratch) -> Result<(), RowError> {
    for (index, field) in fields.iter().enumerate() {
        scratch.cells[index] = scalar::from_bare_text(field, text, scratch).map_err(|problem| problem.of(field))?;
    }
    Ok(())
}

fn decode_bytes(payload: &[u8], fields: &[FieldSpec], scratch: &mut Scratch) {
    for (index, field) in fields.iter().enumerate() {
        scratch.cells[index] = match payload {
            [] if field.optional => Cell::Null,
            _ => scratch.push_bytes(payload),
        };
    }
}
