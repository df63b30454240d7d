//! `forebay provision`: every dataset on every node that needs it before rows can be posted.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use super::manifest::{columns, dataset_named};
use super::output::{self, Cell, OutputFormat, Table, Tone, tinted};
use crate::config::{Config, Dataset};
use crate::upstream::provision::{self, Options, ProvisionReport, Provisioned, State, Visibility};

/// What `provision` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these datasets
    #[arg(value_name = "DATASET")]
    datasets: Vec<String>,
    /// Who may see what is created
    #[arg(long, value_enum, default_value_t)]
    visibility: Visibility,
    /// Declare columns in SQL, for nodes of kamu 0.262 and older
    #[arg(long)]
    ddl: bool,
    /// How the result is written
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Runs the command.
pub(super) fn run(args: &Args, config: &Config) -> Result<ExitCode> {
    let datasets = wanted(config, &args.datasets)?;
    let options = Options { visibility: args.visibility, columns: columns(args.ddl) };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the asynchronous runtime")?;
    let report = runtime.block_on(provision::run(config, &datasets, options));
    let text = match args.output {
        OutputFormat::Json => format!("{}\n", serde_json::to_string(&report)?),
        OutputFormat::Text => render(&report, output::colour()),
    };
    output::print(&text)?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The datasets of these names, each once and in file order; all if none is named.
fn wanted<'a>(config: &'a Config, names: &[String]) -> Result<Vec<&'a Dataset>> {
    for name in names {
        dataset_named(config, name)?;
    }
    let all = config.datasets.iter();
    Ok(all.filter(|dataset| names.is_empty() || names.contains(&dataset.spec.name)).collect())
}

fn render(report: &ProvisionReport, colour: bool) -> String {
    if report.datasets.is_empty() {
        return "nothing to do: no upstream takes these datasets\n".to_owned();
    }
    let mut out = table(&report.datasets).render(colour);
    for problem in problems(&report.datasets) {
        let (names, upstream, words) = (problem.datasets.join(", "), problem.upstream, problem.words);
        let _ = writeln!(out, "{} {names} at {upstream}: {words}", tinted("problem:", Tone::Bad, colour));
    }
    out
}

fn table(rows: &[Provisioned]) -> Table {
    let mut table = Table::new(["dataset", "upstream", "result", "id or reason"]);
    for row in rows {
        let (word, tone, detail) = match row.state {
            State::Created => ("created", Tone::Good, row.id.as_deref()),
            State::Exists => ("is there", Tone::Good, None),
            State::NotNeeded => ("not needed", Tone::Plain, row.note.as_deref()),
            State::Failed => ("failed", Tone::Bad, None),
        };
        table.row([
            row.dataset.as_str().into(),
            row.upstream.as_str().into(),
            Cell::from(word).tone(tone),
            detail.unwrap_or_default().into(),
        ]);
    }
    table
}

struct Problem<'a> {
    datasets: Vec<&'a str>,
    upstream: &'a str,
    words: &'a str,
}

/// What an upstream says, once for all the datasets that it says it of.
fn problems(rows: &[Provisioned]) -> Vec<Problem<'_>> {
    let mut problems: Vec<Problem<'_>> = Vec::new();
    for row in rows.iter().filter(|row| row.state == State::Failed) {
        let words = row.note.as_deref().unwrap_or_default();
        match problems.iter_mut().find(|known| known.upstream == row.upstream && known.words == words) {
            Some(known) => known.datasets.push(&row.dataset),
            None => problems.push(Problem { datasets: vec![&row.dataset], upstream: &row.upstream, words }),
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dataset_has_a_line_and_each_problem_one() {
        let failed = |dataset: &str| Provisioned {
            dataset: dataset.to_owned(),
            upstream: "https://node/acme".to_owned(),
            name: Some(format!("acme/{dataset}")),
            state: State::Failed,
            id: None,
            note: Some("the node says: no".to_owned()),
        };
        let created = Provisioned { state: State::Created, id: Some("did:odf:1".to_owned()), ..failed("a") };
        let report = ProvisionReport { ok: false, datasets: vec![created, failed("b"), failed("c")] };

        assert_eq!(
            render(&report, false),
            "dataset  upstream           result   id or reason\n\
             a        https://node/acme  created  did:odf:1\n\
             b        https://node/acme  failed\n\
             c        https://node/acme  failed\n\
             problem: b, c at https://node/acme: the node says: no\n"
        );
    }

    #[test]
    fn without_an_upstream_there_is_nothing_to_do() {
        let report = ProvisionReport { ok: true, datasets: Vec::new() };

        assert_eq!(render(&report, false), "nothing to do: no upstream takes these datasets\n");
    }
}
