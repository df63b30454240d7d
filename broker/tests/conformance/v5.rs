//! MQTT 5.0, OASIS Standard, 7 March 2019.

use std::num::NonZeroU16;
use std::time::Duration;

use forebay_broker::Broker;
use forebay_broker::config::Limits;
use forebay_broker::inbound::Inbound;
use forebay_broker::inbound::Outcome::{Refused, Stored, Unavailable};
use forebay_broker::inbound::Refusal::{NoDataset, NotAuthorized, PayloadInvalid};
use forebay_broker::packet::{PacketId, QoS};

use super::*;

/// A string that is not well-formed UTF-8.
#[tokio::test(start_paused = true)]
async fn mqtt_1_5_4_1_ill_formed_utf8_is_malformed() {
    for topic in ILL_FORMED {
        ends_with(&frame(0x30, &[&field(topic)[..], &[0]].concat()), 0x81).await;
    }
}

/// U+0000 in a string.
#[tokio::test(start_paused = true)]
async fn mqtt_1_5_4_2_the_null_character_is_malformed() {
    ends_with(&publish_5("a\0b", 0, 0, &[]), 0x81).await;
}

/// A byte order mark is part of the string.
#[tokio::test(start_paused = true)]
async fn mqtt_1_5_4_3_a_byte_order_mark_is_kept() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&publish_5("\u{FEFF}a", 0, 0, &[])).await;
    assert_eq!(storage.next_publish().await.topic.as_str(), "\u{FEFF}a");
}

/// A Variable Byte Integer with a useless byte: as Remaining Length and as Property Length.
#[tokio::test(start_paused = true)]
async fn mqtt_1_5_5_1_variable_byte_integers_are_minimal() {
    ends_with(b"\xC0\x80\0", 0x81).await;
    ends_with(b"\x30\x05\0\x01t\x80\0", 0x81).await;
}

/// Both strings of a User Property.
#[tokio::test(start_paused = true)]
async fn mqtt_1_5_7_1_both_strings_of_a_pair_are_utf8() {
    for (name, value) in [(&b"\xFF"[..], &b"v"[..]), (b"k", b"\xFF"), (b"\0", b"v"), (b"k", b"\0")] {
        ends_with(&publish_5("t", 0, 0, &[&[0x26][..], &field(name), &field(value)].concat()), 0x81).await;
    }
}

/// Reserved flags of the fixed header.
#[tokio::test(start_paused = true)]
async fn mqtt_2_1_3_1_reserved_flags_are_malformed() {
    for packet in [&b"\xC1\0"[..], b"\xC8\0"] {
        ends_with(packet, 0x81).await;
    }
}

/// After the properties of a QoS 0 PUBLISH comes the payload.
#[tokio::test(start_paused = true)]
async fn mqtt_2_2_1_2_qos_0_has_no_packet_identifier() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&frame(0x30, b"\0\x01t\0\0\x07")).await;
    let publish = storage.next_publish().await;
    assert_eq!((publish.packet_id, &publish.payload[..]), (None, &[0, 7][..]));
}

/// SUBSCRIBE, UNSUBSCRIBE and PUBLISH of QoS 1 and 2 with Packet Identifier 0.
#[tokio::test(start_paused = true)]
async fn mqtt_2_2_1_3_packet_identifier_0_is_a_protocol_error() {
    let subscribe = frame(0x82, b"\0\0\0\0\x01a\0");
    let unsubscribe = frame(0xA2, b"\0\0\0\0\x01a");
    for packet in [publish_5("t", 1, 0, &[]), publish_5("t", 2, 0, &[]), subscribe, unsubscribe] {
        ends_with(&packet, 0x82).await;
    }
}

/// PUBACK, PUBREC and PUBCOMP have the Packet Identifier of the PUBLISH.
#[tokio::test(start_paused = true)]
async fn mqtt_2_2_1_5_acknowledgements_have_the_identifier_of_the_publish() {
    let (broker, storage) = start(Limits::default());
    storage.store_all();
    let mut device = Device::connected_5(&broker, "a").await;
    for id in [1, 0x0102, u16::MAX] {
        device.send(&publish_5("t", 1, id, &[])).await;
        device.expect(&with_id(PUBACK, id)).await;
        device.send(&publish_5("t", 2, id, &[])).await;
        device.expect(&with_id(PUBREC, id)).await;
        device.send(&with_id(PUBREL, id)).await;
        device.expect(&with_id(PUBCOMP, id)).await;
    }
}

/// SUBACK and UNSUBACK have the Packet Identifier of what they answer [MQTT-2.2.1-6] [MQTT-3.8.4-2].
#[tokio::test(start_paused = true)]
async fn mqtt_2_2_1_6_and_3_8_4_2_suback_and_unsuback_have_the_identifier_of_the_request() {
    let mut device = connected().await;
    device.send(&frame(0x82, b"\x12\x34\0\0\x01a\0")).await;
    device.expect(&[0x90, 4, 0x12, 0x34, 0, 0x87]).await;
    device.send(&frame(0xA2, b"\x43\x21\0\0\x01a")).await;
    device.expect(&[0xB0, 4, 0x43, 0x21, 0, 0x11]).await;
}

/// Packets without properties have a Property Length of 0: those we send, and those we take.
#[tokio::test(start_paused = true)]
async fn mqtt_2_2_2_1_no_properties_is_a_length_of_0() {
    ends_with(&frame(0x30, b"\0\x01t"), 0x81).await;
    ends_with(&frame(0x82, b"\0\x01"), 0x81).await;
    let mut device = connected().await;
    device.send(&frame(0x82, b"\0\x01\0\0\x01a\0")).await;
    device.expect(&[0x90, 4, 0, 1, 0, 0x87]).await;
    let (broker, _storage) = start(Limits { client_id_bytes_max: 23, ..Limits::default() });
    let mut device = Device::dial(&broker);
    device.send(&connect_5(&"a".repeat(24), 0x02, 0, &[])).await;
    device.expect(&[0x20, 3, 0, 0x85, 0]).await;
}

/// A first packet other than CONNECT closes the connection without a word.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_0_1_first_packet_is_connect() {
    let (broker, _storage) = start(Limits::default());
    for first in [publish_5("t", 1, 1, &[]), PINGREQ.to_vec(), with_id(PUBREL, 1), vec![0xF0, 0]] {
        let mut device = Device::dial(&broker);
        device.send(&first).await;
        device.expect_closed().await;
    }
}

/// A second CONNECT is a protocol error.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_0_2_second_connect_is_a_protocol_error() {
    ends_with(&connect_5("a", 0x02, 0, &[]), 0x82).await;
}

/// Another Protocol Name is answered in the form of 3.1.1, since nobody knows what it is, and closed.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_1_another_protocol_name_is_refused() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&frame(0x10, b"\0\x04mqtt\x05\x02\0\0\0\0\x01a")).await;
    device.expect(&[0x20, 2, 0, 1]).await;
    device.expect_closed().await;
}

/// Another Protocol Version is answered in the form that older clients understand, and closed.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_2_another_version_is_refused() {
    let (broker, _storage) = start(Limits::default());
    for version in [3, 6] {
        let mut device = Device::dial(&broker);
        device.send(&raw_connect(version, 0x02, &[&[0], &field("a")])).await;
        device.expect(&[0x20, 2, 0, 1]).await;
        device.expect_closed().await;
    }
}

/// The reserved Connect Flag is malformed.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_3_reserved_connect_flag_is_malformed() {
    connect_is_refused(&connect_5("a", 0x03, 0, &[]), 0x81).await;
}

