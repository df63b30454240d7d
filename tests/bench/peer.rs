//! The servers that are compared, each a child process on a free loopback port with a directory of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use forebay_tests::agent::{Agent, AgentConfig};
use forebay_tests::device::Device;
use forebay_tests::mosquitto::{Mosquitto, MosquittoConfig};
use forebay_tests::packets::{Connect, Version};
use forebay_tests::rumqttd::Rumqttd;

/// A server under comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// mosquitto as it comes: nothing on disk, and without a subscriber nothing kept.
    Mosquitto(PathBuf),
    /// mosquitto with the strictest persistence it has, and an absent subscriber to keep messages for.
    MosquittoStrict(PathBuf),
    /// rumqttd, embedded in a program of ours.
    Rumqttd(PathBuf),
    /// Forebay, as `forebay run` with its defaults.
    Forebay(PathBuf),
}

impl Peer {
    /// Name in the table.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Mosquitto(_) => "mosquitto",
            Self::MosquittoStrict(_) => "mosquitto, strict",
            Self::Rumqttd(_) => "rumqttd",
            Self::Forebay(_) => "forebay",
        }
    }

    /// What its PUBACK promises.
    pub(crate) fn promise(&self) -> &'static str {
        match self {
            Self::Mosquitto(_) => "received, dropped",
            Self::MosquittoStrict(_) => "in RAM, written soon",
            Self::Rumqttd(_) => "in RAM",
            Self::Forebay(_) => "on disk (fsync)",
        }
    }

    /// Starts it and waits until it accepts connections.
    pub(crate) fn start(&self, dir: &Path) -> Result<Running> {
        match self {
            Self::Mosquitto(program) => Self::mosquitto(&MosquittoConfig::in_dir(dir), program),
            Self::MosquittoStrict(program) => {
                let config = MosquittoConfig::in_dir(dir).persistent().unlimited();
                let config = config.with("autosave_on_changes true\nautosave_interval 1");
                let running = Self::mosquitto(&config, program)?;
                subscribe_and_leave(running.addr)?;
                Ok(running)
            }
            Self::Rumqttd(program) => {
                let server = Rumqttd::start(program)?;
                Ok(Running { addr: server.addr(), process: Process::Rumqttd(server) })
            }
            Self::Forebay(program) => {
                let agent = Agent::start_program(program, &AgentConfig::in_dir(dir))?;
                Ok(Running { addr: agent.mqtt_addr(), process: Process::Agent(Box::new(agent)) })
            }
        }
    }

    fn mosquitto(config: &MosquittoConfig, program: &Path) -> Result<Running> {
        let server = config.start(program)?;
        Ok(Running { addr: server.addr(), process: Process::Mosquitto(server) })
    }
}

/// A server that listens; dropped, it is killed.
pub(crate) struct Running {
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    process: Process,
}

enum Process {
    Mosquitto(Mosquitto),
    Rumqttd(Rumqttd),
    Agent(Box<Agent>),
}

impl Running {
    /// Its process id.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.process {
            Process::Mosquitto(server) => server.pid(),
            Process::Rumqttd(server) => server.pid(),
            Process::Agent(agent) => Some(agent.pid()),
        }
    }
}

/// mosquitto writes only what waits for a subscriber.
fn subscribe_and_leave(addr: SocketAddr) -> Result<()> {
    let mut device = Device::connect(addr, Version::V4, &Connect::persistent("absent"))?;
    device.subscribe(1, "#")?;
    device.disconnect()
}
