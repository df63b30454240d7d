//! A directory with a configuration, and devices that publish to an agent.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_agent::config::Config;
use forebay_agent::supervisor::Agent;
use forebay_agent::verify::{self, DatasetReport};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS, v5};
use tempfile::TempDir;

/// Nothing takes this long, so that a test that hangs says where.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const TEMPERATURE: &str = r#"
[[dataset]]
name = "temperature"
topics = ["site/{site}/temp"]
[dataset.schema]
n = "Int64"
temp = "Float32"
"#;

/// A gateway's directory.
pub(crate) struct Gateway {
    dir: TempDir,
    sections: String,
}

impl Gateway {
    pub(crate) fn new(sections: &str) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), sections: sections.to_owned() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn toml(&self) -> String {
        format!(
            "gateway = \"gw-test\"\ndata_dir = '{}'\n[spool]\nmin_free_bytes = 0\n[[listener]]\nbind = \"127.0.0.1:0\"\n{}",
            self.data_dir().display(),
            self.sections
        )
    }

    pub(crate) fn config(&self) -> Config {
        Config::parse(&self.toml(), Path::new("forebay.toml")).unwrap()
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        let file = self.path().join("forebay.toml");
        std::fs::write(&file, self.toml()).unwrap();
        file
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.path().join("data")
    }

    pub(crate) fn dataset(&self, name: &str) -> PathBuf {
        self.data_dir().join("datasets").join(name)
    }

    pub(crate) fn verify(&self, name: &str) -> DatasetReport {
        verify::dataset(name, &self.dataset(name))
    }

    pub(crate) async fn start(&self) -> Agent {
        Agent::start(self.config(), None).await.unwrap()
    }
}

/// Publishes every message with QoS 1 over MQTT 3.1.1 and returns when each has its PUBACK.
pub(crate) async fn publish(address: SocketAddr, client_id: &str, messages: &[(&str, &str)]) {
    let (client, mut events) = connect(address, client_id);
    for (topic, payload) in messages {
        client.publish(*topic, QoS::AtLeastOnce, false, payload.as_bytes()).await.unwrap();
    }
    let acknowledged = async {
        let mut left = messages.len();
        while left > 0 {
            if let Event::Incoming(Packet::PubAck(_)) = events.poll().await.unwrap() {
                left -= 1;
            }
        }
    };
    tokio::time::timeout(PATIENCE, acknowledged).await.unwrap();
}

pub(crate) fn connect(address: SocketAddr, client_id: &str) -> (AsyncClient, EventLoop) {
    AsyncClient::new(MqttOptions::new(client_id, address.ip().to_string(), address.port()), 1_000)
}

/// Publishes one message with QoS 1 over MQTT 5.0 and answers the reason of its PUBACK.
pub(crate) async fn publish_v5(address: SocketAddr, topic: &str) -> v5::mqttbytes::v5::PubAckReason {
    let options = v5::MqttOptions::new("v5", address.ip().to_string(), address.port());
    let (client, mut events) = v5::AsyncClient::new(options, 10);
    client.publish(topic, v5::mqttbytes::QoS::AtLeastOnce, false, "x").await.unwrap();
    let answer = async {
        loop {
            if let v5::Event::Incoming(v5::mqttbytes::v5::Packet::PubAck(ack)) = events.poll().await.unwrap() {
                return ack.reason;
            }
        }
    };
    tokio::time::timeout(PATIENCE, answer).await.unwrap()
}

pub(crate) fn reading(n: u64) -> String {
    format!("{{\"n\":{n},\"temp\":20.5}}")
}
