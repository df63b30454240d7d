//! Who asks, and whether a dataset is there for them.

use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode, header};

use crate::Node;
use crate::refusal::Refusal;
use crate::store::Dataset;

/// Who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    Anonymous,
    Account,
}

impl Node {
    /// A missing token is anonymous; a wrong one is refused wherever it is shown.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return Ok(Caller::Anonymous);
        };
        let token = value.to_str().ok().and_then(|value| value.split_once(' '));
        match token {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                if token == self.token {
                    return Ok(Caller::Account);
                }
                Err(Refusal::text(StatusCode::UNAUTHORIZED, "Authentication token invalid"))
            }
            _ => Err(Refusal::text(StatusCode::BAD_REQUEST, "Invalid Bearer token header")),
        }
    }

    /// The dataset, if it is visible to the caller.
    pub(crate) fn readable(&self, caller: Caller, account: &str, name: &str) -> Result<Arc<Dataset>, Refusal> {
        self.store
            .find(account, name)
            .filter(|dataset| dataset.is_public || (caller == Caller::Account && account == self.account))
            .ok_or(Refusal::NOT_FOUND)
    }

    /// The dataset, if the caller may change it.
    pub(crate) fn writable(&self, caller: Caller, account: &str, name: &str) -> Result<Arc<Dataset>, Refusal> {
        let dataset = self.readable(caller, account, name)?;
        if caller == Caller::Anonymous || account != self.account {
            return Err(Refusal::FORBIDDEN);
        }
        Ok(dataset)
    }

    /// Whether `more` bytes of data fit.
    pub(crate) fn check_quota(&self, more: u64) -> Result<(), Refusal> {
        match self.quota_bytes {
            Some(quota) if self.store.data_bytes().saturating_add(more) > quota => Err(Refusal::FORBIDDEN),
            _ => Ok(()),
        }
    }
}
