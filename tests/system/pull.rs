//! `forebay pull` with a manifest that was made for `kamu pull`: one subscription, a broker that keeps messages while nobody
//! pulls, and no message twice however often it is pulled.

use std::fs;
use std::path::{Path, PathBuf};

use forebay_tests::agent::AgentConfig;
use forebay_tests::dataset::Rows;
use forebay_tests::feed::{self, Message};
use forebay_tests::mosquitto::{Mosquitto, MosquittoConfig};
use forebay_tests::proxy::Proxy;
use serde_json::Value;

use crate::sources::{mosquitto, source};
use crate::{forebay, start};

const TOPIC: &str = "dev.kamu.example.mqtt.temp";

#[test]
fn at_least_once_brings_all_that_was_published_meanwhile_and_no_row_again() {
    let Some(scene) = Scene::new("AtLeastOnce") else { return };

    assert_eq!(scene.pull(), 0, "the first pull subscribes");
    scene.publish_ten(0);
    assert_eq!(scene.pull(), 10);
    assert_eq!(scene.pull(), 0, "the retained value is the last one, which is there");
    scene.publish_ten(10);
    assert_eq!(scene.pull(), 10, "the next ten");

    assert_eq!(scene.rows(), 20);
}

/// A broker keeps nothing of QoS 0 for who is away; what comes is the one message that it retains.
#[test]
fn at_most_once_brings_the_retained_value_only() {
    let Some(scene) = Scene::new("AtMostOnce") else { return };

    assert_eq!(scene.pull(), 0, "the first pull subscribes");
    scene.publish_ten(0);
    assert_eq!(scene.pull(), 1, "the last value");
    assert_eq!(scene.pull(), 0);
    scene.publish_ten(10);
    assert_eq!(scene.pull(), 1);

    assert_eq!(scene.rows(), 2);
    let rows = Rows::read(&scene.config.data_dir(), "temp").unwrap();
    assert_eq!(rows.floats("value").unwrap(), [9.0, 19.0]);
}

#[test]
fn exactly_once_brings_all_that_was_published_meanwhile_and_no_row_again() {
    let Some(scene) = Scene::new("ExactlyOnce") else { return };

    assert_eq!(scene.pull(), 0, "the first pull subscribes");
    scene.publish_ten(0);
    // The retained value comes beside the queue, and the Ledger has its key.
    assert_eq!(scene.pull(), 10);
    assert_eq!(scene.pull(), 0);

    assert_eq!(scene.rows(), 10);
}

#[test]
fn what_was_retained_before_the_first_pull_comes_with_it() {
    let Some(scene) = Scene::new("AtLeastOnce") else { return };

    scene.publish_ten(0);

    assert_eq!(scene.pull(), 1);
    assert_eq!(scene.pull(), 0);
}

/// Without a manifest the sources of the configuration are pulled from.
#[test]
fn a_configured_source_is_pulled_from_and_a_running_agent_is_left_alone() {
    let Some(program) = mosquitto() else { return };
    let dir = tempfile::tempdir().unwrap();
    let broker = MosquittoConfig::in_dir(&dir.path().join("broker")).start(&program).unwrap();
    let config = AgentConfig::in_dir(dir.path()).with(&source(&broker.url(), ""));
    assert!(forebay(&config, &["pull", "--silence", "2s"]).0);
    feed::publish(broker.addr(), (0..500).map(|number| Message::new("a/b", number.to_string(), 1))).unwrap();

    let (is_ok, report) = pull(&config, &[]);

    assert!(is_ok, "{report:#}");
    assert_eq!(report["topics"][0], serde_json::json!({"source": "plant", "topic": "a/b", "messages": 500}));
    assert_eq!(Rows::read(&config.data_dir(), "messages").unwrap().len(), 500);
    let agent = start(&config);
    let (is_ok, text) = forebay(&config, &["pull"]);
    assert!(!is_ok && text.contains("an agent runs"), "{text}");
    agent.stop().unwrap();
}

