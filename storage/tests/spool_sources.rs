//! What the spool does for brokers that we subscribe to: their messages are told from those of devices, and a retained value
//! that comes again with a subscription is stored once.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use forebay_storage::durable_fs::DurableFs;
use forebay_storage::message::{Message, source_client_id};
use forebay_storage::position::Seq;
use forebay_storage::spool::{Outcome, Request, Spool, SpoolConfig};
use support::one_by_one::{A, B, message, recording_writer, small};
use support::workload::read_all;

#[test]
fn a_retained_value_that_comes_again_is_stored_once_and_a_changed_one_again() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let mut writer = recording_writer(&spool);

    for text in ["21.5", "21.5", "21.6", "21.6", "21.5"] {
        assert_eq!(writer.send(once(retained("plant", text))), Outcome::Stored);
    }

    assert_eq!(payloads(&spool), ["21.5", "21.6", "21.5"]);
    assert_eq!(spool.counters().duplicates_retained, 2);
}

#[test]
fn the_last_live_message_is_what_a_subscription_brings_again_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    {
        let spool = open(dir.path());
        let mut writer = recording_writer(&spool);
        writer.send(once(live("plant", "21.5")));
        writer.send(once(live("plant", "21.6")));
    }
    let spool = open(dir.path());
    let mut writer = recording_writer(&spool);

    writer.send(once(retained("plant", "21.6")));
    writer.send(once(live("plant", "21.6")));

    assert_eq!(payloads(&spool), ["21.5", "21.6", "21.6"], "an equal reading without RETAIN is a new one");
}

#[test]
fn topics_of_a_device_and_of_each_source_are_different_topics() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let mut writer = recording_writer(&spool);
    let mut by_device = retained("plant", "21.5");
    by_device.client_id = "plant".into();

    for message in [by_device, retained("plant", "21.5"), retained("office", "21.5")] {
        writer.send(once(message));
    }

    assert_eq!(payloads(&spool).len(), 3);
    assert!(spool.retained(b"site/a/temp").unwrap().is_some(), "a device's last value is found by its topic alone");
}

#[test]
fn switched_off_every_retained_value_is_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let mut writer = recording_writer(&spool);

    for _ in 0..2 {
        let message = retained("plant", "21.5");
        writer.send(Request::Append { message, packet_id: None, retained_once: false, ticket: () });
    }

    assert_eq!(payloads(&spool).len(), 2);
}

#[test]
fn a_retained_value_without_a_dataset_is_one_dead_letter() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let mut writer = recording_writer(&spool);

    for text in ["21.5", "21.5", "21.6"] {
        let message = retained("plant", text);
        let reason = "no dataset".to_owned();
        writer.send(Request::DeadLetter { message, reason, packet_id: None, retained_once: true, ticket: () });
    }

    assert_eq!(spool.counters().dead_letters, 2);
}

/// QoS 2 goes on after a value that was there already: its identifier waits for the PUBREL as any other.
#[test]
fn a_packet_identifier_of_a_value_that_came_again_is_kept_until_its_release() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let mut writer = recording_writer(&spool);
    let exactly_once = |packet_id| {
        let mut message = retained("plant", "21.5");
        message.flags.qos = 2;
        Request::Append { message, packet_id: Some(packet_id), retained_once: true, ticket: () }
    };
    writer.send(exactly_once(1));

    writer.send(exactly_once(2));
    let waiting = spool.sessions().unwrap();
    writer.send(Request::Release { client_id: source_client_id("plant"), packet_id: 2, ticket: () });

    assert_eq!(waiting[0].packet_ids, [1, 2]);
    assert_eq!(spool.sessions().unwrap()[0].packet_ids, [1]);
    assert_eq!(payloads(&spool).len(), 1);
}

/// mosquitto 2.0 sends a message again after its PUBREL when two connections break in a row.
#[test]
fn a_released_message_that_its_broker_sends_again_is_stored_once_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    {
        let spool = open(dir.path());
        let mut writer = recording_writer(&spool);
        for (text, packet_id) in [("21.5", 7), ("21.6", 8)] {
            writer.send(exactly_once(text, packet_id, false));
            writer.send(Request::Release { client_id: source_client_id("plant"), packet_id, ticket: () });
        }

        assert_eq!(writer.send(exactly_once("21.5", 7, true)), Outcome::Stored);
        assert_eq!(spool.counters().duplicates_qos2, 1);
    }
    let spool = open(dir.path());
    let mut writer = recording_writer(&spool);

    writer.send(exactly_once("21.5", 7, true));
    assert_eq!(payloads(&spool).len(), 2);
    writer.send(exactly_once("21.7", 7, true));
    assert_eq!(payloads(&spool).len(), 3, "other bytes are another message");
    writer.send(Request::Release { client_id: source_client_id("plant"), packet_id: 7, ticket: () });
    writer.send(exactly_once("21.7", 7, false));
    assert_eq!(payloads(&spool).len(), 4, "without DUP an equal message is a new one");
}

