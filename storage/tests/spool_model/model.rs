//! What the spool promises, without a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use forebay_storage::message::Message;
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::spool::{Outcome, Request, SpoolConfig, StoredSession};

/// One commit's messages, with their Packet Identifiers.
type Chunk = Vec<(Seq, Message, Option<u16>)>;

/// Stored QoS 1 messages of one client, oldest first: Packet Identifier, topic, payload.
type Window = Vec<(u16, Bytes, Bytes)>;

#[derive(Default)]
pub(crate) struct Model {
    config: SpoolConfig,
    keeps_tail: bool,
    pub(crate) log_end: Seq,
    chunks: Vec<Chunk>,
    sealed: BTreeMap<DatasetId, Seq>,
    delivered: BTreeMap<DatasetId, Seq>,
    packet_ids: BTreeSet<(Arc<str>, u16)>,
    sessions: BTreeMap<Arc<str>, u32>,
    pub(crate) retained: BTreeMap<Bytes, Bytes>,
    /// Topics of `retained` in the order in which they were written.
    written: Vec<Bytes>,
    pub(crate) dead_letters: Vec<(Seq, Bytes)>,
    window: BTreeMap<Arc<str>, Window>,
}

impl Model {
    pub(crate) fn new(config: &SpoolConfig, keeps_tail: bool) -> Self {
        Self { config: config.clone(), keeps_tail, ..Self::default() }
    }

    /// One batch. Dead letters get their seqs after its messages.
    pub(crate) fn commit(&mut self, batch: &[Request<()>]) -> Vec<Outcome> {
        let mut chunk = Chunk::new();
        let mut letters = Vec::new();
        let outcomes = batch.iter().map(|request| self.request(request, &mut chunk, &mut letters)).collect();
        self.log_end = self.log_end.plus(chunk.len() as u64);
        for payload in letters {
            self.dead_letters.push((self.log_end, payload));
            self.log_end = self.log_end.next();
        }
        if !chunk.is_empty() {
            self.chunks.push(chunk);
        }
        outcomes
    }

    /// The DUP window is what the chunks that are left say: of all, or of the last one.
    pub(crate) fn reopen(&mut self) {
        self.window.clear();
        let from = if self.keeps_tail { 0 } else { self.chunks.len().saturating_sub(1) };
        for (_, message, packet_id) in self.chunks[from..].concat() {
            if let Some(packet_id) = packet_id {
                self.remember(&message, packet_id);
            }
        }
    }

    pub(crate) fn seal(&mut self, dataset: DatasetId, to: Seq) -> bool {
        if to < self.sealed_to(dataset) || to > self.log_end {
            return false;
        }
        self.sealed.insert(dataset, to);
        if !self.keeps_tail {
            let sealed = self.sealed.clone();
            let is_sealed = |dataset, end| sealed.get(&dataset).is_some_and(|&sealed| sealed >= end);
            self.chunks.retain(|chunk| !chunk.iter().all(|(_, message, _)| is_sealed(message.dataset, end_of(chunk))));
        }
        true
    }

    pub(crate) fn deliver(&mut self, dataset: DatasetId, to: Seq) -> bool {
        let allowed = to >= self.delivered_to(dataset) && to <= self.sealed_to(dataset);
        if allowed {
            self.delivered.insert(dataset, to);
        }
        allowed
    }

    pub(crate) fn messages(&self, from: Seq, dataset: Option<DatasetId>) -> Vec<(Seq, Message)> {
        let all = self.chunks.iter().flatten().map(|(seq, message, _)| (*seq, message.clone()));
        all.filter(|(seq, message)| *seq >= from && dataset.is_none_or(|dataset| message.dataset == dataset)).collect()
    }

    pub(crate) fn log_start(&self) -> Seq {
        self.chunks.first().map_or(self.log_end, |chunk| chunk[0].0)
    }

    pub(crate) fn chunk_bounds(&self) -> Vec<(Seq, Seq)> {
        self.chunks.iter().map(|chunk| (chunk[0].0, end_of(chunk))).collect()
    }

    pub(crate) fn sealed_to(&self, dataset: DatasetId) -> Seq {
        self.sealed.get(&dataset).copied().unwrap_or_default()
    }

    pub(crate) fn delivered_to(&self, dataset: DatasetId) -> Seq {
        self.delivered.get(&dataset).copied().unwrap_or_default()
    }

