//! The one mutation that an agent needs, `datasets { createFromSnapshot }`. The answer always holds the same fields; what a
//! query selects is not looked at.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use forebay_storage::odf::event::Seed;
use forebay_storage::odf::{DatasetDid, DatasetKind, Event, MetadataBlock};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Node;
use crate::auth::Caller;
use crate::faults::{Call, Stage};
use crate::objects::blocking;
use crate::refusal::{Refusal, internal};
use crate::source::Manifest;
use crate::store::{Block, CreateError, now};

const MUTATION: &str = "createFromSnapshot";

#[derive(Debug, Deserialize)]
struct Query {
    query: String,
    #[serde(default)]
    variables: Value,
}

pub(crate) async fn graphql(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Call>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let answer = answer(&node, &headers, &body).await?;
    node.faults.reach(&call, Stage::AfterCommit).await?;
    Ok(([(header::CONTENT_TYPE, "application/graphql-response+json")], Json(answer)).into_response())
}

/// Always 200: what went wrong is in `errors`, or in the type of the result.
async fn answer(node: &Arc<Node>, headers: &HeaderMap, body: &[u8]) -> Result<Value, Refusal> {
    let Ok(query) = serde_json::from_slice::<Query>(body) else {
        return Ok(failure("Invalid GraphQL request"));
    };
    let Some(arguments) = arguments(&query) else {
        return Ok(failure("This stub knows datasets.createFromSnapshot only"));
    };
    match node.caller(headers) {
        Err(_) => return Ok(failure("Invalid access token")),
        Ok(Caller::Anonymous) => return Ok(failure("Anonymous access forbidden")),
        Ok(Caller::Account) => {}
    }
    let node = Arc::clone(node);
    let result = blocking(move || Ok(create(&node, &arguments))).await??;
    Ok(json!({ "data": { "datasets": { MUTATION: result } } }))
}

fn create(node: &Node, arguments: &BTreeMap<String, String>) -> Result<Value, Refusal> {
    let text = arguments.get("snapshot").map(String::as_str).unwrap_or_default();
    let malformed =
        |error: &dyn std::fmt::Display| Ok(result("MetadataManifestMalformed", &format!("Serde error: {error}")));
    let snapshot: Value = match serde_saphyr::from_str(text) {
        Ok(snapshot) => snapshot,
        Err(error) => return malformed(&error),
    };
    let manifest = match Manifest::read(&snapshot) {
        Ok(manifest) => manifest,
        Err(error) => return malformed(&error),
    };
    let (account, name) = manifest.name.split_once('/').unwrap_or((&node.account, &manifest.name));
    if account != node.account {
        return Ok(failure("Only own datasets can be created"));
    }
    let is_public = arguments.get("datasetVisibility").is_some_and(|word| word == "PUBLIC");
    let seed = new_seed().map_err(internal)?;
    match node.store.create((account, name), is_public, Some(snapshot.clone()), &seed) {
        Ok(dataset) => {
            let id = dataset.lock().state.dataset_id;
            let mut result = result("CreateDatasetResultSuccess", "Success");
            result["dataset"] = json!({ "id": id, "name": name });
            Ok(result)
        }
        Err(CreateError::Name) => {
            let message = format!("Dataset with name '{name}' already exists");
            Ok(result("CreateDatasetResultNameCollision", &message))
        }
        Err(CreateError::Ref(id)) => Err(internal(format_args!("a random id repeats: {id}"))),
        Err(CreateError::Other(error)) => Err(internal(error)),
    }
}

fn new_seed() -> anyhow::Result<Block> {
    let mut key = [0; 32];
    fastrand::Rng::new().fill(&mut key);
    let seed = Seed { dataset_id: DatasetDid::from_public_key(key), dataset_kind: DatasetKind::Root };
    Block::new(MetadataBlock {
        system_time: now(),
        prev_block_hash: None,
        sequence_number: 0,
        event: Event::Seed(seed),
    })
}

fn result(typename: &str, message: &str) -> Value {
    let is_success = typename == "CreateDatasetResultSuccess";
    json!({ "__typename": typename, "isSuccess": is_success, "message": message })
}

fn failure(message: &str) -> Value {
    let error =
        json!({ "message": message, "locations": [{ "line": 1, "column": 1 }], "path": ["datasets", MUTATION] });
    json!({ "data": { "datasets": null }, "errors": [error] })
}

/// The arguments of the mutation, variables resolved.
fn arguments(query: &Query) -> Option<BTreeMap<String, String>> {
    let (_, rest) = query.query.split_once(MUTATION)?;
    let mut rest = rest.trim_start().strip_prefix('(')?;
    let mut arguments = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        if rest.starts_with(')') {
            return Some(arguments);
        }
        let (name, after) = rest.split_once(':')?;
        let (value, after) = value(after.trim_start(), &query.variables)?;
        arguments.insert(name.trim().to_owned(), value);
        rest = after;
    }
}

/// A string, a block string, a variable or an enum, and what follows it.
fn value<'a>(text: &'a str, variables: &Value) -> Option<(String, &'a str)> {
    if let Some(block) = text.strip_prefix("\"\"\"") {
        let (value, rest) = block.split_once("\"\"\"")?;
        return Some((value.to_owned(), rest));
    }
    if text.starts_with('"') {
        // GraphQL escapes as JSON does.
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<String>();
        let value = values.next()?.ok()?;
        return Some((value, text.get(values.byte_offset()..)?));
    }
    let end = text.find(|c: char| c.is_whitespace() || c == ',' || c == ')')?;
    let (word, rest) = text.split_at(end);
    match word.strip_prefix('$') {
        Some(name) => Some((variables.get(name)?.as_str()?.to_owned(), rest)),
        None => Some((word.to_owned(), rest)),
    }
}
