//! MQTT 5.0: what each packet of a client holds after its fixed header, and the bytes of our answers.

use std::num::NonZeroU32;

use bytes::{BufMut, Bytes, BytesMut};

use super::CodecError;
use super::frame::PublishFlags;
use super::primitives::{Reader, put_text, put_variable_byte_integer};
use super::properties::{self, Properties, Property};
use super::shared::{self, ConnectFlags};
use super::v4::put_packet_id;
use crate::packet::{ConnAck, Connect, Incoming, Outgoing, PacketId, ProtocolVersion, Publish, Will};
use crate::reason::{ConnectReason, Reason};

/// UNSUBACK "No subscription existed", section 3.11.3.
const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;

/// CONNECT after its Protocol Version.
pub(super) fn connect(mut body: Reader) -> Result<Connect, CodecError> {
    let flags = ConnectFlags::read(&mut body)?;
    let keep_alive_secs = body.u16()?;
    let mut connect = Connect {
        version: ProtocolVersion::V5,
        clean_start: flags.clean_start,
        keep_alive_secs,
        client_id: "".into(),
        will: None,
        user_name: None,
        password: None,
        session_expiry_secs: 0,
        receive_maximum: PacketId::MAX,
        maximum_packet_size: None,
        request_problem_information: true,
        has_authentication_method: false,
    };
    connect_properties(&mut body, &mut connect)?;
    connect.client_id = body.text("the Client Identifier")?.into(); // [MQTT-3.1.3-4]
    if let Some((qos, retain)) = flags.will {
        let delay_secs = will_delay(&mut body)?;
        connect.will = Some(Will {
            topic: shared::will_topic(&mut body)?,
            payload: Bytes::copy_from_slice(body.binary()?),
            qos,
            retain,
            delay_secs,
        });
    }
    (connect.user_name, connect.password) = shared::credentials(&mut body, flags)?;
    body.finish()?;
    Ok(connect)
}

fn connect_properties(body: &mut Reader, connect: &mut Connect) -> Result<(), CodecError> {
    let mut has_authentication_data = false;
    let mut properties = Properties::of(body, properties::CONNECT)?;
    while let Some(property) = properties.next()? {
        match property {
            Property::SessionExpiryInterval(secs) => connect.session_expiry_secs = secs,
            Property::ReceiveMaximum(maximum) => connect.receive_maximum = maximum,
            Property::MaximumPacketSize(bytes) => connect.maximum_packet_size = Some(bytes.get()),
            Property::RequestProblemInformation(wanted) => {
                connect.request_problem_information = wanted;
            }
            Property::AuthenticationMethod => connect.has_authentication_method = true,
            Property::AuthenticationData => has_authentication_data = true,
            _ => {}
        }
    }
    if has_authentication_data && !connect.has_authentication_method {
        return Err(CodecError::AuthenticationDataWithoutMethod); // section 3.1.2.11.10
    }
    Ok(())
}

fn will_delay(body: &mut Reader) -> Result<u32, CodecError> {
    let mut delay_secs = 0;
    let mut properties = Properties::of(body, properties::WILL)?;
    while let Some(property) = properties.next()? {
        if let Property::WillDelayInterval(secs) = property {
            delay_secs = secs;
        }
    }
    Ok(delay_secs)
}

pub(super) fn publish(flags: PublishFlags, mut body: Reader, frame: &Bytes) -> Result<Publish, CodecError> {
    let (topic, packet_id) = shared::publish_start(flags, &mut body, frame)?;
    let mut topic_alias = None;
    let mut properties = Properties::of(&mut body, properties::PUBLISH)?;
    while let Some(property) = properties.next()? {
        if let Property::TopicAlias(alias) = property {
            topic_alias = Some(alias);
        }
    }
    if topic.is_empty() && topic_alias.is_none() {
        return Err(CodecError::TopicAliasMissing); // section 3.3.2.1
    }
    Ok(Publish {
        dup: flags.dup,
        qos: flags.qos,
        retain: flags.retain,
        topic,
        packet_id,
        topic_alias,
        payload: frame.slice_ref(body.rest()),
    })
}

pub(super) fn pubrel(mut body: Reader) -> Result<Incoming, CodecError> {
    let packet_id = body.packet_id()?;
    match reason_and_properties(&mut body, properties::PUBREL)?.0 {
        // Success, Packet Identifier not found [MQTT-3.6.2-1].
        0x00 | 0x92 => Ok(Incoming::PubRel { packet_id }),
        reason => Err(CodecError::ReasonCode { reason, packet: "PUBREL" }),
    }
}

