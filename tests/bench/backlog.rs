//! What a backlog costs: an agent whose upstream is away fills up, then the upstream comes back.
//!
//! ```text
//! away    fill `rows` ─────────────┐ nobody publishes
//! there   ─────────────────────────┴▶ deliver all of it                rows/s, memory at 10 % and at 90 %
//!  ┌─▶ away   publish `rows`, at least for `live_secs`                 R0
//!  │   there  publish, over a slow link                                R1 slow
//!  └── there  publish, over a fast one, until the backlog is gone      R1 fast
//!         nobody publishes ─────────▶ the rest, then both sides are counted
//! ```
//!
//! Load generator, proxy and server share the machine with the agent, so the second table tells whose processors they were.
//! Over a slow link server and proxy use next to none: that figure is the agent's own. A directory has no link.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use forebay_agent::config::IngestFormat;
use forebay_agent::upstream::ingest::payload;
use forebay_tests::agent::{Agent, AgentConfig};
use serde_json::Value;

use crate::backlog_table;
use crate::destination::{Destination, Kind, beside, slices};
use crate::load::{Generator, LoadArgs, now};
use crate::watch::{Look, Watch};

const DATASET: &str = "bench";
/// What the generator publishes.
const DATASET_TOML: &str = "[[dataset]]\nname = \"bench\"\ntopics = [\"bench/{device}/temp\"]\nformat = \"json\"\n\
                            [dataset.schema]\nn = \"Int64\"\nc = \"Int64\"\ntemp = \"Float32\"\npad = \"String\"\n";
/// How long the generator publishes between two looks at what it is to do.
const TICK: Duration = Duration::from_millis(20);
/// An agent that does nothing is looked at for so long.
const IDLE: Duration = Duration::from_secs(1);
/// How long any one thing may take.
const PATIENCE: Duration = Duration::from_secs(1_800);
/// Slices that are written as compressed lines, for comparison.
const SLICES_COMPARED: usize = 2;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BacklogArgs {
    /// Messages that wait when the upstream comes back; some slices at least, or the agent would not notice that it is away.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(200_000..))]
    pub(crate) rows: u64,
    /// Which upstreams.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "directory,bucket,smart,ingest")]
    pub(crate) kinds: Vec<Kind>,
    /// Connections at once.
    #[arg(long, default_value_t = 20)]
    pub(crate) connections: u16,
    /// PUBLISH in flight per connection.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) window: u16,
    /// Bytes of each Application Message.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(64..=100_000))]
    pub(crate) payload_bytes: u32,
    /// Seconds over which live rates are measured; on a fast link it is shorter when the backlog is gone before.
    #[arg(long, default_value_t = 4.0)]
    pub(crate) live_secs: f64,
    /// How often live rates are measured with and without delivery, in turn.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Bytes a second of the slow link.
    #[arg(long, default_value_t = 2 << 20)]
    pub(crate) slow_link: u64,
    /// The `forebay` program. Default: beside this one.
    #[arg(long)]
    pub(crate) forebay: Option<PathBuf>,
    /// Where everyone puts their data. Default: the system's temporary directory.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
}

/// What came of one kind of upstream.
pub(crate) struct Outcome {
    /// Which.
    pub(crate) kind: Kind,
    /// Delivering only: from and to.
    pub(crate) drain: [Look; 2],
    /// Publishing, with and without delivery in turn.
    pub(crate) rounds: Vec<Round>,
    /// Resident memory, MiB.
    pub(crate) memory: Memory,
    /// Rows of everything that was published: acknowledged, in slices and there.
    pub(crate) rows: u64,
    /// Bytes for each row.
    pub(crate) bytes: RowBytes,
}

/// Publishing: each from and to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// Nothing is delivered.
    pub(crate) live: [Look; 2],
    /// A backlog is, over a slow link.
    pub(crate) slow: Option<[Look; 2]>,
    /// Over a fast one.
    pub(crate) fast: [Look; 2],
}

/// Resident memory of the agent, MiB.
pub(crate) struct Memory {
    /// Before the first message.
    pub(crate) idle: f64,
    /// The most while the first backlog grew.
    pub(crate) fill_max: f64,
    /// When a tenth of it was delivered.
    pub(crate) at_10: f64,
    /// When nine tenths of it were.
    pub(crate) at_90: f64,
    /// The most while it was delivered.
    pub(crate) drain_max: f64,
    /// The most while another one was delivered under load.
    pub(crate) both_max: f64,
}

/// Bytes for each row.
pub(crate) struct RowBytes {
    /// On the wire; with a directory, written there.
    pub(crate) wire: f64,
    /// The same rows as lines of JSON, gzip level 6.
    pub(crate) ndjson_gzip: f64,
}

