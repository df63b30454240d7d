//! Finding a packet in a stream: at most five bytes decide, and nothing is allocated for what they claim.
//!
//! ```text
//!  byte 1             bytes 2 to 5 at the most           the rest
//! ┌──────┬───────┐   ┌──────────────────────────────┐   ┌───────────────────────────┐
//! │ type │ flags │   │ Remaining Length, base 128   │   │ Remaining Length bytes    │
//! └──────┴───────┘   └──────────────────────────────┘   └───────────────────────────┘
//!   type a client may     not longer than needed,          only when it is all here
//!   send, its flags       within the limit                  does it become a frame
//! ```

use bytes::{Bytes, BytesMut};

use super::CodecError;
use super::primitives::{Reader, VariableByteInteger, variable_byte_integer};
use crate::packet::QoS;

/// The largest packet that MQTT can express, bytes: five of fixed header and a Remaining Length of 268,435,455.
pub const PACKET_BYTES_MAX: u32 = 5 + 268_435_455;

/// What the start of a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Part of a packet that is fine so far.
    Incomplete {
        /// How many bytes are missing at the least; 1 while the length itself is incomplete. It is the client's claim,
        /// within the limit: read that much if it comes, but do not reserve it all at once for a stranger.
        bytes_needed: usize,
    },
    /// A whole packet.
    Whole {
        /// Its length, fixed header included.
        bytes: usize,
    },
}

/// Looks at the fixed header at the start of `buffer`, where at most `packet_bytes_max` bytes are allowed in a packet.
///
/// # Errors
/// As soon as the byte is there that shows it: a packet type that a client does not send, wrong flags, a Remaining
/// Length that is too long, not minimal, or beyond the limit.
pub fn inspect(buffer: &[u8], packet_bytes_max: u32) -> Result<Frame, CodecError> {
    let incomplete = Frame::Incomplete { bytes_needed: 1 };
    let Some((&first, rest)) = buffer.split_first() else {
        return Ok(incomplete);
    };
    PacketType::of(first)?;
    let VariableByteInteger::Whole { value, length } = variable_byte_integer(rest)? else {
        return Ok(incomplete);
    };
    // At most 268,435,455 + 5: no overflow.
    let bytes = value + length + 1;
    if bytes > packet_bytes_max {
        let limit = packet_bytes_max;
        return Err(CodecError::PacketTooLarge { bytes, limit });
    }
    let bytes = bytes as usize;
    Ok(match bytes.checked_sub(buffer.len()) {
        None | Some(0) => Frame::Whole { bytes },
        Some(bytes_needed) => Frame::Incomplete { bytes_needed },
    })
}

/// Takes one whole packet off the front of `buffer`, or `None` while it is incomplete. Shares the buffer's memory.
///
/// # Errors
/// As [`inspect`]; `buffer` is untouched then, and there is no way to resynchronise: the connection must end.
pub fn next_frame(buffer: &mut BytesMut, packet_bytes_max: u32) -> Result<Option<Bytes>, CodecError> {
    match inspect(buffer, packet_bytes_max)? {
        Frame::Whole { bytes } => Ok(Some(buffer.split_to(bytes).freeze())),
        Frame::Incomplete { .. } => Ok(None),
    }
}

/// The fixed header and the body of `frame`, which must be exactly one packet.
pub(super) fn split(frame: &[u8]) -> Result<(PacketType, &[u8]), CodecError> {
    let Frame::Whole { bytes } = inspect(frame, PACKET_BYTES_MAX)? else {
        return Err(CodecError::NotOneFrame);
    };
    if bytes != frame.len() {
        return Err(CodecError::NotOneFrame);
    }
    let mut reader = Reader::new(frame);
    let packet_type = PacketType::of(reader.u8()?)?;
    reader.variable_byte_integer()?;
    Ok((packet_type, reader.rest()))
}

/// The packets that a client may send to a server that never publishes, with the flags of those that have any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PacketType {
    Connect,
    Publish(PublishFlags),
    PubRel,
    Subscribe,
    Unsubscribe,
    PingReq,
    Disconnect,
    Auth,
}

impl PacketType {
    /// Reads the first byte of a packet: type in the high half, flags in the low.
    fn of(first: u8) -> Result<Self, CodecError> {
        let (number, flags) = (first >> 4, first & 0x0F);
        let (packet_type, expected) = match number {
            1 => (Self::Connect, 0),
            3 => return PublishFlags::of(flags).map(Self::Publish),
            6 => (Self::PubRel, 0b0010),
            8 => (Self::Subscribe, 0b0010),
            10 => (Self::Unsubscribe, 0b0010),
            12 => (Self::PingReq, 0),
            14 => (Self::Disconnect, 0),
            15 => (Self::Auth, 0),
            0 => return Err(CodecError::PacketTypeReserved(number)),
            _ => return Err(CodecError::PacketTypeUnexpected(number)),
        };
        if flags != expected {
            // [MQTT-2.1.3-1]
            return Err(CodecError::FixedHeaderFlags(number));
        }
        Ok(packet_type)
    }
}

/// The flags of a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PublishFlags {
    pub(super) dup: bool,
    pub(super) qos: QoS,
    pub(super) retain: bool,
}

impl PublishFlags {
    fn of(flags: u8) -> Result<Self, CodecError> {
        let dup = flags & 0b1000 != 0;
        let retain = flags & 0b0001 != 0;
        let qos = qos(flags >> 1).ok_or(CodecError::QoS3)?; // [MQTT-3.3.1-4]
        if dup && qos == QoS::AtMostOnce {
            return Err(CodecError::DupWithQoS0); // [MQTT-3.3.1-2]
        }
        Ok(Self { dup, qos, retain })
    }
}

/// The QoS in the two lowest bits, or `None` when both are set.
pub(super) fn qos(bits: u8) -> Option<QoS> {
    match bits & 0b11 {
        0 => Some(QoS::AtMostOnce),
        1 => Some(QoS::AtLeastOnce),
        2 => Some(QoS::ExactlyOnce),
        _ => None,
    }
}
