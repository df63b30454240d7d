//! `forebay demo`: the real agent, simulated devices over real sockets, and a link that fails and comes back.
//!
//! Nothing is assumed in the account at the end. What was acknowledged is what the devices were told; what is in the
//! datasets is what is read back from the Parquet files of the *upstream* directory, by value; what became a dead letter
//! is read from the spool. Reading order: this file is the story, `devices`, `readback`, `account`.

mod account;
mod devices;
mod readback;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::sync::watch;

use self::account::{Account, Evidence};
use self::devices::{Device, Tally};
use crate::cli::output::{self, grouped, tinted};
use crate::clock;
use crate::config::Config;
use crate::store::{Store, datasets_dir};
use crate::supervisor::Agent;
use crate::verify;

/// How long devices publish.
const PUBLISHING: Duration = Duration::from_secs(10);
/// When the link is cut.
const CUT_AFTER: Duration = Duration::from_secs(3);
/// When it comes back.
const RESTORED_AFTER: Duration = Duration::from_secs(7);
/// How often a line of progress is printed.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// How long the upstream may take to have everything, once the link is back.
const DELIVERED_WITHIN: Duration = Duration::from_secs(30);
/// Marks a directory as made by the demo, so that the next one may delete it.
const CONFIG_FILE: &str = "forebay.toml";
/// The first line of that file.
const CONFIG_TITLE: &str = "# Written by `forebay demo`, which deletes this directory when it runs again.";

/// Runs the story in `dir`. `true`: nothing was lost and everything verifies.
pub(crate) async fn run(dir: &Path, colour: bool) -> Result<bool> {
    let stage = Stage::set(dir)?;
    let config = Config::parse(&stage.config, &stage.dir.join(CONFIG_FILE))?;
    let agent = Agent::start(config.clone(), None).await?;
    let address = agent.addresses().first().copied().context("the agent does not listen")?;
    say(&format!("agent listens on {address}, keeps its data in {}", stage.dir.display()))?;
    let played = play(&stage, &agent, address, colour).await;
    agent.stop().await?;
    let tallies = played?;
    let account = tokio::task::spawn_blocking(move || settle(&stage, &config, &tallies)).await??;
    output::print(&account.render(colour))?;
    Ok(account.is_ok())
}

/// The demo's directory.
struct Stage {
    dir: PathBuf,
    config: String,
    /// The "disk" that the upstream is on, and where it is while it is unplugged.
    link: PathBuf,
    unplugged: PathBuf,
}

impl Stage {
    fn set(dir: &Path) -> Result<Self> {
        if dir.exists() {
            clear(dir)?;
        }
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let dir = fs::canonicalize(dir).with_context(|| format!("find {}", dir.display()))?;
        let link = dir.join("link");
        fs::create_dir(&link).with_context(|| format!("create {}", link.display()))?;
        let config = config_text(&dir)?;
        let file = dir.join(CONFIG_FILE);
        fs::write(&file, &config).with_context(|| format!("write {}", file.display()))?;
        Ok(Self { unplugged: dir.join("link-is-cut"), link, dir, config })
    }

    fn cut(&self) -> Result<()> {
        fs::rename(&self.link, &self.unplugged).context("cut the link")
    }

    fn restore(&self) -> Result<()> {
        fs::rename(&self.unplugged, &self.link).context("restore the link")
    }

    fn upstream(&self) -> PathBuf {
        self.link.join("upstream")
    }
}

/// Deletes what an earlier demo left, and nothing else.
fn clear(dir: &Path) -> Result<()> {
    let file = dir.join(CONFIG_FILE);
    let is_ours = fs::read_to_string(&file).is_ok_and(|text| text.starts_with(CONFIG_TITLE));
    let is_empty = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    if !is_ours && !is_empty {
        bail!("{} was not made by the demo: name another directory", dir.display());
    }
    fs::remove_dir_all(dir).with_context(|| format!("delete {}", dir.display()))
}

fn config_text(dir: &Path) -> Result<String> {
    let path = dir.to_str().context("the demo's directory needs a name in UTF-8")?;
    if path.contains('\'') {
        bail!("the demo's directory needs a name without ' in it");
    }
    Ok(format!(
        r#"{CONFIG_TITLE}
gateway = "gw-demo"
data_dir = '{path}/data'

[[listener]]
bind = "127.0.0.1:0"

[[dataset]]
name = "temperature"
topics = ["site/{{site}}/{{device}}/temp"]
event_time = "ts"
merge = {{ kind = "Ledger", primaryKey = ["device", "n"] }}
envelope = ["client_id"]
[dataset.schema]
ts = "Timestamp(ms)"
n = "Int64"
temp = "Float32"
battery = "Float32?"

[[dataset]]
name = "vibration"
topics = ["plant/{{machine}}/vibration"]
format = "csv"
envelope = ["client_id"]
[dataset.schema]
n = "Int64"
x = "Float64"
y = "Float64"
z = "Float64"

[[dataset]]
name = "messages"
topics = ["log/#"]
format = "text"
envelope = ["topic", "client_id", "qos", "received_at"]

[spool]
min_free_bytes = "16MiB"

[batch]
age = "1s"

[upstream]
url = 'file://{path}/link/upstream'
"#
    ))
}

