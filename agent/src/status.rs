//! What the agent knows of itself: gathered from its parts, or, when no agent runs, from the data directory alone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Result;
use forebay_broker::Broker;
use forebay_broker::inbound::Ticket;
use forebay_storage::odf::{ChainFiles, Repository};
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::spool::{Request, Spool};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::WeakSender;
use tokio::sync::{mpsc, oneshot};

use crate::clock::{self, Clock};
use crate::config::Config;
use crate::ingest::Counters;
use crate::reload::ReloadReport;
use crate::sealing::{Chain, Sealing};
use crate::source::report::{Progress as SourceProgress, SourceReport};
use crate::store::{Store, datasets_dir};
use crate::upstream::backlog::Backlog;
use crate::upstream::bell::Bell;
use crate::upstream::report::DeliveryReport;
use crate::upstream::retention::Retention;

/// Rates are averages over this time.
const RATE_OVER: Duration = Duration::from_secs(10);
/// The spool must have grown for so long before it is said when it will be full.
const GROWTH_OVER: Duration = Duration::from_secs(60);
/// Chunk headers that are looked at, at the most, to find the oldest message that is not sealed.
const CHUNKS_LOOKED_AT: usize = 4_096;
/// Prefix of the counters of unknown fields that sealing keeps.
const UNKNOWN_FIELD: &str = "unknown_field:";

/// The configuration that is in force and the parts that serve it. A reload replaces it whole: who looks at it sees one
/// configuration, and has its own as long as it holds it.
#[derive(Debug)]
pub struct Running {
    /// The configuration.
    pub config: Config,
    /// Names of its datasets, in its order, and their ids in the spool.
    pub datasets: Vec<(String, DatasetId)>,
    /// What waits for the upstreams, and what is known of them.
    pub backlog: Arc<Backlog>,
    /// Wakes the deliveries.
    pub bell: Arc<Bell>,
    /// Lets slices go that every upstream has.
    pub retention: Arc<Retention>,
}

/// Asks for the configuration to be read again; who asks hears what came of it.
pub type Reloads = mpsc::Sender<oneshot::Sender<ReloadReport>>;

/// The parts of a running agent that answer questions.
#[derive(Debug)]
pub struct Shared {
    /// What a reload replaces.
    pub running: RwLock<Arc<Running>>,
    /// Who reads the configuration again when asked to; none: nobody does.
    pub reloads: Option<Reloads>,
    /// How the last reload went; none: there was none.
    pub reloaded: Mutex<Option<ReloadReport>>,
    /// The spool.
    pub spool: Spool,
    /// The spool's writer, for what does not come from the broker. It does not keep the writer from ending.
    pub writer: WeakSender<Request<Ticket>>,
    /// The broker.
    pub broker: Broker,
    /// The sources, in the order of the configuration.
    pub sources: Vec<Arc<SourceProgress>>,
    /// Ingest's counters.
    pub counters: Arc<Counters>,
    /// Whether the wall clock is right.
    pub clock: Arc<Clock>,
    /// The sealer.
    pub sealing: Arc<Sealing>,
    /// Samples over time.
    pub rates: Rates,
    /// When the agent started.
    pub started: Instant,
    /// Where it listens, once it does.
    pub bound: OnceLock<Vec<String>>,
}

/// Samples of the last minute, one a second.
#[derive(Debug, Default)]
pub struct Rates {
    samples: Mutex<VecDeque<Sample>>,
}

/// Totals at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    stored: u64,
    spool_bytes: u64,
}

/// Everything that `forebay status` says. Its JSON form is stable: fields are added, never changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Name of the gateway.
    pub gateway: String,
    /// Whether an agent runs; if not, what only it knows is absent.
    pub running: bool,
    /// Seconds since the agent started.
    pub uptime_secs: Option<u64>,
    /// Whether the wall clock is believed to be right.
    pub clock_synchronised: Option<bool>,
    /// Addresses that devices connect to.
    pub listeners: Vec<String>,
    /// How the last reload of the configuration went; none: there was none since the agent started.
    #[serde(default)]
    pub reload: Option<ReloadReport>,
    /// Brokers that we subscribe to, in the order of the configuration.
    #[serde(default)]
    pub sources: Vec<SourceReport>,
    /// The broker's counters, by name.
    pub broker: BTreeMap<String, u64>,
    /// Messages refused or dropped since the agent started, by reason; those that are zero are left out.
    pub refused: BTreeMap<String, u64>,
    /// The spool.
    pub spool: SpoolStatus,
    /// Datasets by name.
    pub datasets: Vec<DatasetStatus>,
    /// Upstreams in the order of the configuration.
    pub upstreams: Vec<DeliveryReport>,
    /// Dead letters of topics that no dataset takes.
    pub dead_letters_without_dataset: u64,
    /// Why the last batch could not be sealed, while that is so.
    pub sealing_error: Option<String>,
}

