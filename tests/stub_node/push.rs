//! Smart Transfer Protocol, the receiving end of a push, frame by frame:
//!
//! ```text
//! plan ─▶ ◀─ Ok | InvalidHead     blocks ─▶ ◀─ Ok, the dataset exists from here on     objects ─▶ ◀─ where to PUT each
//! ◀─ {} progress? ─▶ Running | Complete     {} ─▶ commit ◀─ {}     close 1000
//! ```
//!
//! As on a node, an InvalidHead does not end the session (the commit then fails), a fatal error is the reason of a close
//! frame 1011, and what a node panics on just ends the connection, a WebSocket Ping included.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flate2::read::GzDecoder;
use forebay_storage::odf::{Event, MetadataBlock, Multihash};
use futures_util::SinkExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::Node;
use crate::auth::Caller;
use crate::faults::{Broken, Call, Stage};
use crate::objects::blocking;
use crate::refusal::Refusal;
use crate::router::{DatasetPath, signed_in};
use crate::store::{Block, CreateError, Dataset};

const VERSION_HEADER: &str = "x-odf-smtp-version";
const VERSION: &str = "1";
/// How long a client may take to close after us.
const CLOSE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
struct Plan {
    current_head: Option<Multihash>,
    transfer_plan: TransferPlan,
    force_update_if_diverged: bool,
    visibility_for_created_dataset: Visibility,
}

#[derive(Debug, Deserialize)]
struct TransferPlan {
    num_blocks: usize,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
enum Visibility {
    Private,
    Public,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    new_blocks: NewBlocks,
}

#[derive(Debug, Deserialize)]
struct NewBlocks {
    num_blocks: usize,
    media_type: String,
    encoding: String,
    payload: Vec<u8>,
}

#[derive(Debug, Deserialize)]
struct Objects {
    object_files: Vec<ObjectFile>,
    is_truncated: bool,
}

#[derive(Debug, Deserialize)]
struct ObjectFile {
    object_type: String,
    physical_hash: Multihash,
    size: u64,
}

#[derive(Debug, Deserialize)]
struct Progress {
    details: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Complete {}

/// How a session ends early.
#[derive(Debug)]
enum End {
    /// The connection is dropped.
    Drop,
    /// Close 1011 with this reason.
    Fatal(Value),
}

struct Session {
    node: Arc<Node>,
    call: Call,
    account: String,
    name: String,
    /// Where data is uploaded to: the address that the client itself used, so that a proxy sees the uploads too.
    base_url: String,
    authorization: String,
    socket: WebSocket,
}

pub(crate) async fn push(
    State(node): State<Arc<Node>>,
    Path(path): Path<DatasetPath>,
    request: Request,
) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let call: Call = parts.extensions.get().cloned().ok_or(Refusal::INTERNAL)?;
    let account = path.account(&node).to_owned();
    check_caller(&node, &account, &path.dataset, &parts.headers)?;
    check_version(&parts.headers)?;
    node.check_quota(0)?;
    let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let host = text(header::HOST).unwrap_or_else(|| node.addr.to_string());
    let authorization = text(header::AUTHORIZATION).unwrap_or_default();
    let base_url = format!("{}://{host}", node.scheme);
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade,
        Err(rejection) => return Ok(rejection.into_response()),
    };
    node.faults.reach(&call, Stage::Upgrade).await?;
    let name = path.dataset;
    Ok(upgrade.on_upgrade(|socket| Session { node, call, account, name, base_url, authorization, socket }.run()))
}

fn check_caller(node: &Node, account: &str, name: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    let caller = node.caller(headers)?;
    if node.store.find(account, name).is_some() {
        return node.writable(caller, account, name).map(drop);
    }
    signed_in(node, headers)?;
    if caller == Caller::Account && account == node.account { Ok(()) } else { Err(Refusal::FORBIDDEN) }
}

fn check_version(headers: &HeaderMap) -> Result<(), Refusal> {
    match headers.get(VERSION_HEADER) {
        None => Err(Refusal::text(StatusCode::BAD_REQUEST, format!("Header of type `{VERSION_HEADER}` was missing"))),
        Some(version) if version == VERSION => Ok(()),
        Some(_) => Err(Refusal::message(StatusCode::BAD_REQUEST, "Incompatible client version")),
    }
}

