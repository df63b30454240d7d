//! SUBSCRIBE and UNSUBSCRIBE: decoded in full, so that each filter can be refused.

use super::*;
use crate::reason::Reason;

/// A SUBSCRIBE with Packet Identifier 7 and one filter.
fn subscribe(filter: &str, options: u8, version: ProtocolVersion) -> Result<Incoming, CodecError> {
    let body: [&[u8]; 4] = [&[0, 7], no_properties(version), &field(filter), &[options]];
    decode(packet(0x82, &body), version)
}

fn unsubscribe(filter: &str, version: ProtocolVersion) -> Result<Incoming, CodecError> {
    decode(packet(0xA2, &[&[0, 7], no_properties(version), &field(filter)]), version)
}

#[test]
fn filters_are_counted() {
    for version in BOTH {
        let filters = [&field("a")[..], &[0], &field("+/b/#"), &[1], &field("#"), &[2]].concat();
        let frame = packet(0x82, &[&[0, 7], no_properties(version), &filters]);
        let expected = Incoming::Subscribe { packet_id: id(7), filters: 3 };
        assert_eq!(decode(frame, version), Ok(expected));

        let filters = [field("a"), field("+/b/#")].concat();
        let frame = packet(0xA2, &[&[0, 7], no_properties(version), &filters]);
        let expected = Incoming::Unsubscribe { packet_id: id(7), filters: 2 };
        assert_eq!(decode(frame, version), Ok(expected));
    }
}

#[test]
fn mqtt_3_8_3_2_and_3_10_3_2_there_is_at_least_one_filter() {
    for version in BOTH {
        for (first, name) in [(0x82, "SUBSCRIBE"), (0xA2, "UNSUBSCRIBE")] {
            let error = decode(packet(first, &[&[0, 7], no_properties(version)]), version).unwrap_err();
            assert_eq!(error, CodecError::NoTopicFilter(name));
            assert_eq!(error.reason(), Reason::ProtocolError);
        }
    }
}

#[test]
fn mqtt_2_2_1_3_a_packet_identifier_is_not_0() {
    for version in BOTH {
        for first in [0x82, 0xA2] {
            let refused = decode(packet(first, &[&[0, 0], no_properties(version)]), version);
            assert_eq!(refused, Err(CodecError::PacketIdentifierZero));
        }
    }
}

#[test]
fn mqtt_4_7_1_1_a_multi_level_wildcard_is_the_whole_last_level() {
    for version in BOTH {
        for filter in ["a#", "a/#/b", "#/", "##", "a/b#", "a/#b"] {
            let refused = Err(CodecError::MultiLevelWildcard);
            assert_eq!(subscribe(filter, 0, version), refused, "{filter}");
            assert_eq!(unsubscribe(filter, version), refused, "{filter}");
        }
    }
}

#[test]
fn mqtt_4_7_1_2_a_single_level_wildcard_is_a_whole_level() {
    for version in BOTH {
        for filter in ["a+", "+a", "a/b+/c", "++"] {
            let refused = Err(CodecError::SingleLevelWildcard);
            assert_eq!(subscribe(filter, 0, version), refused, "{filter}");
            assert_eq!(unsubscribe(filter, version), refused, "{filter}");
        }
    }
}

#[test]
fn well_formed_filters_pass() {
    for version in BOTH {
        for filter in ["#", "+", "/", "/+", "+/#", "a//b", "$SYS/#", "$share", " ", "a/+/b/+/#"] {
            assert!(subscribe(filter, 0, version).is_ok(), "{filter}");
            assert!(unsubscribe(filter, version).is_ok(), "{filter}");
        }
    }
}

#[test]
fn mqtt_4_7_3_1_a_filter_is_not_empty() {
    for version in BOTH {
        assert_eq!(subscribe("", 0, version), Err(CodecError::EmptyTopic("a Topic Filter")));
        assert_eq!(unsubscribe("", version), Err(CodecError::EmptyTopic("a Topic Filter")));
    }
}

#[test]
fn mqtt_4_7_3_2_a_filter_has_no_null_character() {
    for version in BOTH {
        let refused = Err(CodecError::NullCharacter("a Topic Filter"));
        assert_eq!(subscribe("a\0", 0, version), refused);
        assert_eq!(unsubscribe("a\0", version), refused);
    }
}

#[test]
fn mqtt_4_8_2_1_and_2_a_shared_subscription_has_a_name_and_a_filter() {
    for filter in ["$share/", "$share/name", "$share/name/", "$share//a", "$share/n+/a", "$share/+/a"] {
        assert!(subscribe(filter, 0, V5).is_err(), "{filter}");
        assert!(unsubscribe(filter, V5).is_err(), "{filter}");
    }
    assert!(subscribe("$share/name/a/#", 0, V5).is_ok());
    assert!(subscribe("$share/name//", 0, V5).is_ok());
    // 3.1.1 does not know them: the same text is an ordinary filter there.
    assert!(subscribe("$share/name", 0, V311).is_ok());
}

#[test]
fn mqtt_3_8_3_4_no_local_is_not_for_shared_subscriptions() {
    let error = subscribe("$share/name/a", 0b100, V5).unwrap_err();
    assert_eq!(error, CodecError::NoLocalOnSharedSubscription);
    assert_eq!(error.reason(), Reason::ProtocolError);
    assert!(subscribe("a", 0b100, V5).is_ok());
}

#[test]
fn mqtt_3_8_3_5_reserved_options_are_malformed() {
    for options in 0..=255 {
        let is_good = options & 0b1100_0000 == 0 && options & 0b11 != 3 && (options >> 4) & 0b11 != 3;
        assert_eq!(subscribe("a", options, V5).is_ok(), is_good, "5.0 {options:#010b}");
        assert_eq!(subscribe("a", options, V311).is_ok(), options < 3, "3.1.1 {options:#010b}");
    }
    assert_eq!(subscribe("a", 0x40, V5), Err(CodecError::SubscriptionOptionsReserved));
    assert_eq!(subscribe("a", 3, V5), Err(CodecError::SubscriptionQoS3));
    assert_eq!(subscribe("a", 0x30, V5), Err(CodecError::RetainHandling3));
    assert_eq!(subscribe("a", 4, V311), Err(CodecError::SubscriptionOptionsReserved));
}

#[test]
fn a_filter_without_options_is_truncated() {
    for version in BOTH {
        let body: [&[u8]; 3] = [&[0, 7], no_properties(version), &field("a")];
        assert_eq!(decode(packet(0x82, &body), version), Err(CodecError::Truncated));
    }
}

#[test]
fn properties_of_subscribe_and_unsubscribe_are_checked() {
    let with = |first: u8, parts: &[&[u8]]| {
        let options: &[u8] = if first == 0x82 { &[0] } else { &[] };
        decode(packet(first, &[&[0, 7], &properties(parts), &field("a"), options]), V5)
    };
    let user: &[u8] = &[0x26, 0, 0, 0, 0];
    assert!(with(0x82, &[&[0x0B, 0x80, 0x01], user, user]).is_ok());
    assert!(with(0xA2, &[user]).is_ok());
    assert_eq!(with(0x82, &[&[0x0B, 0]]), Err(CodecError::PropertyZero(0x0B)));
    assert_eq!(with(0x82, &[&[0x0B, 1, 0x0B, 2]]), Err(CodecError::PropertyRepeated(0x0B)));
    assert!(matches!(with(0xA2, &[&[0x0B, 1]]), Err(CodecError::PropertyNotAllowed { .. })));
}
