//! A gateway without a link: a stick carries its datasets away and brings the receipt back.

use std::fs;
use std::path::{Path, PathBuf};

use forebay_tests::agent::AgentConfig;
use forebay_tests::dataset::Rows;
use forebay_tests::proxy::Proxy;
use serde_json::json;

use crate::{finish, forebay, publish, start, start_node, temp};

#[test]
fn a_bundle_reaches_the_node_and_its_receipt_lets_the_gateway_release_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config);
    let dead_link = Proxy::start(node.addr()).unwrap();
    dead_link.refuse(true);
    let stick = made(&dir.path().join("stick"));
    let config = pushing(&made(&dir.path().join("gateway")), &dead_link, &token).with("[retention]\nkeep_bytes = 0");
    let agent = start(&config);
    for text in ["one", "two"] {
        publish(&agent, &[text]);
        let (is_ok, text) = forebay(&config, &["export", "--to", path(&stick)]);
        assert!(is_ok, "{text}");
    }
    let (_, text) = forebay(&config, &["export", "--to", path(&stick)]);
    assert!(text.contains("forebay import"), "{text}");
    let slices = config.data_dir().join("datasets/temp/data");
    assert_eq!(count(&slices), 2, "an export releases nothing");

    // At the office: no configuration, no gateway.
    let office = temp(&made(&dir.path().join("office")));
    let to = node.url().replace("http", "odf+http") + "/acme";
    let (is_ok, text) = forebay(&office, &["import", path(&stick), "--to", &to, "--token-file", path(&token)]);
    assert!(is_ok && text.contains("dataset temp is there"), "{text}");
    let there = Rows::read_repository(&node.dataset_dir("acme", "temp")).unwrap();
    assert_eq!(there.texts("value").unwrap(), ["one", "two"]);

    // Back at the gateway, which has gone on meanwhile.
    publish(&agent, &["three"]);
    let (is_ok, text) = forebay(&config, &["export", "--to", path(&stick)]);
    assert!(!is_ok && text.contains(&format!("if that is the same place, say --accept {to}")), "{text}");
    let (is_ok, text) = forebay(&config, &["export", "--to", path(&stick), "--accept", &to]);
    assert!(is_ok && text.contains("receipt:") && text.contains("has dataset temp"), "{text}");
    assert_eq!(count(&stick.join("temp/data")), 1, "the stick carries only what the node lacks");
    assert_eq!(count(&slices), 1, "what the node has was released");
    let waits = agent.status().unwrap()["upstreams"][0]["undelivered_bytes"].as_u64().unwrap();
    let newest = fs::metadata(fs::read_dir(&slices).unwrap().next().unwrap().unwrap().path()).unwrap().len();
    assert_eq!(waits, newest, "and makes room");

    // The link comes back: the chain is compared, and the rest follows.
    dead_link.refuse(false);
    assert_eq!(agent.sync().unwrap()["ok"], json!(true));
    let there = Rows::read_repository(&node.dataset_dir("acme", "temp")).unwrap();
    assert_eq!(there.texts("value").unwrap(), ["one", "two", "three"]);
    agent.stop().unwrap();
}

#[test]
fn a_damaged_bundle_and_a_forged_receipt_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let stick = made(&dir.path().join("stick"));
    let lake = dir.path().join("lake");
    let to = format!("file://{}", lake.display());
    let config = temp(&made(&dir.path().join("gateway")))
        .with(&format!("[upstream]\nurl = 'file://{}'", dir.path().join("away/disk").display()));
    let agent = start(&config);
    publish(&agent, &["one"]);
    assert!(forebay(&config, &["export", "--to", path(&stick)]).0);
    let office = temp(&made(&dir.path().join("office")));

    let slice = fs::read_dir(stick.join("temp/data")).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&slice).unwrap();
    fs::write(&slice, &whole[..whole.len() / 2]).unwrap();
    let (is_ok, text) = forebay(&office, &["import", path(&stick), "--to", &to]);
    assert!(!is_ok && text.contains("dataset temp in the bundle is damaged"), "{text}");
    assert!(!lake.exists() && !stick.join("receipt.json").exists());

    fs::write(&slice, whole).unwrap();
    assert!(forebay(&office, &["import", path(&stick), "--to", &to]).0);
    let receipt = fs::read_to_string(stick.join("receipt.json")).unwrap();
    let head = fs::read_to_string(stick.join("temp/refs/head")).unwrap();
    fs::write(stick.join("receipt.json"), receipt.replace(&head, &format!("f1620{}", "0".repeat(64)))).unwrap();
    let (is_ok, text) = forebay(&config, &["export", "--to", path(&stick), "--accept", &to]);
    assert!(!is_ok && text.contains("is not believed"), "{text}");
    assert_eq!(agent.status().unwrap()["upstreams"][0]["delivered"]["temp"], json!(0), "nothing counts as delivered");
    finish(agent, &config, "temp");
}

#[test]
fn a_stick_carries_one_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let stick = made(&dir.path().join("stick"));
    let away = |name: &str| format!("[upstream]\nurl = 'file://{}'", dir.path().join("away").join(name).display());
    let one = temp(&made(&dir.path().join("one"))).with(&away("one"));
    let other = temp(&made(&dir.path().join("other"))).with(&away("other"));
    assert!(forebay(&one, &["export", "--to", path(&stick)]).0);

    let (is_ok, text) = forebay(&other, &["export", "--to", path(&stick)]);

    assert!(!is_ok && text.contains("holds the bundle of gateway gw-test"), "{text}");
    let (is_ok, text) = forebay(&one, &["export", "--to", path(&dir.path().join("unmounted/bundle"))]);
    assert!(!is_ok && text.contains("is the stick mounted?"), "{text}");
}

#[test]
fn an_export_is_never_let_loose_on_a_repository() {
    let dir = tempfile::tempdir().unwrap();
    let usb = made(&dir.path().join("usb"));
    let config = temp(&made(&dir.path().join("gateway")))
        .with(&format!("[upstream]\nurl = 'file://{}'", usb.join("forebay").display()));
    let agent = start(&config);
    publish(&agent, &["one"]);
    assert_eq!(agent.sync().unwrap()["ok"], json!(true));
    publish(&agent, &["two"]);
    agent.sync().unwrap();
    let (ours, theirs) = (config.data_dir().join("datasets"), usb.join("forebay"));

    for place in [ours.clone(), config.data_dir(), theirs.clone(), theirs.join("temp")] {
        let (is_ok, text) = forebay(&config, &["export", "--to", path(&place)]);
        assert!(!is_ok && text.contains("name a"), "{text}");
    }
    // A copy of the upstream's directory, of which the configuration knows nothing.
    let copy = usb.join("copy");
    fs::rename(&theirs, &copy).unwrap();
    let (is_ok, text) = forebay(&config, &["export", "--to", path(&copy)]);
    assert!(!is_ok && text.contains("holds temp, and no bundle"), "{text}");

    assert_eq!(count(&copy.join("temp/data")), 2);
    assert_eq!(count(&ours.join("temp/data")), 2);
    fs::rename(&copy, &theirs).unwrap();
    finish(agent, &config, "temp");
}

fn pushing(dir: &Path, link: &Proxy, token: &Path) -> AgentConfig {
    let url = format!("odf+http://{}/acme", link.addr());
    temp(dir).with(&format!("[upstream]\nurl = '{url}'\ntimeout = \"1s\"\ntoken_file = '{}'", token.display()))
}

fn made(dir: &Path) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    dir.to_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}
