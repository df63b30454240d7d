//! Valid packets of rumqttc's 3.1.1 client, and its reader.

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use rumqttc::mqttbytes::v4::{
    Connect, LastWill, Login, Packet, PubRel, Publish, Subscribe, SubscribeFilter, Unsubscribe,
};
use rumqttc::mqttbytes::{Protocol, QoS};

use crate::{LIMIT, generate};

/// A packet and the bytes that rumqttc writes for it.
pub(crate) fn written(rng: &mut Rng) -> (Bytes, Packet) {
    let packet = packet(rng);
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, LIMIT as usize).unwrap();
    (bytes.freeze(), packet)
}

/// What rumqttc reads, or `None` when it refuses or wants more.
pub(crate) fn read(bytes: &[u8]) -> Option<Packet> {
    Packet::read(&mut BytesMut::from(bytes), LIMIT as usize).ok()
}

fn packet(rng: &mut Rng) -> Packet {
    match rng.u8(..10) {
        0 | 1 => Packet::Connect(connect(rng)),
        2..=4 => Packet::Publish(publish(rng)),
        5 => Packet::PubRel(PubRel::new(generate::id(rng))),
        6 => Packet::Subscribe(subscribe(rng)),
        7 => Packet::Unsubscribe(unsubscribe(rng)),
        8 => Packet::PingReq,
        _ => Packet::Disconnect,
    }
}

fn connect(rng: &mut Rng) -> Connect {
    Connect {
        protocol: Protocol::V4,
        keep_alive: rng.u16(..),
        client_id: generate::text(rng),
        clean_session: rng.bool(),
        last_will: generate::maybe(rng, |rng| LastWill {
            topic: generate::some_text(rng),
            message: generate::bytes(rng),
            qos: qos(rng),
            retain: rng.bool(),
        }),
        login: generate::maybe(rng, |rng| Login { username: generate::some_text(rng), password: generate::text(rng) }),
    }
}

fn publish(rng: &mut Rng) -> Publish {
    let qos = qos(rng);
    Publish {
        dup: qos != QoS::AtMostOnce && rng.bool(),
        qos,
        retain: rng.bool(),
        topic: generate::some_text(rng),
        pkid: if qos == QoS::AtMostOnce { 0 } else { generate::id(rng) },
        payload: generate::bytes(rng),
    }
}

fn subscribe(rng: &mut Rng) -> Subscribe {
    let filter = |rng: &mut Rng| SubscribeFilter::new(generate::filter(rng, false), qos(rng));
    Subscribe { pkid: generate::id(rng), filters: (0..rng.usize(1..5)).map(|_| filter(rng)).collect() }
}

fn unsubscribe(rng: &mut Rng) -> Unsubscribe {
    Unsubscribe {
        pkid: generate::id(rng),
        topics: (0..rng.usize(1..5)).map(|_| generate::filter(rng, false)).collect(),
    }
}

fn qos(rng: &mut Rng) -> QoS {
    [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][rng.usize(..3)]
}
