//! PUBLISH: the hot path.

use super::*;
use crate::packet::{Publish, QoS};
use crate::reason::Reason;

/// A PUBLISH of QoS 1 with Packet Identifier 7.
fn publish(topic: impl AsRef<[u8]>, version: ProtocolVersion) -> Result<Publish, CodecError> {
    let frame = packet(0x32, &[&field(topic), &[0, 7], no_properties(version), b"payload"]);
    decoded(frame, version)
}

/// A 5.0 PUBLISH of QoS 0 to "t" with the given properties.
fn with(parts: &[&[u8]]) -> Result<Publish, CodecError> {
    decoded(packet(0x30, &[&field("t"), &properties(parts), b"payload"]), V5)
}

fn decoded(frame: Bytes, version: ProtocolVersion) -> Result<Publish, CodecError> {
    match decode(frame, version)? {
        Incoming::Publish(publish) => Ok(publish),
        other => panic!("decoded as {other:?}"),
    }
}

#[test]
fn flags_topic_identifier_and_payload_are_read() {
    for version in BOTH {
        let body: [&[u8]; 4] = [&field("a/é"), &[0x12, 0x34], no_properties(version), b"\0\xFF"];
        let publish = decoded(packet(0x3D, &body), version).unwrap();
        assert_eq!((publish.dup, publish.qos, publish.retain), (true, QoS::ExactlyOnce, true));
        assert_eq!(publish.topic.as_str(), "a/é");
        assert_eq!(publish.packet_id, Some(id(0x1234)));
        assert_eq!(publish.topic_alias, None);
        assert_eq!(publish.payload, &b"\0\xFF"[..]);
    }
}

#[test]
fn topic_and_payload_share_the_buffer_of_the_frame() {
    for version in BOTH {
        let frame = packet(0x32, &[&field("topic"), &[0, 7], no_properties(version), b"payload"]);
        let within = frame.as_ptr_range();
        let publish = decoded(frame.clone(), version).unwrap();
        assert!(within.contains(&publish.topic.as_bytes().as_ptr()));
        assert!(within.contains(&publish.payload.as_ptr()));
    }
}

#[test]
fn mqtt_2_2_1_2_qos_0_has_no_packet_identifier() {
    for version in BOTH {
        let frame = packet(0x30, &[&field("t"), no_properties(version), &[0, 7]]);
        let publish = decoded(frame, version).unwrap();
        assert_eq!(publish.packet_id, None);
        assert_eq!(publish.payload, &[0, 7][..]);
    }
}

#[test]
fn mqtt_2_2_1_3_a_packet_identifier_is_not_0() {
    for version in BOTH {
        let frame = packet(0x32, &[&field("t"), &[0, 0], no_properties(version)]);
        assert_eq!(decoded(frame, version), Err(CodecError::PacketIdentifierZero));
    }
}

#[test]
fn a_payload_may_be_empty() {
    for version in BOTH {
        let publish = decoded(packet(0x30, &[&field("t"), no_properties(version)]), version);
        assert!(publish.unwrap().payload.is_empty());
    }
}

#[test]
fn mqtt_3_3_2_2_a_topic_name_has_no_wildcards() {
    for version in BOTH {
        for topic in ["+", "#", "a/+/b", "a/#", "a+", "#a"] {
            let error = publish(topic, version).unwrap_err();
            assert_eq!(error, CodecError::WildcardInTopicName("the Topic Name"));
            assert_eq!(error.reason(), Reason::TopicNameInvalid);
        }
    }
}

#[test]
fn mqtt_1_5_4_1_a_topic_name_is_well_formed_utf8() {
    let ill_formed = [&[0xFF][..], &[0xC3], &[0xC0, 0x80], &[0xED, 0xA0, 0x80], &[0xF4, 0x90, 0x80, 0x80]];
    for version in BOTH {
        for topic in ill_formed {
            let error = publish(topic, version).unwrap_err();
            assert_eq!(error, CodecError::NotUtf8("the Topic Name"));
            assert_eq!(error.reason(), Reason::MalformedPacket);
        }
    }
}

#[test]
fn mqtt_1_5_4_2_a_topic_name_has_no_null_character() {
    for version in BOTH {
        let refused = publish("a\0b", version);
        assert_eq!(refused, Err(CodecError::NullCharacter("the Topic Name")));
    }
}

