//! CONNECT: protocol, flags, properties, payload.

use super::*;
use crate::packet::{QoS, Will};
use crate::reason::ConnectReason;

/// A CONNECT of `level` with the given Connect Flags, properties (5.0) and payload, and Keep Alive 60.
fn connect(level: u8, flags: u8, properties: &[u8], payload: &[&[u8]]) -> Bytes {
    let head = [&field("MQTT")[..], &[level, flags, 0, 60], properties];
    packet(0x10, &[&head.concat(), &payload.concat()])
}

fn v311(flags: u8, payload: &[&[u8]]) -> Result<Connect, CodecError> {
    decode_connect(connect(4, flags, &[], payload))
}

fn v5(flags: u8, parts: &[&[u8]], payload: &[&[u8]]) -> Result<Connect, CodecError> {
    decode_connect(connect(5, flags, &properties(parts), payload))
}

/// A 5.0 CONNECT with the given properties.
fn with(parts: &[&[u8]]) -> Result<Connect, CodecError> {
    v5(0, parts, &[&field("c")])
}

const CLEAN: u8 = 0b0000_0010;
const WILL: u8 = 0b0000_0100;
const WILL_QOS_1: u8 = 0b0000_1000;
const WILL_QOS_2: u8 = 0b0001_0000;
const WILL_RETAIN: u8 = 0b0010_0000;
const PASSWORD: u8 = 0b0100_0000;
const USER_NAME: u8 = 0b1000_0000;

#[test]
fn a_small_connect_has_the_defaults() {
    for (connect, version) in [(v311(CLEAN, &[&field("c")]), V311), (v5(CLEAN, &[], &[&field("c")]), V5)] {
        let expected = Connect {
            version,
            clean_start: true,
            keep_alive_secs: 60,
            client_id: "c".into(),
            will: None,
            user_name: None,
            password: None,
            session_expiry_secs: 0,
            receive_maximum: id(65_535),
            maximum_packet_size: None,
            request_problem_information: true,
            has_authentication_method: false,
        };
        assert_eq!(connect, Ok(expected));
    }
}

#[test]
fn mqtt_3_1_3_1_a_full_connect_has_its_fields_in_order() {
    let flags = CLEAN | WILL | WILL_QOS_2 | WILL_RETAIN | PASSWORD | USER_NAME;
    let payload = |will_properties: &[u8]| {
        [
            &field("client")[..],
            will_properties,
            &field("gone/é"),
            &field([0, 0xFF]),
            &field("user"),
            &field([0xC0, 0, 0xFF]),
        ]
        .concat()
    };
    let will_properties = properties(&[&[0x18, 0, 0, 0, 7, 0x01, 0, 0x03], &field("text")]);
    let old = v311(flags, &[&payload(&[])]).unwrap();
    let new = v5(flags, &[], &[&payload(&will_properties)]).unwrap();
    for (connect, delay_secs) in [(old, 0), (new, 7)] {
        assert_eq!(&*connect.client_id, "client");
        let will = Will {
            topic: "gone/é".into(),
            payload: Bytes::from_static(&[0, 0xFF]),
            qos: QoS::ExactlyOnce,
            retain: true,
            delay_secs,
        };
        assert_eq!(connect.will, Some(will));
        assert_eq!(connect.user_name.as_deref(), Some("user"));
        assert_eq!(connect.password.as_deref(), Some(&[0xC0, 0, 0xFF][..]));
    }
}

#[test]
fn mqtt_3_1_0_1_the_first_packet_is_a_connect() {
    for first in [[0xC0, 0], [0xE0, 0], [0xF0, 0]] {
        let refused = decode_connect(Bytes::copy_from_slice(&first));
        assert_eq!(refused, Err(CodecError::ConnectExpected));
    }
}

#[test]
fn a_second_connect_is_decoded_for_the_session_to_refuse() {
    let frame = connect(5, 0, &[0], &[&field("c")]);
    assert!(matches!(decode(frame, V5), Ok(Incoming::Connect(_))));
}

#[test]
fn mqtt_3_1_2_1_the_protocol_name_is_mqtt() {
    for name in ["mqtt", "MQTT ", "", "HTTP"] {
        let frame = packet(0x10, &[&field(name), &[4, 0, 0, 0], &field("c")]);
        let error = decode_connect(frame.clone()).unwrap_err();
        assert_eq!(error, CodecError::UnsupportedProtocolName);
        assert_eq!(error.connect_reason(), ConnectReason::UnsupportedProtocolVersion);
        assert_eq!(answer_version(&frame), V311);
    }
}

#[test]
fn mqtt_3_1_2_2_other_versions_are_answered_in_a_form_they_understand() {
    for (name, level, answer) in [
        ("MQIsdp", 3, V311),
        ("MQTT", 0, V311),
        ("MQTT", 3, V311),
        ("MQTT", 6, V311),
        ("MQTT", 0x84, V311),
        ("MQTT", 0x85, V5),
    ] {
        let frame = packet(0x10, &[&field(name), &[level, 0, 0, 0], &field("c")]);
        let error = decode_connect(frame.clone()).unwrap_err();
        assert_eq!(error, CodecError::UnsupportedProtocolVersion { level });
        assert_eq!(error.connect_reason(), ConnectReason::UnsupportedProtocolVersion);
        assert_eq!(answer_version(&frame), answer);
    }
}

