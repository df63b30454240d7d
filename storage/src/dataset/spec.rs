//! What a dataset is: its name, topics' captures, format, declared schema, event time and merge strategy.
//!
//! Plain data, checked once when it is made ([`DatasetSpec::validate`]); the agent's configuration and ODF manifests both
//! end up here. [`type_word`](crate::dataset::type_word) reads the type words of the configuration, `Float32?`.

use std::time::Duration;

/// A root dataset that the gateway writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetSpec {
    /// Name, by ODF's grammar: groups of `[a-zA-Z0-9]` joined by single `-` or `.`, at most [`NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Names of the topic captures, in the order of [`Message::captures`](crate::message::Message::captures).
    pub captures: Vec<String>,
    /// How a payload is read.
    pub format: Format,
    /// Payload fields in column order.
    pub fields: Vec<FieldSpec>,
    /// The field that is the event time, a required `Timestamp` or `Date` (midnight UTC); none: the time of receipt.
    pub event_time: Option<String>,
    /// How far after its receipt an event may claim to be. Default 5 minutes. Beyond: dead letter.
    pub event_time_tolerance: Duration,
    /// ODF merge strategy.
    pub merge: Merge,
    /// Optional columns about the message itself.
    pub envelope: Envelope,
    /// Keep unknown JSON fields in an `extra` column (they are counted in any case). Only with [`Format::Json`].
    pub extra: bool,
}

/// How a payload becomes a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object.
    Json,
    /// One CSV record without header, fields in schema order.
    Csv {
        /// Default `,`.
        delimiter: u8,
    },
    /// UTF-8 text: one field, by default `value: String`; any type but that is parsed from the trimmed text.
    Text,
    /// Any bytes: one field of type `Binary`, by default `value`.
    Bytes,
}

/// One declared payload field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldSpec {
    /// Column name.
    pub name: String,
    /// Column type.
    pub data_type: DataType,
    /// `?`: may be missing or null.
    pub optional: bool,
}

/// Column types, by ODF's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    /// true or false.
    Bool,
    /// Signed, 8 bits.
    Int8,
    /// Signed, 16 bits.
    Int16,
    /// Signed, 32 bits.
    Int32,
    /// Signed, 64 bits.
    Int64,
    /// Unsigned, 8 bits.
    UInt8,
    /// Unsigned, 16 bits.
    UInt16,
    /// Unsigned, 32 bits.
    UInt32,
    /// Unsigned, 64 bits.
    UInt64,
    /// IEEE 754 single.
    Float32,
    /// IEEE 754 double.
    Float64,
    /// UTF-8.
    String,
    /// Bytes; in JSON base64 (RFC 4648, padded).
    Binary,
    /// Calendar date, `2026-11-22`.
    Date,
    /// Instant, kept with millisecond resolution in UTC.
    Timestamp(TimestampEncoding),
    /// Any JSON value, kept as its text.
    Json,
}

/// How a payload writes an instant. Never guessed: a number of seconds read as milliseconds is a silent 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampEncoding {
    /// `Timestamp`: RFC 3339 text with an offset.
    Rfc3339,
    /// `Timestamp(utc)`: RFC 3339 text whose offset may be missing and is UTC then, as ODF readers have it.
    Rfc3339OrUtc,
    /// `Timestamp(s)`: a number of seconds since 1970, fractions allowed and cut to the millisecond.
    Seconds,
    /// `Timestamp(ms)`: a number of milliseconds since 1970, fractions allowed and cut.
    Millis,
    /// `Timestamp(us)`: a number of microseconds since 1970.
    Micros,
    /// `Timestamp(ns)`: a number of nanoseconds since 1970.
    Nanos,
}

/// ODF merge strategies that make sense at the edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Every message is a row.
    Append,
    /// A row whose primary key was seen within the horizon is dropped and counted.
    Ledger {
        /// Column names: captures or payload fields, never optional ones, never `Json`.
        primary_key: Vec<String>,
    },
}

/// Which facts about the message become columns, after the payload fields, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// `topic` String.
    pub topic: bool,
    /// `client_id` String; of a message from a source: the source's name.
    pub client_id: bool,
    /// `qos` Int32.
    pub qos: bool,
    /// `retain` Bool.
    pub retain: bool,
    /// `received_at` Timestamp.
    pub received_at: bool,
    /// `clock` String: `synchronised` or `unsynchronised`.
    pub clock: bool,
    /// `source` String: the name of the source; null when a device published here.
    pub source: bool,
}

/// Longest dataset name, bytes: it is also a folder's name.
pub const NAME_BYTES_MAX: usize = 100;
/// Longest column name, bytes.
pub const COLUMN_NAME_BYTES_MAX: usize = 128;
/// Most columns a dataset may declare, captures and payload fields together.
pub const COLUMNS_MAX: usize = 1_000;
/// Default of [`DatasetSpec::event_time_tolerance`].
pub const EVENT_TIME_TOLERANCE: Duration = Duration::from_secs(5 * 60);

