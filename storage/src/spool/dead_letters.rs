//! The table of dead letters: bounded in bytes, the oldest goes first and leaves a gap.

use redb::{ReadableTable, Table, WriteTransaction};

use crate::dead_letter::{DeadLetter, NO_DATASET};
use crate::position::{DatasetId, Seq};

use super::counters::Counters;
use super::gaps::{self, Gap, GapReason};
use super::store::{Abort, SpoolError};
use super::tables::{DEAD_LETTERS, META, META_DEAD_LETTER_BYTES};
use super::{Spool, State};

impl Spool {
    /// Dead letters of `dataset` at or after `from`, in order, at most `max`. Values that cannot be decoded are left out.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when redb itself is damaged.
    pub fn dead_letters(&self, dataset: DatasetId, from: Seq, max: usize) -> Result<Vec<DeadLetter>, SpoolError> {
        self.inner.store.read(|txn| {
            let table = txn.open_table(DEAD_LETTERS)?;
            let mut letters = Vec::new();
            for row in table.range((dataset.0, from.0)..=(dataset.0, u64::MAX))?.take(max) {
                let (key, value) = row?;
                letters.extend(DeadLetter::decode(Seq(key.value().1), value.value()).ok());
            }
            Ok(letters)
        })
    }

    /// How many dead letters each dataset has.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when redb itself is damaged.
    pub fn dead_letter_counts(&self) -> Result<Vec<(DatasetId, u64)>, SpoolError> {
        self.inner.store.read(|txn| {
            let table = txn.open_table(DEAD_LETTERS)?;
            let mut counts: Vec<(DatasetId, u64)> = Vec::new();
            for row in table.iter()? {
                let dataset = DatasetId(row?.0.value().0);
                match counts.last_mut() {
                    Some((last, count)) if *last == dataset => *count += 1,
                    _ => counts.push((dataset, 1)),
                }
            }
            Ok(counts)
        })
    }

    /// Keeps dead letters of rows that are already sealed, durably, such as those that an upstream refuses. One that is kept
    /// already stays as it is, so that whoever is interrupted may come with the same ones again. Returns how many are new.
    ///
    /// # Errors
    /// As of every write: [`SpoolError::DiskFull`], [`SpoolError::Fatal`].
    pub fn add_dead_letters(&self, letters: &[DeadLetter]) -> Result<usize, SpoolError> {
        let add = |txn: &WriteTransaction| {
            let table = DeadLetterTable::open(txn)?;
            let mut fresh = Vec::new();
            for letter in letters {
                if !table.contains(key(letter))? {
                    fresh.push(letter);
                }
            }
            drop(table);
            let mut counters = Counters::default();
            self.keep_dead_letters(txn, fresh.iter().copied(), &mut counters)?;
            Ok(((fresh.len(), counters), !fresh.is_empty()))
        };
        Ok(self.write_if(add, |state, (_, counters)| state.count(counters))?.0)
    }

    /// Keeps dead letters in place of those with the same key, counts them, and records the gaps that the oldest leave
    /// when they have to go.
    pub(super) fn keep_dead_letters<'a>(
        &self,
        txn: &WriteTransaction,
        letters: impl IntoIterator<Item = &'a DeadLetter>,
        counters: &mut Counters,
    ) -> Result<(), Abort> {
        let config = &self.inner.config;
        let mut table = DeadLetterTable::open(txn)?;
        let mut dropped = Vec::new();
        for letter in letters {
            dropped.extend(table.insert(letter, config.dead_letter_bytes_max)?);
            counters.dead_letters += 1;
        }
        table.close()?;
        counters.dead_letters_dropped += dropped.len() as u64;
        gaps::record(txn, &dropped, config.gaps_max)
    }

    /// Removes dead letters, durably. Those that are not there are as good as removed. Returns how many were there.
    /// (To replay one: append its message, then remove it. A crash between the two leaves both.)
    ///
    /// # Errors
    /// As of every write: [`SpoolError::DiskFull`], [`SpoolError::Fatal`].
    pub fn remove_dead_letters(&self, letters: &[(DatasetId, Seq)]) -> Result<usize, SpoolError> {
        let remove = |txn: &WriteTransaction| {
            let mut table = DeadLetterTable::open(txn)?;
            let mut removed = 0;
            for &(dataset, seq) in letters {
                removed += usize::from(table.remove((dataset.0, seq.0))?);
            }
            table.close()?;
            Ok((removed, removed > 0))
        };
        self.write_if(remove, |_, _| ())
    }
}

