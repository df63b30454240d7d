//! A device that publishes as fast as its window allows and, cut off, sends again what was not acknowledged, as a real
//! client does.

use std::net::SocketAddr;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use forebay_tests::device::Device;
use forebay_tests::packets::{self, Connect, Publish, Reply, Version};

const WINDOW: usize = 16;

/// A device that forgets nothing which is not acknowledged.
pub(crate) struct Publisher {
    client_id: String,
    pub(crate) topic: String,
    version: Version,
    pub(crate) qos: u8,
    number: u32,
    connected_before: bool,
    pub(crate) sessions_lost: u32,
    in_flight: Vec<InFlight>,
    pub(crate) acknowledged: Vec<String>,
    /// Waits before each new message.
    pub(crate) pace: Duration,
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
    pub(crate) fn new(index: u32) -> Self {
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
            pace: Duration::ZERO,
        }
    }

    /// Publishes on one connection until it breaks; tells each acknowledgement to `acknowledged`.
    pub(crate) fn publish_on(&mut self, addr: SocketAddr, acknowledged: &Sender<()>) -> Result<()> {
        self.publish_while(addr, || acknowledged.send(()).is_ok())
    }

    /// The same as long as `go_on` says so after an acknowledgement.
    pub(crate) fn publish_while(&mut self, addr: SocketAddr, go_on: impl Fn() -> bool) -> Result<()> {
        let mut connection = self.connect(addr)?;
        loop {
            self.fill_window(&mut connection)?;
            if self.handle_reply(&mut connection)? && !go_on() {
                return Ok(());
            }
        }
    }

    /// Connects once more and completes what is in flight.
    pub(crate) fn settle(&mut self, addr: SocketAddr) -> Result<()> {
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
            thread::sleep(self.pace);
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

/// Lets every device publish on one connection, does `work` after so many acknowledgements, and answers the devices when
/// their connections are broken or nobody listens any more.
pub(crate) fn publish_meanwhile(
    devices: Vec<Publisher>,
    addr: SocketAddr,
    acks: usize,
    work: impl FnOnce(),
) -> Vec<Publisher> {
    let (acknowledged, progress) = mpsc::channel();
    let running: Vec<_> = devices
        .into_iter()
        .map(|mut device| {
            let acknowledged = acknowledged.clone();
            thread::spawn(move || {
                // An error is the connection that a kill cuts.
                let _ = device.publish_on(addr, &acknowledged);
                device
            })
        })
        .collect();
    drop(acknowledged);
    assert_eq!(progress.iter().take(acks).count(), acks, "the devices publish");
    work();
    drop(progress);
    running.into_iter().map(|device| device.join().expect("a device does not panic")).collect()
}
