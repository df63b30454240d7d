//! What is known of one upstream, for `status`, for the sealer and for whoever waits for a delivery.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::config::Upstream;

/// What is known of one upstream.
#[derive(Debug, Default)]
pub struct Progress {
    reachable: AtomicBool,
    /// Number of the last urge that was followed to its end.
    urged: AtomicU64,
    report: Mutex<DeliveryReport>,
}

/// What `status` says of one upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryReport {
    /// Its URL.
    pub url: String,
    /// Whether the last attempt reached it.
    pub reachable: bool,
    /// Since when something sealed waits for it, milliseconds since 1970.
    pub pending_since_ms: Option<i64>,
    /// Bytes of sealed slices that it does not have yet; they count against `spool.max_bytes`.
    pub undelivered_bytes: u64,
    /// Why the last attempt failed, and what to change.
    pub last_error: Option<String>,
    /// Blocks delivered since the agent started; with push ingest, slices.
    pub blocks: u64,
    /// Bytes sent since the agent started.
    pub bytes: u64,
    /// Dataset name to position: the first `seq` not delivered.
    pub delivered: BTreeMap<String, u64>,
    /// Rows delivered since the agent started.
    #[serde(default)]
    pub rows: u64,
    /// Dataset name to what keeps it from being delivered, and what to change.
    #[serde(default)]
    pub problems: BTreeMap<String, Problem>,
    /// Dataset name to rows that were released before this upstream was configured, and that it never gets from here.
    #[serde(default)]
    pub never_sent: BTreeMap<String, u64>,
    /// Milliseconds since 1970 at which the configured window opens; none: it is open, or there is none.
    #[serde(default)]
    pub opens_at_ms: Option<i64>,
}

/// Why a dataset is not delivered while others are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// One line.
    pub words: String,
    /// The upstream refuses it until somebody changes something; it is tried again only now and then.
    pub quarantined: bool,
}

impl DeliveryReport {
    /// The same, with what was sent counted from an earlier report.
    #[must_use]
    pub fn since(self, before: &Self) -> Self {
        Self {
            blocks: self.blocks - before.blocks.min(self.blocks),
            bytes: self.bytes - before.bytes.min(self.bytes),
            rows: self.rows - before.rows.min(self.rows),
            ..self
        }
    }
}

impl Progress {
    /// Nothing is known yet.
    pub fn new(upstream: &Upstream) -> Self {
        let report = DeliveryReport { url: upstream.url.clone(), ..DeliveryReport::default() };
        Self { report: Mutex::new(report), ..Self::default() }
    }

    /// Whether the last attempt reached it.
    pub fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// Whether a batch that is cut now can go there: only then does the age of a batch count.
    pub fn can_take(&self) -> bool {
        self.is_reachable() && self.lock().opens_at_ms.is_none()
    }

    /// What is known.
    pub fn report(&self) -> DeliveryReport {
        self.lock().clone()
    }

    /// Number of the last urge ([`Bell::urge`](super::bell::Bell::urge)) after which everything was delivered or had failed.
    pub fn urged(&self) -> u64 {
        self.urged.load(Ordering::Acquire)
    }

    pub(super) fn set_urged(&self, urge: u64) {
        self.urged.store(urge, Ordering::Release);
    }

    /// Whether it was not so before.
    pub(super) fn set_reachable(&self, reachable: bool) -> bool {
        let before = self.reachable.swap(reachable, Ordering::Relaxed);
        self.lock().reachable = reachable;
        before != reachable
    }

    /// What the spool says at a start, or after a receipt.
    pub(super) fn set_delivered(&self, positions: BTreeMap<String, u64>) {
        let mut report = self.lock();
        report.delivered = positions;
        report.pending_since_ms = None;
    }

    /// What the spool says for deliveries that follow others: what was said of a dataset that no longer goes there is
    /// forgotten.
    pub(super) fn go_on(&self, positions: BTreeMap<String, u64>) {
        let mut report = self.lock();
        report.problems.retain(|dataset, _| positions.contains_key(dataset));
        report.never_sent.retain(|dataset, _| positions.contains_key(dataset));
        report.delivered = positions;
    }

    pub(super) fn set_undelivered(&self, bytes: u64) {
        self.lock().undelivered_bytes = bytes;
    }

    /// A panic of another thread leaves plain data behind, which is still good to read.
    pub(super) fn lock(&self) -> MutexGuard<'_, DeliveryReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_that_follow_others_forget_what_was_said_of_datasets_that_no_longer_go_there() {
        let progress = Progress::default();
        progress.lock().rows = 7;
        for dataset in ["kept", "gone"] {
            progress.lock().problems.insert(dataset.to_owned(), Problem::default());
            progress.lock().delivered.insert(dataset.to_owned(), 3);
        }

        progress.go_on([("kept".to_owned(), 5)].into());

        let report = progress.report();
        assert_eq!((report.rows, report.delivered), (7, [("kept".to_owned(), 5)].into()));
        assert_eq!(report.problems.into_keys().collect::<Vec<_>>(), ["kept"]);
    }
}
