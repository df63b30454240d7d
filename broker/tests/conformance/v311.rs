//! MQTT 3.1.1, OASIS Standard, 29 October 2014.

use std::time::Duration;

use forebay_broker::Broker;
use forebay_broker::config::Limits;
use forebay_broker::inbound::Outcome::{Refused, Stored, Unavailable};
use forebay_broker::inbound::Refusal::NotAuthorized;
use forebay_broker::packet::{PacketId, QoS};

use super::*;

/// A string that is not well-formed UTF-8 closes the connection.
#[tokio::test(start_paused = true)]
async fn mqtt_1_5_3_1_ill_formed_utf8_closes() {
    for topic in ILL_FORMED {
        closes_after(&frame(0x30, &field(topic))).await;
        is_refused_without_connack(&raw_connect(4, 0x02, &[&field(topic)])).await;
    }
}

/// U+0000 in a string closes the connection.
#[tokio::test(start_paused = true)]
async fn mqtt_1_5_3_2_the_null_character_closes() {
    closes_after(&frame(0x30, &field("a\0b"))).await;
    is_refused_without_connack(&raw_connect(4, 0x02, &[&field("a\0")])).await;
}

/// A byte order mark is part of the string.
#[tokio::test(start_paused = true)]
async fn mqtt_1_5_3_3_a_byte_order_mark_is_kept() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(&publish_4("\u{FEFF}a", 0, 0)).await;
    assert_eq!(storage.next_publish().await.topic.as_str(), "\u{FEFF}a");
}

/// Reserved flags of the fixed header have the value of the table [MQTT-2.2.2-1], or the connection is closed
/// [MQTT-2.2.2-2].
#[tokio::test(start_paused = true)]
async fn mqtt_2_2_2_1_and_2_reserved_flags_close() {
    for packet in [&b"\xC1\0"[..], b"\xC8\0", b"\xE4\0"] {
        closes_after(packet).await;
    }
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    let mut connect = connect_4("a", 0x02, 0);
    connect[0] |= 0x02;
    device.send(&connect).await;
    device.expect_closed().await;
}

/// SUBSCRIBE, UNSUBSCRIBE and PUBLISH of QoS 1 and 2 with Packet Identifier 0 close the connection.
#[tokio::test(start_paused = true)]
async fn mqtt_2_3_1_1_packet_identifier_0_closes() {
    for packet in
        [publish_4("t", 1, 0), publish_4("t", 2, 0), frame(0x82, b"\0\0\0\x01a\0"), frame(0xA2, b"\0\0\0\x01a")]
    {
        closes_after(&packet).await;
    }
}

/// After the Topic Name of a QoS 0 PUBLISH comes the payload.
#[tokio::test(start_paused = true)]
async fn mqtt_2_3_1_5_qos_0_has_no_packet_identifier() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(&frame(0x30, b"\0\x01t\0\x07")).await;
    let publish = storage.next_publish().await;
    assert_eq!((publish.packet_id, &publish.payload[..]), (None, &[0, 7][..]));
}

/// PUBACK, PUBREC and PUBCOMP have the Packet Identifier of the PUBLISH.
#[tokio::test(start_paused = true)]
async fn mqtt_2_3_1_6_acknowledgements_have_the_identifier_of_the_publish() {
    let (broker, storage) = start(Limits::default());
    storage.store_all();
    let mut device = Device::connected_4(&broker, "a").await;
    for id in [1, 0x0102, u16::MAX] {
        device.send(&publish_4("t", 1, id)).await;
        device.expect(&with_id(PUBACK, id)).await;
        device.send(&publish_4("t", 2, id)).await;
        device.expect(&with_id(PUBREC, id)).await;
        device.send(&with_id(PUBREL, id)).await;
        device.expect(&with_id(PUBCOMP, id)).await;
    }
}

/// SUBACK and UNSUBACK have the Packet Identifier of what they answer [MQTT-2.3.1-7] [MQTT-3.8.4-2].
#[tokio::test(start_paused = true)]
async fn mqtt_2_3_1_7_and_3_8_4_2_suback_and_unsuback_have_the_identifier_of_the_request() {
    let mut device = connected().await;
    device.send(&frame(0x82, b"\x12\x34\0\x01a\0")).await;
    device.expect(&[0x90, 3, 0x12, 0x34, 0x80]).await;
    device.send(&frame(0xA2, b"\x43\x21\0\x01a")).await;
    device.expect(&[0xB0, 2, 0x43, 0x21]).await;
}

/// A first packet other than CONNECT closes the connection without a word.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_0_1_first_packet_is_connect() {
    for first in [publish_4("t", 1, 1), PINGREQ.to_vec(), with_id(PUBREL, 1), DISCONNECT.to_vec()] {
        is_refused_without_connack(&first).await;
    }
}

