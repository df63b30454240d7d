//! What a broker may send or do at the edges, and what is wrong with a source said in one line: each with mosquitto where it
//! does it by itself, else with a broker that does as told.

use std::fs;
use std::thread;
use std::time::Duration;

use forebay_tests::agent::{Agent, AgentConfig};
use forebay_tests::broker::{ScriptedBroker, Session};
use forebay_tests::client_packets::ClientPacket;
use forebay_tests::dataset::Rows;
use forebay_tests::device::Device;
use forebay_tests::feed::{self, Message};
use forebay_tests::mosquitto::MosquittoConfig;
use forebay_tests::packets::{Connect, Publish, Version};
use forebay_tests::proxy::Proxy;
use forebay_tests::tls::TlsFiles;

use crate::sources::{
    counted, mosquitto, subscribing, wait_for, wait_for_problem, wait_for_rows, wait_until_subscribed,
};
use crate::{finish, start};

/// Long enough to see that no packet comes; a commit takes milliseconds.
const SILENCE: Duration = Duration::from_millis(300);

const VERSIONS: [&str; 2] = ["3.1.1", "5.0"];

// What is in a message.

#[test]
fn large_deep_and_binary_messages_arrive_over_every_transport() {
    let Some(program) = mosquitto() else { return };
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles::make(&dir.path().join("tls")).unwrap();
    let config = MosquittoConfig::in_dir(dir.path()).tls(&files).unwrap().websockets().unwrap();
    let broker = config.start(&program).unwrap();
    let deep = vec!["level"; 60].join("/");
    let trust = format!("ca_file = '{}'", files.ca.display());
    // mosquitto sends 40 kB/s over a WebSocket: 4 KiB each time its loop comes by.
    let transports = [
        ("tcp", broker.url(), "", 200 * 1024),
        ("tls", broker.tls_url().unwrap(), trust.as_str(), 200 * 1024),
        ("websocket", broker.websocket_url().unwrap(), "", 10 * 1024),
    ];

    for (name, url, keys, bytes) in transports {
        let large = "x".repeat(bytes);
        for version in VERSIONS {
            let keys = format!("{keys}\nversion = \"{version}\"\nclient_id = \"{name}-{version}\"");
            let config = subscribing(&dir.path().join(name).join(version), &url, &keys);
            let agent = start(&config);
            wait_until_subscribed(&agent);

            for qos in 0..=2 {
                let messages =
                    [Message::new("large", large.clone(), qos), Message::new(&deep, [0, 159, 146, 150], qos)];
                feed::publish(broker.addr(), messages).unwrap();
            }

            let topics = wait_for_rows(&agent, &config, "messages", "topic", |topics| topics.len() == 6);
            assert_eq!(topics.iter().filter(|topic| **topic == deep).count(), 3, "{name} {version}");
            let payloads = finish(agent, &config, "messages").texts("payload").unwrap();
            assert_eq!(payloads.iter().filter(|payload| **payload == large).count(), 3, "{name} {version}");
        }
    }
}

#[test]
fn a_payload_that_is_no_text_is_a_dead_letter_of_json_and_a_row_of_bytes() {
    let broker = ScriptedBroker::listen().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = subscribing(dir.path(), &broker.url(), "")
        .with("[[dataset]]\nname = \"json\"\ntopics = [\"json\"]\nformat = \"json\"\nschema = { id = \"String\" }")
        .with("[[dataset]]\nname = \"bytes\"\ntopics = [\"bytes\"]\nformat = \"bytes\"");
    let agent = start(&config);
    let mut session = broker.accept_subscriber(false).unwrap();
    assert_eq!(session.filters, [("json".to_owned(), 1), ("bytes".to_owned(), 1)], "what the datasets take");

    let json: [&[u8]; 3] = [b"{\"id\":\"before\"}", b"{\"id\":\"\xff\xfe\"}", b"{\"id\":\"after\"}"];
    for (payload, packet_id) in json.into_iter().zip(1..) {
        session.publish_and_complete(&Publish::new("json", payload, 1, packet_id)).unwrap();
    }
    session.publish_and_complete(&Publish::new("bytes", b"\xff\xfe", 1, 4)).unwrap();

    agent.drain(0).unwrap();
    let status = agent.status().unwrap();
    assert_eq!(status.pointer("/datasets/0/dead_letters"), Some(&1.into()), "{status:#}");
    let rows = finish(agent, &config, "json");
    assert_eq!(rows.texts("id").unwrap(), ["before", "after"]);
    assert_eq!(Rows::read(&config.data_dir(), "bytes").unwrap().len(), 1);
}

