//! Tells the service manager how the agent is; [`service`](crate::service) decides what.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{debug, error, info};

use crate::clock;
use crate::service::probe::Probe;
use crate::service::socket::{self, NotifySocket};
use crate::service::{Action, Known, Service};
use crate::status::Shared;

/// A manager that hears of us.
#[derive(Debug)]
pub(super) struct Manager {
    socket: NotifySocket,
    /// Held while something is sent, so that the order of what was decided is the order of what is heard.
    service: Mutex<Service>,
}

impl Manager {
    pub(super) fn new(manager: socket::Manager) -> Self {
        let service = Service::new(manager.watchdog, clock::now());
        Self { socket: manager.socket, service: Mutex::new(service) }
    }

    pub(super) fn ready(&self, shared: &Shared) {
        let known = known(shared);
        let mut service = self.service();
        self.act(service.handle_ready(&known, clock::now()));
    }

    pub(super) fn reloading(&self) {
        let mut service = self.service();
        self.act(service.handle_reloading(clock::monotonic_us()));
    }

    pub(super) fn stopping(&self, problem: Option<&str>) {
        let mut service = self.service();
        self.act(service.handle_stopping(problem));
    }

    /// Goes on telling, on the threads that serve devices: when they do not turn, neither does this.
    pub(super) async fn run(self: Arc<Self>, shared: Arc<Shared>, mut probe: Probe) {
        loop {
            let due = self.service().poll_timeout();
            tokio::time::sleep_until(due.into()).await;
            let (known, now) = (known(&shared), clock::now());
            let silent = probe.handle_look(now);
            let mut service = self.service();
            for action in service.handle_timeout(&known, silent, now) {
                self.act(action);
            }
        }
    }

    fn act(&self, action: Action) {
        match action {
            Action::Send(message) => {
                if let Err(error) = self.socket.send(&message) {
                    debug!(%error, message, "The service manager does not hear us.");
                }
            }
            Action::Stalled(silent, lasting) => {
                error!(
                    part = %silent.part,
                    silent_secs = lasting.as_secs(),
                    "A part of the agent does not answer; the service manager's watchdog is not told that all is well."
                );
            }
            Action::Recovered => info!("Every part of the agent answers again."),
        }
    }

    fn service(&self) -> MutexGuard<'_, Service> {
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From memory, and from one question to the file system how much of it is free.
fn known(shared: &Shared) -> Known {
    let usage = shared.spool.usage();
    Known {
        connections: shared.broker.stats().connections_open,
        stored: shared.spool.counters().messages_stored,
        spool_bytes: (usage.live_bytes + usage.external_bytes, usage.max_bytes),
        disk_full: usage.disk_full,
        sealing_error: shared.sealing.last_error(),
        refused: shared.last_reload().and_then(|reload| reload.problem),
        sources: shared.sources.iter().filter_map(|source| source.problem()).collect(),
        upstreams: shared.running().backlog.upstreams().iter().map(|progress| progress.report()).collect(),
    }
}
