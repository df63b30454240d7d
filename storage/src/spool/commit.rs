//! What one commit does: the requests of a batch, in order, in one transaction.
//!
//! Messages go into one chunk; the other tables are opened only when a request needs them, because every table touched is
//! a page more: an ordinary message of a device needs none, one of a source the last value of its topic. In-memory state
//! changes only after the commit, in [`Spool::commit`].

use std::collections::BTreeMap;
use std::sync::Arc;

use redb::{ReadableTable, ReadableTableMetadata, Table, WriteTransaction};

use crate::dead_letter::{DeadLetter, NO_DATASET};
use crate::message::{Message, Publisher};
use crate::position::Seq;

use super::chunk::{ChunkBuilder, PART_BYTES, cost};
use super::config::{MESSAGE_BYTES_MAX, SpoolConfig};
use super::counters::Counters;
use super::dead_letters::DeadLetterTable;
use super::dup_window::DupWindow;
use super::gaps;
use super::request::{Outcome, Request, size};
use super::retained::{RetainedTable, Shares};
use super::store::{Abort, SpoolError};
use super::tables::{CHUNKS, META, META_SEQ_FLOOR, PACKET_IDS, SESSIONS, forgotten_key};
use super::{Spool, State};

/// What a batch came to.
pub(super) struct Committed {
    /// One per request, in order.
    pub(super) outcomes: Vec<Outcome>,
    end: Seq,
    live_bytes: u64,
    /// What the table of last values holds, if it was touched.
    retained: Option<Shares>,
    packet_ids_of_sources: u64,
    counters: Counters,
}

impl Spool {
    /// Commits a batch durably; on return every `Stored` among the outcomes is true. Without `room` messages are refused
    /// and only the rest is done. `dup_window` follows what was stored; after an error it must be rebuilt.
    pub(super) fn commit<T>(
        &self,
        requests: &[Request<T>],
        room: bool,
        dup_window: &mut DupWindow,
    ) -> Result<Vec<Outcome>, SpoolError> {
        let fill = |txn: &WriteTransaction| {
            let mut batch = Batch::new(txn, &self.inner.config, &self.state(), dup_window);
            let outcomes = requests
                .iter()
                .map(|request| if room { batch.request(request) } else { batch.request_without_room(request) })
                .collect::<Result<Vec<_>, Abort>>()?;
            let changed = batch.changed;
            Ok((batch.finish(outcomes)?, changed))
        };
        let committed = self.write_if(fill, |state, committed| {
            state.log_end = state.log_end.max(committed.end);
            state.live_bytes += committed.live_bytes;
            state.reusable_bytes = state.reusable_bytes.saturating_sub(committed.live_bytes);
            if let Some(shares) = committed.retained.take() {
                state.retained = shares.into();
            }
            state.packet_ids_of_sources = committed.packet_ids_of_sources;
            state.count(&committed.counters);
        })?;
        self.inner.appended.notify_all();
        Ok(committed.outcomes)
    }
}

/// A transaction being filled.
struct Batch<'a> {
    txn: &'a WriteTransaction,
    config: &'a SpoolConfig,
    dup_window: &'a mut DupWindow,
    first: Seq,
    chunk: ChunkBuilder,
    /// Seqs are given once the chunk is whole: its messages come first.
    dead_letters: Vec<DeadLetter>,
    packet_ids: Option<Table<'a, (&'static str, u16), u64>>,
    /// How many of them each device has that this batch has asked of.
    packet_ids_of: BTreeMap<Arc<str>, u64>,
    packet_ids_of_sources: u64,
    sessions: Option<Table<'a, &'static str, u32>>,
    retained: Option<RetainedTable<'a>>,
    /// Of the table of last values, before this batch.
    shares: Arc<Shares>,
    counters: Counters,
    changed: bool,
}

