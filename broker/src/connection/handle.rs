//! How others name and reach a connection.

use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};

use rustls::pki_types::CertificateDer;

use crate::broker::lock;
use crate::quota::Origin;
use crate::session::{SessionState, StopReason};
use crate::tls::ServerTls;

/// How a connection is named in the log.
#[derive(Clone, Debug)]
pub enum Peer {
    /// By its address.
    Address(SocketAddr),
    /// By a name.
    Name(&'static str),
}

impl Peer {
    /// Whom its address stands for; a connection without an address is of this machine.
    pub(crate) fn origin(&self) -> Option<Origin> {
        match self {
            Self::Address(address) => Some(address.ip().into()),
            Self::Name(_) => None,
        }
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl From<&'static str> for Peer {
    fn from(name: &'static str) -> Self {
        Self::Name(name)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Name(name) => formatter.write_str(name),
        }
    }
}

/// Who a connection is, and what that rests on.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// `None`: nobody in particular.
    pub(crate) user: Option<Arc<str>>,
    /// A password says so; else a certificate does.
    pub(crate) is_by_password: bool,
    /// The client certificate, if one was asked for and shown.
    pub(crate) certificate: Option<Arc<Certificate>>,
    /// What the listener says of clients without credentials.
    pub(crate) allow_anonymous: Option<bool>,
}

/// A client certificate that was accepted.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// By whom.
    pub(crate) tls: ServerTls,
    /// Which of its settings accepted it.
    pub(crate) generation: u64,
}

/// How others reach a connection.
#[derive(Debug, Default)]
pub(crate) struct Handle {
    orders: Mutex<Orders>,
    /// Known once its CONNECT is accepted.
    identity: OnceLock<Identity>,
}

#[derive(Debug, Default)]
struct Orders {
    stop: Option<StopReason>,
    granted: Option<Option<SessionState>>,
    abandon: bool,
    waker: Option<Waker>,
}

impl Handle {
    pub(crate) fn set_identity(&self, identity: Identity) {
        let _ = self.identity.set(identity);
    }

    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.get()
    }

    /// Whether `other` is the same user, or this one is nobody in particular.
    pub(crate) fn is_of_same_user(&self, other: &Self) -> bool {
        let user = |handle: &Self| handle.identity().and_then(|identity| identity.user.clone());
        match (user(self), user(other)) {
            (Some(ours), Some(theirs)) => ours == theirs,
            (Some(_), None) => false,
            (None, _) => true,
        }
    }

    /// When it has to end, whatever the reason. For who has no session yet.
    pub(crate) async fn ended(&self) {
        poll_fn(|cx| {
            let mut orders = lock(&self.orders);
            if orders.abandon || orders.stop.is_some() {
                return Poll::Ready(());
            }
            orders.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Ends the connection as the protocol wants it.
    pub(crate) fn stop(&self, reason: StopReason) {
        self.order(|orders| orders.stop = Some(reason));
    }

    /// The Client Identifier that it waits for is its own.
    pub(crate) fn grant(&self, state: Option<SessionState>) {
        self.order(|orders| orders.granted = Some(state));
    }

    /// Ends the connection without waiting for anything.
    pub(crate) fn abandon(&self) {
        self.order(|orders| orders.abandon = true);
    }

    /// Takes what was ordered, and wakes this task for what will be.
    pub(super) fn take(&self, cx: &Context<'_>) -> Taken {
        let mut orders = lock(&self.orders);
        if orders.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            orders.waker = Some(cx.waker().clone());
        }
        Taken { abandon: orders.abandon, granted: orders.granted.take(), stop: orders.stop.take() }
    }

    fn order(&self, give: impl FnOnce(&mut Orders)) {
        let waker = {
            let mut orders = lock(&self.orders);
            give(&mut orders);
            orders.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Orders to one connection, in the order in which they are to be followed.
pub(super) struct Taken {
    pub(super) abandon: bool,
    pub(super) granted: Option<Option<SessionState>>,
    pub(super) stop: Option<StopReason>,
}
