//! The seam between the broker and whoever stores: [`Inbound`] goes out over a bounded channel, [`Ticket`]s come back.
//!
//! ```text
//! connection ──Inbound{.., Ticket}──▶ bounded channel ──▶ ingest ──▶ spool
//!      ▲                                                              │ fsync
//!      └────────────── (number, Outcome) ◀── Ticket::resolve ─────────┘
//! ```
//!
//! Nothing here knows a disk, and nothing behind it knows a socket. A ticket that is dropped without an outcome counts
//! as [`Outcome::Unavailable`]: nothing is acknowledged, and the client sends its message again on its next connection.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

use crate::packet::{PacketId, QoS, Topic};

/// What the broker asks of its storage, in the order in which it must take effect.
#[derive(Debug)]
pub enum Inbound {
    /// One PUBLISH, or a Will Message. `Stored` lets the PUBACK or PUBREC go.
    Publish(InboundPublish),
    /// A PUBREL came: forget the Packet Identifier. `Stored` lets the PUBCOMP go.
    Release {
        /// Whose.
        client_id: Arc<str>,
        /// Which.
        packet_id: PacketId,
        /// Resolved when it is durably forgotten.
        ticket: Ticket,
    },
    /// A session that outlives its connection begins or its expiry changes. `Stored` lets the CONNACK go.
    OpenSession {
        /// Whose.
        client_id: Arc<str>,
        /// Seconds that it lives after its connection ends; `u32::MAX` for ever.
        expiry_secs: u32,
        /// Resolved when it is durably known.
        ticket: Ticket,
    },
    /// A session ends: its Packet Identifiers must be forgotten before any later message of the same client.
    CloseSession {
        /// Whose.
        client_id: Arc<str>,
        /// Resolved when it is durably forgotten.
        ticket: Ticket,
    },
}

/// One accepted PUBLISH on its way to the spool.
#[derive(Debug)]
pub struct InboundPublish {
    /// Client Identifier of the publisher.
    pub client_id: Arc<str>,
    /// User Name or certificate identity, when the connection has one.
    pub user_name: Option<Arc<str>>,
    /// Topic Name with aliases resolved.
    pub topic: Topic,
    /// Application Message.
    pub payload: Bytes,
    /// Quality of Service.
    pub qos: QoS,
    /// RETAIN flag.
    pub retain: bool,
    /// DUP flag.
    pub dup: bool,
    /// Whether this is a Will Message.
    pub will: bool,
    /// Present with QoS 1 and 2, except for a Will Message. With QoS 2 it must be stored with the message.
    pub packet_id: Option<PacketId>,
    /// 3.1.1, QoS 0 and a Will Message cannot be told why a message is refused: whoever stores may rather keep it as a
    /// dead letter.
    pub can_be_told: bool,
    /// Whether the publisher may publish to this topic: if not, it is refused with [`Refusal::NotAuthorized`], or kept
    /// where nobody takes it for a reading.
    pub is_authorized: bool,
    /// When the packet was read from the socket.
    pub received_at: SystemTime,
    /// Resolved when the message is on disk. With QoS 0 nobody waits for it.
    pub ticket: Ticket,
}

/// The claim that an acknowledgement waits on.
#[derive(Debug)]
pub struct Ticket {
    number: u64,
    outcomes: Option<UnboundedSender<(u64, Outcome)>>,
    _budget: Option<OwnedSemaphorePermit>,
}

impl Ticket {
    /// A claim numbered by its connection. At most Receive Maximum claims of a connection are open, which bounds
    /// `outcomes`; `budget` is the share of the broker's memory budget that is given back when the claim ends.
    pub fn new(number: u64, outcomes: UnboundedSender<(u64, Outcome)>, budget: Option<OwnedSemaphorePermit>) -> Self {
        Self { number, outcomes: Some(outcomes), _budget: budget }
    }

    /// A claim that nobody waits on (QoS 0, a Will Message after its connection has gone).
    pub fn unattended(budget: Option<OwnedSemaphorePermit>) -> Self {
        Self { number: 0, outcomes: None, _budget: budget }
    }

    /// Answers the claim. A connection that has gone does not hear it; its client will resend.
    pub fn resolve(mut self, outcome: Outcome) {
        self.answer(outcome);
    }

    fn answer(&mut self, outcome: Outcome) {
        if let Some(outcomes) = self.outcomes.take() {
            let _ = outcomes.send((self.number, outcome));
        }
    }
}

impl Drop for Ticket {
    /// Whoever waits must not wait for ever.
    fn drop(&mut self) {
        self.answer(Outcome::Unavailable);
    }
}

/// What became of an [`Inbound`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is on disk.
    Stored,
    /// It will never be accepted: the client is told so and drops it.
    Refused(Refusal),
    /// It is not stored and cannot be now: no acknowledgement; the connection is closed so that the client keeps the
    /// message. Whoever cannot tell whether it is stored must end the process instead: a QoS 2 message that is sent
    /// again would be stored twice.
    Unavailable,
}

/// Why a message is refused for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// The publisher may not publish to this topic: 0x87.
    NotAuthorized,
    /// No dataset takes this topic: 0x90.
    NoDataset,
    /// The payload is not what the topic takes: 0x99.
    PayloadInvalid,
}
