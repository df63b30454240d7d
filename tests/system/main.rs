//! Stories of the whole agent: a real process, real sockets, a real disk. A file a story.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper that fails fails its test")]

mod ack_after_fsync;
mod attacks;
mod carried;
mod isolation;
mod kill9;
mod listeners;
mod matrix;
mod misconfigured;
mod outages;
mod publisher;
mod pull;
mod reload;
mod restart;
mod rumqttc_client;
mod s3_server;
mod secrets;
mod service;
mod sigterm;
mod source_edges;
mod source_kill9;
mod sources;
mod sync_job;
mod unrouted;
mod wire;

use std::path::{Path, PathBuf};

use forebay_tests::agent::{self, Agent, AgentConfig};
use forebay_tests::dataset::Rows;
use forebay_tests::device::Device;
use forebay_tests::node::{NodeConfig, StubNode};
use forebay_tests::packets::{Connect, Publish, Version};

/// The agent, built with these tests.
const PROGRAM: &str = env!("CARGO_BIN_EXE_forebay-under-test");
/// The S3 server, built with these tests.
const S3_PROGRAM: &str = env!("CARGO_BIN_EXE_forebay-stub-s3");

/// rumqttd, built with these tests.
const RUMQTTD_PROGRAM: &str = env!("CARGO_BIN_EXE_forebay-stub-rumqttd");

/// The stub of a Kamu node, built with these tests.
const NODE_PROGRAM: &str = env!("CARGO_BIN_EXE_forebay-stub-node");

/// Everything to the dataset `messages`, sealed soon, so that a story need not wait for it.
fn sealing_soon(dir: &Path) -> AgentConfig {
    AgentConfig::in_dir(dir).with("[batch]\nage = \"100ms\"")
}

fn start(config: &AgentConfig) -> Agent {
    Agent::start_program(Path::new(PROGRAM), config).expect("the agent starts")
}

/// Runs `forebay COMMAND` and answers whether it succeeded, and what it wrote to standard output.
fn forebay(config: &AgentConfig, args: &[&str]) -> (bool, String) {
    let output = agent::command(Path::new(PROGRAM), config, args).expect("the command runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), text + &String::from_utf8_lossy(&output.stderr))
}

/// A Kamu node of its own directory, and a file with its token.
fn start_node(dir: &Path, change: impl FnOnce(NodeConfig) -> NodeConfig) -> (StubNode, PathBuf) {
    let root = dir.join("node");
    std::fs::create_dir_all(&root).unwrap();
    let node = StubNode::start_program(Path::new(NODE_PROGRAM), &change(NodeConfig::in_dir(&root))).unwrap();
    let token = dir.join("token");
    std::fs::write(&token, node.token()).unwrap();
    (node, token)
}

/// A dataset `temp` of one text column, whose topics are `temp/{device}`; sealed when it is asked for.
fn temp(dir: &Path) -> AgentConfig {
    AgentConfig::in_dir(dir)
        .with("[batch]\nage = \"1h\"")
        .with("[[dataset]]\nname = \"temp\"\ntopics = [\"temp/{device}\"]\nformat = \"text\"")
}

/// Publishes texts with QoS 1, one after the other.
fn publish(agent: &Agent, texts: &[&str]) {
    let mut device = Device::connect(agent.mqtt_addr(), Version::V5, &Connect::clean("device")).unwrap();
    for (text, packet_id) in texts.iter().zip(1..) {
        device.publish_and_wait(&Publish::new("temp/7", text.as_bytes(), 1, packet_id)).unwrap();
    }
    device.disconnect().unwrap();
}

/// Seals all that is stored, ends the agent, verifies what it left, and reads its dataset.
fn finish(agent: Agent, config: &AgentConfig, dataset: &str) -> Rows {
    agent.drain(0).expect("everything is sealed");
    let status = agent.stop().expect("the agent stops");
    assert_eq!(status.code(), Some(0), "SIGTERM ends the agent with success");
    let verify = agent::command(Path::new(PROGRAM), config, &["verify"]).expect("verify runs");
    let report = String::from_utf8_lossy(&verify.stdout);
    assert!(verify.status.success(), "{report}{}", String::from_utf8_lossy(&verify.stderr));
    assert!(report.contains("verify: ok"), "{report}");
    Rows::read(&config.data_dir(), dataset).expect("the dataset can be read")
}

/// How often something is done, or with which seed, by an environment variable.
fn from_env<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().map_or(default, |text| text.parse().ok().unwrap_or_else(|| panic!("{name}={text}")))
}
