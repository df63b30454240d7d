//! What all connections share, the handle that the agent holds, and the caretaker of clients that are away.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tracing::{Instrument as _, error, info, info_span, warn};

use crate::auth::{Access, Logins};
use crate::config::{Limits, ListenerConfig};
use crate::connecting::{Connecting, Entered};
use crate::connection::{Connection, Entrance, Handle, Identity, Peer};
use crate::inbound::{Inbound, InboundPublish, Outcome, Ticket};
use crate::listener::{self, Listener};
use crate::packet::PacketId;
use crate::quota::{Origin, Quotas};
use crate::reason::ConnectReason;
use crate::registry::{Due, Registry};
use crate::session::{DelayedWill, Publication, SessionState, StopReason, Submission};
use crate::stats::{Gauge, Snapshot, Stats};
use crate::tls::ServerTls;

/// Ended sessions that the caretaker closes at once.
const CLOSING_MAX: usize = 64;

/// A session that storage remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSession {
    /// Whose.
    pub client_id: Arc<str>,
    /// Seconds that it lives after its connection ended; `u32::MAX` for ever. 0, also for Packet Identifiers whose client
    /// has no session: it has ended, and will be closed.
    pub expiry_secs: u32,
    /// Of QoS 2 messages that are stored and not released.
    pub packet_ids: Vec<PacketId>,
}

/// A publish-only broker. Cheap to clone; all clones are the same broker.
#[derive(Clone, Debug)]
pub struct Broker {
    pub(crate) shared: Arc<Shared>,
}

/// What a connection is made of.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// What connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) limits: Arc<Limits>,
    pub(crate) inbound: mpsc::Sender<Inbound>,
    /// Bytes accepted and not stored.
    pub(crate) budget: Arc<Semaphore>,
    pub(crate) stats: Stats,
    pub(crate) stopping: watch::Sender<bool>,
    /// A part that has failed.
    failed: watch::Sender<Option<&'static str>>,
    pub(crate) connections: Arc<Semaphore>,
    /// Connections that are only there to be told that there are too many.
    pub(crate) refusals: Arc<Semaphore>,
    pub(crate) connecting: Connecting<Arc<Handle>>,
    pub(crate) addresses: Arc<Quotas<Origin>>,
    pub(crate) users: Arc<Quotas<Arc<str>>>,
    pub(crate) logins: Logins,
    /// Bytes of packets that are not complete.
    pub(crate) partial_bytes: Gauge,
    access: RwLock<Arc<Access>>,
    registry: Mutex<Registry<Arc<Handle>>>,
    /// Something may be due earlier than the caretaker knows.
    due_changed: Notify,
    sessions_warning: Throttle,
    pub(crate) connections_warning: Throttle,
    connecting_warning: Throttle,
    live: Mutex<BTreeMap<u64, Arc<Handle>>>,
    next_connection: AtomicU64,
}

impl Broker {
    /// A broker and the channel of what it accepts. `stored_sessions` are those that storage remembers. The channel is
    /// bounded by `unstored_messages_max`; while it is full, sockets are not read.
    ///
    /// Call it within a Tokio runtime: it starts the caretaker of clients that are away.
    pub fn new(limits: Limits, stored_sessions: Vec<StoredSession>) -> (Self, mpsc::Receiver<Inbound>) {
        let (inbound, receiver) = mpsc::channel(limits.unstored_messages_max.max(1));
        let mut registry = Registry::new(limits.sessions_max);
        let now = now();
        for stored in stored_sessions {
            let StoredSession { client_id, expiry_secs, mut packet_ids } = stored;
            packet_ids.sort_unstable();
            registry.restore(client_id, SessionState { expiry_secs, packet_ids, will: None }, now);
        }
        let shared = Arc::new(Shared {
            inbound,
            budget: Arc::new(Semaphore::new(limits.unstored_bytes_max.max(1) as usize)),
            stats: Stats::default(),
            stopping: watch::Sender::new(false),
            failed: watch::Sender::new(None),
            connections: Arc::new(Semaphore::new(connections_max(&limits) as usize)),
            refusals: Arc::new(Semaphore::new(listener::REFUSALS_MAX)),
            connecting: Connecting::new(limits.connecting_max),
            addresses: Quotas::new(limits.connections_per_address_max),
            users: Quotas::new(limits.connections_per_user_max),
            logins: Logins::new(&limits),
            partial_bytes: Gauge::default(),
            access: RwLock::default(),
            registry: Mutex::new(registry),
            due_changed: Notify::new(),
            sessions_warning: Throttle::default(),
            connections_warning: Throttle::default(),
            connecting_warning: Throttle::default(),
            live: Mutex::new(BTreeMap::new()),
            next_connection: AtomicU64::new(0),
            limits: Arc::new(limits),
        });
        watch_over(&shared, "the caretaker of sessions", take_care(shared.clone()));
        (Self { shared }, receiver)
    }

