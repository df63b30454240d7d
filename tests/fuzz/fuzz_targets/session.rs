//! One connection's life as a script: packets, outcomes in any order, time, and every way to end.
//!
//! Each byte of the input picks a step and the next one its argument. The driver keeps the contract of
//! `forebay_broker::session` (no packet while `may_read` is false, every `Claim` answered), and the oracle below holds
//! the session to what a publisher relies on: no acknowledgement of success before "stored", PUBACKs in order, a QoS 2
//! message submitted once, silence after the end, and an end that comes.
#![no_main]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay_broker::config::Limits;
use forebay_broker::inbound::{Outcome, Refusal};
use forebay_broker::packet::{Connect, Incoming, Outgoing, PacketId, ProtocolVersion, Publish, QoS, Topic, Will};
use forebay_broker::reason::{ConnectReason, Reason};
use forebay_broker::session::{Action, CloseReason, Session, SessionState, StopReason, Submission};
use libfuzzer_sys::fuzz_target;

const RECEIVE_MAXIMUM: u16 = 4;

fuzz_target!(|script: &[u8]| {
    let rate = script.first().map_or(0, |byte| u32::from(byte >> 6));
    let mut run = Run::new(rate, Instant::now());
    for step in script.chunks_exact(2) {
        run.step(step[0], step[1]);
    }
    run.finish();
});

struct Run {
    session: Session,
    now: Instant,
    /// An Authenticate that was not answered.
    is_asking: bool,
    /// A Claim that the registry has not answered.
    is_claiming: bool,
    is_closed: bool,
    /// Submissions without an outcome.
    open: BTreeMap<u64, Submission>,
    /// QoS 1 messages that were submitted and not acknowledged, in order, with their outcomes.
    unacknowledged: VecDeque<(u64, PacketId, Option<Outcome>)>,
    /// QoS 2 Packet Identifiers that were submitted, or came with the session, and were not released.
    known: BTreeSet<PacketId>,
    /// Those that are on disk, or were.
    stored: BTreeSet<PacketId>,
    /// Those whose PUBREC of success the client has.
    received: BTreeSet<PacketId>,
    /// Those whose PUBREL waits for its PUBCOMP.
    releasing: BTreeSet<PacketId>,
}

impl Run {
    fn new(publish_rate_max: u32, now: Instant) -> Self {
        let limits = Limits {
            receive_maximum: NonZeroU16::new(RECEIVE_MAXIMUM).expect("not zero"),
            topic_alias_maximum: 3,
            publish_rate_max,
            ..Limits::default()
        };
        Self {
            session: Session::new(Arc::new(limits), "assigned".into(), None, now),
            now,
            is_asking: false,
            is_claiming: false,
            is_closed: false,
            open: BTreeMap::new(),
            unacknowledged: VecDeque::new(),
            known: BTreeSet::new(),
            stored: BTreeSet::new(),
            received: BTreeSet::new(),
            releasing: BTreeSet::new(),
        }
    }

    fn step(&mut self, step: u8, argument: u8) {
        match step % 16 {
            0..=7 => self.packet(step, argument),
            8..=10 => self.outcome(argument),
            11 => self.advance(Duration::from_millis(u64::from(argument) * 200)),
            12 => self.advance(Duration::ZERO),
            13 => self.claimed(argument),
            14 => self.end(argument),
            _ => self.session.release_memory(),
        }
        self.take_actions();
    }

    fn packet(&mut self, step: u8, argument: u8) {
        if !self.session.may_read() {
            return;
        }
        let id = packet_id(argument);
        if !self.is_conformant(step % 16, id) {
            return;
        }
        let packet = match (self.session.expects_connect(), step % 16) {
            (true, _) => Incoming::Connect(Box::new(connect(argument))),
            (false, 0) => Incoming::Publish(publish(QoS::AtMostOnce, argument)),
            (false, 1 | 2) => Incoming::Publish(publish(QoS::AtLeastOnce, argument)),
            (false, 3 | 4) => Incoming::Publish(publish(QoS::ExactlyOnce, argument)),
            (false, 5) => Incoming::PubRel { packet_id: id },
            (false, 6) => Incoming::Subscribe { packet_id: id, filters: 1 },
            (false, _) if argument < 250 => Incoming::PingReq,
            (false, _) => {
                let session_expiry_secs = (argument & 1 == 1).then_some(u32::from(argument));
                Incoming::Disconnect { reason: if argument & 2 == 2 { 4 } else { 0 }, session_expiry_secs }
            }
        };
        self.session.handle_packet(packet, self.now);
    }

