//! One test per normative statement of MQTT 3.1.1 and 5.0, as bytes on a connection to a real broker. `CONFORMANCE.md` is
//! the list of all statements; `document` holds it and these tests together.

mod document;
#[path = "../support/mod.rs"]
mod support;
mod v311;
mod v5;
mod websocket;

use std::num::NonZeroU32;

use forebay_broker::StoredSession;
use forebay_broker::auth::password::PasswordHash;
use forebay_broker::auth::{Access, Acl, PasswordFile};
use forebay_broker::config::Limits;
use forebay_broker::packet::PacketId;
use support::*;

/// A broker whose storage remembers a session of this client, with Packet Identifier 7.
fn start_with_session(client_id: &str, expiry_secs: u32) -> (forebay_broker::Broker, Storage) {
    let packet_ids = vec![PacketId::new(7).expect("not zero")];
    restart(Limits::default(), vec![StoredSession { client_id: client_id.into(), expiry_secs, packet_ids }])
}

/// Only ann may connect, with "secret", and publish below `ann/`.
fn access() -> Access {
    let mut passwords = PasswordFile::default();
    let hash = PasswordHash::new(b"secret", NonZeroU32::MIN, b"salt");
    passwords.set("ann", hash).expect("a name that can stand in the file");
    let acl = Acl::parse("user ann\ntopic write ann/#\n").expect("an access control list");
    Access { passwords: Some(passwords), acl: Some(acl), refuse_anonymous: true }
}

/// A string or Binary Data: two bytes of length, then the bytes.
fn field(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// A CONNECT with everything as given after the Protocol Name; Keep Alive is 0.
fn raw_connect(level: u8, flags: u8, rest: &[&[u8]]) -> Vec<u8> {
    frame(0x10, &[&field("MQTT"), &[level, flags, 0, 0][..], &rest.concat()].concat())
}

/// Strings that are not well-formed UTF-8: a stray byte, an overlong form, a surrogate, beyond Unicode.
const ILL_FORMED: [&[u8]; 4] = [&[0xFF], &[0xC0, 0x80], &[0xED, 0xA0, 0x80], &[0xF4, 0x90, 0x80, 0x80]];

/// What a Topic Name is written as must reach storage byte for byte: empty levels, case, composed and decomposed letters.
const UNUSUAL_TOPICS: [&str; 6] = ["/", "a//b/", "A/a", "caf\u{E9}", "cafe\u{301}", "\u{FEFF}a"];
