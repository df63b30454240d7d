//! When to seal which dataset. Pure: time is microseconds since 1970, passed in.
//!
//! Every slice is a block in a chain that nothing compacts yet, so few large ones are better than many small ones. A dataset
//! is cut when its waiting messages reach the rows or the bytes of a slice; when the spool is more than three quarters full,
//! the largest dataset first; and when its oldest message reaches the age, *but only while an upstream can take it*. A site
//! that is offline for a week so uploads slices of full size when it comes back.
//!
//! The driver tells what happens with the `handle_*` verbs, then asks [`Batcher::poll_cut`] until it has nothing to seal,
//! then sleeps until [`Batcher::poll_timeout`] or the next event.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::position::DatasetId;

/// Sizes of a batch, the same for every dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Messages in a slice, at most. Default 100,000.
    pub rows: u64,
    /// Bytes of payloads in a slice, about. Default 32 MiB.
    pub bytes: u64,
    /// How long a message waits for others while an upstream is reachable, µs. Default 60 s.
    pub age_us: i64,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { rows: 100_000, bytes: 32 * 1024 * 1024, age_us: 60_000_000 }
    }
}

/// A dataset to be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Which.
    pub dataset: DatasetId,
    /// Why.
    pub reason: CutReason,
    /// Seal so many of its messages, from the oldest; fewer when [`BatchLimits::bytes`] is reached first.
    pub messages_max: u64,
}

/// Why a dataset is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutReason {
    /// A slice of [`BatchLimits::rows`] is there.
    Rows,
    /// A slice of [`BatchLimits::bytes`] is there.
    Bytes,
    /// The spool is filling; this is what frees most of it.
    Pressure,
    /// The oldest message has waited [`BatchLimits::age_us`], and an upstream can take it.
    Age,
    /// Everything is sealed on request.
    Drain,
}

/// Decides what is sealed next. Holds a few numbers for each dataset.
#[derive(Debug)]
pub struct Batcher {
    limits: BatchLimits,
    waiting: BTreeMap<DatasetId, Waiting>,
    reachable: bool,
    /// Bytes in the spool, and how many it may have.
    spool: (u64, u64),
    /// Datasets that reach the same limit take turns.
    last_cut: Option<DatasetId>,
}

/// Messages of one dataset that are not sealed.
#[derive(Clone, Copy, Debug, Default)]
struct Waiting {
    messages: u64,
    bytes: u64,
    oldest_us: Option<i64>,
    /// It is being sealed.
    cut: bool,
    /// So many of its messages were there when a drain was asked for.
    to_drain: u64,
}

impl Batcher {
    /// With nothing waiting and no upstream reachable.
    #[must_use]
    pub fn new(limits: BatchLimits) -> Self {
        Self { limits, waiting: BTreeMap::new(), reachable: false, spool: (0, u64::MAX), last_cut: None }
    }

    /// Messages were spooled, or found there at start.
    pub fn handle_messages(&mut self, dataset: DatasetId, messages: u64, bytes: u64, oldest_received_us: i64) {
        let waiting = self.waiting.entry(dataset).or_default();
        waiting.messages = waiting.messages.saturating_add(messages);
        waiting.bytes = waiting.bytes.saturating_add(bytes);
        let oldest = waiting.oldest_us.unwrap_or(oldest_received_us);
        waiting.oldest_us = Some(oldest.min(oldest_received_us));
    }

    /// A cut is done: so many messages have left the spool, into a slice or the dead letters, or were not there.
    /// `oldest_left_us` is when the oldest that still waits was received; none: nothing waits, whatever the counts say
    /// (damage may have taken messages that were told of).
    ///
    /// Zero messages: the cut failed. It is due again at once, and the driver chooses when to ask.
    pub fn handle_sealed(&mut self, dataset: DatasetId, messages: u64, bytes: u64, oldest_left_us: Option<i64>) {
        let Some(waiting) = self.waiting.get_mut(&dataset) else {
            return;
        };
        waiting.cut = false;
        if messages == 0 {
            return;
        }
        if oldest_left_us.is_none() {
            self.waiting.remove(&dataset);
            return;
        }
        waiting.messages = waiting.messages.saturating_sub(messages).max(1);
        waiting.bytes = waiting.bytes.saturating_sub(bytes);
        waiting.to_drain = waiting.to_drain.saturating_sub(messages);
        waiting.oldest_us = oldest_left_us;
    }

