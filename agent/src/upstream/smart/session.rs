//! One push over one WebSocket: what is said, what is waited for and how long.
//!
//! The socket begins as a request of the upstream's own client, so that proxy, certificates and token hold for it as for
//! every other request. Long frames go out in fragments: each has its own share of the pace and of the patience. No Ping
//! is ever sent, since a node's next read would fail on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use forebay_storage::odf::{ChainFiles, Multihash};
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use reqwest::{Method, Response, StatusCode, Upgraded, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::bundle::Bundle;
use super::frames::{self, Empty, End, NewBlocks, ObjectFile, ObjectFiles, Place, Progress, Request, Step, Strategies};
use super::upload;
use crate::upstream::http::{Http, PIECE_BYTES, of_error};
use crate::upstream::outcome::{Failure, FailureKind};

/// Version of the Smart Transfer Protocol.
const VERSION_HEADER: &str = "x-odf-smtp-version";
const VERSION: &str = "1";
/// Bytes of a message of the node: about 2 KiB an object, of which there are at most as many as blocks.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Bytes that are held to read and to write; a gateway is small.
const BUFFER_BYTES: usize = 16 << 10;
/// A node appends all blocks and checks each before it consents: it may be silent for so many timeouts.
const COMMIT_TIMEOUTS: u32 = 10;
/// How long the end of a conversation is waited for when nothing depends on it.
const FAREWELL: Duration = Duration::from_secs(2);

/// A push that is under way.
pub(super) struct Session {
    http: Arc<Http>,
    node: Url,
    socket: WebSocketStream<Upgraded>,
    step: Step,
    sent: u64,
}

impl Session {
    /// Opens the socket.
    pub(super) async fn open(http: &Arc<Http>, url: Url) -> Result<Self, Failure> {
        let key = generate_key();
        let request = http
            .request(Method::GET, url.clone())?
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key)
            .header(VERSION_HEADER, VERSION);
        let response = http.send(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(not_switched(http, response).await);
        }
        let accept = response.headers().get(SEC_WEBSOCKET_ACCEPT).map(|value| value.as_bytes().to_owned());
        if accept.as_deref() != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
            let words = format!("something at {url} answers in place of the node, and speaks no WebSocket");
            return Err(Failure::unreachable(words));
        }
        let upgraded = response.upgrade().await.map_err(|error| of_error(&error, http.timeout()))?;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await;
        Ok(Self { http: Arc::clone(http), node: url, socket, step: Step::Request, sent: 0 })
    }

    /// Asks whether what is in the bundle may come on top of `known`.
    pub(super) async fn request(&mut self, known: Option<&Multihash>, bundle: &Bundle) -> Result<(), End> {
        self.step = Step::Request;
        self.say(&Request::new(known, bundle.plan)).await?;
        self.accepted::<Empty>().await.map(drop)
    }

    /// Sends the blocks. A dataset that is not there is created by them, with the Seed as its head.
    pub(super) async fn blocks(&mut self, bundle: &Bundle) -> Result<(), End> {
        self.step = Step::Blocks;
        self.say(&NewBlocks::new(bundle.plan.num_blocks, &bundle.archive)).await?;
        self.accepted::<Empty>().await.map(drop)
    }

    /// Asks where the slices are to be put. Answers those that the node lacks.
    pub(super) async fn objects<'a>(&mut self, objects: &'a [ObjectFile]) -> Result<Vec<(&'a ObjectFile, Place)>, End> {
        self.step = Step::Objects;
        self.say(&ObjectFiles::new(objects)).await?;
        Ok(self.accepted::<Strategies>().await?.uploads(objects)?)
    }

    /// Uploads slices, one at a time, and answers the node's questions meanwhile.
    pub(super) async fn upload(&mut self, files: &ChainFiles, uploads: &[(&ObjectFile, Place)]) -> Result<(), End> {
        self.step = Step::Upload;
        let uploaded = AtomicU32::new(0);
        let (http, node) = (Arc::clone(&self.http), self.node.clone());
        let puts = async {
            for (object, place) in uploads {
                upload::put(&http, &node, files, object, place).await?;
                uploaded.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Failure>(())
        };
        tokio::select! {
            done = puts => done?,
            end = self.answer_questions(&uploaded) => return Err(end),
        }
        self.sent += uploads.iter().map(|(object, _)| object.size).sum::<u64>();
        self.say(&Progress::complete()).await
    }

    /// Asks the node to commit.
    pub(super) async fn complete(&mut self) -> Result<(), End> {
        self.step = Step::Commit;
        self.say(&Empty {}).await
    }

    /// Waits for the node to say that it has committed. A question about progress that crossed our last answer looks the
    /// same, so only the head tells.
    pub(super) async fn consent(&mut self) -> Result<(), End> {
        let text = self.hear(self.http.timeout() * COMMIT_TIMEOUTS).await?;
        frames::nod(&text, self.step)
    }

    /// Ends the conversation; answers the bytes that were sent. Nothing depends on whether the node hears it.
    pub(super) async fn close(mut self) -> u64 {
        let normal = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") };
        let farewell = async {
            let _ = self.socket.close(Some(normal)).await;
            while let Some(Ok(_)) = self.socket.next().await {}
        };
        let _ = timeout(FAREWELL, farewell).await;
        self.sent
    }

    /// Never ends well: whoever is done with the uploads stops listening.
    async fn answer_questions(&mut self, uploaded: &AtomicU32) -> End {
        loop {
            if let Err(end) = self.answer_question(uploaded).await {
                return end;
            }
        }
    }

    async fn answer_question(&mut self, uploaded: &AtomicU32) -> Result<(), End> {
        let question = self.next_text().await?;
        frames::nod(&question, self.step)?;
        self.say(&Progress::running(uploaded.load(Ordering::Relaxed))).await
    }

    async fn accepted<T: DeserializeOwned>(&mut self) -> Result<T, End> {
        let text = self.hear(self.http.timeout()).await?;
        frames::accepted(&text, self.step)
    }

    async fn say<F: Serialize>(&mut self, frame: &F) -> Result<(), End> {
        let text = Bytes::from(frames::text(frame)?);
        let mut from = 0;
        while from < text.len() {
            let to = text.len().min(from + PIECE_BYTES);
            let data = if from == 0 { Data::Text } else { Data::Continue };
            let fragment = Frame::message(text.slice(from..to), OpCode::Data(data), to == text.len());
            self.http.pace(to - from).await;
            self.send(Message::Frame(fragment)).await?;
            from = to;
        }
        self.sent += text.len() as u64;
        Ok(())
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        match timeout(self.http.timeout(), self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.last_words(&error.to_string()).await),
            Err(_) => Err(self.silent(self.http.timeout())),
        }
    }

    async fn hear(&mut self, patience: Duration) -> Result<Utf8Bytes, End> {
        match timeout(patience, self.next_text()).await {
            Ok(heard) => heard,
            Err(_) => Err(self.silent(patience)),
        }
    }

    async fn next_text(&mut self) -> Result<Utf8Bytes, End> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Err(frames::closed(frame.code.into(), &frame.reason, self.step));
                }
                Some(Ok(Message::Close(None))) | None => return Err(self.dropped("closed without a reason")),
                Some(Ok(Message::Binary(_))) => {
                    let words = format!("{} sent something else than text {}", self.host(), self.step);
                    return Err(Failure::new(FailureKind::Unknown, words).into());
                }
                // Answered by the library.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Err(self.dropped(&error.to_string())),
            }
        }
    }

    /// Whoever cannot be written to may have said why before.
    async fn last_words(&mut self, problem: &str) -> End {
        match timeout(FAREWELL, self.next_text()).await {
            Ok(Ok(text)) => frames::nod(&text, self.step).err().unwrap_or_else(|| self.dropped(problem)),
            Ok(Err(end)) => end,
            Err(_) => self.dropped(problem),
        }
    }

    fn dropped(&self, problem: &str) -> End {
        Failure::unreachable(format!("{} dropped the connection {}: {problem}", self.host(), self.step)).into()
    }

    fn silent(&self, patience: Duration) -> End {
        let seconds = patience.as_secs_f32();
        Failure::unreachable(format!("{} was silent for {seconds} s {}", self.host(), self.step)).into()
    }

    fn host(&self) -> &str {
        self.node.host_str().unwrap_or("the node")
    }
}

/// Why the node did not open a WebSocket.
async fn not_switched(http: &Http, response: Response) -> Failure {
    let what = format!("GET {}", response.url());
    let answer = match http.whole(response).await {
        Ok(answer) => answer,
        Err(failure) => return failure,
    };
    let failure = answer.failure(&what);
    let advice = match answer.status {
        StatusCode::BAD_REQUEST if answer.body.to_lowercase().contains("version") => {
            "the node speaks another version of the Smart Transfer Protocol: use push ingest (`url` with https://)"
        }
        StatusCode::BAD_REQUEST | StatusCode::UPGRADE_REQUIRED => {
            "does a proxy in between not pass WebSockets? It must let `Connection: Upgrade` through"
        }
        status if status.is_success() => "that is no node, or one without the Smart Transfer Protocol: check `url`",
        _ => return failure,
    };
    Failure { words: format!("{}; {advice}", failure.words), ..failure }
}
