//! The last retained value of each topic `[MQTT-3.3.1-5]`, as the gateway saw it.
//!
//! Of a source, whose broker sets RETAIN only on what it sends because of a subscription `[MQTT-3.3.1-8]`
//! `[MQTT-3.3.1-9]`, it is the last message of the topic, whatever its flag: a live message is what the next subscription
//! will bring again. A source has topics of its own, and each dataset that took them, under the key
//! `client id · U+0000 · topic · U+0000 · dataset u32 big-endian`; of its values only hash and length are kept.
//!
//! Devices have one share of the table and each source another, so that nobody pushes out what another needs. In a full
//! share the topics that were written longest ago make room, an eighth of the share at once: to find them its values are read
//! once, and an ordinary write needs no second table that tells their order.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use redb::{ReadableTable, Table, WriteTransaction};
use xxhash_rust::xxh3::xxh3_64;

use crate::message::{DecodeError, Message, Publisher, source_client_id, take_array};
use crate::position::Seq;

use super::Spool;
use super::config::SpoolConfig;
use super::counters::Counters;
use super::store::{Abort, SpoolError};
use super::tables::RETAINED;

/// The last message with RETAIN on a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retained {
    /// Its position.
    pub seq: Seq,
    /// When it was received, µs.
    pub received_at_us: i64,
    /// XXH3-64 of the payload.
    pub payload_hash: u64,
    /// Bytes of the payload.
    pub payload_len: u64,
    /// The payload; none when it is longer than [`SpoolConfig::retained_payload_max`].
    pub payload: Option<Bytes>,
}

impl Spool {
    /// The last retained value of `topic`.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when redb itself is damaged.
    pub fn retained(&self, topic: &[u8]) -> Result<Option<Retained>, SpoolError> {
        self.inner.store.read(|txn| {
            let value = txn.open_table(RETAINED)?.get(topic)?;
            Ok(value.and_then(|value| Retained::decode(value.value()).ok()))
        })
    }

    /// Forgets the last values of all sources but these. Returns how many sources that were.
    ///
    /// # Errors
    /// As of every write.
    pub fn keep_sources<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<usize, SpoolError> {
        let wanted: Vec<_> = names.into_iter().map(source_client_id).collect();
        let is_kept =
            |holder: &[u8]| holder == DEVICES || wanted.iter().any(|client_id| client_id.as_bytes() == holder);
        let forget = |txn: &WriteTransaction| {
            let mut shares = Shares::clone(&self.state().retained);
            let before = shares.len();
            let mut table = txn.open_table(RETAINED)?;
            for holder in shares.keys().filter(|holder| !is_kept(holder)) {
                let (from, to) = keys_of(holder);
                table.retain_in::<&[u8], _>(between(&from, &to), |_, _| false)?;
            }
            shares.retain(|holder, _| is_kept(holder));
            let gone = before - shares.len();
            Ok(((gone, shares), gone > 0))
        };
        let (gone, _) = self.write_if(forget, |state, (_, shares)| state.retained = std::mem::take(shares).into())?;
        Ok(gone)
    }
}

impl Retained {
    /// `seq u64 · received_at i64 · hash u64 · length u64 · [payload]`
    fn encode(seq: Seq, message: &Message, payload_max: usize) -> Vec<u8> {
        let payload = &message.payload;
        let mut out = Vec::with_capacity(32 + payload.len().min(payload_max));
        out.extend_from_slice(&seq.0.to_le_bytes());
        out.extend_from_slice(&message.received_at_us.to_le_bytes());
        out.extend_from_slice(&xxh3_64(payload).to_le_bytes());
        out.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        if payload.len() <= payload_max {
            out.extend_from_slice(payload);
        }
        out
    }

    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Bytes::copy_from_slice(value);
        let seq = Seq(u64::from_le_bytes(take_array(&mut input)?));
        let received_at_us = i64::from_le_bytes(take_array(&mut input)?);
        let payload_hash = u64::from_le_bytes(take_array(&mut input)?);
        let payload_len = u64::from_le_bytes(take_array(&mut input)?);
        let payload = (input.len() as u64 == payload_len).then_some(input);
        Ok(Self { seq, received_at_us, payload_hash, payload_len, payload })
    }
}

/// What one share of the table holds, or may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    topics: u64,
    /// Of topics and values.
    bytes: u64,
}

/// By holder: [`DEVICES`], or the Client Identifier of a source.
pub(super) type Shares = BTreeMap<Box<[u8]>, Share>;

const DEVICES: &[u8] = b"";

/// What the table holds.
pub(super) fn shares_in(table: &impl ReadableTable<&'static [u8], &'static [u8]>) -> Result<Shares, Abort> {
    let mut shares = Shares::new();
    for row in table.iter()? {
        let (key, value) = row?;
        shares.entry(holder(key.value()).into()).or_default().add(size(key.value(), value.value()));
    }
    Ok(shares)
}

/// The table with what each share of it holds.
pub(super) struct RetainedTable<'txn> {
    table: Table<'txn, &'static [u8], &'static [u8]>,
    pub(super) shares: Shares,
}

impl<'txn> RetainedTable<'txn> {
    pub(super) fn open(txn: &'txn WriteTransaction, shares: &Shares) -> Result<Self, Abort> {
        Ok(Self { table: txn.open_table(RETAINED)?, shares: shares.clone() })
    }

