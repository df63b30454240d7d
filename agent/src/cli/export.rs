//! `forebay export`: a bundle for somebody who carries it, and the receipt that came back.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::output::{self, Cell, OutputFormat, Table, Tone, bytes, grouped};
use super::run;
use super::verify::short_head;
use crate::bundle::{self, Exported, Which};
use crate::config::Loaded;
use crate::control::{ControlRequest, client};
use crate::supervisor::Agent;
use crate::telemetry;

/// What `export` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory on the stick; a receipt that lies there is taken first
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// URL of the upstream that the bundle is for; needed when several are configured
    #[arg(long = "for", value_name = "URL")]
    upstream: Option<String>,
    /// Believe a receipt that names this URL instead: the same place by another name
    #[arg(long, value_name = "URL")]
    accept: Option<String>,
    /// How the result is written
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Runs the command.
pub(super) fn run(args: &Args, mut loaded: Loaded, level: Option<&str>) -> Result<ExitCode> {
    let dir = std::path::absolute(&args.to).with_context(|| format!("find {}", args.to.display()))?;
    let which = Which { upstream: args.upstream.clone(), accept: args.accept.clone() };
    let request = ControlRequest::Export { dir: dir.clone(), which: which.clone() };
    let data_dir = loaded.config.data_dir.display().to_string();
    let exported = if let Some(answers) = client::ask(&loaded.config, &request)? {
        eprintln!("forebay: asking the agent that runs on {data_dir}");
        answers.one()?
    } else {
        eprintln!("forebay: no agent runs; exporting what is in {data_dir}");
        loaded = loaded.complete()?;
        loaded.config.log.level = level.unwrap_or("error").to_owned();
        telemetry::start(&loaded.config.log)?;
        loaded.config.receive_nothing();
        run::runtime()?.block_on(export(loaded, &dir, which))?
    };
    let text = match args.output {
        OutputFormat::Json => format!("{}\n", serde_json::to_string(&exported)?),
        OutputFormat::Text => render(&exported, &dir, output::colour()),
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// In an agent of this process, which seals what waits.
async fn export(loaded: Loaded, dir: &Path, which: Which) -> Result<Exported> {
    let agent = Agent::start(loaded.config, None).await?;
    let shared = Arc::clone(agent.shared());
    let dir = dir.to_owned();
    let exporting = move || bundle::export_from(&shared, &dir, &which);
    let exported = tokio::task::spawn_blocking(exporting).await?;
    agent.stop().await?;
    exported
}

fn render(exported: &Exported, dir: &Path, colour: bool) -> String {
    let mut out = String::new();
    for (name, end) in &exported.accepted {
        out += &format!("receipt: {} has dataset {name} below seq {}\n", exported.upstream, grouped(*end));
    }
    let mut table = Table::new(["dataset", "rows", "slices", "bytes", "head"]);
    for dataset in &exported.datasets {
        table.row([
            Cell::from(dataset.name.as_str()).tone(Tone::Strong),
            dataset.rows.into(),
            dataset.slices.into(),
            bytes(dataset.bytes).into(),
            short_head(Some(&dataset.head)).into(),
        ]);
    }
    out += &table.render(colour);
    out += &format!(
        "in {}, for {}\nnext: `forebay import {} --to URL` where there is a link, then bring it back here\n",
        dir.display(),
        exported.upstream,
        dir.display()
    );
    out
}