/// Measures every kind and prints the tables.
pub(crate) fn run(args: &BacklogArgs) -> Result<()> {
    let mut outcomes = Vec::new();
    for kind in &args.kinds {
        let outcome = measure(args, *kind).with_context(|| format!("measure {}", kind.name()))?;
        eprintln!("{}: {} rows acknowledged, sealed and there", kind.name(), outcome.rows);
        outcomes.push(outcome);
    }
    print!("{}", backlog_table::text(args, &outcomes));
    Ok(())
}

fn measure(args: &BacklogArgs, kind: Kind) -> Result<Outcome> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("forebay-backlog-");
    let dir = args.dir.as_ref().map_or_else(|| builder.tempdir(), |dir| builder.tempdir_in(dir))?;
    let program = args.forebay.clone().map_or_else(|| beside("forebay"), Ok)?;
    let destination = Destination::start(kind, dir.path())?;
    let config = AgentConfig::in_dir(dir.path()).with(DATASET_TOML).with(&destination.toml());
    destination.provision(&program, &config)?;
    destination.set_away(true)?;
    let agent = Agent::start_program(&program, &config)?;
    let watch = Watch::new(&agent, &destination)?;
    let stretches = thread::scope(|scope| {
        let looking = scope.spawn(|| watch.run());
        let story = Story { args, destination: &destination, agent: &agent, watch: &watch }.tell();
        watch.stop();
        let looked = looking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        looked.and(story)
    })?;
    let looks = watch.looks();
    drop(watch);
    let status = agent.stop()?;
    ensure!(status.success(), "the agent ended with {status}");
    outcome(&looks, &stretches, &destination, &config.data_dir(), dir.path())
}

/// The moments between which things were measured.
#[derive(Clone, Debug)]
struct Stretches {
    fill: [Instant; 2],
    drain: [Look; 2],
    rounds: Vec<Round>,
}

struct Story<'a> {
    args: &'a BacklogArgs,
    destination: &'a Destination,
    agent: &'a Agent,
    watch: &'a Watch<'a>,
}