/// Clean Start discards the session that is there, durably, before the CONNACK [MQTT-3.1.2-4] [MQTT-3.1.4-4].
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

/// The Will Message belongs to the session: it is published when the session ends, though its client is long away.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_7_will_is_kept_with_the_session() {
    let (broker, mut storage) = start(Limits::default());
    drop(with_delayed_will(&broker, &mut storage, 30, 3_600).await);
    tokio::time::sleep(Duration::from_secs(29)).await;
    storage.expect_nothing().await;
    expect_will(&mut storage).await;
    storage.answer("close", Stored).await;
}

/// The Will Message is published when the connection ends without DISCONNECT, or with one of another reason than 0x00:
/// lost, silent, in error, taken over.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_8_will_is_published() {
    let (broker, mut storage) = start(Limits::default());
    drop(with_will(&broker, 0).await);
    expect_will(&mut storage).await;
    let mut silent = with_will(&broker, 1).await;
    silent.expect_disconnect_5(0x8D).await;
    expect_will(&mut storage).await;
    for packet in [&b"\xC1\0"[..], b"\xE0\x01\x04", b"\xE0\x01\x80", b"\xE0\x01\x99"] {
        let mut device = with_will(&broker, 0).await;
        device.send(packet).await;
        expect_will(&mut storage).await;
    }
    let mut first = with_will(&broker, 0).await;
    let mut second = Device::dial(&broker);
    second.send(&connect_5("a", 0x02, 0, &[])).await;
    first.expect_disconnect_5(0x8E).await;
    expect_will(&mut storage).await;
    second.expect_connack_5(0x00).await;
}

/// Will Flag 1 without Will Properties, Will Topic or Will Payload.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_9_will_fields_must_be_there() {
    connect_is_refused(&raw_connect(5, 0x06, &[&[0], &field("a")]), 0x81).await;
    connect_is_refused(&raw_connect(5, 0x06, &[&[0], &field("a"), &[0]]), 0x81).await;
    connect_is_refused(&raw_connect(5, 0x06, &[&[0], &field("a"), &[0], &field("w")]), 0x81).await;
}

/// The Will Message is removed by DISCONNECT 0x00, and once it has been published.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_10_will_is_removed() {
    let (broker, mut storage) = start(Limits::default());
    with_will(&broker, 0).await.send(DISCONNECT).await;
    storage.expect_nothing().await;
    drop(with_delayed_will(&broker, &mut storage, 60, 3).await);
    expect_will(&mut storage).await;
    tokio::time::sleep(Duration::from_secs(54)).await;
    storage.expect_nothing().await;
    storage.answer("close", Stored).await; // the session ends, and has no Will Message any more
    storage.expect_nothing().await;
}

/// Will QoS without Will Flag.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_11_will_qos_needs_the_will_flag() {
    connect_is_refused(&connect_5("a", 0x0A, 0, &[]), 0x81).await;
    connect_is_refused(&connect_5("a", 0x12, 0, &[]), 0x81).await;
}

/// Will QoS is 0, 1 or 2, and not 3.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_12_will_qos_is_not_3() {
    let (broker, mut storage) = start(Limits::default());
    for (flags, qos) in [(0x06, QoS::AtMostOnce), (0x0E, QoS::AtLeastOnce), (0x16, QoS::ExactlyOnce)] {
        let mut device = Device::dial(&broker);
        device.send(&connect_5("a", flags, 0, &[])).await;
        device.expect_connack_5(0x00).await;
        drop(device);
        let will = storage.next_publish().await;
        assert_eq!(will.qos, qos);
        will.ticket.resolve(Stored);
    }
    connect_is_refused(&connect_5("a", 0x1E, 0, &[]), 0x81).await;
}

/// Will Retain without Will Flag.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_13_will_retain_needs_the_will_flag() {
    connect_is_refused(&connect_5("a", 0x22, 0, &[]), 0x81).await;
}

/// Without Will Retain the Will Message has no RETAIN flag [MQTT-3.1.2-14], with it it has [MQTT-3.1.2-15].
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_14_and_15_will_retain_goes_with_the_will() {
    let (broker, mut storage) = start(Limits::default());
    for (flags, retain) in [(0x06, false), (0x26, true)] {
        let mut device = Device::dial(&broker);
        device.send(&connect_5("a", flags, 0, &[])).await;
        device.expect_connack_5(0x00).await;
        drop(device);
        let will = storage.next_publish().await;
        assert_eq!(will.retain, retain);
        will.ticket.resolve(Stored);
    }
}

/// User Name Flag 0 with a User Name in the payload.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_16_user_name_without_flag_is_malformed() {
    connect_is_refused(&raw_connect(5, 0x02, &[&[0], &field("a"), &field("user")]), 0x81).await;
}

/// User Name Flag 1 without User Name.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_17_user_name_flag_without_user_name_is_malformed() {
    connect_is_refused(&raw_connect(5, 0x82, &[&[0], &field("a")]), 0x81).await;
}

/// Password Flag 0 with a Password in the payload.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_18_password_without_flag_is_malformed() {
    connect_is_refused(&raw_connect(5, 0x82, &[&[0], &field("a"), &field("user"), &field("secret")]), 0x81).await;
}

/// Password Flag 1 without Password.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_19_password_flag_without_password_is_malformed() {
    connect_is_refused(&raw_connect(5, 0x42, &[&[0], &field("a")]), 0x81).await;
}

/// After 1.5 times the Keep Alive without a packet the connection is closed [MQTT-3.1.2-22]; 0 turns that off. Without
/// Server Keep Alive it is the client's that counts [MQTT-3.2.2-22].
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_22_and_3_2_2_22_keep_alive() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x02, 10, &[])).await;
    let (_, properties) = device.expect_connack_5(0x00).await;
    assert!(!holds(&properties, &[0x13]), "{properties:02x?}");
    let mut patient = Device::connected_5(&broker, "b").await;
    tokio::time::sleep(Duration::from_secs(14)).await;
    device.send(PINGREQ).await;
    device.expect(PINGRESP).await;
    tokio::time::sleep(Duration::from_secs(14)).await;
    device.expect_nothing().await;
    device.expect_disconnect_5(0x8D).await;
    patient.send(PINGREQ).await;
    patient.expect(PINGRESP).await;
}

/// The session is kept after its connection for as long as was asked for.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_23_session_is_kept_after_its_connection() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x00, 0, &session_expiry(60))).await;
    storage.answer("open", Stored).await;
    device.expect_connack_5(0x00).await;
    drop(device);
    tokio::time::sleep(Duration::from_secs(59)).await;
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x00, 0, &session_expiry(60))).await;
    assert!(device.expect_connack_5(0x00).await.0);
    storage.expect_nothing().await;
}