    pub(crate) fn stored_sessions(&self) -> Vec<StoredSession> {
        let ended = |(client, _): &(Arc<str>, u16)| (Arc::clone(client), 0);
        let mut all: BTreeMap<Arc<str>, u32> = self.packet_ids.iter().map(ended).collect();
        all.extend(self.sessions.clone());
        let owned = |client: &Arc<str>| {
            self.packet_ids.iter().filter(|(owner, _)| owner == client).map(|(_, packet_id)| *packet_id).collect()
        };
        all.into_iter()
            .map(|(client_id, expiry_secs)| StoredSession { packet_ids: owned(&client_id), client_id, expiry_secs })
            .collect()
    }

    fn request(&mut self, request: &Request<()>, chunk: &mut Chunk, letters: &mut Vec<Bytes>) -> Outcome {
        match request {
            Request::Append { message, packet_id, .. } => {
                if let Some(outcome) = packet_id.and_then(|packet_id| self.claim(message, packet_id)) {
                    return outcome;
                }
                chunk.push((self.log_end.plus(chunk.len() as u64), message.clone(), *packet_id));
                self.retain(message);
            }
            Request::DeadLetter { message, packet_id, .. } => {
                if let Some(outcome) = packet_id.and_then(|packet_id| self.claim(message, packet_id)) {
                    return outcome;
                }
                letters.push(message.payload.clone());
            }
            Request::Release { client_id, packet_id, .. } => {
                self.packet_ids.remove(&(Arc::clone(client_id), *packet_id));
            }
            Request::OpenSession { client_id, expiry_secs, .. } => {
                let new = !self.sessions.contains_key(client_id);
                if new && self.sessions.len() as u64 >= self.config.sessions_max {
                    return Outcome::Unavailable;
                }
                self.sessions.insert(Arc::clone(client_id), *expiry_secs);
            }
            Request::CloseSession { client_id, .. } => {
                self.sessions.remove(client_id);
                self.packet_ids.retain(|(owner, _)| owner != client_id);
                self.window.remove(client_id);
            }
            Request::Probe { .. } => {}
        }
        Outcome::Stored
    }

    /// An outcome when the message must not be stored.
    fn claim(&mut self, message: &Message, packet_id: u16) -> Option<Outcome> {
        if message.flags.qos == 2 {
            let key = (Arc::clone(&message.client_id), packet_id);
            if self.packet_ids.contains(&key) {
                return Some(Outcome::Stored);
            }
            if self.packet_ids.len() as u64 >= self.config.packet_ids_max {
                return Some(Outcome::Unavailable);
            }
            self.packet_ids.insert(key);
        } else if message.flags.dup && self.window(message).contains(&entry(message, packet_id)) {
            return Some(Outcome::Stored);
        }
        self.remember(message, packet_id);
        None
    }

    fn remember(&mut self, message: &Message, packet_id: u16) {
        let max = self.config.dup_window_client_max;
        let window = self.window(message);
        if let Some(last) = window.iter().rposition(|(id, ..)| *id == packet_id) {
            // Use of an identifier confirms its message; unless it is a resend, all before it, too.
            window.drain(if message.flags.dup { last } else { 0 }..=last);
        }
        if message.flags.qos == 1 {
            window.push(entry(message, packet_id));
            window.drain(..window.len().saturating_sub(max));
        }
    }

    fn window(&mut self, message: &Message) -> &mut Window {
        self.window.entry(Arc::clone(&message.client_id)).or_default()
    }

    fn retain(&mut self, message: &Message) {
        if message.flags.retain {
            self.written.retain(|topic| topic != &message.topic);
            self.retained.remove(&message.topic);
            if !message.payload.is_empty() {
                self.retained.insert(message.topic.clone(), message.payload.clone());
                self.written.push(message.topic.clone());
            }
            if self.written.len() as u64 > self.config.retained_topics_max {
                self.retained.remove(&self.written.remove(0));
            }
        }
    }
}

fn entry(message: &Message, packet_id: u16) -> (u16, Bytes, Bytes) {
    (packet_id, message.topic.clone(), message.payload.clone())
}

fn end_of(chunk: &Chunk) -> Seq {
    chunk[chunk.len() - 1].0.next()
}