#[test]
fn a_message_before_the_suback_is_taken() {
    let broker = ScriptedBroker::listen().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = subscribing(dir.path(), &broker.url(), "");
    let agent = start(&config);
    let mut session = broker.accept().unwrap();
    session.connack(true).unwrap();

    // A resumed session is served at once [MQTT-4.4.0-1].
    session.publish(&Publish::new("a", b"early", 1, 1)).unwrap();
    session.subscribe_and_grant().unwrap();
    session.expect(&ClientPacket::PubAck(1)).unwrap();

    assert_eq!(finish(agent, &config, "messages").texts("payload").unwrap(), ["early"]);
}

// Packet identifiers, as a broker that lost its connection or its mind uses them.

#[test]
fn qos_1_that_is_sent_again_after_a_lost_connection_is_stored_once() {
    for version in VERSIONS {
        let scene = Scene::new(version, "");
        let agent = start(&scene.config);
        let packet = Publish::new("a", b"once", 1, 7);

        let mut session = scene.broker.accept_subscriber(false).unwrap();
        session.publish_and_complete(&packet).unwrap();
        session.close();
        let mut session = scene.broker.accept_subscriber(true).unwrap();
        session.publish_and_complete(&Publish { dup: true, ..packet }).unwrap();

        assert_eq!(scene.finish(agent), ["once"], "{version}");
    }
}

#[test]
fn qos_2_that_is_sent_again_after_a_lost_connection_is_stored_once() {
    in_every_way(|version, is_killed| {
        let scene = Scene::new(version, "qos = \"ExactlyOnce\"");
        let mut agent = start(&scene.config);
        let packet = Publish::new("a", b"once", 2, 7);

        let mut session = scene.broker.accept_subscriber(false).unwrap();
        session.publish(&packet).unwrap();
        session.expect(&ClientPacket::PubRec(7)).unwrap();
        agent = scene.interrupt(agent, session, is_killed);
        let mut session = scene.broker.accept_subscriber(true).unwrap();
        session.publish_and_complete(&Publish { dup: true, ..packet }).unwrap();

        assert_eq!(scene.finish(agent), ["once"], "{version}, killed: {is_killed}");
    });
}

#[test]
fn a_pubrel_that_is_sent_again_is_completed_before_and_after_a_restart() {
    in_every_way(|version, is_killed| {
        let scene = Scene::new(version, "qos = \"ExactlyOnce\"");
        let mut agent = start(&scene.config);

        let mut session = scene.broker.accept_subscriber(false).unwrap();
        session.publish_and_complete(&Publish::new("a", b"once", 2, 7)).unwrap();
        agent = scene.interrupt(agent, session, is_killed);
        let mut session = scene.broker.accept_subscriber(true).unwrap();
        session.pubrel(7).unwrap();
        session.expect(&ClientPacket::PubComp(7)).unwrap();
        session.pubrel(4_711).unwrap(); // of which nobody has heard
        session.expect(&ClientPacket::PubComp(4_711)).unwrap();

        assert_eq!(scene.finish(agent), ["once"], "{version}, killed: {is_killed}");
    });
}

#[test]
fn a_packet_identifier_that_was_completed_is_that_of_another_message() {
    in_every_way(|version, is_killed| {
        let scene = Scene::new(version, "qos = \"ExactlyOnce\"");
        let mut agent = start(&scene.config);
        let packet = Publish::new("a", b"equal", 2, 7);

        let mut session = scene.broker.accept_subscriber(false).unwrap();
        session.publish_and_complete(&packet).unwrap();
        session.publish_and_complete(&packet).unwrap();
        agent = scene.interrupt(agent, session, is_killed);
        let mut session = scene.broker.accept_subscriber(true).unwrap();
        session.publish_and_complete(&packet).unwrap();

        assert_eq!(scene.finish(agent), ["equal", "equal", "equal"], "{version}, killed: {is_killed}");
    });
}

