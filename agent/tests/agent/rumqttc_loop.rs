//! Why a source drives rumqttc's codecs itself: what rumqttc's event loop does with QoS 2, acknowledgements set to manual.
//! When one of these fails the loop has changed, and `agent/src/source` can be looked at again.

use std::time::Duration;

use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Packet, StateError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::PATIENCE;

const CONNACK_SESSION_PRESENT: &[u8] = b"\x20\x02\x01\x00";
const PUBLISH_QOS_2: &[u8] = b"\x34\x06\x00\x01t\x00\x07x";
const PUBREL: &[u8] = b"\x62\x02\x00\x07";
const PUBCOMP: &[u8] = b"\x70\x02\x00\x07";

/// The broker may use the identifier again from then on. Whoever stores the release later loses the next message of it if
/// the process is killed in between.
#[tokio::test]
async fn pubrel_is_completed_before_anybody_could_store_the_release() {
    let (mut broker, mut eventloop, _client) = connected().await;
    broker.write_all(PUBLISH_QOS_2).await.unwrap();
    while !matches!(eventloop.poll().await, Ok(Event::Incoming(Packet::Publish(_)))) {}

    broker.write_all(PUBREL).await.unwrap();
    while !matches!(eventloop.poll().await, Ok(Event::Incoming(Packet::PubRel(_)))) {}

    let mut answer = [0; 4];
    tokio::time::timeout(PATIENCE, broker.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, PUBCOMP, "sent by the loop itself");
}

/// After a restart of the agent that is what every broker sends that had our PUBREC [MQTT-4.4.0-1]: the connection would end
/// at the same place for ever.
#[tokio::test]
async fn a_pubrel_of_an_earlier_process_ends_the_connection() {
    let (mut broker, mut eventloop, _client) = connected().await;

    broker.write_all(PUBREL).await.unwrap();
    let error = loop {
        if let Err(error) = eventloop.poll().await {
            break error;
        }
    };

    assert!(matches!(error, ConnectionError::MqttState(StateError::Unsolicited(7))), "{error}");
}

async fn connected() -> (TcpStream, EventLoop, AsyncClient) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut options = MqttOptions::new("gw", "127.0.0.1", listener.local_addr().unwrap().port());
    options.set_clean_session(false).set_manual_acks(true).set_keep_alive(Duration::from_secs(60));
    let (client, mut eventloop) = AsyncClient::new(options, 10);
    let accept = async {
        let (mut broker, _) = listener.accept().await.unwrap();
        let mut connect = [0; 16];
        broker.read_exact(&mut connect).await.unwrap();
        broker.write_all(CONNACK_SESSION_PRESENT).await.unwrap();
        broker
    };
    let (broker, connack) = tokio::join!(accept, eventloop.poll());
    assert!(matches!(connack, Ok(Event::Incoming(Packet::ConnAck(connack))) if connack.session_present));
    (broker, eventloop, client)
}
