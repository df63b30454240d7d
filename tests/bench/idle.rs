//! What connections cost that do nothing: memory of each, and what a publisher beside them notices.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use forebay_tests::agent::{Agent, AgentConfig};
use forebay_tests::device::Device;
use forebay_tests::packets::{Connect, Version};
use forebay_tests::tls::TlsFiles;
use forebay_tests::tls_client::{self, TlsStream};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::compare::beside;
use crate::load::{self, LoadArgs, Report};
use crate::usage;

/// Open files that this program and the agent need beside the connections.
const FILES: u64 = 200;
/// Until what was handed back to the allocator and the kernel is settled.
const SETTLE: Duration = Duration::from_secs(2);

/// How many connections.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct IdleArgs {
    /// Connections without TLS.
    #[arg(long, default_value_t = 10_000)]
    plain: u32,
    /// Connections over TLS, on an agent of their own.
    #[arg(long, default_value_t = 2_000)]
    tls: u32,
    /// Seconds of each measurement of the publisher.
    #[arg(long, default_value_t = 10.0)]
    duration: f64,
    /// The `forebay` program. Default: beside this one.
    #[arg(long)]
    forebay: Option<PathBuf>,
}

/// An idle connection: it is held, and closed when it is dropped.
enum Idle {
    Plain { _device: Device },
    Tls { _device: Box<Device<TlsStream>> },
}

/// Measures both kinds and prints a table.
pub(crate) fn run(args: &IdleArgs) -> Result<()> {
    raise_limit_of_files(u64::from(args.plain.max(args.tls)) + FILES)?;
    let program = args.forebay.clone().map_or_else(|| beside("forebay"), Ok)?;
    println!(
        "| connections | KiB each | agent RSS MiB: alone / with them | publisher p50 ms: alone / beside them / after them | p99 ms |"
    );
    println!("| --- | --- | --- | --- | --- |");
    measure(args, &program, "TCP", args.plain)?;
    measure(args, &program, "TLS 1.3", args.tls)
}

fn measure(args: &IdleArgs, program: &Path, kind: &str, count: u32) -> Result<()> {
    let dir = tempfile::tempdir().context("create a directory")?;
    let files = TlsFiles::make(&dir.path().join("tls"))?;
    let config = AgentConfig::in_dir(dir.path())
        .with("[limits]\nconnections_max = 20_000\nconnections_per_address_max = 20_000")
        .with("[[listener]]\nbind = \"127.0.0.1:0\"\n[listener.tls]")
        .with(&format!("cert = '{}'\nkey_file = '{}'", files.cert.display(), files.key.display()));
    let agent = Agent::start_program(program, &config)?;
    publisher(args, &agent)?; // the first messages make what stays
    let alone = publisher(args, &agent)?;
    let rss_alone = rss(&agent)?;
    let trust = tls_client::config(&files.ca, None)?;
    let target = if kind == "TCP" { agent.mqtt_addr() } else { tls_address(&agent)? };
    let open = || match kind {
        "TCP" => connect(TcpStream::connect(target)?).map(|device| Idle::Plain { _device: device }),
        _ => connect(tls_client::connect(target, &trust)?).map(|device| Idle::Tls { _device: Box::new(device) }),
    };
    let idle = (0..count).map(|_| open()).collect::<Result<Vec<_>>>()?;
    let rss_beside = rss(&agent)?;
    let beside = publisher(args, &agent)?;
    let open = agent.status()?["broker"]["connections_open"].as_u64();
    ensure!(open == Some(u64::from(count)), "{open:?} of {count} connections are open");
    drop(idle);
    thread::sleep(SETTLE);
    let after = publisher(args, &agent)?;
    println!(
        "| {count} {kind} | {:.1} | {rss_alone:.1} / {rss_beside:.1} | {} | {} |",
        (rss_beside - rss_alone) * 1024.0 / f64::from(count.max(1)),
        [&alone, &beside, &after].map(|report| format!("{:.2}", report.p50_ms)).join(" / "),
        [&alone, &beside, &after].map(|report| format!("{:.2}", report.p99_ms)).join(" / "),
    );
    Ok(())
}

/// One device, one message in flight, 200 a second.
fn publisher(args: &IdleArgs, agent: &Agent) -> Result<Report> {
    let load = LoadArgs {
        connections: 1,
        window: 1,
        payload_bytes: 200,
        duration: args.duration,
        warm_up: 0.5,
        rate: 200,
        qos: 1,
        v5: false,
    };
    load::run(&load, agent.mqtt_addr(), Some(agent.pid()))
}

fn rss(agent: &Agent) -> Result<f64> {
    thread::sleep(SETTLE);
    usage::rss_mib(agent.pid())
}

fn connect<S: Read + Write>(stream: S) -> Result<Device<S>> {
    Device::connect_over(stream, Version::V4, &Connect::clean(""))
}

fn tls_address(agent: &Agent) -> Result<SocketAddr> {
    let status = agent.status()?;
    let listeners = status["listeners"].as_array().context("the agent listens")?;
    let mut names = listeners.iter().filter_map(|listener| listener.as_str()?.strip_prefix("mqtts://"));
    names.next_back().context("a listener with TLS")?.parse().context("its address")
}

fn raise_limit_of_files(wanted: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(u64::MAX);
    ensure!(maximum >= wanted, "at most {maximum} files can be opened here, {wanted} are needed (ulimit -Hn)");
    let raised = Rlimit { current: Some(wanted.max(limit.current.unwrap_or(0))), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).context("raise the limit on open files")
}