#[test]
fn a_broker_that_forgot_the_session_means_other_messages_by_the_same_identifiers() {
    in_every_way(|version, is_killed| {
        let scene = Scene::new(version, "qos = \"ExactlyOnce\"");
        let mut agent = start(&scene.config);
        let packet = Publish::new("a", b"equal", 2, 7);

        let mut session = scene.broker.accept_subscriber(false).unwrap();
        session.publish(&packet).unwrap();
        session.expect(&ClientPacket::PubRec(7)).unwrap();
        agent = scene.interrupt(agent, session, is_killed);
        let mut session = scene.broker.accept_subscriber(false).unwrap();
        session.publish_and_complete(&packet).unwrap();

        assert_eq!(scene.finish(agent), ["equal", "equal"], "{version}, killed: {is_killed}");
    });
}

/// A broker that keeps the session and counts anew (rumqttd does): the identifier of a message that it has not released is
/// that of another one, which a broker must not do [MQTT-2.3.1-2]. Without DUP and with other bytes it is no repetition.
#[test]
fn an_identifier_in_use_that_comes_with_another_message_loses_nothing() {
    in_every_way(|version, is_killed| {
        let scene = Scene::new(version, "qos = \"ExactlyOnce\"");
        let mut agent = start(&scene.config);

        let mut session = scene.broker.accept_subscriber(false).unwrap();
        for (text, packet_id) in [("one", 1), ("two", 2)] {
            session.publish(&Publish::new("a", text.as_bytes(), 2, packet_id)).unwrap();
            session.expect(&ClientPacket::PubRec(packet_id)).unwrap();
        }
        agent = scene.interrupt(agent, session, is_killed);
        let mut session = scene.broker.accept_subscriber(true).unwrap();
        // Of "one" the PUBREC has arrived.
        session.pubrel(1).unwrap();
        session.expect(&ClientPacket::PubComp(1)).unwrap();
        session.publish_and_complete(&Publish::new("a", b"two", 2, 1)).unwrap();
        session.publish_and_complete(&Publish::new("a", b"three", 2, 2)).unwrap();

        let stored = scene.finish(agent);
        assert!(stored.contains(&"three".to_owned()), "{version}, killed: {is_killed}: {stored:?}");
    });
}

/// mosquitto 2.0 does that when two connections break in a row, against [MQTT-4.3.3-1]. What a broken connection swallowed
/// comes with DUP the first time we see it.
#[test]
fn a_released_message_that_a_broker_sends_again_is_stored_once() {
    for first_dup in [false, true] {
        in_every_way(|version, is_killed| {
            let scene = Scene::new(version, "qos = \"ExactlyOnce\"");
            let mut agent = start(&scene.config);
            let texts = ["one", "two", "three", "four"];
            let packet = |text: &'static str, packet_id, dup| Publish {
                dup,
                ..Publish::new("a", text.as_bytes(), 2, packet_id)
            };

            let mut session = scene.broker.accept_subscriber(false).unwrap();
            session.publish_and_complete(&packet("zero", 1, false)).unwrap();
            for (text, packet_id) in texts.into_iter().zip(2..) {
                session.publish_and_complete(&packet(text, packet_id, first_dup)).unwrap();
            }
            agent = scene.interrupt(agent, session, is_killed);
            let mut session = scene.broker.accept_subscriber(true).unwrap();
            for (text, packet_id) in texts[..3].iter().copied().zip(2..) {
                session.publish_and_complete(&packet(text, packet_id, true)).unwrap();
            }

            let wanted = ["zero", "one", "two", "three", "four"];
            assert_eq!(scene.finish(agent), wanted, "{version}, killed: {is_killed}, DUP at first: {first_dup}");
        });
    }
}

#[test]
fn a_state_that_comes_back_is_stored_again_and_its_repetition_is_not() {
    let scene = Scene::new("3.1.1", "");
    let agent = start(&scene.config);
    let retained = |text: &'static str, packet_id| Publish {
        retain: true,
        ..Publish::new("state", text.as_bytes(), 1, packet_id)
    };

    let mut session = scene.broker.accept_subscriber(false).unwrap();
    session.publish_and_complete(&retained("closed", 1)).unwrap();
    // A change while subscribed comes without RETAIN [MQTT-3.3.1-9].
    session.publish_and_complete(&Publish::new("state", b"open", 1, 2)).unwrap();
    session.close();
    for packet_id in 3..=5 {
        let mut session = scene.broker.accept_subscriber(true).unwrap();
        session.publish_and_complete(&retained("closed", packet_id)).unwrap();
        session.close();
    }

    assert_eq!(scene.finish(agent), ["closed", "open", "closed"]);
}

