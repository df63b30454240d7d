//! A topic that no dataset takes: never silent. 5.0 is told with 0x90; 3.1.1 is acknowledged and kept as a dead letter.

use forebay_tests::agent::AgentConfig;
use forebay_tests::device::Device;
use forebay_tests::packets::{Connect, Publish, Reply, Version};
use serde_json::Value;

use crate::{finish, start};

const DATASET: &str = r#"
[batch]
age = "100ms"
[[dataset]]
name = "temperature"
topics = ["site/{site}/temp"]
format = "text"
"#;

#[test]
fn a_message_that_no_dataset_takes_is_refused_to_5_0_and_a_dead_letter_of_3_1_1() {
    let dir = tempfile::tempdir().unwrap();
    let config = AgentConfig::in_dir(dir.path()).with(DATASET);
    let agent = start(&config);

    let mut told = Device::connect(agent.mqtt_addr(), Version::V5, &Connect::clean("told")).unwrap();
    told.publish(&Publish::new("site/a/humidity", b"50", 1, 1)).unwrap();
    told.expect(&Reply::PubAck { packet_id: 1, code: 0x90 }).unwrap();
    told.publish_and_wait(&Publish::new("site/a/temp", b"21", 1, 2)).unwrap();
    let mut kept = Device::connect(agent.mqtt_addr(), Version::V4, &Connect::clean("kept")).unwrap();
    kept.publish_and_wait(&Publish::new("site/b/humidity", b"51", 1, 1)).unwrap();
    kept.publish_and_wait(&Publish::new("site/b/temp", b"22", 1, 2)).unwrap();

    let status = agent.status().unwrap();
    assert_eq!(status.pointer("/dead_letters_without_dataset").and_then(Value::as_u64), Some(1), "{status}");
    let rows = finish(agent, &config, "temperature");
    assert_eq!(rows.texts("value").unwrap(), ["21", "22"]);
    assert_eq!(rows.texts("site").unwrap(), ["a", "b"]);
}