pub(super) fn subscribe(mut body: Reader) -> Result<Incoming, CodecError> {
    let packet_id = body.packet_id()?;
    Properties::of(&mut body, properties::SUBSCRIBE)?.check()?;
    let filters = shared::topic_filters(body, "SUBSCRIBE", |filter, body| {
        let is_shared = shared_subscription(filter)?;
        subscription_options(body.u8()?, is_shared)
    })?;
    Ok(Incoming::Subscribe { packet_id, filters })
}

pub(super) fn unsubscribe(mut body: Reader) -> Result<Incoming, CodecError> {
    let packet_id = body.packet_id()?;
    Properties::of(&mut body, properties::UNSUBSCRIBE)?.check()?;
    let filters = shared::topic_filters(body, "UNSUBSCRIBE", |filter, _| shared_subscription(filter).map(|_| ()))?;
    Ok(Incoming::Unsubscribe { packet_id, filters })
}

/// Whether `filter`, which is well formed otherwise, is a Shared Subscription `[MQTT-4.8.2-1] [MQTT-4.8.2-2]`.
fn shared_subscription(filter: &str) -> Result<bool, CodecError> {
    let Some(shared) = filter.strip_prefix("$share/") else {
        return Ok(false);
    };
    match shared.split_once('/') {
        Some((name, filter)) if !name.is_empty() && !name.contains(['+', '#']) && !filter.is_empty() => Ok(true),
        _ => Err(CodecError::SharedSubscription),
    }
}

/// Checks Subscription Options, section 3.8.3.1: bits 0 and 1 QoS, 2 No Local, 3 Retain As Published, 4 and 5 Retain
/// Handling, 6 and 7 reserved.
fn subscription_options(options: u8, is_shared: bool) -> Result<(), CodecError> {
    if options & 0b1100_0000 != 0 {
        return Err(CodecError::SubscriptionOptionsReserved); // [MQTT-3.8.3-5]
    }
    if options & 0b11 == 3 {
        return Err(CodecError::SubscriptionQoS3);
    }
    if options >> 4 == 3 {
        return Err(CodecError::RetainHandling3);
    }
    if is_shared && options & 0b100 != 0 {
        return Err(CodecError::NoLocalOnSharedSubscription); // [MQTT-3.8.3-4]
    }
    Ok(())
}

pub(super) fn disconnect(mut body: Reader) -> Result<Incoming, CodecError> {
    let (reason, session_expiry_secs) = reason_and_properties(&mut body, properties::DISCONNECT)?;
    match reason {
        // Those of table 3-10 that a client sends [MQTT-3.14.2-1].
        0x00 | 0x04 | 0x80..=0x83 | 0x90 | 0x93..=0x99 => Ok(Incoming::Disconnect { reason, session_expiry_secs }),
        _ => Err(CodecError::ReasonCode { reason, packet: "DISCONNECT" }),
    }
}

pub(super) fn auth(mut body: Reader) -> Result<Incoming, CodecError> {
    let (reason, _) = reason_and_properties(&mut body, properties::AUTH)?;
    match reason {
        // Success, Continue authentication, Re-authenticate [MQTT-3.15.2-1].
        0x00 | 0x18 | 0x19 => Ok(Incoming::Auth),
        _ => Err(CodecError::ReasonCode { reason, packet: "AUTH" }),
    }
}

/// The end of PUBREL, DISCONNECT and AUTH: nothing (Success), a reason, or a reason and properties. Gives the reason and
/// the Session Expiry Interval, the one property among theirs that matters here.
fn reason_and_properties(body: &mut Reader, place: properties::Place) -> Result<(u8, Option<u32>), CodecError> {
    if body.is_empty() {
        return Ok((0x00, None));
    }
    let reason = body.u8()?;
    let mut session_expiry_secs = None;
    if !body.is_empty() {
        let mut properties = Properties::of(body, place)?;
        while let Some(property) = properties.next()? {
            if let Property::SessionExpiryInterval(secs) = property {
                session_expiry_secs = Some(secs);
            }
        }
    }
    body.finish()?;
    Ok((reason, session_expiry_secs))
}

