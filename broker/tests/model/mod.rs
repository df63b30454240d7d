//! The world of `session_model`: what devices, storage and the network may do, and what must hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use forebay_broker::config::Limits;
use forebay_broker::inbound::{Outcome, Refusal};
use forebay_broker::packet::{Connect, Incoming, Outgoing, PacketId, ProtocolVersion, Publish, QoS, Topic};
use forebay_broker::reason::{ConnectReason, Reason};
use forebay_broker::registry::{Claim, Due, Registry};
use forebay_broker::session::{Action, CloseReason, Session, SessionState, StopReason, Submission};

const DEVICES: usize = 3;
const RECEIVE_MAXIMUM: u16 = 4;

/// How often each trouble happened, so that a tame world is noticed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    counts: BTreeMap<&'static str, u64>,
}

impl Seen {
    fn note(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_default() += count;
        }
    }

    pub(crate) fn everything_happened(&self) -> bool {
        let everything = [
            "puback",
            "pubcomp",
            "cut",
            "takeover",
            "restart",
            "resumed",
            "discarded",
            "refused",
            "unavailable",
            "closed by caretaker",
            "completed at last",
        ];
        everything.iter().all(|what| self.counts.get(what).is_some_and(|count| *count > 100))
    }
}

/// A message that its device has not had completed.
struct Kept {
    id: u16,
    message: u32,
    qos: QoS,
    released: bool,
}

struct Device {
    version: ProtocolVersion,
    connection: Option<usize>,
    is_connected: bool,
    expiry_secs: u32,
    clean_start: bool,
    /// Until when its session must be resumed, and how many had been dropped when that was promised.
    promised: Option<(Instant, u64)>,
    kept: Vec<Kept>,
    /// Identifiers published on this connection and not answered, in order.
    unanswered: VecDeque<u16>,
    outbox: VecDeque<Incoming>,
}

struct Submitted {
    by: Option<(usize, u64)>,
    device: usize,
    submission: Submission,
}

struct Answered {
    by: Option<(usize, u64)>,
    device: usize,
    outcome: Outcome,
}

/// Storage: submissions take effect in order, outcomes arrive in any.
#[derive(Default)]
struct Storage {
    queue: VecDeque<Submitted>,
    outcomes: Vec<Answered>,
    expiry_secs: BTreeMap<usize, u32>,
    packet_ids: BTreeSet<(usize, PacketId)>,
    /// How often each message is stored.
    messages: BTreeMap<u32, u32>,
}

pub(crate) struct World {
    pub(crate) seen: Seen,
    rng: Rng,
    now: Instant,
    limits: Arc<Limits>,
    registry: Registry<usize>,
    sessions: BTreeMap<usize, Session>,
    next_connection: usize,
    next_message: u32,
    next_id: u16,
    devices: Vec<Device>,
    /// QoS 2 messages whose session goes on, with their device.
    exactly_once: BTreeMap<u32, usize>,
    storage: Storage,
    is_calm: bool,
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    pub(crate) fn new(seed: u64) -> Self {
        let receive_maximum = NonZeroU16::new(RECEIVE_MAXIMUM).expect("not zero");
        let device = |number| Device {
            version: if number == 0 { ProtocolVersion::V311 } else { ProtocolVersion::V5 },
            connection: None,
            is_connected: false,
            expiry_secs: 0,
            clean_start: false,
            promised: None,
            kept: Vec::new(),
            unanswered: VecDeque::new(),
            outbox: VecDeque::new(),
        };
        Self {
            seen: Seen::default(),
            rng: Rng::with_seed(seed),
            now: Instant::now(),
            limits: Arc::new(Limits { receive_maximum, session_expiry_secs_max: 60, ..Limits::default() }),
            registry: Registry::new(DEVICES - 1),
            sessions: BTreeMap::new(),
            next_connection: 0,
            next_message: 0,
            next_id: 0,
            devices: (0..DEVICES).map(device).collect(),
            exactly_once: BTreeMap::new(),
            storage: Storage::default(),
            is_calm: false,
        }
    }

    pub(crate) fn step(&mut self) {
        let device = self.rng.usize(..DEVICES);
        match self.rng.u32(..100) {
            0..=29 => self.publish(device),
            30..=59 => self.deliver(device),
            60..=74 => self.store_one(),
            75..=89 => self.answer_one(),
            90..=92 if self.devices[device].connection.is_none() => self.connect(device),
            93 => self.connect(device), // while the old connection is there: takeover
            94 | 95 => self.cut(device),
            96 => self.pass(),
            97 if self.rng.u8(..4) == 0 => self.restart(),
            _ => self.send_nonsense(device),
        }
    }

