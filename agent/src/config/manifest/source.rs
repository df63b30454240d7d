//! A source: where messages come from (`fetch`), how they are read (`read`), which rows are kept (`merge`).

use forebay_broker::packet::QoS;
use forebay_storage::dataset::spec::{Format, Merge};

use super::schema::{self, Column};
use super::{Kind, MqttFetch, Result, Template, need, only, refuse, spelled};
use crate::config::document::{ConfigError, Node, Section};
use crate::config::read::word_of;
use crate::config::source::{QOS, TOPIC_AGAIN, TOPICS_BOUND, TOPICS_MAX, filter};
use crate::config::{Subscription, dataset};

/// What `SetPollingSource` or `AddPushSource` says.
pub(super) struct Source {
    pub(super) mqtt: Option<MqttFetch>,
    pub(super) format: Format,
    pub(super) columns: Vec<Column>,
    pub(super) merge: Merge,
    /// An error at `read`, its problem to be said.
    pub(super) read: ConfigError,
    /// An error at `merge`, its problem to be said.
    pub(super) merging: ConfigError,
}

/// `SetPollingSource`.
pub(super) fn polling(mut event: Section, notes: &mut Vec<String>) -> Result<Source> {
    let fetch = need(&mut event, "fetch", "fetch: {kind: Mqtt, host: .., port: 1883, topics: [{path: ..}]}")?;
    let mqtt = fetch_mqtt(fetch.section()?, notes)?;
    refuse(
        &mut event,
        "prepare",
        "prepare turns files into others before they are read (Pipe, Decompress): messages are read as they come",
    )?;
    rest(event, Some(mqtt), notes)
}

/// `AddPushSource`.
pub(super) fn push(mut event: Section, notes: &mut Vec<String>) -> Result<Source> {
    if let Some(node) = event.take("sourceName")
        && let name = node.text()?
        && name != crate::manifest::SOURCE_NAME
    {
        notes.push(format!(
            "the source name `{name}` is not used: where rows are posted to a node, [[upstream]] source_name says it"
        ));
    }
    rest(event, None, notes)
}

/// What both kinds of source have.
fn rest(mut event: Section, mqtt: Option<MqttFetch>, notes: &mut Vec<String>) -> Result<Source> {
    let read = need(&mut event, "read", "read: {kind: NdJson, schema: ..}")?;
    refuse(
        &mut event,
        "preprocess",
        "preprocess needs an engine (SQL, mostly), and a gateway has none: declare in `read.schema` what devices send, and \
         derive the rest in a derivative dataset on a node",
    )?;
    let merge = need(&mut event, "merge", "merge: {kind: Append}, or {kind: Ledger, primaryKey: [..]}")?;
    event.finish()?;
    let (reading, merging) = (read.error(""), merge.error(""));
    let (format, columns) = read_step(read.section()?, notes)?;
    Ok(Source { mqtt, format, columns, merge: dataset::merge(merge)?, read: reading, merging })
}

fn fetch_mqtt(mut fetch: Section, notes: &mut Vec<String>) -> Result<MqttFetch> {
    let kind = Kind::take(&mut fetch, "Mqtt")?;
    match kind.word.as_str() {
        "Mqtt" => {}
        word @ ("Url" | "FilesGlob" | "Container" | "EthereumLogs") => {
            return Err(kind.error(format!("{word} is fetched by a node; a gateway fetches from a broker only: Mqtt")));
        }
        _ => return Err(kind.unknown(&["Mqtt"])),
    }
    let host = host(&need(&mut fetch, "host", "host: broker.example.com")?)?;
    let port = need(&mut fetch, "port", "port: 1883")?;
    let port = match port.integer()? {
        0 => return Err(port.error("from 1 to 65535")),
        port => port,
    };
    let login = login(&mut fetch, notes)?;
    let topics = topics(need(&mut fetch, "topics", "topics: [{path: site/+/temp, qos: AtLeastOnce}]")?)?;
    fetch.finish()?;
    Ok(MqttFetch { host, port, login, topics })
}

fn host(node: &Node) -> Result<String> {
    let host = node.text()?;
    if host.is_empty() || host.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control()) {
        return Err(
            node.error("a name or an address alone, such as broker.example.com; there is no TLS and no WebSocket")
        );
    }
    Ok(host.to_owned())
}