    /// Whether the message has the payload of the last value of its topic.
    pub(super) fn has(&self, message: &Message) -> Result<bool, Abort> {
        let Some(value) = self.table.get(&*key(message))? else { return Ok(false) };
        Ok(Retained::decode(value.value()).is_ok_and(|last| {
            last.payload_len == message.payload.len() as u64 && last.payload_hash == xxh3_64(&message.payload)
        }))
    }

    /// Keeps the message as the last value of its topic, or clears that when the payload is empty (3.1.1, 3.3.1.3). What is
    /// too large to be kept clears it, too: then the topic has no last value, rather than an old one.
    pub(super) fn put(
        &mut self,
        seq: Seq,
        message: &Message,
        config: &SpoolConfig,
        counters: &mut Counters,
    ) -> Result<(), Abort> {
        let key = key(message);
        if message.payload.is_empty() {
            return self.clear(&key);
        }
        let is_source = message.publisher().source().is_some();
        let (max, payload_max) = if is_source {
            (Share { topics: config.retained_source_topics_max, bytes: config.retained_source_bytes_max }, 0)
        } else {
            (
                Share { topics: config.retained_topics_max, bytes: config.retained_bytes_max },
                config.retained_payload_max,
            )
        };
        let value = Retained::encode(seq, message, payload_max);
        if max.topics == 0 || size(&key, &value) > max.bytes / 16 {
            counters.retained_not_kept += 1;
            return self.clear(&key);
        }
        let old = self.table.insert(&*key, value.as_slice())?.map(|old| size(&key, old.value()));
        let share = share_of(&mut self.shares, &key);
        share.remove(old);
        share.add(size(&key, &value));
        if !share.is_within(max) {
            counters.retained_forgotten += self.make_room(&key, max)?;
        }
        Ok(())
    }

    fn clear(&mut self, key: &[u8]) -> Result<(), Abort> {
        let old = self.table.remove(key)?.map(|old| size(key, old.value()));
        if old.is_some() {
            share_of(&mut self.shares, key).remove(old);
        }
        Ok(())
    }

    /// Forgets what was written longest ago in the share of `key`, never `key` itself. Returns how many topics.
    fn make_room(&mut self, key: &[u8], max: Share) -> Result<u64, Abort> {
        let (from, to) = keys_of(holder(key));
        let mut written = Vec::new();
        for row in self.table.range::<&[u8]>(between(&from, &to))? {
            let (key, value) = row?;
            written.push((seq_of(value.value()), size(key.value(), value.value())));
        }
        written.sort_unstable();
        let goal = Share { topics: max.topics - max.topics / 8, bytes: max.bytes - max.bytes / 8 };
        let share = share_of(&mut self.shares, key);
        let mut left = *share;
        let forgotten = written.iter().take_while(|(_, size)| {
            let is_forgotten = !left.is_within(goal);
            left.remove(is_forgotten.then_some(*size));
            is_forgotten
        });
        let Some(&(last, _)) = forgotten.last() else { return Ok(0) };
        let mut kept = Share::default();
        self.table.retain_in::<&[u8], _>(between(&from, &to), |other, value| {
            let is_kept = seq_of(value) > last || other == key;
            if is_kept {
                kept.add(size(other, value));
            }
            is_kept
        })?;
        let forgotten = share.topics.saturating_sub(kept.topics);
        *share = kept;
        Ok(forgotten)
    }
}

impl Share {
    fn add(&mut self, bytes: u64) {
        self.topics += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: Option<u64>) {
        self.topics = self.topics.saturating_sub(u64::from(bytes.is_some()));
        self.bytes = self.bytes.saturating_sub(bytes.unwrap_or(0));
    }

    fn is_within(self, max: Self) -> bool {
        self.topics <= max.topics && self.bytes <= max.bytes
    }
}

fn key(message: &Message) -> Cow<'_, [u8]> {
    match message.publisher() {
        Publisher::Device(_) => Cow::Borrowed(&message.topic),
        Publisher::Source(_) => {
            let dataset = message.dataset.0.to_be_bytes();
            Cow::Owned([message.client_id.as_bytes(), b"\0", &message.topic, b"\0", &dataset].concat())
        }
    }
}

/// Whose share a key is in. The Client Identifier of a source begins with U+0000 and has no other; a device's topic has none.
fn holder(key: &[u8]) -> &[u8] {
    let Some((0, name)) = key.split_first() else { return DEVICES };
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    key.get(..=end).unwrap_or(key)
}

fn share_of<'a>(shares: &'a mut Shares, key: &[u8]) -> &'a mut Share {
    shares.entry(holder(key).into()).or_default()
}

/// The first key of a share, and the first one behind it; that of the table's end is empty.
fn keys_of(holder: &[u8]) -> (Vec<u8>, Vec<u8>) {
    if holder == DEVICES { (vec![1], Vec::new()) } else { ([holder, b"\0"].concat(), [holder, b"\x01"].concat()) }
}

fn between<'a>(from: &'a [u8], to: &'a [u8]) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    (Bound::Included(from), if to.is_empty() { Bound::Unbounded } else { Bound::Excluded(to) })
}

/// When a value was written. One that cannot be read is the oldest.
fn seq_of(value: &[u8]) -> u64 {
    value.first_chunk().map_or(0, |seq| u64::from_le_bytes(*seq))
}

fn size(topic: &[u8], value: &[u8]) -> u64 {
    (topic.len() + value.len()) as u64
}
