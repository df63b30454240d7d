//! MQTT over WebSocket: section 6 has the same statements in 3.1.1 and 5.0, so each test runs a client of each.

use forebay_broker::Broker;
use forebay_broker::config::{Limits, ListenerConfig};
use forebay_broker::inbound::Outcome::Stored;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::DuplexStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::http::{HeaderValue, header};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::*;

/// Answers come in binary frames. A text frame ends the connection, even with a CONNECT in it that would be valid.
#[tokio::test(start_paused = true)]
async fn mqtt_6_0_0_1_packets_are_in_binary_frames() {
    let (broker, mut storage) = start(Limits::default());
    for version in [4, 5] {
        let mut client = connected(&broker, version).await;
        client.send(Message::binary(PINGREQ)).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(PINGRESP));
        let publish = String::from_utf8(publish(version, 0, 0)).expect("ASCII");
        client.send(Message::text(publish)).await.unwrap();
        expect_closed(&mut client).await;
        storage.expect_nothing().await;

        let (mut client, _) = dial(&broker, Some("mqtt")).await.unwrap();
        client.send(Message::text(String::from_utf8(connect(version)).expect("ASCII"))).await.unwrap();
        expect_closed(&mut client).await;
    }
}

/// Several packets in one frame, and a packet in as many frames as it has bytes.
#[tokio::test(start_paused = true)]
async fn mqtt_6_0_0_2_packets_are_not_aligned_to_frames() {
    let (broker, mut storage) = start(Limits::default());
    for version in [4, 5] {
        let mut client = connected(&broker, version).await;
        client.send(Message::binary([publish(version, 1, 1), publish(version, 1, 2)].concat())).await.unwrap();
        for byte in publish(version, 1, 3) {
            client.send(Message::binary(vec![byte])).await.unwrap();
        }
        let mut acknowledged = Vec::new();
        for packet_id in 1..=3 {
            storage.answer("publish", Stored).await;
            acknowledged.extend(with_id(PUBACK, packet_id));
        }
        assert_eq!(receive(&mut client, acknowledged.len()).await, acknowledged);
    }
}

/// A client that does not offer `mqtt` gets 400.
#[tokio::test(start_paused = true)]
async fn mqtt_6_0_0_3_the_client_must_offer_mqtt() {
    let (broker, _storage) = start(Limits::default());
    for offered in [None, Some("chat"), Some("mqttv3.1")] {
        let answer = dial(&broker, offered).await;
        assert!(matches!(&answer, Err(Error::Http(response)) if response.status() == 400), "{offered:?}: {answer:?}");
    }
    assert!(dial(&broker, Some("chat, mqtt")).await.is_ok());
}

/// The server selects `mqtt`, whatever else is offered.
#[tokio::test(start_paused = true)]
async fn mqtt_6_0_0_4_the_server_selects_mqtt() {
    let (broker, _storage) = start(Limits::default());
    for offered in ["mqtt", "mqttv3.1, mqtt", "mqtt, chat"] {
        let (_, response) = dial(&broker, Some(offered)).await.unwrap();
        let selected: Vec<_> = response.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().collect();
        assert_eq!(selected, ["mqtt"]);
    }
}

type Client = WebSocketStream<DuplexStream>;

/// Asks for an upgrade, with these subprotocols.
async fn dial(broker: &Broker, subprotocols: Option<&'static str>) -> Result<(Client, Response), Error> {
    let (socket, server) = tokio::io::duplex(64 * 1024);
    let broker = broker.clone();
    let config = ListenerConfig { websocket: true, ..ListenerConfig::default() };
    tokio::spawn(async move { broker.serve_as(server, "test", &config).await });
    let mut request = "ws://gateway/mqtt".into_client_request()?;
    if let Some(subprotocols) = subprotocols {
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocols));
    }
    tokio_tungstenite::client_async(request, socket).await
}

async fn connected(broker: &Broker, version: u8) -> Client {
    let (mut client, _) = dial(broker, Some("mqtt")).await.expect("an upgrade");
    client.send(Message::binary(connect(version))).await.expect("an open connection");
    let connack = receive(&mut client, 4).await;
    assert_eq!((connack[0], connack[3]), (0x20, 0x00), "{connack:02x?}");
    client
}

/// At least so many bytes, in however many binary frames.
async fn receive(client: &mut Client, bytes: usize) -> Vec<u8> {
    let mut received = Vec::new();
    while received.len() < bytes {
        let message = client.next().await.expect("a message").expect("an open connection");
        assert!(message.is_binary(), "{message:?}");
        received.extend_from_slice(&message.into_data());
    }
    received
}

/// The end, without another message.
async fn expect_closed(client: &mut Client) {
    let end = client.next().await;
    assert!(matches!(end, None | Some(Err(_) | Ok(Message::Close(_)))), "{end:?}");
}

fn connect(version: u8) -> Vec<u8> {
    if version == 5 { connect_5("a", 0x02, 0, &[]) } else { connect_4("a", 0x02, 0) }
}

fn publish(version: u8, qos: u8, packet_id: u16) -> Vec<u8> {
    if version == 5 { publish_5("t", qos, packet_id, &[]) } else { publish_4("t", qos, packet_id) }
}
