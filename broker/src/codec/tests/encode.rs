//! The bytes of our answers, written out.

use super::*;
use crate::packet::ConnAck;
use crate::reason::{ConnectReason, Reason};

fn encoded(packet: &Outgoing, version: ProtocolVersion) -> Vec<u8> {
    let mut buffer = BytesMut::new();
    encode(packet, version, &mut buffer);
    buffer.to_vec()
}

fn connack(reason: ConnectReason) -> ConnAck {
    ConnAck {
        session_present: true,
        reason,
        assigned_client_id: None,
        session_expiry_secs: None,
        server_keep_alive_secs: None,
        receive_maximum: id(0x0102),
        maximum_packet_size: 0x0304_0506,
        topic_alias_maximum: 0,
        reason_string: None,
    }
}

#[test]
fn acknowledgements_of_success_are_four_bytes_in_both_versions() {
    let (packet_id, reason) = (id(0x0102), Reason::Success);
    for version in BOTH {
        assert_eq!(encoded(&Outgoing::PubAck { packet_id, reason }, version), [0x40, 2, 1, 2]);
        assert_eq!(encoded(&Outgoing::PubRec { packet_id, reason }, version), [0x50, 2, 1, 2]);
        assert_eq!(encoded(&Outgoing::PubComp { packet_id, reason }, version), [0x70, 2, 1, 2]);
    }
}

#[test]
fn acknowledgements_in_5_0_say_why_not() {
    let packet_id = id(0x0102);
    let puback = Outgoing::PubAck { packet_id, reason: Reason::NotAuthorized };
    assert_eq!(encoded(&puback, V5), [0x40, 3, 1, 2, 0x87]);
    let pubrec = Outgoing::PubRec { packet_id, reason: Reason::TopicNameInvalid };
    assert_eq!(encoded(&pubrec, V5), [0x50, 3, 1, 2, 0x90]);
    let pubcomp = Outgoing::PubComp { packet_id, reason: Reason::PacketIdentifierNotFound };
    assert_eq!(encoded(&pubcomp, V5), [0x70, 3, 1, 2, 0x92]);
}

#[test]
fn subscriptions_are_refused_one_by_one() {
    let suback = Outgoing::SubAckRefused { packet_id: id(7), filters: 2 };
    assert_eq!(encoded(&suback, V311), [0x90, 4, 0, 7, 0x80, 0x80]);
    assert_eq!(encoded(&suback, V5), [0x90, 5, 0, 7, 0, 0x87, 0x87]);
    let unsuback = Outgoing::UnsubAck { packet_id: id(7), filters: 2 };
    assert_eq!(encoded(&unsuback, V311), [0xB0, 2, 0, 7]);
    assert_eq!(encoded(&unsuback, V5), [0xB0, 5, 0, 7, 0, 0x11, 0x11]);
}

#[test]
fn a_suback_of_many_filters_has_a_longer_remaining_length() {
    let suback = Outgoing::SubAckRefused { packet_id: id(7), filters: 200 };
    let bytes = encoded(&suback, V5);
    assert_eq!(bytes[..6], [0x90, 0xCB, 0x01, 0, 7, 0]);
    assert_eq!(bytes.len(), 3 + 203);
}

#[test]
fn pingresp_is_two_bytes() {
    for version in BOTH {
        assert_eq!(encoded(&Outgoing::PingResp, version), [0xD0, 0]);
    }
}

#[test]
fn disconnect_is_for_5_0_only() {
    let disconnect = Outgoing::Disconnect { reason: Reason::ServerShuttingDown };
    assert_eq!(encoded(&disconnect, V5), [0xE0, 2, 0x8B, 0]);
    assert!(encoded(&disconnect, V311).is_empty());
}

#[test]
fn connack_in_3_1_1_is_four_bytes() {
    let accepted = Outgoing::ConnAck(Box::new(connack(ConnectReason::Success)));
    assert_eq!(encoded(&accepted, V311), [0x20, 2, 1, 0]);
    let refused = Outgoing::ConnAck(Box::new(connack(ConnectReason::BadUserNameOrPassword)));
    assert_eq!(encoded(&refused, V311), [0x20, 2, 0, 4]);
}

#[test]
fn connack_without_a_3_1_1_return_code_is_not_written() {
    let refused = Outgoing::ConnAck(Box::new(connack(ConnectReason::ProtocolError)));
    assert!(encoded(&refused, V311).is_empty());
}

#[test]
fn connack_in_5_0_says_what_is_there_and_what_is_not() {
    let accepted = Outgoing::ConnAck(Box::new(connack(ConnectReason::Success)));
    let expected = [
        &[0x20, 17, 1, 0, 14][..],
        &[0x21, 1, 2],       // Receive Maximum
        &[0x27, 3, 4, 5, 6], // Maximum Packet Size
        &[0x28, 0],          // no Wildcard Subscriptions
        &[0x29, 0],          // no Subscription Identifiers
        &[0x2A, 0],          // no Shared Subscriptions
    ];
    assert_eq!(encoded(&accepted, V5), expected.concat());
}

#[test]
fn mqtt_3_2_2_14_retain_available_is_not_denied_since_the_flag_is_recorded() {
    const RETAIN_AVAILABLE: u8 = 0x25;
    let accepted = Outgoing::ConnAck(Box::new(connack(ConnectReason::Success)));
    assert!(!encoded(&accepted, V5).contains(&RETAIN_AVAILABLE));
}

#[test]
fn connack_in_5_0_carries_what_the_session_decides() {
    let full = ConnAck {
        assigned_client_id: Some("id".into()),
        session_expiry_secs: Some(9),
        server_keep_alive_secs: Some(30),
        topic_alias_maximum: 32,
        ..connack(ConnectReason::Success)
    };
    let bytes = encoded(&Outgoing::ConnAck(Box::new(full)), V5);
    let holds = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(holds(&[0x12, 0, 2, b'i', b'd']));
    assert!(holds(&[0x11, 0, 0, 0, 9]));
    assert!(holds(&[0x13, 0, 30]));
    assert!(holds(&[0x22, 0, 32]));
    assert_eq!(usize::from(bytes[1]), bytes.len() - 2);
    assert_eq!(usize::from(bytes[4]), bytes.len() - 5);
}

#[test]
fn mqtt_3_2_2_6_a_refusing_connack_has_no_session_and_only_a_reason_string() {
    let mut refused = connack(ConnectReason::NotAuthorized);
    assert_eq!(encoded(&Outgoing::ConnAck(Box::new(refused.clone())), V5), [0x20, 3, 0, 0x87, 0]);
    refused.reason_string = Some("no");
    let bytes = encoded(&Outgoing::ConnAck(Box::new(refused)), V5);
    assert_eq!(bytes, [0x20, 8, 0, 0x87, 5, 0x1F, 0, 2, b'n', b'o']);
}

#[test]
fn a_text_that_does_not_fit_its_length_is_cut_at_a_character() {
    let long = ConnAck { assigned_client_id: Some("é".repeat(40_000).into()), ..connack(ConnectReason::Success) };
    let mut buffer = BytesMut::new();
    encode(&Outgoing::ConnAck(Box::new(long)), V5, &mut buffer);
    let at = buffer.windows(3).position(|window| window == [0x12, 0xFF, 0xFE]).unwrap();
    assert!(std::str::from_utf8(&buffer[at + 3..at + 3 + 0xFFFE]).is_ok());
}
