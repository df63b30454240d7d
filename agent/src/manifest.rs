//! A dataset as the ODF manifest that a node creates it from: what `kamu add` and GraphQL's `createFromSnapshot` take.
//!
//! ```text
//! DatasetSnapshot ── name, Root ─┬─ SetVocab        only if the event-time column is not `event_time`
//!                                ├─ AddPushSource   the columns that are posted; Ledger by gateway and seq
//!                                └─ SetInfo         who writes it
//! ```
//!
//! The node makes `offset`, `op` and `system_time` itself, so they are not declared. The primary key is the gateway's own
//! exactly-once key whatever the dataset's `merge` says: rows were merged here, and what the node has to recognise is a
//! request that was repeated.
//!
//! Types have the short names of ODF. A `Timestamp` says neither unit nor zone: milliseconds and UTC are what ODF means by
//! that, and what is sent. Nodes of kamu 0.262 and older know no ODF types here, only SQL's ([`Columns::Sql`]).

use anyhow::{Result, bail};
use forebay_storage::dataset::schema::{self, EVENT_TIME};
use forebay_storage::dataset::spec::DatasetSpec;
use forebay_storage::odf::{DataField, DataSchema, DataType};
use serde::Serialize;

use crate::config::{Config, UpstreamKind};

/// Name of the push source when no upstream names one.
pub const SOURCE_NAME: &str = "default";
/// The event-time column that ODF assumes when nothing is said.
const EVENT_TIME_COLUMN: &str = "event_time";
/// What makes a row the same row when it is posted again.
const PRIMARY_KEY: [&str; 2] = ["gateway", "seq"];

/// What a manifest says beyond the dataset itself.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Whose dataset it will be; none: left to the node.
    pub account: Option<&'a str>,
    /// Name of the push source.
    pub source_name: &'a str,
    /// How columns are declared.
    pub columns: Columns,
}

/// How columns are declared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Columns {
    /// As an ODF schema.
    #[default]
    Odf,
    /// As SQL column definitions, for nodes of kamu 0.262 and older.
    Sql,
}

/// The manifest of a dataset, as YAML.
///
/// # Errors
/// A column has a type that no manifest can name.
pub fn text(spec: &DatasetSpec, gateway: &str, options: Options<'_>) -> Result<String> {
    let columns = posted_columns(spec)?;
    let manifest = Manifest {
        kind: "DatasetSnapshot",
        version: 1,
        content: Snapshot {
            name: name(&spec.name, options.account),
            kind: "Root",
            metadata: events(&columns, gateway, options)?,
        },
    };
    // A folded or literal block would be right too, but not what people expect of a name.
    let layout = serde_saphyr::ser_options! { prefer_block_scalars: false };
    Ok(serde_saphyr::to_string_with_options(&manifest, layout)?)
}

/// A dataset's name on a node: with its account, if it has one.
#[must_use]
pub fn name(dataset: &str, account: Option<&str>) -> String {
    match account {
        Some(account) => format!("{account}/{dataset}"),
        None => dataset.to_owned(),
    }
}

/// The push source by which a dataset is posted: the first that an upstream of this dataset names.
#[must_use]
pub fn source_name<'a>(config: &'a Config, dataset: &str) -> &'a str {
    let named = config.upstreams.iter().filter(|upstream| upstream.takes(dataset)).find_map(|upstream| {
        let UpstreamKind::Ingest(ingest) = &upstream.kind else { return None };
        ingest.source_name.as_deref()
    });
    named.unwrap_or(SOURCE_NAME)
}

/// Every column but those that the node makes, the event time first.
fn posted_columns(spec: &DatasetSpec) -> Result<Vec<DataField>> {
    let columns = schema::Columns::new(spec);
    let mut fields = DataSchema::from_arrow(columns.schema())?.fields;
    Ok(fields.split_off(EVENT_TIME))
}

fn events<'a>(columns: &'a [DataField], gateway: &str, options: Options<'a>) -> Result<Vec<Event<'a>>> {
    let mut events = Vec::new();
    if let Some(event_time) = columns.first().filter(|column| column.name != EVENT_TIME_COLUMN) {
        events.push(Event::SetVocab { event_time_column: &event_time.name });
    }
    events.push(Event::AddPushSource {
        source_name: options.source_name,
        read: Read { kind: "NdJson", schema: declared(columns, options.columns)? },
        merge: Merge { kind: "Ledger", primary_key: PRIMARY_KEY },
    });
    events.push(Event::SetInfo { description: format!("Written by Forebay gateway {gateway}") });
    Ok(events)
}

fn declared(columns: &[DataField], how: Columns) -> Result<Schema<'_>> {
    Ok(match how {
        Columns::Odf => Schema::Odf { fields: columns.iter().map(odf_field).collect::<Result<_>>()? },
        Columns::Sql => Schema::Sql(columns.iter().map(sql_column).collect::<Result<_>>()?),
    })
}

