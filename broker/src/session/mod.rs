//! The protocol of one connection as a value: packets, outcomes and `now` go in, [`Action`]s come out.
//!
//! ```text
//!  first packet          who is it?    claimed        outcomes           DISCONNECT, error, silence
//! ──CONNECT──▶ Authenticating ──▶ Claiming ──▶ Opening ──▶ Connected ─────────────▶ Draining ──▶ drained
//!               passwords,         registry    OpenSession  │   ▲                   outcomes that are still out
//!               certificates, ACL  hands over  CloseSession └───┘ PUBLISH, PUBREL, ...
//! ```
//!
//! **Driving.** After every `handle_*` call, take actions with [`Session::poll_action`] until it gives `None`, in order.
//! Feed no packet while [`Session::may_read`] is false. When [`Session::is_drained`], give
//! [`Session::take_state`] to the registry: it is what the next connection of the client resumes.
//!
//! **Answers.** Every claim on storage has a number. Numbers are dense, so the claims form one queue, and answers leave
//! from its head only: PUBACK and PUBREC go in the order of their PUBLISH packets [MQTT-4.6.0-2] whatever the order of
//! the outcomes.
//!
//! **QoS 2.** A Packet Identifier counts as known from the moment its PUBLISH is submitted, so a repeated PUBLISH is
//! answered and never stored again [MQTT-4.3.3-10]. A connection that ends first waits for all its outcomes (`Draining`)
//! and only then hands its state on; a resend on the next connection therefore always meets the final outcome.
//!
//! **A session that outlives its connection** is known durably before its CONNACK goes out: a strict 5.0 client that
//! gets Session Present 0 must discard what it has not had acknowledged.
//!
//! Nothing here reads a clock, a socket or a random source.

mod answers;
mod connect;
mod ending;
mod publish;
mod rate;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use self::ending::{CloseReason, StopReason};
pub use self::state::{DelayedWill, SessionState};

use self::answers::{Answers, Delivery};
use self::rate::Rate;
use crate::codec;
use crate::config::Limits;
use crate::inbound::Outcome;
use crate::packet::{Connect, Incoming, Outgoing, PacketId, Password, ProtocolVersion, QoS, Topic, Will};
use crate::reason::{ConnectReason, Reason};

/// What the driver of a session must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Find out whether this client may connect; answer with [`Session::handle_authenticated`].
    Authenticate(Login),
    /// Claim the Client Identifier at the registry; answer with [`Session::handle_claimed`].
    Claim(Arc<str>),
    /// Send a packet.
    Send(Outgoing),
    /// Hand to storage; answer with [`Session::handle_outcome`] and this number. QoS 0 has none: nobody waits.
    Submit(Option<u64>, Submission),
    /// Messages come faster than they may: nothing is read for a while. Only to be counted.
    Throttled,
    /// Send what is queued, then close the connection. Submissions may still follow, packets do not.
    Close(CloseReason),
}

/// What a CONNECT says of who it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Client Identifier, or the assigned one.
    pub client_id: Arc<str>,
    /// User Name.
    pub user_name: Option<Arc<str>>,
    /// Password.
    pub password: Option<Password>,
    /// Will Topic: a Will Message that may not be published is better refused now than dropped later.
    pub will_topic: Option<Arc<str>>,
}

/// [`crate::inbound::Inbound`] without its ticket, and without what only a driver knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submission {
    /// A PUBLISH or a Will Message.
    Publish(Publication),
    /// A PUBREL.
    Release(PacketId),
    /// The session outlives its connection by so many seconds.
    OpenSession(u32),
    /// The session has ended.
    CloseSession,
}

/// An accepted PUBLISH, or a Will Message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Who it is of, and so who must be allowed to publish it: of a Will Message whoever left it.
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
    /// With QoS 1 and 2, except for a Will Message.
    pub packet_id: Option<PacketId>,
    /// Whether the publisher can be told why the message is refused: 5.0 and not QoS 0.
    pub can_be_told: bool,
}

/// The protocol state of one connection.
#[derive(Debug)]
pub struct Session {
    limits: Arc<Limits>,
    phase: Phase,
    version: ProtocolVersion,
    client_id: Arc<str>,
    user_name: Option<Arc<str>>,
    /// The CONNECT until its CONNACK.
    connecting: Option<Box<Connecting>>,
    claim: Claim,
    /// What every CONNECT is answered with, when the broker takes no more.
    refuse_all: Option<ConnectReason>,

    /// Maximum Packet Size of the client, bytes.
    maximum_packet_size: Option<u32>,
    expiry_secs: u32,
    /// The expiry that storage knows; `None` when storage does not know this session.
    durable_expiry_secs: Option<u32>,
    /// QoS 2 deliveries that are not complete.
    deliveries: BTreeMap<PacketId, Delivery>,
    will: Option<Box<Will>>,
    delayed_will: Option<Box<DelayedWill>>,

