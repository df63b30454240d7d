//! Brokers for stories in which the agent subscribes: strangers that come back as they promise, and one that does as told.

use std::path::Path;
use std::thread;

use forebay_tests::broker::ScriptedBroker;
use forebay_tests::client_packets::ClientPacket;
use forebay_tests::device::Device;
use forebay_tests::feed::{self, Message};
use forebay_tests::mosquitto::{Mosquitto, MosquittoConfig};
use forebay_tests::packets::{Connect, Publish, Version};
use forebay_tests::rumqttd::Rumqttd;
use forebay_tests::tls::TlsFiles;

const RUMQTTD_PROGRAM: &str = env!("CARGO_BIN_EXE_forebay-stub-rumqttd");

/// rumqttd wants a Keep Alive.
fn persistent(client_id: &str) -> Connect<'_> {
    Connect { keep_alive_secs: 60, ..Connect::persistent(client_id) }
}

/// A subscriber that is away, with a session that waits for it.
fn subscribe_and_leave(addr: std::net::SocketAddr) {
    let mut device = Device::connect(addr, Version::V4, &persistent("absent")).unwrap();
    assert!(device.subscribe(1, "#").unwrap() < 0x80);
    device.disconnect().unwrap();
}

#[test]
fn mosquitto_keeps_a_session_over_a_stop_and_not_over_a_kill() {
    let Some(program) = Mosquitto::find() else {
        println!("SKIPPED: mosquitto is not installed; CI installs it.");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut broker = MosquittoConfig::in_dir(dir.path()).persistent().start(&program).unwrap();
    let is_there = |broker: &Mosquitto| {
        Device::connect(broker.addr(), Version::V4, &persistent("absent")).unwrap().session_present
    };
    subscribe_and_leave(broker.addr());

    broker.stop().unwrap();
    broker.restart().unwrap();
    assert!(is_there(&broker), "{}", broker.log());

    feed::publish(broker.addr(), (0..240).map(|number| Message::new("a", [number], number % 3))).unwrap();
    let mut other = Device::connect(broker.addr(), Version::V5, &Connect::persistent("unwritten")).unwrap();
    other.ping().unwrap();
    broker.kill().unwrap();
    broker.restart().unwrap();
    let back = Device::connect(broker.addr(), Version::V5, &Connect::persistent("unwritten")).unwrap();
    assert!(!back.session_present);
}

#[test]
fn mosquitto_speaks_tls_and_websocket_and_asks_for_passwords() {
    let Some(program) = Mosquitto::find() else {
        println!("SKIPPED: mosquitto is not installed; CI installs it.");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles::make(dir.path()).unwrap();
    let config = MosquittoConfig::in_dir(dir.path()).passwords(&[("u", "right")]).unwrap();
    let broker = config.tls(&files).unwrap().websockets().unwrap().start(&program).unwrap();
    assert!(broker.tls_url().is_ok() && broker.websocket_url().is_ok());
    let login = |password| Connect { login: Some(("u", password)), ..Connect::clean("one") };

    assert!(Device::connect(broker.addr(), Version::V4, &login("right")).is_ok());
    assert!(Device::connect(broker.addr(), Version::V4, &login("wrong")).is_err());
    broker.set_passwords(&[("u", "wrong")]).unwrap();
    // The file is read when mosquitto comes to it.
    while Device::connect(broker.addr(), Version::V4, &login("wrong")).is_err() {
        thread::yield_now();
    }
}

#[test]
fn rumqttd_serves_both_protocols_and_comes_back_empty() {
    let mut broker = Rumqttd::start(Path::new(RUMQTTD_PROGRAM)).unwrap();
    subscribe_and_leave(broker.addr());
    feed::publish(broker.addr(), (0..500).map(|number| Message::new("a", number.to_string(), 1))).unwrap();
    assert!(Device::connect(broker.addr(), Version::V4, &persistent("absent")).unwrap().session_present);
    Device::connect(broker.addr_v5(), Version::V5, &Connect { keep_alive_secs: 60, ..Connect::clean("five") }).unwrap();

    broker.kill().unwrap();
    broker.restart().unwrap();

    assert!(!Device::connect(broker.addr(), Version::V4, &persistent("absent")).unwrap().session_present);
}

#[test]
fn a_scripted_broker_sends_and_waits_as_told() {
    for version in [Version::V4, Version::V5] {
        let broker = ScriptedBroker::listen().unwrap();
        let addr = broker.addr();
        let client = thread::spawn(move || {
            let connect = Connect { login: Some(("u", "p")), ..Connect::persistent("subscriber") };
            let mut client = Device::connect(addr, version, &connect).unwrap();
            assert!(client.session_present);
            client.ping().unwrap();
            assert_eq!(client.subscribe(7, "a/#").unwrap(), 1);
            // PUBACK 5, PUBREC 6, PUBCOMP 6 as a client writes them.
            client.send(&[0x40, 2, 0, 5, 0x50, 2, 0, 6]).unwrap();
            client.send(&[0x70, 2, 0, 6]).unwrap();
            client.stream().shutdown(std::net::Shutdown::Write).unwrap();
            client
        });

        let mut session = broker.accept_subscriber(true).unwrap();
        assert_eq!((session.connect.version, session.connect.client_id.as_str()), (version, "subscriber"));
        assert_eq!(
            (session.connect.username.as_deref(), session.connect.password.as_deref()),
            (Some("u"), Some(&b"p"[..]))
        );
        assert_eq!(session.filters, [("a/#".to_owned(), 1)]);
        session.publish(&Publish::new("a/b", b"one", 1, 5)).unwrap();
        session.expect(&ClientPacket::PubAck(5)).unwrap();
        session.publish_and_complete(&Publish::new("a/b", b"two", 2, 6)).unwrap();
        assert!(session.expect(&ClientPacket::PubAck(9)).unwrap_err().to_string().contains("PubAck(9)"));
        session.close();
        client.join().unwrap();
    }
}
