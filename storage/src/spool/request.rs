//! What the writer is asked, and what it answers.

use std::sync::Arc;

use crate::message::Message;

/// One request, with the ticket that is given back with its [`Outcome`].
#[derive(Debug)]
pub enum Request<T> {
    /// Store a message.
    Append {
        /// The message.
        message: Message,
        /// Of the PUBLISH, with QoS 1 and 2. A Will Message has none.
        packet_id: Option<u16>,
        /// From a source: a message with RETAIN that equals the last one stored of its topic is not stored again. The broker
        /// sends it at every subscription `[MQTT-3.3.1-6]`.
        retained_once: bool,
        /// Given back.
        ticket: T,
    },
    /// Store a message that no dataset takes, as a dead letter.
    DeadLetter {
        /// The message; its dataset becomes [`NO_DATASET`](crate::dead_letter::NO_DATASET).
        message: Message,
        /// Why, for a person.
        reason: String,
        /// As of `Append`.
        packet_id: Option<u16>,
        /// As of `Append`.
        retained_once: bool,
        /// Given back.
        ticket: T,
    },
    /// PUBREL came: forget the Packet Identifier.
    Release {
        /// Whose.
        client_id: Arc<str>,
        /// Which.
        packet_id: u16,
        /// Given back.
        ticket: T,
    },
    /// A session begins that outlives its connection, or its expiry changes.
    OpenSession {
        /// Whose.
        client_id: Arc<str>,
        /// Seconds after the end of its connection; `u32::MAX` for ever.
        expiry_secs: u32,
        /// Given back.
        ticket: T,
    },
    /// A session ends, and its Packet Identifiers with it.
    CloseSession {
        /// Whose.
        client_id: Arc<str>,
        /// Given back.
        ticket: T,
    },
    /// Whether the writer is at work: it answers in its turn and writes nothing for it.
    Probe {
        /// Given back. Its outcome says nothing of the disk.
        ticket: T,
    },
}

/// What became of a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It is on disk.
    Stored,
    /// It is not, and must not be acknowledged: the publisher keeps its message and sends it again.
    Unavailable,
}

impl<T> Request<T> {
    /// Gives the ticket back.
    pub fn into_ticket(self) -> T {
        match self {
            Self::Append { ticket, .. }
            | Self::DeadLetter { ticket, .. }
            | Self::Release { ticket, .. }
            | Self::OpenSession { ticket, .. }
            | Self::CloseSession { ticket, .. }
            | Self::Probe { ticket } => ticket,
        }
    }

    /// Bytes that it may take on disk; 0 for what needs no room to speak of.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Append { message, .. } | Self::DeadLetter { message, .. } => size(message),
            _ => 0,
        }
    }
}

/// Bytes of a message as far as bounds are concerned.
pub(super) fn size(message: &Message) -> usize {
    const FIXED: usize = 32;
    message.topic.len() + message.client_id.len() + message.payload.len() + FIXED
}
