//! Dead letters: messages that could not become a row, kept with the reason.
//!
//! A message becomes one when it is sealed and its payload is not a row of its dataset, or when it is accepted although no
//! dataset takes it (MQTT 3.1.1 has no way to tell the device). They lie in the spool's database under `(dataset, seq)`
//! until they are replayed or dropped; at [`SpoolConfig::dead_letter_bytes_max`] the oldest goes
//! and leaves a gap.
//!
//! [`SpoolConfig::dead_letter_bytes_max`]: crate::spool::SpoolConfig::dead_letter_bytes_max

use bytes::Bytes;

use crate::message::{DecodeError, Message, Record, put_bytes, take_array, take_bytes};
use crate::position::{DatasetId, Seq};

/// Stands for the dataset of a message that no dataset takes.
pub const NO_DATASET: DatasetId = DatasetId(u32::MAX);

/// A message that could not become a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its position in the spool.
    pub seq: Seq,
    /// The message. Its dataset is [`NO_DATASET`] when none took it.
    pub message: Message,
    /// Why, for a person.
    pub reason: String,
    /// When it was found, µs.
    pub at_us: i64,
}

const VERSION: u8 = 1;

impl DeadLetter {
    /// `version u8 · at i64 · reason · record`, see [`Record::encode`].
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.at_us.to_le_bytes());
        put_bytes(&mut out, self.reason.as_bytes());
        Record::encode_parts(&self.message, None, &mut out);
        out
    }

    pub(crate) fn decode(seq: Seq, value: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Bytes::copy_from_slice(value);
        let [version] = take_array(&mut input)?;
        if version != VERSION {
            return Err(DecodeError("dead letter of a later version"));
        }
        let at_us = i64::from_le_bytes(take_array(&mut input)?);
        let reason = String::from_utf8_lossy(&take_bytes(&mut input)?).into_owned();
        let message = Record::decode(&mut input)?.message;
        Ok(Self { seq, message, reason, at_us })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Flags;

    #[test]
    fn a_dead_letter_is_read_back_and_a_damaged_one_is_an_error() {
        let letter = DeadLetter {
            seq: Seq(9),
            message: Message {
                dataset: NO_DATASET,
                received_at_us: 1,
                flags: Flags::default(),
                topic: Bytes::from_static(b"a"),
                captures: Vec::new(),
                client_id: "c".into(),
                payload: Bytes::from_static(b"{"),
            },
            reason: "no dataset takes topic a".into(),
            at_us: 2,
        };
        let bytes = letter.encode();

        assert_eq!(DeadLetter::decode(Seq(9), &bytes), Ok(letter));
        for cut in 0..bytes.len() {
            assert!(DeadLetter::decode(Seq(9), &bytes[..cut]).is_err());
        }
    }
}
