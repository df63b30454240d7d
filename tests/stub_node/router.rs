//! Paths to handlers. A real node has an account in every dataset's path; a workspace of one person has none.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::auth::Caller;
use crate::faults::{Call, Cut, Operation, Stage};
use crate::refusal::Refusal;
use crate::{Node, graphql, ingest, objects, push};

/// Largest body of a control or GraphQL request, bytes.
const CONTROL_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The dataset that a path names.
#[derive(Debug, Deserialize)]
pub(crate) struct DatasetPath {
    account: Option<String>,
    pub(crate) dataset: String,
    pub(crate) hash: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RowsQuery {
    all: Option<u8>,
}

impl DatasetPath {
    pub(crate) fn account<'a>(&'a self, node: &'a Node) -> &'a str {
        self.account.as_deref().unwrap_or(&node.account)
    }
}

pub(crate) fn router(node: Arc<Node>) -> Router {
    let dataset = Router::new()
        .route("/ingest", post(ingest::ingest))
        .route("/push", get(push::push))
        .route("/refs/head", get(objects::head))
        .route("/blocks/{hash}", get(objects::block))
        .route("/data/{hash}", get(objects::data).put(objects::put_data));
    let prefix = if node.is_multi_tenant { "/{account}/{dataset}" } else { "/{dataset}" };
    Router::new()
        .route("/info", get(info))
        .route("/accounts/me", get(me))
        .route("/platform/token/validate", get(validate))
        .route("/graphql", post(graphql::graphql))
        .nest(prefix, dataset)
        .fallback(|| async { (StatusCode::NOT_FOUND, "Not Found") })
        .layer(from_fn_with_state(Arc::clone(&node), observe))
        .route("/_stub/faults", post(add_faults).delete(clear_faults))
        .route("/_stub/log", get(read_log))
        .route("/_stub/rows/{account}/{dataset}", get(read_rows))
        .with_state(node)
}

/// Logs the request, counts its body, and lets the faults happen that need to know no more than what it is.
async fn observe(
    State(node): State<Arc<Node>>,
    Extension(cut): Extension<Cut>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    let entry = node.log.arrive(request.method(), &path, request.headers());
    let operation = operation(request.method().as_str(), request.uri().path());
    let call = Call { operation, cut, entry: Arc::clone(&entry) };
    if let Err(refusal) = node.faults.reach(&call, Stage::Before).await {
        let response = refusal.into_response();
        entry.answered(response.status().as_u16());
        return response;
    }
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(call);
    let (counting_node, counted) = (Arc::clone(&node), Arc::clone(&entry));
    let body = body.into_data_stream().inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            counting_node.log.received(&counted, chunk.len());
        }
    });
    let response = next.run(Request::from_parts(parts, Body::from_stream(body))).await;
    entry.answered(response.status().as_u16());
    response
}

fn operation(method: &str, path: &str) -> Operation {
    if path == "/graphql" {
        Operation::Graphql
    } else if path.ends_with("/ingest") {
        Operation::Ingest
    } else if path.ends_with("/push") {
        Operation::Push
    } else if path.ends_with("/refs/head") {
        Operation::Head
    } else if method == "PUT" {
        Operation::PutData
    } else {
        Operation::Any
    }
}

async fn info(State(node): State<Arc<Node>>) -> Json<Value> {
    Json(json!({ "isMultiTenant": node.is_multi_tenant }))
}

async fn me(State(node): State<Arc<Node>>, headers: HeaderMap) -> Result<Json<Value>, Refusal> {
    signed_in(&node, &headers)?;
    let id = format!("did:odf:fed01{}", "6b".repeat(32));
    Ok(Json(json!({ "id": id, "accountName": node.account })))
}

async fn validate(State(node): State<Arc<Node>>, headers: HeaderMap) -> Result<StatusCode, Refusal> {
    signed_in(&node, &headers)?;
    Ok(StatusCode::OK)
}

pub(crate) fn signed_in(node: &Node, headers: &HeaderMap) -> Result<(), Refusal> {
    match node.caller(headers)? {
        Caller::Account => Ok(()),
        Caller::Anonymous => Err(Refusal::message(StatusCode::UNAUTHORIZED, "Unauthenticated")),
    }
}

async fn add_faults(State(node): State<Arc<Node>>, body: Body) -> Result<StatusCode, Refusal> {
    node.faults.add(&small_body(body).await?)?;
    Ok(StatusCode::OK)
}

async fn clear_faults(State(node): State<Arc<Node>>) -> StatusCode {
    node.faults.clear();
    StatusCode::OK
}

async fn read_log(State(node): State<Arc<Node>>) -> Json<Value> {
    Json(node.log.to_json())
}

async fn read_rows(
    State(node): State<Arc<Node>>,
    Path(path): Path<DatasetPath>,
    Query(query): Query<RowsQuery>,
) -> Result<Response, Refusal> {
    let dataset = node.store.find(path.account(&node), &path.dataset).ok_or(Refusal::NOT_FOUND)?;
    let is_all = query.all.is_some_and(|all| all > 0);
    let lines = objects::blocking(move || dataset.rows(is_all)).await?;
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response())
}

pub(crate) async fn small_body(body: Body) -> Result<bytes::Bytes, Refusal> {
    axum::body::to_bytes(body, CONTROL_BYTES_MAX)
        .await
        .map_err(|error| Refusal::message(StatusCode::BAD_REQUEST, error.to_string()))
}