#[test]
fn a_message_that_takes_longer_than_a_connection_may_is_pulled_as_a_whole() {
    let Some(program) = mosquitto() else { return };
    let dir = tempfile::tempdir().unwrap();
    let broker = MosquittoConfig::in_dir(&dir.path().join("broker")).start(&program).unwrap();
    let link = Proxy::start(broker.addr()).unwrap();
    let config = AgentConfig::in_dir(dir.path()).with(&source(&format!("mqtt://{}", link.addr()), ""));
    assert!(pull(&config, &[]).0);
    feed::publish(broker.addr(), [Message::new("a", "x".repeat(200_000), 1)]).unwrap();
    link.throttle(Some(50_000));

    let (is_ok, report) = pull(&config, &["--connect", "1s"]);

    assert!(is_ok, "{report:#}");
    assert_eq!(report["sources"][0]["connections"], 1, "{report:#}");
    assert_eq!(Rows::read(&config.data_dir(), "messages").unwrap().texts("payload").unwrap()[0].len(), 200_000);
}

#[test]
fn a_broker_that_is_not_there_fails_in_one_line_and_the_other_one_is_drained() {
    let Some(program) = mosquitto() else { return };
    let dir = tempfile::tempdir().unwrap();
    let broker = MosquittoConfig::in_dir(&dir.path().join("broker")).start(&program).unwrap();
    feed::publish(broker.addr(), [Message::new("a", "retained", 1).retained()]).unwrap();
    let config = AgentConfig::in_dir(dir.path())
        .with(&source(&broker.url(), ""))
        .with("[[source]]\nname = \"away\"\nurl = \"mqtt://127.0.0.1:1\"");

    let (is_ok, report) = pull(&config, &["--connect", "10s"]);

    assert!(!is_ok, "{report:#}");
    let problems = report["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1, "{report:#}");
    assert!(problems[0].as_str().unwrap().contains("127.0.0.1:1"), "{report:#}");
    assert_eq!(Rows::read(&config.data_dir(), "messages").unwrap().texts("payload").unwrap(), ["retained"]);
}

/// A manifest of which only the broker and the QoS are ours.
struct Scene {
    broker: Mosquitto,
    config: AgentConfig,
    manifest: PathBuf,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn new(qos: &str) -> Option<Self> {
        let program = mosquitto()?;
        let dir = tempfile::tempdir().unwrap();
        let broker = MosquittoConfig::in_dir(&dir.path().join("broker")).start(&program).unwrap();
        let manifest = dir.path().join("temp.yaml");
        fs::write(&manifest, manifest_text(broker.addr().port(), qos)).unwrap();
        Some(Self { broker, config: AgentConfig::in_dir(dir.path()), manifest, _dir: dir })
    }

    /// As the example's publisher: retained, QoS 1, a time of day without an offset.
    fn publish_ten(&self, first: u32) {
        let message = |number| {
            let time = format!("2026-11-25T10:20:{number:02}.123456");
            Message::new(TOPIC, format!("{{\"event_time\": \"{time}\", \"value\": {number}}}"), 1).retained()
        };
        feed::publish(self.broker.addr(), (first..first + 10).map(message)).unwrap();
    }

    /// Pulls, and answers how many rows came.
    fn pull(&self) -> u64 {
        let (is_ok, report) = pull(&self.config, &[&self.manifest.display().to_string()]);
        assert!(is_ok, "{report:#}");
        assert_eq!((&report["ok"], &report["problems"]), (&true.into(), &Value::Array(Vec::new())), "{report:#}");
        assert_eq!(report["datasets"][0]["dataset"], "temp");
        assert_eq!(report["datasets"][0]["dead_letters"], 0, "{report:#}");
        report["datasets"][0]["rows"].as_u64().unwrap()
    }

    fn rows(&self) -> usize {
        let (is_ok, text) = forebay(&self.config, &["verify"]);
        assert!(is_ok, "{text}");
        Rows::read(&self.config.data_dir(), "temp").unwrap().len()
    }
}

fn pull(config: &AgentConfig, args: &[&str]) -> (bool, Value) {
    let args: Vec<&str> = ["pull", "--silence", "2s", "--output", "json"].iter().chain(args).copied().collect();
    let output = forebay_tests::agent::command(Path::new(crate::PROGRAM), config, &args).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.success(), report)
}

fn manifest_text(port: u16, qos: &str) -> String {
    format!(
        "kind: DatasetSnapshot
version: 1
content:
  name: temp
  kind: Root
  metadata:
    - kind: SetPollingSource
      fetch:
        kind: mqtt
        host: 127.0.0.1
        port: {port}
        topics:
          - path: {TOPIC}
            qos: {qos}
      read:
        kind: NdJson
        schema:
          - event_time TIMESTAMP
          - value FLOAT
      merge:
        kind: Ledger
        primaryKey:
          - event_time
"
    )
}