/// A second CONNECT closes the connection.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_0_2_second_connect_closes() {
    closes_after(&connect_4("a", 0x02, 0)).await;
}

/// Another Protocol Name is not served as MQTT.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_1_another_protocol_name_is_not_served() {
    let (broker, _storage) = start(Limits::default());
    for name in ["mqtt", "HTTP"] {
        let mut device = Device::dial(&broker);
        device.send(&frame(0x10, &[&field(name), &b"\x04\x02\0\0\0\x01a"[..]].concat())).await;
        device.expect(&[0x20, 2, 0, 1]).await;
        device.expect_closed().await;
    }
    assert_eq!(broker.stats().connects_accepted, 0);
}

/// An unsupported protocol level is answered with 0x01.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_2_unsupported_level_is_refused() {
    let (broker, _storage) = start(Limits::default());
    let mqisdp = frame(0x10, b"\0\x06MQIsdp\x03\x02\0\0\0\x01a");
    for connect in [mqisdp, raw_connect(3, 0x02, &[&field("a")]), raw_connect(6, 0x02, &[&field("a")])] {
        let mut device = Device::dial(&broker);
        device.send(&connect).await;
        device.expect(&[0x20, 2, 0, 1]).await;
        device.expect_closed().await;
    }
}

/// The reserved Connect Flag closes the connection.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_3_reserved_connect_flag_closes() {
    is_refused_without_connack(&connect_4("a", 0x03, 0)).await;
}

/// With Clean Session 0 the session is kept and resumed, or created.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_4_a_session_is_created_kept_and_resumed() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x00, 0)).await;
    storage.answer("open", Stored).await;
    device.expect(CONNACK).await;
    device.send(&publish_4("t", 2, 1)).await;
    storage.answer("publish", Stored).await;
    device.expect(&with_id(PUBREC, 1)).await;
    drop(device);
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x00, 0)).await;
    device.expect(CONNACK_PRESENT).await;
    device.send(&publish_4("t", 2, 1)).await;
    device.expect(&with_id(PUBREC, 1)).await;
    storage.expect_nothing().await;
}

/// With Clean Session 1 the former session is discarded, and nothing of the new one outlives its connection.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_6_clean_session_discards_and_leaves_nothing() {
    let (broker, mut storage) = start_with_session("a", 60);
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x02, 0)).await;
    storage.answer("close", Stored).await;
    device.expect(CONNACK).await;
    device.send(&publish_4("t", 2, 7)).await;
    storage.answer("publish", Stored).await;
    device.expect(&with_id(PUBREC, 7)).await;
    drop(device);
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x00, 0)).await;
    storage.answer("close", Stored).await;
    storage.answer("open", Stored).await;
    device.expect(CONNACK).await;
    device.send(&publish_4("t", 2, 7)).await;
    storage.answer("publish", Stored).await;
}

/// The Will Message is published whenever the connection ends without DISCONNECT: lost, silent, in error, taken over.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_8_will_is_published() {
    let (broker, mut storage) = start(Limits::default());
    drop(with_will(&broker, 0).await);
    expect_will(&mut storage).await;

    let silent = with_will(&broker, 1).await;
    expect_will(&mut storage).await;
    drop(silent);

    let mut wrong = with_will(&broker, 0).await;
    wrong.send(b"\xC1\0").await;
    expect_will(&mut storage).await;

    let _first = with_will(&broker, 0).await;
    let mut second = Device::dial(&broker);
    second.send(&connect_4("a", 0x02, 0)).await;
    storage.answer("publish", Stored).await;
    second.expect(CONNACK).await;
}

/// Will Flag 1 without Will Topic or Will Message in the payload.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_9_will_fields_must_be_there() {
    is_refused_without_connack(&raw_connect(4, 0x06, &[&field("a")])).await;
    is_refused_without_connack(&raw_connect(4, 0x06, &[&field("a"), &field("w")])).await;
}

/// The Will Message is removed by DISCONNECT, and once it has been published.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_10_will_is_removed() {
    let (broker, mut storage) = start(Limits::default());
    with_will(&broker, 0).await.send(DISCONNECT).await;
    storage.expect_nothing().await;
    drop(with_will(&broker, 0).await);
    expect_will(&mut storage).await;
    drop(Device::connected_4(&broker, "a").await);
    storage.expect_nothing().await;
}

/// Will Flag 0 with Will QoS, Will Retain [MQTT-3.1.2-11] [MQTT-3.1.2-13] [MQTT-3.1.2-15], or with Will fields in the
/// payload.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_11_without_will_its_flags_and_fields_are_absent() {
    for flags in [0x0A, 0x12, 0x22] {
        is_refused_without_connack(&connect_4("a", flags, 0)).await;
    }
    is_refused_without_connack(&raw_connect(4, 0x02, &[&field("a"), &field("w"), &field("gone")])).await;
}

