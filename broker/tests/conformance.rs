//! One test per normative statement that concerns this crate's behaviour. Numbers are those of MQTT 5.0, and of 3.1.1
//! where the name says so. What concerns bytes alone is tested with the codec.

mod support;

use std::num::NonZeroU16;
use std::time::Duration;

use forebay_broker::StoredSession;
use forebay_broker::config::Limits;
use forebay_broker::inbound::{Inbound, Outcome};
use forebay_broker::packet::PacketId;
use support::*;

use Outcome::{Refused, Stored, Unavailable};
use forebay_broker::inbound::Refusal::NotAuthorized;

/// The first packet must be a CONNECT; otherwise the connection is closed without a word.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_0_1_first_packet_is_connect() {
    let (broker, _storage) = start(Limits::default());
    for first in [publish_4("t", 1, 1), PINGREQ.to_vec(), with_id(PUBREL, 1)] {
        let mut device = Device::dial(&broker);
        device.send(&first).await;
        device.expect_closed().await;
    }
}

/// A second CONNECT is a protocol error.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_0_2_second_connect_closes() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&connect_5("a", 0x02, 0, &[])).await;
    device.expect_disconnect_5(0x82).await;
    let mut device = Device::connected_4(&broker, "b").await;
    device.send(&connect_4("b", 0x02, 0)).await;
    device.expect_closed().await;
}

/// An unsupported protocol level is answered with 0x01.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_1_3_1_2_2_unsupported_level_is_refused() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&frame(0x10, b"\0\x06MQIsdp\x03\x02\0\0\0\x01a")).await;
    device.expect(&[0x20, 2, 0, 1]).await;
    device.expect_closed().await;
}

/// Clean Start discards the session that is there, durably, before the CONNACK.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_4_clean_start_discards_the_session() {
    let (broker, mut storage) = start_with_session("a", 60);
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x02, 0, &[])).await;
    let close = storage.next().await;
    assert_eq!(kind_of(&close), "close");
    device.expect_nothing().await;
    resolve(close, Stored);
    assert!(!device.expect_connack_5(0x00).await.0);
    device.send(&publish_5("t", 2, 7, &[])).await;
    storage.answer("publish", Stored).await;
}

/// Without Clean Start the session that is there is resumed, and its QoS 2 messages are known.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_5_session_is_resumed() {
    let (broker, mut storage) = start_with_session("a", 60);
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0, 0, &session_expiry(60))).await;
    assert!(device.expect_connack_5(0x00).await.0);
    device.send(&publish_5("t", 2, 7, &[])).await;
    device.expect(&with_id(PUBREC, 7)).await;
    storage.expect_nothing().await;
}

/// Without a session to resume, a new one is created: durably, before the CONNACK.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_6_session_is_created() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0, 0, &session_expiry(60))).await;
    let open = storage.next().await;
    assert!(matches!(open, Inbound::OpenSession { expiry_secs: 60, .. }));
    device.expect_nothing().await;
    resolve(open, Stored);
    assert!(!device.expect_connack_5(0x00).await.0);
}

/// The Will Message is published when the connection ends without DISCONNECT.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_8_will_is_published() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x06, 0)).await;
    device.expect(CONNACK).await;
    drop(device);
    let will = storage.next_publish().await;
    assert_eq!((will.topic.as_str(), &will.payload[..], will.will), ("w", &b"gone"[..], true));
}

/// The Will Message is removed by DISCONNECT.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_10_disconnect_removes_the_will() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x06, 0)).await;
    device.expect(CONNACK).await;
    device.send(DISCONNECT).await;
    device.expect_closed().await;
    storage.expect_nothing().await;
}

/// After 1.5 times the Keep Alive without a packet the connection is closed; 0 turns that off.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_22_keep_alive() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x02, 10, &[])).await;
    device.expect_connack_5(0x00).await;
    let mut silent = Device::connected_4(&broker, "b").await;
    tokio::time::sleep(Duration::from_secs(14)).await;
    device.send(PINGREQ).await;
    device.expect(PINGRESP).await;
    tokio::time::sleep(Duration::from_secs(14)).await;
    device.expect_nothing().await;
    device.expect_disconnect_5(0x8D).await;
    silent.send(PINGREQ).await;
    silent.expect(PINGRESP).await;
}

