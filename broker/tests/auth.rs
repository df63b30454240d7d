//! Who may connect and where each may publish, as a device sees it.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use forebay_broker::Broker;
use forebay_broker::auth::password::PasswordHash;
use forebay_broker::auth::{Access, Acl, PasswordFile};
use forebay_broker::config::{Limits, ListenerConfig};
use forebay_broker::inbound::Outcome::Stored;
use support::*;

#[tokio::test(start_paused = true)]
async fn the_right_password_lets_a_device_in_and_a_wrong_one_or_none_does_not() {
    let (broker, _storage) = guarded(Limits::default());

    for (version, user, password, answer) in [
        (4, "ann", "secret", vec![0x20, 2, 0, 0]),
        (4, "ann", "wrong", vec![0x20, 2, 0, 4]),
        (4, "ann", "", vec![0x20, 2, 0, 4]),
        (4, "nobody", "secret", vec![0x20, 2, 0, 4]),
    ] {
        let mut device = Device::dial(&broker);
        device.send(&login(version, "a", user, password)).await;
        device.expect(&answer).await;
    }
    let mut five = Device::dial(&broker);
    five.send(&login(5, "b", "ann", "wrong")).await;
    five.expect_connack_5(0x86).await;
    five.expect_closed().await;
    let mut anonymous = Device::dial(&broker);
    anonymous.send(&connect_5("c", 0x02, 0, &[])).await;
    anonymous.expect_connack_5(0x87).await;
    let mut anonymous = Device::dial(&broker);
    anonymous.send(&connect_4("c", 0x02, 0)).await;
    anonymous.expect(&[0x20, 2, 0, 5]).await;

    let stats = broker.stats();
    assert_eq!((stats.logins_failed, stats.connects_refused_not_authorized, stats.connects_accepted), (4, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_message_says_who_published_it_and_a_name_that_nobody_verified_is_none() {
    let (broker, mut storage) = guarded(Limits::default());
    let mut ann = logged_in(&broker, "a", "ann").await;
    ann.send(&publish_4("t", 1, 1)).await;
    assert_eq!(storage.next_publish().await.user_name.as_deref(), Some("ann"));

    broker.set_access(Access::default());
    let mut pretender = Device::dial(&broker);
    pretender.send(&login(4, "b", "ann", "whatever")).await;
    pretender.expect(CONNACK).await;
    pretender.send(&publish_4("t", 1, 1)).await;
    assert_eq!(storage.next_publish().await.user_name, None);
}

#[tokio::test(start_paused = true)]
async fn a_listener_may_let_devices_in_that_another_one_asks_for_a_password() {
    let (broker, _storage) = guarded(Limits::default());
    let open = ListenerConfig { allow_anonymous: Some(true), ..ListenerConfig::default() };

    let mut device = Device::dial_from(&broker, "unix socket", &open);
    device.send(&connect_4("a", 0x02, 0)).await;
    device.expect(CONNACK).await;
    let mut wrong = Device::dial_from(&broker, "unix socket", &open);
    wrong.send(&login(4, "b", "ann", "wrong")).await;
    wrong.expect(&[0x20, 2, 0, 4]).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_access_control_list_does_not_grant_is_marked_and_a_will_is_refused_with_its_connect() {
    let (broker, mut storage) = start(Limits::default());
    let acl = "topic write open/#\nuser ann\ntopic write site/ann/+\ntopic deny site/ann/secret\n";
    broker.set_access(access(&[("ann", "secret")], acl));
    let mut ann = logged_in(&broker, "a", "ann").await;

    for (id, topic, is_authorized) in
        [(1, "site/ann/temp", true), (2, "site/ann/secret", false), (3, "site/bob/temp", false), (4, "open/x", false)]
    {
        ann.send(&publish_4(topic, 1, id)).await;
        let publish = storage.next_publish().await;
        assert_eq!((publish.topic.as_str(), publish.is_authorized), (topic, is_authorized));
        publish.ticket.resolve(Stored);
        ann.expect(&with_id(PUBACK, id)).await;
    }
    broker.set_access(Access { acl: Acl::parse("topic write open/#\n").ok(), ..Access::default() });
    let mut with_will = Device::dial(&broker); // to the topic `w`
    with_will.send(&connect_5_with_will("b", 0x06, 0, &[], &[])).await;
    with_will.expect_connack_5(0x87).await;
}

/// Whoever ends a session that is at rest publishes its Will Message, which is still that of whoever left it.
#[tokio::test(start_paused = true)]
async fn a_will_that_waits_is_published_by_the_right_of_whoever_left_it() {
    let (broker, mut storage) = start(Limits::default());
    broker.set_access(access(&[("ann", "a"), ("bob", "b")], "user ann\ntopic write w\n"));
    let (a_minute, expiry) = ([0x18, 0, 0, 0, 60], [0x11, 0, 0, 1, 0]);
    let mut ann = Device::dial(&broker);
    let mut connect = connect_5_with_will("sensor", 0xC6, 0, &expiry, &a_minute);
    connect.extend([text("ann"), text("a")].concat());
    connect[1] += 8;
    ann.send(&connect).await;
    storage.answer("open", Stored).await;
    ann.expect_connack_5(0x00).await;
    drop(ann);
    tokio::time::sleep(Duration::from_secs(1)).await;

    let mut bob = Device::dial(&broker);
    bob.send(&login(5, "sensor", "bob", "b")).await;

    let will = storage.next_publish().await;
    assert_eq!((will.user_name.as_deref(), will.is_authorized), (Some("ann"), true));
}

#[tokio::test(start_paused = true)]
async fn a_new_access_control_list_counts_for_the_next_message_of_those_that_are_connected() {
    let (broker, mut storage) = start(Limits::default());
    let mut device = Device::connected_4(&broker, "a").await;
    device.send(&publish_4("t", 0, 0)).await;
    assert!(storage.next_publish().await.is_authorized);

    broker.set_access(Access { acl: Acl::parse("topic write other\n").ok(), ..Access::default() });

    device.send(&publish_4("t", 0, 0)).await;
    assert!(!storage.next_publish().await.is_authorized);
}

#[tokio::test(start_paused = true)]
async fn whose_password_was_changed_or_taken_away_is_closed_and_others_go_on() {
    let (broker, mut storage) = start(Limits::default());
    broker.set_access(access(&[("ann", "a"), ("bob", "b"), ("cyd", "c")], ""));
    let mut ann = connected_as(&broker, 4, "1", "ann", "a").await;
    let mut bob = connected_as(&broker, 5, "2", "bob", "b").await;
    let mut cyd = connected_as(&broker, 4, "3", "cyd", "c").await;

    broker.set_access(Access { passwords: Some(file_of(&[("cyd", "c"), ("bob", "new")])), ..secured() });

    ann.expect_closed().await;
    bob.expect_disconnect_5(0x87).await;
    // Another salt is another password, for all we know. A file that is edited keeps the lines of others.
    cyd.expect_closed().await;
    assert_eq!(broker.stats().revoked, 3);
    let mut bob = connected_as(&broker, 4, "2", "bob", "new").await;

    let again = file_of(&[("bob", "new")]);
    let kept = PasswordFile::parse(&again.to_string()).unwrap();
    broker.set_access(Access { passwords: Some(again), ..secured() });
    bob.expect_closed().await;
    let mut bob = connected_as(&broker, 4, "2", "bob", "new").await;
    broker.set_access(Access { passwords: Some(kept), ..secured() });
    bob.send(&publish_4("t", 1, 1)).await;
    storage.answer("publish", Stored).await;
    bob.expect(&with_id(PUBACK, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn when_anonymous_access_ends_those_without_credentials_are_closed() {
    let (broker, _storage) = start(Limits::default());
    let mut device = Device::connected_5(&broker, "a").await;
    broker.set_access(secured());
    device.expect_disconnect_5(0x87).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_of_one_user_is_not_taken_over_by_another() {
    let (broker, _storage) = start(Limits::default());
    broker.set_access(access(&[("ann", "a"), ("bob", "b")], ""));
    let mut ann = connected_as(&broker, 4, "sensor", "ann", "a").await;

    let mut bob = Device::dial(&broker);
    bob.send(&login(5, "sensor", "bob", "b")).await;
    bob.expect_connack_5(0x87).await;
    bob.expect_closed().await;

    ann.send(PINGREQ).await;
    ann.expect(PINGRESP).await;
    assert_eq!((broker.stats().connects_refused_owner, broker.stats().connects_refused_not_authorized), (1, 0));
    let mut again = connected_as(&broker, 4, "sensor", "ann", "a").await;
    ann.expect_closed().await;
    again.send(PINGREQ).await;
    again.expect(PINGRESP).await;
}

#[tokio::test(start_paused = true)]
async fn a_user_has_at_most_so_many_connections() {
    let (broker, _storage) = guarded(Limits { connections_per_user_max: 1, ..Limits::default() });
    let first = logged_in(&broker, "a", "ann").await;
    let mut second = Device::dial(&broker);
    second.send(&login(5, "b", "ann", "secret")).await;
    second.expect_connack_5(0x97).await;
    second.expect_closed().await;
    let mut third = Device::dial(&broker);
    third.send(&login(4, "b", "ann", "secret")).await;
    third.expect(&[0x20, 2, 0, 3]).await;
    third.expect_closed().await;
    assert_eq!((broker.stats().connects_refused_user, broker.stats().connects_refused_other), (2, 0));

    drop(first);
    tokio::time::sleep(Duration::from_secs(2)).await;
    logged_in(&broker, "b", "ann").await;
}

#[tokio::test(start_paused = true)]
async fn after_so_many_wrong_passwords_an_address_is_not_listened_to_for_this_user() {
    let (broker, _storage) = guarded(Limits { login_failures_max: 2, ..Limits::default() });
    let from = |last: u8| SocketAddr::from(([10, 0, 0, last], 5_000));
    let knock = async |last: u8, password: &str| {
        let mut device = Device::dial_from(&broker, from(last), &ListenerConfig::default());
        device.send(&login(5, "a", "ann", password)).await;
        device.packet().await.expect("a CONNACK")[3]
    };

    assert_eq!(knock(1, "wrong").await, 0x86);
    assert_eq!(knock(1, "wrong").await, 0x86);
    assert_eq!(knock(1, "secret").await, 0x9F);
    assert_eq!(knock(2, "secret").await, 0x00);
    assert_eq!(broker.stats().logins_refused_rate, 1);
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(knock(1, "secret").await, 0x00);
}

#[tokio::test(start_paused = true)]
async fn a_user_name_that_no_file_can_have_is_refused_and_not_remembered() {
    let (broker, _storage) = guarded(Limits { login_failures_max: 1, ..Limits::default() });
    let address = SocketAddr::from(([10, 0, 0, 1], 5_000));
    for (bytes, answers) in [(257, vec![0x86; 12]), (256, [vec![0x86; 10], vec![0x9F; 2]].concat())] {
        for (number, answer) in answers.into_iter().enumerate() {
            let user = format!("{number:0bytes$}");
            let mut device = Device::dial_from(&broker, address, &ListenerConfig::default());
            device.send(&login(5, "a", &user, "secret")).await;
            device.expect_connack_5(answer).await;
        }
    }
    assert_eq!((broker.stats().logins_failed, broker.stats().logins_refused_rate), (22, 2));
}

#[tokio::test]
async fn while_too_many_passwords_wait_more_are_told_to_come_again() {
    let (broker, _storage) = start(Limits { logins_waiting_max: 1, ..Limits::default() });
    broker.set_access(Access { passwords: Some(slow_file()), ..secured() });

    let mut first = Device::dial(&broker);
    first.send(&login(5, "a", "ann", "secret")).await;
    tokio::time::timeout(Duration::from_secs(60), async {
        while broker.stats().logins_refused_busy == 0 {
            let mut second = Device::dial(&broker);
            second.send(&login(5, "b", "ann", "secret")).await;
            second.expect_connack_5(0x89).await;
        }
    })
    .await
    .unwrap();
    first.expect_connack_5(0x00).await;
    assert_eq!(broker.stats().connects_refused_busy, 0, "that is of connections");
}

#[tokio::test(start_paused = true)]
async fn a_user_name_without_a_password_is_refused_and_counted() {
    let (broker, _storage) = guarded(Limits::default());
    let mut device = Device::dial(&broker);
    let body = [&text("MQTT")[..], &[5, 0x82, 0, 0, 0], &text("a"), &text("ann")].concat();
    device.send(&frame(0x10, &body)).await;
    device.expect_connack_5(0x86).await;
    assert_eq!(broker.stats().logins_failed, 1);
}

#[tokio::test]
async fn a_login_that_began_under_one_file_is_decided_under_the_next() {
    let removed = || file_of(&[("bob", "secret")]);
    let changed = || file_of(&[("ann", "new")]);
    for (file, password, answer) in
        [(removed(), "secret", 0x86), (changed(), "secret", 0x86), (changed(), "new", 0x00), (changed(), "wrong", 0x86)]
    {
        let limits = Limits { logins_waiting_max: 1, connect_timeout: Duration::from_secs(60), ..Limits::default() };
        let (broker, _storage) = start(limits);
        // So slow that it is still being verified when the file changes, however busy the machine is.
        broker.set_access(Access { passwords: Some(file_with(&[("ann", "secret")], 500_000)), ..secured() });
        let mut device = Device::dial(&broker);
        device.send(&login(5, "a", "ann", password)).await;
        let mut other = Device::dial(&broker);
        other.send(&login(5, "b", "ann", "secret")).await;
        other.expect_connack_5(0x89).await; // so the first is being verified

        broker.set_access(Access { passwords: Some(file), ..secured() });

        device.expect_connack_5(answer).await;
        assert_eq!(broker.stats().logins_failed, u64::from(answer != 0), "{password}");
    }
}

#[tokio::test]
async fn a_client_that_goes_while_its_password_is_verified_leaves_nothing() {
    let (broker, _storage) = start(Limits { connections_per_user_max: 1, logins_waiting_max: 1, ..Limits::default() });
    broker.set_access(Access { passwords: Some(slow_file()), ..secured() });
    let mut device = Device::dial(&broker);
    device.send(&login(4, "a", "ann", "secret")).await;
    tokio::task::yield_now().await;
    drop(device);
    tokio::time::timeout(Duration::from_secs(10), async {
        while broker.stats().connections_open > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    logged_in(&broker, "b", "ann").await;
}

/// A broker with one user, ann, whose password is "secret".
fn guarded(limits: Limits) -> (Broker, Storage) {
    let (broker, storage) = start(limits);
    broker.set_access(access(&[("ann", "secret")], ""));
    (broker, storage)
}

/// Nobody comes in without credentials.
fn secured() -> Access {
    Access { refuse_anonymous: true, ..Access::default() }
}

fn access(users: &[(&str, &str)], acl: &str) -> Access {
    let acl = (!acl.is_empty()).then(|| Acl::parse(acl).unwrap());
    Access { passwords: Some(file_of(users)), acl, ..secured() }
}

fn file_of(users: &[(&str, &str)]) -> PasswordFile {
    file_with(users, 2)
}

/// Verifying takes a good part of a second.
fn slow_file() -> PasswordFile {
    file_with(&[("ann", "secret")], 200_000)
}

fn file_with(users: &[(&str, &str)], iterations: u32) -> PasswordFile {
    let mut file = PasswordFile::default();
    for (user, password) in users {
        let salt: [u8; 12] = std::array::from_fn(|_| fastrand::u8(..));
        let hash = PasswordHash::new(password.as_bytes(), NonZeroU32::new(iterations).unwrap(), &salt);
        file.set(user, hash).unwrap();
    }
    file
}

async fn logged_in(broker: &Broker, client_id: &str, user: &str) -> Device {
    connected_as(broker, 4, client_id, user, "secret").await
}

async fn connected_as(broker: &Broker, version: u8, client_id: &str, user: &str, password: &str) -> Device {
    let mut device = Device::dial(broker);
    device.send(&login(version, client_id, user, password)).await;
    match version {
        4 => device.expect(CONNACK).await,
        _ => _ = device.expect_connack_5(0x00).await,
    }
    device
}
