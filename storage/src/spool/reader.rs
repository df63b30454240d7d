//! Reading chunks: short read transactions, copies out, checksums checked.
//!
//! A damaged chunk does not stop its neighbours: it is reported as a [`Gap`], its bytes are put aside under `bad/`, and
//! reading goes on behind it (I7).

use std::ops::Bound;

use bytes::{Bytes, BytesMut};
use redb::ReadableTable;

use crate::message::{DecodeError, Message, Record};
use crate::position::{DatasetId, Seq};

use super::Spool;
use super::chunk::{ChunkInfo, Header};
use super::gaps::{Gap, GapReason};
use super::store::{Abort, SpoolError};
use super::tables::CHUNKS;

/// Most chunks that one transaction looks at, so that it stays short: a long one would keep freed pages alive.
const CHUNKS_PER_READ: usize = 256;

/// What [`Spool::read`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Messages in order.
    pub messages: Vec<(Seq, Message)>,
    /// Where to read on. Equal to the log end when there is nothing further.
    pub next: Seq,
    /// Chunks on the way that could not be read. They are recorded among the gaps of the spool and gone from it; on a full
    /// disk as soon as something is sealed or dropped.
    pub damaged: Vec<Gap>,
}

/// A chunk that could not be read.
pub(super) struct Damage {
    pub(super) first: Seq,
    /// Where the next chunk begins, or where the log ends.
    pub(super) end: Seq,
    pub(super) bytes: Bytes,
    pub(super) reason: DecodeError,
    /// What its header says, when that is whole.
    pub(super) info: Option<ChunkInfo>,
}

/// What to look for, and how much of it.
#[derive(Clone, Copy)]
struct Scan {
    from: Seq,
    dataset: Option<DatasetId>,
    max_messages: usize,
    max_bytes: usize,
    log_end: Seq,
}

impl Spool {
    /// Reads messages from `from` on, of one dataset or of all: at most `max_messages`, and no further one once they have
    /// `max_bytes` of topic, client id and payload. May return none and still have moved on: read until `next` is the log
    /// end.
    ///
    /// However thinly a dataset is spread over the chunks, what is returned keeps none of them in memory: it takes at most
    /// twice the bytes of its messages. While reading there is one chunk more.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when redb itself is damaged; [`SpoolError::Fatal`] when a damaged chunk cannot be recorded
    /// as a gap.
    pub fn read(
        &self,
        from: Seq,
        dataset: Option<DatasetId>,
        max_messages: usize,
        max_bytes: usize,
    ) -> Result<Read, SpoolError> {
        // Taken before the transaction begins: it then sees every chunk below.
        let log_end = self.log_end();
        let scan = Scan { from, dataset, max_messages: max_messages.max(1), max_bytes, log_end };
        let (mut read, damage) = self.inner.store.read(|txn| scan_records(&txn.open_table(CHUNKS)?, scan))?;
        for damage in damage {
            read.damaged.extend(self.step_over(&damage)?);
        }
        Ok(read)
    }

    /// What the chunks from `from` on hold, at most `max` of them. The first may begin before `from`. Damaged ones are
    /// left out; [`read`](Self::read) reports them.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when redb itself is damaged.
    pub fn chunks(&self, from: Seq, max: usize) -> Result<Vec<ChunkInfo>, SpoolError> {
        self.inner.store.read(|txn| {
            let table = txn.open_table(CHUNKS)?;
            let mut infos = Vec::new();
            let mut next = first_at_or_before(&table, from)?.unwrap_or(from);
            while infos.len() < max
                && let Some(first) = first_from(&table, next)?
            {
                if let Ok(header) = load_header(&table, first)?
                    && header.info.end > from
                {
                    infos.push(header.info);
                }
                next = first.next();
            }
            Ok(infos)
        })
    }
}

fn scan_records(
    chunks: &impl ReadableTable<(u64, u16), &'static [u8]>,
    scan: Scan,
) -> Result<(Read, Vec<Damage>), Abort> {
    let mut read = Read { next: scan.from, ..Read::default() };
    let mut damage = Vec::new();
    let mut bytes = 0;
    let mut next = first_at_or_before(chunks, scan.from)?.unwrap_or(scan.from);
    for _ in 0..CHUNKS_PER_READ {
        let Some(first) = first_from(chunks, next)? else {
            read.next = read.next.max(scan.log_end);
            break;
        };
        next = first.next();
        let header = load_header(chunks, first)?;
        if let Ok(header) = &header
            && (header.info.end <= scan.from || scan.dataset.is_some_and(|dataset| !header.info.holds(dataset)))
        {
            read.next = read.next.max(header.info.end);
            continue;
        }
        let chunk = load(chunks, first)?;
        match header.clone().and_then(|header| Ok((header.records(&chunk)?, header.raw_len(), header.info.end))) {
            Ok((records, raw_len, end)) => {
                if !take(records, raw_len, first, scan, &mut read, &mut bytes) {
                    break;
                }
                read.next = read.next.max(end);
            }
            Err(reason) => {
                let end = first_from(chunks, next)?.unwrap_or(scan.log_end.max(next));
                let info = header.ok().map(|header| header.info);
                damage.push(Damage { first, end, bytes: chunk, reason, info });
                read.next = read.next.max(end);
            }
        }
    }
    Ok((read, damage))
}

