//! What a manifest may say, and how it is told that it may not.

use forebay_broker::packet::QoS;
use forebay_storage::dataset::row::RowBuilder;
use forebay_storage::dataset::spec::Format;
use forebay_storage::message::{Flags, Message};
use forebay_storage::position::{DatasetId, Seq};
use proptest::prelude::*;

use super::*;
use crate::config::Config;
use crate::manifest::{Columns, Options, SOURCE_NAME};

/// The example that Kamu's documentation fetches MQTT with, as it stands there.
const KAMUS_EXAMPLE: &str = "\
kind: DatasetSnapshot
version: 1
content:
  name: temp
  kind: Root
  metadata:
    - kind: SetPollingSource
      fetch:
        kind: mqtt
        host: test.mosquitto.org
        port: 1883
        topics:
          - path: dev.kamu.example.mqtt.temp
            qos: AtMostOnce
      read:
        kind: NdJson
        schema:
          - event_time TIMESTAMP
          - value FLOAT
      merge:
        kind: Ledger
        primaryKey:
          - event_time
";

/// A manifest of which every line can be replaced.
const MANIFEST: &str = "\
kind: DatasetSnapshot
version: 1
content:
  name: temperature
  kind: Root
  metadata:
    - kind: SetPollingSource
      fetch:
        kind: Mqtt
        host: broker.example.com
        port: 1883
        username: gw
        password: ${{ env.MQTT_PASSWORD }}
        topics:
          - path: site/+/temp
            qos: AtLeastOnce
      read:
        kind: NdJson
        schema:
          fields:
            - name: event_time
              type: Timestamp
            - name: value
              type: {kind: Option, inner: Float32}
      merge:
        kind: Ledger
        primaryKey: [event_time]
    - kind: SetVocab
      eventTimeColumn: event_time
";

#[test]
fn kamus_own_example_runs_unchanged() {
    let manifest = parse(KAMUS_EXAMPLE).unwrap();

    let fetch = manifest.mqtt.unwrap();
    assert_eq!((fetch.host.as_str(), fetch.port, &fetch.login), ("test.mosquitto.org", 1883, &None));
    let topic = Subscription { filter: "dev.kamu.example.mqtt.temp".to_owned(), qos: QoS::AtMostOnce };
    assert_eq!(fetch.topics, [topic]);
    let spec = manifest.spec;
    assert_eq!((spec.name.as_str(), &spec.format), ("temp", &Format::Json));
    assert_eq!(fields(&spec), ["event_time: Timestamp(utc)", "value: Float32?"]);
    assert_eq!(spec.event_time.as_deref(), Some("event_time"));
    assert_eq!(spec.merge, Merge::Ledger { primary_key: vec!["event_time".to_owned()] });
    assert_eq!(manifest.notes, [""; 0]);
}

#[test]
fn what_its_publisher_sends_becomes_a_row() {
    let spec = parse(KAMUS_EXAMPLE).unwrap().spec;
    let payload = br#"{"event_time": "2026-11-25T11:00:24.123456", "value": 7}"#;

    let facts = RowBuilder::new(&spec, "gw").push(Seq(0), &message(payload)).unwrap();

    assert_eq!(facts.event_time_ms, 1_795_604_424_123);
}

#[test]
fn kinds_are_read_in_both_spellings() {
    let small = MANIFEST
        .replace("DatasetSnapshot", "datasetSnapshot")
        .replace("Root", "root")
        .replace("SetPollingSource", "setPollingSource")
        .replace("Mqtt", "mqtt")
        .replace("AtLeastOnce", "atLeastOnce")
        .replace("NdJson", "ndJson")
        .replace("Option", "option")
        .replace("Timestamp", "timestamp")
        .replace("Float32", "float32")
        .replace("Ledger", "ledger")
        .replace("SetVocab", "setVocab");

    let (one, other) = (parse(MANIFEST).unwrap(), parse(&small).unwrap());

    assert_eq!((one.spec, one.mqtt, one.notes), (other.spec, other.mqtt, other.notes));
}

