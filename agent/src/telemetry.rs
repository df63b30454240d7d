//! Logging to standard error. Payloads and credentials are never logged.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use crate::config::{Log, LogFormat};

/// Starts logging, once per process; a second call changes nothing. `RUST_LOG` decides over the configuration.
pub fn start(log: &Log) -> Result<()> {
    let directives = std::env::var("RUST_LOG").unwrap_or_else(|_| log.level.clone());
    let filter: EnvFilter =
        directives.parse().with_context(|| format!("read the log level {directives:?} (RUST_LOG or log.level)"))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_timer(SystemTime)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second start fails because the first one holds; that is what a test that embeds the agent needs.
    let _ = match log.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    Ok(())
}