impl<'a> Batch<'a> {
    fn new(txn: &'a WriteTransaction, config: &'a SpoolConfig, state: &State, dup_window: &'a mut DupWindow) -> Self {
        Self {
            txn,
            config,
            dup_window,
            first: state.log_end,
            chunk: ChunkBuilder::default(),
            dead_letters: Vec::new(),
            packet_ids: None,
            packet_ids_of: BTreeMap::new(),
            packet_ids_of_sources: state.packet_ids_of_sources,
            sessions: None,
            retained: None,
            shares: Arc::clone(&state.retained),
            counters: Counters::default(),
            changed: false,
        }
    }

    fn request<T>(&mut self, request: &Request<T>) -> Result<Outcome, Abort> {
        match request {
            Request::Append { message, packet_id, retained_once, .. } => {
                self.append(message, *packet_id, *retained_once)
            }
            Request::DeadLetter { message, reason, packet_id, retained_once, .. } => {
                self.dead_letter(message, reason, *packet_id, *retained_once)
            }
            Request::Release { client_id, packet_id, .. } => self.release(client_id, *packet_id),
            Request::OpenSession { client_id, expiry_secs, .. } => self.open_session(client_id, *expiry_secs),
            Request::CloseSession { client_id, .. } => self.close_session(client_id),
            Request::Probe { .. } => Ok(Outcome::Stored),
        }
    }

    fn request_without_room<T>(&mut self, request: &Request<T>) -> Result<Outcome, Abort> {
        match request {
            Request::Append { .. } | Request::DeadLetter { .. } => {
                self.counters.refused_full += 1;
                Ok(Outcome::Unavailable)
            }
            request => self.request(request),
        }
    }

    fn append(&mut self, message: &Message, packet_id: Option<u16>, retained_once: bool) -> Result<Outcome, Abort> {
        let seq = self.first.plus(self.chunk.len());
        if let Some(outcome) = self.claim(message, packet_id, seq)? {
            return Ok(outcome);
        }
        self.changed = true;
        if retained_once && self.is_retained_again(message)? {
            return Ok(Outcome::Stored);
        }
        self.chunk.push(message, packet_id);
        if retained_once || message.flags.retain {
            self.keep_retained(seq, message)?;
        }
        Ok(Outcome::Stored)
    }

    fn dead_letter(
        &mut self,
        message: &Message,
        reason: &str,
        packet_id: Option<u16>,
        retained_once: bool,
    ) -> Result<Outcome, Abort> {
        // What is stored with the packet id only has to be there: the seq of a dead letter is not known yet.
        if let Some(outcome) = self.claim(message, packet_id, self.first)? {
            return Ok(outcome);
        }
        if retained_once {
            if self.is_retained_again(message)? {
                self.changed = true;
                return Ok(Outcome::Stored);
            }
            self.keep_retained(self.first, message)?;
        }
        let mut message = message.clone();
        message.dataset = NO_DATASET;
        message.captures.clear();
        let at_us = message.received_at_us;
        self.dead_letters.push(DeadLetter { seq: self.first, message, reason: reason.to_owned(), at_us });
        self.changed = true;
        Ok(Outcome::Stored)
    }

    /// Takes the Packet Identifier. An outcome means that the message must not be stored: it is already, or cannot be.
    fn claim(&mut self, message: &Message, packet_id: Option<u16>, seq: Seq) -> Result<Option<Outcome>, Abort> {
        if size(message) > MESSAGE_BYTES_MAX {
            self.counters.messages_too_large += 1;
            return Ok(Some(Outcome::Unavailable));
        }
        let Some(packet_id) = packet_id else { return Ok(None) };
        if message.flags.qos == 2 {
            let is_claimed = self.packet_ids()?.get((&*message.client_id, packet_id))?.is_some();
            let is_source = message.publisher().source().is_some();
            let is_repeated = match is_source {
                true => self.dup_window.is_repeated_by_source(message, packet_id, is_claimed),
                false => is_claimed,
            };
            if is_repeated {
                self.counters.duplicates_qos2 += 1;
                return Ok(Some(Outcome::Stored));
            }
            if !is_claimed && !self.may_claim(&message.client_id, is_source)? {
                self.counters.packet_ids_refused += 1;
                return Ok(Some(Outcome::Unavailable));
            }
            self.packet_ids()?.insert((&*message.client_id, packet_id), seq.0)?;
        } else if self.dup_window.is_duplicate(message, packet_id) {
            self.counters.duplicates_qos1 += 1;
            return Ok(Some(Outcome::Stored));
        }
        self.dup_window.stored(message, packet_id);
        Ok(None)
    }

