//! Why bytes are refused: one variant per rule, each with the statement it comes from and the code that answers it.

use thiserror::Error;

use crate::reason::{ConnectReason, Reason};

/// A rule of the specification that a packet breaks. All of them end the connection `[MQTT-4.8.0-1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum CodecError {
    /// Packet types 0 and, in 3.1.1, 15 (table 2-1).
    #[error("packet type {0} is reserved (MQTT section 2.1.2)")]
    PacketTypeReserved(u8),
    /// Packets that only a server sends, and answers to a PUBLISH that we never send.
    #[error("a client has no reason to send packet type {0} to this server (MQTT section 2.1.2)")]
    PacketTypeUnexpected(u8),
    /// The first packet of a connection is not a CONNECT.
    #[error("the first packet must be a CONNECT [MQTT-3.1.0-1]")]
    ConnectExpected,
    /// The low four bits of the first byte are not what the packet type asks for.
    #[error("reserved bits of the fixed header are set in packet type {0} [MQTT-2.1.3-1]")]
    FixedHeaderFlags(u8),
    /// Remaining Length, Property Length, a property identifier or a Subscription Identifier of more than four bytes.
    #[error("a Variable Byte Integer has more than four bytes (MQTT section 1.5.5)")]
    VariableByteIntegerTooLong,
    /// As above, with a useless last byte.
    #[error("a Variable Byte Integer has more bytes than it needs [MQTT-1.5.5-1]")]
    VariableByteIntegerNotMinimal,
    /// The whole packet, fixed header included, is larger than our Maximum Packet Size.
    #[error("a packet of {bytes} bytes is larger than the {limit} that are allowed [MQTT-3.2.2-15]")]
    PacketTooLarge {
        /// Of the whole packet.
        bytes: u32,
        /// The bound it breaks.
        limit: u32,
    },
    /// The bytes handed to a decoder are not exactly one packet. `next_frame` never gives such.
    #[error("these bytes are not exactly one packet")]
    NotOneFrame,
    /// A field ends after its packet, or a property after its Property Length.
    #[error("a field runs past the end of its packet or of its properties (MQTT section 1.2, malformed packet)")]
    Truncated,
    /// Bytes are left after the last field.
    #[error("bytes follow the last field of the packet (MQTT section 1.2, malformed packet)")]
    TrailingBytes,
    /// Ill-formed UTF-8, which includes surrogates.
    #[error("{0} is not well-formed UTF-8 [MQTT-1.5.4-1]")]
    NotUtf8(&'static str),
    /// U+0000 in a string.
    #[error("{0} contains U+0000 [MQTT-1.5.4-2]")]
    NullCharacter(&'static str),
    /// `+` or `#` in a Topic Name, a Will Topic or a Response Topic.
    #[error("{0} contains a wildcard [MQTT-4.7.0-1] [MQTT-3.3.2-2] [MQTT-3.3.2-14]")]
    WildcardInTopicName(&'static str),
    /// An empty Topic Name or Topic Filter.
    #[error("{0} is empty [MQTT-4.7.3-1]")]
    EmptyTopic(&'static str),
    /// An empty Topic Name without a Topic Alias (5.0).
    #[error("the Topic Name is empty and there is no Topic Alias (MQTT section 3.3.2.1)")]
    TopicAliasMissing,
    /// Packet Identifier 0.
    #[error("Packet Identifier is 0 [MQTT-2.2.1-3]")]
    PacketIdentifierZero,
    /// Both QoS bits of a PUBLISH are set.
    #[error("a PUBLISH has QoS 3 [MQTT-3.3.1-4]")]
    QoS3,
    /// DUP in a PUBLISH of QoS 0.
    #[error("a PUBLISH of QoS 0 has the DUP flag [MQTT-3.3.1-2]")]
    DupWithQoS0,

    /// Protocol Name or Protocol Version is none that we speak.
    #[error("protocol level {level} is neither 4 (MQTT 3.1.1) nor 5 (MQTT 5.0) [MQTT-3.1.2-2]")]
    UnsupportedProtocolVersion {
        /// The level byte, whatever the name.
        level: u8,
    },
    /// The Protocol Name is not "MQTT".
    #[error("the Protocol Name is not MQTT [MQTT-3.1.2-1]")]
    UnsupportedProtocolName,
    /// The reserved bit of the Connect Flags.
    #[error("the reserved bit of the Connect Flags is set [MQTT-3.1.2-3]")]
    ConnectFlagReserved,
    /// Will QoS 3.
    #[error("Will QoS is 3 [MQTT-3.1.2-12]")]
    WillQoS3,
    /// Will QoS or Will Retain without Will Flag.
    #[error("Will QoS or Will Retain is set without the Will Flag [MQTT-3.1.2-11] [MQTT-3.1.2-13]")]
    WillFlagsWithoutWill,
    /// 3.1.1 only.
    #[error("the Password Flag is set without the User Name Flag (3.1.1 [MQTT-3.1.2-22])")]
    PasswordWithoutUserName,
    /// Authentication Data without an Authentication Method.
    #[error("Authentication Data without an Authentication Method (MQTT section 3.1.2.11.10)")]
    AuthenticationDataWithoutMethod,

    /// A property identifier that is unknown or not for this packet.
    #[error("property 0x{property:02X} is not allowed in {packet} (MQTT section 2.2.2.2)")]
    PropertyNotAllowed {
        /// Its identifier.
        property: u32,
        /// Where it was found.
        packet: &'static str,
    },
    /// A property other than User Property twice.
    #[error("property 0x{0:02X} comes more than once (MQTT section 2.2.2.2)")]
    PropertyRepeated(u8),
    /// Receive Maximum, Maximum Packet Size or Subscription Identifier 0.
    #[error("property 0x{0:02X} is 0 (MQTT sections 3.1.2.11.3, 3.1.2.11.4, 3.8.2.1.2)")]
    PropertyZero(u8),
    /// A byte property that is neither 0 nor 1.
    #[error("property 0x{0:02X} is neither 0 nor 1 (MQTT sections 3.1.2.11.6, 3.1.2.11.7, 3.3.2.3.2)")]
    PropertyNotBoolean(u8),
    /// Topic Alias 0.
    #[error("Topic Alias is 0 [MQTT-3.3.2-8]")]
    TopicAliasZero,
    /// A Subscription Identifier in a PUBLISH from a client.
    #[error("a client's PUBLISH has a Subscription Identifier [MQTT-3.3.4-6]")]
    SubscriptionIdentifierInPublish,
    /// A Reason Code that the packet does not have, or that a client must not send.
    #[error(
        "reason code 0x{reason:02X} is not one a client sends in {packet} [MQTT-3.6.2-1] [MQTT-3.14.2-1] [MQTT-3.15.2-1]"
    )]
    ReasonCode {
        /// The code.
        reason: u8,
        /// The packet.
        packet: &'static str,
    },

    /// SUBSCRIBE or UNSUBSCRIBE without a Topic Filter.
    #[error("{0} has no Topic Filter [MQTT-3.8.3-2] [MQTT-3.10.3-2]")]
    NoTopicFilter(&'static str),
    /// `#` not alone in the last level.
    #[error("`#` must be the whole last level of a Topic Filter [MQTT-4.7.1-1]")]
    MultiLevelWildcard,
    /// `+` not alone in its level.
    #[error("`+` must be a whole level of a Topic Filter [MQTT-4.7.1-2]")]
    SingleLevelWildcard,
    /// `$share/` without a ShareName, with wildcards in it, or without a filter after it (5.0).
    #[error("a Shared Subscription must be $share/NAME/FILTER, NAME without wildcards [MQTT-4.8.2-1] [MQTT-4.8.2-2]")]
    SharedSubscription,
    /// Reserved bits of the Subscription Options.
    #[error("reserved bits of the Subscription Options are set [MQTT-3.8.3-5]")]
    SubscriptionOptionsReserved,
    /// Requested QoS 3.
    #[error("a Topic Filter asks for QoS 3 (MQTT section 3.8.3.1)")]
    SubscriptionQoS3,
    /// Retain Handling 3 (5.0).
    #[error("Retain Handling is 3 (MQTT section 3.8.3.1)")]
    RetainHandling3,
    /// No Local on a Shared Subscription (5.0).
    #[error("No Local is set on a Shared Subscription [MQTT-3.8.3-4]")]
    NoLocalOnSharedSubscription,
}

impl CodecError {
    /// What a DISCONNECT (5.0) says about it: 0x95 too large, 0x94 and 0x90 for topics, 0x82 where the specification
    /// says "Protocol Error", and otherwise 0x81.
    pub fn reason(&self) -> Reason {
        match self {
            Self::PacketTooLarge { .. } => Reason::PacketTooLarge,
            Self::TopicAliasZero => Reason::TopicAliasInvalid,
            Self::WildcardInTopicName(_) => Reason::TopicNameInvalid,
            Self::PacketTypeUnexpected(_)
            | Self::ConnectExpected
            | Self::EmptyTopic(_)
            | Self::TopicAliasMissing
            | Self::PacketIdentifierZero
            | Self::UnsupportedProtocolVersion { .. }
            | Self::UnsupportedProtocolName
            | Self::AuthenticationDataWithoutMethod
            | Self::PropertyRepeated(_)
            | Self::PropertyZero(_)
            | Self::PropertyNotBoolean(_)
            | Self::SubscriptionIdentifierInPublish
            | Self::ReasonCode { .. }
            | Self::NoTopicFilter(_)
            | Self::RetainHandling3
            | Self::NoLocalOnSharedSubscription => Reason::ProtocolError,
            _ => Reason::MalformedPacket,
        }
    }

    /// What a CONNACK says about it. 3.1.1 has a return code for an unsupported version only, and otherwise closes the
    /// connection.
    pub fn connect_reason(&self) -> ConnectReason {
        match self {
            Self::UnsupportedProtocolVersion { .. } | Self::UnsupportedProtocolName => {
                ConnectReason::UnsupportedProtocolVersion
            }
            _ => match self.reason() {
                Reason::PacketTooLarge => ConnectReason::PacketTooLarge,
                Reason::TopicNameInvalid => ConnectReason::TopicNameInvalid,
                Reason::ProtocolError => ConnectReason::ProtocolError,
                _ => ConnectReason::MalformedPacket,
            },
        }
    }
}
