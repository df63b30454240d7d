//! The spool.
mod chunk;
mod commit;
mod config;
mod counters;
mod dead_letters;
mod dup_window;
mod gaps;
mod inbound;
mod ledger;
mod open;
mod positions;
mod reader;
mod request;
mod retained;
mod retention;
mod room;
mod store;
mod tables;
mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::durable_fs::DurableFs;
use crate::position::Seq;

pub use chunk::ChunkInfo;
pub use config::{CHUNK_MESSAGES_MAX, MESSAGE_BYTES_MAX, OnFull, SpoolConfig};
pub use counters::Counters;
pub use gaps::{Gap, GapReason};
pub use inbound::StoredSession;
pub use open::{OpenReport, VerifyReport};
pub use positions::SealCommit;
pub use reader::Read;
pub use request::{Outcome, Request};
pub use retained::Retained;
pub use room::Usage;
pub use store::{Medium, OpenError, SpoolError};
pub use writer::{WriteError, Writer};

use store::Store;

/// The spool. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Spool {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    fs: DurableFs,
    config: SpoolConfig,
    store: Store,
    state: Mutex<State>,
    /// The log end moved, or there may be room.
    appended: Condvar,
}

/// What is known without reading. Changes only after the commit that makes it true.
#[derive(Default)]
struct State {
    log_end: Seq,
    live_bytes: u64,
    external_bytes: u64,
    retained_bytes: u64,
    /// Chunks that are sealed and stay for the DUP window: first seq → bytes.
    released: BTreeMap<Seq, u64>,
    counters: Counters,
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool").field("dir", &self.inner.dir).field("log_end", &self.log_end()).finish()
    }
}

impl Spool {
    /// The position that the next message gets.
    #[must_use]
    pub fn log_end(&self) -> Seq {
        self.state().log_end
    }

    /// The position of the first message that is still in the spool; the log end when it is empty.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when redb itself is damaged.
    pub fn log_start(&self) -> Result<Seq, SpoolError> {
        let log_end = self.log_end();
        let first = self.inner.store.read(|txn| reader::first_from(&txn.open_table(tables::CHUNKS)?, Seq(0)))?;
        Ok(first.unwrap_or(log_end))
    }

    /// Waits until the message at `seq` is stored, at most `timeout`. Returns the log end.
    #[expect(clippy::disallowed_methods, reason = "waiting needs a clock")]
    pub fn wait_past(&self, seq: Seq, timeout: Duration) -> Seq {
        let deadline = Instant::now() + timeout;
        let mut state = self.state();
        while state.log_end <= seq {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.inner.appended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.log_end
    }

    /// What was counted since the spool was opened.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.state().counters
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::disallowed_methods, reason = "gaps and reports say when they were found")]
fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
