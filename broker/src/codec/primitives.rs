//! The data representations of MQTT (section 1.5): the only place where bytes are taken off a packet or put on one.

use std::num::NonZeroU16;

use bytes::{BufMut, BytesMut};

use super::CodecError;
use crate::packet::PacketId;

/// What is left of one packet, or of the properties in it. Every read is checked against its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Everything that is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Nothing may be left.
    pub(super) fn finish(self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(CodecError::TrailingBytes) }
    }

    pub(super) fn u8(&mut self) -> Result<u8, CodecError> {
        self.array().map(|[byte]: [u8; 1]| byte)
    }

    /// Two Byte Integer, section 1.5.2.
    pub(super) fn u16(&mut self) -> Result<u16, CodecError> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four Byte Integer, section 1.5.3.
    pub(super) fn u32(&mut self) -> Result<u32, CodecError> {
        self.array().map(u32::from_be_bytes)
    }

    /// Variable Byte Integer, section 1.5.5.
    pub(super) fn variable_byte_integer(&mut self) -> Result<u32, CodecError> {
        match variable_byte_integer(self.rest)? {
            VariableByteInteger::Whole { value, length } => {
                self.take(length as usize)?;
                Ok(value)
            }
            VariableByteInteger::Incomplete => Err(CodecError::Truncated),
        }
    }

    /// Binary Data, section 1.5.6.
    pub(super) fn binary(&mut self) -> Result<&'a [u8], CodecError> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    /// UTF-8 Encoded String, section 1.5.4; `field` names it in errors.
    pub(super) fn text(&mut self, field: &'static str) -> Result<&'a str, CodecError> {
        // `from_utf8` refuses surrogates too [MQTT-1.5.4-1], and a byte order mark stays [MQTT-1.5.4-3].
        let text = std::str::from_utf8(self.binary()?).map_err(|_| CodecError::NotUtf8(field))?;
        if text.as_bytes().contains(&0) {
            return Err(CodecError::NullCharacter(field));
        }
        Ok(text)
    }

    /// A string that names one topic: no wildcards. It may be empty.
    pub(super) fn topic_name(&mut self, field: &'static str) -> Result<&'a str, CodecError> {
        let text = self.text(field)?;
        if text.bytes().any(|byte| byte == b'+' || byte == b'#') {
            return Err(CodecError::WildcardInTopicName(field));
        }
        Ok(text)
    }

    /// Packet Identifier, section 2.2.1.
    pub(super) fn packet_id(&mut self) -> Result<PacketId, CodecError> {
        NonZeroU16::new(self.u16()?).ok_or(CodecError::PacketIdentifierZero)
    }

    /// A part of its own whose length comes first as a Variable Byte Integer: nothing read from it leaves it.
    pub(super) fn section(&mut self) -> Result<Self, CodecError> {
        let length = self.variable_byte_integer()?;
        self.take(length as usize).map(Self::new)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(CodecError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(CodecError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }
}

/// A Variable Byte Integer at the start of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VariableByteInteger {
    /// More bytes are needed to know it.
    Incomplete,
    /// All of it is there.
    Whole {
        /// At most 268,435,455.
        value: u32,
        /// How many bytes it takes: 1 to 4.
        length: u32,
    },
}

/// Reads a Variable Byte Integer from at most four bytes.
pub(super) fn variable_byte_integer(bytes: &[u8]) -> Result<VariableByteInteger, CodecError> {
    let mut value = 0;
    for (length, &byte) in (1..=4).zip(bytes) {
        value |= u32::from(byte & 0x7F) << (7 * (length - 1));
        if byte & 0x80 != 0 {
            continue;
        }
        if byte == 0 && length > 1 {
            return Err(CodecError::VariableByteIntegerNotMinimal); // [MQTT-1.5.5-1]
        }
        return Ok(VariableByteInteger::Whole { value, length });
    }
    if bytes.len() >= 4 {
        return Err(CodecError::VariableByteIntegerTooLong);
    }
    Ok(VariableByteInteger::Incomplete)
}

/// Writes a Variable Byte Integer in as few bytes as it takes.
pub(super) fn put_variable_byte_integer(buffer: &mut BytesMut, mut value: usize) {
    debug_assert!(value <= 268_435_455, "no packet of ours is that long");
    loop {
        let byte = (value & 0x7F) as u8;
        value >>= 7;
        if value == 0 {
            buffer.put_u8(byte);
            return;
        }
        buffer.put_u8(byte | 0x80);
    }
}

/// Writes a UTF-8 Encoded String. Longer than 65,535 bytes it is cut at a character, since its length has 16 bits.
pub(super) fn put_text(buffer: &mut BytesMut, text: &str) {
    let mut end = text.len().min(usize::from(u16::MAX));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = text.get(..end).unwrap_or_default();
    buffer.put_u16(text.len() as u16);
    buffer.put_slice(text.as_bytes());
}
