//! Valid parts of packets.

use bytes::Bytes;
use fastrand::Rng;

const ALPHABET: [char; 13] = ['a', 'b', 'Z', '0', ' ', '/', '$', '_', '-', 'é', '漢', '😀', '\u{FEFF}'];

/// Text that MQTT allows: ASCII, multi-byte characters, a byte order mark, sometimes nothing.
pub(crate) fn text(rng: &mut Rng) -> String {
    let length = match rng.u8(..20) {
        0 => 0,
        1 => rng.usize(100..300),
        _ => rng.usize(1..12),
    };
    (0..length).map(|_| ALPHABET[rng.usize(..ALPHABET.len())]).collect()
}

/// Text that is not empty: rumqttc does not tell an empty User Name from an absent one.
pub(crate) fn some_text(rng: &mut Rng) -> String {
    text(rng) + "x"
}

pub(crate) fn bytes(rng: &mut Rng) -> Bytes {
    let length = match rng.u8(..=255) {
        0 => 20_000, // a Remaining Length of three bytes
        1..12 => rng.usize(100..300),
        12..24 => 0,
        _ => rng.usize(1..40),
    };
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes);
    bytes.into()
}

/// A Topic Filter, in 5.0 sometimes of a Shared Subscription.
pub(crate) fn filter(rng: &mut Rng, shared: bool) -> String {
    let mut levels = Vec::new();
    if shared && rng.u8(..4) == 0 {
        levels.extend(["$share", "group"]);
    }
    for _ in 0..rng.usize(1..5) {
        levels.push(["a", "bc", "+", "é", "$x"][rng.usize(..5)]);
    }
    if rng.bool() {
        levels.push("#");
    }
    levels.join("/")
}

pub(crate) fn id(rng: &mut Rng) -> u16 {
    rng.u16(1..)
}

/// `Some` half the time.
pub(crate) fn maybe<T>(rng: &mut Rng, value: impl FnOnce(&mut Rng) -> T) -> Option<T> {
    rng.bool().then(|| value(rng))
}

pub(crate) fn user_properties(rng: &mut Rng) -> Vec<(String, String)> {
    (0..rng.usize(..3)).map(|_| (text(rng), text(rng))).collect()
}
