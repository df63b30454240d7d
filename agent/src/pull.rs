//! What `forebay pull` does: connect to the sources, take what their brokers kept, seal, deliver, and say what came.
//!
//! A broker does not say that its queue is empty. So a source counts as drained when it has been silent for a while after
//! it answered our SUBSCRIBE, with everything that came on disk; the time of connecting never counts as silence.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::source::report::{Reception, SourceReport};
use crate::status::{DatasetStatus, Shared};
use crate::supervisor::Agent;
use crate::sync::{Sync, SyncReport};

/// How often it is looked whether the brokers are silent.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// When a pull ends.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A broker that is silent for so long has nothing more.
    pub silence: Duration,
    /// How long a source may take until it is subscribed, a lost connection included. Beyond: it is left out.
    pub connect: Duration,
    /// How long the whole may take; brokers may have something new all the time.
    pub whole: Duration,
}

/// What came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullReport {
    /// Every source was drained, everything is in its dataset and upstream.
    pub ok: bool,
    /// The sources, in the order of the configuration.
    pub sources: Vec<SourceReport>,
    /// What came by topic.
    pub topics: Vec<TopicCount>,
    /// What became of it, by dataset.
    pub datasets: Vec<DatasetCount>,
    /// Messages that were stored already: sent again by a broker that had not heard our acknowledgement, or retained.
    pub stored_already: u64,
    /// Deliveries, if there are upstreams.
    pub sync: Option<SyncReport>,
    /// What is not as it should be, a line each.
    pub problems: Vec<String>,
    /// What is worth to know.
    pub notes: Vec<String>,
}

/// Messages of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicCount {
    /// Name of the source.
    pub source: String,
    /// Topic Name; `#` for those beyond the first thousand.
    pub topic: String,
    /// Messages that came, those included that were stored already.
    pub messages: u64,
}

/// What a pull added to a dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetCount {
    /// Name of the dataset.
    pub dataset: String,
    /// Rows added.
    pub rows: u64,
    /// Rows left out because the Ledger had their key.
    pub duplicates: u64,
    /// Messages that could not become rows.
    pub dead_letters: u64,
}

/// Decides when a source has given everything. (pure)
#[derive(Debug)]
pub struct Draining {
    limits: Limits,
    began: Instant,
    /// For each source: since when it has not been subscribed.
    away_since: Vec<Option<Instant>>,
}

/// What a source is at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// There may be more.
    Receiving,
    /// The broker was silent for long enough.
    Drained,
    /// It cannot be reached, or does not let us in.
    Given,
    /// The whole took too long while it still had something.
    Cut,
}

impl Draining {
    /// Begins with sources that are not connected.
    #[must_use]
    pub fn new(limits: Limits, sources: usize, now: Instant) -> Self {
        Self { limits, began: now, away_since: vec![Some(now); sources] }
    }

    /// Where each source is.
    pub fn look(&mut self, sources: &[Reception], now: Instant) -> Vec<Stage> {
        let limits = self.limits;
        let is_over = now.saturating_duration_since(self.began) >= limits.whole;
        let stage = |(away_since, reception): (&mut Option<Instant>, &Reception)| match *reception {
            Reception::Silent(quiet) if quiet >= limits.silence => Stage::Drained,
            // However long one message takes.
            Reception::Silent(_) | Reception::Receiving => {
                *away_since = None;
                if is_over { Stage::Cut } else { Stage::Receiving }
            }
            Reception::Away { needs_help: true } => Stage::Given,
            Reception::Away { needs_help: false } => {
                let away = now.saturating_duration_since(*away_since.get_or_insert(now));
                if away >= limits.connect || is_over { Stage::Given } else { Stage::Receiving }
            }
        };
        self.away_since.iter_mut().zip(sources).map(stage).collect()
    }
}

/// Pulls with an agent that was started for it and that no device can connect to. `tell` hears of progress.
///
/// # Errors
/// A part of the agent failed.
pub async fn run(agent: &mut Agent, limits: Limits, mut tell: impl FnMut(&Shared)) -> Result<PullReport> {
    let before = Counts::of(agent.shared())?;
    let stages = drain(agent, limits, &mut tell).await?;
    // As long as a connection lives its problem is known; then it is gone.
    let sources: Vec<SourceReport> = agent.shared().sources.iter().map(|source| source.report()).collect();
    agent.leave_sources().await?;
    let shared = Arc::clone(agent.shared());
    let synced = tokio::select! {
        synced = Sync::run(&shared, |_| tell(&shared)) => synced?,
        error = agent.failed() => return Err(error),
    };
    let mut report = PullReport { topics: topics(&sources), ..PullReport::default() };
    for (source, stage) in sources.iter().zip(stages) {
        let name = &source.name;
        if source.sessions_lost > 0 {
            report
                .notes
                .push(format!("source {name}: the broker had lost our session, and what it had queued with it"));
        }
        match (&source.problem, stage) {
            (Some(problem), _) => report.problems.push(format!("source {name}: {problem}")),
            (None, Stage::Given) => report.problems.push(format!("source {name}: no answer from {}", source.url)),
            (None, Stage::Cut) => {
                report.notes.push(format!("source {name}: still had messages when the time was over"));
            }
            (None, Stage::Drained | Stage::Receiving) => {}
        }
    }
    drop(shared);
    report.problems.extend(synced.problems.iter().cloned());
    let after = Counts::of(agent.shared())?;
    report.stored_already = after.repeated - before.repeated;
    let unrouted = after.unrouted.saturating_sub(before.unrouted);
    if unrouted > 0 {
        report
            .notes
            .push(format!("{unrouted} messages are on topics that no dataset takes: see `forebay dead-letters list`"));
    }
    report.datasets = after.since(&before);
    report.ok = report.problems.is_empty() && synced.ok;
    report.sync = (!synced.upstreams.is_empty()).then_some(synced);
    report.sources = sources;
    Ok(report)
}