/// Writes `packet`.
pub(super) fn encode(packet: &Outgoing, buffer: &mut BytesMut) {
    match packet {
        Outgoing::ConnAck(connack) => encode_connack(connack, buffer),
        Outgoing::PubAck { packet_id, reason } => put_ack(buffer, 0x40, *packet_id, *reason),
        Outgoing::PubRec { packet_id, reason } => put_ack(buffer, 0x50, *packet_id, *reason),
        Outgoing::PubComp { packet_id, reason } => put_ack(buffer, 0x70, *packet_id, *reason),
        Outgoing::SubAckRefused { packet_id, filters } => {
            let reason = Reason::NotAuthorized as u8;
            put_reasons(buffer, 0x90, *packet_id, reason, *filters);
        }
        Outgoing::UnsubAck { packet_id, filters } => {
            put_reasons(buffer, 0xB0, *packet_id, NO_SUBSCRIPTION_EXISTED, *filters);
        }
        Outgoing::PingResp => buffer.put_slice(&[0xD0, 0]),
        // Both fields may be left out, but some clients wait for a Property Length once there is a reason.
        Outgoing::Disconnect { reason } => buffer.put_slice(&[0xE0, 2, *reason as u8, 0]),
    }
}

/// PUBACK, PUBREC or PUBCOMP: four bytes on success, else a reason without properties.
fn put_ack(buffer: &mut BytesMut, first: u8, packet_id: PacketId, reason: Reason) {
    if reason == Reason::Success {
        return put_packet_id(buffer, first, packet_id);
    }
    let [high, low] = packet_id.get().to_be_bytes();
    buffer.put_slice(&[first, 3, high, low, reason as u8]);
}

/// SUBACK or UNSUBACK with the same reason for every Topic Filter and no properties.
fn put_reasons(buffer: &mut BytesMut, first: u8, packet_id: PacketId, reason: u8, count: usize) {
    buffer.put_u8(first);
    put_variable_byte_integer(buffer, 3 + count);
    buffer.put_u16(packet_id.get());
    buffer.put_u8(0);
    buffer.put_bytes(reason, count);
}

/// CONNACK. With Success it says what is not there: wildcard and shared subscriptions and Subscription Identifiers.
///
/// Retain Available is *not* sent as 0, although nobody can subscribe to a retained message: a client that is told so
/// must not send a PUBLISH with RETAIN `[MQTT-3.2.2-14]`, and we record the flag of those that do. Maximum QoS is not
/// sent: it is 2.
fn encode_connack(connack: &ConnAck, buffer: &mut BytesMut) {
    let is_success = connack.reason == ConnectReason::Success;
    let mut properties = BytesMut::new();
    if is_success {
        put_connack_properties(connack, &mut properties);
    }
    if let Some(text) = connack.reason_string {
        properties.put_u8(properties::REASON_STRING);
        put_text(&mut properties, text);
    }
    let mut length = BytesMut::new();
    put_variable_byte_integer(&mut length, properties.len());

    buffer.put_u8(0x20);
    put_variable_byte_integer(buffer, 2 + length.len() + properties.len());
    buffer.put_u8(u8::from(connack.session_present && is_success)); // [MQTT-3.2.2-6]
    buffer.put_u8(connack.reason as u8);
    buffer.put_slice(&length);
    buffer.put_slice(&properties);
}

fn put_connack_properties(connack: &ConnAck, properties: &mut BytesMut) {
    if let Some(secs) = connack.session_expiry_secs {
        properties.put_u8(properties::SESSION_EXPIRY_INTERVAL);
        properties.put_u32(secs);
    }
    properties.put_u8(properties::RECEIVE_MAXIMUM);
    properties.put_u16(connack.receive_maximum.get());
    if let Some(bytes) = NonZeroU32::new(connack.maximum_packet_size) {
        properties.put_u8(properties::MAXIMUM_PACKET_SIZE);
        properties.put_u32(bytes.get());
    }
    if let Some(client_id) = &connack.assigned_client_id {
        properties.put_u8(properties::ASSIGNED_CLIENT_IDENTIFIER);
        put_text(properties, client_id);
    }
    if connack.topic_alias_maximum > 0 {
        properties.put_u8(properties::TOPIC_ALIAS_MAXIMUM);
        properties.put_u16(connack.topic_alias_maximum);
    }
    properties.put_slice(&[properties::WILDCARD_SUBSCRIPTION_AVAILABLE, 0]);
    properties.put_slice(&[properties::SUBSCRIPTION_IDENTIFIERS_AVAILABLE, 0]);
    properties.put_slice(&[properties::SHARED_SUBSCRIPTION_AVAILABLE, 0]);
    if let Some(secs) = connack.server_keep_alive_secs {
        properties.put_u8(properties::SERVER_KEEP_ALIVE);
        properties.put_u16(secs);
    }
}
