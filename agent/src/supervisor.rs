//! Starts the agent, watches it, drains it. Nothing else in the agent starts a task or a thread.
//!
//! ```text
//! start   data directory and its lock ▶ spool ▶ datasets ▶ writer ▶ ingest ▶ sealer ▶ upstreams ▶ control ▶ listeners
//! stop    listeners and connections (answers what was submitted) ▶ ingest ▶ control ▶ writer ▶ sealer ▶ upstreams
//! ```
//!
//! Devices are let in last and sent away first, so that whatever they were promised is kept by parts that still run. A
//! writer that fails is fatal: nothing can be acknowledged without it, and the process ends with an error for the service
//! manager to start it again.

use std::future::Future;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use forebay_broker::inbound::Ticket;
use forebay_broker::{Broker, Listener, StoredSession};
use forebay_storage::batcher::BatchLimits;
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::sealer::{SealError, Sealer};
use forebay_storage::spool::{Request, Spool, Writer};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::clock::{self, Clock};
use crate::config::{Config, ConfigError, Origin, UpstreamKind};
use crate::control;
use crate::ingest::{Counters, Ingest};
use crate::route::Router;
use crate::sealing::{self, Sealing};
use crate::status::{Rates, Shared};
use crate::store::{Store, datasets_dir, scratch_dir};
use crate::sync::SEAL_ALL_MAX;
use crate::upstream::backlog::Backlog;
use crate::upstream::bell::Bell;
use crate::upstream::deliver::Delivery;
use crate::upstream::retention::Retention;

/// How often rates are sampled.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Samples between two looks at the clock's state.
const CLOCK_EVERY: u32 = 10;
/// How long the stop waits for a part that has been told to end.
const STOP_MAX: Duration = Duration::from_secs(30);

/// How long the stop waits for a seal or a delivery to finish. Both are finished after the next start if need be.
const LEAVE_AFTER: Duration = Duration::from_secs(10);
/// How often the stop looks whether the last answer has been given.
const CLOSE_LOOK: Duration = Duration::from_millis(5);

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Shared>,
    broker: Broker,
    listeners: Vec<Listener>,
    ingest: JoinHandle<()>,
    stop_ingest: oneshot::Sender<()>,
    background: Vec<JoinHandle<()>>,
    writer: Part,
    sealer: Part,
    upstreams: Vec<Part>,
    bell: Arc<Bell>,
    stop: Arc<AtomicBool>,
    failed: mpsc::Receiver<anyhow::Error>,
    /// Keeps the data directory locked until everything above has ended.
    store: Store,
}

/// A thread that says when it has ended.
#[derive(Debug)]
struct Part {
    name: String,
    ended: oneshot::Receiver<()>,
}

impl Agent {
    /// Starts every part. When this returns, devices can connect.
    pub async fn start(config: Config) -> Result<Self> {
        let opening = config.clone();
        let (store, sealer, backlog) = tokio::task::spawn_blocking(move || open(&opening)).await??;
        let ids = dataset_ids(&config, &store.spool)?;
        let clock = Arc::new(Clock::new());
        let counters = Arc::new(Counters::default());
        let stop = Arc::new(AtomicBool::new(false));
        let bell = Arc::new(Bell::default());
        let (failing, failed) = mpsc::channel(4);

        let (requests, queue) = mpsc::channel(config.limits.unstored_messages_max);
        let weak_requests = requests.downgrade();
        let writer = start_writer(&store.spool, &counters, queue, &failing)?;
        let (broker, inbound) = Broker::new(config.limits.clone(), stored_sessions(&store.spool)?);
        let ingest = Ingest {
            router: Router::new(&config.datasets),
            datasets: ids.clone(),
            on_refused: config.on_refused,
            clock: Arc::clone(&clock),
            counters: Arc::clone(&counters),
        };
        let (stop_ingest, stopped) = oneshot::channel();
        let ingest = tokio::spawn(ingest.run(inbound, requests, stopped));
        let sealing = Arc::new(Sealing::new(&sealer));
        let sealer = start_sealer(sealer, &store.spool, &sealing, &backlog, (&bell, &stop), &failing)?;
        let root = datasets_dir(&config.data_dir);
        let kept = (config.keep_delivered_bytes, config.spool.min_free_bytes);
        let datasets = names_and_ids(&config, &ids);
        let retention = Retention::new(&store.spool, &store.fs, &root, &datasets, &config.upstreams, kept);
        let retention = Arc::new(retention);
        let upstreams = start_upstreams(&config, &store, &datasets, (&backlog, &bell), &retention, &failing)?;
        let shared = Arc::new(Shared {
            config,
            spool: store.spool.clone(),
            writer: weak_requests,
            broker: broker.clone(),
            counters,
            clock,
            sealing,
            progress: backlog.upstreams().to_vec(),
            bell: Arc::clone(&bell),
            backlog: Arc::clone(&backlog),
            retention,
            rates: Rates::default(),
            started: clock::now(),
            bound: std::sync::OnceLock::new(),
        });
        let mut background = vec![tokio::spawn(sample(Arc::clone(&shared)))];
        background.push(tokio::spawn(control::serve(control::bind(&shared.config)?, Arc::clone(&shared))));
        let mut agent = Self {
            shared,
            broker,
            listeners: Vec::new(),
            ingest,
            stop_ingest,
            background,
            writer,
            sealer,
            upstreams,
            bell,
            stop,
            failed,
            store,
        };
        agent.listen().await?;
        Ok(agent)
    }

