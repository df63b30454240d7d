//! `forebay tail`: the newest messages, and those that come.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::ask::{Source, ask};
use super::output::{self, OutputFormat};
use crate::config::Config;
use crate::control::ControlRequest;
use crate::tail::{Tail, TailLine, TailRequest};

/// Characters of a payload that are shown; the JSON form has all of them.
const PAYLOAD_SHOWN: usize = 160;
/// How often a log is looked at that no agent writes to.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What `tail` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A dataset, or a topic filter such as `site/+/temp`
    #[arg(value_name = "DATASET|TOPIC")]
    filter: Option<String>,
    /// How many of the newest messages
    #[arg(short = 'n', long, default_value_t = 10, value_name = "COUNT")]
    lines: usize,
    /// Go on with the messages that come
    #[arg(short, long)]
    follow: bool,
    /// How messages are written
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Runs the command.
pub(super) fn run(args: &Args, config: &Config) -> Result<ExitCode> {
    let request = TailRequest { filter: args.filter.clone(), lines: args.lines, follow: args.follow };
    match ask(config, &ControlRequest::Tail(request.clone()))? {
        Source::Agent(mut answers) => {
            while let Some(line) = answers.next_line()? {
                show(args, &line)?;
            }
        }
        Source::Store(store) => {
            let mut tail = Tail::start(config, &store.spool, &request)?;
            loop {
                for line in tail.read()? {
                    show(args, &line)?;
                }
                if !tail.is_behind() {
                    if !args.follow {
                        break;
                    }
                    std::thread::sleep(LOOK_EVERY);
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(args: &Args, line: &TailLine) -> Result<()> {
    let text = match args.output {
        OutputFormat::Json => format!("{}\n", serde_json::to_string(line)?),
        OutputFormat::Text => render(line),
    };
    output::print(&text)?;
    Ok(())
}

/// Devices choose topics, names and payloads: control characters must not reach the terminal.
fn render(line: &TailLine) -> String {
    let mut out = String::new();
    let payload = match (&line.text, &line.hex) {
        (Some(text), _) => shown(text),
        (None, Some(hex)) => format!("0x{}", shown(hex)),
        (None, None) => String::new(),
    };
    let _ = writeln!(
        out,
        "{}  {:>8}  {}  {}  {}  qos {}{}  {payload}",
        line.received_at,
        line.seq,
        line.dataset.as_deref().unwrap_or("-"),
        shown(&line.topic),
        shown(&line.client_id),
        line.qos,
        if line.retain { "  retained" } else { "" },
    );
    out
}

/// The beginning of what a device sent, without what could steer a terminal.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(PAYLOAD_SHOWN)
        .map(|character| if character.is_control() { '\u{fffd}' } else { character })
        .collect();
    if text.chars().nth(PAYLOAD_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_sends_cannot_steer_the_terminal() {
        let line = TailLine {
            topic: "a/\u{1b}[2J".to_owned(),
            text: Some("\u{7}{\"t\":1}\n".to_owned()),
            ..TailLine::default()
        };

        let text = render(&line);

        assert_eq!(text.matches(char::is_control).collect::<Vec<_>>(), ["\n"]);
        assert!(text.contains("{\"t\":1}"), "{text}");
    }

    #[test]
    fn a_long_payload_is_cut() {
        assert_eq!(shown(&"x".repeat(200)).chars().count(), PAYLOAD_SHOWN + 1);
    }
}
