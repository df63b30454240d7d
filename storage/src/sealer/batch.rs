//! Which messages make a batch.

use crate::batcher::BatchLimits;
use crate::position::{DatasetId, Seq};
use crate::spool::{Spool, SpoolError};

/// Messages copied out of the spool at a time.
pub(super) const READ_MESSAGES: usize = 4_096;
/// Bytes copied out of the spool at a time.
pub(super) const READ_BYTES: usize = 1024 * 1024;

/// The messages of one dataset from its sealed position up to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Exclusive: every message of the dataset below it is in the batch or was sealed before.
    pub(super) end: Seq,
    pub(super) messages: u64,
    pub(super) payload_bytes: u64,
    pub(super) latest_received_us: i64,
    /// Receipt of the first message that did not fit.
    pub(super) rest_since_us: Option<i64>,
}

/// Looks ahead: the time of the last message stamps every row of the batch, so it must be known before the first row is
/// written. `None` when there is no message.
pub(super) fn plan(spool: &Spool, id: DatasetId, from: Seq, limits: &BatchLimits) -> Result<Option<Plan>, SpoolError> {
    let mut plan = Plan { end: from, messages: 0, payload_bytes: 0, latest_received_us: i64::MIN, rest_since_us: None };
    loop {
        let read = spool.read(plan.end, Some(id), READ_MESSAGES, READ_BYTES)?;
        for (seq, message) in &read.messages {
            let bytes = plan.payload_bytes + message.payload.len() as u64;
            if plan.messages >= limits.rows || (plan.messages > 0 && bytes > limits.bytes) {
                plan.end = *seq;
                plan.rest_since_us = Some(message.received_at_us);
                return Ok(Some(plan));
            }
            plan.messages += 1;
            plan.payload_bytes = bytes;
            plan.latest_received_us = plan.latest_received_us.max(message.received_at_us);
        }
        if read.next <= plan.end {
            return Ok((plan.messages > 0).then_some(plan));
        }
        plan.end = read.next;
    }
}