    /// Counts one more Packet Identifier of the client, if it may have one.
    fn may_claim(&mut self, client_id: &Arc<str>, is_source: bool) -> Result<bool, Abort> {
        if is_source {
            self.packet_ids_of_sources += 1;
            return Ok(true);
        }
        let of_devices = self.packet_ids()?.len()?.saturating_sub(self.packet_ids_of_sources);
        let own = match self.packet_ids_of.get(client_id) {
            Some(&own) => own,
            None => owned_by(self.packet_ids()?, client_id)?.len() as u64,
        };
        let may = own < self.config.packet_ids_of_client(of_devices);
        self.packet_ids_of.insert(Arc::clone(client_id), own + u64::from(may));
        Ok(may)
    }

    fn gave_back(&mut self, client_id: &str, count: u64) {
        if Publisher::of(client_id).source().is_some() {
            self.packet_ids_of_sources = self.packet_ids_of_sources.saturating_sub(count);
        } else if let Some(own) = self.packet_ids_of.get_mut(client_id) {
            *own = own.saturating_sub(count);
        }
    }

    /// A broker has sent the last value of a topic again because we subscribed again.
    fn is_retained_again(&mut self, message: &Message) -> Result<bool, Abort> {
        let is_again = message.flags.retain && self.retained()?.has(message)?;
        self.counters.duplicates_retained += u64::from(is_again);
        Ok(is_again)
    }

    fn keep_retained(&mut self, seq: Seq, message: &Message) -> Result<(), Abort> {
        let mut counters = self.counters;
        let config = self.config;
        self.retained()?.put(seq, message, config, &mut counters)?;
        self.counters = counters;
        Ok(())
    }

