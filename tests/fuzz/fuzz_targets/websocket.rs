//! A stranger at a WebSocket listener: the request to upgrade, the frames, and MQTT behind them.
//!
//! The first byte picks how the rest reaches the broker: as it is; behind a request that is right, as frames; or behind
//! that as MQTT in right frames of sizes that the input picks. Whatever comes, nothing panics, the connection ends once the
//! stranger has closed it, and without a right request there is no 101.
#![no_main]

use std::time::Duration;

use forebay_broker::Broker;
use forebay_broker::config::{Limits, ListenerConfig};
use forebay_broker::inbound::{Inbound, Outcome};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const REQUEST: &[u8] = b"GET /mqtt HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";
/// Longer than every timeout of the broker; time is not real here.
const PATIENCE: Duration = Duration::from_secs(3_600);

fuzz_target!(|data: &[u8]| {
    let Some((&mode, rest)) = data.split_first() else { return };
    // A client waits for the answer to its request before it sends frames [RFC 6455, 4.1].
    let (request, sent) = match mode % 3 {
        0 => (rest, Vec::new()),
        1 => (REQUEST, rest.to_vec()),
        _ => (REQUEST, in_frames(rest)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let answer = runtime.expect("a runtime").block_on(answer(request.to_vec(), sent));
    let is_upgraded = answer.starts_with(b"HTTP/1.1 101");
    if mode % 3 == 0 {
        let text = rest.to_ascii_lowercase();
        let asks = text.windows(13).any(|words| words == b"sec-websocket");
        assert!(asks || !is_upgraded, "nobody asked for it");
    } else {
        assert!(is_upgraded, "{}", String::from_utf8_lossy(&answer));
    }
});

/// Binary frames of a client, each as long as the byte before it says.
fn in_frames(mut bytes: &[u8]) -> Vec<u8> {
    let mut frames = Vec::new();
    while let Some((&length, rest)) = bytes.split_first() {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(length % 126)));
        frames.extend([0x82, 0x80 | payload.len() as u8, 0, 0, 0, 0]);
        frames.extend_from_slice(payload);
        bytes = rest;
    }
    frames
}

/// What the broker says to all of it.
async fn answer(request: Vec<u8>, sent: Vec<u8>) -> Vec<u8> {
    let limits = Limits { packet_bytes_max: 4_096, ..Limits::default() };
    let (broker, mut inbound) = Broker::new(limits, Vec::new());
    tokio::spawn(async move {
        while let Some(inbound) = inbound.recv().await {
            match inbound {
                Inbound::Publish(publish) => publish.ticket.resolve(Outcome::Stored),
                Inbound::Release { ticket, .. }
                | Inbound::OpenSession { ticket, .. }
                | Inbound::CloseSession { ticket, .. } => ticket.resolve(Outcome::Stored),
            }
        }
    });
    let (client, server) = tokio::io::duplex(64 * 1024);
    let serving = tokio::spawn(async move {
        let config = ListenerConfig { websocket: true, ..ListenerConfig::default() };
        broker.serve_as(server, "fuzz", &config).await;
    });
    let (mut reader, mut writer) = tokio::io::split(client);
    let mut answer = Vec::new();
    let _ = writer.write_all(&request).await;
    if !sent.is_empty() {
        let head = tokio::time::timeout(PATIENCE, reader.read_buf(&mut answer)).await;
        head.expect("an answer to the request").expect("an open connection");
    }
    let writing = tokio::spawn(async move {
        let _ = writer.write_all(&sent).await;
        let _ = writer.shutdown().await;
    });
    let read = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "the connection does not end");
    let ended = tokio::time::timeout(PATIENCE, serving).await;
    ended.expect("the connection ends").expect("without a panic");
    writing.abort();
    answer
}