#[test]
fn a_broker_that_forgot_the_session_begins_its_identifiers_anew() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let mut writer = recording_writer(&spool);
    writer.send(exactly_once("21.5", 7, false));

    writer.send(Request::CloseSession { client_id: source_client_id("plant"), ticket: () });
    writer.send(exactly_once("21.5", 7, true));

    assert_eq!(payloads(&spool).len(), 2);
}

#[test]
fn a_restart_does_not_remember_what_a_broker_forgot() {
    let dir = tempfile::tempdir().unwrap();
    {
        let spool = open(dir.path());
        let mut writer = recording_writer(&spool);
        for packet_id in [7, 8] {
            writer.send(exactly_once("21.5", packet_id, false));
        }
        writer.send(Request::CloseSession { client_id: source_client_id("plant"), ticket: () });
    }
    let spool = open(dir.path());
    let mut writer = recording_writer(&spool);

    writer.send(exactly_once("21.5", 7, true));

    assert_eq!(payloads(&spool).len(), 3);
}

/// rumqttd 0.20 begins with identifier 1 in every connection, whatever waits for its release.
#[test]
fn other_bytes_under_an_identifier_that_is_not_released_are_another_message() {
    let dir = tempfile::tempdir().unwrap();
    {
        let spool = open(dir.path());
        recording_writer(&spool).send(exactly_once("21.5", 1, false));
    }
    let spool = open(dir.path());
    let mut writer = recording_writer(&spool);

    writer.send(exactly_once("21.5", 1, true));
    writer.send(exactly_once("21.6", 1, false));
    writer.send(exactly_once("21.6", 1, true));

    assert_eq!(payloads(&spool), ["21.5", "21.6"]);
    assert_eq!(spool.sessions().unwrap()[0].packet_ids, [1]);
}

#[test]
fn a_value_that_another_dataset_takes_from_now_on_is_stored_there() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let mut writer = recording_writer(&spool);
    let mut elsewhere = retained("plant", "21.5");
    elsewhere.dataset = B;

    writer.send(once(retained("plant", "21.5")));
    writer.send(once(elsewhere));

    assert_eq!(payloads(&spool).len(), 2);
}

/// At the bound a value may be stored twice; none is lost.
#[test]
fn beyond_the_bound_of_topics_a_value_that_comes_again_is_stored_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { retained_source_topics_max: 0, ..small() };
    let (spool, _) = Spool::open(dir.path(), config, DurableFs::new()).unwrap();
    let mut writer = recording_writer(&spool);

    writer.send(once(retained("plant", "21.5")));
    writer.send(once(retained("plant", "21.5")));

    assert_eq!(payloads(&spool).len(), 2);
    assert_eq!(spool.counters().retained_not_kept, 2);
}

/// A full table took no new topic any more, and lost a known one at its next change.
#[test]
fn in_a_full_table_the_topic_that_was_written_longest_ago_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { retained_source_topics_max: 3, ..small() };
    let (spool, _) = Spool::open(dir.path(), config.clone(), DurableFs::new()).unwrap();
    let mut writer = recording_writer(&spool);
    for topic in ["a", "b", "c", "a", "d"] {
        writer.send(once(on(topic, live("plant", topic))));
    }
    drop((writer, spool));
    let (spool, _) = Spool::open(dir.path(), config, DurableFs::new()).unwrap();
    let mut writer = recording_writer(&spool);

    for topic in ["a", "c", "d"] {
        writer.send(once(on(topic, retained("plant", topic))));
    }
    assert_eq!((payloads(&spool).len(), spool.counters().duplicates_retained), (5, 3), "three are remembered");
    writer.send(once(on("b", retained("plant", "b"))));
    writer.send(once(on("b", retained("plant", "b"))));

    assert_eq!((payloads(&spool).len(), spool.counters().duplicates_retained), (6, 4), "a new one is, too");
    assert_eq!(spool.counters().retained_forgotten, 1);
}

/// So that not every new topic reads all others.
#[test]
fn an_eighth_of_a_large_share_makes_room_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { retained_source_topics_max: 80, ..small() };
    let (spool, _) = Spool::open(dir.path(), config, DurableFs::new()).unwrap();
    let mut writer = recording_writer(&spool);

    for topic in 0..91 {
        writer.send(once(on(&topic.to_string(), live("plant", "x"))));
    }

    assert_eq!(spool.counters().retained_forgotten, 11);
}