    answers: Answers,
    /// QoS 1 and 2 PUBLISH of this connection that count against the Receive Maximum.
    in_flight: u32,
    /// Topic Aliases; index 0 is alias 1.
    aliases: Vec<Option<Topic>>,
    keep_alive: Option<Duration>,
    /// Of the CONNECT, or of its answer.
    connect_deadline: Instant,
    rate: Option<Rate>,
    /// Messages came too fast: nothing is read until then.
    throttled_until: Option<Instant>,
    heard_at: Instant,
    /// The latest `now` that was given.
    now: Instant,
    actions: VecDeque<Action>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing came yet.
    Fresh,
    /// CONNECT came; it is found out whether the client may connect.
    Authenticating,
    /// The registry is asked.
    Claiming,
    /// Storage is asked to open or close the session.
    Opening,
    /// CONNACK went out.
    Connected,
    /// Shutting down: answers go out, nothing is read.
    Stopping,
    /// Closed; outcomes are awaited, nothing is sent.
    Draining,
}

/// Whether this session holds its Client Identifier at the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    None,
    Waiting,
    Held,
}

/// What is kept between CONNECT and CONNACK.
#[derive(Debug)]
struct Connecting {
    connect: Connect,
    session_present: bool,
    /// An OpenSession or CloseSession failed.
    failed: bool,
    /// No session is resumed. One that never got its CONNACK ends: its client does not know that it began, and would
    /// take it for the one before.
    is_new: bool,
}

impl Session {
    /// A connection that was accepted at `now`, from which the time until its CONNECT counts. `assigned_client_id` is used when the client brings none. With
    /// `refuse_all`, every CONNECT is refused for this reason.
    pub fn new(
        limits: Arc<Limits>,
        assigned_client_id: Arc<str>,
        refuse_all: Option<ConnectReason>,
        now: Instant,
    ) -> Self {
        Self {
            connect_deadline: now + limits.connect_timeout,
            rate: NonZeroU32::new(limits.publish_rate_max).map(|rate| Rate::new(rate, now)),
            throttled_until: None,
            limits,
            phase: Phase::Fresh,
            version: ProtocolVersion::V311,
            client_id: assigned_client_id,
            user_name: None,
            connecting: None,
            claim: Claim::None,
            refuse_all,
            maximum_packet_size: None,
            expiry_secs: 0,
            durable_expiry_secs: None,
            deliveries: BTreeMap::new(),
            will: None,
            delayed_will: None,
            answers: Answers::default(),
            in_flight: 0,
            aliases: Vec::new(),
            keep_alive: None,
            heard_at: now,
            now,
            actions: VecDeque::new(),
        }
    }

    /// A packet came. The first must be a CONNECT [MQTT-3.1.0-1], and only the first may be [MQTT-3.1.0-2].
    pub fn handle_packet(&mut self, packet: Incoming, now: Instant) {
        self.handle_alive(now);
        match (self.phase, packet) {
            (Phase::Fresh, Incoming::Connect(connect)) => self.handle_connect(*connect, now),
            (Phase::Fresh, _) => self.violate(Reason::ProtocolError, "[MQTT-3.1.0-1] first packet is not CONNECT", now),
            (Phase::Connected, packet) => self.handle_connected(packet, now),
            // A driver that heeds `may_read` feeds nothing here; what it has buffered after a Close is of no interest.
            (Phase::Authenticating | Phase::Claiming | Phase::Opening | Phase::Stopping | Phase::Draining, _) => {}
        }
    }

    fn handle_connected(&mut self, packet: Incoming, now: Instant) {
        match packet {
            Incoming::Publish(publish) => {
                self.throttle(now);
                self.handle_publish(publish, now);
            }
            Incoming::PubRel { packet_id } => self.handle_pubrel(packet_id),
            Incoming::Subscribe { packet_id, filters } => self.send(Outgoing::SubAckRefused { packet_id, filters }),
            Incoming::Unsubscribe { packet_id, filters } => self.send(Outgoing::UnsubAck { packet_id, filters }),
            Incoming::PingReq => self.send(Outgoing::PingResp),
            Incoming::Disconnect { reason, session_expiry_secs } => {
                self.handle_disconnect(reason, session_expiry_secs, now);
            }
            Incoming::Connect(_) => self.violate(Reason::ProtocolError, "[MQTT-3.1.0-2] second CONNECT", now),
            Incoming::Auth => self.violate(Reason::ProtocolError, "AUTH without an Authentication Method", now),
        }
    }

    /// Storage answered a submission. An unknown number is ignored.
    pub fn handle_outcome(&mut self, number: u64, outcome: Outcome, now: Instant) {
        self.now = now;
        if !self.may_read() {
            self.heard_at = now; // while we did not read, silence was our own
        }
        self.answers.resolve(number, outcome);
    }

