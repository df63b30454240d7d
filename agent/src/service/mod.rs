//! What a service manager hears of the agent, and when, in systemd's notify protocol (`sd_notify(3)`). (pure)
//!
//! ```text
//! READY=1                           devices can connect; again after each reload, whatever came of it
//! STATUS=...                        one line, what is wrong first; when it has changed, at most every ten seconds
//! WATCHDOG=1                        twice in WATCHDOG_USEC, as long as the way of a message is open
//! RELOADING=1, MONOTONIC_USEC=...   a new configuration is being read
//! STOPPING=1                        nothing new is accepted any more
//! ```
//!
//! WATCHDOG=1 says that the runtime turns, that ingest takes what comes, and that the spool's writer takes what is queued
//! for it: a [`probe`] goes through all three. A part that has been silent for WATCHDOG_USEC ends the pings, and the
//! manager ends the process at most WATCHDOG_USEC later. So WATCHDOG_USEC is also how long one commit may take: a disk
//! that needs seconds for a sync is slow, not dead. A disk or spool that is full is answered for, and so is no reason to be
//! killed. Sealer, sources and deliveries are not asked: what keeps them from working is in STATUS, and messages are
//! acknowledged without them.
//!
//! Reading order: this file, [`probe`], [`socket`]; `supervisor/manager.rs` drives them.

pub mod probe;
pub mod socket;

use std::time::{Duration, Instant};

use self::probe::Silent;
use crate::cli::output::{bytes, grouped};
use crate::upstream::report::DeliveryReport;

/// STATUS is not sent more often.
const STATUS_APART: Duration = Duration::from_secs(10);
/// How long a part may be silent when no WATCHDOG_USEC says so; it is only told then.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Longest STATUS, bytes; the rest is cut off. systemd takes 4,096 a datagram.
const STATUS_BYTES_MAX: usize = 1_024;
/// Of it one problem may take so many bytes.
const PROBLEM_BYTES_MAX: usize = 300;

/// What is known of a running agent without reading the disk.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Connections that are open.
    pub connections: u64,
    /// Messages stored since the start.
    pub stored: u64,
    /// Bytes of the spool, undelivered slices included, and how many are allowed.
    pub spool_bytes: (u64, u64),
    /// The last commit met a full disk.
    pub disk_full: bool,
    /// Why the last batch could not be sealed.
    pub sealing_error: Option<String>,
    /// Why the last configuration was refused.
    pub refused: Option<String>,
    /// Sources that have a problem: name and problem.
    pub sources: Vec<(String, String)>,
    /// Every upstream.
    pub upstreams: Vec<DeliveryReport>,
}

/// What there is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this to the manager.
    Send(String),
    /// Tell a person that a part does not answer, and for how long.
    Stalled(Silent, Duration),
    /// Tell a person that all of them answer again.
    Recovered,
}

/// What the manager has heard so far.
#[derive(Debug)]
pub struct Service {
    watchdog: Option<Duration>,
    status: String,
    next_status: Instant,
    next_ping: Option<Instant>,
    is_stalled: bool,
    is_stopping: bool,
}

impl Service {
    /// For a manager that wants to hear of us every so often, or does not mind.
    #[must_use]
    pub fn new(watchdog: Option<Duration>, now: Instant) -> Self {
        Self {
            watchdog,
            status: String::new(),
            next_status: now,
            next_ping: watchdog.map(|_| now),
            is_stalled: false,
            is_stopping: false,
        }
    }

    /// Devices can connect, or a reload is over.
    pub fn handle_ready(&mut self, known: &Known, now: Instant) -> Action {
        self.status = status(known, None);
        self.next_status = now + STATUS_APART;
        Action::Send(format!("READY=1\nSTATUS={}", self.status))
    }

    /// A reload begins; `monotonic_us` is `CLOCK_MONOTONIC`.
    pub fn handle_reloading(&mut self, monotonic_us: u64) -> Action {
        Action::Send(format!("RELOADING=1\nMONOTONIC_USEC={monotonic_us}"))
    }

