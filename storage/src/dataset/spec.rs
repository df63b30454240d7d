//! What a dataset is: its name, topics' captures, format, declared schema, event time and merge strategy.
//!
//! Plain data, checked once when it is made (`DatasetSpec::validate`); the agent's configuration and ODF manifests both
//! end up here.

use std::time::Duration;

/// A root dataset that the gateway writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetSpec {
    /// Name: `[a-zA-Z0-9]` then `[a-zA-Z0-9_.-]`, as ODF has it.
    pub name: String,
    /// Names of the topic captures, in the order of [`Message::captures`](crate::message::Message::captures).
    pub captures: Vec<String>,
    /// How a payload is read.
    pub format: Format,
    /// Payload fields in column order.
    pub fields: Vec<FieldSpec>,
    /// The field that is the event time; none: the time of receipt.
    pub event_time: Option<String>,
    /// How far after its receipt an event may claim to be. Default 5 minutes. Beyond: dead letter.
    pub event_time_tolerance: Duration,
    /// ODF merge strategy.
    pub merge: Merge,
    /// Optional columns about the message itself.
    pub envelope: Envelope,
    /// Keep unknown JSON fields in an `extra` column (they are counted in any case).
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
    /// UTF-8 text: one field, by default `value: String`; any scalar type is parsed from the text.
    Text,
    /// Any bytes: one field, by default `value: Binary`.
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
    /// `Timestamp(s)`: a number of seconds since 1970, fractions allowed.
    Seconds,
    /// `Timestamp(ms)`: a number of milliseconds since 1970.
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
        /// Column names: captures or payload fields, never optional ones.
        primary_key: Vec<String>,
    },
}

/// Which facts about the message become columns, after the payload fields, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// `topic` String.
    pub topic: bool,
    /// `client_id` String.
    pub client_id: bool,
    /// `qos` Int32.
    pub qos: bool,
    /// `retain` Bool.
    pub retain: bool,
    /// `received_at` Timestamp.
    pub received_at: bool,
    /// `clock` String: `synchronised` or `unsynchronised`.
    pub clock: bool,
}
