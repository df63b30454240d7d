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
    /// Client Identifier of the publisher.
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
