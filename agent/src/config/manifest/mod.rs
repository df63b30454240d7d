//! An ODF manifest as a dataset: what people give to `kamu add`, read by a gateway instead of a node.
//!
//! ```text
//! DatasetSnapshot ── name, Root ─┬─ SetPollingSource  fetch Mqtt · read · merge ─┐
//!                                ├─ AddPushSource             read · merge ──────┤ exactly one of the two
//!                                ├─ SetVocab          which column is the event time
//!                                └─ SetInfo, SetLicense, SetAttachments: described, not written
//! ```
//!
//! Whatever a manifest says is either honoured or refused by name, with its line: a dataset must not come out other than
//! its manifest says. So there is no SQL here (`preprocess`), no inferred schema, and no merge strategy that needs the whole
//! history. Kinds are read in both spellings that nodes take, `NdJson` and `ndJson`.
//!
//! As on a node an instant without an offset is UTC, and a column that SQL declares without NOT NULL may be missing. But
//! where a node puts the time of its fetch for a missing event time, the message becomes a dead letter here; and a message is
//! one row, where a node would also take several lines.
//!
//! Reading order: this file, `source` (fetch, read, merge), `schema` (columns; `ddl`: those in SQL), `template`.

mod ddl;
mod schema;
mod source;
mod template;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use forebay_storage::dataset::spec::{DataType, DatasetSpec, EVENT_TIME_TOLERANCE, Envelope, Merge, SpecError};

use self::schema::Column;
use self::source::Source;
pub use self::template::Template;
use super::document::{ConfigError, Node, Origin, Section, nearest};
use super::{Subscription, yaml};

type Result<T> = std::result::Result<T, ConfigError>;

/// Largest manifest that is read, bytes: 1 MiB. A dataset of the most columns takes a tenth of it.
pub const BYTES_MAX: usize = 1 << 20;

/// The event-time column that ODF assumes when nothing is said.
const EVENT_TIME: &str = "event_time";

/// A manifest, understood.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// What the dataset is. It passed [`DatasetSpec::validate`]; it has no captures.
    pub spec: DatasetSpec,
    /// Where its messages are fetched from; none: they are pushed.
    pub mqtt: Option<MqttFetch>,
    /// What the reader should know, one sentence each: what was understood and leads to nothing, or to less.
    pub notes: Vec<String>,
}

/// Where `SetPollingSource` fetches from: a broker, by MQTT over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MqttFetch {
    /// Name or address of the broker.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// User Name and Password; none: neither.
    pub login: Option<(String, Template)>,
    /// What is subscribed to, at least one.
    pub topics: Vec<Subscription>,
}

/// Reads a manifest from its text; `file` names it in errors.
///
/// # Errors
/// The first thing that is not YAML, not a manifest, or cannot be honoured: its place, its key and what to do.
pub fn read(text: &str, file: &Path) -> Result<Manifest> {
    if text.len() > BYTES_MAX {
        let origin = Origin::File { file: Arc::from(file), line: 1, column: 1 };
        let problem = format!("has {} bytes; a manifest has {BYTES_MAX} at most", text.len());
        return Err(ConfigError { origin, key: String::new(), problem });
    }
    let mut manifest = yaml::parse(text, file)?.section()?;
    let kind = Kind::take(&mut manifest, "DatasetSnapshot")?;
    if kind.word != "DatasetSnapshot" {
        return Err(kind.unknown(&["DatasetSnapshot"]));
    }
    let version = need(&mut manifest, "version", "version: 1")?;
    if version.integer::<i64>()? != 1 {
        return Err(version.error("only version 1 of manifests is known"));
    }
    let content = need(&mut manifest, "content", "content: {name: .., kind: Root, metadata: [..]}")?;
    manifest.finish()?;
    snapshot(content.section()?)
}

fn snapshot(mut content: Section) -> Result<Manifest> {
    let name = need(&mut content, "name", "name: temperature")?;
    let kind = Kind::take(&mut content, "Root")?;
    match kind.word.as_str() {
        "Root" => {}
        "Derivative" => {
            return Err(kind.error(
                "a derivative dataset is made of others by an engine, on a node: a gateway writes root datasets only",
            ));
        }
        _ => return Err(kind.unknown(&["Root", "Derivative"])),
    }
    let metadata = need(&mut content, "metadata", "metadata: [{kind: SetPollingSource, ..}]")?;
    content.finish()?;
    let mut notes = Vec::new();
    let dataset = dataset_name(name.text()?, &mut notes);
    let events = events(metadata, &mut notes)?;
    let mqtt = events.source.mqtt.clone();
    let spec = spec(dataset, &events, &mut notes)?;
    spec.validate().map_err(|error| place(&error, &name, &events.source))?;
    Ok(Manifest { spec, mqtt, notes })
}

