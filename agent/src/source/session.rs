//! The client's side of MQTT as a value: what a broker sends goes in, what must be done comes out. (pure)
//!
//! ```text
//! handle_packet(packet, now) ┐                          ┌ Send(packet)
//! handle_outcome(n, outcome) ├──▶ Session ──poll_action─┼ Submit(n, submission)  ─▶ spool ─▶ handle_outcome(n, outcome)
//! handle_timeout(now, ..)    │                          ├ Subscribed
//! handle_end(cause)          ┘                          └ Close(cause)
//! ```
//!
//! # What is acknowledged, and when
//!
//! | the broker sends | we submit | once that is on disk we answer |
//! | --- | --- | --- |
//! | PUBLISH QoS 1 | the message with its Packet Identifier | PUBACK |
//! | PUBLISH QoS 2 | the same, unless the spool has the identifier | PUBREC |
//! | PUBREL | the release of the identifier | PUBCOMP, also for an identifier that nobody knows |
//!
//! A PUBCOMP before the release is on disk would let the broker use the identifier again; were we killed then, the next
//! message of that identifier would be taken for the old one and be lost. That, and that it ends a connection in which a
//! PUBREL comes for an identifier of an earlier one, is why rumqttc's own event loop is not used: it answers PUBREL by
//! itself, and forgets identifiers with the connection.
//!
//! Answers leave in the order in which the packets came `[MQTT-4.6.0-2]`. A session belongs to one connection: what the
//! spool answers after that connection has ended reaches nobody, so no answer can meet the wrong packet.
//!
//! An outcome *not now* ends the connection unanswered; the broker keeps the message and sends it again.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use forebay_broker::inbound::Outcome;
use forebay_broker::packet::{PacketId, ProtocolVersion, QoS};

use super::packet::{Incoming, Outgoing, Publish};
use super::reason;
use crate::config::Subscription;

/// How long a broker may take from our CONNECT to its CONNACK, and from our SUBSCRIBE to its SUBACK.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// Our own packets that want an answer; the broker's identifiers are another space `[MQTT-2.3.1-4]`.
const UNSUBSCRIBE_ID: u16 = 1;
const SUBSCRIBE_ID: u16 = 2;
/// Reason Codes of a DISCONNECT.
const NORMAL: u8 = 0x00;
const QUOTA_EXCEEDED: u8 = 0x97;
const PROTOCOL_ERROR: u8 = 0x82;

/// What a session is begun with.
#[derive(Clone, Debug)]
pub struct Options {
    /// 3.1.1 or 5.0.
    pub version: ProtocolVersion,
    /// Client Identifier.
    pub client_id: String,
    /// What is subscribed to.
    pub topics: Vec<Subscription>,
    /// Filters of an earlier configuration, which the broker may still know.
    pub stale_filters: Vec<String>,
    /// What the spool keeps for this source is of another broker or another Client Identifier.
    pub is_elsewhere: bool,
    /// Keep Alive.
    pub keep_alive: Duration,
    /// Messages that may wait for the disk.
    pub receive_maximum: NonZeroU16,
}

/// What the driver has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write this.
    Send(Outgoing),
    /// Store this, and say what became of it.
    Submit(u64, Submission),
    /// The broker has answered our SUBSCRIBE: from here on silence means that there is nothing.
    Subscribed {
        /// What was not granted as it was asked for, a line for people.
        problem: Option<String>,
    },
    /// Close the connection; nothing more comes.
    Close(Cause),
}

/// What is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submission {
    /// A message.
    Publish(Publish),
    /// A Packet Identifier of QoS 2 is free again.
    Release(PacketId),
    /// The broker has forgotten the session, and its Packet Identifiers with it.
    Forget,
}

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// We were told to stop, and everything is answered.
    Stopped,
    /// The spool could not store a message now.
    NotStored,
    /// A line for people; `for_good`: trying again without a change cannot help.
    Failed {
        /// What happened, and what to change.
        problem: String,
        /// Only a person can help.
        for_good: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// CONNECT is sent.
    Connecting { until: Instant },
    /// The spool forgets what is of another session; SUBSCRIBE waits for that, so that no message comes before.
    Forgetting,
    /// SUBSCRIBE is sent; messages may come already.
    Subscribing { until: Instant },
    /// All is said.
    Live,
    /// Nothing more is taken; what was taken is answered.
    Ending,
    /// Over.
    Closed,
}