    /// Starts to accept TCP connections at `bind`, until [`Broker::shutdown`]; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn listen(&self, bind: SocketAddr, config: ListenerConfig) -> io::Result<Listener> {
        listener::listen(self.shared.clone(), bind, config)
    }

    /// Starts to accept connections of this machine at a Unix socket that somebody else bound, until
    /// [`Broker::shutdown`].
    pub async fn listen_unix(&self, socket: UnixListener, config: ListenerConfig) {
        listener::listen_unix(self.shared.clone(), socket, config);
    }

    /// Waits until a part fails that the broker cannot go on without, and names it. A defect, and no reason to look alive: what
    /// it did is done by nobody any more.
    pub async fn failed(&self) -> &'static str {
        let mut failed = self.shared.failed.subscribe();
        let part = failed.wait_for(Option::is_some).await.ok().and_then(|part| *part);
        part.unwrap_or("the broker")
    }

    /// Serves one connection that somebody else accepted, until it ends. `peer` names it in the log.
    pub async fn serve<S: Stream>(&self, socket: S, peer: impl Into<Peer>) {
        self.serve_as(socket, peer, &ListenerConfig::default()).await;
    }

    /// The same, as a listener with this configuration would.
    pub async fn serve_as<S: Stream>(&self, socket: S, peer: impl Into<Peer>, config: &ListenerConfig) {
        let permit = self.shared.connections.clone().try_acquire_owned().ok();
        let refuse_all = permit.is_none().then_some(ConnectReason::ServerBusy);
        serve(self.shared.clone(), socket, peer.into(), config, refuse_all).await;
        drop(permit);
    }

    /// From now on clients are asked for this. Those that are connected go on, unless their password was changed or taken
    /// away, or they may no longer be without one: they are told so (5.0) and closed. The access control list counts from
    /// the next message on.
    pub fn set_access(&self, access: Access) {
        let access = Arc::new(access);
        let before = {
            let mut current = self.shared.access.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, access.clone())
        };
        self.revoke_unless(|identity| match &identity.user {
            Some(user) if identity.is_by_password => access.has_same_password(&before, user),
            Some(_) => true,
            None => access.lets_anonymous_in(identity.allow_anonymous),
        });
    }

    /// Closes connections whose client certificate is no longer accepted by what their listener has now.
    pub fn revoke(&self, tls: &ServerTls) {
        let (face, now) = (tls.face(), wall_clock());
        self.revoke_unless(|identity| match &identity.certificate {
            Some(certificate) if certificate.tls.is_same(tls) => face.accepts(&certificate.chain, now),
            _ => true,
        });
    }

    fn revoke_unless(&self, may_stay: impl Fn(&Identity) -> bool) {
        self.shared.tell_all(|handle| {
            if handle.identity().is_some_and(|identity| !may_stay(identity)) {
                handle.stop(StopReason::Revoked);
            }
        });
    }

    /// What was counted so far.
    pub fn stats(&self) -> Snapshot {
        // One lock after the other: whoever waits for one keeps nobody from the other.
        let (sessions_away, sessions_dropped) = {
            let registry = self.shared.registry();
            (registry.sessions_away() as u64, registry.sessions_dropped())
        };
        let connections_open = lock(&self.shared.live).len() as u64;
        Snapshot {
            connections_open,
            connections_half_open: self.shared.connecting.len() as u64,
            sessions_away,
            sessions_dropped,
            ..self.shared.stats.snapshot()
        }
    }

    /// Stops: accepts and reads nothing more, waits at most `shutdown_timeout` for the outcomes of what was submitted,
    /// sends the answers and DISCONNECT 0x8B, closes. Keep serving the channel meanwhile. Will Messages are published, as
    /// for every connection that the server closes [MQTT-3.1.2-8]; those whose delay still runs too, for nobody would be
    /// there when it is over.
    pub async fn shutdown(&self) {
        let shared = &self.shared;
        shared.stopping.send_replace(true);
        shared.tell_all(|handle| handle.stop(StopReason::ShuttingDown));
        let everybody = shared.connections.acquire_many(connections_max(&shared.limits));
        if tokio::time::timeout(shared.limits.shutdown_timeout, everybody).await.is_err() {
            let connections = lock(&shared.live).len();
            warn!(connections, "Storage did not answer in time: closing connections with messages unacknowledged.");
            shared.tell_all(|handle| handle.abandon());
        }
        let wills = lock(&shared.registry).take_wills();
        for (client_id, delayed) in wills {
            if let Some(inbound) = shared.inbound_of_will(client_id, *delayed) {
                let _ = tokio::time::timeout(shared.limits.shutdown_timeout, shared.inbound.send(inbound)).await;
            }
        }
        info!("Broker stopped.");
    }
}