/// The name without its account: whose a dataset is, is said where it is delivered to.
fn dataset_name(name: &str, notes: &mut Vec<String>) -> String {
    let Some((account, name)) = name.split_once('/') else {
        return name.to_owned();
    };
    notes.push(format!(
        "the account `{account}` before the name is not used: an upstream's URL says whose datasets are"
    ));
    name.to_owned()
}

/// What the events of a manifest say, in whatever order they stand.
struct Events {
    source: Source,
    /// `SetVocab.eventTimeColumn`.
    event_time: Option<Node>,
}

fn events(metadata: Node, notes: &mut Vec<String>) -> Result<Events> {
    let no_source = metadata.error("has no source: SetPollingSource (fetch from a broker) or AddPushSource");
    let (mut source, mut vocab) = (None, None);
    for event in metadata.list()? {
        let mut event = event.section()?;
        let kind = Kind::take(&mut event, "SetPollingSource")?;
        match kind.word.as_str() {
            "SetPollingSource" | "AddPushSource" if source.is_some() => {
                return Err(kind.error("there is a source already: a dataset has exactly one, polling or push"));
            }
            "SetPollingSource" => source = Some(source::polling(event, notes)?),
            "AddPushSource" => source = Some(source::push(event, notes)?),
            "SetVocab" if vocab.is_some() => return Err(kind.error("there is a SetVocab already: one is enough")),
            "SetVocab" => vocab = Some(event_time_column(event)?),
            "SetInfo" | "SetLicense" | "SetAttachments" => {
                notes.push(format!("{} describes the dataset; it is not written into the chain", kind.word));
            }
            _ => return Err(refused_event(&kind)),
        }
    }
    let source = source.ok_or(no_source)?;
    Ok(Events { source, event_time: vocab.flatten() })
}

fn refused_event(kind: &Kind) -> ConfigError {
    const KNOWN: [&str; 6] =
        ["SetPollingSource", "AddPushSource", "SetVocab", "SetInfo", "SetLicense", "SetAttachments"];
    let word = &kind.word;
    match word.as_str() {
        "SetTransform" | "ExecuteTransform" => {
            kind.error(format!("{word} belongs to a derivative dataset, which an engine makes, on a node"))
        }
        "SetDataSchema" => kind.error("Forebay writes SetDataSchema itself, by `read.schema`: leave the event out"),
        "DisablePollingSource" | "DisablePushSource" => {
            kind.error(format!("{word} ends a source that a chain has already: leave both events out"))
        }
        "Seed" | "AddData" => kind.error(format!("{word} is an event of a chain, not of a manifest: leave it out")),
        _ => kind.unknown(&KNOWN),
    }
}

/// The columns that ODF keeps for itself can be renamed in ODF, not here.
fn event_time_column(mut vocab: Section) -> Result<Option<Node>> {
    for (key, name) in [("offsetColumn", "offset"), ("operationTypeColumn", "op"), ("systemTimeColumn", "system_time")]
    {
        if let Some(node) = vocab.take(key)
            && node.text()? != name
        {
            return Err(node.error(format!("Forebay names this column `{name}`: leave the key out")));
        }
    }
    let event_time = vocab.take("eventTimeColumn");
    vocab.finish()?;
    Ok(event_time)
}

fn spec(name: String, events: &Events, notes: &mut Vec<String>) -> Result<DatasetSpec> {
    let Source { format, columns, merge, .. } = &events.source;
    let event_time = event_time(events.event_time.as_ref(), columns)?;
    let key: &[String] = match merge {
        Merge::Ledger { primary_key } => primary_key,
        Merge::Append => &[],
    };
    let must_be_there = |name: &String| event_time.as_ref() == Some(name) || key.contains(name);
    let fields = columns.iter().map(|column| column.field(must_be_there(&column.name), notes)).collect();
    Ok(DatasetSpec {
        name,
        captures: Vec::new(),
        format: format.clone(),
        fields,
        event_time,
        event_time_tolerance: EVENT_TIME_TOLERANCE,
        merge: merge.clone(),
        envelope: Envelope::default(),
        extra: false,
    })
}

