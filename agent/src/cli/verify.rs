//! `forebay verify`: every checksum, every hash, every rule.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;

use super::ask::{Source, ask};
use super::output::{self, Cell, OutputFormat, Table, Tone, tinted};
use crate::config::Config;
use crate::control::ControlRequest;
use crate::verify::{self, DatasetReport, VerifyReport};

/// What `verify` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this dataset (and the spool)
    dataset: Option<String>,
    /// How the result is written
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Runs the command.
pub(crate) fn run(args: &Args, config: &Config) -> Result<ExitCode> {
    let request = ControlRequest::Verify { dataset: args.dataset.clone() };
    let report = match ask(config, &request)? {
        Source::Agent(answers) => answers.one()?,
        Source::Store(store) => verify::run(config, &store.spool, args.dataset.as_deref())?,
    };
    let text = match args.output {
        OutputFormat::Json => format!("{}\n", serde_json::to_string(&report)?),
        OutputFormat::Text => render(&report, output::colour()),
    };
    output::print(&text)?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn render(report: &VerifyReport, colour: bool) -> String {
    let mut out = table(&report.datasets).render(colour);
    let _ = writeln!(
        out,
        "spool: {} messages in {} chunks",
        output::grouped(report.spool_messages),
        output::grouped(report.spool_chunks),
    );
    let notes = report.datasets.iter().flat_map(|dataset| &dataset.notes);
    for note in report.spool_gaps.iter().chain(notes) {
        let _ = writeln!(out, "{} {note}", tinted("note:", Tone::Warning, colour));
    }
    let problems = report.datasets.iter().flat_map(|dataset| &dataset.problems);
    for problem in report.spool_problems.iter().chain(problems) {
        let _ = writeln!(out, "{} {problem}", tinted("problem:", Tone::Bad, colour));
    }
    out += &verdict(report.ok, colour);
    out
}

/// The last line: `verify: ok`.
pub(crate) fn verdict(ok: bool, colour: bool) -> String {
    let (word, tone) = if ok { ("ok", Tone::Good) } else { ("failed", Tone::Bad) };
    format!("verify: {}\n", tinted(word, tone, colour))
}

/// The datasets as a table.
pub(crate) fn table(datasets: &[DatasetReport]) -> Table {
    let mut table = Table::new(["dataset", "rows", "slices", "blocks", "head", "verify"]);
    for dataset in datasets {
        let verify = if dataset.ok { Cell::from("ok").tone(Tone::Good) } else { Cell::from("failed").tone(Tone::Bad) };
        table.row([
            dataset.name.as_str().into(),
            dataset.rows.into(),
            dataset.slices.into(),
            dataset.blocks.into(),
            short_head(dataset.head.as_deref()).into(),
            verify,
        ]);
    }
    table
}

/// Enough of a hash to tell it from others: the first 12 digits of the digest.
pub(crate) fn short_head(head: Option<&str>) -> String {
    let Some(head) = head else { return "none".to_owned() };
    let digest = head.strip_prefix("f1620").unwrap_or(head);
    digest.chars().take(12).collect()
}
