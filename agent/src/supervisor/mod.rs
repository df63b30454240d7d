//! Starts the agent, watches it, gives it other datasets, drains it. Nothing else in the agent starts a task or a thread.
//!
//! ```text
//! start   data directory and its lock ▶ spool ▶ datasets ▶ writer ▶ ingest ▶ sealer ▶ upstreams ▶ control ▶ listeners ▶ sources
//! reload  what is asked for is checked ▶ upstreams, sealer stop ▶ datasets ▶ sealer, upstreams start ▶ ingest's routes
//! stop    sources, listeners and connections (answer what was submitted) ▶ ingest ▶ control ▶ writer ▶ sealer ▶ upstreams
//! ```
//!
//! `part` is a thread, `outbound` what lies behind the spool, `reload` how that is replaced, `manager` who else is told.
//!
//! Devices are let in last and sent away first, so that whatever they were promised is kept by parts that still run. A
//! writer that fails is fatal: nothing can be acknowledged without it, and the process ends with an error for the service
//! manager to start it again.

mod manager;
mod outbound;
mod part;
mod reload;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use forebay_broker::inbound::Ticket;
use forebay_broker::{Broker, StoredSession};
use forebay_storage::message::Publisher;
use forebay_storage::position::Seq;
use forebay_storage::sealer::Sealer;
use forebay_storage::spool::{Request, Spool, Writer};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{error, info, warn};

use self::manager::Manager;
use self::outbound::{Outbound, Tools};
use self::part::{Part, within};
use crate::clock::{self, Clock};
use crate::config::{Config, UpstreamKind};
use crate::control;
use crate::doors::Doors;
use crate::ingest::{Counters, Ingest, Routes};
use crate::sealing::Sealing;
use crate::service::probe::Probe;
use crate::service::socket;
use crate::source::{self, report::Progress as SourceProgress};
use crate::status::{Rates, Reloads, Running, Shared};
use crate::store::{Store, sources_dir};
use crate::sync::SEAL_ALL_MAX;

/// How often rates are sampled.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Samples between two looks at the clock's state.
const CLOCK_EVERY: u32 = 10;
/// How long the stop waits for a part that has been told to end.
const STOP_MAX: Duration = Duration::from_secs(30);
/// How often the stop looks whether the last answer has been given.
const CLOSE_LOOK: Duration = Duration::from_millis(5);

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Shared>,
    broker: Broker,
    doors: Option<Doors>,
    sources: Vec<JoinHandle<()>>,
    stop_sources: watch::Sender<bool>,
    ingest: JoinHandle<()>,
    stop_ingest: oneshot::Sender<()>,
    background: JoinSet<()>,
    writer: Part,
    /// Sealer and deliveries; none only while a reload replaces them.
    outbound: Option<Outbound>,
    tools: Tools,
    /// Where ingest sends messages.
    routes: watch::Sender<Routes>,
    failed: mpsc::Receiver<anyhow::Error>,
    /// Questions that go the way of a message.
    probes: mpsc::Sender<Ticket>,
    /// Hears how the agent is.
    manager: Option<Arc<Manager>>,
    /// Keeps the data directory locked until everything above has ended.
    store: Store,
}