    async fn listen(&mut self) -> Result<()> {
        for config in &self.shared.config.listeners {
            let listener = self.broker.listen(config.clone()).await;
            let listener = listener.with_context(|| format!("listen on {}", config.bind))?;
            self.listeners.push(listener);
        }
        let _ = self.shared.bound.set(self.addresses());
        Ok(())
    }

    /// Where devices connect to, in the order of the configuration.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listener| listener.local_addr).collect()
    }

    /// What the agent knows of itself.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Waits until a part fails that the agent cannot go on without.
    pub async fn failed(&mut self) -> anyhow::Error {
        tokio::select! {
            error = self.failed.recv() => error.unwrap_or_else(|| anyhow!("every part of the agent has ended")),
            ended = &mut self.ingest => match ended {
                Ok(()) => anyhow!("ingest ended"),
                Err(panic) => anyhow::Error::from(panic).context("ingest"),
            },
        }
    }

    /// Cuts every batch that waits, whatever its age, and answers when all of them are in their datasets.
    pub async fn seal_all(&self) -> Result<()> {
        let sealing = Arc::clone(&self.shared.sealing);
        tokio::task::spawn_blocking(move || sealing.seal_all(SEAL_ALL_MAX)).await?
    }

    /// Stops accepting, answers what was submitted, and ends every part in turn.
    pub async fn stop(self) -> Result<()> {
        info!("Stopping: no new connections, answering what was received.");
        self.broker.shutdown().await;
        drop(self.listeners);
        let _ = self.stop_ingest.send(());
        within(STOP_MAX, "ingest", async { Ok(self.ingest.await?) }).await?;
        for task in self.background {
            task.abort();
            let _ = task.await;
        }
        self.writer.ended(STOP_MAX).await?;
        self.stop.store(true, Ordering::Relaxed);
        self.sealer.ended_or_left().await;
        self.bell.stop();
        for upstream in self.upstreams {
            upstream.ended_or_left().await;
        }
        // Answers that are still being made hold the spool open; whoever starts again needs it closed.
        let closed = async {
            while Arc::strong_count(&self.shared) > 1 {
                tokio::time::sleep(CLOSE_LOOK).await;
            }
            Ok(())
        };
        within(STOP_MAX, "the control socket", closed).await?;
        let _ = std::fs::remove_file(self.shared.config.control_socket());
        let position = self.store.spool.log_end();
        info!(log_end = position.0, "Stopped.");
        Ok(())
    }
}