/// A Client Identifier that the server does not accept is refused with 0x85 (3.1.1: 0x02).
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_8_client_identifier_not_valid() {
    let (broker, _storage) = start(Limits { client_id_bytes_max: 4, ..Limits::default() });
    let mut device = Device::dial(&broker);
    device.send(&connect_5("abcde", 0x02, 0, &[])).await;
    device.expect_connack_5(0x85).await;
    device.expect_closed().await;
    let mut device = Device::dial(&broker);
    device.send(&connect_4("abcde", 0x02, 0)).await;
    device.expect(&[0x20, 2, 0, 2]).await;
}

/// An empty Client Identifier is assigned by the server, which says so.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_6_and_7_empty_client_identifier_is_assigned() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_5("", 0x02, 0, &[])).await;
    let (_, properties) = device.expect_connack_5(0x00).await;
    let at = properties.windows(5).position(|bytes| bytes == b"auto-").expect("an assigned identifier");
    assert_eq!(properties[at - 3], 0x12);
    device.send(&publish_5("t", 0, 0, &[])).await;
    let assigned = std::str::from_utf8(&properties[at..at + 21]).unwrap();
    assert_eq!(&*storage.next_publish().await.client_id, assigned);
}

/// 3.1.1: an empty Client Identifier needs Clean Session, else 0x02.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_1_3_1_3_8_empty_client_identifier_needs_clean_session() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_4("", 0x00, 0)).await;
    device.expect(&[0x20, 2, 0, 2]).await;
    device.expect_closed().await;
    Device::connected_4(&broker, "").await;
}

/// The Will is not published when the session is resumed before the Will Delay Interval is over; else it is, then.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_9_will_delay() {
    let (broker, mut storage) = start(Limits::default());
    let will_delay = [0x18, 0, 0, 0, 30];
    let connect = connect_5_with_will("a", 0x04, 0, &session_expiry(60), &will_delay);
    let mut device = Device::dial(&broker);
    device.send(&connect).await;
    storage.answer("open", Stored).await;
    device.expect_connack_5(0x00).await;
    drop(device);
    tokio::time::sleep(Duration::from_secs(29)).await;
    let mut device = Device::dial(&broker);
    device.send(&connect).await;
    device.expect_connack_5(0x00).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    storage.expect_nothing().await;
    drop(device);
    tokio::time::sleep(Duration::from_secs(29)).await;
    storage.expect_nothing().await;
    assert!(storage.next_publish().await.will);
}

/// A CONNECT that breaks a rule is answered, where the version has an answer, and closed.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_4_1_malformed_connect_is_refused() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x03, 0, &[])).await; // reserved flag
    device.expect_connack_5(0x81).await;
    device.expect_closed().await;
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x03, 0)).await;
    device.expect_closed().await;
}

/// A second connection with the Client Identifier takes the session over; the first is told so.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_4_3_takeover() {
    let (broker, mut storage) = start_with_session("a", 60);
    let connect = connect_5("a", 0x00, 0, &session_expiry(60));
    let mut first = Device::dial(&broker);
    first.send(&connect).await;
    first.expect_connack_5(0x00).await;
    first.send(&publish_5("t", 2, 8, &[])).await;
    let in_flight = storage.next().await;
    let mut second = Device::dial(&broker);
    second.send(&connect).await;
    first.expect_disconnect_5(0x8E).await;
    second.expect_nothing().await; // the outcome of the first decides what the second resumes
    resolve(in_flight, Stored);
    assert!(second.expect_connack_5(0x00).await.0);
    second.send(&publish_5("t", 2, 8, &[])).await;
    second.expect(&with_id(PUBREC, 8)).await;
    storage.expect_nothing().await;
}

/// A client may send before the CONNACK; what it sent is processed after it.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_4_5_packets_before_connack() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&[connect_4("a", 0x00, 0), publish_4("t", 1, 1)].concat()).await;
    storage.answer("open", Stored).await;
    device.expect(CONNACK).await;
    storage.answer("publish", Stored).await;
    device.expect(&with_id(PUBACK, 1)).await;
}

/// CONNACK is the first packet that a server sends, and comes after storage knows the session, or says 0x88.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_0_1_connack_first() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x00, 0, &session_expiry(60))).await;
    storage.answer("open", Unavailable).await;
    device.expect_connack_5(0x88).await;
    device.expect_closed().await;
}

/// 3.1.1: Clean Session 0 and a stored session is Session Present 1, also after a restart.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_1_3_2_2_2_session_present() {
    let (broker, mut storage) = start_with_session("a", Limits::default().session_expiry_secs_max);
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x00, 0)).await;
    device.expect(CONNACK_PRESENT).await;
    device.send(&with_id(PUBREL, 7)).await;
    storage.answer("release", Stored).await;
    device.expect(&with_id(PUBCOMP, 7)).await;
}

