//! Any bytes, as one connection would send them: found, decoded in both versions, and held to what the codec promises.
//!
//! The first byte picks how the rest arrives (see `feed`). Besides "no panic", every packet that is accepted must keep
//! the promises that `session` relies on, and answers to it must be packets of the announced length.
#![no_main]

use bytes::{Bytes, BytesMut};
use forebay_broker::codec::{self, CodecError, Frame};
use forebay_broker::packet::{Incoming, Outgoing, ProtocolVersion, Publish, QoS};
use forebay_broker::reason::Reason;
use libfuzzer_sys::fuzz_target;

const LIMIT: u32 = 64 * 1024;

fuzz_target!(|data: &[u8]| {
    let Some((&step, stream)) = data.split_first() else {
        return;
    };
    let mut buffer = BytesMut::new();
    for chunk in stream.chunks(usize::from(step).max(1)) {
        buffer.extend_from_slice(chunk);
        if take_frames(&mut buffer).is_err() {
            return;
        }
    }
});

/// Takes and decodes what is whole; an error ends the connection.
fn take_frames(buffer: &mut BytesMut) -> Result<(), CodecError> {
    while let Some(frame) = codec::next_frame(buffer, LIMIT)? {
        assert!(frame.len() <= LIMIT as usize);
        assert_eq!(codec::inspect(&frame, LIMIT), Ok(Frame::Whole { bytes: frame.len() }));
        check_prefixes(&frame);
        codec::answer_version(&frame);
        if let Err(error) = codec::decode_connect(frame.clone()) {
            check_error(error);
        }
        for version in [ProtocolVersion::V311, ProtocolVersion::V5] {
            match codec::decode(frame.clone(), version) {
                Ok(packet) => check_packet(&frame, &packet, version),
                Err(error) => check_error(error),
            }
        }
    }
    Ok(())
}

/// A packet that is accepted whole is never refused, and never taken, before it is whole.
fn check_prefixes(frame: &Bytes) {
    for length in 0..frame.len().min(8) {
        let found = codec::inspect(&frame[..length], LIMIT);
        assert!(matches!(found, Ok(Frame::Incomplete { .. })));
    }
}

fn check_error(error: CodecError) {
    assert!(error.reason() as u8 >= 0x80);
    assert!(error.connect_reason() as u8 >= 0x80);
    assert!(!error.to_string().is_empty());
}

fn check_packet(frame: &Bytes, packet: &Incoming, version: ProtocolVersion) {
    match packet {
        Incoming::Publish(publish) => check_publish(frame, publish, version),
        Incoming::Subscribe { packet_id, filters } => {
            let (packet_id, filters) = (*packet_id, *filters);
            assert!(filters >= 1 && filters < frame.len());
            check_answer(&Outgoing::SubAckRefused { packet_id, filters }, version);
        }
        Incoming::Unsubscribe { packet_id, filters } => {
            let (packet_id, filters) = (*packet_id, *filters);
            assert!(filters >= 1 && filters < frame.len());
            check_answer(&Outgoing::UnsubAck { packet_id, filters }, version);
        }
        Incoming::PubRel { packet_id } => {
            let (packet_id, reason) = (*packet_id, Reason::PacketIdentifierNotFound);
            check_answer(&Outgoing::PubComp { packet_id, reason }, version);
        }
        Incoming::Connect(connect) => {
            assert!(!connect.client_id.contains('\0'));
            if let Some(will) = &connect.will {
                assert!(!will.topic.is_empty() && !will.topic.contains(['+', '#', '\0']));
            }
        }
        Incoming::Disconnect { .. } => check_answer(&Outgoing::PingResp, version),
        Incoming::PingReq | Incoming::Auth => {}
    }
}

/// The promises of a PUBLISH, and that written again without properties it reads as the same.
fn check_publish(frame: &Bytes, publish: &Publish, version: ProtocolVersion) {
    let topic = publish.topic.as_str();
    assert!(!topic.contains(['+', '#', '\0']));
    assert!(!topic.is_empty() || publish.topic_alias.is_some());
    assert_eq!(publish.packet_id.is_some(), publish.qos != QoS::AtMostOnce);
    assert!(!publish.dup || publish.qos != QoS::AtMostOnce);
    assert!(topic.len() + publish.payload.len() < frame.len());

    let mut again = vec![0, 0];
    again[..2].copy_from_slice(&(topic.len() as u16).to_be_bytes());
    again.extend_from_slice(topic.as_bytes());
    if let Some(packet_id) = publish.packet_id {
        again.extend_from_slice(&packet_id.get().to_be_bytes());
    }
    match (version, publish.topic_alias) {
        (ProtocolVersion::V311, _) => {}
        (ProtocolVersion::V5, None) => again.push(0),
        (ProtocolVersion::V5, Some(alias)) => {
            again.extend_from_slice(&[3, 0x23]);
            again.extend_from_slice(&alias.get().to_be_bytes());
        }
    }
    again.extend_from_slice(&publish.payload);
    let again = framed(frame[0], &again);
    let decoded = codec::decode(again, version).expect("canonical bytes of an accepted packet");
    assert_eq!(decoded, Incoming::Publish(publish.clone()));
}

fn framed(first: u8, body: &[u8]) -> Bytes {
    let mut frame = vec![first];
    let mut rest = body.len();
    while rest >= 0x80 {
        frame.push((rest & 0x7F) as u8 | 0x80);
        rest >>= 7;
    }
    frame.push(rest as u8);
    frame.extend_from_slice(body);
    frame.into()
}

/// An answer is one packet whose Remaining Length is right.
fn check_answer(answer: &Outgoing, version: ProtocolVersion) {
    let mut bytes = BytesMut::new();
    codec::encode(answer, version, &mut bytes);
    let mut length = 0;
    let mut shift = 0;
    let mut header = 1;
    for byte in &bytes[1..] {
        length |= usize::from(byte & 0x7F) << shift;
        shift += 7;
        header += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    assert_eq!(bytes.len(), header + length);
}