/// Everything that reads the disk before the first device is let in.
fn open(config: &Config) -> Result<(Store, Sealer, Arc<Backlog>)> {
    let store = Store::open(config)?;
    let report = &store.report;
    if let Some(aside) = &report.put_aside {
        warn!(path = %aside.display(), "A damaged spool was put aside; what could be read of it goes on.");
    }
    for gap in &report.damaged {
        warn!(?gap, "Messages of the spool cannot be read.");
    }
    info!(messages = report.messages, log_end = store.spool.log_end().0, "Spool opened.");
    begin_above_earlier_spools(config, &store.spool)?;
    let root = datasets_dir(&config.data_dir);
    let specs: Vec<_> = config.datasets.iter().map(|dataset| Arc::new(dataset.spec.clone())).collect();
    let limits = BatchLimits {
        rows: config.batch.rows,
        bytes: config.batch.bytes,
        age_us: i64::try_from(config.batch.age.as_micros()).unwrap_or(i64::MAX),
    };
    let now_us = clock::micros(clock::wall());
    let sealer = Sealer::open(store.spool.clone(), &store.fs, &root, &config.gateway, &specs, limits, now_us);
    let sealer = sealer.map_err(|error| match error {
        // The file asks for something that the dataset on disk does not allow: a restart cures nothing.
        incompatible @ SealError::Incompatible { .. } => anyhow::Error::from(ConfigError {
            origin: Origin::Default,
            key: "dataset".to_owned(),
            problem: incompatible.to_string(),
        }),
        error => anyhow::Error::from(error).context("open the datasets"),
    })?;
    for damaged in sealer.unusable() {
        error!(
            dataset = damaged.dataset,
            problem = %damaged.error,
            "A dataset cannot be opened: its messages are acknowledged and wait in the spool. Restore the file, or move the \
             dataset's directory away to begin it anew; then restart."
        );
    }
    for (dataset, messages) in sealer.unserved().context("read the datasets of the spool")? {
        warn!(dataset, messages, "Messages wait in the spool for a dataset that is not declared or cannot be opened.");
    }
    let backlog = Backlog::open(&store.spool, &sealer, &config.upstreams)?;
    Ok((store, sealer, Arc::new(backlog)))
}

/// A node that takes rows knows them by `(gateway, seq)`. A gateway whose disk was replaced would begin at 0 again, under
/// its old name, and the node would take its rows for repetitions: so a new spool that feeds such a node begins at the
/// time of day, in microseconds, which no spool before it has reached if the clock is right. (It stays below 2^53, and dense
/// from there.)
fn begin_above_earlier_spools(config: &Config, spool: &Spool) -> Result<()> {
    let feeds_a_ledger = config.upstreams.iter().any(|upstream| matches!(upstream.kind, UpstreamKind::Ingest(_)));
    let is_new = spool.log_end() == Seq(0) && spool.datasets().context("read the datasets of the spool")?.is_empty();
    if feeds_a_ledger && is_new {
        if !Clock::new().is_synchronised() {
            warn!(
                "A new spool begins while the clock is not synchronised. Should this gateway have posted to the same node from \
                 another disk, stop it, delete data_dir, set the clock and start again: the node may know its positions."
            );
        }
        let now_us = u64::try_from(clock::micros(clock::wall())).unwrap_or(0);
        spool.raise_seq_floor(Seq(now_us)).context("begin the spool")?;
    }
    Ok(())
}

fn dataset_ids(config: &Config, spool: &Spool) -> Result<Vec<DatasetId>> {
    config
        .datasets
        .iter()
        .map(|dataset| spool.dataset_id(&dataset.spec.name).context("read the datasets of the spool"))
        .collect()
}

fn names_and_ids(config: &Config, ids: &[DatasetId]) -> Vec<(String, DatasetId)> {
    config.datasets.iter().map(|dataset| dataset.spec.name.clone()).zip(ids.iter().copied()).collect()
}

fn stored_sessions(spool: &Spool) -> Result<Vec<StoredSession>> {
    let sessions = spool.sessions().context("read the sessions of the spool")?;
    Ok(sessions
        .into_iter()
        .map(|session| StoredSession {
            client_id: session.client_id,
            expiry_secs: session.expiry_secs,
            packet_ids: session.packet_ids.into_iter().filter_map(std::num::NonZeroU16::new).collect(),
        })
        .collect())
}