#[test]
fn a_refused_connect_is_answered_in_its_own_version() {
    assert_eq!(answer_version(&connect(5, 1, &[], &[])), V5);
    assert_eq!(answer_version(&connect(4, 1, &[], &[])), V311);
}

#[test]
fn mqtt_3_1_2_3_the_reserved_connect_flag_is_0() {
    for refused in [v311(1, &[&field("c")]), v5(1, &[], &[&field("c")])] {
        assert_eq!(refused, Err(CodecError::ConnectFlagReserved));
    }
}

#[test]
fn mqtt_3_1_2_11_and_13_will_qos_and_retain_need_a_will() {
    for flags in [WILL_QOS_1, WILL_QOS_2, WILL_RETAIN] {
        assert_eq!(v311(flags, &[&field("c")]), Err(CodecError::WillFlagsWithoutWill));
        assert_eq!(v5(flags, &[], &[&field("c")]), Err(CodecError::WillFlagsWithoutWill));
    }
}

#[test]
fn mqtt_3_1_2_12_will_qos_3_is_malformed() {
    let flags = WILL | WILL_QOS_1 | WILL_QOS_2;
    assert_eq!(v311(flags, &[&field("c")]), Err(CodecError::WillQoS3));
    assert_eq!(v5(flags, &[], &[&field("c")]), Err(CodecError::WillQoS3));
}

#[test]
fn mqtt_3_1_2_9_a_will_that_is_announced_is_there() {
    assert_eq!(v311(WILL, &[&field("c")]), Err(CodecError::Truncated));
    assert_eq!(v311(WILL, &[&field("c"), &field("t")]), Err(CodecError::Truncated));
    assert_eq!(v5(WILL, &[], &[&field("c"), &[0], &field("t")]), Err(CodecError::Truncated));
}

#[test]
fn a_will_topic_is_a_topic_name() {
    let will = |topic: &str| v311(WILL, &[&field("c"), &field(topic), &field("m")]);
    let empty = will("").unwrap_err();
    assert_eq!(empty, CodecError::EmptyTopic("the Will Topic"));
    let wildcard = will("a/#").unwrap_err();
    assert_eq!(wildcard, CodecError::WildcardInTopicName("the Will Topic"));
    assert_eq!(wildcard.connect_reason(), ConnectReason::TopicNameInvalid);
}

#[test]
fn a_user_name_that_is_present_and_empty_is_not_absent() {
    let connect = v311(USER_NAME | PASSWORD, &[&field("c"), &field(""), &field("")]).unwrap();
    assert_eq!(connect.user_name.as_deref(), Some(""));
    assert_eq!(connect.password.as_deref(), Some(&[][..]));
}

#[test]
fn mqtt_3_1_2_17_and_19_what_the_flags_announce_is_there() {
    assert_eq!(v311(USER_NAME, &[&field("c")]), Err(CodecError::Truncated));
    assert_eq!(v5(PASSWORD, &[], &[&field("c")]), Err(CodecError::Truncated));
}

#[test]
fn mqtt_3_1_2_16_and_18_what_the_flags_do_not_announce_is_not_there() {
    assert_eq!(v311(0, &[&field("c"), &field("user")]), Err(CodecError::TrailingBytes));
    assert_eq!(v5(0, &[], &[&field("c"), &field("user")]), Err(CodecError::TrailingBytes));
}

#[test]
fn a_password_without_user_name_is_for_5_0_only() {
    let payload = [&field("c")[..], &field("secret")].concat();
    assert_eq!(v311(PASSWORD, &[&payload]), Err(CodecError::PasswordWithoutUserName));
    let connect = v5(PASSWORD, &[], &[&payload]).unwrap();
    assert_eq!((connect.user_name, connect.password.as_deref()), (None, Some(&b"secret"[..])));
}

#[test]
fn mqtt_3_1_3_4_a_client_identifier_is_utf8() {
    let surrogate = [0xED, 0xA0, 0x80];
    let refused = v311(0, &[&field(surrogate)]);
    assert_eq!(refused, Err(CodecError::NotUtf8("the Client Identifier")));
    let refused = v5(0, &[], &[&field("a\0")]);
    assert_eq!(refused, Err(CodecError::NullCharacter("the Client Identifier")));
}

#[test]
fn mqtt_3_1_3_12_a_user_name_is_utf8() {
    let refused = v311(USER_NAME, &[&field("c"), &field([0xFF])]);
    assert_eq!(refused, Err(CodecError::NotUtf8("User Name")));
}

#[test]
fn mqtt_1_5_4_3_a_byte_order_mark_is_a_character() {
    let connect = v311(0, &[&field("\u{FEFF}c")]).unwrap();
    assert_eq!(&*connect.client_id, "\u{FEFF}c");
}

