//! PUBREL, PINGREQ, DISCONNECT and AUTH.

use super::*;
use crate::reason::Reason;

fn decoded(first: u8, body: &[u8], version: ProtocolVersion) -> Result<Incoming, CodecError> {
    decode(packet(first, &[body]), version)
}

#[test]
fn a_pubrel_has_an_identifier_and_in_5_0_a_reason_and_properties() {
    let released = Ok(Incoming::PubRel { packet_id: id(7) });
    assert_eq!(decoded(0x62, &[0, 7], V311), released);
    assert_eq!(decoded(0x62, &[0, 7], V5), released);
    assert_eq!(decoded(0x62, &[0, 7, 0], V5), released);
    assert_eq!(decoded(0x62, &[0, 7, 0x92], V5), released);
    assert_eq!(decoded(0x62, &[0, 7, 0, 0], V5), released);
    assert_eq!(decoded(0x62, &[0, 7, 0, 4, 0x1F, 0, 1, b'x'], V5), released);
}

#[test]
fn a_pubrel_that_says_more_or_less_is_refused() {
    assert_eq!(decoded(0x62, &[0], V311), Err(CodecError::Truncated));
    assert_eq!(decoded(0x62, &[0, 0], V311), Err(CodecError::PacketIdentifierZero));
    assert_eq!(decoded(0x62, &[0, 7, 0], V311), Err(CodecError::TrailingBytes));
    assert_eq!(decoded(0x62, &[0, 0], V5), Err(CodecError::PacketIdentifierZero));
    assert_eq!(decoded(0x62, &[0, 7, 0, 0, 0], V5), Err(CodecError::TrailingBytes));
    assert_eq!(decoded(0x62, &[0, 7, 0, 1], V5), Err(CodecError::Truncated));
    let property = decoded(0x62, &[0, 7, 0, 5, 0x11, 0, 0, 0, 1], V5);
    assert!(matches!(property, Err(CodecError::PropertyNotAllowed { .. })));
}

#[test]
fn mqtt_3_6_2_1_a_pubrel_has_one_of_its_reason_codes() {
    for reason in 0..=255 {
        let is_good = [0x00, 0x92].contains(&reason);
        assert_eq!(decoded(0x62, &[0, 7, reason], V5).is_ok(), is_good, "{reason:#04x}");
    }
}

#[test]
fn a_pingreq_is_empty() {
    for version in BOTH {
        assert_eq!(decoded(0xC0, &[], version), Ok(Incoming::PingReq));
        assert_eq!(decoded(0xC0, &[0], version), Err(CodecError::TrailingBytes));
    }
}

#[test]
fn a_disconnect_may_be_empty_and_in_5_0_have_a_reason_and_properties() {
    let left = |reason, session_expiry_secs| Ok(Incoming::Disconnect { reason, session_expiry_secs });
    assert_eq!(decoded(0xE0, &[], V311), left(0, None));
    assert_eq!(decoded(0xE0, &[], V5), left(0, None));
    assert_eq!(decoded(0xE0, &[0x04], V5), left(4, None));
    assert_eq!(decoded(0xE0, &[0x04, 0], V5), left(4, None));
    assert_eq!(decoded(0xE0, &[0x00, 5, 0x11, 0, 0, 0, 9], V5), left(0, Some(9)));
}

#[test]
fn a_disconnect_that_says_more_or_less_is_refused() {
    assert_eq!(decoded(0xE0, &[0], V311), Err(CodecError::TrailingBytes));
    assert_eq!(decoded(0xE0, &[0, 0, 0], V5), Err(CodecError::TrailingBytes));
    assert_eq!(decoded(0xE0, &[0, 9], V5), Err(CodecError::Truncated));
    // A Server Reference is for servers.
    let property = decoded(0xE0, &[0, 4, 0x1C, 0, 1, b's'], V5);
    assert!(matches!(property, Err(CodecError::PropertyNotAllowed { property: 0x1C, .. })));
}

#[test]
fn mqtt_3_14_2_1_a_disconnect_has_a_reason_code_that_clients_send() {
    let of_clients = [0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99];
    for reason in 0..=255 {
        let is_good = of_clients.contains(&reason);
        assert_eq!(decoded(0xE0, &[reason], V5).is_ok(), is_good, "{reason:#04x}");
    }
}

#[test]
fn an_auth_is_decoded_in_5_0_and_reserved_in_3_1_1() {
    assert_eq!(decoded(0xF0, &[], V311), Err(CodecError::PacketTypeReserved(15)));
    assert_eq!(decoded(0xF0, &[], V5), Ok(Incoming::Auth));
    assert_eq!(decoded(0xF0, &[0x18, 5, 0x15, 0, 2, b'S', b'C'], V5), Ok(Incoming::Auth));
    let error = decoded(0xF0, &[0x87, 0], V5).unwrap_err();
    assert_eq!(error.reason(), Reason::ProtocolError);
}

#[test]
fn every_error_says_where_its_rule_is_from() {
    let errors = [
        CodecError::PacketTypeReserved(0),
        CodecError::QoS3,
        CodecError::DupWithQoS0,
        CodecError::Truncated,
        CodecError::PropertyRepeated(0x11),
        CodecError::NoTopicFilter("SUBSCRIBE"),
        CodecError::PacketTooLarge { bytes: 2, limit: 1 },
    ];
    for error in errors {
        let message = error.to_string();
        assert!(message.contains("MQTT"), "{message}");
    }
}