fn odf_field(column: &DataField) -> Result<Field<'_>> {
    let (word, _) = words(column)?;
    let data_type = match column.data_type.is_optional() {
        true => Type::Optional { kind: "Option", inner: word },
        false => Type::Required(word),
    };
    Ok(Field { name: &column.name, data_type })
}

/// The name is quoted in any case: SQL would read it in lower case, or as a word of its own, otherwise.
fn sql_column(column: &DataField) -> Result<String> {
    let (_, word) = words(column)?;
    let name = column.name.replace('"', "\"\"");
    let not_null = if column.data_type.is_optional() { "" } else { " NOT NULL" };
    Ok(format!("\"{name}\" {word}{not_null}"))
}

/// A column's type in ODF's word and in SQL's, whether it may be missing or not.
fn words(column: &DataField) -> Result<(&'static str, &'static str)> {
    Ok(match column.data_type.without_option() {
        DataType::Bool => ("Bool", "BOOLEAN"),
        DataType::Int8 => ("Int8", "TINYINT"),
        DataType::Int16 => ("Int16", "SMALLINT"),
        DataType::Int32 => ("Int32", "INT"),
        DataType::Int64 => ("Int64", "BIGINT"),
        DataType::UInt8 => ("UInt8", "TINYINT UNSIGNED"),
        DataType::UInt16 => ("UInt16", "SMALLINT UNSIGNED"),
        DataType::UInt32 => ("UInt32", "INT UNSIGNED"),
        DataType::UInt64 => ("UInt64", "BIGINT UNSIGNED"),
        DataType::Float32 => ("Float32", "FLOAT"),
        DataType::Float64 => ("Float64", "DOUBLE"),
        DataType::String => ("String", "STRING"),
        DataType::Binary { .. } => ("Binary", "BYTEA"),
        DataType::Date => ("Date", "DATE"),
        DataType::Timestamp { .. } => ("Timestamp", "TIMESTAMP"),
        _ => bail!("column {} has the type {}, which no manifest names", column.name, column.data_type.name()),
    })
}

#[derive(Serialize)]
struct Manifest<'a> {
    kind: &'static str,
    version: u32,
    content: Snapshot<'a>,
}

#[derive(Serialize)]
struct Snapshot<'a> {
    name: String,
    kind: &'static str,
    metadata: Vec<Event<'a>>,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all_fields = "camelCase")]
enum Event<'a> {
    SetVocab { event_time_column: &'a str },
    AddPushSource { source_name: &'a str, read: Read<'a>, merge: Merge },
    SetInfo { description: String },
}

#[derive(Serialize)]
struct Read<'a> {
    kind: &'static str,
    schema: Schema<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Schema<'a> {
    Odf { fields: Vec<Field<'a>> },
    Sql(Vec<String>),
}

