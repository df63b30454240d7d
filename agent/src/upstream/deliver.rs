//! Brings every dataset to one upstream, again and again, for as long as the agent runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use forebay_storage::durable_fs::DurableFs;
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::spool::Spool;
use serde::{Deserialize, Serialize};
use tracing::{debug, error, info, warn};

use super::backlog::Backlog;
use super::backoff::Backoff;
use super::repository::{Mirror, MirrorError, reach};
use crate::clock;
use crate::config::{Upstream, UpstreamKind};

/// First wait after a failure; the next ones double it. A directory is looked at with one system call, so it is looked
/// at often.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How often an upstream that has everything is looked at, so that it is known to be reachable.
const PROBE: Duration = Duration::from_secs(5);

/// One upstream and what it is to get.
#[derive(Debug)]
pub struct Delivery {
    /// Which.
    pub upstream: Upstream,
    /// Its number in the configuration, from 0.
    pub number: usize,
    /// Names and ids of the datasets.
    pub datasets: Vec<(String, DatasetId)>,
    /// Where their repositories are.
    pub datasets_dir: PathBuf,
    /// Keeps the positions.
    pub spool: Spool,
    /// How files are made durable.
    pub fs: DurableFs,
    /// What others see of it.
    pub progress: Arc<Progress>,
    /// Told of what was delivered.
    pub backlog: Arc<Backlog>,
    /// Rung after a seal, and to stop.
    pub bell: Arc<Bell>,
}

/// Wakes deliveries when something was sealed or when the agent stops.
#[derive(Debug, Default)]
pub struct Bell {
    rings: Mutex<u64>,
    rung: Condvar,
    stop: AtomicBool,
}

/// What is known of one upstream.
#[derive(Debug, Default)]
pub struct Progress {
    reachable: AtomicBool,
    report: Mutex<DeliveryReport>,
}

/// What `status` says of one upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryReport {
    /// Its URL.
    pub url: String,
    /// Whether the last attempt reached it.
    pub reachable: bool,
    /// Since when something sealed waits for it, milliseconds since 1970.
    pub pending_since_ms: Option<i64>,
    /// Bytes of sealed slices that it does not have yet; they count against `spool.max_bytes`.
    pub undelivered_bytes: u64,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// Blocks delivered since the agent started.
    pub blocks: u64,
    /// Bytes written since the agent started.
    pub bytes: u64,
    /// Dataset name to position: the first `seq` not delivered.
    pub delivered: BTreeMap<String, u64>,
}

impl Bell {
    /// Wakes every delivery.
    pub fn ring(&self) {
        *lock(&self.rings) += 1;
        self.rung.notify_all();
    }

    /// Wakes every delivery for the last time.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.ring();
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits for a ring after the `heard`th, or for the time to pass. Answers how often it has rung.
    fn wait(&self, heard: u64, timeout: Duration) -> u64 {
        let guard = lock(&self.rings);
        let (guard, _) = self
            .rung
            .wait_timeout_while(guard, timeout, |rings| *rings == heard && !self.is_stopped())
            .unwrap_or_else(PoisonError::into_inner);
        *guard
    }

    /// Waits for the time to pass, or for the stop.
    fn sleep(&self, timeout: Duration) {
        let guard = lock(&self.rings);
        drop(self.rung.wait_timeout_while(guard, timeout, |_| !self.is_stopped()));
    }
}

impl Progress {
    /// Nothing is known yet.
    pub fn new(upstream: &Upstream) -> Self {
        let report = DeliveryReport { url: upstream.url.clone(), ..DeliveryReport::default() };
        Self { reachable: AtomicBool::new(false), report: Mutex::new(report) }
    }

    /// Whether the last attempt reached it.
    pub fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// What is known.
    pub fn report(&self) -> DeliveryReport {
        lock(&self.report).clone()
    }

    pub(super) fn set_undelivered(&self, bytes: u64) {
        lock(&self.report).undelivered_bytes = bytes;
    }
}

impl Delivery {
    /// Delivers until the bell says stop.
    pub fn run(self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let mut heard = 0;
        while !self.bell.is_stopped() {
            let outcome = self.pass();
            self.note(&outcome, &backoff);
            if outcome.is_ok() {
                backoff.handle_success();
                heard = self.bell.wait(heard, PROBE);
            } else {
                self.bell.sleep(backoff.handle_failure(fastrand::f64()));
            }
        }
    }

