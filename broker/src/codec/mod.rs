//! Bytes to packets and back, for MQTT 3.1.1 and 5.0: strict, pure, and safe to point at strangers.
//!
//! Everything here runs before a client has proved who it is, so the argument is about what a stranger can make us do.
//!
//! * **A packet is found before it is read.** [`inspect`] decides from at most five bytes whether this is a packet that
//!   a client may send, with the flags it must have and small enough for us. A refused packet costs those five bytes.
//! * **A claimed length allocates nothing.** Lengths are only compared with what has already arrived; a buffer grows
//!   with bytes received, never with bytes promised.
//! * **A frame is decoded whole or refused.** [`decode`] gets exactly one packet; there is no "need more" inside it. A
//!   field that runs past its packet, properties that run past their Property Length, and bytes left over are errors.
//! * **What is decoded can be trusted.** Text is UTF-8 without U+0000, Topic Names have no wildcards, Packet Identifiers
//!   and Topic Aliases are not 0, flags agree with what follows. `session` never checks bytes, only state: it alone knows
//!   the Topic Alias Maximum, which Packet Identifiers are in use, and that a second CONNECT is one too many.
//! * **The hot path copies nothing.** Topic Name and payload of a PUBLISH share the frame's buffer.
//!
//! ```text
//! socket ─▶ BytesMut ─▶ next_frame ─▶ Bytes (one packet) ─▶ decode_connect, then decode(.., version) ─▶ Incoming
//!                       ≤ 5 bytes                           strict, zero-copy
//! socket ◀─ BytesMut ◀─ encode(.., version) ◀─ Outgoing
//! ```
//!
//! Statements such as `[MQTT-3.3.1-4]` are those of MQTT 5.0; where 3.1.1 has its own it is cited as `3.1.1
//! [MQTT-3.1.2-22]`.
//!
//! Reading order: [`frame`], `primitives` (the only place that takes bytes off a packet), `properties`, `shared` (what
//! both versions lay out alike), `v4`, `v5`, [`error`].

pub mod error;
pub mod frame;
mod primitives;
mod properties;
mod shared;
#[cfg(test)]
mod tests;
mod v4;
mod v5;

use bytes::{Bytes, BytesMut};

pub use error::CodecError;
pub use frame::{Frame, PACKET_BYTES_MAX, inspect, next_frame};

use crate::packet::{Connect, Incoming, Outgoing, ProtocolVersion};
use frame::PacketType;
use primitives::Reader;
use shared::Level;

/// Decodes the first packet of a connection, which must be a CONNECT `[MQTT-3.1.0-1]`, in the version it names.
///
/// `frame` is one whole packet, as [`next_frame`] gives it. Two rules are left to the session, since their answer is a
/// Connect Reason Code rather than a closed connection: an empty Client Identifier without Clean Session in 3.1.1
/// (3.1.1 `[MQTT-3.1.3-8]`), and an Authentication Method.
///
/// # Errors
/// Any [`CodecError`]; [`CodecError::connect_reason`] is what the CONNACK says, and [`answer_version`] how.
#[expect(clippy::needless_pass_by_value, reason = "symmetric with `decode`, which keeps a share of the frame")]
pub fn decode_connect(frame: Bytes) -> Result<Connect, CodecError> {
    let (packet_type, body) = frame::split(&frame)?;
    if packet_type != PacketType::Connect {
        return Err(CodecError::ConnectExpected);
    }
    let mut body = Reader::new(body);
    match shared::protocol_level(&mut body)? {
        Level::V311 => v4::connect(body),
        Level::V5 => v5::connect(body),
        Level::Other(level) => Err(CodecError::UnsupportedProtocolVersion { level }),
    }
}

/// The version in which to answer a CONNECT that [`decode_connect`] refused: 5.0 when its Protocol Version is 5, and
/// otherwise 3.1.1, whose four-byte CONNACK every older client understands.
pub fn answer_version(frame: &Bytes) -> ProtocolVersion {
    let level = frame::split(frame).and_then(|(_, body)| shared::protocol_level(&mut Reader::new(body)));
    match level {
        // A bridge sets the top bit to say that it is one.
        Ok(Level::V5 | Level::Other(0x85)) => ProtocolVersion::V5,
        _ => ProtocolVersion::V311,
    }
}

/// Decodes one packet of an established connection.
///
/// `frame` is one whole packet, as [`next_frame`] gives it; `version` is the connection's. A CONNECT is decoded too, so
/// that the session can refuse it as the second one `[MQTT-3.1.0-2]`.
///
/// # Errors
/// Any [`CodecError`]; [`CodecError::reason`] is what a DISCONNECT says.
pub fn decode(frame: Bytes, version: ProtocolVersion) -> Result<Incoming, CodecError> {
    let (packet_type, body) = frame::split(&frame)?;
    let body = Reader::new(body);
    match (packet_type, version) {
        (PacketType::Publish(flags), ProtocolVersion::V311) => v4::publish(flags, body, &frame).map(Incoming::Publish),
        (PacketType::Publish(flags), ProtocolVersion::V5) => v5::publish(flags, body, &frame).map(Incoming::Publish),
        (PacketType::Connect, _) => decode_connect(frame).map(|connect| Incoming::Connect(Box::new(connect))),
        (PacketType::PubRel, ProtocolVersion::V311) => v4::pubrel(body),
        (PacketType::PubRel, ProtocolVersion::V5) => v5::pubrel(body),
        (PacketType::Subscribe, ProtocolVersion::V311) => v4::subscribe(body),
        (PacketType::Subscribe, ProtocolVersion::V5) => v5::subscribe(body),
        (PacketType::Unsubscribe, ProtocolVersion::V311) => v4::unsubscribe(body),
        (PacketType::Unsubscribe, ProtocolVersion::V5) => v5::unsubscribe(body),
        (PacketType::PingReq, _) => body.finish().map(|()| Incoming::PingReq),
        (PacketType::Disconnect, ProtocolVersion::V311) => v4::disconnect(body),
        (PacketType::Disconnect, ProtocolVersion::V5) => v5::disconnect(body),
        (PacketType::Auth, ProtocolVersion::V5) => v5::auth(body),
        (PacketType::Auth, ProtocolVersion::V311) => Err(CodecError::PacketTypeReserved(15)),
    }
}

/// Appends the bytes of `packet` to `buffer`.
///
/// What 3.1.1 has no packet for is not written: a DISCONNECT, and a CONNACK whose reason has no 3.1.1 return code. There
/// the connection is closed without a word.
pub fn encode(packet: &Outgoing, version: ProtocolVersion, buffer: &mut BytesMut) {
    match version {
        ProtocolVersion::V311 => v4::encode(packet, buffer),
        ProtocolVersion::V5 => v5::encode(packet, buffer),
    }
}

/// How many bytes [`encode`] appends for `packet`.
pub fn encoded_len(packet: &Outgoing, version: ProtocolVersion) -> usize {
    let mut buffer = BytesMut::new();
    encode(packet, version, &mut buffer);
    buffer.len()
}