impl Agent {
    /// Starts every part. When this returns, devices can connect. `reloads`: who reads the configuration again when asked to;
    /// none: nobody does.
    pub async fn start(config: Config, reloads: Option<Reloads>) -> Result<Self> {
        let (failing, failed) = mpsc::channel(4);
        let opening = tokio::task::spawn_blocking(move || open(config, failing));
        let (store, tools, sealer, running) = opening.await??;
        let (config, failing) = (&running.config, &tools.failing);
        let clock = Arc::new(Clock::new());
        let counters = Arc::new(Counters::default());

        let (requests, queue) = mpsc::channel(config.limits.unstored_messages_max);
        let weak_requests = requests.downgrade();
        let writer = start_writer(&store.spool, &counters, queue, failing)?;
        let (broker, inbound) = Broker::new(config.limits.clone(), stored_sessions(&store.spool)?);
        let (routes, from_routes) = watch::channel(Routes::new(config, &running.datasets));
        let ingest = Ingest { routes: from_routes, clock: Arc::clone(&clock), counters: Arc::clone(&counters) };
        let (stop_ingest, stopped) = oneshot::channel();
        let (to_ingest, from_sources) = mpsc::channel(config.limits.unstored_messages_max);
        let (probes, questions) = mpsc::channel(1);
        let ingest = tokio::spawn(ingest.run(inbound, from_sources, questions, requests, stopped));
        let outbound = Outbound::start(&tools, sealer.into(), &running)?;
        let budget_bytes = config.limits.unstored_bytes_max.max(1);
        let outlet = source::Shared {
            inbound: to_ingest,
            budget: Arc::new(Semaphore::new(budget_bytes as usize)),
            budget_bytes,
            dir: sources_dir(&config.data_dir),
            fs: store.fs.clone(),
        };
        let sources = config
            .sources
            .iter()
            .map(|source| Arc::new(SourceProgress::new(&source.name, &source.url.to_string(), &source.client_id)));
        let sources = sources.collect();
        let failing = failing.clone();
        let shared = Arc::new(Shared {
            running: RwLock::new(Arc::new(running)),
            reloads,
            reloaded: Mutex::default(),
            sources,
            spool: store.spool.clone(),
            writer: weak_requests,
            broker: broker.clone(),
            counters,
            clock,
            sealing: Arc::clone(&tools.sealing),
            rates: Rates::default(),
            started: clock::now(),
            bound: OnceLock::new(),
        });
        let mut background = JoinSet::new();
        background.spawn(sample(Arc::clone(&shared)));
        background.spawn(control::serve(control::bind(&shared.running().config)?, Arc::clone(&shared)));
        let mut agent = Self {
            shared,
            broker,
            doors: None,
            sources: Vec::new(),
            stop_sources: watch::Sender::new(false),
            ingest,
            stop_ingest,
            background,
            writer,
            outbound: Some(outbound),
            tools,
            routes,
            failed,
            probes,
            manager: None,
            store,
        };
        agent.listen().await?;
        agent.subscribe(&outlet, &failing);
        Ok(agent)
    }

    /// Has a service manager hear how the agent is, from now on: devices can connect.
    pub fn report_to(&mut self, manager: socket::Manager) {
        let manager = Arc::new(Manager::new(manager));
        manager.ready(&self.shared);
        let probe = Probe::new(self.probes.clone(), self.shared.writer.clone());
        self.background.spawn(Arc::clone(&manager).run(Arc::clone(&self.shared), probe));
        self.manager = Some(manager);
    }

    /// Has the service manager hear that the agent will stop, and why if nobody asked for it.
    pub fn report_stopping(&self, problem: Option<&anyhow::Error>) {
        if let Some(manager) = &self.manager {
            manager.stopping(problem.map(|problem| format!("{problem:#}")).as_deref());
        }
    }

    /// Starts to receive from the sources.
    fn subscribe(&mut self, outlet: &source::Shared, failing: &mpsc::Sender<anyhow::Error>) {
        let running = self.shared.running();
        for (source, progress) in running.config.sources.iter().zip(&self.shared.sources) {
            let stop = self.stop_sources.subscribe();
            let run = tokio::spawn(source::run(source.clone(), outlet.clone(), Arc::clone(progress), stop));
            let (name, failing) = (source.name.clone(), failing.clone());
            self.sources.push(tokio::spawn(async move {
                if let Err(panic) = run.await {
                    error!(source = name, "A part of the agent failed.");
                    let _ = failing.try_send(anyhow::Error::from(panic).context(format!("source {name}")));
                }
            }));
        }
    }

    /// Leaves the sources: what they sent is on disk and answered when this returns.
    pub async fn leave_sources(&mut self) -> Result<()> {
        self.stop_sources.send_replace(true);
        let all = async {
            for source in self.sources.drain(..) {
                source.await?;
            }
            Ok(())
        };
        within(STOP_MAX, "the sources", all).await
    }