/// A Session Expiry Interval other than the one asked for is told to the client.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_11_2_session_expiry_is_capped_and_told() {
    let (broker, storage) = start(Limits { session_expiry_secs_max: 9, ..Limits::default() });
    storage.store_all();
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x00, 0, &session_expiry(u32::MAX))).await;
    let (_, properties) = device.expect_connack_5(0x00).await;
    assert!(properties.windows(5).any(|bytes| bytes == session_expiry(9)), "{properties:02x?}");
}

/// A Server Keep Alive replaces the client's.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_2_21_server_keep_alive() {
    let (broker, _storage) = start(Limits { keep_alive_secs_max: 10, ..Limits::default() });
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x02, 0, &[])).await;
    let (_, properties) = device.expect_connack_5(0x00).await;
    assert!(properties.windows(3).any(|bytes| bytes == [0x13, 0, 10]), "{properties:02x?}");
    device.expect_disconnect_5(0x8D).await;
}

/// A session ends when its expiry is over, and storage is told.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_23_session_is_kept_until_it_expires() {
    let (_broker, mut storage) = start_with_session("a", 60);
    tokio::time::sleep(Duration::from_secs(59)).await;
    storage.expect_nothing().await;
    storage.answer("close", Stored).await;
}

/// Topic Alias 0 or above the maximum is 0x94.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_2_8_and_9_topic_alias_invalid() {
    let (broker, _storage) = start(Limits::default());
    for alias in [0, 33] {
        let mut device = Device::connected_5(&broker, "a").await;
        device.send(&publish_5("t", 0, 0, &[0x23, 0, alias])).await;
        device.expect_disconnect_5(0x94).await;
    }
}

/// A Topic Alias stands for its Topic Name on this connection.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_2_12_topic_alias_mapping() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&publish_5("a/b", 0, 0, &[0x23, 0, 32])).await;
    device.send(&publish_5("", 0, 0, &[0x23, 0, 32])).await;
    assert_eq!(storage.next_publish().await.topic.as_str(), "a/b");
    assert_eq!(storage.next_publish().await.topic.as_str(), "a/b");
}

/// More unacknowledged PUBLISH than the Receive Maximum is 0x93.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_4_9_receive_maximum() {
    let receive_maximum = NonZeroU16::new(2).unwrap();
    let (broker, _storage) = start(Limits { receive_maximum, ..Limits::default() });
    let mut device = Device::connected_5(&broker, "a").await;
    for id in 1..=3 {
        device.send(&publish_5("t", 1, id, &[])).await;
    }
    device.expect_disconnect_5(0x93).await;
}

/// 3.1.1 has no Receive Maximum: the server stops reading.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_1_4_4_too_many_unacknowledged_are_not_read() {
    let receive_maximum = NonZeroU16::new(2).unwrap();
    let (broker, mut storage) = start(Limits { receive_maximum, ..Limits::default() });
    let mut device = Device::connected_4(&broker, "a").await;
    for id in 1..=3 {
        device.send(&publish_4("t", 1, id)).await;
    }
    let first = storage.next().await;
    let _second = storage.next().await;
    storage.expect_nothing().await;
    resolve(first, Stored);
    device.expect(&with_id(PUBACK, 1)).await;
    storage.next_publish().await;
}

/// QoS 0 is not answered.
#[tokio::test(start_paused = true)]
async fn mqtt_4_3_1_qos_0_is_not_answered() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(&publish_4("t", 0, 0)).await;
    storage.answer("publish", Stored).await;
    device.expect_nothing().await;
}

/// PUBACK comes when the receiver has taken ownership: after the outcome, with its reason.
#[tokio::test(start_paused = true)]
async fn mqtt_4_3_2_4_puback_after_ownership() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&[publish_5("t", 1, 1, &[]), publish_5("t", 1, 2, &[])].concat()).await;
    let (first, second) = (storage.next().await, storage.next().await);
    device.expect_nothing().await;
    resolve(first, Stored);
    device.expect(&with_id(PUBACK, 1)).await;
    resolve(second, Refused(NotAuthorized));
    device.expect(&with_reason(PUBACK, 2, 0x87)).await;
}

