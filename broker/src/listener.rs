//! Accepting TCP connections: the limit on them, and what to do when there are no file descriptors left.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, info, warn};

use crate::broker::{Shared, now, serve};
use crate::config::ListenerConfig;
use crate::stats::Stats;

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

pub(crate) fn listen(shared: Arc<Shared>, config: &ListenerConfig) -> io::Result<Listener> {
    let socket = bind(config.bind)?;
    let local_addr = socket.local_addr()?;
    info!(%local_addr, "Listening.");
    tokio::spawn(accept_all(shared, socket));
    Ok(Listener { local_addr })
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
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

async fn accept_all(shared: Arc<Shared>, listener: TcpListener) {
    let mut stopping = shared.stopping.subscribe();
    let mut pause = ACCEPT_PAUSE;
    loop {
        let accepted = tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                pause = ACCEPT_PAUSE;
                admit(&shared, socket, peer);
            }
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

fn admit(shared: &Arc<Shared>, socket: TcpStream, peer: SocketAddr) {
    shared.stats.connections_accepted.add(1);
    if let Err(error) = set_options(&socket) {
        debug!(%peer, %error, "Connection was gone before it began.");
        return;
    }
    if let Ok(permit) = shared.connections.clone().try_acquire_owned() {
        let shared = shared.clone();
        tokio::spawn(serve(shared, socket, peer.into(), Some(permit)));
        return;
    }
    if shared.connections_warning.allows(now()) {
        warn!(connections_max = shared.limits.connections_max, "Too many connections: refusing new ones.");
    }
    let Ok(refusal) = shared.refusals.clone().try_acquire_owned() else {
        shared.stats.connections_dropped.add(1);
        return; // closed: there is no room even to say so
    };
    let shared = shared.clone();
    tokio::spawn(async move {
        serve(shared, socket, peer.into(), None).await;
        drop(refusal);
    });
}

fn set_options(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?; // answers are small and already gathered
    SockRef::from(socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE))
}
