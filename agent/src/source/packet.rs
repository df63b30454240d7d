//! MQTT Control Packets between a broker and its client: what it may send us ([`Incoming`]) and what we send ([`Outgoing`]),
//! the same for both protocol versions. (pure)
//!
//! rumqttc's codecs read and write what has structure; a packet of two bytes of content is written here. A frame is found
//! first and decoded as a whole, so that one that is malformed inside is an error and never taken for the beginning of a
//! longer one.

use std::num::NonZeroU16;

use bytes::{BufMut as _, Bytes, BytesMut};
use forebay_broker::packet::{PacketId, ProtocolVersion, QoS, Topic};
use rumqttc::mqttbytes::{self, v4};
use rumqttc::v5::mqttbytes::{QoS as V5QoS, v5};

use crate::config::Subscription;

/// A packet from a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// CONNACK.
    ConnAck {
        /// The broker knows our session.
        session_present: bool,
        /// Return code (3.1.1) or Reason Code (5.0); 0: accepted.
        code: u8,
        /// What the broker says of it (5.0).
        words: Option<String>,
        /// The Keep Alive that the broker wants, seconds (5.0).
        keep_alive_secs: Option<u16>,
        /// How long it keeps our session when we are away, if not as long as we asked for, seconds (5.0).
        session_expiry_secs: Option<u32>,
    },
    /// PUBLISH.
    Publish(Publish),
    /// PUBREL.
    PubRel(PacketId),
    /// SUBACK.
    SubAck {
        /// Of our SUBSCRIBE.
        packet_id: u16,
        /// For each filter: the QoS that is granted, or from 0x80 why it is not.
        codes: Vec<u8>,
    },
    /// UNSUBACK.
    UnsubAck,
    /// PINGRESP.
    PingResp,
    /// DISCONNECT (5.0).
    Disconnect {
        /// Reason Code.
        code: u8,
        /// What the broker says of it.
        words: Option<String>,
    },
}

/// PUBLISH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Topic Name.
    pub topic: Topic,
    /// Application Message.
    pub payload: Bytes,
    /// Quality of Service.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
    /// DUP.
    pub dup: bool,
    /// With QoS 1 and 2.
    pub packet_id: Option<PacketId>,
}

/// A packet to a broker.
#[derive(Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// CONNECT, always for a session that outlives the connection.
    Connect {
        /// Client Identifier.
        client_id: String,
        /// User Name and Password.
        login: Option<(String, String)>,
        /// Keep Alive, seconds.
        keep_alive_secs: u16,
        /// Receive Maximum (5.0).
        receive_maximum: NonZeroU16,
    },
    /// SUBSCRIBE.
    Subscribe(u16, Vec<Subscription>),
    /// UNSUBSCRIBE.
    Unsubscribe(u16, Vec<String>),
    /// PUBACK.
    PubAck(PacketId),
    /// PUBREC.
    PubRec(PacketId),
    /// PUBCOMP.
    PubComp(PacketId),
    /// PINGREQ.
    PingReq,
    /// DISCONNECT; 3.1.1 has no Reason Code.
    Disconnect(u8),
}

impl std::fmt::Debug for Outgoing {
    /// A password must not reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect { client_id, .. } => write!(f, "Connect({client_id})"),
            Self::Subscribe(packet_id, topics) => write!(f, "Subscribe({packet_id}, {topics:?})"),
            Self::Unsubscribe(packet_id, filters) => write!(f, "Unsubscribe({packet_id}, {filters:?})"),
            Self::PubAck(packet_id) => write!(f, "PubAck({packet_id})"),
            Self::PubRec(packet_id) => write!(f, "PubRec({packet_id})"),
            Self::PubComp(packet_id) => write!(f, "PubComp({packet_id})"),
            Self::PingReq => f.write_str("PingReq"),
            Self::Disconnect(code) => write!(f, "Disconnect({code:#04x})"),
        }
    }
}

