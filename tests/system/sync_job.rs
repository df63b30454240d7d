//! The sync job as its operator sees it: several upstreams, rows that a node will not have, what is kept and what goes, a
//! window, a proxy, `sync` alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use forebay_tests::agent::AgentConfig;
use forebay_tests::dataset::Rows;
use forebay_tests::device::Device;
use forebay_tests::packets::{Connect, Publish, Version};
use forebay_tests::proxy::Proxy;
use serde_json::{Value, json};

use crate::{finish, forebay, publish, start, start_node, temp};

#[test]
fn each_upstream_has_its_own_position() {
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config);
    let proxy = Proxy::start(node.addr()).unwrap();
    let (copy, keys) = (dir.path().join("copy"), format!("timeout = \"1s\"\ntoken_file = '{}'", token.display()));
    let config = temp(&gateway(dir.path()))
        .with(&format!("[[upstream]]\nurl = 'file://{}'", copy.display()))
        .with(&format!("[[upstream]]\nurl = 'odf+http://{}/acme'\n{keys}", proxy.addr()));
    proxy.refuse(true);
    let agent = start(&config);

    publish(&agent, &["one", "two"]);
    let report = agent.sync().unwrap();
    assert_eq!(report["ok"], json!(false), "{report}");
    assert_eq!(report["upstreams"][0]["delivered"]["temp"], json!(2), "{report}");
    assert_eq!(Rows::read_repository(&copy.join("temp")).unwrap().texts("value").unwrap(), ["one", "two"]);

    proxy.refuse(false);
    let report = agent.sync().unwrap();
    assert_eq!(report["ok"], json!(true), "{report}");
    let there = Rows::read_repository(&node.dataset_dir("acme", "temp")).unwrap();
    assert_eq!(there.texts("value").unwrap(), ["one", "two"]);
    finish(agent, &config, "temp");
}

#[test]
fn rows_that_a_node_will_not_have_become_dead_letters_and_their_neighbours_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config);
    let config = ingest(&gateway(dir.path()), &node.url(), &token, "");
    assert!(forebay(&config, &["provision"]).0);
    node.faults(&[json!({"on": "ingest", "poison": {"column": "value", "values": ["evil 3", "evil 40"]}})]).unwrap();
    let agent = start(&config);
    let texts: Vec<String> =
        (0..64).map(|n| if n == 3 || n == 40 { format!("evil {n}") } else { format!("good {n}") }).collect();
    publish(&agent, &texts.iter().map(String::as_str).collect::<Vec<_>>());

    let report = agent.sync().unwrap();

    assert_eq!(report["ok"], json!(true), "{report}");
    assert_eq!(node.rows("acme", "temp").unwrap().len(), 62);
    let (_, letters) = forebay(&config, &["dead-letters", "list"]);
    assert!(letters.contains("evil 3") && letters.contains("evil 40") && !letters.contains("good"), "{letters}");
    assert!(letters.contains(": 500 for this row alone"), "{letters}");
    let (_, text) = forebay(&config, &["dead-letters", "replay", "--all"]);
    assert!(text.contains("stored again: 0") && text.contains("was answered with 500"), "{text}");
    node.clear_faults().unwrap();
    let (is_ok, text) = forebay(&config, &["dead-letters", "replay", "--all"]);
    assert!(is_ok && text.contains("stored again: 2"), "{text}");
    assert_eq!(node.rows("acme", "temp").unwrap().len(), 64, "put right at the node, the rows are posted again");
    assert_eq!(finish(agent, &config, "temp").len(), 64, "the gateway's own dataset has all of them");
}