/// No packet is larger than the client's Maximum Packet Size [MQTT-3.1.2-24]; one that would be is left out, and all goes
/// on [MQTT-3.1.2-25]. Where not even the CONNACK fits, the connection is refused.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_24_and_25_maximum_packet_size_of_the_client() {
    let (broker, mut storage) = start(Limits::default());
    let maximum = |bytes: u8| connect_5("a", 0x02, 0, &[0x27, 0, 0, 0, bytes]);
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x02, 0, &[])).await;
    let connack_bytes = device.packet().await.expect("a CONNACK").len() as u8;

    let mut device = Device::dial(&broker);
    device.send(&maximum(connack_bytes)).await;
    device.expect_connack_5(0x00).await;
    let filters = |count: u8| frame(0x82, &[&b"\0\x01\0"[..], &b"\0\x01a\0".repeat(count.into())].concat());
    device.send(&[filters(connack_bytes - 4), filters(connack_bytes - 5)].concat()).await;
    let suback = device.packet().await.expect("a SUBACK");
    assert_eq!((suback[0], suback.len()), (0x90, connack_bytes.into()));
    device.send(PINGREQ).await;
    device.expect(PINGRESP).await;

    for (bytes, answer) in [(connack_bytes - 1, &[0x20, 3, 0, 0x83, 0][..]), (5, &[0x20, 3, 0, 0x83, 0]), (4, &[])] {
        let mut device = Device::dial(&broker);
        device.send(&maximum(bytes)).await;
        device.expect(answer).await;
        device.expect_closed().await;
    }
    storage.expect_nothing().await;
}

/// No Response Information is returned, whether it is asked for or not.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_28_no_response_information() {
    let (broker, _storage) = start(Limits::default());
    for wanted in [0, 1] {
        let mut device = Device::dial(&broker);
        device.send(&connect_5("a", 0x02, 0, &[0x19, wanted])).await;
        let (_, properties) = device.expect_connack_5(0x00).await;
        assert!(!holds(&properties, &[0x1A]), "{properties:02x?}");
    }
}

/// With Request Problem Information 0 acknowledgements have no Reason String or User Property.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_29_acknowledgements_have_no_problem_information() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x02, 0, &[0x17, 0])).await;
    device.expect_connack_5(0x00).await;
    for (qos, first) in [(1, PUBACK), (2, PUBREC)] {
        device.send(&publish_5("t", qos, 1, &[])).await;
        storage.answer("publish", Refused(NotAuthorized)).await;
        device.expect(&with_reason(first, 1, 0x87)).await;
    }
    device.send(&with_id(PUBREL, 9)).await;
    device.expect(&with_reason(PUBCOMP, 9, 0x92)).await;
    device.send(&frame(0x82, b"\0\x01\0\0\x01a\0")).await;
    device.expect(&[0x90, 4, 0, 1, 0, 0x87]).await;
    device.send(&frame(0xA2, b"\0\x01\0\0\x01a")).await;
    device.expect(&[0xB0, 4, 0, 1, 0, 0x11]).await;
}

/// The Client Identifier is the first field of the payload [MQTT-3.1.3-3], and the others follow in their order.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_1_and_3_fields_come_in_order() {
    let (broker, mut storage) = start(Limits::default());
    let fields = [&[0][..], &field("id"), &[0], &field("w"), &field("gone"), &field("user"), &field("secret")].concat();
    let mut device = Device::dial(&broker);
    device.send(&raw_connect(5, 0xC6, &[&fields])).await;
    device.expect_connack_5(0x00).await;
    drop(device);
    let will = storage.next_publish().await;
    assert_eq!((&*will.client_id, will.topic.as_str(), &will.payload[..]), ("id", "w", &b"gone"[..]));
    connect_is_refused(&raw_connect(5, 0x02, &[&[0]]), 0x81).await;
}

/// Sessions are told apart by their Client Identifiers.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_2_the_client_identifier_identifies_the_session() {
    let (broker, mut storage) = start_with_session("a", 60);
    let mut other = Device::dial(&broker);
    other.send(&connect_5("A", 0x00, 0, &[])).await;
    assert!(!other.expect_connack_5(0x00).await.0);
    other.send(&publish_5("t", 2, 7, &[])).await;
    storage.answer("publish", Stored).await;
}

/// A Client Identifier that is not UTF-8.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_4_client_identifier_is_utf8() {
    for client_id in ILL_FORMED {
        connect_is_refused(&raw_connect(5, 0x02, &[&[0], &field(client_id)]), 0x81).await;
    }
}

/// Every Client Identifier of 1 to 23 digits and letters is allowed.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_5_client_identifiers_of_digits_and_letters() {
    let (broker, _storage) = start(Limits::default());
    for client_id in ["0", "0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ"] {
        Device::connected_5(&broker, client_id).await;
    }
}

/// An empty Client Identifier is replaced by a unique one [MQTT-3.1.3-6] [MQTT-3.2.2-16], which the CONNACK tells and under
/// which all goes on [MQTT-3.1.3-7].
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_6_and_7_and_3_2_2_16_empty_client_identifier_is_assigned() {
    let (broker, mut storage) = start(Limits::default());
    let mut all = Vec::new();
    for _ in 0..2 {
        let mut device = Device::dial(&broker);
        device.send(&connect_5("", 0x02, 0, &[])).await;
        let (_, properties) = device.expect_connack_5(0x00).await;
        let at = properties.windows(5).position(|bytes| bytes == b"auto-").expect("an assigned identifier");
        assert_eq!(properties[at - 3], 0x12);
        device.send(&publish_5("t", 0, 0, &[])).await;
        let assigned = std::str::from_utf8(&properties[at..at + 21]).unwrap().to_owned();
        assert_eq!(*storage.next_publish().await.client_id, *assigned);
        all.push(assigned);
    }
    assert_ne!(all[0], all[1]);
}

/// A Client Identifier that is refused is answered with 0x85 and closed.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_8_client_identifier_not_valid() {
    connect_is_refused(&connect_5(&"a".repeat(100), 0x02, 0, &[]), 0x85).await;
}

/// The Will is not published when the session is resumed before the Will Delay Interval is over; else it is, then.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_9_will_delay() {
    let (broker, mut storage) = start(Limits::default());
    drop(with_delayed_will(&broker, &mut storage, 60, 30).await);
    tokio::time::sleep(Duration::from_secs(29)).await;
    let mut device = Device::dial(&broker);
    device.send(&connect_5_with_will("a", 0x04, 0, &session_expiry(60), &[0x18, 0, 0, 0, 30])).await;
    device.expect_connack_5(0x00).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    storage.expect_nothing().await;
    drop(device);
    tokio::time::sleep(Duration::from_secs(29)).await;
    storage.expect_nothing().await;
    expect_will(&mut storage).await;
}

/// A Will Topic that is not UTF-8.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_11_will_topic_is_utf8() {
    for topic in ILL_FORMED {
        let connect = raw_connect(5, 0x06, &[&[0], &field("a"), &[0], &field(topic), &field("gone")]);
        connect_is_refused(&connect, 0x81).await;
    }
}

/// A User Name that is not UTF-8.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_12_user_name_is_utf8() {
    for user_name in ILL_FORMED {
        connect_is_refused(&raw_connect(5, 0x82, &[&[0], &field("a"), &field(user_name)]), 0x81).await;
    }
}

/// A CONNECT that is cut, or goes on after its last field, is closed; once its version is known with the reason.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_4_1_malformed_connect_is_refused() {
    let whole = connect_5("a", 0x06, 0, &[]);
    for length in 7..whole.len() - 2 {
        connect_is_refused(&frame(0x10, &whole[2..2 + length]), 0x81).await;
    }
    connect_is_refused(&frame(0x10, &[&whole[2..], &[0]].concat()), 0x81).await;
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(b"\x10\x04\0\x04MQ").await;
    device.expect_closed().await;
}

/// A CONNECT against a further restriction is closed: a Will Topic above the limits.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_4_2_connect_against_a_restriction_is_closed() {
    let topic = "a/".repeat(100);
    let connect = raw_connect(5, 0x06, &[&[0], &field("a"), &[0], &field(topic), &field("gone")]);
    connect_is_refused(&connect, 0x90).await;
}

