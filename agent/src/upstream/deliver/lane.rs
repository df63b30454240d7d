//! One dataset on its way to one upstream: what is known of it there, and whether it rests.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use forebay_storage::odf::{ChainFiles, Multihash};
use forebay_storage::position::DatasetId;
use tracing::{debug, error, info, warn};

use super::{RETRY_FIRST, Runner, URGE_DATASET_FAILURES_MAX};
use crate::clock;
use crate::upstream::backoff::Backoff;
use crate::upstream::outcome::{Failure, FailureKind};
use crate::upstream::report::Problem;

/// Waits of a dataset whose failure nobody can explain.
const UNKNOWN_MAX: Duration = Duration::from_secs(60);
/// Waits of a dataset that only a person can put right.
const QUARANTINE_FIRST: Duration = Duration::from_secs(30);
const QUARANTINE_MAX: Duration = Duration::from_secs(600);

/// One dataset on its way to one upstream.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) name: String,
    pub(super) id: DatasetId,
    pub(super) files: ChainFiles,
    /// The head that is known to be there.
    pub(super) known: Option<Multihash>,
    /// With `live_first`: blocks whose slices were sent before older ones. After a restart they are sent again, which a
    /// Ledger does not notice.
    pub(super) ahead: BTreeSet<Multihash>,
    pub(super) head_moves: u32,
    pub(super) backoff: Backoff,
    pub(super) rests_until: Option<Instant>,
    /// Failures since the last urge began.
    pub(super) failures: u32,
    /// What the log was told a person has to put right. A connection that breaks in between does not make it news.
    told: Option<String>,
}

impl Lane {
    pub(super) fn new(name: &str, id: DatasetId, datasets_dir: &Path) -> Self {
        Self {
            name: name.to_owned(),
            id,
            files: ChainFiles::new(&datasets_dir.join(name)),
            known: None,
            ahead: BTreeSet::new(),
            head_moves: 0,
            backoff: Backoff::new(RETRY_FIRST, UNKNOWN_MAX),
            rests_until: None,
            failures: 0,
            told: None,
        }
    }

    pub(super) fn rest(&mut self, kind: FailureKind, now: Instant) {
        let (first, max, failures) = match kind {
            FailureKind::Unknown => (RETRY_FIRST, UNKNOWN_MAX, 1),
            // Another try right away would end the same.
            _ => (QUARANTINE_FIRST, QUARANTINE_MAX, URGE_DATASET_FAILURES_MAX),
        };
        self.failures += failures;
        self.backoff.set_bounds(first, max);
        self.rests_until = Some(now + self.backoff.handle_failure(fastrand::f64()));
    }

    pub(super) fn wake(&mut self) {
        self.rests_until = None;
        self.failures = 0;
    }
}

impl Runner {
    pub(super) fn handle_lane_success(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        lane.backoff.handle_success();
        lane.wake();
        lane.told = None;
        if self.delivery.progress.lock().problems.remove(&lane.name).is_some() {
            info!(upstream = self.delivery.upstream.url, dataset = lane.name, "The dataset is delivered again.");
        }
    }

    pub(super) fn handle_lane_failure(&mut self, index: usize, failure: &Failure) {
        let lane = &mut self.lanes[index];
        lane.known = None;
        lane.rest(failure.kind, clock::now());
        let quarantined = failure.kind == FailureKind::Refused;
        let problem = Problem { words: failure.words.clone(), quarantined };
        let before = self.delivery.progress.lock().problems.insert(lane.name.clone(), problem.clone());
        let (upstream, dataset, problem) = (&self.delivery.upstream.url, &lane.name, &failure.words);
        match failure.kind {
            _ if before.is_some_and(|before| before.words == *problem) || lane.told.as_ref() == Some(problem) => {
                debug!(upstream, dataset, problem, "The dataset still cannot be delivered.");
            }
            FailureKind::Unknown => warn!(upstream, dataset, problem, "The dataset cannot be delivered; trying again."),
            kind => {
                lane.told = Some(problem.clone());
                match kind {
                    FailureKind::Refused => error!(upstream, dataset, problem, "The dataset is quarantined."),
                    _ => error!(upstream, dataset, problem, "The dataset cannot be delivered."),
                }
            }
        }
    }
}