fn login(fetch: &mut Section, notes: &mut Vec<String>) -> Result<Option<(String, Template)>> {
    let (username, password) = (fetch.take("username"), fetch.take("password"));
    let (username, password) = match (username, password) {
        (None, None) => return Ok(None),
        (Some(username), None) => return Err(username.error("needs `password`: one of the two alone is not sent")),
        (None, Some(password)) => return Err(password.error("needs `username`: one of the two alone is not sent")),
        (Some(username), Some(password)) => (username, password),
    };
    let template = password.parsed(Template::parse)?;
    if template.is_literal() {
        notes.push("the password stands in the manifest: prefer ${{ env.NAME }}".to_owned());
    }
    let username = username.text()?;
    if username.contains("${{") {
        notes.push("`username` is sent as it stands, ${{ and all: only `password` has templates".to_owned());
    }
    Ok(Some((username.to_owned(), template)))
}

fn topics(node: Node) -> Result<Vec<Subscription>> {
    let empty = node.error("names no topic: the dataset would never have a row");
    let many = node.error(TOPICS_BOUND);
    let mut topics: Vec<Subscription> = Vec::new();
    for node in node.list()? {
        let again = node.error(TOPIC_AGAIN);
        let topic = topic(node.section()?)?;
        if topics.iter().any(|known| known.filter == topic.filter) {
            return Err(again);
        }
        topics.push(topic);
    }
    match topics.len() {
        0 => Err(empty),
        1..=TOPICS_MAX => Ok(topics),
        _ => Err(many),
    }
}

fn topic(mut topic: Section) -> Result<Subscription> {
    let path = need(&mut topic, "path", "path: site/+/temp")?;
    if path.text()?.contains(['{', '}']) {
        return Err(path.error(
            "has braces, which are plain letters to a node and columns to Forebay: for any one level write +, for all \
             that follow #",
        ));
    }
    let filter = path.parsed(filter)?;
    let qos = topic.read("qos", QoS::AtMostOnce, |node| word_of(node, &spelled(node.text()?), &QOS))?;
    topic.finish()?;
    Ok(Subscription { filter, qos })
}

fn read_step(mut read: Section, notes: &mut Vec<String>) -> Result<(Format, Vec<Column>)> {
    let kind = Kind::take(&mut read, "NdJson")?;
    let format = match kind.word.as_str() {
        "NdJson" => Format::Json,
        "Csv" => csv(&mut read)?,
        "Json" => return Err(kind.error("Json is one document of many rows; a message is one row: NdJson")),
        word @ ("GeoJson" | "NdGeoJson" | "EsriShapefile" | "Parquet") => {
            return Err(kind.error(format!("{word} is not read from messages; a message is one row: NdJson or Csv")));
        }
        _ => return Err(kind.unknown(&["NdJson", "Csv"])),
    };
    only(&mut read, "encoding", &["utf8", "utf-8"], "messages are UTF-8")?;
    only(&mut read, "dateFormat", &["rfc3339"], "dates are read as 2026-11-22")?;
    only(&mut read, "timestampFormat", &["rfc3339"], "instants are read as 2026-11-22T10:00:00Z")?;
    let columns = schema::columns(&mut read, notes)?;
    read.finish()?;
    Ok((format, columns))
}

/// RFC 4180 but for the separator.
fn csv(read: &mut Section) -> Result<Format> {
    let delimiter = read.read("separator", b',', dataset::delimiter)?;
    only(read, "quote", &["\""], "RFC 4180 quotes with \"")?;
    only(read, "escape", &[], "RFC 4180 doubles a quote instead")?;
    only(read, "nullValue", &[""], "nothing between two separators is null")?;
    for (key, why) in [
        ("header", "a message is one record, fields in the order of the schema: it has no header"),
        ("inferSchema", "the schema is declared, never guessed"),
    ] {
        if let Some(node) = read.take(key)
            && node.boolean()?
        {
            return Err(node.error(format!("only `false` is honoured: {why}")));
        }
    }
    Ok(Format::Csv { delimiter })
}
