//! `forebay status`: listeners, spool, datasets, upstreams.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::ask::{Source, ask};
use super::output::{self, Cell, OutputFormat, Table, Tone, bytes, grouped, span, tinted};
use super::verify::short_head;
use crate::clock;
use crate::config::Config;
use crate::control::{ControlRequest, client};
use crate::reload::ReloadReport;
use crate::status::{self, Status};

/// How often `--watch` looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Clears a terminal and goes to its first line.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What `status` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Show it again every second, until interrupted
    #[arg(short, long)]
    watch: bool,
    /// How it is written; with --watch, JSON is one line each time
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Runs the command.
pub(super) fn run(args: &Args, config: &Config) -> Result<ExitCode> {
    let mut status = match ask(config, &ControlRequest::Status)? {
        Source::Agent(answers) => answers.one()?,
        Source::Store(store) => status::of_store(config, &store)?,
    };
    loop {
        let clear = args.watch && std::io::stdout().is_terminal();
        let text = match args.output {
            OutputFormat::Json => format!("{}\n", serde_json::to_string(&status)?),
            OutputFormat::Text if clear => format!("{CLEAR}{}", render(&status, output::colour())),
            OutputFormat::Text => render(&status, output::colour()),
        };
        output::print(&text)?;
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(WATCH_EVERY);
        let Some(answers) = client::ask(config, &ControlRequest::Status)? else {
            eprintln!("forebay: no agent runs any more");
            return Ok(ExitCode::FAILURE);
        };
        status = answers.one()?;
    }
}

fn render(status: &Status, colour: bool) -> String {
    let mut out = String::new();
    heading(status, colour, &mut out);
    out.push('\n');
    out += &datasets(status).render(colour);
    for dataset in &status.datasets {
        if !dataset.unknown_fields.is_empty() {
            let fields: Vec<String> = dataset
                .unknown_fields
                .iter()
                .map(|(name, count)| format!("{} {}", name.escape_debug(), grouped(*count)))
                .collect();
            let _ = writeln!(out, "unknown fields of {}: {}", dataset.name, fields.join(", "));
        }
    }
    if status.dead_letters_without_dataset > 0 {
        let count = grouped(status.dead_letters_without_dataset);
        let _ = writeln!(out, "dead letters of topics that no dataset takes: {count}");
    }
    out.push('\n');
    out += &sources(status, colour);
    out += &upstreams(status, colour);
    if !status.refused.is_empty() {
        let refused: Vec<String> =
            status.refused.iter().map(|(name, count)| format!("{name} {}", grouped(*count))).collect();
        let _ = writeln!(out, "{}  {}", tinted("refused", Tone::Warning, colour), refused.join(", "));
    }
    if let Some(problem) = &status.sealing_error {
        let _ = writeln!(out, "{} {problem}", tinted("sealing fails:", Tone::Bad, colour));
    }
    out
}

fn heading(status: &Status, colour: bool, out: &mut String) {
    let (state, tone) = match (status.running, status.uptime_secs) {
        (true, Some(secs)) => (format!("running for {}", span(secs)), Tone::Good),
        _ => ("not running".to_owned(), Tone::Warning),
    };
    let state = tinted(&state, tone, colour);
    let _ = writeln!(out, "forebay {}  gateway {}  {state}", status.version, status.gateway);
    if status.clock_synchronised == Some(false) {
        let _ = writeln!(out, "{}", tinted("the clock is not synchronised", Tone::Warning, colour));
    }
    if status.running {
        let open = status.broker.get("connections_open").copied().unwrap_or(0);
        let listeners = status.listeners.join(", ");
        let _ = writeln!(out, "listener  {listeners}  {} connections", grouped(open));
    }
    if let Some(reload) = &status.reload {
        let _ = writeln!(out, "reload    {}", render_reload(reload, clock::wall_ms(), colour));
    }
    let spool = &status.spool;
    let used = bytes(spool.bytes + spool.undelivered_bytes);
    let mut line = format!("spool     {used} of {}  {} waiting", bytes(spool.max_bytes), grouped(spool.waiting));
    if let Some(secs) = spool.oldest_waiting_secs {
        let _ = write!(line, ", oldest {}", span(secs));
    }
    if spool.undelivered_bytes > 0 {
        let _ = write!(line, ", {} of slices undelivered", bytes(spool.undelivered_bytes));
    }
    if let Some(rate) = spool.stored_per_sec {
        let _ = write!(line, "  {rate} messages/s");
    }
    if let Some(secs) = spool.full_in_secs {
        let _ = write!(line, "  {}", tinted(&format!("full in {}", span(secs)), Tone::Warning, colour));
    }
    if spool.disk_full {
        let _ = write!(line, "  {}", tinted("the disk is full", Tone::Bad, colour));
    }
    if spool.gaps > 0 {
        let gaps = format!("{} gaps (see `forebay verify`)", spool.gaps);
        let _ = write!(line, "  {}", tinted(&gaps, Tone::Bad, colour));
    }
    let _ = writeln!(out, "{line}");
}