/// Something that the spool has not answered yet.
#[derive(Clone, Copy, Debug)]
struct Open {
    number: u64,
    answer: Answer,
    is_stored: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Nothing,
    Subscribe,
    PubAck(PacketId),
    PubRec(PacketId),
    PubComp(PacketId),
}

/// One connection's session.
#[derive(Debug)]
pub struct Session {
    options: Options,
    keep_alive: Duration,
    phase: Phase,
    /// Why it ends, while it does, and the Reason Code that the broker is told.
    end: (Cause, u8),
    open: VecDeque<Open>,
    next_number: u64,
    actions: VecDeque<Action>,
    last_sent: Instant,
    last_received: Instant,
    /// A PINGREQ that nothing has followed yet.
    pinged: Option<Instant>,
    /// The broker knew the session, and so perhaps filters that we no longer want.
    may_unsubscribe: bool,
}

impl Session {
    /// Begins with a CONNECT.
    #[must_use]
    pub fn new(options: Options, login: Option<(String, String)>, now: Instant) -> Self {
        let connect = Outgoing::Connect {
            client_id: options.client_id.clone(),
            login,
            keep_alive_secs: u16::try_from(options.keep_alive.as_secs()).unwrap_or(u16::MAX),
            receive_maximum: options.receive_maximum,
        };
        Self {
            keep_alive: options.keep_alive,
            options,
            phase: Phase::Connecting { until: now + ANSWER_MAX },
            end: (Cause::Stopped, NORMAL),
            open: VecDeque::new(),
            next_number: 0,
            actions: VecDeque::from([Action::Send(connect)]),
            last_sent: now,
            last_received: now,
            pinged: None,
            may_unsubscribe: false,
        }
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether [`poll_action`](Self::poll_action) has something.
    #[must_use]
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// Whether another packet may be read. While not, the broker waits, and so does its keep-alive for us.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        !matches!(self.phase, Phase::Ending | Phase::Closed)
            && self.open.len() < usize::from(self.options.receive_maximum.get())
    }

    /// How many submissions wait to be on disk.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Bytes came: the broker is alive, however long the packet is that they belong to.
    pub fn handle_bytes(&mut self, now: Instant) {
        self.last_received = now;
        self.pinged = None;
        if let Phase::Subscribing { until } = &mut self.phase {
            *until = now + ANSWER_MAX;
        }
    }

    /// A packet came.
    pub fn handle_packet(&mut self, packet: Incoming, now: Instant) {
        self.handle_bytes(now);
        match (self.phase, packet) {
            (Phase::Ending | Phase::Closed, _) | (_, Incoming::PingResp | Incoming::UnsubAck) => {}
            (Phase::Connecting { .. }, Incoming::ConnAck { session_present, code: 0, keep_alive_secs, .. }) => {
                self.handle_connected(session_present, keep_alive_secs, now);
            }
            (Phase::Connecting { .. }, Incoming::ConnAck { code, words, .. }) => self.handle_refused(code, words),
            (_, Incoming::Disconnect { code, words }) => {
                let problem = format!("the broker closed the connection: {}", reason::with_words(code, words));
                self.close(Cause::Failed { problem: problem + reason::advice(code), for_good: false });
            }
            (Phase::Connecting { .. }, _) | (_, Incoming::ConnAck { .. }) => {
                self.protocol_error("a packet that may not come at this time");
            }
            (_, Incoming::Publish(publish)) => self.handle_publish(publish),
            (_, Incoming::PubRel(packet_id)) => self.submit(Submission::Release(packet_id), Answer::PubComp(packet_id)),
            (Phase::Subscribing { .. }, Incoming::SubAck { packet_id: SUBSCRIBE_ID, codes }) => {
                self.handle_subscribed(&codes);
            }
            (_, Incoming::SubAck { .. }) => self.protocol_error("a SUBACK that nobody waits for"),
        }
    }

