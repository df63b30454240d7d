//! One chunk: the messages of one commit in one value (pure).
//!
//! ```text
//!  0  version    u8    1
//!  1  codec      u8    0 none, 1 LZ4 block
//!  2  header_crc u32   CRC-32 of first seq (u64), then of the header without this field
//!  6  header_len u32   bytes of the header, i.e. where the body begins
//! 10  body_len   u32   bytes of the body as stored
//! 14  body_crc   u32   CRC-32 of first seq (u64), then of the body as stored
//! 18  raw_len    u32   bytes of the body once decompressed
//! 22  count      u32   messages
//! 26  oldest     i64   earliest time of receipt, µs
//! 34  datasets: n varint, then n × (id varint, messages varint, payload bytes varint), ids ascending
//!     body: `count` records, see [`Record::encode`]
//! ```
//!
//! Integers are little-endian. The chunk is cut into parts of [`PART_BYTES`], each a value of its own, because redb stores
//! a value in the next power of two of pages. Both checksums cover the first seq, so a chunk that redb finds under a key
//! that is not its own is damage, too. redb itself checks pages only when it repairs, so a flipped bit reaches us unless
//! these sums stop it.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::message::{DecodeError, Message, Record, put_varint, take_array, take_varint};
use crate::position::{DatasetId, Seq};

use super::config::CHUNK_MESSAGES_MAX;

/// The most bytes of one part: with redb's key and page overhead it fills one page of 4,096.
pub(super) const PART_BYTES: usize = 4080;
const VERSION: u8 = 1;
const CODEC_NONE: u8 = 0;
const CODEC_LZ4: u8 = 1;
/// Bytes before the list of datasets.
const FIXED_LEN: usize = 34;
/// Bytes of the header that its own checksum does not cover: from here to `CRC_END`.
const CRC_START: usize = 2;
const CRC_END: usize = 6;
/// A claimed raw length above this is damage: no commit makes one (a full commit plus one message of the largest size).
const RAW_LEN_MAX: usize = 256 << 20;

/// What a chunk says of itself without its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkInfo {
    /// Position of its first message.
    pub first: Seq,
    /// Position after its last message.
    pub end: Seq,
    /// Bytes that it takes in the spool, with page rounding.
    pub bytes_on_disk: u64,
    /// Earliest time of receipt in it, µs.
    pub oldest_received_us: i64,
    /// How many messages and payload bytes of each dataset it holds, by ascending id.
    pub datasets: Vec<(DatasetId, u32, u64)>,
}

impl ChunkInfo {
    /// Whether it holds a message of `dataset`.
    #[must_use]
    pub fn holds(&self, dataset: DatasetId) -> bool {
        self.datasets.binary_search_by_key(&dataset, |entry| entry.0).is_ok()
    }
}

/// Gathers the messages of one commit.
#[derive(Debug, Default)]
pub(super) struct ChunkBuilder {
    raw: Vec<u8>,
    count: u32,
    oldest: Option<i64>,
    datasets: BTreeMap<DatasetId, (u32, u64)>,
}

impl ChunkBuilder {
    /// Adds a message; returns its place in the chunk.
    pub(super) fn push(&mut self, message: &Message, packet_id: Option<u16>) -> u64 {
        Record::encode_parts(message, packet_id, &mut self.raw);
        self.oldest = Some(self.oldest.map_or(message.received_at_us, |oldest| oldest.min(message.received_at_us)));
        let (messages, bytes) = self.datasets.entry(message.dataset).or_default();
        *messages += 1;
        *bytes += message.payload.len() as u64;
        self.count += 1;
        u64::from(self.count) - 1
    }

    pub(super) fn len(&self) -> u64 {
        u64::from(self.count)
    }

    pub(super) fn raw_len(&self) -> usize {
        self.raw.len()
    }

