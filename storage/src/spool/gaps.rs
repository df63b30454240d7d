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
    /// and before this one; `u64::MAX` when nobody knows.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum GapReason {
    /// The spool was full and its owner had chosen to drop the oldest.
    Dropped,
    /// The bytes on disk were not what was written. What is left of them is under `bad/`, when there was room.
    Damaged,
    /// The database was damaged so that nobody knows what it held, nor how far: some messages, or all that were not yet
    /// sealed. The file is under `bad/`.
    Lost,
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

/// Records gaps. One that touches the one before it, for the same reason, widens that; one that would be too many widens
/// its neighbour. No other row is changed.
pub(super) fn record(txn: &WriteTransaction, gaps: &[Gap], gaps_max: u64) -> Result<(), Abort> {
    if gaps.is_empty() {
        return Ok(());
    }
    let mut table = txn.open_table(GAPS)?;
    for gap in gaps {
        let dataset = gap.dataset.unwrap_or(NO_DATASET).0;
        let before = table.range((dataset, 0)..=(dataset, gap.first.0))?.next_back().transpose()?;
        let before = before.map(|(key, value)| from_row(key.value(), value.value()));
        if before.is_some_and(|before| before.says_already(gap)) {
            continue;
        }
        let known = table.range((dataset, 0)..=(dataset, u64::MAX))?.count() as u64;
        let neighbour = match before {
            Some(before) if before.first == gap.first => Some(before),
            Some(before) if before.end >= gap.first && before.reason == gap.reason => Some(before),
            Some(before) if known >= gaps_max => Some(before),
            None if known >= gaps_max => {
                let after = table.range((dataset, gap.first.0)..=(dataset, u64::MAX))?.next().transpose()?;
                after.map(|(key, value)| from_row(key.value(), value.value()))
            }
            _ => None,
        };
        let row = neighbour.map_or(*gap, |neighbour| neighbour.widened(gap));
        if let Some(neighbour) = neighbour {
            table.remove((dataset, neighbour.first.0))?;
        }
        table.insert((dataset, row.first.0), to_row(&row))?;
    }
    Ok(())
}

impl Gap {
    /// Whether the other adds nothing: the same damage, met again. What is dropped is dropped once, and counts.
    fn says_already(&self, other: &Self) -> bool {
        let covers = self.first <= other.first && other.end <= self.end;
        covers && self.reason == other.reason && other.reason != GapReason::Dropped
    }

    /// Both in one. What holds for only one of them is of the worse reason.
    fn widened(self, other: &Self) -> Self {
        Self {
            dataset: self.dataset,
            first: self.first.min(other.first),
            end: self.end.max(other.end),
            messages: self.messages.saturating_add(other.messages),
            bytes: self.bytes.saturating_add(other.bytes),
            reason: self.reason.max(other.reason),
            at_us: other.at_us,
        }
    }
}

fn to_row(gap: &Gap) -> GapRow {
    let reason = match gap.reason {
        GapReason::Dropped => 0,
        GapReason::Damaged => 1,
        GapReason::Lost => 2,
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
        reason: match reason {
            0 => GapReason::Dropped,
            2 => GapReason::Lost,
            _ => GapReason::Damaged,
        },
        at_us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_gap_of_another_reason_leaves_the_later_one_alone() {
        let (late, early) = (gap(500, 510, GapReason::Damaged), gap(100, 110, GapReason::Dropped));

        assert_eq!(recorded(&[late, early], 1000), [early, late]);
    }

    #[test]
    fn a_gap_that_continues_another_of_its_reason_widens_it() {
        let gaps = [gap(100, 110, GapReason::Dropped), gap(110, 120, GapReason::Dropped)];

        assert_eq!(recorded(&gaps, 1000), [Gap { messages: 20, bytes: 20, ..gap(100, 120, GapReason::Dropped) }]);
    }

    #[test]
    fn damage_that_is_met_again_is_not_counted_again() {
        let gap = gap(100, 110, GapReason::Damaged);

        assert_eq!(recorded(&[gap, gap], 1000), [gap]);
    }

    #[test]
    fn of_two_gaps_that_begin_at_one_position_neither_is_forgotten() {
        let gaps = [gap(100, 120, GapReason::Damaged), gap(100, 101, GapReason::Dropped)];

        assert_eq!(recorded(&gaps, 1000), [Gap { messages: 20, bytes: 20, ..gap(100, 120, GapReason::Damaged) }]);
    }

    #[test]
    fn one_gap_too_many_widens_its_neighbour_and_no_message_goes_uncounted() {
        for order in [[100, 200, 300], [300, 200, 100], [200, 300, 100], [100, 300, 200]] {
            let gaps = order.map(|first| gap(first, first + 10, GapReason::Dropped));

            let recorded = recorded(&gaps, 2);

            assert_eq!(recorded.len(), 2, "{recorded:?}");
            assert_eq!(recorded.iter().map(|gap| gap.messages).sum::<u64>(), 30);
            let covered = |gap: &Gap| recorded.iter().any(|wide| wide.first <= gap.first && gap.end <= wide.end);
            assert!(gaps.iter().all(covered), "{recorded:?}");
        }
    }

    fn gap(first: u64, end: u64, reason: GapReason) -> Gap {
        Gap { dataset: Some(DatasetId(1)), first: Seq(first), end: Seq(end), messages: 10, bytes: 10, reason, at_us: 0 }
    }

    fn recorded(gaps: &[Gap], gaps_max: u64) -> Vec<Gap> {
        let database = redb::Database::builder().create_with_backend(redb::backends::InMemoryBackend::new()).unwrap();
        let txn = redb::Database::begin_write(&database).unwrap();
        for gap in gaps {
            assert!(record(&txn, &[*gap], gaps_max).is_ok());
        }
        let table = txn.open_table(GAPS).unwrap();
        table.iter().unwrap().map(Result::unwrap).map(|(key, value)| from_row(key.value(), value.value())).collect()
    }
}
