//! Where rumqttc 0.25 and the specification part: each list is exact, so that a new difference fails a test.

use forebay_broker::codec::CodecError;
use forebay_broker::packet::Incoming;
use rumqttc::v5::mqttbytes::v5::Packet;

/// Rules that rumqttc's 3.1.1 reader does not hold.
pub(crate) fn v4(bytes: &[u8], error: CodecError) -> &'static str {
    match error {
        CodecError::NullCharacter(_)
        | CodecError::WildcardInTopicName(_)
        | CodecError::EmptyTopic(_)
        | CodecError::PacketIdentifierZero
        | CodecError::MultiLevelWildcard
        | CodecError::SingleLevelWildcard
        | CodecError::NoTopicFilter("UNSUBSCRIBE")
        | CodecError::SubscriptionOptionsReserved
        | CodecError::ConnectFlagReserved
        | CodecError::PasswordWithoutUserName => "rumqttc is lax: contents",
        CodecError::FixedHeaderFlags(_) | CodecError::DupWithQoS0 | CodecError::VariableByteIntegerNotMinimal => {
            "rumqttc is lax: fixed header"
        }
        // It never looks for bytes after the last field.
        CodecError::TrailingBytes => "rumqttc is lax: bytes left over",
        // It reads what servers send, too: it is a client.
        CodecError::PacketTypeUnexpected(_) => "a server's packet",
        // A CONNECT of 5.0 whose properties it takes for the Client Identifier's length.
        _ if protocol_level(bytes) == Some(5) => "rumqttc reads 5.0 as 3.1.1",
        _ => panic!("rumqttc accepts {bytes:02x?}, we say: {error}"),
    }
}

/// Rules that rumqttc's 5.0 reader does not hold.
pub(crate) fn v5(bytes: &[u8], error: CodecError, theirs: &Packet) -> &'static str {
    match (error, theirs) {
        (
            CodecError::NullCharacter(_)
            | CodecError::WildcardInTopicName(_)
            | CodecError::EmptyTopic(_)
            | CodecError::PacketIdentifierZero
            | CodecError::MultiLevelWildcard
            | CodecError::SingleLevelWildcard
            | CodecError::SharedSubscription
            | CodecError::NoLocalOnSharedSubscription
            | CodecError::NoTopicFilter("UNSUBSCRIBE")
            | CodecError::SubscriptionOptionsReserved
            | CodecError::ConnectFlagReserved
            | CodecError::AuthenticationDataWithoutMethod,
            _,
        ) => "rumqttc is lax: contents",
        // Topic Name and Will Topic are bytes to it.
        (CodecError::NotUtf8("the Topic Name"), Packet::Publish(_))
        | (CodecError::NotUtf8("the Will Topic"), Packet::Connect(..))
        | (CodecError::TopicAliasMissing, Packet::Publish(_)) => "rumqttc is lax: topic",
        // It reads each property as it comes, as often as it comes, with any value.
        (
            CodecError::PropertyRepeated(_)
            | CodecError::PropertyZero(_)
            | CodecError::PropertyNotBoolean(_)
            | CodecError::TopicAliasZero
            | CodecError::SubscriptionIdentifierInPublish
            | CodecError::PropertyNotAllowed { property: 0x1C, packet: "DISCONNECT" },
            _,
        ) => "rumqttc is lax: properties",
        // A property may run past the Property Length: into the payload, or into whatever follows.
        (CodecError::Truncated, _) => "rumqttc is lax: Property Length is no boundary",
        (CodecError::ReasonCode { packet: "DISCONNECT", .. }, _) => "a server's reason code",
        (CodecError::FixedHeaderFlags(_) | CodecError::DupWithQoS0 | CodecError::VariableByteIntegerNotMinimal, _) => {
            "rumqttc is lax: Variable Byte Integer or fixed header"
        }
        (CodecError::TrailingBytes, _) => "rumqttc is lax: bytes left over",
        (CodecError::PacketTypeUnexpected(_), _) => "a server's packet",
        // It counts the identifier of a Subscription Identifier twice, and takes properties after it for filters.
        (_, Packet::Subscribe(subscribe))
            if subscribe.properties.as_ref().is_some_and(|properties| properties.id.is_some()) =>
        {
            "rumqttc loses count in SUBSCRIBE"
        }
        _ => panic!("rumqttc accepts {bytes:02x?} as {theirs:?}, we say: {error}"),
    }
}

/// What the 3.1.1 specification allows and rumqttc refuses.
pub(crate) fn strictness_v4(ours: &Incoming) -> &'static str {
    match ours {
        // A password is text to it.
        Incoming::Connect(connect) if has_binary_password(connect.password.as_deref()) => {
            "rumqttc is too strict: binary password"
        }
        _ => panic!("rumqttc refuses {ours:?}"),
    }
}

/// What the 5.0 specification allows and rumqttc refuses.
pub(crate) fn strictness_v5(bytes: &[u8], ours: &Incoming) -> &'static str {
    match ours {
        Incoming::Connect(connect) if has_binary_password(connect.password.as_deref()) => {
            "rumqttc is too strict: binary password"
        }
        // It wants a Property Length after every reason, and a reason in every DISCONNECT that it reads.
        Incoming::Disconnect { .. } if bytes[1] <= 1 => "rumqttc is too strict: short DISCONNECT",
        Incoming::Auth => "rumqttc is too strict: AUTH",
        Incoming::Subscribe { .. } if bytes.contains(&0x0B) => "rumqttc loses count in SUBSCRIBE",
        _ => panic!("rumqttc refuses {ours:?}: {bytes:02x?}"),
    }
}

fn has_binary_password(password: Option<&[u8]>) -> bool {
    password.is_some_and(|password| std::str::from_utf8(password).is_err())
}

/// The Protocol Level byte, when these bytes are a CONNECT.
fn protocol_level(bytes: &[u8]) -> Option<u8> {
    let length_bytes = bytes.get(1..)?.iter().position(|byte| byte & 0x80 == 0)? + 1;
    (bytes[0] >> 4 == 1).then(|| bytes.get(1 + length_bytes + 6).copied())?
}
