//! Timelines of one session: what is fed in, and what comes out, in words.

use std::num::NonZeroU16;

use super::*;
use crate::inbound::Refusal;
use crate::packet::Publish;

use Outcome::{Refused, Stored, Unavailable};
use ProtocolVersion::{V5, V311};
use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};

#[test]
fn when_outcomes_come_in_any_order_pubacks_go_in_the_order_of_the_publishes() {
    let mut line = Timeline::connected(V5);
    line.feed(publish(AtLeastOnce, 1));
    line.feed(publish(ExactlyOnce, 2));
    line.feed(publish(AtLeastOnce, 3));
    assert_eq!(line.outcome(2, Stored), NOTHING);
    assert_eq!(line.outcome(1, Stored), NOTHING);
    assert_eq!(line.outcome(0, Stored), ["PUBACK 1 Success", "PUBREC 2 Success", "PUBACK 3 Success"]);
}

#[test]
fn when_a_message_is_not_stored_yet_nothing_is_acknowledged() {
    let mut line = Timeline::connected(V311);
    assert_eq!(line.feed(publish(AtLeastOnce, 1)), ["#0 store t QoS1 id 1"]);
    assert_eq!(line.pass(14), NOTHING);
    assert_eq!(line.feed(Incoming::PingReq), ["PINGRESP"]);
}

#[test]
fn when_pubrec_is_lost_the_repeated_publish_is_answered_and_not_stored() {
    let mut line = Timeline::connected(V311);
    line.feed(publish(ExactlyOnce, 5));
    line.outcome(0, Stored);
    let mut line = line.reconnected();
    assert_eq!(line.feed(publish(ExactlyOnce, 5)), ["PUBREC 5 Success"]);
    assert_eq!(line.feed(pubrel(5)), ["#1 release 5"]);
    assert_eq!(line.outcome(1, Stored), ["PUBCOMP 5 Success"]);
    assert_eq!(line.feed(publish(ExactlyOnce, 5)), ["#2 store t QoS2 id 5"]);
}

#[test]
fn when_a_publish_is_repeated_before_its_outcome_both_wait_for_it() {
    let mut line = Timeline::connected(V311);
    line.feed(publish(ExactlyOnce, 5));
    assert_eq!(line.feed(publish(ExactlyOnce, 5)), NOTHING);
    assert_eq!(line.outcome(0, Stored), ["PUBREC 5 Success", "PUBREC 5 Success"]);
}

/// Found by the fuzzer: the repetition looked at the identifier alone, and met another message under it.
#[test]
fn when_a_publish_is_refused_its_repetition_is_too_even_if_the_identifier_is_in_use_again() {
    let mut line = Timeline::connected(V5);
    line.feed(publish(AtLeastOnce, 1));
    line.feed(publish(ExactlyOnce, 5));
    line.feed(publish(ExactlyOnce, 5));
    assert_eq!(line.outcome(1, Refused(Refusal::NotAuthorized)), NOTHING);
    assert_eq!(line.outcome(0, Stored), ["PUBACK 1 Success", "PUBREC 5 NotAuthorized", "PUBREC 5 NotAuthorized"]);
    assert_eq!(line.feed(publish(ExactlyOnce, 5)), ["#3 store t QoS2 id 5"]);
}

#[test]
fn a_message_stored_on_an_earlier_connection_does_not_share_the_fate_of_the_first_one_on_this() {
    let mut line = Timeline::connected(V5);
    line.feed(publish(ExactlyOnce, 7));
    line.feed(publish(ExactlyOnce, 5));
    line.close();
    line.outcome(0, Refused(Refusal::NoDataset));
    line.outcome(1, Stored);
    let mut line = line.reconnected();
    assert_eq!(line.feed(publish(ExactlyOnce, 7)), ["#0 store t QoS2 id 7"]);
    assert_eq!(line.feed(publish(ExactlyOnce, 5)), NOTHING);
    assert_eq!(line.outcome(0, Refused(Refusal::NoDataset)), ["PUBREC 7 TopicNameInvalid", "PUBREC 5 Success"]);
}

#[test]
fn when_a_connection_ends_before_the_outcome_its_state_waits_for_it() {
    let mut line = Timeline::connected(V311);
    line.feed(publish(ExactlyOnce, 5));
    assert_eq!(line.close(), ["close PeerClosed"]);
    assert!(!line.session.is_drained());
    assert_eq!(line.outcome(0, Stored), NOTHING);
    assert!(line.session.is_drained());
    assert_eq!(line.into_state().map(|state| state.packet_ids), Some(vec![id(5)]));
}

