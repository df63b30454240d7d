//! Taking what can still be read out of a database that was put aside.
//!
//! Every table is copied as far as it can be iterated, chunks only when their checksums hold. Chunks are sought from both
//! ends, so that one damaged page costs the chunks on it and no others. What lies between is recorded as a gap, and so is a
//! database of which nothing can be read.

use std::path::Path;

use redb::{
    Builder, Database, Key, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, Value, WriteTransaction,
};

use crate::position::Seq;

use super::chunk::PART_BYTES;
use super::commit::raise_floor;
use super::config::CHUNK_MESSAGES_MAX;
use super::gaps::{self, Gap, GapReason};
use super::positions::sealed_of_all;
use super::reader::{first_at_or_before, first_from, load, load_header};
use super::store::{Abort, contain};
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

/// Copies what can be read of the database at `path` into a new one, and records there what cannot.
pub(super) fn salvage(path: &Path, cache_bytes: usize, new: &Database, gaps_max: u64) -> Result<Salvaged, redb::Error> {
    let opened = contain(|| {
        let old = Builder::new().set_cache_size(cache_bytes).open(path).map_err(|error| Abort::Redb(error.into()))?;
        let txn = old.begin_read()?;
        Ok((old, txn))
    });
    let (old, txn) = match opened {
        Ok(opened) => opened,
        Err(reason) => {
            tracing::error!(reason = %redb_error(reason), "Nothing could be salvaged.");
            write(new, |txn| gaps::record(txn, &[gap(Seq(0), Seq(u64::MAX), GapReason::Lost)], gaps_max))?;
            return Ok(Salvaged::default());
        }
    };
    let mut tables_whole = true;
    write(new, |write| {
        tables_whole = copy_tables(&txn, write)?;
        Ok(())
    })?;
    let salvaged = copy_chunks(&old, new)?;
    write(new, |write| {
        if !tables_whole {
            // They were dead letters, or gaps.
            gaps::record(write, &[gap(Seq(0), Seq(u64::MAX), GapReason::Lost)], gaps_max)?;
        }
        if let Some((first, end)) = salvaged.lost {
            gaps::record(write, &[gap(first, end, GapReason::Damaged)], gaps_max)?;
        }
        Ok(())
    })?;
    tracing::warn!(chunks = salvaged.chunks, lost = ?salvaged.lost, tables_whole, "Salvaged what could be read.");
    // Dropping a damaged database may panic as well as reading it.
    let _ = contain(|| {
        drop((txn, old));
        Ok(())
    });
    Ok(salvaged)
}

/// A gap of nobody knows whose messages.
fn gap(first: Seq, end: Seq, reason: GapReason) -> Gap {
    Gap { dataset: None, first, end, messages: 0, bytes: 0, reason, at_us: super::now_us() }
}

/// Commits `work` to a database that nobody else uses yet.
pub(super) fn write(
    database: &Database,
    work: impl FnOnce(&WriteTransaction) -> Result<(), Abort>,
) -> Result<(), redb::Error> {
    contain(|| {
        let txn = database.begin_write()?;
        work(&txn)?;
        Ok(txn.commit()?)
    })
    .map_err(redb_error)
}

fn redb_error(reason: Abort) -> redb::Error {
    match reason {
        Abort::Redb(error) => error,
        Abort::Ours(error) => redb::Error::Corrupted(error.to_string()),
    }
}

/// Copies the tables beside the chunks; whether those that hold messages, or say which are missing, were whole.
fn copy_tables(old: &ReadTransaction, new: &WriteTransaction) -> Result<bool, Abort> {
    let whole = copy(old, new, DEAD_LETTERS)? & copy(old, new, GAPS)?;
    copy(old, new, META)?;
    copy(old, new, DATASETS)?;
    copy(old, new, SEALED)?;
    copy(old, new, DELIVERED)?;
    copy(old, new, PACKET_IDS)?;
    copy(old, new, SESSIONS)?;
    copy(old, new, RETAINED)?;
    copy(old, new, LEDGER)?;
    copy(old, new, LEDGER_ORDER)?;
    copy(old, new, SEAL_COUNTERS)?;
    // What is sealed was given, even when the floor could not be read.
    let sealed = sealed_of_all(&new.open_table(SEALED)?)?;
    raise_floor(new, sealed.into_values().max().unwrap_or_default())?;
    Ok(whole)
}

fn copy<K: Key + 'static, V: Value + 'static>(
    old: &ReadTransaction,
    new: &WriteTransaction,
    definition: TableDefinition<'static, K, V>,
) -> Result<bool, Abort> {
    let mut table = new.open_table(definition)?;
    // A row that cannot be written is an error; one that cannot be read ends the table.
    let mut refused = None;
    let copied = contain(|| {
        for row in old.open_table(definition)?.iter()? {
            let (key, value) = row?;
            if let Err(error) = table.insert(key.value(), value.value()) {
                refused = Some(error);
                break;
            }
        }
        Ok(())
    });
    if let Some(error) = refused {
        return Err(error.into());
    }
    if copied.is_err() {
        tracing::warn!(table = redb::TableHandle::name(&definition), "Only a part of the table could be salvaged.");
    }
    Ok(copied.is_ok())
}

/// Copies chunks upwards from the start until one cannot be found, then downwards from the end to there.
fn copy_chunks(old: &Database, new: &Database) -> Result<Salvaged, redb::Error> {
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
    write(new, |txn| raise_floor(txn, top))?;
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
fn flush(new: &Database, batch: &mut Vec<(Seq, Vec<u8>)>, enough: usize) -> Result<(), redb::Error> {
    if batch.len() < enough {
        return Ok(());
    }
    let chunks = std::mem::take(batch);
    write(new, |txn| {
        let mut table = txn.open_table(CHUNKS)?;
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