/// Without Will Flag nothing is published when the connection ends.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_12_without_will_nothing_is_published() {
    let (broker, mut storage) = start(Limits::default());
    drop(Device::connected_4(&broker, "a").await);
    storage.expect_nothing().await;
}

/// Will QoS is 0, 1 or 2, and not 3.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_14_will_qos_is_not_3() {
    let (broker, mut storage) = start(Limits::default());
    for (flags, qos) in [(0x06, QoS::AtMostOnce), (0x0E, QoS::AtLeastOnce), (0x16, QoS::ExactlyOnce)] {
        let mut device = Device::dial(&broker);
        device.send(&connect_4("a", flags, 0)).await;
        device.expect(CONNACK).await;
        drop(device);
        let will = storage.next_publish().await;
        assert_eq!(will.qos, qos);
        will.ticket.resolve(Stored);
    }
    is_refused_without_connack(&connect_4("a", 0x1E, 0)).await;
}

/// Without Will Retain the Will Message has no RETAIN flag [MQTT-3.1.2-16], with it it has [MQTT-3.1.2-17].
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_16_and_17_will_retain_goes_with_the_will() {
    let (broker, mut storage) = start(Limits::default());
    for (flags, retain) in [(0x06, false), (0x26, true)] {
        let mut device = Device::dial(&broker);
        device.send(&connect_4("a", flags, 0)).await;
        device.expect(CONNACK).await;
        drop(device);
        let will = storage.next_publish().await;
        assert_eq!(will.retain, retain);
        will.ticket.resolve(Stored);
    }
}

/// User Name Flag 0 with a User Name in the payload.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_18_user_name_without_flag_is_refused() {
    is_refused_without_connack(&raw_connect(4, 0x02, &[&field("a"), &field("user")])).await;
}

/// User Name Flag 1 without User Name.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_19_user_name_flag_without_user_name_is_refused() {
    is_refused_without_connack(&raw_connect(4, 0x82, &[&field("a")])).await;
}

/// Password Flag 0 with a Password in the payload.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_20_password_without_flag_is_refused() {
    is_refused_without_connack(&raw_connect(4, 0x82, &[&field("a"), &field("user"), &field("secret")])).await;
}

/// Password Flag 1 without Password.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_21_password_flag_without_password_is_refused() {
    is_refused_without_connack(&raw_connect(4, 0xC2, &[&field("a"), &field("user")])).await;
}

/// Password Flag without User Name Flag.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_22_password_needs_a_user_name() {
    is_refused_without_connack(&raw_connect(4, 0x42, &[&field("a"), &field("secret")])).await;
}

/// After 1.5 times the Keep Alive without a packet the connection is closed; 0 turns that off.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_2_24_keep_alive() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x02, 10)).await;
    device.expect(CONNACK).await;
    let mut patient = Device::connected_4(&broker, "b").await;
    tokio::time::sleep(Duration::from_secs(14)).await;
    device.send(PINGREQ).await;
    device.expect(PINGRESP).await;
    tokio::time::sleep(Duration::from_secs(14)).await;
    device.expect_nothing().await;
    device.expect_closed().await;
    patient.send(PINGREQ).await;
    patient.expect(PINGRESP).await;
}

/// The Client Identifier is the first field of the payload [MQTT-3.1.3-3], and the others follow in their order.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_1_and_3_fields_come_in_order() {
    let (broker, mut storage) = start(Limits::default());
    let fields = [field("id"), field("w"), field("gone"), field("user"), field("secret")].concat();
    let mut device = Device::dial(&broker);
    device.send(&raw_connect(4, 0xC6, &[&fields])).await;
    device.expect(CONNACK).await;
    drop(device);
    let will = storage.next_publish().await;
    assert_eq!((&*will.client_id, will.topic.as_str(), &will.payload[..]), ("id", "w", &b"gone"[..]));
    is_refused_without_connack(&raw_connect(4, 0x02, &[])).await;
}

/// Sessions are told apart by their Client Identifiers.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_2_the_client_identifier_identifies_the_session() {
    let (broker, mut storage) = start_with_session("a", 60);
    let mut other = Device::dial(&broker);
    other.send(&connect_4("A", 0x00, 0)).await;
    storage.answer("open", Stored).await;
    other.expect(CONNACK).await;
    other.send(&publish_4("t", 2, 7)).await;
    storage.answer("publish", Stored).await;
}

/// A Client Identifier that is not UTF-8.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_4_client_identifier_is_utf8() {
    for client_id in ILL_FORMED {
        is_refused_without_connack(&raw_connect(4, 0x02, &[&field(client_id)])).await;
    }
}