    /// Whether a client may send this: PUBREL follows PUBREC, and until PUBCOMP the Packet Identifier is taken. For a client
    /// that breaks this, an answer cannot be told apart from the answer to the message before. Sending a PUBLISH again on
    /// the same connection, which 5.0 forbids [MQTT-4.4.0-1], is tried all the same.
    fn is_conformant(&self, step: u8, id: PacketId) -> bool {
        match step {
            3 | 4 => !self.releasing.contains(&id),
            5 => !self.known.contains(&id) || self.received.contains(&id),
            _ => true,
        }
    }

    /// Resolves the claim that `argument` picks.
    fn outcome(&mut self, argument: u8) {
        let outcome = match argument >> 4 {
            0 => Outcome::Unavailable,
            1 => Outcome::Refused(Refusal::NoDataset),
            _ => Outcome::Stored,
        };
        let index = usize::from(argument & 0x0F) % self.open.len().max(1);
        match self.open.keys().nth(index).copied() {
            Some(number) => self.resolve(number, outcome),
            None => self.session.handle_outcome(u64::from(argument), outcome, self.now),
        }
    }

    fn resolve(&mut self, number: u64, outcome: Outcome) {
        let submission = self.open.remove(&number).expect("open");
        if let Submission::Publish(publication) = submission {
            match (publication.qos, publication.packet_id) {
                (QoS::AtLeastOnce, Some(_)) => {
                    let mut waiting = self.unacknowledged.iter_mut();
                    let entry = waiting.find(|entry| entry.0 == number).expect("unacknowledged");
                    entry.2 = Some(outcome);
                }
                (QoS::ExactlyOnce, Some(id)) if outcome == Outcome::Stored => drop(self.stored.insert(id)),
                _ => {}
            }
        }
        self.session.handle_outcome(number, outcome, self.now);
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        self.session.handle_timeout(self.now);
    }

    fn claimed(&mut self, argument: u8) {
        if std::mem::take(&mut self.is_asking) {
            let result = match argument {
                0..=15 => Err(ConnectReason::BadUserNameOrPassword),
                16..=127 => Ok(Some("user".into())),
                _ => Ok(None),
            };
            self.session.handle_authenticated(result, self.now);
            return;
        }
        if !std::mem::take(&mut self.is_claiming) {
            return;
        }
        let state = (argument & 1 == 1).then(|| SessionState {
            expiry_secs: u32::from(argument >> 4),
            packet_ids: (1..=u16::from(argument >> 1 & 0b11)).filter_map(NonZeroU16::new).collect(),
            will: None,
        });
        for &id in state.iter().flat_map(|state| &state.packet_ids) {
            self.stored.insert(id);
            self.received.insert(id);
        }
        self.session.handle_claimed(state, self.now);
    }

    fn end(&mut self, argument: u8) {
        match argument {
            0..=3 => self.session.handle_closed(CloseReason::PeerClosed, self.now),
            4..=7 => self.session.handle_malformed(Reason::MalformedPacket, self.now),
            8..=11 => self.session.handle_stop(StopReason::TakenOver, self.now),
            12..=15 => self.session.handle_stop(StopReason::ShuttingDown, self.now),
            16..=19 => self.session.handle_stop(StopReason::Revoked, self.now),
            20..=23 => self.session.handle_unfinished(CloseReason::PacketTimeout, self.now),
            _ => {}
        }
    }

