//! Gaps: where the log misses messages that were acknowledged, and why.

use redb::{ReadableTable, WriteTransaction};

use crate::dead_letter::NO_DATASET;
use crate::position::{DatasetId, Seq};

use super::Spool;
use super::store::{Abort, SpoolError};
use super::tables::{GAPS, GapRow};

/// Acknowledged messages that will not reach their dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Whose; none when the damage hides it.
    pub dataset: Option<DatasetId>,
    /// All of them are at or after this position,
    pub first: Seq,
    /// and before this one.
    pub end: Seq,
    /// How many at most; 0 when the damage hides it.
    pub messages: u64,
    /// Their payload bytes at most; 0 when the damage hides it.
    pub bytes: u64,
    /// Why.
    pub reason: GapReason,
    /// When it was recorded, µs.
    pub at_us: i64,
}

/// Why messages are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// The spool was full and its owner had chosen to drop the oldest.
    Dropped,
    /// The bytes on disk were not what was written. What is left of them is under `bad/`.
    Damaged,
}

impl Spool {
    /// The recorded gaps, by dataset and position.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when redb itself is damaged.
    pub fn gaps(&self) -> Result<Vec<Gap>, SpoolError> {
        self.inner.store.read(|txn| {
            let table = txn.open_table(GAPS)?;
            let mut gaps = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                gaps.push(from_row(key.value(), value.value()));
            }
            Ok(gaps)
        })
    }
}

/// Records gaps. One that continues the last gap of its dataset, or that would be one too many, widens that.
pub(super) fn record(txn: &WriteTransaction, gaps: &[Gap], gaps_max: u64) -> Result<(), Abort> {
    let mut table = txn.open_table(GAPS)?;
    for gap in gaps {
        let dataset = gap.dataset.unwrap_or(NO_DATASET).0;
        let last = table.range((dataset, 0)..=(dataset, u64::MAX))?.next_back().transpose()?;
        let last = last.map(|(key, value)| from_row(key.value(), value.value()));
        let known = table.range((dataset, 0)..=(dataset, u64::MAX))?.count() as u64;
        let row = match last {
            Some(last) if last.first <= gap.first && gap.end <= last.end && last.reason == gap.reason => continue,
            Some(last) if (last.end >= gap.first && last.reason == gap.reason) || known >= gaps_max => Gap {
                first: last.first.min(gap.first),
                end: last.end.max(gap.end),
                messages: last.messages.saturating_add(gap.messages),
                bytes: last.bytes.saturating_add(gap.bytes),
                ..*gap
            },
            _ => *gap,
        };
        if let Some(last) = last.filter(|last| row.first < last.first) {
            table.remove((dataset, last.first.0))?;
        }
        table.insert((dataset, row.first.0), to_row(&row))?;
    }
    Ok(())
}

fn to_row(gap: &Gap) -> GapRow {
    let reason = match gap.reason {
        GapReason::Dropped => 0,
        GapReason::Damaged => 1,
    };
    (gap.end.0, gap.messages, gap.bytes, reason, gap.at_us)
}

fn from_row((dataset, first): (u32, u64), (end, messages, bytes, reason, at_us): GapRow) -> Gap {
    Gap {
        dataset: (dataset != NO_DATASET.0).then_some(DatasetId(dataset)),
        first: Seq(first),
        end: Seq(end),
        messages,
        bytes,
        reason: if reason == 0 { GapReason::Dropped } else { GapReason::Damaged },
        at_us,
    }
}
