//! Every bound has an outcome: too many connections, a full queue, a spent budget, clients that do not read, storage
//! that does not answer. And a shutdown answers what was submitted.

mod support;

use std::time::Duration;

use forebay_broker::config::{Limits, ListenerConfig};
use forebay_broker::inbound::Outcome::{Stored, Unavailable};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test(start_paused = true)]
async fn at_the_bound_of_connections_connect_is_refused_and_others_are_not_disturbed() {
    let (broker, _storage) = start(Limits { connections_max: 1, ..Limits::default() });
    let mut first = Device::connected_4(&broker, "a").await;
    let mut second = Device::dial(&broker);
    second.send(&connect_5("b", 0x02, 0, &[])).await;
    second.expect_connack_5(0x89).await;
    second.expect_closed().await;
    let mut third = Device::dial(&broker);
    third.send(&connect_4("c", 0x02, 0)).await;
    third.expect(&[0x20, 2, 0, 3]).await;
    third.expect_closed().await;
    first.send(PINGREQ).await;
    first.expect(PINGRESP).await;
    drop(first);
    tokio::time::sleep(Duration::from_secs(1)).await;
    Device::connected_4(&broker, "d").await;
    assert_eq!(broker.stats().connects_refused_busy, 2);
}

#[tokio::test]
async fn a_listener_refuses_the_connection_too_many_over_a_real_socket() {
    let (broker, storage) = start(Limits { connections_max: 1, ..Limits::default() });
    storage.store_all();
    let bind = "127.0.0.1:0".parse().unwrap();
    let address = broker.listen(ListenerConfig { bind }).await.unwrap().local_addr;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(&connect_4("a", 0x02, 0)).await.unwrap();
    let mut connack = [0; 4];
    first.read_exact(&mut connack).await.unwrap();
    assert_eq!(connack, CONNACK);
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(&connect_4("b", 0x02, 0)).await.unwrap();
    let mut answer = Vec::new();
    second.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, [0x20, 2, 0, 3]);
}

