//! A running agent: what devices send becomes rows, whatever happens in between.

use std::os::unix::fs::PermissionsExt as _;

use forebay_agent::control::{ControlRequest, client};
use forebay_agent::dead_letters::{DeadLetterLine, Done, Selection};
use forebay_agent::status::{Status, of_store};
use forebay_agent::store::Store;
use forebay_agent::supervisor::Agent;
use forebay_agent::tail::{TailLine, TailRequest};
use forebay_agent::verify::VerifyReport;
use rumqttc::v5::mqttbytes::v5::PubAckReason;

use crate::support::{Gateway, TEMPERATURE, publish, publish_v5, reading};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_becomes_rows_and_the_chain_verifies() {
    let gateway = Gateway::new(TEMPERATURE);
    let agent = gateway.start().await;
    let readings: Vec<_> = (0..100).map(reading).collect();
    let messages: Vec<_> = readings.iter().map(|payload| ("site/oslo/temp", payload.as_str())).collect();

    publish(agent.addresses()[0], "device", &messages).await;
    agent.seal_all().await.unwrap();
    agent.stop().await.unwrap();

    let report = gateway.verify("temperature");
    assert!(report.ok, "{report:?}");
    assert_eq!(report.rows, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_on_the_same_directory_continues_where_it_was() {
    let gateway = Gateway::new(TEMPERATURE);
    let first = gateway.start().await;
    publish(first.addresses()[0], "device", &[("site/oslo/temp", &reading(1))]).await;
    first.seal_all().await.unwrap();
    publish(first.addresses()[0], "device", &[("site/oslo/temp", &reading(2))]).await;
    first.stop().await.unwrap();

    let second = gateway.start().await;
    publish(second.addresses()[0], "device", &[("site/oslo/temp", &reading(3))]).await;
    second.seal_all().await.unwrap();
    let status = second.shared().status().unwrap();
    second.stop().await.unwrap();

    let report = gateway.verify("temperature");
    assert!(report.ok, "{report:?}");
    assert_eq!((report.rows, report.slices), (3, 2));
    assert_eq!((status.spool.log_end, status.spool.waiting), (3, 0));
    let store = Store::open_existing(&gateway.config()).unwrap();
    let alone = of_store(&gateway.config(), &store).unwrap();
    assert_eq!(alone.datasets, status.datasets, "a stopped agent's directory says the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_is_no_row_becomes_a_dead_letter_and_its_neighbours_rows() {
    let gateway = Gateway::new(TEMPERATURE);
    let agent = gateway.start().await;
    let messages = [("site/a/temp", &*reading(1)), ("site/a/temp", "{"), ("site/a/temp", &*reading(2))];

    publish(agent.addresses()[0], "device", &messages).await;
    agent.seal_all().await.unwrap();
    let status = agent.shared().status().unwrap();
    agent.stop().await.unwrap();

    assert_eq!((status.datasets[0].chain.rows, status.datasets[0].dead_letters), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_no_dataset_is_refused_in_5_0_and_a_dead_letter_in_3_1_1() {
    let gateway = Gateway::new(TEMPERATURE);
    let agent = gateway.start().await;

    let reason = publish_v5(agent.addresses()[0], "nobody/listens").await;
    publish(agent.addresses()[0], "device", &[("nobody/listens", "x")]).await;
    let status = agent.shared().status().unwrap();
    agent.stop().await.unwrap();

    assert_eq!(reason, PubAckReason::TopicNameInvalid);
    assert_eq!(status.refused.get("no_dataset"), Some(&1), "{:?}", status.refused);
    assert_eq!(status.dead_letters_without_dataset, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_configuration_every_topic_goes_to_messages() {
    let gateway = Gateway::new("");
    let agent = gateway.start().await;

    publish(agent.addresses()[0], "device", &[("a", "1"), ("b/c", "\u{0}")]).await;
    agent.seal_all().await.unwrap();
    agent.stop().await.unwrap();

    assert_eq!(gateway.verify("messages").rows, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_socket_is_for_its_owner_and_answers_while_the_agent_runs() {
    let gateway = Gateway::new(TEMPERATURE);
    let agent = gateway.start().await;
    publish(agent.addresses()[0], "device", &[("site/a/temp", &reading(1)), ("site/b/temp", &reading(2))]).await;
    let config = gateway.config();

    let (mode, status, lines, verified, refused) = tokio::task::spawn_blocking(move || {
        let mode = std::fs::metadata(config.control_socket()).unwrap().permissions().mode();
        let ask = |request| client::ask(&config, &request).unwrap().unwrap();
        let status: Status = ask(ControlRequest::Status).one().unwrap();
        let tail = |filter: &str| TailRequest { filter: Some(filter.to_owned()), lines: 5, follow: false };
        let mut lines = Vec::new();
        let mut answers = ask(ControlRequest::Tail(tail("site/b/#")));
        while let Some(line) = answers.next_line::<TailLine>().unwrap() {
            lines.push(line);
        }
        let verified: VerifyReport = ask(ControlRequest::Verify { dataset: None }).one().unwrap();
        let wrong = ControlRequest::Verify { dataset: Some("nothing".to_owned()) };
        let refused = ask(wrong).one::<VerifyReport>().unwrap_err().to_string();
        (mode, status, lines, verified, refused)
    })
    .await
    .unwrap();
    agent.stop().await.unwrap();

    assert_eq!(mode & 0o777, 0o600);
    assert!(status.running);
    assert_eq!(status.spool.log_end, 2);
    let shown: Vec<_> = lines.iter().map(|line| (line.topic.as_str(), line.text.as_deref())).collect();
    assert_eq!(shown, [("site/b/temp", Some(&*reading(2)))]);
    assert!(verified.ok);
    assert!(refused.contains("there is no dataset nothing"), "{refused}");
    assert!(!gateway.config().control_socket().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_belongs_to_one_agent() {
    let gateway = Gateway::new(TEMPERATURE);
    let agent = gateway.start().await;

    let second = Agent::start(gateway.config(), None).await.map(|_| ()).unwrap_err().to_string();
    agent.stop().await.unwrap();

    assert!(second.contains("is in use by another forebay process"), "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_does_not_continue_the_dataset_is_bad_configuration() {
    let gateway = Gateway::new(TEMPERATURE);
    gateway.start().await.stop().await.unwrap();
    let changed = gateway.toml().replace("temp = \"Float32\"", "temp = \"String\"");
    let config = forebay_agent::config::Config::parse(&changed, "forebay.toml".as_ref()).unwrap();

    let error = Agent::start(config, None).await.map(|_| ()).unwrap_err();

    assert!(error.is::<forebay_agent::config::ConfigError>(), "{error:?}");
    assert!(error.to_string().contains("temperature"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_replayed_once_its_topic_has_a_dataset() {
    let before = Gateway::new(TEMPERATURE);
    let agent = before.start().await;
    publish(agent.addresses()[0], "device", &[("log/door", "opened"), ("other", "x")]).await;
    agent.stop().await.unwrap();
    let changed = before.toml() + "[[dataset]]\nname = \"log\"\ntopics = [\"log/#\"]\nformat = \"text\"\n";
    let config = forebay_agent::config::Config::parse(&changed, "forebay.toml".as_ref()).unwrap();
    let agent = Agent::start(config.clone(), None).await.unwrap();

    let (done, left) = tokio::task::spawn_blocking(move || {
        let ask = |request| client::ask(&config, &request).unwrap().unwrap();
        let all = Selection::default();
        let done: Done = ask(ControlRequest::ReplayDeadLetters(all.clone())).one().unwrap();
        let left: Vec<DeadLetterLine> = ask(ControlRequest::DeadLetters(all)).one().unwrap();
        (done, left)
    })
    .await
    .unwrap();
    agent.seal_all().await.unwrap();
    agent.stop().await.unwrap();

    assert_eq!(done, Done { done: 1, left: 1, refused: None });
    assert_eq!(left.iter().map(|line| line.topic.as_str()).collect::<Vec<_>>(), ["other"]);
    assert_eq!(before.verify("log").rows, 1);
}