impl DatasetSpec {
    /// The dataset of everything that no other dataset takes: the payload as it came, and what is known of the message.
    #[must_use]
    pub fn messages() -> Self {
        Self {
            name: "messages".to_owned(),
            captures: Vec::new(),
            format: Format::Bytes,
            fields: vec![FieldSpec::required("payload", DataType::Binary)],
            event_time: None,
            event_time_tolerance: EVENT_TIME_TOLERANCE,
            merge: Merge::Append,
            envelope: Envelope {
                topic: true,
                client_id: true,
                qos: true,
                retain: true,
                received_at: true,
                clock: false,
                source: true,
            },
            extra: false,
        }
    }

    /// Checks every rule that ties the parts together. A spec that passes makes a schema and decodes without surprises.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.check_name()?;
        self.check_columns()?;
        self.check_format()?;
        self.check_event_time()?;
        self.check_merge()
    }

    /// The declared field of this name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&FieldSpec> {
        self.fields.iter().find(|field| field.name == name)
    }

    fn check_name(&self) -> Result<(), SpecError> {
        let well_formed = self.name.len() <= NAME_BYTES_MAX
            && self
                .name
                .split(['-', '.'])
                .all(|group| !group.is_empty() && group.bytes().all(|b| b.is_ascii_alphanumeric()));
        if well_formed {
            return Ok(());
        }
        Err(SpecError::Name(self.name.clone()))
    }

    fn check_columns(&self) -> Result<(), SpecError> {
        let declared = self.captures.len() + self.fields.len();
        if declared > COLUMNS_MAX {
            return Err(SpecError::TooManyColumns(declared));
        }
        let mut taken = std::collections::BTreeMap::new();
        for (name, owner) in self.column_owners() {
            if name.is_empty() || name.len() > COLUMN_NAME_BYTES_MAX || name.contains(char::is_control) {
                return Err(SpecError::ColumnName(name.to_owned()));
            }
            if let Some(first) = taken.insert(name, owner) {
                let (name, second) = (name.to_owned(), owner);
                return Err(SpecError::DuplicateColumn { name, first, second });
            }
        }
        Ok(())
    }

    /// Every column name with what gives it, the reserved ones first.
    fn column_owners(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let system = ["offset", "op", "system_time", "gateway", "seq"].into_iter();
        let event_time = self.event_time.is_none().then_some("event_time");
        let captures = self.captures.iter().map(|name| (name.as_str(), "a topic capture"));
        let fields = self.fields.iter().map(|field| (field.name.as_str(), "a payload field"));
        let envelope = self.envelope.columns().map(|name| (name, "an envelope column"));
        let extra = self.extra.then_some(("extra", "the column of unknown fields"));
        let system = system.chain(event_time).map(|name| (name, "a system column"));
        system.chain(captures).chain(fields).chain(envelope).chain(extra)
    }

    fn check_format(&self) -> Result<(), SpecError> {
        if self.extra && self.format != Format::Json {
            return Err(SpecError::ExtraWithoutJson);
        }
        match (&self.format, self.fields.as_slice()) {
            (Format::Json, []) if !self.extra => Err(SpecError::NoFields),
            (Format::Csv { .. }, []) => Err(SpecError::NoFields),
            (Format::Csv { delimiter }, _) if !is_delimiter(*delimiter) => {
                Err(SpecError::Delimiter(char::from(*delimiter)))
            }
            (Format::Json | Format::Csv { .. }, _) | (Format::Text, [_]) => Ok(()),
            (Format::Bytes, [field]) if field.data_type == DataType::Binary => Ok(()),
            (Format::Bytes, [field]) => Err(SpecError::BytesType(field.name.clone(), field.data_type)),
            (Format::Text, fields) => Err(SpecError::OneField("text", fields.len())),
            (Format::Bytes, fields) => Err(SpecError::OneField("bytes", fields.len())),
        }
    }

    fn check_event_time(&self) -> Result<(), SpecError> {
        let Some(name) = &self.event_time else {
            return Ok(());
        };
        let Some(field) = self.field(name) else {
            return Err(SpecError::EventTimeUnknown(name.clone()));
        };
        let is_time = matches!(field.data_type, DataType::Timestamp(_) | DataType::Date);
        if is_time && !field.optional {
            return Ok(());
        }
        Err(SpecError::EventTimeField { name: name.clone(), data_type: field.data_type, optional: field.optional })
    }

    fn check_merge(&self) -> Result<(), SpecError> {
        let Merge::Ledger { primary_key } = &self.merge else {
            return Ok(());
        };
        if primary_key.is_empty() {
            return Err(SpecError::EmptyKey);
        }
        for (position, name) in primary_key.iter().enumerate() {
            if primary_key[..position].contains(name) {
                return Err(SpecError::RepeatedKey(name.clone()));
            }
            if self.captures.contains(name) {
                continue;
            }
            match self.field(name) {
                None => return Err(SpecError::UnknownKey(name.clone())),
                Some(field) if field.optional => return Err(SpecError::OptionalKey(name.clone())),
                Some(field) if field.data_type == DataType::Json => {
                    return Err(SpecError::JsonKey(name.clone()));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// A delimiter must be one ASCII character that CSV gives no other meaning.
fn is_delimiter(byte: u8) -> bool {
    byte == b'\t' || (byte.is_ascii() && !byte.is_ascii_control() && byte != b'"')
}

impl Format {
    /// The fields of a dataset that declares none: known for text and bytes, to be declared for the others.
    #[must_use]
    pub fn default_fields(&self) -> Option<Vec<FieldSpec>> {
        match self {
            Self::Text => Some(vec![FieldSpec::required("value", DataType::String)]),
            Self::Bytes => Some(vec![FieldSpec::required("value", DataType::Binary)]),
            Self::Json | Self::Csv { .. } => None,
        }
    }
}

impl FieldSpec {
    /// A field that every payload must have.
    #[must_use]
    pub fn required(name: &str, data_type: DataType) -> Self {
        Self { name: name.to_owned(), data_type, optional: false }
    }

    /// A field that may be missing or null.
    #[must_use]
    pub fn optional(name: &str, data_type: DataType) -> Self {
        Self { name: name.to_owned(), data_type, optional: true }
    }
}

impl Envelope {
    /// Names of the columns that are on, in column order.
    pub fn columns(&self) -> impl Iterator<Item = &'static str> + use<> {
        [
            (self.topic, "topic"),
            (self.client_id, "client_id"),
            (self.qos, "qos"),
            (self.retain, "retain"),
            (self.received_at, "received_at"),
            (self.clock, "clock"),
            (self.source, "source"),
        ]
        .into_iter()
        .filter_map(|(on, name)| on.then_some(name))
    }
}

/// Why a [`DatasetSpec`] cannot be used. The text says what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Against ODF's grammar.
    #[error(
        "dataset name {0:?} must be letters and digits in groups joined by single '-' or '.', {NAME_BYTES_MAX} bytes at most"
    )]
    Name(String),
    /// See [`COLUMNS_MAX`].
    #[error("{0} columns are declared, {COLUMNS_MAX} are allowed")]
    TooManyColumns(usize),
    /// Empty, too long, or with control characters.
    #[error("column name {0:?} must have 1 to {COLUMN_NAME_BYTES_MAX} bytes and no control characters")]
    ColumnName(String),
    /// Two columns of one name.
    #[error("column name {name:?} is taken: {first} and {second} both have it; rename one{}", hint(name))]
    DuplicateColumn {
        /// The name.
        name: String,
        /// Who had it first.
        first: &'static str,
        /// Who wants it too.
        second: &'static str,
    },
    /// JSON or CSV without a schema.
    #[error("the schema declares no fields; json and csv need at least one")]
    NoFields,
    /// Text and bytes are one value.
    #[error("format {0} has exactly one field, the schema declares {1}")]
    OneField(&'static str, usize),
    /// Bytes are not interpreted.
    #[error("format bytes keeps the payload as it is: field {0:?} must be Binary, not {1}; for text use format text")]
    BytesType(String, DataType),
    /// Not a usable delimiter.
    #[error("csv delimiter {0:?} must be one printable ASCII character or a tab, and not a quote")]
    Delimiter(char),
    /// Only JSON has unknown fields.
    #[error("extra keeps unknown JSON fields: it needs format json")]
    ExtraWithoutJson,
    /// `event_time` names nothing.
    #[error("event_time names {0:?}, which is not a declared field")]
    EventTimeUnknown(String),
    /// `event_time` names something that cannot be one.
    #[error("event_time field {name:?} must be a required Timestamp or Date, not {data_type}{}", question_mark(*optional))]
    EventTimeField {
        /// The field.
        name: String,
        /// Its type.
        data_type: DataType,
        /// It may be missing.
        optional: bool,
    },
    /// Ledger without a key.
    #[error("merge Ledger needs at least one column in primaryKey")]
    EmptyKey,
    /// A key column twice.
    #[error("primaryKey names {0:?} twice")]
    RepeatedKey(String),
    /// A key column that is not there.
    #[error("primaryKey names {0:?}, which is neither a topic capture nor a declared field")]
    UnknownKey(String),
    /// A key that may be missing identifies nothing.
    #[error("primaryKey column {0:?} is optional; a key column must always be there: remove its '?'")]
    OptionalKey(String),
    /// Two texts can be the same JSON value.
    #[error("primaryKey column {0:?} is Json, whose texts cannot be compared for equality")]
    JsonKey(String),
}

fn hint(name: &str) -> &'static str {
    match name {
        "event_time" => ", or set event_time = \"event_time\" to make the field the event time",
        "offset" | "op" | "system_time" | "gateway" | "seq" => {
            ", or leave it undeclared and set extra = true to keep it"
        }
        _ => "",
    }
}

fn question_mark(optional: bool) -> &'static str {
    if optional { "?" } else { "" }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