impl State {
    /// Adds what was counted. Warns of dropped dead letters each time that their number has doubled.
    pub(super) fn count(&mut self, counters: &Counters) {
        let before = self.counters.dead_letters_dropped;
        self.counters.add(counters);
        let dropped = self.counters.dead_letters_dropped;
        if dropped.leading_zeros() < before.leading_zeros() {
            tracing::warn!(
                dropped,
                "Too many dead letters: the oldest were dropped, which is recorded among the gaps."
            );
        }
    }
}

/// The table with the sum of its bytes.
pub(super) struct DeadLetterTable<'txn> {
    letters: Table<'txn, (u32, u64), &'static [u8]>,
    meta: Table<'txn, &'static str, u64>,
    bytes: u64,
}

impl<'txn> DeadLetterTable<'txn> {
    pub(super) fn open(txn: &'txn WriteTransaction) -> Result<Self, Abort> {
        let meta = txn.open_table(META)?;
        let bytes = meta.get(META_DEAD_LETTER_BYTES)?.map_or(0, |bytes| bytes.value());
        Ok(Self { letters: txn.open_table(DEAD_LETTERS)?, meta, bytes })
    }

    /// Keeps a dead letter, and drops the oldest beyond `bytes_max`. Returns the gaps that they leave.
    pub(super) fn insert(&mut self, letter: &DeadLetter, bytes_max: u64) -> Result<Vec<Gap>, Abort> {
        let key = key(letter);
        let value = letter.encode();
        self.remove(key)?;
        self.bytes += value.len() as u64;
        self.letters.insert(key, value.as_slice())?;
        let mut dropped = Vec::new();
        while self.bytes > bytes_max
            && let Some(oldest) = self.oldest()?
        {
            dropped.push(self.drop_letter(oldest)?);
        }
        Ok(dropped)
    }

    /// Whether one is kept under this key.
    fn contains(&self, key: (u32, u64)) -> Result<bool, Abort> {
        Ok(self.letters.get(key)?.is_some())
    }

    /// Drops a dead letter for good: it was the only place where its message still was.
    fn drop_letter(&mut self, key: (u32, u64)) -> Result<Gap, Abort> {
        let (dataset, seq) = (DatasetId(key.0), Seq(key.1));
        let letter = self.letters.get(key)?.and_then(|value| DeadLetter::decode(seq, value.value()).ok());
        self.remove(key)?;
        Ok(Gap {
            dataset: (dataset != NO_DATASET).then_some(dataset),
            first: seq,
            end: seq.next(),
            messages: 1,
            bytes: letter.map_or(0, |letter| letter.message.payload.len() as u64),
            reason: GapReason::Dropped,
            at_us: super::now_us(),
        })
    }

    pub(super) fn remove(&mut self, key: (u32, u64)) -> Result<bool, Abort> {
        let Some(value) = self.letters.remove(key)? else { return Ok(false) };
        self.bytes = self.bytes.saturating_sub(value.value().len() as u64);
        Ok(true)
    }

    /// Makes the next seq at least `floor`, since no chunk will say that the ones below were given.
    pub(super) fn raise_seq_floor(&mut self, floor: Seq) -> Result<(), Abort> {
        self.meta.insert(super::tables::META_SEQ_FLOOR, floor.0)?;
        Ok(())
    }

    /// Stores the sum.
    pub(super) fn close(mut self) -> Result<(), Abort> {
        self.meta.insert(META_DEAD_LETTER_BYTES, self.bytes)?;
        Ok(())
    }

    /// The dead letter with the lowest seq of all datasets.
    fn oldest(&self) -> Result<Option<(u32, u64)>, Abort> {
        let mut oldest: Option<(u32, u64)> = None;
        let mut dataset = 0;
        while let Some((key, _)) = self.letters.range((dataset, 0)..)?.next().transpose()? {
            let key = key.value();
            if oldest.is_none_or(|oldest| key.1 < oldest.1) {
                oldest = Some(key);
            }
            let Some(next) = key.0.checked_add(1) else { break };
            dataset = next;
        }
        Ok(oldest)
    }
}

fn key(letter: &DeadLetter) -> (u32, u64) {
    (letter.message.dataset.0, letter.seq.0)
}
