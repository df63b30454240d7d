//! The rules of the codec, one test each, named after the statement that it checks where there is one.
//!
//! Packets are written out as bytes, so that a test can be held against the specification without trusting our encoder.

mod connect;
mod encode;
mod frame;
mod others;
mod publish;
mod subscribe;

use bytes::Bytes;

use super::*;
use crate::packet::PacketId;

pub(super) const V311: ProtocolVersion = ProtocolVersion::V311;
pub(super) const V5: ProtocolVersion = ProtocolVersion::V5;
pub(super) const BOTH: [ProtocolVersion; 2] = [V311, V5];

/// A packet: its first byte, the right Remaining Length, and the parts of its body.
pub(super) fn packet(first: u8, body: &[&[u8]]) -> Bytes {
    let body = body.concat();
    let mut packet = BytesMut::from(&[first][..]);
    primitives::put_variable_byte_integer(&mut packet, body.len());
    packet.extend_from_slice(&body);
    packet.freeze()
}

/// Binary Data or a string: two bytes of length, then the bytes.
pub(super) fn field(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// Properties with their Property Length.
pub(super) fn properties(parts: &[&[u8]]) -> Vec<u8> {
    let parts = parts.concat();
    let mut bytes = BytesMut::new();
    primitives::put_variable_byte_integer(&mut bytes, parts.len());
    bytes.extend_from_slice(&parts);
    bytes.to_vec()
}

/// What a version puts where 5.0 has properties: none in 3.1.1, an empty set in 5.0.
pub(super) fn no_properties(version: ProtocolVersion) -> &'static [u8] {
    match version {
        ProtocolVersion::V311 => &[],
        ProtocolVersion::V5 => &[0],
    }
}

pub(super) fn id(number: u16) -> PacketId {
    PacketId::new(number).unwrap()
}
