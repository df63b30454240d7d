//! Looks at everything that takes part, ten times a second, so that any stretch of a run can be judged afterwards.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use forebay_tests::agent::Agent;
use serde_json::Value;

use crate::destination::Destination;
use crate::load::now;
use crate::usage::{cpu_secs, machine_cpu_secs, rss_mib, thread_named};

/// Between two looks.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What there was at one moment; counts are since the start of the agent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// When.
    pub(crate) at: Instant,
    /// Messages that were acknowledged.
    pub(crate) acknowledged: u64,
    /// Rows in slices.
    pub(crate) sealed: u64,
    /// Messages that the upstream has, by its position: rows whose answer a cut link swallowed are not counted as sent.
    pub(crate) delivered: u64,
    /// The agent reached its upstream the last time it tried.
    pub(crate) is_reachable: bool,
    /// Bytes that went up the link; to a directory, that were written.
    pub(crate) bytes_up: u64,
    /// Resident memory of the agent, MiB.
    pub(crate) rss_mib: f64,
    /// Seconds of processor time so far.
    pub(crate) cpu: Cpu,
}

/// Who used the processors; seconds, or cores when it is a difference over time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    /// The agent.
    pub(crate) agent: f64,
    /// Of it, the thread that delivers; what it leaves to a thread for files is not in it.
    pub(crate) upstream: f64,
    /// Of it, the thread that seals.
    pub(crate) sealer: f64,
    /// Of it, the thread that commits.
    pub(crate) writer: f64,
    /// The server that is delivered to.
    pub(crate) server: f64,
    /// The load generator.
    pub(crate) generator: f64,
    /// Proxy, looks and everything else of this process.
    pub(crate) rest: f64,
    /// Everyone, on this machine, strangers too.
    pub(crate) machine: f64,
}

/// Looks until it is told to stop.
pub(crate) struct Watch<'a> {
    agent: &'a Agent,
    destination: &'a Destination,
    /// `/proc` names: the agent's delivering, sealing and committing threads, and ours that generates load.
    threads: [String; 4],
    /// The first position of the spool, which need not be 0.
    first: u64,
    looks: Mutex<Vec<Look>>,
    is_stopped: AtomicBool,
    /// Told by whoever generates load.
    pub(crate) acknowledged: AtomicU64,
}

impl<'a> Watch<'a> {
    /// Of an agent that runs; the thread that calls this is taken for the load generator.
    pub(crate) fn new(agent: &'a Agent, destination: &'a Destination) -> Result<Self> {
        let thread = |name| thread_named(agent.pid(), name);
        let own = fs::read_link("/proc/thread-self")?.display().to_string();
        let first = agent.status()?.pointer("/spool/log_end").and_then(Value::as_u64).context("no log end")?;
        let watch = Self {
            agent,
            first,
            destination,
            threads: [thread("upstream-0")?, thread("sealer")?, thread("spool-writer")?, own],
            looks: Mutex::default(),
            is_stopped: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
        };
        watch.look()?;
        Ok(watch)
    }

    /// Looks, until [`stop`](Self::stop) or a failure.
    pub(crate) fn run(&self) -> Result<()> {
        let mut next = now();
        while !self.is_stopped.load(Ordering::Relaxed) {
            self.look()?;
            next += LOOK_EVERY;
            thread::sleep(next.saturating_duration_since(now()));
        }
        Ok(())
    }

    /// Ends it.
    pub(crate) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// All looks so far.
    pub(crate) fn looks(&self) -> Vec<Look> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The newest look.
    pub(crate) fn last(&self) -> Result<Look> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).last().copied().context("nothing was looked at")
    }

    fn look(&self) -> Result<()> {
        let status = self.agent.status()?;
        let number = |path: &str| status.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        let look = Look {
            at: now(),
            acknowledged: self.acknowledged.load(Ordering::Relaxed),
            sealed: number("/datasets/0/chain/rows"),
            delivered: number("/upstreams/0/delivered/bench").saturating_sub(self.first),
            is_reachable: status.pointer("/upstreams/0/reachable").and_then(Value::as_bool).unwrap_or(false),
            bytes_up: self.destination.bytes_up().unwrap_or_else(|| number("/upstreams/0/bytes")),
            rss_mib: rss_mib(self.agent.pid())?,
            cpu: self.cpu()?,
        };
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).push(look);
        Ok(())
    }

    fn cpu(&self) -> Result<Cpu> {
        let [upstream, sealer, writer, own] = &self.threads;
        let generator = cpu_secs(own)?;
        Ok(Cpu {
            agent: cpu_secs(&self.agent.pid().to_string())?,
            upstream: cpu_secs(upstream)?,
            sealer: cpu_secs(sealer)?,
            writer: cpu_secs(writer)?,
            server: self.destination.pid().map_or(Ok(0.0), |pid| cpu_secs(&pid.to_string()))?,
            generator,
            rest: cpu_secs("self")? - generator,
            machine: machine_cpu_secs()?,
        })
    }
}

impl Cpu {
    /// Cores used over some stretches, together.
    pub(crate) fn cores<'a>(stretches: &(impl Iterator<Item = &'a [Look; 2]> + Clone)) -> Self {
        let secs: f64 = stretches.clone().map(|[from, to]| (to.at - from.at).as_secs_f64()).sum();
        let cores = |of: fn(&Self) -> f64| {
            let used: f64 = stretches.clone().map(|[from, to]| of(&to.cpu) - of(&from.cpu)).sum();
            used / secs
        };
        Self {
            agent: cores(|cpu| cpu.agent),
            upstream: cores(|cpu| cpu.upstream),
            sealer: cores(|cpu| cpu.sealer),
            writer: cores(|cpu| cpu.writer),
            server: cores(|cpu| cpu.server),
            generator: cores(|cpu| cpu.generator),
            rest: cores(|cpu| cpu.rest),
            machine: cores(|cpu| cpu.machine),
        }
    }

    /// What nobody here used.
    pub(crate) fn strangers(&self) -> f64 {
        (self.machine - self.agent - self.server - self.generator - self.rest).max(0.0)
    }
}