/// Wrong credentials are refused with 0x86; none, or a Will that the user may not publish, with 0x87 [MQTT-3.2.2-8].
/// The connection is closed [MQTT-3.2.2-7], and what came behind is not processed [MQTT-3.1.4-6]. The right ones are taken.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_4_2_credentials_are_checked() {
    let (broker, mut storage) = start(Limits::default());
    broker.set_access(access());
    let login = |user: &str, password: &str| raw_connect(5, 0xC2, &[&[0], &field("a"), &field(user), &field(password)]);
    let will = [&[0][..], &field("a"), &[0], &field("w"), &field("gone"), &field("ann"), &field("secret")];
    let refused = [
        (login("ann", "wrong"), 0x86),
        (login("nobody", "secret"), 0x86),
        (raw_connect(5, 0x82, &[&[0], &field("a"), &field("ann")]), 0x86),
        (raw_connect(5, 0x42, &[&[0], &field("a"), &field("secret")]), 0x87),
        (connect_5("a", 0x02, 0, &[]), 0x87),
        (raw_connect(5, 0xC6, &will), 0x87),
    ];
    for (connect, reason) in refused {
        let mut device = Device::dial(&broker);
        device.send(&[connect, publish_5("ann/t", 1, 1, &[])].concat()).await;
        assert!(!device.expect_connack_5(reason).await.0);
        device.expect_closed().await;
    }
    let mut device = Device::dial(&broker);
    device.send(&login("ann", "secret")).await;
    device.expect_connack_5(0x00).await;
    device.send(&publish_5("ann/t", 1, 2, &[])).await;
    let first = storage.next_publish().await;
    assert_eq!((first.packet_id, first.user_name.as_deref()), (PacketId::new(2), Some("ann")));
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

/// A valid CONNECT is answered with 0x00; what was sent behind it is processed then.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_4_5_connect_is_acknowledged() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&[connect_5("a", 0x00, 0, &session_expiry(9)), publish_5("t", 1, 1, &[])].concat()).await;
    storage.answer("open", Stored).await;
    device.expect_connack_5(0x00).await;
    storage.answer("publish", Stored).await;
    device.expect(&with_id(PUBACK, 1)).await;
}

/// Nothing that comes behind a rejected CONNECT is processed.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_4_6_nothing_after_a_rejected_connect_is_processed() {
    connect_is_refused(&[connect_5("a", 0x03, 0, &[]), publish_5("t", 1, 1, &[])].concat(), 0x81).await;
}

/// CONNACK is the first packet, and comes after storage knows the session; if it cannot, it says 0x88.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_0_1_connack_is_first() {
    let (broker, mut storage) = start(Limits::default());
    for (outcome, reason) in [(Stored, 0x00), (Unavailable, 0x88)] {
        let mut device = Device::dial(&broker);
        device.send(&[&connect_5(&format!("{reason}"), 0x00, 0, &session_expiry(60))[..], PINGREQ].concat()).await;
        let open = storage.next().await;
        device.expect_nothing().await;
        resolve(open, outcome);
        device.expect_connack_5(reason).await;
    }
}

/// There is one CONNACK in a connection: a second CONNECT is answered with DISCONNECT only.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_0_2_there_is_one_connack() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    let connect = connect_5("a", 0x02, 0, &[]);
    device.send(&[connect.clone(), connect].concat()).await;
    device.expect_connack_5(0x00).await;
    device.expect_disconnect_5(0x82).await;
}

/// Only bit 0 of the Connect Acknowledge Flags is ever set.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_2_1_connack_flags() {
    let (broker, storage) = start_with_session("a", 60);
    storage.store_all();
    for (flags, present) in [(0x00, 1), (0x02, 0)] {
        let mut device = Device::dial(&broker);
        device.send(&connect_5("a", flags, 0, &session_expiry(60))).await;
        assert_eq!(device.packet().await.expect("a CONNACK")[2], present);
    }
}

/// Clean Start is answered with Session Present 0, also where there was a session.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_2_2_clean_start_has_no_session_present() {
    let (broker, storage) = start_with_session("a", 60);
    storage.store_all();
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x02, 0, &session_expiry(60))).await;
    assert!(!device.expect_connack_5(0x00).await.0);
}

/// Without Clean Start Session Present says whether there is a session.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_2_3_session_present_is_the_truth() {
    let (broker, storage) = start_with_session("a", 60);
    storage.store_all();
    for (client_id, present) in [("a", true), ("b", false)] {
        let mut device = Device::dial(&broker);
        device.send(&connect_5(client_id, 0x00, 0, &session_expiry(60))).await;
        assert_eq!(device.expect_connack_5(0x00).await.0, present);
    }
}

/// A CONNACK that refuses has Session Present 0, although there is a session [MQTT-3.2.2-6], and closes [MQTT-3.2.2-7].
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_2_6_and_7_a_refusal_has_no_session_present_and_closes() {
    let (broker, mut storage) = start_with_session("a", 60);
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x00, 0, &session_expiry(90))).await;
    storage.answer("open", Unavailable).await;
    assert!(!device.expect_connack_5(0x88).await.0);
    device.expect_closed().await;
}

/// Every way to be refused has one of the Connect Reason Codes.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_2_8_connect_reason_codes() {
    let long_id = connect_5(&"a".repeat(100), 0x02, 0, &[]);
    let will = |topic: &str| raw_connect(5, 0x06, &[&[0], &field("a"), &[0], &field(topic), &field("gone")]);
    let twice = connect_5("a", 0x02, 0, &[session_expiry(1), session_expiry(1)].concat());
    let cases = [
        (connect_5("a", 0x03, 0, &[]), 0x81),
        (twice, 0x82),
        (connect_5("a", 0x02, 0, &[0x27, 0, 0, 0, 9]), 0x83),
        (raw_connect(0x85, 0x02, &[&[0], &field("a")]), 0x84),
        (long_id, 0x85),
        (connect_5("a", 0x02, 0, b"\x15\0\x01k"), 0x8C),
        (will("a/#"), 0x90),
    ];
    for (connect, reason) in cases {
        connect_is_refused(&connect, reason).await;
    }
}

/// A packet larger than the Maximum Packet Size that the CONNACK tells, as soon as its length is known.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_2_15_maximum_packet_size_of_the_server() {
    let (broker, _storage) = start(Limits { packet_bytes_max: 1_024, ..Limits::default() });
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x02, 0, &[])).await;
    let (_, properties) = device.expect_connack_5(0x00).await;
    assert!(holds(&properties, &[0x27, 0, 0, 4, 0]), "{properties:02x?}");
    device.send(b"\x30\xFE\x07").await; // 1,025 bytes
    device.expect_disconnect_5(0x95).await;
}

/// A Topic Alias above the maximum that the CONNACK tells [MQTT-3.2.2-17] [MQTT-3.3.2-9].
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_2_17_and_3_3_2_9_topic_alias_above_the_maximum_is_invalid() {
    let (broker, _storage) = start(Limits { topic_alias_maximum: 5, ..Limits::default() });
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x02, 0, &[])).await;
    let (_, properties) = device.expect_connack_5(0x00).await;
    assert!(holds(&properties, &[0x22, 0, 5]), "{properties:02x?}");
    device.send(&publish_5("t", 0, 0, &[0x23, 0, 6])).await;
    device.expect_disconnect_5(0x94).await;
}

