//! When something is sent, in which order and how fast. (pure)

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use chrono::{NaiveTime, TimeDelta};

use crate::config::Window;

/// A slice of at most so many bytes counts as live. 1 MiB.
pub const LIVE_BYTES_MAX: u64 = 1 << 20;
/// Seconds of its rate that a pause has saved at the most, so that a link is not flooded after it.
const BURST_SECS: f64 = 1.0;

/// How long it is until the window opens; none: it is open.
#[must_use]
pub fn opens_in(window: Option<Window>, local: NaiveTime) -> Option<Duration> {
    let window = window?;
    let is_open = if window.from < window.to {
        (window.from..window.to).contains(&local)
    } else {
        local >= window.from || local < window.to
    };
    if is_open {
        return None;
    }
    let mut until = window.from - local;
    if until < TimeDelta::zero() {
        until += TimeDelta::days(1);
    }
    until.to_std().ok()
}

/// Bytes a second, as a bucket that fills with time and may be overdrawn by one piece: whoever takes more than there is
/// waits for the rest.
#[derive(Clone, Debug)]
pub struct Pacer {
    rate: Option<NonZeroU64>,
    saved: f64,
    at: Option<Instant>,
}

impl Pacer {
    /// At most `rate` bytes a second; none: no limit.
    #[must_use]
    pub fn new(rate: Option<NonZeroU64>) -> Self {
        Self { rate, saved: 0.0, at: None }
    }

    /// Takes `bytes`, and answers how long to wait before they are sent.
    pub fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact to the byte")]
        let (rate, bytes) = (rate.get() as f64, bytes as f64);
        let earned = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64() * rate);
        self.at = Some(now);
        self.saved = (self.saved + earned).min(rate * BURST_SECS) - bytes;
        if self.saved >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.saved / rate) }
    }
}

/// What waits: the bytes of a slice, or of all that a dataset lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Bytes.
    pub bytes: u64,
}

/// Which of the slices that wait, oldest first, goes next. With `live_first` that is the newest one while it is small;
/// the others follow in their order.
#[must_use]
pub fn next_slice(waiting: &[Waiting], live_first: bool) -> Option<usize> {
    let newest = waiting.len().checked_sub(1)?;
    let is_live = waiting.get(newest).is_some_and(|slice| slice.bytes <= LIVE_BYTES_MAX);
    Some(if live_first && is_live { newest } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: u32, minute: u32) -> NaiveTime {
        NaiveTime::from_hms_opt(hour, minute, 0).unwrap()
    }

    fn hours(hours: u64) -> Option<Duration> {
        Some(Duration::from_secs(hours * 3_600))
    }

    #[test]
    fn a_window_over_midnight_is_open_on_both_sides_of_it() {
        let night = Some(Window { from: at(22, 0), to: at(6, 0) });

        assert_eq!(opens_in(night, at(22, 0)), None);
        assert_eq!(opens_in(night, at(5, 59)), None);
        assert_eq!(opens_in(night, at(6, 0)), hours(16));
        assert_eq!(opens_in(night, at(21, 0)), hours(1));
    }

    #[test]
    fn a_window_within_a_day_opens_again_on_the_next() {
        let noon = Some(Window { from: at(12, 0), to: at(13, 0) });

        assert_eq!(opens_in(noon, at(11, 0)), hours(1));
        assert_eq!(opens_in(noon, at(12, 30)), None);
        assert_eq!(opens_in(noon, at(13, 0)), hours(23));
        assert_eq!(opens_in(None, at(13, 0)), None);
    }

    #[test]
    fn a_pacer_spreads_bytes_over_time_and_saves_one_second_at_the_most() {
        let start = crate::clock::now();
        let after = |secs| start + Duration::from_secs(secs);
        let mut pacer = Pacer::new(NonZeroU64::new(1_000));

        assert_eq!(pacer.take(500, start), Duration::from_millis(500));
        assert_eq!(pacer.take(500, start), Duration::from_secs(1));
        assert_eq!(pacer.take(1_000, after(100)), Duration::ZERO);
        assert_eq!(pacer.take(1_000, after(100)), Duration::from_secs(1));
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        assert_eq!(Pacer::new(None).take(u64::MAX, crate::clock::now()), Duration::ZERO);
    }

    #[test]
    fn live_first_lets_a_small_new_slice_overtake_a_backlog() {
        let slice = |bytes| Waiting { bytes };
        let backlog = [slice(30 << 20), slice(30 << 20), slice(1_000)];

        assert_eq!(next_slice(&backlog, true), Some(2));
        assert_eq!(next_slice(&backlog, false), Some(0));
        assert_eq!(next_slice(&backlog[..2], true), Some(0), "a large slice is no live one");
        assert_eq!(next_slice(&[], true), None);
    }
}
