//! MQTT Control Packets as values: what a client may send us ([`Incoming`]) and what we may send back ([`Outgoing`]).
//!
//! Only the eight packet types that a publish-only server can receive and the eight that it can send are here; the codec
//! refuses the others. Both protocol versions share these types: what a version does not have is at its default when
//! decoded, and is not written when encoded.

use std::fmt;
use std::num::NonZeroU16;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use zeroize::Zeroizing;

use crate::reason::{ConnectReason, Reason};

/// Protocol Version of a connection, chosen by the Protocol Level byte of its CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProtocolVersion {
    /// MQTT 3.1.1, Protocol Level 4.
    V311,
    /// MQTT 5.0, Protocol Version 5.
    V5,
}

/// Quality of Service of an Application Message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum QoS {
    /// QoS 0: no acknowledgement.
    AtMostOnce = 0,
    /// QoS 1: PUBACK.
    AtLeastOnce = 1,
    /// QoS 2: PUBREC, PUBREL, PUBCOMP.
    ExactlyOnce = 2,
}

/// Packet Identifier, never 0 `[MQTT-2.2.1-3]`.
pub type PacketId = NonZeroU16;

/// A packet from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// CONNECT; boxed, since it comes once in a connection and is by far the largest.
    Connect(Box<Connect>),
    /// PUBLISH.
    Publish(Publish),
    /// PUBREL, the second packet of a QoS 2 delivery.
    PubRel {
        /// Of the PUBLISH that is released.
        packet_id: PacketId,
    },
    /// SUBSCRIBE: decoded in full so that it can be answered filter by filter.
    Subscribe {
        /// To be repeated in the SUBACK.
        packet_id: PacketId,
        /// How many Topic Filters it holds; at least 1 `[MQTT-3.8.3-2]`.
        filters: usize,
    },
    /// UNSUBSCRIBE.
    Unsubscribe {
        /// To be repeated in the UNSUBACK.
        packet_id: PacketId,
        /// How many Topic Filters it holds; at least 1 `[MQTT-3.10.3-2]`.
        filters: usize,
    },
    /// PINGREQ.
    PingReq,
    /// DISCONNECT. 3.1.1 has no reason: 0x00.
    Disconnect {
        /// Every reason but 0x00 leaves the Will Message to be published.
        reason: u8,
        /// Session Expiry Interval, when the client changes it on leaving.
        session_expiry_secs: Option<u32>,
    },
    /// AUTH (5.0 only). Enhanced authentication is never offered, so any AUTH is a Protocol Error.
    Auth,
}

/// CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// Chosen by the Protocol Level byte.
    pub version: ProtocolVersion,
    /// Clean Session (3.1.1) or Clean Start (5.0).
    pub clean_start: bool,
    /// Keep Alive, seconds; 0 turns it off.
    pub keep_alive_secs: u16,
    /// Client Identifier; may be empty.
    pub client_id: Arc<str>,
    /// Will Message.
    pub will: Option<Will>,
    /// User Name.
    pub user_name: Option<Arc<str>>,
    /// Password: binary in both versions.
    pub password: Option<Password>,
    /// Session Expiry Interval, seconds; `u32::MAX` never expires. 0 where absent. (3.1.1: see `session`.)
    pub session_expiry_secs: u32,
    /// How many unacknowledged QoS 1 and 2 PUBLISH the client takes from us. We send none.
    pub receive_maximum: NonZeroU16,
    /// The largest packet the client accepts, bytes.
    pub maximum_packet_size: Option<u32>,
    /// Request Problem Information: when false, no Reason String may be sent outside CONNACK and DISCONNECT.
    pub request_problem_information: bool,
    /// An Authentication Method was given: enhanced authentication is asked for.
    pub has_authentication_method: bool,
}

/// A password: binary. It is not shown, and its memory is wiped when it is no longer needed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<Box<[u8]>>);

impl From<&[u8]> for Password {
    fn from(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }
}

impl Deref for Password {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password(..)")
    }
}

/// The Will Message of a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    /// Topic Name: UTF-8, not empty, without wildcards.
    pub topic: Arc<str>,
    /// Application Message.
    pub payload: Bytes,
    /// Will QoS.
    pub qos: QoS,
    /// Will Retain.
    pub retain: bool,
    /// Will Delay Interval, seconds (5.0).
    pub delay_secs: u32,
}

