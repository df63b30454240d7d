//! Taking what can still be read out of a database that was put aside.
//!
//! Every table is copied as far as it can be iterated, chunks only when their checksums hold. Chunks are sought from both
//! ends, so that one damaged page costs the chunks on it and no others. What lies between is recorded as a gap.

use std::path::Path;

use redb::{
    Builder, Database, Key, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, Value, WriteTransaction,
};

use crate::position::Seq;

use super::chunk::PART_BYTES;
use super::commit::raise_floor;
use super::config::CHUNK_MESSAGES_MAX;
use super::gaps::{self, Gap, GapReason};
use super::reader::{first_at_or_before, first_from, load, load_header};
use super::store::{Abort, SpoolError, Store, contain};
use super::tables::{
    CHUNKS, DATASETS, DEAD_LETTERS, DELIVERED, GAPS, LEDGER, LEDGER_ORDER, META, PACKET_IDS, RETAINED, SEAL_COUNTERS,
    SEALED, SESSIONS,
};

/// Chunks that one transaction copies.
const CHUNKS_PER_COMMIT: usize = 64;

/// What was taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Salvaged {
    pub(super) chunks: u64,
    /// Where chunks could not be read: they began at or after the first position and before the second.
    pub(super) lost: Option<(Seq, Seq)>,
}

impl Salvaged {
    fn lose(&mut self, from: Seq, to: Seq) {
        let (first, end) = self.lost.unwrap_or((from, to));
        self.lost = Some((first.min(from), end.max(to)));
    }
}

/// Copies what can be read of the database at `path` into a new one. None when it cannot even be opened.
pub(super) fn salvage(
    path: &Path,
    cache_bytes: usize,
    new: &Store,
    gaps_max: u64,
) -> Result<Option<Salvaged>, SpoolError> {
    let opened = contain(|| {
        let old = Builder::new().set_cache_size(cache_bytes).open(path).map_err(|error| Abort::Redb(error.into()))?;
        let txn = old.begin_read()?;
        Ok((old, txn))
    });
    let (old, txn) = match opened {
        Ok(opened) => opened,
        Err(reason) => {
            let reason = match reason {
                Abort::Redb(error) => error.to_string(),
                Abort::Ours(error) => error.to_string(),
            };
            tracing::error!(reason, "Nothing could be salvaged.");
            return Ok(None);
        }
    };
    new.write(|write| copy_tables(&txn, write))?;
    let salvaged = copy_chunks(&old, new)?;
    if let Some((first, end)) = salvaged.lost {
        let reason = GapReason::Damaged;
        let at_us = super::now_us();
        let gap = Gap { dataset: None, first, end, messages: 0, bytes: 0, reason, at_us };
        new.write(|write| gaps::record(write, &[gap], gaps_max))?;
    }
    // Dropping a damaged database may panic as well as reading it.
    let _ = contain(|| {
        drop((txn, old));
        Ok(())
    });
    Ok(Some(salvaged))
}

fn copy_tables(old: &ReadTransaction, new: &WriteTransaction) -> Result<(), Abort> {
    copy(old, new, META)?;
    copy(old, new, DATASETS)?;
    copy(old, new, SEALED)?;
    copy(old, new, DELIVERED)?;
    copy(old, new, PACKET_IDS)?;
    copy(old, new, SESSIONS)?;
    copy(old, new, RETAINED)?;
    copy(old, new, DEAD_LETTERS)?;
    copy(old, new, GAPS)?;
    copy(old, new, LEDGER)?;
    copy(old, new, LEDGER_ORDER)?;
    copy(old, new, SEAL_COUNTERS)
}

fn copy<K: Key + 'static, V: Value + 'static>(
    old: &ReadTransaction,
    new: &WriteTransaction,
    definition: TableDefinition<'static, K, V>,
) -> Result<(), Abort> {
    let mut table = new.open_table(definition)?;
    let copied = contain(|| {
        for row in old.open_table(definition)?.iter()? {
            let (key, value) = row?;
            table.insert(key.value(), value.value())?;
        }
        Ok(())
    });
    if copied.is_err() {
        tracing::warn!(table = redb::TableHandle::name(&definition), "Only a part of the table could be salvaged.");
    }
    Ok(())
}

/// Copies chunks upwards from the start until one cannot be found, then downwards from the end to there.
fn copy_chunks(old: &Database, new: &Store) -> Result<Salvaged, SpoolError> {
    let mut salvaged = Salvaged::default();
    let (mut batch, mut next, mut top) = (Vec::new(), Seq(0), Seq(0));
    let whole = loop {
        match read(old, |chunks| first_from(chunks, next)) {
            Ok(Some(first)) => {
                next = first.next();
                top = take(old, first, &mut batch, &mut salvaged).map_or(top, |end| top.max(end));
                flush(new, &mut batch, CHUNKS_PER_COMMIT)?;
            }
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    if !whole {
        let mut above = Seq(u64::MAX);
        while let Some(below) = above.0.checked_sub(1).map(Seq)
            && let Ok(Some(first)) = read(old, |chunks| first_at_or_before(chunks, below))
            && first >= next
        {
            above = first;
            top = take(old, first, &mut batch, &mut salvaged).map_or(top, |end| top.max(end));
            flush(new, &mut batch, CHUNKS_PER_COMMIT)?;
        }
        salvaged.lose(next, if above == Seq(u64::MAX) { next.next() } else { above });
    }
    if let Some((_, end)) = &mut salvaged.lost
        && *end > top
    {
        // It was the last one, and may have held as many messages as any.
        *end = end.plus(u64::from(CHUNK_MESSAGES_MAX));
        top = *end;
    }
    flush(new, &mut batch, 1)?;
    new.write(|write| raise_floor(write, top))?;
    Ok(salvaged)
}

/// Takes a chunk whose checksums hold; returns its end.
fn take(old: &Database, first: Seq, batch: &mut Vec<(Seq, Vec<u8>)>, salvaged: &mut Salvaged) -> Option<Seq> {
    let chunk = read(old, |chunks| {
        let bytes = load(chunks, first)?;
        let checked = load_header(chunks, first)?.and_then(|header| header.records(&bytes).map(|_| header.info.end));
        Ok(checked.ok().map(|end| (end, bytes)))
    });
    let Some((end, bytes)) = chunk.ok().flatten() else {
        salvaged.lose(first, first.next());
        return None;
    };
    salvaged.chunks += 1;
    batch.push((first, bytes.to_vec()));
    Some(end)
}

/// Writes the batch once it has `enough` chunks.
fn flush(new: &Store, batch: &mut Vec<(Seq, Vec<u8>)>, enough: usize) -> Result<(), SpoolError> {
    if batch.len() < enough {
        return Ok(());
    }
    let chunks = std::mem::take(batch);
    new.write(|write| {
        let mut table = write.open_table(CHUNKS)?;
        for (first, bytes) in &chunks {
            for (part, bytes) in (0..=u16::MAX).zip(bytes.chunks(PART_BYTES)) {
                table.insert((first.0, part), bytes)?;
            }
        }
        Ok(())
    })
}

fn read<R>(
    old: &Database,
    work: impl FnOnce(&redb::ReadOnlyTable<(u64, u16), &'static [u8]>) -> Result<R, Abort>,
) -> Result<R, Abort> {
    contain(|| work(&old.begin_read()?.open_table(CHUNKS)?))
}