/// A Topic Alias where the CONNACK has no Topic Alias Maximum.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_2_18_no_topic_alias_without_a_maximum() {
    let (broker, _storage) = start(Limits { topic_alias_maximum: 0, ..Limits::default() });
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&publish_5("t", 0, 0, &[0x23, 0, 1])).await;
    device.expect_disconnect_5(0x94).await;
}

/// A Server Keep Alive replaces the client's: the connection is closed after 1.5 times of it.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_2_21_server_keep_alive() {
    let (broker, _storage) = start(Limits { keep_alive_secs_max: 10, ..Limits::default() });
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x02, 0, &[])).await;
    let (_, properties) = device.expect_connack_5(0x00).await;
    assert!(holds(&properties, &[0x13, 0, 10]), "{properties:02x?}");
    tokio::time::sleep(Duration::from_secs(14)).await;
    device.expect_nothing().await;
    device.expect_disconnect_5(0x8D).await;
}

/// DUP with QoS 0.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_1_2_dup_with_qos_0_is_malformed() {
    ends_with(&frame(0x38, b"\0\x01t\0"), 0x81).await;
}

/// Both QoS bits set.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_1_4_qos_3_is_malformed() {
    for first in [0x36, 0x37, 0x3E, 0x3F] {
        ends_with(&frame(first, b"\0\x01t\0\x01\0"), 0x81).await;
    }
}

/// The Topic Name is the first field and UTF-8.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_2_1_topic_name_is_first_and_utf8() {
    ends_with(&frame(0x30, b""), 0x81).await;
    ends_with(&frame(0x30, b"\0\x09t\0"), 0x81).await;
    for topic in ILL_FORMED {
        ends_with(&frame(0x32, &[&field(topic)[..], &[0, 1, 0]].concat()), 0x81).await;
    }
}

/// Wildcards in a Topic Name [MQTT-3.3.2-2] [MQTT-4.7.0-1].
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_2_2_and_4_7_0_1_topic_name_has_no_wildcards() {
    for topic in ["#", "+", "a/+/b", "a/#", "a+"] {
        ends_with(&publish_5(topic, 1, 1, &[]), 0x90).await;
    }
}

/// A Topic Alias means nothing on the next connection, although the session is the same.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_2_7_topic_aliases_end_with_their_connection() {
    let (broker, mut storage) = start_with_session("a", 60);
    let connect = connect_5("a", 0x00, 0, &session_expiry(60));
    let mut device = Device::dial(&broker);
    device.send(&[connect.clone(), publish_5("t", 0, 0, &[0x23, 0, 1])].concat()).await;
    device.expect_connack_5(0x00).await;
    storage.next_publish().await;
    let mut next = Device::dial(&broker);
    next.send(&connect).await;
    assert!(next.expect_connack_5(0x00).await.0);
    next.send(&publish_5("", 0, 0, &[0x23, 0, 1])).await;
    next.expect_disconnect_5(0x82).await;
    storage.expect_nothing().await;
}

/// Topic Alias 0.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_2_8_topic_alias_0_is_invalid() {
    ends_with(&publish_5("t", 0, 0, &[0x23, 0, 0]), 0x94).await;
}

/// Every Topic Alias up to the maximum stands for its Topic Name on this connection, and may be set anew.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_2_12_topic_aliases_up_to_the_maximum() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    for alias in 1..=32 {
        device.send(&publish_5(&format!("t/{alias}"), 0, 0, &[0x23, 0, alias])).await;
        storage.next_publish().await;
    }
    device.send(&publish_5("new", 0, 0, &[0x23, 0, 1])).await;
    storage.next_publish().await;
    for alias in 1..=32 {
        device.send(&publish_5("", 0, 0, &[0x23, 0, alias])).await;
        let topic = if alias == 1 { "new".into() } else { format!("t/{alias}") };
        assert_eq!(storage.next_publish().await.topic.as_str(), topic);
    }
}

/// A Response Topic that is not UTF-8.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_2_13_response_topic_is_utf8() {
    for topic in ILL_FORMED {
        ends_with(&publish_5("t", 0, 0, &[&[0x08][..], &field(topic)].concat()), 0x81).await;
    }
}

/// Wildcards in a Response Topic.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_2_14_response_topic_has_no_wildcards() {
    for topic in ["#", "a/+"] {
        ends_with(&publish_5("t", 0, 0, &[&[0x08][..], &field(topic)].concat()), 0x90).await;
    }
}

/// A Content Type that is not UTF-8.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_2_19_content_type_is_utf8() {
    for content_type in ILL_FORMED {
        ends_with(&publish_5("t", 0, 0, &[&[0x03][..], &field(content_type)].concat()), 0x81).await;
    }
}

/// QoS 0 is not answered, QoS 1 with PUBACK, QoS 2 with PUBREC.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_4_1_the_answer_depends_on_the_qos() {
    let (broker, storage) = start(Limits::default());
    storage.store_all();
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&[publish_5("t", 0, 0, &[]), publish_5("t", 1, 1, &[]), publish_5("t", 2, 2, &[])].concat()).await;
    device.expect(&[with_id(PUBACK, 1), with_id(PUBREC, 2)].concat()).await;
    device.expect_nothing().await;
}

/// A Subscription Identifier in a client's PUBLISH.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_4_6_subscription_identifier_in_publish_is_a_protocol_error() {
    ends_with(&publish_5("t", 0, 0, &[0x0B, 1]), 0x82).await;
}

/// More unacknowledged PUBLISH than the Receive Maximum is 0x93; a PUBACK makes room for one more.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_4_7_receive_maximum() {
    let (broker, mut storage) = start_with_receive_maximum(2);
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&[publish_5("t", 1, 1, &[]), publish_5("t", 2, 2, &[])].concat()).await;
    storage.answer("publish", Stored).await;
    device.expect(&with_id(PUBACK, 1)).await;
    device.send(&[publish_5("t", 1, 3, &[]), publish_5("t", 1, 4, &[])].concat()).await;
    device.expect_disconnect_5(0x93).await;
}

/// The reasons of PUBACK.
#[tokio::test(start_paused = true)]
async fn mqtt_3_4_2_1_reasons_of_puback() {
    answers_every_outcome(1, PUBACK).await;
}

/// The reasons of PUBREC.
#[tokio::test(start_paused = true)]
async fn mqtt_3_5_2_1_reasons_of_pubrec() {
    answers_every_outcome(2, PUBREC).await;
}

/// Flags of PUBREL other than 0010.
#[tokio::test(start_paused = true)]
async fn mqtt_3_6_1_1_flags_of_pubrel() {
    for flags in (0..16).filter(|flags| *flags != 0b0010) {
        ends_with(&with_id(0x60 | flags, 1), 0x81).await;
    }
}

/// PUBREL with a reason that is not its own.
#[tokio::test(start_paused = true)]
async fn mqtt_3_6_2_1_reasons_of_pubrel() {
    ends_with(&with_reason(PUBREL, 1, 0x80), 0x82).await;
    let mut device = connected().await;
    for reason in [0x00, 0x92] {
        device.send(&with_reason(PUBREL, 1, reason)).await;
        device.expect(&with_reason(PUBCOMP, 1, 0x92)).await;
    }
}

/// The reasons of PUBCOMP: Success, and one for an identifier that is not known.
#[tokio::test(start_paused = true)]
async fn mqtt_3_7_2_1_reasons_of_pubcomp() {
    let (broker, storage) = start(Limits::default());
    storage.store_all();
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&[publish_5("t", 2, 1, &[]), with_id(PUBREL, 1)].concat()).await;
    device.expect(&[with_id(PUBREC, 1), with_id(PUBCOMP, 1)].concat()).await;
    device.send(&with_id(PUBREL, 1)).await;
    device.expect(&with_reason(PUBCOMP, 1, 0x92)).await;
}

