//! Reason codes: MQTT 5.0 section 2.4, and what they become in 3.1.1.

/// Reason Code of PUBACK, PUBREC, PUBCOMP and DISCONNECT (5.0), as far as this server sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// Success; Normal disconnection.
    Success = 0x00,
    /// Unspecified error.
    UnspecifiedError = 0x80,
    /// The packet does not follow the specification's format.
    MalformedPacket = 0x81,
    /// A packet at the wrong time, or with contents that are not allowed.
    ProtocolError = 0x82,
    /// Implementation specific error.
    ImplementationSpecificError = 0x83,
    /// The client may not publish here.
    NotAuthorized = 0x87,
    /// The server is busy.
    ServerBusy = 0x89,
    /// The server is shutting down.
    ServerShuttingDown = 0x8B,
    /// Nothing came for 1.5 times the Keep Alive.
    KeepAliveTimeout = 0x8D,
    /// Another connection with the same Client Identifier took the session over.
    SessionTakenOver = 0x8E,
    /// The Topic Name is well formed but not accepted.
    TopicNameInvalid = 0x90,
    /// Packet Identifier in use.
    PacketIdentifierInUse = 0x91,
    /// Packet Identifier not found: PUBREL for a message that is not known.
    PacketIdentifierNotFound = 0x92,
    /// More unacknowledged QoS 1 and 2 PUBLISH than the Receive Maximum.
    ReceiveMaximumExceeded = 0x93,
    /// Topic Alias above the maximum, or one that was never set.
    TopicAliasInvalid = 0x94,
    /// The packet is larger than the Maximum Packet Size.
    PacketTooLarge = 0x95,
    /// Messages come faster than the client is allowed to send them.
    MessageRateTooHigh = 0x96,
    /// No room: sent with DISCONNECT only, never in an acknowledgement, which would make the client drop the message.
    QuotaExceeded = 0x97,
    /// Stopped by the operator.
    AdministrativeAction = 0x98,
    /// The payload is not what the topic takes.
    PayloadFormatInvalid = 0x99,
}

/// Connect Reason Code of CONNACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ConnectReason {
    /// Accepted.
    Success = 0x00,
    /// Unspecified error.
    UnspecifiedError = 0x80,
    /// The CONNECT could not be decoded.
    MalformedPacket = 0x81,
    /// The CONNECT breaks a rule.
    ProtocolError = 0x82,
    /// The CONNECT is valid, and cannot be served.
    ImplementationSpecificError = 0x83,
    /// Protocol Name or Version is not one of ours.
    UnsupportedProtocolVersion = 0x84,
    /// Client Identifier not accepted.
    ClientIdentifierNotValid = 0x85,
    /// User Name or Password not accepted.
    BadUserNameOrPassword = 0x86,
    /// Not authorized to connect.
    NotAuthorized = 0x87,
    /// Not now.
    ServerUnavailable = 0x88,
    /// Too many connections.
    ServerBusy = 0x89,
    /// Enhanced authentication is not offered.
    BadAuthenticationMethod = 0x8C,
    /// The Will Topic is not accepted.
    TopicNameInvalid = 0x90,
    /// The CONNECT is larger than allowed.
    PacketTooLarge = 0x95,
    /// A limit is reached: connections of one address or one user, bytes of a Will Message.
    QuotaExceeded = 0x97,
    /// Too many attempts.
    ConnectionRateExceeded = 0x9F,
}

impl ConnectReason {
    /// The return code of a 3.1.1 CONNACK, or `None` where 3.1.1 only closes the connection (section 3.2.2.3).
    pub fn v311(self) -> Option<u8> {
        match self {
            Self::Success => Some(0x00),
            Self::UnsupportedProtocolVersion => Some(0x01),
            Self::ClientIdentifierNotValid => Some(0x02),
            Self::ServerUnavailable | Self::ServerBusy | Self::QuotaExceeded | Self::ConnectionRateExceeded => {
                Some(0x03)
            }
            Self::BadUserNameOrPassword => Some(0x04),
            Self::NotAuthorized => Some(0x05),
            _ => None,
        }
    }
}
