//! `forebay init`: writes a configuration to start from.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use super::output;
use crate::config;

/// What `init` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// File to write; an existing one is left alone [default: standard output]
    file: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let Some(path) = &args.file else {
        output::print(config::sample())?;
        return Ok(ExitCode::SUCCESS);
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .with_context(|| format!("create {}", path.display()))?;
    file.write_all(config::sample().as_bytes()).with_context(|| format!("write {}", path.display()))?;
    output::print(&format!("wrote {}\n", path.display()))?;
    Ok(ExitCode::SUCCESS)
}
