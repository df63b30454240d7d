//! Finding packets: five bytes decide, and nothing is allocated for what they claim.

use super::*;
use crate::reason::Reason;

const LIMIT: u32 = 1_000;

fn find(bytes: &[u8]) -> Result<Frame, CodecError> {
    inspect(bytes, LIMIT)
}

#[test]
fn nothing_yet_needs_one_byte() {
    assert_eq!(find(&[]), Ok(Frame::Incomplete { bytes_needed: 1 }));
    assert_eq!(find(&[0xC0]), Ok(Frame::Incomplete { bytes_needed: 1 }));
    assert_eq!(find(&[0x30, 0x80]), Ok(Frame::Incomplete { bytes_needed: 1 }));
}

#[test]
fn a_known_length_tells_how_much_is_missing() {
    assert_eq!(find(&[0x30, 10, 0]), Ok(Frame::Incomplete { bytes_needed: 9 }));
    assert_eq!(find(&[0xC0, 0]), Ok(Frame::Whole { bytes: 2 }));
    assert_eq!(find(&[0xC0, 0, 0xC0]), Ok(Frame::Whole { bytes: 2 }));
}

#[test]
fn one_packet_after_the_other_is_taken_off_the_buffer() {
    let mut buffer = BytesMut::from(&[0xC0, 0, 0xE0, 0, 0x30][..]);
    assert_eq!(next_frame(&mut buffer, LIMIT), Ok(Some(Bytes::from_static(&[0xC0, 0]))));
    assert_eq!(next_frame(&mut buffer, LIMIT), Ok(Some(Bytes::from_static(&[0xE0, 0]))));
    assert_eq!(next_frame(&mut buffer, LIMIT), Ok(None));
    assert_eq!(&buffer[..], [0x30]);
}

#[test]
fn packet_types_that_a_client_never_sends_are_refused_from_the_first_byte() {
    assert_eq!(find(&[0x00]), Err(CodecError::PacketTypeReserved(0)));
    for number in [2, 4, 5, 7, 9, 11, 13] {
        let refused = find(&[number << 4]);
        assert_eq!(refused, Err(CodecError::PacketTypeUnexpected(number)));
    }
}

#[test]
fn mqtt_2_1_3_1_reserved_flags_are_refused_from_the_first_byte() {
    let expected = [(1, 0), (6, 2), (8, 2), (10, 2), (12, 0), (14, 0), (15, 0)];
    for (number, right) in expected {
        for flags in 0..16 {
            let found = find(&[number << 4 | flags]);
            if flags == right {
                assert_eq!(found, Ok(Frame::Incomplete { bytes_needed: 1 }));
            } else {
                assert_eq!(found, Err(CodecError::FixedHeaderFlags(number)));
            }
        }
    }
}

#[test]
fn mqtt_3_3_1_4_qos_3_is_malformed() {
    for flags in [0b0110, 0b0111, 0b1110, 0b1111] {
        let error = find(&[0x30 | flags]).unwrap_err();
        assert_eq!(error, CodecError::QoS3);
        assert_eq!(error.reason(), Reason::MalformedPacket);
    }
}

#[test]
fn mqtt_3_3_1_2_dup_is_not_for_qos_0() {
    assert_eq!(find(&[0x38]), Err(CodecError::DupWithQoS0));
    assert_eq!(find(&[0x39]), Err(CodecError::DupWithQoS0));
    assert!(find(&[0x3A]).is_ok());
    assert!(find(&[0x3C]).is_ok());
}

#[test]
fn a_remaining_length_has_at_most_four_bytes() {
    let refused = inspect(&[0x30, 0x80, 0x80, 0x80, 0x80], u32::MAX);
    assert_eq!(refused, Err(CodecError::VariableByteIntegerTooLong));
    let largest = inspect(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F], u32::MAX);
    assert_eq!(largest, Ok(Frame::Incomplete { bytes_needed: 268_435_455 }));
}

#[test]
fn mqtt_1_5_5_1_a_remaining_length_has_no_useless_bytes() {
    for length in [&[0x80, 0x00][..], &[0xFF, 0x00], &[0x80, 0x80, 0x00], &[0x80, 0x80, 0x80, 0x00]] {
        let refused = find(&[&[0x30], length].concat());
        assert_eq!(refused, Err(CodecError::VariableByteIntegerNotMinimal), "{length:?}");
    }
}

#[test]
fn the_limit_counts_the_whole_packet_and_is_checked_before_it_arrives() {
    assert_eq!(inspect(&[0x30, 98], 100), Ok(Frame::Incomplete { bytes_needed: 98 }));
    let error = inspect(&[0x30, 99], 100).unwrap_err();
    assert_eq!(error, CodecError::PacketTooLarge { bytes: 101, limit: 100 });
    assert_eq!(error.reason(), Reason::PacketTooLarge);
    assert_eq!(error.connect_reason(), crate::reason::ConnectReason::PacketTooLarge);
}

#[test]
fn a_claimed_length_allocates_nothing() {
    let mut buffer = BytesMut::from(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F][..]);
    let before = buffer.capacity();
    assert_eq!(next_frame(&mut buffer, PACKET_BYTES_MAX), Ok(None));
    assert_eq!(buffer.capacity(), before);
}

#[test]
fn a_frame_that_is_not_exactly_one_packet_is_refused_by_the_decoders() {
    for bytes in [&[][..], &[0xC0], &[0xC0, 0, 0], &[0xC0, 1]] {
        let refused = decode(Bytes::copy_from_slice(bytes), V5);
        assert_eq!(refused, Err(CodecError::NotOneFrame), "{bytes:?}");
    }
}
