//! Sources: brokers of somebody else that we subscribe to.
//!
//! ```text
//! broker ◀─TCP, TLS, WebSocket─▶ transport ─bytes─▶ packet ─▶ session ─Submit─▶ ingest ─▶ spool
//!   ▲                              (IO)             (pure)    (pure)                        │ fsync
//!   └──PUBACK, PUBREC, PUBCOMP────────────────────────┘ ◀──────────── outcome ◀─────────────┘
//! ```
//!
//! What a broker sends is acknowledged when it is on disk, and not before; `session` says what that means packet by packet.
//! For the rest of the agent a source is one more publisher, whose Client Identifier no device can have.
//!
//! # What the broker decides
//!
//! The Client Identifier is fixed and the session is kept, so the broker queues while we are away: as much as its own
//! configuration allows, and QoS 1 and 2 only. A broker that forgets sessions (rumqttd at every restart, mosquitto without
//! persistence) loses what it queued; when it says at the next connection that it has no session of ours, that is logged and
//! counted. `tests/system/matrix.rs` measures what brokers do, the table is in the README.
//!
//! # When it fails
//!
//! A connection that ends is made again, after a wait that doubles up to a minute and begins anew once messages come. Files
//! (passwords, certificates) are read at every attempt. What only a person can mend is logged as an error, once, and is the
//! `problem` of the status until it is mended.
//!
//! Reading order: `session` with `packet` and `reason` (pure), `connection`, `transport` and `tls`, `memory` (filters that the
//! broker must forget), [`report`].

mod connection;
mod memory;
pub mod packet;
pub mod reason;
pub mod report;
pub mod session;
pub mod tls;
mod transport;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use forebay_broker::inbound::Inbound;
use forebay_storage::durable_fs::DurableFs;
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{Instrument as _, error, info, info_span, warn};

use self::connection::{Connection, Outlet};
use self::memory::Memory;
use self::report::Progress;
use self::session::{Cause, Options, Session};
use self::transport::Transport;
use crate::clock;
use crate::config::Source;
use crate::upstream::backoff::Backoff;

/// The first wait after a connection has ended, and the longest.
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What the sources of an agent share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// To the spool.
    pub inbound: mpsc::Sender<Inbound>,
    /// Bytes of all sources that are received and not stored.
    pub budget: Arc<Semaphore>,
    /// Of which there are so many.
    pub budget_bytes: u32,
    /// Where memories are kept.
    pub dir: PathBuf,
    /// How files are made durable.
    pub fs: DurableFs,
}

/// Receives from a source until `stop` says true. What was received is answered before it ends.
pub async fn run(source: Source, shared: Shared, progress: Arc<Progress>, mut stop: watch::Receiver<bool>) {
    let span = info_span!("source", name = source.name);
    let outlet = Outlet {
        inbound: shared.inbound,
        budget: shared.budget,
        budget_bytes: shared.budget_bytes,
        progress: Arc::clone(&progress),
    };
    let mut memory = Memory::open(&shared.dir, &shared.fs, &source);
    let serve = async {
        let mut backoff = Backoff::new(WAIT_FIRST, WAIT_MAX);
        while !*stop.borrow() {
            let messages = progress.messages();
            let cause = connect_and_serve(&source, &outlet, &mut memory, &mut stop).await;
            // What could not be stored, or what only a person can mend, does not get better by haste.
            let is_worth_haste = matches!(cause, Cause::Failed { for_good: false, .. });
            if is_worth_haste && progress.messages() > messages {
                backoff.handle_success();
            }
            tell(&progress, &cause);
            if cause == Cause::Stopped {
                return;
            }
            let wait = backoff.handle_failure(fastrand::f64());
            let _ = tokio::time::timeout(wait, stop.wait_for(|stop| *stop)).await;
        }
    };
    serve.instrument(span).await;
}

async fn connect_and_serve(
    source: &Source,
    outlet: &Outlet,
    memory: &mut Memory,
    stop: &mut watch::Receiver<bool>,
) -> Cause {
    let login = match login(source) {
        Ok(login) => login,
        Err(problem) => return Cause::Failed { problem: format!("{}: {problem}", source.url), for_good: true },
    };
    let connected = tokio::select! {
        connected = Transport::connect(source) => connected,
        _ = stop.wait_for(|stop| *stop) => return Cause::Stopped,
    };
    let transport = match connected {
        Ok(transport) => transport,
        Err(cause) => return cause,
    };
    let options = Options {
        version: source.version,
        client_id: source.client_id.clone(),
        topics: source.topics.clone(),
        stale_filters: memory.stale(),
        is_elsewhere: memory.is_elsewhere(),
        keep_alive: source.keep_alive,
        receive_maximum: source.receive_maximum,
    };
    let session = Session::new(options, login, clock::now());
    Connection::new(source, outlet, memory, transport, session).run(stop).await
}

fn login(source: &Source) -> Result<Option<(String, String)>, String> {
    let Some(login) = &source.login else { return Ok(None) };
    let password = login.password.as_ref().map(crate::config::Password::read).transpose()?;
    Ok(Some((login.username.clone(), password.unwrap_or_default())))
}

/// Once for each problem, not for each attempt.
fn tell(progress: &Progress, cause: &Cause) {
    let (problem, for_good) = match cause {
        Cause::Stopped => {
            progress.ended(None, clock::now());
            return info!(messages = progress.messages(), "Left the source; its broker keeps the session.");
        }
        Cause::NotStored => {
            ("the spool cannot store messages now: nothing is acknowledged, the broker keeps them", false)
        }
        Cause::Failed { problem, for_good } => (problem.as_str(), *for_good),
    };
    match (progress.ended(Some((problem, for_good)), clock::now()), for_good) {
        (false, _) => {}
        (true, true) => error!(problem, "The source needs help."),
        (true, false) => warn!(problem, "The source is not connected; trying again."),
    }
}