/// Every Client Identifier of 1 to 23 digits and letters is allowed.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_5_client_identifiers_of_digits_and_letters() {
    let (broker, _storage) = start(Limits::default());
    for client_id in ["0", "0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ"] {
        Device::connected_4(&broker, client_id).await;
    }
}

/// An empty Client Identifier is replaced by a unique one, under which all goes on.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_6_empty_client_identifier_is_assigned() {
    let (broker, mut storage) = start(Limits::default());
    let mut devices = [Device::connected_4(&broker, "").await, Device::connected_4(&broker, "").await];
    let mut assigned = Vec::new();
    for device in &mut devices {
        device.send(&publish_4("t", 1, 1)).await;
        let publish = storage.next_publish().await;
        assigned.push(publish.client_id);
        publish.ticket.resolve(Stored);
        device.expect(&with_id(PUBACK, 1)).await;
    }
    assert!(!assigned[0].is_empty() && assigned[0] != assigned[1], "{assigned:?}");
}

/// An empty Client Identifier needs Clean Session [MQTT-3.1.3-7], else it is answered with 0x02 [MQTT-3.1.3-8].
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_7_and_8_empty_client_identifier_needs_clean_session() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_4("", 0x00, 0)).await;
    device.expect(&[0x20, 2, 0, 2]).await;
    device.expect_closed().await;
    Device::connected_4(&broker, "").await;
}

/// A Client Identifier that is refused is answered with 0x02.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_9_client_identifier_is_rejected_with_0x02() {
    let (broker, _storage) = start(Limits { client_id_bytes_max: 23, ..Limits::default() });
    let mut device = Device::dial(&broker);
    device.send(&connect_4(&"a".repeat(24), 0x02, 0)).await;
    device.expect(&[0x20, 2, 0, 2]).await;
    device.expect_closed().await;
}

/// A Will Topic that is not UTF-8.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_10_will_topic_is_utf8() {
    for topic in ILL_FORMED {
        is_refused_without_connack(&raw_connect(4, 0x06, &[&field("a"), &field(topic), &field("gone")])).await;
    }
}

/// A User Name that is not UTF-8.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_3_11_user_name_is_utf8() {
    for user_name in ILL_FORMED {
        is_refused_without_connack(&raw_connect(4, 0x82, &[&field("a"), &field(user_name)])).await;
    }
}

/// A CONNECT that is cut, or goes on after its last field.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_4_1_malformed_connect_closes_without_connack() {
    let whole = connect_4("a", 0x06, 0);
    for length in 0..whole.len() - 2 {
        is_refused_without_connack(&frame(0x10, &whole[2..2 + length])).await;
    }
    is_refused_without_connack(&frame(0x10, &[&whole[2..], &[0]].concat())).await;
}

/// A second connection with the Client Identifier ends the first.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_4_2_takeover() {
    let (broker, _storage) = start(Limits::default());
    let mut first = Device::connected_4(&broker, "a").await;
    let mut second = Device::connected_4(&broker, "a").await;
    first.expect_closed().await;
    second.send(PINGREQ).await;
    second.expect(PINGRESP).await;
}

/// Clean Session is obeyed before the CONNACK: the former session is durably gone.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_4_3_clean_session_is_processed() {
    let (broker, mut storage) = start_with_session("a", 60);
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x02, 0)).await;
    let close = storage.next().await;
    assert_eq!(kind_of(&close), "close");
    device.expect_nothing().await;
    resolve(close, Stored);
    device.expect(CONNACK).await;
}

/// A valid CONNECT is answered with 0x00; what was sent behind it is processed then.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_4_4_connect_is_acknowledged() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&[connect_4("a", 0x00, 0), publish_4("t", 1, 1)].concat()).await;
    storage.answer("open", Stored).await;
    device.expect(CONNACK).await;
    storage.answer("publish", Stored).await;
    device.expect(&with_id(PUBACK, 1)).await;
}

/// Nothing that comes behind a rejected CONNECT is processed.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_4_5_nothing_after_a_rejected_connect_is_processed() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&[connect_4("", 0x00, 0), publish_4("t", 1, 1)].concat()).await;
    device.expect(&[0x20, 2, 0, 2]).await;
    device.expect_closed().await;
    storage.expect_nothing().await;
}

