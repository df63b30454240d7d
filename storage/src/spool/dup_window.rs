//! Which messages a resent PUBLISH may repeat (pure).
//!
//! A client that lost its connection before the PUBACK came sends the PUBLISH again with DUP = 1 and the same Packet
//! Identifier `[MQTT-3.3.1-1]` `[MQTT-4.4.0-1]`. If the message was stored, storing it again would make two of one. So the
//! window remembers, per client, `(packet id, hash of topic and payload)` of the stored messages, in order, and answers
//! *duplicate* when a DUP = 1 PUBLISH equals one of them.
//!
//! A client uses a Packet Identifier again only after its PUBACK arrived, and PUBACKs are sent in order
//! `[MQTT-4.6.0-2]`. So a DUP = 0 PUBLISH confirms the entry of the same identifier and every earlier entry of that
//! client, and they are forgotten.
//!
//! One ambiguity remains. The PUBACK of a message has arrived; the client reuses its identifier for the next message,
//! whose topic and payload are the same bytes; that PUBLISH is lost on the way; after reconnecting it comes with DUP = 1.
//! It equals the stored message and is taken for it. A sensor that repeats the very same reading without a time of its own
//! can so lose one of two equal readings; publishers for which that matters put a time or a counter into the payload, or
//! use QoS 2.
//!
//! # Sources
//!
//! A broker that we subscribe to is a publisher with two habits of its own. It has thousands of messages on their way, whatever
//! its configured window, once a few connections have ended early; so its window here is larger, half as large as there are
//! Packet Identifiers: brokers that count them up do not come round to an identifier that is still remembered. And it breaks
//! rules of QoS 2, so of a source such messages are remembered, too:
//!
//! * mosquitto 2.0 sends a message again that was released, when a connection ends before it has repeated its PUBREL, against
//!   `[MQTT-4.3.3-1]`. It is taken for the stored one if bytes and identifier are the same, DUP is set, and the broker was seen
//!   to count on beyond that identifier and never to use one again early. A broker that uses the lowest free identifier does
//!   so with the first message after a release, and is not suspected from then on. Were that very message equal to the one
//!   before under its identifier and its connection lost before we had it, it would pass for the stored one: the price of
//!   what mosquitto does in every other crash.
//! * rumqttd 0.20 begins with identifier 1 in every connection, whatever waits for its release. Other bytes under a claimed
//!   identifier are another message.

use std::collections::BTreeMap;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3Default;

use crate::message::{Message, Publisher};

/// Half of all Packet Identifiers.
const HALF: u16 = 1 << 15;

/// Remembers stored QoS 1 messages. Bounded per client and in total.
#[derive(Debug)]
pub(super) struct DupWindow {
    clients: BTreeMap<Arc<str>, Client>,
    /// Client by when it was last used: the first is idle longest.
    by_use: BTreeMap<u64, Arc<str>>,
    uses: u64,
    entries: usize,
    entries_max: usize,
    client_entries_max: usize,
    source_entries_max: usize,
}

#[derive(Debug)]
struct Client {
    /// By number, in the order in which they were stored.
    entries: BTreeMap<u64, Entry>,
    /// Packet Identifier → number of its entry.
    numbers: BTreeMap<u16, u64>,
    next: u64,
    /// How far the identifiers have been counted.
    furthest: Option<u16>,
    /// An identifier was used again before half of all others were.
    reuses_early: bool,
    last_use: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    packet_id: u16,
    hash: u64,
}

impl DupWindow {
    /// An empty window of at most `entries_max` messages, `client_entries_max` of one client, `source_entries_max` of one
    /// source.
    pub(super) fn new(entries_max: usize, client_entries_max: usize, source_entries_max: usize) -> Self {
        Self {
            clients: BTreeMap::new(),
            by_use: BTreeMap::new(),
            uses: 0,
            entries: 0,
            entries_max: entries_max.max(1),
            client_entries_max: client_entries_max.max(1),
            source_entries_max: source_entries_max.max(1),
        }
    }

    /// Whether this PUBLISH repeats a stored message.
    pub(super) fn is_duplicate(&self, message: &Message, packet_id: u16) -> bool {
        message.flags.dup
            && self
                .clients
                .get(&message.client_id)
                .is_some_and(|client| client.hash_of(packet_id) == Some(hash(message)))
    }

