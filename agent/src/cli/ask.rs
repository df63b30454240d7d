//! How a command that looks at data gets at it: from a running agent, or from the data directory itself.

use anyhow::{Context as _, Result};

use crate::config::Config;
use crate::control::ControlRequest;
use crate::control::client::{self, Answers};
use crate::store::Store;

/// Where a command looks.
pub(super) enum Source {
    /// A running agent answers.
    Agent(Answers),
    /// No agent runs; nobody else can open the data directory meanwhile.
    Store(Box<Store>),
}

/// Finds out, and says on standard error which of the two it is.
pub(super) fn ask(config: &Config, request: &ControlRequest) -> Result<Source> {
    let dir = config.data_dir.display();
    if let Some(answers) = client::ask(config, request)? {
        eprintln!("forebay: asking the agent that runs on {dir}");
        return Ok(Source::Agent(answers));
    }
    let store = Store::open_existing(config).with_context(|| format!("no agent runs on {dir}"))?;
    eprintln!("forebay: no agent runs; reading {dir}");
    Ok(Source::Store(Box::new(store)))
}