#[test]
fn a_push_source_fetches_from_nowhere() {
    let manifest = parse(&push_source("schema: [value FLOAT]")).unwrap();

    assert_eq!(manifest.mqtt, None);
    assert_eq!(fields(&manifest.spec), ["value: Float32?"]);
    assert_eq!((manifest.spec.event_time, manifest.spec.merge), (None, Merge::Append));
}

#[test]
fn every_type_of_odf_that_columns_can_have_is_read() {
    let words = "Bool Int8 Int16 Int32 Int64 UInt8 UInt16 UInt32 UInt64 Float32 Float64 String Binary Date";
    for word in words.split(' ') {
        assert_eq!(column_of(word), word);
        assert_eq!(column_of(&format!("{{kind: {word}}}")), word);
        assert_eq!(column_of(&format!("{{kind: Option, inner: {word}}}")), format!("{word}?"));
    }
    assert_eq!(column_of("Timestamp"), "Timestamp(utc)");
    assert_eq!(column_of("{kind: Timestamp, unit: Millisecond, timezone: UTC}"), "Timestamp(utc)");
    assert_eq!(column_of("{kind: Option, inner: {kind: timestamp, unit: nanosecond}}"), "Timestamp(utc)?");
}

#[test]
fn sql_columns_are_read_by_either_name_of_the_list() {
    for key in ["schema", "ddlSchema"] {
        let text =
            push_source(&format!("{key}: ['event_time TIMESTAMP', '\"Value\" FLOAT NOT NULL', 'n BIGINT UNSIGNED']"));

        let spec = parse(&text).unwrap().spec;

        assert_eq!(fields(&spec), ["event_time: Timestamp(utc)", "Value: Float32", "n: UInt64?"]);
        assert_eq!(spec.event_time.as_deref(), Some("event_time"));
    }
}

#[test]
fn the_vocabulary_names_another_event_time() {
    let manifest = parse(
        &MANIFEST
            .replace("eventTimeColumn: event_time", "eventTimeColumn: day\n      offsetColumn: offset")
            .replace("name: event_time\n              type: Timestamp", "name: day\n              type: Date")
            .replace("[event_time]", "[day]"),
    )
    .unwrap();

    assert_eq!(manifest.spec.event_time.as_deref(), Some("day"));
    assert_eq!(fields(&manifest.spec), ["day: Date", "value: Float32?"]);
}

#[test]
fn csv_is_read_with_its_separator_and_what_is_done_anyway() {
    let keys =
        ["separator: ';'", "header: false", "quote: '\"'", "encoding: UTF-8", "nullValue: ''", "schema: [v FLOAT]"];
    let read = keys.join("\n        ");

    let spec = parse(&push_source(&read).replace("NdJson", "Csv")).unwrap().spec;

    assert_eq!(spec.format, Format::Csv { delimiter: b';' });
}

#[test]
fn a_password_is_looked_up_when_it_is_needed() {
    let (username, password) = parse(MANIFEST).unwrap().mqtt.unwrap().login.unwrap();

    assert_eq!(username, "gw");
    assert_eq!(password.resolve(|name| Some(format!("the {name}"))), Ok("the MQTT_PASSWORD".to_owned()));
    assert!(password.resolve(|_| None).unwrap_err().contains("MQTT_PASSWORD"));
}

