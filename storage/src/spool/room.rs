//! Whether there is room for a batch, and making it by dropping the oldest.

use redb::{ReadableTable, Table, WriteTransaction};

use crate::position::Seq;

use super::Spool;
use super::chunk::cost;
use super::commit::raise_floor;
use super::config::OnFull;
use super::gaps::{self, Gap, GapReason};
use super::positions::sealed_of_all;
use super::reader::{Damage, first_from, load, load_header};
use super::retention;
use super::store::{Abort, SpoolError};
use super::tables::{CHUNKS, SEALED};

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
    /// Bytes below the bound, and whether dropping chunks can help.
    Bytes(u64, bool),
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
            Lacking::Bytes(bytes, true) if self.inner.config.on_full == OnFull::DropOldest => {
                match self.drop_oldest(bytes.max(needed)) {
                    Err(SpoolError::DiskFull) => Ok(false),
                    dropped => Ok(dropped? > 0),
                }
            }
            Lacking::Bytes(..) => Ok(false),
        }
    }

    /// Waits until something may have made room, at most `timeout`.
    pub(super) fn wait_for_change(&self, timeout: std::time::Duration) {
        let state = self.state();
        drop(self.inner.appended.wait_timeout(state, timeout));
    }

    /// Puts a damaged chunk aside and records the gaps that it leaves. When that fails, as it does on a full disk, the
    /// chunk stays and is met again at the next start.
    pub(super) fn step_over(&self, damage: &Damage) -> Vec<Gap> {
        tracing::error!(first = damage.first.0, end = damage.end.0, reason = %damage.reason, "Damaged chunk.");
        let name = format!("chunk-{:020}", damage.first.0);
        if let Err(error) = self.put_aside(&name, &damage.bytes) {
            tracing::warn!(%error, "Cannot put the damaged chunk aside.");
        }
        let gaps = damage.gaps(super::now_us());
        let remove = |txn: &WriteTransaction| {
            gaps::record(txn, &gaps, self.inner.config.gaps_max)?;
            remove_chunk(&mut txn.open_table(CHUNKS)?, damage.first)?;
            raise_floor(txn, damage.end)
        };
        let removed = self.write(remove, |state, ()| {
            state.live_bytes = state.live_bytes.saturating_sub(cost(damage.bytes.len()));
            state.released.remove(&damage.first);
        });
        self.state().counters.chunks_damaged += 1;
        if let Err(error) = removed {
            tracing::warn!(%error, "Cannot remove the damaged chunk.");
        }
        gaps
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
            // What other owners hold cannot be dropped here.
            return Lacking::Bytes(lacking, outside <= config.max_bytes);
        }
        drop(state);
        match self.inner.store.free_bytes() {
            // Pages of dropped chunks are used again, so that the file does not grow.
            Ok(free) if free < config.min_free_bytes.saturating_add(needed) => Lacking::Bytes(needed, true),
            _ => Lacking::Nothing,
        }
    }

    /// Drops the oldest chunks until `bytes` are free, or, to spare commits, a 64th of the spool. Returns how many bytes
    /// were: 0 when there is nothing left to drop.
    fn drop_oldest(&self, bytes: u64) -> Result<u64, SpoolError> {
        let config = &self.inner.config;
        let target = bytes.max((config.max_bytes / 64).min(1 << 20));
        let drop_chunks = |txn: &WriteTransaction| {
            let sealed = sealed_of_all(&txn.open_table(SEALED)?)?;
            let mut chunks = txn.open_table(CHUNKS)?;
            let mut dropped = Dropped::default();
            while dropped.bytes < target
                && let Some(first) = first_from(&chunks, Seq(0))?
            {
                dropped.add(&chunks, first, &sealed)?;
                remove_chunk(&mut chunks, first)?;
            }
            gaps::record(txn, &dropped.gaps, config.gaps_max)?;
            raise_floor(txn, self.log_end())?;
            let any = dropped.bytes > 0;
            Ok((dropped, any))
        };
        let dropped = self.write_if(drop_chunks, |state, dropped| {
            state.live_bytes = state.live_bytes.saturating_sub(dropped.bytes);
            state.counters.messages_dropped += dropped.messages;
            state.released.retain(|first, _| *first >= dropped.end);
        })?;
        if dropped.messages > 0 {
            tracing::warn!(messages = dropped.messages, bytes = dropped.bytes, "Spool full: dropped the oldest.");
        }
        if dropped.bytes < bytes { Ok(0) } else { Ok(dropped.bytes) }
    }
}

#[derive(Default)]
struct Dropped {
    bytes: u64,
    messages: u64,
    end: Seq,
    gaps: Vec<Gap>,
}

impl Dropped {
    fn add(
        &mut self,
        chunks: &impl ReadableTable<(u64, u16), &'static [u8]>,
        first: Seq,
        sealed: &std::collections::BTreeMap<crate::position::DatasetId, Seq>,
    ) -> Result<(), Abort> {
        let at_us = super::now_us();
        self.end = first.next();
        let Ok(header) = load_header(chunks, first)? else {
            self.bytes += cost(load(chunks, first)?.len());
            let end = first.next();
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