    async fn listen(&mut self) -> Result<()> {
        let doors = Doors::open(&self.broker, &self.shared.running().config).await?;
        let _ = self.shared.bound.set(doors.names());
        self.doors = Some(doors);
        Ok(())
    }

    /// Where devices connect to over TCP, in the order of the configuration.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.doors.as_ref().map(Doors::addresses).unwrap_or_default()
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
            part = self.broker.failed() => anyhow!("{part} has ended"),
            Some(Err(panic)) = self.background.join_next() => anyhow::Error::from(panic).context("a part of the agent"),
        }
    }

    /// Cuts every batch that waits, whatever its age, and answers when all of them are in their datasets.
    pub async fn seal_all(&self) -> Result<()> {
        let sealing = Arc::clone(&self.shared.sealing);
        tokio::task::spawn_blocking(move || sealing.seal_all(SEAL_ALL_MAX)).await?
    }

    /// Stops accepting, answers what was submitted, and ends every part in turn.
    pub async fn stop(mut self) -> Result<()> {
        info!("Stopping: no new connections, answering what was received.");
        let (left, ()) = {
            let broker = self.broker.clone();
            tokio::join!(self.leave_sources(), broker.shutdown())
        };
        if let Err(problem) = left {
            warn!(
                problem = format!("{problem:#}"),
                "Not waiting for it any longer; its broker sends again what is not answered."
            );
        }
        drop(self.doors);
        let _ = self.stop_ingest.send(());
        within(STOP_MAX, "ingest", async { Ok(self.ingest.await?) }).await?;
        self.background.shutdown().await;
        self.writer.ended(STOP_MAX).await?;
        if let Some(outbound) = self.outbound {
            outbound.stop(&self.shared.sealing).await;
        }
        // Answers that are still being made hold the spool open; whoever starts again needs it closed.
        let closed = async {
            while Arc::strong_count(&self.shared) > 1 {
                tokio::time::sleep(CLOSE_LOOK).await;
            }
            Ok(())
        };
        within(STOP_MAX, "the control socket", closed).await?;
        let _ = std::fs::remove_file(self.shared.running().config.control_socket());
        let position = self.store.spool.log_end();
        info!(log_end = position.0, "Stopped.");
        Ok(())
    }
}

/// Everything that reads the disk before the first device is let in.
fn open(config: Config, failing: mpsc::Sender<anyhow::Error>) -> Result<(Store, Tools, Sealer, Running)> {
    let store = Store::open(&config)?;
    let report = &store.report;
    if let Some(aside) = &report.put_aside {
        warn!(path = %aside.display(), "A damaged spool was put aside; what could be read of it goes on.");
    }
    for gap in &report.damaged {
        warn!(?gap, "Messages of the spool cannot be read.");
    }
    info!(messages = report.messages, log_end = store.spool.log_end().0, "Spool opened.");
    begin_above_earlier_spools(&config, &store.spool)?;
    let sealing = Arc::new(Sealing::default());
    let tools = Tools { spool: store.spool.clone(), fs: store.fs.clone(), sealing, failing };
    let sealer = tools.open(&config)?;
    let running = tools.running(config, &sealer, None)?;
    Ok((store, tools, sealer, running))
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

fn stored_sessions(spool: &Spool) -> Result<Vec<StoredSession>> {
    let sessions = spool.sessions().context("read the sessions of the spool")?;
    // What the spool keeps for a source is no session of a device.
    let of_devices = sessions.into_iter().filter(|session| Publisher::of(&session.client_id).source().is_none());
    Ok(of_devices
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
    Part::start("spool-writer".to_owned(), failing, move || {
        let mut writer = Writer::new(spool, |ticket, outcome| counters.resolve(ticket, outcome));
        if let Err(problem) = writer.run(queue) {
            error!(%problem, "The spool cannot be written: nothing is acknowledged any more.");
            let _ = reporting.try_send(anyhow::Error::from(problem).context("write the spool"));
        }
    })
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