    /// Whether a QoS 2 PUBLISH of a source repeats a stored message. `is_claimed`: its identifier waits for a release.
    pub(super) fn is_repeated_by_source(&self, message: &Message, packet_id: u16, is_claimed: bool) -> bool {
        let client = self.clients.get(&message.client_id);
        let stored = client.and_then(|client| Some((client, client.hash_of(packet_id)?)));
        match stored {
            // A resend has the same bytes. What cannot be compared is a resend if it says so: DUP [MQTT-3.3.1-1].
            Some((_, stored)) if is_claimed => stored == hash(message),
            None => is_claimed && message.flags.dup,
            Some((client, stored)) => message.flags.dup && client.counted_beyond(packet_id) && stored == hash(message),
        }
    }

    /// A message was stored under `packet_id`, whatever its QoS: confirms what it confirms, and remembers it when QoS is 1 or
    /// it came from a source.
    pub(super) fn stored(&mut self, message: &Message, packet_id: u16) {
        self.confirm(message, packet_id);
        if message.flags.qos == 1 || message.publisher().source().is_some() {
            self.remember(&message.client_id, Entry { packet_id, hash: hash(message) }, !message.flags.dup);
        }
    }

    /// The session of a client has ended, and its Packet Identifiers with it.
    pub(super) fn forget(&mut self, client_id: &str) {
        if let Some(client) = self.clients.remove(client_id) {
            self.by_use.remove(&client.last_use);
            self.entries -= client.entries.len();
        }
    }

    fn confirm(&mut self, message: &Message, packet_id: u16) {
        let Some(client) = self.clients.get_mut(&message.client_id) else { return };
        let Some(&number) = client.numbers.get(&packet_id) else { return };
        let before = client.entries.len();
        if message.flags.dup {
            // Other bytes under an identifier in use: that one was confirmed. Of the others a resend says nothing.
            client.remove(number);
        } else {
            client.remove_through(number);
        }
        self.entries -= before - client.entries.len();
    }

    fn remember(&mut self, client_id: &Arc<str>, entry: Entry, is_new: bool) {
        self.uses += 1;
        let client = self.clients.entry(Arc::clone(client_id)).or_insert_with(|| Client::new(self.uses));
        let is_beyond = client.furthest.is_none_or(|furthest| furthest.wrapping_sub(entry.packet_id) >= HALF);
        client.reuses_early |= is_new && !is_beyond;
        if is_beyond {
            client.furthest = Some(entry.packet_id);
        }
        self.by_use.remove(&client.last_use);
        client.last_use = self.uses;
        self.by_use.insert(self.uses, Arc::clone(client_id));
        client.push(entry);
        self.entries += 1;
        let entries_max = match Publisher::of(client_id) {
            Publisher::Device(_) => self.client_entries_max,
            Publisher::Source(_) => self.source_entries_max,
        };
        if client.entries.len() > entries_max
            && let Some(&oldest) = client.entries.keys().next()
        {
            client.remove(oldest);
            self.entries -= 1;
        }
        while self.entries > self.entries_max || self.clients.len() > self.entries_max {
            let Some((_, idle_longest)) = self.by_use.pop_first() else { break };
            let forgotten = self.clients.remove(&idle_longest).map_or(0, |client| client.entries.len());
            self.entries -= forgotten;
        }
    }
}

impl Client {
    fn new(last_use: u64) -> Self {
        Self {
            entries: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next: 0,
            furthest: None,
            reuses_early: false,
            last_use,
        }
    }

    /// Identifiers are counted up, and the count is beyond this one, by less than half a round.
    fn counted_beyond(&self, packet_id: u16) -> bool {
        let is_beyond = self.furthest.is_some_and(|furthest| (1..HALF).contains(&furthest.wrapping_sub(packet_id)));
        is_beyond && !self.reuses_early
    }

    /// Hash of what was stored under an identifier.
    fn hash_of(&self, packet_id: u16) -> Option<u64> {
        Some(self.entries.get(self.numbers.get(&packet_id)?)?.hash)
    }

    /// The identifier has no entry.
    fn push(&mut self, entry: Entry) {
        self.numbers.insert(entry.packet_id, self.next);
        self.entries.insert(self.next, entry);
        self.next += 1;
    }

    fn remove(&mut self, number: u64) {
        if let Some(entry) = self.entries.remove(&number) {
            self.numbers.remove(&entry.packet_id);
        }
    }

