//! Timelines of the batcher. Times are seconds unless a name says otherwise.

use super::*;

const A: DatasetId = DatasetId(1);
const B: DatasetId = DatasetId(2);
const SECOND: i64 = 1_000_000;

#[test]
fn a_week_offline_in_fast_forward_gives_slices_of_full_size_and_age_counts_again_afterwards() {
    let mut site = Site::new(BatchLimits::default());
    let week = 604_800;

    let cuts: Vec<_> = (0..week).flat_map(|second| site.reading(A, second)).collect();

    assert_eq!(cuts, [(CutReason::Rows, 100_000); 6]);
    assert_eq!(site.batcher.poll_timeout(), None, "nothing is due while offline");

    site.batcher.handle_upstream(true);
    assert_eq!(site.seal_all(week), [(CutReason::Age, 4_800)], "what is left is old enough");
    assert_eq!(site.reading(A, week), [], "one reading waits for others again");
    assert_eq!(site.batcher.poll_timeout(), Some((week + 60) * SECOND));
    assert_eq!(site.seal_all(week + 59), []);
    assert_eq!(site.seal_all(week + 60), [(CutReason::Age, 1)]);
}

#[test]
fn a_batch_is_cut_at_its_rows() {
    let mut site = Site::new(BatchLimits { rows: 3, ..BatchLimits::default() });

    assert_eq!(site.reading(A, 0), []);
    assert_eq!(site.reading(A, 0), []);
    assert_eq!(site.reading(A, 0), [(CutReason::Rows, 3)]);
}

#[test]
fn a_backlog_is_cut_into_slices_of_at_most_the_rows() {
    let mut site = Site::new(BatchLimits { rows: 10, ..BatchLimits::default() });

    site.spool(A, 25, 0);

    assert_eq!(site.seal_all(0), [(CutReason::Rows, 10), (CutReason::Rows, 10)]);
    assert_eq!(site.waiting[&A].len(), 5);
}

#[test]
fn a_batch_is_cut_at_its_bytes() {
    let mut batcher = Batcher::new(BatchLimits { bytes: 1_000, ..BatchLimits::default() });

    batcher.handle_messages(A, 1, 999, 0);
    assert_eq!(batcher.poll_cut(0), None);

    batcher.handle_messages(A, 1, 1, 0);
    assert_eq!(batcher.poll_cut(0), Some(cut(A, CutReason::Bytes, 2)));
}

#[test]
fn age_counts_from_the_oldest_message_and_only_while_an_upstream_is_reachable() {
    let mut batcher = Batcher::new(BatchLimits::default());
    batcher.handle_messages(A, 1, 1, 10 * SECOND);
    batcher.handle_messages(A, 1, 1, 50 * SECOND);

    assert_eq!(batcher.poll_cut(1_000 * SECOND), None);
    assert_eq!(batcher.poll_timeout(), None);

    batcher.handle_upstream(true);
    assert_eq!(batcher.poll_timeout(), Some(70 * SECOND));
    assert_eq!(batcher.poll_cut(69 * SECOND), None);
    assert_eq!(batcher.poll_cut(70 * SECOND), Some(cut(A, CutReason::Age, 2)));
}

#[test]
fn a_dataset_that_is_being_sealed_is_not_named_again() {
    let mut batcher = Batcher::new(BatchLimits { rows: 1, ..BatchLimits::default() });
    batcher.handle_upstream(true);
    batcher.handle_messages(A, 2, 2, 0);

    assert_eq!(batcher.poll_cut(0), Some(cut(A, CutReason::Rows, 1)));
    assert_eq!(batcher.poll_cut(0), None);
    assert_eq!(batcher.poll_timeout(), None);

    batcher.handle_sealed(A, 1, 1, Some(0));
    assert_eq!(batcher.poll_cut(0), Some(cut(A, CutReason::Rows, 1)));
}

#[test]
fn a_failed_cut_is_due_again() {
    let mut batcher = Batcher::new(BatchLimits { rows: 1, ..BatchLimits::default() });
    batcher.handle_messages(A, 1, 1, 0);
    let first = batcher.poll_cut(0);

    batcher.handle_sealed(A, 0, 0, None);

    assert!(first.is_some());
    assert_eq!(batcher.poll_cut(0), first);
}

#[test]
fn counts_that_damage_made_wrong_do_not_outlive_the_messages() {
    let mut batcher = Batcher::new(BatchLimits::default());
    batcher.handle_messages(A, 10, 1_000, 0);
    batcher.handle_drain();
    batcher.poll_cut(0);

    batcher.handle_sealed(A, 7, 700, None);

    assert_eq!(batcher.poll_cut(0), None);
    assert!(batcher.is_drained());
}

