//! A device that speaks bytes, and storage that answers when told to. Time stands still unless everybody waits.
#![allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "each test binary uses its own part")]

use std::time::Duration;

use forebay_broker::config::{Limits, ListenerConfig};
use forebay_broker::inbound::{Inbound, InboundPublish, Outcome};
use forebay_broker::{Broker, Peer, StoredSession};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

/// Nothing that a test waits for takes longer, in its own time.
const PATIENCE: Duration = Duration::from_secs(60);

/// CONNACK of 3.1.1.
pub const CONNACK: &[u8] = &[0x20, 2, 0, 0];
/// CONNACK of 3.1.1 with Session Present.
pub const CONNACK_PRESENT: &[u8] = &[0x20, 2, 1, 0];
pub const PINGREQ: &[u8] = &[0xC0, 0];
pub const PINGRESP: &[u8] = &[0xD0, 0];
/// DISCONNECT, normal.
pub const DISCONNECT: &[u8] = &[0xE0, 0];

/// Starts a broker.
pub fn start(limits: Limits) -> (Broker, Storage) {
    restart(limits, Vec::new())
}

/// Starts a broker with what storage remembers.
pub fn restart(limits: Limits, stored: Vec<StoredSession>) -> (Broker, Storage) {
    let (broker, inbound) = Broker::new(limits, stored);
    (broker, Storage { inbound })
}

/// Whoever stores.
pub struct Storage {
    pub inbound: mpsc::Receiver<Inbound>,
}

impl Storage {
    pub async fn next(&mut self) -> Inbound {
        tokio::time::timeout(PATIENCE, self.inbound.recv()).await.expect("a submission").expect("a broker")
    }

    pub async fn next_publish(&mut self) -> InboundPublish {
        let inbound = self.next().await;
        assert_eq!(kind_of(&inbound), "publish");
        let Inbound::Publish(publish) = inbound else { unreachable!("asserted") };
        publish
    }

    /// Answers the next submission, which must be of this kind: "publish", "release", "open" or "close".
    pub async fn answer(&mut self, kind: &str, outcome: Outcome) {
        let inbound = self.next().await;
        assert_eq!(kind_of(&inbound), kind);
        resolve(inbound, outcome);
    }

    pub async fn expect_nothing(&mut self) {
        let waited = tokio::time::timeout(Duration::from_millis(100), self.inbound.recv()).await;
        assert!(waited.is_err(), "{waited:?}");
    }

    /// Stores everything from here on.
    pub fn store_all(mut self) {
        tokio::spawn(async move {
            while let Some(inbound) = self.inbound.recv().await {
                resolve(inbound, Outcome::Stored);
            }
        });
    }
}

pub fn kind_of(inbound: &Inbound) -> &'static str {
    match inbound {
        Inbound::Publish(_) => "publish",
        Inbound::Release { .. } => "release",
        Inbound::OpenSession { .. } => "open",
        Inbound::CloseSession { .. } => "close",
    }
}

pub fn resolve(inbound: Inbound, outcome: Outcome) {
    match inbound {
        Inbound::Publish(InboundPublish { ticket, .. })
        | Inbound::Release { ticket, .. }
        | Inbound::OpenSession { ticket, .. }
        | Inbound::CloseSession { ticket, .. } => ticket.resolve(outcome),
    }
}

/// A client that sends whatever it is told.
pub struct Device<S = DuplexStream> {
    pub socket: S,
}

impl Device {
    pub fn dial(broker: &Broker) -> Self {
        Self::dial_from(broker, "test", &ListenerConfig::default())
    }

    /// From an address, to a listener of this configuration.
    pub fn dial_from(broker: &Broker, peer: impl Into<Peer>, config: &ListenerConfig) -> Self {
        let (socket, server) = tokio::io::duplex(64 * 1024);
        let (broker, peer, config) = (broker.clone(), peer.into(), config.clone());
        tokio::spawn(async move { broker.serve_as(server, peer, &config).await });
        Self { socket }
    }

    /// A 3.1.1 client with Clean Session.
    pub async fn connected_4(broker: &Broker, client_id: &str) -> Self {
        let mut device = Self::dial(broker);
        device.send(&connect_4(client_id, 0x02, 0)).await;
        device.expect(CONNACK).await;
        device
    }

