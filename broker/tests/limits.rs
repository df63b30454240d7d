//! Every bound has an outcome: too many connections, a full queue, a spent budget, clients that do not read, storage
//! that does not answer. And a shutdown answers what was submitted.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::num::NonZeroU16;
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
    let address = broker.listen(bind, ListenerConfig::default()).await.unwrap().local_addr;
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
async fn a_small_message_does_not_keep_the_memory_of_a_large_one_before_it() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    let large = frame(0x30, &[&text("t")[..], &[7; 100_000]].concat());
    for behind in [publish_4("t", 0, 0), [PINGREQ, &publish_4("t", 0, 0)].concat()] {
        device.send(&[&large[..], &behind].concat()).await;
        let (large, small) = (storage.next_publish().await, storage.next_publish().await);
        let end = large.payload.as_ptr_range().end as usize;
        assert_ne!(small.payload.as_ptr_range().end as usize, end + behind.len());
        assert_eq!(small.payload, b"21.5"[..]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_small_message_does_not_keep_the_memory_of_its_properties() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    let property = [&[0x26][..], &text("name"), &text(&"value".repeat(4_000))].concat();
    let properties = frame(0, &property)[1..].to_vec(); // with its length in front
    device.send(&frame(0x30, &[&text("t")[..], &properties, b"21.5"].concat())).await;
    let message = storage.next_publish().await;
    let distance =
        (message.payload.as_ptr() as usize).wrapping_sub(message.topic.as_bytes().as_ptr_range().end as usize);
    assert_ne!(distance, properties.len());
    assert_eq!((message.topic.as_str(), &message.payload[..]), ("t", &b"21.5"[..]));
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
async fn a_3_1_1_client_with_too_many_unacknowledged_is_not_read() {
    let receive_maximum = NonZeroU16::new(2).unwrap();
    let (broker, mut storage) = start(Limits { receive_maximum, ..Limits::default() });
    let mut device = Device::connected_4(&broker, "a").await;
    for id in 1..=3 {
        device.send(&publish_4("t", 1, id)).await;
    }
    let first = storage.next().await;
    let _second = storage.next().await;
    storage.expect_nothing().await;
    resolve(first, Stored);
    device.expect(&with_id(PUBACK, 1)).await;
    storage.next_publish().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_expiry_above_the_limit_is_capped_and_told() {
    let (broker, storage) = start(Limits { session_expiry_secs_max: 9, ..Limits::default() });
    storage.store_all();
    let mut device = Device::dial(&broker);
    device.send(&connect_5("a", 0x00, 0, &session_expiry(u32::MAX))).await;
    let (_, properties) = device.expect_connack_5(0x00).await;
    assert!(properties.windows(5).any(|bytes| bytes == session_expiry(9)), "{properties:02x?}");
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

#[tokio::test]
async fn an_address_has_at_most_so_many_connections_and_others_are_not_concerned() {
    let (broker, storage) = start(Limits { connections_per_address_max: 1, ..Limits::default() });
    storage.store_all();
    let bind = "127.0.0.1:0".parse().unwrap();
    let address = broker.listen(bind, ListenerConfig::default()).await.unwrap().local_addr;
    let first = connected_from(1, address).await.unwrap();
    assert_eq!(connected_from(1, address).await.unwrap_err(), [0x20, 2, 0, 3]);
    let _other = connected_from(2, address).await.unwrap();
    assert_eq!(broker.stats().connections_refused_address, 1);
    drop(first);
    while broker.stats().connections_open > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    connected_from(1, address).await.unwrap();
}

/// A 3.1.1 client from 127.0.0.`last`, or what it was told instead of an acceptance.
async fn connected_from(last: u8, address: std::net::SocketAddr) -> Result<TcpStream, Vec<u8>> {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, last], 0).into()).unwrap();
    let mut socket = socket.connect(address).await.unwrap();
    socket.write_all(&connect_4("", 0x02, 0)).await.unwrap();
    let mut connack = vec![0; 4];
    socket.read_exact(&mut connack).await.unwrap();
    if connack == CONNACK { Ok(socket) } else { Err(connack) }
}

#[tokio::test(start_paused = true)]
async fn when_too_many_have_not_sent_connect_the_oldest_goes_after_a_fair_time_and_newcomers_come_in() {
    let (broker, _storage) = start(Limits { connecting_max: 2, ..Limits::default() });
    let mut silent = [Device::dial(&broker), Device::dial(&broker)];
    tokio::time::sleep(Duration::from_secs(1)).await;
    Device::dial(&broker).expect_closed().await;
    assert_eq!((broker.stats().half_open_dropped, broker.stats().connections_half_open), (1, 2));
    tokio::time::sleep(Duration::from_secs(1)).await;
    Device::connected_4(&broker, "a").await;
    silent[0].expect_closed().await;
    silent[1].expect_nothing().await;
    assert_eq!((broker.stats().half_open_dropped, broker.stats().connections_half_open), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_half_open_connections_from_one_address_keeps_no_other_out() {
    let (broker, _storage) = start(Limits { connecting_max: 10, ..Limits::default() });
    let flooder = std::net::SocketAddr::from(([10, 0, 0, 1], 5_000));
    let mut flood = Vec::new();
    for _ in 0..100 {
        flood.push(Device::dial_from(&broker, flooder, &ListenerConfig::default()));
        tokio::task::yield_now().await;
    }
    assert_eq!(broker.stats().connections_half_open, 10);
    let other = std::net::SocketAddr::from(([10, 0, 0, 2], 5_000));
    let mut device = Device::dial_from(&broker, other, &ListenerConfig::default());
    device.send(&connect_4("a", 0x02, 0)).await;
    device.expect(CONNACK).await;
}

#[tokio::test(start_paused = true)]
async fn those_that_are_connected_are_not_counted_among_those_that_are_not() {
    let (broker, _storage) = start(Limits { connecting_max: 1, ..Limits::default() });
    let mut first = Device::connected_4(&broker, "a").await;
    let mut second = Device::connected_4(&broker, "b").await;
    for device in [&mut first, &mut second] {
        device.send(PINGREQ).await;
        device.expect(PINGRESP).await;
    }
    assert_eq!(broker.stats().half_open_dropped, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stranger_may_not_send_as_much_as_a_client() {
    let (broker, mut storage) = start(Limits { connect_bytes_max: 128, ..Limits::default() });
    let mut stranger = Device::dial(&broker);
    stranger.send(&connect_4(&"a".repeat(200), 0x02, 0)[..20]).await;
    stranger.expect_closed().await;
    assert_eq!(broker.stats().malformed, 1);
    let mut client = Device::connected_4(&broker, "a").await;
    client.send(&publish_4(&"t".repeat(200), 1, 1)).await;
    storage.answer("publish", Stored).await;
    client.expect(&with_id(PUBACK, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_packet_that_does_not_come_to_its_end_in_time_closes_the_connection() {
    let (broker, mut storage) = start(Limits { packet_timeout: Duration::from_secs(60), ..Limits::default() });
    let mut device = Device::connected_5(&broker, "a").await;
    let packet = publish_5("t", 1, 1, &[]);
    for half in [&packet[..4], &packet[4..]] {
        tokio::time::sleep(Duration::from_secs(50)).await;
        device.send(half).await;
    }
    storage.answer("publish", Stored).await; // 50 s after its first byte
    device.expect(&with_id(PUBACK, 1)).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    device.send(&packet[..4]).await;
    tokio::time::sleep(Duration::from_secs(59)).await;
    device.send(&packet[4..5]).await;
    device.expect_disconnect_5(0x83).await;
    assert_eq!(broker.stats().packet_timeouts, 1);
}

#[tokio::test(start_paused = true)]
async fn when_too_much_of_packets_is_not_complete_whoever_wants_more_is_closed() {
    let limits = Limits { partial_bytes_max: 20_000, ..Limits::default() };
    let (broker, mut storage) = start(limits);
    let mut first = Device::connected_5(&broker, "a").await;
    let mut second = Device::connected_5(&broker, "b").await;
    let large = frame(0x30, &[&[0, 1, b't', 0][..], &[0; 40_000]].concat());
    first.send(&large[..15_000]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    second.send(&large[..15_000]).await;
    second.expect_disconnect_5(0x97).await;
    assert_eq!(broker.stats().partial_packets_refused, 1);
    first.send(&large[15_000..]).await;
    storage.answer("publish", Stored).await;
    let mut third = Device::connected_5(&broker, "c").await;
    third.send(&large[..15_000]).await;
    third.expect_nothing().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_publishes_too_fast_is_not_read_for_a_while_and_nothing_is_lost() {
    let (broker, mut storage) = start(Limits { publish_rate_max: 10, ..Limits::default() });
    let mut device = Device::connected_4(&broker, "a").await;
    let all: Vec<u8> = (1..=50).flat_map(|id| publish_4("t", 1, id)).collect();
    device.send(&all).await;
    let mut taken = Vec::new();
    for second in 0..5 {
        tokio::time::sleep(Duration::from_millis(if second == 0 { 1 } else { 1_000 })).await;
        let before = taken.len();
        while let Ok(inbound) = storage.inbound.try_recv() {
            taken.push(inbound);
        }
        let most = if second == 0 { 11 } else { 10 };
        assert!(taken.len() - before <= most, "{} in one second", taken.len() - before);
    }
    assert_eq!(taken.len(), 50);
    assert!(broker.stats().throttled > 0);
    taken.into_iter().for_each(|inbound| resolve(inbound, Stored));
    for id in 1..=50 {
        device.expect(&with_id(PUBACK, id)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed_at_the_limit_whatever_its_keep_alive() {
    let (broker, _storage) = start(Limits { idle_timeout: Some(Duration::from_secs(30)), ..Limits::default() });
    let mut device = Device::connected_5(&broker, "a").await; // Keep Alive 0
    tokio::time::sleep(Duration::from_secs(29)).await;
    device.send(PINGREQ).await;
    device.expect(PINGRESP).await;
    tokio::time::sleep(Duration::from_secs(29)).await;
    device.expect_nothing().await;
    device.expect_disconnect_5(0x8D).await;
    assert_eq!(broker.stats().keep_alive_timeouts, 1);
}