#[test]
fn the_bytes_of_a_share_are_bounded_and_what_takes_too_many_of_them_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { retained_bytes_max: 3_200, ..small() };
    let (spool, _) = Spool::open(dir.path(), config, DurableFs::new()).unwrap();
    let mut writer = recording_writer(&spool);
    let by_device = |topic: &str, bytes: usize| {
        let mut message = on(topic, message(A, 0, &"x".repeat(bytes)));
        message.flags.retain = true;
        Request::Append { message, packet_id: None, retained_once: false, ticket: () }
    };
    let known = |topic: &str| spool.retained(topic.as_bytes()).unwrap().is_some();

    for topic in 10..40 {
        writer.send(by_device(&topic.to_string(), 100));
    }
    assert_eq!((known("17"), known("18"), known("39")), (false, true, true));
    assert_eq!(spool.counters().retained_forgotten, 8, "four at a time, a little more than an eighth");

    writer.send(by_device("39", 200));
    assert!(!known("39"), "rather none than an old one");
    assert_eq!((spool.counters().retained_not_kept, known("18")), (1, true));
}

#[test]
fn what_devices_and_sources_bring_pushes_out_nothing_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { retained_topics_max: 2, retained_source_topics_max: 2, ..small() };
    let (spool, _) = Spool::open(dir.path(), config, DurableFs::new()).unwrap();
    let mut writer = recording_writer(&spool);
    writer.send(once(on("t", live("plant", "21.5"))));
    writer.send(once(on("t", live("plan", "21.5"))));

    for topic in 0..10 {
        writer.send(once(on(&topic.to_string(), live("plant2", "x"))));
        let mut by_device = on(&topic.to_string(), retained("", "x"));
        by_device.client_id = "plant".into();
        writer.send(once(by_device));
    }
    writer.send(once(on("t", retained("plant", "21.5"))));
    writer.send(once(on("t", retained("plan", "21.5"))));

    assert_eq!(spool.counters().duplicates_retained, 2);
    assert_eq!(spool.counters().retained_forgotten, 16);
}

#[test]
fn the_last_values_of_a_source_that_is_gone_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let mut writer = recording_writer(&spool);
    for source in ["office", "plant"] {
        writer.send(once(live(source, "21.5")));
    }

    assert_eq!(spool.keep_sources(["plant", "other"]).unwrap(), 1);
    assert_eq!(spool.keep_sources(["plant"]).unwrap(), 0);

    for source in ["office", "plant"] {
        writer.send(once(retained(source, "21.5")));
    }
    assert_eq!(payloads(&spool).len(), 3, "that of office is stored again");
}

/// A broker decides how many QoS 2 messages are on their way: a device's share does not bound them.
#[test]
fn a_source_may_have_more_packet_identifiers_than_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { packet_ids_max: 16, packet_ids_client_max: 2, ..small() };
    let (spool, _) = Spool::open(dir.path(), config, DurableFs::new()).unwrap();
    let mut writer = recording_writer(&spool);

    for packet_id in 1..=8 {
        let mut message = live("plant", "x");
        message.flags.qos = 2;
        let request = Request::Append { message, packet_id: Some(packet_id), retained_once: true, ticket: () };
        assert_eq!(writer.send(request), Outcome::Stored);
    }
}

fn open(dir: &std::path::Path) -> Spool {
    Spool::open(dir, small(), DurableFs::new()).unwrap().0
}

fn exactly_once(text: &str, packet_id: u16, dup: bool) -> Request<()> {
    let mut message = live("plant", text);
    (message.flags.qos, message.flags.dup) = (2, dup);
    Request::Append { message, packet_id: Some(packet_id), retained_once: true, ticket: () }
}

fn live(source: &str, text: &str) -> Message {
    let mut message = message(A, 0, text);
    message.client_id = source_client_id(source);
    message.flags.qos = 0;
    message
}

fn retained(source: &str, text: &str) -> Message {
    let mut message = live(source, text);
    message.flags.retain = true;
    message
}

fn on(topic: &str, mut message: Message) -> Message {
    message.topic = topic.to_owned().into();
    message
}

fn once(message: Message) -> Request<()> {
    Request::Append { message, packet_id: None, retained_once: true, ticket: () }
}

fn payloads(spool: &Spool) -> Vec<String> {
    read_all(spool, Seq(0))
        .into_iter()
        .map(|(_, message)| String::from_utf8(message.payload.to_vec()).unwrap())
        .collect()
}
