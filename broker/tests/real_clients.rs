//! rumqttc, a client that is not ours, over real sockets.

use std::time::Duration;

use bytes::Bytes;
use forebay_broker::config::{Limits, ListenerConfig};
use forebay_broker::inbound::{Inbound, InboundPublish, Outcome};
use forebay_broker::{Broker, packet};
use tokio::sync::mpsc;

/// Stores everything at once, and passes on what was published.
fn store_all(mut inbound: mpsc::Receiver<Inbound>) -> mpsc::UnboundedReceiver<InboundPublishFacts> {
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(inbound) = inbound.recv().await {
            match inbound {
                Inbound::Publish(InboundPublish { topic, payload, qos, will, ticket, client_id, .. }) => {
                    let topic = topic.as_str().to_owned();
                    let _ = sender.send((client_id.to_string(), topic, payload, qos, will));
                    ticket.resolve(Outcome::Stored);
                }
                Inbound::Release { ticket, .. }
                | Inbound::OpenSession { ticket, .. }
                | Inbound::CloseSession { ticket, .. } => ticket.resolve(Outcome::Stored),
            }
        }
    });
    receiver
}

type InboundPublishFacts = (String, String, Bytes, packet::QoS, bool);

async fn start() -> (Broker, u16, mpsc::UnboundedReceiver<InboundPublishFacts>) {
    let (broker, inbound) = Broker::new(Limits::default(), Vec::new());
    let bind = "127.0.0.1:0".parse().expect("an address");
    let listener = broker.listen(bind, ListenerConfig::default()).await.expect("a free port");
    (broker, listener.local_addr.port(), store_all(inbound))
}

const QOS: [packet::QoS; 3] = [packet::QoS::AtMostOnce, packet::QoS::AtLeastOnce, packet::QoS::ExactlyOnce];

#[tokio::test]
async fn rumqttc_3_1_1_publishes_with_every_qos_and_is_refused_a_subscription() {
    use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS, SubscribeReasonCode};
    let (broker, port, mut stored) = start().await;
    let mut options = MqttOptions::new("four", "127.0.0.1", port);
    options.set_clean_session(false);
    let (client, mut events) = AsyncClient::new(options, 100);

    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        client.publish("é/temp", qos, false, "21.5").await.unwrap();
    }
    client.subscribe("#", QoS::AtLeastOnce).await.unwrap();
    let (mut acknowledged, mut completed, mut refused) = (0, 0, false);
    while (acknowledged, completed, refused) != (1, 1, true) {
        match events.poll().await.unwrap() {
            Event::Incoming(Packet::PubAck(_)) => acknowledged += 1,
            Event::Incoming(Packet::PubComp(_)) => completed += 1,
            Event::Incoming(Packet::SubAck(suback)) => {
                refused = suback.return_codes == [SubscribeReasonCode::Failure];
            }
            _ => {}
        }
    }

    for qos in QOS {
        let expected = ("four".to_owned(), "é/temp".to_owned(), Bytes::from("21.5"), qos, false);
        assert_eq!(stored.recv().await, Some(expected));
    }
    client.disconnect().await.unwrap();
    let _ = tokio::time::timeout(Duration::from_secs(1), events.poll()).await;
    broker.shutdown().await;
    assert_eq!(broker.stats().violations + broker.stats().malformed, 0);
}

#[tokio::test]
async fn rumqttc_5_publishes_with_every_qos_and_is_refused_a_subscription() {
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::{Packet, SubscribeReasonCode};
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};
    let (broker, port, mut stored) = start().await;
    let mut options = MqttOptions::new("five", "127.0.0.1", port);
    options.set_session_expiry_interval(Some(60)).set_clean_start(false);
    let (client, mut events) = AsyncClient::new(options, 100);

    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        client.publish("é/temp", qos, false, "21.5").await.unwrap();
    }
    client.subscribe("#", QoS::AtLeastOnce).await.unwrap();
    let (mut acknowledged, mut completed, mut refused) = (0, 0, false);
    while (acknowledged, completed, refused) != (1, 1, true) {
        match events.poll().await.unwrap() {
            Event::Incoming(Packet::PubAck(_)) => acknowledged += 1,
            Event::Incoming(Packet::PubComp(_)) => completed += 1,
            Event::Incoming(Packet::SubAck(suback)) => {
                refused = suback.return_codes == [SubscribeReasonCode::NotAuthorized];
            }
            _ => {}
        }
    }

    for qos in QOS {
        let expected = ("five".to_owned(), "é/temp".to_owned(), Bytes::from("21.5"), qos, false);
        assert_eq!(stored.recv().await, Some(expected));
    }
    broker.shutdown().await;
    assert_eq!(broker.stats().connections_open, 0);
}
