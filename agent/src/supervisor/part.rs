//! A thread of the agent: it says when it has ended, and one that panics ends the agent.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

/// How long nothing is lost by not waiting longer: a seal and a delivery are finished after the next start if need be.
const LEAVE_AFTER: Duration = Duration::from_secs(10);

/// A thread that says when it has ended.
#[derive(Debug)]
pub(super) struct Part {
    name: String,
    ended: oneshot::Receiver<()>,
}

impl Part {
    /// Starts a thread; one that panics ends the agent.
    pub(super) fn start(
        name: String,
        failing: &mpsc::Sender<anyhow::Error>,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let (ending, ended) = oneshot::channel();
        let (failing, thread_name) = (failing.clone(), name.clone());
        let guarded = move || {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                error!(thread = thread_name, "A part of the agent failed.");
                let _ = failing.try_send(anyhow!("the thread {thread_name} panicked"));
            }
            let _ = ending.send(());
        };
        thread::Builder::new().name(name.clone()).spawn(guarded).with_context(|| format!("start the thread {name}"))?;
        Ok(Self { name, ended })
    }

    /// A part that is cut off in the middle has nothing to lose. Answers itself if it goes on nevertheless.
    pub(super) async fn ended_or_left(mut self) -> Option<Self> {
        match self.ended(LEAVE_AFTER).await {
            Ok(()) => None,
            Err(problem) => {
                warn!(problem = format!("{problem:#}"), "Not waiting for it any longer.");
                Some(self)
            }
        }
    }

    pub(super) async fn ended(&mut self, limit: Duration) -> Result<()> {
        let Self { name, ended } = self;
        within(limit, name, async { Ok(ended.await?) }).await
    }

    /// Waits on a thread that has nothing else to do.
    pub(super) fn wait(self) {
        let _ = self.ended.blocking_recv();
    }
}

pub(super) async fn within(limit: Duration, what: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.with_context(|| format!("stop {what}")),
        Err(_) => Err(anyhow!("{what} did not stop within {} s", limit.as_secs())),
    }
}
