//! Drives the sealer on its thread, and tells others what it did.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use forebay_storage::batcher::CutReason;
use forebay_storage::odf::ChainState;
use forebay_storage::position::Seq;
use forebay_storage::sealer::{SealError, Sealed, Sealer};
use forebay_storage::spool::{Spool, SpoolError};
use serde::{Deserialize, Serialize};
use tracing::{error, info};

use crate::clock;
use crate::upstream::backlog::Backlog;
use crate::upstream::bell::Bell;

/// The longest sleep: an upstream that becomes reachable is noticed after this.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The shortest sleep: under load there is a commit every millisecond, and none of them needs a look of its own.
const LOOK_APART: Duration = Duration::from_millis(50);

/// What others may know of, and ask of, the sealer's thread.
#[derive(Debug, Default)]
pub struct Sealing {
    datasets: Mutex<BTreeMap<String, Chain>>,
    /// How often everything was asked to be sealed, and how often it was done.
    asked: AtomicU64,
    done: Mutex<u64>,
    did: Condvar,
    /// Nothing is sealed any more.
    ended: AtomicBool,
    last_error: Mutex<Option<String>>,
}

/// A dataset's chain as the sealer left it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Rows, over all slices.
    pub rows: u64,
    /// Slices.
    pub slices: u64,
    /// Bytes of the slices.
    pub bytes: u64,
    /// Hash of the newest block.
    pub head: String,
    /// First `seq` not sealed.
    pub sealed: u64,
}

impl Sealing {
    /// The chains by dataset name.
    pub fn chains(&self) -> BTreeMap<String, Chain> {
        lock(&self.datasets).clone()
    }

    /// Why the last batch could not be sealed, while that is so.
    pub fn last_error(&self) -> Option<String> {
        lock(&self.last_error).clone()
    }

    /// Has everything sealed that is in the spool now, and waits for it.
    pub fn seal_all(&self, limit: Duration) -> Result<()> {
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let done = lock(&self.done);
        let waits = |done: &mut u64| *done < ticket && !self.ended.load(Ordering::SeqCst);
        let (done, _) = self.did.wait_timeout_while(done, limit, waits).unwrap_or_else(PoisonError::into_inner);
        if *done < ticket && self.ended.load(Ordering::SeqCst) {
            bail!("the agent is stopping");
        }
        if *done < ticket {
            bail!("sealing did not finish within {} s", limit.as_secs());
        }
        match self.last_error() {
            Some(problem) => bail!("seal: {problem}"),
            None => Ok(()),
        }
    }

    /// What the repositories hold.
    pub fn note(&self, sealer: &Sealer) {
        let chains = sealer
            .datasets()
            .map(|dataset| (dataset.spec().name.clone(), Chain::of(dataset.repository().state(), dataset.sealed())));
        *lock(&self.datasets) = chains.collect();
    }

    fn note_error(&self, error: Option<SealError>) {
        if let Some(problem) = &error {
            error!(%problem, "A batch could not be sealed; its messages stay in the spool.");
        }
        *lock(&self.last_error) = error.map(|error| error.to_string());
    }

    /// Nobody waits for a sealer that has ended for good. One that follows takes up what was asked for.
    pub fn note_ended(&self) {
        let _done = lock(&self.done);
        self.ended.store(true, Ordering::SeqCst);
        self.did.notify_all();
    }

    fn note_done(&self, asked: u64) {
        *lock(&self.done) = asked;
        self.did.notify_all();
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst) > *lock(&self.done)
    }
}

impl Chain {
    /// What a repository's state says.
    pub fn of(state: &ChainState, sealed: Seq) -> Self {
        Self {
            rows: state.next_offset.0,
            slices: state.slices,
            bytes: state.data_bytes,
            head: state.head.to_string(),
            sealed: sealed.0,
        }
    }
}

/// Seals what is due until `stop`. It stops between two batches.
///
/// # Errors
/// When the spool must be opened again: the agent cannot go on.
pub fn run(
    sealer: &mut Sealer,
    spool: &Spool,
    sealing: &Sealing,
    backlog: &Backlog,
    bell: &Bell,
    stop: &AtomicBool,
) -> Result<(), SealError> {
    let upstreams = backlog.upstreams();
    let mut drain = None;
    while !stop.load(Ordering::Relaxed) {
        // Without an upstream the local repository is the end, and that is always reachable.
        let reachable = upstreams.is_empty() || upstreams.iter().any(|upstream| upstream.can_take());
        sealer.handle_upstream(reachable);
        if drain.is_none() && sealing.is_asked() {
            drain = Some(sealing.asked.load(Ordering::SeqCst));
            sealer.handle_drain()?;
        }
        match sealer.seal_due(clock::micros(clock::wall())) {
            Ok(Some((sealed, reason))) => {
                log(&sealed, reason);
                sealing.note(sealer);
                backlog.handle_sealed(&sealing.chains());
                bell.ring();
                continue; // more may be due
            }
            Ok(None) if sealer.is_resting() => {}
            Ok(None) => sealing.note_error(None),
            Err(SealError::Spool(error @ (SpoolError::Fatal(_) | SpoolError::Unreadable(_)))) => {
                return Err(error.into());
            }
            Err(error) => sealing.note_error(Some(error)),
        }
        if let Some(asked) = drain.take_if(|_| sealer.is_drained() || sealer.is_resting()) {
            sealing.note_done(asked);
        }
        rest(sealer, spool);
    }
    Ok(())
}

fn log(sealed: &Sealed, reason: CutReason) {
    info!(
        dataset = sealed.dataset,
        rows = sealed.rows,
        dead_letters = sealed.dead_letters,
        duplicates = sealed.duplicates,
        bytes = sealed.bytes,
        ?reason,
        "Sealed."
    );
}

/// Sleeps until there may be something to do.
fn rest(sealer: &Sealer, spool: &Spool) {
    std::thread::sleep(LOOK_APART);
    let due_in = sealer.poll_timeout().map_or(LOOK_EVERY, |due_us| {
        let micros = due_us.saturating_sub(clock::micros(clock::wall())).max(0);
        Duration::from_micros(micros.unsigned_abs())
    });
    spool.wait_past(sealer.scanned(), due_in.min(LOOK_EVERY));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
