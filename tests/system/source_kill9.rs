//! The one promise towards a broker, under `kill -9`: what it queued for the agent is in the dataset; of QoS 2 once, of QoS 1
//! once in a Ledger.
//!
//! The agent subscribes and is stopped. Messages are published, so that they wait at the broker in the agent's session. Then
//! the agent is started, killed at a random moment while they flow, and started again on the same directory. The broker
//! sends again what was not acknowledged. When the queue runs dry before the kills are used up, another load is published.
//!
//! `FOREBAY_SOURCE_MESSAGES` is the size of a load, `FOREBAY_SOURCE_KILLS` says how often, `FOREBAY_SEED` repeats a run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use forebay_tests::agent::{Agent, AgentConfig};
use forebay_tests::feed::{self, Message};
use forebay_tests::mosquitto::MosquittoConfig;
use forebay_tests::rumqttd::Rumqttd;
use serde_json::Value;

use crate::sources::{counted, mosquitto, source, wait_for, wait_for_rows, wait_until_subscribed};
use crate::{RUMQTTD_PROGRAM, finish, from_env, sealing_soon, start};

/// A life of the agent takes at most so many messages before it is killed.
const MESSAGES_A_LIFE_MAX: u64 = 1_000;
/// The last message: the broker keeps the order, so everything was sent when this is there.
const END: &str = "end";

#[test]
fn mosquitto_qos_1_loses_nothing_and_a_ledger_has_each_once() {
    with_mosquitto("3.1.1", 1);
}

#[test]
fn mosquitto_qos_2_loses_nothing_and_stores_each_once() {
    with_mosquitto("3.1.1", 2);
}

#[test]
fn mosquitto_qos_2_of_5_0_loses_nothing_and_stores_each_once() {
    with_mosquitto("5.0", 2);
}

#[test]
fn rumqttd_qos_1_loses_nothing_and_a_ledger_has_each_once() {
    let broker = Rumqttd::start(Path::new(RUMQTTD_PROGRAM)).unwrap();
    Story::new("rumqttd", "3.1.1", 1, &broker.url(), broker.addr()).run();
}

/// rumqttd counts anew when a subscriber comes back: what was not acknowledged is sent under other Packet Identifiers,
/// without DUP. So a broker in which QoS 2 means at least once; a Ledger makes it once.
#[test]
fn rumqttd_qos_2_loses_nothing_and_a_ledger_has_each_once() {
    let broker = Rumqttd::start(Path::new(RUMQTTD_PROGRAM)).unwrap();
    let story = Story::new("rumqttd", "3.1.1", 2, &broker.url(), broker.addr());
    Story { sends_twice: true, ..story }.run();
}

fn with_mosquitto(version: &str, qos: u8) {
    let Some(program) = mosquitto() else { return };
    let dir = tempfile::tempdir().unwrap();
    let broker = MosquittoConfig::in_dir(dir.path()).unlimited().start(&program).unwrap();
    Story::new("mosquitto", version, qos, &broker.url(), broker.addr()).run();
}

struct Story {
    title: String,
    qos: u8,
    broker: SocketAddr,
    source: String,
    published: u64,
    /// The broker may send a message again that has a row.
    sends_twice: bool,
}

impl Story {
    fn new(broker: &str, version: &str, qos: u8, url: &str, addr: SocketAddr) -> Self {
        let word = if qos == 2 { "ExactlyOnce" } else { "AtLeastOnce" };
        let title = format!("{broker} {version} QoS {qos}");
        let source = source(url, &format!("version = \"{version}\"\nqos = \"{word}\""));
        Self { title, qos, broker: addr, source, published: 0, sends_twice: qos == 1 }
    }

    fn run(mut self) {
        let kills: u32 = from_env("FOREBAY_SOURCE_KILLS", 3);
        let load: u64 = from_env("FOREBAY_SOURCE_MESSAGES", 2_000);
        let seed: u64 = from_env("FOREBAY_SEED", fastrand::u64(..));
        println!("{}: FOREBAY_SOURCE_KILLS={kills} FOREBAY_SOURCE_MESSAGES={load} FOREBAY_SEED={seed}", self.title);
        let mut random = fastrand::Rng::with_seed(seed);
        let dir = tempfile::tempdir().unwrap();
        let config = self.config(dir.path());
        let agent = start(&config);
        wait_until_subscribed(&agent);
        let begin = log_end(&agent.status().unwrap());
        agent.stop().unwrap();

        self.publish(load);
        for _ in 0..kills {
            let agent = start(&config);
            // A short life now and then: what a broker had no time to repeat is where brokers are at their worst.
            if random.u8(..4) > 0 {
                self.wait_while_they_flow(&agent, random.u64(1..MESSAGES_A_LIFE_MAX), begin, load);
            }
            thread::sleep(Duration::from_micros(random.u64(0..20_000)));
            agent.kill().expect("no ERROR in the log");
        }

        let agent = start(&config);
        feed::publish(self.broker, [message(END, self.qos)]).unwrap();
        wait_for_rows(&agent, &config, "load", "id", |ids| ids.iter().any(|id| id == END));
        let stored = log_end(&agent.status().unwrap()) - begin;
        let rows = counted(finish(agent, &config, "load").texts("id").unwrap());
        self.check(kills, stored, &rows);
    }

    /// Kept once by its `id` where the broker may send it twice.
    fn config(&self, dir: &Path) -> AgentConfig {
        let merge = if self.sends_twice { "merge = { kind = \"Ledger\", primaryKey = [\"id\"] }\n" } else { "" };
        sealing_soon(dir).with(&self.source).with(&format!(
            "[[dataset]]\nname = \"load\"\ntopics = [\"load/#\"]\nformat = \"json\"\n{merge}schema = {{ id = \"String\" }}"
        ))
    }

    fn publish(&mut self, count: u64) {
        let numbers = self.published..self.published + count;
        let qos = self.qos;
        feed::publish(self.broker, numbers.map(|number| message(&id(number), qos))).unwrap();
        self.published += count;
    }

    /// Until this life of the agent got so many messages.
    fn wait_while_they_flow(&mut self, agent: &Agent, messages: u64, begin: u64, load: u64) {
        loop {
            let status = wait_for(agent, "messages flow", |status| {
                status["sources"][0]["messages"].as_u64() >= Some(messages) || log_end(status) - begin >= self.published
            });
            if status["sources"][0]["messages"].as_u64() >= Some(messages) {
                return;
            }
            self.publish(load);
        }
    }

    fn check(&self, kills: u32, stored: u64, rows: &BTreeMap<String, u32>) {
        let lost = (0..self.published).filter(|number| !rows.contains_key(&id(*number))).count();
        let twice = rows.values().filter(|count| **count > 1).count();
        let sent = self.published + 1;
        println!(
            "{}: kill -9 × {kills}: published {}, lost {lost}, rows twice {twice}, stored again in the spool {}",
            self.title,
            self.published,
            stored - sent.min(stored),
        );
        assert_eq!(lost, 0, "what the broker queued is in the dataset");
        assert_eq!(twice, 0, "and once");
        assert_eq!(rows.len() as u64, sent, "nothing is stored that was not published");
        if !self.sends_twice {
            assert_eq!(stored, sent, "the spool stored QoS 2 once");
        }
    }
}

fn message(id: &str, qos: u8) -> Message {
    Message::new("load/a", format!("{{\"id\":\"{id}\"}}"), qos)
}

fn id(number: u64) -> String {
    format!("{number:08}")
}

fn log_end(status: &Value) -> u64 {
    status["spool"]["log_end"].as_u64().unwrap()
}
