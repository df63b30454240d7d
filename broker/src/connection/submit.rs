//! What a session submits, on its way to storage: the share of the memory budget, the ticket, and waiting for room.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::Connection;
use crate::broker::{Shared, inbound_of_submission, now, wall_clock};
use crate::inbound::{Inbound, Outcome, Ticket};
use crate::session::{Publication, Submission};

/// What a message may keep alive of its packet beyond four times its own size without being copied, bytes.
const PACKET_BYTES_KEPT: usize = 1024;

/// A submission that waits for room.
pub(super) type Blocked = Pin<Box<dyn Future<Output = ()> + Send>>;

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn submit(&mut self, number: Option<u64>, submission: Submission) {
        let (mut bytes, mut received_at) = (0, self.received_at);
        if let Submission::Publish(publication) = &submission {
            if publication.will {
                received_at = wall_clock();
            }
            self.shared.stats.count_message(publication.qos, publication.will);
            bytes = bytes_of(publication);
        }
        let request = Request {
            client_id: self.session.client_id().clone(),
            submission,
            received_at,
            number,
            outcomes: self.outcomes_sender.clone(),
        };
        // A message larger than the whole budget takes all of it.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.shared.limits.unstored_bytes_max);
        let budget = &self.shared.budget;
        let Ok(share) = budget.clone().try_acquire_many_owned(bytes) else {
            let (budget, shared) = (budget.clone(), self.shared.clone());
            self.blocked = Some(Box::pin(async move {
                let share = budget.acquire_many_owned(bytes).await.ok();
                let _ = shared.inbound.send(request.into_inbound(&shared, share)).await;
            }));
            return;
        };
        match self.shared.inbound.try_send(request.into_inbound(&self.shared, Some(share))) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(message)) => {
                let inbound = self.shared.inbound.clone();
                self.blocked = Some(Box::pin(async move {
                    let _ = inbound.send(message).await;
                }));
            }
            // Nobody stores any more: the ticket goes, and says so.
            Err(mpsc::error::TrySendError::Closed(message)) => drop(message),
        }
    }

    /// Goes on when room came for the submission that waits.
    pub(super) fn poll_blocked(&mut self, cx: &mut Context<'_>) {
        while let Some(blocked) = &mut self.blocked
            && blocked.as_mut().poll(cx).is_ready()
        {
            self.blocked = None;
            self.session.handle_alive(now()); // the silence was ours
            while self.blocked.is_none() && !self.waiting.is_empty() {
                let (number, submission) = self.waiting.remove(0);
                self.submit(number, submission);
            }
        }
    }
}

fn bytes_of(publication: &Publication) -> usize {
    publication.topic.as_bytes().len() + publication.payload.len()
}

/// What is submitted, in memory of its own where it is little of its packet: the budget counts topic and payload, and the
/// rest of a packet, its User Properties, shall not stay alive uncounted.
pub(super) fn detached(mut submission: Submission, frame_bytes: usize) -> Submission {
    if let Submission::Publish(publication) = &mut submission
        && frame_bytes > 4 * bytes_of(publication) + PACKET_BYTES_KEPT
    {
        publication.topic = publication.topic.detach();
        publication.payload = Bytes::copy_from_slice(&publication.payload);
    }
    submission
}

/// A submission with all that its [`Inbound`] needs but the share of the budget.
struct Request {
    client_id: Arc<str>,
    submission: Submission,
    received_at: SystemTime,
    number: Option<u64>,
    outcomes: mpsc::UnboundedSender<(u64, Outcome)>,
}

impl Request {
    fn into_inbound(self, shared: &Shared, share: Option<OwnedSemaphorePermit>) -> Inbound {
        let ticket = match self.number {
            Some(number) => Ticket::new(number, self.outcomes, share),
            None => Ticket::unattended(share),
        };
        inbound_of_submission(shared, self.client_id, self.submission, self.received_at, ticket)
    }
}
