//! Datasets and their positions: sealed, delivered; the seal commit that moves the first.

use std::collections::BTreeMap;

use redb::{ReadableTable, WriteTransaction};

use crate::dead_letter::DeadLetter;
use crate::position::{DatasetId, Seq};

use super::Spool;
use super::commit::raise_floor;
use super::counters::Counters;
use super::ledger;
use super::reader::{first_at_or_before, first_from, load_header};
use super::retention;
use super::room::remove_chunk;
use super::store::{Abort, SpoolError};
use super::tables::{CHUNKS, DATASETS, DELIVERED, SEAL_COUNTERS, SEALED};

/// Stands in the table of delivered positions for retention, in the place of an upstream's URL.
const RELEASED: &str = "";

/// What sealing a batch changes in the spool, in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealCommit {
    /// Whose batch.
    pub dataset: DatasetId,
    /// First position of the dataset that is not sealed.
    pub sealed: Seq,
    /// Messages of the batch that are not rows. They are kept in the transaction that moves `sealed`, so a batch that is
    /// sealed again after a crash leaves each of them once.
    pub dead_letters: Vec<DeadLetter>,
    /// Ledger keys of the new rows, ascending by position.
    pub ledger_keys: Vec<([u8; 16], Seq)>,
    /// Names and how much to add to them, see [`Spool::seal_counters`].
    pub counters: Vec<(String, u64)>,
}

impl Spool {
    /// The id of the dataset `name`: given at the first call, durably, and the same for ever.
    ///
    /// # Errors
    /// As of every write; [`SpoolError::NoDatasetId`] after four billion datasets.
    pub fn dataset_id(&self, name: &str) -> Result<DatasetId, SpoolError> {
        let assign = |txn: &WriteTransaction| {
            let mut table = txn.open_table(DATASETS)?;
            if let Some(id) = table.get(name)? {
                return Ok((DatasetId(id.value()), false));
            }
            let mut last = 0;
            for row in table.iter()? {
                last = last.max(row?.1.value());
            }
            let id = last.checked_add(1).filter(|&id| id != u32::MAX);
            let id = id.ok_or_else(|| SpoolError::NoDatasetId(name.to_owned()))?;
            table.insert(name, id)?;
            Ok((DatasetId(id), true))
        };
        self.write_if(assign, |_, _| ())
    }

    /// All datasets that were ever given an id, by name.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when redb itself is damaged.
    pub fn datasets(&self) -> Result<Vec<(String, DatasetId)>, SpoolError> {
        self.inner.store.read(|txn| {
            let mut datasets = Vec::new();
            for row in txn.open_table(DATASETS)?.iter()? {
                let (name, id) = row?;
                datasets.push((name.value().to_owned(), DatasetId(id.value())));
            }
            Ok(datasets)
        })
    }

    /// First position of `dataset` that is not sealed.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when redb itself is damaged.
    pub fn sealed(&self, dataset: DatasetId) -> Result<Seq, SpoolError> {
        self.inner.store.read(|txn| {
            let sealed = txn.open_table(SEALED)?.get(dataset.0)?;
            Ok(sealed.map_or(Seq(0), |seq| Seq(seq.value())))
        })
    }

    /// First position of `dataset` that `upstream` does not have.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when redb itself is damaged.
    pub fn delivered(&self, upstream: &str, dataset: DatasetId) -> Result<Seq, SpoolError> {
        self.inner.store.read(|txn| {
            let delivered = txn.open_table(DELIVERED)?.get((upstream, dataset.0))?;
            Ok(delivered.map_or(Seq(0), |seq| Seq(seq.value())))
        })
    }

    /// Records what `upstream` has of `dataset`.
    ///
    /// # Errors
    /// [`SpoolError::PositionGoesBack`], [`SpoolError::PositionAhead`] beyond `sealed`; and as of every write.
    pub fn set_delivered(&self, upstream: &str, dataset: DatasetId, delivered: Seq) -> Result<(), SpoolError> {
        let advance = |txn: &WriteTransaction| {
            let mut table = txn.open_table(DELIVERED)?;
            let from = table.get((upstream, dataset.0))?.map_or(Seq(0), |seq| Seq(seq.value()));
            let sealed = txn.open_table(SEALED)?.get(dataset.0)?.map_or(Seq(0), |seq| Seq(seq.value()));
            check_move("delivered", dataset, from, delivered, sealed)?;
            table.insert((upstream, dataset.0), delivered.0)?;
            Ok(((), delivered > from))
        };
        self.write_if(advance, |_, ()| ())
    }

    /// First position of `dataset` whose slice is kept, as far as [`set_released`](Self::set_released) was told.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when redb itself is damaged.
    pub fn released(&self, dataset: DatasetId) -> Result<Seq, SpoolError> {
        self.delivered(RELEASED, dataset)
    }

    /// Records, before the first file goes, that the slices of `dataset` below `released` may be missing from now on.
    ///
    /// # Errors
    /// As of [`set_delivered`](Self::set_delivered).
    pub fn set_released(&self, dataset: DatasetId, released: Seq) -> Result<(), SpoolError> {
        self.set_delivered(RELEASED, dataset, released)
    }

    /// Makes the next seq at least `floor`: the datasets know of higher ones than a spool that had to be started anew.
    ///
    /// # Errors
    /// As of every write.
    pub fn raise_seq_floor(&self, floor: Seq) -> Result<(), SpoolError> {
        let raise = |txn: &WriteTransaction| {
            let higher = floor > self.log_end();
            if higher {
                raise_floor(txn, floor)?;
            }
            Ok(((), higher))
        };
        self.write_if(raise, |state, ()| state.log_end = state.log_end.max(floor))
    }

