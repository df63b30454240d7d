//! `forebay run`: the agent, until SIGTERM or SIGINT. SIGHUP, `forebay reload`, or a file that changes has it read its
//! configuration again.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior};
use tracing::{info, warn};

use crate::config::{Config, ConfigError, Loaded, Origin};
use crate::doors;
use crate::reload::ReloadReport;
use crate::service::socket::Manager;
use crate::status::Shared;
use crate::supervisor::Agent;
use crate::telemetry;
use crate::watch::{self, Watch, look};

/// Reloads that are asked for at once. Beyond: whoever asks waits.
const RELOADS_MAX: usize = 4;

/// How often a service manager is asked for more time to start in, and for how much.
const ASK_EVERY: Duration = Duration::from_secs(10);
const MORE_TIME: Duration = Duration::from_secs(120);

/// Runs the command. `load` reads a configuration file, or looks for one.
pub(super) fn run(loaded: Loaded, load: impl Fn(Option<&Path>) -> Result<Loaded, ConfigError>) -> Result<ExitCode> {
    telemetry::start(&loaded.config.log)?;
    runtime()?.block_on(until_signal(loaded, load))
}

/// The threads that serve devices and commands.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name("forebay-net")
        .enable_all()
        .build()
        .context("start the runtime")
}

async fn until_signal(loaded: Loaded, load: impl Fn(Option<&Path>) -> Result<Loaded, ConfigError>) -> Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let (reloads, asked) = mpsc::channel(RELOADS_MAX);
    let mut changes = Changes::listen(&loaded, asked)?;
    let file = loaded.file.map_or_else(|| "none".to_owned(), |file| file.display().to_string());
    info!(
        version = env!("CARGO_PKG_VERSION"),
        gateway = loaded.config.gateway,
        data_dir = %loaded.config.data_dir.display(),
        configuration = file,
        "Starting."
    );
    let manager = Manager::from_env().unwrap_or_else(|problem| {
        warn!(problem = format!("{problem:#}"), "The service manager is told nothing.");
        None
    });
    let mut agent = patiently(Agent::start(loaded.config, Some(reloads)), manager.as_ref()).await?;
    forget_other_sources(agent.shared());
    if let Some(manager) = manager {
        agent.report_to(manager);
    }
    let ended = serve(&mut agent, &mut signals, &mut changes, load).await;
    agent.report_stopping(ended.as_ref().err());
    ended?;
    agent.stop().await?;
    Ok(ExitCode::SUCCESS)
}

/// Asks the service manager for more time as long as something goes on: what is on disk is read before the first device is
/// let in, and nothing bounds how much that is.
async fn patiently<T>(starting: impl Future<Output = T>, manager: Option<&Manager>) -> T {
    tokio::pin!(starting);
    loop {
        match tokio::time::timeout(ASK_EVERY, &mut starting).await {
            Ok(started) => return started,
            Err(_) => {
                let more = format!("EXTEND_TIMEOUT_USEC={}\nSTATUS=Reading what is on disk.", MORE_TIME.as_micros());
                let _ = manager.map(|manager| manager.socket.send(&more));
            }
        }
    }
}

/// Of a source that is no longer configured no last values are needed. On a full disk they stay until the next start.
fn forget_other_sources(shared: &Shared) {
    let running = shared.running();
    if running.config.receives_nothing() {
        return; // `sync`, which leaves the sources out
    }
    match shared.spool.keep_sources(running.config.sources.iter().map(|source| &*source.name)) {
        Ok(0) => {}
        Ok(sources) => info!(sources, "Forgot the last values of sources that are no longer configured."),
        Err(error) => warn!(%error, "The last values of sources that are no longer configured are still there."),
    }
}

/// Until a signal says that it is enough.
///
/// # Errors
/// A part failed that the agent cannot go on without.
async fn serve(
    agent: &mut Agent,
    signals: &mut Signals,
    changes: &mut Changes,
    load: impl Fn(Option<&Path>) -> Result<Loaded, ConfigError>,
) -> Result<()> {
    loop {
        tokio::select! {
            name = signals.next() => {
                info!("{name}.");
                return Ok(());
            }
            error = agent.failed() => return Err(error),
            asking = changes.next() => {
                let report = agent.reload(|| changes.load(&load)).await?;
                changes.watch_also(doors::files(&agent.shared().running().config));
                if let Some(asking) = asking {
                    let _ = asking.send(report); // whoever asked may have gone
                }
            }
        }
    }
}