    /// Whether an upstream can take slices: age counts only then.
    pub fn handle_upstream(&mut self, reachable: bool) {
        self.reachable = reachable;
    }

    /// Bytes of payloads that wait.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting.values().map(|waiting| waiting.bytes).sum()
    }

    /// How full the spool is: bytes in it, and bytes it may have. Told after every seal and now and then.
    pub fn handle_spool(&mut self, used_bytes: u64, quota_bytes: u64) {
        self.spool = (used_bytes, quota_bytes);
    }

    /// Everything that waits now is to be sealed. What comes later is not part of it, so a drain ends.
    pub fn handle_drain(&mut self) {
        for waiting in self.waiting.values_mut() {
            waiting.to_drain = waiting.messages;
        }
    }

    /// Nothing of the last drain is left.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.waiting.values().all(|waiting| waiting.to_drain == 0)
    }

    /// What to seal next. The dataset is not named again before [`Batcher::handle_sealed`].
    pub fn poll_cut(&mut self, now_us: i64) -> Option<Cut> {
        self.follow_clock(now_us);
        let (dataset, reason) = self.due_by_size().or_else(|| self.due_by_pressure()).or_else(|| self.due(now_us))?;
        let waiting = self.waiting.get_mut(&dataset)?;
        waiting.cut = true;
        self.last_cut = Some(dataset);
        let wanted = match reason {
            CutReason::Drain => waiting.to_drain,
            _ => waiting.messages,
        };
        let messages_max = wanted.min(self.limits.rows);
        Some(Cut { dataset, reason, messages_max })
    }

    /// When age makes something due, µs since 1970, if nothing else happens before. None: sleep until something does.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<i64> {
        if !self.reachable {
            return None;
        }
        self.ready().filter_map(|(_, waiting)| self.due_at(waiting)).min()
    }

    /// A clock that was set back would make messages look as if they came from the future and let them wait for it. They
    /// begin to wait now instead: that costs at most one age.
    fn follow_clock(&mut self, now_us: i64) {
        for oldest_us in self.waiting.values_mut().filter_map(|waiting| waiting.oldest_us.as_mut()) {
            *oldest_us = (*oldest_us).min(now_us);
        }
    }

    fn due_by_size(&self) -> Option<(DatasetId, CutReason)> {
        self.ready().find_map(|(dataset, waiting)| {
            if waiting.messages >= self.limits.rows {
                Some((dataset, CutReason::Rows))
            } else if waiting.bytes >= self.limits.bytes {
                Some((dataset, CutReason::Bytes))
            } else {
                None
            }
        })
    }

    fn due_by_pressure(&self) -> Option<(DatasetId, CutReason)> {
        let (used, quota) = self.spool;
        if used <= quota / 4 * 3 {
            return None;
        }
        let largest = self.ready().max_by_key(|(_, waiting)| waiting.bytes);
        largest.map(|(dataset, _)| (dataset, CutReason::Pressure))
    }

    fn due(&self, now_us: i64) -> Option<(DatasetId, CutReason)> {
        self.ready().find_map(|(dataset, waiting)| {
            if waiting.to_drain > 0 {
                Some((dataset, CutReason::Drain))
            } else if self.reachable && self.due_at(waiting).is_some_and(|due| due <= now_us) {
                Some((dataset, CutReason::Age))
            } else {
                None
            }
        })
    }

    fn due_at(&self, waiting: &Waiting) -> Option<i64> {
        Some(waiting.oldest_us?.saturating_add(self.limits.age_us))
    }

    /// Datasets with messages that are not being sealed, the one after the last cut first.
    fn ready(&self) -> impl Iterator<Item = (DatasetId, &Waiting)> {
        let (after, before) = match self.last_cut {
            Some(last) => (Bound::Excluded(last), Bound::Included(last)),
            None => (Bound::Unbounded, Bound::Excluded(DatasetId(0))),
        };
        let first = self.waiting.range((after, Bound::Unbounded));
        let then = self.waiting.range((Bound::Unbounded, before));
        first
            .chain(then)
            .map(|(dataset, waiting)| (*dataset, waiting))
            .filter(|(_, waiting)| !waiting.cut && waiting.messages > 0)
    }
}

#[cfg(test)]
#[path = "batcher_tests.rs"]
mod tests;
