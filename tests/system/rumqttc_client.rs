//! rumqttc, the client library of most Rust devices, publishes to a running agent at every QoS, in both protocols.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use rumqttc::v5;
use rumqttc::{Client, Event, MqttOptions, NetworkOptions, Outgoing, Packet, QoS};

use crate::{finish, sealing_soon, start};

const MESSAGES: usize = 30;

#[test]
fn every_message_of_rumqttc_is_a_row() {
    let dir = tempfile::tempdir().unwrap();
    let config = sealing_soon(dir.path());
    let agent = start(&config);
    let mut wanted = BTreeSet::new();

    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        wanted.extend(publish_311(agent.mqtt_addr(), qos));
        wanted.extend(publish_5(agent.mqtt_addr(), qos));
    }

    agent.drain(wanted.len() as u64).unwrap();
    let rows = finish(agent, &config, "messages");
    let stored = rows.texts("payload").unwrap();
    assert_eq!(stored.len(), wanted.len(), "each once");
    assert_eq!(stored.into_iter().collect::<BTreeSet<_>>(), wanted);
}

fn publish_311(addr: SocketAddr, qos: QoS) -> Vec<String> {
    let options = MqttOptions::new(format!("rumqttc-v4-{}", qos as u8), addr.ip().to_string(), addr.port());
    let (client, mut connection) = Client::new(options, 2 * MESSAGES);
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(60);
    connection.eventloop.set_network_options(network);
    let payloads: Vec<String> = (0..MESSAGES).map(|number| format!("3.1.1 {} {number}", qos as u8)).collect();
    for payload in &payloads {
        client.publish("rumqttc/a", qos, false, payload.as_bytes()).unwrap();
    }
    let mut done = 0;
    for event in connection.iter() {
        let completed = match event.expect("the connection holds") {
            Event::Outgoing(Outgoing::Publish(_)) => qos == QoS::AtMostOnce,
            Event::Incoming(Packet::PubAck(_)) => qos == QoS::AtLeastOnce,
            Event::Incoming(Packet::PubComp(_)) => qos == QoS::ExactlyOnce,
            Event::Outgoing(Outgoing::Disconnect) => break,
            _ => false,
        };
        done += usize::from(completed);
        if completed && done == MESSAGES {
            client.disconnect().unwrap();
        }
    }
    payloads
}

fn publish_5(addr: SocketAddr, qos: QoS) -> Vec<String> {
    let level = [v5::mqttbytes::QoS::AtMostOnce, v5::mqttbytes::QoS::AtLeastOnce, v5::mqttbytes::QoS::ExactlyOnce];
    let mut options = v5::MqttOptions::new(format!("rumqttc-v5-{}", qos as u8), addr.ip().to_string(), addr.port());
    options.set_connection_timeout(60);
    let (client, mut connection) = v5::Client::new(options, 2 * MESSAGES);
    let payloads: Vec<String> = (0..MESSAGES).map(|number| format!("5.0 {} {number}", qos as u8)).collect();
    for payload in &payloads {
        client.publish("rumqttc/b", level[qos as usize], false, payload.clone()).unwrap();
    }
    let mut done = 0;
    for event in connection.iter() {
        let completed = match event.expect("the connection holds") {
            v5::Event::Outgoing(Outgoing::Publish(_)) => qos == QoS::AtMostOnce,
            v5::Event::Incoming(v5::mqttbytes::v5::Packet::PubAck(_)) => qos == QoS::AtLeastOnce,
            v5::Event::Incoming(v5::mqttbytes::v5::Packet::PubComp(_)) => qos == QoS::ExactlyOnce,
            v5::Event::Outgoing(Outgoing::Disconnect) => break,
            _ => false,
        };
        done += usize::from(completed);
        if completed && done == MESSAGES {
            client.disconnect().unwrap();
        }
    }
    payloads
}
