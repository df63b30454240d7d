//! What the codes of a broker mean to a person. (pure)

use forebay_broker::packet::ProtocolVersion;

/// Why a CONNECT was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the code says.
    pub words: &'static str,
    /// What to change; begins with a colon where there is something.
    pub advice: &'static str,
    /// Trying again without a change cannot help.
    pub for_good: bool,
}

const PASSWORD: &str = ": look at `username` and its password";
const RIGHTS: &str = ": the broker's rules do not let this user or Client Identifier in";
const VERSION: &str = ": set `version` to what the broker speaks";
const CLIENT_ID: &str = ": set `client_id` to one that the broker takes";

/// The refusal behind a code of a CONNACK (3.1.1, 3.2.2.3; 5.0, 3.2.2.2).
#[must_use]
pub fn of_connack(version: ProtocolVersion, code: u8) -> Refusal {
    let refusal = |words, advice, for_good| Refusal { words, advice, for_good };
    match (version, code) {
        (ProtocolVersion::V311, 1) => refusal("unacceptable protocol version", VERSION, true),
        (ProtocolVersion::V311, 2) => refusal("identifier rejected", CLIENT_ID, true),
        (ProtocolVersion::V311, 3) => refusal("server unavailable", "", false),
        (ProtocolVersion::V311, 4) => refusal("bad user name or password", PASSWORD, true),
        // Brokers that do not want to tell the two apart say this for a wrong password.
        (ProtocolVersion::V311, 5) => refusal("not authorized", PASSWORD, true),
        (_, 0x84) => refusal("unsupported protocol version", VERSION, true),
        (_, 0x85) => refusal("Client Identifier not valid", CLIENT_ID, true),
        (_, 0x86) => refusal("bad user name or password", PASSWORD, true),
        (_, 0x87) => refusal("not authorized", PASSWORD, true),
        (_, 0x8A) => refusal("banned", RIGHTS, true),
        (_, 0x8C) => refusal("bad authentication method", RIGHTS, true),
        (_, code) => refusal(words(code), "", false),
    }
}

/// What a Reason Code of 5.0 says (2.4); in 3.1.1 only 0x80 is used, of a SUBACK.
#[must_use]
pub fn words(code: u8) -> &'static str {
    match code {
        0x00 => "normal disconnection",
        0x04 => "disconnect with Will Message",
        0x80 => "failure",
        0x81 => "malformed packet",
        0x82 => "protocol error",
        0x83 => "implementation specific error",
        0x87 => "not authorized",
        0x88 => "server unavailable",
        0x89 => "server busy",
        0x8B => "server shutting down",
        0x8D => "keep alive timeout",
        0x8E => "session taken over",
        0x8F => "topic filter invalid",
        0x90 => "topic name invalid",
        0x91 => "packet identifier in use",
        0x93 => "receive maximum exceeded",
        0x94 => "topic alias invalid",
        0x95 => "packet too large",
        0x96 => "message rate too high",
        0x97 => "quota exceeded",
        0x98 => "administrative action",
        0x99 => "payload format invalid",
        0x9A => "retain not supported",
        0x9B => "QoS not supported",
        0x9C => "use another server",
        0x9D => "server moved",
        0x9E => "shared subscriptions not supported",
        0x9F => "connection rate exceeded",
        0xA0 => "maximum connect time",
        0xA1 => "subscription identifiers not supported",
        0xA2 => "wildcard subscriptions not supported",
        _ => "a reason unknown to MQTT 5.0",
    }
}

/// The code's words and those of the broker.
#[must_use]
pub fn with_words(code: u8, said: Option<String>) -> String {
    match said {
        Some(said) => format!("{} ({said})", words(code)),
        None => words(code).to_owned(),
    }
}

/// What to do about a DISCONNECT, where there is something to do; begins with a colon.
#[must_use]
pub fn advice(code: u8) -> &'static str {
    match code {
        0x8E => ": another client has the same `client_id`",
        0x87 => RIGHTS,
        _ => "",
    }
}