#[test]
fn when_storing_fails_the_identifier_is_free_and_the_resend_is_stored() {
    let mut line = Timeline::connected(V5);
    line.feed(publish(ExactlyOnce, 5));
    assert_eq!(line.outcome(0, Unavailable), ["DISCONNECT QuotaExceeded", "close Unavailable"]);
    let mut line = line.reconnected();
    assert_eq!(line.feed(publish(ExactlyOnce, 5)), ["#0 store t QoS2 id 5"]);
}

#[test]
fn when_one_of_many_cannot_be_stored_those_before_it_are_acknowledged_and_those_after_are_not() {
    let mut line = Timeline::connected(V5);
    for id in 1..=3 {
        line.feed(publish(AtLeastOnce, id));
    }
    line.outcome(2, Stored);
    line.outcome(1, Unavailable);
    let expected = ["PUBACK 1 Success", "DISCONNECT QuotaExceeded", "close Unavailable"];
    assert_eq!(line.outcome(0, Stored), expected);
}

#[test]
fn when_a_release_fails_pubcomp_is_not_sent_and_the_identifier_stays_known() {
    let mut line = Timeline::connected(V5);
    line.feed(publish(ExactlyOnce, 5));
    line.outcome(0, Stored);
    line.feed(pubrel(5));
    assert_eq!(line.outcome(1, Unavailable), ["DISCONNECT QuotaExceeded", "close Unavailable"]);
    let mut line = line.reconnected();
    assert_eq!(line.feed(pubrel(5)), ["#0 release 5"]);
}

/// Found by the fuzzer: the client would take the identifier for free while it is still known here.
#[test]
fn a_release_cannot_be_refused() {
    let mut line = Timeline::connected(V5);
    line.feed(publish(ExactlyOnce, 5));
    line.outcome(0, Stored);
    line.feed(pubrel(5));
    assert_eq!(line.outcome(1, Refused(Refusal::NoDataset)), ["DISCONNECT QuotaExceeded", "close Unavailable"]);
}

#[test]
fn when_pubrel_is_repeated_before_its_outcome_storage_is_asked_once() {
    let mut line = Timeline::connected(V311);
    line.feed(publish(ExactlyOnce, 5));
    line.outcome(0, Stored);
    assert_eq!(line.feed(pubrel(5)), ["#1 release 5"]);
    assert_eq!(line.feed(pubrel(5)), NOTHING);
    assert_eq!(line.outcome(1, Stored), ["PUBCOMP 5 Success", "PUBCOMP 5 Success"]);
}

#[test]
fn when_an_identifier_is_used_again_before_pubcomp_it_is_another_message() {
    let mut line = Timeline::connected(V311);
    line.feed(publish(ExactlyOnce, 5));
    line.outcome(0, Stored);
    line.feed(pubrel(5));
    assert_eq!(line.feed(publish(ExactlyOnce, 5)), ["#2 store t QoS2 id 5"]);
    assert_eq!(line.outcome(1, Stored), ["PUBCOMP 5 Success"]);
    assert_eq!(line.outcome(2, Stored), ["PUBREC 5 Success"]);
    assert_eq!(line.feed(pubrel(5)), ["#3 release 5"]);
}

#[test]
fn when_pubrel_names_an_unknown_message_it_is_completed_all_the_same() {
    let mut line = Timeline::connected(V5);
    assert_eq!(line.feed(pubrel(9)), ["PUBCOMP 9 PacketIdentifierNotFound"]);
}

#[test]
fn when_a_message_is_refused_for_good_a_5_0_client_is_told_why_and_goes_on() {
    let mut line = Timeline::connected(V5);
    line.feed(publish(AtLeastOnce, 1));
    line.feed(publish(ExactlyOnce, 2));
    line.feed(publish(AtLeastOnce, 3));
    assert_eq!(line.outcome(0, Refused(Refusal::NotAuthorized)), ["PUBACK 1 NotAuthorized"]);
    assert_eq!(line.outcome(1, Refused(Refusal::NoDataset)), ["PUBREC 2 TopicNameInvalid"]);
    assert_eq!(line.outcome(2, Refused(Refusal::PayloadInvalid)), ["PUBACK 3 PayloadFormatInvalid"]);
    assert_eq!(line.feed(publish(ExactlyOnce, 2)), ["#3 store t QoS2 id 2"]);
}