#[test]
fn a_filling_spool_cuts_the_largest_dataset_first_until_it_is_no_longer_filling() {
    let mut batcher = Batcher::new(BatchLimits::default());
    batcher.handle_messages(A, 10, 1_000, 0);
    batcher.handle_messages(B, 1, 5_000, 0);

    batcher.handle_spool(75, 100);
    assert_eq!(batcher.poll_cut(0), None);

    batcher.handle_spool(76, 100);
    assert_eq!(batcher.poll_cut(0), Some(cut(B, CutReason::Pressure, 1)));
    batcher.handle_sealed(B, 1, 5_000, None);
    assert_eq!(batcher.poll_cut(0), Some(cut(A, CutReason::Pressure, 10)), "still filling");
    batcher.handle_sealed(A, 0, 0, None);
    batcher.handle_spool(20, 100);
    assert_eq!(batcher.poll_cut(0), None);
}

#[test]
fn a_drain_seals_what_was_there_when_it_was_asked_for_and_ends() {
    let mut batcher = Batcher::new(BatchLimits { rows: 10, ..BatchLimits::default() });
    batcher.handle_messages(A, 3, 3, 0);
    batcher.handle_messages(B, 4, 4, 0);

    batcher.handle_drain();
    batcher.handle_messages(A, 1, 1, 1);

    assert_eq!(batcher.poll_cut(0), Some(cut(A, CutReason::Drain, 3)));
    assert_eq!(batcher.poll_cut(0), Some(cut(B, CutReason::Drain, 4)));
    batcher.handle_sealed(A, 3, 3, Some(1));
    assert!(!batcher.is_drained());
    batcher.handle_sealed(B, 4, 4, None);
    assert!(batcher.is_drained());
    assert_eq!(batcher.poll_cut(0), None);
}

#[test]
fn datasets_that_are_always_due_take_turns() {
    let mut site = Site::new(BatchLimits { rows: 1, ..BatchLimits::default() });
    site.spool(A, 3, 0);
    site.spool(B, 3, 0);

    let order: Vec<_> = std::iter::from_fn(|| site.seal_next(0)).map(|cut| cut.dataset).collect();

    assert_eq!(order, [A, B, A, B, A, B]);
}

#[test]
fn a_clock_that_is_set_back_delays_a_cut_by_one_age_at_most() {
    let mut batcher = Batcher::new(BatchLimits::default());
    batcher.handle_upstream(true);
    batcher.handle_messages(A, 1, 1, 2_000_000_000 * SECOND);

    assert_eq!(batcher.poll_cut(1_000 * SECOND), None);
    assert_eq!(batcher.poll_timeout(), Some(1_060 * SECOND));
    assert_eq!(batcher.poll_cut(1_060 * SECOND), Some(cut(A, CutReason::Age, 1)));
}

#[test]
fn no_clock_and_no_count_makes_it_panic() {
    let extremes = [i64::MIN, -1, 0, i64::MAX];
    for (received, now) in extremes.into_iter().flat_map(|a| extremes.map(|b| (a, b))) {
        let mut batcher = Batcher::new(BatchLimits { age_us: i64::MAX, ..BatchLimits::default() });
        batcher.handle_upstream(true);
        batcher.handle_messages(A, u64::MAX, u64::MAX, received);
        batcher.handle_messages(A, u64::MAX, u64::MAX, received);
        batcher.handle_spool(u64::MAX, 0);
        assert!(batcher.poll_cut(now).is_some());
        batcher.handle_sealed(A, u64::MAX, u64::MAX, None);
        batcher.handle_sealed(A, 1, 1, None);
        assert_eq!(batcher.poll_timeout(), None);
    }
}

fn cut(dataset: DatasetId, reason: CutReason, messages_max: u64) -> Cut {
    Cut { dataset, reason, messages_max }
}

/// A batcher with a sealer that seals at once, and times of receipt of what waits.
struct Site {
    batcher: Batcher,
    waiting: BTreeMap<DatasetId, std::collections::VecDeque<i64>>,
}

impl Site {
    fn new(limits: BatchLimits) -> Self {
        Self { batcher: Batcher::new(limits), waiting: BTreeMap::new() }
    }

    fn reading(&mut self, dataset: DatasetId, second: i64) -> Vec<(CutReason, u64)> {
        self.spool(dataset, 1, second);
        self.seal_all(second)
    }

    fn spool(&mut self, dataset: DatasetId, messages: u64, second: i64) {
        for _ in 0..messages {
            self.waiting.entry(dataset).or_default().push_back(second * SECOND);
            self.batcher.handle_messages(dataset, 1, 100, second * SECOND);
        }
    }

    fn seal_all(&mut self, second: i64) -> Vec<(CutReason, u64)> {
        std::iter::from_fn(|| self.seal_next(second)).map(|cut| (cut.reason, cut.messages_max)).collect()
    }

    fn seal_next(&mut self, second: i64) -> Option<Cut> {
        let cut = self.batcher.poll_cut(second * SECOND)?;
        let waiting = self.waiting.get_mut(&cut.dataset)?;
        waiting.drain(..usize::try_from(cut.messages_max).expect("a count of what waits"));
        let oldest_left = waiting.front().copied();
        self.batcher.handle_sealed(cut.dataset, cut.messages_max, cut.messages_max * 100, oldest_left);
        Some(cut)
    }
}