    /// The bytes of the chunk whose first message is `first`. The smaller of compressed and plain.
    pub(super) fn finish(&self, first: Seq) -> Vec<u8> {
        let compressed = lz4_flex::block::compress(&self.raw);
        let (codec, body) =
            if compressed.len() < self.raw.len() { (CODEC_LZ4, &compressed) } else { (CODEC_NONE, &self.raw) };
        let mut out = Vec::with_capacity(FIXED_LEN + 16 * self.datasets.len() + body.len());
        out.extend_from_slice(&[VERSION, codec]);
        out.extend_from_slice(&[0; 8]); // checksum and length of the header, below
        out.extend_from_slice(&length(body).to_le_bytes());
        out.extend_from_slice(&crc(first, &[body]).to_le_bytes());
        out.extend_from_slice(&length(&self.raw).to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.oldest.unwrap_or_default().to_le_bytes());
        put_varint(&mut out, self.datasets.len() as u64);
        for (dataset, (messages, bytes)) in &self.datasets {
            put_varint(&mut out, u64::from(dataset.0));
            put_varint(&mut out, u64::from(*messages));
            put_varint(&mut out, *bytes);
        }
        let header_len = length(&out);
        out[CRC_END..CRC_END + 4].copy_from_slice(&header_len.to_le_bytes());
        let sum = crc(first, &[&out[..CRC_START], &out[CRC_END..]]);
        out[CRC_START..CRC_END].copy_from_slice(&sum.to_le_bytes());
        out.extend_from_slice(body);
        out
    }
}

/// The header of a stored chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) info: ChunkInfo,
    codec: u8,
    header_len: usize,
    body_len: usize,
    body_crc: u32,
    raw_len: usize,
}

impl Header {
    /// How many bytes of the chunk must be there to decode its header, once its first part is.
    pub(super) fn len_of(start: &[u8]) -> usize {
        let length = start.get(CRC_END..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
        u32::from_le_bytes(length) as usize
    }

    /// Decodes the header of the chunk at `first` from its first bytes.
    pub(super) fn decode(first: Seq, start: &Bytes) -> Result<Self, DecodeError> {
        let header_len = Self::len_of(start);
        if header_len < FIXED_LEN || header_len > start.len() {
            return Err(DecodeError("chunk header cut short"));
        }
        let header = start.slice(..header_len);
        let sum = u32::from_le_bytes(take_array(&mut header.slice(CRC_START..))?);
        if sum != crc(first, &[&header[..CRC_START], &header[CRC_END..]]) {
            return Err(DecodeError("checksum of the chunk header"));
        }
        let mut input = header;
        let [version, codec] = take_array(&mut input)?;
        if version != VERSION || codec > CODEC_LZ4 {
            return Err(DecodeError("chunk of a later version"));
        }
        let _crc_and_length: [u8; 8] = take_array(&mut input)?;
        let body_len = take_u32(&mut input)? as usize;
        let body_crc = take_u32(&mut input)?;
        let raw_len = take_u32(&mut input)? as usize;
        let count = take_u32(&mut input)?;
        let oldest_received_us = i64::from_le_bytes(take_array(&mut input)?);
        let datasets = take_datasets(&mut input)?;
        let end = first.0.checked_add(u64::from(count)).ok_or(DecodeError("chunk beyond the last seq"))?;
        if raw_len > RAW_LEN_MAX || count == 0 || count > CHUNK_MESSAGES_MAX || !input.is_empty() {
            return Err(DecodeError("chunk header out of bounds"));
        }
        let bytes_on_disk = cost(header_len + body_len);
        let info = ChunkInfo { first, end: Seq(end), bytes_on_disk, oldest_received_us, datasets };
        Ok(Self { info, codec, header_len, body_len, body_crc, raw_len })
    }

    /// Bytes of all records together.
    pub(super) fn raw_len(&self) -> usize {
        self.raw_len
    }

    /// The records of the whole chunk. They share its memory.
    pub(super) fn records(&self, chunk: &Bytes) -> Result<Vec<Record>, DecodeError> {
        if chunk.len() != self.header_len + self.body_len {
            return Err(DecodeError("chunk with a part too few or too many"));
        }
        let body = chunk.slice(self.header_len..);
        if crc(self.info.first, &[&body]) != self.body_crc {
            return Err(DecodeError("checksum of the chunk"));
        }
        let mut raw = match self.codec {
            CODEC_NONE => body,
            _ => lz4_flex::block::decompress(&body, self.raw_len).map_err(|_| DecodeError("LZ4"))?.into(),
        };
        let count = self.info.end.0 - self.info.first.0;
        let records = (0..count).map(|_| Record::decode(&mut raw)).collect::<Result<_, _>>()?;
        if raw.is_empty() { Ok(records) } else { Err(DecodeError("bytes after the last record")) }
    }
}

/// What a chunk of `len` bytes takes in the file: full parts fill a page each; a last small one shares its page.
pub(super) fn cost(len: usize) -> u64 {
    const PAGE: u64 = 4096;
    const ENTRY_OVERHEAD: u64 = 24;
    let rest = (len % PART_BYTES) as u64;
    let full = (len / PART_BYTES) as u64 * PAGE;
    full + if rest > PAGE / 2 { PAGE } else { rest + ENTRY_OVERHEAD }
}

fn crc(first: Seq, pieces: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&first.0.to_le_bytes());
    for piece in pieces {
        hasher.update(piece);
    }
    hasher.finalize()
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a commit is bounded far below 4 GiB")
}

