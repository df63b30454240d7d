//! MQTT over a WebSocket: the upgrade, the framing, and what is no MQTT.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper that fails fails its test")]

mod support;

use std::time::Duration;

use forebay_broker::Broker;
use forebay_broker::config::{Limits, ListenerConfig};
use forebay_broker::inbound::Outcome::Stored;
use futures_util::{SinkExt as _, StreamExt as _};
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;

#[tokio::test(start_paused = true)]
async fn a_device_publishes_and_is_answered_in_binary_messages() {
    let (broker, mut storage) = start(Limits::default());
    let mut socket = upgraded(&broker, "mqtt").await.unwrap();
    socket.send(binary(&connect_4("a", 0x02, 0))).await.unwrap();
    assert_eq!(next(&mut socket).await, CONNACK);
    socket.send(binary(&publish_4("t", 1, 1))).await.unwrap();
    storage.answer("publish", Stored).await;
    assert_eq!(next(&mut socket).await, with_id(PUBACK, 1));
    socket.send(binary(DISCONNECT)).await.unwrap();
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(_))) | None));
}

/// [MQTT-6.0.0-2]
#[tokio::test(start_paused = true)]
async fn packets_may_be_split_over_messages_or_share_one() {
    let (broker, mut storage) = start(Limits::default());
    let mut socket = upgraded(&broker, "mqtt").await.unwrap();
    for byte in connect_4("a", 0x02, 0) {
        socket.send(binary(&[byte])).await.unwrap();
    }
    socket.send(binary(&[])).await.unwrap();
    assert_eq!(next(&mut socket).await, CONNACK);
    let many: Vec<u8> = (1..=3).flat_map(|id| publish_4("t", 1, id)).collect();
    socket.send(binary(&many)).await.unwrap();
    let mut answers = Vec::new();
    for _ in 0..3 {
        storage.answer("publish", Stored).await;
    }
    while answers.len() < 12 {
        answers.extend(next(&mut socket).await);
    }
    assert_eq!(answers, (1..=3).flat_map(|id| with_id(PUBACK, id)).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_large_message_arrives_whole() {
    let (broker, mut storage) = start(Limits::default());
    let mut socket = upgraded(&broker, "mqtt").await.unwrap();
    socket.send(binary(&connect_4("a", 0x02, 0))).await.unwrap();
    assert_eq!(next(&mut socket).await, CONNACK);
    let payload = vec![7; 200_000];
    socket.send(binary(&frame(0x30, &[&text("t")[..], &payload].concat()))).await.unwrap();
    assert_eq!(storage.next_publish().await.payload, payload);
}

/// [MQTT-6.0.0-1]
#[tokio::test(start_paused = true)]
async fn a_text_message_ends_the_connection() {
    let (broker, _storage) = start(Limits::default());
    let mut socket = upgraded(&broker, "mqtt").await.unwrap();
    socket.send(binary(&connect_4("a", 0x02, 0))).await.unwrap();
    assert_eq!(next(&mut socket).await, CONNACK);
    socket.send(Message::text("hello")).await.unwrap();
    assert!(!matches!(socket.next().await, Some(Ok(Message::Binary(_)))));
    assert_eq!(broker.stats().connections_open, 0);
}

#[tokio::test(start_paused = true)]
async fn a_ping_of_the_websocket_is_answered() {
    let (broker, _storage) = start(Limits::default());
    let mut socket = upgraded(&broker, "mqtt").await.unwrap();
    socket.send(Message::Ping(b"here?"[..].into())).await.unwrap();
    let answer = socket.next().await.unwrap().unwrap();
    assert_eq!(answer, Message::Pong(b"here?"[..].into()));
}

/// [MQTT-6.0.0-3] [MQTT-6.0.0-4]
#[tokio::test(start_paused = true)]
async fn the_subprotocol_must_be_offered_and_is_answered_with() {
    let (broker, _storage) = start(Limits::default());
    for offered in ["mqtt", "mqttv3.1, mqtt"] {
        upgraded(&broker, offered).await.unwrap();
    }
    for offered in ["", "mqttv3.1", "chat"] {
        let error = upgraded(&broker, offered).await.unwrap_err().to_string();
        assert!(error.contains("400"), "{error}");
    }
    assert_eq!(broker.stats().websocket_upgrades_failed, 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_upgrade_is_counted_and_silence_does_not_last() {
    let (broker, _storage) = start(Limits::default());
    for nonsense in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &connect_4("a", 0x02, 0), &[b'x'; 30_000]] {
        let mut device = dial(&broker);
        device.send(nonsense).await;
        let mut answer = Vec::new();
        let _ = device.socket.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 101"), "{answer:?}");
    }
    let mut slow = dial(&broker);
    slow.send(b"GET /mqtt HTTP/1.1\r\n").await;
    slow.expect_closed().await;
    let stats = broker.stats();
    // What might still become a request is waited for, within the time for CONNECT.
    assert_eq!((stats.websocket_upgrades_failed, stats.connect_timeouts, stats.connections_open), (2, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_message_larger_than_any_packet_ends_the_connection() {
    let (broker, _storage) = start(Limits { packet_bytes_max: 1_024, ..Limits::default() });
    let mut socket = upgraded(&broker, "mqtt").await.unwrap();
    socket.send(binary(&connect_4("a", 0x02, 0))).await.unwrap();
    assert_eq!(next(&mut socket).await, CONNACK);
    let _ = socket.send(binary(&vec![0xC0; 200_000])).await;
    assert!(!matches!(socket.next().await, Some(Ok(Message::Binary(_)))));
    assert_eq!(broker.stats().connections_open, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stranger_may_not_claim_as_much_as_a_client() {
    let (broker, mut storage) = start(Limits::default());
    let claim = message_of(&vec![0xC0; 200_000]);
    let mut stranger = upgraded(&broker, "mqtt").await.unwrap();
    stranger.get_mut().write_all(&claim[..14]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(broker.stats().connections_open, 0);

    let mut client = connected(&broker, 0).await;
    let publish = frame(0x30, &[&text("t")[..], &[7; 200_000]].concat());
    client.get_mut().write_all(&message_of(&publish)).await.unwrap();
    assert_eq!(storage.next_publish().await.payload.len(), 200_000);
}

#[tokio::test(start_paused = true)]
async fn a_connect_as_large_as_it_may_be_comes_in_and_a_large_message_right_behind_it_too() {
    let connect = login(4, "a", "ann", &"secret".repeat(5_000));
    let connect_bytes_max = connect.len() as u32;
    let (broker, mut storage) = start(Limits { connect_bytes_max, ..Limits::default() });
    let mut socket = upgraded(&broker, "mqtt").await.unwrap();
    let publish = frame(0x30, &[&text("t")[..], &[7; 200_000]].concat());
    let both = [message_of(&connect), message_of(&publish)].concat();
    socket.get_mut().write_all(&both).await.unwrap();
    assert_eq!(next(&mut socket).await, CONNACK);
    assert_eq!(storage.next_publish().await.payload.len(), 200_000);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_a_large_message_slowly_is_alive_and_one_that_only_pings_is_not() {
    let (broker, mut storage) = start(Limits::default());
    let mut slow = connected(&broker, 10).await;
    let message = message_of(&frame(0x30, &[&text("t")[..], &[7; 200_000]].concat()));
    for part in message.chunks(message.len() / 40) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        slow.get_mut().write_all(part).await.unwrap();
    }
    assert_eq!(storage.next_publish().await.payload.len(), 200_000);

    let mut pinging = connected(&broker, 10).await;
    for _ in 0..20 {
        let _ = pinging.send(Message::Ping(b"here?"[..].into())).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!((broker.stats().keep_alive_timeouts, broker.stats().connections_open), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_does_not_come_to_its_end_in_time_closes_the_connection() {
    let (broker, _storage) = start(Limits { packet_timeout: Duration::from_secs(60), ..Limits::default() });
    for begun in [1, 3, 7, 2_000] {
        let mut socket = connected(&broker, 0).await;
        let [whole, half] = [message_of(PINGREQ), message_of(&vec![0xC0; 2_000])];
        socket.get_mut().write_all(&[&whole[..], &half[..begun]].concat()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert_eq!(broker.stats().connections_open, 1);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(broker.stats().connections_open, 0);
    }
    assert_eq!(broker.stats().packet_timeouts, 4);
    let _quiet = connected(&broker, 0).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(broker.stats().connections_open, 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_here_of_messages_counts_among_packets_that_are_not_complete() {
    let (broker, mut storage) = start(Limits { partial_bytes_max: 20_000, ..Limits::default() });
    let large = message_of(&frame(0x30, &[&text("t")[..], &[7; 30_000]].concat()));
    let mut first = connected(&broker, 0).await;
    first.get_mut().write_all(&large[..15_000]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut second = connected(&broker, 0).await;
    second.get_mut().write_all(&large[..15_000]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((broker.stats().partial_packets_refused, broker.stats().connections_open), (1, 1));
    first.get_mut().write_all(&large[15_000..]).await.unwrap();
    assert_eq!(storage.next_publish().await.payload.len(), 30_000);
    let mut third = connected(&broker, 0).await;
    third.get_mut().write_all(&large[..15_000]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((broker.stats().partial_packets_refused, broker.stats().connections_open), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_all_at_once_is_not_read_past_the_bound_of_what_is_not_complete() {
    let (broker, _storage) = start(Limits { partial_bytes_max: 20_000, ..Limits::default() });
    let large = message_of(&frame(0x30, &[&text("t")[..], &[7; 200_000]].concat()));
    let mut socket = connected(&broker, 0).await;
    let _ = socket.get_mut().write_all(&large[..190_000]).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((broker.stats().partial_packets_refused, broker.stats().connections_open), (1, 0));
}

async fn connected(broker: &Broker, keep_alive: u16) -> WebSocketStream<DuplexStream> {
    let mut socket = upgraded(broker, "mqtt").await.unwrap();
    let client_id = format!("c{}", fastrand::u32(..));
    socket.send(binary(&connect_4(&client_id, 0x02, keep_alive))).await.unwrap();
    assert_eq!(next(&mut socket).await, CONNACK);
    socket
}

/// The bytes of one masked binary message.
fn message_of(payload: &[u8]) -> Vec<u8> {
    let length = match payload.len() {
        0..126 => vec![0x80 | payload.len() as u8],
        _ => [&[0xFF][..], &(payload.len() as u64).to_be_bytes()].concat(),
    };
    [&[0x82][..], &length, &[0; 4], payload].concat()
}

fn dial(broker: &Broker) -> Device {
    Device::dial_from(broker, "test", &ListenerConfig { websocket: true, ..ListenerConfig::default() })
}

async fn upgraded(
    broker: &Broker,
    offered: &str,
) -> Result<WebSocketStream<DuplexStream>, tokio_tungstenite::tungstenite::Error> {
    let mut request = "ws://gateway/mqtt".into_client_request().unwrap();
    if !offered.is_empty() {
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_str(offered).unwrap());
    }
    let (socket, response) = tokio_tungstenite::client_async(request, dial(broker).socket).await?;
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "mqtt");
    Ok(socket)
}

fn binary(bytes: &[u8]) -> Message {
    Message::Binary(bytes.to_vec().into())
}

async fn next(socket: &mut WebSocketStream<DuplexStream>) -> Vec<u8> {
    match socket.next().await {
        Some(Ok(Message::Binary(bytes))) => bytes.to_vec(),
        other => panic!("{other:?}"),
    }
}
