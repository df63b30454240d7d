//! What a broker may still believe that we want: the filters that we subscribed to, kept in `sources/NAME.json`.
//!
//! A session outlives our configuration. A filter that is taken out of the file would bring messages for ever, unless the
//! broker is told; so the file is written before we subscribe, and again, without what is no longer wanted, once the broker
//! has answered.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use forebay_storage::durable_fs::{self, DurableFs};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::config::Source;

/// Bytes of the file that are read at the most; a thousand filters of the longest kind.
const BYTES_MAX: u64 = 128 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    /// Where, and as whom: another broker or another identifier is another session.
    broker: String,
    client_id: String,
    filters: BTreeSet<String>,
}

/// The memory of one source.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    fs: DurableFs,
    wanted: Remembered,
    known: Remembered,
    /// What was remembered is of another broker, or of another Client Identifier.
    is_elsewhere: bool,
}

impl Memory {
    /// Reads it. One that cannot be read is as good as none: at worst messages come that nobody wants any more.
    pub(super) fn open(dir: &Path, fs: &DurableFs, source: &Source) -> Self {
        let path = dir.join(format!("{}.json", source.name));
        let wanted = Remembered {
            broker: source.url.authority(),
            client_id: source.client_id.clone(),
            filters: source.topics.iter().map(|topic| topic.filter.clone()).collect(),
        };
        let read = durable_fs::read_bounded(&path, BYTES_MAX).ok();
        let known: Remembered = read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let is_same = known.broker == wanted.broker && known.client_id == wanted.client_id;
        let is_elsewhere = !is_same && !known.client_id.is_empty();
        let known = if is_same { known } else { Remembered { filters: BTreeSet::new(), ..wanted.clone() } };
        Self { path, fs: fs.clone(), wanted, known, is_elsewhere }
    }

    /// Filters that the broker must be told to forget.
    pub(super) fn stale(&self) -> Vec<String> {
        self.known.filters.difference(&self.wanted.filters).cloned().collect()
    }

    /// The spool may hold identifiers of another session than this broker's.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.is_elsewhere
    }

    /// This broker has answered a SUBSCRIBE of ours, or may have.
    pub(super) fn was_subscribed(&self) -> bool {
        !self.known.filters.is_empty()
    }

    /// Before the SUBSCRIBE.
    pub(super) fn will_subscribe(&mut self) {
        if self.is_elsewhere {
            // Not before what is of the other session is forgotten: a crash in between must find that it is due.
            return;
        }
        let filters = self.known.filters.union(&self.wanted.filters).cloned().collect();
        self.write(filters);
    }

    /// After the SUBACK.
    pub(super) fn subscribed(&mut self) {
        self.is_elsewhere = false;
        self.write(self.wanted.filters.clone());
    }

    fn write(&mut self, filters: BTreeSet<String>) {
        if filters == self.known.filters {
            return;
        }
        let next = Remembered { filters, ..self.known.clone() };
        let written = serde_json::to_vec(&next).map_err(std::io::Error::from).and_then(|bytes| {
            if let Some(dir) = self.path.parent() {
                self.fs.create_dir_all(dir)?;
            }
            self.fs.replace(&self.path, &bytes)
        });
        match written {
            Ok(()) => self.known = next,
            Err(error) => warn!(%error, "The filters of a source cannot be remembered."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_filter_that_is_no_longer_configured_is_forgotten_once_the_broker_has_answered() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = open(dir.path(), "\"a\", \"b\"");
        assert!(first.stale().is_empty());
        first.will_subscribe();
        first.subscribed();

        let mut second = open(dir.path(), "\"b\", \"c\"");
        assert_eq!(second.stale(), ["a"]);
        second.will_subscribe();
        assert_eq!(open(dir.path(), "\"b\", \"c\"").stale(), ["a"], "the broker may not have heard it");
        second.subscribed();

        assert!(open(dir.path(), "\"b\", \"c\"").stale().is_empty());
        assert_eq!(open(dir.path(), "\"d\"").stale(), ["b", "c"]);
    }

    #[test]
    fn another_broker_under_the_same_name_is_noticed_until_it_has_answered() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = open(dir.path(), "\"a\"");
        assert!(!first.is_elsewhere() && !first.was_subscribed());
        first.will_subscribe();
        first.subscribed();
        assert!(open(dir.path(), "\"a\"").was_subscribed());

        let mut elsewhere = open_at(dir.path(), "office", "\"a\"");
        assert!(elsewhere.is_elsewhere() && !elsewhere.was_subscribed());
        elsewhere.will_subscribe();
        assert!(open_at(dir.path(), "office", "\"a\"").is_elsewhere());
        elsewhere.subscribed();

        assert!(!open_at(dir.path(), "office", "\"a\"").is_elsewhere());
    }

    fn open(dir: &Path, topics: &str) -> Memory {
        open_at(dir, "plant", topics)
    }

    fn open_at(dir: &Path, host: &str, topics: &str) -> Memory {
        let text =
            format!("gateway = \"gw\"\n[[source]]\nname = \"s\"\nurl = \"mqtt://{host}\"\ntopics = [{topics}]\n");
        let config = Config::parse(&text, Path::new("t")).unwrap();
        Memory::open(dir, &DurableFs::new(), &config.sources[0])
    }
}
