//! One `[[dataset]]`: which topics it takes and what its rows are.

use std::collections::BTreeSet;
use std::path::Path;

use forebay_broker::topic::TopicPattern;
use forebay_storage::dataset::spec::{DatasetSpec, EVENT_TIME_TOLERANCE, Envelope, FieldSpec, Format, Merge};
use forebay_storage::spool::SpoolConfig;

use super::document::{ConfigError, Node, Origin, Section, nearest};
use super::manifest;
use super::read::{word, word_of};
use super::{Dataset, Source, Subscription, read_file, units};

type Result<T> = std::result::Result<T, ConfigError>;

/// What there is when no dataset is configured: `messages` takes every topic, as it came.
pub(super) fn default_datasets() -> Vec<Dataset> {
    let everything = TopicPattern::parse("#").expect("`#` is a topic filter");
    vec![Dataset {
        spec: DatasetSpec::messages(),
        topics: vec![everything],
        source: None,
        retained_once: true,
        notes: Vec::new(),
        origin: Origin::Default,
    }]
}

/// What the `[[dataset]]` sections say, in file order.
#[derive(Default)]
pub(super) struct Declared {
    pub(super) datasets: Vec<Dataset>,
    /// Those that came with manifests.
    pub(super) sources: Vec<Source>,
    /// Where a dataset names its source, and what to say if there is none of that name.
    named: Vec<Node>,
}

impl Declared {
    /// Without any section there is one dataset, for everything.
    pub(super) fn nothing() -> Self {
        Self { datasets: default_datasets(), ..Self::default() }
    }

    /// The datasets, once it is known which sources there are.
    pub(super) fn datasets_of(self, sources: &[Source]) -> Result<Vec<Dataset>> {
        let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
        for node in &self.named {
            let name = node.text()?;
            if !names.contains(&name) {
                return Err(node.error(match (nearest(name, &names), names.is_empty()) {
                    (Some(near), _) => format!("there is no source {name:?}; did you mean {near:?}?"),
                    (None, true) => format!("there is no source {name:?}, nor any other [[source]]"),
                    (None, false) => format!("there is no source {name:?}; there are: {}", names.join(", ")),
                }));
            }
        }
        Ok(self.datasets)
    }
}

/// Every `[[dataset]]`, in file order.
pub(super) fn datasets(node: Node, gateway: &str) -> Result<Declared> {
    let mut names = BTreeSet::new();
    let mut declared = Declared::default();
    for section in node.sections()? {
        let origin = section.error("");
        let dataset = dataset(section, gateway, &mut declared)?;
        if !names.insert(dataset.spec.name.to_ascii_lowercase()) {
            let problem = format!("there is another dataset of the name `{}`", dataset.spec.name);
            return Err(ConfigError { problem, ..origin });
        }
        declared.datasets.push(dataset);
    }
    Ok(declared)
}

fn dataset(mut section: Section, gateway: &str, declared: &mut Declared) -> Result<Dataset> {
    if let Some(node) = section.take("manifest") {
        return with_manifest(&node, section, gateway, declared);
    }
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
    let source = source(&mut section, declared)?;
    let retained_once = retained_once(&mut section)?;
    section.finish()?;
    let origin = whole.origin.clone();
    spec.validate().map_err(|error| ConfigError { problem: error.to_string(), ..whole })?;
    Ok(Dataset { spec, topics, source, retained_once, notes: Vec::new(), origin })
}

