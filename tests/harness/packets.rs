//! Just enough of MQTT to be a device, written apart from the broker's codec so that a mistake there is not repeated here.
//!
//! Writers append one packet to a buffer; [`next_reply`] reads one packet that a broker sends to a publisher.

use bytes::{Buf, BufMut};

/// Protocol of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1, protocol level 4.
    V4,
    /// MQTT 5.0, protocol level 5.
    V5,
}

/// A CONNECT.
#[derive(Clone, Debug)]
pub struct Connect<'a> {
    /// Client Identifier.
    pub client_id: &'a str,
    /// Clean Session (3.1.1) or Clean Start (5.0).
    pub clean_start: bool,
    /// Keep Alive in seconds, 0 for none.
    pub keep_alive_secs: u16,
    /// 5.0 only: how long the session outlives the connection.
    pub session_expiry_secs: u32,
    /// Topic and payload of the Will Message, QoS 1.
    pub will: Option<(&'a str, &'a [u8])>,
    /// User name and password.
    pub login: Option<(&'a str, &'a str)>,
}

impl<'a> Connect<'a> {
    /// A session that begins clean and ends with its connection.
    pub fn clean(client_id: &'a str) -> Self {
        Self { client_id, clean_start: true, keep_alive_secs: 0, session_expiry_secs: 0, will: None, login: None }
    }

    /// A session that outlives its connections, as a device that must not lose QoS 2 state uses.
    pub fn persistent(client_id: &'a str) -> Self {
        Self { clean_start: false, session_expiry_secs: 3_600, ..Self::clean(client_id) }
    }
}

/// A PUBLISH.
#[derive(Clone, Copy, Debug)]
pub struct Publish<'a> {
    /// Topic Name.
    pub topic: &'a str,
    /// Application Message.
    pub payload: &'a [u8],
    /// 0, 1 or 2.
    pub qos: u8,
    /// Packet Identifier; not sent with QoS 0.
    pub packet_id: u16,
    /// Whether this is sent again.
    pub dup: bool,
    /// RETAIN flag.
    pub retain: bool,
}

impl<'a> Publish<'a> {
    /// A first, not retained PUBLISH.
    pub fn new(topic: &'a str, payload: &'a [u8], qos: u8, packet_id: u16) -> Self {
        Self { topic, payload, qos, packet_id, dup: false, retain: false }
    }
}

/// Writes CONNECT.
pub fn connect(version: Version, packet: &Connect<'_>, out: &mut Vec<u8>) {
    let mut body = Vec::new();
    put_binary(b"MQTT", &mut body);
    body.put_u8(if version == Version::V5 { 5 } else { 4 });
    let will_flags = if packet.will.is_some() { 0b0000_1100 } else { 0 };
    let login_flags = if packet.login.is_some() { 0b1100_0000 } else { 0 };
    body.put_u8(login_flags | will_flags | (u8::from(packet.clean_start) << 1));
    body.put_u16(packet.keep_alive_secs);
    if version == Version::V5 {
        if packet.session_expiry_secs > 0 {
            body.put_slice(&[5, 0x11]);
            body.put_u32(packet.session_expiry_secs);
        } else {
            body.put_u8(0);
        }
    }
    put_binary(packet.client_id.as_bytes(), &mut body);
    if let Some((topic, payload)) = packet.will {
        if version == Version::V5 {
            body.put_u8(0);
        }
        put_binary(topic.as_bytes(), &mut body);
        put_binary(payload, &mut body);
    }
    if let Some((user, password)) = packet.login {
        put_binary(user.as_bytes(), &mut body);
        put_binary(password.as_bytes(), &mut body);
    }
    put_packet(0x10, &body, out);
}

/// Writes PUBLISH.
pub fn publish(version: Version, packet: &Publish<'_>, out: &mut Vec<u8>) {
    let id_bytes = if packet.qos > 0 { 2 } else { 0 };
    let property_bytes = usize::from(version == Version::V5);
    out.put_u8(0x30 | (u8::from(packet.dup) << 3) | (packet.qos << 1) | u8::from(packet.retain));
    put_length(2 + packet.topic.len() + id_bytes + property_bytes + packet.payload.len(), out);
    put_binary(packet.topic.as_bytes(), out);
    if packet.qos > 0 {
        out.put_u16(packet.packet_id);
    }
    if version == Version::V5 {
        out.put_u8(0);
    }
    out.put_slice(packet.payload);
}