#[test]
fn a_schema_that_the_node_does_not_have_is_no_row_s_fault() {
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config);
    let config = ingest(&gateway(dir.path()), &node.url(), &token, "");
    assert!(forebay(&config, &["provision"]).0);
    let all: Vec<String> = (0..20).map(|n| format!("row {n}")).collect();
    node.faults(&[json!({"on": "ingest", "poison": {"column": "value", "values": all}})]).unwrap();
    let agent = start(&config);
    publish(&agent, &all.iter().map(String::as_str).collect::<Vec<_>>());

    let report = agent.sync().unwrap();

    let problem = &report["upstreams"][0]["problems"]["temp"];
    assert_eq!(problem["quarantined"], json!(true), "{report}");
    assert!(problem["words"].as_str().unwrap().contains("forebay manifest temp"), "{report}");
    let (_, letters) = forebay(&config, &["dead-letters", "list"]);
    assert!(!letters.contains("row 1"), "{letters}");
    // The node learns the schema: nothing was given up.
    node.clear_faults().unwrap();
    assert_eq!(agent.sync().unwrap()["ok"], json!(true));
    assert_eq!(node.rows("acme", "temp").unwrap().len(), 20);
    agent.stop_with_errors().unwrap();
}

#[test]
fn slices_leave_the_gateway_when_every_upstream_has_them_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let (copy, other) = (dir.path().join("copy"), dir.path().join("mount/other"));
    let config = temp(&gateway(dir.path()))
        .with("[retention]\nkeep_bytes = 0")
        .with(&format!("[[upstream]]\nurl = 'file://{}'", copy.display()))
        .with(&format!("[[upstream]]\nurl = 'file://{}'", other.display()));
    let agent = start(&config);
    for text in ["one", "two", "three"] {
        publish(&agent, &[text]);
        agent.sync().unwrap();
    }
    let data = config.data_dir().join("datasets/temp/data");
    assert_eq!(count(&data), 3, "one upstream has nothing yet");

    fs::create_dir(dir.path().join("mount")).unwrap();
    assert_eq!(agent.sync().unwrap()["ok"], json!(true));
    assert_eq!(count(&data), 1, "only the newest stays");
    let rows = Rows::read_repository(&other.join("temp")).unwrap();
    assert_eq!(rows.texts("value").unwrap(), ["one", "two", "three"]);
    agent.stop().unwrap();

    // The chain goes on over a restart, and what went is no damage.
    let agent = start(&config);
    publish(&agent, &["four"]);
    assert_eq!(agent.sync().unwrap()["ok"], json!(true));
    let (is_ok, verify) = forebay(&config, &["verify"]);
    assert!(is_ok && verify.contains("verify: ok"), "{verify}");
    assert!(verify.contains("were released after every upstream had them"), "{verify}");
    let rows = Rows::read_repository(&copy.join("temp")).unwrap();
    assert_eq!(rows.texts("value").unwrap(), ["one", "two", "three", "four"]);
    agent.stop().unwrap();
}

#[test]
fn an_upstream_that_came_too_late_is_told_where_the_rest_is() {
    let dir = tempfile::tempdir().unwrap();
    let (copy, late) = (dir.path().join("copy"), dir.path().join("late"));
    let before = temp(&gateway(dir.path()))
        .with("[retention]\nkeep_bytes = 0")
        .with(&format!("[[upstream]]\nurl = 'file://{}'", copy.display()));
    let agent = start(&before);
    for text in ["one", "two"] {
        publish(&agent, &[text]);
        agent.sync().unwrap();
    }
    agent.stop().unwrap();

    let after = before.with(&format!("[[upstream]]\nurl = 'file://{}'", late.display()));
    let (is_ok, text) = forebay(&after, &["sync", "--once"]);
    assert!(!is_ok && text.contains("it was released when every upstream of that time had it"), "{text}");

    // What the line says to do.
    copy_dir(&copy.join("temp"), &late.join("temp"));
    let (is_ok, text) = forebay(&after, &["sync", "--once"]);
    assert!(is_ok, "{text}");
}

