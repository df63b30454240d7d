//! The one promise, under `kill -9`: what was acknowledged is in the dataset, and QoS 2 is there once.
//!
//! Devices with persistent sessions publish as fast as their window allows. After a random number of acknowledgements the
//! agent is killed and started again on the same directory; the devices come back and send again, with DUP, what was not
//! acknowledged, as a real client does. `FOREBAY_KILLS` sets how often, `FOREBAY_SEED` repeats a run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::{Result, bail};
use forebay_tests::device::Device;
use forebay_tests::packets::{self, Connect, Publish, Reply, Version};

use crate::{finish, sealing_soon, start};

const DEVICES: u32 = 12;
const WINDOW: usize = 16;
/// A round is cut after at most so many acknowledgements of all devices together.
const ACKS_A_ROUND_MAX: u32 = 3_000;

#[test]
fn what_was_acknowledged_survives_kill_9_and_qos_2_is_stored_once() {
    let kills: u32 = from_env("FOREBAY_KILLS", 3);
    let seed: u64 = from_env("FOREBAY_SEED", fastrand::u64(..));
    println!("FOREBAY_KILLS={kills} FOREBAY_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let config = sealing_soon(dir.path());
    let mut devices: Vec<Publisher> = (0..DEVICES).map(Publisher::new).collect();

    for _ in 0..kills {
        let agent = start(&config);
        let cut_after = random.u32(1..ACKS_A_ROUND_MAX);
        devices = publish_until(devices, agent.mqtt_addr(), cut_after, || agent.kill().expect("no ERROR in the log"));
    }
    let agent = start(&config);
    for device in &mut devices {
        device.settle(agent.mqtt_addr()).expect("the last round acknowledges everything");
    }
    let rows = finish(agent, &config, "messages");

    let mut stored: BTreeMap<String, u32> = BTreeMap::new();
    for payload in rows.texts("payload").unwrap() {
        *stored.entry(payload).or_default() += 1;
    }
    let acknowledged: Vec<&String> = devices.iter().flat_map(|device| &device.acknowledged).collect();
    let lost = acknowledged.iter().filter(|payload| !stored.contains_key(**payload)).count();
    let twice = |qos: u8| {
        let prefix = format!("qos{qos}");
        stored.iter().filter(|(payload, count)| payload.starts_with(&prefix) && **count > 1).count()
    };
    println!(
        "kill -9 × {kills}: acknowledged {}, in dataset {}, lost {lost}; stored twice: QoS 1 {}, QoS 2 {}",
        acknowledged.len(),
        rows.len(),
        twice(1),
        twice(2),
    );
    assert_eq!(lost, 0, "acknowledged messages are in the dataset");
    assert_eq!(twice(2), 0, "QoS 2 is stored once");
    assert_eq!(stored.len(), acknowledged.len(), "nothing is stored that was not sent");
    assert!(devices.iter().all(|device| device.sessions_lost == 0), "sessions survive kill -9");
}

/// Lets every device publish, runs `cut` after `acks` acknowledgements, and answers the devices when all are cut off.
fn publish_until(devices: Vec<Publisher>, addr: SocketAddr, acks: u32, cut: impl FnOnce()) -> Vec<Publisher> {
    let (acknowledged, progress) = mpsc::channel();
    let running: Vec<_> = devices
        .into_iter()
        .map(|mut device| {
            let acknowledged = acknowledged.clone();
            thread::spawn(move || {
                // The error is the cut connection, which is what this story is about.
                let _ = device.publish_on(addr, &acknowledged);
                device
            })
        })
        .collect();
    drop(acknowledged);
    let seen = progress.iter().take(acks as usize).count();
    cut();
    drop(progress);
    assert_eq!(seen, acks as usize, "devices publish until the agent is killed");
    running.into_iter().map(|device| device.join().expect("a device does not panic")).collect()
}

fn from_env<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().map_or(default, |text| text.parse().ok().unwrap_or_else(|| panic!("{name}={text}")))
}

/// A device that forgets nothing which is not acknowledged.
struct Publisher {
    client_id: String,
    topic: String,
    version: Version,
    qos: u8,
    number: u32,
    connected_before: bool,
    sessions_lost: u32,
    in_flight: Vec<InFlight>,
    acknowledged: Vec<String>,
}

struct InFlight {
    packet_id: u16,
    payload: String,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Published,
    Released,
}