/// The spool of a [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpoolStatus {
    /// The next `seq`.
    pub log_end: u64,
    /// Bytes of messages.
    pub bytes: u64,
    /// Bytes of sealed slices that the upstream furthest behind does not have yet.
    pub undelivered_bytes: u64,
    /// Bytes allowed, of both together.
    pub max_bytes: u64,
    /// Free bytes of the disk.
    pub disk_free_bytes: Option<u64>,
    /// The last commit met a full disk.
    pub disk_full: bool,
    /// Messages that wait to be sealed.
    pub waiting: u64,
    /// Seconds since the oldest of them was received.
    pub oldest_waiting_secs: Option<u64>,
    /// Messages stored a second, over the last ten seconds.
    pub stored_per_sec: Option<f64>,
    /// Seconds until the spool is full, if it goes on growing as it did over the last minute.
    pub full_in_secs: Option<u64>,
    /// Recorded gaps: messages that were dropped or damaged.
    pub gaps: u64,
}

/// One dataset of a [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetStatus {
    /// Its name.
    pub name: String,
    /// Rows, slices, head.
    pub chain: Chain,
    /// Messages that wait to be sealed.
    pub waiting: u64,
    /// Seconds since the oldest of them was received.
    pub oldest_waiting_secs: Option<u64>,
    /// Messages that could not become rows.
    pub dead_letters: u64,
    /// Rows left out because the Ledger had their key.
    pub duplicates: u64,
    /// Fields that its schema does not have, and how often they came.
    pub unknown_fields: BTreeMap<String, u64>,
}

/// Messages of one dataset that are not sealed.
#[derive(Clone, Copy, Debug, Default)]
struct Waiting {
    messages: u64,
    oldest_us: Option<i64>,
}