    /// Bytes came, or reading goes on after a pause that was ours: the Keep Alive starts again. Bytes count even before
    /// they are a whole packet, for a large one may take longer than the Keep Alive on a slow link.
    pub fn handle_alive(&mut self, now: Instant) {
        self.heard_at = now;
        self.now = now;
    }

    /// The instant of [`Session::poll_timeout`] may have come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|deadline| now < deadline) {
            return;
        }
        match self.phase {
            Phase::Fresh => self.end(CloseReason::ConnectTimeout, now),
            Phase::Authenticating | Phase::Claiming | Phase::Opening => {
                self.refuse_connect(ConnectReason::ServerUnavailable, now);
            }
            Phase::Connected if self.throttled_until.take().is_some() => self.handle_alive(now),
            Phase::Connected => {
                self.disconnect(Reason::KeepAliveTimeout);
                self.end(CloseReason::KeepAliveTimeout, now);
            }
            Phase::Stopping | Phase::Draining => {}
        }
    }

    /// When [`Session::handle_timeout`] is due. It moves with every packet; look again when it has come.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Fresh | Phase::Authenticating | Phase::Claiming | Phase::Opening => Some(self.connect_deadline),
            Phase::Connected if self.throttled_until.is_some() => self.throttled_until,
            Phase::Connected if self.may_read() => self.keep_alive.map(|limit| self.heard_at + limit),
            Phase::Connected | Phase::Stopping | Phase::Draining => None,
        }
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            let (number, reply, outcome) = self.answers.pop_resolved()?;
            self.settle(number, reply, outcome);
        }
    }

    /// Whether the next packet may be read. False while CONNECT is being answered, at the bound of unanswered packets
    /// (3.1.1 has no Receive Maximum, so TCP must tell the client), while messages come too fast, and after the end.
    pub fn may_read(&self) -> bool {
        match self.phase {
            Phase::Fresh => true,
            Phase::Connected => self.answers.len() < self.answers_max() && self.throttled_until.is_none(),
            Phase::Authenticating | Phase::Claiming | Phase::Opening | Phase::Stopping | Phase::Draining => false,
        }
    }

    /// Whether nothing is to come any more.
    pub fn is_drained(&self) -> bool {
        self.phase == Phase::Draining
            && self.claim != Claim::Waiting
            && self.answers.is_empty()
            && self.actions.is_empty()
    }

    /// Whether the CONNACK of an accepted CONNECT went out and the connection has not ended.
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Connected
    }

    /// Whether a CONNECT was seen: until then every frame must be decoded as one.
    pub fn expects_connect(&self) -> bool {
        self.phase == Phase::Fresh
    }

    /// Protocol Version of the CONNECT; 3.1.1 before it.
    pub fn version(&self) -> ProtocolVersion {
        self.version
    }

    /// Client Identifier of the CONNECT, or the assigned one.
    pub fn client_id(&self) -> &Arc<str> {
        &self.client_id
    }

    /// Gives back the memory of queues that are empty. For a driver that is about to wait for a quiet client.
    pub fn release_memory(&mut self) {
        self.answers.release_memory();
        if self.actions.is_empty() {
            self.actions = VecDeque::new();
        }
    }

    /// Unanswered packets at the bound. 5.0 leaves room above the Receive Maximum so that a client which exceeds it is
    /// told (0x93), and for the PUBRELs that do not count.
    fn answers_max(&self) -> usize {
        let receive_maximum = usize::from(self.limits.receive_maximum.get());
        match self.version {
            ProtocolVersion::V311 => receive_maximum,
            ProtocolVersion::V5 => 2 * receive_maximum,
        }
    }

    /// One more message. At the bound of their rate the socket is not read: TCP tells the client, and nothing is lost.
    fn throttle(&mut self, now: Instant) {
        self.throttled_until = self.rate.as_mut().and_then(|rate| rate.take(now));
        if self.throttled_until.is_some() {
            self.actions.push_back(Action::Throttled);
        }
    }

    fn is_v5(&self) -> bool {
        self.version == ProtocolVersion::V5
    }

    /// A packet larger than the client takes is not sent, and counts as sent [MQTT-3.1.2-24] [MQTT-3.1.2-25].
    fn send(&mut self, packet: Outgoing) {
        if self.fits_client(&packet) {
            self.actions.push_back(Action::Send(packet));
        }
    }

    fn fits_client(&self, packet: &Outgoing) -> bool {
        self.maximum_packet_size.is_none_or(|bytes| codec::encoded_len(packet, self.version) <= bytes as usize)
    }

    /// DISCONNECT, where the version has one.
    fn disconnect(&mut self, reason: Reason) {
        if self.is_v5() && matches!(self.phase, Phase::Connected | Phase::Stopping) {
            self.send(Outgoing::Disconnect { reason });
        }
    }
}