/// Why what a broker sent cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Beyond `packet_bytes_max`.
    #[error("a packet of {bytes} bytes{} exceeds packet_bytes_max, {limit} bytes", of_topic(.topic))]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        limit: u32,
        /// Of a PUBLISH, if that much of it was there.
        topic: Option<String>,
    },
    /// Not MQTT, or not what a broker may send.
    #[error("the broker sent what is not MQTT {version}: {problem}")]
    Malformed {
        /// The version we speak.
        version: &'static str,
        /// What is wrong.
        problem: String,
    },
}

fn of_topic(topic: &Option<String>) -> String {
    topic.as_ref().map(|topic| format!(" on topic {topic:?}")).unwrap_or_default()
}

/// Takes one packet off the front of `buffer`; `None` while it is incomplete.
///
/// # Errors
/// There is no way to resynchronise: the connection must end.
pub fn decode(version: ProtocolVersion, buffer: &mut BytesMut, limit: u32) -> Result<Option<Incoming>, PacketError> {
    let malformed = |problem: String| PacketError::Malformed { version: name(version), problem };
    let length = match mqttbytes::check(buffer.iter(), limit as usize) {
        Ok(header) => header.frame_length(),
        Err(mqttbytes::Error::InsufficientBytes(_)) => return Ok(None),
        Err(mqttbytes::Error::PayloadSizeLimitExceeded(remaining)) => {
            // The topic is worth waiting for: it is what the operator has to know.
            return match topic_of_publish(buffer) {
                Some(topic) => Err(PacketError::TooLarge { bytes: packet_bytes(remaining), limit, topic }),
                None => Ok(None),
            };
        }
        Err(error) => return Err(malformed(error.to_string())),
    };
    let mut packet = buffer.split_to(length);
    // A PUBLISH is all there is to be quick about; it shares the buffer.
    let frame = if is_publish(&packet) { Bytes::new() } else { Bytes::copy_from_slice(&packet) };
    let decoded = match version {
        ProtocolVersion::V311 => decode_v4(&mut packet, &frame),
        ProtocolVersion::V5 => decode_v5(&mut packet, &frame),
    };
    decoded.map(Some).map_err(malformed)
}

/// A Remaining Length with its fixed header.
fn packet_bytes(remaining: usize) -> usize {
    let length_bytes = match remaining {
        0..128 => 1,
        128..16_384 => 2,
        16_384..2_097_152 => 3,
        _ => 4,
    };
    1 + length_bytes + remaining
}

/// The version as people write it.
#[must_use]
pub fn name(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::V311 => "3.1.1",
        ProtocolVersion::V5 => "5.0",
    }
}

fn is_publish(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 3)
}

/// `Some(None)`: no PUBLISH. `None`: not enough of it is here.
fn topic_of_publish(buffer: &[u8]) -> Option<Option<String>> {
    let (_, rest) = buffer.split_first()?;
    if !is_publish(buffer) {
        return Some(None);
    }
    let length_bytes = rest.iter().take(4).position(|byte| byte & 0x80 == 0)? + 1;
    let body = rest.get(length_bytes..)?;
    let (length, body) = body.split_first_chunk::<2>()?;
    let topic = body.get(..usize::from(u16::from_be_bytes(*length)))?;
    Some(Some(String::from_utf8_lossy(topic).into_owned()))
}