/// Serves one connection; with `refuse_all`, only to say so.
pub(crate) async fn serve<S: Stream>(
    shared: Arc<Shared>,
    socket: S,
    peer: Peer,
    config: &ListenerConfig,
    refuse_all: Option<ConnectReason>,
) {
    let number = shared.next_connection.fetch_add(1, Ordering::Relaxed);
    let handle = Arc::new(Handle::default());
    let entered = shared.connecting.enter(number, peer.origin(), handle.clone(), now());
    if !matches!(entered, Entered::In) {
        shared.stats.half_open_dropped.add(1);
        if shared.connecting_warning.allows(now()) {
            warn!(connecting_max = shared.limits.connecting_max, "Too many connections without CONNECT: closing some.");
        }
    }
    match entered {
        Entered::In => {}
        Entered::InsteadOf(gone) => gone.abandon(),
        Entered::Refused => return,
    }
    lock(&shared.live).insert(number, handle.clone());
    if *shared.stopping.borrow() {
        handle.stop(StopReason::ShuttingDown);
    }
    let entrance = Entrance {
        number,
        peer,
        accepted_at: now(),
        refuse_all,
        allow_anonymous: config.allow_anonymous,
        certificate: None,
        certified: None,
        arriving: None,
    };
    if config.tls.is_none() && !config.websocket {
        Connection::new(shared.clone(), handle, socket, entrance).run().await;
    } else if let Some((socket, entrance)) = Box::pin(wrap(&shared, &handle, socket, entrance, config)).await {
        // In a box, for a connection without TLS would hold the room of both.
        Box::pin(Connection::new(shared.clone(), handle, socket, entrance).run()).await;
    }
    shared.connecting.leave(number);
    lock(&shared.live).remove(&number);
}

/// TLS and WebSocket, in time and unless the connection has to end before.
async fn wrap<S: Stream>(
    shared: &Shared,
    handle: &Handle,
    socket: S,
    entrance: Entrance,
    config: &ListenerConfig,
) -> Option<(Box<dyn Stream>, Entrance)> {
    let deadline = entrance.accepted_at + shared.limits.connect_timeout;
    let span = info_span!("connection", peer = %entrance.peer);
    let wrapped = listener::wrap(shared, socket, entrance, config).instrument(span);
    tokio::select! {
        () = handle.ended() => None,
        () = sleep_until(Some(deadline)) => {
            shared.stats.connect_timeouts.add(1);
            None
        }
        wrapped = wrapped => wrapped,
    }
}