/// PUBLISH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Set on a re-delivery; never with QoS 0 `[MQTT-3.3.1-2]`.
    pub dup: bool,
    /// Quality of Service.
    pub qos: QoS,
    /// RETAIN flag.
    pub retain: bool,
    /// Topic Name as UTF-8 bytes that were checked: no wildcards, no U+0000. Empty only in 5.0 with a Topic Alias.
    pub topic: Topic,
    /// Present exactly when QoS is 1 or 2.
    pub packet_id: Option<PacketId>,
    /// Topic Alias (5.0), never 0.
    pub topic_alias: Option<NonZeroU16>,
    /// Application Message; shares the buffer that the packet was read into.
    pub payload: Bytes,
}

/// A Topic Name that the codec has checked: UTF-8 of at most 65,535 bytes, without `+`, `#` and U+0000.
///
/// Cheap to clone. It shares the buffer it was decoded from, so keep it no longer than the message it came with, or
/// [`detach`](Topic::detach) it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Bytes);

impl Topic {
    /// Checks a Topic Name `[MQTT-3.3.2-1] [MQTT-3.3.2-2] [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-4.7.3-3]`. An empty one
    /// passes: 5.0 has it with a Topic Alias, and the session refuses it elsewhere.
    pub fn new(bytes: Bytes) -> Option<Self> {
        let text = std::str::from_utf8(&bytes).ok()?;
        let fits = text.len() <= usize::from(u16::MAX);
        (fits && !text.contains(['+', '#', '\0'])).then_some(Self(bytes))
    }

    /// Takes a Topic Name that the codec has just checked.
    pub(crate) fn checked(bytes: Bytes) -> Self {
        debug_assert!(Self::new(bytes.clone()).is_some(), "the codec checks first");
        Self(bytes)
    }

    /// The Topic Name.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked when it was made")
    }

    /// Whether this is the empty topic of a PUBLISH that only names its Topic Alias.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of the Topic Name.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The same Topic Name in memory of its own, so that it does not keep a read buffer alive.
    pub fn detach(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }
}

/// A packet to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// CONNACK.
    ConnAck(Box<ConnAck>),
    /// PUBACK. 3.1.1 has no reason: the session sends it only for success there.
    PubAck {
        /// Of the PUBLISH.
        packet_id: PacketId,
        /// 5.0 only.
        reason: Reason,
    },
    /// PUBREC.
    PubRec {
        /// Of the PUBLISH.
        packet_id: PacketId,
        /// 5.0 only; 0x80 and above ends the delivery.
        reason: Reason,
    },
    /// PUBCOMP.
    PubComp {
        /// Of the PUBREL.
        packet_id: PacketId,
        /// 5.0 only.
        reason: Reason,
    },
    /// SUBACK that refuses every filter: 0x87 each in 5.0, 0x80 in 3.1.1.
    SubAckRefused {
        /// Of the SUBSCRIBE.
        packet_id: PacketId,
        /// How many return codes to write.
        filters: usize,
    },
    /// UNSUBACK: "No subscription existed" (0x11) for each filter in 5.0.
    UnsubAck {
        /// Of the UNSUBSCRIBE.
        packet_id: PacketId,
        /// How many reason codes to write (5.0).
        filters: usize,
    },
    /// PINGRESP.
    PingResp,
    /// DISCONNECT (5.0 only: 3.1.1 closes the connection instead).
    Disconnect {
        /// Why.
        reason: Reason,
    },
}

/// CONNACK. Everything after `reason` is written in 5.0 only, and only with reason Success unless said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnAck {
    /// Session Present.
    pub session_present: bool,
    /// Connect Reason Code (5.0) or the return code it maps to (3.1.1).
    pub reason: ConnectReason,
    /// Assigned Client Identifier.
    pub assigned_client_id: Option<Arc<str>>,
    /// Session Expiry Interval, seconds, when it is not what the client asked for.
    pub session_expiry_secs: Option<u32>,
    /// Server Keep Alive, seconds, when it is not what the client asked for.
    pub server_keep_alive_secs: Option<u16>,
    /// Receive Maximum: how many QoS 1 and 2 PUBLISH may be unacknowledged.
    pub receive_maximum: NonZeroU16,
    /// Maximum Packet Size that we accept, bytes.
    pub maximum_packet_size: u32,
    /// Topic Alias Maximum: aliases 1 to this may be used; 0 for none.
    pub topic_alias_maximum: u16,
    /// Reason String, written with any reason.
    pub reason_string: Option<&'static str>,
}