    /// The spool has answered.
    pub fn handle_outcome(&mut self, number: u64, outcome: Outcome, now: Instant) {
        if self.phase == Phase::Closed {
            return;
        }
        let Some(open) = self.open.iter_mut().find(|open| open.number == number) else { return };
        if outcome != Outcome::Stored && !matches!(open.answer, Answer::Nothing) {
            self.send(Outgoing::Disconnect(QUOTA_EXCEEDED));
            self.close(Cause::NotStored);
            return;
        }
        open.is_stored = true;
        while let Some(open) = self.open.front().copied().filter(|open| open.is_stored) {
            self.open.pop_front();
            match open.answer {
                Answer::Nothing => {}
                Answer::Subscribe => self.subscribe(now),
                Answer::PubAck(packet_id) => self.send(Outgoing::PubAck(packet_id)),
                Answer::PubRec(packet_id) => self.send(Outgoing::PubRec(packet_id)),
                Answer::PubComp(packet_id) => self.send(Outgoing::PubComp(packet_id)),
            }
        }
        self.end_if_answered();
    }

    /// Takes no further packet, answers what was taken, then says goodbye. The broker keeps the session.
    pub fn handle_end(&mut self, cause: Cause) {
        self.handle_unacceptable(cause, NORMAL);
    }

    /// The same because of what the broker sent: it is told why by a Reason Code (5.0).
    pub fn handle_unacceptable(&mut self, cause: Cause, code: u8) {
        if !matches!(self.phase, Phase::Closed | Phase::Ending) {
            self.phase = Phase::Ending;
            self.end = (cause, code);
            self.end_if_answered();
        }
    }

    /// Something was written.
    pub fn handle_sent(&mut self, now: Instant) {
        self.last_sent = now;
    }