impl Shared {
    pub(crate) fn access(&self) -> Arc<Access> {
        self.access.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry<Arc<Handle>>> {
        lock(&self.registry)
    }

    /// Gives a Client Identifier back, and on to the next in line.
    pub(crate) fn release(&self, client_id: &Arc<str>, state: Option<SessionState>, now: Instant) {
        let may_be_due = state.is_some();
        let (next, dropped) = {
            let mut registry = self.registry();
            let dropped_before = registry.sessions_dropped();
            let next = registry.release(client_id, state, now);
            (next, registry.sessions_dropped() - dropped_before)
        };
        if dropped > 0 && self.sessions_warning.allows(now) {
            warn!(sessions_max = self.limits.sessions_max, "Too many sessions: the one away longest was dropped.");
        }
        match next {
            Some((next, state)) => next.grant(state),
            None if may_be_due => self.due_changed.notify_one(),
            None => {}
        }
    }

    pub(crate) fn inbound_of_publication(
        &self,
        client_id: Arc<str>,
        publication: Publication,
        received_at: SystemTime,
        ticket: Ticket,
    ) -> Inbound {
        let Publication { user_name, topic, payload, qos, retain, dup, will, packet_id, can_be_told } = publication;
        let is_authorized = {
            let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
            access.may_publish(user_name.as_deref(), &client_id, topic.as_str())
        };
        Inbound::Publish(InboundPublish {
            is_authorized,
            client_id,
            user_name,
            topic,
            payload,
            qos,
            retain,
            dup,
            will,
            packet_id,
            can_be_told,
            received_at,
            ticket,
        })
    }

    fn inbound_of_will(&self, client_id: Arc<str>, delayed: DelayedWill) -> Option<Inbound> {
        let publication = Publication::of_will(delayed.will, delayed.user_name)?;
        self.stats.wills.add(1);
        let ticket = Ticket::unattended(None);
        Some(self.inbound_of_publication(client_id, publication, wall_clock(), ticket))
    }

    /// Whoever comes meanwhile must find out by itself. Nothing is locked: to find out what to tell thousands may take
    /// long, and every connection that begins or ends needs the lock.
    fn tell_all(&self, tell: impl Fn(&Handle)) {
        let handles: Vec<_> = lock(&self.live).values().cloned().collect();
        for handle in handles {
            tell(&handle);
        }
    }
}

/// Lets one log line through now and then.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    last: Mutex<Option<Instant>>,
}

impl Throttle {
    const PAUSE: Duration = Duration::from_secs(10);

    pub(crate) fn allows(&self, now: Instant) -> bool {
        let mut last = lock(&self.last);
        let is_quiet = last.is_none_or(|last| now.saturating_duration_since(last) >= Self::PAUSE);
        if is_quiet {
            *last = Some(now);
        }
        is_quiet
    }
}

/// The caretaker: publishes delayed Will Messages and has storage forget sessions that have ended.
async fn take_care(shared: Arc<Shared>) {
    let mut stopping = shared.stopping.subscribe();
    loop {
        let due = shared.registry().poll_timeout();
        tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => return,
            () = sleep_until(due) => {}
            () = shared.due_changed.notified() => continue,
        }
        if !handle_due(&shared).await {
            return;
        }
    }
}

