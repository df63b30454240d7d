//! Simulated devices: what they send, and what they were told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use rumqttc::{NetworkOptions, Outgoing, QoS, v5};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock;

/// How long a device waits for what it has not been told yet, once it has stopped publishing.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// How long a connection may take to be accepted, seconds: a session is on disk first, and the disk may be slow.
const CONNECT_SECS: u64 = 60;
/// Capacity of the client's queue.
const QUEUE: usize = 64;

/// What a device is.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    client_id: String,
    version: Version,
    qos: u8,
    topic: String,
    payload: fn(u64) -> String,
    every: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V311,
    V5,
}

/// A device at work.
pub(super) struct Device {
    plan: Plan,
    address: SocketAddr,
    acknowledged: Arc<AtomicU64>,
    stopping: watch::Receiver<bool>,
    ledger: Mutex<Ledger>,
}

/// What a device did and heard.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// Client Identifier.
    pub(super) client_id: String,
    /// QoS that it publishes with.
    pub(super) qos: u8,
    /// Its payloads by number.
    pub(super) sent: BTreeMap<u64, String>,
    /// Numbers that were acknowledged.
    pub(super) acknowledged: BTreeSet<u64>,
    /// Numbers that were refused with a reason code.
    pub(super) refused: BTreeSet<u64>,
}

/// What is sent and what is answered, as far as the device knows.
#[derive(Debug, Default)]
struct Ledger {
    sent: BTreeMap<u64, String>,
    /// Handed to the client, not written to the socket.
    queued: VecDeque<u64>,
    /// Written, not answered: number by Packet Identifier.
    unanswered: BTreeMap<u16, u64>,
    acknowledged: BTreeSet<u64>,
    refused: BTreeSet<u64>,
}

/// The devices of the demo: most behave, one has a broken sensor, two publish where nobody listens.
pub(super) fn fleet() -> Vec<Plan> {
    let mut fleet = Vec::new();
    for (site, device) in [("berlin", 1), ("berlin", 2), ("berlin", 3), ("oslo", 4), ("oslo", 5)] {
        let topic = format!("site/{site}/dev-{device}/temp");
        fleet.push(plan(&format!("dev-{device}"), Version::V311, 1, topic, temperature, 25));
    }
    let broken = "site/oslo/dev-6/temp".to_owned();
    fleet.push(plan("dev-6", Version::V311, 1, broken, broken_temperature, 50));
    for device in [7, 8] {
        let topic = format!("site/turin/dev-{device}/temp");
        fleet.push(plan(&format!("dev-{device}"), Version::V5, 2, topic, temperature, 50));
    }
    for machine in ["press", "lathe"] {
        let topic = format!("plant/{machine}/vibration");
        fleet.push(plan(machine, Version::V5, 1, topic, vibration, 10));
    }
    fleet.push(plan("gate", Version::V311, 0, "log/gate".to_owned(), text, 100));
    fleet.push(plan("stray-3", Version::V311, 1, "nobody/listens".to_owned(), text, 1_000));
    fleet.push(plan("stray-5", Version::V5, 1, "nobody/listens".to_owned(), text, 1_000));
    fleet
}

fn plan(client_id: &str, version: Version, qos: u8, topic: String, payload: fn(u64) -> String, every_ms: u64) -> Plan {
    let every = Duration::from_millis(every_ms);
    Plan { client_id: client_id.to_owned(), version, qos, topic, payload, every }
}