#[test]
fn what_leads_to_nothing_or_to_less_is_noted() {
    let table = [
        ("name: temperature", "name: acme/temperature", "the account `acme` before the name"),
        ("${{ env.MQTT_PASSWORD }}", "s3cret", "the password stands in the manifest"),
        ("username: gw", "username: ${{ env.A }}", "`username` is sent as it stands"),
        ("kind: SetVocab\n      eventTimeColumn", "kind: SetInfo\n      description", "SetInfo describes the dataset"),
        ("type: Timestamp", "type: {kind: Option, inner: Timestamp}", "the column `event_time` is declared optional"),
        ("type: Timestamp", "type: {kind: Timestamp, unit: Nanosecond}", "the column `event_time` is declared in nano"),
        ("- name: value", "- extra: {a: b}\n              name: value", "attributes of the schema (`extra`)"),
    ];
    for (from, to, note) in table {
        let manifest = parse(&replaced(from, to)).unwrap();
        assert!(matches!(manifest.notes.as_slice(), [only] if only.starts_with(note)), "{:?}", manifest.notes);
        assert!(!format!("{manifest:?}").contains("s3cret"), "{manifest:?}");
    }
    let push = push_source("schema: [Value FLOAT]").replace("AddPushSource", "AddPushSource\n      sourceName: edge");
    let notes = parse(&push).unwrap().notes;
    assert!(notes[0].contains("`edge`") && notes[1].contains("the column Value is read as `value`"), "{notes:?}");
}

#[test]
fn what_is_no_manifest_of_a_root_dataset_is_refused_by_name_and_line() {
    check_refusals(&[
        ("kind: DatasetSnapshot", "kind: DatasetSnapshto", "1:1: `kind`", "did you mean DatasetSnapshot?"),
        ("kind: DatasetSnapshot\n", "", "1:1: needs `kind`", "kind: DatasetSnapshot"),
        ("version: 1", "version: 2", "2:1: `version`", "only version 1"),
        ("version: 1", "version: one", "2:1: `version`", "expected an integer"),
        ("version: 1", "verson: 1", "1:1: needs `version`", "version: 1"),
        ("version: 1", "version: 1\nextra: 1", "3:1: `extra`", "unknown key; known here: kind, version, content"),
        ("name: temperature", "name: a b", "4:3: `content.name`", "letters and digits"),
        ("kind: Root", "kind: Derivative", "5:3: `content.kind`", "made of others by an engine"),
        ("  metadata:", "  metadata: []\n  meta:", "7:3: `content.meta`", "did you mean `metadata`?"),
    ]);
}

#[test]
fn an_event_that_is_not_for_a_gateway_is_refused_by_name_and_line() {
    check_refusals(&[
        ("kind: SetPollingSource", "kind: SetPolingSource", "7:7: `[0].kind`", "did you mean SetPollingSource?"),
        ("kind: SetPollingSource", "kind: SetTransform", "7:7: `[0].kind`", "derivative"),
        ("kind: SetVocab", "kind: AddData", "28:7: `[1].kind`", "AddData is an event of a chain"),
        ("kind: SetVocab", "kind: AddPushSource", "28:7: `[1].kind`", "exactly one"),
        ("kind: SetVocab", "kind: DisablePushSource", "28:7: `[1].kind`", "leave both events out"),
        ("kind: SetVocab", "kind: SetDataSchema", "28:7: `[1].kind`", "leave the event out"),
        ("eventTimeColumn: event_time", "offsetColumn: row", "29:7: `[1].offsetColumn`", "`offset`"),
        ("eventTimeColumn: event_time", "eventTimeColumn: t", "29:7: `[1].eventTimeColumn`", "no column `t`"),
        ("eventTimeColumn: event_time", "eventTime: t", "29:7: `[1].eventTime`", "did you mean `eventTimeColumn`?"),
        ("      read:", "      prepare: []\n      read:", "17:7: `[0].prepare`", "as they come"),
        ("      merge:", "      preprocess: {kind: Sql}\n      merge:", "25:7: `[0].preprocess`", "engine"),
    ]);
}