/// Wrong credentials are refused with 0x04, none with 0x05: with Session Present 0 although there is a session
/// [MQTT-3.2.2-4], closed [MQTT-3.2.2-5], and what came behind is not processed. The right ones are taken.
#[tokio::test(start_paused = true)]
async fn mqtt_3_1_4_5_nothing_behind_refused_credentials_is_processed() {
    let (broker, mut storage) = start_with_session("a", Limits::default().session_expiry_secs_max);
    broker.set_access(access());
    let login = |user: &str, password: &str| raw_connect(4, 0xC0, &[&field("a"), &field(user), &field(password)]);
    let refused = [
        (login("ann", "wrong"), 4),
        (login("nobody", "secret"), 4),
        (raw_connect(4, 0x80, &[&field("a"), &field("ann")]), 4),
        (connect_4("a", 0x00, 0), 5),
    ];
    for (connect, code) in refused {
        let mut device = Device::dial(&broker);
        device.send(&[connect, publish_4("ann/t", 1, 1)].concat()).await;
        device.expect(&[0x20, 2, 0, code]).await;
        device.expect_closed().await;
    }
    let mut device = Device::dial(&broker);
    device.send(&[login("ann", "secret"), publish_4("ann/t", 1, 2)].concat()).await;
    device.expect(CONNACK_PRESENT).await;
    let first = storage.next_publish().await;
    assert_eq!((first.packet_id, first.user_name.as_deref()), (PacketId::new(2), Some("ann")));
}

/// The first packet of the server is CONNACK, whatever it was sent meanwhile.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_0_1_connack_is_first() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&[&connect_4("a", 0x00, 0)[..], PINGREQ].concat()).await;
    let open = storage.next().await;
    device.expect_nothing().await;
    resolve(open, Stored);
    device.expect(&[CONNACK, PINGRESP].concat()).await;
}

/// Clean Session 1 is answered with Session Present 0, also where there was a session.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_2_1_clean_session_has_no_session_present() {
    let (broker, storage) = start_with_session("a", 60);
    storage.store_all();
    Device::connected_4(&broker, "a").await;
}

/// Clean Session 0 and a stored session is Session Present 1, also after a restart.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_2_2_session_present() {
    let (broker, mut storage) = start_with_session("a", Limits::default().session_expiry_secs_max);
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x00, 0)).await;
    device.expect(CONNACK_PRESENT).await;
    device.send(&with_id(PUBREL, 7)).await;
    storage.answer("release", Stored).await;
    device.expect(&with_id(PUBCOMP, 7)).await;
}

/// Clean Session 0 without a stored session is Session Present 0.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_2_3_no_session_is_not_present() {
    let (broker, storage) = start(Limits::default());
    storage.store_all();
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x00, 0)).await;
    device.expect(CONNACK).await;
}

/// A CONNACK that refuses has Session Present 0, although there is a session [MQTT-3.2.2-4], and closes [MQTT-3.2.2-5].
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_2_4_and_5_a_refusal_has_no_session_present_and_closes() {
    let (broker, mut storage) = start_with_session("a", 60);
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x00, 0)).await;
    storage.answer("open", Unavailable).await; // the expiry changes
    device.expect(&[0x20, 2, 0, 3]).await;
    device.expect_closed().await;
}

/// Where no return code applies the connection is closed without CONNACK: a Will Topic above the limits.
#[tokio::test(start_paused = true)]
async fn mqtt_3_2_2_6_without_a_return_code_there_is_no_connack() {
    let (broker, _storage) = start(Limits { topic_bytes_max: 4, ..Limits::default() });
    let mut device = Device::dial(&broker);
    device.send(&raw_connect(4, 0x06, &[&field("a"), &field("12345"), &field("gone")])).await;
    device.expect_closed().await;
}

/// DUP with QoS 0.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_1_2_dup_with_qos_0_closes() {
    closes_after(&frame(0x38, b"\0\x01t")).await;
}

/// Both QoS bits set.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_1_4_qos_3_closes() {
    for first in [0x36, 0x37, 0x3E, 0x3F] {
        closes_after(&frame(first, b"\0\x01t\0\x01")).await;
    }
}

/// The Topic Name is the first field and UTF-8.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_2_1_topic_name_is_first_and_utf8() {
    closes_after(&frame(0x30, b"")).await;
    closes_after(&frame(0x30, b"\0\x09t")).await;
    for topic in ILL_FORMED {
        closes_after(&frame(0x32, &[&field(topic)[..], &[0, 1]].concat())).await;
    }
}

/// Wildcards in a Topic Name [MQTT-3.3.2-2] [MQTT-4.7.1-1].
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_2_2_and_4_7_1_1_topic_name_has_no_wildcards() {
    for topic in ["#", "+", "a/+/b", "a/#", "a+"] {
        closes_after(&publish_4(topic, 1, 1)).await;
    }
}

/// QoS 0 is not answered, QoS 1 with PUBACK, QoS 2 with PUBREC.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_4_1_the_answer_depends_on_the_qos() {
    let (broker, storage) = start(Limits::default());
    storage.store_all();
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(&[publish_4("t", 0, 0), publish_4("t", 1, 1), publish_4("t", 2, 2)].concat()).await;
    device.expect(&[with_id(PUBACK, 1), with_id(PUBREC, 2)].concat()).await;
    device.expect_nothing().await;
}