#[test]
fn answers_leave_in_the_order_of_what_they_answer() {
    let scene = Scene::new("3.1.1", "qos = \"ExactlyOnce\"");
    let agent = start(&scene.config);
    let mut session = scene.broker.accept_subscriber(false).unwrap();

    for packet_id in 1..=200 {
        let qos = if packet_id % 2 == 0 { 2 } else { 1 };
        session.publish(&Publish::new("a", b"", qos, packet_id)).unwrap();
    }

    for packet_id in 1..=200 {
        let is_2 = packet_id % 2 == 0;
        let wanted = if is_2 { ClientPacket::PubRec(packet_id) } else { ClientPacket::PubAck(packet_id) };
        session.expect(&wanted).unwrap();
    }
    agent.stop().unwrap();
}

// Connections.

#[test]
fn a_connection_that_is_lost_every_second_brings_everything_once() {
    let Some(program) = mosquitto() else { return };
    let dir = tempfile::tempdir().unwrap();
    let broker = MosquittoConfig::in_dir(&dir.path().join("broker")).start(&program).unwrap();
    let proxy = Proxy::start(broker.addr()).unwrap();
    let url = format!("mqtt://{}", proxy.addr());
    let config = subscribing(dir.path(), &url, "qos = \"ExactlyOnce\"");
    let agent = start(&config);
    wait_until_subscribed(&agent);
    agent.stop().unwrap();
    let wanted: Vec<String> = (0..800).map(|number| format!("{number:0100}")).collect();
    feed::publish(broker.addr(), wanted.iter().map(|payload| Message::new("a", payload.as_str(), 2))).unwrap();
    // A dozen of seconds for all of them, so that every connection is cut among messages.
    proxy.throttle(Some(10_000));

    let before = proxy.connections();
    let agent = start(&config);
    let mut cuts = 0;
    while stored(&agent) < 800 {
        let connected = before + cuts;
        wait_for(&agent, "a connection", |status| proxy.connections() > connected || stored_of(status) >= 800);
        thread::sleep(Duration::from_secs(1));
        proxy.cut();
        cuts += 1;
    }
    proxy.throttle(None);

    let rows = wait_for_rows(&agent, &config, "messages", "payload", |rows| rows.len() >= 800);
    println!("{cuts} connections lost, {} messages", rows.len());
    assert!(cuts >= 3, "the connection was lost often enough to mean something: {cuts}");
    let rows = finish(agent, &config, "messages").texts("payload").unwrap();
    assert_eq!(rows, wanted, "each once, in the broker's order");
}

#[test]
fn a_silent_connection_is_kept_by_pings() {
    let scene = Scene::new("3.1.1", "keep_alive = \"3s\"");
    let agent = start(&scene.config);
    let mut session = scene.broker.accept_subscriber(false).unwrap();
    assert_eq!(session.connect.keep_alive_secs, 3);

    // Nothing but PINGREQ, which is answered.
    session.expect_silence(Duration::from_secs(8)).unwrap();

    session.publish_and_complete(&Publish::new("a", b"still there", 1, 1)).unwrap();
    assert_eq!(scene.finish(agent), ["still there"]);
}

// What is wrong, in one line, and how it heals.

#[test]
fn a_wrong_password_is_named_and_the_right_one_heals_it() {
    let Some(program) = mosquitto() else { return };
    let dir = tempfile::tempdir().unwrap();
    let users = [("agent", "right"), ("feed", "feed")];
    let broker =
        MosquittoConfig::in_dir(&dir.path().join("broker")).passwords(&users).unwrap().start(&program).unwrap();
    let password = dir.path().join("password");
    for version in VERSIONS {
        fs::write(&password, "wrong\n").unwrap();
        let keys = format!("version = \"{version}\"\nusername = \"agent\"\npassword_file = '{}'", password.display());
        let config = subscribing(&dir.path().join(version), &broker.url(), &keys);
        let agent = start(&config);

        let problem = wait_for_problem(&agent);
        println!("{version}: {problem}");
        assert!(problem.contains("password") && !problem.contains('\n'), "{problem}");
        fs::write(&password, "right\n").unwrap();
        let status = wait_for(&agent, "the subscription", |status| status["sources"][0]["subscribed"] == true);
        assert!(status["sources"][0]["problem"].is_null(), "{status:#}");
        let login = Connect { login: Some(("feed", "feed")), ..Connect::clean("feed") };
        feed::publish_as(broker.addr(), &login, [Message::new("a", "in", 1)]).unwrap();

        let rows = wait_for_rows(&agent, &config, "messages", "payload", |rows| !rows.is_empty());
        assert_eq!(rows, ["in"]);
        assert_eq!(agent.stop_with_errors().unwrap().len(), 1, "said once, not at every attempt");
    }
}

