//! The configuration changes under a running agent: what is acknowledged stays acknowledged, connections stay open, and a
//! file that cannot be used changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use forebay_tests::agent::{self, Agent, AgentConfig};
use forebay_tests::dataset::Rows;
use forebay_tests::device::Device;
use forebay_tests::node::StubNode;
use forebay_tests::packets::{Connect, Publish, Version};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::publisher::{Publisher, publish_meanwhile};
use crate::{PROGRAM, finish, forebay, from_env, sealing_soon, start, start_node};

/// Takes what no other dataset takes.
const REST: &str = "[[dataset]]\nname = \"rest\"\ntopics = [\"#\"]\nformat = \"text\"";
const HUMIDITY: &str = "[[dataset]]\nname = \"humidity\"\ntopics = [\"site/{site}/hum\"]\nformat = \"text\"";
const READINGS: &str =
    "[[dataset]]\nname = \"readings\"\ntopics = [\"site/{site}/temp\"]\n[dataset.schema]\ntemp = \"Float32\"";
const DEVICES: u32 = 8;
/// After so many acknowledgements the devices are busy.
const PUBLISHING: usize = 200;

#[test]
fn a_dataset_that_is_added_to_the_file_takes_its_topics_while_a_device_goes_on_publishing() {
    let dir = tempfile::tempdir().unwrap();
    let agent = start(&sealing_soon(dir.path()).with(REST));
    let (device, stop) = steady_device(agent.mqtt_addr());
    let config = sealing_soon(dir.path()).with(HUMIDITY).with(REST);

    config.write().unwrap();
    let reload = agent.reloaded_since(&Value::Null).unwrap();
    wait_for_rows(&agent, "humidity");
    stop.store(true, Ordering::Relaxed);
    let published = device.join().expect("the connection is never lost");

    assert_eq!(reload["taken_over"], json!(["dataset humidity added"]), "{reload}");
    assert_eq!(reload["problem"], Value::Null);
    let rest = finish(agent, &config, "rest");
    let humidity = Rows::read(&config.data_dir(), "humidity").unwrap();
    assert!(humidity.texts("site").unwrap().iter().all(|site| site == "7"));
    let both = [rest.texts("value").unwrap(), humidity.texts("value").unwrap()].concat();
    assert!(!rest.is_empty());
    assert_eq!(both, published, "each is stored once: before the reload in the one, after it in the other");
}

#[test]
fn a_file_that_cannot_be_read_changes_nothing_and_is_said_with_its_line_until_it_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let config = sealing_soon(dir.path()).with(REST);
    let agent = start(&config);
    let mut device = Device::connect(agent.mqtt_addr(), Version::V5, &Connect::clean("device")).unwrap();

    let bad = sealing_soon(dir.path()).with("[[dataset]]\nname = \"rest\"\ntopics = [\"a/#/b\"]\nformat = \"text\"");
    let refused = agent.reload_with(|| bad.write().unwrap()).unwrap();
    device.publish_and_wait(&Publish::new("a/b", b"as before", 1, 1)).unwrap();
    let problem = refused["problem"].as_str().unwrap().to_owned();
    assert!(problem.contains("forebay.toml:12:11") && problem.contains("a/#/b"), "{problem}");

    config.write().unwrap();
    let mended = agent.reloaded_since(&refused).unwrap();
    assert_eq!(mended["problem"], Value::Null, "{mended}");
    device.publish_and_wait(&Publish::new("a/b", b"mended", 1, 2)).unwrap();

    let errors = drain_and_stop_with_errors(agent, &config);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].contains("forebay.toml:12:11"), "{errors:#?}");
    assert_eq!(Rows::read(&config.data_dir(), "rest").unwrap().texts("value").unwrap(), ["as before", "mended"]);
}

