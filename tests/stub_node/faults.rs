//! What a test tells the node to do wrong: `POST /_stub/faults` takes a list, `DELETE` forgets all of it.
//!
//! A fault names an operation and a stage and is used up when a request gets there. A poison is a rule that stays: a batch
//! with such a row is refused as a whole, as a node refuses a row that breaks its schema.

use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Notify;

use crate::log::Entry;
use crate::refusal::Refusal;

/// Longest stall; whoever waits longer than this is broken in another way.
const STALL_MAX: Duration = Duration::from_secs(60);

/// Which requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Operation {
    Ingest,
    Push,
    PutData,
    Head,
    Graphql,
    Any,
}

/// How far the request has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// Nothing of the body was read.
    #[default]
    Before,
    /// Half of the body was read.
    MidBody,
    /// It is done and not yet answered.
    AfterCommit,
    /// Push: just before 101.
    Upgrade,
    /// Push: the plan arrived.
    Plan,
    /// Push: the blocks arrived.
    Blocks,
    /// Push: the list of objects arrived.
    Objects,
    /// Push: everything arrived, nothing is committed.
    Complete,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Action {
    Stall,
    Cut,
    Status,
    Exit,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fault {
    on: Operation,
    /// Only of this dataset; none: of any.
    dataset: Option<String>,
    #[serde(default)]
    stage: Stage,
    #[serde(rename = "do")]
    action: Action,
    status: Option<u16>,
    retry_after: Option<u64>,
    #[serde(default = "once")]
    times: u32,
}

/// Rows that are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Poison {
    pub(crate) column: String,
    pub(crate) values: Vec<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Rule {
    Poison {
        #[serde(rename = "on")]
        _on: Operation,
        poison: Poison,
    },
    Fault(Fault),
}

/// What is still to go wrong.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    faults: Vec<Fault>,
    poisons: Vec<Poison>,
}

/// Ends the connection that a request came on, without an answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cut(Arc<Notify>);

/// A request, its place in the log and the connection it came on.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) operation: Operation,
    pub(crate) cut: Cut,
    pub(crate) entry: Arc<Entry>,
}

/// What a fault means to a connection that is a WebSocket by now.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Broken {
    /// Drop it.
    Cut,
    /// Close it as after an internal error.
    Failed,
}

impl Faults {
    pub(crate) fn add(&self, body: &[u8]) -> Result<(), Refusal> {
        let rules: Vec<Rule> = serde_json::from_slice(body)
            .map_err(|error| Refusal::message(StatusCode::BAD_REQUEST, format!("faults: {error}")))?;
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        for rule in rules {
            match rule {
                Rule::Poison { poison, .. } => plan.poisons.push(poison),
                Rule::Fault(fault) => plan.faults.push(fault),
            }
        }
        Ok(())
    }

    pub(crate) fn clear(&self) {
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = Plan::default();
    }

    pub(crate) fn poisons(&self) -> Vec<Poison> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).poisons.clone()
    }

    /// Lets the fault of this request and stage happen, if there is one.
    pub(crate) async fn reach(&self, call: &Call, stage: Stage) -> Result<(), Refusal> {
        let Some(fault) = self.take(call, stage) else {
            return Ok(());
        };
        match fault.action {
            Action::Exit => std::process::abort(),
            Action::Cut => call.cut.fire().await,
            Action::Stall => {
                tokio::time::sleep(STALL_MAX).await;
                call.cut.fire().await
            }
            Action::Status => Err(refusal(&fault)),
        }
    }

    /// The same on a WebSocket. A stall ends when `gone` does: the client has left.
    pub(crate) async fn reach_socket(
        &self,
        call: &Call,
        stage: Stage,
        gone: impl Future<Output = ()>,
    ) -> Result<(), Broken> {
        let Some(fault) = self.take(call, stage) else {
            return Ok(());
        };
        match fault.action {
            Action::Exit => std::process::abort(),
            Action::Cut => Err(Broken::Cut),
            Action::Stall => {
                let _ = tokio::time::timeout(STALL_MAX, gone).await;
                Err(Broken::Cut)
            }
            Action::Status => Err(Broken::Failed),
        }
    }

    fn take(&self, call: &Call, stage: Stage) -> Option<Fault> {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let index = plan.faults.iter().position(|fault| {
            fault.stage == stage
                && (fault.on == call.operation || fault.on == Operation::Any)
                && fault.dataset.as_ref().is_none_or(|dataset| call.entry.is_about(dataset))
                && fault.times > 0
        })?;
        let fault = plan.faults.get_mut(index)?;
        fault.times -= 1;
        let taken = fault.clone();
        if fault.times == 0 {
            plan.faults.remove(index);
        }
        Some(taken)
    }
}

impl Cut {
    /// Never returns: the connection's task drops the request.
    pub(crate) async fn fire(&self) -> ! {
        self.0.notify_one();
        pending().await
    }

    pub(crate) async fn fired(&self) {
        self.0.notified().await;
    }
}

fn refusal(fault: &Fault) -> Refusal {
    let status = fault.status.and_then(|status| StatusCode::from_u16(status).ok());
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match (status, fault.retry_after) {
        (_, Some(secs)) => Refusal::RetryAfter(status, secs),
        (StatusCode::UNAUTHORIZED, None) => Refusal::text(status, "Authentication token invalid"),
        (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, None) => Refusal::RetryAfter(status, 1),
        _ => Refusal::Empty(status),
    }
}

fn once() -> u32 {
    1
}
