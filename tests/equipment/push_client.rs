//! Smart Transfer Protocol from the pushing side, frame by frame, so that a test may break it anywhere.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use forebay_tests::node::{StubNode, request};
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

/// The chain of `storage/tests/data/odf-edge-sample`: six blocks, two slices.
pub(crate) struct Chain {
    pub(crate) blocks: Vec<(String, Vec<u8>)>,
    pub(crate) slices: Vec<(String, Vec<u8>)>,
}

pub(crate) struct PushClient {
    socket: WebSocket<TcpStream>,
}

impl Chain {
    pub(crate) fn sample() -> Self {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../storage/tests/data/odf-edge-sample");
        let order: Value = serde_json::from_slice(&fs::read(dir.join("order.json")).unwrap()).unwrap();
        let read = |folder: &str, hash: &Value| {
            let hash = hash.as_str().unwrap().to_owned();
            let bytes = fs::read(dir.join(folder).join(&hash)).unwrap();
            (hash, bytes)
        };
        let order = order.as_array().unwrap();
        let slices = order.iter().filter(|entry| entry[1].is_array());
        Self {
            blocks: order.iter().map(|entry| read("blocks", &entry[0])).collect(),
            slices: slices.map(|entry| read("data", &entry[1][0])).collect(),
        }
    }

    pub(crate) fn head(&self) -> &str {
        &self.blocks.last().unwrap().0
    }
}

impl PushClient {
    pub(crate) fn connect(node: &StubNode, path: &str) -> Self {
        let stream = TcpStream::connect(node.addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut request = format!("ws://{}{path}", node.addr()).into_client_request().unwrap();
        let headers = request.headers_mut();
        headers.insert("authorization", format!("Bearer {}", node.token()).parse().unwrap());
        headers.insert("x-odf-smtp-version", "1".parse().unwrap());
        let (socket, _) = tungstenite::client(request, stream).unwrap();
        Self { socket }
    }

    pub(crate) fn send(&mut self, message: &Value) {
        self.socket.send(Message::text(message.to_string())).unwrap();
    }

    pub(crate) fn ping(&mut self) {
        self.socket.send(Message::Ping("?".into())).unwrap();
    }

    /// The next text as JSON; a close as `{"close": code, "reason": ..}`; a lost connection as null.
    pub(crate) fn next(&mut self) -> Value {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return serde_json::from_str(&text).unwrap(),
                Ok(Message::Close(Some(frame))) => {
                    return json!({ "close": u16::from(frame.code), "reason": frame.reason.as_str() });
                }
                Ok(_) => {}
                Err(_) => return Value::Null,
            }
        }
    }

    pub(crate) fn plan(&mut self, head: Option<&str>, blocks: usize) -> Value {
        self.send(&json!({
            "current_head": head,
            "transfer_plan": {
                "num_blocks": blocks, "num_objects": 0, "num_records": 0,
                "bytes_in_raw_blocks": 0, "bytes_in_raw_objects": 0,
            },
            "force_update_if_diverged": false,
            "visibility_for_created_dataset": "Private",
        }));
        self.next()
    }

    pub(crate) fn blocks(&mut self, blocks: &[(String, Vec<u8>)]) {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (hash, bytes) in blocks {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, hash, &bytes[..]).unwrap();
        }
        let mut gzip = tar.into_inner().unwrap();
        gzip.flush().unwrap();
        let payload = gzip.finish().unwrap();
        self.send(&json!({ "new_blocks": {
            "num_blocks": blocks.len(), "media_type": "application/tar+gzip", "encoding": "raw", "payload": payload,
        } }));
    }

    /// Where each slice goes.
    pub(crate) fn objects(&mut self, slices: &[(String, Vec<u8>)]) -> Value {
        let file = |(hash, bytes): &(String, Vec<u8>)| json!({ "object_type": "DataSlice", "physical_hash": hash, "size": bytes.len() });
        let files: Vec<_> = slices.iter().map(file).collect();
        self.send(&json!({ "object_files": files, "is_truncated": false }));
        self.next()
    }

    /// Everything after the plan: the names of the strategies, and the last two answers.
    pub(crate) fn finish(
        &mut self,
        blocks: &[(String, Vec<u8>)],
        slices: &[(String, Vec<u8>)],
    ) -> (Vec<String>, Value, Value) {
        self.blocks(blocks);
        assert_eq!(self.next(), json!({ "Ok": {} }));
        let mut names = Vec::new();
        if !blocks.is_empty() {
            let answer = self.objects(slices);
            let strategies = answer["Ok"]["object_transfer_strategies"].as_array().unwrap();
            for (strategy, (_, bytes)) in strategies.iter().zip(slices) {
                names.push(strategy["push_strategy"].as_str().unwrap().to_owned());
                if let Some(url) = strategy["upload_to"]["url"].as_str() {
                    assert_eq!(upload(url, &strategy["upload_to"]["headers"], bytes), 200);
                }
            }
            self.send(&json!({ "details": "Complete" }));
        }
        self.send(&json!({}));
        (names, self.next(), self.next())
    }
}

fn upload(url: &str, headers: &Value, bytes: &[u8]) -> u16 {
    let (addr, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let headers = headers.as_array().unwrap().iter();
    let headers: Vec<_> = headers.map(|h| (h["name"].as_str().unwrap(), h["value"].as_str().unwrap())).collect();
    request(addr.parse().unwrap(), "PUT", &format!("/{path}"), &headers, bytes).unwrap().status
}
