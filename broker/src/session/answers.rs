//! The queue of claims on storage, in the order of the packets that made them.

use std::collections::VecDeque;

use crate::inbound::Outcome;
use crate::packet::PacketId;

/// What a claim is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// PUBACK of a QoS 1 PUBLISH.
    PubAck(PacketId),
    /// PUBREC of a QoS 2 PUBLISH.
    PubRec(PacketId),
    /// PUBREC of a repeated QoS 2 PUBLISH, which is behind the first in the queue: it says what the first one's says. The
    /// number is the first one's claim.
    PubRecAgain(PacketId, u64),
    /// PUBCOMP of a PUBREL.
    PubComp(PacketId),
    /// PUBCOMP of a repeated PUBREL, which is behind the first in the queue.
    PubCompAgain(PacketId),
    /// Part of the CONNACK, or of a DISCONNECT that changes the expiry: seconds.
    Open(u32),
    /// Part of the CONNACK.
    Close,
    /// A Will Message: awaited, so that a shutdown does not overtake it, and answered with nothing.
    Will,
}

/// A QoS 2 delivery that is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    /// The claim that moves it on.
    pub(super) number: u64,
    pub(super) stage: Stage,
    /// Whether its PUBLISH came on this connection, so that it counts against the Receive Maximum.
    pub(super) counted: bool,
}

/// Stands for a claim of an earlier connection. No claim of this one has this number.
pub(super) const EARLIER: u64 = u64::MAX;

/// How far a QoS 2 delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// PUBLISH is submitted.
    Storing,
    /// PUBREC may have been sent.
    Stored,
    /// PUBREL is submitted.
    Releasing,
}

/// Claims by dense number; outcomes come in any order, answers leave from the head.
#[derive(Debug, Default)]
pub(super) struct Answers {
    first: u64,
    queue: VecDeque<(Reply, Option<Outcome>)>,
}

impl Answers {
    /// Queues a claim and gives its number.
    pub(super) fn push(&mut self, reply: Reply, outcome: Option<Outcome>) -> u64 {
        let number = self.first + self.queue.len() as u64;
        self.queue.push_back((reply, outcome));
        number
    }

    /// The first outcome of a claim counts.
    pub(super) fn resolve(&mut self, number: u64, outcome: Outcome) {
        let index = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some((_, slot)) = index.and_then(|index| self.queue.get_mut(index)) {
            slot.get_or_insert(outcome);
        }
    }

    /// The first PUBLISH of a QoS 2 delivery was not stored: neither are its repetitions.
    pub(super) fn fail_repetitions(&mut self, first: u64, failure: Outcome) {
        for (reply, outcome) in &mut self.queue {
            if matches!(reply, Reply::PubRecAgain(_, number) if *number == first) {
                *outcome = Some(failure);
            }
        }
    }

    /// The claim at the head, when it has its outcome.
    pub(super) fn pop_resolved(&mut self) -> Option<(u64, Reply, Outcome)> {
        let &(reply, outcome) = self.queue.front()?;
        let outcome = outcome?;
        self.queue.pop_front();
        self.first += 1;
        Some((self.first - 1, reply, outcome))
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn release_memory(&mut self) {
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
    }
}
