//! Sizes and time spans as people write them. (pure)

use std::time::Duration;

const SIZES: &[(&str, u64)] = &[
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

const SPANS_MS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Bytes of `"512"`, `"512B"`, `"64kB"`, `"2GiB"`.
pub fn size(text: &str) -> Result<u64, String> {
    if let Ok(bytes) = text.parse() {
        return Ok(bytes);
    }
    with_unit(text, SIZES)
        .ok_or_else(|| format!("{text:?} is not a size: write a whole number and B, kB, MB, GB, TB, KiB, MiB, GiB or TiB, such as \"256MiB\""))
}

/// The span of `"500ms"`, `"60s"`, `"5m"`, `"12h"`, `"30d"`.
pub fn duration(text: &str) -> Result<Duration, String> {
    with_unit(text, SPANS_MS).map(Duration::from_millis).ok_or_else(|| {
        format!("{text:?} is not a time span: write a whole number and ms, s, m, h or d, such as \"60s\"")
    })
}

/// A size as the largest unit that divides it, as [`size`] reads it.
pub fn show_size(bytes: u64) -> String {
    let (unit, factor) = SIZES
        .iter()
        .filter(|(unit, factor)| {
            (unit.ends_with("iB") || *unit == "B") && bytes >= *factor && bytes.is_multiple_of(*factor)
        })
        .max_by_key(|(_, factor)| *factor)
        .unwrap_or(&SIZES[0]);
    format!("{}{unit}", bytes / factor)
}

/// A time span as the largest unit that divides it, as [`duration`] reads it.
pub fn show_duration(span: Duration) -> String {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let (unit, factor) = SPANS_MS
        .iter()
        .filter(|(_, factor)| millis >= *factor && millis.is_multiple_of(*factor))
        .max_by_key(|(_, factor)| *factor)
        .unwrap_or(&SPANS_MS[1]);
    format!("{}{unit}", millis / factor)
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_whole_number_and_a_unit() {
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("64 kB"), Ok(64_000));
        assert_eq!(size("17"), Ok(17));
        for wrong in ["", "GiB", "1.5GiB", "2gib", "-1B", "99999999999TiB"] {
            assert!(size(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_time_span_always_has_a_unit() {
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for wrong in ["", "60", "s", "1w", "1.5s"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_shown_reads_back_the_same() {
        for bytes in [0, 1, 1_000, 4_096, 256 << 20, 2 << 30, (2 << 30) + 1] {
            assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }
        for millis in [0, 1, 999, 1_000, 60_000, 90_000, 86_400_000] {
            let span = Duration::from_millis(millis);
            assert_eq!(duration(&show_duration(span)), Ok(span));
        }
    }
}
