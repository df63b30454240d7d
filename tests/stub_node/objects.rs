//! The files of a dataset over HTTP: read as of any static server, and `PUT` of data during a push.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use forebay_storage::odf::Multihash;

use crate::Node;
use crate::faults::{Call, Stage};
use crate::ingest::read_body;
use crate::refusal::{Refusal, internal};
use crate::router::DatasetPath;
use crate::store::Dataset;

pub(crate) async fn head(
    State(node): State<Arc<Node>>,
    Path(path): Path<DatasetPath>,
    headers: HeaderMap,
) -> Result<String, Refusal> {
    let dataset = node.readable(node.caller(&headers)?, path.account(&node), &path.dataset)?;
    blocking(move || Ok(dataset.head().to_string())).await
}

pub(crate) async fn block(
    State(node): State<Arc<Node>>,
    Path(path): Path<DatasetPath>,
    headers: HeaderMap,
) -> Result<Vec<u8>, Refusal> {
    read_file(&node, &path, &headers, |dataset, hash| dataset.block_path(hash)).await
}

pub(crate) async fn data(
    State(node): State<Arc<Node>>,
    Path(path): Path<DatasetPath>,
    headers: HeaderMap,
) -> Result<Vec<u8>, Refusal> {
    read_file(&node, &path, &headers, |dataset, hash| dataset.data_path(hash)).await
}

async fn read_file(
    node: &Node,
    path: &DatasetPath,
    headers: &HeaderMap,
    file: impl Fn(&Dataset, &Multihash) -> PathBuf,
) -> Result<Vec<u8>, Refusal> {
    let dataset = node.readable(node.caller(headers)?, path.account(node), &path.dataset)?;
    let file = file(&dataset, &hash(path)?);
    blocking(move || Ok(fs::read(file).ok())).await?.ok_or(Refusal::NOT_FOUND)
}

/// The bytes must have the hash they are named by. Sent twice, they are written twice.
pub(crate) async fn put_data(
    State(node): State<Arc<Node>>,
    Path(path): Path<DatasetPath>,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let (mut parts, body) = request.into_parts();
    let call: Call = parts.extensions.remove().ok_or(Refusal::INTERNAL)?;
    let hash = hash(&path)?;
    let caller = node.caller(&parts.headers)?;
    let dataset = node.writable(caller, path.account(&node), &path.dataset)?;
    let body = read_body(&node, &call, &parts.headers, body).await?;
    node.check_quota(body.len() as u64)?;
    let is_written = blocking(move || {
        let is_same = Multihash::of(&body) == hash;
        if is_same {
            dataset.write_data(&hash, &body)?;
        }
        Ok(is_same)
    });
    if !is_written.await? {
        return Err(Refusal::text(StatusCode::INTERNAL_SERVER_ERROR, ""));
    }
    node.faults.reach(&call, Stage::AfterCommit).await?;
    Ok(StatusCode::OK)
}

fn hash(path: &DatasetPath) -> Result<Multihash, Refusal> {
    let text = path.hash.as_deref().unwrap_or_default();
    text.parse().map_err(|_| {
        let text = format!(
            "Invalid URL: Cannot parse `physical_hash` with value `{text}`: Value '{text}' is not a valid multihash"
        );
        Refusal::text(StatusCode::BAD_REQUEST, text)
    })
}

/// Runs what reads, writes or computes for long where it does not hold up other connections.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(internal),
        Err(error) => Err(internal(error)),
    }
}
