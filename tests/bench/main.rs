//! `forebay-bench`: loads an MQTT server and measures it, or compares Forebay with its neighbours in one run.
//!
//! ```text
//! forebay-bench load --target 127.0.0.1:1883 --connections 100 --window 16 --payload-bytes 200 --duration 8
//! forebay-bench compare --rounds 3
//! forebay-bench idle --plain 10000 --tls 2000
//! forebay-bench backlog --rows 1000000 --kinds directory,bucket,smart,ingest
//! ```

mod backlog;
mod backlog_table;
mod compare;
mod destination;
mod disk;
mod idle;
mod load;
mod peer;
mod table;
mod usage;
mod watch;

use std::net::SocketAddr;

use anyhow::Result;
use clap::{Parser, Subcommand};

use self::load::LoadArgs;

/// MQTT load generator and comparison.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Loads one running server.
    Load {
        /// Where it listens.
        #[arg(long)]
        target: SocketAddr,
        /// Its process, to measure what it uses.
        #[arg(long)]
        pid: Option<u32>,
        /// Name in the output.
        #[arg(long, default_value = "server")]
        name: String,
        #[command(flatten)]
        load: LoadArgs,
    },
    /// Starts mosquitto, rumqttd and Forebay in turn, round by round, and prints a table of medians and ratios.
    Compare(compare::CompareArgs),
    /// Fills an agent whose upstream is away, lets the upstream come back, and measures what that costs.
    Backlog(backlog::BacklogArgs),
    /// Opens connections that do nothing, and measures what each costs and what a publisher notices.
    Idle(idle::IdleArgs),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Load { target, pid, name, load } => {
            let report = load::run(&load, target, pid)?;
            print!("{}", table::one_run(&name, &load, &report));
            Ok(())
        }
        Command::Compare(args) => compare::run(&args),
        Command::Backlog(args) => backlog::run(&args),
        Command::Idle(args) => idle::run(&args),
    }
}