#[test]
fn columns_that_do_not_continue_the_dataset_on_disk_are_refused_with_the_rest_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let config = sealing_soon(dir.path()).with(READINGS);
    let agent = start(&config);
    publish_readings(&agent, &[r#"{"temp": 1.5}"#]);
    agent.drain(1).unwrap();

    let other = sealing_soon(dir.path()).with(HUMIDITY).with(&READINGS.replace("Float32", "String"));
    let refused = agent.reload_with(|| other.write().unwrap()).unwrap();
    publish_readings(&agent, &[r#"{"temp": 2.5}"#]);

    let problem = refused["problem"].as_str().unwrap().to_owned();
    assert!(problem.contains("forebay.toml:14:1: ") && problem.contains("dataset readings: "), "{problem}");
    assert!(!config.data_dir().join("datasets/humidity").exists(), "nothing of the file is taken over");
    assert_eq!(agent.reload_with(|| config.write().unwrap()).unwrap()["problem"], Value::Null);
    let errors = drain_and_stop_with_errors(agent, &config);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert_eq!(Rows::read(&config.data_dir(), "readings").unwrap().floats("temp").unwrap(), [1.5, 2.5]);
}

#[test]
fn an_empty_file_is_not_taken_for_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let config = sealing_soon(dir.path()).with(REST);
    let file = config.write().unwrap();
    let agent = start(&config);

    fs::write(&file, "").unwrap();
    let refused = agent.reloaded_since(&Value::Null).unwrap();

    assert!(refused["problem"].as_str().unwrap().contains("forebay.toml:1:1: is empty"), "{refused}");
    config.write().unwrap();
    assert_eq!(agent.reloaded_since(&refused).unwrap()["problem"], Value::Null);
    assert_eq!(drain_and_stop_with_errors(agent, &config).len(), 1);
}

#[test]
fn a_dataset_that_cannot_be_made_leaves_the_datasets_of_before_at_work() {
    let dir = tempfile::tempdir().unwrap();
    let agent = start(&sealing_soon(dir.path()).with(REST));
    let config = sealing_soon(dir.path()).with(HUMIDITY).with(REST);
    let in_the_way = config.data_dir().join("datasets/humidity");
    fs::write(&in_the_way, "").unwrap();
    let mut device = Device::connect(agent.mqtt_addr(), Version::V5, &Connect::clean("device")).unwrap();

    let refused = agent.reload_with(|| config.write().unwrap()).unwrap();
    device.publish_and_wait(&Publish::new("site/7/hum", b"50", 1, 1)).unwrap();
    agent.drain(1).unwrap();

    assert!(refused["problem"].as_str().unwrap().contains("humidity"), "{refused}");
    fs::remove_file(&in_the_way).unwrap();
    assert_eq!(agent.reload().unwrap()["problem"], Value::Null);
    device.publish_and_wait(&Publish::new("site/7/hum", b"51", 1, 2)).unwrap();
    assert_eq!(drain_and_stop_with_errors(agent, &config).len(), 1);
    let values = |name| Rows::read(&config.data_dir(), name).unwrap().texts("value").unwrap();
    assert_eq!((values("rest"), values("humidity")), (vec!["50".to_owned()], vec!["51".to_owned()]));
}

#[test]
fn whoever_asks_for_a_reload_hears_what_came_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let agent = start(&sealing_soon(dir.path()).with(REST));
    let config = sealing_soon(dir.path()).with(HUMIDITY).with(REST);

    let added = reload(&config);
    let again = reload(&config);
    let limits = reload(&config.clone().with("[limits]\nconnections_max = 7"));

    let ok = |text: &str| (Some(0), text.to_owned(), String::new());
    assert_eq!(added, ok("taken over: dataset humidity added\n"));
    assert_eq!(again, ok("nothing has changed\n"));
    assert_eq!(limits, ok("needs a restart: limits\n"));
    finish(agent, &config, "rest");
}

#[test]
fn a_reload_that_is_refused_has_the_exit_code_that_run_would_have() {
    let dir = tempfile::tempdir().unwrap();
    let config = sealing_soon(dir.path()).with(READINGS);
    let agent = start(&config);
    publish_readings(&agent, &[r#"{"temp": 1.5}"#]);
    agent.drain(1).unwrap();
    fs::write(config.data_dir().join("datasets/humidity"), "").unwrap();

    let unreadable = reload(&config.clone().with("[batch2]"));
    let other_columns = reload(&sealing_soon(dir.path()).with(&READINGS.replace("Float32", "String")));
    let in_the_way = reload(&config.clone().with(HUMIDITY));

    let refused = "forebay: refused, the configuration before goes on: ";
    assert!(unreadable.0 == Some(78) && unreadable.2.contains("batch2"), "{unreadable:?}");
    assert!(other_columns.0 == Some(78) && other_columns.2.starts_with(refused), "{other_columns:?}");
    assert!(other_columns.2.contains("dataset readings: "), "{other_columns:?}");
    assert!(in_the_way.0 == Some(1) && in_the_way.2.starts_with(refused), "{in_the_way:?}");
    assert!(in_the_way.2.contains("humidity"), "{in_the_way:?}");
    assert!(agent.stop_with_errors().unwrap().len() >= 2);
    let nobody = reload(&config);
    assert!(nobody.0 == Some(1) && nobody.2.contains("no agent runs on "), "{nobody:?}");
}

#[test]
fn an_optional_field_is_added_to_a_dataset_that_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let agent = start(&sealing_soon(dir.path()).with(READINGS));
    publish_readings(&agent, &[r#"{"temp": 1, "battery": 80}"#]);
    agent.drain(1).unwrap();
    let config = sealing_soon(dir.path()).with(READINGS).with("battery = \"Float32?\"");

    let reload = agent.reload_with(|| config.write().unwrap()).unwrap();
    publish_readings(&agent, &[r#"{"temp": 2, "battery": 79}"#]);
    agent.drain(2).unwrap();

    assert_eq!(reload["taken_over"], json!(["dataset readings changed"]), "{reload}");
    let status = agent.status().unwrap();
    assert_eq!(status["datasets"][0]["unknown_fields"], json!({"battery": 1}), "{status}");
    assert_eq!(finish(agent, &config, "readings").floats("temp").unwrap(), [1.0, 2.0]);
}

#[test]
fn a_dataset_that_is_removed_keeps_what_waits_for_it_until_it_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let sealing_late = AgentConfig::in_dir(dir.path()).with("[batch]\nage = \"1h\"");
    let config = sealing_late.clone().with(READINGS).with(REST);
    let agent = start(&config);
    publish_readings(&agent, &[r#"{"temp": 1}"#, r#"{"temp": 2}"#]);

    let reload = agent.reload_with(|| sealing_late.with(REST).write().unwrap()).unwrap();
    assert_eq!(reload["taken_over"], json!(["dataset readings removed"]), "{reload}");
    publish_readings(&agent, &["to the rest"]);
    assert_eq!(agent.sync().unwrap()["ok"], json!(true));
    let status = agent.status().unwrap();
    assert_eq!((&status["datasets"][0]["name"], &status["spool"]["waiting"]), (&json!("rest"), &json!(2)), "{status}");

    agent.reload_with(|| config.write().unwrap()).unwrap();
    assert_eq!(agent.sync().unwrap()["ok"], json!(true));
    assert_eq!(finish(agent, &config, "readings").floats("temp").unwrap(), [1.0, 2.0]);
    assert_eq!(Rows::read(&config.data_dir(), "rest").unwrap().texts("value").unwrap(), ["to the rest"]);
}

#[test]
fn an_upstream_that_hangs_does_not_hold_up_a_reload_and_is_delivered_to_by_one_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    let hangs = copy.join("rest/refs/head"); // whoever reads it waits for a writer
    fs::create_dir_all(hangs.parent().unwrap()).unwrap();
    assert!(Command::new("mkfifo").arg(&hangs).status().unwrap().success());
    let upstream = format!("[[upstream]]\nurl = 'file://{}'", copy.display());
    let agent = start(&sealing_soon(dir.path()).with(&upstream).with(REST));
    let config = sealing_soon(dir.path()).with(&upstream).with(HUMIDITY).with(REST);
    let mut device = Device::connect(agent.mqtt_addr(), Version::V5, &Connect::clean("device")).unwrap();
    device.publish_and_wait(&Publish::new("a", b"before", 1, 1)).unwrap();
    wait_for_rows(&agent, "rest");

    assert_eq!(agent.reload_with(|| config.write().unwrap()).unwrap()["problem"], Value::Null);
    device.publish_and_wait(&Publish::new("site/7/hum", b"after", 1, 2)).unwrap();
    wait_for_rows(&agent, "humidity");
    let writer = fs::File::options().write(true).open(&hangs).unwrap();
    fs::remove_file(&hangs).unwrap();
    drop(writer);

    assert_eq!(agent.sync().unwrap()["ok"], json!(true));
    drain_and_stop_with_errors(agent, &config);
    let there = |name| Rows::read_repository(&copy.join(name)).unwrap().texts("value").unwrap();
    assert_eq!((there("rest"), there("humidity")), (vec!["before".to_owned()], vec!["after".to_owned()]));
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let agent = start(&sealing_soon(dir.path()).with(REST));
    let config = sealing_soon(dir.path()).with("[limits]\nconnections_max = 7").with(HUMIDITY).with(REST);

    let reload = agent.reload_with(|| config.write().unwrap()).unwrap();

    assert_eq!(reload["taken_over"], json!(["dataset humidity added"]), "{reload}");
    assert_eq!(reload["needs_restart"], json!(["limits"]), "{reload}");
    let warning = |line: &Value| line["keys"].as_str().map(str::to_owned);
    assert_eq!(agent.log().wait_for("the warning", Duration::from_secs(60), warning).unwrap(), "limits");
    finish(agent, &config, "rest");
}

#[test]
fn a_manifest_that_changes_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = dir.path().join("readings.yaml");
    let with_columns = |columns: &str| {
        let text = format!(
            "kind: DatasetSnapshot\nversion: 1\ncontent:\n  name: readings\n  kind: Root\n  metadata:\n    - kind: AddPushSource\n      \
             sourceName: default\n      read:\n        kind: NdJson\n        schema:\n{columns}      merge:\n        kind: Append\n"
        );
        // As editors and deployments do it: whole, or not at all.
        fs::write(dir.path().join("next"), text).unwrap();
        fs::rename(dir.path().join("next"), &manifest).unwrap();
    };
    with_columns("          - temp FLOAT\n");
    let declared = "[[dataset]]\nmanifest = \"readings.yaml\"\ntopics = [\"site/{site}/temp\"]";
    let config = sealing_soon(dir.path()).with(declared);
    let agent = start(&config);
    publish_readings(&agent, &[r#"{"temp": 1, "battery": 80}"#]);
    agent.drain(1).unwrap();

    with_columns("          - temp FLOAT\n          - battery FLOAT\n");
    let reload = agent.reloaded_since(&Value::Null).unwrap();
    publish_readings(&agent, &[r#"{"temp": 2, "battery": 79}"#]);
    agent.drain(2).unwrap();

    assert_eq!(reload["taken_over"], json!(["dataset readings changed"]), "{reload}");
    let status = agent.status().unwrap();
    assert_eq!(status["datasets"][0]["unknown_fields"], json!({"battery": 1}), "{status}");
    assert_eq!(finish(agent, &config, "readings").len(), 2);
}

#[test]
fn a_directory_that_is_swapped_behind_a_symlink_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let (current, next) = (dir.path().join("current"), dir.path().join("next"));
    fs::create_dir(&first).unwrap();
    fs::create_dir(&second).unwrap();
    symlink(&first, &current).unwrap();
    symlink(current.join("forebay.toml"), dir.path().join("forebay.toml")).unwrap();
    let config = sealing_soon(dir.path()).with(HUMIDITY).with(REST);
    fs::copy(config.write().unwrap(), second.join("forebay.toml")).unwrap();
    let agent = start(&sealing_soon(dir.path()).with(REST));

    symlink(&second, &next).unwrap();
    fs::rename(&next, &current).unwrap();
    let reload = agent.reloaded_since(&Value::Null).unwrap();

    assert_eq!(reload["taken_over"], json!(["dataset humidity added"]), "{reload}");
    finish(agent, &config, "rest");
}

#[test]
fn kill_9_in_and_after_a_reload_loses_nothing_that_was_acknowledged() {
    let kills: u32 = from_env("FOREBAY_KILLS", 4);
    let seed: u64 = from_env("FOREBAY_SEED", fastrand::u64(..));
    println!("FOREBAY_KILLS={kills} FOREBAY_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut devices = slow_devices();

    for number in 0..kills {
        let agent = start(&with_sites(dir.path(), number));
        devices = publish_meanwhile(devices, agent.mqtt_addr(), PUBLISHING, || {
            with_sites(dir.path(), number + 1).write().unwrap();
            agent.signal(Signal::HUP).unwrap();
            thread::sleep(Duration::from_millis(random.u64(0..400)));
            agent.kill().expect("no ERROR in the log");
        });
    }
    let config = with_sites(dir.path(), DEVICES);
    let agent = start(&config);
    for device in &mut devices {
        device.settle(agent.mqtt_addr()).expect("what was in flight is acknowledged");
    }
    finish(agent, &config, "rest");

    let stored = stored_in(&config.data_dir().join("datasets"));
    let acknowledged = acknowledged(&devices);
    let lost: Vec<_> = acknowledged.iter().filter(|payload| !stored.contains_key(*payload)).collect();
    let twice = stored.iter().filter(|(payload, count)| payload.starts_with("qos2") && **count > 1).count();
    println!(
        "kill -9 in a reload × {kills}: acknowledged {}, lost {}, QoS 2 twice {twice}",
        acknowledged.len(),
        lost.len()
    );
    assert_eq!((lost.len(), twice), (0, 0), "{lost:?}");
}

#[test]
fn many_reloads_under_load_lose_nothing_and_store_nothing_twice_here_and_upstream() {
    let reloads: u32 = from_env("FOREBAY_RELOADS", 20);
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    let (pushed, token) = start_node(&dir.path().join("pushed"), |config| config);
    let (posted, other_token) = start_node(&dir.path().join("posted"), |config| config);
    let node =
        |url: &str, token: &Path| format!("[[upstream]]\nurl = '{url}/acme'\ntoken_file = '{}'\n", token.display());
    let upstreams = format!("[[upstream]]\nurl = 'file://{}'\n", copy.display())
        + &node(&format!("odf+{}", pushed.url()), &token)
        + &node(&posted.url(), &other_token);
    let configured = |number: u32| with_sites(dir.path(), number).with(&upstreams);
    assert!(forebay(&configured(DEVICES), &["provision"]).0);
    let agent = start(&configured(0));

    let devices = publish_meanwhile(slow_devices(), agent.mqtt_addr(), PUBLISHING, || {
        thread::scope(|scope| {
            let synced = scope.spawn(|| agent.sync().unwrap());
            for number in 1..=reloads {
                configured(number % DEVICES).write().unwrap();
                assert_eq!(agent.reload().unwrap()["problem"], Value::Null);
            }
            let report = synced.join().unwrap();
            assert_eq!(report["ok"], json!(true), "a sync outlives reloads: {report}");
        });
    });
    let config = configured(DEVICES);
    agent.reload_with(|| config.write().unwrap()).unwrap();
    let mut devices = devices;
    for device in &mut devices {
        device.settle(agent.mqtt_addr()).unwrap();
        assert_eq!(device.sessions_lost, 0);
    }
    assert_eq!(agent.sync().unwrap()["ok"], json!(true));
    finish(agent, &config, "rest");

    let acknowledged = count(acknowledged(&devices));
    println!("{reloads} reloads: acknowledged {}", acknowledged.len());
    let places = [
        ("here", stored_in(&config.data_dir().join("datasets"))),
        ("in the directory", stored_in(&copy)),
        ("at the node that is pushed to", stored_in(pushed.dataset_dir("acme", "rest").parent().unwrap())),
        ("at the node that rows are posted to", posted_to(&posted)),
    ];
    for (place, stored) in places {
        assert!(stored == acknowledged, "each is {place} once: {} are", stored.len());
    }
}

/// A dataset for each of the first sites, and one for the rest.
fn with_sites(dir: &Path, sites: u32) -> AgentConfig {
    let site =
        |number| format!("[[dataset]]\nname = \"site-{number}\"\ntopics = [\"site/{number}/temp\"]\nformat = \"text\"");
    let sites = (0..sites).fold(sealing_soon(dir), |config, number| config.with(&site(number)));
    sites.with(REST)
}

/// Some hundred messages a second each.
fn slow_devices() -> Vec<Publisher> {
    let slow = |index| {
        let mut device = Publisher::new(index);
        device.pace = Duration::from_millis(2);
        device
    };
    (0..DEVICES).map(slow).collect()
}

fn acknowledged(devices: &[Publisher]) -> Vec<String> {
    devices.iter().flat_map(|device| device.acknowledged.clone()).collect()
}

/// How often each payload is there, over all datasets of a directory.
fn stored_in(datasets: &Path) -> BTreeMap<String, u32> {
    let entries = fs::read_dir(datasets).unwrap().map(|entry| entry.unwrap().path());
    let texts = |dataset: PathBuf| Rows::read_repository(&dataset).unwrap().texts("value").unwrap();
    count(entries.filter(|path| path.is_dir()).flat_map(texts))
}

/// The same of a node that rows are posted to.
fn posted_to(node: &StubNode) -> BTreeMap<String, u32> {
    let names = (0..DEVICES).map(|number| format!("site-{number}")).chain(["rest".to_owned()]);
    let rows = names.flat_map(|name| node.rows_all("acme", &name).unwrap());
    count(rows.map(|row| row["value"].as_str().unwrap().to_owned()))
}

fn count(payloads: impl IntoIterator<Item = String>) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for payload in payloads {
        *counts.entry(payload).or_default() += 1;
    }
    counts
}

/// Publishes numbered payloads with QoS 1, one after the other on one connection, until it is told to stop.
fn steady_device(addr: SocketAddr) -> (JoinHandle<Vec<String>>, std::sync::Arc<AtomicBool>) {
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let told = std::sync::Arc::clone(&stop);
    let publishing = thread::spawn(move || {
        let mut device = Device::connect(addr, Version::V5, &Connect::clean("steady")).unwrap();
        let mut published = Vec::new();
        while !told.load(Ordering::Relaxed) {
            let payload = format!("{:06}", published.len());
            let packet_id = (published.len() % 60_000) as u16 + 1;
            device.publish_and_wait(&Publish::new("site/7/hum", payload.as_bytes(), 1, packet_id)).unwrap();
            published.push(payload);
            thread::sleep(Duration::from_millis(2));
        }
        published
    });
    (publishing, stop)
}

/// `forebay reload` after the file was written: its exit code, and what it said on standard output and standard error.
fn reload(config: &AgentConfig) -> (Option<i32>, String, String) {
    let output = agent::command(Path::new(PROGRAM), config, &["reload"]).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn publish_readings(agent: &Agent, payloads: &[&str]) {
    let mut device = Device::connect(agent.mqtt_addr(), Version::V5, &Connect::clean("device")).unwrap();
    for (payload, packet_id) in payloads.iter().zip(1..) {
        device.publish_and_wait(&Publish::new("site/7/temp", payload.as_bytes(), 1, packet_id)).unwrap();
    }
    device.disconnect().unwrap();
}

fn wait_for_rows(agent: &Agent, dataset: &str) {
    let rows = |status: &Value| {
        let datasets = status["datasets"].as_array().cloned().unwrap_or_default();
        datasets.iter().find(|one| one["name"] == dataset).and_then(|one| one["chain"]["rows"].as_u64())
    };
    let came = (0..3_000).any(|_| {
        thread::sleep(Duration::from_millis(20));
        rows(&agent.status().unwrap()) > Some(0)
    });
    assert!(came, "no row in {dataset}; the agent's log:\n{}", agent.log().tail());
}

/// As [`finish`], for a story in which ERROR lines are due.
fn drain_and_stop_with_errors(agent: Agent, config: &AgentConfig) -> Vec<String> {
    agent.drain(0).unwrap();
    let errors = agent.stop_with_errors().unwrap();
    let (is_ok, report) = forebay(config, &["verify"]);
    assert!(is_ok, "{report}");
    errors
}
