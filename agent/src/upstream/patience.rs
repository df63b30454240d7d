//! How long the other side may be silent, however long the whole takes.
//!
//! A deadline for a request would be wrong twice: a large slice on a slow link takes longer than any, and a link that is
//! dead should not be waited for that long. So the time counts from the last sign of life: the beginning, or a piece of a
//! body that the connection took. It stands still while we are the ones who wait, for the pace of the upstream.

use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;

/// The patience with one connection.
#[derive(Debug)]
pub(super) struct Patience {
    timeout: Duration,
    since: Mutex<Silence>,
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
        Self { timeout, since: Mutex::new(Silence::OnHold) }
    }

    /// A sign of life.
    pub(super) fn touch(&self) {
        self.set(Silence::Since(clock::now()));
    }

    /// We keep the other side waiting until the next [`Patience::touch`].
    pub(super) fn hold(&self) {
        self.set(Silence::OnHold);
    }

    /// Does the work. `None`: the other side was silent for too long.
    pub(super) async fn limit<W: Future>(&self, work: W) -> Option<W::Output> {
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
        match *self.since.lock().unwrap_or_else(PoisonError::into_inner) {
            Silence::Since(at) => self.timeout.saturating_sub(clock::now().saturating_duration_since(at)),
            Silence::OnHold => self.timeout,
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
        assert_eq!(patience.limit(std::future::pending::<()>()).await, None);
    }
}