    /// The troubles end: everybody comes back and completes.
    pub(crate) fn settle(&mut self) {
        self.is_calm = true;
        for _ in 0..200 {
            for device in 0..DEVICES {
                if self.devices[device].connection.is_none() {
                    self.connect(device);
                }
                self.deliver(device);
            }
            self.store_one();
            self.answer_one();
        }
        for device in &self.devices {
            assert!(device.is_connected && device.kept.is_empty(), "a device waits for ever");
        }
        self.seen.note("completed at last");
    }

    fn connect(&mut self, device: usize) {
        if self.devices[device].connection.is_some() {
            self.seen.note("takeover");
            self.detach(device);
        }
        // A client that has thrown its state away insists until it is told so [MQTT-3.2.2-4].
        let clean_start = self.devices[device].clean_start || (!self.is_calm && self.rng.u8(..10) == 0);
        if clean_start {
            self.devices[device].kept.clear();
        }
        let version = self.devices[device].version;
        let session_expiry_secs = *self.rng.choice(&[0, 3, 60]).expect("a choice");
        let connection = self.next_connection;
        self.next_connection += 1;
        let session = Session::new(self.limits.clone(), "assigned".into(), None, self.now);
        self.sessions.insert(connection, session);
        self.devices[device].connection = Some(connection);
        self.devices[device].clean_start = clean_start;
        self.devices[device].expiry_secs = match (version, clean_start) {
            (ProtocolVersion::V5, _) => session_expiry_secs,
            (ProtocolVersion::V311, false) => 60,
            (ProtocolVersion::V311, true) => 0,
        };
        // What the CONNECT asks for may take effect without its CONNACK.
        let ends_at = self.now + Duration::from_secs(self.devices[device].expiry_secs.into());
        let promised = self.devices[device].promised.map(|(until, dropped)| (until.min(ends_at), dropped));
        self.devices[device].promised = promised.filter(|_| !clean_start);
        self.devices[device].outbox.push_back(Incoming::Connect(Box::new(Connect {
            version,
            clean_start,
            keep_alive_secs: 0,
            client_id: name(device),
            will: None,
            user_name: None,
            password: None,
            session_expiry_secs,
            receive_maximum: NonZeroU16::MAX,
            maximum_packet_size: None,
            request_problem_information: true,
            has_authentication_method: false,
        })));
    }

    /// The network breaks; the broker notices at once.
    fn cut(&mut self, device: usize) {
        let Some(connection) = self.devices[device].connection else { return };
        self.seen.note("cut");
        self.detach(device);
        if let Some(session) = self.sessions.get_mut(&connection) {
            session.handle_closed(CloseReason::PeerClosed, self.now);
        }
        self.drive(connection);
    }

    fn detach(&mut self, device: usize) {
        let device = &mut self.devices[device];
        if device.is_connected {
            let until = self.now + Duration::from_secs(device.expiry_secs.into());
            device.promised = Some((until, self.registry.sessions_dropped()));
        }
        device.connection = None;
        device.is_connected = false;
        device.outbox.clear();
        device.unanswered.clear();
    }