#[test]
fn a_node_that_came_too_late_gets_the_rest_and_is_told_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config);
    let before = temp(&gateway(dir.path()))
        .with("[retention]\nkeep_bytes = 0")
        .with(&format!("[[upstream]]\nurl = 'file://{}'", dir.path().join("copy").display()));
    let agent = start(&before);
    for text in ["one", "two", "three"] {
        publish(&agent, &[text]);
        agent.sync().unwrap();
    }
    agent.stop().unwrap();

    let after = before.with(&format!("[[upstream]]\nurl = '{}/acme'\ntoken_file = '{}'", node.url(), token.display()));
    assert!(forebay(&after, &["provision"]).0);
    let agent = start(&after);
    assert_eq!(agent.sync().unwrap()["ok"], json!(true));

    assert_eq!(node.rows("acme", "temp").unwrap().len(), 1, "the newest slice was still here");
    let (_, status) = forebay(&after, &["status"]);
    assert!(status.contains("2 rows of temp were released before it was configured"), "{status}");
    let errors = agent.stop_with_errors().unwrap();
    assert_eq!(errors.len(), 1, "{errors:#?}");
}

#[test]
fn a_mount_point_without_its_disk_is_never_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let (mount, disk) = (dir.path().join("mount"), dir.path().join("disk"));
    fs::create_dir(&mount).unwrap();
    let config = temp(&gateway(dir.path()))
        .with("[[dataset]]\nname = \"other\"\ntopics = [\"other\"]\nformat = \"text\"")
        .with("[retention]\nkeep_bytes = 0")
        .with(&format!("[upstream]\nurl = 'file://{}'", mount.display()));
    let agent = start(&config);
    for text in ["one", "two"] {
        publish(&agent, &[text]);
        assert_eq!(agent.sync().unwrap()["ok"], json!(true));
    }
    let mut device = Device::connect(agent.mqtt_addr(), Version::V5, &Connect::clean("other")).unwrap();
    device.publish_and_wait(&Publish::new("other", b"the first of its dataset", 1, 1)).unwrap();
    fs::rename(&mount, &disk).unwrap();
    fs::create_dir(&mount).unwrap();

    publish(&agent, &["three"]);
    let report = agent.sync().unwrap();

    assert_eq!(report["ok"], json!(false), "{report}");
    assert!(report.to_string().contains("is the disk mounted?"), "{report}");
    assert_eq!(report["upstreams"][0]["reachable"], json!(false), "batches wait: {report}");
    assert_eq!(count(&mount), 0);
    fs::remove_dir(&mount).unwrap();
    fs::rename(&disk, &mount).unwrap();
    assert_eq!(agent.sync().unwrap()["ok"], json!(true));
    let rows = Rows::read_repository(&mount.join("temp")).unwrap();
    assert_eq!(rows.texts("value").unwrap(), ["one", "two", "three"]);
    agent.stop().unwrap();
}

#[test]
fn the_gateways_own_datasets_are_no_upstream() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(dir.path());
    let link = dir.path().join("link");
    let ours = temp(&gateway).data_dir().join("datasets");
    let direct = temp(&gateway).with(&format!("[upstream]\nurl = 'file://{}'", ours.display()));
    let (is_ok, text) = forebay(&direct, &["check"]);
    assert!(!is_ok && text.contains("lies in data_dir or around it"), "{text}");

    std::os::unix::fs::symlink(&ours, &link).unwrap();
    let linked = temp(&gateway)
        .with("[retention]\nkeep_bytes = 0")
        .with(&format!("[upstream]\nurl = 'file://{}'", link.display()));
    let agent = start(&linked);
    for text in ["one", "two"] {
        publish(&agent, &[text]);
        let report = agent.sync().unwrap();
        assert!(report.to_string().contains("holds the gateway's own datasets"), "{report}");
    }
    assert_eq!(count(&ours.join("temp/data")), 2, "nothing goes");
    agent.stop_with_errors().unwrap();
}