impl Session {
    async fn run(mut self) {
        let close = match self.receive().await {
            Ok(()) => CloseFrame { code: 1000, reason: "".into() },
            Err(End::Fatal(reason)) => CloseFrame { code: 1011, reason: reason.to_string().into() },
            Err(End::Drop) => return,
        };
        if self.socket.send(Message::Close(Some(close))).await.is_ok() {
            // The client's own close frame.
            let _ = tokio::time::timeout(CLOSE_MAX, gone(&mut self.socket)).await;
        }
    }

    async fn receive(&mut self) -> Result<(), End> {
        let plan: Plan = self.next().await?;
        self.reach(Stage::Plan).await?;
        let dataset = self.node.store.find(&self.account, &self.name);
        let head = dataset.as_ref().map(|dataset| dataset.head());
        if plan.current_head == head || plan.force_update_if_diverged {
            self.send(&json!({ "Ok": {} })).await?;
        } else {
            // The names are as on a node: swapped.
            let heads = json!({ "actual_head": plan.current_head, "expected_head": head });
            self.send(&json!({ "Err": { "InvalidHead": heads } })).await?;
        }

        let metadata: Metadata = self.next().await?;
        self.reach(Stage::Blocks).await?;
        let blocks = unpack(&metadata.new_blocks, plan.transfer_plan.num_blocks)?;
        if let Some(dataset) = &dataset
            && plan.force_update_if_diverged
            && overwrites_seed(dataset, &blocks)
        {
            self.send(&json!({ "Err": { "SeedBlockOverwriteRestricted": {} } })).await?;
            return Err(End::Drop);
        }
        self.send(&json!({ "Ok": {} })).await?;
        let dataset = match dataset {
            Some(dataset) => dataset,
            None => self.create(&blocks, plan.visibility_for_created_dataset == Visibility::Public)?,
        };

        if !blocks.is_empty() {
            self.objects(&dataset, &blocks).await?;
        }
        let Complete {} = self.next().await?;
        self.reach(Stage::Complete).await?;
        let is_forced = plan.force_update_if_diverged;
        blocking(move || dataset.accept(&blocks, is_forced)).await.map_err(|_| internal("CompleteRequest"))?;
        self.reach(Stage::AfterCommit).await?;
        self.send(&json!({})).await
    }

    /// The dataset is there with its Seed before anything else is.
    fn create(&self, blocks: &[Block], is_public: bool) -> Result<Arc<Dataset>, End> {
        let seed = blocks.first().ok_or_else(|| internal("InitialRequest"))?;
        if Multihash::of(&seed.bytes) != seed.hash {
            return Err(End::Drop);
        }
        let created = self.node.store.create((&self.account, &self.name), is_public, None, seed);
        created.map_err(|error| match error {
            CreateError::Ref(id) => End::Fatal(json!({ "Err": { "RefCollision": { "dataset_id": id } } })),
            CreateError::Name => {
                let alias = format!("{}/{}", self.account, self.name);
                End::Fatal(json!({ "Err": { "NameCollision": { "dataset_alias": alias } } }))
            }
            CreateError::Other(_) => internal("InitialRequest"),
        })
    }

    /// Rounds of: which objects, where to, done.
    async fn objects(&mut self, dataset: &Dataset, blocks: &[Block]) -> Result<(), End> {
        loop {
            let objects: Objects = self.next().await?;
            self.reach(Stage::Objects).await?;
            if blocks.iter().any(|block| Multihash::of(&block.bytes) != block.hash) {
                return Err(End::Drop);
            }
            let strategies: Vec<_> = objects.object_files.iter().map(|file| self.strategy(dataset, file)).collect();
            self.send(&json!({ "Ok": { "object_transfer_strategies": strategies } })).await?;
            self.wait_for_uploads().await?;
            if !objects.is_truncated {
                return Ok(());
            }
        }
    }