#[test]
fn connect_properties_are_read() {
    let connect = with(&[
        &[0x11, 0, 0, 0, 9],
        &[0x21, 0, 5],
        &[0x27, 0, 0, 1, 0],
        &[0x22, 0, 3],
        &[0x19, 1],
        &[0x17, 0],
        &[0x15],
        &field("SCRAM"),
        &[0x16],
        &field([0, 1]),
    ])
    .unwrap();
    assert_eq!(connect.session_expiry_secs, 9);
    assert_eq!(connect.receive_maximum, id(5));
    assert_eq!(connect.maximum_packet_size, Some(256));
    assert!(!connect.request_problem_information);
    assert!(connect.has_authentication_method);
}

#[test]
fn properties_come_once_except_user_properties() {
    let user = [&[0x26][..], &field("k"), &field("v")].concat();
    assert!(with(&[&user, &user, &user]).is_ok());
    let twice = [0x11, 0, 0, 0, 1, 0x11, 0, 0, 0, 1];
    let error = with(&[&twice]).unwrap_err();
    assert_eq!(error, CodecError::PropertyRepeated(0x11));
    assert_eq!(error.connect_reason(), ConnectReason::ProtocolError);
}

#[test]
fn mqtt_1_5_7_1_both_strings_of_a_user_property_are_utf8() {
    let bad = |name: &[u8], value: &[u8]| with(&[&[0x26], &field(name), &field(value)]);
    assert!(matches!(bad(&[0xFF], b"v"), Err(CodecError::NotUtf8(_))));
    assert!(matches!(bad(b"k", b"\0"), Err(CodecError::NullCharacter(_))));
}

#[test]
fn every_property_that_is_not_for_connect_is_refused() {
    let allowed = [0x11, 0x21, 0x27, 0x22, 0x19, 0x17, 0x26, 0x15, 0x16];
    for property in (0..=127).filter(|property| !allowed.contains(property)) {
        let error = with(&[&[property, 0, 0, 0, 0]]).unwrap_err();
        let expected = CodecError::PropertyNotAllowed { property: u32::from(property), packet: "CONNECT" };
        assert_eq!(error, expected);
        assert_eq!(error.connect_reason(), ConnectReason::MalformedPacket);
    }
}

#[test]
fn a_property_identifier_is_a_minimal_variable_byte_integer() {
    let refused = with(&[&[0x91, 0x00, 0, 0, 0, 1]]);
    assert_eq!(refused, Err(CodecError::VariableByteIntegerNotMinimal));
    let refused = with(&[&[0x91, 0x01, 0, 0, 0, 1]]);
    assert!(matches!(refused, Err(CodecError::PropertyNotAllowed { property: 0x91, .. })));
}

#[test]
fn receive_maximum_and_maximum_packet_size_are_not_0() {
    assert_eq!(with(&[&[0x21, 0, 0]]), Err(CodecError::PropertyZero(0x21)));
    assert_eq!(with(&[&[0x27, 0, 0, 0, 0]]), Err(CodecError::PropertyZero(0x27)));
}

#[test]
fn byte_properties_are_0_or_1() {
    for property in [0x17, 0x19] {
        assert_eq!(with(&[&[property, 2]]), Err(CodecError::PropertyNotBoolean(property)));
    }
}

#[test]
fn authentication_data_needs_a_method() {
    let refused = with(&[&[0x16], &field("data")]);
    assert_eq!(refused, Err(CodecError::AuthenticationDataWithoutMethod));
}

#[test]
fn will_properties_are_their_own_set() {
    let will = |parts: &[&[u8]]| {
        let payload = [&field("c")[..], &properties(parts), &field("t"), &field("m")];
        v5(WILL, &[], &payload)
    };
    assert!(will(&[&[0x02, 0, 0, 0, 1], &[0x08], &field("answer"), &[0x09], &field([0])]).is_ok());
    assert_eq!(will(&[&[0x01, 2]]), Err(CodecError::PropertyNotBoolean(0x01)));
    let refused = will(&[&[0x11, 0, 0, 0, 1]]);
    assert!(matches!(refused, Err(CodecError::PropertyNotAllowed { property: 0x11, .. })));
}

#[test]
fn property_length_is_a_boundary() {
    // A string that would end in the payload, and a Property Length that would end after the packet.
    let into_payload = [&[4, 0x15, 0, 9, b'x'][..], &field("client")].concat();
    assert_eq!(decode_connect(connect(5, 0, &into_payload, &[])), Err(CodecError::Truncated));
    assert_eq!(decode_connect(connect(5, 0, &[100], &[&field("c")])), Err(CodecError::Truncated));
}

#[test]
fn every_connect_that_is_cut_inside_is_refused() {
    let flags = WILL | USER_NAME | PASSWORD;
    let body = [&field("c")[..], &[0], &field("t"), &field("m"), &field("u"), &field("p")].concat();
    let whole = connect(5, flags, &[5, 0x11, 0, 0, 0, 1], &[&body]);
    for length in 2..whole.len() {
        let cut = packet(0x10, &[&whole[2..length]]);
        assert_eq!(decode_connect(cut), Err(CodecError::Truncated), "at {length}");
    }
}
