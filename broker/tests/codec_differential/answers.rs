//! What we write, as rumqttc's clients read it.

use std::num::NonZeroU16;

use bytes::BytesMut;
use fastrand::Rng;
use forebay_broker::codec;
use forebay_broker::packet::{ConnAck, Outgoing, ProtocolVersion};
use forebay_broker::reason::{ConnectReason, Reason};
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;

use crate::{LIMIT, generate};

/// Writes one random answer in both versions and reads it back with rumqttc.
pub(crate) fn check(rng: &mut Rng) {
    let answer = answer(rng);
    check_v4(&answer);
    check_v5(&answer);
}

fn answer(rng: &mut Rng) -> Outgoing {
    let packet_id = NonZeroU16::new(generate::id(rng)).unwrap();
    let filters = rng.usize(1..300);
    match rng.u8(..8) {
        0 | 1 => Outgoing::ConnAck(Box::new(connack(rng))),
        2 => {
            let reasons =
                [Reason::Success, Reason::NotAuthorized, Reason::TopicNameInvalid, Reason::PayloadFormatInvalid];
            let reason = reasons[rng.usize(..reasons.len())];
            if rng.bool() { Outgoing::PubAck { packet_id, reason } } else { Outgoing::PubRec { packet_id, reason } }
        }
        3 => {
            let reason = [Reason::Success, Reason::PacketIdentifierNotFound][rng.usize(..2)];
            Outgoing::PubComp { packet_id, reason }
        }
        4 => Outgoing::SubAckRefused { packet_id, filters },
        5 => Outgoing::UnsubAck { packet_id, filters },
        6 => Outgoing::PingResp,
        _ => Outgoing::Disconnect { reason: disconnect_reason(rng) },
    }
}

fn connack(rng: &mut Rng) -> ConnAck {
    use ConnectReason::*;
    let reasons = [
        Success,
        Success,
        Success,
        UnspecifiedError,
        MalformedPacket,
        ProtocolError,
        UnsupportedProtocolVersion,
        ClientIdentifierNotValid,
        BadUserNameOrPassword,
        NotAuthorized,
        ServerUnavailable,
        ServerBusy,
        BadAuthenticationMethod,
        TopicNameInvalid,
        PacketTooLarge,
    ];
    ConnAck {
        session_present: rng.bool(),
        reason: reasons[rng.usize(..reasons.len())],
        assigned_client_id: generate::maybe(rng, |rng| generate::some_text(rng).into()),
        session_expiry_secs: generate::maybe(rng, |rng| rng.u32(..)),
        server_keep_alive_secs: generate::maybe(rng, |rng| rng.u16(..)),
        receive_maximum: NonZeroU16::new(generate::id(rng)).unwrap(),
        maximum_packet_size: rng.u32(1..),
        topic_alias_maximum: rng.u16(..),
        reason_string: [None, Some(""), Some("é: no")][rng.usize(..3)],
    }
}

fn disconnect_reason(rng: &mut Rng) -> Reason {
    use Reason::*;
    let reasons = [
        Success,
        UnspecifiedError,
        MalformedPacket,
        ProtocolError,
        NotAuthorized,
        ServerBusy,
        ServerShuttingDown,
        KeepAliveTimeout,
        SessionTakenOver,
        TopicNameInvalid,
        ReceiveMaximumExceeded,
        TopicAliasInvalid,
        PacketTooLarge,
        MessageRateTooHigh,
        QuotaExceeded,
        AdministrativeAction,
        PayloadFormatInvalid,
    ];
    reasons[rng.usize(..reasons.len())]
}

fn check_v4(answer: &Outgoing) {
    let mut bytes = encoded(answer, ProtocolVersion::V311);
    if bytes.is_empty() {
        let is_silent = match answer {
            Outgoing::ConnAck(connack) => connack.reason.v311().is_none(),
            Outgoing::Disconnect { .. } => true,
            _ => false,
        };
        return assert!(is_silent, "nothing written for {answer:?}");
    }
    let theirs = v4::Packet::read(&mut bytes, LIMIT as usize).unwrap();
    assert!(bytes.is_empty(), "more than one packet");
    match (answer, theirs) {
        (Outgoing::ConnAck(ours), v4::Packet::ConnAck(theirs)) => {
            assert_eq!(ours.reason.v311(), Some(theirs.code as u8));
            let is_success = ours.reason == ConnectReason::Success;
            assert_eq!(ours.session_present && is_success, theirs.session_present);
        }
        (Outgoing::PubAck { packet_id, .. }, v4::Packet::PubAck(theirs)) => assert_eq!(packet_id.get(), theirs.pkid),
        (Outgoing::PubRec { packet_id, .. }, v4::Packet::PubRec(theirs)) => assert_eq!(packet_id.get(), theirs.pkid),
        (Outgoing::PubComp { packet_id, .. }, v4::Packet::PubComp(theirs)) => assert_eq!(packet_id.get(), theirs.pkid),
        (Outgoing::SubAckRefused { packet_id, filters }, v4::Packet::SubAck(theirs)) => {
            assert_eq!(packet_id.get(), theirs.pkid);
            assert_eq!(theirs.return_codes, vec![v4::SubscribeReasonCode::Failure; *filters]);
        }
        (Outgoing::UnsubAck { packet_id, .. }, v4::Packet::UnsubAck(theirs)) => {
            assert_eq!(packet_id.get(), theirs.pkid);
        }
        (Outgoing::PingResp, v4::Packet::PingResp) => {}
        (ours, theirs) => panic!("we wrote {ours:?}, rumqttc reads {theirs:?}"),
    }
}

