//! Deliver everything now: what `forebay sync --once` does, in a running agent or in one that was started for it.
//!
//! Every batch that waits is cut, then every delivery is urged: nothing rests, no window is closed. It ends when each
//! upstream has everything that was acknowledged before, or has failed often enough to be left for now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::status::Shared;
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

/// A sync on its way.
#[derive(Debug)]
pub struct Sync {
    progress: Vec<Arc<Progress>>,
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
    pub fn start(shared: &Shared) -> Self {
        // One dataset that cannot be sealed does not keep the others from being delivered.
        let unsealed = shared.sealing.seal_all(SEAL_ALL_MAX).err().map(|error| format!("{error:#}"));
        let chains = shared.sealing.chains();
        let goal = |name: &String| chains.get(name).map(|chain| chain.sealed);
        let names = || shared.config.datasets.iter().map(|dataset| &dataset.spec.name);
        let goals = shared.config.upstreams.iter().map(|upstream| {
            names().filter(|name| upstream.takes(name)).map(|name| (name.clone(), goal(name))).collect()
        });
        let (progress, goals): (Vec<Arc<Progress>>, _) = (shared.progress.clone(), goals.collect());
        let before = progress.iter().map(|progress| progress.report()).collect();
        Self { progress, goals, before, unsealed, urge: shared.bell.urge() }
    }

    /// Waits a little and tells how far it is.
    pub async fn next(&self) -> SyncReport {
        tokio::time::sleep(TELL_EVERY).await;
        let since = |(progress, before): (&Arc<Progress>, &DeliveryReport)| progress.report().since(before);
        let upstreams: Vec<DeliveryReport> = self.progress.iter().zip(&self.before).map(since).collect();
        let undelivered = self.undelivered(&upstreams);
        // Under load there is always something newer on its way: what was asked for ends it, too.
        let done = undelivered.is_empty() || self.progress.iter().all(|progress| progress.urged() >= self.urge);
        let problems = if done { self.unsealed.iter().cloned().chain(undelivered).collect() } else { Vec::new() };
        SyncReport { done, ok: done && problems.is_empty(), upstreams, problems }
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