async fn drain(agent: &mut Agent, limits: Limits, tell: &mut impl FnMut(&Shared)) -> Result<Vec<Stage>> {
    let mut draining = Draining::new(limits, agent.shared().sources.len(), clock::now());
    loop {
        let now = clock::now();
        let sources = &agent.shared().sources;
        let receptions: Vec<Reception> = sources.iter().map(|source| source.reception(now)).collect();
        let stages = draining.look(&receptions, now);
        if !stages.contains(&Stage::Receiving) {
            return Ok(stages);
        }
        tell(agent.shared());
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            error = agent.failed() => return Err(error),
        }
    }
}

fn topics(sources: &[SourceReport]) -> Vec<TopicCount> {
    let of = |source: &SourceReport| {
        let name = source.name.clone();
        let count = move |(topic, messages): (&String, &u64)| TopicCount {
            source: name.clone(),
            topic: topic.clone(),
            messages: *messages,
        };
        source.topics.iter().map(count).collect::<Vec<_>>()
    };
    sources.iter().flat_map(of).collect()
}

/// Totals by dataset at one moment.
struct Counts {
    datasets: BTreeMap<String, DatasetCount>,
    /// Messages that were not stored again.
    repeated: u64,
    /// Dead letters of topics without a dataset.
    unrouted: u64,
}

impl Counts {
    fn of(shared: &Shared) -> Result<Self> {
        let status = shared.status()?;
        let count = |dataset: DatasetStatus| {
            let DatasetStatus { name, chain, duplicates, dead_letters, .. } = dataset;
            (name.clone(), DatasetCount { dataset: name, rows: chain.rows, duplicates, dead_letters })
        };
        let spool = shared.spool.counters();
        Ok(Self {
            unrouted: status.dead_letters_without_dataset,
            datasets: status.datasets.into_iter().map(count).collect(),
            repeated: spool.duplicates_qos1 + spool.duplicates_qos2 + spool.duplicates_retained,
        })
    }

    fn since(self, before: &Self) -> Vec<DatasetCount> {
        let none = DatasetCount::default();
        let since = |now: DatasetCount| {
            let before = before.datasets.get(&now.dataset).unwrap_or(&none);
            DatasetCount {
                rows: now.rows.saturating_sub(before.rows),
                duplicates: now.duplicates.saturating_sub(before.duplicates),
                dead_letters: now.dead_letters.saturating_sub(before.dead_letters),
                dataset: now.dataset,
            }
        };
        self.datasets.into_values().map(since).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LIMITS: Limits =
        Limits { silence: Duration::from_secs(2), connect: Duration::from_secs(30), whole: Duration::from_secs(600) };

    #[test]
    fn a_source_is_drained_when_it_was_silent_for_long_enough() {
        let (mut draining, start) = draining(LIMITS);

        assert_eq!(draining.look(&[quiet(0)], start + SECOND), [Stage::Receiving]);
        assert_eq!(draining.look(&[quiet(1)], start + SECOND * 60), [Stage::Receiving]);
        assert_eq!(draining.look(&[quiet(2)], start + SECOND * 61), [Stage::Drained]);
    }

    #[test]
    fn connecting_is_not_silence_and_ends_after_its_own_time() {
        let (mut draining, start) = draining(LIMITS);

        assert_eq!(draining.look(&[AWAY], start + SECOND * 29), [Stage::Receiving]);
        assert_eq!(draining.look(&[AWAY], start + SECOND * 30), [Stage::Given]);
    }

    #[test]
    fn a_lost_connection_gets_the_time_of_connecting_anew() {
        let (mut draining, start) = draining(LIMITS);
        draining.look(&[quiet(0)], start + SECOND * 25);

        assert_eq!(draining.look(&[AWAY], start + SECOND * 40), [Stage::Receiving]);
        assert_eq!(draining.look(&[AWAY], start + SECOND * 69), [Stage::Receiving]);
        assert_eq!(draining.look(&[AWAY], start + SECOND * 70), [Stage::Given]);
    }

    #[test]
    fn a_wrong_password_is_not_waited_for() {
        let (mut draining, start) = draining(LIMITS);

        assert_eq!(draining.look(&[Reception::Away { needs_help: true }], start), [Stage::Given]);
    }

    #[test]
    fn a_message_that_takes_longer_than_a_connection_may_is_waited_for() {
        let (mut draining, start) = draining(LIMITS);

        for second in [1, 31, 599] {
            assert_eq!(draining.look(&[Reception::Receiving], start + SECOND * second), [Stage::Receiving], "{second}");
        }
        assert_eq!(draining.look(&[Reception::Receiving], start + SECOND * 600), [Stage::Cut]);
    }

    #[test]
    fn a_broker_that_never_falls_silent_is_left_when_the_time_is_over() {
        let (mut draining, start) = draining(LIMITS);

        assert_eq!(draining.look(&[quiet(0)], start + SECOND * 599), [Stage::Receiving]);
        assert_eq!(draining.look(&[quiet(0)], start + SECOND * 600), [Stage::Cut]);
    }

    const AWAY: Reception = Reception::Away { needs_help: false };

    fn quiet(secs: u64) -> Reception {
        Reception::Silent(Duration::from_secs(secs))
    }

    fn draining(limits: Limits) -> (Draining, Instant) {
        let now = clock::now();
        (Draining::new(limits, 1, now), now)
    }
}