impl Shared {
    /// The configuration that is in force, and the parts that serve it.
    pub fn running(&self) -> Arc<Running> {
        Arc::clone(&self.running.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another configuration in force.
    pub fn set_running(&self, running: Arc<Running>) {
        *self.running.write().unwrap_or_else(PoisonError::into_inner) = running;
    }

    /// Takes note of how a reload went.
    pub fn note_reload(&self, report: ReloadReport) {
        *self.reloaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }

    /// How the last reload went.
    pub fn last_reload(&self) -> Option<ReloadReport> {
        self.reloaded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a sample of what rates are made of.
    pub fn sample(&self, at: Instant) {
        let usage = self.spool.usage();
        let spool_bytes = usage.live_bytes + usage.external_bytes;
        self.rates.push(Sample { at, stored: self.spool.counters().messages_stored, spool_bytes });
    }

    /// Takes account of positions that something else than a delivery has moved, and wakes the deliveries.
    pub fn reread_positions(&self) -> Result<()> {
        let running = self.running();
        let chains = chains(&running.config, &self.spool)?;
        running.backlog.reread(chains.into_iter(), &running.config.upstreams)?;
        running.bell.ring();
        Ok(())
    }

    /// Everything that is known.
    pub fn status(&self) -> Result<Status> {
        let now = clock::now();
        let running = self.running();
        let mut status = of_spool(&running.config, &self.spool, &self.sealing.chains())?;
        let broker = self.broker.stats();
        status.running = true;
        status.uptime_secs = Some(now.duration_since(self.started).as_secs());
        status.clock_synchronised = Some(self.clock.is_synchronised());
        status.listeners = self.bound.get().cloned().unwrap_or_default();
        status.reload = self.last_reload();
        status.sources = self.sources.iter().map(|source| source.report()).collect();
        status.broker = broker.counters().map(|(name, count)| (name.to_owned(), count)).collect();
        status.broker.insert("connections_open".to_owned(), broker.connections_open);
        status.broker.insert("connections_half_open".to_owned(), broker.connections_half_open);
        status.broker.insert("sessions_away".to_owned(), broker.sessions_away);
        status.refused = self.refused(&status.broker);
        status.spool.stored_per_sec = self.rates.stored_per_sec();
        let used = status.spool.bytes + status.spool.undelivered_bytes;
        status.spool.full_in_secs = self.rates.full_in_secs(used, status.spool.max_bytes);
        status.upstreams = running.backlog.upstreams().iter().map(|progress| progress.report()).collect();
        status.sealing_error = self.sealing.last_error();
        Ok(status)
    }

    fn refused(&self, broker: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let totals = self.counters.totals();
        let spool = self.spool.counters();
        let of_broker = broker
            .iter()
            .filter(|(name, _)| {
                ["refused", "failed", "malformed", "violations", "timeouts", "half_open_dropped"]
                    .iter()
                    .any(|word| name.contains(word))
            })
            .map(|(name, count)| (name.clone(), *count));
        let ours = [
            ("no_dataset", totals.no_dataset_refused),
            ("not_authorized", totals.not_authorized_refused),
            ("unavailable", totals.unavailable),
            ("spool_full", spool.refused_full),
            ("packet_ids_full", spool.packet_ids_refused),
            ("message_too_large", spool.messages_too_large),
            ("dropped_oldest", spool.messages_dropped),
            ("dead_letters_dropped", spool.dead_letters_dropped),
            ("last_values_forgotten", spool.retained_forgotten + spool.retained_not_kept),
        ];
        let ours = ours.into_iter().map(|(name, count)| (name.to_owned(), count));
        of_broker.chain(ours).filter(|(_, count)| *count > 0).collect()
    }
}

impl Rates {
    fn push(&self, sample: Sample) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.push_back(sample);
        while samples.len() > 1 && sample.at.duration_since(samples[0].at) > GROWTH_OVER + Duration::from_secs(1) {
            samples.pop_front();
        }
    }

    fn span(&self, over: Duration) -> Option<(Sample, Sample)> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let last = *samples.back()?;
        let first = samples.iter().rev().find(|first| last.at.duration_since(first.at) >= over);
        Some((*first?, last))
    }

    /// Unknown in the first ten seconds.
    fn stored_per_sec(&self) -> Option<f64> {
        let (first, last) = self.span(RATE_OVER)?;
        let secs = last.at.duration_since(first.at).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate is shown with one decimal")]
        let stored = last.stored.saturating_sub(first.stored) as f64;
        Some((stored / secs * 10.0).round() / 10.0)
    }

    /// Only said when the spool grew over a whole minute; a batch that is sealed now and then makes it shrink.
    fn full_in_secs(&self, bytes: u64, max_bytes: u64) -> Option<u64> {
        let (first, last) = self.span(GROWTH_OVER)?;
        let grown = last.spool_bytes.checked_sub(first.spool_bytes).filter(|grown| *grown > 0)?;
        let secs = last.at.duration_since(first.at).as_secs();
        Some(max_bytes.saturating_sub(bytes).saturating_mul(secs) / grown)
    }
}

/// Name, id and chain of each configured dataset that the spool knows.
fn chains<'a>(config: &'a Config, spool: &Spool) -> Result<Vec<(&'a str, DatasetId, ChainFiles)>> {
    let ids: BTreeMap<String, DatasetId> = spool.datasets()?.into_iter().collect();
    let root = datasets_dir(&config.data_dir);
    let names = config.datasets.iter().map(|dataset| dataset.spec.name.as_str());
    Ok(names.filter_map(|name| Some((name, *ids.get(name)?, ChainFiles::new(&root.join(name))))).collect())
}

/// What a data directory says while no agent runs.
pub fn of_store(config: &Config, store: &Store) -> Result<Status> {
    let waiting = Backlog::of_chains(&store.spool, chains(config, &store.spool)?.into_iter(), &config.upstreams);
    let mut chains = BTreeMap::new();
    for dataset in &config.datasets {
        let name = &dataset.spec.name;
        let dir = datasets_dir(&config.data_dir).join(name);
        let Ok(repository) = Repository::open(&dir, store.fs.clone()) else { continue };
        let sealed = store.spool.sealed(store.spool.dataset_id(name)?)?;
        let chain = Chain::of(repository.state(), sealed);
        chains.insert(name.clone(), chain);
    }
    let mut status = of_spool(config, &store.spool, &chains)?;
    // A chain that cannot be read is what `verify` is for.
    if let Ok(waiting) = waiting {
        status.upstreams = waiting.upstreams().iter().map(|progress| progress.report()).collect();
    }
    Ok(status)
}

