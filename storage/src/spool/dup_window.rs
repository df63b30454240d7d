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
//!   `[MQTT-4.3.3-1]`. It is taken for the stored one if bytes and identifier are the same, DUP is set, and the broker counts
//!   its identifiers up and is beyond that one by now.
//! * rumqttd 0.20 begins with identifier 1 in every connection, whatever waits for its release. Other bytes under a claimed
//!   identifier are another message.
//!
//! A broker that uses the lowest free identifier must never be taken for one that counts up: its next equal reading comes under
//! the same identifier, and with DUP when a connection breaks. Both begin with 1, 2, 3; and that we answered PUBCOMP says nothing,
//! for the answer may still be on its way. [`Counting`] waits until the broker must have heard it, for answers leave in order:
//!
//! ```text
//! PUBREL x ─▶ PUBCOMP x · PUBLISH y ─▶ PUBREC y · PUBREL y: it has read PUBREC y, and PUBCOMP x before · PUBLISH z: x was free
//! ```
//!
//! If z is beyond all others then, the broker counts up. When a connection breaks in between, the broker repeats PUBREL x, and it
//! begins again. Until then a message is rather stored twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3Default;

use crate::message::{Flags, Message, Publisher};

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
    counting: Counting,
    last_use: u64,
}

/// What is known of how a source chooses its identifiers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Counting {
    #[default]
    Unknown,
    /// This one was released.
    Released { free: u16 },
    /// After that QoS 2 was begun under another one.
    Asked { free: u16, witness: u16 },
    /// Which was released, too: the broker knows that the first is free.
    KnownFree { free: u16 },
    /// It went on beyond all others although one was free.
    Up,
    /// It used one again before half of all others.
    Reuses,
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
    /// it came from a source. Of a source that has just shown whether it counts up: that.
    pub(super) fn stored(&mut self, message: &Message, packet_id: u16) -> Option<bool> {
        self.confirm(message, packet_id);
        let is_source = message.publisher().source().is_some();
        if message.flags.qos == 1 || is_source {
            self.remember(&message.client_id, Entry { packet_id, hash: hash(message) });
        }
        if is_source { self.clients.get_mut(&message.client_id)?.count(packet_id, message.flags) } else { None }
    }

    /// A source has released an identifier, or says again that it does.
    pub(super) fn released(&mut self, client_id: &str, packet_id: u16) {
        if Publisher::of(client_id).source().is_some()
            && let Some(client) = self.clients.get_mut(client_id)
        {
            client.counting = client.counting.released(packet_id);
        }
    }

    /// This source was seen to count up, before this window was begun.
    pub(super) fn counts_up(&mut self, client_id: &Arc<str>) {
        self.client(client_id).counting = Counting::Up;
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

    /// The client, which is used now.
    fn client(&mut self, client_id: &Arc<str>) -> &mut Client {
        self.uses += 1;
        let client = self.clients.entry(Arc::clone(client_id)).or_insert_with(|| Client::new(self.uses));
        self.by_use.remove(&client.last_use);
        client.last_use = self.uses;
        self.by_use.insert(self.uses, Arc::clone(client_id));
        client
    }

    fn remember(&mut self, client_id: &Arc<str>, entry: Entry) {
        let entries_max = match Publisher::of(client_id) {
            Publisher::Device(_) => self.client_entries_max,
            Publisher::Source(_) => self.source_entries_max,
        };
        let client = self.client(client_id);
        client.push(entry);
        let oldest = client.entries.keys().next().copied().filter(|_| client.entries.len() > entries_max);
        match oldest {
            Some(oldest) => client.remove(oldest),
            None => self.entries += 1,
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
            counting: Counting::default(),
            last_use,
        }
    }

    /// Identifiers are counted up, and the count is beyond this one, by less than half a round.
    fn counted_beyond(&self, packet_id: u16) -> bool {
        let is_beyond = self.furthest.is_some_and(|furthest| (1..HALF).contains(&furthest.wrapping_sub(packet_id)));
        is_beyond && self.counting == Counting::Up
    }

    /// A message was stored. Says whether the identifiers are counted up when that has just become known.
    fn count(&mut self, packet_id: u16, flags: Flags) -> Option<bool> {
        let is_beyond = self.furthest.is_none_or(|furthest| furthest.wrapping_sub(packet_id) >= HALF);
        if is_beyond {
            self.furthest = Some(packet_id);
        }
        let before = self.counting;
        self.counting = before.stored(packet_id, flags, is_beyond);
        match self.counting {
            Counting::Up if before != Counting::Up => Some(true),
            Counting::Reuses if before != Counting::Reuses => Some(false),
            _ => None,
        }
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

impl Counting {
    fn stored(self, packet_id: u16, flags: Flags, is_beyond: bool) -> Self {
        match self {
            _ if !flags.dup && !is_beyond => Self::Reuses,
            Self::KnownFree { free } if !flags.dup && packet_id > free => Self::Up,
            Self::Released { free } | Self::Asked { free, .. } | Self::KnownFree { free } if packet_id == free => {
                Self::Unknown
            }
            Self::Released { free } if flags.qos == 2 => Self::Asked { free, witness: packet_id },
            same => same,
        }
    }

    fn released(self, packet_id: u16) -> Self {
        match self {
            Self::Asked { free, witness } if packet_id == witness => Self::KnownFree { free },
            Self::Unknown => Self::Released { free: packet_id },
            Self::Asked { free, .. } | Self::KnownFree { free } if packet_id == free => Self::Released { free },
            same => same,
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
            window.released("\0plant", id);
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
        for id in 1..=3 {
            window.stored(&of_source(id, false), id);
            window.released("\0plant", id);
        }
        for id in 4..=6 {
            window.stored(&of_source(id, true), id);
        }

        assert!((1..=5).all(|id| window.is_repeated_by_source(&of_source(id, true), id, false)));
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

    /// Its first reuse may be the one that is lost with its connection, and comes with DUP.
    #[test]
    fn a_broker_is_not_suspected_before_it_is_known_to_count_up() {
        let stored = |events: &[i32]| {
            let mut window = DupWindow::new(10, 10, 10);
            let said: Vec<_> = events.iter().filter_map(|event| happened(&mut window, *event)).collect();
            (window.is_repeated_by_source(&of_plant(true), 1, false), said)
        };

        assert_eq!(stored(&[1, 2, -1, -2]), (false, vec![]), "both were on their way");
        assert_eq!(stored(&[1, -1, 2, -2]), (false, vec![]), "our PUBCOMP may have been on its way when 2 was sent");
        assert_eq!(stored(&[1, -1, 2, 3]), (false, vec![]), "and when 3 was");
        assert_eq!(stored(&[1, -1, 2, -1, -2, 3]), (false, vec![]), "it had not heard it: it releases 1 again");
        assert_eq!(stored(&[2, -2, 3, -3, 1]), (false, vec![false]), "a lower one is no counting up");
        assert_eq!(stored(&[1, -1, 2, -2, 3]), (true, vec![true]), "it answered after our PUBCOMP, and went on");
        assert_eq!(stored(&[1, 2, -1, 3, -2, -3, 4]), (true, vec![true]), "the same with more on their way");
        assert_eq!(stored(&[1, -1, 2, -2, 3, 1, 4]), (false, vec![true, false]), "it came round early");
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

    /// `n`: a new message under n, all of them equal; `-n`: its release.
    fn happened(window: &mut DupWindow, event: i32) -> Option<bool> {
        let packet_id = u16::try_from(event.unsigned_abs()).unwrap();
        if event > 0 {
            return window.stored(&of_plant(false), packet_id);
        }
        window.released("\0plant", packet_id);
        None
    }

    fn of_plant(dup: bool) -> Message {
        let mut message = first("\0plant", "ON");
        (message.flags.qos, message.flags.dup) = (2, dup);
        message
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
