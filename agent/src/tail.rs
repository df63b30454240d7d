//! The newest messages of the spool, and those that come.
//!
//! What is sealed leaves the spool a little later than it is sealed, so the last few megabytes are there in any case.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use chrono::{DateTime, SecondsFormat};
use forebay_broker::topic::TopicPattern;
use forebay_storage::message::Message;
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::spool::Spool;
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// How far back a filter is searched for, messages.
const SEARCHED_MAX: u64 = 100_000;
/// Messages read at a time.
const READ_MESSAGES: usize = 1_024;
/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;

/// What to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailRequest {
    /// The name of a dataset, or a topic filter; none: everything.
    pub filter: Option<String>,
    /// How many of the newest.
    pub lines: usize,
    /// Go on with those that come.
    pub follow: bool,
}

/// One message as it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailLine {
    /// Position in the spool.
    pub seq: u64,
    /// RFC 3339, UTC.
    pub received_at: String,
    /// Dataset; none: no dataset takes the topic.
    pub dataset: Option<String>,
    /// Topic Name.
    pub topic: String,
    /// Client Identifier.
    pub client_id: String,
    /// The source that it came from, if any.
    #[serde(default)]
    pub source: Option<String>,
    /// 0, 1 or 2.
    pub qos: u8,
    /// RETAIN flag.
    pub retain: bool,
    /// Bytes of the payload.
    pub bytes: usize,
    /// The payload, if it is text.
    pub text: Option<String>,
    /// The payload in hexadecimal, if it is not.
    pub hex: Option<String>,
}

/// A place in the log.
#[derive(Debug)]
pub struct Tail {
    spool: Spool,
    names: BTreeMap<DatasetId, String>,
    filter: Filter,
    next: Seq,
}

#[derive(Debug)]
enum Filter {
    Everything,
    Dataset(DatasetId),
    Topics(TopicPattern),
}

impl Tail {
    /// Finds where the newest `lines` messages begin.
    pub fn start(config: &Config, spool: &Spool, request: &TailRequest) -> Result<Self> {
        let ids: BTreeMap<String, DatasetId> = spool.datasets()?.into_iter().collect();
        let filter = match &request.filter {
            None => Filter::Everything,
            Some(text) => match ids.get(text) {
                Some(id) => Filter::Dataset(*id),
                None => Filter::Topics(parse_filter(config, text)?),
            },
        };
        let names = ids.into_iter().map(|(name, id)| (id, name)).collect();
        let mut tail = Self { spool: spool.clone(), names, filter, next: Seq(0) };
        tail.next = tail.first_of(request.lines)?;
        Ok(tail)
    }

    /// The messages that follow, at most so many as are read at a time.
    pub fn read(&mut self) -> Result<Vec<TailLine>> {
        let dataset = match &self.filter {
            Filter::Dataset(id) => Some(*id),
            _ => None,
        };
        let read = self.spool.read(self.next, dataset, READ_MESSAGES, READ_BYTES)?;
        self.next = read.next;
        let wanted = read.messages.into_iter().filter(|(_, message)| self.filter.takes(message));
        Ok(wanted.map(|(seq, message)| self.line(seq, &message)).collect())
    }

    /// Whether there is more to read now.
    pub fn is_behind(&self) -> bool {
        self.next < self.spool.log_end()
    }

    fn first_of(&mut self, lines: usize) -> Result<Seq> {
        let log_end = self.spool.log_end();
        if lines == 0 {
            return Ok(log_end);
        }
        self.next = self.spool.log_start()?.max(Seq(log_end.0.saturating_sub(SEARCHED_MAX)));
        let mut found = std::collections::VecDeque::new();
        while self.next < log_end {
            for line in self.read()? {
                found.push_back(Seq(line.seq));
                if found.len() > lines {
                    found.pop_front();
                }
            }
        }
        Ok(found.front().copied().unwrap_or(log_end))
    }

    fn line(&self, seq: Seq, message: &Message) -> TailLine {
        let received_at = DateTime::from_timestamp_micros(message.received_at_us).unwrap_or_default();
        let text = std::str::from_utf8(&message.payload).ok().map(str::to_owned);
        let hex = text.is_none().then(|| message.payload.iter().map(|byte| format!("{byte:02x}")).collect());
        TailLine {
            seq: seq.0,
            received_at: received_at.to_rfc3339_opts(SecondsFormat::Millis, true),
            dataset: self.names.get(&message.dataset).cloned(),
            topic: String::from_utf8_lossy(&message.topic).into_owned(),
            client_id: message.publisher().name().to_owned(),
            source: message.publisher().source().map(str::to_owned),
            qos: message.flags.qos,
            retain: message.flags.retain,
            bytes: message.payload.len(),
            text,
            hex,
        }
    }
}

impl Filter {
    fn takes(&self, message: &Message) -> bool {
        match self {
            Self::Everything => true,
            Self::Dataset(id) => message.dataset == *id,
            Self::Topics(pattern) => std::str::from_utf8(&message.topic).is_ok_and(|topic| pattern.matches(topic)),
        }
    }
}

fn parse_filter(config: &Config, text: &str) -> Result<TopicPattern> {
    TopicPattern::parse(text).with_context(|| {
        let names: Vec<&str> = config.datasets.iter().map(|dataset| dataset.spec.name.as_str()).collect();
        format!("{text:?} is neither a dataset ({}) nor a topic filter", names.join(", "))
    })
}
