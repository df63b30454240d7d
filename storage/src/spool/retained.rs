//! The last retained value of each topic `[MQTT-3.3.1-5]`, as the gateway saw it.
//!
//! Of a source, whose broker sets RETAIN only on what it sends because of a subscription `[MQTT-3.3.1-8]`
//! `[MQTT-3.3.1-9]`, it is the last message of the topic, whatever its flag: a live message is what the next subscription
//! will bring again. A source has topics of its own, and each dataset that took them, under the key
//! `client id · U+0000 · topic · U+0000 · dataset u32 big-endian`; of its values only hash and length are kept.

use std::borrow::Cow;

use bytes::Bytes;
use redb::{ReadableTable, Table, WriteTransaction};
use xxhash_rust::xxh3::xxh3_64;

use crate::message::{DecodeError, Message, Publisher, take_array};
use crate::position::Seq;

use super::Spool;
use super::config::SpoolConfig;
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

/// How many bytes of topics and values the table holds.
pub(super) fn bytes_in(table: &impl ReadableTable<&'static [u8], &'static [u8]>) -> Result<u64, Abort> {
    let mut bytes = 0;
    for row in table.iter()? {
        let (topic, value) = row?;
        bytes += size(topic.value(), value.value());
    }
    Ok(bytes)
}

/// The table with the sum of its bytes.
pub(super) struct RetainedTable<'txn> {
    table: Table<'txn, &'static [u8], &'static [u8]>,
    pub(super) bytes: u64,
}

impl<'txn> RetainedTable<'txn> {
    pub(super) fn open(txn: &'txn WriteTransaction, bytes: u64) -> Result<Self, Abort> {
        Ok(Self { table: txn.open_table(RETAINED)?, bytes })
    }

    /// Whether the message has the payload of the last value of its topic.
    pub(super) fn has(&self, message: &Message) -> Result<bool, Abort> {
        let Some(value) = self.table.get(&*key(message))? else { return Ok(false) };
        Ok(Retained::decode(value.value()).is_ok_and(|last| {
            last.payload_len == message.payload.len() as u64 && last.payload_hash == xxh3_64(&message.payload)
        }))
    }

    /// Keeps the message as the last value of its topic, or clears that when the payload is empty (3.1.1, 3.3.1.3). False
    /// when a bound forbids it: then the topic has no last value, rather than an old one.
    pub(super) fn put(&mut self, seq: Seq, message: &Message, config: &SpoolConfig) -> Result<bool, Abort> {
        let key = key(message);
        if let Some(old) = self.table.remove(&*key)? {
            self.bytes = self.bytes.saturating_sub(size(&key, old.value()));
        }
        if message.payload.is_empty() {
            return Ok(true);
        }
        let payload_max = if message.publisher().source().is_some() { 0 } else { config.retained_payload_max };
        let value = Retained::encode(seq, message, payload_max);
        let bytes = self.bytes + size(&key, &value);
        let known = redb::ReadableTableMetadata::len(&self.table)?;
        if bytes > config.retained_bytes_max || known >= config.retained_topics_max {
            return Ok(false);
        }
        self.table.insert(&*key, value.as_slice())?;
        self.bytes = bytes;
        Ok(true)
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

fn size(topic: &[u8], value: &[u8]) -> u64 {
    (topic.len() + value.len()) as u64
}
