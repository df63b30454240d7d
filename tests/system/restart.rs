//! A restart on the same directory goes on where the agent was: rows, positions, sessions.

use forebay_tests::device::Device;
use forebay_tests::packets::{self, Connect, Publish, Reply, Version};

use crate::{finish, sealing_soon, start};

#[test]
fn a_restarted_agent_appends_to_the_same_dataset() {
    let dir = tempfile::tempdir().unwrap();
    let config = sealing_soon(dir.path());

    for life in ["first", "second", "third"] {
        let agent = start(&config);
        let mut device = Device::connect(agent.mqtt_addr(), Version::V4, &Connect::clean("device")).unwrap();
        for number in 1..=10 {
            let payload = format!("{life} {number}");
            device.publish_and_wait(&Publish::new("a/b", payload.as_bytes(), 1, number)).unwrap();
        }
        agent.drain(0).unwrap();
        agent.stop().unwrap();
    }

    let rows = finish(start(&config), &config, "messages");
    let wanted =
        ["first", "second", "third"].iter().flat_map(|life| (1..=10).map(move |number| format!("{life} {number}")));
    assert_eq!(rows.texts("payload").unwrap(), wanted.collect::<Vec<_>>());
}

#[test]
fn what_waits_in_the_spool_at_a_stop_is_sealed_after_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let offline = sealing_soon(dir.path()).with("rows = 1_000_000");
    let agent = start(&offline);
    let mut device = Device::connect(agent.mqtt_addr(), Version::V5, &Connect::clean("device")).unwrap();
    for number in 1..=100 {
        device.publish_and_wait(&Publish::new("a/b", format!("{number}").as_bytes(), 1, number)).unwrap();
    }
    agent.stop().unwrap();

    let rows = finish(start(&offline), &offline, "messages");

    assert_eq!(rows.len(), 100);
}

#[test]
fn a_packet_identifier_of_qos_2_is_remembered_over_a_restart() {
    for version in [Version::V4, Version::V5] {
        let dir = tempfile::tempdir().unwrap();
        let config = sealing_soon(dir.path());
        let packet = Publish::new("a/b", b"exactly once", 2, 77);
        let agent = start(&config);
        let mut device = Device::connect(agent.mqtt_addr(), version, &Connect::persistent("device")).unwrap();
        device.publish(&packet).unwrap();
        device.expect(&Reply::PubRec { packet_id: 77, code: 0 }).unwrap();
        agent.kill().unwrap();

        let agent = start(&config);
        let mut device = Device::connect(agent.mqtt_addr(), version, &Connect::persistent("device")).unwrap();
        assert!(device.session_present, "{version:?}");
        device.publish_and_wait(&Publish { dup: true, ..packet }).unwrap();
        let mut again = Vec::new();
        packets::pubrel(77, &mut again);
        device.send(&again).unwrap();
        // [MQTT-4.3.3] of 5.0 says that the identifier is not known any more; 3.1.1 has no way to say so.
        let code = if version == Version::V5 { 0x92 } else { 0 };
        device.expect(&Reply::PubComp { packet_id: 77, code }).unwrap();

        let rows = finish(agent, &config, "messages");
        assert_eq!(rows.texts("payload").unwrap(), ["exactly once"], "{version:?}");
    }
}
