//! What a `DatasetSnapshot` says: a name, the columns of its push source, and how rows are merged.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use arrow::datatypes::{DataType as ArrowType, Field, Schema, SchemaRef};
use forebay_storage::odf::{DataField, DataSchema, DataType, TimeUnit};
use serde_json::Value;

use crate::rows;

/// A snapshot, as far as it matters here.
#[derive(Debug)]
pub(crate) struct Manifest {
    /// May be `account/name`.
    pub(crate) name: String,
    pub(crate) source: Option<Source>,
}

/// A push source.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) name: String,
    /// e.g. `NdJson`; what a body without a media type is read as.
    pub(crate) read_kind: String,
    /// The columns that a body may have.
    pub(crate) schema: SchemaRef,
    /// Ledger's; absent with Append.
    pub(crate) primary_key: Option<Vec<String>>,
    pub(crate) event_time_column: String,
}

impl Manifest {
    /// Texts of errors are those that follow "Serde error: " on a node.
    pub(crate) fn read(snapshot: &Value) -> Result<Self> {
        let kind = text(snapshot, "kind")?;
        ensure!(kind == "DatasetSnapshot", "expected kind `DatasetSnapshot`, got `{kind}`");
        snapshot.get("version").and_then(Value::as_u64).context("missing field `version`")?;
        let content = snapshot.get("content").context("missing field `content`")?;
        ensure!(text(content, "kind")? == "Root", "only Root datasets have push sources");
        let events = content.get("metadata").and_then(Value::as_array).context("missing field `metadata`")?;
        let mut sources = Vec::new();
        let mut event_time_column = "event_time".to_owned();
        for event in events {
            match capitalized(text(event, "kind")?).as_str() {
                "AddPushSource" => sources.push(Source::read(event)?),
                "SetVocab" => {
                    if let Some(column) = event.get("eventTimeColumn").and_then(Value::as_str) {
                        column.clone_into(&mut event_time_column);
                    }
                }
                _ => {}
            }
        }
        ensure!(sources.len() < 2, "this stub takes one push source a dataset");
        let source = sources.pop().map(|source| Source { event_time_column, ..source });
        Ok(Self { name: text(content, "name")?.to_owned(), source })
    }
}

impl Source {
    fn read(event: &Value) -> Result<Self> {
        let read = event.get("read").context("missing field `read`")?;
        let schema = read.get("schema").context("this stub reads no source without `read.schema`")?;
        let merge = event.get("merge").context("missing field `merge`")?;
        let primary_key = match capitalized(text(merge, "kind")?).as_str() {
            "Append" => None,
            "Ledger" => Some(texts(merge, "primaryKey")?),
            other => bail!("this stub cannot merge by {other}"),
        };
        let schema = arrow_schema(schema)?;
        for column in primary_key.iter().flatten() {
            schema.field_with_name(column).with_context(|| format!("find the key column {column}"))?;
        }
        Ok(Self {
            name: event.get("sourceName").and_then(Value::as_str).unwrap_or("default").to_owned(),
            read_kind: capitalized(text(read, "kind")?),
            schema: Arc::new(schema),
            primary_key,
            event_time_column: String::new(),
        })
    }
}

/// Timestamps are milliseconds of UTC, whatever the schema says: a node casts before it merges.
fn arrow_schema(schema: &Value) -> Result<Schema> {
    if schema.is_array() {
        bail!("content.metadata: invalid type: string, expected a sequence");
    }
    let fields = schema.get("fields").and_then(Value::as_array).context("content.metadata: missing field `fields`")?;
    let fields = fields.iter().map(|field| {
        let data_type = field.get("type").context("missing field `type`")?;
        Ok(DataField { name: text(field, "name")?.to_owned(), data_type: odf_type(data_type)?, extra: None })
    });
    let schema = DataSchema { fields: fields.collect::<Result<_>>()?, extra: None };
    let schema = schema.to_arrow()?;
    let fields = schema.fields().iter().map(|field| match field.data_type() {
        ArrowType::Timestamp(..) => {
            Arc::new(Field::new(field.name(), rows::millis(rows::WORKING_ZONE), field.is_nullable()))
        }
        _ => Arc::clone(field),
    });
    Ok(Schema::new(fields.collect::<Vec<_>>()))
}

fn odf_type(value: &Value) -> Result<DataType> {
    let kind = match value.as_str() {
        Some(kind) => kind,
        None => text(value, "kind")?,
    };
    Ok(match capitalized(kind).as_str() {
        "Binary" => DataType::Binary { fixed_length: None },
        "Bool" => DataType::Bool,
        "Date" => DataType::Date,
        "Float32" => DataType::Float32,
        "Float64" => DataType::Float64,
        "Int8" => DataType::Int8,
        "Int16" => DataType::Int16,
        "Int32" => DataType::Int32,
        "Int64" => DataType::Int64,
        "UInt8" => DataType::UInt8,
        "UInt16" => DataType::UInt16,
        "UInt32" => DataType::UInt32,
        "UInt64" => DataType::UInt64,
        "String" => DataType::String,
        "Timestamp" => DataType::Timestamp { unit: Some(TimeUnit::Millisecond), timezone: Some("UTC".to_owned()) },
        "Option" => {
            let inner = value.get("inner").context("missing field `inner`")?;
            DataType::Option { inner: Box::new(odf_type(inner)?) }
        }
        other => bail!("unknown variant `{other}`"),
    })
}

fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str> {
    value.get(field).and_then(Value::as_str).with_context(|| format!("missing field `{field}`"))
}

fn texts(value: &Value, field: &str) -> Result<Vec<String>> {
    let items = value.get(field).and_then(Value::as_array).with_context(|| format!("missing field `{field}`"))?;
    items.iter().map(|item| Ok(item.as_str().context("expected a string")?.to_owned())).collect()
}

/// Kinds may begin with a small letter.
fn capitalized(kind: &str) -> String {
    let mut chars = kind.chars();
    chars.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + chars.as_str())
}
