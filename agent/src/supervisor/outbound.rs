//! The parts behind the spool, sealer and deliveries: started together, and stopped and started anew when a reload gives
//! them other datasets or upstreams. Devices and sources do not notice: what comes meanwhile waits in the spool.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use forebay_storage::batcher::BatchLimits;
use forebay_storage::dataset::spec::DatasetSpec;
use forebay_storage::durable_fs::DurableFs;
use forebay_storage::sealer::{self, SealError, Sealer};
use forebay_storage::spool::Spool;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use super::part::Part;
use crate::clock;
use crate::config::{Config, ConfigError, Origin};
use crate::sealing::{self, Sealing};
use crate::status::Running;
use crate::store::{datasets_dir, scratch_dir};
use crate::upstream::backlog::Backlog;
use crate::upstream::bell::Bell;
use crate::upstream::deliver::Delivery;
use crate::upstream::retention::Retention;

/// What the parts behind the spool work with, whatever the configuration says.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    pub(super) spool: Spool,
    pub(super) fs: DurableFs,
    pub(super) sealing: Arc<Sealing>,
    pub(super) failing: mpsc::Sender<anyhow::Error>,
}

/// Sealer and deliveries at work.
#[derive(Debug)]
pub(super) struct Outbound {
    sealer: Part,
    /// The sealer itself, when its thread has ended well.
    given_back: oneshot::Receiver<Sealer>,
    stop: Arc<AtomicBool>,
    deliveries: Deliveries,
    bell: Arc<Bell>,
}

/// One thread for each upstream, by its URL.
type Deliveries = Vec<(String, Part)>;

/// Sealer and deliveries at rest.
pub(super) struct Stopped {
    pub(super) sealer: Sealer,
    /// Deliveries that go on although they were told to stop, such as one that waits for a dead disk.
    left: Deliveries,
}

impl Tools {
    /// Opens what the configuration declares.
    pub(super) fn open(&self, config: &Config) -> Result<Sealer> {
        let (specs, limits) = declared(config);
        let root = datasets_dir(&config.data_dir);
        let sealer = Sealer::open(self.spool.clone(), &self.fs, &root, &config.gateway, &specs, limits, now_us());
        sealer.map_err(|error| refused(config, error))
    }

    /// Whether the datasets on disk allow what another configuration declares, while the sealer is at work.
    ///
    /// # Errors
    /// What is refused, and where it is declared.
    pub(super) fn check(&self, running: &Config, new: &Config) -> Result<()> {
        let root = datasets_dir(&running.data_dir);
        let is_new = |spec: &DatasetSpec| running.datasets.iter().all(|known| known.spec != *spec);
        for spec in new.datasets.iter().map(|dataset| &dataset.spec).filter(|spec| is_new(spec)) {
            sealer::check(&root, &self.fs, spec, now_us()).map_err(|error| refused(new, error))?;
        }
        Ok(())
    }

    /// Has the sealer go on with what another configuration declares.
    ///
    /// # Errors
    /// The sealer goes on as before.
    pub(super) fn redeclare(&self, sealer: &mut Sealer, config: &Config) -> Result<()> {
        let (specs, limits) = declared(config);
        sealer.redeclare(&specs, limits, now_us()).map_err(|error| refused(config, error))
    }

    /// What the parts of this configuration share. `before`: those that they follow. Says what the sealer cannot seal.
    pub(super) fn running(&self, config: Config, sealer: &Sealer, before: Option<&Running>) -> Result<Running> {
        report(sealer)?;
        let known = before.map_or(&[][..], |before| before.backlog.upstreams());
        let backlog = Backlog::open(&self.spool, sealer, &config.upstreams, known)?;
        let id = |name: &str| self.spool.dataset_id(name).context("read the datasets of the spool");
        let names = config.datasets.iter().map(|dataset| dataset.spec.name.clone());
        let datasets = names.map(|name| Ok((name.clone(), id(&name)?))).collect::<Result<Vec<_>>>()?;
        let root = datasets_dir(&config.data_dir);
        let kept = (config.keep_delivered_bytes, config.spool.min_free_bytes);
        let retention = Retention::new(&self.spool, &self.fs, &root, &datasets, &config.upstreams, kept);
        let bell = before.map_or_else(Bell::default, |before| before.bell.next());
        Ok(Running {
            config,
            datasets,
            backlog: Arc::new(backlog),
            bell: Arc::new(bell),
            retention: Arc::new(retention),
        })
    }
}

impl Outbound {
    /// Starts the parts of this configuration.
    pub(super) fn start(tools: &Tools, stopped: Stopped, running: &Running) -> Result<Self> {
        let Stopped { sealer, left } = stopped;
        tools.sealing.note(&sealer);
        let stop = Arc::new(AtomicBool::new(false));
        let (giving_back, given_back) = oneshot::channel();
        let sealer = start_sealer(tools, sealer, running, Arc::clone(&stop), giving_back)?;
        let deliveries = start_deliveries(tools, running, left)?;
        Ok(Self { sealer, given_back, stop, deliveries, bell: Arc::clone(&running.bell) })
    }

