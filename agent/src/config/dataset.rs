//! One `[[dataset]]`: which topics it takes and what its rows are.

use std::collections::BTreeSet;

use forebay_broker::topic::TopicPattern;
use forebay_storage::dataset::spec::{DatasetSpec, EVENT_TIME_TOLERANCE, Envelope, FieldSpec, Format, Merge};

use super::Dataset;
use super::document::{ConfigError, Node, Section};
use super::read::word;

type Result<T> = std::result::Result<T, ConfigError>;

/// What there is when no dataset is configured: `messages` takes every topic, as it came.
pub(super) fn default_datasets() -> Vec<Dataset> {
    let everything = TopicPattern::parse("#").expect("`#` is a topic filter");
    vec![Dataset { spec: DatasetSpec::messages(), topics: vec![everything] }]
}

/// Every `[[dataset]]`, in file order.
pub(super) fn datasets(node: Node) -> Result<Vec<Dataset>> {
    let mut names = BTreeSet::new();
    let mut datasets = Vec::new();
    for section in node.sections()? {
        let origin = section.error("");
        let dataset = dataset(section)?;
        if !names.insert(dataset.spec.name.to_ascii_lowercase()) {
            let problem = format!("there is another dataset of the name `{}`", dataset.spec.name);
            return Err(ConfigError { problem, ..origin });
        }
        datasets.push(dataset);
    }
    Ok(datasets)
}

fn dataset(mut section: Section) -> Result<Dataset> {
    refuse_later(&mut section)?;
    let whole = section.error("");
    let Some(name) = section.take("name") else {
        return Err(section.error("needs `name`"));
    };
    let Some(topics) = section.take("topics") else {
        return Err(section.error("needs `topics`, such as topics = [\"site/{site}/temp\"]"));
    };
    let topics = topic_patterns(topics)?;
    let format = format(&mut section)?;
    let fields = match section.take("schema") {
        Some(node) => schema(node)?,
        None => format.default_fields().unwrap_or_default(),
    };
    if fields.is_empty() {
        return Err(section.error(
            "needs a schema: [dataset.schema] and lines such as temp = \"Float32\" ('?' after the type: may be missing)",
        ));
    }
    let spec = DatasetSpec {
        name: name.text()?.to_owned(),
        captures: captures(&topics),
        format,
        fields,
        event_time: section.read("event_time", None, |node| Ok(Some(node.text()?.to_owned())))?,
        event_time_tolerance: section.read("event_time_tolerance", EVENT_TIME_TOLERANCE, Node::duration)?,
        merge: section.take("merge").map_or(Ok(Merge::Append), merge)?,
        envelope: section.take("envelope").map_or(Ok(Envelope::default()), envelope)?,
        extra: section.read("extra", false, Node::boolean)?,
    };
    section.finish()?;
    spec.validate().map_err(|error| ConfigError { problem: error.to_string(), ..whole })?;
    Ok(Dataset { spec, topics })
}

/// A `manifest` replaces everything else, so it is named before `name` is missed.
fn refuse_later(section: &mut Section) -> Result<()> {
    match section.take("manifest") {
        Some(node) => Err(node.error("reading an ODF manifest is not in this version")),
        None => Ok(()),
    }
}

/// At least one; all must capture the same names, because captures are columns.
fn topic_patterns(node: Node) -> Result<Vec<TopicPattern>> {
    let whole = node.error("names no topic: the dataset would never have a row");
    let mut patterns: Vec<TopicPattern> = Vec::new();
    for node in node.list()? {
        let pattern = node.parsed(TopicPattern::parse)?;
        if let Some(first) = patterns.first()
            && first.captures() != pattern.captures()
        {
            return Err(node.error(format!(
                "captures {{{}}}, but the dataset's first topic captures {{{}}}: captures are columns, so they must \
                 be the same names in the same order",
                pattern.captures().join(", "),
                first.captures().join(", "),
            )));
        }
        patterns.push(pattern);
    }
    if patterns.is_empty() { Err(whole) } else { Ok(patterns) }
}

fn captures(topics: &[TopicPattern]) -> Vec<String> {
    topics.first().map(|pattern| pattern.captures().to_vec()).unwrap_or_default()
}

fn format(section: &mut Section) -> Result<Format> {
    let format = match section.take("format") {
        Some(node) if node.text().is_ok_and(|text| text == "sparkplug-b") => {
            return Err(node.error("the format sparkplug-b is not in this version"));
        }
        Some(node) => match word(&node, &[("json", 0), ("csv", 1), ("text", 2), ("bytes", 3)])? {
            0 => Format::Json,
            1 => Format::Csv { delimiter: b',' },
            2 => Format::Text,
            _ => Format::Bytes,
        },
        None => Format::Json,
    };
    match (section.take("delimiter"), format) {
        (Some(node), Format::Csv { .. }) => Ok(Format::Csv { delimiter: delimiter(&node)? }),
        (Some(node), _) => Err(node.error("belongs to format = \"csv\" only")),
        (None, format) => Ok(format),
    }
}

fn delimiter(node: &Node) -> Result<u8> {
    match node.text()?.as_bytes() {
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\r' | b'\n') => Ok(*byte),
        _ => Err(node.error("one ASCII character, such as \";\" or \"\\t\"")),
    }
}

fn schema(node: Node) -> Result<Vec<FieldSpec>> {
    node.entries()?
        .into_iter()
        .map(|(name, node)| FieldSpec::parse(&name, node.text()?).map_err(|error| node.error(error)))
        .collect()
}

fn merge(node: Node) -> Result<Merge> {
    let mut section = node.section()?;
    let Some(kind) = section.take("kind") else {
        return Err(section.error("needs `kind`: \"Append\" or \"Ledger\""));
    };
    let key = section.take("primaryKey");
    let merge = match kind.text()? {
        "UpsertStream" | "ChangelogStream" => {
            return Err(kind.error(format!("the merge strategy {} is not in this version", kind.text()?)));
        }
        "Snapshot" => {
            return Err(kind.error(
                "Snapshot compares whole states of a source with each other; a stream of messages has none. \
                 Use Ledger (rows with a key) or Append",
            ));
        }
        _ => word(&kind, &[("Append", false), ("Ledger", true)])?,
    };
    section.finish()?;
    match (merge, key) {
        (false, None) => Ok(Merge::Append),
        (false, Some(key)) => Err(key.error("belongs to kind = \"Ledger\"")),
        (true, None) => Err(kind.error("Ledger needs primaryKey = [\"column\", ...]")),
        (true, Some(key)) => Ok(Merge::Ledger { primary_key: texts(key)? }),
    }
}

fn texts(node: Node) -> Result<Vec<String>> {
    node.list()?.iter().map(|node| Ok(node.text()?.to_owned())).collect()
}

fn envelope(node: Node) -> Result<Envelope> {
    type Set = fn(&mut Envelope);
    const COLUMNS: &[(&str, Set)] = &[
        ("topic", |envelope| envelope.topic = true),
        ("client_id", |envelope| envelope.client_id = true),
        ("qos", |envelope| envelope.qos = true),
        ("retain", |envelope| envelope.retain = true),
        ("received_at", |envelope| envelope.received_at = true),
        ("clock", |envelope| envelope.clock = true),
    ];
    let mut envelope = Envelope::default();
    for node in node.list()? {
        word(&node, COLUMNS)?(&mut envelope);
    }
    Ok(envelope)
}
