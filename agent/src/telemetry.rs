//! Logging to standard error. Payloads and credentials are never logged.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Log, LogFormat};

/// Starts logging, once per process; a second call changes nothing. `RUST_LOG` decides over the configuration.
pub fn start(log: &Log) -> Result<()> {
    let directives = std::env::var("RUST_LOG").unwrap_or_else(|_| log.level.clone());
    let filter: Targets =
        directives.parse().with_context(|| format!("read the log level {directives:?} (RUST_LOG or log.level)"))?;
    let filter = filter
        // What it would say of a certificate is said by whoever connects, in one line with what to change.
        .with_target("rustls_platform_verifier", LevelFilter::OFF)
        // At `trace` it would write every frame, passwords, payloads and tokens among them, as soon as some crate of a
        // build has tracing-subscriber take over what is logged with `log`.
        .with_target("tungstenite", LevelFilter::DEBUG);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let registry = tracing_subscriber::registry().with(filter);
    // A second start fails because the first one holds; that is what a test that embeds the agent needs.
    let _ = match log.format {
        LogFormat::Text => registry.with(lines).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    Ok(())
}
