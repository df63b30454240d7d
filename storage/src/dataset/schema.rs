//! The columns of a dataset, in the order in which everything downstream finds them.
//!
//! ```text
//! offset op system_time <event time> gateway seq  captures…  payload fields…  envelope…  extra
//! └──────────── ODF's system columns ┘ └ key ┘
//! ```
//!
//! `gateway` and `seq` are the exactly-once key. The event-time column is `event_time`, or has the name of the field that
//! `event_time = ".."` names, which is then not repeated among the payload fields (ODF's `SetVocab` tells readers).

use std::sync::Arc;

use arrow::datatypes::{DataType as ArrowType, Field, Schema, SchemaRef, TimeUnit};

use crate::dataset::spec::{DataType, DatasetSpec, FieldSpec};

/// Index of the event-time column in every dataset.
pub const EVENT_TIME: usize = 3;

/// The schema of a dataset, and where each column's values come from.
#[derive(Clone, Debug)]
pub struct Columns {
    schema: SchemaRef,
    sources: Vec<Source>,
}

/// Where a column's values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Given when rows become a batch.
    Offset,
    Op,
    SystemTime,
    /// The message's place and time of receipt.
    ReceiptAsEventTime,
    Gateway,
    Seq,
    /// The n-th capture of the topic.
    Capture(usize),
    /// The n-th declared field of the payload.
    Field(usize),
    Topic,
    ClientId,
    Qos,
    Retain,
    ReceivedAt,
    Clock,
    /// Name of the source, if it came from one.
    Via,
    /// Unknown fields as one JSON object.
    Extra,
}

impl Columns {
    /// Lays out the columns of a valid spec.
    #[must_use]
    pub fn new(spec: &DatasetSpec) -> Self {
        let event_time_field =
            spec.event_time.as_deref().and_then(|name| spec.fields.iter().position(|field| field.name == name));
        let mut layout = Layout::default();
        layout.push("offset", ArrowType::Int64, Source::Offset);
        layout.push("op", ArrowType::Int32, Source::Op);
        layout.push("system_time", instant(), Source::SystemTime);
        match event_time_field {
            Some(index) => layout.push_field(&spec.fields[index], index),
            None => layout.push("event_time", instant(), Source::ReceiptAsEventTime),
        }
        layout.push("gateway", ArrowType::Utf8, Source::Gateway);
        layout.push("seq", ArrowType::Int64, Source::Seq);
        for (index, name) in spec.captures.iter().enumerate() {
            layout.push(name, ArrowType::Utf8, Source::Capture(index));
        }
        for (index, field) in spec.fields.iter().enumerate() {
            if Some(index) != event_time_field {
                layout.push_field(field, index);
            }
        }
        for name in spec.envelope.columns() {
            let (data_type, source) = envelope_column(name);
            let is_nullable = source == Source::Via;
            layout.fields.push(Field::new(name, data_type, is_nullable));
            layout.sources.push(source);
        }
        if spec.extra {
            layout.fields.push(Field::new("extra", ArrowType::Utf8, true));
            layout.sources.push(Source::Extra);
        }
        Self { schema: Arc::new(Schema::new(layout.fields)), sources: layout.sources }
    }

    /// The Arrow schema: required columns are non-nullable, instants are `Timestamp(ms, "UTC")`.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Name of the event-time column.
    #[must_use]
    pub fn event_time(&self) -> &str {
        self.schema.field(EVENT_TIME).name()
    }

    /// Source of each column, in order.
    pub(crate) fn sources(&self) -> &[Source] {
        &self.sources
    }
}

#[derive(Default)]
struct Layout {
    fields: Vec<Field>,
    sources: Vec<Source>,
}

impl Layout {
    fn push(&mut self, name: &str, data_type: ArrowType, source: Source) {
        self.fields.push(Field::new(name, data_type, false));
        self.sources.push(source);
    }

    fn push_field(&mut self, field: &FieldSpec, index: usize) {
        self.fields.push(Field::new(&field.name, arrow_type(field.data_type), field.optional));
        self.sources.push(Source::Field(index));
    }
}

fn envelope_column(name: &str) -> (ArrowType, Source) {
    match name {
        "topic" => (ArrowType::Utf8, Source::Topic),
        "client_id" => (ArrowType::Utf8, Source::ClientId),
        "qos" => (ArrowType::Int32, Source::Qos),
        "retain" => (ArrowType::Boolean, Source::Retain),
        "received_at" => (instant(), Source::ReceivedAt),
        "clock" => (ArrowType::Utf8, Source::Clock),
        _ => (ArrowType::Utf8, Source::Via),
    }
}

fn instant() -> ArrowType {
    ArrowType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

/// The Arrow type that holds a declared type.
#[must_use]
pub fn arrow_type(data_type: DataType) -> ArrowType {
    match data_type {
        DataType::Bool => ArrowType::Boolean,
        DataType::Int8 => ArrowType::Int8,
        DataType::Int16 => ArrowType::Int16,
        DataType::Int32 => ArrowType::Int32,
        DataType::Int64 => ArrowType::Int64,
        DataType::UInt8 => ArrowType::UInt8,
        DataType::UInt16 => ArrowType::UInt16,
        DataType::UInt32 => ArrowType::UInt32,
        DataType::UInt64 => ArrowType::UInt64,
        DataType::Float32 => ArrowType::Float32,
        DataType::Float64 => ArrowType::Float64,
        DataType::String | DataType::Json => ArrowType::Utf8,
        DataType::Binary => ArrowType::Binary,
        DataType::Date => ArrowType::Date32,
        DataType::Timestamp(_) => instant(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_in_the_documented_order() {
        let mut spec = DatasetSpec::messages();
        spec.captures = vec!["site".into(), "device".into()];
        spec.envelope.clock = true;

        assert_eq!(
            names(&spec),
            [
                "offset",
                "op",
                "system_time",
                "event_time",
                "gateway",
                "seq",
                "site",
                "device",
                "payload",
                "topic",
                "client_id",
                "qos",
                "retain",
                "received_at",
                "clock",
                "source"
            ]
        );
    }

    #[test]
    fn an_event_time_field_takes_the_event_time_place_and_is_not_repeated() {
        let mut spec = DatasetSpec::messages();
        spec.envelope = Default::default();
        spec.fields =
            vec![FieldSpec::parse("temp", "Float32?").unwrap(), FieldSpec::parse("ts", "Timestamp(ms)").unwrap()];
        spec.event_time = Some("ts".into());
        spec.extra = true;

        assert_eq!(names(&spec), ["offset", "op", "system_time", "ts", "gateway", "seq", "temp", "extra"]);
        assert_eq!(Columns::new(&spec).event_time(), "ts");
    }

    #[test]
    fn only_optional_fields_source_and_extra_are_nullable() {
        let mut spec = DatasetSpec::messages();
        spec.fields.push(FieldSpec::parse("temp", "Float32?").unwrap());
        spec.extra = true;

        let columns = Columns::new(&spec);
        let nullable: Vec<_> =
            columns.schema().fields().iter().filter(|f| f.is_nullable()).map(|f| f.name().as_str()).collect();

        assert_eq!(nullable, ["temp", "source", "extra"]);
    }

    fn names(spec: &DatasetSpec) -> Vec<String> {
        Columns::new(spec).schema().fields().iter().map(|field| field.name().clone()).collect()
    }
}