    fn remove_through(&mut self, number: u64) {
        while let Some(&first) = self.entries.keys().next().filter(|first| **first <= number) {
            self.remove(first);
        }
    }
}

fn hash(message: &Message) -> u64 {
    let mut hasher = Xxh3Default::new();
    hasher.update(&(message.topic.len() as u64).to_le_bytes());
    hasher.update(&message.topic);
    hasher.update(&message.payload);
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::Flags;
    use crate::position::DatasetId;

    #[test]
    fn a_resent_message_is_a_duplicate_and_a_first_one_never() {
        let mut window = DupWindow::new(10, 10, 10);
        window.stored(&first("a", "21.5"), 1);

        assert!(window.is_duplicate(&resent("a", "21.5"), 1));
        assert!(!window.is_duplicate(&first("a", "21.5"), 1), "DUP = 0 is a new message");
        assert!(!window.is_duplicate(&resent("a", "21.6"), 1), "other bytes");
        assert!(!window.is_duplicate(&resent("a", "21.5"), 2), "other identifier");
        assert!(!window.is_duplicate(&resent("b", "21.5"), 1), "other client");
    }

    #[test]
    fn reuse_of_an_identifier_confirms_its_message_and_every_earlier_one() {
        let mut window = DupWindow::new(10, 10, 10);
        for id in 1..=3 {
            window.stored(&first("a", "x"), id);
        }

        window.stored(&first("a", "y"), 2);

        assert!(!window.is_duplicate(&resent("a", "x"), 1));
        assert!(!window.is_duplicate(&resent("a", "x"), 2));
        assert!(window.is_duplicate(&resent("a", "x"), 3));
        assert!(window.is_duplicate(&resent("a", "y"), 2));
    }

    #[test]
    fn a_resend_with_other_bytes_confirms_only_its_own_identifier() {
        let mut window = DupWindow::new(10, 10, 10);
        for id in 1..=2 {
            window.stored(&first("a", "x"), id);
        }

        window.stored(&resent("a", "y"), 2);

        assert!(window.is_duplicate(&resent("a", "x"), 1));
        assert!(!window.is_duplicate(&resent("a", "x"), 2));
        assert!(window.is_duplicate(&resent("a", "y"), 2));
    }

    #[test]
    fn a_stored_qos_2_message_confirms_a_qos_1_message_of_its_identifier() {
        let mut window = DupWindow::new(10, 10, 10);
        window.stored(&first("a", "x"), 1);
        let mut exactly_once = first("a", "y");
        exactly_once.flags.qos = 2;

        window.stored(&exactly_once, 1);

        assert!(!window.is_duplicate(&resent("a", "x"), 1));
        assert!(!window.is_duplicate(&resent("a", "y"), 1), "QoS 2 has its own table");
    }

    #[test]
    fn at_its_bound_a_client_forgets_its_oldest_message() {
        let mut window = DupWindow::new(10, 2, 2);
        for id in 1..=3 {
            window.stored(&first("a", "x"), id);
        }

        assert!(!window.is_duplicate(&resent("a", "x"), 1));
        assert!(window.is_duplicate(&resent("a", "x"), 2));
        assert!(window.is_duplicate(&resent("a", "x"), 3));
    }

    #[test]
    fn at_the_bound_of_all_the_client_that_is_idle_longest_is_forgotten() {
        let mut window = DupWindow::new(3, 3, 3);
        window.stored(&first("a", "x"), 1);
        window.stored(&first("b", "x"), 1);
        window.stored(&first("a", "x"), 2);

        window.stored(&first("c", "x"), 1);

        assert!(!window.is_duplicate(&resent("b", "x"), 1));
        assert!(window.is_duplicate(&resent("a", "x"), 1));
        assert_eq!(window.entries, 3);
    }

    #[test]
    fn of_a_source_qos_2_messages_are_remembered_and_more_of_them() {
        let mut window = DupWindow::new(10, 2, 4);
        let of_source = |packet_id: u16, dup| {
            let mut message = first("\0plant", "x");
            (message.flags.qos, message.flags.dup) = (2, dup);
            message.payload = Bytes::from(packet_id.to_string());
            message
        };
        for id in 1..=5 {
            window.stored(&of_source(id, false), id);
        }

        assert!(!window.is_repeated_by_source(&of_source(1, true), 1, false), "beyond the bound");
        assert!((2..=4).all(|id| window.is_repeated_by_source(&of_source(id, true), id, false)));
        assert!(!window.is_repeated_by_source(&of_source(4, false), 4, false), "DUP = 0 is a new message");
        assert!(!window.is_repeated_by_source(&of_source(5, true), 5, false), "the broker may use it again now");
    }

    /// What was stored first when it came again counts, too: the first copy may have been lost with its connection.
    #[test]
    fn the_count_goes_on_in_messages_that_are_sent_again() {
        let mut window = DupWindow::new(10, 10, 10);
        let of_source = |packet_id: u16, dup| {
            let mut message = first("\0plant", "x");
            (message.flags.qos, message.flags.dup) = (2, dup);
            message.payload = Bytes::from(packet_id.to_string());
            message
        };
        window.stored(&of_source(1, false), 1);
        for id in 2..=4 {
            window.stored(&of_source(id, true), id);
        }

        assert!((1..=3).all(|id| window.is_repeated_by_source(&of_source(id, true), id, false)));
    }

    #[test]
    fn a_broker_that_uses_the_lowest_free_identifier_is_not_suspected() {
        let mut window = DupWindow::new(10, 10, 10);
        let on = |dup| {
            let mut message = first("\0plant", "ON");
            (message.flags.qos, message.flags.dup) = (2, dup);
            message
        };
        for id in [1, 2, 3, 1, 2] {
            window.stored(&on(false), id);
        }

        assert!((1..=3).all(|id| !window.is_repeated_by_source(&on(true), id, false)));
    }

    #[test]
    fn other_bytes_under_a_claimed_identifier_are_another_message() {
        let mut window = DupWindow::new(10, 10, 10);
        let of_source = |text, dup| {
            let mut message = first("\0plant", text);
            (message.flags.qos, message.flags.dup) = (2, dup);
            message
        };
        window.stored(&of_source("x", false), 1);

        assert!(window.is_repeated_by_source(&of_source("x", true), 1, true));
        assert!(window.is_repeated_by_source(&of_source("x", false), 1, true), "equal bytes: a handshake that goes on");
        assert!(!window.is_repeated_by_source(&of_source("y", false), 1, true));
        assert!(!window.is_repeated_by_source(&of_source("y", true), 1, true));
        assert!(
            window.is_repeated_by_source(&of_source("z", true), 2, true),
            "not remembered, and says that it is a resend"
        );
        assert!(!window.is_repeated_by_source(&of_source("z", false), 2, true));
    }

    /// The bounds hold, and the parts agree, whatever comes.
    #[test]
    fn the_parts_of_the_window_agree() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut window = DupWindow::new(50, 20, 30);
        for _ in 0..10_000 {
            let client = ["a", "b", "\0plant"][rng.usize(..3)];
            let (id, text) = (rng.u16(1..40), ["x", "y", "z"][rng.usize(..3)]);
            let message = if rng.bool() { resent(client, text) } else { first(client, text) };
            window.stored(&message, id);

            assert!(message.flags.dup || !window.is_duplicate(&message, id));
            assert!(window.is_duplicate(&resent(client, text), id), "what was stored last is known");
            let sizes = window.clients.values().map(|client| client.entries.len());
            assert_eq!(window.entries, sizes.sum::<usize>());
            assert!(window.entries <= 50);
            for client in window.clients.values() {
                assert_eq!(client.entries.len(), client.numbers.len());
                assert!(client.numbers.iter().all(|(id, number)| client.entries[number].packet_id == *id));
            }
        }
    }

    #[test]
    fn a_closed_session_is_forgotten() {
        let mut window = DupWindow::new(3, 3, 3);
        window.stored(&first("a", "x"), 1);

        window.forget("a");

        assert!(!window.is_duplicate(&resent("a", "x"), 1));
        assert_eq!((window.entries, window.by_use.len()), (0, 0));
    }

    fn first(client: &str, payload: &'static str) -> Message {
        Message {
            dataset: DatasetId(1),
            received_at_us: 0,
            flags: Flags { qos: 1, ..Flags::default() },
            topic: Bytes::from_static(b"t"),
            captures: Vec::new(),
            client_id: client.into(),
            payload: Bytes::from_static(payload.as_bytes()),
        }
    }

    fn resent(client: &str, payload: &'static str) -> Message {
        let mut message = first(client, payload);
        message.flags.dup = true;
        message
    }
}