#[test]
fn when_a_message_is_refused_for_good_a_3_1_1_connection_is_closed() {
    let mut line = Timeline::connected(V311);
    line.feed(publish(AtLeastOnce, 1));
    assert_eq!(line.outcome(0, Refused(Refusal::NotAuthorized)), ["close PublishRefused(NotAuthorized)"]);
}

#[test]
fn when_a_3_1_1_client_has_receive_maximum_unanswered_it_is_not_read() {
    let mut line = Timeline::connected(V311);
    for id in 1..=4 {
        assert!(line.session.may_read());
        line.feed(publish(AtLeastOnce, id));
    }
    assert!(!line.session.may_read());
    line.outcome(0, Stored);
    assert!(line.session.may_read());
}

#[test]
fn when_a_3_1_1_client_leaves_many_qos_2_unreleased_it_is_still_read() {
    let mut line = Timeline::connected(V311);
    for id in 1..=20 {
        line.feed(publish(ExactlyOnce, id));
        line.outcome(u64::from(id) - 1, Stored);
    }
    assert!(line.session.may_read());
}

#[test]
fn when_a_5_0_client_exceeds_the_receive_maximum_it_is_disconnected() {
    let mut line = Timeline::connected(V5);
    for id in 1..=4 {
        line.feed(publish(ExactlyOnce, id));
        line.outcome(u64::from(id) - 1, Stored); // PUBREC does not make room, PUBCOMP does
    }
    let actions = line.feed(publish(AtLeastOnce, 9));
    assert_eq!(actions[0], "DISCONNECT ReceiveMaximumExceeded");
}

#[test]
fn when_pubcomp_was_sent_there_is_room_for_another_publish() {
    let mut line = Timeline::connected(V5);
    for id in 1..=4 {
        line.feed(publish(ExactlyOnce, id));
        line.outcome(u64::from(id) - 1, Stored);
    }
    line.feed(pubrel(1));
    line.outcome(4, Stored);
    assert_eq!(line.feed(publish(AtLeastOnce, 9)), ["#5 store t QoS1 id 9"]);
}

#[test]
fn identifiers_of_an_earlier_connection_do_not_count_against_the_receive_maximum() {
    let mut line = Timeline::connected(V5);
    for id in 1..=4 {
        line.feed(publish(ExactlyOnce, id));
        line.outcome(u64::from(id) - 1, Stored);
    }
    let mut line = line.reconnected();
    for id in 1..=4 {
        assert_eq!(line.feed(publish(AtLeastOnce, id + 10)).len(), 1);
    }
}

#[test]
fn when_a_flood_of_repeats_comes_it_is_not_read_for_ever() {
    let mut line = Timeline::connected(V5);
    for _ in 0..8 {
        line.feed(publish(ExactlyOnce, 1));
    }
    assert!(!line.session.may_read());
}

#[test]
fn a_topic_alias_is_set_used_and_replaced() {
    let mut line = Timeline::connected(V5);
    assert_eq!(line.feed(aliased("a/b", 2)), ["store a/b QoS0"]);
    assert_eq!(line.feed(aliased("", 2)), ["store a/b QoS0"]);
    assert_eq!(line.feed(aliased("c", 2)), ["store c QoS0"]);
    assert_eq!(line.feed(aliased("", 2)), ["store c QoS0"]);
}

#[test]
fn a_topic_alias_above_the_maximum_or_never_set_ends_the_connection() {
    let mut line = Timeline::connected(V5);
    assert_eq!(line.feed(aliased("a", 4))[0], "DISCONNECT TopicAliasInvalid");
    let mut line = Timeline::connected(V5);
    assert_eq!(line.feed(aliased("", 1))[0], "DISCONNECT ProtocolError");
    let mut line = Timeline::connected(V5);
    line.feed(aliased("a", 1));
    let mut line = line.reconnected(); // aliases are the connection's [MQTT-3.3.2-7]
    assert_eq!(line.feed(aliased("", 1))[0], "DISCONNECT ProtocolError");
}

#[test]
fn a_topic_above_the_limits_is_refused_in_its_turn() {
    let mut line = Timeline::connected(V5);
    line.feed(publish(AtLeastOnce, 1));
    assert_eq!(line.feed(publish_to("a/b/c/d", AtLeastOnce, 2)), NOTHING);
    assert_eq!(line.outcome(0, Stored), ["PUBACK 1 Success", "PUBACK 2 TopicNameInvalid"]);
    assert_eq!(line.feed(publish_to("123456789", ExactlyOnce, 3)), ["PUBREC 3 TopicNameInvalid"]);
    assert_eq!(line.feed(publish_to("123456789", AtMostOnce, 0))[0], "DISCONNECT TopicNameInvalid");
    let mut line = Timeline::connected(V311);
    assert_eq!(line.feed(publish_to("123456789", AtLeastOnce, 1)), ["close PublishRefused(NoDataset)"]);
}

