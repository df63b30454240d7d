//! Properties of MQTT 5.0 (section 2.2.2): which are allowed where, which may repeat, and which values they may have.
//!
//! A packet's properties are a [`Reader`] of their own, cut at the Property Length, so no property can run into what
//! follows. Those that a publish-only server has no use for are checked like the others and then forgotten.

use std::num::{NonZeroU16, NonZeroU32};

use super::CodecError;
use super::primitives::Reader;

const PAYLOAD_FORMAT_INDICATOR: u8 = 0x01;
const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
const CONTENT_TYPE: u8 = 0x03;
const RESPONSE_TOPIC: u8 = 0x08;
const CORRELATION_DATA: u8 = 0x09;
const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;
pub(super) const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
pub(super) const ASSIGNED_CLIENT_IDENTIFIER: u8 = 0x12;
pub(super) const SERVER_KEEP_ALIVE: u8 = 0x13;
const AUTHENTICATION_METHOD: u8 = 0x15;
const AUTHENTICATION_DATA: u8 = 0x16;
const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
const WILL_DELAY_INTERVAL: u8 = 0x18;
const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
pub(super) const REASON_STRING: u8 = 0x1F;
pub(super) const RECEIVE_MAXIMUM: u8 = 0x21;
pub(super) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
const TOPIC_ALIAS: u8 = 0x23;
const USER_PROPERTY: u8 = 0x26;
pub(super) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
pub(super) const WILDCARD_SUBSCRIPTION_AVAILABLE: u8 = 0x28;
pub(super) const SUBSCRIPTION_IDENTIFIERS_AVAILABLE: u8 = 0x29;
pub(super) const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 0x2A;

/// Where properties stand, and which may stand there (table 2-4, what a client sends).
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    packet: &'static str,
    /// A bit per identifier: all of them are below 64.
    allowed: u64,
}

pub(super) const CONNECT: Place = Place::new(
    "CONNECT",
    &[
        SESSION_EXPIRY_INTERVAL,
        RECEIVE_MAXIMUM,
        MAXIMUM_PACKET_SIZE,
        TOPIC_ALIAS_MAXIMUM,
        REQUEST_RESPONSE_INFORMATION,
        REQUEST_PROBLEM_INFORMATION,
        USER_PROPERTY,
        AUTHENTICATION_METHOD,
        AUTHENTICATION_DATA,
    ],
);
pub(super) const WILL: Place = Place::new(
    "the Will Properties",
    &[
        WILL_DELAY_INTERVAL,
        PAYLOAD_FORMAT_INDICATOR,
        MESSAGE_EXPIRY_INTERVAL,
        CONTENT_TYPE,
        RESPONSE_TOPIC,
        CORRELATION_DATA,
        USER_PROPERTY,
    ],
);
pub(super) const PUBLISH: Place = Place::new(
    "PUBLISH",
    &[
        PAYLOAD_FORMAT_INDICATOR,
        MESSAGE_EXPIRY_INTERVAL,
        TOPIC_ALIAS,
        RESPONSE_TOPIC,
        CORRELATION_DATA,
        USER_PROPERTY,
        CONTENT_TYPE,
    ],
);
pub(super) const PUBREL: Place = Place::new("PUBREL", &[REASON_STRING, USER_PROPERTY]);
pub(super) const SUBSCRIBE: Place = Place::new("SUBSCRIBE", &[SUBSCRIPTION_IDENTIFIER, USER_PROPERTY]);
pub(super) const UNSUBSCRIBE: Place = Place::new("UNSUBSCRIBE", &[USER_PROPERTY]);
pub(super) const DISCONNECT: Place = Place::new("DISCONNECT", &[SESSION_EXPIRY_INTERVAL, REASON_STRING, USER_PROPERTY]);
pub(super) const AUTH: Place =
    Place::new("AUTH", &[AUTHENTICATION_METHOD, AUTHENTICATION_DATA, REASON_STRING, USER_PROPERTY]);

impl Place {
    const fn new(packet: &'static str, properties: &[u8]) -> Self {
        let mut allowed = 0;
        let mut rest = properties;
        while let [property, tail @ ..] = rest {
            allowed |= 1 << *property;
            rest = tail;
        }
        Self { packet, allowed }
    }

    /// The identifier, when it is known and may stand here.
    fn check(self, property: u32) -> Result<u8, CodecError> {
        let packet = self.packet;
        match u8::try_from(property) {
            Ok(known) if known < 64 && self.allowed & (1 << known) != 0 => Ok(known),
            Ok(SUBSCRIPTION_IDENTIFIER) if packet == PUBLISH.packet => {
                Err(CodecError::SubscriptionIdentifierInPublish) // [MQTT-3.3.4-6]
            }
            _ => Err(CodecError::PropertyNotAllowed { property, packet }),
        }
    }
}

