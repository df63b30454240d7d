//! What it means that two codecs read the same.

use bytes::Bytes;
use forebay_broker::packet::{Connect, Incoming, Publish, Will};
use rumqttc::mqttbytes::v4 as theirs_v4;
use rumqttc::v5::mqttbytes::v5 as theirs_v5;

/// Asserts that our reading of a 3.1.1 packet and rumqttc's agree in every field.
pub(crate) fn v4(ours: &Incoming, theirs: &theirs_v4::Packet) {
    use theirs_v4::Packet;
    match (ours, theirs) {
        (Incoming::Connect(ours), Packet::Connect(theirs)) => connect_v4(ours, theirs),
        (Incoming::Publish(ours), Packet::Publish(theirs)) => {
            same_publish(ours, (theirs.dup, theirs.qos as u8, theirs.retain), theirs.pkid);
            assert_eq!(ours.topic.as_str(), theirs.topic);
            assert_eq!(ours.payload, theirs.payload);
            assert_eq!(ours.topic_alias, None);
        }
        (Incoming::PubRel { packet_id }, Packet::PubRel(theirs)) => {
            assert_eq!(packet_id.get(), theirs.pkid);
        }
        (Incoming::Subscribe { packet_id, filters }, Packet::Subscribe(theirs)) => {
            assert_eq!((packet_id.get(), *filters), (theirs.pkid, theirs.filters.len()));
        }
        (Incoming::Unsubscribe { packet_id, filters }, Packet::Unsubscribe(theirs)) => {
            assert_eq!((packet_id.get(), *filters), (theirs.pkid, theirs.topics.len()));
        }
        (Incoming::PingReq, Packet::PingReq) => {}
        (Incoming::Disconnect { reason: 0, session_expiry_secs: None }, Packet::Disconnect) => {}
        _ => panic!("we read {ours:?}, rumqttc {theirs:?}"),
    }
}

/// Asserts that our reading of a 5.0 packet and rumqttc's agree in every field that we keep.
pub(crate) fn v5(ours: &Incoming, theirs: &theirs_v5::Packet) {
    use theirs_v5::Packet;
    match (ours, theirs) {
        (Incoming::Connect(ours), Packet::Connect(theirs, will, login)) => {
            connect_v5(ours, theirs);
            same_will_v5(ours.will.as_ref(), will.as_ref());
            let login = login.as_ref().map(|login| (&*login.username, &*login.password));
            same_login(ours, login);
        }
        (Incoming::Publish(ours), Packet::Publish(theirs)) => {
            same_publish(ours, (theirs.dup, theirs.qos as u8, theirs.retain), theirs.pkid);
            assert_eq!(ours.topic.as_bytes(), &theirs.topic);
            assert_eq!(ours.payload, theirs.payload);
            let alias = theirs.properties.as_ref().and_then(|properties| properties.topic_alias);
            assert_eq!(ours.topic_alias.map(u16::from), alias);
        }
        (Incoming::PubRel { packet_id }, Packet::PubRel(theirs)) => {
            assert_eq!(packet_id.get(), theirs.pkid);
        }
        (Incoming::Subscribe { packet_id, filters }, Packet::Subscribe(theirs)) => {
            assert_eq!(packet_id.get(), theirs.pkid);
            let has_id = |properties: &theirs_v5::SubscribeProperties| properties.id.is_some();
            // After a Subscription Identifier rumqttc loses count of the Property Length.
            if !theirs.properties.as_ref().is_some_and(has_id) {
                assert_eq!(*filters, theirs.filters.len());
            }
        }
        (Incoming::Unsubscribe { packet_id, filters }, Packet::Unsubscribe(theirs)) => {
            assert_eq!((packet_id.get(), *filters), (theirs.pkid, theirs.filters.len()));
        }
        (Incoming::PingReq, Packet::PingReq(_)) => {}
        (Incoming::Disconnect { reason, session_expiry_secs }, Packet::Disconnect(theirs)) => {
            let properties = theirs.properties.as_ref();
            let secs = properties.and_then(|properties| properties.session_expiry_interval);
            assert_eq!((*reason, *session_expiry_secs), (theirs.reason_code as u8, secs));
        }
        _ => panic!("we read {ours:?}, rumqttc {theirs:?}"),
    }
}

fn connect_v4(ours: &Connect, theirs: &theirs_v4::Connect) {
    assert_eq!(ours.keep_alive_secs, theirs.keep_alive);
    assert_eq!(&*ours.client_id, theirs.client_id);
    assert_eq!(ours.clean_start, theirs.clean_session);
    let will = theirs.last_will.as_ref().map(|will| Will {
        topic: will.topic.as_str().into(),
        payload: will.message.clone(),
        qos: ours.will.as_ref().expect("a will").qos,
        retain: will.retain,
        delay_secs: 0,
    });
    assert_eq!(ours.will, will);
    let qos = |will: &theirs_v4::LastWill| will.qos as u8;
    let ours_qos = ours.will.as_ref().map(|will| will.qos as u8);
    assert_eq!(ours_qos, theirs.last_will.as_ref().map(qos));
    let login = theirs.login.as_ref().map(|login| (&*login.username, &*login.password));
    same_login(ours, login);
}

fn connect_v5(ours: &Connect, theirs: &theirs_v5::Connect) {
    assert_eq!(ours.keep_alive_secs, theirs.keep_alive);
    assert_eq!(&*ours.client_id, theirs.client_id);
    assert_eq!(ours.clean_start, theirs.clean_start);
    let properties = theirs.properties.clone().unwrap_or_default();
    assert_eq!(ours.session_expiry_secs, properties.session_expiry_interval.unwrap_or(0));
    assert_eq!(ours.receive_maximum.get(), properties.receive_maximum.unwrap_or(u16::MAX));
    assert_eq!(ours.maximum_packet_size, properties.max_packet_size);
    assert_eq!(ours.request_problem_information, properties.request_problem_info.unwrap_or(1) == 1);
    assert_eq!(ours.has_authentication_method, properties.authentication_method.is_some());
}

fn same_will_v5(ours: Option<&Will>, theirs: Option<&theirs_v5::LastWill>) {
    let fields = |will: &Will| {
        let topic = Bytes::copy_from_slice(will.topic.as_bytes());
        (topic, will.payload.clone(), will.qos as u8, will.retain, will.delay_secs)
    };
    let their_fields = |will: &theirs_v5::LastWill| {
        let delay = will.properties.as_ref().and_then(|properties| properties.delay_interval);
        let (topic, message) = (will.topic.clone(), will.message.clone());
        (topic, message, will.qos as u8, will.retain, delay.unwrap_or(0))
    };
    assert_eq!(ours.map(fields), theirs.map(their_fields));
}

/// rumqttc does not tell empty from absent, for each of the two.
fn same_login(ours: &Connect, theirs: Option<(&str, &str)>) {
    let (user_name, password) = theirs.unwrap_or_default();
    assert_eq!(ours.user_name.as_deref().unwrap_or_default(), user_name);
    assert_eq!(ours.password.as_deref().unwrap_or_default(), password.as_bytes());
}

fn same_publish(ours: &Publish, flags: (bool, u8, bool), packet_id: u16) {
    assert_eq!((ours.dup, ours.qos as u8, ours.retain), flags);
    assert_eq!(ours.packet_id.map_or(0, u16::from), packet_id);
}
