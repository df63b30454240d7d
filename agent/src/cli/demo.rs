//! `forebay demo`: shows in half a minute what the agent does, and proves it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use super::output;
use crate::config::{Log, LogFormat};
use crate::{demo, telemetry};

/// What `demo` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it keeps its data; what an earlier demo left there is deleted
    #[arg(default_value = "./forebay-demo")]
    dir: PathBuf,
}

/// Runs the command. Log lines would drown the story, so only errors are shown unless asked for.
pub(super) fn run(args: &Args, format: Option<LogFormat>, level: Option<&str>) -> Result<ExitCode> {
    telemetry::start(&Log { format: format.unwrap_or_default(), level: level.unwrap_or("error").to_owned() })?;
    let is_ok = super::run::runtime()?.block_on(async {
        tokio::select! {
            outcome = demo::run(&args.dir, output::colour()) => outcome,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        }
    })?;
    Ok(if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
