//! The spool: the log from which every acknowledgement gets its right.
//!
//! A device is told "I have it" only after its message is in here and the disk said that it is. Everything else, decoding,
//! Parquet, the upstream, happens later and may fail and be repeated. The spool is one redb file, `spool.redb`.
//!
//! # Operation
//!
//! ```text
//! Request ─▶ bounded channel ─▶ Writer (one thread): drain what is queued ─▶ one chunk ─▶ one redb commit ─▶ answer in order
//!                                                                                              │ fsync
//! sealer ◀── read(from, dataset): short transactions, copies out ◀── chunks ◀──────────────────┘
//!    └─────▶ commit_seal(dataset, sealed, dead letters, ledger keys): one transaction, removes released chunks
//! ```
//!
//! * Every message gets a [`Seq`]: dense, ascending, never reused. The next one is the end of the last chunk, or the floor
//!   in `meta` if that is higher; whoever removes chunks or gives seqs to dead letters raises the floor in the same
//!   transaction.
//! * A commit holds what was queued, at most `commit_messages_max` messages and about `commit_bytes_max` bytes. An idle
//!   queue commits at once; a busy one batches itself while the disk is busy. No timer, no linger.
//! * An ordinary commit touches one table and syncs once. QoS 2 identifiers, retained values, sessions and dead letters go
//!   into the same transaction as the message they belong to, but only when there are any.
//!
//! # What lies on disk
//!
//! ```text
//! spool.redb
//!   chunks          (first seq, part) → ≤ 4,080 bytes     the messages of one commit: header · LZ4 block, see `chunk`
//!   meta            format · seq floor · bytes of dead letters
//!   datasets        name → id                             given once, never reused
//!   sealed          dataset → seq                         exclusive: the first one not yet sealed
//!   delivered       (upstream, dataset) → seq             exclusive; upstream "" is retention: slices below may be gone
//!   packet_ids      (client id, packet id) → seq          QoS 2 between PUBLISH and PUBREL
//!   sessions        client id → expiry
//!   retained        topic → last value
//!   dead_letters    (dataset, seq) → message and reason
//!   gaps            (dataset, first seq) → what is missing and why
//!   ledger, ledger_order, seal_counters                   what sealing must remember
//! ballast           freed when the disk is full, so that redb can still delete
//! spool.redb.new    a database being begun or salvaged, see `rescue`
//! spool.redb.damaged   why, and from where, the next start salvages
//! bad/              damaged chunks and databases, put aside
//! ```
//!
//! # Deletion
//!
//! A chunk goes when every dataset in it is sealed to its end (`retention`), except for the last few megabytes, from which
//! a restart rebuilds the DUP window. A full spool refuses new messages, or, if so configured, drops its oldest chunks and
//! records a [`Gap`] for each dataset in them; a damaged chunk goes to `bad/` and leaves a gap; dead letters beyond their
//! bound leave one, too. Whatever else is removed was released, replayed or replaced. No reader keeps a transaction open:
//! that would keep every page alive that is freed meanwhile, and the file would grow.
//!
//! # When things break
//!
//! | what | then |
//! | --- | --- |
//! | power cut, kill -9 | redb rolls back to the last commit whose sync returned; nobody was told of more |
//! | a commit's write finds the disk full | nothing is acknowledged; the ballast is freed, the database opened again and looked at, messages refused until there is room |
//! | a commit fails otherwise, or its sync does | nothing is acknowledged, [`WriteError::Fatal`]: the process must exit. What a failed fsync left behind is unknown until the database is opened again |
//! | a chunk's checksum is wrong | its bytes go to `bad/`, a gap is recorded, its neighbours are delivered; without room, at the next seal |
//! | redb cannot read a page | [`SpoolError::Unreadable`]; the next start puts the database aside and salvages what can be read |
//! | the database cannot be opened | the same |
//!
//! `FORMAT.md` argues why each of these is safe; `tests/power_loss.rs` pulls the plug at every sync.
//!
//! # A DUP
//!
//! QoS 1 messages that are sent again are recognised by `dup_window` (with one ambiguity, described there), QoS 2 messages
//! by `packet_ids` until their PUBREL. Both survive a restart.

mod backend;
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
mod rescue;
mod retained;
mod retention;
mod room;
mod salvage;
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

use redb::WriteTransaction;

use room::SteppedOver;
use store::{Abort, Store};

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

/// What is known without reading. Changes only after the commit that makes it true, and before the next one begins.
#[derive(Default)]
struct State {
    log_end: Seq,
    live_bytes: u64,
    external_bytes: u64,
    /// What the table of last values holds.
    retained: Arc<retained::Shares>,
    packet_ids_of_sources: u64,
    /// Bytes of pages of dropped chunks that no commit has used again yet.
    reusable_bytes: u64,
    /// Damaged chunks that were stepped over and, for lack of room, are neither removed nor recorded on disk yet.
    /// As many as there are chunks at most.
    stepped_over: BTreeMap<Seq, SteppedOver>,
    /// Chunks that are sealed and stay for the DUP window: first seq → bytes.
    released: BTreeMap<Seq, u64>,
    counters: Counters,
}

impl State {
    /// Becomes what was found on disk. A seq that was once seen as given is never given again.
    fn follow(&mut self, found: Self) {
        self.log_end = self.log_end.max(found.log_end);
        self.live_bytes = found.live_bytes;
        self.retained = found.retained;
        self.packet_ids_of_sources = found.packet_ids_of_sources;
        self.released = found.released;
    }
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

    /// Runs `work` in a write transaction, which is committed when it returns true; then `settle` brings the state to what
    /// was committed. Both happen before anybody else can write, so `work` may rely on the state.
    fn write_if<R>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(R, bool), Abort>,
        settle: impl FnOnce(&mut State, &mut R),
    ) -> Result<R, SpoolError> {
        let checked = |txn: &WriteTransaction| {
            self.look_again(txn)?;
            work(txn)
        };
        self.inner.store.write_if(checked, |done| settle(&mut self.state(), done))
    }

    /// The same for work that always writes.
    fn write<R>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<R, Abort>,
        settle: impl FnOnce(&mut State, &mut R),
    ) -> Result<R, SpoolError> {
        self.write_if(|txn| Ok((work(txn)?, true)), settle)
    }

    /// Takes the state from the disk when the database was opened again: a commit that failed may be there all the same.
    fn look_again(&self, txn: &WriteTransaction) -> Result<(), Abort> {
        if !self.inner.store.is_stale() {
            return Ok(());
        }
        let found = open::look(
            &txn.open_table(tables::CHUNKS)?,
            &txn.open_table(tables::SEALED)?,
            &txn.open_table(tables::META)?,
            &txn.open_table(tables::RETAINED)?,
            &txn.open_table(tables::PACKET_IDS)?,
        )?;
        let mut state = self.state();
        state.follow(found.state);
        drop(state);
        self.inner.store.mark_fresh();
        self.inner.appended.notify_all();
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "gaps and reports say when they were found")]
fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