/// Who wants to hear what came of a reload.
type Asking = oneshot::Sender<ReloadReport>;

/// What asks a running agent to read its configuration again.
struct Changes {
    hangup: Signal,
    asked: mpsc::Receiver<Asking>,
    ticks: Interval,
    watch: Watch,
    /// The configuration file; none: there was none to be found, and SIGHUP looks for it again.
    file: Option<PathBuf>,
}

impl Changes {
    fn listen(loaded: &Loaded, asked: mpsc::Receiver<Asking>) -> Result<Self> {
        let mut ticks = tokio::time::interval(watch::LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            hangup: signal(SignalKind::hangup()).context("listen for SIGHUP")?,
            asked,
            ticks,
            watch: Watch::new(look(loaded.files())),
            file: loaded.file.clone(),
        })
    }

    /// Waits for SIGHUP, for somebody who asks and wants to hear what comes of it, or until a file has changed.
    async fn next(&mut self) -> Option<Asking> {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {
                    info!("SIGHUP.");
                    self.watch = Watch::new(look(self.watch.files()));
                    return None;
                }
                Some(asking) = self.asked.recv() => {
                    info!("Asked to reload.");
                    self.watch = Watch::new(look(self.watch.files()));
                    return Some(asking);
                }
                _ = self.ticks.tick() => {
                    let changed = self.watch.handle_look(look(self.watch.files()));
                    if let Some(file) = changed.first() {
                        info!(file = %file.display(), "A file of the configuration has changed.");
                        return None;
                    }
                }
            }
        }
    }

    /// Reads the configuration anew, and watches the files that it names from now on; if it cannot be used, those that were
    /// watched before and the one that is at fault.
    fn load(&mut self, load: impl Fn(Option<&Path>) -> Result<Loaded, ConfigError>) -> Result<Config, ConfigError> {
        let read = self.check_not_empty().and_then(|()| load(self.file.as_deref()));
        let files = match &read {
            Ok(loaded) => loaded.files(),
            Err(error) => self.watch.files().into_iter().chain(error.origin.file().map(Path::to_owned)).collect(),
        };
        self.watch.set_files(look(files));
        let loaded = read?;
        self.file = loaded.file;
        Ok(loaded.config)
    }

    /// Files in use that the file does not name any more: what needs a restart is as it was.
    fn watch_also(&mut self, files: Vec<PathBuf>) {
        self.watch.set_files(look(self.watch.files().into_iter().chain(files).collect()));
    }

    /// An empty file is a configuration, but under a running agent it is what a full disk has left of one.
    fn check_not_empty(&self) -> Result<(), ConfigError> {
        let Some(file) = self.file.as_ref().filter(|file| file.metadata().is_ok_and(|data| data.len() == 0)) else {
            return Ok(());
        };
        let problem = "is empty; a restart goes on with the defaults, if that is what is meant".to_owned();
        Err(ConfigError { origin: Origin::start_of(file), key: String::new(), problem })
    }
}

/// What asks a command to end.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    /// Waits for one, and names it.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::service::socket::NotifySocket;

    #[tokio::test(start_paused = true)]
    async fn a_start_that_takes_long_asks_for_more_time_as_long_as_it_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let heard = UnixDatagram::bind(&path).unwrap();
        heard.set_nonblocking(true).unwrap();
        let socket = NotifySocket::open(path.to_str().unwrap()).unwrap();
        let manager = Manager { socket, watchdog: None };

        let started = patiently(tokio::time::sleep(Duration::from_secs(25)), Some(&manager));

        started.await;
        let mut bytes = [0; 99];
        for _ in 0..2 {
            let length = heard.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], b"EXTEND_TIMEOUT_USEC=120000000\nSTATUS=Reading what is on disk.");
        }
        assert!(heard.recv(&mut bytes).is_err(), "no more than that");
    }
}
