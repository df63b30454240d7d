//! How others name and reach a connection.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::task::{Context, Waker};

use crate::broker::lock;
use crate::session::{SessionState, StopReason};

/// How a connection is named in the log.
#[derive(Clone, Debug)]
pub enum Peer {
    /// By its address.
    Address(SocketAddr),
    /// By a name.
    Name(&'static str),
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

/// How others reach a connection.
#[derive(Debug, Default)]
pub(crate) struct Handle {
    orders: Mutex<Orders>,
}

#[derive(Debug, Default)]
struct Orders {
    stop: Option<StopReason>,
    granted: Option<Option<SessionState>>,
    abandon: bool,
    waker: Option<Waker>,
}

impl Handle {
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
