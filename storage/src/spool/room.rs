//! Whether there is room for a batch, and making it by dropping the oldest.

use std::collections::BTreeMap;

use redb::{ReadableTable, Table, WriteTransaction};

use crate::position::{DatasetId, Seq};

use super::chunk::cost;
use super::commit::raise_floor;
use super::config::OnFull;
use super::gaps::{self, Gap, GapReason};
use super::positions::sealed_of_all;
use super::reader::{Damage, first_from, load, load_header};
use super::retention;
use super::store::{Abort, SpoolError};
use super::tables::{CHUNKS, SEALED};
use super::{Spool, State};

/// How full the spool is. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Of chunks, with page rounding.
    pub live_bytes: u64,
    /// Of slices that wait for delivery, as reported by [`Spool::set_external_bytes`].
    pub external_bytes: u64,
    /// The bound of both together.
    pub max_bytes: u64,
    /// Free in the file system; none when it does not say.
    pub free_bytes: Option<u64>,
    /// The last commit met a full disk.
    pub disk_full: bool,
}

enum Lacking {
    Nothing,
    /// How many bytes must go, how many had better go, and whether dropping chunks can help.
    Bytes {
        must: u64,
        target: u64,
        droppable: bool,
    },
}

impl Spool {
    /// How full the spool is.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let state = self.state();
        Usage {
            live_bytes: state.live_bytes,
            external_bytes: state.external_bytes,
            max_bytes: self.inner.config.max_bytes,
            free_bytes: self.inner.store.free_bytes().ok(),
            disk_full: self.inner.store.is_full(),
        }
    }

    /// Tells how many bytes of sealed slices wait for delivery; they count against `max_bytes`.
    pub fn set_external_bytes(&self, bytes: u64) {
        self.state().external_bytes = bytes;
        self.inner.appended.notify_all();
    }

    /// Makes room for `needed` bytes if it can be made. After a full disk this is also what goes back to work.
    pub(super) fn make_room(&self, needed: u64) -> Result<bool, SpoolError> {
        if self.inner.store.is_full() && !self.recover(needed)? {
            return Ok(false);
        }
        match self.lacking(needed) {
            Lacking::Nothing => Ok(true),
            Lacking::Bytes { must, target, droppable: true } if self.inner.config.on_full == OnFull::DropOldest => {
                match self.drop_oldest(must, target) {
                    Err(SpoolError::DiskFull) => Ok(false),
                    dropped => dropped,
                }
            }
            Lacking::Bytes { .. } => Ok(false),
        }
    }

    /// Waits until something may have made room, at most `timeout`.
    pub(super) fn wait_for_change(&self, timeout: std::time::Duration) {
        let state = self.state();
        drop(self.inner.appended.wait_timeout(state, timeout));
    }

    /// Puts a damaged chunk aside, records the gaps that it leaves, and removes it. On a full disk it stays, and the gaps
    /// are kept in memory until they can be recorded: in the transaction of the next seal or drop, before which nothing
    /// behind the chunk counts as sealed. A crash before that leaves the chunk, and the next start meets it again.
    ///
    /// # Errors
    /// As of every write but [`SpoolError::DiskFull`]: the damage is not recorded, and nobody may go past it.
    pub(super) fn step_over(&self, damage: &Damage) -> Result<Vec<Gap>, SpoolError> {
        if let Some(known) = self.state().stepped_over.get(&damage.first) {
            return Ok(known.gaps.clone());
        }
        tracing::error!(first = damage.first.0, end = damage.end.0, reason = %damage.reason, "Damaged chunk.");
        let name = format!("chunk-{:020}", damage.first.0);
        if let Err(error) = self.put_aside(&name, &damage.bytes) {
            tracing::warn!(%error, "Cannot put the damaged chunk aside.");
        }
        let gaps = damage.gaps(super::now_us());
        let bytes = cost(damage.bytes.len());
        let known = SteppedOver { end: damage.end, bytes, gaps: gaps.clone() };
        let mut state = self.state();
        state.counters.chunks_damaged += 1;
        state.stepped_over.insert(damage.first, known);
        drop(state);
        match self.write(|txn| self.settle_damage(txn), |state, settled| state.forget_damage(settled)) {
            Ok(_) => Ok(gaps),
            Err(SpoolError::DiskFull) => {
                tracing::warn!("No room to record the damaged chunk yet.");
                Ok(gaps)
            }
            Err(error) => Err(error),
        }
    }

    /// Records and removes the damaged chunks that were stepped over. Returns which, for [`State::forget_damage`] after
    /// the commit.
    pub(super) fn settle_damage(&self, txn: &WriteTransaction) -> Result<Vec<Seq>, Abort> {
        let stepped_over = self.state().stepped_over.clone();
        for (&first, known) in &stepped_over {
            gaps::record(txn, &known.gaps, self.inner.config.gaps_max)?;
            remove_chunk(&mut txn.open_table(CHUNKS)?, first)?;
            raise_floor(txn, known.end)?;
        }
        Ok(stepped_over.into_keys().collect())
    }

    fn put_aside(&self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        let bad = self.inner.dir.join("bad");
        self.inner.fs.create_dir_all(&bad)?;
        self.inner.fs.replace(&bad.join(name), bytes)
    }

    /// After a full disk: goes on once there is room for the ballast, the batch and redb's own pages.
    fn recover(&self, needed: u64) -> Result<bool, SpoolError> {
        let config = &self.inner.config;
        let enough = config.min_free_bytes.max(2 * config.ballast_bytes).saturating_add(needed);
        if self.inner.store.free_bytes().is_ok_and(|free| free < enough) {
            return Ok(false);
        }
        match self.inner.store.recover() {
            Ok(()) => {
                tracing::info!("There is room on the disk again.");
                Ok(true)
            }
            Err(SpoolError::DiskFull) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn lacking(&self, needed: u64) -> Lacking {
        let config = &self.inner.config;
        let state = self.state();
        let outside = state.external_bytes.saturating_add(needed);
        if outside.saturating_add(state.live_bytes) > config.max_bytes {
            let lacking = outside.saturating_add(state.live_bytes) - config.max_bytes;
            // What other owners hold cannot be dropped here. More than is lacking, to spare commits.
            let spare = (config.max_bytes / 64).min(1 << 20).max(needed);
            return Lacking::Bytes {
                must: lacking,
                target: lacking.max(spare),
                droppable: outside <= config.max_bytes,
            };
        }
        let fresh = needed.saturating_sub(state.reusable_bytes);
        drop(state);
        match self.inner.store.free_bytes() {
            // Dropping frees pages inside the file, which the batch takes, and nothing outside: more of it would not help.
            Ok(free) if fresh > 0 && free < config.min_free_bytes.saturating_add(fresh) => {
                Lacking::Bytes { must: fresh, target: fresh, droppable: true }
            }
            _ => Lacking::Nothing,
        }
    }

    /// Drops the oldest chunks until `target` bytes are free. Drops nothing and returns false when not even `must` could
    /// be.
    fn drop_oldest(&self, must: u64, target: u64) -> Result<bool, SpoolError> {
        let config = &self.inner.config;
        let drop_chunks = |txn: &WriteTransaction| {
            let settled = self.settle_damage(txn)?;
            let sealed = sealed_of_all(&txn.open_table(SEALED)?)?;
            let mut chunks = txn.open_table(CHUNKS)?;
            let mut dropped = Dropped { settled, ..Dropped::default() };
            while dropped.bytes < target
                && let Some(first) = first_from(&chunks, Seq(0))?
            {
                dropped.add(&chunks, first, &sealed, self.log_end())?;
                remove_chunk(&mut chunks, first)?;
            }
            gaps::record(txn, &dropped.gaps, config.gaps_max)?;
            raise_floor(txn, self.log_end())?;
            let enough = dropped.bytes > 0 && dropped.bytes >= must;
            Ok((enough.then_some(dropped), enough))
        };
        let dropped = self.write_if(drop_chunks, |state, dropped| {
            if let Some(dropped) = dropped {
                state.forget_damage(&mut dropped.settled);
                state.live_bytes = state.live_bytes.saturating_sub(dropped.bytes);
                state.reusable_bytes = state.reusable_bytes.saturating_add(dropped.bytes);
                state.counters.messages_dropped += dropped.messages;
                state.released.retain(|first, _| *first >= dropped.end);
            }
        })?;
        if let Some(Dropped { messages: messages @ 1.., bytes, .. }) = dropped {
            tracing::warn!(messages, bytes, "Spool full: dropped the oldest.");
        }
        Ok(dropped.is_some())
    }
}

/// What is known of a damaged chunk that is still there.
#[derive(Clone)]
pub(super) struct SteppedOver {
    end: Seq,
    bytes: u64,
    gaps: Vec<Gap>,
}

impl State {
    /// These damaged chunks are recorded and gone.
    pub(super) fn forget_damage(&mut self, settled: &mut Vec<Seq>) {
        for first in settled.drain(..) {
            let bytes = self.stepped_over.remove(&first).map_or(0, |known| known.bytes);
            self.live_bytes = self.live_bytes.saturating_sub(bytes);
            self.released.remove(&first);
        }
    }
}

#[derive(Default)]
struct Dropped {
    bytes: u64,
    messages: u64,
    end: Seq,
    gaps: Vec<Gap>,
    /// Damaged chunks that went in the same transaction.
    settled: Vec<Seq>,
}

impl Dropped {
    fn add(
        &mut self,
        chunks: &impl ReadableTable<(u64, u16), &'static [u8]>,
        first: Seq,
        sealed: &BTreeMap<DatasetId, Seq>,
        log_end: Seq,
    ) -> Result<(), Abort> {
        let at_us = super::now_us();
        self.end = first.next();
        let Ok(header) = load_header(chunks, first)? else {
            self.bytes += cost(load(chunks, first)?.len());
            // Nobody knows how many it held: all up to the next chunk.
            let end = first_from(chunks, first.next())?.unwrap_or(log_end.max(first.next()));
            let reason = GapReason::Damaged;
            self.gaps.push(Gap { dataset: None, first, end, messages: 0, bytes: 0, reason, at_us });
            return Ok(());
        };
        self.bytes += header.info.bytes_on_disk;
        for (dataset, messages, bytes) in retention::lost_by_dropping(&header.info, sealed) {
            self.messages += messages;
            let end = header.info.end;
            let dataset = Some(dataset);
            let reason = GapReason::Dropped;
            self.gaps.push(Gap { dataset, first, end, messages, bytes, reason, at_us });
        }
        Ok(())
    }
}

/// Removes all parts of the chunk at `first`.
pub(super) fn remove_chunk(chunks: &mut Table<'_, (u64, u16), &'static [u8]>, first: Seq) -> Result<(), Abort> {
    let keys: Vec<_> = chunks
        .range((first.0, 0)..=(first.0, u16::MAX))?
        .map(|row| row.map(|(key, _)| key.value()))
        .collect::<Result<_, _>>()?;
    for key in keys {
        chunks.remove(key)?;
    }
    Ok(())
}
