//! Brings every dataset to one upstream, again and again, for as long as the agent runs.
//!
//! A thread of its own with a runtime of its own, so that a backlog on its way takes no time from the threads that serve
//! devices. A *round* gives each dataset one bounded step after another until none has anything left: a dataset with a long
//! backlog, or one that fails, does not hold up the others. What is decided is pure (`outcome`, `schedule`, `backoff`) or
//! behind the kind of upstream; here it is only done.
//!
//! ```text
//! round:  window open? ─▶ reach ─▶ step, step, step … of each dataset in turn ─▶ nothing moved: wait for the bell
//! step:   sealed position, then the local head ─▶ what is there? ─▶ push what is missing ─▶ note the position
//! ```
//!
//! The sealed position is read before the head is, so that a head never stands for less than the position noted for it.

mod lane;
mod step;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_storage::durable_fs::DurableFs;
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::spool::{Spool, SpoolError};
use tracing::{debug, error, info, warn};

use self::lane::Lane;
use self::step::Step;
use super::backlog::Backlog;
use super::backoff::Backoff;
use super::bell::{Bell, Rings};
use super::carrier::Carrier;
use super::outcome::{Failure, FailureKind};
use super::report::Progress;
use super::retention::Retention;
use super::schedule;
use crate::clock;
use crate::config::{Upstream, UpstreamKind};

/// First wait after the upstream failed; the next ones double it.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest wait for a directory: looking at it costs one system call.
const RETRY_DIRECTORY_MAX: Duration = Duration::from_secs(2);
/// Longest wait for anything that is reached over a link.
const RETRY_LINK_MAX: Duration = Duration::from_secs(60);
/// How often an upstream that has everything is looked at, so that it is known to be reachable.
const PROBE_DIRECTORY: Duration = Duration::from_secs(5);
const PROBE_LINK: Duration = Duration::from_secs(60);
/// Failures of the upstream in a row after which an urge is given up.
const URGE_UPSTREAM_FAILURES_MAX: u32 = 4;
/// Failures of a dataset after which an urge is given up; enough for push ingest to turn to the search for refused rows.
const URGE_DATASET_FAILURES_MAX: u32 = 6;
/// Longest wait between two tries of an urge: somebody is watching.
const URGE_RETRY_MAX: Duration = Duration::from_secs(2);

/// One upstream and what it is to get.
#[derive(Debug)]
pub struct Delivery {
    /// Which.
    pub upstream: Upstream,
    /// Its number in the configuration, from 0.
    pub number: usize,
    /// Names and ids of the datasets that go there.
    pub datasets: Vec<(String, DatasetId)>,
    /// Where their repositories are.
    pub datasets_dir: PathBuf,
    /// Where requests are prepared.
    pub scratch_dir: PathBuf,
    /// Keeps the positions.
    pub spool: Spool,
    /// How files are made durable.
    pub fs: DurableFs,
    /// What others see of it.
    pub progress: Arc<Progress>,
    /// Told of what was delivered.
    pub backlog: Arc<Backlog>,
    /// Lets go what every upstream has.
    pub retention: Arc<Retention>,
    /// Rung after a seal, and to stop.
    pub bell: Arc<Bell>,
}

/// What is next after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Everything that can be delivered is.
    Idle,
    /// The upstream is tried again after this.
    Again(Duration),
    /// The window opens after this.
    Closed(Duration),
    /// The agent stops.
    Stop,
}

struct Runner {
    delivery: Delivery,
    carrier: Option<Carrier>,
    lanes: Vec<Lane>,
    /// The dataset that gets the first step.
    first: usize,
    backoff: Backoff,
    /// The urge that is being followed, or was last.
    urge: u64,
    /// How often in a row the token was not accepted.
    unauthorised: u32,
    last_contact: Option<Instant>,
}

impl Delivery {
    /// Delivers until the bell says stop.
    pub fn run(self) {
        // One thread makes the bodies of push ingest: with as many as happen to be idle the memory of the process grew to
        // twice as much over a backlog of three million rows (144 MiB; with one 67 MiB, and flat).
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
        match runtime {
            Ok(runtime) => runtime.block_on(Runner::new(self).run()),
            Err(problem) => {
                error!(%problem, upstream = self.upstream.url, "Cannot start delivering.");
                self.progress.lock().last_error = Some(format!("cannot start delivering: {problem}"));
                self.progress.set_urged(u64::MAX); // nobody waits for it
            }
        }
    }

    fn is_directory(&self) -> bool {
        matches!(self.upstream.kind, UpstreamKind::Directory(_))
    }
}

impl Runner {
    fn new(delivery: Delivery) -> Self {
        let lanes = delivery.datasets.iter().map(|(name, id)| Lane::new(name, *id, &delivery.datasets_dir));
        let retry_max = if delivery.is_directory() { RETRY_DIRECTORY_MAX } else { RETRY_LINK_MAX };
        Self {
            lanes: lanes.collect(),
            carrier: None,
            first: 0,
            backoff: Backoff::new(RETRY_FIRST, retry_max),
            urge: 0,
            unauthorised: 0,
            last_contact: None,
            delivery,
        }
    }

