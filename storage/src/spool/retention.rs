//! Which chunks may be deleted: the one place that decides it (pure).
//!
//! 1. A chunk is *released* when every dataset with a message in it is sealed to its end (I2).
//! 2. Released chunks stay while they are among the last `tail_bytes` of them, because the DUP window is rebuilt from them.
//! 3. Chunks that are not released go only when the owner chose to drop the oldest, oldest first, with a recorded gap.

use std::collections::BTreeMap;

use crate::position::{DatasetId, Seq};

use super::chunk::ChunkInfo;

/// Whether everything in the chunk is sealed.
pub(super) fn is_released(chunk: &ChunkInfo, sealed: &BTreeMap<DatasetId, Seq>) -> bool {
    chunk.datasets.iter().all(|(dataset, ..)| sealed.get(dataset).is_some_and(|&sealed| sealed >= chunk.end))
}

/// Of the released chunks (first seq → bytes), those that are older than the last `tail_bytes`.
pub(super) fn beyond_tail(released: &BTreeMap<Seq, u64>, tail_bytes: u64) -> Vec<Seq> {
    let mut tail = 0_u64;
    let mut beyond: Vec<Seq> = released
        .iter()
        .rev()
        .filter(|&(_, bytes)| {
            tail = tail.saturating_add(*bytes);
            tail > tail_bytes
        })
        .map(|(first, _)| *first)
        .collect();
    beyond.reverse();
    beyond
}

/// Of a chunk that is dropped: which datasets lose how many messages and payload bytes. A dataset that is sealed into the
/// middle of the chunk is counted in full: the figures are upper bounds.
pub(super) fn lost_by_dropping(chunk: &ChunkInfo, sealed: &BTreeMap<DatasetId, Seq>) -> Vec<(DatasetId, u64, u64)> {
    chunk
        .datasets
        .iter()
        .filter(|(dataset, ..)| sealed.get(dataset).is_none_or(|&sealed| sealed < chunk.end))
        .map(|&(dataset, messages, bytes)| (dataset, u64::from(messages), bytes))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: DatasetId = DatasetId(1);
    const B: DatasetId = DatasetId(2);

    #[test]
    fn a_chunk_is_released_when_all_its_datasets_are_sealed_to_its_end() {
        let chunk = chunk(10, 20, &[A, B]);

        assert!(!is_released(&chunk, &sealed(&[(A, 20)])), "B was never sealed");
        assert!(!is_released(&chunk, &sealed(&[(A, 20), (B, 19)])));
        assert!(is_released(&chunk, &sealed(&[(A, 20), (B, 20)])));
        assert!(is_released(&chunk, &sealed(&[(A, 25), (B, 20)])));
    }

    #[test]
    fn a_dataset_that_lags_does_not_hold_chunks_without_it() {
        assert!(is_released(&chunk(10, 20, &[A]), &sealed(&[(A, 20), (B, 0)])));
    }

    #[test]
    fn the_last_released_chunks_stay_for_the_dup_window() {
        let released: BTreeMap<_, _> = [(Seq(0), 40), (Seq(10), 40), (Seq(20), 40)].into();

        assert_eq!(beyond_tail(&released, 100), [Seq(0)]);
        assert_eq!(beyond_tail(&released, 0), [Seq(0), Seq(10), Seq(20)]);
        assert_eq!(beyond_tail(&released, 120), []);
    }

    #[test]
    fn a_dropped_chunk_loses_what_is_not_sealed() {
        let lost = lost_by_dropping(&chunk(10, 20, &[A, B]), &sealed(&[(A, 20), (B, 15)]));

        assert_eq!(lost, [(B, 5, 50)]);
    }

    fn chunk(first: u64, end: u64, datasets: &[DatasetId]) -> ChunkInfo {
        ChunkInfo {
            first: Seq(first),
            end: Seq(end),
            bytes_on_disk: 4096,
            oldest_received_us: 0,
            datasets: datasets.iter().map(|&dataset| (dataset, 5, 50)).collect(),
        }
    }

    fn sealed(positions: &[(DatasetId, u64)]) -> BTreeMap<DatasetId, Seq> {
        positions.iter().map(|&(dataset, seq)| (dataset, Seq(seq))).collect()
    }
}
