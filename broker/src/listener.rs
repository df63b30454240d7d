//! Accepting connections: the limits on them, what to do when there are no file descriptors left, and TLS and WebSocket
//! below MQTT, which are shaken hands on by each connection's own task.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use crate::broker::{Shared, Stream, now, serve, watch_over};
use crate::config::ListenerConfig;
use crate::connection::{Certificate, Entrance, Peer};
use crate::quota::Origin;
use crate::reason::ConnectReason;
use crate::stats::Stats;
use crate::tls::ServerTls;
use crate::websocket;

/// Connections at once that are only told that there are too many; beyond, they are closed without a word.
pub(crate) const REFUSALS_MAX: usize = 64;

/// Connections that the kernel holds for us to accept.
const BACKLOG: i32 = 1_024;

/// From silence to the first probe: finds peers that vanished although their client turned Keep Alive off.
const TCP_KEEPALIVE: Duration = Duration::from_secs(120);

/// Pause after a failed accept, doubled up to the maximum: without file descriptors accept fails at once, for ever.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// A bound address. Connections are accepted until the broker shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The address in use; its port is the one that the system chose where 0 was asked for.
    pub local_addr: SocketAddr,
}

pub(crate) fn listen(shared: Arc<Shared>, bind: SocketAddr, config: ListenerConfig) -> io::Result<Listener> {
    let socket = bind_tcp(bind)?;
    let local_addr = socket.local_addr()?;
    info!(%local_addr, tls = config.tls.is_some(), websocket = config.websocket, "Listening.");
    let config = Arc::new(config);
    watch_over(
        &shared.clone(),
        "a listener",
        accept_all(shared, async move |shared: &Arc<Shared>| {
            let (socket, peer) = socket.accept().await?;
            shared.stats.connections_accepted.add(1);
            match set_options(&socket) {
                Ok(()) => admit(shared, socket, peer.into(), &config),
                Err(error) => debug!(%peer, %error, "Connection was gone before it began."),
            }
            Ok(())
        }),
    );
    Ok(Listener { local_addr })
}

pub(crate) fn listen_unix(shared: Arc<Shared>, socket: UnixListener, config: ListenerConfig) {
    let path = socket.local_addr().ok().and_then(|address| address.as_pathname().map(ToOwned::to_owned));
    info!(?path, websocket = config.websocket, "Listening.");
    let config = Arc::new(config);
    watch_over(
        &shared.clone(),
        "a listener",
        accept_all(shared, async move |shared: &Arc<Shared>| {
            let (socket, _) = socket.accept().await?;
            shared.stats.connections_accepted.add(1);
            admit(shared, socket, "unix socket".into(), &config);
            Ok(())
        }),
    );
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?; // `[::]` takes IPv4 too, whatever the system's default
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept_all(shared: Arc<Shared>, accept: impl AsyncFn(&Arc<Shared>) -> io::Result<()>) {
    let mut stopping = shared.stopping.subscribe();
    let mut pause = ACCEPT_PAUSE;
    loop {
        let accepted = tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => return,
            accepted = accept(&shared) => accepted,
        };
        match accepted {
            Ok(()) => pause = ACCEPT_PAUSE,
            Err(error) if concerns_one_connection(&error) => count_error(&shared.stats, &error),
            Err(error) => {
                count_error(&shared.stats, &error);
                if pause == ACCEPT_PAUSE_MAX {
                    warn!(%error, "Cannot accept connections; is the limit on open files too low?");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
            }
        }
    }
}

/// The peer gave up before it was accepted; the next may be fine.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

fn count_error(stats: &Stats, error: &io::Error) {
    stats.accept_errors.add(1);
    debug!(%error, "Accept failed.");
}

/// Serves a connection if there may be one more, of its address too; if not, it is told so, where that costs nothing.
fn admit<S: Stream>(shared: &Arc<Shared>, socket: S, peer: Peer, config: &Arc<ListenerConfig>) {
    let permit = shared.connections.clone().try_acquire_owned().ok();
    let share = peer.origin().map(|origin: Origin| shared.addresses.take(origin));
    let refusal = match (&permit, &share) {
        (None, _) => {
            if shared.connections_warning.allows(now()) {
                warn!(connections_max = shared.limits.connections_max, "Too many connections: refusing new ones.");
            }
            ConnectReason::ServerBusy
        }
        (_, Some(None)) => {
            shared.stats.connections_refused_address.add(1);
            debug!(%peer, "Too many connections of this address.");
            ConnectReason::QuotaExceeded
        }
        (Some(_), _) => {
            let (shared, config) = (shared.clone(), config.clone());
            tokio::spawn(async move {
                serve(shared, socket, peer, &config, None).await;
                drop((permit, share));
            });
            return;
        }
    };
    let room = shared.refusals.clone().try_acquire_owned().ok().filter(|_| config.tls.is_none());
    let Some(room) = room else {
        shared.stats.connections_dropped.add(1);
        return; // closed: there is no room even to say so, or saying so would cost a handshake
    };
    let (shared, config) = (shared.clone(), config.clone());
    tokio::spawn(async move {
        serve(shared, socket, peer, &config, Some(refusal)).await;
        drop(room);
    });
}

/// TLS and WebSocket on the way in, as the listener says. `None`: it is none, or not accepted, which is counted and told
/// as far as the protocols do.
pub(crate) async fn wrap<S: Stream>(
    shared: &Shared,
    socket: S,
    mut entrance: Entrance,
    config: &ListenerConfig,
) -> Option<(Box<dyn Stream>, Entrance)> {
    let mut socket: Box<dyn Stream> = Box::new(socket);
    if let Some(tls) = &config.tls {
        match accept_tls(tls, socket, &mut entrance).await {
            Ok(accepted) => socket = accepted,
            Err(error) => {
                shared.stats.tls_handshakes_failed.add(1);
                debug!(%error, "TLS handshake failed.");
                return None;
            }
        }
    }
    if config.websocket {
        match websocket::accept(socket, &shared.limits).await {
            Ok((accepted, arriving)) => {
                socket = Box::new(accepted);
                entrance.arriving = Some(arriving);
            }
            Err(error) => {
                shared.stats.websocket_upgrades_failed.add(1);
                debug!(%error, "No WebSocket of MQTT.");
                return None;
            }
        }
    }
    Some((socket, entrance))
}

async fn accept_tls(tls: &ServerTls, socket: Box<dyn Stream>, entrance: &mut Entrance) -> io::Result<Box<dyn Stream>> {
    let face = tls.face();
    let socket = TlsAcceptor::from(face.config.clone()).accept(socket).await?;
    if let Some(chain) = socket.get_ref().1.peer_certificates()
        && let Some(leaf) = chain.first()
    {
        entrance.certified = face.user_name(leaf).map_err(io::Error::other)?;
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        entrance.certificate = Some(Arc::new(Certificate { chain, tls: tls.clone(), generation: face.generation }));
    }
    Ok(Box::new(socket))
}

fn set_options(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?; // answers are small and already gathered
    SockRef::from(socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE))
}
