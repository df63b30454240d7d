//! `forebay pull`: takes what the sources' brokers kept, seals and delivers it, and ends. For cron, for metered links, and for
//! manifests that were made for `kamu pull`.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::{self, Cell, OutputFormat, Table, Tone, tinted};
use super::run;
use crate::config::{Config, Loaded, units};
use crate::control::{ControlRequest, client};
use crate::pull::{self, Limits, PullReport};
use crate::status::Shared;
use crate::supervisor::Agent;
use crate::telemetry;

/// How often the line turns while nothing comes.
const TICK: Duration = Duration::from_millis(200);
/// How often the line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Topics that are listed; the others are added up.
const TOPICS_SHOWN: usize = 50;

/// What `pull` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ODF manifests with SetPollingSource/Mqtt, as given to `kamu add`; without any, the sources of the configuration
    #[arg(value_name = "MANIFEST")]
    manifests: Vec<PathBuf>,
    /// A broker that is silent for so long, after it answered the subscription, has nothing more
    #[arg(long, value_name = "SPAN", default_value = "2s", value_parser = units::duration)]
    silence: Duration,
    /// How long a broker may take to be connected and subscribed to
    #[arg(long, value_name = "SPAN", default_value = "30s", value_parser = units::duration)]
    connect: Duration,
    /// How long the whole may take, since a broker may have something new all the time
    #[arg(long, value_name = "SPAN", default_value = "10m", value_parser = units::duration)]
    limit: Duration,
    /// How the result is written
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Runs the command. `level`: what the command line says of logging.
pub(super) fn run(args: &Args, loaded: Loaded, level: Option<&str>) -> Result<ExitCode> {
    let mut config = loaded.config;
    let dir = config.data_dir.display().to_string();
    let notes = take_manifests(&mut config, &args.manifests)?;
    if config.sources.is_empty() {
        bail!("there is nothing to pull from: name a manifest, or configure a [[source]]");
    }
    if client::ask(&config, &ControlRequest::Status)?.is_some() {
        bail!(
            "an agent runs on {dir} and receives from its sources all the time; `forebay sync --once` asks it to deliver \
             everything now"
        );
    }
    // The line and the account at the end say what happened.
    config.log.level = level.unwrap_or("off").to_owned();
    telemetry::start(&config.log)?;
    config.listeners.clear();
    let limits = Limits { silence: args.silence, connect: args.connect, whole: args.limit };
    let mut report = run::runtime()?.block_on(pull(config, limits))?;
    report.notes.splice(0..0, notes);
    let text = match args.output {
        OutputFormat::Json => format!("{}\n", serde_json::to_string(&report)?),
        OutputFormat::Text => render(&report, output::colour()),
    };
    output::print(&text)?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// With manifests only their sources are pulled from. Answers what is to be known of them.
fn take_manifests(config: &mut Config, manifests: &[PathBuf]) -> Result<Vec<String>> {
    if !manifests.is_empty() {
        config.sources.clear();
    }
    let mut notes = Vec::new();
    for manifest in manifests {
        let dataset = config.add_manifest(manifest)?;
        notes.extend(dataset.notes.iter().map(|note| format!("dataset {}: {note}", dataset.spec.name)));
    }
    Ok(notes)
}

async fn pull(config: Config, limits: Limits) -> Result<PullReport> {
    let mut signals = run::Signals::listen()?;
    let mut line = Line::new();
    let mut agent = Agent::start(config, None).await?;
    let ended = tokio::select! {
        pulled = pull::run(&mut agent, limits, |shared| line.show(shared)) => Ok(pulled?),
        name = signals.next() => Err(anyhow::anyhow!("{name}: interrupted; what was acknowledged is on disk")),
    };
    line.end();
    agent.stop().await?;
    ended
}

/// How far it is: on a terminal a line that changes, elsewhere a line now and then.
struct Line {
    bar: ProgressBar,
    is_terminal: bool,
    told: std::time::Instant,
}

impl Line {
    fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(TICK);
        Self { bar, is_terminal, told: crate::clock::now() }
    }

    fn show(&mut self, shared: &Shared) {
        let now = crate::clock::now();
        if !self.is_terminal && now.duration_since(self.told) < LINE_EVERY {
            return;
        }
        self.told = now;
        let text = text(shared);
        if self.is_terminal {
            self.bar.set_message(text);
        } else {
            eprintln!("forebay: {text}");
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn text(shared: &Shared) -> String {
    let reports = shared.sources.iter().map(|source| source.report());
    let sources = reports.map(|report| {
        let state = match (&report.problem, report.subscribed) {
            (Some(problem), _) => problem.clone(),
            (None, true) => format!("{} messages on {} topics", output::grouped(report.messages), report.topics.len()),
            (None, false) if report.connections > 0 && report.messages > 0 => "done, sealing".to_owned(),
            (None, false) => "connecting".to_owned(),
        };
        format!("{}: {state}", report.name)
    });
    sources.collect::<Vec<_>>().join("; ")
}

fn render(report: &PullReport, colour: bool) -> String {
    let mut out = String::new();
    if !report.topics.is_empty() {
        let mut table = Table::new(["source", "topic", "messages"]);
        for topic in report.topics.iter().take(TOPICS_SHOWN) {
            table.row([topic.source.as_str().into(), super::tail::shown(&topic.topic).into(), topic.messages.into()]);
        }
        out += &table.render(colour);
        let more = &report.topics[report.topics.len().min(TOPICS_SHOWN)..];
        if !more.is_empty() {
            let messages: u64 = more.iter().map(|topic| topic.messages).sum();
            let _ = writeln!(out, "and {} messages on {} more topics", output::grouped(messages), more.len());
        }
        out += "\n";
    }
    let mut table = Table::new(["dataset", "new rows", "duplicates", "dead letters"]);
    for dataset in &report.datasets {
        let dead = Cell::from(dataset.dead_letters);
        table.row([
            dataset.dataset.as_str().into(),
            dataset.rows.into(),
            dataset.duplicates.into(),
            if dataset.dead_letters > 0 { dead.tone(Tone::Warning) } else { dead },
        ]);
    }
    out += &table.render(colour);
    if report.stored_already > 0 {
        let _ = writeln!(out, "{} messages came again and were stored already", output::grouped(report.stored_already));
    }
    for note in &report.notes {
        let _ = writeln!(out, "note: {note}");
    }
    for problem in &report.problems {
        let _ = writeln!(out, "{} {problem}", tinted("problem:", Tone::Bad, colour));
    }
    let (word, tone) = if report.ok { ("ok", Tone::Good) } else { ("failed", Tone::Bad) };
    out + &format!("pull: {}\n", tinted(word, tone, colour))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::{DatasetCount, TopicCount};

    #[test]
    fn what_came_is_listed_by_topic_and_what_became_of_it_by_dataset() {
        let topic = |number: u64| TopicCount { source: "plant".into(), topic: format!("a/{number:03}"), messages: 2 };
        let report = PullReport {
            topics: (0..60).map(topic).collect(),
            datasets: vec![DatasetCount { dataset: "temp".into(), rows: 118, duplicates: 1, dead_letters: 1 }],
            problems: vec!["source office: no answer from mqtt://office:1883".into()],
            ..PullReport::default()
        };

        let text = render(&report, false);

        assert!(text.contains("plant   a/000") && text.contains("and 20 messages on 10 more topics"), "{text}");
        assert!(text.contains("temp          118           1             1"), "{text}");
        assert!(text.ends_with("problem: source office: no answer from mqtt://office:1883\npull: failed\n"), "{text}");
    }
}