    fn take_actions(&mut self) {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Authenticate(_) => self.is_asking = true,
                Action::Throttled => assert!(!self.session.may_read()),
                Action::Claim(_) => self.is_claiming = true,
                Action::Send(packet) => self.sent(&packet),
                Action::Submit(number, submission) => self.submitted(number, submission),
                Action::Close(_) => {
                    assert!(!self.is_closed, "closed twice");
                    self.is_closed = true;
                }
            }
        }
        assert!(self.open.len() <= 2 * usize::from(RECEIVE_MAXIMUM) + 8, "unbounded");
        assert!(!self.is_closed || !self.session.may_read());
    }

    fn sent(&mut self, packet: &Outgoing) {
        assert!(!self.is_closed, "sent after the end: {packet:?}");
        match packet {
            Outgoing::PubAck { packet_id, reason } => {
                let (_, id, outcome) = self.unacknowledged.pop_front().expect("a PUBLISH before its PUBACK");
                assert_eq!(id, *packet_id, "out of order");
                assert_eq!(outcome == Some(Outcome::Stored), *reason == Reason::Success);
            }
            Outgoing::PubRec { packet_id, reason: Reason::Success } => {
                assert!(self.stored.contains(packet_id), "PUBREC before it is stored");
                self.received.insert(*packet_id);
            }
            Outgoing::PubRec { packet_id, .. } => {
                self.known.remove(packet_id);
            }
            Outgoing::PubComp { packet_id, .. } => {
                self.releasing.remove(packet_id);
            }
            _ => {}
        }
    }

    fn submitted(&mut self, number: Option<u64>, submission: Submission) {
        if let Submission::Publish(publication) = &submission {
            match (publication.qos, publication.packet_id, number) {
                (QoS::AtLeastOnce, Some(id), Some(number)) => self.unacknowledged.push_back((number, id, None)),
                (QoS::ExactlyOnce, Some(id), Some(_)) => {
                    assert!(self.known.insert(id), "a QoS 2 message submitted twice");
                    self.stored.remove(&id);
                    self.received.remove(&id);
                }
                _ => assert!(publication.will || publication.qos == QoS::AtMostOnce),
            }
        }
        if let Submission::Release(id) = &submission {
            self.known.remove(id);
            self.releasing.insert(*id);
        }
        if let Some(number) = number {
            assert!(self.open.insert(number, submission).is_none(), "a number twice");
        }
    }

    /// However it stands, it ends: closed, claim answered, all outcomes in.
    fn finish(&mut self) {
        self.session.handle_closed(CloseReason::PeerClosed, self.now);
        self.take_actions();
        self.claimed(0);
        self.take_actions();
        while let Some((&number, _)) = self.open.first_key_value() {
            self.resolve(number, Outcome::Stored);
            self.take_actions();
        }
        assert!(self.is_closed && self.session.is_drained());
        assert_eq!(self.session.poll_timeout(), None);
    }
}

fn connect(argument: u8) -> Connect {
    let bit = |bit: u8| argument & (1 << bit) != 0;
    Connect {
        version: if bit(0) { ProtocolVersion::V5 } else { ProtocolVersion::V311 },
        clean_start: bit(1),
        keep_alive_secs: if bit(2) { 10 } else { 0 },
        client_id: if bit(3) { "" } else { "c" }.into(),
        will: bit(4).then(|| Will {
            topic: "will".into(),
            payload: Bytes::new(),
            qos: QoS::AtLeastOnce,
            retain: false,
            delay_secs: if bit(5) { 5 } else { 0 },
        }),
        user_name: None,
        password: None,
        session_expiry_secs: if bit(6) { 60 } else { 0 },
        receive_maximum: NonZeroU16::MAX,
        maximum_packet_size: None,
        request_problem_information: true,
        has_authentication_method: argument == 0xFF,
    }
}

fn publish(qos: QoS, argument: u8) -> Publish {
    let alias = NonZeroU16::new(u16::from(argument >> 5 & 0b11)).filter(|_| argument & 0x80 != 0);
    let topic: &'static str = if alias.is_some() && argument & 0x10 != 0 { "" } else { "a/b" };
    Publish {
        dup: qos != QoS::AtMostOnce && argument & 0x08 != 0,
        qos,
        retain: false,
        topic: Topic::new(Bytes::from_static(topic.as_bytes())).expect("a Topic Name"),
        packet_id: (qos != QoS::AtMostOnce).then(|| packet_id(argument)),
        topic_alias: alias,
        payload: Bytes::from_static(b"x"),
    }
}

/// One of six.
fn packet_id(argument: u8) -> PacketId {
    NonZeroU16::MIN.saturating_add(u16::from(argument & 0x07) % 6)
}