#[test]
fn a_session_that_outlives_its_connection_is_durable_before_connack() {
    let mut line = Timeline::new();
    assert_eq!(line.feed(connect(V5, false, 60)), ["claim c"]);
    assert_eq!(line.claimed(None), ["#0 open 60"]);
    assert_eq!(line.outcome(0, Stored), ["CONNACK Success"]);
}

#[test]
fn when_the_session_cannot_be_stored_connect_is_refused() {
    let mut line = Timeline::new();
    line.feed(connect(V5, false, 60));
    line.claimed(None);
    let expected = ["CONNACK ServerUnavailable", "close Refused(ServerUnavailable)"];
    assert_eq!(line.outcome(0, Unavailable), expected);
    assert_eq!(line.into_state(), None);
}

#[test]
fn a_new_session_whose_connack_was_never_sent_ends() {
    let mut line = Timeline::new();
    line.feed(connect(V5, false, 60));
    line.claimed(None);
    line.close();
    line.outcome(0, Stored);
    let state = line.into_state().expect("storage knows it");
    assert_eq!(state, SessionState { expiry_secs: 0, packet_ids: Vec::new(), will: None });
}

#[test]
fn when_a_session_is_resumed_with_the_same_expiry_nothing_is_written() {
    let mut line = Timeline::new();
    line.feed(connect(V5, false, 60));
    assert_eq!(line.claimed(Some(state(60))), ["CONNACK Success, Session Present"]);
}

#[test]
fn when_a_session_is_resumed_with_another_expiry_that_is_written() {
    for expiry in [90, 0] {
        let mut line = Timeline::new();
        line.feed(connect(V5, false, expiry));
        assert_eq!(line.claimed(Some(state(60))), [format!("#0 open {expiry}")]);
        assert_eq!(line.outcome(0, Stored), ["CONNACK Success, Session Present"]);
    }
}

#[test]
fn when_the_changed_expiry_cannot_be_stored_the_session_stays_as_it_was() {
    let mut line = Timeline::new();
    line.feed(connect(V5, false, 90));
    line.claimed(Some(state(60)));
    line.outcome(0, Unavailable);
    assert_eq!(line.into_state(), Some(state(60)));
}

#[test]
fn a_clean_start_closes_the_former_session_before_connack() {
    let mut line = Timeline::new();
    line.feed(connect(V5, true, 60));
    assert_eq!(line.claimed(Some(state(60))), ["#0 close session", "#1 open 60"]);
    assert_eq!(line.outcome(1, Stored), NOTHING);
    assert_eq!(line.outcome(0, Stored), ["CONNACK Success"]);
    assert_eq!(line.feed(publish(ExactlyOnce, 5)), ["#2 store t QoS2 id 5"]);
}

#[test]
fn when_the_former_session_cannot_be_closed_it_stays_to_be_closed() {
    let mut line = Timeline::new();
    line.feed(connect(V5, true, 60));
    line.claimed(Some(state(60)));
    line.outcome(0, Unavailable);
    assert_eq!(line.outcome(1, Stored)[0], "CONNACK ServerUnavailable");
    assert_eq!(line.into_state().map(|state| state.expiry_secs), Some(0));
}

#[test]
fn a_session_that_expired_is_closed_and_not_resumed() {
    let mut line = Timeline::new();
    line.feed(connect(V5, false, 60));
    assert_eq!(line.claimed(Some(state(0))), ["#0 close session", "#1 open 60"]);
    line.outcome(0, Stored);
    assert_eq!(line.outcome(1, Stored), ["CONNACK Success"]);
}

#[test]
fn a_session_without_expiry_leaves_only_what_storage_must_forget() {
    let mut line = Timeline::connected_with(V5, true, 0);
    line.close();
    assert_eq!(line.into_state(), None);
    let mut line = Timeline::connected_with(V5, true, 0);
    line.feed(publish(ExactlyOnce, 5));
    line.outcome(0, Stored);
    line.close();
    assert_eq!(line.into_state(), Some(state(0)));
}

