//! `forebay import`: delivers a bundle from where there is a link, and writes its receipt.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};

use super::output::{self, OutputFormat, Tone, grouped, tinted};
use super::sync::Bar;
use crate::bundle::{self, Imported};
use crate::config::{Config, Log, Secret, Upstream, UpstreamKind};
use crate::telemetry;

/// What `import` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The bundle
    dir: PathBuf,
    /// Where it goes: any URL that an upstream may have. One that the configuration has is taken with its keys
    #[arg(long, value_name = "URL")]
    to: String,
    /// File with the token of a node
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with the certificates that are trusted instead of the system's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// How the result is written
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Runs the command. Everything, the bundle's own chains included, is checked before anything is sent.
pub(super) fn run(args: &Args, config: &Config, level: Option<&str>) -> Result<ExitCode> {
    telemetry::start(&Log { level: level.unwrap_or("off").to_owned(), ..config.log.clone() })?;
    let upstream = upstream(args, config)?;
    let mut bar = Bar::new();
    let imported = bundle::import(&args.dir, &upstream, &mut |report| bar.show_left(report.undelivered_bytes))?;
    bar.end();
    let text = match args.output {
        OutputFormat::Json => format!("{}\n", serde_json::to_string(&imported)?),
        OutputFormat::Text => render(&imported, &upstream.url, output::colour()),
    };
    output::print(&text)?;
    Ok(if imported.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn upstream(args: &Args, config: &Config) -> Result<Upstream> {
    let known = config.upstreams.iter().find(|upstream| upstream.url == args.to).cloned();
    let mut upstream = match known {
        Some(upstream) => upstream,
        None => Upstream::at(&args.to).map_err(|problem| anyhow!("--to: {problem}"))?,
    };
    if let UpstreamKind::Directory(path) = &upstream.kind
        && path.starts_with(std::path::absolute(&args.dir)?)
    {
        return Err(anyhow!("--to: {} lies in the bundle itself", path.display()));
    }
    upstream.datasets = None;
    upstream.window = None;
    upstream.token = args.token_file.clone().map(Secret::File).or(upstream.token);
    upstream.ca_file = args.ca_file.clone().or(upstream.ca_file);
    Ok(upstream)
}

fn render(imported: &Imported, url: &str, colour: bool) -> String {
    let mut out = String::new();
    for dataset in &imported.datasets {
        out += &format!("{url}: dataset {} is there below seq {}\n", dataset.name, grouped(dataset.end));
    }
    for file in &imported.refused {
        let line = format!("refused rows are in {}", file.display());
        out += &format!("{}\n", tinted(&line, Tone::Warning, colour));
    }
    for problem in &imported.problems {
        out += &format!("{} {problem}\n", tinted("problem:", Tone::Bad, colour));
    }
    if !imported.datasets.is_empty() {
        out += "receipt written: bring the stick back to the gateway and run `forebay export` there\n";
    }
    out
}