fn start_writer(
    spool: &Spool,
    counters: &Arc<Counters>,
    queue: mpsc::Receiver<Request<Ticket>>,
    failing: &mpsc::Sender<anyhow::Error>,
) -> Result<Part> {
    let (spool, counters) = (spool.clone(), Arc::clone(counters));
    let reporting = failing.clone();
    start_thread("spool-writer".to_owned(), failing, move || {
        let mut writer = Writer::new(spool, |ticket, outcome| counters.resolve(ticket, outcome));
        if let Err(problem) = writer.run(queue) {
            error!(%problem, "The spool cannot be written: nothing is acknowledged any more.");
            let _ = reporting.try_send(anyhow::Error::from(problem).context("write the spool"));
        }
    })
}

fn start_sealer(
    sealer: Sealer,
    spool: &Spool,
    sealing: &Arc<Sealing>,
    backlog: &Arc<Backlog>,
    (bell, stop): (&Arc<Bell>, &Arc<AtomicBool>),
    failing: &mpsc::Sender<anyhow::Error>,
) -> Result<Part> {
    let (spool, sealing, backlog) = (spool.clone(), Arc::clone(sealing), Arc::clone(backlog));
    let (bell, stop) = (Arc::clone(bell), Arc::clone(stop));
    let reporting = failing.clone();
    start_thread("sealer".to_owned(), failing, move || {
        if let Err(problem) = sealing::run(sealer, &spool, &sealing, &backlog, &bell, &stop) {
            error!(%problem, "The spool cannot be read: the next start salvages what can be.");
            let _ = reporting.try_send(anyhow::Error::from(problem).context("seal"));
        }
    })
}

fn start_upstreams(
    config: &Config,
    store: &Store,
    datasets: &[(String, DatasetId)],
    (backlog, bell): (&Arc<Backlog>, &Arc<Bell>),
    retention: &Arc<Retention>,
    failing: &mpsc::Sender<anyhow::Error>,
) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for (number, (upstream, progress)) in config.upstreams.iter().zip(backlog.upstreams()).enumerate() {
        let delivery = Delivery {
            upstream: upstream.clone(),
            number,
            datasets: datasets.iter().filter(|(name, _)| upstream.takes(name)).cloned().collect(),
            datasets_dir: datasets_dir(&config.data_dir),
            scratch_dir: scratch_dir(&config.data_dir),
            spool: store.spool.clone(),
            fs: store.fs.clone(),
            progress: Arc::clone(progress),
            backlog: Arc::clone(backlog),
            retention: Arc::clone(retention),
            bell: Arc::clone(bell),
        };
        parts.push(start_thread(format!("upstream-{number}"), failing, move || delivery.run())?);
    }
    Ok(parts)
}

/// Starts a thread; one that panics ends the agent.
fn start_thread(
    name: String,
    failing: &mpsc::Sender<anyhow::Error>,
    work: impl FnOnce() + Send + 'static,
) -> Result<Part> {
    let (ending, ended) = oneshot::channel();
    let (failing, thread_name) = (failing.clone(), name.clone());
    let guarded = move || {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            error!(thread = thread_name, "A part of the agent failed.");
            let _ = failing.try_send(anyhow!("the thread {thread_name} panicked"));
        }
        let _ = ending.send(());
    };
    thread::Builder::new().name(name.clone()).spawn(guarded).with_context(|| format!("start the thread {name}"))?;
    Ok(Part { name, ended })
}

impl Part {
    /// A part that is cut off in the middle has nothing to lose: a seal and a delivery are finished after the next start.
    async fn ended_or_left(self) {
        if let Err(problem) = self.ended(LEAVE_AFTER).await {
            warn!(problem = format!("{problem:#}"), "Not waiting for it any longer.");
        }
    }

    async fn ended(self, limit: Duration) -> Result<()> {
        let name = self.name;
        within(limit, &name, async { Ok(self.ended.await?) }).await
    }
}

async fn within(limit: Duration, what: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.with_context(|| format!("stop {what}")),
        Err(_) => Err(anyhow!("{what} did not stop within {} s", limit.as_secs())),
    }
}

async fn sample(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for count in 0u32.. {
        ticks.tick().await;
        shared.sample(clock::now());
        if count.is_multiple_of(CLOCK_EVERY) {
            shared.clock.refresh();
        }
    }
}