/// Devices publish, the link is cut and restored, everything is sealed and delivered.
async fn play(stage: &Stage, agent: &Agent, address: SocketAddr, colour: bool) -> Result<Vec<Tally>> {
    let started = clock::now();
    let (stop, stopping) = watch::channel(false);
    let acknowledged = Arc::default();
    let fleet = devices::fleet();
    say(&format!(
        "{} devices publish for {} s, MQTT 3.1.1 and 5.0, QoS 0, 1 and 2",
        fleet.len(),
        PUBLISHING.as_secs()
    ))?;
    let tasks: Vec<_> = fleet
        .into_iter()
        .map(|device| devices::spawn(Device::new(device, address, Arc::clone(&acknowledged), stopping.clone())))
        .collect();
    let mut watcher = Watcher { agent, acknowledged, started, colour };
    watcher.until(CUT_AFTER).await?;
    stage.cut()?;
    say(&tinted("── the link is cut: the upstream directory is gone", output::Tone::Warning, colour))?;
    watcher.until(RESTORED_AFTER).await?;
    stage.restore()?;
    say(&tinted("── the link is back", output::Tone::Good, colour))?;
    watcher.until(PUBLISHING).await?;
    stop.send_replace(true);
    let mut tallies = Vec::new();
    for task in tasks {
        tallies.push(task.await??);
    }
    say("devices stopped; sealing and delivering what is left")?;
    agent.seal_all().await?;
    watcher.until_delivered().await?;
    Ok(tallies)
}

/// Prints a line a second.
struct Watcher<'a> {
    agent: &'a Agent,
    acknowledged: Arc<std::sync::atomic::AtomicU64>,
    started: Instant,
    colour: bool,
}

impl Watcher<'_> {
    async fn until(&mut self, moment: Duration) -> Result<()> {
        while self.started.elapsed() < moment {
            tokio::time::sleep(LINE_EVERY.min(moment.saturating_sub(self.started.elapsed()))).await;
            self.line()?;
        }
        Ok(())
    }

    async fn until_delivered(&mut self) -> Result<()> {
        let deadline = self.started.elapsed() + DELIVERED_WITHIN;
        while !self.is_delivered() {
            if self.started.elapsed() > deadline {
                bail!("the upstream did not get everything within {} s", DELIVERED_WITHIN.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.line()
    }

    fn is_delivered(&self) -> bool {
        let shared = self.agent.shared();
        let chains = shared.sealing.chains();
        shared.running().backlog.upstreams().iter().all(|progress| {
            let report = progress.report();
            let has = |(name, sealed)| report.delivered.get(name).is_some_and(|seq| *seq >= sealed);
            report.reachable && chains.iter().map(|(name, chain)| (name, chain.sealed)).all(has)
        })
    }

    fn line(&self) -> Result<()> {
        let shared = self.agent.shared();
        let status = shared.status()?;
        let rows: u64 = status.datasets.iter().map(|dataset| dataset.chain.rows).sum();
        let upstream = match status.upstreams.first() {
            Some(upstream) if upstream.reachable => {
                tinted(&format!("reachable, {} blocks delivered", upstream.blocks), output::Tone::Good, self.colour)
            }
            Some(upstream) => tinted(
                &format!("unreachable, {} blocks delivered", upstream.blocks),
                output::Tone::Warning,
                self.colour,
            ),
            None => String::new(),
        };
        let acknowledged = self.acknowledged.load(std::sync::atomic::Ordering::Relaxed);
        say(&format!(
            "{:>5.1} s  acknowledged {:>6}  waiting in spool {:>6}  rows sealed {:>6}  upstream {upstream}",
            self.started.elapsed().as_secs_f64(),
            grouped(acknowledged),
            grouped(status.spool.waiting),
            grouped(rows),
        ))
    }
}

/// Reads back what is on disk, with nothing running.
fn settle(stage: &Stage, config: &Config, tallies: &[Tally]) -> Result<Account> {
    let store = Store::open_existing(config)?;
    let local = verify::run(config, &store.spool, None)?;
    let upstream: Vec<_> = config
        .datasets
        .iter()
        .map(|dataset| verify::dataset(&dataset.spec.name, &stage.upstream().join(&dataset.spec.name)))
        .collect();
    let mut rows = Vec::new();
    let mut identical = true;
    for dataset in &config.datasets {
        let name = &dataset.spec.name;
        let here = datasets_dir(&config.data_dir).join(name);
        let there = stage.upstream().join(name);
        identical &= readback::same_files(&here, &there)?;
        rows.push((name.clone(), readback::rows(&there)?));
    }
    let dead_letters = readback::dead_letters(&store.spool)?;
    let evidence = Evidence { local, upstream, identical, rows, dead_letters };
    Ok(Account::new(tallies, evidence))
}

fn say(line: &str) -> Result<()> {
    output::print(&format!("{line}\n"))?;
    Ok(())
}