/// Writes PUBREL.
pub fn pubrel(packet_id: u16, out: &mut Vec<u8>) {
    put_packet(0x62, &packet_id.to_be_bytes(), out);
}

/// Writes SUBSCRIBE of one filter at QoS 1.
pub fn subscribe(version: Version, packet_id: u16, filter: &str, out: &mut Vec<u8>) {
    let mut body = Vec::new();
    body.put_u16(packet_id);
    if version == Version::V5 {
        body.put_u8(0);
    }
    put_binary(filter.as_bytes(), &mut body);
    body.put_u8(1);
    put_packet(0x82, &body, out);
}

/// Writes PINGREQ.
pub fn pingreq(out: &mut Vec<u8>) {
    out.put_slice(&[0xC0, 0]);
}

/// Writes a DISCONNECT that ends the connection normally.
pub fn disconnect(out: &mut Vec<u8>) {
    out.put_slice(&[0xE0, 0]);
}

/// What a broker answers a publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// CONNACK.
    ConnAck {
        /// Session Present.
        session_present: bool,
        /// Return code (3.1.1) or Reason Code (5.0); 0 is success.
        code: u8,
    },
    /// PUBACK.
    PubAck {
        /// Of the PUBLISH.
        packet_id: u16,
        /// Reason Code; 0 with 3.1.1.
        code: u8,
    },
    /// PUBREC.
    PubRec {
        /// Of the PUBLISH.
        packet_id: u16,
        /// Reason Code; 0 with 3.1.1.
        code: u8,
    },
    /// PUBCOMP.
    PubComp {
        /// Of the PUBREL.
        packet_id: u16,
        /// Reason Code; 0 with 3.1.1.
        code: u8,
    },
    /// SUBACK; the codes of its filters, with 5.0 after its properties.
    SubAck {
        /// Of the SUBSCRIBE.
        packet_id: u16,
        /// Code of the last filter.
        code: u8,
    },
    /// PINGRESP.
    PingResp,
    /// DISCONNECT, 5.0 only.
    Disconnect {
        /// Reason Code.
        code: u8,
    },
    /// Anything that no broker sends to a client that never subscribed: its first byte.
    Unexpected(u8),
}

/// The first packet of `bytes` and its length, or `None` while it is not complete.
pub fn next_reply(bytes: &[u8]) -> Option<(Reply, usize)> {
    let (body_bytes, header_bytes) = read_length(bytes)?;
    let end = header_bytes.checked_add(body_bytes)?;
    let body = bytes.get(header_bytes..end)?;
    Some((reply(*bytes.first()?, body), end))
}

fn reply(first: u8, body: &[u8]) -> Reply {
    let packet_id = body.get(..2).map_or(0, |mut id| id.get_u16());
    let code = body.get(2).copied().unwrap_or(0);
    match (first, body) {
        (0x20, [flags, code, ..]) => Reply::ConnAck { session_present: flags & 1 == 1, code: *code },
        (0x40, [_, _, ..]) => Reply::PubAck { packet_id, code },
        (0x50, [_, _, ..]) => Reply::PubRec { packet_id, code },
        (0x70, [_, _, ..]) => Reply::PubComp { packet_id, code },
        (0x90, [_, _, .., last]) => Reply::SubAck { packet_id, code: *last },
        (0xD0, []) => Reply::PingResp,
        (0xE0, _) => Reply::Disconnect { code: body.first().copied().unwrap_or(0) },
        _ => Reply::Unexpected(first),
    }
}

/// Remaining Length and the bytes before the body.
pub(crate) fn read_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0;
    for (index, byte) in bytes.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((length, index + 2));
        }
    }
    None
}

fn put_packet(first: u8, body: &[u8], out: &mut Vec<u8>) {
    out.put_u8(first);
    put_length(body.len(), out);
    out.put_slice(body);
}

fn put_length(mut length: usize, out: &mut Vec<u8>) {
    loop {
        let low = (length & 0x7F) as u8;
        length >>= 7;
        out.put_u8(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
}

fn put_binary(bytes: &[u8], out: &mut Vec<u8>) {
    let length = u16::try_from(bytes.len()).expect("a field of a test is shorter than 64 KiB");
    out.put_u16(length);
    out.put_slice(bytes);
}
