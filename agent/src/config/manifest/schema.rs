//! The columns that `read` declares: as an ODF schema, or as a list of SQL column definitions.

use forebay_storage::dataset::spec::{DataType, FieldSpec, TimestampEncoding};

use super::{Kind, Result, ddl, need, only, refuse};
use crate::config::document::{ConfigError, Node, Section};

/// ODF's words for types that columns can have.
const TYPES: [(&str, DataType); 15] = [
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
    ("Timestamp", INSTANT),
];
/// ODF's other words.
const OTHER_TYPES: [&str; 8] = ["Decimal", "Duration", "Float16", "List", "Map", "Null", "Struct", "Time"];
/// An instant as a node reads it.
pub(super) const INSTANT: DataType = DataType::Timestamp(TimestampEncoding::Rfc3339OrUtc);

/// A declared column.
pub(super) struct Column {
    pub(super) name: String,
    pub(super) data_type: DataType,
    presence: Presence,
    /// An error at the column, its problem to be said.
    at: ConfigError,
}

/// What a declaration says about missing values.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Required,
    Optional,
    /// SQL without NOT NULL: may be missing, though hardly on purpose.
    Unsaid,
}

impl Column {
    /// As a payload field, which must be there whatever the declaration says if it is the event time or part of a key.
    pub(super) fn field(&self, must_be_there: bool, notes: &mut Vec<String>) -> FieldSpec {
        if must_be_there && self.presence == Presence::Optional {
            notes.push(format!(
                "the column `{}` is declared optional, but is the event time or in the primary key: a message without it \
                 becomes a dead letter",
                self.name
            ));
        }
        let optional = self.presence != Presence::Required && !must_be_there;
        FieldSpec { name: self.name.clone(), data_type: self.data_type, optional }
    }

    /// An error at the column.
    pub(super) fn error(&self, problem: impl std::fmt::Display) -> ConfigError {
        ConfigError { problem: problem.to_string(), ..self.at.clone() }
    }
}

/// The columns of `schema` or `ddlSchema`, in order.
pub(super) fn columns(read: &mut Section, notes: &mut Vec<String>) -> Result<Vec<Column>> {
    match (read.take("schema"), read.take("ddlSchema")) {
        (Some(_), Some(ddl)) => Err(ddl.error("there is a `schema` already: one of the two")),
        (Some(schema), None) if !schema.is_list() => odf(schema.section()?, notes),
        (Some(ddl), None) | (None, Some(ddl)) => ddl.list()?.iter().map(|node| sql_column(node, notes)).collect(),
        (None, None) => Err(read.error(
            "needs `schema`, such as schema: {fields: [{name: value, type: Float32}]}: columns are declared, never guessed",
        )),
    }
}

fn odf(mut schema: Section, notes: &mut Vec<String>) -> Result<Vec<Column>> {
    let fields = need(&mut schema, "fields", "fields: [{name: value, type: Float32}]")?;
    let mut has_attributes = schema.take("extra").is_some();
    schema.finish()?;
    let mut columns = Vec::new();
    for field in fields.list()? {
        let mut field = field.section()?;
        let name = need(&mut field, "name", "name: value")?;
        let declared = need(&mut field, "type", "type: Float32")?;
        has_attributes |= field.take("extra").is_some();
        field.finish()?;
        let name_text = name.text()?.to_owned();
        let (data_type, presence) = odf_type(declared, &name_text, notes)?;
        columns.push(Column { name: name_text, data_type, presence, at: name.error("") });
    }
    if has_attributes {
        notes.push("attributes of the schema (`extra`) describe it; they are not written into the chain".to_owned());
    }
    Ok(columns)
}

/// A word, or a table with `kind` and what belongs to it. As deep as YAML may be, and no deeper.
fn odf_type(node: Node, column: &str, notes: &mut Vec<String>) -> Result<(DataType, Presence)> {
    if let Ok(word) = node.text() {
        let kind = Kind { word: super::spelled(word), node };
        return Ok((plain_type(&kind)?, Presence::Required));
    }
    let mut section = node.section()?;
    let kind = Kind::take(&mut section, "Option, inner: Float32")?;
    if kind.word == "Option" {
        let inner = need(&mut section, "inner", "inner: Float32")?;
        section.finish()?;
        return match odf_type(inner, column, notes)? {
            (data_type, Presence::Required) => Ok((data_type, Presence::Optional)),
            _ => Err(kind.error("an Option holds a type, not another Option")),
        };
    }
    let data_type = plain_type(&kind)?;
    match data_type {
        DataType::Timestamp(_) => timestamp(&mut section, column, notes)?,
        DataType::Binary => {
            refuse(&mut section, "fixedLength", "lengths are not checked: leave the key out, and any length is kept")?;
        }
        _ => {}
    }
    section.finish()?;
    Ok((data_type, Presence::Required))
}

fn plain_type(kind: &Kind) -> Result<DataType> {
    let words = TYPES.map(|(word, _)| word);
    match TYPES.iter().find(|(word, _)| *word == kind.word) {
        Some((_, data_type)) => Ok(*data_type),
        None if OTHER_TYPES.contains(&kind.word.as_str()) => Err(kind.error(format!(
            "there are no columns of type {} here; there are {}, each in an Option too. Leave the column out: what \
             devices send by its name is counted, not kept",
            kind.word,
            words.join(", "),
        ))),
        None => Err(kind.unknown(&words)),
    }
}

/// Instants are kept in milliseconds and UTC: those of finer units lose what a node cuts, too.
fn timestamp(section: &mut Section, column: &str, notes: &mut Vec<String>) -> Result<()> {
    if let Some(unit) = section.take("unit") {
        let kind = Kind { word: super::spelled(unit.text()?), node: unit };
        match kind.word.as_str() {
            "Millisecond" => {}
            "Microsecond" | "Nanosecond" => notes.push(format!(
                "the column `{column}` is declared in {}s; instants are kept in milliseconds, as a node keeps them",
                kind.word.to_ascii_lowercase()
            )),
            "Second" => {
                return Err(kind.error("instants are kept in milliseconds, and not cut to seconds: Millisecond"));
            }
            _ => return Err(kind.unknown(&["Second", "Millisecond", "Microsecond", "Nanosecond"])),
        }
    }
    only(section, "timezone", &["UTC"], "instants are kept in UTC")
}

fn sql_column(node: &Node, notes: &mut Vec<String>) -> Result<Column> {
    let definition = node.parsed(ddl::parse)?;
    let name = definition.name;
    if let Some(written) = definition.written {
        notes.push(format!("the column {written} is read as `{name}`, as in SQL: quotes keep capitals, \"{written}\""));
    }
    let presence = if definition.not_null { Presence::Required } else { Presence::Unsaid };
    Ok(Column { name, data_type: definition.data_type, presence, at: node.error("") })
}
