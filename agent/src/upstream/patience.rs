//! How long the other side may be silent, however long the whole takes.
//!
//! A deadline for a request would be wrong twice: a large slice on a slow link takes longer than any, and a link that is
//! dead should not be waited for that long. So the time counts from the last sign of life: the beginning, or a piece of a
//! body that the connection took. It stands still while we are the ones who wait, for the pace of the upstream.
//!
//! What the connection took may still lie in the kernel's buffer when the last piece is gone, and a slow link needs its time
//! for it: so every byte of a body earns patience, as far as such a buffer goes. (A peer that does not even acknowledge
//! what lies there is found out by TCP's own user timeout, which is not extended.)

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;

/// The slowest link that is waited for, bytes a second.
const SLOWEST_LINK: u64 = 64 << 10;
/// Bytes that a kernel buffers for a connection at the most; Linux grows its buffers up to this.
const BUFFER_MAX: u64 = 4 << 20;

/// The patience with one connection.
#[derive(Debug)]
pub(super) struct Patience {
    timeout: Duration,
    since: Mutex<Silence>,
    /// Bytes of a body that may still lie in the kernel's buffer.
    buffered: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
enum Silence {
    /// Theirs.
    Since(Instant),
    /// Ours: it does not count.
    OnHold,
}

impl Patience {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, since: Mutex::new(Silence::OnHold), buffered: AtomicU64::new(0) }
    }

    /// A sign of life.
    pub(super) fn touch(&self) {
        self.set(Silence::Since(clock::now()));
    }

    /// The connection took so many bytes of a body.
    pub(super) fn sent(&self, bytes: usize) {
        let earned = self.buffered.load(Ordering::Relaxed).saturating_add(bytes as u64);
        self.buffered.store(earned.min(BUFFER_MAX), Ordering::Relaxed);
        self.touch();
    }

    /// We keep the other side waiting until the next [`Patience::touch`].
    pub(super) fn hold(&self) {
        self.set(Silence::OnHold);
    }

    /// Does the work. `None`: the other side was silent for too long.
    pub(super) async fn limit<W: Future>(&self, work: W) -> Option<W::Output> {
        self.buffered.store(0, Ordering::Relaxed);
        self.touch();
        let mut work = pin!(work);
        loop {
            let left = self.left();
            if left.is_zero() {
                return None;
            }
            if let Ok(done) = tokio::time::timeout(left, work.as_mut()).await {
                return Some(done);
            }
        }
    }

    fn left(&self) -> Duration {
        let buffered = Duration::from_millis(self.buffered.load(Ordering::Relaxed) * 1_000 / SLOWEST_LINK);
        let patience = self.timeout.saturating_add(buffered);
        match *self.since.lock().unwrap_or_else(PoisonError::into_inner) {
            Silence::Since(at) => patience.saturating_sub(clock::now().saturating_duration_since(at)),
            Silence::OnHold => patience,
        }
    }

    fn set(&self, silence: Silence) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = silence;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn silence_ends_the_work_and_our_own_waiting_does_not() {
        let patience = Patience::new(Duration::from_millis(50));

        let paced = async {
            patience.hold();
            tokio::time::sleep(Duration::from_millis(200)).await;
            patience.touch();
        };

        assert_eq!(patience.limit(paced).await, Some(()));
        let buffered = async {
            patience.sent(32 << 10);
            tokio::time::sleep(Duration::from_millis(300)).await;
        };
        assert_eq!(patience.limit(buffered).await, Some(()));
        assert_eq!(patience.limit(std::future::pending::<()>()).await, None);
    }
}
