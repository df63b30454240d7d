//! Messages for a broker that is already there: published on one connection, many in flight, until each is acknowledged.

use std::collections::VecDeque;
use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};

use crate::device::Device;
use crate::packets::{self, Connect, Publish, Reply, Version};

/// Messages in flight.
const WINDOW: usize = 200;
/// The same from the first one of QoS 2: beyond its `max_inflight_messages`, mosquitto ends the connection.
const WINDOW_QOS_2: usize = 20;
/// A write is at most so long, and one message: a broker that answers meanwhile must not be waited for.
const WRITE_BYTES: usize = 64 * 1024;

/// A message to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Topic Name.
    pub topic: String,
    /// Application Message.
    pub payload: Vec<u8>,
    /// 0, 1 or 2.
    pub qos: u8,
    /// RETAIN flag.
    pub retain: bool,
}

impl Message {
    /// One that is not retained.
    pub fn new(topic: &str, payload: impl Into<Vec<u8>>, qos: u8) -> Self {
        Self { topic: topic.to_owned(), payload: payload.into(), qos, retain: false }
    }

    /// The same, retained.
    #[must_use]
    pub fn retained(mut self) -> Self {
        self.retain = true;
        self
    }
}

/// Publishes everything in its order and waits until all of it is acknowledged; of QoS 0, until the broker has read it.
pub fn publish(addr: SocketAddr, messages: impl IntoIterator<Item = Message>) -> Result<()> {
    // rumqttd wants a Keep Alive.
    publish_as(addr, &Connect { keep_alive_secs: 60, ..Connect::clean("feed") }, messages)
}

/// The same by a client that says who it is.
pub fn publish_as(addr: SocketAddr, connect: &Connect<'_>, messages: impl IntoIterator<Item = Message>) -> Result<()> {
    let mut device = Device::connect(addr, Version::V4, connect)?;
    let mut messages = messages.into_iter().peekable();
    let mut in_flight = VecDeque::new();
    let (mut packet_id, mut window) = (0, WINDOW);
    while messages.peek().is_some() || !in_flight.is_empty() {
        // Written at once: a packet a system call would take most of the time.
        let mut bytes = Vec::new();
        while let Some(message) = messages.peek() {
            if message.qos == 2 {
                window = WINDOW_QOS_2;
            }
            if in_flight.len() >= window || bytes.len() > WRITE_BYTES {
                break;
            }
            let Some(message) = messages.next() else { break };
            packet_id = packet_id % 60_000 + 1;
            let packet = Publish::new(&message.topic, &message.payload, message.qos, packet_id);
            packets::publish(Version::V4, &Publish { retain: message.retain, ..packet }, &mut bytes);
            if message.qos > 0 {
                in_flight.push_back(packet_id);
            }
        }
        device.send(&bytes)?;
        if !in_flight.is_empty() {
            complete_one(&mut device, &mut in_flight)?;
        }
    }
    device.ping()?;
    device.disconnect()
}

/// Reads acknowledgements until one message is complete.
fn complete_one(device: &mut Device, in_flight: &mut VecDeque<u16>) -> Result<()> {
    loop {
        match device.reply()? {
            Reply::PubAck { packet_id, code: 0 } | Reply::PubComp { packet_id, code: 0 } => {
                let position = in_flight.iter().position(|waiting| *waiting == packet_id);
                ensure!(position.is_some_and(|at| in_flight.remove(at).is_some()), "{packet_id} is not in flight");
                return Ok(());
            }
            Reply::PubRec { packet_id, code: 0 } => {
                let mut bytes = Vec::new();
                packets::pubrel(packet_id, &mut bytes);
                device.send(&bytes)?;
            }
            other => bail!("the broker answered a publisher with {other:?}"),
        }
    }
}
