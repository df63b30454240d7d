//! `forebay manifest`: a dataset as `kamu add` takes it.

use std::process::ExitCode;

use anyhow::{Result, bail};

use super::output;
use crate::config::{Config, Dataset, UpstreamKind, nearest};
use crate::manifest::{self, Columns, Options};

/// What `manifest` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The dataset
    dataset: String,
    /// Declare columns in SQL, for nodes of kamu 0.262 and older
    #[arg(long)]
    ddl: bool,
    /// Put this account before the dataset's name
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
}

/// Runs the command.
pub(super) fn run(args: &Args, config: &Config) -> Result<ExitCode> {
    let spec = &dataset_named(config, &args.dataset)?.spec;
    let options = Options {
        account: args.account.as_deref(),
        source_name: manifest::source_name(config, &spec.name),
        columns: columns(args.ddl),
    };
    output::print(&manifest::text(spec, &config.gateway, options)?)?;
    for url in smart_upstreams(config, &spec.name) {
        eprintln!(
            "forebay: {} goes to {url} by smart push, whose first push creates it: do not add this manifest there",
            spec.name
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The dataset of this name.
///
/// # Errors
/// There is none; the nearest name is told.
pub(super) fn dataset_named<'a>(config: &'a Config, name: &str) -> Result<&'a Dataset> {
    if let Some(dataset) = config.datasets.iter().find(|dataset| dataset.spec.name == name) {
        return Ok(dataset);
    }
    let known: Vec<&str> = config.datasets.iter().map(|dataset| dataset.spec.name.as_str()).collect();
    match nearest(name, &known) {
        Some(near) => bail!("there is no dataset {name:?}; did you mean {near:?}?"),
        None => bail!("there is no dataset {name:?}; there are: {}", known.join(", ")),
    }
}

/// What `--ddl` means.
pub(super) fn columns(ddl: bool) -> Columns {
    if ddl { Columns::Sql } else { Columns::Odf }
}

fn smart_upstreams<'a>(config: &'a Config, dataset: &'a str) -> impl Iterator<Item = &'a str> {
    let smart = config.upstreams.iter().filter(|upstream| matches!(upstream.kind, UpstreamKind::Smart(_)));
    smart.filter(move |upstream| upstream.takes(dataset)).map(|upstream| upstream.url.as_str())
}