/// Flags of SUBSCRIBE other than 0010.
#[tokio::test(start_paused = true)]
async fn mqtt_3_8_1_1_flags_of_subscribe() {
    for flags in (0..16).filter(|flags| *flags != 0b0010) {
        ends_with(&frame(0x80 | flags, b"\0\x01\0\0\x01a\0"), 0x81).await;
    }
}

/// A Topic Filter of SUBSCRIBE that is not UTF-8.
#[tokio::test(start_paused = true)]
async fn mqtt_3_8_3_1_topic_filters_are_utf8() {
    for filter in ILL_FORMED {
        ends_with(&frame(0x82, &[&[0, 1, 0], &field(filter)[..], &[0]].concat()), 0x81).await;
    }
}

/// A SUBSCRIBE without Topic Filter.
#[tokio::test(start_paused = true)]
async fn mqtt_3_8_3_2_subscribe_has_a_topic_filter() {
    ends_with(&frame(0x82, b"\0\x01\0"), 0x82).await;
}

/// No Local on a Shared Subscription.
#[tokio::test(start_paused = true)]
async fn mqtt_3_8_3_4_no_local_on_a_shared_subscription_is_a_protocol_error() {
    ends_with(&frame(0x82, b"\0\x01\0\0\x0A$share/n/a\x04"), 0x82).await;
}

/// Reserved Subscription Options.
#[tokio::test(start_paused = true)]
async fn mqtt_3_8_3_5_reserved_subscription_options_are_malformed() {
    for options in [0x40, 0x80, 0xC0] {
        ends_with(&frame(0x82, &[&b"\0\x01\0\0\x01a"[..], &[options]].concat()), 0x81).await;
    }
}

/// SUBSCRIBE is answered with one SUBACK [MQTT-3.8.4-1] for all its filters [MQTT-3.8.4-5], with a reason for each
/// [MQTT-3.8.4-6] that says that it failed [MQTT-3.8.4-7], in their order [MQTT-3.9.3-1], one of those of SUBACK
/// [MQTT-3.9.3-2].
#[tokio::test(start_paused = true)]
async fn mqtt_3_8_4_1_to_7_subscribe_is_refused_filter_by_filter() {
    let mut device = connected().await;
    device.send(&frame(0x82, b"\0\x0A\0\0\x01#\0\0\x03a/+\x01\0\x01a\x02")).await;
    device.expect(&[0x90, 6, 0, 10, 0, 0x87, 0x87, 0x87]).await;
    device.expect_nothing().await;
}

/// Flags of UNSUBSCRIBE other than 0010.
#[tokio::test(start_paused = true)]
async fn mqtt_3_10_1_1_flags_of_unsubscribe() {
    for flags in (0..16).filter(|flags| *flags != 0b0010) {
        ends_with(&frame(0xA0 | flags, b"\0\x01\0\0\x01a"), 0x81).await;
    }
}

/// A Topic Filter of UNSUBSCRIBE that is not UTF-8.
#[tokio::test(start_paused = true)]
async fn mqtt_3_10_3_1_topic_filters_are_utf8() {
    for filter in ILL_FORMED {
        ends_with(&frame(0xA2, &[&[0, 1, 0], &field(filter)[..]].concat()), 0x81).await;
    }
}

/// An UNSUBSCRIBE without Topic Filter.
#[tokio::test(start_paused = true)]
async fn mqtt_3_10_3_2_unsubscribe_has_a_topic_filter() {
    ends_with(&frame(0xA2, b"\0\x01\0"), 0x82).await;
}

/// UNSUBSCRIBE is answered [MQTT-3.10.4-4] with its identifier although nothing is subscribed [MQTT-3.10.4-5], once for
/// all its filters [MQTT-3.10.4-6], with a reason for each in their order [MQTT-3.11.3-1], one of those of UNSUBACK
/// [MQTT-3.11.3-2].
#[tokio::test(start_paused = true)]
async fn mqtt_3_10_4_4_to_6_unsubscribe_is_answered() {
    let mut device = connected().await;
    device.send(&frame(0xA2, b"\0\x0A\0\0\x01#\0\x01a")).await;
    device.expect(&[0xB0, 5, 0, 10, 0, 0x11, 0x11]).await;
    device.expect_nothing().await;
}

/// PINGREQ is answered.
#[tokio::test(start_paused = true)]
async fn mqtt_3_12_4_1_pingresp() {
    let mut device = connected().await;
    device.send(PINGREQ).await;
    device.expect(PINGRESP).await;
}

/// Before the CONNACK nothing is said in a DISCONNECT.
#[tokio::test(start_paused = true)]
async fn mqtt_3_14_0_1_no_disconnect_before_connack() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(b"\xC1\0").await;
    device.expect_closed().await;
    let mut waiting = Device::dial(&broker);
    waiting.send(&connect_5("a", 0x00, 0, &session_expiry(60))).await;
    let open = storage.next().await;
    let mut other = Device::dial(&broker);
    other.send(&connect_5("a", 0x02, 0, &[])).await; // takes over what has no CONNACK yet
    waiting.expect_closed().await;
    resolve(open, Stored);
}

/// Reserved flags of DISCONNECT.
#[tokio::test(start_paused = true)]
async fn mqtt_3_14_1_1_flags_of_disconnect() {
    for flags in 1..16 {
        ends_with(&[0xE0 | flags, 0], 0x81).await;
    }
}

/// A DISCONNECT with a reason that clients do not send is a protocol error; with one of theirs it is not answered.
#[tokio::test(start_paused = true)]
async fn mqtt_3_14_2_1_reasons_of_disconnect() {
    for reason in [0x01, 0x8B, 0x8D, 0x8E, 0x9F] {
        ends_with(&frame(0xE0, &[reason]), 0x82).await;
    }
    for reason in [0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99] {
        let mut device = connected().await;
        device.send(&frame(0xE0, &[reason])).await;
        device.expect_closed().await;
    }
}

/// A DISCONNECT of ours has a reason and no properties.
#[tokio::test(start_paused = true)]
async fn mqtt_3_14_2_2_disconnect_has_no_properties() {
    let mut device = connected().await;
    device.send(b"\xC1\0").await;
    device.expect(&[0xE0, 2, 0x81, 0]).await;
    device.expect_closed().await;
}

/// After its DISCONNECT the server sends nothing [MQTT-3.14.4-1], though an outcome comes, and closes [MQTT-3.14.4-2].
#[tokio::test(start_paused = true)]
async fn mqtt_3_14_4_1_and_2_nothing_after_disconnect() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&publish_5("t", 1, 1, &[])).await;
    let publish = storage.next().await;
    device.send(b"\xC1\0").await;
    device.expect(&[0xE0, 2, 0x81, 0]).await;
    resolve(publish, Stored);
    device.expect_closed().await;
}

/// DISCONNECT 0x00 discards the Will Message.
#[tokio::test(start_paused = true)]
async fn mqtt_3_14_4_3_disconnect_discards_the_will() {
    let (broker, mut storage) = start(Limits::default());
    for packet in [DISCONNECT, &[0xE0, 1, 0x00], &[0xE0, 2, 0x00, 0]] {
        let mut device = with_will(&broker, 0).await;
        device.send(packet).await;
        device.expect_closed().await;
        storage.expect_nothing().await;
    }
}

