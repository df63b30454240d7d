//! Deliver everything now: what `forebay sync --once` does, in a running agent or in one that was started for it.
//!
//! Every batch that waits is cut, then every delivery is urged: nothing rests, no window is closed. It ends when each
//! upstream has everything that was acknowledged before, or has failed often enough to be left for now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::status::{Running, Shared};
use crate::upstream::report::{DeliveryReport, Progress};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// How long sealing everything may take.
pub const SEAL_ALL_MAX: Duration = Duration::from_secs(300);

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncReport {
    /// Nothing more is tried.
    pub done: bool,
    /// Every upstream has everything; only said at the end.
    pub ok: bool,
    /// The upstreams, in the order of the configuration; what was sent counts from the beginning of the sync.
    pub upstreams: Vec<DeliveryReport>,
    /// What is not delivered and why, a line each.
    pub problems: Vec<String>,
}

/// A sync on its way. A reload in between makes it begin again with the datasets and upstreams that are in force then.
#[derive(Debug)]
pub struct Sync {
    shared: Arc<Shared>,
    running: Arc<Running>,
    /// For each upstream: which datasets go there, and the first `seq` that it need not have; none: the dataset is damaged.
    goals: Vec<BTreeMap<String, Option<u64>>>,
    /// What each upstream had sent before.
    before: Vec<DeliveryReport>,
    /// Why something could not be sealed.
    unsealed: Option<String>,
    urge: u64,
}

impl Sync {
    /// Seals what waits and urges every delivery. Blocks while it seals; what cannot be sealed is a problem of the report.
    pub fn start(shared: &Arc<Shared>) -> Self {
        let before = reports(&shared.running()); // a delivery does not wait for the last batch to be sealed
        // One dataset that cannot be sealed does not keep the others from being delivered.
        let unsealed = shared.sealing.seal_all(SEAL_ALL_MAX).err().map(|error| format!("{error:#}"));
        let running = shared.running();
        let chains = shared.sealing.chains();
        let goal = |name: &String| chains.get(name).map(|chain| chain.sealed);
        let names = || running.config.datasets.iter().map(|dataset| &dataset.spec.name);
        let goals = running.config.upstreams.iter().map(|upstream| {
            names().filter(|name| upstream.takes(name)).map(|name| (name.clone(), goal(name))).collect()
        });
        let goals = goals.collect();
        let before = counted_on(reports(&running), &before);
        let urge = running.bell.urge();
        Self { shared: Arc::clone(shared), running, goals, before, unsealed, urge }
    }

    /// Syncs an agent that was started for it to the end, and tells `tell` how far it is: all that it sent counts.
    ///
    /// # Errors
    /// Sealing panicked.
    pub async fn run(shared: &Arc<Shared>, mut tell: impl FnMut(&SyncReport)) -> Result<SyncReport> {
        let shared = Arc::clone(shared);
        let mut sync = tokio::task::spawn_blocking(move || Self::start(&shared)).await?;
        for before in &mut sync.before {
            *before = DeliveryReport { url: std::mem::take(&mut before.url), ..DeliveryReport::default() };
        }
        loop {
            let report = sync.next().await?;
            tell(&report);
            if report.done {
                return Ok(report);
            }
        }
    }

    /// Waits a little and tells how far it is.
    ///
    /// # Errors
    /// Sealing panicked.
    pub async fn next(&mut self) -> Result<SyncReport> {
        tokio::time::sleep(TELL_EVERY).await;
        if !Arc::ptr_eq(&self.running, &self.shared.running()) {
            self.begin_again().await?;
        }
        let progress = self.running.backlog.upstreams();
        let since = |(progress, before): (&Arc<Progress>, &DeliveryReport)| progress.report().since(before);
        let upstreams: Vec<DeliveryReport> = progress.iter().zip(&self.before).map(since).collect();
        let undelivered = self.undelivered(&upstreams);
        // Under load there is always something newer on its way: what was asked for ends it, too.
        let is_over = undelivered.is_empty() || progress.iter().all(|progress| progress.urged() >= self.urge);
        // Deliveries that were stopped in the middle say that an urge is over: asked last, so that they are not believed.
        let done = is_over && !self.running.bell.is_stopped();
        let problems = if done { self.unsealed.iter().cloned().chain(undelivered).collect() } else { Vec::new() };
        Ok(SyncReport { done, ok: done && problems.is_empty(), upstreams, problems })
    }

    /// What was sent counts on where an upstream is still there.
    async fn begin_again(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut again = tokio::task::spawn_blocking(move || Self::start(&shared)).await?;
        again.before = counted_on(again.before, &self.before);
        *self = again;
        Ok(())
    }

    fn undelivered(&self, upstreams: &[DeliveryReport]) -> Vec<String> {
        let mut problems = Vec::new();
        for (report, goals) in upstreams.iter().zip(&self.goals) {
            for (name, goal) in goals {
                let Some(goal) = goal else {
                    problems.push(format!("{}: dataset {name} cannot be opened on the gateway", report.url));
                    continue;
                };
                let problem = report.problems.get(name).map(|problem| problem.words.as_str());
                if problem.is_none() && report.delivered.get(name).is_some_and(|has| has >= goal) {
                    continue;
                }
                let why = problem.or(report.last_error.as_deref()).unwrap_or("not delivered yet");
                problems.push(format!("{}: dataset {name}: {why}", report.url));
            }
        }
        problems
    }
}

fn reports(running: &Running) -> Vec<DeliveryReport> {
    running.backlog.upstreams().iter().map(|progress| progress.report()).collect()
}

/// A reload in between may have changed which upstreams there are.
fn counted_on(mut reports: Vec<DeliveryReport>, before: &[DeliveryReport]) -> Vec<DeliveryReport> {
    for report in &mut reports {
        if let Some(before) = before.iter().find(|before| before.url == report.url) {
            report.clone_from(before);
        }
    }
    reports
}