#[test]
fn a_certificate_that_expired_is_named_and_another_one_heals_it() {
    let Some(program) = mosquitto() else { return };
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles::make_expired(&dir.path().join("tls")).unwrap();
    let mut broker = MosquittoConfig::in_dir(&dir.path().join("broker")).tls(&files).unwrap().start(&program).unwrap();
    let keys = format!("ca_file = '{}'", files.ca.display());
    let config = subscribing(dir.path(), &broker.tls_url().unwrap(), &keys);
    let agent = start(&config);

    let problem = wait_for_problem(&agent);
    println!("{problem}");
    assert!(problem.contains("expired") && !problem.contains('\n'), "{problem}");
    TlsFiles::make(&dir.path().join("tls")).unwrap();
    broker.restart().unwrap();
    wait_until_subscribed(&agent);

    assert_eq!(agent.stop_with_errors().unwrap().len(), 1, "said once, not at every attempt");
}

#[test]
fn an_authority_that_is_not_the_brokers_is_named() {
    let Some(program) = mosquitto() else { return };
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles::make(&dir.path().join("tls")).unwrap();
    let others = TlsFiles::make(&dir.path().join("others")).unwrap();
    let broker = MosquittoConfig::in_dir(&dir.path().join("broker")).tls(&files).unwrap().start(&program).unwrap();
    let keys = format!("ca_file = '{}'", others.ca.display());
    let agent = start(&subscribing(dir.path(), &broker.tls_url().unwrap(), &keys));

    let problem = wait_for_problem(&agent);

    println!("{problem}");
    assert!(problem.contains("certificate is not trusted") && !problem.contains('\n'), "{problem}");
    assert_eq!(agent.stop_with_errors().unwrap().len(), 1);
}

#[test]
fn a_broker_that_asks_for_a_certificate_gets_ours_over_tls_and_websocket() {
    let Some(program) = mosquitto() else { return };
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles::make(&dir.path().join("tls")).unwrap();
    let ours = TlsFiles::make_client(&dir.path().join("ours"), "gateway").unwrap();
    let strange = TlsFiles::make_client(&dir.path().join("strange"), "gateway").unwrap();
    let broker = MosquittoConfig::in_dir(&dir.path().join("broker")).mutual_tls(&files, &ours).unwrap();
    let broker = broker.start(&program).unwrap();
    let trust = format!("ca_file = '{}'", files.ca.display());
    let showing = |files: &TlsFiles| {
        format!("{trust}\ncert_file = '{}'\nkey_file = '{}'", files.cert.display(), files.key.display())
    };
    for (name, url) in [("tls", broker.tls_url().unwrap()), ("websocket", broker.websocket_url().unwrap())] {
        let config = |case: &str, keys: &str| subscribing(&dir.path().join(name).join(case), &url, keys);
        for (case, keys) in [("none", trust.clone()), ("strange", showing(&strange))] {
            let agent = start(&config(case, &keys));
            let problem = wait_for_problem(&agent);
            println!("{name}, {case}: {problem}");
            assert!(problem.contains(&url) && !problem.contains('\n'), "{name}, {case}: {problem}");
            agent.stop_with_errors().unwrap();
        }
        let config = config("ours", &showing(&ours));
        let agent = start(&config);
        wait_until_subscribed(&agent);
        feed::publish(broker.addr(), [Message::new("a", name, 1)]).unwrap();
        let rows = wait_for_rows(&agent, &config, "messages", "payload", |rows| !rows.is_empty());
        assert_eq!(rows, [name]);
        agent.stop().unwrap();
    }
}

