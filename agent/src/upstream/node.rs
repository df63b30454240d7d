//! A Kamu node seen from outside: is it one, who are we to it, and why did it refuse?
//!
//! A node answers 403 and 404 with nothing in them, for a missing dataset as for a wrong URL, for a wrong account as for a
//! used-up quota. So a refusal is followed by two questions whose answers tell these apart: `GET /info`, which every node
//! answers to everybody, and `GET /accounts/me`, which says whose token this is.

use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use super::http::{Answer, Http};
use super::outcome::{Failure, FailureKind};
use crate::config::NodeUrl;

/// What `GET /info` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    /// Whether URLs name an account.
    pub is_multi_tenant: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Me {
    account_name: String,
}

/// Asks for something small.
///
/// # Errors
/// There is no answer.
pub async fn get(http: &Http, url: Url) -> Result<Answer, Failure> {
    http.answer(http.request(Method::GET, url)?).await
}

/// Whether a Kamu node answers at this URL.
///
/// # Errors
/// Nothing answers, or something else does.
pub async fn info(http: &Http, node: &NodeUrl) -> Result<Info, Failure> {
    let url = node.join("info");
    let answer = http.answer(http.bare_request(Method::GET, url.clone())).await?;
    let what = format!("GET {url}");
    let not_a_node = |words: String| {
        Failure::unreachable(format!("nothing at {} answers as a Kamu node: check `url` ({words})", node.base))
    };
    match answer.status {
        StatusCode::OK => serde_json::from_str(&answer.body)
            .map_err(|_| not_a_node(format!("{what} was answered with something else than its JSON"))),
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            let failure = answer.failure(&what);
            // The URL is no dataset's, so this is the node as a whole.
            Err(match failure.kind {
                FailureKind::Unreachable { .. } => failure,
                _ => Failure::unreachable(failure.words),
            })
        }
        _ => Err(not_a_node(answer.failure(&what).words)),
    }
}

/// Whether the URL names an account exactly if the node has accounts.
///
/// # Errors
/// One line that says how the URL is to be changed.
pub(super) fn check_account(node: &NodeUrl, info: Info) -> Result<(), Failure> {
    let base = &node.base;
    match (&node.account, info.is_multi_tenant) {
        (None, true) => {
            Err(Failure::unreachable(format!("the node at {base} has accounts: write one at the end of `url`")))
        }
        (Some(account), false) => Err(Failure::unreachable(format!(
            "the node at {base} has no accounts: leave `/{account}` away at the end of `url`"
        ))),
        _ => Ok(()),
    }
}

/// What a refusal means, after asking the node for the reason that its answer did not hold. Other failures are passed on.
pub async fn explain(http: &Http, node: &NodeUrl, dataset: &str, failure: Failure) -> Failure {
    match failure.kind {
        FailureKind::Unauthorised => return unauthorised(http, &failure),
        FailureKind::Refused if failure.is_wordless() => {}
        _ => return failure,
    }
    let info = match info(http, node).await {
        Ok(info) => info,
        Err(unreachable) => return unreachable,
    };
    if let Err(mismatch) = check_account(node, info) {
        return mismatch;
    }
    let url = node.dataset(dataset);
    let Some(token) = http.token_name() else {
        let words = format!("{}: the upstream has no token: name one in `token_file`", failure.words);
        return Failure { words, ..failure };
    };
    let me = match get(http, node.join("accounts/me")).await {
        Ok(answer) if answer.status == StatusCode::UNAUTHORIZED => {
            return unauthorised(http, &answer.failure("GET accounts/me"));
        }
        Ok(answer) => serde_json::from_str::<Me>(&answer.body).ok().map(|me| me.account_name),
        Err(unreachable) => return unreachable,
    };
    let whose = match (&me, &node.account) {
        (Some(me), Some(account)) if me != account => {
            format!(
                "the token of {token} belongs to account {me}, and `url` says {account}: change one of them, or have {me} given the right to write"
            )
        }
        _ if failure.words.contains(" 404") => {
            format!(
                "there is no dataset at {url}, or the token of {token} may not see it: `forebay provision` creates it"
            )
        }
        _ => format!(
            "the token of {token} may not write there, or the account's storage quota is used up: ask the node's operator"
        ),
    };
    let words = format!("{}; {whose}", failure.words);
    Failure { words, ..failure }
}

fn unauthorised(http: &Http, failure: &Failure) -> Failure {
    let advice = match http.token_name() {
        Some(token) => format!("put a valid token into {token}; it is read again before each try"),
        None => "name a token in `token_file`".to_owned(),
    };
    Failure::new(failure.kind, format!("{}; {advice}", failure.words))
}
