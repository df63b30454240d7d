//! One JSON object, read with the schema in hand.
//!
//! The parser drives: each key finds its field, each value is turned into that field's cell where it stands, without a tree
//! in between. That is as fast as a struct known at compile time, and it knows which field it refuses.

use std::fmt;

use serde::Deserialize as _;
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::dataset::decode::Fields;
use crate::dataset::decode::error::{Problem, RowError, excerpt, parser_message};
use crate::dataset::decode::scalar::{Number, from_number, from_string};
use crate::dataset::decode::scratch::{Cell, Scratch};
use crate::dataset::spec::{DataType, FieldSpec};

/// Reads one object and nothing after it.
pub(crate) fn decode(text: &str, fields: &Fields, scratch: &mut Scratch) -> Result<(), RowError> {
    if let Some(found) = other_than_object(text) {
        return Err(RowError::NotAnObject { found });
    }
    let mut parser = serde_json::Deserializer::from_str(text);
    let row = ObjectVisitor { fields, scratch };
    let result = parser.deserialize_map(row).and_then(|()| parser.end());
    result.map_err(|error| {
        let syntax = || RowError::Json { field: None, message: parser_message(&error) };
        scratch.refusal.take().unwrap_or_else(syntax)
    })
}

/// Names what stands where an object should begin; none: the parser decides.
fn other_than_object(text: &str) -> Option<&'static str> {
    match text.trim_ascii_start().as_bytes().first() {
        None => Some("nothing"),
        Some(b'[') => Some("an array"),
        Some(b'"') => Some("a string"),
        Some(b'-' | b'0'..=b'9') => Some("a number"),
        Some(_) => None,
    }
}

/// Parser errors carry only text: the typed reason goes beside them.
fn refuse<E: Error>(scratch: &mut Scratch, refusal: RowError) -> E {
    scratch.refusal = Some(refusal);
    E::custom("refused")
}

struct ObjectVisitor<'a> {
    fields: &'a Fields,
    scratch: &'a mut Scratch,
}

impl<'de> Visitor<'de> for ObjectVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut hint = 0;
        while let Some(key) = map.next_key_seed(KeySeed { fields: self.fields, hint })? {
            match key {
                Key::Field(index) => {
                    self.read_field(index, &mut map)?;
                    hint = index + 1;
                }
                Key::Unknown(name) => self.read_unknown(name, &mut map)?,
            }
        }
        Ok(())
    }
}

impl ObjectVisitor<'_> {
    fn read_field<'de, A: MapAccess<'de>>(&mut self, index: usize, map: &mut A) -> Result<(), A::Error> {
        let field = &self.fields.list[index];
        if self.scratch.cells[index] != Cell::Unset {
            return Err(refuse(self.scratch, Problem::Duplicate.of(field)));
        }
        match map.next_value_seed(CellSeed { field, scratch: self.scratch }) {
            Ok(cell) => {
                self.scratch.cells[index] = cell;
                Ok(())
            }
            Err(error) if self.scratch.refusal.is_none() => {
                let (field, message) = (Some(field.name.clone()), parser_message(&error));
                Err(refuse(self.scratch, RowError::Json { field, message }))
            }
            Err(error) => Err(error),
        }
    }

    fn read_unknown<'de, A: MapAccess<'de>>(&mut self, name: String, map: &mut A) -> Result<(), A::Error> {
        if self.scratch.unknown.contains(&name) {
            let name = excerpt(&name);
            return Err(refuse(self.scratch, RowError::DuplicateKey { name }));
        }
        if self.fields.keep_unknown {
            self.scratch.push_extra(&name, map.next_value::<&RawValue>()?.get());
        } else {
            map.next_value::<IgnoredAny>()?;
        }
        self.scratch.unknown.insert(name);
        Ok(())
    }
}

enum Key {
    Field(usize),
    Unknown(String),
}

struct KeySeed<'a> {
    fields: &'a Fields,
    hint: usize,
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Key, E> {
        Ok(match self.fields.find(name, self.hint) {
            Some(index) => Key::Field(index),
            None => Key::Unknown(name.to_owned()),
        })
    }
}

struct CellSeed<'a> {
    field: &'a FieldSpec,
    scratch: &'a mut Scratch,
}

impl<'de> DeserializeSeed<'de> for CellSeed<'_> {
    type Value = Cell;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cell, D::Error> {
        if self.field.data_type != DataType::Json {
            return deserializer.deserialize_any(self);
        }
        match <&RawValue>::deserialize(deserializer)?.get() {
            "null" => self.visit_unit(),
            text => Ok(self.scratch.push_text(text)),
        }
    }
}

impl CellSeed<'_> {
    fn checked<E: Error>(self, cell: Result<Cell, Problem>) -> Result<Cell, E> {
        cell.map_err(|problem| refuse(self.scratch, problem.of(self.field)))
    }

    fn wrong_type<E: Error>(self, found: &str) -> Result<Cell, E> {
        let problem = Problem::WrongType { expected: self.field.data_type, found: found.to_owned() };
        self.checked(Err(problem))
    }

    fn number<E: Error>(self, number: Number) -> Result<Cell, E> {
        let cell = from_number(self.field, number);
        self.checked(cell)
    }
}

impl<'de> Visitor<'de> for CellSeed<'_> {
    type Value = Cell;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.field.data_type)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Cell, E> {
        match self.field.data_type {
            DataType::Bool => Ok(Cell::Bool(value)),
            _ => self.wrong_type(if value { "true" } else { "false" }),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Cell, E> {
        self.number(Number::Whole(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Cell, E> {
        self.number(Number::Whole(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Cell, E> {
        self.number(Number::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Cell, E> {
        let cell = from_string(self.field, value, self.scratch);
        self.checked(cell)
    }

    fn visit_unit<E: Error>(self) -> Result<Cell, E> {
        if self.field.optional {
            return Ok(Cell::Null);
        }
        self.checked(Err(Problem::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Cell, A::Error> {
        self.wrong_type("an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Cell, A::Error> {
        self.wrong_type("an object")
    }
}