#[test]
fn disconnect_may_change_the_expiry_but_not_from_zero() {
    let mut line = Timeline::connected_with(V5, true, 60);
    assert_eq!(line.feed(disconnect(0, Some(90))), ["#1 open 90", "close Disconnected"]);
    line.outcome(1, Stored);
    assert_eq!(line.into_state().map(|state| state.expiry_secs), Some(90));
    let mut line = Timeline::connected_with(V5, true, 0);
    assert_eq!(line.feed(disconnect(0, Some(90)))[0], "DISCONNECT ProtocolError");
}

#[test]
fn when_nothing_comes_for_one_and_a_half_keep_alives_the_connection_ends() {
    let mut line = Timeline::connected(V5); // Keep Alive 10 s
    assert_eq!(line.pass(14), NOTHING);
    assert_eq!(line.feed(Incoming::PingReq), ["PINGRESP"]);
    assert_eq!(line.pass(14), NOTHING);
    assert_eq!(line.pass(1), ["DISCONNECT KeepAliveTimeout", "close KeepAliveTimeout"]);
}

#[test]
fn while_we_do_not_read_silence_is_our_own() {
    let mut line = Timeline::connected(V311);
    for id in 1..=4 {
        line.feed(publish(AtLeastOnce, id));
    }
    assert_eq!(line.pass(60), NOTHING);
    line.outcome(0, Stored);
    assert_eq!(line.pass(14), NOTHING);
    assert_eq!(line.pass(1), ["close KeepAliveTimeout"]);
}

#[test]
fn when_connect_does_not_come_the_connection_ends() {
    let mut line = Timeline::new();
    assert_eq!(line.pass(9), NOTHING);
    assert_eq!(line.pass(1), ["close ConnectTimeout"]);
    assert!(line.session.is_drained());
}

#[test]
fn when_storage_does_not_answer_connect_in_time_it_is_refused() {
    let mut line = Timeline::new();
    line.feed(connect(V311, false, 0));
    line.claimed(None);
    assert_eq!(line.pass(10)[0], "CONNACK ServerUnavailable");
    assert!(!line.session.is_drained());
    line.outcome(0, Stored);
    assert!(line.session.is_drained());
}

#[test]
fn when_the_client_vanishes_its_will_is_stored_and_not_after_a_normal_disconnect() {
    let mut line = Timeline::with_will(0, 0);
    assert_eq!(line.close(), ["#0 will w QoS1", "close PeerClosed"]);
    let mut line = Timeline::with_will(0, 0);
    assert_eq!(line.feed(disconnect(0, None)), ["close Disconnected"]);
    let mut line = Timeline::with_will(0, 0);
    assert_eq!(line.feed(disconnect(4, None)), ["#0 will w QoS1", "close Disconnected"]);
    let mut line = Timeline::with_will(0, 0);
    assert_eq!(line.feed(disconnect(0x80, None)), ["#0 will w QoS1", "close Disconnected"]);
}

#[test]
fn a_will_with_delay_waits_with_the_session_and_is_dropped_when_it_is_resumed() {
    let mut line = Timeline::with_will(30, 60);
    assert_eq!(line.close(), ["close PeerClosed"]);
    let state = line.into_state().expect("a session");
    assert!(state.will.is_some());
    let mut line = Timeline::new();
    line.feed(connect(V5, false, 60));
    assert_eq!(line.claimed(Some(state)), ["CONNACK Success, Session Present"]);
    line.feed(disconnect(0, None));
    assert_eq!(line.into_state().and_then(|state| state.will), None);
}

#[test]
fn a_will_with_delay_is_stored_at_once_when_the_session_ends_earlier() {
    let mut line = Timeline::with_will(30, 0);
    assert_eq!(line.close(), ["#0 will w QoS1", "close PeerClosed"]);
    let mut line = Timeline::with_will(30, 60);
    line.close();
    let state = line.into_state();
    let mut line = Timeline::new();
    line.feed(connect(V5, true, 0));
    assert_eq!(line.claimed(state), ["#0 will w QoS1", "#1 close session"]);
}

#[test]
fn when_taken_over_the_old_connection_is_told_and_hands_on_after_its_outcomes() {
    let mut line = Timeline::connected(V5);
    line.feed(publish(ExactlyOnce, 5));
    assert_eq!(line.stop(StopReason::TakenOver), ["DISCONNECT SessionTakenOver", "close TakenOver"]);
    assert!(!line.session.is_drained());
    assert_eq!(line.outcome(0, Stored), NOTHING);
    assert!(line.session.is_drained());
}

#[test]
fn when_taken_over_while_it_waits_the_state_only_passes_through() {
    let mut line = Timeline::new();
    line.feed(connect(V5, true, 0));
    line.stop(StopReason::TakenOver);
    assert!(!line.session.is_drained());
    assert_eq!(line.claimed(Some(state(60))), NOTHING);
    assert!(line.session.is_drained());
    assert_eq!(line.into_state(), Some(state(60)));
}