/// `false` when nobody takes messages any more.
async fn handle_due(shared: &Arc<Shared>) -> bool {
    let (outcomes_sender, mut outcomes) = mpsc::unbounded_channel();
    let mut closing = Vec::new();
    while closing.len() < CLOSING_MAX {
        let Ok(room) = shared.inbound.reserve().await else { return false };
        // Sent while the registry is locked: a client that claims its identifier next submits after this.
        let mut registry = shared.registry();
        match registry.poll_due(now()) {
            None => break,
            Some(Due::Will(client_id, delayed)) => {
                if let Some(inbound) = shared.inbound_of_will(client_id, *delayed) {
                    room.send(inbound);
                }
            }
            Some(Due::Ended(client_id, state)) => {
                let ticket = Ticket::new(closing.len() as u64, outcomes_sender.clone(), None);
                room.send(Inbound::CloseSession { client_id: client_id.clone(), ticket });
                closing.push(Some((client_id, state)));
            }
        }
    }
    drop(outcomes_sender);
    while let Some((number, outcome)) = outcomes.recv().await {
        let ended = usize::try_from(number).ok().and_then(|number| closing.get_mut(number)?.take());
        let Some((client_id, state)) = ended else { continue };
        let is_closed = outcome == Outcome::Stored;
        shared.stats.sessions_closed.add(u64::from(is_closed));
        shared.release(&client_id, (!is_closed).then_some(state), now());
    }
    true
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

fn connections_max(limits: &Limits) -> u32 {
    u32::try_from(limits.connections_max).unwrap_or(u32::MAX).clamp(1, Semaphore::MAX_PERMITS as u32)
}

/// Locks. Nothing panics while it holds a lock, and what is behind it stays whole if something did.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The monotonic clock, as Tokio's tests may turn it.
#[expect(clippy::disallowed_methods, reason = "drivers read clocks and pass `now` on")]
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The wall clock, for the time of receipt.
#[expect(clippy::disallowed_methods, reason = "drivers read clocks and pass `now` on")]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// A submission of a session, with its ticket.
pub(crate) fn inbound_of_submission(
    shared: &Shared,
    client_id: Arc<str>,
    submission: Submission,
    received_at: SystemTime,
    ticket: Ticket,
) -> Inbound {
    match submission {
        Submission::Publish(publication) => shared.inbound_of_publication(client_id, publication, received_at, ticket),
        Submission::Release(packet_id) => Inbound::Release { client_id, packet_id, ticket },
        Submission::OpenSession(expiry_secs) => Inbound::OpenSession { client_id, expiry_secs, ticket },
        Submission::CloseSession => Inbound::CloseSession { client_id, ticket },
    }
}

/// Starts a part that ends with the broker only.
pub(crate) fn watch_over(shared: &Arc<Shared>, part: &'static str, run: impl Future<Output = ()> + Send + 'static) {
    let (shared, run) = (Arc::clone(shared), tokio::spawn(run));
    tokio::spawn(async move {
        if let Err(error) = run.await
            && error.is_panic()
        {
            error!(part, "A part of the broker failed.");
            shared.failed.send_replace(Some(part));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_is_named() {
        let (broker, _inbound) = Broker::new(Limits::default(), Vec::new());
        watch_over(&broker.shared, "one that ends", async {});
        watch_over(&broker.shared, "one that panics", async { panic!("as the test wants it") });
        assert_eq!(broker.failed().await, "one that panics");
    }

    #[tokio::test]
    async fn while_all_are_told_connections_may_begin_and_end() {
        let (broker, _inbound) = Broker::new(Limits::default(), Vec::new());
        let shared = &broker.shared;
        lock(&shared.live).insert(1, Arc::new(Handle::default()));
        let told = AtomicU64::new(0);
        shared.tell_all(|_| {
            assert!(shared.live.try_lock().is_ok());
            told.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(told.into_inner(), 1);
    }

    #[tokio::test]
    async fn who_counts_holds_one_lock_at_a_time() {
        let (broker, _inbound) = Broker::new(Limits::default(), Vec::new());
        let live = lock(&broker.shared.live);
        let (counting, is_counting) = std::sync::mpsc::channel();
        let counter = std::thread::spawn({
            let broker = broker.clone();
            move || {
                counting.send(()).expect("a test");
                broker.stats()
            }
        });
        is_counting.recv().expect("a thread");
        std::thread::sleep(Duration::from_millis(50)); // by now it waits for us
        assert!(broker.shared.registry.try_lock().is_ok());
        drop(live);
        assert_eq!(counter.join().expect("a count").connections_open, 0);
    }
}