fn render_reload(reload: &ReloadReport, now_ms: i64, colour: bool) -> String {
    let ago = span(u64::try_from(now_ms.saturating_sub(reload.at_ms) / 1_000).unwrap_or(0));
    if let Some(problem) = &reload.problem {
        let refused = tinted(&format!("{ago} ago, refused, the one before goes on:"), Tone::Bad, colour);
        return format!("{refused} {problem}");
    }
    if reload.needs_restart.is_empty() {
        return format!("{ago} ago");
    }
    let keys = format!("a restart is needed for: {}", reload.needs_restart.join(", "));
    format!("{ago} ago, {}", tinted(&keys, Tone::Warning, colour))
}

fn datasets(status: &Status) -> Table {
    let mut table =
        Table::new(["dataset", "rows", "slices", "waiting", "oldest", "dead letters", "duplicates", "head"]);
    for dataset in &status.datasets {
        let dead = Cell::from(dataset.dead_letters);
        table.row([
            dataset.name.as_str().into(),
            dataset.chain.rows.into(),
            dataset.chain.slices.into(),
            dataset.waiting.into(),
            dataset.oldest_waiting_secs.map_or_else(|| "-".to_owned(), span).into(),
            if dataset.dead_letters > 0 { dead.tone(Tone::Warning) } else { dead },
            dataset.duplicates.into(),
            short_head(Some(dataset.chain.head.as_str()).filter(|head| !head.is_empty())).into(),
        ]);
    }
    table
}

fn sources(status: &Status, colour: bool) -> String {
    if status.sources.is_empty() {
        return String::new();
    }
    let mut table = Table::new(["source", "broker", "state", "connections", "topics", "messages"]);
    for source in &status.sources {
        let state = match (source.subscribed, source.connected, &source.problem) {
            (true, _, None) => Cell::from("subscribed").tone(Tone::Good),
            (true, _, Some(_)) => Cell::from("subscribed, but see below").tone(Tone::Warning),
            (false, true, _) => Cell::from("connected"),
            (false, false, Some(_)) => Cell::from("not connected, see below").tone(Tone::Warning),
            (false, false, None) => Cell::from("connecting"),
        };
        table.row([
            source.name.as_str().into(),
            source.url.as_str().into(),
            state,
            source.connections.into(),
            (source.topics.len() as u64).into(),
            source.messages.into(),
        ]);
    }
    let mut out = table.render(colour);
    for source in &status.sources {
        if source.sessions_lost > 0 {
            let words = "times the broker had lost our session, and what it had queued with it";
            let _ = writeln!(out, "note: source {}: {} {words}", source.name, source.sessions_lost);
        }
        if let Some(problem) = &source.problem {
            let tone = if source.needs_help { Tone::Bad } else { Tone::Warning };
            let _ = writeln!(out, "{} source {}: {problem}", tinted("problem:", tone, colour), source.name);
        }
    }
    out + "\n"
}

