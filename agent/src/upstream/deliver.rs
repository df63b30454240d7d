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

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_storage::durable_fs::DurableFs;
use forebay_storage::odf::{ChainFiles, Multihash, SealedSlice};
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::spool::{Spool, SpoolError};
use tracing::{debug, error, info, warn};

use super::backlog::Backlog;
use super::backoff::Backoff;
use super::bell::{Bell, Rings};
use super::carrier::{Carrier, ChainCarrier};
use super::outcome::{Failure, FailureKind};
use super::report::{Problem, Progress};
use super::repository::Pushed;
use super::retention::Retention;
use super::schedule::{self, Waiting};
use crate::clock;
use crate::config::{Upstream, UpstreamKind};

/// First wait after the upstream failed; the next ones double it.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest wait for a directory: looking at it costs one system call.
const RETRY_DIRECTORY_MAX: Duration = Duration::from_secs(2);
/// Longest wait for anything that is reached over a link.
const RETRY_LINK_MAX: Duration = Duration::from_secs(60);
/// Waits of a dataset whose failure nobody can explain.
const UNKNOWN_MAX: Duration = Duration::from_secs(60);
/// Waits of a dataset that only a person can put right.
const QUARANTINE_FIRST: Duration = Duration::from_secs(30);
const QUARANTINE_MAX: Duration = Duration::from_secs(600);
/// How often an upstream that has everything is looked at, so that it is known to be reachable.
const PROBE_DIRECTORY: Duration = Duration::from_secs(5);
const PROBE_LINK: Duration = Duration::from_secs(60);
/// Threads that read and write files and ask for addresses, one thing after another. The allocator keeps for each thread
/// what it once needed for a request, so every further one would cost that memory again.
const FILE_THREADS: usize = 1;
/// Blocks of one step.
const STEP_BLOCKS: usize = 256;
/// Bytes of slices of one step; a step has at least one slice, however large.
const STEP_BYTES: u64 = 16 << 20;
/// How often in a row a head may move under our hands before the dataset waits.
const HEAD_MOVES_MAX: u32 = 3;
/// Failures of the upstream, or of a dataset, after which an urge is given up.
const URGE_FAILURES_MAX: u32 = 4;

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

/// One dataset on its way to one upstream.
#[derive(Debug)]
struct Lane {
    name: String,
    id: DatasetId,
    files: ChainFiles,
    /// The head that is known to be there.
    known: Option<Multihash>,
    /// With `live_first`: blocks whose slices were sent before older ones. After a restart they are sent again, which a
    /// Ledger does not notice.
    ahead: BTreeSet<Multihash>,
    head_moves: u32,
    backoff: Backoff,
    rests_until: Option<Instant>,
    /// Failures since the last urge.
    failures: u32,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Everything is there.
    Idle,
    /// There may be more.
    Moved,
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
    backoff: Backoff,
    /// How often in a row the token was not accepted.
    unauthorised: u32,
    last_contact: Option<Instant>,
}

impl Delivery {
    /// Delivers until the bell says stop.
    pub fn run(self) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().max_blocking_threads(FILE_THREADS).build();
        match runtime {
            Ok(runtime) => runtime.block_on(Runner::new(self).run()),
            Err(problem) => error!(%problem, upstream = self.upstream.url, "Cannot start delivering."),
        }
    }

    fn is_directory(&self) -> bool {
        matches!(self.upstream.kind, UpstreamKind::Directory(_))
    }
}

impl Lane {
    fn rest(&mut self, kind: FailureKind, now: Instant) {
        self.failures += 1;
        let (first, max) = match kind {
            FailureKind::Unknown => (RETRY_FIRST, UNKNOWN_MAX),
            _ => (QUARANTINE_FIRST, QUARANTINE_MAX),
        };
        self.backoff.set_bounds(first, max);
        self.rests_until = Some(now + self.backoff.handle_failure(fastrand::f64()));
    }

    fn wake(&mut self) {
        self.rests_until = None;
        self.failures = 0;
    }
}

impl Runner {
    fn new(delivery: Delivery) -> Self {
        let lanes = delivery.datasets.iter().map(|(name, id)| Lane {
            name: name.clone(),
            id: *id,
            files: ChainFiles::new(&delivery.datasets_dir.join(name)),
            known: None,
            ahead: BTreeSet::new(),
            head_moves: 0,
            backoff: Backoff::new(RETRY_FIRST, UNKNOWN_MAX),
            rests_until: None,
            failures: 0,
        });
        let retry_max = if delivery.is_directory() { RETRY_DIRECTORY_MAX } else { RETRY_LINK_MAX };
        Self {
            lanes: lanes.collect(),
            carrier: None,
            backoff: Backoff::new(RETRY_FIRST, retry_max),
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
            let next = tokio::select! {
                next = self.round(is_urgent) => next,
                () = bell.stopped() => Next::Stop,
            };
            if is_urgent && self.urge_is_over(next) {
                self.delivery.progress.set_urged(heard.urges);
                self.lanes.iter_mut().for_each(Lane::wake);
                continue;
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
                let _ = tokio::time::timeout(timeout, bell.wait(heard, |now, then| now != then)).await;
            }
            Next::Again(wait) => {
                let wait = if is_urgent { wait.min(RETRY_DIRECTORY_MAX) } else { wait };
                let _ = tokio::time::timeout(wait, bell.wait(heard, urged)).await;
            }
            Next::Closed(wait) => {
                let _ = tokio::time::timeout(wait, bell.wait(heard, urged)).await;
            }
        }
    }