    async fn run(mut self) {
        let bell = Arc::clone(&self.delivery.bell);
        while !bell.is_stopped() {
            let heard = bell.rings();
            let is_urgent = heard.urges > self.delivery.progress.urged();
            if is_urgent && self.urge != heard.urges {
                self.urge = heard.urges;
                self.backoff.handle_success();
                self.lanes.iter_mut().for_each(Lane::wake);
            }
            let next = tokio::select! {
                next = self.round(is_urgent) => next,
                () = bell.stopped() => Next::Stop,
            };
            if is_urgent && self.urge_is_over(next) {
                self.delivery.progress.set_urged(heard.urges);
            }
            self.wait(next, heard, is_urgent).await;
        }
    }

    /// Waits until there may be something to do.
    async fn wait(&self, next: Next, heard: Rings, is_urgent: bool) {
        let urged = |now: &Rings, then: &Rings| now.urges != then.urges;
        let bell = &self.delivery.bell;
        let now = clock::now();
        let rests = self.lanes.iter().filter_map(|lane| lane.rests_until).min();
        let rest = rests.map(|until| until.saturating_duration_since(now));
        match next {
            Next::Stop => {}
            Next::Idle => {
                let probe = if self.delivery.is_directory() { PROBE_DIRECTORY } else { PROBE_LINK };
                let timeout = rest.map_or(probe, |rest| rest.min(probe));
                let timeout = if is_urgent { timeout.min(URGE_RETRY_MAX) } else { timeout };
                let _ = tokio::time::timeout(timeout, bell.wait(heard, |now, then| now != then)).await;
            }
            Next::Again(wait) => {
                let wait = if is_urgent { wait.min(URGE_RETRY_MAX) } else { wait };
                let _ = tokio::time::timeout(wait, bell.wait(heard, urged)).await;
            }
            Next::Closed(wait) => {
                // The clock may be set meanwhile.
                let wait = wait.min(PROBE_LINK);
                let _ = tokio::time::timeout(wait, bell.wait(heard, urged)).await;
            }
        }
    }

    /// An urge ends when everything is there, or when what is not has failed often enough.
    fn urge_is_over(&self, next: Next) -> bool {
        match next {
            Next::Stop | Next::Closed(_) => true,
            Next::Again(_) => self.backoff.failures() >= URGE_UPSTREAM_FAILURES_MAX,
            Next::Idle => {
                self.lanes.iter().all(|lane| lane.rests_until.is_none() || lane.failures >= URGE_DATASET_FAILURES_MAX)
            }
        }
    }

    async fn round(&mut self, is_urgent: bool) -> Next {
        if is_urgent {
            // The count of its failures ends the urge for a dataset.
            let tried = self.lanes.iter_mut().filter(|lane| lane.failures < URGE_DATASET_FAILURES_MAX);
            tried.for_each(|lane| lane.rests_until = None);
        } else if let Some(wait) = schedule::opens_in(self.delivery.upstream.window, clock::local_time()) {
            let opens_at = clock::wall_ms().saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
            self.delivery.progress.lock().opens_at_ms = Some(opens_at);
            return Next::Closed(wait);
        }
        self.delivery.progress.lock().opens_at_ms = None;
        // Before anything else: a disk that other programs filled has room for what no upstream lacks any more.
        if let Err(problem) = self.delivery.retention.run() {
            warn!(problem = format!("{problem:#}"), "Delivered slices could not be released.");
        }
        match self.carry_on(is_urgent).await {
            Ok(()) => {
                self.backoff.handle_success();
                self.unauthorised = 0;
                self.note_contact();
                self.note_success();
                Next::Idle
            }
            Err(failure) if failure.kind == FailureKind::Stopped => Next::Stop,
            Err(failure) => self.handle_upstream_failure(&failure),
        }
    }

    async fn carry_on(&mut self, is_urgent: bool) -> Result<(), Failure> {
        self.note_pending()?;
        if self.carrier.is_none() {
            self.carrier = Carrier::new(&self.delivery).map(Some)?;
        }
        self.reach().await?;
        loop {
            let mut has_moved = false;
            for index in self.order() {
                let now = clock::now();
                if self.lanes[index].rests_until.is_some_and(|until| until > now) {
                    continue;
                }
                match self.step(index).await {
                    Ok(Step::Again) => has_moved = true,
                    Ok(step) => {
                        has_moved |= step == Step::Moved;
                        self.handle_lane_success(index);
                    }
                    Err(failure) if failure.kind.is_of_upstream() || failure.kind == FailureKind::Stopped => {
                        self.first = index + 1;
                        self.blame(index, failure).await?;
                    }
                    Err(failure) => self.handle_lane_failure(index, &failure),
                }
            }
            let is_closed = schedule::opens_in(self.delivery.upstream.window, clock::local_time()).is_some();
            if !has_moved || (is_closed && !is_urgent) {
                return Ok(());
            }
        }
    }