    fn strategy(&self, dataset: &Dataset, file: &ObjectFile) -> Value {
        let hash = file.physical_hash;
        let object_file = json!({ "object_type": file.object_type, "physical_hash": hash, "size": file.size });
        if dataset.data_path(&hash).is_file() {
            return json!({ "object_file": object_file, "push_strategy": "SkipUpload", "upload_to": null });
        }
        let account = if self.node.is_multi_tenant { format!("/{}", self.account) } else { String::new() };
        let url = format!("{}{account}/{}/data/{hash}", self.base_url, self.name);
        let headers = json!([
            { "name": VERSION_HEADER, "value": VERSION },
            { "name": "authorization", "value": self.authorization },
        ]);
        let upload_to = json!({ "url": url, "headers": headers, "expires_at": null });
        json!({ "object_file": object_file, "push_strategy": "HttpUpload", "upload_to": upload_to })
    }

    async fn wait_for_uploads(&mut self) -> Result<(), End> {
        let mut ticks = tokio::time::interval(self.node.progress_every);
        ticks.tick().await;
        loop {
            let message = tokio::select! {
                _ = ticks.tick() => None,
                message = self.socket.recv() => Some(message),
            };
            match message {
                None => self.send(&json!({})).await?,
                Some(message) => {
                    let progress: Progress = self.understand(message).await?;
                    if progress.details == "Complete" {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn next<T: DeserializeOwned>(&mut self) -> Result<T, End> {
        let message = self.socket.recv().await;
        self.understand(message).await
    }

    async fn understand<T: DeserializeOwned>(
        &mut self,
        message: Option<Result<Message, axum::Error>>,
    ) -> Result<T, End> {
        match message {
            Some(Ok(Message::Text(text))) => {
                self.node.log.received(&self.call.entry, text.len());
                serde_json::from_str(&text).map_err(|_| End::Drop)
            }
            Some(Ok(Message::Ping(_))) => {
                // The pong is queued already; a node sends it, then fails.
                let _ = self.socket.flush().await;
                Err(End::Drop)
            }
            _ => Err(End::Drop),
        }
    }

    async fn send(&mut self, message: &Value) -> Result<(), End> {
        self.socket.send(Message::text(message.to_string())).await.map_err(|_| End::Drop)
    }

    async fn reach(&mut self, stage: Stage) -> Result<(), End> {
        let reached = self.node.faults.reach_socket(&self.call, stage, gone(&mut self.socket)).await;
        reached.map_err(|broken| match broken {
            Broken::Cut => End::Drop,
            Broken::Failed if stage == Stage::Complete => internal("CompleteRequest"),
            Broken::Failed => internal("InitialRequest"),
        })
    }
}

async fn gone(socket: &mut WebSocket) {
    while let Some(Ok(_)) = socket.recv().await {}
}

/// A node says no more than that.
fn internal(phase: &str) -> End {
    let error = json!({ "phase": { "Push": phase }, "error_message": "Internal error" });
    End::Fatal(json!({ "Err": { "Internal": error } }))
}

fn unpack(new_blocks: &NewBlocks, planned: usize) -> Result<Vec<Block>, End> {
    let is_known = new_blocks.media_type == "application/tar+gzip" && new_blocks.encoding == "raw";
    if new_blocks.num_blocks != planned || !is_known {
        return Err(End::Drop);
    }
    let files = untar(&new_blocks.payload).map_err(|_| End::Drop)?;
    if files.len() != planned {
        return Err(End::Drop);
    }
    let mut blocks = Vec::new();
    for (hash, bytes) in files {
        let block = MetadataBlock::decode(&bytes).map_err(|_| internal("InitialRequest"))?;
        blocks.push(Block { hash, bytes, block });
    }
    Ok(blocks)
}

fn untar(payload: &[u8]) -> Result<Vec<(Multihash, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in tar::Archive::new(GzDecoder::new(payload)).entries()? {
        let mut entry = entry?;
        let hash = entry.path()?.to_string_lossy().parse()?;
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        files.push((hash, bytes));
    }
    Ok(files)
}

fn overwrites_seed(dataset: &Dataset, blocks: &[Block]) -> bool {
    let Some(Event::Seed(seed)) = blocks.first().map(|block| &block.block.event) else {
        return false;
    };
    seed.dataset_id != dataset.lock().state.dataset_id
}