#[test]
fn a_fetch_that_is_not_by_mqtt_is_refused_by_name_and_line() {
    check_refusals(&[
        ("kind: Mqtt", "kind: url", "9:9: `[0].fetch.kind`", "Url is fetched by a node"),
        ("kind: Mqtt", "kind: Container", "9:9: `[0].fetch.kind`", "Container is fetched by a node"),
        ("kind: Mqtt", "kind: Mqqt", "9:9: `[0].fetch.kind`", "did you mean Mqtt?"),
        ("host: broker", "host: mqtts://broker", "10:9: `[0].fetch.host`", "alone"),
        ("        port: 1883\n", "", "8:7: `[0].fetch`: needs `port`", "port: 1883"),
        ("port: 1883", "port: 70000", "11:9: `[0].fetch.port`", "out of range"),
        ("port: 1883", "port: 0", "11:9: `[0].fetch.port`", "from 1 to 65535"),
        ("port: 1883", "port: 1883\n        order: ByName", "12:9: `[0].fetch.order`", "unknown key"),
        ("        username: gw\n", "", "12:9: `[0].fetch.password`", "needs `username`"),
        ("        password: ${{ env.MQTT_PASSWORD }}\n", "", "12:9: `[0].fetch.username`", "needs `password`"),
        ("env.MQTT", "secrets.MQTT", "13:9: `[0].fetch.password`", "`${{ secrets.MQTT_PASSWORD`"),
        ("path: site/+/temp", "path: site/{d}/temp", "15:13: `[0].fetch.topics[0].path`", "braces"),
        ("path: site/+/temp", "path: site/#/temp", "15:13: `[0].fetch.topics[0].path`", "last level"),
        ("path: site/+/temp", "path: $share/g", "15:13: `[0].fetch.topics[0].path`", "shared subscription"),
        (
            "          - path",
            "          - path: site/+/temp\n          - path",
            "16:13: `[0].fetch.topics[1]`",
            "already",
        ),
        ("qos: AtLeastOnce", "qos: AtLeastOne", "16:13: `[0].fetch.topics[0].qos`", "did you mean"),
        ("qos: AtLeastOnce", "retain: true", "16:13: `[0].fetch.topics[0].retain`", "unknown key"),
    ]);
}

#[test]
fn what_is_not_done_when_reading_is_refused_by_name_and_line() {
    check_refusals(&[
        ("kind: NdJson", "kind: Json", "18:9: `[0].read.kind`", "one document"),
        ("kind: NdJson", "kind: Parquet", "18:9: `[0].read.kind`", "Parquet is not read from messages"),
    ]);
    let with = |kind: &str, key: &str, place: &str, problem: &str| {
        let to = format!("kind: {kind}\n        {key}");
        check_refusals(&[("kind: NdJson", &to, &format!("19:9: `[0].read.{place}`"), problem)]);
    };
    with("NdJson", "encoding: latin1", "encoding", "messages are UTF-8");
    with("NdJson", "dateFormat: '%d'", "dateFormat", "only \"rfc3339\" is honoured");
    with("NdJson", "timestampFormat: '%s'", "timestampFormat", "only \"rfc3339\" is honoured");
    with("NdJson", "header: true", "header", "unknown key");
    with("NdJson", "ddlSchema: []", "ddlSchema", "one of the two");
    with("Csv", "header: true", "header", "it has no header");
    with("Csv", "inferSchema: true", "inferSchema", "never guessed");
    with("Csv", "escape: x", "escape", "doubles a quote");
    with("Csv", "quote: x", "quote", "RFC 4180");
    with("Csv", "nullValue: NA", "nullValue", "is null");
    with("Csv", "separator: '||'", "separator", "one ASCII character");
}

#[test]
fn a_column_that_cannot_be_is_refused_by_name_and_line() {
    let first = |declared: &str, place: &str, problem: &str| {
        let to = format!("type: {declared}");
        check_refusals(&[("type: Timestamp", &to, &format!("{place}`"), problem)]);
    };
    first("String", "21:15: `[0].read.schema.fields[0].name", "is the event time");
    first("{kind: Timestamp, unit: Second}", "22:39: `[0].read.schema.fields[0].type.unit", "not cut");
    first("{kind: Timestamp, timezone: CET}", "22:39: `[0].read.schema.fields[0].type.timezone", "in UTC");
    let second = |inner: &str, place: &str, problem: &str| {
        let to = format!("inner: {inner}");
        check_refusals(&[("inner: Float32", &to, &format!("24:{place}`"), problem)]);
    };
    second("Float", "36: `[0].read.schema.fields[1].type.inner", "did you mean Float");
    second("Struct", "36: `[0].read.schema.fields[1].type.inner", "no columns of type Struct");
    second("{kind: List, itemType: Int8}", "44: `[0].read.schema.fields[1].type.inner.kind", "type List");
    second("{kind: Option, inner: Int8}", "22: `[0].read.schema.fields[1].type.kind", "another Option");
    check_refusals(&[
        ("name: value", "name: seq", "23:15: `[0].read.schema.fields[1].name`", "a column `seq` of its own"),
        ("name: value", "name: event_time", "23:15: `[0].read.schema.fields[1].name`", "declared twice"),
    ]);
}