impl Story<'_> {
    fn tell(&self) -> Result<Stretches> {
        thread::sleep(IDLE);
        let load = LoadArgs {
            connections: self.args.connections,
            window: self.args.window,
            payload_bytes: self.args.payload_bytes,
            duration: 0.0,
            warm_up: 0.0,
            rate: 0,
            qos: 1,
            v5: false,
        };
        let mut generator = Generator::connect(&load, self.agent.mqtt_addr())?;
        let fill = self.fill(&mut generator)?;
        self.settle(&mut generator)?;
        let drain = self.drain(&generator)?;
        let mut rounds = Vec::new();
        thread::scope(|scope| {
            for _ in 0..self.args.rounds {
                rounds.push(self.round(&mut generator, scope)?);
            }
            self.settle(&mut generator)
        })?;
        let report = self.agent.sync()?;
        ensure!(report.get("ok").and_then(Value::as_bool) == Some(true), "not everything is delivered: {report}");
        self.until(|look| look.delivered >= generator.done)?;
        Ok(Stretches { fill, drain, rounds })
    }

    /// Publishes until `rows` more are acknowledged.
    fn fill(&self, generator: &mut Generator) -> Result<[Instant; 2]> {
        let (from, goal) = (now(), generator.done + self.args.rows);
        self.publish_while(generator, |look| look.acknowledged < goal)?;
        Ok([from, now()])
    }

    fn publish_while(&self, generator: &mut Generator, goes_on: impl Fn(&Look) -> bool) -> Result<()> {
        let deadline = now() + PATIENCE;
        while goes_on(&self.watch.last()?) {
            ensure!(now() < deadline, "it does not end");
            generator.run_until(now() + TICK)?;
            self.watch.acknowledged.store(generator.done, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits until a look says so, and answers that look.
    fn until(&self, wanted: impl Fn(&Look) -> bool) -> Result<Look> {
        let deadline = now() + PATIENCE;
        loop {
            let look = self.watch.last()?;
            if wanted(&look) {
                return Ok(look);
            }
            ensure!(now() < deadline, "it is not delivered: {}", self.agent.status()?);
            thread::sleep(TICK);
        }
    }

    fn settle(&self, generator: &mut Generator) -> Result<()> {
        generator.settle()?;
        self.watch.acknowledged.store(generator.done, Ordering::Relaxed);
        Ok(())
    }

    /// The link comes back and nobody publishes.
    fn drain(&self, generator: &Generator) -> Result<[Look; 2]> {
        thread::scope(|scope| {
            self.destination.set_away(false)?;
            let from = now();
            scope.spawn(|| self.agent.sync());
            let end = self.until(|look| look.delivered >= generator.done)?;
            Ok([contact(&self.watch.looks(), from)?, end])
        })
    }

    /// The link goes and comes back under load.
    fn round<'scope>(&'scope self, generator: &mut Generator, scope: &'scope Scope<'scope, '_>) -> Result<Round> {
        let time = Duration::from_secs_f64(self.args.live_secs);
        self.destination.set_away(true)?;
        let from = now();
        // The agent learns that the link is gone when it next has something to deliver.
        self.publish_while(generator, |look| {
            let waiting = look.acknowledged - look.delivered;
            waiting < self.args.rows || look.at < from + time || look.is_reachable
        })?;
        let there = self.watch.last()?;
        let live = [nearest(&self.watch.looks(), there.at - time), there];

        let has_link = self.destination.set_slow(Some(self.args.slow_link));
        self.destination.set_away(false)?;
        // What wakes the agent; how it ends is asked when all rounds are over.
        scope.spawn(|| self.agent.sync());
        self.publish_while(generator, |look| look.at <= there.at || !look.is_reachable)?;
        let reached = contact(&self.watch.looks(), there.at)?;
        let mut begun = reached;
        if has_link {
            self.publish_while(generator, |look| look.at < reached.at + time)?;
            begun = self.watch.last()?;
            self.destination.set_slow(None);
        }
        self.publish_while(generator, |look| look.delivered < begun.acknowledged && look.at < begun.at + time)?;
        Ok(Round { live, slow: has_link.then_some([reached, begun]), fast: [begun, self.watch.last()?] })
    }
}

/// The last look before the agent reached its upstream.
fn contact(looks: &[Look], from: Instant) -> Result<Look> {
    let reached = looks.iter().position(|look| look.at > from && look.is_reachable).context("no contact was seen")?;
    looks.get(reached.saturating_sub(1)).copied().context("there is a look before")
}

fn first(looks: &[Look], from: Instant, wanted: impl Fn(&Look) -> bool) -> Result<Look> {
    looks.iter().find(|look| look.at > from && wanted(look)).copied().context("nobody looked at it")
}

fn outcome(
    looks: &[Look],
    stretches: &Stretches,
    destination: &Destination,
    data_dir: &Path,
    scratch: &Path,
) -> Result<Outcome> {
    let last = looks.last().context("nothing was looked at")?;
    let there = destination.rows(DATASET)?;
    let rows = last.acknowledged;
    ensure!(
        last.sealed == rows && there == rows,
        "{rows} messages were acknowledged, {} rows are sealed, {there} are there",
        last.sealed
    );
    let [from, to] = &stretches.drain;
    let wire = (to.bytes_up - from.bytes_up) as f64 / (to.delivered - from.delivered) as f64;
    let ndjson_gzip = ndjson_gzip(&data_dir.join("datasets").join(DATASET), scratch)?;
    Ok(Outcome {
        kind: destination.kind(),
        drain: stretches.drain,
        rounds: stretches.rounds.clone(),
        memory: memory(looks, stretches)?,
        rows,
        bytes: RowBytes { wire, ndjson_gzip },
    })
}

fn memory(looks: &[Look], stretches: &Stretches) -> Result<Memory> {
    let max = |from: Instant, to: Instant| {
        let within = looks.iter().filter(|look| (from..=to).contains(&look.at));
        within.map(|look| look.rss_mib).fold(0.0, f64::max)
    };
    let under_load = stretches.rounds.iter().map(|round| max(round.live[1].at, round.fast[1].at));
    let [from, to] = stretches.drain;
    let at = |share: f64| {
        let rows = from.delivered as f64 + (to.delivered - from.delivered) as f64 * share;
        first(looks, from.at, |look| look.delivered as f64 >= rows).map(|look| look.rss_mib)
    };
    Ok(Memory {
        idle: max(looks.first().map_or(from.at, |look| look.at), stretches.fill[0]),
        fill_max: max(stretches.fill[0], stretches.fill[1]),
        at_10: at(0.1)?,
        at_90: at(0.9)?,
        drain_max: max(from.at, to.at),
        both_max: under_load.fold(0.0, f64::max),
    })
}

fn nearest(looks: &[Look], at: Instant) -> Look {
    let distance = |look: &&Look| look.at.max(at) - look.at.min(at);
    *looks.iter().min_by_key(distance).expect("there are looks")
}

/// Bytes a row that push ingest would send as lines, were they compressed.
fn ndjson_gzip(repository: &Path, scratch: &Path) -> Result<f64> {
    let (mut rows, mut bytes) = (0, 0);
    for slice in slices(repository)?.iter().take(SLICES_COMPARED) {
        let body = payload::write(slice, 0..payload::rows(slice)?, IngestFormat::NdJson, scratch)?;
        rows += body.rows;
        let mut gzip = GzEncoder::new(Vec::new(), Compression::new(6));
        std::io::copy(&mut body.into_file(), &mut gzip)?;
        bytes += gzip.finish()?.len();
    }
    Ok(bytes as f64 / rows as f64)
}
