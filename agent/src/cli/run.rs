//! `forebay run`: the agent, until SIGTERM or SIGINT.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

use crate::config::Loaded;
use crate::supervisor::Agent;
use crate::telemetry;

/// Runs the command.
pub(super) fn run(loaded: Loaded) -> Result<ExitCode> {
    telemetry::start(&loaded.config.log)?;
    runtime()?.block_on(until_signal(loaded))
}

/// The threads that serve devices and commands.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name("forebay-net")
        .enable_all()
        .build()
        .context("start the runtime")
}

async fn until_signal(loaded: Loaded) -> Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let file = loaded.file.map_or_else(|| "none".to_owned(), |file| file.display().to_string());
    info!(
        version = env!("CARGO_PKG_VERSION"),
        gateway = loaded.config.gateway,
        data_dir = %loaded.config.data_dir.display(),
        configuration = file,
        "Starting."
    );
    let mut agent = Agent::start(loaded.config).await?;
    tokio::select! {
        name = signals.next() => info!("{name}."),
        error = agent.failed() => return Err(error),
    }
    agent.stop().await?;
    Ok(ExitCode::SUCCESS)
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
