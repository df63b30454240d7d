//! Waits as a [`Pacer`] says.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};

use super::schedule::Pacer;
use crate::clock;

/// The pace of one upstream.
#[derive(Debug)]
pub(super) struct Pace(Mutex<Pacer>);

impl Pace {
    /// At most `rate` bytes a second; none: no limit.
    #[must_use]
    pub(super) fn new(rate: Option<NonZeroU64>) -> Self {
        Self(Mutex::new(Pacer::new(rate)))
    }

    /// Waits until so many bytes may be sent.
    pub(super) async fn wait(&self, bytes: usize) {
        let wait = self.0.lock().unwrap_or_else(PoisonError::into_inner).take(bytes as u64, clock::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}
