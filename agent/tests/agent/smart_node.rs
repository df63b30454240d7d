//! A node that takes one push as it is told to, and writes down what it saw.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

/// What the node does other than take the push.
#[derive(Clone, Default)]
pub(crate) struct Script {
    /// Answers the request to push with this.
    pub(crate) request_answer: Option<String>,
    /// Closes with 1011 and this after the blocks.
    pub(crate) close_after_blocks: Option<String>,
    /// Drops the connection after the blocks.
    pub(crate) drop_after_blocks: bool,
    /// Says SkipUpload to every slice.
    pub(crate) has_slices: bool,
    /// Gives upload URLs of this host.
    pub(crate) store: Option<SocketAddr>,
    /// Asks for progress so often before it answers an upload.
    pub(crate) questions: usize,
    /// Asks once more when it hears that the uploads are complete.
    pub(crate) asks_too_late: bool,
    /// Consents, and has another head.
    pub(crate) lies: bool,
    /// Answers every request with this status and body.
    pub(crate) refusal: Option<(u16, String)>,
    /// Answers with a wrong Sec-WebSocket-Accept.
    pub(crate) wrong_accept: bool,
}

/// The node, until the test ends.
pub(crate) struct Node {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    script: Script,
    head: Mutex<Option<String>>,
    seen: Mutex<Seen>,
    may_put: Notify,
}

/// What the node saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Text frames, in order.
    pub(crate) texts: Vec<String>,
    /// Pings and everything else that is neither text nor close.
    pub(crate) others: usize,
    /// Code of the close frame.
    pub(crate) close: Option<u16>,
    /// Uploads by path.
    pub(crate) puts: BTreeMap<String, Vec<u8>>,
    /// Heads of all requests, as they came.
    pub(crate) requests: Vec<String>,
}

struct HttpRequest {
    head: String,
    body: Vec<u8>,
}

type Socket = WebSocketStream<TcpStream>;

impl Node {
    pub(crate) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { script, head: Mutex::default(), seen: Mutex::default(), may_put: Notify::new() });
        let node = Self { address, state: Arc::clone(&state) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, address, Arc::clone(&state)));
            }
        });
        node
    }

    pub(crate) fn seen(&self) -> Seen {
        self.state.seen.lock().unwrap().clone()
    }

    pub(crate) fn head(&self) -> Option<String> {
        self.state.head.lock().unwrap().clone()
    }
}

impl HttpRequest {
    async fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut request = Self { head, body: bytes[end..].to_vec() };
        let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
        while request.body.len() < length {
            if stream.read_buf(&mut request.body).await.ok()? == 0 {
                return None;
            }
        }
        Some(request)
    }

    fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}:")))?;
        Some(line.split_once(':')?.1.trim())
    }

    fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }
}

async fn serve(mut stream: TcpStream, address: SocketAddr, state: Arc<State>) {
    let Some(request) = HttpRequest::read(&mut stream).await else { return };
    state.seen.lock().unwrap().requests.push(request.head.clone());
    if let Some((status, body)) = &state.script.refusal {
        return answer(&mut stream, *status, body).await;
    }
    match request.path() {
        path if path.ends_with("/refs/head") => {
            let head = state.head.lock().unwrap().clone();
            match head {
                Some(head) => answer(&mut stream, 200, &head).await,
                None => answer(&mut stream, 404, "").await,
            }
        }
        path if path.ends_with("/push") => {
            let key = request.header("sec-websocket-key").unwrap();
            let accept = derive_accept_key(if state.script.wrong_accept { b"another" } else { key.as_bytes() });
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
            let _ = converse(&mut socket, address, &state).await;
        }
        path => {
            if state.script.questions > 0 {
                state.may_put.notified().await;
                state.may_put.notify_one();
            }
            state.seen.lock().unwrap().puts.insert(path.to_owned(), request.body);
            answer(&mut stream, 200, "").await;
        }
    }
}

async fn answer(stream: &mut TcpStream, status: u16, body: &str) {
    let length = body.len();
    let text = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    let _ = stream.write_all(text.as_bytes()).await;
}

async fn converse(socket: &mut Socket, address: SocketAddr, state: &State) -> Option<()> {
    let script = &state.script;
    hear(socket, state).await?;
    say(socket, script.request_answer.as_deref().unwrap_or(r#"{"Ok":{}}"#)).await?;
    let blocks = hear(socket, state).await?;
    assert_eq!(blocks["new_blocks"]["encoding"], "raw");
    if script.drop_after_blocks {
        return None;
    }
    if let Some(reason) = &script.close_after_blocks {
        let frame = CloseFrame { code: 1011.into(), reason: reason.as_str().into() };
        socket.send(Message::Close(Some(frame))).await.ok()?;
        return hear(socket, state).await.map(drop);
    }
    say(socket, r#"{"Ok":{}}"#).await?;
    let objects = hear(socket, state).await?;
    say(socket, &strategies(&objects, address, script).to_string()).await?;
    for _ in 0..script.questions {
        say(socket, "{}").await?;
        hear(socket, state).await?;
    }
    state.may_put.notify_one();
    while hear(socket, state).await?["details"] != "Complete" {}
    if script.asks_too_late {
        say(socket, "{}").await?;
    }
    hear(socket, state).await?;
    if !script.lies {
        *state.head.lock().unwrap() = Some(newest(&blocks));
    }
    say(socket, "{}").await?;
    if script.lies {
        return None;
    }
    hear(socket, state).await.map(drop)
}

async fn hear(socket: &mut Socket, state: &State) -> Option<Value> {
    loop {
        match socket.next().await?.ok()? {
            Message::Text(text) => {
                state.seen.lock().unwrap().texts.push(text.to_string());
                return Some(serde_json::from_str(&text).unwrap());
            }
            Message::Close(frame) => {
                state.seen.lock().unwrap().close = frame.map(|frame| frame.code.into());
                return None;
            }
            _ => state.seen.lock().unwrap().others += 1,
        }
    }
}

async fn say(socket: &mut Socket, text: &str) -> Option<()> {
    socket.send(Message::text(text)).await.ok()
}

fn strategies(objects: &Value, address: SocketAddr, script: &Script) -> Value {
    let host = script.store.unwrap_or(address);
    let strategy = |object: &Value| {
        if script.has_slices {
            return json!({"object_file": object, "push_strategy": "SkipUpload", "upload_to": null});
        }
        let hash = object["physical_hash"].as_str().unwrap();
        let url = format!("http://{host}/edge/readings/data/{hash}?signature=x");
        let headers = json!([{"name": "x-odf-smtp-version", "value": "1"}]);
        let place = json!({"url": url, "headers": headers, "expires_at": null});
        json!({"object_file": object, "push_strategy": "HttpUpload", "upload_to": place})
    };
    let strategies: Vec<Value> = objects["object_files"].as_array().unwrap().iter().map(strategy).collect();
    json!({"Ok": {"object_transfer_strategies": strategies}})
}

/// Name of the last entry of the archive.
fn newest(blocks: &Value) -> String {
    let payload: Vec<u8> = serde_json::from_value(blocks["new_blocks"]["payload"].clone()).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&*payload));
    let last = archive.entries().unwrap().last().unwrap().unwrap();
    last.path().unwrap().to_str().unwrap().to_owned()
}
