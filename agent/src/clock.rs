//! The only place of the agent that reads clocks.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// 2026-01-01, the year of this version: a clock before it has certainly not been set since the machine started.
const NOT_BEFORE_SECS: u64 = 1_767_225_600;

/// systemd-timesyncd keeps its state here, and a file `synchronized` once the time came from a server.
const TIMESYNC_DIR: &str = "/run/systemd/timesync";

/// Monotonic time, for spans and deadlines.
#[expect(clippy::disallowed_methods, reason = "the agent's only reader of this clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Wall-clock time.
#[expect(clippy::disallowed_methods, reason = "the agent's only reader of this clock")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// `CLOCK_MONOTONIC`, microseconds: what other programs of this machine read, too.
pub fn monotonic_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(i128::from(time.tv_sec) * 1_000_000 + i128::from(time.tv_nsec) / 1_000).unwrap_or(0)
}

/// Wall-clock time, milliseconds since 1970.
pub fn wall_ms() -> i64 {
    micros(wall()) / 1_000
}

/// Time of day where the gateway is.
pub fn local_time() -> chrono::NaiveTime {
    chrono::DateTime::<chrono::Local>::from(wall()).time()
}

/// Microseconds since 1970, negative before.
pub fn micros(time: SystemTime) -> i64 {
    let signed = |micros: u128| i64::try_from(micros).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => signed(since.as_micros()),
        Err(before) => -signed(before.duration().as_micros()),
    }
}

/// Whether the wall clock is believed to be right.
///
/// There is no safe call for the kernel's own answer (`adjtimex`), so two facts stand in for it, and either makes the
/// clock untrusted: the time lies before this version was written (a board without a battery that has just booted), or
/// systemd-timesyncd runs here and has not reached a server yet. Other time services are trusted to have set the clock
/// before the agent starts.
#[derive(Debug, Default)]
pub struct Clock {
    synchronised: AtomicBool,
}

impl Clock {
    /// A clock that has been looked at once.
    pub fn new() -> Self {
        let clock = Self::default();
        clock.refresh();
        clock
    }

    /// What the last look at the clock said.
    pub fn is_synchronised(&self) -> bool {
        self.synchronised.load(Ordering::Relaxed)
    }

    /// Looks again. It reads a directory, so it is done every few seconds and not for every message.
    pub fn refresh(&self) {
        let synchronised = is_synchronised(wall(), Path::new(TIMESYNC_DIR));
        self.synchronised.store(synchronised, Ordering::Relaxed);
    }
}

fn is_synchronised(wall: SystemTime, timesync_dir: &Path) -> bool {
    let since_1970 = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    let has_service = timesync_dir.is_dir();
    since_1970.as_secs() >= NOT_BEFORE_SECS && (!has_service || timesync_dir.join("synchronized").exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(secs: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(secs)
    }

    #[test]
    fn a_clock_before_this_version_is_not_synchronised() {
        let nowhere = Path::new("/nonexistent");

        assert!(!is_synchronised(at(0), nowhere));
        assert!(!is_synchronised(at(NOT_BEFORE_SECS - 1), nowhere));
        assert!(is_synchronised(at(NOT_BEFORE_SECS), nowhere));
    }

    #[test]
    fn with_timesyncd_the_clock_is_synchronised_once_it_says_so() {
        let dir = tempfile::tempdir().unwrap();

        let before = is_synchronised(at(NOT_BEFORE_SECS), dir.path());
        std::fs::write(dir.path().join("synchronized"), "").unwrap();
        let after = is_synchronised(at(NOT_BEFORE_SECS), dir.path());

        assert_eq!((before, after), (false, true));
    }

    #[test]
    fn times_before_1970_are_negative() {
        assert_eq!(micros(at(1)), 1_000_000);
        assert_eq!(micros(UNIX_EPOCH - Duration::from_secs(1)), -1_000_000);
    }
}
