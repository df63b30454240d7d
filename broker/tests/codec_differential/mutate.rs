//! Small damage to a valid packet, most of it inside, so that it is still found as a packet.

use bytes::{BufMut, Bytes, BytesMut};
use fastrand::Rng;

/// Bytes that mean something somewhere: bounds, flags, wildcards, property identifiers, starts of ill-formed UTF-8.
const TELLING: &[u8] =
    &[0, 1, 2, 3, 4, 5, 0x7F, 0x80, 0xFF, b'+', b'#', b'/', b'$', 0xC0, 0xED, 0x0B, 0x11, 0x1F, 0x21, 0x23, 0x26, 0x27];

pub(crate) fn packet(rng: &mut Rng, packet: &Bytes) -> Bytes {
    let (first, body) = split(packet);
    let mut first = first;
    let mut body = body.to_vec();
    for _ in 0..rng.usize(1..4) {
        match rng.u8(..10) {
            0 => first ^= 1 << rng.u8(..4),
            1 => first = rng.u8(..),
            _ => damage(rng, &mut body),
        }
    }
    let mut bytes = BytesMut::new();
    bytes.put_u8(first);
    let claimed = match rng.u8(..20) {
        0 => body.len() + rng.usize(..3),
        1 => body.len().saturating_sub(1),
        _ => body.len(),
    };
    put_length(&mut bytes, claimed, rng.u8(..50) == 0);
    bytes.extend_from_slice(&body);
    bytes.freeze()
}

/// Changes, inserts, removes or repeats; mostly near the start, where the structure is.
fn damage(rng: &mut Rng, body: &mut Vec<u8>) {
    let reach = if rng.bool() { body.len().min(24) } else { body.len() };
    let at = if reach == 0 { 0 } else { rng.usize(..reach) };
    let byte = match rng.bool() {
        true => TELLING[rng.usize(..TELLING.len())],
        false => rng.u8(..),
    };
    match rng.u8(..6) {
        0 => body.insert(at, byte),
        1 if !body.is_empty() => drop(body.remove(at)),
        2 if !body.is_empty() => body[at] ^= 1 << rng.u8(..8),
        3 if !body.is_empty() => body[at] = byte,
        4 => {
            let end = body.len().min(at + rng.usize(1..9));
            let repeated = body[at..end].to_vec();
            body.splice(at..at, repeated);
        }
        _ => body.truncate(at),
    }
}

/// First byte and body.
fn split(packet: &[u8]) -> (u8, &[u8]) {
    let length_bytes = packet[1..].iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
    (packet[0], &packet[1 + length_bytes..])
}

fn put_length(bytes: &mut BytesMut, mut length: usize, wasteful: bool) {
    while length >= 0x80 {
        bytes.put_u8((length & 0x7F) as u8 | 0x80);
        length >>= 7;
    }
    match wasteful {
        true => bytes.put_slice(&[length as u8 | 0x80, 0]),
        false => bytes.put_u8(length as u8),
    }
}
