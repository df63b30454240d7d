//! `forebay sync`: the sync job without listeners; with `--once` everything now, and an exit code that says whether it is
//! there.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::{self, Cell, OutputFormat, Table, Tone, bytes, tinted};
use super::run;
use crate::config::{ConfigError, Loaded};
use crate::control::{ControlRequest, client};
use crate::supervisor::Agent;
use crate::sync::{Sync, SyncReport};
use crate::telemetry;

/// How often the bar turns while nothing moves.
const TICK: Duration = Duration::from_millis(200);

/// What `sync` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Seal what waits, deliver everything, and end: 0 when every upstream has it, 1 otherwise. Windows do not count
    #[arg(long)]
    once: bool,
    /// How the result of --once is written
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Runs the command. `level`: what the command line says of logging.
pub(super) fn run(
    args: &Args,
    mut loaded: Loaded,
    level: Option<&str>,
    load: impl Fn(Option<&Path>) -> Result<Loaded, ConfigError>,
) -> Result<ExitCode> {
    let dir = loaded.config.data_dir.display().to_string();
    if !args.once {
        if client::ask(&loaded.config, &ControlRequest::Status)?.is_some() {
            bail!(
                "an agent runs on {dir} and delivers already; `forebay sync --once` asks it to deliver everything now"
            );
        }
        let receiving_nothing = |mut loaded: Loaded| {
            loaded.config.receive_nothing();
            loaded
        };
        return run::run(receiving_nothing(loaded.complete()?), |file| load(file).map(receiving_nothing));
    }
    if loaded.config.upstreams.is_empty() {
        eprintln!("forebay: no upstream is configured; what waits is sealed into the datasets in {dir}");
    }
    let mut bar = Bar::new();
    let report = if let Some(mut answers) = client::ask(&loaded.config, &ControlRequest::Sync)? {
        eprintln!("forebay: asking the agent that runs on {dir}");
        loop {
            let report: SyncReport = answers.next_line()?.context("the agent ended before everything was delivered")?;
            bar.show(&report);
            if report.done {
                break report;
            }
        }
    } else {
        eprintln!("forebay: no agent runs; delivering what is in {dir}");
        loaded = loaded.complete()?;
        // The bar and the account at the end say what happened.
        loaded.config.log.level = level.unwrap_or("off").to_owned();
        telemetry::start(&loaded.config.log)?;
        loaded.config.receive_nothing();
        deliver(loaded, &mut bar)?
    };
    bar.end();
    let text = match args.output {
        OutputFormat::Json => format!("{}\n", serde_json::to_string(&report)?),
        OutputFormat::Text => render(&report, output::colour()),
    };
    output::print(&text)?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// In an agent of this process that nobody can publish to.
fn deliver(loaded: Loaded, bar: &mut Bar) -> Result<SyncReport> {
    run::runtime()?.block_on(async {
        let mut signals = run::Signals::listen()?;
        let mut agent = Agent::start(loaded.config, None).await?;
        let shared = Arc::clone(agent.shared());
        let delivered = tokio::select! {
            report = Sync::run(&shared, |report| bar.show(report)) => report,
            error = agent.failed() => return Err(error),
            name = signals.next() => Err(anyhow::anyhow!("{name}: interrupted; what was delivered is delivered")),
        };
        drop(shared);
        agent.stop().await?;
        delivered
    })
}

fn render(report: &SyncReport, colour: bool) -> String {
    let mut table = Table::new(["upstream", "rows", "bytes sent", "left", "state"]);
    for upstream in &report.upstreams {
        let has_problem = report.problems.iter().any(|problem| problem.starts_with(&format!("{}: ", upstream.url)));
        let state = if has_problem {
            Cell::from("incomplete").tone(Tone::Bad)
        } else {
            Cell::from("has everything").tone(Tone::Good)
        };
        table.row([
            upstream.url.as_str().into(),
            upstream.rows.into(),
            bytes(upstream.bytes).into(),
            bytes(upstream.undelivered_bytes).into(),
            state,
        ]);
    }
    let mut out = if table.is_empty() { String::new() } else { table.render(colour) };
    for problem in &report.problems {
        out += &format!("{} {problem}\n", tinted("problem:", Tone::Bad, colour));
    }
    let (word, tone) = if report.ok { ("ok", Tone::Good) } else { ("failed", Tone::Bad) };
    out + &format!("sync: {}\n", tinted(word, tone, colour))
}

/// Bytes of slices that are on their way; on a terminal only.
pub(super) struct Bar {
    bar: ProgressBar,
    has_begun: bool,
}

impl Bar {
    pub(super) fn new() -> Self {
        let target =
            if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = "{spinner} {msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message("sealing");
        bar.enable_steady_tick(TICK);
        Self { bar, has_begun: false }
    }

    fn show(&mut self, report: &SyncReport) {
        self.show_left(report.upstreams.iter().map(|upstream| upstream.undelivered_bytes).sum());
    }

    /// Bytes that are still to be delivered.
    pub(super) fn show_left(&mut self, left: u64) {
        if !self.has_begun {
            self.has_begun = true;
            self.bar.set_message("delivering");
            self.bar.set_length(left);
        }
        let length = self.bar.length().unwrap_or(0).max(left);
        self.bar.set_length(length);
        self.bar.set_position(length - left);
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