#[derive(Serialize)]
struct Field<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    data_type: Type,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Type {
    Required(&'static str),
    Optional { kind: &'static str, inner: &'static str },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Merge {
    kind: &'static str,
    primary_key: [&'static str; 2],
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use forebay_storage::dataset::spec::{Envelope, FieldSpec};
    use serde_json::{Value, json};

    use super::*;

    const TEMPERATURE: &str = r#"
        gateway = "gw-07"
        [[dataset]]
        name = "temperature"
        topics = ["site/{site}/{device}/temp"]
        event_time = "ts"
        [dataset.schema]
        temp = "Float32"
        ts = "Timestamp(ms)"
        battery = "Float32?"
    "#;

    const GOLDEN: &str = "\
kind: DatasetSnapshot
version: 1
content:
  name: temperature
  kind: Root
  metadata:
  - kind: SetVocab
    eventTimeColumn: ts
  - kind: AddPushSource
    sourceName: default
    read:
      kind: NdJson
      schema:
        fields:
        - name: ts
          type: Timestamp
        - name: gateway
          type: String
        - name: seq
          type: Int64
        - name: site
          type: String
        - name: device
          type: String
        - name: temp
          type: Float32
        - name: battery
          type:
            kind: Option
            inner: Float32
    merge:
      kind: Ledger
      primaryKey:
      - gateway
      - seq
  - kind: SetInfo
    description: Written by Forebay gateway gw-07
";

    #[test]
    fn captures_optional_fields_and_a_renamed_event_time_are_declared() {
        assert_eq!(manifest(TEMPERATURE, ODF), GOLDEN);
    }

    #[test]
    fn the_usual_event_time_needs_no_vocabulary() {
        let manifest = parsed(&manifest("gateway = \"gw\"", ODF));

        let metadata = manifest["content"]["metadata"].as_array().unwrap();
        assert_eq!(metadata[0]["kind"], "AddPushSource");
        assert_eq!(metadata[0]["read"]["schema"]["fields"][0], json!({"name": "event_time", "type": "Timestamp"}));
        assert_eq!(metadata[0]["read"]["schema"]["fields"][3], json!({"name": "payload", "type": "Binary"}));
    }

    #[test]
    fn a_qualified_name_has_the_account_before_it() {
        let options = Options { account: Some("acme"), source_name: "edge", ..ODF };

        let manifest = parsed(&manifest(TEMPERATURE, options));

        assert_eq!(manifest["content"]["name"], "acme/temperature");
        assert_eq!(manifest["content"]["metadata"][1]["sourceName"], "edge");
    }

    #[test]
    fn old_nodes_get_the_same_columns_in_sql() {
        let manifest = parsed(&manifest(TEMPERATURE, Options { columns: Columns::Sql, ..ODF }));

        assert_eq!(
            manifest["content"]["metadata"][1]["read"]["schema"],
            json!([
                "\"ts\" TIMESTAMP NOT NULL",
                "\"gateway\" STRING NOT NULL",
                "\"seq\" BIGINT NOT NULL",
                "\"site\" STRING NOT NULL",
                "\"device\" STRING NOT NULL",
                "\"temp\" FLOAT NOT NULL",
                "\"battery\" FLOAT",
            ])
        );
    }

    #[test]
    fn every_type_and_every_column_can_be_declared() {
        let words = "Bool Int8 Int16 Int32 Int64 UInt8 UInt16 UInt32 UInt64 Float32 Float64 String Binary Date Timestamp \
                     Timestamp(utc) Timestamp(s) Json";
        let mut spec = DatasetSpec::messages();
        spec.fields = words.split_whitespace().map(|word| FieldSpec::parse(word, word).unwrap()).collect();
        spec.envelope = Envelope {
            topic: true,
            client_id: true,
            qos: true,
            retain: true,
            received_at: true,
            clock: true,
            source: true,
        };
        spec.extra = true;

        let odf = parsed(&text(&spec, "gw", ODF).unwrap());
        let sql = parsed(&text(&spec, "gw", Options { columns: Columns::Sql, ..ODF }).unwrap());

        let count = schema::Columns::new(&spec).schema().fields().len() - EVENT_TIME;
        let source = |manifest: &Value| manifest["content"]["metadata"][0]["read"]["schema"].clone();
        assert_eq!(source(&odf)["fields"].as_array().unwrap().len(), count);
        assert_eq!(source(&sql).as_array().unwrap().len(), count);
    }

    #[test]
    fn names_that_yaml_could_take_for_something_else_stay_text() {
        let odd = [
            "no",
            "on",
            "Y",
            "null",
            "~",
            "1e3",
            "0x1F",
            "12:30",
            "2026-11-22",
            "- a",
            "a: b",
            "#x",
            "{a}",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a",
            "'",
            "\"",
            "a #b",
            " a",
            "a ",
            "?",
            ".inf",
            "é",
            "a\\b",
            "<<",
            "=",
            "---",
        ];
        let mut spec = DatasetSpec::messages();
        spec.fields = odd.iter().map(|name| FieldSpec::parse(name, "Int64").unwrap()).collect();

        let manifest = parsed(&text(&spec, "it's: #1", ODF).unwrap());

        let metadata = &manifest["content"]["metadata"];
        let fields = metadata[0]["read"]["schema"]["fields"].as_array().unwrap();
        let names: Vec<_> = fields[3..3 + odd.len()].iter().map(|field| field["name"].as_str()).collect();
        assert_eq!(names, odd.map(Some));
        assert_eq!(metadata[1]["description"], "Written by Forebay gateway it's: #1");
    }

    #[test]
    fn the_source_is_the_one_that_an_upstream_of_the_dataset_names() {
        let config = config(&format!(
            "{TEMPERATURE}
            [[dataset]]
            name = \"other\"
            topics = [\"other\"]
            format = \"text\"
            [[upstream]]
            url = \"file:///mnt/usb\"
            [[upstream]]
            url = \"https://node.example.com/acme\"
            datasets = [\"temperature\"]
            source_name = \"edge\""
        ));

        assert_eq!(source_name(&config, "temperature"), "edge");
        assert_eq!(source_name(&config, "other"), SOURCE_NAME);
    }

    const ODF: Options<'static> = Options { account: None, source_name: SOURCE_NAME, columns: Columns::Odf };

    fn manifest(toml: &str, options: Options<'_>) -> String {
        let config = config(toml);
        text(&config.datasets[0].spec, &config.gateway, options).unwrap()
    }

    fn config(toml: &str) -> Config {
        Config::parse(toml, Path::new("forebay.toml")).unwrap()
    }

    fn parsed(yaml: &str) -> Value {
        serde_saphyr::from_str(yaml).unwrap()
    }
}
