//! What 3.1.1 and 5.0 lay out alike: the start of a CONNECT, its flags, Topic Names and Topic Filters.

use std::sync::Arc;

use bytes::Bytes;

use super::CodecError;
use super::frame::{self, PublishFlags};
use super::primitives::Reader;
use crate::packet::{PacketId, Password, QoS, Topic};

/// Protocol Level (3.1.1) or Protocol Version (5.0) of a CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    V311,
    V5,
    Other(u8),
}

/// Reads Protocol Name and Protocol Level.
pub(super) fn protocol_level(body: &mut Reader) -> Result<Level, CodecError> {
    let name = body.text("Protocol Name")?;
    let level = body.u8()?;
    match (name, level) {
        ("MQTT", 4) => Ok(Level::V311),
        ("MQTT", 5) => Ok(Level::V5),
        ("MQTT" | "MQIsdp", level) => Ok(Level::Other(level)),
        _ => Err(CodecError::UnsupportedProtocolName), // [MQTT-3.1.2-1]
    }
}

/// Connect Flags, checked against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectFlags {
    pub(super) clean_start: bool,
    /// Will QoS and Will Retain, when there is a Will Message.
    pub(super) will: Option<(QoS, bool)>,
    pub(super) user_name: bool,
    pub(super) password: bool,
}

impl ConnectFlags {
    pub(super) fn read(body: &mut Reader) -> Result<Self, CodecError> {
        let flags = body.u8()?;
        let is_set = |bit: u8| flags & (1 << bit) != 0;
        if is_set(0) {
            return Err(CodecError::ConnectFlagReserved); // [MQTT-3.1.2-3]
        }
        let will_qos = frame::qos(flags >> 3).ok_or(CodecError::WillQoS3)?; // [MQTT-3.1.2-12]
        let will_retain = is_set(5);
        let will = is_set(2).then_some((will_qos, will_retain));
        if will.is_none() && (will_retain || will_qos != QoS::AtMostOnce) {
            return Err(CodecError::WillFlagsWithoutWill); // [MQTT-3.1.2-11] [MQTT-3.1.2-13]
        }
        Ok(Self { clean_start: is_set(1), will, user_name: is_set(7), password: is_set(6) })
    }
}

/// Will Topic: a Topic Name that is not empty.
pub(super) fn will_topic(body: &mut Reader) -> Result<Arc<str>, CodecError> {
    let topic = body.topic_name("the Will Topic")?; // [MQTT-3.1.3-11]
    if topic.is_empty() {
        return Err(CodecError::EmptyTopic("the Will Topic")); // [MQTT-4.7.3-1]
    }
    Ok(topic.into())
}

/// User Name and Password, the end of every CONNECT. One that is present and empty is not an absent one.
pub(super) fn credentials(
    body: &mut Reader,
    flags: ConnectFlags,
) -> Result<(Option<Arc<str>>, Option<Password>), CodecError> {
    let user_name = match flags.user_name {
        true => Some(body.text("User Name")?.into()), // [MQTT-3.1.3-12]
        false => None,
    };
    let password = match flags.password {
        true => Some(body.binary()?.into()),
        false => None,
    };
    Ok((user_name, password))
}

/// Topic Name and Packet Identifier, the start of every PUBLISH. The Topic Name shares the memory of `frame`.
pub(super) fn publish_start(
    flags: PublishFlags,
    body: &mut Reader,
    frame: &Bytes,
) -> Result<(Topic, Option<PacketId>), CodecError> {
    let topic = body.topic_name("the Topic Name")?; // [MQTT-3.3.2-1] [MQTT-3.3.2-2]
    let topic = Topic::checked(frame.slice_ref(topic.as_bytes()));
    let packet_id = match flags.qos {
        QoS::AtMostOnce => None, // [MQTT-2.2.1-2]
        QoS::AtLeastOnce | QoS::ExactlyOnce => Some(body.packet_id()?),
    };
    Ok((topic, packet_id))
}

/// Reads Topic Filters, each followed by what `options` reads and checks, to the end; tells how many.
pub(super) fn topic_filters(
    mut body: Reader,
    packet: &'static str,
    mut options: impl FnMut(&str, &mut Reader) -> Result<(), CodecError>,
) -> Result<usize, CodecError> {
    let mut count = 0;
    while !body.is_empty() {
        let filter = body.text("a Topic Filter")?; // [MQTT-3.8.3-1] [MQTT-3.10.3-1]
        topic_filter(filter)?;
        options(filter, &mut body)?;
        count += 1;
    }
    if count == 0 {
        return Err(CodecError::NoTopicFilter(packet)); // [MQTT-3.8.3-2] [MQTT-3.10.3-2]
    }
    Ok(count)
}

/// Checks a Topic Filter without regard to Shared Subscriptions, which 3.1.1 does not have.
pub(super) fn topic_filter(filter: &str) -> Result<(), CodecError> {
    if filter.is_empty() {
        return Err(CodecError::EmptyTopic("a Topic Filter")); // [MQTT-4.7.3-1]
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let is_last = levels.peek().is_none();
        if level.contains('#') && !(level == "#" && is_last) {
            return Err(CodecError::MultiLevelWildcard); // [MQTT-4.7.1-1]
        }
        if level.contains('+') && level != "+" {
            return Err(CodecError::SingleLevelWildcard); // [MQTT-4.7.1-2]
        }
    }
    Ok(())
}