#[test]
fn when_the_broker_stops_what_was_submitted_is_answered_first() {
    let mut line = Timeline::connected(V5);
    line.feed(publish(AtLeastOnce, 1));
    assert_eq!(line.stop(StopReason::ShuttingDown), NOTHING);
    assert!(!line.session.may_read());
    let expected = ["PUBACK 1 Success", "DISCONNECT ServerShuttingDown", "close ShuttingDown"];
    assert_eq!(line.outcome(0, Stored), expected);
    let mut line = Timeline::connected(V311);
    assert_eq!(line.stop(StopReason::ShuttingDown), ["close ShuttingDown"]);
}

#[test]
fn nothing_is_claimed_until_it_is_known_who_it_is() {
    let mut line = Timeline::new();
    line.asks_who = true;
    assert_eq!(line.feed(connect(V5, true, 0)), ["who is None"]);
    assert!(!line.session.may_read());
    line.session.handle_authenticated(Ok(Some("ann".into())), line.now);
    assert_eq!(line.actions(), ["claim c"]);
    assert_eq!(line.session.user_name.as_deref(), Some("ann"));
}

#[test]
fn whoever_is_not_known_is_refused_and_claims_nothing() {
    let mut line = Timeline::new();
    line.asks_who = true;
    line.feed(connect(V5, true, 0));
    line.session.handle_authenticated(Err(ConnectReason::BadUserNameOrPassword), line.now);
    assert_eq!(line.actions(), ["CONNACK BadUserNameOrPassword", "close Refused(BadUserNameOrPassword)"]);
    assert!(line.session.is_drained());
    assert_eq!(line.into_state(), None);
}

#[test]
fn when_it_takes_too_long_to_know_who_it_is_connect_is_refused_and_the_answer_comes_too_late() {
    let mut line = Timeline::new();
    line.asks_who = true;
    line.feed(connect(V311, true, 0));
    assert_eq!(line.pass(10), ["CONNACK ServerUnavailable", "close Refused(ServerUnavailable)"]);
    line.session.handle_authenticated(Ok(None), line.now);
    assert_eq!(line.actions(), NOTHING);
    assert!(line.session.is_drained());
}

#[test]
fn a_client_whose_credentials_are_taken_away_is_told_and_its_session_stays() {
    let mut line = Timeline::connected(V5);
    line.feed(publish(ExactlyOnce, 5));
    assert_eq!(line.stop(StopReason::Revoked), ["DISCONNECT NotAuthorized", "close Revoked"]);
    line.outcome(0, Stored);
    assert_eq!(line.into_state().map(|state| state.packet_ids), Some(vec![id(5)]));
}

#[test]
fn a_will_message_above_the_limit_is_refused_with_its_connect() {
    let mut line = Timeline::with_limits(Limits { will_bytes_max: 3, ..Limits::default() });
    let Incoming::Connect(mut packet) = connect(V5, true, 0) else { unreachable!() };
    let payload = Bytes::from_static(b"1234");
    packet.will = Some(Will { topic: "w".into(), payload, qos: AtMostOnce, retain: false, delay_secs: 0 });
    assert_eq!(line.feed(Incoming::Connect(packet)), ["CONNACK QuotaExceeded", "close Refused(QuotaExceeded)"]);
}

#[test]
fn when_messages_come_too_fast_they_are_taken_and_the_next_ones_are_not_read_for_a_while() {
    let mut line = Timeline::with_limits(Limits { publish_rate_max: 2, ..Limits::default() });
    line.feed(connect(V5, true, 0));
    line.claimed(None);
    line.feed(publish(AtMostOnce, 0));
    line.feed(publish(AtMostOnce, 0));
    assert!(line.session.may_read());
    assert_eq!(line.feed(publish(AtMostOnce, 0)), ["throttled", "store t QoS0"]);
    assert!(!line.session.may_read());
    assert_eq!(line.pass(1), NOTHING);
    assert!(line.session.may_read());
    assert_eq!(line.pass(14), NOTHING, "the Keep Alive starts again");
    assert_eq!(line.pass(1), ["DISCONNECT KeepAliveTimeout", "close KeepAliveTimeout"]);
}