#[test]
fn a_dataset_that_silences_the_node_does_not_starve_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config);
    let config = ingest(&gateway(dir.path()), &node.url(), &token, "timeout = \"1s\"")
        .with("[[dataset]]\nname = \"other\"\ntopics = [\"other\"]\nformat = \"text\"");
    assert!(forebay(&config, &["provision"]).0);
    let stall = json!({"on": "ingest", "dataset": "temp", "stage": "before", "do": "cut", "times": 1_000});
    node.faults(std::slice::from_ref(&stall)).unwrap();
    let agent = start(&config);
    publish(&agent, &["silences"]);
    let mut device = Device::connect(agent.mqtt_addr(), Version::V5, &Connect::clean("other")).unwrap();
    device.publish_and_wait(&Publish::new("other", b"goes", 1, 1)).unwrap();

    let report = agent.sync().unwrap();

    assert_eq!(report["ok"], json!(false), "{report}");
    assert!(report["upstreams"][0]["problems"]["temp"].is_object(), "{report}");
    assert_eq!(report["upstreams"][0]["reachable"], json!(true), "the node is there: {report}");
    assert_eq!(node.rows("acme", "other").unwrap().len(), 1);
    node.clear_faults().unwrap();
    assert_eq!(agent.sync().unwrap()["ok"], json!(true));
    agent.stop().unwrap();
}

#[test]
fn rows_of_a_replaced_disk_are_no_repetitions() {
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config);
    let config = ingest(&gateway(dir.path()), &node.url(), &token, "");
    assert!(forebay(&config, &["provision"]).0);
    for texts in [["one", "two"], ["three", "four"]] {
        let agent = start(&config);
        publish(&agent, &texts);
        assert_eq!(agent.sync().unwrap()["ok"], json!(true));
        agent.stop().unwrap();
        fs::remove_dir_all(config.data_dir()).unwrap();
    }

    let values: Vec<Value> = node.rows_all("acme", "temp").unwrap().iter().map(|row| row["value"].clone()).collect();

    assert_eq!(values, ["one", "two", "three", "four"]);
}

#[test]
fn with_live_first_a_fresh_slice_overtakes_a_backlog_and_nothing_is_sent_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config);
    let proxy = Proxy::start(node.addr()).unwrap();
    let url = format!("http://{}", proxy.addr());
    let config = ingest(&gateway(dir.path()), &url, &token, "live_first = true\ntimeout = \"2s\"");
    assert!(forebay(&config, &["provision"]).0);
    proxy.refuse(true);
    let agent = start(&config);
    // Beyond what counts as live: more than a mebibyte that does not compress.
    let noise: Vec<String> =
        (0..250).map(|_| (0..8_000).map(|_| fastrand::alphanumeric()).collect::<String>()).collect();
    publish(&agent, &noise.iter().map(String::as_str).collect::<Vec<_>>());
    agent.sync().unwrap();
    publish(&agent, &["live"]);
    agent.sync().unwrap();

    proxy.refuse(false);
    assert_eq!(agent.sync().unwrap()["ok"], json!(true));

    let seqs: Vec<u64> = node.rows("acme", "temp").unwrap().into_iter().map(|(_, seq)| seq).collect();
    assert_eq!(Some(&seqs[0]), seqs.iter().max(), "the live row is first");
    assert_eq!(seqs.len(), 251);
    let log = node.log().unwrap();
    let is_post = |request: &&Value| request["path"].as_str().is_some_and(|path| path.ends_with("/ingest"));
    let posts = log["requests"].as_array().unwrap().iter().filter(is_post).count();
    assert_eq!(posts, 2, "each slice once: {log}");
    finish(agent, &config, "temp");
}