    /// A dataset that makes the node silent must not starve the others: when the upstream answers to something small, what
    /// failed is the dataset. A directory has only one disk.
    async fn blame(&mut self, index: usize, failure: Failure) -> Result<(), Failure> {
        if failure.kind == (FailureKind::Unreachable { retry_after: None })
            && !self.delivery.is_directory()
            && let Some(carrier) = &self.carrier
            && carrier.reach(&[]).await.is_ok()
        {
            self.handle_lane_failure(index, &Failure { kind: FailureKind::Unknown, ..failure });
            return Ok(());
        }
        Err(failure)
    }

    /// Asks something small, unless the upstream has just been heard of.
    async fn reach(&mut self) -> Result<(), Failure> {
        let fresh = self.last_contact.is_some_and(|at| clock::now().duration_since(at) < PROBE_LINK);
        if fresh && self.delivery.progress.is_reachable() && !self.delivery.is_directory() {
            return Ok(());
        }
        let delivered = self.delivered_datasets()?;
        let Some(carrier) = &self.carrier else { return Ok(()) };
        carrier.reach(&delivered).await?;
        self.note_contact();
        Ok(())
    }

    /// Names of the datasets of which something is there.
    fn delivered_datasets(&self) -> Result<Vec<&str>, Failure> {
        let mut names = Vec::new();
        for lane in &self.lanes {
            if lane.known.is_some() || self.delivered(lane)? > Seq(0) {
                names.push(lane.name.as_str());
            }
        }
        Ok(names)
    }

    /// The datasets in the order in which they get their steps: as configured, beginning after the one that the upstream
    /// last failed at; or those that lack least first.
    fn order(&self) -> Vec<usize> {
        let count = self.lanes.len();
        let mut order: Vec<usize> = (0..count).map(|index| (self.first + index) % count).collect();
        if self.delivery.upstream.live_first {
            let lacks =
                |index: &usize| self.delivery.backlog.undelivered(self.delivery.number, &self.lanes[*index].name);
            order.sort_by_key(lacks);
        }
        order
    }

    fn note_contact(&mut self) {
        self.last_contact = Some(clock::now());
        // Whoever does not let us in is not reached, though something answers.
        if self.unauthorised == 0 && self.delivery.progress.set_reachable(true) {
            info!(upstream = self.delivery.upstream.url, "Upstream is reachable.");
        }
    }

    fn note_pending(&self) -> Result<(), Failure> {
        for lane in &self.lanes {
            let sealed = self.delivery.spool.sealed(lane.id).map_err(|error| spool_failure(&error))?;
            if self.delivered(lane)? < sealed {
                self.delivery.progress.lock().pending_since_ms.get_or_insert_with(clock::wall_ms);
                return Ok(());
            }
        }
        Ok(())
    }

    fn note_success(&self) {
        let mut report = self.delivery.progress.lock();
        report.last_error = report.problems.iter().next().map(|(name, problem)| format!("{name}: {}", problem.words));
        if report.problems.is_empty() {
            report.pending_since_ms = None;
        }
    }

    /// The first failure in a row is worth a warning; those that follow say nothing new.
    fn handle_upstream_failure(&mut self, failure: &Failure) -> Next {
        self.delivery.progress.set_reachable(false);
        self.lanes.iter_mut().for_each(|lane| lane.known = None);
        let is_first = self.backoff.failures() == 0;
        let (upstream, problem) = (&self.delivery.upstream.url, &failure.words);
        self.delivery.progress.lock().last_error = Some(problem.clone());
        self.unauthorised = if failure.kind == FailureKind::Unauthorised { self.unauthorised + 1 } else { 0 };
        if failure.kind == FailureKind::Unauthorised && self.carrier.as_ref().is_some_and(Carrier::reread_token) {
            info!(upstream, "Read a new token.");
            if self.unauthorised == 1 {
                return Next::Again(Duration::ZERO);
            }
        }
        if failure.kind == FailureKind::Unauthorised {
            self.carrier = None; // keys of a bucket are read when it is opened
        }
        match failure.kind {
            // Once may be a token that is being changed; twice is for a person.
            FailureKind::Unauthorised if self.unauthorised == 2 => {
                error!(upstream, problem, "The upstream does not let us in.");
            }
            FailureKind::Unauthorised => debug!(upstream, problem, "The upstream does not let us in."),
            _ if is_first => warn!(upstream, problem, "Upstream is not reachable; trying again."),
            _ => debug!(upstream, problem, "Upstream is still not reachable."),
        }
        let wait = self.backoff.handle_failure(fastrand::f64());
        let FailureKind::Unreachable { retry_after: Some(asked) } = failure.kind else { return Next::Again(wait) };
        // Beyond an hour it is no longer waiting but giving up.
        Next::Again(wait.max(asked.min(Duration::from_secs(3_600))))
    }
}

/// A spool that cannot be read or written ends the agent elsewhere; here it only stops the step.
fn spool_failure(error: &SpoolError) -> Failure {
    Failure::local(format!("the spool: {error}"))
}