fn upstreams(status: &Status, colour: bool) -> String {
    if status.upstreams.is_empty() {
        return if status.running { "upstream  none\n".to_owned() } else { String::new() };
    }
    let mut table = Table::new(["upstream", "state", "blocks", "bytes", "undelivered", "waits"]);
    for upstream in &status.upstreams {
        let state = match &upstream.last_error {
            _ if upstream.opens_at_ms.is_some() => Cell::from("window closed"),
            None if upstream.reachable => Cell::from("reachable").tone(Tone::Good),
            None if !status.running => Cell::from("no agent runs"),
            None => Cell::from("not tried yet"),
            Some(_) if upstream.reachable => Cell::from("reachable, but see below").tone(Tone::Warning),
            Some(_) => Cell::from("not reached, see below").tone(Tone::Warning),
        };
        let waits = upstream.pending_since_ms.map(|since| {
            let secs = clock::wall_ms().saturating_sub(since) / 1_000;
            span(u64::try_from(secs).unwrap_or(0))
        });
        table.row([
            upstream.url.as_str().into(),
            state,
            upstream.blocks.into(),
            bytes(upstream.bytes).into(),
            bytes(upstream.undelivered_bytes).into(),
            waits.unwrap_or_else(|| "-".to_owned()).into(),
        ]);
    }
    table.render(colour) + &problems(status, colour)
}

/// One line for each thing that keeps data from being delivered, with what to change.
fn problems(status: &Status, colour: bool) -> String {
    let mut out = String::new();
    for upstream in &status.upstreams {
        for (dataset, problem) in &upstream.problems {
            let word = if problem.quarantined { "quarantined:" } else { "problem:" };
            let word = tinted(word, Tone::Bad, colour);
            let _ = writeln!(out, "{word} {}: dataset {dataset}: {}", upstream.url, problem.words);
        }
        for (dataset, rows) in &upstream.never_sent {
            let rows = grouped(*rows);
            let url = &upstream.url;
            let _ = writeln!(out, "note: {url}: {rows} rows of {dataset} were released before it was configured");
        }
        if let Some(error) = upstream.last_error.as_ref().filter(|_| upstream.problems.is_empty()) {
            let _ = writeln!(out, "{} {}: {error}", tinted("problem:", Tone::Warning, colour), upstream.url);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::report::SourceReport;
    use crate::status::DatasetStatus;
    use crate::upstream::report::DeliveryReport;

    #[test]
    fn status_names_what_waits_what_is_dead_and_which_fields_are_unknown() {
        let mut status = Status { running: true, uptime_secs: Some(61), ..Status::default() };
        status.datasets.push(DatasetStatus {
            name: "temperature".to_owned(),
            waiting: 12,
            oldest_waiting_secs: Some(7),
            dead_letters: 3,
            unknown_fields: [("hum".to_owned(), 1_200)].into(),
            ..DatasetStatus::default()
        });
        status.refused.insert("no_dataset".to_owned(), 4);
        status.sources.push(SourceReport {
            name: "plant".to_owned(),
            problem: Some("the broker refuses the connection".to_owned()),
            ..SourceReport::default()
        });
        status.upstreams.push(DeliveryReport { undelivered_bytes: 3 << 20, ..DeliveryReport::default() });

        let text = render(&status, false);

        assert!(text.contains("running for 1m 1s"), "{text}");
        assert!(text.contains("unknown fields of temperature: hum 1,200"), "{text}");
        assert!(text.contains("refused  no_dataset 4"), "{text}");
        assert!(text.contains("problem: source plant: the broker refuses the connection"), "{text}");
        assert!(text.contains("undelivered") && text.contains(&bytes(3 << 20)), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
    }

    #[test]
    fn status_says_when_the_last_reload_was_what_is_wrong_and_what_needs_a_restart() {
        let said = |reload| render_reload(&reload, 65_000, false);
        let reload = ReloadReport { at_ms: 4_000, ..ReloadReport::default() };

        assert_eq!(said(reload.clone()), "1m 1s ago");
        let refused = ReloadReport { problem: Some("f.toml:3:1: `batch`: no".to_owned()), ..reload.clone() };
        assert_eq!(said(refused), "1m 1s ago, refused, the one before goes on: f.toml:3:1: `batch`: no");
        let halfway = ReloadReport { needs_restart: vec!["gateway".to_owned(), "log".to_owned()], ..reload };
        assert_eq!(said(halfway), "1m 1s ago, a restart is needed for: gateway, log");
    }

    #[test]
    fn the_json_form_reads_back_the_same() {
        let status = Status { gateway: "gw".to_owned(), ..Status::default() };

        let json = serde_json::to_string(&status).unwrap();

        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
    }
}