    /// The agent stops: it was asked to, or a part has failed.
    pub fn handle_stopping(&mut self, problem: Option<&str>) -> Action {
        self.is_stopping = true;
        let status = match problem {
            Some(problem) => format!("Failed: {}", cut(problem, STATUS_BYTES_MAX)),
            None => "Stopping: answering what was received.".to_owned(),
        };
        Action::Send(format!("STOPPING=1\nSTATUS={status}"))
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.next_ping.map_or(self.next_status, |ping| ping.min(self.next_status))
    }

    /// Time has passed. `silent`: a part that has not answered yet, if there is one.
    pub fn handle_timeout(&mut self, known: &Known, silent: Option<Silent>, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.is_stopping {
            return actions;
        }
        let silence_max = self.watchdog.unwrap_or(SILENCE_MAX);
        let silent = silent.map(|silent| (silent, now.saturating_duration_since(silent.since)));
        let stalled = silent.filter(|(_, lasting)| *lasting >= silence_max);
        match stalled {
            Some((part, lasting)) if !self.is_stalled => actions.push(Action::Stalled(part, lasting)),
            None if self.is_stalled => actions.push(Action::Recovered),
            _ => {}
        }
        if self.is_stalled != stalled.is_some() {
            self.is_stalled = stalled.is_some();
            self.next_status = now;
        }
        if let (Some(watchdog), Some(due)) = (self.watchdog, self.next_ping)
            && now >= due
        {
            self.next_ping = Some(now + watchdog / 2);
            if !self.is_stalled {
                actions.push(Action::Send("WATCHDOG=1".to_owned()));
            }
        }
        if now >= self.next_status {
            self.next_status = now + STATUS_APART;
            let status = status(known, stalled.map(|(silent, _)| silent));
            if status != self.status {
                actions.push(Action::Send(format!("STATUS={status}")));
                self.status = status;
            }
        }
        actions
    }
}

/// One line: what is wrong, then how much there is of everything.
fn status(known: &Known, stalled: Option<Silent>) -> String {
    let mut parts: Vec<String> = problems(known, stalled).iter().map(|words| cut(words, PROBLEM_BYTES_MAX)).collect();
    let (used, allowed) = known.spool_bytes;
    let percent = used.saturating_mul(100) / allowed.max(1);
    parts.push(format!(
        "{} devices connected, {} messages stored, spool {percent} % of {}",
        grouped(known.connections),
        grouped(known.stored),
        bytes(allowed)
    ));
    let behind = known.upstreams.iter().filter(|upstream| upstream.undelivered_bytes > 0);
    parts.extend(behind.map(|upstream| format!("{} behind by {}", upstream.url, bytes(upstream.undelivered_bytes))));
    cut(&parts.join("; "), STATUS_BYTES_MAX)
}

/// The worst first: what stops acknowledgements, what stops datasets, what stops deliveries, what was not taken over.
fn problems(known: &Known, stalled: Option<Silent>) -> Vec<String> {
    let mut all = Vec::new();
    all.extend(stalled.map(|silent| format!("{} does not answer", silent.part)));
    let (used, allowed) = known.spool_bytes;
    if known.disk_full {
        all.push("the disk is full".to_owned());
    } else if used.saturating_add(used / 100) >= allowed {
        all.push("the spool is full".to_owned());
    }
    all.extend(known.sealing_error.iter().map(|problem| format!("sealing fails: {problem}")));
    for upstream in &known.upstreams {
        let datasets =
            upstream.problems.iter().map(|(dataset, problem)| format!("dataset {dataset}: {}", problem.words));
        let problem = datasets.chain(upstream.last_error.clone()).next();
        all.extend(problem.map(|problem| format!("{}: {problem}", upstream.url)));
    }
    all.extend(known.sources.iter().map(|(name, problem)| format!("source {name}: {problem}")));
    all.extend(known.refused.iter().map(|problem| format!("the new configuration is refused: {problem}")));
    all
}

/// At most so many bytes, on one line: a line break would begin another assignment.
fn cut(text: &str, bytes_max: usize) -> String {
    const MORE: &str = "…";
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() <= bytes_max {
        return line;
    }
    let end = (0..=bytes_max - MORE.len()).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
    format!("{}{MORE}", &line[..end])
}

#[cfg(test)]
mod tests;