    /// A 5.0 client with Clean Start and no session expiry.
    pub async fn connected_5(broker: &Broker, client_id: &str) -> Self {
        let mut device = Self::dial(broker);
        device.send(&connect_5(client_id, 0x02, 0, &[])).await;
        device.expect_connack_5(0x00).await;
        device
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Device<S> {
    pub async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.expect("an open connection");
    }

    pub async fn expect(&mut self, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        let read = tokio::time::timeout(PATIENCE, self.socket.read_exact(&mut got)).await;
        let read = read.expect("an answer in time");
        assert!(read.is_ok(), "closed instead of {bytes:02x?}");
        assert_eq!(got, bytes, "\n got {got:02x?}\nwant {bytes:02x?}");
    }

    /// Gives Session Present and the properties.
    pub async fn expect_connack_5(&mut self, reason: u8) -> (bool, Vec<u8>) {
        let packet = self.packet().await.expect("a CONNACK");
        assert_eq!(packet[0], 0x20, "{packet:02x?}");
        assert_eq!(packet[3], reason, "{packet:02x?}");
        (packet[2] == 1, packet[5..].to_vec())
    }

    pub async fn expect_disconnect_5(&mut self, reason: u8) {
        let packet = self.packet().await.expect("a DISCONNECT");
        assert_eq!((packet[0], packet[2]), (0xE0, reason), "{packet:02x?}");
        self.expect_closed().await;
    }

    pub async fn expect_closed(&mut self) {
        assert_eq!(self.packet().await, None);
    }

    pub async fn expect_nothing(&mut self) {
        let waited = tokio::time::timeout(Duration::from_millis(100), self.socket.read_u8()).await;
        assert!(waited.is_err(), "{waited:?}");
    }

    /// The next packet, of less than 128 bytes; `None` at the end of the stream.
    pub async fn packet(&mut self) -> Option<Vec<u8>> {
        let read = async {
            let mut packet = vec![self.socket.read_u8().await.ok()?, self.socket.read_u8().await.ok()?];
            packet.resize(2 + usize::from(packet[1]), 0);
            self.socket.read_exact(&mut packet[2..]).await.ok()?;
            Some(packet)
        };
        tokio::time::timeout(Duration::from_secs(3_600), read).await.expect("a packet or the end")
    }
}

pub fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut length = body.len();
    loop {
        let more = if length > 127 { 0x80 } else { 0 };
        bytes.push((length & 0x7F) as u8 | more);
        length >>= 7;
        if length == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

/// CONNECT of 3.1.1. Flags: 0x02 Clean Session, 0x04 Will (topic "w", payload "gone").
pub fn connect_4(client_id: &str, flags: u8, keep_alive: u16) -> Vec<u8> {
    let mut body = [text("MQTT"), vec![4, flags], keep_alive.to_be_bytes().to_vec(), text(client_id)].concat();
    if flags & 0x04 != 0 {
        body.extend([text("w"), text("gone")].concat());
    }
    frame(0x10, &body)
}

/// CONNECT of 5.0. Flags as in [`connect_4`].
pub fn connect_5(client_id: &str, flags: u8, keep_alive: u16, properties: &[u8]) -> Vec<u8> {
    connect_5_with_will(client_id, flags, keep_alive, properties, &[])
}

pub fn connect_5_with_will(client_id: &str, flags: u8, keep_alive: u16, properties: &[u8], will: &[u8]) -> Vec<u8> {
    let length = vec![properties.len() as u8];
    let head = [text("MQTT"), vec![5, flags], keep_alive.to_be_bytes().to_vec()].concat();
    let mut body = [head, length, properties.to_vec(), text(client_id)].concat();
    if flags & 0x04 != 0 {
        body.push(will.len() as u8);
        body.extend([will.to_vec(), text("w"), text("gone")].concat());
    }
    frame(0x10, &body)
}

/// CONNECT of 3.1.1 or 5.0 with Clean Session, a User Name and a Password.
pub fn login(version: u8, client_id: &str, user: &str, password: &str) -> Vec<u8> {
    let properties: &[u8] = if version == 5 { &[0] } else { &[] };
    let head = [&text("MQTT")[..], &[version, 0xC2, 0, 0], properties].concat();
    frame(0x10, &[head, text(client_id), text(user), text(password)].concat())
}

/// Session Expiry Interval.
pub fn session_expiry(secs: u32) -> Vec<u8> {
    [&[0x11][..], &secs.to_be_bytes()].concat()
}

/// PUBLISH of 3.1.1 with payload "21.5". Without Packet Identifier where it is 0.
pub fn publish_4(topic: &str, qos: u8, packet_id: u16) -> Vec<u8> {
    let id = if qos > 0 { packet_id.to_be_bytes().to_vec() } else { Vec::new() };
    frame(0x30 | qos << 1, &[text(topic), id, b"21.5".to_vec()].concat())
}

/// PUBLISH of 5.0 with payload "21.5".
pub fn publish_5(topic: &str, qos: u8, packet_id: u16, properties: &[u8]) -> Vec<u8> {
    let id = if qos > 0 { packet_id.to_be_bytes().to_vec() } else { Vec::new() };
    let properties = [&[properties.len() as u8], properties].concat();
    frame(0x30 | qos << 1, &[text(topic), id, properties, b"21.5".to_vec()].concat())
}

/// PUBREL, and with other first bytes any other packet of an identifier only.
pub fn with_id(first: u8, packet_id: u16) -> Vec<u8> {
    frame(first, &packet_id.to_be_bytes())
}

pub const PUBACK: u8 = 0x40;
pub const PUBREC: u8 = 0x50;
pub const PUBREL: u8 = 0x62;
pub const PUBCOMP: u8 = 0x70;

/// An acknowledgement of 5.0 with a reason.
pub fn with_reason(first: u8, packet_id: u16, reason: u8) -> Vec<u8> {
    let [high, low] = packet_id.to_be_bytes();
    frame(first, &[high, low, reason])
}