fn of_spool(config: &Config, spool: &Spool, chains: &BTreeMap<String, Chain>) -> Result<Status> {
    let now_us = clock::micros(clock::wall());
    let ids: BTreeMap<String, DatasetId> = spool.datasets()?.into_iter().collect();
    let dead_letters: BTreeMap<DatasetId, u64> = spool.dead_letter_counts()?.into_iter().collect();
    let waiting = waiting(spool, ids.values().copied())?;
    let usage = spool.usage();
    let age_secs = |us: i64| u64::try_from(now_us.saturating_sub(us) / 1_000_000).unwrap_or(0);
    let mut datasets = Vec::new();
    for dataset in &config.datasets {
        let name = dataset.spec.name.clone();
        let id = ids.get(&name).copied().unwrap_or_default();
        let waits = waiting.get(&id).copied().unwrap_or_default();
        let counters = spool.seal_counters(id)?;
        datasets.push(DatasetStatus {
            chain: chains.get(&name).cloned().unwrap_or_default(),
            waiting: waits.messages,
            oldest_waiting_secs: waits.oldest_us.map(age_secs),
            dead_letters: dead_letters.get(&id).copied().unwrap_or(0),
            duplicates: counters.get("duplicates").copied().unwrap_or(0),
            unknown_fields: unknown_fields(&counters),
            name,
        });
    }
    let known: u64 = ids.values().filter_map(|id| dead_letters.get(id)).sum();
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        gateway: config.gateway.clone(),
        spool: SpoolStatus {
            log_end: spool.log_end().0,
            bytes: usage.live_bytes,
            undelivered_bytes: usage.external_bytes,
            max_bytes: usage.max_bytes,
            disk_free_bytes: usage.free_bytes,
            disk_full: usage.disk_full,
            waiting: waiting.values().map(|waits| waits.messages).sum(),
            oldest_waiting_secs: waiting.values().filter_map(|waits| waits.oldest_us).min().map(age_secs),
            gaps: spool.gaps()?.len() as u64,
            ..SpoolStatus::default()
        },
        datasets,
        dead_letters_without_dataset: dead_letters.values().sum::<u64>() - known,
        ..Status::default()
    })
}

fn unknown_fields(counters: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    counters.iter().filter_map(|(name, count)| Some((name.strip_prefix(UNKNOWN_FIELD)?.to_owned(), *count))).collect()
}

/// What waits to be sealed, by chunk headers alone: the chunk at a dataset's sealed position counts as a whole.
fn waiting(spool: &Spool, ids: impl Iterator<Item = DatasetId>) -> Result<BTreeMap<DatasetId, Waiting>> {
    let mut sealed = BTreeMap::new();
    for id in ids {
        sealed.insert(id, spool.sealed(id)?);
    }
    let mut waiting: BTreeMap<DatasetId, Waiting> = BTreeMap::new();
    let mut from = sealed.values().min().copied().unwrap_or(Seq(0));
    loop {
        let chunks = spool.chunks(from, CHUNKS_LOOKED_AT)?;
        let Some(last) = chunks.last() else { return Ok(waiting) };
        from = last.end;
        for chunk in &chunks {
            for (id, messages, _) in &chunk.datasets {
                if sealed.get(id).is_some_and(|sealed| *sealed < chunk.end) {
                    let waits = waiting.entry(*id).or_default();
                    waits.messages += u64::from(*messages);
                    let oldest = waits.oldest_us.unwrap_or(chunk.oldest_received_us);
                    waits.oldest_us = Some(oldest.min(chunk.oldest_received_us));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(samples: &[(u64, u64, u64)]) -> Rates {
        let start = clock::now();
        let rates = Rates::default();
        for (secs, stored, spool_bytes) in samples {
            let at = start + Duration::from_secs(*secs);
            rates.push(Sample { at, stored: *stored, spool_bytes: *spool_bytes });
        }
        rates
    }

    #[test]
    fn the_rate_is_the_average_of_the_last_ten_seconds() {
        assert_eq!(rates(&[(0, 0, 0), (5, 50, 0)]).stored_per_sec(), None);
        assert_eq!(rates(&[(0, 0, 0), (10, 1_000, 0), (20, 1_500, 0)]).stored_per_sec(), Some(50.0));
    }

    #[test]
    fn when_the_spool_is_full_is_only_said_after_a_minute_of_growth() {
        let grown = rates(&[(0, 0, 1_000), (60, 0, 7_000)]);

        assert_eq!(grown.full_in_secs(7_000, 17_000), Some(100));
        assert_eq!(rates(&[(0, 0, 1_000), (59, 0, 7_000)]).full_in_secs(7_000, 17_000), None);
        assert_eq!(rates(&[(0, 0, 7_000), (60, 0, 7_000)]).full_in_secs(7_000, 17_000), None);
    }
}