#[test]
fn a_merge_strategy_that_needs_more_than_messages_is_refused_by_name_and_line() {
    check_refusals(&[
        ("kind: Ledger", "kind: UpsertStream", "26:9: `[0].merge.kind`", "UpsertStream is not in this version"),
        ("kind: Ledger", "kind: changelogStream", "26:9: `[0].merge.kind`", "ChangelogStream is not in this version"),
        ("kind: Ledger", "kind: snapshot", "26:9: `[0].merge.kind`", "compares whole states"),
        ("kind: Ledger", "kind: Leger", "26:9: `[0].merge.kind`", "did you mean \"Ledger\"?"),
        ("kind: Ledger", "kind: Append", "27:9: `[0].merge.primaryKey`", "belongs to"),
        ("[event_time]", "[device]", "25:7: `[0].merge`", "primaryKey names \"device\""),
        ("[event_time]", "[]", "25:7: `[0].merge`", "at least one column"),
    ]);
}

#[test]
fn a_schema_is_declared_and_one_that_is_not_understood_is_refused() {
    let read = "`content.metadata[0].read";
    for (schema, place, problem) in [
        ("dateFormat: rfc3339", format!("m.yaml:8:7: {read}`: needs `schema`"), "never guessed"),
        ("schema: []", format!("m.yaml:8:7: {read}`"), "declares no fields"),
        ("schema: 7", format!("m.yaml:10:9: {read}.schema`"), "expected a table"),
        ("schema: ['a INT', 'b DECIMAL(3, 1)']", format!("m.yaml:10:27: {read}.schema[1]`"), "DECIMAL"),
        ("schema: ['a INT', 7]", format!("m.yaml:10:27: {read}.schema[1]`"), "expected text"),
        ("schema: {fields: [{name: a}]}", format!("m.yaml:10:27: {read}.schema.fields[0]`"), "needs `type`"),
        (
            "schema: {fields: [{name: a, type: Time}]}",
            format!("m.yaml:10:37: {read}.schema.fields[0].type`"),
            "type Time",
        ),
    ] {
        let error = error_of(&push_source(schema));
        assert!(error.starts_with(&place) && error.contains(problem), "{schema}: {error}");
    }
}

#[test]
fn a_manifest_without_a_source_or_of_another_shape_is_refused() {
    let (head, _) = MANIFEST.split_once("    - kind: SetPollingSource").unwrap();
    assert!(error_of(&format!("{head}    - kind: SetVocab\n")).contains("`content.metadata`: has no source"));
    assert_eq!(
        error_of(head),
        "m.yaml:3:1: `content`: needs `metadata`, such as metadata: [{kind: SetPollingSource, ..}]"
    );
    assert_eq!(error_of(""), "m.yaml:1:1: expected a table, found nothing");
    assert_eq!(error_of("- a"), "m.yaml:1:1: expected a table, found a list");
    assert_eq!(error_of("kind: [\n"), "m.yaml:1:7: not YAML: unclosed bracket '['");
    assert!(error_of(&format!("{MANIFEST}---\n{MANIFEST}")).contains("one dataset a file"));
    assert!(error_of(&" ".repeat(BYTES_MAX + 1)).starts_with("m.yaml:1:1: has 1048577 bytes"));
}

