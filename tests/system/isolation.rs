//! One bad client harms nobody else: it is answered with the right code and closed, while 20 others publish on.

use std::io::Read;
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use forebay_tests::device::Device;
use forebay_tests::packets::{self, Connect, Publish, Reply, Version};

use crate::{finish, sealing_soon, start};

const DEVICES: u16 = 20;

/// What a bad client sends after its CONNECT, and the DISCONNECT that tells it why (MQTT 5.0).
const BAD_PACKETS: &[(&str, &[u8], u8)] = &[
    ("packet type 0", &[0x00, 0x00], 0x81),
    ("PUBLISH of QoS 3", &[0x36, 0x07, 0, 1, b'a', 0, 1, 0, b'x'], 0x81),
    ("PUBREL with wrong flags", &[0x60, 0x02, 0, 1], 0x81),
    ("five bytes of Remaining Length", &[0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x01], 0x81),
    ("PUBLISH of a topic that is not UTF-8", &[0x30, 0x05, 0, 2, 0xC3, 0x28, 0], 0x81),
    ("PUBLISH whose topic is longer than the packet", &[0x30, 0x03, 0xFF, 0xFF, b'a'], 0x81),
    ("PUBLISH to a wildcard", &[0x30, 0x04, 0, 1, b'#', 0], 0x90),
    ("Packet Identifier 0", &[0x32, 0x06, 0, 1, b'a', 0, 0, 0], 0x82),
    ("a second CONNECT", &[0x10, 0x0D, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 0, 0, 0, 0], 0x82),
    ("CONNACK, which only a server sends", &[0x20, 0x03, 0, 0, 0], 0x82),
    ("SUBACK, which only a server sends", &[0x90, 0x04, 0, 1, 0, 0], 0x82),
    ("PINGRESP, which only a server sends", &[0xD0, 0x00], 0x82),
    ("PUBLISH of 1 MiB", &[0x30, 0x80, 0x80, 0x40], 0x95),
    ("a Remaining Length of 256 MiB", &[0x30, 0xFF, 0xFF, 0xFF, 0x7F], 0x95),
];

#[test]
fn a_bad_packet_closes_its_connection_with_its_code_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let config = sealing_soon(dir.path());
    let agent = start(&config);
    let addr = agent.mqtt_addr();
    let bad_clients_are_done = AtomicBool::new(false);

    let published: usize = thread::scope(|scope| {
        let devices: Vec<_> = (0..DEVICES)
            .map(|index| {
                scope.spawn({
                    let done = &bad_clients_are_done;
                    move || publish_until(done, addr, index)
                })
            })
            .collect();
        for (name, bytes, code) in BAD_PACKETS {
            assert_eq!(disconnect_code(addr, bytes), Some(*code), "{name}");
            assert_closes_311(addr, bytes, name);
        }
        truncated_packets(addr);
        bad_clients_are_done.store(true, Ordering::Release);
        devices.into_iter().map(|device| device.join().expect("a good device is not disturbed")).sum()
    });

    let rows = finish(agent, &config, "messages");
    assert_eq!(rows.len(), published, "the good devices' messages, and nothing of the bad ones");
}

#[test]
fn what_is_not_mqtt_is_closed_without_an_answer_that_it_could_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let agent = start(&sealing_soon(dir.path()));

    for bytes in
        [&b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01\x00", b"\xFF\xFF\xFF\xFF\xFF"]
    {
        let mut client = Device::open(agent.mqtt_addr(), Version::V4).unwrap();
        let _ = client.send(bytes);
        let mut answer = Vec::new();
        let _ = client.stream().read_to_end(&mut answer);
        assert!(answer.is_empty(), "{bytes:?} was answered with {answer:?}");
    }

    let mut good = Device::connect(agent.mqtt_addr(), Version::V4, &Connect::clean("good")).unwrap();
    good.ping().unwrap();
    agent.stop().unwrap();
}

fn publish_until(done: &AtomicBool, addr: SocketAddr, index: u16) -> usize {
    let version = if index.is_multiple_of(2) { Version::V4 } else { Version::V5 };
    let mut device = Device::connect(addr, version, &Connect::clean(&format!("good-{index}"))).unwrap();
    for number in 1..=u16::MAX {
        let payload = format!("{index} {number}");
        let qos = if index % 4 < 2 { 1 } else { 2 };
        device.publish_and_wait(&Publish::new("good/topic", payload.as_bytes(), qos, number)).unwrap();
        if done.load(Ordering::Acquire) && number >= 10 {
            return usize::from(number);
        }
    }
    unreachable!("the bad clients are done long before")
}

/// What the agent says to a 5.0 client that sends `bytes`, before it closes.
fn disconnect_code(addr: SocketAddr, bytes: &[u8]) -> Option<u8> {
    let mut client = Device::connect(addr, Version::V5, &Connect::clean("bad")).unwrap();
    client.send(bytes).unwrap();
    let code = match client.next_reply().unwrap() {
        Some(Reply::Disconnect { code }) => Some(code),
        other => panic!("{bytes:02X?} was answered with {other:?}"),
    };
    client.expect_closed().unwrap();
    code
}

/// A 3.1.1 client cannot be told why.
fn assert_closes_311(addr: SocketAddr, bytes: &[u8], name: &str) {
    let mut client = Device::connect(addr, Version::V4, &Connect::clean("bad")).unwrap();
    client.send(bytes).unwrap();
    // What 5.0 sends as properties may be part of a payload in 3.1.1, where some of these packets are good.
    if name.starts_with("PUBLISH of a topic") || bytes[0] >> 4 != 3 {
        client.expect_closed().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// A client that sends any part of a packet and goes away.
fn truncated_packets(addr: SocketAddr) {
    let mut connect = Vec::new();
    packets::connect(Version::V5, &Connect::clean("truncated"), &mut connect);
    let mut publish = Vec::new();
    packets::publish(Version::V5, &Publish::new("a/b", b"never whole", 1, 7), &mut publish);
    for length in 1..connect.len() {
        let mut client = Device::open(addr, Version::V5).unwrap();
        client.send(&connect[..length]).unwrap();
        client.stream().shutdown(Shutdown::Write).unwrap();
        client.expect_closed().unwrap_or_else(|error| panic!("{length} bytes of CONNECT: {error}"));
    }
    for length in 1..publish.len() {
        let mut client = Device::connect(addr, Version::V5, &Connect::clean("truncated")).unwrap();
        client.send(&publish[..length]).unwrap();
        client.stream().shutdown(Shutdown::Write).unwrap();
        let answer = client.next_reply().unwrap();
        assert!(matches!(answer, None | Some(Reply::Disconnect { .. })), "{length} bytes of PUBLISH: {answer:?}");
    }
}