fn check_v5(answer: &Outgoing) {
    let mut bytes = encoded(answer, ProtocolVersion::V5);
    let theirs = v5::Packet::read(&mut bytes, Some(LIMIT)).unwrap();
    assert!(bytes.is_empty(), "more than one packet");
    match (answer, theirs) {
        (Outgoing::ConnAck(ours), v5::Packet::ConnAck(theirs)) => check_connack_v5(ours, &theirs),
        (Outgoing::PubAck { packet_id, reason }, v5::Packet::PubAck(theirs)) => {
            assert_eq!((packet_id.get(), format!("{reason:?}")), (theirs.pkid, format!("{:?}", theirs.reason)));
        }
        (Outgoing::PubRec { packet_id, reason }, v5::Packet::PubRec(theirs)) => {
            assert_eq!((packet_id.get(), format!("{reason:?}")), (theirs.pkid, format!("{:?}", theirs.reason)));
        }
        (Outgoing::PubComp { packet_id, reason }, v5::Packet::PubComp(theirs)) => {
            assert_eq!((packet_id.get(), format!("{reason:?}")), (theirs.pkid, format!("{:?}", theirs.reason)));
        }
        (Outgoing::SubAckRefused { packet_id, filters }, v5::Packet::SubAck(theirs)) => {
            assert_eq!(packet_id.get(), theirs.pkid);
            assert_eq!(theirs.return_codes, vec![v5::SubscribeReasonCode::NotAuthorized; *filters]);
        }
        (Outgoing::UnsubAck { packet_id, filters }, v5::Packet::UnsubAck(theirs)) => {
            assert_eq!(packet_id.get(), theirs.pkid);
            assert_eq!(theirs.reasons, vec![v5::UnsubAckReason::NoSubscriptionExisted; *filters]);
        }
        (Outgoing::PingResp, v5::Packet::PingResp(_)) => {}
        (Outgoing::Disconnect { reason }, v5::Packet::Disconnect(theirs)) => {
            assert_eq!(*reason as u8, theirs.reason_code as u8);
        }
        (ours, theirs) => panic!("we wrote {ours:?}, rumqttc reads {theirs:?}"),
    }
}

fn check_connack_v5(ours: &ConnAck, theirs: &v5::ConnAck) {
    let is_success = ours.reason == ConnectReason::Success;
    assert_eq!(is_success, theirs.code == v5::ConnectReturnCode::Success);
    assert_eq!(ours.session_present && is_success, theirs.session_present);
    let reason_string = theirs.properties.as_ref().and_then(|properties| properties.reason_string.as_deref());
    assert_eq!(ours.reason_string, reason_string);
    if !is_success {
        return;
    }
    let theirs = theirs.properties.as_ref().expect("a success has properties");
    assert_eq!(theirs.assigned_client_identifier.as_deref(), ours.assigned_client_id.as_deref());
    assert_eq!(theirs.session_expiry_interval, ours.session_expiry_secs);
    assert_eq!(theirs.server_keep_alive, ours.server_keep_alive_secs);
    assert_eq!(theirs.receive_max, Some(ours.receive_maximum.get()));
    assert_eq!(theirs.max_packet_size, Some(ours.maximum_packet_size));
    assert_eq!(theirs.topic_alias_max.unwrap_or(0), ours.topic_alias_maximum);
    assert_eq!(theirs.wildcard_subscription_available, Some(0));
    assert_eq!(theirs.subscription_identifiers_available, Some(0));
    assert_eq!(theirs.shared_subscription_available, Some(0));
    assert_eq!((theirs.retain_available, theirs.max_qos), (None, None));
}

fn encoded(answer: &Outgoing, version: ProtocolVersion) -> BytesMut {
    let mut bytes = BytesMut::new();
    codec::encode(answer, version, &mut bytes);
    bytes
}
