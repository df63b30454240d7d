//! How fast a client may publish: a token bucket that holds one second's worth.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// Tokens, counted in nanoseconds of their arrival: each message takes `cost` of them.
#[derive(Debug)]
pub(super) struct Rate {
    cost: Duration,
    /// When the bucket was empty, if nothing had been taken since; never more than a second ago.
    empty_at: Instant,
}

impl Rate {
    /// `per_second` messages, and as many at once.
    pub(super) fn new(per_second: NonZeroU32, now: Instant) -> Self {
        let empty_at = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        Self { cost: Duration::from_secs(1) / per_second.get(), empty_at }
    }

    /// Takes what one message costs. When that is more than is there: when the next message may come.
    pub(super) fn take(&mut self, now: Instant) -> Option<Instant> {
        let full_at = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        self.empty_at = self.empty_at.max(full_at) + self.cost;
        (self.empty_at > now).then_some(self.empty_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn a_second_s_worth_may_come_at_once_and_then_as_fast_as_the_rate() {
        let start = start();
        let mut rate = rate(10, start);
        for _ in 0..10 {
            assert_eq!(rate.take(start), None);
        }
        assert_eq!(rate.take(start), Some(start + Duration::from_millis(100)));
        let later = start + Duration::from_millis(100);
        assert_eq!(rate.take(later), Some(later + Duration::from_millis(100)));
    }

    #[test]
    fn what_is_not_used_is_saved_for_a_second_and_no_longer() {
        let start = start();
        let mut rate = rate(10, start);
        let later = start + Duration::from_secs(3_600);
        let free = (0..100).take_while(|_| rate.take(later).is_none()).count();
        assert_eq!(free, 10);
    }

    #[test]
    fn in_no_second_are_there_more_than_twice_the_rate() {
        let start = start();
        let mut rate = rate(7, start);
        let (mut now, mut last_second) = (start, VecDeque::new());
        for _ in 0..1_000 {
            let next = rate.take(now);
            last_second.push_back(now);
            last_second.retain(|at| now.duration_since(*at) < Duration::from_secs(1));
            assert!(last_second.len() <= 14 + 1, "{}", last_second.len());
            now = next.unwrap_or(now);
        }
        assert!(now.duration_since(start) >= Duration::from_secs(1_000 / 7 - 2));
    }

    fn rate(per_second: u32, now: Instant) -> Rate {
        Rate::new(NonZeroU32::new(per_second).expect("not zero"), now)
    }

    #[expect(clippy::disallowed_methods, reason = "some instant to count from")]
    fn start() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }
}