impl Publisher {
    fn new(index: u32) -> Self {
        Self {
            client_id: format!("device-{index}"),
            topic: format!("site/{index}/temp"),
            version: if index.is_multiple_of(2) { Version::V4 } else { Version::V5 },
            qos: if index % 4 < 2 { 1 } else { 2 },
            number: 0,
            connected_before: false,
            sessions_lost: 0,
            in_flight: Vec::new(),
            acknowledged: Vec::new(),
        }
    }

    /// Publishes on one connection until it breaks; tells each acknowledgement to `acknowledged`.
    fn publish_on(&mut self, addr: SocketAddr, acknowledged: &Sender<()>) -> Result<()> {
        let mut connection = self.connect(addr)?;
        loop {
            self.fill_window(&mut connection)?;
            if self.handle_reply(&mut connection)? {
                acknowledged.send(())?;
            }
        }
    }

    /// Connects once more and completes what is in flight.
    fn settle(&mut self, addr: SocketAddr) -> Result<()> {
        let mut connection = self.connect(addr)?;
        while !self.in_flight.is_empty() {
            self.handle_reply(&mut connection)?;
        }
        connection.disconnect()
    }

    /// Connects and sends again what was in flight, in its order [MQTT-4.4.0-1].
    fn connect(&mut self, addr: SocketAddr) -> Result<Device> {
        let mut connection = Device::connect(addr, self.version, &Connect::persistent(&self.client_id))?;
        if self.connected_before && !connection.session_present {
            self.sessions_lost += 1;
        }
        self.connected_before = true;
        for index in 0..self.in_flight.len() {
            self.send(index, &mut connection)?;
        }
        Ok(connection)
    }

    fn fill_window(&mut self, connection: &mut Device) -> Result<()> {
        while self.in_flight.len() < WINDOW {
            self.number += 1;
            let payload = format!("qos{} {} {:08}", self.qos, self.client_id, self.number);
            let packet_id = (self.number % 60_000) as u16 + 1;
            self.in_flight.push(InFlight { packet_id, payload, stage: Stage::New });
            self.send(self.in_flight.len() - 1, connection)?;
        }
        Ok(())
    }

    fn send(&mut self, index: usize, connection: &mut Device) -> Result<()> {
        let message = &mut self.in_flight[index];
        if message.stage == Stage::Released {
            return send_pubrel(message.packet_id, connection);
        }
        let dup = message.stage == Stage::Published;
        // Noted before it is sent: whether a cut connection brought it over cannot be known.
        message.stage = Stage::Published;
        let packet = Publish::new(&self.topic, message.payload.as_bytes(), self.qos, message.packet_id);
        connection.publish(&Publish { dup, ..packet })
    }

    /// Reads one packet; whether it acknowledges that a message is stored.
    fn handle_reply(&mut self, connection: &mut Device) -> Result<bool> {
        match connection.reply()? {
            Reply::PubAck { packet_id, code: 0 } => {
                let message = self.in_flight.remove(self.position(packet_id)?);
                self.acknowledged.push(message.payload);
                Ok(true)
            }
            Reply::PubRec { packet_id, code: 0 } => {
                let index = self.position(packet_id)?;
                let message = &mut self.in_flight[index];
                let is_first = message.stage != Stage::Released;
                message.stage = Stage::Released;
                if is_first {
                    self.acknowledged.push(message.payload.clone());
                }
                send_pubrel(packet_id, connection)?;
                Ok(is_first)
            }
            // 0x92, Packet Identifier not found, completes it too: the PUBREL is sent again after its PUBCOMP was lost.
            Reply::PubComp { packet_id, code: 0 | 0x92 } => {
                self.in_flight.remove(self.position(packet_id)?);
                Ok(false)
            }
            other => bail!("{} got {other:?}", self.client_id),
        }
    }

    fn position(&self, packet_id: u16) -> Result<usize> {
        match self.in_flight.iter().position(|message| message.packet_id == packet_id) {
            Some(index) => Ok(index),
            None => bail!("{} got an answer to {packet_id}, which is not in flight", self.client_id),
        }
    }
}

fn send_pubrel(packet_id: u16, connection: &mut Device) -> Result<()> {
    let mut bytes = Vec::new();
    packets::pubrel(packet_id, &mut bytes);
    connection.send(&bytes)
}