/// `frame` holds the same bytes as `packet` unless it is a PUBLISH.
fn decode_v4(packet: &mut BytesMut, frame: &[u8]) -> Result<Incoming, String> {
    let packet = v4::Packet::read(packet, usize::MAX);
    Ok(match packet.map_err(|error| error.to_string())? {
        v4::Packet::ConnAck(connack) => Incoming::ConnAck {
            session_present: connack.session_present,
            code: connack_code(frame),
            words: None,
            keep_alive_secs: None,
            session_expiry_secs: None,
        },
        v4::Packet::Publish(publish) => Incoming::Publish(Publish {
            topic: topic(Bytes::from(publish.topic.into_bytes()))?,
            payload: publish.payload,
            qos: qos(publish.qos as u8),
            retain: publish.retain,
            dup: publish.dup,
            packet_id: NonZeroU16::new(publish.pkid),
        }),
        v4::Packet::PubRel(pubrel) => Incoming::PubRel(packet_id(pubrel.pkid)?),
        v4::Packet::SubAck(suback) => Incoming::SubAck {
            packet_id: suback.pkid,
            codes: suback
                .return_codes
                .iter()
                .map(|code| match code {
                    v4::SubscribeReasonCode::Success(qos) => *qos as u8,
                    v4::SubscribeReasonCode::Failure => 0x80,
                })
                .collect(),
        },
        v4::Packet::UnsubAck(_) => Incoming::UnsubAck,
        v4::Packet::PingResp => Incoming::PingResp,
        _ => return Err(unexpected(frame)),
    })
}

fn decode_v5(packet: &mut BytesMut, frame: &[u8]) -> Result<Incoming, String> {
    // rumqttc takes a DISCONNECT without properties for an incomplete one; it is the usual one.
    if let [0xE0, length @ (0 | 1), rest @ ..] = frame {
        let code = rest.first().copied().filter(|_| *length == 1).unwrap_or(0);
        return Ok(Incoming::Disconnect { code, words: None });
    }
    let packet = v5::Packet::read(packet, None);
    Ok(match packet.map_err(|error| error.to_string())? {
        v5::Packet::ConnAck(connack) => {
            let properties = connack.properties.as_ref();
            Incoming::ConnAck {
                session_present: connack.session_present,
                code: connack_code(frame),
                words: properties.and_then(|properties| properties.reason_string.clone()),
                keep_alive_secs: properties.and_then(|properties| properties.server_keep_alive),
                session_expiry_secs: properties.and_then(|properties| properties.session_expiry_interval),
            }
        }
        v5::Packet::Publish(publish) => Incoming::Publish(Publish {
            topic: topic(publish.topic)?,
            payload: publish.payload,
            qos: qos(publish.qos as u8),
            retain: publish.retain,
            dup: publish.dup,
            packet_id: NonZeroU16::new(publish.pkid),
        }),
        v5::Packet::PubRel(pubrel) => Incoming::PubRel(packet_id(pubrel.pkid)?),
        v5::Packet::SubAck(suback) => Incoming::SubAck {
            packet_id: suback.pkid,
            // The codes are the last bytes of the packet, one for each that was understood.
            codes: frame[frame.len().saturating_sub(suback.return_codes.len())..].to_vec(),
        },
        v5::Packet::UnsubAck(_) => Incoming::UnsubAck,
        v5::Packet::PingResp(_) => Incoming::PingResp,
        v5::Packet::Disconnect(disconnect) => Incoming::Disconnect {
            code: frame.get(2).copied().unwrap_or(0),
            words: disconnect.properties.and_then(|properties| properties.reason_string),
        },
        _ => return Err(unexpected(frame)),
    })
}

/// The second byte after the fixed header, whatever names a codec has for it.
fn connack_code(frame: &[u8]) -> u8 {
    let header = frame.iter().skip(1).take(4).position(|byte| byte & 0x80 == 0).map_or(2, |position| position + 2);
    frame.get(header + 1).copied().unwrap_or(0)
}

fn unexpected(frame: &[u8]) -> String {
    format!("a packet of type {}, which only clients send", frame.first().map_or(0, |first| first >> 4))
}

fn topic(bytes: Bytes) -> Result<Topic, String> {
    match Topic::new(bytes) {
        Some(topic) if !topic.is_empty() => Ok(topic),
        // Topic Alias Maximum is 0 where we do not say otherwise.
        _ => Err("a PUBLISH without a valid Topic Name".to_owned()),
    }
}