fn take_u32(input: &mut Bytes) -> Result<u32, DecodeError> {
    Ok(u32::from_le_bytes(take_array(input)?))
}

fn take_datasets(input: &mut Bytes) -> Result<Vec<(DatasetId, u32, u64)>, DecodeError> {
    let count = take_varint(input)?;
    if count > input.len() as u64 / 3 {
        return Err(DecodeError("more datasets than bytes"));
    }
    let narrow = |value: u64| u32::try_from(value).map_err(|_| DecodeError("dataset above u32"));
    (0..count)
        .map(|_| Ok((DatasetId(narrow(take_varint(input)?)?), narrow(take_varint(input)?)?, take_varint(input)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::Flags;

    #[test]
    fn a_chunk_says_what_it_holds_and_gives_it_back() {
        let records = [record(7, 5_000, b"{\"t\":1}"), record(3, 4_000, b"{}"), record(7, 6_000, b"")];
        let chunk = chunk_of(Seq(10), &records);

        let header = Header::decode(Seq(10), &chunk).unwrap();

        assert_eq!((header.info.first, header.info.end), (Seq(10), Seq(13)));
        assert_eq!(header.info.oldest_received_us, 4_000);
        assert_eq!(header.info.datasets, [(DatasetId(3), 1, 2), (DatasetId(7), 2, 7)]);
        assert!(header.info.holds(DatasetId(7)) && !header.info.holds(DatasetId(4)));
        assert_eq!(header.records(&chunk).unwrap(), records);
    }

    #[test]
    fn a_chunk_under_another_first_seq_is_damage() {
        let chunk = chunk_of(Seq(10), &[record(1, 0, b"x")]);

        assert!(Header::decode(Seq(11), &chunk).is_err());
    }

    #[test]
    fn a_chunk_that_does_not_shrink_is_stored_plain() {
        let mut rng = fastrand::Rng::with_seed(1);
        let noise: Vec<u8> = (0..4000).map(|_| rng.u8(..)).collect();
        let chunk = chunk_of(Seq(0), &[record(1, 0, &noise)]);

        assert_eq!(chunk[1], CODEC_NONE);
        assert_eq!(Header::decode(Seq(0), &chunk).unwrap().records(&chunk).unwrap().len(), 1);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let records: Vec<_> = (0..20).map(|n| record(n % 3, i64::from(n), b"{\"temperature\":21.5}")).collect();
        let chunk = chunk_of(Seq(99), &records);

        for bit in 0..chunk.len() * 8 {
            let mut damaged = chunk.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let damaged = Bytes::from(damaged);
            let read = Header::decode(Seq(99), &damaged).and_then(|header| header.records(&damaged));
            assert!(read.is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_chunk_or_an_error(bytes in any::<Vec<u8>>(), first in any::<u64>()) {
            let bytes = Bytes::from(bytes);
            if let Ok(header) = Header::decode(Seq(first), &bytes) {
                let _ = header.records(&bytes);
            }
        }
    }

    fn chunk_of(first: Seq, records: &[Record]) -> Bytes {
        let mut builder = ChunkBuilder::default();
        for record in records {
            builder.push(&record.message, record.packet_id);
        }
        builder.finish(first).into()
    }

    fn record(dataset: u32, received_at_us: i64, payload: &[u8]) -> Record {
        let message = Message {
            dataset: DatasetId(dataset),
            received_at_us,
            flags: Flags { qos: 1, ..Flags::default() },
            topic: Bytes::from_static(b"site/a/temp"),
            captures: vec![0..4, 5..6],
            client_id: "device".into(),
            payload: Bytes::copy_from_slice(payload),
        };
        Record { message, packet_id: Some(1) }
    }
}
