//! The writer: one thread, one loop. Take what is queued, commit it once, answer in order.
//!
//! Group commit is what makes acknowledging after fsync fast: while one commit waits for the disk, the next batch gathers
//! in the channel. An idle queue commits at once; nobody waits for a batch to fill.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Spool;
use super::chunk::cost;
use super::dup_window::DupWindow;
use super::request::{Outcome, Request};
use super::store::SpoolError;

/// How often a full spool looks whether there is room, at least.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Why the writer ended before its channel did. Nothing of its last batch was acknowledged; the process must exit with an
/// error and be started again, then devices resend.
#[derive(Debug, thiserror::Error)]
#[error("the spool's writer stopped: {0}")]
pub enum WriteError {
    /// A commit failed, and not for lack of space.
    Fatal(SpoolError),
}

/// Stores what is asked of it, and says so only when it is on disk (I1). At most one per spool.
pub struct Writer<F> {
    spool: Spool,
    resolve: F,
    dup_window: DupWindow,
    /// A commit failed: the window may know of messages that were not stored, or miss some that were.
    dup_window_stale: bool,
    /// A full spool has held its requests long enough: answer at once until there is room.
    refusing: bool,
}

impl<F> Writer<F> {
    /// A writer that gives each request's ticket to `resolve`, in order, with what became of it. Reads the end of the
    /// spool to recognise messages that are sent again.
    pub fn new(spool: Spool, resolve: F) -> Self {
        let dup_window = spool.dup_window();
        Self { spool, resolve, dup_window, dup_window_stale: false, refusing: false }
    }

    /// Serves `requests` until all their senders are gone and the last one is answered. Blocks its thread.
    ///
    /// # Errors
    /// [`WriteError::Fatal`]: nothing of the batch was acknowledged, and nobody may go on.
    pub fn run<T>(&mut self, mut requests: mpsc::Receiver<Request<T>>) -> Result<(), WriteError>
    where
        F: FnMut(T, Outcome),
    {
        while let Some(first) = requests.blocking_recv() {
            let batch = self.drain(first, &mut requests);
            let outcomes = self.store(&batch, &requests)?;
            for (request, outcome) in batch.into_iter().zip(outcomes) {
                (self.resolve)(request.into_ticket(), outcome);
            }
        }
        Ok(())
    }

    fn store<T>(
        &mut self,
        batch: &[Request<T>],
        requests: &mpsc::Receiver<Request<T>>,
    ) -> Result<Vec<Outcome>, WriteError> {
        // An idle spool, and one that waits for a disk that is full, need no transaction to say that they are there.
        if batch.iter().all(|request| matches!(request, Request::Probe { .. })) {
            return Ok(vec![Outcome::Stored; batch.len()]);
        }
        let room = self.wait_for_room(batch, requests)?;
        self.commit(batch, room)
    }

    /// Takes what is queued, up to the bounds of a commit.
    fn drain<T>(&self, first: Request<T>, requests: &mut mpsc::Receiver<Request<T>>) -> Vec<Request<T>> {
        let config = &self.spool.inner.config;
        let mut bytes = first.bytes();
        let mut batch = vec![first];
        while batch.len() < config.commit_messages()
            && bytes < config.commit_bytes()
            && let Ok(next) = requests.try_recv()
        {
            bytes += next.bytes();
            batch.push(next);
        }
        batch
    }

    fn commit<T>(&mut self, batch: &[Request<T>], room: bool) -> Result<Vec<Outcome>, WriteError> {
        if self.dup_window_stale {
            // When the database is not open yet this gives an empty one, and the commit fails, too.
            self.dup_window = self.spool.dup_window();
            self.dup_window_stale = false;
        }
        match self.spool.commit(batch, room, &mut self.dup_window) {
            Ok(outcomes) => Ok(outcomes),
            Err(SpoolError::DiskFull) => {
                tracing::warn!(requests = batch.len(), "Disk full: nothing is acknowledged.");
                self.spool.state().counters.disk_full += 1;
                self.dup_window_stale = true;
                Ok(vec![Outcome::Unavailable; batch.len()])
            }
            Err(error) => Err(WriteError::Fatal(error)),
        }
    }

    /// Whether there is room for the batch. Until it is answered no further request is taken, so that the channel fills
    /// and the sockets are no longer read; after `patience`, or when the senders are gone, the answer is no.
    #[expect(clippy::disallowed_methods, reason = "the driver reads the clock")]
    fn wait_for_room<T>(
        &mut self,
        batch: &[Request<T>],
        requests: &mpsc::Receiver<Request<T>>,
    ) -> Result<bool, WriteError> {
        let needed = room_for(batch.iter().map(Request::bytes).sum());
        if needed == 0 && !self.spool.inner.store.is_full() {
            return Ok(true);
        }
        let deadline = Instant::now() + self.spool.inner.config.patience;
        loop {
            if self.spool.make_room(needed).map_err(WriteError::Fatal)? {
                self.refusing = false;
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.refusing || left.is_zero() || requests.is_closed() {
                break;
            }
            self.spool.wait_for_change(left.min(LOOK_AGAIN));
        }
        if !self.refusing {
            tracing::warn!(usage = ?self.spool.usage(), "Spool full: messages are refused until there is room.");
        }
        self.refusing = true;
        Ok(false)
    }
}

/// What a batch of `bytes` may take on disk if it does not shrink: itself, rounded up, and its header.
fn room_for(bytes: usize) -> u64 {
    const HEADER: u64 = 4096;
    if bytes == 0 { 0 } else { cost(bytes) + HEADER }
}
