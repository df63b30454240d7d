//! What a client sends a broker, read by hand as [`packets`](crate::packets) writes and reads a device's side: apart from
//! every other codec here, so that a mistake there is not repeated.

use crate::packets::Version;

/// A packet of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientPacket {
    /// CONNECT.
    Connect(ReceivedConnect),
    /// SUBSCRIBE.
    Subscribe {
        /// To be answered with.
        packet_id: u16,
        /// Topic Filters and what QoS each asks for.
        filters: Vec<(String, u8)>,
    },
    /// PUBACK.
    PubAck(u16),
    /// PUBREC.
    PubRec(u16),
    /// PUBCOMP.
    PubComp(u16),
    /// PINGREQ.
    PingReq,
    /// DISCONNECT.
    Disconnect,
    /// Anything that a subscriber does not send: its bytes.
    Unexpected(Vec<u8>),
}

/// What a CONNECT says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedConnect {
    /// Protocol level.
    pub version: Version,
    /// Clean Session (3.1.1) or Clean Start (5.0).
    pub clean_start: bool,
    /// Keep Alive in seconds.
    pub keep_alive_secs: u16,
    /// Client Identifier.
    pub client_id: String,
    /// User Name, if there is one.
    pub username: Option<String>,
    /// Password, if there is one.
    pub password: Option<Vec<u8>>,
}

/// The first packet of `bytes` and its length, or `None` while it is not complete. `version` is that of the connection; a
/// CONNECT says its own.
pub fn next_packet(version: Version, bytes: &[u8]) -> Option<(ClientPacket, usize)> {
    let (body_bytes, header_bytes) = crate::packets::read_length(bytes)?;
    let end = header_bytes.checked_add(body_bytes)?;
    let body = bytes.get(header_bytes..end)?;
    let unexpected = || ClientPacket::Unexpected(bytes[..end].to_vec());
    Some((packet(version, *bytes.first()?, body).unwrap_or_else(unexpected), end))
}

fn packet(version: Version, first: u8, body: &[u8]) -> Option<ClientPacket> {
    let mut body = Body(body);
    let packet = match first {
        0x10 => ClientPacket::Connect(connect(&mut body)?),
        0x82 => subscribe(version, &mut body)?,
        0x40 => ClientPacket::PubAck(acknowledgement(&mut body)?),
        0x50 => ClientPacket::PubRec(acknowledgement(&mut body)?),
        0x70 => ClientPacket::PubComp(acknowledgement(&mut body)?),
        0xC0 => ClientPacket::PingReq,
        0xE0 => ClientPacket::Disconnect,
        _ => return None,
    };
    Some(packet)
}

fn connect(body: &mut Body<'_>) -> Option<ReceivedConnect> {
    if body.binary()? != b"MQTT" {
        return None;
    }
    let version = match body.byte()? {
        4 => Version::V4,
        5 => Version::V5,
        _ => return None,
    };
    let flags = body.byte()?;
    let keep_alive_secs = body.integer()?;
    body.properties(version)?;
    let client_id = body.text()?;
    if flags & 0b0000_0100 != 0 {
        return None; // a subscriber has no Will Message
    }
    let username = if flags & 0b1000_0000 != 0 { Some(body.text()?) } else { None };
    let password = if flags & 0b0100_0000 != 0 { Some(body.binary()?.to_vec()) } else { None };
    Some(ReceivedConnect { version, clean_start: flags & 2 != 0, keep_alive_secs, client_id, username, password })
}

fn subscribe(version: Version, body: &mut Body<'_>) -> Option<ClientPacket> {
    let packet_id = body.integer()?;
    body.properties(version)?;
    let mut filters = Vec::new();
    while !body.0.is_empty() {
        filters.push((body.text()?, body.byte()? & 0b11));
    }
    Some(ClientPacket::Subscribe { packet_id, filters })
}

/// The Packet Identifier, unless it is refused: a Reason Code of 5.0 from 0x80.
fn acknowledgement(body: &mut Body<'_>) -> Option<u16> {
    let packet_id = body.integer()?;
    body.0.first().is_none_or(|code| *code < 0x80).then_some(packet_id)
}

/// What is left of a body.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.bytes(1)?[0])
    }

    fn integer(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(2)?.try_into().ok()?))
    }

    fn binary(&mut self) -> Option<&'a [u8]> {
        let count = self.integer()?;
        self.bytes(count.into())
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.binary()?.to_vec()).ok()
    }

    /// Skips properties, which 3.1.1 has not.
    fn properties(&mut self, version: Version) -> Option<()> {
        if version == Version::V5 {
            // The length of the properties of a test fits into one byte.
            let count = self.byte()?;
            self.bytes(count.into())?;
        }
        Some(())
    }
}
