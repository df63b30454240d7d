//! Which QoS 1 messages a resent PUBLISH may repeat (pure).
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

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3Default;

use crate::message::Message;

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
}

#[derive(Debug)]
struct Client {
    entries: VecDeque<Entry>,
    last_use: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    packet_id: u16,
    hash: u64,
}

impl DupWindow {
    /// An empty window of at most `entries_max` messages, `client_entries_max` of one client.
    pub(super) fn new(entries_max: usize, client_entries_max: usize) -> Self {
        Self {
            clients: BTreeMap::new(),
            by_use: BTreeMap::new(),
            uses: 0,
            entries: 0,
            entries_max: entries_max.max(1),
            client_entries_max: client_entries_max.max(1),
        }
    }

    /// Whether this PUBLISH repeats a stored message.
    pub(super) fn is_duplicate(&self, message: &Message, packet_id: u16) -> bool {
        message.flags.dup
            && self.clients.get(&message.client_id).is_some_and(|client| {
                let entry = Entry { packet_id, hash: hash(message) };
                client.entries.contains(&entry)
            })
    }

    /// A message was stored under `packet_id`, whatever its QoS: confirms what it confirms, and remembers it when QoS is 1.
    pub(super) fn stored(&mut self, message: &Message, packet_id: u16) {
        self.confirm(message, packet_id);
        if message.flags.qos == 1 {
            self.remember(&message.client_id, Entry { packet_id, hash: hash(message) });
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
        let Some(last) = client.entries.iter().rposition(|entry| entry.packet_id == packet_id) else { return };
        let before = client.entries.len();
        if message.flags.dup {
            // Other bytes under an identifier in use: that one was confirmed. Of the others a resend says nothing.
            client.entries.remove(last);
        } else {
            client.entries.drain(..=last);
        }
        self.entries -= before - client.entries.len();
    }

    fn remember(&mut self, client_id: &Arc<str>, entry: Entry) {
        self.uses += 1;
        let client = self
            .clients
            .entry(Arc::clone(client_id))
            .or_insert_with(|| Client { entries: VecDeque::new(), last_use: self.uses });
        self.by_use.remove(&client.last_use);
        client.last_use = self.uses;
        self.by_use.insert(self.uses, Arc::clone(client_id));
        client.entries.push_back(entry);
        self.entries += 1;
        if client.entries.len() > self.client_entries_max {
            client.entries.pop_front();
            self.entries -= 1;
        }
        while self.entries > self.entries_max || self.clients.len() > self.entries_max {
            let Some((_, idle_longest)) = self.by_use.pop_first() else { break };
            let forgotten = self.clients.remove(&idle_longest).map_or(0, |client| client.entries.len());
            self.entries -= forgotten;
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
        let mut window = DupWindow::new(10, 10);
        window.stored(&first("a", "21.5"), 1);

        assert!(window.is_duplicate(&resent("a", "21.5"), 1));
        assert!(!window.is_duplicate(&first("a", "21.5"), 1), "DUP = 0 is a new message");
        assert!(!window.is_duplicate(&resent("a", "21.6"), 1), "other bytes");
        assert!(!window.is_duplicate(&resent("a", "21.5"), 2), "other identifier");
        assert!(!window.is_duplicate(&resent("b", "21.5"), 1), "other client");
    }

    #[test]
    fn reuse_of_an_identifier_confirms_its_message_and_every_earlier_one() {
        let mut window = DupWindow::new(10, 10);
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
        let mut window = DupWindow::new(10, 10);
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
        let mut window = DupWindow::new(10, 10);
        window.stored(&first("a", "x"), 1);
        let mut exactly_once = first("a", "y");
        exactly_once.flags.qos = 2;

        window.stored(&exactly_once, 1);

        assert!(!window.is_duplicate(&resent("a", "x"), 1));
        assert!(!window.is_duplicate(&resent("a", "y"), 1), "QoS 2 has its own table");
    }

    #[test]
    fn at_its_bound_a_client_forgets_its_oldest_message() {
        let mut window = DupWindow::new(10, 2);
        for id in 1..=3 {
            window.stored(&first("a", "x"), id);
        }

        assert!(!window.is_duplicate(&resent("a", "x"), 1));
        assert!(window.is_duplicate(&resent("a", "x"), 2));
        assert!(window.is_duplicate(&resent("a", "x"), 3));
    }

    #[test]
    fn at_the_bound_of_all_the_client_that_is_idle_longest_is_forgotten() {
        let mut window = DupWindow::new(3, 3);
        window.stored(&first("a", "x"), 1);
        window.stored(&first("b", "x"), 1);
        window.stored(&first("a", "x"), 2);

        window.stored(&first("c", "x"), 1);

        assert!(!window.is_duplicate(&resent("b", "x"), 1));
        assert!(window.is_duplicate(&resent("a", "x"), 1));
        assert_eq!(window.entries, 3);
    }

    #[test]
    fn a_closed_session_is_forgotten() {
        let mut window = DupWindow::new(3, 3);
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