/// A client cannot be told why a message is refused: the connection is closed.
#[tokio::test(start_paused = true)]
async fn mqtt_3_3_5_2_refused_publish_closes() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(&publish_4("t", 1, 1)).await;
    let publish = storage.next_publish().await;
    assert!(!publish.can_be_told);
    publish.ticket.resolve(Refused(NotAuthorized));
    device.expect_closed().await;
}

/// Flags of PUBREL other than 0010.
#[tokio::test(start_paused = true)]
async fn mqtt_3_6_1_1_flags_of_pubrel() {
    for flags in (0..16).filter(|flags| *flags != 0b0010) {
        closes_after(&with_id(0x60 | flags, 1)).await;
    }
}

/// Flags of SUBSCRIBE other than 0010.
#[tokio::test(start_paused = true)]
async fn mqtt_3_8_1_1_flags_of_subscribe() {
    for flags in (0..16).filter(|flags| *flags != 0b0010) {
        closes_after(&frame(0x80 | flags, b"\0\x01\0\x01a\0")).await;
    }
}

/// A Topic Filter of SUBSCRIBE that is not UTF-8.
#[tokio::test(start_paused = true)]
async fn mqtt_3_8_3_1_topic_filters_are_utf8() {
    for filter in ILL_FORMED {
        closes_after(&frame(0x82, &[&[0, 1], &field(filter)[..], &[0]].concat())).await;
    }
}

/// No Topic Filter is supported, so those with wildcards are refused.
#[tokio::test(start_paused = true)]
async fn mqtt_3_8_3_2_wildcards_are_refused() {
    let mut device = connected().await;
    device.send(&frame(0x82, b"\0\x0A\0\x01#\0\0\x03a/+\x01")).await;
    device.expect(&[0x90, 4, 0, 10, 0x80, 0x80]).await;
}

/// A SUBSCRIBE without Topic Filter.
#[tokio::test(start_paused = true)]
async fn mqtt_3_8_3_3_subscribe_has_a_topic_filter() {
    closes_after(&frame(0x82, b"\0\x01")).await;
}

/// Reserved bits after a Topic Filter, or QoS 3.
#[tokio::test(start_paused = true)]
async fn mqtt_3_8_3_4_reserved_bits_and_qos_3_of_subscribe_close() {
    for options in [3, 0x04, 0x80] {
        closes_after(&frame(0x82, &[&b"\0\x01\0\x01a"[..], &[options]].concat())).await;
    }
}

/// SUBSCRIBE is answered with one SUBACK [MQTT-3.8.4-1] for all its filters [MQTT-3.8.4-4], a failure for each
/// [MQTT-3.8.4-5], in their order [MQTT-3.9.3-1].
#[tokio::test(start_paused = true)]
async fn mqtt_3_8_4_1_to_5_subscribe_is_refused_filter_by_filter() {
    let mut device = connected().await;
    device.send(&frame(0x82, b"\0\x0A\0\x01a\0\0\x01b\x01\0\x01c\x02")).await;
    device.expect(&[0x90, 5, 0, 10, 0x80, 0x80, 0x80]).await;
    device.expect_nothing().await;
}

/// The only return code of a SUBACK is 0x80, for every QoS that is asked for.
#[tokio::test(start_paused = true)]
async fn mqtt_3_9_3_2_suback_return_codes() {
    let mut device = connected().await;
    for qos in 0..=2 {
        device.send(&frame(0x82, &[&b"\0\x0A\0\x01a"[..], &[qos]].concat())).await;
        device.expect(&[0x90, 3, 0, 10, 0x80]).await;
    }
}

/// Flags of UNSUBSCRIBE other than 0010.
#[tokio::test(start_paused = true)]
async fn mqtt_3_10_1_1_flags_of_unsubscribe() {
    for flags in (0..16).filter(|flags| *flags != 0b0010) {
        closes_after(&frame(0xA0 | flags, b"\0\x01\0\x01a")).await;
    }
}

/// A Topic Filter of UNSUBSCRIBE that is not UTF-8.
#[tokio::test(start_paused = true)]
async fn mqtt_3_10_3_1_topic_filters_are_utf8() {
    for filter in ILL_FORMED {
        closes_after(&frame(0xA2, &[&[0, 1], &field(filter)[..]].concat())).await;
    }
}

/// An UNSUBSCRIBE without Topic Filter.
#[tokio::test(start_paused = true)]
async fn mqtt_3_10_3_2_unsubscribe_has_a_topic_filter() {
    closes_after(&frame(0xA2, b"\0\x01")).await;
}