/// Takes what the scan wants of a chunk's records; false when it has enough before their end.
fn take(records: Vec<Record>, raw_len: usize, first: Seq, scan: Scan, read: &mut Read, bytes: &mut usize) -> bool {
    for (index, record) in records.into_iter().enumerate() {
        let (seq, mut message) = (first.plus(index as u64), record.message);
        if seq < scan.from || scan.dataset.is_some_and(|dataset| message.dataset != dataset) {
            continue;
        }
        if read.messages.len() >= scan.max_messages || (*bytes >= scan.max_bytes && !read.messages.is_empty()) {
            read.next = seq;
            return false;
        }
        *bytes += message.topic.len() + message.client_id.len() + message.payload.len();
        // What it is a slice of stays in memory as long as it does.
        if message.topic.len() + message.payload.len() < raw_len / 2 {
            copy_out(&mut message);
        }
        read.messages.push((seq, message));
    }
    true
}

/// Gives the message memory of its own.
fn copy_out(message: &mut Message) {
    let mut own = BytesMut::with_capacity(message.topic.len() + message.payload.len());
    own.extend_from_slice(&message.topic);
    own.extend_from_slice(&message.payload);
    let own = own.freeze();
    let topic_len = message.topic.len();
    (message.topic, message.payload) = (own.slice(..topic_len), own.slice(topic_len..));
}

/// Where the first chunk that begins at or after `from` begins.
pub(super) fn first_from(
    chunks: &impl ReadableTable<(u64, u16), &'static [u8]>,
    from: Seq,
) -> Result<Option<Seq>, Abort> {
    Ok(chunks.range((from.0, 0)..)?.next().transpose()?.map(|(key, _)| Seq(key.value().0)))
}

/// Where the last chunk that begins at or before `from` begins.
pub(super) fn first_at_or_before(
    chunks: &impl ReadableTable<(u64, u16), &'static [u8]>,
    from: Seq,
) -> Result<Option<Seq>, Abort> {
    let key = chunks.range(..=(from.0, u16::MAX))?.next_back().transpose()?;
    Ok(key.map(|(key, _)| Seq(key.value().0)))
}

/// The header of the chunk at `first`. The inner error is damage.
pub(super) fn load_header(
    chunks: &impl ReadableTable<(u64, u16), &'static [u8]>,
    first: Seq,
) -> Result<Result<Header, DecodeError>, Abort> {
    let Some(start) = chunks.get((first.0, 0))?.map(|value| Bytes::copy_from_slice(value.value())) else {
        return Ok(Err(DecodeError("chunk without its first part")));
    };
    let start = if Header::len_of(&start) > start.len() { load(chunks, first)? } else { start };
    Ok(Header::decode(first, &start))
}

/// All parts of the chunk at `first`, one after the other.
pub(super) fn load(chunks: &impl ReadableTable<(u64, u16), &'static [u8]>, first: Seq) -> Result<Bytes, Abort> {
    let mut bytes = BytesMut::new();
    for part in chunks.range((Bound::Included((first.0, 0)), Bound::Included((first.0, u16::MAX))))? {
        bytes.extend_from_slice(part?.1.value());
    }
    Ok(bytes.freeze())
}

impl Damage {
    /// The gap that it leaves, for each dataset that its header names.
    pub(super) fn gaps(&self, now_us: i64) -> Vec<Gap> {
        let gap = |dataset, messages, bytes| Gap {
            dataset,
            first: self.first,
            end: self.end,
            messages,
            bytes,
            reason: GapReason::Damaged,
            at_us: now_us,
        };
        match &self.info {
            Some(info) => info
                .datasets
                .iter()
                .map(|&(dataset, messages, bytes)| gap(Some(dataset), u64::from(messages), bytes))
                .collect(),
            // Nobody knows whose they were.
            None => vec![gap(None, 0, 0)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Flags;

    /// A read of a thin dataset used to keep all 256 chunks that it went through in memory, a megabyte each.
    #[test]
    fn what_is_read_does_not_keep_the_chunk_in_memory_that_it_came_in() {
        let mut raw = Vec::new();
        for n in 0..100 {
            let message = message(DatasetId(if n == 50 { 1 } else { 2 }), &[n; 1000]);
            Record { message, packet_id: None }.encode(&mut raw);
        }
        let raw_len = raw.len();
        let raw = Bytes::from(raw);
        let mut input = raw.clone();
        let records: Vec<_> = (0..100).map(|_| Record::decode(&mut input).unwrap()).collect();
        drop(input);
        let dataset = Some(DatasetId(1));
        let scan = Scan { from: Seq(0), dataset, max_messages: 10, max_bytes: 1 << 20, log_end: Seq(100) };

        let mut read = Read::default();
        assert!(take(records, raw_len, Seq(0), scan, &mut read, &mut 0));

        assert_eq!(read.messages, [(Seq(50), message(DatasetId(1), &[50; 1000]))]);
        assert!(raw.is_unique());
    }

    fn message(dataset: DatasetId, payload: &[u8]) -> Message {
        Message {
            dataset,
            received_at_us: 0,
            flags: Flags::default(),
            topic: Bytes::from_static(b"t"),
            captures: Vec::new(),
            client_id: "c".into(),
            payload: Bytes::copy_from_slice(payload),
        }
    }
}