/// The section of a dataset that a manifest declares: what a manifest cannot say may stand beside it.
fn with_manifest(node: &Node, mut section: Section, gateway: &str, declared: &mut Declared) -> Result<Dataset> {
    let whole = section.error("");
    let (mut dataset, fetched) = of_manifest(&node.path()?, gateway)?;
    let topics = section.take("topics");
    match (&fetched, topics) {
        (Some(_), Some(node)) => return Err(node.error("the manifest names the topics, in SetPollingSource")),
        (None, None) => {
            return Err(section.error("needs `topics`: the manifest has a push source, which names none"));
        }
        (Some(_), None) => {}
        (None, Some(node)) => {
            dataset.topics = topic_patterns(node)?;
            dataset.spec.captures = captures(&dataset.topics);
            dataset.source = source(&mut section, declared)?;
        }
    }
    let spec = &mut dataset.spec;
    spec.event_time_tolerance = section.read("event_time_tolerance", spec.event_time_tolerance, Node::duration)?;
    spec.envelope = section.take("envelope").map_or(Ok(Envelope::default()), envelope)?;
    spec.extra = section.read("extra", false, Node::boolean)?;
    spec.validate().map_err(|error| ConfigError { problem: error.to_string(), ..whole })?;
    dataset.retained_once = retained_once(&mut section)?;
    section.finish()?;
    declared.sources.extend(fetched);
    Ok(dataset)
}

/// The dataset that a manifest declares, and the source of its messages if it names one.
pub(super) fn of_manifest(file: &Path, gateway: &str) -> Result<(Dataset, Option<Source>)> {
    let manifest = manifest::read(&read_file(file, manifest::BYTES_MAX as u64)?, file)?;
    let name = &manifest.spec.name;
    let source = manifest.mqtt.map(|fetch| Source::of_manifest(fetch, name, gateway));
    let mut notes = manifest.notes;
    let tolerance = units::show_duration(manifest.spec.event_time_tolerance);
    if manifest.spec.event_time.is_some() {
        notes.push(format!(
            "an event more than {tolerance} ahead of its receipt is a dead letter: `event_time_tolerance`"
        ));
    }
    if matches!(manifest.spec.merge, Merge::Ledger { .. }) {
        let keys = SpoolConfig::default().ledger_keys_max;
        notes.push(format!("Ledger knows the last {keys} keys: an older row that comes again is a row again"));
    }
    let topics = source.iter().flat_map(|source| &source.topics).filter_map(Subscription::pattern).collect();
    let dataset = Dataset {
        source: source.as_ref().map(|source| source.name.clone()),
        spec: manifest.spec,
        topics,
        retained_once: true,
        notes,
        origin: Origin::start_of(file),
    };
    Ok((dataset, source))
}

fn source(section: &mut Section, declared: &mut Declared) -> Result<Option<String>> {
    let Some(node) = section.take("source") else { return Ok(None) };
    let name = node.text()?.to_owned();
    declared.named.push(node);
    Ok(Some(name))
}

fn retained_once(section: &mut Section) -> Result<bool> {
    section.read("retained", true, |node| word(node, &[("once", true), ("every", false)]))
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

pub(super) fn delimiter(node: &Node) -> Result<u8> {
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

/// A merge strategy, as `[[dataset]]` and ODF manifests alike write it; its kind in either of ODF's spellings.
pub(super) fn merge(node: Node) -> Result<Merge> {
    let mut section = node.section()?;
    let Some(kind) = section.take("kind") else {
        return Err(section.error("needs `kind`: \"Append\" or \"Ledger\""));
    };
    let key = section.take("primaryKey");
    let name = manifest::spelled(kind.text()?);
    let merge = match name.as_str() {
        "UpsertStream" | "ChangelogStream" => {
            return Err(kind.error(format!("the merge strategy {name} is not in this version")));
        }
        "Snapshot" => {
            return Err(kind.error(
                "Snapshot compares whole states of a source with each other; a stream of messages has none. \
                 Use Ledger (rows with a key) or Append",
            ));
        }
        _ => word_of(&kind, &name, &[("Append", false), ("Ledger", true)])?,
    };
    section.finish()?;
    match (merge, key) {
        (false, None) => Ok(Merge::Append),
        (false, Some(key)) => Err(key.error("belongs to kind = \"Ledger\"")),
        (true, None) => Err(kind.error("Ledger needs primaryKey, a list of columns")),
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
        ("source", |envelope| envelope.source = true),
    ];
    let mut envelope = Envelope::default();
    for node in node.list()? {
        word(&node, COLUMNS)?(&mut envelope);
    }
    Ok(envelope)
}
