//! One stored message.
//!
//! What the spool keeps of an accepted PUBLISH. Its dataset and its topic captures are resolved when it is accepted, so
//! that reading it back does not depend on a later configuration.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::position::DatasetId;

/// A message to be stored, or read back. Times are microseconds since 1970-01-01 UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it goes.
    pub dataset: DatasetId,
    /// When it was received, µs.
    pub received_at_us: i64,
    /// What the publisher said of it.
    pub flags: Flags,
    /// Topic Name, UTF-8.
    pub topic: Bytes,
    /// Byte ranges of `topic` that the dataset's `{captures}` took, in the order in which the dataset declares them.
    pub captures: Vec<Range<u16>>,
    /// Client Identifier of the publisher; of a source: [`source_client_id`].
    pub client_id: Arc<str>,
    /// Application Message.
    pub payload: Bytes,
}

/// Flags of a [`Message`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// 0, 1 or 2.
    pub qos: u8,
    /// RETAIN.
    pub retain: bool,
    /// DUP.
    pub dup: bool,
    /// It was a Will Message.
    pub will: bool,
    /// The gateway's clock was known to be right when `received_at_us` was taken.
    pub clock_synchronised: bool,
}

/// Who handed a message over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publisher<'a> {
    /// A device, by its Client Identifier.
    Device(&'a str),
    /// A broker that we subscribe to, by the name that the configuration gives it.
    Source(&'a str),
}

/// Begins the Client Identifier under which the spool keeps the messages and Packet Identifiers of a source. No device can
/// have such a one: a packet with U+0000 in a text is malformed `[MQTT-1.5.3-2]`.
const SOURCE: char = '\0';

/// The Client Identifier that stands for the source of this name.
#[must_use]
pub fn source_client_id(name: &str) -> Arc<str> {
    format!("{SOURCE}{name}").into()
}

impl<'a> Publisher<'a> {
    /// Whom a Client Identifier stands for.
    #[must_use]
    pub fn of(client_id: &'a str) -> Self {
        match client_id.strip_prefix(SOURCE) {
            Some(name) => Self::Source(name),
            None => Self::Device(client_id),
        }
    }

    /// Client Identifiers of sources: the first, and the first one behind them.
    pub(crate) fn sources() -> (&'static str, &'static str) {
        ("\0", "\u{1}")
    }

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'a str {
        let (Self::Device(name) | Self::Source(name)) = self;
        name
    }

    /// The name, if it is a source.
    #[must_use]
    pub fn source(self) -> Option<&'a str> {
        match self {
            Self::Source(name) => Some(name),
            Self::Device(_) => None,
        }
    }
}

impl Message {
    /// Who handed it over.
    #[must_use]
    pub fn publisher(&self) -> Publisher<'_> {
        Publisher::of(&self.client_id)
    }
}

/// A [`Message`] as it is stored: with the Packet Identifier that it came under (QoS 1 and 2), by which resent messages
/// are recognised after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The message.
    pub message: Message,
    /// Packet Identifier, when it had one.
    pub packet_id: Option<u16>,
}

