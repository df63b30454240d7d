//! Drives one session over one connection.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;
use forebay_broker::inbound::{Inbound, InboundPublish, Outcome, Ticket};
use forebay_storage::message::source_client_id;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tracing::{debug, info, warn};

use super::memory::Memory;
use super::packet::{self, Incoming, PacketError};
use super::report::Progress;
use super::session::{Action, Cause, Session, Submission};
use super::transport::{self, Transport};
use crate::clock;
use crate::config::Source;

/// Reason Codes of a DISCONNECT.
const MALFORMED_PACKET: u8 = 0x81;
const PACKET_TOO_LARGE: u8 = 0x95;
/// What a message takes of the budget beside its topic and payload, bytes.
const MESSAGE_BYTES: usize = 128;

/// Where messages go, and who is told.
#[derive(Clone, Debug)]
pub(super) struct Outlet {
    /// To the spool.
    pub(super) inbound: mpsc::Sender<Inbound>,
    /// Bytes of all sources that are received and not stored.
    pub(super) budget: Arc<Semaphore>,
    /// Of which there are so many.
    pub(super) budget_bytes: u32,
    /// The source's state.
    pub(super) progress: Arc<Progress>,
}

/// A connection and what is on its way through it.
pub(super) struct Connection<'a> {
    source: &'a Source,
    outlet: &'a Outlet,
    memory: &'a mut Memory,
    transport: Transport,
    session: Session,
    client_id: Arc<str>,
    /// Read, not decoded.
    buffer: BytesMut,
    /// Encoded, not written.
    out: BytesMut,
    /// Decoded, not handed to the spool, for there is no room.
    waiting: VecDeque<(u64, Submission)>,
    received_at: SystemTime,
    outcomes: mpsc::UnboundedReceiver<(u64, Outcome)>,
    /// At most Receive Maximum outcomes are outstanding.
    outcomes_to: mpsc::UnboundedSender<(u64, Outcome)>,
}

impl<'a> Connection<'a> {
    pub(super) fn new(
        source: &'a Source,
        outlet: &'a Outlet,
        memory: &'a mut Memory,
        transport: Transport,
        session: Session,
    ) -> Self {
        let (outcomes_to, outcomes) = mpsc::unbounded_channel();
        Self {
            source,
            outlet,
            memory,
            transport,
            session,
            client_id: source_client_id(&source.name),
            buffer: BytesMut::new(),
            out: BytesMut::new(),
            waiting: VecDeque::new(),
            received_at: clock::wall(),
            outcomes,
            outcomes_to,
        }
    }

    /// Serves it until it ends.
    pub(super) async fn run(mut self, stop: &mut watch::Receiver<bool>) -> Cause {
        let cause = match self.serve(stop).await {
            Ok(cause) | Err(cause) => cause,
        };
        self.transport.close().await;
        cause
    }

    async fn serve(&mut self, stop: &mut watch::Receiver<bool>) -> Result<Cause, Cause> {
        let mut is_stopping = false;
        loop {
            if let Some(cause) = self.act().await? {
                return Ok(cause);
            }
            if self.submit_what_fits() || self.decode() {
                continue;
            }
            let is_reading = self.session.is_reading() && self.waiting.is_empty();
            let due = self.session.poll_timeout();
            let room = room(self.outlet, self.waiting.front());
            tokio::select! {
                Some((number, outcome)) = self.outcomes.recv() => {
                    let now = clock::now();
                    self.session.handle_outcome(number, outcome, now);
                    while let Ok((number, outcome)) = self.outcomes.try_recv() {
                        self.session.handle_outcome(number, outcome, now);
                    }
                    self.note_open();
                }
                room = room, if !self.waiting.is_empty() => {
                    let Some((permit, budget)) = room else { return Err(Cause::Stopped) };
                    if let Some((number, what)) = self.waiting.pop_front() {
                        permit.send(self.inbound(number, what, budget));
                    }
                }
                read = self.transport.read(&mut self.buffer), if is_reading => match read {
                    Ok(0) => return Err(lost(self.source)),
                    Ok(_) => {
                        self.received_at = clock::wall();
                        let now = clock::now();
                        self.session.handle_bytes(now);
                        self.outlet.progress.bytes(now);
                    }
                    Err(error) => return Err(transport::of_io(self.source, &error)),
                },
                () = sleep_until(due) => self.session.handle_timeout(clock::now(), is_reading),
                _ = stop.wait_for(|stop| *stop), if !is_stopping => {
                    is_stopping = true;
                    self.session.handle_end(Cause::Stopped);
                }
            }
        }
    }

