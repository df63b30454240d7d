//! The servers that are compared, each a child process on a free loopback port with a directory of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use forebay_tests::agent::{Agent, AgentConfig};
use forebay_tests::device::Device;
use forebay_tests::packets::{Connect, Version};

use crate::load::now;

/// How long a server may take to listen.
const START_MAX: Duration = Duration::from_secs(20);

/// A server under comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// mosquitto as it comes: nothing on disk, and without a subscriber nothing kept.
    Mosquitto(PathBuf),
    /// mosquitto with the strictest persistence it has, and an absent subscriber to keep messages for.
    MosquittoStrict(PathBuf),
    /// rumqttd, embedded in a child process of this program.
    Rumqttd,
    /// Forebay, as `forebay run` with its defaults.
    Forebay(PathBuf),
}

impl Peer {
    /// Name in the table.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Mosquitto(_) => "mosquitto",
            Self::MosquittoStrict(_) => "mosquitto, strict",
            Self::Rumqttd => "rumqttd",
            Self::Forebay(_) => "forebay",
        }
    }

    /// What its PUBACK promises.
    pub(crate) fn promise(&self) -> &'static str {
        match self {
            Self::Mosquitto(_) => "received, dropped",
            Self::MosquittoStrict(_) => "in RAM, written soon",
            Self::Rumqttd => "in RAM",
            Self::Forebay(_) => "on disk (fsync)",
        }
    }

    /// Starts it and waits until it accepts connections.
    pub(crate) fn start(&self, dir: &Path) -> Result<Running> {
        match self {
            Self::Mosquitto(program) => {
                start_listening(free_port()?, |port| mosquitto(program, dir, port, "persistence false\n"))
            }
            Self::MosquittoStrict(program) => {
                let settings = format!(
                    "persistence true\npersistence_location {}/\nautosave_on_changes true\nautosave_interval 1\n\
                     max_queued_messages 0\n",
                    dir.display()
                );
                let running = start_listening(free_port()?, |port| mosquitto(program, dir, port, &settings))?;
                subscribe_and_leave(running.addr)?;
                Ok(running)
            }
            Self::Rumqttd => start_listening(free_port()?, rumqttd),
            Self::Forebay(program) => {
                let agent = Agent::start_program(program, &AgentConfig::in_dir(dir))?;
                Ok(Running { addr: agent.mqtt_addr(), process: Process::Agent(Box::new(agent)) })
            }
        }
    }
}

/// A server that listens; dropped, it is killed.
pub(crate) struct Running {
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    process: Process,
}

enum Process {
    Child(Child),
    Agent(Box<Agent>),
}

impl Running {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        match &self.process {
            Process::Child(child) => child.id(),
            Process::Agent(agent) => agent.pid(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Process::Child(child) = &mut self.process {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn mosquitto(program: &Path, dir: &Path, port: u16, settings: &str) -> Result<Command> {
    let path = dir.join("mosquitto.conf");
    // As root mosquitto becomes the user `mosquitto`, who may not write in our directory.
    let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
    let config = format!("listener {port} 127.0.0.1\nallow_anonymous true\nlog_dest none\n{user}{settings}");
    fs::write(&path, config).with_context(|| format!("write {}", path.display()))?;
    let mut command = Command::new(program);
    command.arg("-c").arg(path);
    Ok(command)
}

fn rumqttd(port: u16) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.arg("rumqttd").arg(port.to_string());
    Ok(command)
}

fn start_listening(port: u16, command: impl FnOnce(u16) -> Result<Command>) -> Result<Running> {
    let mut command = command(port)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut running = Running { addr, process: Process::Child(child) };
    let deadline = now() + START_MAX;
    while TcpStream::connect(addr).is_err() {
        if let Process::Child(child) = &mut running.process
            && let Some(status) = child.try_wait()?
        {
            bail!("{} ended with {status} before it listened", command.get_program().display());
        }
        ensure!(now() < deadline, "{} does not listen on {addr}", command.get_program().display());
        thread::sleep(Duration::from_millis(5));
    }
    Ok(running)
}

/// mosquitto writes only what waits for a subscriber.
fn subscribe_and_leave(addr: SocketAddr) -> Result<()> {
    let mut device = Device::connect(addr, Version::V4, &Connect::persistent("absent"))?;
    device.subscribe(1, "#")?;
    device.disconnect()
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}
