//! Valid packets of rumqttc's 5.0 client, and its reader.

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    Connect, ConnectProperties, Disconnect, DisconnectProperties, DisconnectReasonCode, Filter, LastWill,
    LastWillProperties, Login, Packet, PingReq, PubRel, PubRelProperties, PubRelReason, Publish, PublishProperties,
    RetainForwardRule, Subscribe, SubscribeProperties, Unsubscribe, UnsubscribeProperties,
};

use crate::{LIMIT, generate};

/// A packet and the bytes that rumqttc writes for it.
pub(crate) fn written(rng: &mut Rng) -> (Bytes, Packet) {
    let packet = packet(rng);
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, Some(LIMIT)).unwrap();
    (bytes.freeze(), packet)
}

/// What rumqttc reads, or `None` when it refuses or wants more.
pub(crate) fn read(bytes: &[u8]) -> Option<Packet> {
    Packet::read(&mut BytesMut::from(bytes), Some(LIMIT)).ok()
}

fn packet(rng: &mut Rng) -> Packet {
    match rng.u8(..12) {
        0..=2 => connect(rng),
        3..=6 => Packet::Publish(publish(rng)),
        7 => Packet::PubRel(pubrel(rng)),
        8 => Packet::Subscribe(subscribe(rng)),
        9 => Packet::Unsubscribe(unsubscribe(rng)),
        10 => Packet::PingReq(PingReq),
        _ => Packet::Disconnect(disconnect(rng)),
    }
}

fn connect(rng: &mut Rng) -> Packet {
    let connect = Connect {
        keep_alive: rng.u16(..),
        client_id: generate::text(rng),
        clean_start: rng.bool(),
        properties: generate::maybe(rng, connect_properties),
    };
    let will = generate::maybe(rng, |rng| LastWill {
        topic: generate::some_text(rng).into(),
        message: generate::bytes(rng),
        qos: qos(rng),
        retain: rng.bool(),
        properties: generate::maybe(rng, will_properties),
    });
    let login = generate::maybe(rng, |rng| Login { username: generate::text(rng), password: generate::some_text(rng) });
    Packet::Connect(connect, will, login)
}

fn connect_properties(rng: &mut Rng) -> ConnectProperties {
    let authentication_method = generate::maybe(rng, generate::text);
    ConnectProperties {
        session_expiry_interval: generate::maybe(rng, |rng| rng.u32(..)),
        receive_maximum: generate::maybe(rng, generate::id),
        max_packet_size: generate::maybe(rng, |rng| rng.u32(1..)),
        topic_alias_max: generate::maybe(rng, |rng| rng.u16(..)),
        request_response_info: generate::maybe(rng, |rng| rng.u8(..2)),
        request_problem_info: generate::maybe(rng, |rng| rng.u8(..2)),
        user_properties: generate::user_properties(rng),
        authentication_data: authentication_method.as_ref().map(|_| generate::bytes(rng)),
        authentication_method,
    }
}

fn will_properties(rng: &mut Rng) -> LastWillProperties {
    LastWillProperties {
        delay_interval: generate::maybe(rng, |rng| rng.u32(..)),
        payload_format_indicator: generate::maybe(rng, |rng| rng.u8(..2)),
        message_expiry_interval: generate::maybe(rng, |rng| rng.u32(..)),
        content_type: generate::maybe(rng, generate::text),
        response_topic: generate::maybe(rng, generate::some_text),
        correlation_data: generate::maybe(rng, generate::bytes),
        user_properties: generate::user_properties(rng),
    }
}

fn publish(rng: &mut Rng) -> Publish {
    let qos = qos(rng);
    let properties = generate::maybe(rng, publish_properties);
    let has_alias = properties.as_ref().is_some_and(|properties| properties.topic_alias.is_some());
    let topic = match has_alias {
        true => generate::text(rng),
        false => generate::some_text(rng),
    };
    Publish {
        dup: qos != QoS::AtMostOnce && rng.bool(),
        qos,
        retain: rng.bool(),
        topic: topic.into(),
        pkid: if qos == QoS::AtMostOnce { 0 } else { generate::id(rng) },
        payload: generate::bytes(rng),
        properties,
    }
}