/// Reserved flags of AUTH.
#[tokio::test(start_paused = true)]
async fn mqtt_3_15_1_1_flags_of_auth() {
    for flags in 1..16 {
        ends_with(&[0xF0 | flags, 0], 0x81).await;
    }
}

/// AUTH with a reason that is not its own is no packet; with one of its own it is one against the rules, for nobody asked
/// for authentication. Both are answered alike, so the counters tell them apart.
#[tokio::test(start_paused = true)]
async fn mqtt_3_15_2_1_reasons_of_auth() {
    for (reason, counted) in [(0x80, (1, 0)), (0x01, (1, 0)), (0x00, (0, 1)), (0x18, (0, 1)), (0x19, (0, 1))] {
        let (broker, _storage) = start(Limits::default());
        let mut device = Device::connected_5(&broker, "a").await;
        device.send(&frame(0xF0, &[reason, 0])).await;
        device.expect_disconnect_5(0x82).await;
        let stats = broker.stats();
        assert_eq!((stats.malformed, stats.violations), counted, "{reason:#04x}");
    }
}

/// The state of a session is kept while its connection is open, though its expiry is shorter.
#[tokio::test(start_paused = true)]
async fn mqtt_4_1_0_1_a_session_lasts_as_long_as_its_connection() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x02, 0, &session_expiry(1))).await;
    storage.answer("open", Stored).await;
    device.expect_connack_5(0x00).await;
    device.send(&publish_5("t", 2, 1, &[])).await;
    storage.answer("publish", Stored).await;
    device.expect(&with_id(PUBREC, 1)).await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    device.send(&publish_5("t", 2, 1, &[])).await;
    device.expect(&with_id(PUBREC, 1)).await;
    storage.expect_nothing().await;
}

/// A session ends when its expiry is over: storage is told, and the client that returns finds none.
#[tokio::test(start_paused = true)]
async fn mqtt_4_1_0_2_a_session_ends_when_it_expires() {
    let (broker, mut storage) = start_with_session("a", 60);
    tokio::time::sleep(Duration::from_secs(59)).await;
    storage.expect_nothing().await;
    storage.answer("close", Stored).await;
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x00, 0, &[])).await;
    assert!(!device.expect_connack_5(0x00).await.0);
}

/// PUBACK leaves when the message is stored or refused, not before.
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

/// After PUBACK the same identifier is a new message, whatever its DUP flag.
#[tokio::test(start_paused = true)]
async fn mqtt_4_3_2_5_after_puback_the_identifier_is_a_new_message() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    for dup in [0, 0x08, 0x08] {
        let mut packet = publish_5("t", 1, 1, &[]);
        packet[0] |= dup;
        device.send(&packet).await;
        storage.answer("publish", Stored).await;
        device.expect(&with_id(PUBACK, 1)).await;
    }
}

/// PUBREC leaves when the message is stored.
#[tokio::test(start_paused = true)]
async fn mqtt_4_3_3_8_pubrec_after_ownership() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&publish_5("t", 2, 1, &[])).await;
    let publish = storage.next_publish().await;
    assert_eq!(publish.packet_id, PacketId::new(1));
    device.expect_nothing().await;
    publish.ticket.resolve(Stored);
    device.expect(&with_id(PUBREC, 1)).await;
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

/// Until PUBREL the same identifier is the same message: answered, and not stored again.
#[tokio::test(start_paused = true)]
async fn mqtt_4_3_3_10_until_pubrel_it_is_the_same_message() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&publish_5("t", 2, 1, &[])).await;
    storage.answer("publish", Stored).await;
    device.expect(&with_id(PUBREC, 1)).await;
    for _ in 0..2 {
        device.send(&publish_5("t", 2, 1, &[])).await;
        device.expect(&with_id(PUBREC, 1)).await;
    }
    storage.expect_nothing().await;
}

/// PUBREL is answered with PUBCOMP when the identifier is forgotten [MQTT-4.3.3-11], and then it is free for a new message
/// [MQTT-4.3.3-12].
#[tokio::test(start_paused = true)]
async fn mqtt_4_3_3_11_and_12_after_pubcomp_the_identifier_is_a_new_message() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&publish_5("t", 2, 1, &[])).await;
    storage.answer("publish", Stored).await;
    device.expect(&with_id(PUBREC, 1)).await;
    device.send(&with_id(PUBREL, 1)).await;
    let release = storage.next().await;
    device.expect_nothing().await;
    resolve(release, Stored);
    device.expect(&with_id(PUBCOMP, 1)).await;
    device.send(&publish_5("t", 2, 1, &[])).await;
    storage.answer("publish", Stored).await;
    device.expect(&with_id(PUBREC, 1)).await;
}

/// A message whose Message Expiry Interval is long over is acknowledged to the end.
#[tokio::test(start_paused = true)]
async fn mqtt_4_3_3_13_message_expiry_does_not_end_qos_2() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&publish_5("t", 2, 1, &[0x02, 0, 0, 0, 1])).await;
    let publish = storage.next().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    resolve(publish, Stored);
    device.expect(&with_id(PUBREC, 1)).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    device.send(&with_id(PUBREL, 1)).await;
    storage.answer("release", Stored).await;
    device.expect(&with_id(PUBCOMP, 1)).await;
}

/// PUBACK and PUBREC go in the order of the PUBLISHes [MQTT-4.6.0-2] [MQTT-4.6.0-3], whatever the order of the outcomes.
#[tokio::test(start_paused = true)]
async fn mqtt_4_6_0_2_and_3_order_of_acknowledgements() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&[publish_5("t", 1, 9, &[]), publish_5("t", 2, 4, &[]), publish_5("t", 1, 6, &[])].concat()).await;
    let (first, second, third) = (storage.next().await, storage.next().await, storage.next().await);
    resolve(third, Stored);
    resolve(second, Stored);
    device.expect_nothing().await;
    resolve(first, Stored);
    device.expect(&[with_id(PUBACK, 9), with_id(PUBREC, 4), with_id(PUBACK, 6)].concat()).await;
}

/// `#` is the whole last level of a Topic Filter.
#[tokio::test(start_paused = true)]
async fn mqtt_4_7_1_1_multi_level_wildcard() {
    for filter in ["a#", "a/#/b", "#/"] {
        ends_with(&frame(0x82, &[&[0, 1, 0], &field(filter)[..], &[0]].concat()), 0x81).await;
    }
}

/// `+` is a whole level of a Topic Filter.
#[tokio::test(start_paused = true)]
async fn mqtt_4_7_1_2_single_level_wildcard() {
    for filter in ["a+", "+a", "a/b+/c"] {
        ends_with(&frame(0xA2, &[&[0, 1, 0], &field(filter)[..]].concat()), 0x81).await;
    }
}

/// An empty Topic Filter, or an empty Topic Name that no Topic Alias stands for.
#[tokio::test(start_paused = true)]
async fn mqtt_4_7_3_1_topics_are_not_empty() {
    ends_with(&publish_5("", 1, 1, &[]), 0x82).await;
    ends_with(&frame(0x82, b"\0\x01\0\0\0\0"), 0x82).await;
    ends_with(&frame(0xA2, b"\0\x01\0\0\0"), 0x82).await;
}

/// U+0000 in a Topic Name or Topic Filter.
#[tokio::test(start_paused = true)]
async fn mqtt_4_7_3_2_topics_have_no_null_character() {
    ends_with(&publish_5("a\0", 1, 1, &[]), 0x81).await;
    ends_with(&frame(0x82, b"\0\x01\0\0\x01\0\0"), 0x81).await;
    ends_with(&frame(0xA2, b"\0\x01\0\0\x01\0"), 0x81).await;
}

