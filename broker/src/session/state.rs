//! What of a session outlives its connection.

use std::sync::Arc;
use std::time::Instant;

use super::Publication;
use crate::packet::{PacketId, QoS, Topic, Will};

/// A session between two connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionState {
    /// Seconds that it is kept after its connection ended; `u32::MAX` for ever. 0: it has ended, and all that is left is
    /// to make storage forget it.
    pub expiry_secs: u32,
    /// Packet Identifiers of QoS 2 messages that are stored and not released, ascending.
    pub packet_ids: Vec<PacketId>,
    /// A Will Message that waits for its Will Delay Interval.
    pub will: Option<Box<DelayedWill>>,
}

/// A Will Message that is published unless the session is resumed in time [MQTT-3.1.3-9].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelayedWill {
    /// The message.
    pub will: Will,
    /// User Name of the connection that left it.
    pub user_name: Option<Arc<str>>,
    /// When its delay is over.
    pub due: Instant,
}

impl Publication {
    /// A Will Message is stored as an ordinary message of its topic.
    pub(crate) fn of_will(will: Will, user_name: Option<Arc<str>>) -> Option<Self> {
        Some(Self {
            user_name,
            topic: Topic::new(bytes::Bytes::copy_from_slice(will.topic.as_bytes()))?,
            payload: will.payload,
            qos: will.qos,
            retain: will.retain,
            dup: false,
            will: true,
            packet_id: None,
            can_be_told: false,
        })
    }

    /// Whether a packet can refuse it.
    pub(super) fn can_be_told(is_v5: bool, qos: QoS) -> bool {
        is_v5 && qos != QoS::AtMostOnce
    }
}