#[test]
fn a_connection_without_keep_alive_ends_at_the_limit_of_silence() {
    let limits = Limits { idle_timeout: Some(Duration::from_secs(5)), ..Limits::default() };
    let mut line = Timeline::with_limits(limits);
    let Incoming::Connect(mut packet) = connect(V5, true, 0) else { unreachable!() };
    packet.keep_alive_secs = 0;
    line.feed(Incoming::Connect(packet));
    line.claimed(None);
    assert_eq!(line.pass(4), NOTHING);
    assert_eq!(line.pass(1), ["DISCONNECT KeepAliveTimeout", "close KeepAliveTimeout"]);
}

#[test]
fn a_packet_that_does_not_come_to_its_end_ends_the_connection() {
    for (reason, told) in
        [(CloseReason::PacketTimeout, "ImplementationSpecificError"), (CloseReason::PartialPackets, "QuotaExceeded")]
    {
        let mut line = Timeline::connected(V5);
        line.session.handle_unfinished(reason, line.now);
        assert_eq!(line.actions(), [format!("DISCONNECT {told}"), format!("close {reason:?}")]);
    }
}

#[test]
fn a_session_is_small() {
    assert!(size_of::<Session>() <= 400, "{}", size_of::<Session>());
}

const NOTHING: [&str; 0] = [];

/// A session, and what it did. The limits are small: Receive Maximum 4, Topic Aliases 3, topics of 8 bytes and 3 levels.
struct Timeline {
    session: Session,
    version: ProtocolVersion,
    /// Whether the answer to "who is this" is the test's to give; else everybody may connect.
    asks_who: bool,
    now: Instant,
}

impl Timeline {
    fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    fn with_limits(mut limits: Limits) -> Self {
        limits.receive_maximum = NonZeroU16::new(4).expect("not zero");
        limits.topic_alias_maximum = 3;
        limits.topic_bytes_max = 8;
        limits.topic_levels_max = 3;
        let now = Instant::now();
        let session = Session::new(Arc::new(limits), "assigned".into(), None, now);
        Self { session, version: V5, asks_who: false, now }
    }

    /// Has a session that outlives its connection and a Keep Alive of 10 s; numbers of claims start at 0.
    fn connected(version: ProtocolVersion) -> Self {
        let mut line = Self::new();
        line.version = version;
        let expiry_secs = Limits::default().session_expiry_secs_max;
        line.feed(connect(version, false, expiry_secs));
        line.claimed(Some(SessionState { expiry_secs, packet_ids: Vec::new(), will: None }));
        assert!(line.session.is_connected());
        line
    }

    fn connected_with(version: ProtocolVersion, clean_start: bool, expiry_secs: u32) -> Self {
        let mut line = Self::new();
        line.feed(connect(version, clean_start, expiry_secs));
        line.claimed(None);
        line.outcome(0, Stored);
        assert!(line.session.is_connected());
        line
    }

    /// With a Will Message; the session was there before, so that claims start at 0.
    fn with_will(delay_secs: u32, expiry_secs: u32) -> Self {
        let mut line = Self::new();
        let Incoming::Connect(mut packet) = connect(V5, false, expiry_secs) else { unreachable!() };
        let (topic, payload) = ("w".into(), Bytes::new());
        packet.will = Some(Will { topic, payload, qos: AtLeastOnce, retain: false, delay_secs });
        line.feed(Incoming::Connect(packet));
        let present = SessionState { expiry_secs, packet_ids: Vec::new(), will: None };
        line.claimed((expiry_secs > 0).then_some(present));
        assert!(line.session.is_connected());
        line
    }

    /// The client comes back for its session.
    fn reconnected(mut self) -> Self {
        self.close();
        let (version, state) = (self.version, self.into_state());
        let mut line = Self::new();
        line.version = version;
        line.feed(connect(version, false, Limits::default().session_expiry_secs_max));
        assert_eq!(line.claimed(state), ["CONNACK Success, Session Present"]);
        line
    }

    fn feed(&mut self, packet: Incoming) -> Vec<String> {
        self.session.handle_packet(packet, self.now);
        self.actions()
    }

    fn claimed(&mut self, state: Option<SessionState>) -> Vec<String> {
        self.session.handle_claimed(state, self.now);
        self.actions()
    }

    fn outcome(&mut self, number: u64, outcome: Outcome) -> Vec<String> {
        self.session.handle_outcome(number, outcome, self.now);
        self.actions()
    }

    fn close(&mut self) -> Vec<String> {
        self.session.handle_closed(CloseReason::PeerClosed, self.now);
        self.actions()
    }

    fn stop(&mut self, reason: StopReason) -> Vec<String> {
        self.session.handle_stop(reason, self.now);
        self.actions()
    }