#[test]
fn a_closed_window_is_said_and_does_not_stop_a_person() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    let hour: u32 = chrono::Local::now().format("%H").to_string().parse().unwrap();
    let window = format!("{:02}:00-{:02}:00", (hour + 3) % 24, (hour + 4) % 24);
    let config = temp(&gateway(dir.path()))
        .with(&format!("[upstream]\nurl = 'file://{}'\nwindow = \"{window}\"", copy.display()));
    let agent = start(&config);
    publish(&agent, &["one"]);

    let upstream = || agent.status().unwrap()["upstreams"][0].clone();
    while upstream()["opens_at_ms"].is_null() {
        thread::sleep(Duration::from_millis(10));
    }
    let (_, status) = forebay(&config, &["status"]);
    assert!(status.contains("window closed"), "{status}");
    assert!(!copy.exists());
    assert_eq!(agent.sync().unwrap()["ok"], json!(true));
    assert_eq!(Rows::read_repository(&copy.join("temp")).unwrap().len(), 1);
    agent.stop().unwrap();
}

#[test]
fn the_proxy_of_the_environment_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config);
    let proxy = Proxy::start(node.addr()).unwrap();
    // No such host: only the proxy makes it one.
    let url = "http://node.invalid";
    let config = ingest(&gateway(dir.path()), url, &token, "")
        .env("HTTP_PROXY", &format!("http://{}", proxy.addr()))
        .env("http_proxy", &format!("http://{}", proxy.addr()))
        .env("NO_PROXY", "")
        .env("no_proxy", "");
    let (is_ok, text) = forebay(&config, &["provision"]);
    assert!(is_ok, "{text}");
    let agent = start(&config);
    publish(&agent, &["one"]);

    assert_eq!(agent.sync().unwrap()["ok"], json!(true));

    assert_eq!(node.rows("acme", "temp").unwrap().len(), 1);
    agent.stop().unwrap();
}

#[test]
fn sync_once_delivers_what_a_stopped_agent_left_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("mount/copy");
    let config = temp(&gateway(dir.path())).with(&format!("[upstream]\nurl = 'file://{}'", copy.display()));
    let agent = start(&config);
    publish(&agent, &["one", "two"]);
    agent.stop().unwrap();

    let (is_ok, text) = forebay(&config, &["sync", "--once"]);
    assert!(!is_ok && text.contains("sync: failed") && text.contains("reach "), "{text}");
    let (_, status) = forebay(&config, &["status"]);
    assert!(status.contains("of slices undelivered") && status.contains("no agent runs"), "{status}");
    fs::create_dir(dir.path().join("mount")).unwrap();
    let (is_ok, text) = forebay(&config, &["sync", "--once"]);
    assert!(is_ok && text.contains("has everything") && text.contains("sync: ok"), "{text}");
    assert!(text.contains("no agent runs"), "{text}");
    assert!(!text.contains('\x1b'), "piped output is plain: {text}");
    assert_eq!(Rows::read_repository(&copy.join("temp")).unwrap().texts("value").unwrap(), ["one", "two"]);
}

#[test]
fn sync_once_counts_what_goes_while_it_still_seals() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    let upstream = format!("[upstream]\nurl = 'file://{}'", copy.display());
    let before = AgentConfig::in_dir(&gateway(dir.path())).with(&upstream).with("[batch]\nage = \"1h\"");
    let agent = start(&before);
    publish(&agent, &["text"; 40]);
    agent.kill().unwrap();
    let after = before.with("rows = 2");

    let (is_ok, text) = forebay(&after, &["sync", "--once"]);
    assert!(is_ok, "{text}");
    assert_eq!(Rows::read_repository(&copy.join("messages")).unwrap().len(), 40);
    let row = text.lines().find(|line| line.contains("has everything")).unwrap();
    assert_eq!(row.split_whitespace().nth(1), Some("40"), "{text}");
}

fn gateway(dir: &Path) -> PathBuf {
    let gateway = dir.join("gateway");
    fs::create_dir(&gateway).unwrap();
    gateway
}

fn ingest(dir: &Path, node: &str, token: &Path, keys: &str) -> AgentConfig {
    temp(dir).with(&format!("[upstream]\nurl = '{node}/acme'\ntoken_file = '{}'\n{keys}", token.display()))
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