    /// Stops at a clean point: between two batches, and with nothing on its way to an upstream. The sealer goes on until the
    /// deliveries have ended.
    ///
    /// # Errors
    /// The sealer failed.
    pub(super) async fn pause(self) -> Result<Stopped> {
        self.bell.stop();
        let mut left = Deliveries::new();
        for (url, delivery) in self.deliveries {
            left.extend(delivery.ended_or_left().await.map(|delivery| (url, delivery)));
        }
        self.stop.store(true, Ordering::Relaxed);
        let sealer = self.given_back.await.context("the sealer failed")?;
        Ok(Stopped { sealer, left })
    }

    /// Stops for good.
    pub(super) async fn stop(self, sealing: &Sealing) {
        self.stop.store(true, Ordering::Relaxed);
        self.sealer.ended_or_left().await;
        sealing.note_ended();
        self.bell.stop();
        for (_, delivery) in self.deliveries {
            delivery.ended_or_left().await;
        }
    }
}

impl From<Sealer> for Stopped {
    fn from(sealer: Sealer) -> Self {
        Self { sealer, left: Deliveries::new() }
    }
}

fn start_sealer(
    tools: &Tools,
    mut sealer: Sealer,
    running: &Running,
    stop: Arc<AtomicBool>,
    giving_back: oneshot::Sender<Sealer>,
) -> Result<Part> {
    let (Tools { spool, sealing, failing, .. }, backlog, bell) =
        (tools.clone(), Arc::clone(&running.backlog), Arc::clone(&running.bell));
    let reporting = failing.clone();
    Part::start("sealer".to_owned(), &failing, move || {
        match sealing::run(&mut sealer, &spool, &sealing, &backlog, &bell, &stop) {
            Ok(()) => _ = giving_back.send(sealer),
            Err(problem) => {
                sealing.note_ended();
                error!(%problem, "The spool cannot be read: the next start salvages what can be.");
                let _ = reporting.try_send(anyhow::Error::from(problem).context("seal"));
            }
        }
    })
}

fn start_deliveries(tools: &Tools, running: &Running, mut left: Deliveries) -> Result<Deliveries> {
    let (config, datasets) = (&running.config, &running.datasets);
    let mut deliveries = Deliveries::new();
    for (number, (upstream, progress)) in config.upstreams.iter().zip(running.backlog.upstreams()).enumerate() {
        let delivery = Delivery {
            upstream: upstream.clone(),
            number,
            datasets: datasets.iter().filter(|(name, _)| upstream.takes(name)).cloned().collect(),
            datasets_dir: datasets_dir(&config.data_dir),
            scratch_dir: scratch_dir(&config.data_dir),
            spool: tools.spool.clone(),
            fs: tools.fs.clone(),
            progress: Arc::clone(progress),
            backlog: Arc::clone(&running.backlog),
            retention: Arc::clone(&running.retention),
            bell: Arc::clone(&running.bell),
        };
        let before = left.iter().position(|(url, _)| *url == upstream.url).map(|index| left.swap_remove(index).1);
        let deliver = move || {
            // Never two at once to the same place.
            if let Some(before) = before {
                before.wait();
            }
            delivery.run();
        };
        deliveries.push((upstream.url.clone(), Part::start(format!("upstream-{number}"), &tools.failing, deliver)?));
    }
    // To be waited for again, should their upstream come back.
    deliveries.extend(left);
    Ok(deliveries)
}

fn declared(config: &Config) -> (Vec<Arc<DatasetSpec>>, BatchLimits) {
    let specs = config.datasets.iter().map(|dataset| Arc::new(dataset.spec.clone())).collect();
    let limits = BatchLimits {
        rows: config.batch.rows,
        bytes: config.batch.bytes,
        age_us: i64::try_from(config.batch.age.as_micros()).unwrap_or(i64::MAX),
    };
    (specs, limits)
}

/// The file asks for something that the dataset on disk does not allow: a restart cures nothing.
fn refused(config: &Config, error: SealError) -> anyhow::Error {
    let SealError::Incompatible { dataset, .. } = &error else {
        return anyhow::Error::from(error).context("open the datasets");
    };
    let declared = config.datasets.iter().find(|known| known.spec.name == *dataset);
    let origin = declared.map_or(Origin::Default, |declared| declared.origin.clone());
    anyhow::Error::from(ConfigError { origin, key: "dataset".to_owned(), problem: error.to_string() })
}

/// Says which datasets cannot be opened, and what waits for datasets that nobody seals.
fn report(sealer: &Sealer) -> Result<()> {
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
    Ok(())
}

fn now_us() -> i64 {
    clock::micros(clock::wall())
}