/// PUBREC comes when the receiver has taken ownership, PUBCOMP when the identifier is forgotten.
#[tokio::test(start_paused = true)]
async fn mqtt_4_3_3_8_and_11_pubrec_and_pubcomp() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(&publish_4("t", 2, 1)).await;
    let publish = storage.next_publish().await;
    assert_eq!(publish.packet_id, PacketId::new(1));
    device.expect_nothing().await;
    publish.ticket.resolve(Stored);
    device.expect(&with_id(PUBREC, 1)).await;
    device.send(&with_id(PUBREL, 1)).await;
    let release = storage.next().await;
    device.expect_nothing().await;
    resolve(release, Stored);
    device.expect(&with_id(PUBCOMP, 1)).await;
}

/// A PUBREC of 0x80 or more ends the delivery: the identifier may be used again.
#[tokio::test(start_paused = true)]
async fn mqtt_4_3_3_9_refused_qos_2_frees_the_identifier() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&publish_5("t", 2, 1, &[])).await;
    storage.answer("publish", Refused(NotAuthorized)).await;
    device.expect(&with_reason(PUBREC, 1, 0x87)).await;
    device.send(&publish_5("t", 2, 1, &[])).await;
    storage.answer("publish", Stored).await;
    device.expect(&with_id(PUBREC, 1)).await;
}

/// Until PUBREL the same identifier is the same message; after PUBCOMP it is a new one.
#[tokio::test(start_paused = true)]
async fn mqtt_4_3_3_10_and_12_repeated_qos_2() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(&publish_4("t", 2, 1)).await;
    storage.answer("publish", Stored).await;
    device.expect(&with_id(PUBREC, 1)).await;
    device.send(&publish_4("t", 2, 1)).await;
    device.expect(&with_id(PUBREC, 1)).await;
    device.send(&with_id(PUBREL, 1)).await;
    storage.answer("release", Stored).await;
    device.expect(&with_id(PUBCOMP, 1)).await;
    device.send(&publish_4("t", 2, 1)).await;
    storage.answer("publish", Stored).await;
}

/// PUBCOMP for an identifier that is not known says so in 5.0.
#[tokio::test(start_paused = true)]
async fn mqtt_3_7_2_1_pubcomp_of_an_unknown_identifier() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&with_id(PUBREL, 9)).await;
    device.expect(&with_reason(PUBCOMP, 9, 0x92)).await;
    let mut device = Device::connected_4(&broker, "b").await;
    device.send(&with_id(PUBREL, 9)).await;
    device.expect(&with_id(PUBCOMP, 9)).await;
}

/// PUBACK and PUBREC go in the order of the PUBLISHes, whatever the order of the outcomes.
#[tokio::test(start_paused = true)]
async fn mqtt_4_6_0_2_and_3_order_of_acknowledgements() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(&[publish_4("t", 1, 9), publish_4("t", 2, 4), publish_4("t", 1, 6)].concat()).await;
    let (first, second, third) = (storage.next().await, storage.next().await, storage.next().await);
    resolve(third, Stored);
    resolve(second, Stored);
    device.expect_nothing().await;
    resolve(first, Stored);
    device.expect(&[with_id(PUBACK, 9), with_id(PUBREC, 4), with_id(PUBACK, 6)].concat()).await;
}

/// SUBSCRIBE is answered with its identifier and a code per filter: 0x87, in 3.1.1 0x80.
#[tokio::test(start_paused = true)]
async fn mqtt_3_8_4_1_to_6_subscribe_is_refused() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&frame(0x82, b"\0\x0A\0\0\x01#\0\0\x03a/+\x01")).await;
    device.expect(&[0x90, 5, 0, 10, 0, 0x87, 0x87]).await;
    let mut device = Device::connected_4(&broker, "b").await;
    device.send(&frame(0x82, b"\0\x0A\0\x01#\0\0\x03a/+\x01")).await;
    device.expect(&[0x90, 4, 0, 10, 0x80, 0x80]).await;
}

/// UNSUBSCRIBE is answered although nothing is subscribed.
#[tokio::test(start_paused = true)]
async fn mqtt_3_10_4_4_unsubscribe_is_answered() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&frame(0xA2, b"\0\x0A\0\0\x01#")).await;
    device.expect(&[0xB0, 4, 0, 10, 0, 0x11]).await;
    let mut device = Device::connected_4(&broker, "b").await;
    device.send(&frame(0xA2, b"\0\x0A\0\x01#")).await;
    device.expect(&[0xB0, 2, 0, 10]).await;
}

/// PINGREQ is answered.
#[tokio::test(start_paused = true)]
async fn mqtt_3_12_4_1_pingresp() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(PINGREQ).await;
    device.expect(PINGRESP).await;
}

