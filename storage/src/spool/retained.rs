//! The last retained value of each topic `[MQTT-3.3.1-5]`, as the gateway saw it.

use bytes::Bytes;
use redb::{ReadableTable, Table, WriteTransaction};
use xxhash_rust::xxh3::xxh3_64;

use crate::message::{DecodeError, Message, take_array};
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

    /// Keeps the message as the last value of its topic, or clears that when the payload is empty (3.1.1, 3.3.1.3). False
    /// when a bound forbids it: then the topic has no last value, rather than an old one.
    pub(super) fn put(&mut self, seq: Seq, message: &Message, config: &SpoolConfig) -> Result<bool, Abort> {
        let topic = &message.topic[..];
        if let Some(old) = self.table.remove(topic)? {
            self.bytes = self.bytes.saturating_sub(size(topic, old.value()));
        }
        if message.payload.is_empty() {
            return Ok(true);
        }
        let value = Retained::encode(seq, message, config.retained_payload_max);
        let bytes = self.bytes + size(topic, &value);
        let known = redb::ReadableTableMetadata::len(&self.table)?;
        if bytes > config.retained_bytes_max || known >= config.retained_topics_max {
            return Ok(false);
        }
        self.table.insert(topic, value.as_slice())?;
        self.bytes = bytes;
        Ok(true)
    }
}

fn size(topic: &[u8], value: &[u8]) -> u64 {
    (topic.len() + value.len()) as u64
}
