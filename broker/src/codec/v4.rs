//! MQTT 3.1.1: what each packet of a client holds after its fixed header, and the bytes of our answers.

use bytes::{BufMut, Bytes, BytesMut};

use super::CodecError;
use super::frame::PublishFlags;
use super::primitives::{Reader, put_variable_byte_integer};
use super::shared::{self, ConnectFlags};
use crate::packet::{ConnAck, Connect, Incoming, Outgoing, PacketId, ProtocolVersion, Publish, Will};

/// The SUBACK return code for a Topic Filter that is refused.
const SUBACK_FAILURE: u8 = 0x80;

/// CONNECT after its Protocol Level.
pub(super) fn connect(mut body: Reader) -> Result<Connect, CodecError> {
    let flags = ConnectFlags::read(&mut body)?;
    if flags.password && !flags.user_name {
        return Err(CodecError::PasswordWithoutUserName); // 3.1.1 [MQTT-3.1.2-22]
    }
    let keep_alive_secs = body.u16()?;
    let client_id = body.text("the Client Identifier")?.into(); // [MQTT-3.1.3-4]
    let will = match flags.will {
        Some((qos, retain)) => Some(Will {
            topic: shared::will_topic(&mut body)?,
            payload: Bytes::copy_from_slice(body.binary()?),
            qos,
            retain,
            delay_secs: 0,
        }),
        None => None,
    };
    let (user_name, password) = shared::credentials(&mut body, flags)?;
    body.finish()?;
    Ok(Connect {
        version: ProtocolVersion::V311,
        clean_start: flags.clean_start,
        keep_alive_secs,
        client_id,
        will,
        user_name,
        password,
        session_expiry_secs: 0,
        receive_maximum: PacketId::MAX,
        maximum_packet_size: None,
        request_problem_information: true,
        has_authentication_method: false,
    })
}

pub(super) fn publish(flags: PublishFlags, mut body: Reader, frame: &Bytes) -> Result<Publish, CodecError> {
    let (topic, packet_id) = shared::publish_start(flags, &mut body, frame)?;
    if topic.is_empty() {
        return Err(CodecError::EmptyTopic("the Topic Name")); // [MQTT-4.7.3-1]
    }
    Ok(Publish {
        dup: flags.dup,
        qos: flags.qos,
        retain: flags.retain,
        topic,
        packet_id,
        topic_alias: None,
        payload: frame.slice_ref(body.rest()),
    })
}

pub(super) fn pubrel(mut body: Reader) -> Result<Incoming, CodecError> {
    let packet_id = body.packet_id()?;
    body.finish()?;
    Ok(Incoming::PubRel { packet_id })
}

pub(super) fn subscribe(mut body: Reader) -> Result<Incoming, CodecError> {
    let packet_id = body.packet_id()?;
    let filters = shared::topic_filters(body, "SUBSCRIBE", |_, body| match body.u8()? {
        0..=2 => Ok(()),
        3 => Err(CodecError::SubscriptionQoS3),
        _ => Err(CodecError::SubscriptionOptionsReserved),
    })?;
    Ok(Incoming::Subscribe { packet_id, filters })
}

pub(super) fn unsubscribe(mut body: Reader) -> Result<Incoming, CodecError> {
    let packet_id = body.packet_id()?;
    let filters = shared::topic_filters(body, "UNSUBSCRIBE", |_, _| Ok(()))?;
    Ok(Incoming::Unsubscribe { packet_id, filters })
}

pub(super) fn disconnect(body: Reader) -> Result<Incoming, CodecError> {
    body.finish()?;
    Ok(Incoming::Disconnect { reason: 0, session_expiry_secs: None })
}

/// Writes `packet`, or nothing where 3.1.1 has no packet for it. Reasons of acknowledgements are not written: the
/// session acknowledges only what succeeded.
pub(super) fn encode(packet: &Outgoing, buffer: &mut BytesMut) {
    match packet {
        Outgoing::ConnAck(connack) => encode_connack(connack, buffer),
        Outgoing::PubAck { packet_id, .. } => put_packet_id(buffer, 0x40, *packet_id),
        Outgoing::PubRec { packet_id, .. } => put_packet_id(buffer, 0x50, *packet_id),
        Outgoing::PubComp { packet_id, .. } => put_packet_id(buffer, 0x70, *packet_id),
        Outgoing::SubAckRefused { packet_id, filters } => {
            buffer.put_u8(0x90);
            put_variable_byte_integer(buffer, 2 + filters);
            buffer.put_u16(packet_id.get());
            buffer.put_bytes(SUBACK_FAILURE, *filters);
        }
        Outgoing::UnsubAck { packet_id, .. } => put_packet_id(buffer, 0xB0, *packet_id),
        Outgoing::PingResp => buffer.put_slice(&[0xD0, 0]),
        Outgoing::Disconnect { .. } => {}
    }
}

fn encode_connack(connack: &ConnAck, buffer: &mut BytesMut) {
    let Some(code) = connack.reason.v311() else {
        return;
    };
    // 3.1.1 [MQTT-3.2.2-4]: Session Present is 0 with every other code than 0.
    let session_present = u8::from(connack.session_present && code == 0);
    buffer.put_slice(&[0x20, 2, session_present, code]);
}

/// The four bytes of an acknowledgement without a reason.
pub(super) fn put_packet_id(buffer: &mut BytesMut, first: u8, packet_id: PacketId) {
    let [high, low] = packet_id.get().to_be_bytes();
    buffer.put_slice(&[first, 2, high, low]);
}