    /// Does what the session wants, and writes what it says, all at once.
    async fn act(&mut self) -> Result<Option<Cause>, Cause> {
        let mut end = None;
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Send(packet) => {
                    let encoded = packet::encode(self.source.version, packet, &mut self.out);
                    encoded.map_err(|problem| Cause::Failed { problem, for_good: true })?;
                }
                Action::Submit(number, what) => self.waiting.push_back((number, what)),
                Action::Subscribed { problem } => {
                    self.memory.subscribed();
                    let filters = self.source.topics.len();
                    match &problem {
                        None => info!(filters, "Subscribed."),
                        Some(problem) => warn!(filters, problem, "Subscribed, but not to everything."),
                    }
                    self.outlet.progress.subscribed(problem, clock::now());
                }
                Action::Close(cause) => end = Some(cause),
            }
        }
        if !self.out.is_empty() {
            let written = self.transport.write(&self.out).await;
            self.out.clear();
            if let (Err(error), None) = (&written, &end) {
                return Err(transport::of_io(self.source, error));
            }
            self.session.handle_sent(clock::now());
        }
        Ok(end)
    }

    /// Hands over what the spool has room for. Answers whether it did anything.
    fn submit_what_fits(&mut self) -> bool {
        let mut any = false;
        while let Some((_, what)) = self.waiting.front() {
            let Ok(budget) = Arc::clone(&self.outlet.budget).try_acquire_many_owned(cost(self.outlet, what)) else {
                break;
            };
            let Ok(permit) = self.outlet.inbound.try_reserve() else { break };
            let Some((number, what)) = self.waiting.pop_front() else { break };
            permit.send(self.inbound(number, what, budget));
            any = true;
        }
        any
    }

    /// Decodes what was read, as far as the session takes it. Answers whether there was anything.
    fn decode(&mut self) -> bool {
        let mut any = false;
        while self.session.is_reading() && self.waiting.is_empty() {
            match packet::decode(self.source.version, &mut self.buffer, self.source.packet_bytes_max) {
                Ok(Some(incoming)) => self.take(incoming),
                Ok(None) => break,
                Err(error) => {
                    let (for_good, advice, code) = match error {
                        PacketError::TooLarge { .. } => {
                            (true, ": raise it; the broker keeps a message that is not of QoS 0", PACKET_TOO_LARGE)
                        }
                        PacketError::Malformed { .. } => (false, "", MALFORMED_PACKET),
                    };
                    let problem = format!("{}: {error}{advice}", self.source.url);
                    self.session.handle_unacceptable(Cause::Failed { problem, for_good }, code);
                }
            }
            any = true;
            // What this packet asks for comes before the next one is looked at.
            if self.session.has_actions() {
                break;
            }
        }
        self.note_open();
        any
    }

    /// A message that is not on disk, or not here as a whole, is no silence.
    fn note_open(&self) {
        self.outlet.progress.open(self.session.open() + usize::from(!self.buffer.is_empty()));
    }

    fn take(&mut self, incoming: Incoming) {
        let now = clock::now();
        match &incoming {
            Incoming::Publish(publish) => self.outlet.progress.message(publish.topic.as_str()),
            Incoming::ConnAck { code: 0, session_present, session_expiry_secs, .. } => {
                self.note_connected(*session_present, *session_expiry_secs);
            }
            _ => {}
        }
        self.session.handle_packet(incoming, now);
    }

    fn note_connected(&mut self, session_present: bool, session_expiry_secs: Option<u32>) {
        debug!(session_present, "Connected.");
        let is_lost = !session_present && self.memory.was_subscribed();
        if is_lost {
            warn!("The broker has lost our session: what it had queued for us since then is lost with it.");
        }
        if let Some(secs) = session_expiry_secs.filter(|secs| *secs < u32::MAX) {
            warn!(secs, "The broker keeps our session for so long only: what comes later while we are away is lost.");
        }
        self.outlet.progress.connected(is_lost, session_expiry_secs);
        self.memory.will_subscribe();
    }

    fn inbound(&self, number: u64, what: Submission, budget: OwnedSemaphorePermit) -> Inbound {
        let ticket = Ticket::new(number, self.outcomes_to.clone(), Some(budget));
        let client_id = Arc::clone(&self.client_id);
        match what {
            Submission::Publish(publish) => Inbound::Publish(InboundPublish {
                client_id,
                user_name: None,
                is_authorized: true,
                topic: publish.topic,
                payload: publish.payload,
                qos: publish.qos,
                retain: publish.retain,
                dup: publish.dup,
                will: false,
                packet_id: publish.packet_id,
                can_be_told: false,
                received_at: self.received_at,
                ticket,
            }),
            Submission::Release(packet_id) => Inbound::Release { client_id, packet_id, ticket },
            Submission::Forget => Inbound::CloseSession { client_id, ticket },
        }
    }
}

/// Room in the channel to the spool and in the budget for the first that waits; `None`: the spool has gone.
async fn room<'a>(
    outlet: &'a Outlet,
    first: Option<&(u64, Submission)>,
) -> Option<(mpsc::Permit<'a, Inbound>, OwnedSemaphorePermit)> {
    let cost = cost(outlet, &first?.1);
    let budget = Arc::clone(&outlet.budget).acquire_many_owned(cost).await.ok()?;
    Some((outlet.inbound.reserve().await.ok()?, budget))
}

/// Bytes of the budget; never more than there are, so that a message that is larger goes alone.
fn cost(outlet: &Outlet, what: &Submission) -> u32 {
    let bytes = match what {
        Submission::Publish(publish) => publish.topic.as_str().len() + publish.payload.len() + MESSAGE_BYTES,
        Submission::Release(_) | Submission::Forget => MESSAGE_BYTES,
    };
    u32::try_from(bytes).unwrap_or(u32::MAX).min(outlet.budget_bytes)
}

async fn sleep_until(due: Option<std::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => pending().await,
    }
}

fn lost(source: &Source) -> Cause {
    Cause::Failed { problem: format!("{}: the broker closed the connection", source.url), for_good: false }
}
