//! What a process uses while it is loaded, from `/proc/PID`.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Kernel clock ticks per second in `/proc/PID/stat`: 100 on every Linux that Rust runs on.
const TICKS_PER_SEC: f64 = 100.0;
/// Times that a thread is looked for, 10 ms apart.
const NAMED_LOOKS: u32 = 200;

/// What a process used between [`UsageMeter::start`] and [`UsageMeter::finish`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// User and system time, seconds.
    pub(crate) cpu_secs: f64,
    /// CPU seconds per million messages.
    pub(crate) cpu_secs_per_million: f64,
    /// Peak resident memory of the process's whole life, MiB.
    pub(crate) rss_peak_mib: f64,
    /// Bytes that the process caused to be written to storage per byte of payload.
    pub(crate) written_per_payload_byte: f64,
}

/// Remembers where a process stood.
pub(crate) struct UsageMeter {
    pid: u32,
    cpu_secs: f64,
    written: u64,
}

impl UsageMeter {
    /// Measures process `pid` from here.
    pub(crate) fn start(pid: u32) -> Result<Self> {
        Ok(Self { pid, cpu_secs: cpu_secs(&pid.to_string())?, written: status_field(pid, "io", "write_bytes:")? })
    }

    /// What it used since, for `messages` messages of `payload_bytes` together.
    pub(crate) fn finish(self, messages: u64, payload_bytes: u64) -> Result<Usage> {
        let cpu_secs = cpu_secs(&self.pid.to_string())? - self.cpu_secs;
        let written = status_field(self.pid, "io", "write_bytes:")? - self.written;
        Ok(Usage {
            cpu_secs,
            cpu_secs_per_million: cpu_secs * 1e6 / messages.max(1) as f64,
            rss_peak_mib: status_field(self.pid, "status", "VmHWM:")? as f64 / 1024.0,
            written_per_payload_byte: written as f64 / payload_bytes.max(1) as f64,
        })
    }
}

/// User and system time of `PID`, or of one thread, `PID/task/TID`, seconds.
pub(crate) fn cpu_secs(process: &str) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).context("read the CPU time of a process")?;
    // The command, in parentheses, may hold spaces; the fields after it are numbered from 3.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS_PER_SEC)
}

/// Resident memory, MiB.
pub(crate) fn rss_mib(pid: u32) -> Result<f64> {
    Ok(status_field(pid, "status", "VmRSS:")? as f64 / 1024.0)
}

/// Time that all processors together were busy since the machine started, seconds.
pub(crate) fn machine_cpu_secs() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("read the CPU time of the machine")?;
    let ticks: Vec<f64> = stat.split_whitespace().skip(1).take(7).filter_map(|ticks| ticks.parse().ok()).collect();
    // user, nice, system, and after idle and iowait: irq, softirq.
    let busy = ticks.iter().enumerate().filter(|(index, _)| ![3, 4].contains(index));
    Ok(busy.map(|(_, ticks)| ticks).sum::<f64>() / TICKS_PER_SEC)
}

/// The thread of process `pid` that has this name, as `PID/task/TID`.
pub(crate) fn thread_named(pid: u32, name: &str) -> Result<String> {
    for _ in 0..NAMED_LOOKS {
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let entry = entry?;
            if fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name) {
                return Ok(format!("{pid}/task/{}", entry.file_name().display()));
            }
        }
        // A thread gives itself its name.
        thread::sleep(Duration::from_millis(10));
    }
    bail!("process {pid} has no thread {name}")
}

fn status_field(pid: u32, file: &str, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number =
        line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("find {name} in {path}"))?;
    number.parse().with_context(|| format!("read {name} of {path}"))
}