/// Why stored bytes are not a [`Record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a stored message: {0}")]
pub struct DecodeError(pub(crate) &'static str);

impl Record {
    /// Appends the record to `out`:
    ///
    /// ```text
    /// dataset varint · flags u8 · [packet id u16] · received_at i64 · topic · n varint · n × (start varint, length varint)
    /// · client id · payload                           text and bytes: length varint, then the bytes; integers: little-endian
    /// flags: bits 0-1 QoS, 2 RETAIN, 3 DUP, 4 will, 5 clock synchronised, 6 packet id present, 7 zero
    /// ```
    ///
    /// What could not be read back is made readable: captures are cut at the end of the topic, a QoS above 2 is 2.
    pub fn encode(&self, out: &mut Vec<u8>) {
        Self::encode_parts(&self.message, self.packet_id, out);
    }

    /// The same for a record that nobody has put together.
    pub(crate) fn encode_parts(message: &Message, packet_id: Option<u16>, out: &mut Vec<u8>) {
        put_varint(out, u64::from(message.dataset.0));
        out.push(flag_bits(message.flags, packet_id.is_some()));
        if let Some(packet_id) = packet_id {
            out.extend_from_slice(&packet_id.to_le_bytes());
        }
        out.extend_from_slice(&message.received_at_us.to_le_bytes());
        put_bytes(out, &message.topic);
        put_varint(out, message.captures.len() as u64);
        for capture in &message.captures {
            let end = usize::from(capture.end).min(message.topic.len());
            let start = usize::from(capture.start).min(end);
            put_varint(out, start as u64);
            put_varint(out, (end - start) as u64);
        }
        put_bytes(out, message.client_id.as_bytes());
        put_bytes(out, &message.payload);
    }

    /// Takes one record off the front of `input`. The message shares its memory.
    ///
    /// # Errors
    /// Any byte that [`encode`](Self::encode) would not have written.
    pub fn decode(input: &mut Bytes) -> Result<Self, DecodeError> {
        let dataset = u32::try_from(take_varint(input)?).map_err(|_| DecodeError("dataset above u32"))?;
        let bits = take_array::<1>(input)?[0];
        let packet_id = match bits & PACKET_ID {
            0 => None,
            _ => Some(u16::from_le_bytes(take_array(input)?)),
        };
        let received_at_us = i64::from_le_bytes(take_array(input)?);
        let topic = take_bytes(input)?;
        let captures = take_captures(input, topic.len())?;
        let client_id = take_bytes(input)?;
        let client_id = std::str::from_utf8(&client_id).map_err(|_| DecodeError("client id not UTF-8"))?.into();
        let payload = take_bytes(input)?;
        let message = Message {
            dataset: DatasetId(dataset),
            received_at_us,
            flags: flags_of(bits)?,
            topic,
            captures,
            client_id,
            payload,
        };
        Ok(Self { message, packet_id })
    }
}

fn flag_bits(flags: Flags, packet_id: bool) -> u8 {
    let bit = |set: bool, mask: u8| if set { mask } else { 0 };
    flags.qos.min(2)
        | bit(flags.retain, RETAIN)
        | bit(flags.dup, DUP)
        | bit(flags.will, WILL)
        | bit(flags.clock_synchronised, CLOCK)
        | bit(packet_id, PACKET_ID)
}

const RETAIN: u8 = 1 << 2;
const DUP: u8 = 1 << 3;
const WILL: u8 = 1 << 4;
const CLOCK: u8 = 1 << 5;
const PACKET_ID: u8 = 1 << 6;

fn flags_of(bits: u8) -> Result<Flags, DecodeError> {
    if bits & 0b11 == 3 || bits & 0x80 != 0 {
        return Err(DecodeError("unknown flags"));
    }
    Ok(Flags {
        qos: bits & 0b11,
        retain: bits & RETAIN != 0,
        dup: bits & DUP != 0,
        will: bits & WILL != 0,
        clock_synchronised: bits & CLOCK != 0,
    })
}

fn take_captures(input: &mut Bytes, topic_len: usize) -> Result<Vec<Range<u16>>, DecodeError> {
    let count = take_varint(input)?;
    // Two bytes each: nothing is allocated from a count that the input cannot hold.
    if count > input.len() as u64 / 2 {
        return Err(DecodeError("more captures than bytes"));
    }
    (0..count)
        .map(|_| {
            let start = take_varint(input)?;
            let end = start.checked_add(take_varint(input)?).filter(|&end| end <= topic_len as u64);
            match (u16::try_from(start), end.map(u16::try_from)) {
                (Ok(start), Some(Ok(end))) => Ok(start..end),
                _ => Err(DecodeError("capture outside the topic")),
            }
        })
        .collect()
}

/// Appends an unsigned LEB128.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes an unsigned LEB128 in its shortest form off the front of `input`.
pub(crate) fn take_varint(input: &mut Bytes) -> Result<u64, DecodeError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take_array::<1>(input)?[0];
        let low = u64::from(byte & 0x7F);
        if shift == 63 && low > 1 {
            break;
        }
        value |= low << shift;
        if byte & 0x80 == 0 {
            return if byte == 0 && shift > 0 { Err(DecodeError("varint not shortest")) } else { Ok(value) };
        }
    }
    Err(DecodeError("varint above u64"))
}

