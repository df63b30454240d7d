//! `forebay dead-letters`: what could not become a row, and what to do with it.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::error::ErrorKind;

use super::ask::{Source, ask};
use super::output::{self, OutputFormat, Table, grouped};
use super::tail::shown;
use crate::config::Config;
use crate::control::ControlRequest;
use crate::dead_letters::{self, DeadLetterLine, Done, Selection};

/// What `dead-letters` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List them with their reasons
    List {
        #[command(flatten)]
        which: Which,
        /// How they are written
        #[arg(long, value_enum, default_value_t)]
        output: OutputFormat,
    },
    /// Store them again as new messages, by the configuration of now; needs a running agent
    Replay(Which),
    /// Forget them
    Drop(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Only of this dataset
    #[arg(long)]
    dataset: Option<String>,
    /// Only with these positions (the column `seq` of the list)
    #[arg(value_name = "SEQ")]
    seqs: Vec<u64>,
    /// All of them; needed to replay or drop without naming positions
    #[arg(long, conflicts_with = "seqs")]
    all: bool,
}

/// Runs the command.
pub(super) fn run(args: &Args, config: &Config) -> Result<ExitCode> {
    match &args.command {
        Command::List { which, output } => list(config, &which.selection(), *output)?,
        Command::Replay(which) => {
            let done = match ask(config, &ControlRequest::ReplayDeadLetters(which.checked()?))? {
                Source::Agent(answers) => answers.one()?,
                Source::Store(_) => bail!("a replay needs a running agent: start it with `forebay run`"),
            };
            report("stored again", &done)?;
        }
        Command::Drop(which) => {
            let selection = which.checked()?;
            let done = match ask(config, &ControlRequest::DropDeadLetters(selection.clone()))? {
                Source::Agent(answers) => answers.one()?,
                Source::Store(store) => dead_letters::drop(&store.spool, &selection)?,
            };
            report("dropped", &done)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Which {
    fn selection(&self) -> Selection {
        Selection { dataset: self.dataset.clone(), seqs: self.seqs.clone() }
    }

    fn checked(&self) -> Result<Selection> {
        if self.seqs.is_empty() && !self.all {
            let problem = "name the positions that are meant, or say --all\n";
            return Err(clap::Error::raw(ErrorKind::MissingRequiredArgument, problem).into());
        }
        Ok(self.selection())
    }
}

fn list(config: &Config, selection: &Selection, format: OutputFormat) -> Result<()> {
    let lines: Vec<DeadLetterLine> = match ask(config, &ControlRequest::DeadLetters(selection.clone()))? {
        Source::Agent(answers) => answers.one()?,
        Source::Store(store) => dead_letters::list(&store.spool, selection)?,
    };
    if format == OutputFormat::Json {
        for line in &lines {
            output::print(&format!("{}\n", serde_json::to_string(line)?))?;
        }
        return Ok(());
    }
    let mut table = Table::new(["seq", "received", "dataset", "topic", "client", "reason", "payload"]);
    for line in &lines {
        table.row([
            line.seq.to_string().into(),
            line.received_at.as_str().into(),
            line.dataset.as_deref().unwrap_or("-").into(),
            shown(&line.topic).into(),
            shown(&line.client_id).into(),
            shown(&line.reason).into(),
            shown(line.text.as_ref().or(line.hex.as_ref()).map_or("", String::as_str)).into(),
        ]);
    }
    output::print(&table.render(output::colour()))?;
    Ok(())
}

fn report(what: &str, done: &Done) -> Result<()> {
    let mut text = format!("{what}: {}\n", grouped(done.done));
    if done.left > 0 {
        let why = "no dataset takes their topics, or the upstream that refused them still does or is not configured";
        text += &format!("left, because {why}: {}\n", grouped(done.left));
    }
    if let Some(refused) = &done.refused {
        text += &format!("{refused}\n");
    }
    output::print(&text)?;
    Ok(())
}
