//! Why a message is not a row: the reason text of its dead letter.

use std::fmt;

use chrono::{DateTime, SecondsFormat};

use crate::dataset::spec::{DataType, FieldSpec};

/// Most characters of a payload that a reason repeats.
const EXCERPT_CHARS_MAX: usize = 40;
/// Most characters of a parser's message that a reason repeats.
const PARSER_CHARS_MAX: usize = 120;

/// Why a message cannot become a row. Its text names the field and what is wrong, and repeats at most a short excerpt of
/// the payload.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RowError {
    /// JSON, CSV and text are UTF-8.
    #[error("the payload is not UTF-8 from byte {at} on")]
    NotUtf8 {
        /// First offending byte.
        at: usize,
    },
    /// Valid JSON perhaps, but not one object.
    #[error("the payload must be one JSON object, found {found}")]
    NotAnObject {
        /// What stands there.
        found: &'static str,
    },
    /// Not JSON.
    #[error("not JSON: {message}{}", InField(field.as_deref()))]
    Json {
        /// The field whose value could not be read, when it is one.
        field: Option<String>,
        /// The parser's words and position.
        message: String,
    },
    /// An undeclared key stands twice.
    #[error("key {name} stands twice")]
    DuplicateKey {
        /// The key, excerpted.
        name: String,
    },
    /// CSV with too many or too few fields.
    #[error("the CSV record has {}{found} fields, {expected} are declared", AtLeast(*found > *expected))]
    CsvFields {
        /// Declared.
        expected: usize,
        /// Found; counting stops at the first too many.
        found: usize,
    },
    /// CSV with more than one record, or none.
    #[error("the payload must be one CSV record, found {found}")]
    CsvRecords {
        /// What stands there.
        found: &'static str,
    },
    /// A quote that is never closed.
    #[error("a quote in the CSV record is never closed")]
    CsvQuote,
    /// One field is wrong.
    #[error("field {field:?}: {problem}")]
    Field {
        /// Its name.
        field: String,
        /// What is wrong.
        problem: Problem,
    },
    /// The event time lies after the receipt, further than the tolerance.
    #[error(
        "event time {} is later than receipt {} plus {tolerance_ms} ms: is the device's clock right?",
        Instant(*event_time_ms), Instant(*received_ms)
    )]
    EventTimeAhead {
        /// Claimed by the payload, ms since 1970.
        event_time_ms: i64,
        /// When the message came, ms since 1970.
        received_ms: i64,
        /// See `DatasetSpec::event_time_tolerance`.
        tolerance_ms: i64,
    },
    /// The event time lies before 1970.
    #[error("event time {} is before 1970", Instant(*event_time_ms))]
    EventTimeBefore1970 {
        /// Claimed by the payload, ms since 1970.
        event_time_ms: i64,
    },
    /// The stored captures are not those of the dataset: its topics were changed after the message was accepted.
    #[error("the topic gave {found} captures, the dataset declares {expected}: were its topics changed?")]
    Captures {
        /// Declared.
        expected: usize,
        /// Stored with the message.
        found: usize,
    },
    /// The stored topic is damaged.
    #[error("the stored topic is not UTF-8 or its captures lie outside it")]
    Topic,
    /// Not the message's fault: the rows gathered so far must be taken first, then the message can be pushed again.
    #[error("the batch is full")]
    BatchFull,
}

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Required, and not there.
    #[error("is required, but missing")]
    Missing,
    /// Required, and null.
    #[error("is required, but null")]
    Null,
    /// Its key stands twice.
    #[error("stands twice")]
    Duplicate,
    /// A value of another kind.
    #[error("expected {expected}, found {found}")]
    WrongType {
        /// Declared.
        expected: DataType,
        /// What stands there, excerpted.
        found: String,
    },
    /// The type cannot hold it.
    #[error("{found} is out of range for {expected}")]
    OutOfRange {
        /// Declared.
        expected: DataType,
        /// The value, excerpted.
        found: String,
    },
    /// A fraction, or a floating-point number too large to be exact, where a whole number is declared.
    #[error("{found} is not exactly a whole number, as {expected} needs")]
    NotWhole {
        /// Declared.
        expected: DataType,
        /// The value.
        found: String,
    },
    /// A number where RFC 3339 is declared. Its unit is not guessed.
    #[error(
        "expected RFC 3339 text, found {found}; for numbers declare Timestamp(s), Timestamp(ms), Timestamp(us) or Timestamp(ns)"
    )]
    NumericTimestamp {
        /// The value.
        found: String,
    },
    /// Text that is no instant.
    #[error("{found} is not an RFC 3339 instant with offset, like 2026-11-22T10:00:00Z")]
    Rfc3339 {
        /// Excerpt.
        found: String,
    },
    /// Text that is no instant, where an offset may be missing.
    #[error("{found} is not an instant like 2026-11-22T10:00:00Z or, in UTC, 2026-11-22T10:00:00")]
    Rfc3339OrUtc {
        /// Excerpt.
        found: String,
    },
    /// Text that is no date.
    #[error("{found} is not a date like 2026-11-22")]
    Date {
        /// Excerpt.
        found: String,
    },
    /// Text that is not padded base64.
    #[error("{found} is not base64 (RFC 4648, padded)")]
    Base64 {
        /// Excerpt.
        found: String,
    },
    /// Text that is not JSON.
    #[error("is not JSON: {message}")]
    Json {
        /// The parser's words and position.
        message: String,
    },
}

impl Problem {
    /// The problem of this field.
    pub(crate) fn of(self, field: &FieldSpec) -> RowError {
        RowError::Field { field: field.name.clone(), problem: self }
    }
}

/// The beginning of a text, quoted and escaped.
pub(crate) fn excerpt(text: &str) -> String {
    shorten(text, EXCERPT_CHARS_MAX, |head| format!("{head:?}"))
}

/// The beginning of a parser's message, which may quote the payload.
pub(crate) fn parser_message(error: &impl fmt::Display) -> String {
    shorten(&error.to_string(), PARSER_CHARS_MAX, str::to_owned)
}

fn shorten(text: &str, chars_max: usize, show: impl Fn(&str) -> String) -> String {
    match text.char_indices().nth(chars_max) {
        None => show(text),
        Some((end, _)) => show(&text[..end]) + "\u{2026}",
    }
}

struct InField<'a>(Option<&'a str>);

impl fmt::Display for InField<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |name| write!(f, ", in field {name:?}"))
    }
}

struct AtLeast(bool);

impl fmt::Display for AtLeast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "at least " } else { "" })
    }
}

struct Instant(i64);

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from_timestamp_millis(self.0) {
            Some(instant) => f.write_str(&instant.to_rfc3339_opts(SecondsFormat::Millis, true)),
            None => write!(f, "{} ms", self.0),
        }
    }
}