/// DISCONNECT 0x04 publishes the Will.
#[tokio::test(start_paused = true)]
async fn mqtt_3_14_4_disconnect_with_will() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_5_with_will("a", 0x06, 0, &[], &[])).await;
    device.expect_connack_5(0x00).await;
    device.send(&frame(0xE0, &[0x04, 0])).await;
    assert!(storage.next_publish().await.will);
    device.expect_closed().await;
}

/// A Session Expiry Interval of 0 cannot be raised by DISCONNECT.
#[tokio::test(start_paused = true)]
async fn mqtt_3_14_2_2_2_expiry_from_zero_is_a_protocol_error() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&frame(0xE0, &[&[0x00, 5][..], &session_expiry(60)].concat())).await;
    device.expect_disconnect_5(0x82).await;
}

/// Enhanced authentication is not offered: 0x8C, and AUTH is a protocol error.
#[tokio::test(start_paused = true)]
async fn mqtt_4_12_0_1_enhanced_authentication_is_refused() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x02, 0, b"\x15\0\x01k")).await;
    device.expect_connack_5(0x8C).await;
    device.expect_closed().await;
    let mut device = Device::connected_5(&broker, "b").await;
    device.send(&[0xF0, 0]).await;
    device.expect_disconnect_5(0x82).await;
}

/// Malformed packets close the connection: with the reason in 5.0.
#[tokio::test(start_paused = true)]
async fn mqtt_4_13_1_1_malformed_packets_close_only_their_connection() {
    let (broker, _storage) = start(Limits { packet_bytes_max: 1_024, ..Limits::default() });
    let mut neighbour = Device::connected_4(&broker, "n").await;
    let cases: [(&[u8], u8); 9] = [
        (b"\x36\x05\0\x01t\0\x01", 0x81), // QoS 3
        (b"\x30\x02\0\x09", 0x81),        // topic runs past the packet
        (b"\x30\x06\0\x03a/#\0", 0x90),   // wildcard
        (b"\x32\x06\0\x01t\0\0\0", 0x82), // Packet Identifier 0
        (b"\xC1\0", 0x81),                // reserved flags
        (b"\x00\0", 0x81),                // reserved packet type
        (b"\x20\x02\0\0", 0x82),          // CONNACK: the wrong direction
        (b"\x30\xFF\xFF\xFF\xFF", 0x81),  // length of five bytes
        (b"\x30\xFF\xFF\x7F", 0x95),      // larger than allowed, known from four bytes
    ];
    for (bytes, reason) in cases {
        let mut device = Device::connected_5(&broker, "five").await;
        device.send(bytes).await;
        device.expect_disconnect_5(reason).await;
        let mut device = Device::connected_4(&broker, "four").await;
        device.send(bytes).await;
        device.expect_closed().await;
    }
    let mut device = Device::connected_4(&broker, "truncated").await;
    device.send(b"\x30\x10\0\x01").await;
    drop(device);
    neighbour.send(PINGREQ).await;
    neighbour.expect(PINGRESP).await;
    assert_eq!(broker.stats().malformed, 18);
}

/// A message that cannot be stored now is not acknowledged: 0x97, and the client keeps it.
#[tokio::test(start_paused = true)]
async fn mqtt_4_13_2_quota_exceeded_closes_without_acknowledgement() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&publish_5("t", 1, 1, &[])).await;
    storage.answer("publish", Unavailable).await;
    device.expect_disconnect_5(0x97).await;
    let mut device = Device::connected_4(&broker, "b").await;
    device.send(&publish_4("t", 1, 1)).await;
    drop(storage); // nobody stores any more: the same
    device.expect_closed().await;
}

/// 3.1.1 cannot be told why a message is refused: the connection is closed.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_1_3_3_5_2_refused_publish_closes() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(&publish_4("t", 1, 1)).await;
    let publish = storage.next_publish().await;
    assert!(!publish.can_be_told);
    publish.ticket.resolve(Refused(NotAuthorized));
    device.expect_closed().await;
}

/// A broker whose storage remembers a session of this client, with Packet Identifier 7.
fn start_with_session(client_id: &str, expiry_secs: u32) -> (forebay_broker::Broker, Storage) {
    let packet_ids = vec![PacketId::new(7).expect("not zero")];
    restart(Limits::default(), vec![StoredSession { client_id: client_id.into(), expiry_secs, packet_ids }])
}
