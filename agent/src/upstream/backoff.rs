//! How long to wait after a failure: exponential, bounded, with full jitter. (pure)

use std::time::Duration;

/// Counts failures in a row.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// The first wait is at most `first`; no wait exceeds `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, failures: 0 }
    }

    /// The wait after one more failure. `random` lies in `[0; 1)`: many gateways that lost the same upstream at the same
    /// time must not come back at the same time. Half of the wait is certain, so that it never is none.
    pub fn handle_failure(&mut self, random: f64) -> Duration {
        let doubled = 2u32.saturating_pow(self.failures);
        let ceiling = self.first.saturating_mul(doubled).min(self.max);
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }

    /// Other bounds from the next failure on; the count of failures stays.
    pub fn set_bounds(&mut self, first: Duration, max: Duration) {
        (self.first, self.max) = (first, max);
    }

    /// After a success the next failure waits as briefly as the first.
    pub fn handle_success(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff() -> Backoff {
        Backoff::new(Duration::from_secs(1), Duration::from_secs(30))
    }

    #[test]
    fn every_failure_doubles_the_wait_up_to_the_bound() {
        let mut backoff = backoff();

        let waits: Vec<u64> = (0..7).map(|_| backoff.handle_failure(1.0).as_secs()).collect();

        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn jitter_takes_away_at_most_half() {
        assert_eq!(backoff().handle_failure(0.0), Duration::from_millis(500));
        assert_eq!(backoff().handle_failure(0.5), Duration::from_millis(750));
    }

    #[test]
    fn a_success_starts_over() {
        let mut backoff = backoff();
        backoff.handle_failure(1.0);
        backoff.handle_failure(1.0);

        backoff.handle_success();

        assert_eq!(backoff.failures(), 0);
        assert_eq!(backoff.handle_failure(1.0), Duration::from_secs(1));
    }

    #[test]
    fn a_thousand_failures_do_not_overflow() {
        let mut backoff = backoff();

        let last = (0..1_000).map(|_| backoff.handle_failure(1.0)).last();

        assert_eq!(last, Some(Duration::from_secs(30)));
    }
}