fn temperature(n: u64) -> String {
    let temp = 20.0 + fastrand::f64() * 5.0;
    format!(r#"{{"ts":{},"n":{n},"temp":{temp:.2},"battery":3.7}}"#, clock::wall_ms())
}

/// Every tenth reading is no number, and a field comes that nobody declared.
fn broken_temperature(n: u64) -> String {
    if n.is_multiple_of(10) {
        return format!(r#"{{"ts":{},"n":{n},"temp":"sensor fault"}}"#, clock::wall_ms());
    }
    format!(r#"{{"ts":{},"n":{n},"temp":19.5,"firmware":"1.0.3"}}"#, clock::wall_ms())
}

fn vibration(n: u64) -> String {
    let [x, y, z] = [fastrand::f64(), fastrand::f64(), fastrand::f64()];
    format!("{n},{x:.4},{y:.4},{z:.4}")
}

fn text(n: u64) -> String {
    format!("{n} door opened")
}

/// Starts a device.
pub(super) fn spawn(device: Device) -> JoinHandle<Result<Tally>> {
    tokio::spawn(device.run())
}

impl Device {
    pub(super) fn new(
        plan: Plan,
        address: SocketAddr,
        acknowledged: Arc<AtomicU64>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self { plan, address, acknowledged, stopping, ledger: Mutex::default() }
    }

    /// Publishes until it is told to stop, then waits until everything is answered.
    async fn run(self) -> Result<Tally> {
        match self.plan.version {
            Version::V311 => self.run_v311().await?,
            Version::V5 => self.run_v5().await?,
        }
        let ledger = self.ledger.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Tally {
            client_id: self.plan.client_id,
            qos: self.plan.qos,
            sent: ledger.sent,
            acknowledged: ledger.acknowledged,
            refused: ledger.refused,
        })
    }

    async fn run_v311(&self) -> Result<()> {
        use rumqttc::{AsyncClient, Event, MqttOptions, Packet};
        let mut options = MqttOptions::new(&self.plan.client_id, self.address.ip().to_string(), self.address.port());
        options.set_clean_session(false);
        let (client, mut events) = AsyncClient::new(options, QUEUE);
        let mut options = NetworkOptions::new();
        options.set_connection_timeout(CONNECT_SECS);
        events.set_network_options(options);
        let qos = match self.plan.qos {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        };
        let listen = async {
            loop {
                match events.poll().await? {
                    Event::Outgoing(Outgoing::Publish(packet_id)) => self.written(packet_id),
                    Event::Outgoing(Outgoing::Disconnect) => return Ok(()),
                    Event::Incoming(Packet::PubAck(ack)) => self.answered(ack.pkid, true),
                    Event::Incoming(Packet::PubComp(ack)) => self.answered(ack.pkid, true),
                    _ => {}
                }
            }
        };
        let publish = async {
            self.publish(|payload| client.publish(&self.plan.topic, qos, false, payload)).await?;
            client.disconnect().await?;
            Ok(())
        };
        let listening: Result<()> = tokio::try_join!(listen, publish).map(|((), ())| ());
        listening
    }

    async fn run_v5(&self) -> Result<()> {
        use v5::mqttbytes::QoS;
        use v5::mqttbytes::v5::{Packet, PubAckReason, PubRecReason};
        let mut options =
            v5::MqttOptions::new(&self.plan.client_id, self.address.ip().to_string(), self.address.port());
        options.set_clean_start(false);
        options.set_session_expiry_interval(Some(3_600));
        options.set_connection_timeout(CONNECT_SECS);
        let (client, mut events) = v5::AsyncClient::new(options, QUEUE);
        let qos = match self.plan.qos {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        };
        let listen = async {
            loop {
                match events.poll().await? {
                    v5::Event::Outgoing(Outgoing::Publish(packet_id)) => self.written(packet_id),
                    v5::Event::Outgoing(Outgoing::Disconnect) => return Ok(()),
                    v5::Event::Incoming(Packet::PubAck(ack)) => {
                        self.answered(ack.pkid, ack.reason == PubAckReason::Success);
                    }
                    v5::Event::Incoming(Packet::PubRec(ack)) if ack.reason != PubRecReason::Success => {
                        self.answered(ack.pkid, false);
                    }
                    v5::Event::Incoming(Packet::PubComp(ack)) => self.answered(ack.pkid, true),
                    _ => {}
                }
            }
        };
        let publish = async {
            self.publish(|payload| client.publish(&self.plan.topic, qos, false, payload)).await?;
            client.disconnect().await?;
            Ok(())
        };
        let listening: Result<()> = tokio::try_join!(listen, publish).map(|((), ())| ());
        listening
    }

    /// Publishes at the device's pace; returns when everything is answered.
    async fn publish<F, E>(&self, publish: impl Fn(String) -> F) -> Result<()>
    where
        F: Future<Output = Result<(), E>>,
        E: std::error::Error + Send + Sync + 'static,
    {
        let mut ticks = tokio::time::interval(self.plan.every);
        let mut stopping = self.stopping.clone();
        for n in 0.. {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = stopping.wait_for(|stop| *stop) => break,
            }
            let payload = (self.plan.payload)(n);
            {
                let mut ledger = self.ledger();
                ledger.sent.insert(n, payload.clone());
                ledger.queued.push_back(n);
            }
            publish(payload).await?;
        }
        let deadline = clock::now() + ANSWERED_WITHIN;
        while !self.is_answered() {
            if clock::now() > deadline {
                bail!("{} was not told about everything it sent", self.plan.client_id);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// The client wrote a PUBLISH, in the order in which they were queued. One that is written again is known already.
    fn written(&self, packet_id: u16) {
        let mut ledger = self.ledger();
        if packet_id != 0 && ledger.unanswered.contains_key(&packet_id) {
            return;
        }
        if let Some(n) = ledger.queued.pop_front()
            && packet_id != 0
        {
            ledger.unanswered.insert(packet_id, n);
        }
    }

    fn answered(&self, packet_id: u16, is_accepted: bool) {
        let mut ledger = self.ledger();
        let Some(n) = ledger.unanswered.remove(&packet_id) else { return };
        if is_accepted {
            ledger.acknowledged.insert(n);
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        } else {
            ledger.refused.insert(n);
        }
    }

    fn is_answered(&self) -> bool {
        let ledger = self.ledger();
        ledger.queued.is_empty() && ledger.unanswered.is_empty()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
