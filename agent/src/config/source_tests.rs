//! What `[[source]]` and manifests may say.

use std::fs;

use forebay_broker::packet::{ProtocolVersion, QoS};

use super::*;

const SEED: &str = "\
kind: DatasetSnapshot
version: 1
content:
  name: temp
  kind: Root
  metadata:
    - kind: SetPollingSource
      fetch:
        kind: mqtt
        host: broker.example.com
        port: 1884
        username: kamu
        password: ${{ env.FOREBAY_TEST_NO_SUCH_VARIABLE || 'secret' }}
        topics:
          - path: plant/+/temp
            qos: ExactlyOnce
      read:
        kind: NdJson
        schema:
          - event_time TIMESTAMP
          - value FLOAT
      merge:
        kind: Ledger
        primaryKey:
          - event_time
";

#[test]
fn a_source_needs_its_url_only_and_subscribes_to_what_the_datasets_take() {
    let config = parse(
        "gateway = \"gw\"
        [[source]]
        url = \"mqtts://broker.plant.local\"
        [[dataset]]
        name = \"temperature\"
        format = \"text\"
        topics = [\"site/{site}/temp\", \"old/{site}\"]
        [[dataset]]
        name = \"all\"
        format = \"text\"
        topics = [\"old/+\", \"x/#\"]",
    );

    let source = &config.sources[0];
    assert_eq!(
        (source.name.as_str(), source.client_id.as_str()),
        ("broker.plant.local", "forebay-gw-broker.plant.local")
    );
    assert_eq!((source.url.port, source.url.tls, source.version), (8_883, true, ProtocolVersion::V311));
    let filters: Vec<&str> = source.topics.iter().map(|topic| topic.filter.as_str()).collect();
    assert_eq!(filters, ["site/+/temp", "old/+", "x/#"]);
    assert!(source.topics.iter().all(|topic| topic.qos == QoS::AtLeastOnce));
}

#[test]
fn each_topic_may_have_a_qos_of_its_own() {
    let config = parse(
        "[[source]]
        url = \"mqtt://b:1884\"
        version = \"5.0\"
        qos = \"AtMostOnce\"
        topics = [\"a/#\", { path = \"$share/g/b/+\", qos = \"ExactlyOnce\" }]",
    );

    let topics = &config.sources[0].topics;
    assert_eq!(topics.iter().map(|topic| topic.qos).collect::<Vec<_>>(), [QoS::AtMostOnce, QoS::ExactlyOnce]);
    assert!(topics[1].pattern().unwrap().matches("b/1"), "a shared subscription brings the topics behind its group");
    assert_eq!(config.sources[0].version, ProtocolVersion::V5);
}

#[test]
fn urls_have_the_ports_and_paths_that_people_expect() {
    for (url, shown) in [
        ("mqtt://b", "mqtt://b:1883"),
        ("mqtt://b:80", "mqtt://b:80"),
        ("mqtts://b:8884/", "mqtts://b:8884"),
        ("mqtt://[::1]:1884", "mqtt://[::1]:1884"),
        ("ws://b", "ws://b:80/mqtt"),
        ("wss://b/broker?token=x", "wss://b:443/broker"),
        ("mqtt://b:080", "mqtt://b:80"),
    ] {
        let config = parse(&format!("[[source]]\nname = \"s\"\nurl = \"{url}\"\n"));
        assert_eq!(config.sources[0].url.to_string(), shown);
    }
}

#[test]
fn what_cannot_work_is_refused_with_what_to_write() {
    let source = |rest: &str| format!("[[source]]\nname = \"s\"\nurl = \"mqtt://b\"\n{rest}\n");
    for (text, words) in [
        ("[[source]]\n".to_owned(), "needs `url`"),
        ("[[source]]\nurl = \"b:1883\"".to_owned(), "is not a URL"),
        ("[[source]]\nurl = \"http://b\"".to_owned(), "there are mqtt, mqtts, ws and wss"),
        ("[[source]]\nurl = \"mqtt://user:pass@b\"".to_owned(), "they belong in `username` and `password_file`"),
        ("[[source]]\nurl = \"mqtt://b/topic\"".to_owned(), "topics belong in `topics`"),
        ("[[source]]\nurl = \"mqtt://[::1]\"".to_owned(), "needs a `name`"),
        (source("topics = []"), "from 1 to 1,000 topic filters"),
        (source("topics = [\"a/{b}\"]"), "{captures} belong in the topics of a dataset"),
        (source("topics = [\"a\", \"a\"]"), "is already one of this source's topics"),
        (source("topics = [\"a/#/b\"]"), "must be the last level"),
        (source("topics = [\"$share/+/a\"]"), "is not a shared subscription"),
        (source("topics = [\"$share/g\"]"), "is not a shared subscription"),
        ("[[source]]\nurl = \"gw:pass@b:1883\"".to_owned(), "no user and no password"),
        ("[[source]]\nurl = \"mqtt://gw:pass/@b\"".to_owned(), "no user and no password"),
        ("[[source]]\nname = \"s\"\nurl = \"mqtt://b:0\"".to_owned(), "not a port to connect to"),
        (source("username = \"\""), "from 1 to 65,535 bytes"),
        (source("topics = [{ qos = \"AtMostOnce\" }]"), "needs `path`"),
        (source("qos = \"AtLeastTwice\""), "did you mean \"AtLeastOnce\"?"),
        (source("qos = 1"), "expected text in quotes"),
        (source("version = \"5\""), "is not one of \"3.1.1\", \"5.0\""),
        (source("client_id = \"\""), "a session without a fixed name would be lost"),
        (source("password_file = \"x\""), "a password needs `username`"),
        (source("username = \"u\"\npassword = \"p\""), "unknown key"),
        (source("ca_file = \"x\""), "belongs to a source with TLS"),
        (source("keep_alive = \"0s\""), "from 1s"),
        (source("packet_bytes_max = \"100MiB\""), "to 63MiB"),
        (source("receive_maximum = 0"), "at least 1"),
        (source("[[source]]\nname = \"S\"\nurl = \"mqtt://c\""), "there is another source of the name `S`"),
        (source("client_id = \"x\"\n[[source]]\nname = \"t\"\nurl = \"mqtt://b\"\nclient_id = \"x\""), "throw it out"),
        (
            "[[dataset]]\nname = \"d\"\nformat = \"text\"\ntopics = [\"a\"]\nsource = \"s\"".to_owned(),
            "no source \"s\"",
        ),
        (
            source("topics = [\"a\"]\n[[dataset]]\nname = \"d\"\nformat = \"text\"\ntopics = [\"a\"]\nsource = \"ss\""),
            "did you mean \"s\"?",
        ),
    ] {
        let error = Config::parse(&text, Path::new("forebay.toml")).unwrap_err().to_string();
        assert!(error.contains(words), "{text:?} gives: {error}");
        assert!(!error.contains("pass@") && !error.contains("pass/"), "a secret is not repeated: {error}");
    }
}

#[test]
fn the_default_dataset_tells_sources_from_devices_whether_there_are_any_or_not() {
    assert!(parse("[[source]]\nurl = \"mqtt://b\"").datasets[0].spec.envelope.source);
    assert!(parse("").datasets[0].spec.envelope.source, "a column that goes with a section could not be taken back");
}

#[test]
fn a_manifest_brings_its_dataset_and_its_source() {
    let dir = with_seed();
    let file = dir.path().join("forebay.toml");

    let config =
        Config::parse("gateway = \"gw\"\n[[dataset]]\nmanifest = \"temp.yaml\"\nretained = \"every\"", &file).unwrap();

    let (dataset, source) = (&config.datasets[0], &config.sources[0]);
    assert_eq!((dataset.spec.name.as_str(), dataset.source.as_deref()), ("temp", Some("temp")));
    assert!(dataset.topics[0].matches("plant/1/temp") && !dataset.retained_once);
    assert_eq!(
        (source.url.to_string().as_str(), source.client_id.as_str()),
        ("mqtt://broker.example.com:1884", "forebay-gw-temp")
    );
    assert_eq!(source.topics, [Subscription { filter: "plant/+/temp".to_owned(), qos: QoS::ExactlyOnce }]);
    let password = source.login.as_ref().and_then(|login| login.password.as_ref()).unwrap();
    assert_eq!(password.read().unwrap(), "secret");
    assert!(!format!("{config:?}").contains("secret"));
}

#[test]
fn a_push_source_gets_its_topics_beside_the_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let push = "kind: DatasetSnapshot\nversion: 1\ncontent:\n  name: p\n  kind: Root\n  metadata:\n  - kind: AddPushSource\n    \
                sourceName: default\n    read: {kind: NdJson, schema: {fields: [{name: value, type: Float32}]}}\n    \
                merge: {kind: Append}\n";
    fs::write(dir.path().join("p.yaml"), push).unwrap();
    let file = dir.path().join("forebay.toml");
    let parse = |rest: &str| Config::parse(&format!("[[dataset]]\nmanifest = \"p.yaml\"\n{rest}"), &file);

    let config = parse("topics = [\"site/{site}/temp\"]\nenvelope = [\"topic\"]").unwrap();
    assert_eq!((config.datasets[0].spec.captures.as_slice(), config.sources.len()), (&["site".to_owned()][..], 0));
    assert!(config.datasets[0].spec.envelope.topic);
    assert!(parse("").unwrap_err().to_string().contains("needs `topics`"));
    let mut config = Config::default();
    let error = config.add_manifest(&dir.path().join("p.yaml")).unwrap_err().to_string();
    assert!(error.contains("a push source, which names no topics"), "{error}");
}

#[test]
fn a_manifest_that_is_pulled_takes_the_place_of_the_default_dataset_and_stands_before_others() {
    let dir = with_seed();
    let mut alone = Config::default();
    alone.add_manifest(&dir.path().join("temp.yaml")).unwrap();
    let mut beside = parse("[[dataset]]\nname = \"all\"\nformat = \"text\"\ntopics = [\"#\"]");
    beside.add_manifest(&dir.path().join("temp.yaml")).unwrap();

    let names = |config: &Config| config.datasets.iter().map(|dataset| dataset.spec.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&alone), ["temp"]);
    assert_eq!(names(&beside), ["temp", "all"]);
    fs::copy(dir.path().join("temp.yaml"), dir.path().join("other.yaml")).unwrap();
    assert!(beside.add_manifest(&dir.path().join("other.yaml")).unwrap_err().to_string().contains("another dataset"));
}

#[test]
fn a_manifest_that_is_configured_and_pulled_is_one_dataset_as_it_is_configured() {
    let dir = with_seed();
    let text = "[[dataset]]\nmanifest = \"temp.yaml\"\nretained = \"every\"";
    let mut config = Config::parse(text, &dir.path().join("forebay.toml")).unwrap();
    let configured = config.datasets.clone();
    config.sources.clear();

    config.add_manifest(&dir.path().join("../").join(dir.path()).join("temp.yaml")).unwrap();

    assert_eq!(config.datasets, configured);
    assert_eq!(config.sources.len(), 1);
}

#[test]
fn a_source_subscribes_to_a_topic_once_however_many_datasets_may_take_it() {
    let text = "[[source]]\nname = \"s\"\nurl = \"mqtt://b\"\n";
    let datasets = ["site/{site}/temp", "a/b", "#", "a/{x}"].map(|topic| {
        let name = topic.replace(['/', '{', '}', '#'], "x");
        format!("[[dataset]]\nname = \"{name}\"\nformat = \"text\"\ntopics = [\"{topic}\"]\n")
    });
    let filters = |datasets: &[String]| {
        let config = parse(&format!("{text}{}", datasets.concat()));
        config.sources[0].topics.iter().map(|topic| topic.filter.clone()).collect::<Vec<_>>()
    };

    assert_eq!(filters(&datasets), ["#"]);
    assert_eq!(filters(&[datasets[0].clone(), datasets[1].clone()]), ["site/+/temp", "a/b"]);
    assert_eq!(filters(&[datasets[1].clone(), datasets[3].clone()]), ["a/+"]);
}

#[test]
fn a_manifest_is_named_with_its_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("temp.yaml"), SEED.replace("kind: Ledger", "kind: Snapshot")).unwrap();

    let error = Config::parse("[[dataset]]\nmanifest = \"temp.yaml\"", &dir.path().join("forebay.toml")).unwrap_err();
    let missing = Config::parse("[[dataset]]\nmanifest = \"none.yaml\"", &dir.path().join("forebay.toml")).unwrap_err();

    assert!(error.to_string().contains("temp.yaml:23:"), "{error}");
    assert!(missing.to_string().contains("none.yaml:1:1: cannot be read"), "{missing}");
}

pub(super) fn with_seed() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("temp.yaml"), SEED).unwrap();
    dir
}

fn parse(text: &str) -> Config {
    Config::parse(text, Path::new("forebay.toml")).unwrap()
}