fn packet_id(value: u16) -> Result<PacketId, String> {
    NonZeroU16::new(value).ok_or_else(|| "Packet Identifier 0".to_owned())
}

fn qos(value: u8) -> QoS {
    match value {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}

/// Appends a packet to `out`.
///
/// # Errors
/// Words for a packet that is longer than MQTT allows.
pub fn encode(version: ProtocolVersion, packet: Outgoing, out: &mut BytesMut) -> Result<(), String> {
    match packet {
        Outgoing::PubAck(packet_id) => put_ack(out, 0x40, packet_id),
        Outgoing::PubRec(packet_id) => put_ack(out, 0x50, packet_id),
        Outgoing::PubComp(packet_id) => put_ack(out, 0x70, packet_id),
        Outgoing::PingReq => out.put_slice(&[0xC0, 0]),
        Outgoing::Disconnect(0) => out.put_slice(&[0xE0, 0]),
        Outgoing::Disconnect(code) => match version {
            ProtocolVersion::V311 => out.put_slice(&[0xE0, 0]),
            ProtocolVersion::V5 => out.put_slice(&[0xE0, 2, code, 0]),
        },
        packet => {
            let written = match version {
                ProtocolVersion::V311 => encode_v4(packet).write(out, usize::MAX).map_err(|error| error.to_string()),
                ProtocolVersion::V5 => encode_v5(packet).write(out, None).map_err(|error| error.to_string()),
            };
            written?;
        }
    }
    Ok(())
}

/// The Reason Code of success may be left away in 5.0, so that both versions are the same.
fn put_ack(out: &mut BytesMut, first: u8, packet_id: PacketId) {
    out.put_slice(&[first, 2]);
    out.put_u16(packet_id.get());
}

fn encode_v4(packet: Outgoing) -> v4::Packet {
    match packet {
        Outgoing::Connect { client_id, login, keep_alive_secs, .. } => {
            let mut connect = v4::Connect::new(client_id);
            connect.clean_session = false;
            connect.keep_alive = keep_alive_secs;
            connect.login = login.map(|(username, password)| v4::Login { username, password });
            v4::Packet::Connect(connect)
        }
        Outgoing::Subscribe(packet_id, topics) => {
            let filters = topics.into_iter().map(|topic| {
                let qos = match topic.qos {
                    QoS::AtMostOnce => mqttbytes::QoS::AtMostOnce,
                    QoS::AtLeastOnce => mqttbytes::QoS::AtLeastOnce,
                    QoS::ExactlyOnce => mqttbytes::QoS::ExactlyOnce,
                };
                v4::SubscribeFilter { path: topic.filter, qos }
            });
            v4::Packet::Subscribe(v4::Subscribe { pkid: packet_id, filters: filters.collect() })
        }
        Outgoing::Unsubscribe(packet_id, topics) => {
            v4::Packet::Unsubscribe(v4::Unsubscribe { pkid: packet_id, topics })
        }
        _ => v4::Packet::PingReq,
    }
}

fn encode_v5(packet: Outgoing) -> v5::Packet {
    match packet {
        Outgoing::Connect { client_id, login, keep_alive_secs, receive_maximum } => {
            let mut properties = v5::ConnectProperties::new();
            // For ever, as in 3.1.1: how long a session lives is the broker's to bound.
            properties.session_expiry_interval = Some(u32::MAX);
            properties.receive_maximum = Some(receive_maximum.get());
            // No Maximum Packet Size: a broker would drop a larger message as if it had been delivered [MQTT-3.1.2-25].
            let connect = v5::Connect {
                keep_alive: keep_alive_secs,
                client_id,
                clean_start: false,
                properties: Some(properties),
            };
            v5::Packet::Connect(connect, None, login.map(|(username, password)| v5::Login { username, password }))
        }
        Outgoing::Subscribe(packet_id, topics) => {
            let filters = topics.into_iter().map(|topic| {
                let qos = match topic.qos {
                    QoS::AtMostOnce => V5QoS::AtMostOnce,
                    QoS::AtLeastOnce => V5QoS::AtLeastOnce,
                    QoS::ExactlyOnce => V5QoS::ExactlyOnce,
                };
                // RETAIN marks what the subscription brings; Retain As Published would mark live messages, too.
                v5::Filter::new(topic.filter, qos)
            });
            v5::Packet::Subscribe(v5::Subscribe { pkid: packet_id, filters: filters.collect(), properties: None })
        }
        Outgoing::Unsubscribe(packet_id, filters) => {
            v5::Packet::Unsubscribe(v5::Unsubscribe { pkid: packet_id, filters, properties: None })
        }
        _ => v5::Packet::PingReq(v5::PingReq),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: ProtocolVersion = ProtocolVersion::V311;
    const V5: ProtocolVersion = ProtocolVersion::V5;

    #[test]
    fn a_publish_is_the_same_in_both_versions() {
        let v4 = decoded(V4, b"\x3B\x09\0\x03a/b\0\x07hi");
        let v5 = decoded(V5, b"\x3B\x0A\0\x03a/b\0\x07\0hi");

        let Incoming::Publish(publish) = &v4 else { panic!("{v4:?}") };
        assert_eq!((publish.topic.as_str(), &publish.payload[..]), ("a/b", &b"hi"[..]));
        assert_eq!((publish.qos, publish.retain, publish.dup), (QoS::AtLeastOnce, true, true));
        assert_eq!(publish.packet_id, NonZeroU16::new(7));
        assert_eq!(v4, v5);
    }

    #[test]
    fn the_code_of_a_connack_is_kept_as_the_broker_sent_it() {
        let code = |version, bytes| match decoded(version, bytes) {
            Incoming::ConnAck { code, session_present, .. } => (code, session_present),
            other => panic!("{other:?}"),
        };

        assert_eq!(code(V4, b"\x20\x02\0\x05"), (5, false));
        assert_eq!(code(V4, b"\x20\x02\x01\0"), (0, true));
        assert_eq!(code(V5, b"\x20\x03\0\x86\0"), (0x86, false));
    }

    #[test]
    fn each_filter_has_its_answer() {
        let codes = |version, bytes| match decoded(version, bytes) {
            Incoming::SubAck { codes, packet_id } => (packet_id, codes),
            other => panic!("{other:?}"),
        };

        assert_eq!(codes(V4, b"\x90\x05\0\x01\x01\x80\x02"), (1, vec![1, 0x80, 2]));
        assert_eq!(codes(V5, b"\x90\x06\0\x01\0\x01\x87\x02"), (1, vec![1, 0x87, 2]));
    }

    #[test]
    fn a_disconnect_says_why_however_short_it_is() {
        let code = |bytes| match decoded(V5, bytes) {
            Incoming::Disconnect { code, words } => (code, words),
            other => panic!("{other:?}"),
        };

        assert_eq!(code(b"\xE0\0"), (0, None));
        assert_eq!(code(b"\xE0\x01\x8E"), (0x8E, None));
        assert_eq!(code(b"\xE0\x02\x8B\0"), (0x8B, None));
        assert_eq!(code(b"\xE0\x08\x8E\x06\x1F\0\x03bye"), (0x8E, Some("bye".to_owned())));
    }

    #[test]
    fn acknowledgements_are_the_same_bytes_in_both_versions() {
        let id = NonZeroU16::new(0x1234).unwrap();
        for version in [V4, V5] {
            assert_eq!(encoded(version, Outgoing::PubAck(id)), b"\x40\x02\x12\x34");
            assert_eq!(encoded(version, Outgoing::PubRec(id)), b"\x50\x02\x12\x34");
            assert_eq!(encoded(version, Outgoing::PubComp(id)), b"\x70\x02\x12\x34");
        }
        assert_eq!(encoded(V4, Outgoing::Disconnect(0x97)), b"\xE0\0");
        assert_eq!(encoded(V5, Outgoing::Disconnect(0x97)), b"\xE0\x02\x97\0");
    }

    #[test]
    fn subscriptions_come_and_go_by_their_filters() {
        let filter = || "a/+".to_owned();
        let subscribe = || Outgoing::Subscribe(1, vec![Subscription { filter: filter(), qos: QoS::ExactlyOnce }]);
        let unsubscribe = || Outgoing::Unsubscribe(2, vec![filter(), "b".to_owned()]);

        assert_eq!(encoded(V4, subscribe()), b"\x82\x08\0\x01\0\x03a/+\x02");
        assert_eq!(encoded(V5, subscribe()), b"\x82\x09\0\x01\0\0\x03a/+\x02");
        assert_eq!(encoded(V4, unsubscribe()), b"\xA2\x0A\0\x02\0\x03a/+\0\x01b");
        assert_eq!(encoded(V5, unsubscribe()), b"\xA2\x0B\0\x02\0\0\x03a/+\0\x01b");
    }

    #[test]
    fn a_connect_asks_for_a_session_that_is_kept() {
        let connect = || Outgoing::Connect {
            client_id: "gw".to_owned(),
            login: Some(("u".to_owned(), "p".to_owned())),
            keep_alive_secs: 60,
            receive_maximum: NonZeroU16::new(1_000).unwrap(),
        };

        let v4 = encoded(V4, connect());
        let v5 = encoded(V5, connect());

        assert_eq!(v4, b"\x10\x14\0\x04MQTT\x04\xC0\0\x3C\0\x02gw\0\x01u\0\x01p");
        assert_eq!(v5, b"\x10\x1D\0\x04MQTT\x05\xC0\0\x3C\x08\x11\xFF\xFF\xFF\xFF\x21\x03\xE8\0\x02gw\0\x01u\0\x01p");
        assert!(!format!("{:?}", connect()).contains('p'), "no password in a log");
    }

    #[test]
    fn what_is_too_large_is_named_by_its_topic_as_soon_as_that_is_there() {
        let mut buffer = BytesMut::from(&b"\x30\xFF\x7F\0\x03a"[..]);
        assert_eq!(decode(V4, &mut buffer, 1_000), Ok(None));
        buffer.extend_from_slice(b"/bxxxx");

        let error = decode(V4, &mut buffer, 1_000).unwrap_err();

        let text = "a packet of 16386 bytes on topic \"a/b\" exceeds packet_bytes_max, 1000 bytes";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_frame_that_is_wrong_inside_is_an_error_and_not_half_of_a_longer_one() {
        for (version, bytes) in [
            (V4, &b"\x32\x04\0\x09ab"[..]),
            (V5, b"\x32\x05\0\x01a\0\x01"),
            (V4, b"\x30\x03\0\x01+"),
            (V5, b"\x30\x03\0\0\0"),
            (V4, b"\x82\x02\0\x01"),
            (V5, b"\x60\x02\0\0"),
            (V4, b"\x30\xFF\xFF\xFF\xFF\x01"),
        ] {
            let decoded = decode(version, &mut BytesMut::from(bytes), 1_000);
            assert!(matches!(decoded, Err(PacketError::Malformed { .. })), "{bytes:x?}: {decoded:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_packets_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            for version in [V4, V5] {
                let mut buffer = BytesMut::from(&bytes[..]);
                while let Ok(Some(_)) = decode(version, &mut buffer, 1_000) {}
            }
        }
    }

    fn decoded(version: ProtocolVersion, bytes: &[u8]) -> Incoming {
        let mut buffer = BytesMut::from(bytes);
        let packet = decode(version, &mut buffer, 1_000).unwrap().unwrap();
        assert!(buffer.is_empty());
        packet
    }

    fn encoded(version: ProtocolVersion, packet: Outgoing) -> Vec<u8> {
        let mut out = BytesMut::new();
        encode(version, packet, &mut out).unwrap();
        out.to_vec()
    }
}
