//! What the broker counts. Counters only rise; gauges say what is.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::packet::{Outgoing, QoS};
use crate::reason::{ConnectReason, Reason};
use crate::session::CloseReason;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters of a broker.
        #[derive(Debug, Default)]
        pub struct Stats {
            $($(#[$doc])* pub(crate) $name: Counter,)*
        }

        /// What the counters were at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Snapshot {
            $($(#[$doc])* pub $name: u64,)*
            /// Connections that are open.
            pub connections_open: u64,
            /// Of them, those that are not through TLS, WebSocket and CONNECT.
            pub connections_half_open: u64,
            /// Sessions kept for clients that are away.
            pub sessions_away: u64,
            /// Sessions that were ended because `sessions_max` was reached.
            pub sessions_dropped: u64,
        }

        impl Stats {
            /// Reads every counter; the gauges are the broker's to fill in.
            pub(crate) fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.get(),)* ..Snapshot::default() }
            }
        }

        impl Snapshot {
            /// Name and value of every counter, in a stable order.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Connections taken from a listener.
    connections_accepted,
    /// Connections closed at once because too many were being refused.
    connections_dropped,
    /// Times that taking a connection failed, for want of file descriptors mostly.
    accept_errors,
    /// CONNECT accepted.
    connects_accepted,
    /// Connections that were not through CONNECT and had to go for others, or were not let in for them.
    half_open_dropped,
    /// TLS handshakes that failed: no TLS, no common version, no certificate or one that is not accepted.
    tls_handshakes_failed,
    /// Requests that were no WebSocket of MQTT.
    websocket_upgrades_failed,
    /// Connections refused: too many of their address.
    connections_refused_address,
    /// CONNECT refused: User Name or Password.
    logins_failed,
    /// CONNECT refused: too many passwords wait to be verified.
    logins_refused_busy,
    /// CONNECT refused: too many logins failed.
    logins_refused_rate,
    /// CONNECT refused: no credentials, or a Will Topic that is not allowed.
    connects_refused_not_authorized,
    /// CONNECT refused: too many connections of its user.
    connects_refused_user,
    /// CONNECT refused: another user has the Client Identifier.
    connects_refused_owner,
    /// CONNECT refused: too many connections.
    connects_refused_busy,
    /// CONNECT refused: Client Identifier.
    connects_refused_client_id,
    /// CONNECT refused: protocol version.
    connects_refused_version,
    /// CONNECT refused: storage could not open or close the session.
    connects_refused_unavailable,
    /// CONNECT refused for other reasons.
    connects_refused_other,
    /// No CONNECT in time.
    connect_timeouts,
    /// Connections whose session another connection took over.
    takeovers,
    /// Connections closed for silence.
    keep_alive_timeouts,
    /// Connections closed because the client did not read.
    write_timeouts,
    /// Connections closed because a packet did not come to its end.
    packet_timeouts,
    /// Connections closed because too many packets were not complete.
    partial_packets_refused,
    /// Connections closed because their client may no longer connect.
    revoked,
    /// Times that a socket was not read for a while because messages came too fast.
    throttled,
    /// Connections closed for bytes that are no packet, too large a packet included.
    malformed,
    /// Connections closed for a packet against the rules.
    violations,
    /// Connections closed because storage could take no messages.
    unavailable,
    /// PUBLISH of QoS 0 handed to storage.
    messages_qos0,
    /// PUBLISH of QoS 1 handed to storage.
    messages_qos1,
    /// PUBLISH of QoS 2 handed to storage.
    messages_qos2,
    /// Will Messages handed to storage.
    wills,
    /// PUBACK and PUBREC of success.
    acknowledged,
    /// PUBACK and PUBREC with 0x87, and 3.1.1 connections closed for it.
    refused_not_authorized,
    /// PUBACK and PUBREC with 0x90, and 3.1.1 connections closed for it.
    refused_topic,
    /// PUBACK and PUBREC with 0x99, and 3.1.1 connections closed for it.
    refused_payload,
    /// SUBSCRIBE answered with a refusal.
    subscribes_refused,
    /// Sessions whose end storage was told by the caretaker.
    sessions_closed,
    /// Bytes read from sockets.
    bytes_received,
    /// Bytes written to sockets.
    bytes_sent,
}

/// A number that only rises.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicUsize);

impl Gauge {
    pub(crate) fn add(&self, count: usize) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, count: usize) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Stats {
    pub(crate) fn count_message(&self, qos: QoS, is_will: bool) {
        match (is_will, qos) {
            (true, _) => self.wills.add(1),
            (false, QoS::AtMostOnce) => self.messages_qos0.add(1),
            (false, QoS::AtLeastOnce) => self.messages_qos1.add(1),
            (false, QoS::ExactlyOnce) => self.messages_qos2.add(1),
        }
    }

    pub(crate) fn count_sent(&self, packet: &Outgoing) {
        match packet {
            Outgoing::ConnAck(connack) => self.count_connect(connack.reason),
            Outgoing::PubAck { reason, .. } | Outgoing::PubRec { reason, .. } => match reason {
                Reason::Success => self.acknowledged.add(1),
                Reason::NotAuthorized => self.refused_not_authorized.add(1),
                Reason::TopicNameInvalid => self.refused_topic.add(1),
                Reason::PayloadFormatInvalid => self.refused_payload.add(1),
                _ => {}
            },
            Outgoing::SubAckRefused { .. } => self.subscribes_refused.add(1),
            _ => {}
        }
    }

    fn count_connect(&self, reason: ConnectReason) {
        match reason {
            ConnectReason::Success => self.connects_accepted.add(1),
            ConnectReason::ServerBusy => self.connects_refused_busy.add(1),
            ConnectReason::ClientIdentifierNotValid => self.connects_refused_client_id.add(1),
            ConnectReason::UnsupportedProtocolVersion => self.connects_refused_version.add(1),
            ConnectReason::ServerUnavailable => self.connects_refused_unavailable.add(1),
            ConnectReason::NotAuthorized => self.connects_refused_not_authorized.add(1),
            ConnectReason::BadUserNameOrPassword => self.logins_failed.add(1),
            _ => self.connects_refused_other.add(1),
        }
    }

    pub(crate) fn count_close(&self, reason: CloseReason) {
        use crate::inbound::Refusal;
        match reason {
            CloseReason::ConnectTimeout => self.connect_timeouts.add(1),
            CloseReason::KeepAliveTimeout => self.keep_alive_timeouts.add(1),
            CloseReason::WriteTimeout => self.write_timeouts.add(1),
            CloseReason::PacketTimeout => self.packet_timeouts.add(1),
            CloseReason::PartialPackets => self.partial_packets_refused.add(1),
            CloseReason::Revoked => self.revoked.add(1),
            CloseReason::Malformed(_) => self.malformed.add(1),
            CloseReason::Violation(..) => self.violations.add(1),
            CloseReason::Unavailable => self.unavailable.add(1),
            CloseReason::TakenOver => self.takeovers.add(1),
            CloseReason::PublishRefused(Refusal::NotAuthorized) => self.refused_not_authorized.add(1),
            CloseReason::PublishRefused(Refusal::NoDataset) => self.refused_topic.add(1),
            CloseReason::PublishRefused(Refusal::PayloadInvalid) => self.refused_payload.add(1),
            CloseReason::Disconnected
            | CloseReason::PeerClosed
            | CloseReason::Refused(_)
            | CloseReason::ShuttingDown => {}
        }
    }
}