#[test]
fn mqtt_4_7_3_1_a_topic_name_is_not_empty_unless_an_alias_stands_for_it() {
    assert_eq!(publish("", V311), Err(CodecError::EmptyTopic("the Topic Name")));
    let error = publish("", V5).unwrap_err();
    assert_eq!(error, CodecError::TopicAliasMissing);
    assert_eq!(error.reason(), Reason::ProtocolError);

    let frame = packet(0x30, &[&field(""), &[3, 0x23, 0, 9], b"payload"]);
    let publish = decoded(frame, V5).unwrap();
    assert!(publish.topic.is_empty());
    assert_eq!(publish.topic_alias, Some(id(9)));
}

#[test]
fn mqtt_3_3_2_8_a_topic_alias_is_not_0() {
    let error = with(&[&[0x23, 0, 0]]).unwrap_err();
    assert_eq!(error, CodecError::TopicAliasZero);
    assert_eq!(error.reason(), Reason::TopicAliasInvalid);
}

#[test]
fn mqtt_3_3_4_6_a_client_sends_no_subscription_identifier() {
    let error = with(&[&[0x0B, 1]]).unwrap_err();
    assert_eq!(error, CodecError::SubscriptionIdentifierInPublish);
    assert_eq!(error.reason(), Reason::ProtocolError);
}

#[test]
fn every_publish_property_may_come_once() {
    let each: [&[u8]; 6] =
        [&[0x01, 1], &[0x02, 0, 0, 0, 9], &[0x23, 0, 1], &[0x08, 0, 1, b'r'], &[0x09, 0, 2, 0, 1], &[0x03, 0, 1, b'c']];
    assert_eq!(with(&each).unwrap().payload, &b"payload"[..]);
    for property in each {
        let refused = with(&[property, property]);
        assert_eq!(refused, Err(CodecError::PropertyRepeated(property[0])));
    }
    let user = [&[0x26][..], &field("k"), &field("v")].concat();
    assert!(with(&[&user, &user]).is_ok());
}

#[test]
fn every_property_that_is_not_for_publish_is_refused() {
    let known = [0x01, 0x02, 0x03, 0x08, 0x09, 0x0B, 0x23, 0x26];
    for property in (0..=127).filter(|property| !known.contains(property)) {
        let refused = with(&[&[property, 0, 0, 0, 0]]);
        let expected = CodecError::PropertyNotAllowed { property: u32::from(property), packet: "PUBLISH" };
        assert_eq!(refused, Err(expected));
    }
}

#[test]
fn mqtt_3_3_2_14_a_response_topic_is_a_topic_name() {
    let response = |topic: &str| with(&[&[0x08], &field(topic)]);
    assert_eq!(response("a/+"), Err(CodecError::WildcardInTopicName("Response Topic")));
    assert_eq!(response(""), Err(CodecError::EmptyTopic("Response Topic")));
}

#[test]
fn a_payload_format_indicator_is_0_or_1() {
    assert_eq!(with(&[&[0x01, 2]]), Err(CodecError::PropertyNotBoolean(0x01)));
}

#[test]
fn property_length_is_a_boundary_that_no_property_crosses_into_the_payload() {
    // A User Property whose value would be the first bytes of the payload.
    let frame = packet(0x30, &[&field("t"), &[6, 0x26, 0, 1, b'k', 0, 4], b"payload"]);
    assert_eq!(decoded(frame, V5), Err(CodecError::Truncated));
    let frame = packet(0x30, &[&field("t"), &[100], b"payload"]);
    assert_eq!(decoded(frame, V5), Err(CodecError::Truncated));
    let frame = packet(0x30, &[&field("t"), &[0x80, 0x00], b"payload"]);
    assert_eq!(decoded(frame, V5), Err(CodecError::VariableByteIntegerNotMinimal));
}

#[test]
fn a_publish_that_ends_inside_a_field_is_refused() {
    let body = [&field("topic")[..], &[0, 7], &[3, 0x23, 0, 1]].concat();
    for length in 0..body.len() {
        let refused = decoded(packet(0x32, &[&body[..length]]), V5);
        assert_eq!(refused, Err(CodecError::Truncated), "at {length}");
    }
    assert!(decoded(packet(0x32, &[&body]), V5).is_ok());
}