/// UNSUBSCRIBE is answered with its identifier [MQTT-3.10.4-4] although nothing is subscribed [MQTT-3.10.4-5], once for
/// all its filters [MQTT-3.10.4-6].
#[tokio::test(start_paused = true)]
async fn mqtt_3_10_4_4_to_6_unsubscribe_is_answered() {
    let mut device = connected().await;
    device.send(&frame(0xA2, b"\0\x0A\0\x01#\0\x01a")).await;
    device.expect(&[0xB0, 2, 0, 10]).await;
    device.expect_nothing().await;
}

/// PINGREQ is answered.
#[tokio::test(start_paused = true)]
async fn mqtt_3_12_4_1_pingresp() {
    let mut device = connected().await;
    device.send(PINGREQ).await;
    device.expect(PINGRESP).await;
}

/// Reserved flags of DISCONNECT: the connection is closed, as in error, so the Will Message is published.
#[tokio::test(start_paused = true)]
async fn mqtt_3_14_1_1_flags_of_disconnect() {
    let (broker, mut storage) = start(Limits::default());
    for flags in 1..16 {
        let mut device = with_will(&broker, 0).await;
        device.send(&[0xE0 | flags, 0]).await;
        device.expect_closed().await;
        expect_will(&mut storage).await;
    }
}

/// DISCONNECT discards the Will Message.
#[tokio::test(start_paused = true)]
async fn mqtt_3_14_4_3_disconnect_discards_the_will() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = with_will(&broker, 0).await;
    device.send(DISCONNECT).await;
    device.expect_closed().await;
    storage.expect_nothing().await;
}

/// The state of a session is kept as long as the session: its Packet Identifiers are known until they are released.
#[tokio::test(start_paused = true)]
async fn mqtt_4_1_0_1_session_state_is_kept() {
    let (broker, mut storage) = start_with_session("a", Limits::default().session_expiry_secs_max);
    for _ in 0..2 {
        let mut device = Device::dial(&broker);
        device.send(&connect_4("a", 0x00, 0)).await;
        device.expect(CONNACK_PRESENT).await;
        device.send(&publish_4("t", 2, 7)).await;
        device.expect(&with_id(PUBREC, 7)).await;
    }
    storage.expect_nothing().await;
}

/// A session lasts while its connection does, also one with Clean Session.
#[tokio::test(start_paused = true)]
async fn mqtt_4_1_0_2_a_session_lasts_as_long_as_its_connection() {
    let (broker, mut storage) = start(Limits { session_expiry_secs_max: 1, ..Limits::default() });
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(&publish_4("t", 2, 1)).await;
    storage.answer("publish", Stored).await;
    device.expect(&with_id(PUBREC, 1)).await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    device.send(&publish_4("t", 2, 1)).await;
    device.expect(&with_id(PUBREC, 1)).await;
    storage.expect_nothing().await;
}

/// PUBACK leaves when the message is stored; after it the same identifier is a new message, whatever its DUP flag.
#[tokio::test(start_paused = true)]
async fn mqtt_4_3_2_2_puback_after_ownership_and_then_a_new_message() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    for dup in [0, 0x08] {
        let mut packet = publish_4("t", 1, 1);
        packet[0] |= dup;
        device.send(&packet).await;
        let publish = storage.next_publish().await;
        device.expect_nothing().await;
        publish.ticket.resolve(Stored);
        device.expect(&with_id(PUBACK, 1)).await;
    }
}

/// PUBREC leaves when the message is stored, a repetition is answered and not stored, PUBCOMP leaves when the identifier
/// is forgotten, and then it is free for a new message.
#[tokio::test(start_paused = true)]
async fn mqtt_4_3_3_2_qos_2_is_stored_once() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(&publish_4("t", 2, 1)).await;
    let publish = storage.next_publish().await;
    assert_eq!(publish.packet_id, PacketId::new(1));
    device.expect_nothing().await;
    publish.ticket.resolve(Stored);
    device.expect(&with_id(PUBREC, 1)).await;
    device.send(&publish_4("t", 2, 1)).await;
    device.expect(&with_id(PUBREC, 1)).await;
    storage.expect_nothing().await;
    device.send(&with_id(PUBREL, 1)).await;
    let release = storage.next().await;
    device.expect_nothing().await;
    resolve(release, Stored);
    device.expect(&with_id(PUBCOMP, 1)).await;
    device.send(&publish_4("t", 2, 1)).await;
    storage.answer("publish", Stored).await;
    device.expect(&with_id(PUBREC, 1)).await;
    device.send(&with_id(PUBREL, 9)).await; // never heard of: completed all the same
    device.expect(&with_id(PUBCOMP, 9)).await;
}