    fn retained(&mut self) -> Result<&mut RetainedTable<'a>, Abort> {
        match &mut self.retained {
            Some(retained) => Ok(retained),
            none => Ok(none.insert(RetainedTable::open(self.txn, &self.shares)?)),
        }
    }

    fn release(&mut self, client_id: &str, packet_id: u16) -> Result<Outcome, Abort> {
        let removed = self.packet_ids()?.remove((client_id, packet_id))?.is_some();
        if removed {
            self.gave_back(client_id, 1);
        }
        self.changed |= removed;
        Ok(Outcome::Stored)
    }

    fn open_session(&mut self, client_id: &str, expiry_secs: u32) -> Result<Outcome, Abort> {
        let sessions_max = self.config.sessions_max;
        let sessions = self.sessions()?;
        let present = sessions.get(client_id)?.map(|expiry| expiry.value());
        if present == Some(expiry_secs) {
            return Ok(Outcome::Stored);
        }
        if present.is_none() && sessions.len()? >= sessions_max {
            self.counters.sessions_refused += 1;
            return Ok(Outcome::Unavailable);
        }
        sessions.insert(client_id, expiry_secs)?;
        self.changed = true;
        Ok(Outcome::Stored)
    }

    fn close_session(&mut self, client_id: &str) -> Result<Outcome, Abort> {
        self.dup_window.forget(client_id);
        if Publisher::of(client_id).source().is_some() {
            // A restart must not remember from the log what its broker has forgotten.
            let mut meta = self.txn.open_table(META)?;
            meta.insert(&*forgotten_key(client_id), self.first.plus(self.chunk.len()).0)?;
            self.changed = true;
        }
        let closed = self.sessions()?.remove(client_id)?.is_some();
        let packet_ids = self.packet_ids()?;
        let owned = owned_by(packet_ids, client_id)?;
        for packet_id in &owned {
            packet_ids.remove((client_id, *packet_id))?;
        }
        self.gave_back(client_id, owned.len() as u64);
        self.changed |= closed || !owned.is_empty();
        Ok(Outcome::Stored)
    }

    /// Writes the chunk and the dead letters.
    fn finish(mut self, outcomes: Vec<Outcome>) -> Result<Committed, Abort> {
        let mut end = self.first.plus(self.chunk.len());
        let mut live_bytes = 0;
        if self.chunk.len() > 0 {
            let bytes = self.chunk.finish(self.first);
            live_bytes = cost(bytes.len());
            self.counters.commits += 1;
            self.counters.messages_stored += self.chunk.len();
            self.counters.message_bytes += self.chunk.raw_len() as u64;
            self.counters.chunk_bytes += bytes.len() as u64;
            let mut chunks = self.txn.open_table(CHUNKS)?;
            for (part, bytes) in (0..=u16::MAX).zip(bytes.chunks(PART_BYTES)) {
                chunks.insert((self.first.0, part), bytes)?;
            }
        }
        if !self.dead_letters.is_empty() {
            let mut table = DeadLetterTable::open(self.txn)?;
            let mut dropped = Vec::new();
            for letter in &mut self.dead_letters {
                letter.seq = end;
                end = end.next();
                dropped.extend(table.insert(letter, self.config.dead_letter_bytes_max)?);
                self.counters.dead_letters += 1;
            }
            // No chunk will tell that these seqs were given.
            table.raise_seq_floor(end)?;
            table.close()?;
            self.counters.dead_letters_dropped += dropped.len() as u64;
            gaps::record(self.txn, &dropped, self.config.gaps_max)?;
        }
        let retained = self.retained.map(|table| table.shares);
        let (packet_ids_of_sources, counters) = (self.packet_ids_of_sources, self.counters);
        Ok(Committed { outcomes, end, live_bytes, retained, packet_ids_of_sources, counters })
    }

    fn packet_ids(&mut self) -> Result<&mut Table<'a, (&'static str, u16), u64>, Abort> {
        match &mut self.packet_ids {
            Some(table) => Ok(table),
            none => Ok(none.insert(self.txn.open_table(PACKET_IDS)?)),
        }
    }

    fn sessions(&mut self) -> Result<&mut Table<'a, &'static str, u32>, Abort> {
        match &mut self.sessions {
            Some(table) => Ok(table),
            none => Ok(none.insert(self.txn.open_table(SESSIONS)?)),
        }
    }
}

/// The Packet Identifiers of a client.
fn owned_by(packet_ids: &Table<'_, (&'static str, u16), u64>, client_id: &str) -> Result<Vec<u16>, Abort> {
    let rows = packet_ids.range((client_id, 0)..=(client_id, u16::MAX))?;
    Ok(rows.map(|row| row.map(|(key, _)| key.value().1)).collect::<Result<_, _>>()?)
}

/// How many Packet Identifiers sources have.
pub(super) fn owned_by_sources(packet_ids: &impl ReadableTable<(&'static str, u16), u64>) -> Result<u64, Abort> {
    let (first, end) = Publisher::sources();
    let mut count = 0;
    for row in packet_ids.range((first, 0)..(end, 0))? {
        row?;
        count += 1;
    }
    Ok(count)
}

/// The next seq according to `chunks_end` and the floor.
pub(super) fn next_seq(meta: &impl ReadableTable<&'static str, u64>, chunks_end: Seq) -> Result<Seq, Abort> {
    let floor = meta.get(META_SEQ_FLOOR)?.map_or(0, |floor| floor.value());
    Ok(chunks_end.max(Seq(floor)))
}

/// Makes the next seq at least `floor`.
pub(super) fn raise_floor(txn: &WriteTransaction, floor: Seq) -> Result<(), Abort> {
    let mut meta = txn.open_table(META)?;
    let present = meta.get(META_SEQ_FLOOR)?.map_or(0, |floor| floor.value());
    if floor.0 > present {
        meta.insert(META_SEQ_FLOOR, floor.0)?;
    }
    Ok(())
}