/// The column that is the event time; none: the time of receipt.
fn event_time(named: Option<&Node>, columns: &[Column]) -> Result<Option<String>> {
    let name = named.map_or(Ok(EVENT_TIME), Node::text)?;
    match (columns.iter().find(|column| column.name == name), named) {
        (Some(column), _) if matches!(column.data_type, DataType::Timestamp(_) | DataType::Date) => {
            Ok(Some(name.to_owned()))
        }
        (Some(column), _) => Err(column.error(format!(
            "`{name}` is the event time, which is a Timestamp or a Date, not {}; if it is none, name the one that is by \
             SetVocab: {{eventTimeColumn: ..}}, and this column differently",
            column.data_type
        ))),
        (None, Some(named)) if name != EVENT_TIME => Err(named.error(format!(
            "the schema has no column `{name}`; without SetVocab the event time is the time of receipt, in a column \
             `{EVENT_TIME}`"
        ))),
        (None, _) => Ok(None),
    }
}

/// What is wrong with the whole, at the part that is wrong.
fn place(error: &SpecError, name: &Node, source: &Source) -> ConfigError {
    let column = |name: &String| source.columns.iter().rfind(|column| column.name == *name);
    let at = match error {
        SpecError::Name(_) => name.error(""),
        SpecError::DuplicateColumn { name, .. } | SpecError::ColumnName(name) => {
            column(name).map_or_else(|| source.read.clone(), |column| column.error(""))
        }
        SpecError::EmptyKey
        | SpecError::RepeatedKey(_)
        | SpecError::UnknownKey(_)
        | SpecError::OptionalKey(_)
        | SpecError::JsonKey(_) => source.merging.clone(),
        _ => source.read.clone(),
    };
    let problem = match error {
        SpecError::DuplicateColumn { name, first: "a system column", .. } => format!(
            "every dataset of Forebay has a column `{name}` of its own: leave this one out of the schema (what devices \
             send by that name is counted, not kept), or name it differently there and here"
        ),
        SpecError::DuplicateColumn { name, .. } => format!("the column `{name}` is declared twice"),
        _ => error.to_string(),
    };
    ConfigError { problem, ..at }
}

/// The `kind` of a table, in the spelling of the specification.
struct Kind {
    word: String,
    node: Node,
}

impl Kind {
    /// Takes it; `example` is for who left it out.
    fn take(section: &mut Section, example: &str) -> Result<Self> {
        let node = need(section, "kind", &format!("kind: {example}"))?;
        Ok(Self { word: spelled(node.text()?), node })
    }

    fn error(&self, problem: impl std::fmt::Display) -> ConfigError {
        self.node.error(problem)
    }

    /// An error: the kind is none of these.
    fn unknown(&self, known: &[&str]) -> ConfigError {
        let word = &self.word;
        self.error(match nearest(word, known) {
            Some(near) => format!("unknown kind \"{word}\"; did you mean {near}?"),
            None => format!("unknown kind \"{word}\"; known here: {}", known.join(", ")),
        })
    }
}

/// A word of ODF as the specification spells it: nodes take it with a small first letter, too.
pub(super) fn spelled(word: &str) -> String {
    let mut letters = word.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

fn need(section: &mut Section, key: &'static str, example: &str) -> Result<Node> {
    section.take(key).ok_or_else(|| section.error(format!("needs `{key}`, such as {example}")))
}

/// Refuses a key that cannot be honoured.
fn refuse(section: &mut Section, key: &'static str, why: &str) -> Result<()> {
    section.take(key).map_or(Ok(()), |node| Err(node.error(why)))
}

/// Refuses a key unless it says what is done in any case.
fn only(section: &mut Section, key: &'static str, honoured: &[&str], why: &str) -> Result<()> {
    let Some(node) = section.take(key) else { return Ok(()) };
    let text = node.text()?;
    match honoured.first() {
        Some(_) if honoured.iter().any(|word| word.eq_ignore_ascii_case(text)) => Ok(()),
        Some(first) => Err(node.error(format!("only \"{first}\" is honoured: {why}"))),
        None => Err(node.error(format!("cannot be honoured: {why}"))),
    }
}