/// A Topic Name reaches storage as it was written.
#[tokio::test(start_paused = true)]
async fn mqtt_4_7_3_4_topic_names_are_not_normalized() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    for topic in UNUSUAL_TOPICS {
        device.send(&publish_5(topic, 0, 0, &[])).await;
        assert_eq!(storage.next_publish().await.topic.as_str(), topic);
    }
}

/// A Shared Subscription without ShareName [MQTT-4.8.2-1], with a wildcard in it, or without a Topic Filter behind it
/// [MQTT-4.8.2-2].
#[tokio::test(start_paused = true)]
async fn mqtt_4_8_2_1_and_2_form_of_a_shared_subscription() {
    for filter in ["$share//a", "$share/+/a", "$share/name", "$share/name/"] {
        ends_with(&frame(0x82, &[&[0, 1, 0], &field(filter)[..], &[0]].concat()), 0x81).await;
    }
}

/// With Receive Maximum PUBLISH unacknowledged other packets are answered.
#[tokio::test(start_paused = true)]
async fn mqtt_4_9_0_3_other_packets_are_answered_at_the_receive_maximum() {
    let (broker, mut storage) = start_with_receive_maximum(1);
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&publish_5("t", 1, 1, &[])).await;
    let publish = storage.next().await;
    device.send(&[PINGREQ, &frame(0x82, b"\0\x01\0\0\x01a\0")].concat()).await;
    device.expect(PINGRESP).await;
    device.expect(&[0x90, 4, 0, 1, 0, 0x87]).await;
    resolve(publish, Stored);
    device.expect(&with_id(PUBACK, 1)).await;
}

/// No Authentication Method is offered: 0x8C and close.
#[tokio::test(start_paused = true)]
async fn mqtt_4_12_0_1_enhanced_authentication_is_refused() {
    connect_is_refused(&connect_5("a", 0x02, 0, b"\x15\0\x01k"), 0x8C).await;
}

/// A client without Authentication Method gets none in its CONNACK, and no AUTH.
#[tokio::test(start_paused = true)]
async fn mqtt_4_12_0_6_no_auth_to_a_client_without_method() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x02, 0, &[])).await;
    let (_, properties) = device.expect_connack_5(0x00).await;
    assert!(!holds(&properties, &[0x15]), "{properties:02x?}");
    device.expect_nothing().await;
}

/// AUTH from a client that gave no Authentication Method.
#[tokio::test(start_paused = true)]
async fn mqtt_4_12_0_7_auth_without_method_is_a_protocol_error() {
    ends_with(b"\xF0\0", 0x82).await;
}

/// Malformed packets and protocol errors end their connection with the reason that fits, and no other connection.
#[tokio::test(start_paused = true)]
async fn mqtt_4_13_1_1_errors_close_their_connection_only() {
    let cases: [(&[u8], u8); 6] = [
        (b"\x00\0", 0x81),                                // reserved packet type
        (b"\x20\x02\0\0", 0x82),                          // CONNACK: the wrong direction
        (b"\x30\xFF\xFF\xFF\xFF", 0x81),                  // length of five bytes
        (b"\x30\xFF\xFF\x7F", 0x95),                      // larger than allowed, known from four bytes
        (b"\xE0\x07\0\x05\x11\0\0\0\x3C", 0x82),          // Session Expiry Interval from 0 to more
        (b"\x30\x0A\0\x01t\x06\x01\0\x01\0\x01\0", 0x82), // a property more than once
    ];
    let (broker, _storage) = start(Limits::default());
    let mut neighbour = Device::connected_5(&broker, "n").await;
    for (bytes, reason) in cases {
        ends_with(bytes, reason).await;
        let mut device = Device::connected_5(&broker, "a").await;
        device.send(bytes).await;
        device.expect_disconnect_5(reason).await;
    }
    let mut truncated = Device::connected_5(&broker, "a").await;
    truncated.send(b"\x30\x10\0\x01").await;
    drop(truncated);
    neighbour.send(PINGREQ).await;
    neighbour.expect(PINGRESP).await;
    assert_eq!(broker.stats().malformed + broker.stats().violations, 6);
}

/// After a reason of 0x80 or more the connection is closed: here storage cannot take the message, and it is not
/// acknowledged.
#[tokio::test(start_paused = true)]
async fn mqtt_4_13_2_1_a_reason_of_0x80_or_more_closes() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&publish_5("t", 1, 1, &[])).await;
    storage.answer("publish", Unavailable).await;
    device.expect_disconnect_5(0x97).await;
}

/// A client that is connected to a broker of its own.
async fn connected() -> Device {
    let (broker, _storage) = start(Limits::default());
    Device::connected_5(&broker, "a").await
}

/// A connected client sends this: it is told why, the connection is closed, and nothing is stored.
async fn ends_with(bytes: &[u8], reason: u8) {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(bytes).await;
    device.expect_disconnect_5(reason).await;
    storage.expect_nothing().await;
}

/// The first bytes of a connection are these: CONNACK says why, the connection is closed, and nothing is stored.
async fn connect_is_refused(bytes: &[u8], reason: u8) {
    let (broker, mut storage) = start(Limits { client_id_bytes_max: 23, ..Limits::default() });
    let mut device = Device::dial(&broker);
    device.send(bytes).await;
    assert!(!device.expect_connack_5(reason).await.0);
    device.expect_closed().await;
    storage.expect_nothing().await;
}

/// Everything that can become of a PUBLISH, and the reason in its acknowledgement.
async fn answers_every_outcome(qos: u8, first: u8) {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    for (refusal, reason) in [(NotAuthorized, 0x87), (NoDataset, 0x90), (PayloadInvalid, 0x99)] {
        device.send(&publish_5("t", qos, 1, &[])).await;
        storage.answer("publish", Refused(refusal)).await;
        device.expect(&with_reason(first, 1, reason)).await;
    }
    device.send(&publish_5("t", qos, 1, &[])).await;
    storage.answer("publish", Stored).await;
    device.expect(&with_id(first, 1)).await; // without a reason it is Success
}

fn start_with_receive_maximum(receive_maximum: u16) -> (Broker, Storage) {
    let receive_maximum = NonZeroU16::new(receive_maximum).expect("not zero");
    start(Limits { receive_maximum, ..Limits::default() })
}

/// A client with Clean Start, no session expiry and a Will Message.
async fn with_will(broker: &Broker, keep_alive: u16) -> Device {
    let mut device = Device::dial(broker);
    device.send(&connect_5("a", 0x06, keep_alive, &[])).await;
    device.expect_connack_5(0x00).await;
    device
}

/// A client with a new session and a Will Message that waits.
async fn with_delayed_will(broker: &Broker, storage: &mut Storage, expiry_secs: u32, delay_secs: u32) -> Device {
    let delay = [&[0x18][..], &delay_secs.to_be_bytes()].concat();
    let mut device = Device::dial(broker);
    device.send(&connect_5_with_will("a", 0x04, 0, &session_expiry(expiry_secs), &delay)).await;
    storage.answer("open", Stored).await;
    device.expect_connack_5(0x00).await;
    device
}

async fn expect_will(storage: &mut Storage) {
    let will = storage.next_publish().await;
    assert_eq!((will.topic.as_str(), &will.payload[..], will.will), ("w", &b"gone"[..], true));
    will.ticket.resolve(Stored);
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
