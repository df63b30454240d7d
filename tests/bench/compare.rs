//! Forebay beside its neighbours: every round starts every server once, so that a busy minute hits all of them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use forebay_tests::mosquitto::Mosquitto;
use tempfile::TempDir;

use crate::disk;
use crate::load::{self, LoadArgs, Report};
use crate::peer::Peer;
use crate::table;

/// What to compare.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CompareArgs {
    /// Rounds; each starts every server once. The table shows medians.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: u32,
    /// Seconds of the run with one connection and one message in flight.
    #[arg(long, default_value_t = 2.0)]
    pub(crate) single_duration: f64,
    /// The `forebay` program. Default: beside this one.
    #[arg(long)]
    pub(crate) forebay: Option<PathBuf>,
    /// Where the servers put their data; it decides which disk is measured. Default: the system's temporary directory.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Compare only these names, such as `forebay,rumqttd`.
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
}

/// All rounds of one server.
pub(crate) struct Rounds {
    /// Which.
    pub(crate) peer: Peer,
    /// Many connections.
    pub(crate) many: Vec<Report>,
    /// One connection, one message in flight.
    pub(crate) single: Vec<Report>,
    /// An append and fdatasync of the same disk, just before: milliseconds.
    pub(crate) fdatasync_ms: Vec<f64>,
}

/// Runs the comparison and prints its table.
pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    let mut all: Vec<Rounds> = peers(args)?
        .into_iter()
        .map(|peer| Rounds { peer, many: Vec::new(), single: Vec::new(), fdatasync_ms: Vec::new() })
        .collect();
    for round in 1..=args.rounds {
        for rounds in &mut all {
            measure(args, rounds).with_context(|| format!("round {round} of {}", rounds.peer.name()))?;
            if let Some(report) = rounds.many.last() {
                eprintln!("round {round}: {:<18} {:>8.0} msg/s", rounds.peer.name(), report.msgs_per_sec);
            }
        }
    }
    print!("{}", table::comparison(&args.load, &all));
    Ok(())
}

fn measure(args: &CompareArgs, rounds: &mut Rounds) -> Result<()> {
    let single = LoadArgs {
        connections: 1,
        window: 1,
        rate: 0,
        duration: args.single_duration,
        warm_up: 0.3,
        ..args.load.clone()
    };
    let dir = temp_dir(args)?;
    let server = rounds.peer.start(dir.path())?;
    let probe = Duration::from_secs_f64(args.single_duration / 2.0);
    rounds.fdatasync_ms.push(disk::fdatasync_p50_ms(dir.path(), args.load.payload_bytes as usize, probe)?);
    rounds.single.push(load::run(&single, server.addr, server.pid())?);
    rounds.many.push(load::run(&args.load, server.addr, server.pid())?);
    Ok(())
}

fn temp_dir(args: &CompareArgs) -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("forebay-bench-");
    let dir = match &args.dir {
        Some(dir) => builder.tempdir_in(dir),
        None => builder.tempdir(),
    };
    dir.context("create a directory for the server's data")
}

fn peers(args: &CompareArgs) -> Result<Vec<Peer>> {
    let mut peers = Vec::new();
    match Mosquitto::find() {
        Some(program) => peers.extend([Peer::Mosquitto(program.clone()), Peer::MosquittoStrict(program)]),
        None => eprintln!("mosquitto is not installed: left out (Debian: apt-get install mosquitto)"),
    }
    peers.push(Peer::Rumqttd(beside("forebay-stub-rumqttd")?));
    let forebay = args.forebay.clone().map_or_else(|| beside("forebay"), Ok)?;
    peers.push(Peer::Forebay(forebay));
    peers.retain(|peer| args.only.is_empty() || args.only.iter().any(|name| name == peer.name()));
    Ok(peers)
}

/// A program that lies beside this one.
pub(crate) fn beside(name: &str) -> Result<PathBuf> {
    Ok(std::env::current_exe().context("find this program")?.with_file_name(name))
}