fn publish_properties(rng: &mut Rng) -> PublishProperties {
    PublishProperties {
        payload_format_indicator: generate::maybe(rng, |rng| rng.u8(..2)),
        message_expiry_interval: generate::maybe(rng, |rng| rng.u32(..)),
        topic_alias: generate::maybe(rng, generate::id),
        response_topic: generate::maybe(rng, generate::some_text),
        correlation_data: generate::maybe(rng, generate::bytes),
        user_properties: generate::user_properties(rng),
        subscription_identifiers: Vec::new(),
        content_type: generate::maybe(rng, generate::text),
    }
}

fn pubrel(rng: &mut Rng) -> PubRel {
    PubRel {
        pkid: generate::id(rng),
        reason: [PubRelReason::Success, PubRelReason::PacketIdentifierNotFound][rng.usize(..2)],
        properties: generate::maybe(rng, |rng| PubRelProperties {
            reason_string: generate::maybe(rng, generate::text),
            user_properties: generate::user_properties(rng),
        }),
    }
}

fn subscribe(rng: &mut Rng) -> Subscribe {
    let filters = (0..rng.usize(1..5)).map(|_| filter(rng)).collect();
    // Never both: rumqttc loses count of a Property Length after a Subscription Identifier (see `laxities`).
    let properties = generate::maybe(rng, |rng| match rng.bool() {
        true => SubscribeProperties { id: Some(rng.usize(1..268_435_456)), user_properties: Vec::new() },
        false => SubscribeProperties { id: None, user_properties: generate::user_properties(rng) },
    });
    Subscribe { pkid: generate::id(rng), filters, properties }
}

fn filter(rng: &mut Rng) -> Filter {
    let path = generate::filter(rng, true);
    Filter {
        qos: qos(rng),
        nolocal: !path.starts_with("$share/") && rng.bool(),
        path,
        preserve_retain: rng.bool(),
        retain_forward_rule: match rng.u8(..3) {
            0 => RetainForwardRule::OnEverySubscribe,
            1 => RetainForwardRule::OnNewSubscribe,
            _ => RetainForwardRule::Never,
        },
    }
}

fn unsubscribe(rng: &mut Rng) -> Unsubscribe {
    Unsubscribe {
        pkid: generate::id(rng),
        filters: (0..rng.usize(1..5)).map(|_| generate::filter(rng, true)).collect(),
        properties: generate::maybe(rng, |rng| UnsubscribeProperties {
            user_properties: generate::user_properties(rng),
        }),
    }
}

fn disconnect(rng: &mut Rng) -> Disconnect {
    let reasons = [
        DisconnectReasonCode::NormalDisconnection,
        DisconnectReasonCode::DisconnectWithWillMessage,
        DisconnectReasonCode::UnspecifiedError,
        DisconnectReasonCode::QuotaExceeded,
    ];
    let reason_code = reasons[rng.usize(..reasons.len())];
    let mut properties = generate::maybe(rng, |rng| DisconnectProperties {
        session_expiry_interval: generate::maybe(rng, |rng| rng.u32(..)),
        reason_string: generate::maybe(rng, generate::text),
        user_properties: generate::user_properties(rng),
        server_reference: None,
    });
    if reason_code != DisconnectReasonCode::NormalDisconnection {
        // Without a property rumqttc loses the reason, or writes a byte more than its Remaining Length.
        let properties = properties.get_or_insert(DisconnectProperties {
            session_expiry_interval: None,
            reason_string: None,
            user_properties: Vec::new(),
            server_reference: None,
        });
        properties.session_expiry_interval = Some(rng.u32(..));
    }
    Disconnect { reason_code, properties }
}

fn qos(rng: &mut Rng) -> QoS {
    [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][rng.usize(..3)]
}