/// PUBACK and PUBREC go in the order of the PUBLISHes [MQTT-4.6.0-2] [MQTT-4.6.0-3], whatever the order of the outcomes.
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

/// `#` is the whole last level of a Topic Filter.
#[tokio::test(start_paused = true)]
async fn mqtt_4_7_1_2_multi_level_wildcard() {
    for filter in ["a#", "a/#/b", "#/"] {
        closes_after(&frame(0x82, &[&[0, 1], &field(filter)[..], &[0]].concat())).await;
    }
}

/// `+` is a whole level of a Topic Filter.
#[tokio::test(start_paused = true)]
async fn mqtt_4_7_1_3_single_level_wildcard() {
    for filter in ["a+", "+a", "a/b+/c"] {
        closes_after(&frame(0xA2, &[&[0, 1], &field(filter)[..]].concat())).await;
    }
}

/// An empty Topic Name or Topic Filter.
#[tokio::test(start_paused = true)]
async fn mqtt_4_7_3_1_topics_are_not_empty() {
    closes_after(&publish_4("", 1, 1)).await;
    closes_after(&frame(0x82, b"\0\x01\0\0\0")).await;
    closes_after(&frame(0xA2, b"\0\x01\0\0")).await;
}

/// U+0000 in a Topic Name or Topic Filter.
#[tokio::test(start_paused = true)]
async fn mqtt_4_7_3_2_topics_have_no_null_character() {
    closes_after(&publish_4("a\0", 1, 1)).await;
    closes_after(&frame(0x82, b"\0\x01\0\x01\0\0")).await;
    closes_after(&frame(0xA2, b"\0\x01\0\x01\0")).await;
}

/// A Topic Name reaches storage as it was written.
#[tokio::test(start_paused = true)]
async fn mqtt_4_7_3_4_topic_names_are_not_normalized() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    for topic in UNUSUAL_TOPICS {
        device.send(&publish_4(topic, 0, 0)).await;
        assert_eq!(storage.next_publish().await.topic.as_str(), topic);
    }
}

/// A protocol violation closes its connection, and no other.
#[tokio::test(start_paused = true)]
async fn mqtt_4_8_0_1_violations_close_their_connection_only() {
    let (broker, mut storage) = start(Limits { packet_bytes_max: 1_024, ..Limits::default() });
    let mut neighbour = Device::connected_4(&broker, "n").await;
    let cases: [&[u8]; 6] = [
        b"\x00\0",               // reserved packet type
        b"\xF0\0",               // AUTH is 5.0's
        b"\x20\x02\0\0",         // CONNACK: the wrong direction
        b"\x30\xFF\xFF\xFF\xFF", // length of five bytes
        b"\x30\xFF\xFF\x7F",     // larger than allowed
        b"\xE0\x01\0",           // DISCONNECT with a body
    ];
    for bytes in cases {
        let mut device = Device::connected_4(&broker, "a").await;
        device.send(bytes).await;
        device.expect_closed().await;
    }
    let mut truncated = Device::connected_4(&broker, "a").await;
    truncated.send(b"\x30\x10\0\x01").await;
    drop(truncated);
    neighbour.send(PINGREQ).await;
    neighbour.expect(PINGRESP).await;
    storage.expect_nothing().await;
}

/// A message that cannot be stored now closes the connection without acknowledgement, and the client keeps it.
#[tokio::test(start_paused = true)]
async fn mqtt_4_8_0_2_transient_errors_close() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(&publish_4("t", 1, 1)).await;
    storage.answer("publish", Unavailable).await;
    device.expect_closed().await;
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(&publish_4("t", 2, 1)).await;
    drop(storage); // nobody stores any more: the same
    device.expect_closed().await;
}

/// A client that is connected to a broker of its own.
async fn connected() -> Device {
    let (broker, _storage) = start(Limits::default());
    Device::connected_4(&broker, "a").await
}

/// A connected client sends this: the connection is closed without a word, and nothing is stored.
async fn closes_after(bytes: &[u8]) {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(bytes).await;
    device.expect_closed().await;
    storage.expect_nothing().await;
}

/// The first bytes of a connection are these: it is closed without a word.
async fn is_refused_without_connack(bytes: &[u8]) {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(bytes).await;
    device.expect_closed().await;
    storage.expect_nothing().await;
}

/// A client with Clean Session and a Will Message.
async fn with_will(broker: &Broker, keep_alive: u16) -> Device {
    let mut device = Device::dial(broker);
    device.send(&connect_4("a", 0x06, keep_alive)).await;
    device.expect(CONNACK).await;
    device
}

async fn expect_will(storage: &mut Storage) {
    let will = storage.next_publish().await;
    assert_eq!((will.topic.as_str(), &will.payload[..], will.will), ("w", &b"gone"[..], true));
    will.ticket.resolve(Stored);
}
