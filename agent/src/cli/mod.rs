//! The command line: a file a command.

mod ask;
mod check;
mod dead_letters;
mod demo;
mod export;
mod import;
mod init;
mod manifest;
pub mod output;
mod passwd;
mod provision;
mod pull;
mod reload;
mod run;
mod status;
mod sync;
mod tail;
pub(crate) mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::config::{Config, ConfigError, Loaded, LogFormat};
use crate::reload::is_bad_configuration;

/// The command failed.
const EXIT_FAILED: u8 = 1;
/// The command was not understood; clap's code for what it finds itself.
const EXIT_USAGE: u8 = 2;
/// `EX_CONFIG` of sysexits.h, which systemd can tell from a failure that a restart may cure.
const EXIT_BAD_CONFIGURATION: u8 = 78;

/// Holds device data ahead of the data lake: MQTT in, acknowledged only when it is on disk, verifiable datasets out.
#[derive(Debug, Parser)]
#[command(name = "forebay", version, propagate_version = true)]
struct Cli {
    /// Configuration file [default: ./forebay.toml, else /etc/forebay/forebay.toml, else built in]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How log lines are written to standard error
    #[arg(long, global = true, value_name = "FORMAT")]
    log: Option<LogFormat>,
    /// error, warn, info, debug or trace; or module=level,...
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    Run,
    /// Show what it does: agent, simulated devices, and a link that fails and comes back
    Demo(demo::Args),
    /// Check a configuration and explain what it does with each topic
    Check(check::Args),
    /// Write a commented configuration that shows every default
    Init(init::Args),
    /// Have the running agent read its configuration again, and say what came of it
    Reload(reload::Args),
    /// Show listeners, spool, datasets and upstreams
    Status(status::Args),
    /// The sync job alone; with --once, deliver everything now
    Sync(sync::Args),
    /// Take what the sources' brokers kept, seal, deliver, end; with manifests, as `kamu pull`
    Pull(pull::Args),
    /// Write a bundle that is carried by hand, and take the receipt of an earlier one
    Export(export::Args),
    /// Deliver a bundle from where there is a link, and write its receipt
    Import(import::Args),
    /// Verify the spool, and every dataset's chain and hashes
    Verify(verify::Args),
    /// Show the newest messages
    Tail(tail::Args),
    /// List, replay or drop what could not become a row
    DeadLetters(dead_letters::Args),
    /// Print a dataset's ODF manifest, as `kamu add` takes it
    Manifest(manifest::Args),
    /// Set, remove and check the passwords of devices
    Passwd(passwd::Args),
    /// Create datasets on the nodes that rows are posted to
    Provision(provision::Args),
    /// Print the version
    Version,
}

/// Parses the arguments, runs the command, prints its error, answers the exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("forebay: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if is_bad_configuration(error) {
        EXIT_BAD_CONFIGURATION
    } else if error.is::<clap::Error>() {
        EXIT_USAGE
    } else {
        EXIT_FAILED
    }
}

impl Cli {
    fn run(self) -> Result<ExitCode> {
        match &self.command {
            Command::Run => run::run(self.loaded()?, |file| self.load(file)),
            Command::Demo(args) => demo::run(args, self.log, self.log_level.as_deref()),
            Command::Check(args) => check::run(args, &self.loaded()?),
            Command::Init(args) => init::run(args),
            Command::Reload(args) => reload::run(args, &self.read()?.config),
            Command::Status(args) => status::run(args, &self.read()?.config),
            Command::Sync(args) => sync::run(args, self.read()?, self.log_level.as_deref(), |file| self.load(file)),
            Command::Pull(args) => pull::run(args, self.loaded()?, self.log_level.as_deref()),
            Command::Export(args) => export::run(args, self.read()?, self.log_level.as_deref()),
            Command::Import(args) => import::run(args, &self.loaded()?.config, self.log_level.as_deref()),
            Command::Verify(args) => verify::run(args, &self.read()?.config),
            Command::Tail(args) => tail::run(args, &self.read()?.config),
            Command::DeadLetters(args) => dead_letters::run(args, &self.read()?.config),
            Command::Manifest(args) => manifest::run(args, &self.read()?.config),
            Command::Passwd(args) => passwd::run(args, || Ok(self.loaded()?.config)),
            Command::Provision(args) => provision::run(args, &self.loaded()?.config),
            Command::Version => {
                output::print(concat!("forebay ", env!("CARGO_PKG_VERSION"), "\n"))?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }

    /// For commands that need the files that the configuration names.
    fn loaded(&self) -> Result<Loaded> {
        Ok(self.load(self.config.as_deref())?)
    }

    /// For commands that only want to know where the data is: outside the service there are no credentials.
    fn read(&self) -> Result<Loaded> {
        Ok(self.load_as_is(self.config.as_deref())?)
    }

    fn load(&self, file: Option<&Path>) -> Result<Loaded, ConfigError> {
        self.load_as_is(file)?.complete()
    }

    /// Reads `file`, or the first that is found, with what the environment and the command line say.
    fn load_as_is(&self, file: Option<&Path>) -> Result<Loaded, ConfigError> {
        let env =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let mut loaded = Config::load(file, env)?;
        if let Some(format) = self.log {
            loaded.config.log.format = format;
        }
        if let Some(level) = &self.log_level {
            loaded.config.log.level.clone_from(level);
        }
        Ok(loaded)
    }
}