/// Appends a length and the bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Takes a length and that many bytes off the front of `input`, without copying.
pub(crate) fn take_bytes(input: &mut Bytes) -> Result<Bytes, DecodeError> {
    let length = take_varint(input)?;
    match usize::try_from(length) {
        Ok(length) if length <= input.len() => Ok(input.split_to(length)),
        _ => Err(DecodeError("length beyond the end")),
    }
}

/// Takes `N` bytes off the front of `input`.
pub(crate) fn take_array<const N: usize>(input: &mut Bytes) -> Result<[u8; N], DecodeError> {
    let array = *input.first_chunk::<N>().ok_or(DecodeError("ends too early"))?;
    let _ = input.split_to(N);
    Ok(array)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(record in any_record(), tail in any::<Vec<u8>>()) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            bytes.extend_from_slice(&tail);

            let mut input = Bytes::from(bytes);
            let back = Record::decode(&mut input).unwrap();

            prop_assert_eq!(back, record);
            prop_assert_eq!(&input[..], &tail[..]);
        }

        #[test]
        fn any_bytes_are_a_record_in_its_only_form_or_an_error(bytes in any::<Vec<u8>>()) {
            let mut input = Bytes::from(bytes.clone());
            if let Ok(record) = Record::decode(&mut input) {
                let mut again = Vec::new();
                record.encode(&mut again);
                prop_assert_eq!(&bytes[..bytes.len() - input.len()], &again[..]);
            }
        }

        #[test]
        fn a_record_cut_anywhere_is_an_error(record in any_record(), cut in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            bytes.truncate(cut.index(bytes.len()));

            prop_assert!(Record::decode(&mut Bytes::from(bytes)).is_err());
        }
    }

    #[test]
    fn a_source_is_told_from_a_device_of_the_same_name() {
        assert_eq!(Publisher::of(&source_client_id("plant")), Publisher::Source("plant"));
        assert_eq!(Publisher::of("plant"), Publisher::Device("plant"));
    }

    #[test]
    fn captures_beyond_the_topic_are_cut_so_that_they_can_be_read_back() {
        let message = Message {
            dataset: DatasetId(1),
            received_at_us: 0,
            flags: Flags { qos: 7, ..Flags::default() },
            topic: Bytes::from_static(b"a/b"),
            captures: vec![2..9, 7..8],
            client_id: "c".into(),
            payload: Bytes::new(),
        };
        let mut bytes = Vec::new();
        Record { message, packet_id: None }.encode(&mut bytes);

        let back = Record::decode(&mut Bytes::from(bytes)).unwrap().message;

        assert_eq!(back.captures, [2..3, 3..3]);
        assert_eq!(back.flags.qos, 2);
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let topic = prop::collection::vec(any::<u8>(), 0..40);
        let captures = prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..4);
        let flags = (0..3u8, any::<[bool; 4]>());
        let text = (topic, captures, ".{0,12}", any::<Vec<u8>>());
        (any::<u32>(), any::<i64>(), flags, any::<Option<u16>>(), text).prop_map(
            |(
                dataset,
                received_at_us,
                (qos, [retain, dup, will, clock]),
                packet_id,
                (topic, cuts, client, payload),
            )| {
                let captures = cuts.iter().map(|(a, b)| {
                    let (a, b) = (a.index(topic.len() + 1) as u16, b.index(topic.len() + 1) as u16);
                    a.min(b)..a.max(b)
                });
                let message = Message {
                    dataset: DatasetId(dataset),
                    received_at_us,
                    flags: Flags { qos, retain, dup, will, clock_synchronised: clock },
                    captures: captures.collect(),
                    topic: topic.into(),
                    client_id: client.into(),
                    payload: payload.into(),
                };
                Record { message, packet_id }
            },
        )
    }
}