#[test]
fn a_message_that_is_too_large_is_named_kept_by_the_broker_and_taken_with_a_larger_limit() {
    for version in VERSIONS {
        let scene = Scene::new(version, "packet_bytes_max = \"64KiB\"");
        let agent = start(&scene.config);
        let large = Publish { topic: "plant/large", payload: &[b'x'; 100_000], qos: 1, packet_id: 2, ..small(2) };

        let mut session = scene.broker.accept_subscriber(false).unwrap();
        session.publish_and_complete(&small(1)).unwrap();
        session.publish(&large).unwrap();
        session.expect_end().unwrap();
        let problem = wait_for_problem(&agent);
        println!("{problem}");
        assert!(problem.contains("plant/large") && problem.contains("packet_bytes_max"), "{problem}");
        assert!(problem.contains("100") && !problem.contains('\n'), "the size is named: {problem}");
        assert_eq!(agent.stop_with_errors().unwrap().len(), 1);

        let larger = Scene { config: scene.with_keys(""), ..scene };
        let agent = start(&larger.config);
        let mut session = larger.broker.accept_subscriber(true).unwrap();
        session.publish_and_complete(&Publish { dup: true, ..large }).unwrap();
        let rows = larger.finish(agent);
        assert_eq!(rows.iter().map(String::len).collect::<Vec<_>>(), [5, 100_000]);
    }
}

#[test]
fn a_subscription_that_is_refused_is_named_and_the_others_go_on() {
    for (version, code) in VERSIONS.into_iter().zip([0x80, 0x87]) {
        let scene = Scene::new(version, "topics = [\"secret/#\"]");
        let agent = start(&scene.config);
        let mut session = scene.broker.accept().unwrap();
        session.connack(false).unwrap();
        session.subscribe_and_answer(code).unwrap();

        let problem = wait_for_problem(&agent);

        println!("{version}: {problem}");
        assert!(problem.contains("secret/#") && problem.contains("refuses"), "{problem}");
        session.expect_silence(SILENCE).unwrap();
        agent.stop_with_errors().unwrap();
    }
}

#[test]
fn a_broker_that_refuses_is_asked_again_later_and_later() {
    let scene = Scene::new("3.1.1", "");
    let agent = start(&scene.config);

    let mut waits = Vec::new();
    let mut last = crate::sources::now();
    for attempt in 0..4 {
        let session = scene.broker.accept().unwrap();
        if attempt > 0 {
            waits.push(last.elapsed());
        }
        last = crate::sources::now();
        session.refuse(3).unwrap(); // server unavailable
    }

    println!("{waits:?}");
    assert!(waits[0] >= Duration::from_millis(450) && waits[2] >= Duration::from_millis(1_900), "{waits:?}");
    assert!(wait_for_problem(&agent).contains("server unavailable"));
    agent.stop().unwrap();
}

// Retained values.

#[test]
fn a_retained_value_is_stored_once_until_it_changes_or_every_time_if_so_wanted() {
    let Some(program) = mosquitto() else { return };
    for (retained, wanted) in [("once", vec!["one", "two"]), ("every", vec!["one", "one", "one", "two", "two"])] {
        let dir = tempfile::tempdir().unwrap();
        let broker = MosquittoConfig::in_dir(&dir.path().join("broker")).start(&program).unwrap();
        let value = |text: &str| feed::publish(broker.addr(), [Message::new("state", text, 1).retained()]).unwrap();
        let config = subscribing(dir.path(), &broker.url(), "").with(&format!(
            "[[dataset]]\nname = \"state\"\ntopics = [\"state\", \"end\"]\nformat = \"text\"\nretained = \"{retained}\""
        ));
        value("one");

        // A broker sends what it retains whenever it is subscribed to.
        for round in 1..=3 {
            let agent = start(&config);
            wait_for_message(&agent, &broker.addr(), &config, round);
            agent.stop().unwrap();
        }
        value("two");
        for round in 4..=5 {
            let agent = start(&config);
            wait_for_message(&agent, &broker.addr(), &config, round);
            agent.stop().unwrap();
        }

        let rows = Rows::read(&config.data_dir(), "state").unwrap().texts("value").unwrap();
        let states: Vec<&String> = rows.iter().filter(|row| !row.starts_with("end")).collect();
        println!("retained = {retained}: {states:?}");
        if retained == "once" {
            assert_eq!(states, wanted.iter().collect::<Vec<_>>());
        } else {
            // The value that is published while we are away comes from the queue and as the retained one.
            let counts = counted(states.into_iter().cloned().collect());
            assert!(counts["one"] >= 3 && counts["two"] >= 2, "{counts:?}");
        }
    }
}

/// The broker has sent everything that came before a message which is published now.
fn wait_for_message(agent: &Agent, broker: &std::net::SocketAddr, config: &AgentConfig, round: u32) {
    wait_until_subscribed(agent);
    let end = format!("end {round}");
    feed::publish(*broker, [Message::new("end", end.as_str(), 1)]).unwrap();
    wait_for_rows(agent, config, "state", "value", |rows| rows.contains(&end));
}

