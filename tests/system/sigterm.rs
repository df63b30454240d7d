//! SIGTERM drains: whatever was acknowledged is kept, clients are told, and the agent ends with success.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use forebay_tests::device::Device;
use forebay_tests::packets::{Connect, Publish, Reply, Version};

use crate::{finish, sealing_soon, start};

#[test]
fn sigterm_under_load_keeps_what_was_acknowledged_and_exits_with_0() {
    let dir = tempfile::tempdir().unwrap();
    let config = sealing_soon(dir.path());
    let agent = start(&config);
    let (acknowledged, progress) = mpsc::channel();
    let addr = agent.mqtt_addr();
    let connected = Arc::new(Barrier::new(8));
    let devices: Vec<_> = (0..8)
        .map(|index| {
            let acknowledged = acknowledged.clone();
            let connected = Arc::clone(&connected);
            thread::spawn(move || publish_until_closed(addr, index, &connected, &acknowledged))
        })
        .collect();
    drop(acknowledged);

    assert_eq!(progress.iter().take(400).count(), 400);
    let status = agent.stop().unwrap();

    assert_eq!(status.code(), Some(0));
    let mut acknowledged = BTreeSet::new();
    for device in devices {
        let (payloads, last) = device.join().unwrap();
        acknowledged.extend(payloads);
        assert!(matches!(last, None | Some(Reply::Disconnect { code: 0x8B })), "the last packet was {last:?}");
    }
    let rows = finish(start(&config), &config, "messages");
    let stored: BTreeSet<String> = rows.texts("payload").unwrap().into_iter().collect();
    assert!(
        acknowledged.is_subset(&stored),
        "lost: {:?}",
        acknowledged.difference(&stored).take(5).collect::<Vec<_>>()
    );
}

#[test]
fn a_5_0_client_that_idles_is_told_that_the_server_shuts_down() {
    let dir = tempfile::tempdir().unwrap();
    let agent = start(&sealing_soon(dir.path()));
    let mut device = Device::connect(agent.mqtt_addr(), Version::V5, &Connect::clean("idle")).unwrap();

    agent.stop().unwrap();

    device.expect(&Reply::Disconnect { code: 0x8B }).unwrap();
    device.expect_closed().unwrap();
}

/// What was acknowledged, and the packet that was no acknowledgement, if there was one.
fn publish_until_closed(
    addr: SocketAddr,
    index: u32,
    connected: &Barrier,
    acknowledged: &mpsc::Sender<()>,
) -> (Vec<String>, Option<Reply>) {
    let version = if index.is_multiple_of(2) { Version::V4 } else { Version::V5 };
    let mut device = Device::connect(addr, version, &Connect::clean(&format!("device-{index}"))).unwrap();
    connected.wait();
    let mut payloads = Vec::new();
    for number in 1..=u16::MAX {
        let payload = format!("{index} {number}");
        if device.publish(&Publish::new("a/b", payload.as_bytes(), 1, number)).is_err() {
            return (payloads, None);
        }
        match device.next_reply() {
            Ok(Some(Reply::PubAck { packet_id, code: 0 })) if packet_id == number => payloads.push(payload),
            Ok(last) => return (payloads, last),
            Err(_) => return (payloads, None),
        }
        let _ = acknowledged.send(());
    }
    (payloads, None)
}