    /// An urge ends when everything is there, or when what is not has failed often enough.
    fn urge_is_over(&self, next: Next) -> bool {
        match next {
            Next::Stop | Next::Closed(_) => true,
            Next::Again(_) => self.backoff.failures() >= URGE_FAILURES_MAX,
            Next::Idle => {
                self.lanes.iter().all(|lane| lane.rests_until.is_none() || lane.failures >= URGE_FAILURES_MAX)
            }
        }
    }

    async fn round(&mut self, is_urgent: bool) -> Next {
        if is_urgent {
            // Whatever rests is tried now; the count of its failures ends the urge.
            self.lanes.iter_mut().for_each(|lane| lane.rests_until = None);
        } else if let Some(wait) = schedule::opens_in(self.delivery.upstream.window, clock::local_time()) {
            let opens_at = clock::wall_ms().saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
            self.delivery.progress.lock().opens_at_ms = Some(opens_at);
            return Next::Closed(wait);
        }
        self.delivery.progress.lock().opens_at_ms = None;
        match self.carry_on(is_urgent).await {
            Ok(()) => {
                self.backoff.handle_success();
                self.unauthorised = 0;
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
                    Ok(step) => {
                        has_moved |= step == Step::Moved;
                        self.handle_lane_success(index);
                    }
                    Err(failure) if failure.kind.is_of_upstream() || failure.kind == FailureKind::Stopped => {
                        return Err(failure.context(format!("deliver dataset {}", self.lanes[index].name)));
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

    /// Asks something small, unless the upstream has just been heard of.
    async fn reach(&mut self) -> Result<(), Failure> {
        let fresh = self.last_contact.is_some_and(|at| clock::now().duration_since(at) < PROBE_LINK);
        if fresh && self.delivery.progress.is_reachable() && !self.delivery.is_directory() {
            return Ok(());
        }
        let mut expected = false;
        for lane in &self.lanes {
            expected |= self.delivered(lane)? > Seq(0);
        }
        let Some(carrier) = &self.carrier else { return Ok(()) };
        carrier.reach(expected).await?;
        self.note_contact();
        Ok(())
    }

    /// The datasets in the order in which they get their steps: as configured, or those that lack least first.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.lanes.len()).collect();
        if self.delivery.upstream.live_first {
            let lacks =
                |index: &usize| self.delivery.backlog.undelivered(self.delivery.number, &self.lanes[*index].name);
            order.sort_by_key(lacks);
        }
        order
    }

    async fn step(&mut self, index: usize) -> Result<Step, Failure> {
        let lane = &self.lanes[index];
        let sealed = self.delivery.spool.sealed(lane.id).map_err(spool_failure)?;
        let sealed_bytes = self.delivery.backlog.sealed(&lane.name);
        let Some(head) = lane.files.head().map_err(Failure::local)? else { return Ok(Step::Idle) };
        let stepping = Stepping { head, sealed, sealed_bytes };
        match &self.carrier {
            Some(Carrier::Chain(_)) => self.chain_step(index, stepping).await,
            Some(Carrier::Ingest(_)) => self.ingest_step(index, stepping).await,
            None => Ok(Step::Idle),
        }
    }

    /// Brings the chain there a bounded part nearer to ours.
    async fn chain_step(&mut self, index: usize, stepping: Stepping) -> Result<Step, Failure> {
        let lane = &self.lanes[index];
        if lane.known == Some(stepping.head) && !self.delivery.is_directory() {
            self.handle_delivered(index, stepping.sealed, Some(stepping.sealed_bytes), 0)?;
            return Ok(Step::Idle);
        }
        let Some(Carrier::Chain(carrier)) = &self.carrier else { return Ok(Step::Idle) };
        let remote = carrier.head(&lane.name).await?;
        let remote_hash = remote.as_ref().map(|head| head.hash);
        let missing = lane.files.blocks_after(stepping.head, remote_hash.as_ref()).map_err(Failure::local)?;
        let Some(missing) = missing else { return Err(diverged(carrier, &lane.name, remote_hash)) };
        if missing.is_empty() {
            self.lanes[index].known = Some(stepping.head);
            self.handle_delivered(index, stepping.sealed, Some(stepping.sealed_bytes), 0)?;
            return Ok(Step::Idle);
        }
        let part = Part::first_of(&lane.files, &missing)?;
        let blocks = missing.get(..part.blocks).unwrap_or(&missing);
        let Pushed::Done { bytes } = carrier.push(&lane.name, &lane.files, remote.as_ref(), blocks).await? else {
            return self.handle_head_moved(index);
        };
        let is_whole = blocks.len() == missing.len();
        let position = if is_whole { stepping.sealed } else { part.end.min(stepping.sealed) };
        let lane = &mut self.lanes[index];
        lane.known = blocks.last().copied();
        lane.head_moves = 0;
        info!(
            upstream = self.delivery.upstream.url,
            dataset = lane.name,
            blocks = blocks.len(),
            rows = part.rows,
            bytes,
            "Delivered."
        );
        self.note_sent(blocks.len() as u64, part.rows, bytes);
        self.handle_delivered(index, position, is_whole.then_some(stepping.sealed_bytes), part.slice_bytes)?;
        Ok(Step::Moved)
    }

    fn handle_head_moved(&mut self, index: usize) -> Result<Step, Failure> {
        let lane = &mut self.lanes[index];
        lane.known = None;
        lane.head_moves += 1;
        if lane.head_moves < HEAD_MOVES_MAX {
            return Ok(Step::Moved);
        }
        lane.head_moves = 0;
        Err(Failure::new(FailureKind::Unknown, "its head there moves while it is written: is there another writer?"))
    }

    /// Posts the rows of one slice.
    async fn ingest_step(&mut self, index: usize, stepping: Stepping) -> Result<Step, Failure> {
        let lane = &self.lanes[index];
        let delivered = self.delivered(lane)?;
        let slices = if delivered < stepping.sealed {
            lane.files.slices_from(stepping.head, delivered).map_err(Failure::local)?
        } else {
            Vec::new()
        };
        let waits = |slice: &SealedSlice| slice.last_seq < stepping.sealed && !lane.ahead.contains(&slice.block);
        let slices: Vec<SealedSlice> = slices.into_iter().filter(waits).collect();
        let sizes: Vec<Waiting> = slices.iter().map(|slice| Waiting { bytes: slice.slice.size }).collect();
        let Some(next) = schedule::next_slice(&sizes, self.delivery.upstream.live_first) else {
            self.lanes[index].ahead.clear();
            self.handle_delivered(index, stepping.sealed, Some(stepping.sealed_bytes), 0)?;
            return Ok(Step::Idle);
        };
        let slice = &slices[next];
        let path = lane.files.data_path(&slice.slice.physical_hash);
        let Some(Carrier::Ingest(ingest)) = &mut self.carrier else { return Ok(Step::Idle) };
        let posted =
            ingest.deliver(&self.lanes[index].name, self.lanes[index].id, slice, &path, &self.delivery).await?;
        let lane = &mut self.lanes[index];
        info!(
            upstream = self.delivery.upstream.url,
            dataset = lane.name,
            rows = posted.rows,
            bytes = posted.bytes,
            refused = posted.refused,
            "Delivered."
        );
        let position = if next == 0 {
            slice.last_seq.next()
        } else {
            lane.ahead.insert(slice.block);
            delivered
        };
        self.note_sent(1, posted.rows, posted.bytes);
        self.handle_delivered(index, position, None, slice.slice.size)?;
        Ok(Step::Moved)
    }

    fn delivered(&self, lane: &Lane) -> Result<Seq, Failure> {
        self.delivery.spool.delivered(&self.delivery.upstream.url, lane.id).map_err(spool_failure)
    }

    /// Notes how far the upstream is: in the spool, in the account of what waits, in the report. `whole`: bytes of all
    /// slices, when it has all of them; else it has `more` bytes than before.
    fn handle_delivered(&self, index: usize, position: Seq, whole: Option<u64>, more: u64) -> Result<(), Failure> {
        let lane = &self.lanes[index];
        let delivery = &self.delivery;
        let before = self.delivered(lane)?;
        if position > before {
            delivery.spool.set_delivered(&delivery.upstream.url, lane.id, position).map_err(spool_failure)?;
        }
        match whole {
            Some(bytes) => delivery.backlog.handle_delivered(delivery.number, &lane.name, bytes),
            None => delivery.backlog.handle_delivered_more(delivery.number, &lane.name, more),
        }
        delivery.progress.lock().delivered.insert(lane.name.clone(), position.max(before).0);
        if position > before
            && let Err(problem) = delivery.retention.run()
        {
            warn!(problem = format!("{problem:#}"), "Delivered slices could not be released.");
        }
        Ok(())
    }

    fn note_sent(&mut self, blocks: u64, rows: u64, bytes: u64) {
        self.note_contact();
        let mut report = self.delivery.progress.lock();
        report.blocks += blocks;
        report.rows += rows;
        report.bytes += bytes;
    }

    fn note_contact(&mut self) {
        self.last_contact = Some(clock::now());
        if self.delivery.progress.set_reachable(true) {
            info!(upstream = self.delivery.upstream.url, "Upstream is reachable.");
        }
    }

    fn note_pending(&self) -> Result<(), Failure> {
        for lane in &self.lanes {
            let sealed = self.delivery.spool.sealed(lane.id).map_err(spool_failure)?;
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

    fn handle_lane_success(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        lane.backoff.handle_success();
        lane.wake();
        if self.delivery.progress.lock().problems.remove(&lane.name).is_some() {
            info!(upstream = self.delivery.upstream.url, dataset = lane.name, "The dataset is delivered again.");
        }
    }

    fn handle_lane_failure(&mut self, index: usize, failure: &Failure) {
        let lane = &mut self.lanes[index];
        lane.known = None;
        lane.rest(failure.kind, clock::now());
        let quarantined = failure.kind == FailureKind::Refused;
        let problem = Problem { words: failure.words.clone(), quarantined };
        let before = self.delivery.progress.lock().problems.insert(lane.name.clone(), problem.clone());
        let (upstream, dataset, problem) = (&self.delivery.upstream.url, &lane.name, &failure.words);
        match failure.kind {
            _ if before.is_some_and(|before| before.words == *problem) => {
                debug!(upstream, dataset, problem, "The dataset still cannot be delivered.");
            }
            FailureKind::Unknown => warn!(upstream, dataset, problem, "The dataset cannot be delivered; trying again."),
            FailureKind::Refused => error!(upstream, dataset, problem, "The dataset is quarantined."),
            _ => error!(upstream, dataset, problem, "The dataset cannot be delivered."),
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
            return Next::Again(Duration::ZERO);
        }
        match failure.kind {
            // Once may be a token that is being changed; twice is for a person.
            FailureKind::Unauthorised if self.unauthorised == 2 => {
                error!(upstream, problem, "The upstream does not accept the token.");
            }
            _ if is_first => warn!(upstream, problem, "Upstream is not reachable; trying again."),
            _ => debug!(upstream, problem, "Upstream is still not reachable."),
        }
        let wait = self.backoff.handle_failure(fastrand::f64());
        let FailureKind::Unreachable { retry_after: Some(asked) } = failure.kind else { return Next::Again(wait) };
        // Beyond an hour it is no longer waiting but giving up.
        Next::Again(wait.max(asked.min(Duration::from_secs(3_600))))
    }
}

/// What a step starts from.
#[derive(Clone, Copy, Debug)]
struct Stepping {
    head: Multihash,
    sealed: Seq,
    sealed_bytes: u64,
}

/// The part of what is missing that one step brings.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    blocks: usize,
    rows: u64,
    slice_bytes: u64,
    /// The first `seq` that it does not account for.
    end: Seq,
}

impl Part {
    fn first_of(files: &ChainFiles, missing: &[Multihash]) -> Result<Self, Failure> {
        let mut part = Self::default();
        for hash in missing.iter().take(STEP_BLOCKS) {
            let block = files.block(hash).map_err(Failure::local)?;
            if let Some(slice) = block.event.new_data() {
                if part.slice_bytes > 0 && part.slice_bytes + slice.size > STEP_BYTES {
                    break;
                }
                if !files.data_path(&slice.physical_hash).is_file() {
                    return Err(released(files, slice.physical_hash));
                }
                part.slice_bytes += slice.size;
                part.rows += slice.rows().unwrap_or(0);
            }
            part.end = block.event.last_seq().map_or(part.end, Seq::next);
            part.blocks += 1;
        }
        Ok(part)
    }
}

fn released(files: &ChainFiles, slice: Multihash) -> Failure {
    Failure::local(format!(
        "slice {slice} is not in {} any more, and the upstream does not have it: it was released when every upstream of \
         that time had it. Copy the dataset's repository there from one of them; the gateway goes on from its head",
        files.dir().display()
    ))
}

fn diverged(carrier: &ChainCarrier, dataset: &str, head: Option<Multihash>) -> Failure {
    let place = carrier.place(dataset);
    let head = head.map_or_else(|| "none".to_owned(), |head| head.to_string());
    Failure::new(
        FailureKind::Diverged,
        format!(
            "{place}: its head {head} is not a block of this gateway's chain: another writer was there, or this gateway's \
             data_dir was set back. Nothing is overwritten; move that dataset away, or deliver to another place"
        ),
    )
}

/// A spool that cannot be read or written ends the agent elsewhere; here it only stops the step.
fn spool_failure(error: SpoolError) -> Failure {
    Failure::local(format!("the spool: {error}"))
}