    /// Records that a batch is sealed: moves `sealed`, keeps its dead letters and ledger keys, adds its counts, and
    /// removes the chunks that nobody needs any more. All of it or nothing.
    ///
    /// # Errors
    /// [`SpoolError::PositionGoesBack`], [`SpoolError::PositionAhead`] beyond the log end; and as of every write.
    pub fn commit_seal(&self, seal: &SealCommit) -> Result<(), SpoolError> {
        let config = &self.inner.config;
        let change = |txn: &WriteTransaction| {
            let mut counters = Counters::default();
            let stepped_over = self.settle_damage(txn)?;
            let sealed = move_sealed(txn, seal, self.log_end())?;
            let from = sealed.before;
            if !seal.dead_letters.is_empty() {
                self.keep_dead_letters(txn, &seal.dead_letters, &mut counters)?;
            }
            if !seal.ledger_keys.is_empty() {
                counters.ledger_keys_dropped +=
                    ledger::insert(txn, seal.dataset, &seal.ledger_keys, config.ledger_keys_max)?;
            }
            add_counters(txn, seal)?;
            let trimmed = self.trim(txn, from, seal.sealed, &sealed.all)?;
            Ok((counters, trimmed, stepped_over))
        };
        self.write(change, |state, (counters, trimmed, stepped_over)| {
            state.count(counters);
            state.live_bytes = state.live_bytes.saturating_sub(trimmed.bytes);
            state.released = std::mem::take(&mut trimmed.released);
            state.forget_damage(stepped_over);
        })?;
        self.inner.appended.notify_all(); // there may be room
        Ok(())
    }

    /// What sealing counted for `dataset`, since its first batch.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when redb itself is damaged.
    pub fn seal_counters(&self, dataset: DatasetId) -> Result<BTreeMap<String, u64>, SpoolError> {
        self.inner.store.read(|txn| {
            let mut counters = BTreeMap::new();
            for row in txn.open_table(SEAL_COUNTERS)?.range((dataset.0, "")..)? {
                let (key, value) = row?;
                let (owner, name) = key.value();
                if owner != dataset.0 {
                    break;
                }
                counters.insert(name.to_owned(), value.value());
            }
            Ok(counters)
        })
    }

    /// Removes released chunks beyond the tail. Only chunks that begin below `to` and end above `from` can have become
    /// released, so that each is looked at once per dataset, however much another dataset lags.
    fn trim(
        &self,
        txn: &WriteTransaction,
        from: Seq,
        to: Seq,
        sealed: &BTreeMap<DatasetId, Seq>,
    ) -> Result<Trimmed, Abort> {
        let mut released = self.state().released.clone();
        let mut chunks = txn.open_table(CHUNKS)?;
        let mut next = first_at_or_before(&chunks, from)?.unwrap_or(from);
        while let Some(first) = first_from(&chunks, next)?.filter(|&first| first < to) {
            if let Ok(header) = load_header(&chunks, first)?
                && retention::is_released(&header.info, sealed)
            {
                released.insert(first, header.info.bytes_on_disk);
            }
            next = first.next();
        }
        let mut bytes = 0;
        let beyond = retention::beyond_tail(&released, self.inner.config.tail_bytes());
        for first in &beyond {
            remove_chunk(&mut chunks, *first)?;
            bytes += released.remove(first).unwrap_or_default();
        }
        if !beyond.is_empty() {
            // The chunks that are left may no longer tell how far the seqs were given.
            raise_floor(txn, self.log_end())?;
        }
        Ok(Trimmed { released, bytes })
    }
}

struct Trimmed {
    released: BTreeMap<Seq, u64>,
    bytes: u64,
}

struct Moved {
    before: Seq,
    all: BTreeMap<DatasetId, Seq>,
}

fn move_sealed(txn: &WriteTransaction, seal: &SealCommit, log_end: Seq) -> Result<Moved, Abort> {
    let mut table = txn.open_table(SEALED)?;
    let before = table.get(seal.dataset.0)?.map_or(Seq(0), |seq| Seq(seq.value()));
    check_move("sealed", seal.dataset, before, seal.sealed, log_end)?;
    table.insert(seal.dataset.0, seal.sealed.0)?;
    Ok(Moved { before, all: sealed_of_all(&table)? })
}

/// Where each dataset is sealed to.
pub(super) fn sealed_of_all(table: &impl ReadableTable<u32, u64>) -> Result<BTreeMap<DatasetId, Seq>, Abort> {
    let mut sealed = BTreeMap::new();
    for row in table.iter()? {
        let (dataset, seq) = row?;
        sealed.insert(DatasetId(dataset.value()), Seq(seq.value()));
    }
    Ok(sealed)
}

fn add_counters(txn: &WriteTransaction, seal: &SealCommit) -> Result<(), Abort> {
    if seal.counters.is_empty() {
        return Ok(());
    }
    let mut table = txn.open_table(SEAL_COUNTERS)?;
    for (name, count) in &seal.counters {
        let key = (seal.dataset.0, name.as_str());
        let before = table.get(key)?.map_or(0, |count| count.value());
        table.insert(key, before.saturating_add(*count))?;
    }
    Ok(())
}

fn check_move(what: &'static str, dataset: DatasetId, from: Seq, to: Seq, limit: Seq) -> Result<(), SpoolError> {
    if to < from {
        return Err(SpoolError::PositionGoesBack { what, dataset, from, to });
    }
    if to > limit {
        return Err(SpoolError::PositionAhead { what, dataset, limit, to });
    }
    Ok(())
}