    /// Time has passed. While packets are not read the broker's silence is ours.
    pub fn handle_timeout(&mut self, now: Instant, is_reading: bool) {
        if !is_reading {
            // Its answer may lie there unread; it must go on hearing from us.
            self.handle_bytes(now);
        }
        let silent = match self.phase {
            Phase::Connecting { until } if now >= until => Some("no CONNACK"),
            Phase::Subscribing { until } if now >= until => Some("no SUBACK"),
            Phase::Forgetting | Phase::Subscribing { .. } | Phase::Live | Phase::Ending => {
                self.pinged.filter(|since| now >= *since + self.keep_alive).map(|_| "no answer to a PINGREQ")
            }
            Phase::Connecting { .. } | Phase::Closed => None,
        };
        if let Some(what) = silent {
            self.close(Cause::Failed { problem: format!("the broker is silent: {what}"), for_good: false });
        } else if self.is_ping_due(now) {
            self.pinged = Some(now);
            // Kept even if the driver does not get to write it at once.
            self.last_sent = now;
            self.send(Outgoing::PingReq);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let quiet = match self.pinged {
            Some(since) => since + self.keep_alive,
            None => self.quiet_since() + self.ping_after(),
        };
        match self.phase {
            Phase::Connecting { until } => Some(until),
            Phase::Subscribing { until } => Some(until.min(quiet)),
            Phase::Forgetting | Phase::Live | Phase::Ending => Some(quiet),
            Phase::Closed => None,
        }
    }

    /// Well before the broker's patience of one and a half Keep Alive ends `[MQTT-3.1.2-24]`.
    fn ping_after(&self) -> Duration {
        self.keep_alive.mul_f32(0.75)
    }

    /// The broker measures our silence; we measure its.
    fn quiet_since(&self) -> Instant {
        self.last_sent.min(self.last_received)
    }

    fn is_ping_due(&self, now: Instant) -> bool {
        let is_begun = !matches!(self.phase, Phase::Connecting { .. } | Phase::Closed);
        is_begun && self.pinged.is_none() && now >= self.quiet_since() + self.ping_after()
    }

    fn handle_connected(&mut self, session_present: bool, keep_alive_secs: Option<u16>, now: Instant) {
        if let Some(secs) = keep_alive_secs.filter(|secs| *secs > 0) {
            self.keep_alive = Duration::from_secs(secs.into()); // [MQTT-3.2.2-21]
        }
        if session_present {
            self.may_unsubscribe = true;
        }
        if !session_present || self.options.is_elsewhere {
            // Identifiers begin anew [MQTT-3.2.2-3]: the next message must not be taken for an old one.
            self.phase = Phase::Forgetting;
            self.submit(Submission::Forget, Answer::Subscribe);
        } else {
            self.subscribe(now);
        }
    }

    fn subscribe(&mut self, now: Instant) {
        if self.phase == Phase::Ending {
            return;
        }
        let stale = std::mem::take(&mut self.options.stale_filters);
        if self.may_unsubscribe && !stale.is_empty() {
            self.send(Outgoing::Unsubscribe(UNSUBSCRIBE_ID, stale));
        }
        // Every time: a broker that lost what we subscribed to would be silent without a word.
        self.send(Outgoing::Subscribe(SUBSCRIBE_ID, self.options.topics.clone()));
        self.phase = Phase::Subscribing { until: now + ANSWER_MAX };
    }

    fn handle_refused(&mut self, code: u8, words: Option<String>) {
        let refusal = reason::of_connack(self.options.version, code);
        let words = words.map(|words| format!(" ({words})")).unwrap_or_default();
        let problem = format!("the broker refuses the connection: {}{words}{}", refusal.words, refusal.advice);
        self.close(Cause::Failed { problem, for_good: refusal.for_good });
    }

    fn handle_publish(&mut self, publish: Publish) {
        let answer = match (publish.qos, publish.packet_id) {
            (QoS::AtMostOnce, _) => Answer::Nothing,
            (QoS::AtLeastOnce, Some(packet_id)) => Answer::PubAck(packet_id),
            (QoS::ExactlyOnce, Some(packet_id)) => Answer::PubRec(packet_id),
            (_, None) => return self.protocol_error("a PUBLISH without a Packet Identifier"),
        };
        self.submit(Submission::Publish(publish), answer);
    }

    fn handle_subscribed(&mut self, codes: &[u8]) {
        self.phase = Phase::Live;
        let asked = &self.options.topics;
        if codes.len() != asked.len() {
            return self.protocol_error("a SUBACK for another number of filters");
        }
        let refused = asked.iter().zip(codes).find_map(|(topic, code)| match code {
            0x80.. => {
                Some(format!("the broker refuses the subscription to {:?}: {}", topic.filter, reason::words(*code)))
            }
            granted if *granted < topic.qos as u8 => Some(format!(
                "the broker grants {:?} with QoS {granted} only, not {}: messages may be lost or come twice",
                topic.filter, topic.qos as u8
            )),
            _ => None,
        });
        self.actions.push_back(Action::Subscribed { problem: refused });
    }

    fn protocol_error(&mut self, what: &str) {
        self.send(Outgoing::Disconnect(PROTOCOL_ERROR));
        self.close(Cause::Failed { problem: format!("the broker sent {what}"), for_good: false });
    }

    fn submit(&mut self, what: Submission, answer: Answer) {
        let number = self.next_number;
        self.next_number += 1;
        self.open.push_back(Open { number, answer, is_stored: false });
        self.actions.push_back(Action::Submit(number, what));
    }

    fn send(&mut self, packet: Outgoing) {
        self.actions.push_back(Action::Send(packet));
    }

    fn end_if_answered(&mut self) {
        if self.phase == Phase::Ending && self.open.is_empty() {
            let (cause, code) = self.end.clone();
            self.send(Outgoing::Disconnect(code));
            self.close(cause);
        }
    }

    fn close(&mut self, cause: Cause) {
        if self.phase != Phase::Closed {
            self.phase = Phase::Closed;
            self.actions.push_back(Action::Close(cause));
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