    /// Delivers what is sealed. A dataset that cannot be delivered does not stop the others.
    fn pass(&self) -> Result<()> {
        let UpstreamKind::Directory(root) = &self.upstream.kind else { anyhow::bail!("later") };
        let positions = self.positions()?;
        let expected = positions.iter().any(|(_, _, delivered, _)| delivered.0 > 0);
        if positions.iter().any(|(_, _, delivered, sealed)| delivered < sealed) {
            lock(&self.progress.report).pending_since_ms.get_or_insert_with(clock::wall_ms);
        }
        reach(root, expected).with_context(|| format!("reach {}", root.display()))?;
        self.set_reachable(true);
        let mut failed = None;
        for (name, id, delivered, sealed) in positions {
            let outcome = self.mirror(root.join(name), name, id, delivered, sealed);
            if let Err(error) = outcome {
                if matches!(error.downcast_ref(), Some(MirrorError::Stopped)) {
                    return Ok(());
                }
                failed = Some(error.context(format!("deliver dataset {name}")));
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Name, id, delivered and sealed position of each dataset. Sealed is read before the head is, so that a head never
    /// stands for less than the position that is noted for it.
    fn positions(&self) -> Result<Vec<(&str, DatasetId, Seq, Seq)>> {
        self.datasets
            .iter()
            .map(|(name, id)| {
                let sealed = self.spool.sealed(*id)?;
                let delivered = self.spool.delivered(&self.upstream.url, *id)?;
                Ok((name.as_str(), *id, delivered, sealed))
            })
            .collect()
    }

    fn mirror(&self, remote: PathBuf, name: &str, id: DatasetId, delivered: Seq, sealed: Seq) -> Result<()> {
        let local = self.datasets_dir.join(name);
        let mirror = Mirror { local: &local, remote, fs: &self.fs, stop: &self.bell.stop };
        let bytes = self.backlog.sealed(name);
        let Some(mirrored) = mirror.run()? else { return Ok(()) };
        if delivered < sealed {
            self.spool.set_delivered(&self.upstream.url, id, sealed)?;
        }
        self.backlog.handle_delivered(self.number, name, bytes);
        let mut report = lock(&self.progress.report);
        report.blocks += mirrored.blocks as u64;
        report.bytes += mirrored.bytes;
        report.delivered.insert(name.to_owned(), sealed.0);
        if mirrored.blocks > 0 {
            info!(
                upstream = self.upstream.url,
                dataset = name,
                blocks = mirrored.blocks,
                bytes = mirrored.bytes,
                head = %mirrored.head,
                "Delivered."
            );
        }
        Ok(())
    }

    fn set_reachable(&self, reachable: bool) {
        let before = self.progress.reachable.swap(reachable, Ordering::Relaxed);
        let mut report = lock(&self.progress.report);
        report.reachable = reachable;
        if reachable && !before {
            info!(upstream = self.upstream.url, "Upstream is reachable.");
        }
    }

    /// The first failure in a row is worth a warning; those that follow say nothing new.
    fn note(&self, outcome: &Result<()>, backoff: &Backoff) {
        let Err(failure) = outcome else {
            let mut report = lock(&self.progress.report);
            report.last_error = None;
            report.pending_since_ms = None;
            return;
        };
        let problem = format!("{failure:#}");
        let is_first = backoff.failures() == 0;
        match failure.downcast_ref::<MirrorError>() {
            Some(MirrorError::Diverged { .. } | MirrorError::Local { .. }) if is_first => {
                error!(upstream = self.upstream.url, problem, "A dataset cannot be delivered.");
            }
            Some(MirrorError::Diverged { .. } | MirrorError::Local { .. }) => {}
            _ => {
                self.set_reachable(false);
                if is_first {
                    warn!(upstream = self.upstream.url, problem, "Upstream is not reachable; trying again.");
                } else {
                    debug!(upstream = self.upstream.url, problem, "Upstream is still not reachable.");
                }
            }
        }
        lock(&self.progress.report).last_error = Some(problem);
    }
}

/// A panic of another thread leaves plain data behind, which is still good to read.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