    fn publish(&mut self, number: usize) {
        let qos = if self.rng.bool() { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        let device = &mut self.devices[number];
        if !device.is_connected || device.kept.len() >= usize::from(RECEIVE_MAXIMUM) {
            return;
        }
        self.next_message += 1;
        if qos == QoS::ExactlyOnce {
            self.exactly_once.insert(self.next_message, number);
        }
        self.next_id = self.next_id % 8 + 1; // few, so that they are used again and again
        while device.kept.iter().any(|kept| kept.id == self.next_id) {
            self.next_id = self.next_id % 8 + 1;
        }
        let kept = Kept { id: self.next_id, message: self.next_message, qos, released: false };
        device.outbox.push_back(publish(&kept));
        device.kept.push(kept);
    }

    /// Packets that no client should send; whatever comes, it must not harm what is kept.
    fn send_nonsense(&mut self, device: usize) {
        let device = &mut self.devices[device];
        if device.is_connected && self.rng.bool() {
            device.outbox.push_back(Incoming::PubRel { packet_id: id(1_000) });
        } else if device.is_connected {
            device.outbox.push_back(Incoming::Auth);
        }
    }

    fn deliver(&mut self, number: usize) {
        let device = &mut self.devices[number];
        let Some(connection) = device.connection else { return };
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        if !session.may_read() {
            return;
        }
        let Some(packet) = device.outbox.pop_front() else { return };
        if let Incoming::Publish(publish) = &packet {
            device.unanswered.extend(publish.packet_id.map(PacketId::get));
        }
        session.handle_packet(packet, self.now);
        self.drive(connection);
    }

    fn receive(&mut self, number: usize, packet: &Outgoing) {
        let device = &mut self.devices[number];
        match packet {
            Outgoing::ConnAck(connack) if connack.reason == ConnectReason::Success => {
                device.is_connected = true;
                self.seen.note(if connack.session_present { "resumed" } else { "discarded" });
                let promise = device.promised.take().filter(|_| !device.clean_start);
                let is_due = promise
                    .is_some_and(|(until, dropped)| self.now < until && dropped == self.registry.sessions_dropped());
                assert!(connack.session_present || !is_due, "a session that was promised is gone");
                device.clean_start = false;
                if !connack.session_present {
                    device.kept.clear(); // a strict client [MQTT-3.2.2-5]
                }
                device.outbox.extend(device.kept.iter().map(publish));
            }
            Outgoing::PubAck { packet_id, reason } | Outgoing::PubRec { packet_id, reason } => {
                assert_eq!(device.unanswered.pop_front(), Some(packet_id.get()), "out of order");
                let at = device.kept.iter().position(|kept| kept.id == packet_id.get()).expect("it was sent");
                let kept = &mut device.kept[at];
                if *reason != Reason::Success {
                    device.kept.remove(at);
                    return;
                }
                let times = self.storage.messages.get(&kept.message).copied().unwrap_or(0);
                assert!(times > 0, "acknowledged and not stored");
                if matches!(packet, Outgoing::PubRec { .. }) {
                    assert_eq!(kept.qos, QoS::ExactlyOnce);
                    assert!(times == 1 || !self.exactly_once.contains_key(&kept.message));
                    kept.released = true;
                    device.outbox.push_back(Incoming::PubRel { packet_id: *packet_id });
                } else {
                    self.seen.note("puback");
                    device.kept.remove(at);
                }
            }
            Outgoing::PubComp { packet_id, .. } => {
                self.seen.note("pubcomp");
                device.kept.retain(|kept| kept.id != packet_id.get());
            }
            _ => {}
        }
    }

    /// Does what a session wants, and what follows from it.
    fn drive(&mut self, connection: usize) {
        let mut todo = vec![connection];
        while let Some(connection) = todo.pop() {
            while let Some(action) = self.sessions.get_mut(&connection).and_then(Session::poll_action) {
                let session = self.sessions.get_mut(&connection).expect("it acted");
                let number = number_of(session.client_id());
                let attached = self.devices.iter().position(|device| device.connection == Some(connection));
                match action {
                    Action::Authenticate(_) => session.handle_authenticated(Ok(None), self.now),
                    Action::Throttled => {}
                    Action::Claim(client_id) => match self.registry.claim(&client_id, connection, self.now) {
                        Claim::Granted(state) => session.handle_claimed(state, self.now),
                        Claim::Queued { behind } => {
                            let stopped = behind.and_then(|behind| Some((behind, self.sessions.get_mut(&behind)?)));
                            if let Some((behind, session)) = stopped {
                                session.handle_stop(StopReason::TakenOver, self.now);
                                todo.push(behind);
                            }
                        }
                    },
                    Action::Send(packet) => attached.into_iter().for_each(|device| self.receive(device, &packet)),
                    Action::Submit(claim, submission) => {
                        let by = claim.map(|claim| (connection, claim));
                        self.storage.queue.push_back(Submitted { by, device: number, submission });
                    }
                    Action::Close(_) => attached.into_iter().for_each(|device| self.detach(device)),
                }
            }
            if self.sessions.get(&connection).is_some_and(Session::is_drained) {
                let mut session = self.sessions.remove(&connection).expect("it is drained");
                let next = session.take_state().and_then(|(id, state)| self.registry.release(&id, state, self.now));
                todo.extend(self.grant(next));
            }
        }
    }

    fn grant(&mut self, next: Option<(usize, Option<SessionState>)>) -> Option<usize> {
        let (next, state) = next?;
        self.sessions.get_mut(&next)?.handle_claimed(state, self.now);
        Some(next)
    }

    /// The submission that is first in the queue takes effect, or fails.
    fn store_one(&mut self) {
        let Some(Submitted { by, device, submission }) = self.storage.queue.pop_front() else { return };
        let outcome = match self.rng.u8(..40) {
            0 if !self.is_calm => Outcome::Unavailable,
            1 if !self.is_calm && matches!(submission, Submission::Publish(_)) => {
                Outcome::Refused(Refusal::NotAuthorized)
            }
            _ => Outcome::Stored,
        };
        match outcome {
            Outcome::Stored => self.apply(device, submission),
            Outcome::Refused(_) => self.seen.note("refused"),
            Outcome::Unavailable => self.seen.note("unavailable"),
        }
        self.storage.outcomes.push(Answered { by, device, outcome });
    }

    fn apply(&mut self, device: usize, submission: Submission) {
        let storage = &mut self.storage;
        match submission {
            Submission::Publish(publication) => {
                let message = u32::from_be_bytes(publication.payload[..].try_into().expect("four bytes"));
                let times = storage.messages.entry(message).or_default();
                *times += 1;
                assert!(*times == 1 || !self.exactly_once.contains_key(&message), "stored twice");
                if publication.qos == QoS::ExactlyOnce {
                    let is_new = storage.packet_ids.insert((device, publication.packet_id.expect("QoS 2")));
                    assert!(is_new, "an identifier that is in use in storage");
                }
            }
            Submission::Release(packet_id) => {
                storage.packet_ids.remove(&(device, packet_id));
            }
            Submission::OpenSession(expiry_secs) => {
                storage.expiry_secs.insert(device, expiry_secs);
            }
            Submission::CloseSession => {
                storage.expiry_secs.remove(&device);
                storage.packet_ids.retain(|(owner, _)| *owner != device);
                // Exactly once holds until the session ends; a client that missed its end may send again.
                let stored = &storage.messages;
                self.exactly_once.retain(|message, owner| *owner != device || !stored.contains_key(message));
            }
        }
    }

    /// Some outcome arrives.
    fn answer_one(&mut self) {
        if self.storage.outcomes.is_empty() {
            return;
        }
        let index = self.rng.usize(..self.storage.outcomes.len());
        let Answered { by, device, outcome } = self.storage.outcomes.swap_remove(index);
        let Some((connection, claim)) = by else {
            self.seen.note("closed by caretaker");
            let ended = SessionState { expiry_secs: 0, packet_ids: Vec::new(), will: None };
            let state = (outcome != Outcome::Stored).then_some(ended);
            let next = self.registry.release(&name(device), state, self.now);
            if let Some(next) = self.grant(next) {
                self.drive(next);
            }
            return;
        };
        if let Some(session) = self.sessions.get_mut(&connection) {
            session.handle_outcome(claim, outcome, self.now);
        }
        self.drive(connection);
    }

    fn pass(&mut self) {
        self.now += Duration::from_millis(self.rng.u64(..2_000));
        while let Some(due) = self.registry.poll_due(self.now) {
            if let Due::Ended(client_id, _) = due {
                let device = number_of(&client_id);
                let submission = Submission::CloseSession;
                self.storage.queue.push_back(Submitted { by: None, device, submission });
            }
        }
    }

    /// The agent is killed and started again: what was queued may or may not have been stored, outcomes are lost.
    fn restart(&mut self) {
        self.seen.note("restart");
        for _ in 0..self.rng.usize(..=self.storage.queue.len()) {
            self.store_one();
        }
        self.storage.queue.clear();
        self.storage.outcomes.clear();
        self.sessions.clear();
        (0..DEVICES).for_each(|device| self.detach(device));
        let dropped = self.registry.sessions_dropped();
        for device in &mut self.devices {
            let promised = device.promised.filter(|(_, dropped_then)| *dropped_then == dropped);
            device.promised = promised.map(|(until, _)| (until, 0));
        }
        self.registry = Registry::new(DEVICES - 1);
        for device in 0..DEVICES {
            let ids = self.storage.packet_ids.iter().filter(|(owner, _)| *owner == device);
            let packet_ids: Vec<_> = ids.map(|(_, packet_id)| *packet_id).collect();
            let expiry_secs = self.storage.expiry_secs.get(&device).copied();
            if expiry_secs.is_some() || !packet_ids.is_empty() {
                let state = SessionState { expiry_secs: expiry_secs.unwrap_or(0), packet_ids, will: None };
                self.registry.restore(name(device), state, self.now);
            }
        }
    }
}

fn publish(kept: &Kept) -> Incoming {
    let packet_id = id(kept.id);
    if kept.released {
        return Incoming::PubRel { packet_id };
    }
    Incoming::Publish(Publish {
        dup: false,
        qos: kept.qos,
        retain: false,
        topic: Topic::new(Bytes::from_static(b"t")).expect("a topic"),
        packet_id: Some(packet_id),
        topic_alias: None,
        payload: Bytes::copy_from_slice(&kept.message.to_be_bytes()),
    })
}

fn name(device: usize) -> Arc<str> {
    device.to_string().into()
}

fn number_of(client_id: &str) -> usize {
    client_id.parse().unwrap_or(usize::MAX)
}

fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not zero")
}