// Both at once.

#[test]
fn devices_and_a_source_are_told_apart_by_a_column() {
    let scene = Scene::new("5.0", "");
    let agent = start(&scene.config);
    let mut session = scene.broker.accept_subscriber(false).unwrap();
    let mut device = Device::connect(agent.mqtt_addr(), Version::V4, &Connect::clean("device")).unwrap();

    session.publish_and_complete(&Publish::new("same/topic", b"from the broker", 1, 1)).unwrap();
    device.publish_and_wait(&Publish::new("same/topic", b"from the device", 1, 1)).unwrap();
    session.publish_and_complete(&Publish::new("same/topic", b"from the broker again", 2, 2)).unwrap();

    let rows = finish(agent, &scene.config, "messages");
    let told = rows.texts("payload").unwrap().into_iter().zip(rows.texts("source").unwrap()).collect::<Vec<_>>();
    let wanted = [("from the broker", "plant"), ("from the device", ""), ("from the broker again", "plant")];
    assert_eq!(told, wanted.map(|(payload, source)| (payload.to_owned(), source.to_owned())));
    assert_eq!(rows.texts("client_id").unwrap()[1], "device");
}

#[test]
fn a_dataset_of_a_source_takes_nothing_of_devices() {
    let scene = Scene::new("3.1.1", "");
    let config = scene.config.clone().with(
        "[[dataset]]\nname = \"theirs\"\ntopics = [\"same/+\"]\nformat = \"text\"\nsource = \"plant\"\n\
         [[dataset]]\nname = \"ours\"\ntopics = [\"same/+\"]\nformat = \"text\"",
    );
    let agent = start(&config);
    let mut session = scene.broker.accept_subscriber(false).unwrap();
    let mut device = Device::connect(agent.mqtt_addr(), Version::V5, &Connect::clean("device")).unwrap();

    session.publish_and_complete(&Publish::new("same/topic", b"theirs", 1, 1)).unwrap();
    device.publish_and_wait(&Publish::new("same/topic", b"ours", 1, 1)).unwrap();

    let theirs = finish(agent, &config, "theirs");
    assert_eq!(theirs.texts("value").unwrap(), ["theirs"]);
    assert_eq!(Rows::read(&config.data_dir(), "ours").unwrap().texts("value").unwrap(), ["ours"]);
}

/// In both versions, with a connection that is lost and an agent that is killed; all at once, for most of it is waiting.
fn in_every_way(story: impl Fn(&str, bool) + Sync) {
    thread::scope(|scope| {
        for version in VERSIONS {
            for is_killed in [false, true] {
                let story = &story;
                scope.spawn(move || story(version, is_killed));
            }
        }
    });
}

/// An agent whose source is a broker that does as told.
struct Scene {
    broker: ScriptedBroker,
    dir: tempfile::TempDir,
    config: AgentConfig,
    version: String,
}

impl Scene {
    fn new(version: &str, keys: &str) -> Self {
        let broker = ScriptedBroker::listen().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let keys = format!("version = \"{version}\"\n{keys}");
        let config = subscribing(dir.path(), &broker.url(), &keys);
        Self { broker, dir, config, version: version.to_owned() }
    }

    /// The same agent with other lines.
    fn with_keys(&self, keys: &str) -> AgentConfig {
        subscribing(self.dir.path(), &self.broker.url(), &format!("version = \"{}\"\n{keys}", self.version))
    }

    /// The connection ends, by the agent's death or by the broker.
    fn interrupt(&self, agent: Agent, session: Session, is_killed: bool) -> Agent {
        if is_killed {
            agent.kill().unwrap();
            drop(session);
            return start(&self.config);
        }
        session.close();
        agent
    }

    /// Payloads of the dataset `messages`, in their order.
    fn finish(&self, agent: Agent) -> Vec<String> {
        finish(agent, &self.config, "messages").texts("payload").unwrap()
    }
}

fn small(packet_id: u16) -> Publish<'static> {
    Publish::new("plant/small", b"small", 1, packet_id)
}

fn stored(agent: &Agent) -> u64 {
    stored_of(&agent.status().unwrap())
}

fn stored_of(status: &serde_json::Value) -> u64 {
    status["spool"]["log_end"].as_u64().unwrap()
}
