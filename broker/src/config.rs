//! What a broker may be told: addresses and limits. Every limit has a unit, a default and an outcome at the bound.

use std::num::NonZeroU16;
use std::time::Duration;

use crate::tls::ServerTls;

/// How connections of one listener are spoken to and let in.
#[derive(Clone, Debug, Default)]
pub struct ListenerConfig {
    /// MQTT over WebSocket.
    pub websocket: bool,
    /// TLS, below the WebSocket if there is one.
    pub tls: Option<ServerTls>,
    /// Whether clients without credentials may connect here; `None`: as [`crate::auth::Access`] says.
    pub allow_anonymous: Option<bool>,
}

/// Limits that hold for the whole broker and for each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once. Default 10,000. At the bound a new one gets CONNACK 0x89 (3.1.1: 0x03) and is
    /// closed; over TLS, where that would cost a handshake, it is closed at once.
    pub connections_max: usize,
    /// Sessions remembered while their client is away. Default 10,000. At the bound the one away longest is dropped.
    pub sessions_max: usize,
    /// Seconds a session is remembered at the most, whatever its client asked for. Default 30 days.
    pub session_expiry_secs_max: u32,
    /// Connections at once from one IP address (IPv6: one /64). Default 1,024. At the bound a new one gets CONNACK 0x97
    /// (3.1.1: 0x03) and is closed.
    pub connections_per_address_max: usize,
    /// Connections at once of one user, by password or certificate. Default 1,024. At the bound: as for an address.
    pub connections_per_user_max: usize,
    /// Connections that are not through TLS, WebSocket and CONNECT yet. Default 512. At the bound the oldest of the
    /// address that has the most is closed, or the new one if that would be unfair.
    pub connecting_max: usize,
    /// From accept to a complete CONNECT, TLS and WebSocket included. Default 10 s. At the bound the connection is closed.
    pub connect_timeout: Duration,
    /// Keep Alive at the most, seconds; 0 sets no bound. Default 0. At the bound 5.0 clients get Server Keep Alive.
    pub keep_alive_secs_max: u16,
    /// A whole packet, bytes. Default 256 KiB. At the bound: DISCONNECT 0x95 (5.0), connection closed.
    pub packet_bytes_max: u32,
    /// A CONNECT, bytes, and a WebSocket's message until it is accepted, if that is less than `packet_bytes_max`. Default
    /// 64 KiB. At the bound the connection is closed.
    pub connect_bytes_max: u32,
    /// Payload of a Will Message, bytes. Default 65,535, and what fits a CONNECT. At the bound: CONNACK 0x97 (3.1.1:
    /// 0x03).
    pub will_bytes_max: usize,
    /// From the first byte of a packet, or of a WebSocket's message, to its last. Default 60 s. At the bound: DISCONNECT 0x83
    /// (5.0), connection closed.
    pub packet_timeout: Duration,
    /// Bytes of packets, and of WebSocket messages, that are not complete yet, all connections together. Default 64 MiB.
    /// At the bound: DISCONNECT 0x97 (5.0) to whoever wants more, connection closed.
    pub partial_bytes_max: usize,
    /// Silence after which a connection is closed, whatever its Keep Alive. Default: none. At the bound: DISCONNECT 0x8D
    /// (5.0).
    pub idle_timeout: Option<Duration>,
    /// Messages of one connection a second, and as many at once. Default 0: no bound. At the bound we stop reading the
    /// socket.
    pub publish_rate_max: u32,
    /// Passwords that wait to be verified. Default 256. At the bound: CONNACK 0x89 (3.1.1: 0x03).
    pub logins_waiting_max: usize,
    /// Failed logins a minute by which one address may try one user's password; ten times as many for all users
    /// together. Default 10; 0: no bound. At the bound: CONNACK 0x9F (3.1.1: 0x03), without looking at the password.
    pub login_failures_max: u32,
    /// Unacknowledged QoS 1 and 2 PUBLISH per connection. Default 256. 5.0: advertised as Receive Maximum, DISCONNECT
    /// 0x93 beyond; 3.1.1: we stop reading.
    pub receive_maximum: NonZeroU16,
    /// Topic Aliases per connection. Default 32. At the bound: DISCONNECT 0x94.
    pub topic_alias_maximum: u16,
    /// Topic Name, bytes. Default 1,024. At the bound: refused with 0x90 (5.0), connection closed (3.1.1).
    pub topic_bytes_max: usize,
    /// Topic levels. Default 64. At the bound: as `topic_bytes_max`.
    pub topic_levels_max: usize,
    /// Client Identifier, bytes. Default 256. At the bound: CONNACK 0x85 (3.1.1: 0x02).
    pub client_id_bytes_max: usize,
    /// Bytes of topics and payloads that are accepted but not yet stored, all connections together. Default 32 MiB. At
    /// the bound we stop reading sockets.
    pub unstored_bytes_max: u32,
    /// Messages queued for the spool. Default 4,096. At the bound we stop reading sockets.
    pub unstored_messages_max: usize,
    /// How long a write to a client may take. Default 20 s. At the bound the connection is closed.
    pub write_timeout: Duration,
    /// How long a shutdown waits for storage to answer what was submitted. Default 10 s. At the bound connections are
    /// closed with messages unacknowledged, which their clients keep.
    pub shutdown_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            sessions_max: 10_000,
            session_expiry_secs_max: 30 * 24 * 3_600,
            connections_per_address_max: 1_024,
            connections_per_user_max: 1_024,
            connecting_max: 512,
            connect_timeout: Duration::from_secs(10),
            keep_alive_secs_max: 0,
            packet_bytes_max: 256 * 1024,
            connect_bytes_max: 64 * 1024,
            will_bytes_max: 65_535,
            packet_timeout: Duration::from_secs(60),
            partial_bytes_max: 64 << 20,
            idle_timeout: None,
            publish_rate_max: 0,
            logins_waiting_max: 256,
            login_failures_max: 10,
            receive_maximum: NonZeroU16::new(256).expect("not zero"),
            topic_alias_maximum: 32,
            topic_bytes_max: 1_024,
            topic_levels_max: 64,
            client_id_bytes_max: 256,
            unstored_bytes_max: 32 * 1024 * 1024,
            unstored_messages_max: 4_096,
            write_timeout: Duration::from_secs(20),
            shutdown_timeout: Duration::from_secs(10),
        }
    }
}
