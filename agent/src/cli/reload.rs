//! `forebay reload`: has the running agent read its configuration again, and says what came of it. It is SIGHUP with an
//! answer, for `ExecReload=` and for scripts.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use super::output::{self, OutputFormat};
use super::{EXIT_BAD_CONFIGURATION, EXIT_FAILED};
use crate::config::Config;
use crate::control::{ControlRequest, client};
use crate::reload::ReloadReport;

/// What `reload` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How it is written
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Runs the command.
pub(super) fn run(args: &Args, config: &Config) -> Result<ExitCode> {
    let answers = client::ask(config, &ControlRequest::Reload)?;
    let answers = answers.with_context(|| format!("no agent runs on {}", config.data_dir.display()))?;
    let report: ReloadReport = answers.one()?;
    let text = match args.output {
        OutputFormat::Json => format!("{}\n", serde_json::to_string(&report)?),
        OutputFormat::Text => render(&report),
    };
    output::print(&text)?;
    let Some(problem) = report.problem else { return Ok(ExitCode::SUCCESS) };
    eprintln!("forebay: refused, the configuration before goes on: {problem}");
    Ok(ExitCode::from(if report.bad_configuration { EXIT_BAD_CONFIGURATION } else { EXIT_FAILED }))
}

fn render(report: &ReloadReport) -> String {
    let lines = [("taken over", &report.taken_over), ("needs a restart", &report.needs_restart)];
    let lines = lines.into_iter().filter(|(_, all)| !all.is_empty());
    let text: String = lines.map(|(what, all)| format!("{what}: {}\n", all.join(", "))).collect();
    if text.is_empty() && report.problem.is_none() { "nothing has changed\n".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_over_and_what_needs_a_restart_have_a_line_each() {
        let words = |all: &[&str]| all.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let both = ReloadReport {
            taken_over: words(&["dataset hum added", "batch"]),
            needs_restart: words(&["log"]),
            ..ReloadReport::default()
        };

        assert_eq!(render(&both), "taken over: dataset hum added, batch\nneeds a restart: log\n");
        assert_eq!(render(&ReloadReport::default()), "nothing has changed\n");
        let refused = ReloadReport { problem: Some("no".to_owned()), ..ReloadReport::default() };
        assert_eq!(render(&refused), "");
    }
}
