//! The words of the configuration for column types: `Float32`, `Timestamp(ms)`, and `?` after a word for "may be missing".

use std::fmt;

use crate::dataset::spec::{DataType, FieldSpec, TimestampEncoding};

/// Every word, in the order in which errors list them.
const WORDS: [(&str, DataType); 21] = [
    ("Bool", DataType::Bool),
    ("Int8", DataType::Int8),
    ("Int16", DataType::Int16),
    ("Int32", DataType::Int32),
    ("Int64", DataType::Int64),
    ("UInt8", DataType::UInt8),
    ("UInt16", DataType::UInt16),
    ("UInt32", DataType::UInt32),
    ("UInt64", DataType::UInt64),
    ("Float32", DataType::Float32),
    ("Float64", DataType::Float64),
    ("String", DataType::String),
    ("Binary", DataType::Binary),
    ("Date", DataType::Date),
    ("Timestamp", DataType::Timestamp(TimestampEncoding::Rfc3339)),
    ("Timestamp(utc)", DataType::Timestamp(TimestampEncoding::Rfc3339OrUtc)),
    ("Timestamp(s)", DataType::Timestamp(TimestampEncoding::Seconds)),
    ("Timestamp(ms)", DataType::Timestamp(TimestampEncoding::Millis)),
    ("Timestamp(us)", DataType::Timestamp(TimestampEncoding::Micros)),
    ("Timestamp(ns)", DataType::Timestamp(TimestampEncoding::Nanos)),
    ("Json", DataType::Json),
];

impl DataType {
    /// Reads a type word. The flag says whether it ended in `?`: the field is optional.
    pub fn parse(word: &str) -> Result<(Self, bool), UnknownType> {
        let (bare, optional) = match word.strip_suffix('?') {
            Some(bare) => (bare, true),
            None => (word, false),
        };
        WORDS
            .iter()
            .find(|(known, _)| *known == bare)
            .map(|(_, data_type)| (*data_type, optional))
            .ok_or_else(|| UnknownType { word: word.to_owned() })
    }

    /// The word that [`DataType::parse`] reads as this type.
    #[must_use]
    pub fn word(self) -> &'static str {
        WORDS.iter().find(|(_, data_type)| *data_type == self).map_or("", |(word, _)| word)
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FieldSpec {
    /// A field as the configuration writes it: `battery = "Float32?"`.
    pub fn parse(name: &str, word: &str) -> Result<Self, UnknownType> {
        let (data_type, optional) = DataType::parse(word)?;
        Ok(Self { name: name.to_owned(), data_type, optional })
    }
}

/// A word that is no type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownType {
    word: String,
}

impl fmt::Display for UnknownType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a type; types are ", self.word)?;
        for (word, _) in WORDS {
            write!(f, "{word}, ")?;
        }
        write!(f, "each with '?' after it when the field may be missing")
    }
}

impl std::error::Error for UnknownType {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_reads_back_as_its_type() {
        for (word, data_type) in WORDS {
            assert_eq!(DataType::parse(word), Ok((data_type, false)));
            assert_eq!(data_type.to_string(), word);
        }
    }

    #[test]
    fn a_question_mark_makes_a_field_optional() {
        let field = FieldSpec::parse("battery", "Float32?").unwrap();

        assert_eq!(field, FieldSpec::optional("battery", DataType::Float32));
    }

    #[test]
    fn an_unknown_word_is_answered_with_all_known_ones() {
        for word in ["float32", "", "?", "Float32??", "Timestamp(min)", "Decimal"] {
            let message = DataType::parse(word).unwrap_err().to_string();

            assert!(message.starts_with(&format!("{word:?} is not a type")), "{message}");
            assert!(WORDS.iter().all(|(known, _)| message.contains(known)), "{message}");
        }
    }
}