/// A node gets columns `gateway` and `seq` declared, which a gateway makes itself: it does not take its own rows again.
#[test]
fn what_forebay_tells_a_node_is_read_up_to_the_columns_that_forebay_makes() {
    let toml =
        "[[dataset]]\nname = \"t\"\ntopics = [\"t\"]\n[dataset.schema]\nvalue = \"Float32?\"\nat = \"Timestamp(ms)\"\n";
    let config = Config::parse(toml, Path::new("forebay.toml")).unwrap();
    let options = Options { account: None, source_name: SOURCE_NAME, columns: Columns::Odf };

    for columns in [Columns::Odf, Columns::Sql] {
        let options = Options { columns, ..options };
        let text = crate::manifest::text(&config.datasets[0].spec, "gw", options).unwrap();

        assert!(error_of(&text).contains("a column `gateway` of its own"), "{}", error_of(&text));
        let manifest = parse(&text.replace("gateway\n", "gw\n").replace("gateway\\\"", "gw\\\"").replace("seq", "n"));
        let manifest = manifest.unwrap();
        let fields = fields(&manifest.spec);
        assert_eq!(fields[3..], ["value: Float32?", "at: Timestamp(utc)"]);
        assert_eq!(manifest.spec.event_time.as_deref(), Some("event_time"));
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_manifest_with_a_line_changed_makes_it_panic(
        line in 0..MANIFEST.lines().count(),
        indent in 0..16_usize,
        other in prop_oneof![prop::sample::select(MANIFEST.lines().collect::<Vec<_>>()).prop_map(str::to_owned), "[-a-z:{}\\[\\]&*'\"$|> ]{0,20}"],
    ) {
        let mut lines: Vec<String> = MANIFEST.lines().map(str::to_owned).collect();
        lines[line] = " ".repeat(indent) + other.trim_start();
        let _ = parse(&lines.join("\n"));
    }

    #[test]
    fn no_column_definition_makes_it_panic(text in "[\"`a-zA-Z0-9_(), é]{0,30}") {
        let _ = ddl::parse(&text);
    }
}

fn parse(text: &str) -> Result<Manifest> {
    read(text, Path::new("m.yaml"))
}

fn error_of(text: &str) -> String {
    parse(text).expect_err("the manifest is wrong").to_string()
}

/// What is replaced in [`MANIFEST`], by what; where the error is, keys of an event from its number on; what it says.
fn check_refusals(table: &[(&str, &str, &str, &str)]) {
    for (from, to, place, problem) in table {
        let error = error_of(&replaced(from, to));
        let short = error.replace("`content.metadata[", "`[");
        assert!(short.starts_with(&format!("m.yaml:{place}")) && error.contains(problem), "{to}: {error}");
    }
}

fn replaced(from: &str, to: &str) -> String {
    assert!(MANIFEST.contains(from), "{from}");
    MANIFEST.replacen(from, to, 1)
}

fn push_source(read: &str) -> String {
    format!(
        "kind: DatasetSnapshot\nversion: 1\ncontent:\n  name: t\n  kind: Root\n  metadata:\n    - kind: AddPushSource\n      \
         read:\n        kind: NdJson\n        {read}\n      merge: {{kind: Append}}\n"
    )
}

/// Type word of a column that is declared so.
fn column_of(odf: &str) -> String {
    let spec = parse(&push_source(&format!("schema: {{fields: [{{name: v, type: {odf}}}]}}"))).unwrap().spec;
    fields(&spec)[0].trim_start_matches("v: ").to_owned()
}

fn fields(spec: &DatasetSpec) -> Vec<String> {
    let mark = |optional| if optional { "?" } else { "" };
    spec.fields.iter().map(|field| format!("{}: {}{}", field.name, field.data_type, mark(field.optional))).collect()
}

fn message(payload: &'static [u8]) -> Message {
    Message {
        dataset: DatasetId(0),
        received_at_us: 0,
        flags: Flags::default(),
        topic: "t".into(),
        captures: Vec::new(),
        client_id: "c".into(),
        payload: payload.into(),
    }
}