    fn pass(&mut self, secs: u64) -> Vec<String> {
        self.now += Duration::from_secs(secs);
        self.session.handle_timeout(self.now);
        self.actions()
    }

    fn actions(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Authenticate(login) if self.asks_who => said.push(format!("who is {:?}", login.user_name)),
                Action::Authenticate(_) => self.session.handle_authenticated(Ok(None), self.now),
                action => said.push(in_words(&action)),
            }
        }
        said
    }

    fn into_state(mut self) -> Option<SessionState> {
        self.session.take_state().and_then(|(_, state)| state)
    }
}

fn in_words(action: &Action) -> String {
    match action {
        Action::Authenticate(login) => format!("who is {:?}", login.user_name),
        Action::Throttled => "throttled".into(),
        Action::Claim(client_id) => format!("claim {client_id}"),
        Action::Submit(number, submission) => {
            let number = number.map(|number| format!("#{number} ")).unwrap_or_default();
            format!("{number}{}", submission_in_words(submission))
        }
        Action::Send(packet) => packet_in_words(packet),
        Action::Close(reason) => format!("close {reason:?}"),
    }
}

fn submission_in_words(submission: &Submission) -> String {
    match submission {
        Submission::Publish(publication) => {
            let verb = if publication.will { "will" } else { "store" };
            let id = publication.packet_id.map(|id| format!(" id {id}")).unwrap_or_default();
            format!("{verb} {} QoS{}{id}", publication.topic.as_str(), publication.qos as u8)
        }
        Submission::Release(packet_id) => format!("release {packet_id}"),
        Submission::OpenSession(expiry_secs) => format!("open {expiry_secs}"),
        Submission::CloseSession => "close session".into(),
    }
}

fn packet_in_words(packet: &Outgoing) -> String {
    match packet {
        Outgoing::ConnAck(connack) => {
            let present = if connack.session_present { ", Session Present" } else { "" };
            format!("CONNACK {:?}{present}", connack.reason)
        }
        Outgoing::PubAck { packet_id, reason } => format!("PUBACK {packet_id} {reason:?}"),
        Outgoing::PubRec { packet_id, reason } => format!("PUBREC {packet_id} {reason:?}"),
        Outgoing::PubComp { packet_id, reason } => format!("PUBCOMP {packet_id} {reason:?}"),
        Outgoing::SubAckRefused { packet_id, filters } => format!("SUBACK {packet_id} refuses {filters}"),
        Outgoing::UnsubAck { packet_id, filters } => format!("UNSUBACK {packet_id} {filters}"),
        Outgoing::PingResp => "PINGRESP".into(),
        Outgoing::Disconnect { reason } => format!("DISCONNECT {reason:?}"),
    }
}

fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not zero")
}

fn state(expiry_secs: u32) -> SessionState {
    SessionState { expiry_secs, packet_ids: vec![id(5)], will: None }
}

fn connect(version: ProtocolVersion, clean_start: bool, session_expiry_secs: u32) -> Incoming {
    Incoming::Connect(Box::new(Connect {
        version,
        clean_start,
        keep_alive_secs: 10,
        client_id: "c".into(),
        will: None,
        user_name: None,
        password: None,
        session_expiry_secs,
        receive_maximum: NonZeroU16::MAX,
        maximum_packet_size: None,
        request_problem_information: true,
        has_authentication_method: false,
    }))
}

fn publish(qos: QoS, packet_id: u16) -> Incoming {
    publish_to("t", qos, packet_id)
}

fn publish_to(topic: &'static str, qos: QoS, packet_id: u16) -> Incoming {
    Incoming::Publish(Publish {
        dup: false,
        qos,
        retain: false,
        topic: Topic::new(Bytes::from_static(topic.as_bytes())).expect("a topic"),
        packet_id: PacketId::new(packet_id),
        topic_alias: None,
        payload: Bytes::from_static(b"21.5"),
    })
}

fn aliased(topic: &'static str, alias: u16) -> Incoming {
    let Incoming::Publish(publish) = publish_to(topic, AtMostOnce, 0) else { unreachable!() };
    Incoming::Publish(Publish { topic_alias: NonZeroU16::new(alias), ..publish })
}

fn pubrel(packet_id: u16) -> Incoming {
    Incoming::PubRel { packet_id: id(packet_id) }
}

fn disconnect(reason: u8, session_expiry_secs: Option<u32>) -> Incoming {
    Incoming::Disconnect { reason, session_expiry_secs }
}