/// One property that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Property {
    SessionExpiryInterval(u32),
    ReceiveMaximum(NonZeroU16),
    MaximumPacketSize(NonZeroU32),
    TopicAlias(NonZeroU16),
    WillDelayInterval(u32),
    RequestProblemInformation(bool),
    AuthenticationMethod,
    AuthenticationData,
    /// Well formed, and of no use to us.
    Other,
}

/// The properties of one packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Properties<'a> {
    place: Place,
    reader: Reader<'a>,
    /// A bit per identifier that has been read.
    seen: u64,
}

impl<'a> Properties<'a> {
    /// Takes the Property Length and as many bytes off `packet`.
    pub(super) fn of(packet: &mut Reader<'a>, place: Place) -> Result<Self, CodecError> {
        let reader = packet.section()?;
        Ok(Self { place, reader, seen: 0 })
    }

    /// The next property, or `None` at the Property Length.
    pub(super) fn next(&mut self) -> Result<Option<Property>, CodecError> {
        if self.reader.is_empty() {
            return Ok(None);
        }
        let identifier = self.reader.variable_byte_integer()?;
        let property = self.place.check(identifier)?;
        let bit = 1 << property;
        if self.seen & bit != 0 && property != USER_PROPERTY {
            return Err(CodecError::PropertyRepeated(property));
        }
        self.seen |= bit;
        value(&mut self.reader, property).map(Some)
    }

    /// Checks all of them where none is of use.
    pub(super) fn check(mut self) -> Result<(), CodecError> {
        while self.next()?.is_some() {}
        Ok(())
    }
}

/// Reads and checks the value of `property`, which is one of those that a [`Place`] allows.
fn value(reader: &mut Reader, property: u8) -> Result<Property, CodecError> {
    let zero = CodecError::PropertyZero(property);
    match property {
        SESSION_EXPIRY_INTERVAL => reader.u32().map(Property::SessionExpiryInterval),
        WILL_DELAY_INTERVAL => reader.u32().map(Property::WillDelayInterval),
        RECEIVE_MAXIMUM => {
            let maximum = NonZeroU16::new(reader.u16()?).ok_or(zero)?;
            Ok(Property::ReceiveMaximum(maximum))
        }
        MAXIMUM_PACKET_SIZE => {
            let maximum = NonZeroU32::new(reader.u32()?).ok_or(zero)?;
            Ok(Property::MaximumPacketSize(maximum))
        }
        TOPIC_ALIAS => {
            let alias = NonZeroU16::new(reader.u16()?).ok_or(CodecError::TopicAliasZero)?;
            Ok(Property::TopicAlias(alias))
        }
        SUBSCRIPTION_IDENTIFIER => {
            NonZeroU32::new(reader.variable_byte_integer()?).ok_or(zero)?;
            Ok(Property::Other)
        }
        REQUEST_PROBLEM_INFORMATION => boolean(reader, property).map(Property::RequestProblemInformation),
        PAYLOAD_FORMAT_INDICATOR | REQUEST_RESPONSE_INFORMATION => boolean(reader, property).map(|_| Property::Other),
        AUTHENTICATION_METHOD => {
            let name = reader.text("Authentication Method");
            name.map(|_| Property::AuthenticationMethod)
        }
        AUTHENTICATION_DATA => reader.binary().map(|_| Property::AuthenticationData),
        MESSAGE_EXPIRY_INTERVAL => reader.u32().map(|_| Property::Other),
        TOPIC_ALIAS_MAXIMUM => reader.u16().map(|_| Property::Other),
        CORRELATION_DATA => reader.binary().map(|_| Property::Other),
        CONTENT_TYPE => reader.text("Content Type").map(|_| Property::Other),
        REASON_STRING => reader.text("Reason String").map(|_| Property::Other),
        RESPONSE_TOPIC => {
            let name = reader.topic_name("Response Topic")?; // [MQTT-3.3.2-14]
            if name.is_empty() {
                return Err(CodecError::EmptyTopic("Response Topic")); // [MQTT-4.7.3-1]
            }
            Ok(Property::Other)
        }
        USER_PROPERTY => {
            reader.text("the name of a User Property")?; // [MQTT-1.5.7-1]
            reader.text("the value of a User Property")?;
            Ok(Property::Other)
        }
        _ => Err(CodecError::PropertyNotAllowed { property: u32::from(property), packet: "any packet of a client" }),
    }
}

fn boolean(reader: &mut Reader, property: u8) -> Result<bool, CodecError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(CodecError::PropertyNotBoolean(property)),
    }
}
