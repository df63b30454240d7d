//! The floor under every acknowledgement: how long this disk takes to append a little and `fdatasync`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use crate::load::now;

/// Appends `bytes` bytes and syncs, again and again for `duration`; the median in milliseconds.
pub(crate) fn fdatasync_p50_ms(dir: &Path, bytes: usize, duration: Duration) -> Result<f64> {
    let path = dir.join("fdatasync.bin");
    let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let block = vec![0xA5; bytes];
    let mut latency_ns = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
    let end = now() + duration;
    loop {
        let before = now();
        if before >= end {
            break;
        }
        file.write_all(&block)?;
        file.sync_data().context("fdatasync")?;
        latency_ns.saturating_record(before.elapsed().as_nanos() as u64);
    }
    Ok(latency_ns.value_at_quantile(0.5) as f64 / 1e6)
}