#[tokio::test(start_paused = true)]
async fn when_the_queue_is_full_the_socket_is_not_read_and_nothing_is_lost() {
    let (broker, mut storage) = start(Limits { unstored_messages_max: 2, ..Limits::default() });
    let mut device = Device::connected_4(&broker, "a").await;
    for id in 1..=10 {
        device.send(&publish_4("t", 1, id)).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(storage.inbound.len(), 2);
    for id in 1..=10 {
        storage.answer("publish", Stored).await;
        device.expect(&with_id(PUBACK, id)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn when_the_budget_of_bytes_is_spent_the_socket_is_not_read_and_nothing_is_lost() {
    let (broker, mut storage) = start(Limits { unstored_bytes_max: 10, ..Limits::default() });
    let mut device = Device::connected_4(&broker, "a").await;
    for id in 1..=4 {
        device.send(&publish_4("t", 1, id)).await; // 5 bytes of topic and payload
    }
    device.send(&publish_4("a/topic/larger/than/everything", 0, 0)).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(storage.inbound.len(), 2);
    for id in 1..=4 {
        storage.answer("publish", Stored).await;
        device.expect(&with_id(PUBACK, id)).await;
    }
    storage.answer("publish", Stored).await;
}

#[tokio::test(start_paused = true)]
async fn when_we_did_not_read_the_keep_alive_of_the_client_starts_again() {
    let (broker, mut storage) = start(Limits { unstored_messages_max: 1, ..Limits::default() });
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x02, 10)).await;
    device.expect(CONNACK).await;
    device.send(&[publish_4("t", 1, 1), publish_4("t", 1, 2)].concat()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    storage.answer("publish", Stored).await;
    storage.answer("publish", Stored).await;
    device.expect(&[with_id(PUBACK, 1), with_id(PUBACK, 2)].concat()).await;
    device.send(PINGREQ).await;
    device.expect(PINGRESP).await;
}

#[tokio::test(start_paused = true)]
async fn when_a_client_does_not_read_its_connection_is_closed() {
    let (broker, storage) = start(Limits::default());
    storage.store_all();
    let mut device = Device::connected_4(&broker, "a").await;
    while device.socket.write_all(&PINGREQ.repeat(1_000)).await.is_ok() {}
    assert_eq!(broker.stats().write_timeouts, 1);
}

#[tokio::test(start_paused = true)]
async fn when_connect_does_not_come_in_time_the_connection_is_closed() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x02, 0)[..9]).await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    device.expect_nothing().await;
    device.expect_closed().await;
    assert_eq!(broker.stats().connect_timeouts, 1);
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_outcomes_is_answered_with_one_write() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    let publishes: Vec<u8> = (1..=100).flat_map(|id| publish_4("t", 1, id)).collect();
    device.send(&publishes).await;
    let mut submitted = Vec::new();
    for _ in 0..100 {
        submitted.push(storage.next().await);
    }
    submitted.into_iter().for_each(|inbound| resolve(inbound, Stored));
    let mut answers = [0; 1_000];
    assert_eq!(device.socket.read(&mut answers).await.unwrap(), 400);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_answers_what_was_submitted_and_says_goodbye() {
    let (broker, mut storage) = start(Limits::default());
    let mut five = Device::connected_5(&broker, "five").await;
    let mut four = Device::connected_4(&broker, "four").await;
    five.send(&publish_5("t", 1, 1, &[])).await;
    let submitted = storage.next().await;
    let stopping = tokio::spawn({
        let broker = broker.clone();
        async move { broker.shutdown().await }
    });
    four.expect_closed().await;
    five.send(&publish_5("t", 1, 2, &[])).await; // comes too late: stays with the client
    five.expect_nothing().await;
    resolve(submitted, Stored);
    five.expect(&with_id(PUBACK, 1)).await;
    five.expect_disconnect_5(0x8B).await;
    drop((four, five));
    stopping.await.unwrap();
    storage.expect_nothing().await;
    assert_eq!(broker.stats().connections_open, 0);
}

#[tokio::test(start_paused = true)]
async fn when_storage_does_not_answer_a_shutdown_ends_all_the_same() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    device.send(&publish_5("t", 1, 1, &[])).await;
    let _never_resolved = storage.next().await;
    broker.shutdown().await;
    device.expect_closed().await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_publishes_wills_those_that_wait_too() {
    let (broker, mut storage) = start(Limits::default());
    let mut gone = Device::dial(&broker);
    gone.send(&connect_5_with_will("gone", 0x04, 0, &session_expiry(60), &[0x18, 0, 0, 0, 30])).await;
    storage.answer("open", Stored).await;
    gone.expect_connack_5(0x00).await;
    drop(gone);
    let mut there = Device::dial(&broker);
    there.send(&connect_4("there", 0x06, 0)).await;
    there.expect(CONNACK).await;
    let stopping = tokio::spawn({
        let broker = broker.clone();
        async move { broker.shutdown().await }
    });
    let will = storage.next_publish().await;
    assert_eq!((&*will.client_id, will.will), ("there", true));
    will.ticket.resolve(Stored);
    there.expect_closed().await;
    drop(there);
    let will = storage.next_publish().await;
    assert_eq!((&*will.client_id, will.will), ("gone", true));
    stopping.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_storage_remembers_of_ended_sessions_is_closed_and_tried_again() {
    let stored = forebay_broker::StoredSession { client_id: "a".into(), expiry_secs: 0, packet_ids: Vec::new() };
    let (broker, mut storage) = restart(Limits::default(), vec![stored]);
    storage.answer("close", Unavailable).await;
    let closing = storage.next().await;
    let mut device = Device::dial(&broker);
    device.send(&connect_4("a", 0x02, 0)).await;
    device.expect_nothing().await; // until the end of the old session is known
    resolve(closing, Stored);
    device.expect(CONNACK).await;
    assert_eq!(broker.stats().sessions_closed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_takeover_does_not_wait_for_a_dead_peer_to_close() {
    let (broker, _storage) = start(Limits::default());
    let _dead = Device::connected_4(&broker, "a").await;
    let second = tokio::time::timeout(Duration::from_millis(1), Device::connected_4(&broker, "a")).await;
    assert!(second.is_ok(), "the first connection lingers, and the second waits for it");
}

#[tokio::test(start_paused = true)]
async fn a_takeover_of_a_takeover_ends_with_the_last_one_connected() {
    let (broker, mut storage) = start(Limits::default());
    let mut first = Device::connected_4(&broker, "a").await;
    first.send(&publish_4("t", 2, 1)).await;
    let submitted = storage.next().await;
    let mut second = Device::dial(&broker);
    second.send(&connect_4("a", 0x02, 0)).await;
    second.expect_nothing().await;
    let mut third = Device::dial(&broker);
    third.send(&connect_4("a", 0x02, 0)).await;
    first.expect_closed().await;
    second.expect_closed().await;
    resolve(submitted, Stored);
    storage.answer("close", Stored).await; // the QoS 2 message of a session that ended with its connection
    third.expect(CONNACK).await;
    assert_eq!(broker.stats().takeovers, 2);
}
