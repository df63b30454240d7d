//! Smart push as a node takes it, against a chain that a real node has taken (`odf-edge-sample`).

use std::time::Duration;

use forebay_storage::odf::{Depth, verify};
use forebay_tests::node::{NodeConfig, StubNode};
use serde_json::{Value, json};

use crate::push_client::{Chain, PushClient};

const PATH: &str = "/acme/edge/push";

fn committed() -> (Value, Value) {
    (json!({}), json!({ "close": 1000, "reason": "" }))
}

fn head(node: &StubNode) -> Option<String> {
    let answer = node.call("GET", "/acme/edge/refs/head", None, b"").unwrap();
    (answer.status == 200).then(|| answer.text())
}

fn push_all(node: &StubNode, chain: &Chain) -> Vec<String> {
    let mut client = PushClient::connect(node, PATH);
    assert_eq!(client.plan(None, chain.blocks.len()), json!({ "Ok": {} }));
    let (strategies, done, close) = client.finish(&chain.blocks, &chain.slices);
    assert_eq!((done, close), committed());
    strategies
}

#[test]
fn a_new_chain_arrives_whole_and_a_retry_sends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = crate::start(&NodeConfig::in_dir(dir.path()));
    let chain = Chain::sample();
    assert_eq!(head(&node), None);

    assert_eq!(push_all(&node, &chain), ["HttpUpload", "HttpUpload"]);
    assert_eq!(head(&node).as_deref(), Some(chain.head()));
    let report = verify(&node.dataset_dir("acme", "edge"), Depth::Rows);
    assert!(report.is_ok() && report.rows > 0, "{report:?}");

    node.restart().unwrap();
    let mut client = PushClient::connect(&node, PATH);
    assert_eq!(client.plan(Some(chain.head()), 0), json!({ "Ok": {} }));
    let (_, done, close) = client.finish(&[], &[]);
    assert_eq!((done, close), committed());
    let (hash, bytes) = &chain.blocks[0];
    assert_eq!(node.call("GET", &format!("/acme/edge/blocks/{hash}"), None, b"").unwrap().body, *bytes);
    let (hash, bytes) = &chain.slices[0];
    assert_eq!(node.call("GET", &format!("/acme/edge/data/{hash}"), None, b"").unwrap().body, *bytes);
}

#[test]
fn a_push_that_was_broken_off_leaves_the_seed_and_is_resumed_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = crate::start(&NodeConfig::in_dir(dir.path()));
    let chain = Chain::sample();
    let mut client = PushClient::connect(&node, PATH);
    client.plan(None, 6);
    client.blocks(&chain.blocks);
    assert_eq!(client.next(), json!({ "Ok": {} }));
    let answer = client.objects(&chain.slices[..1]);
    let url = answer["Ok"]["object_transfer_strategies"][0]["upload_to"]["url"].as_str().unwrap();
    let path = url.strip_prefix(&node.url()).unwrap();
    assert_eq!(node.call("PUT", path, None, b"something else").unwrap().status, 500);
    assert_eq!(node.call("PUT", path, None, &chain.slices[0].1).unwrap().status, 200);
    node.kill().unwrap();
    assert_eq!(client.next(), Value::Null);

    node.restart().unwrap();
    assert_eq!(head(&node).as_ref(), Some(&chain.blocks[0].0));
    let mut client = PushClient::connect(&node, PATH);
    assert_eq!(client.plan(Some(&chain.blocks[0].0), 5), json!({ "Ok": {} }));
    let (strategies, done, close) = client.finish(&chain.blocks[1..], &chain.slices);
    assert_eq!(strategies, ["SkipUpload", "HttpUpload"]);
    assert_eq!((done, close), committed());
    assert_eq!(head(&node).as_deref(), Some(chain.head()));
}

#[test]
fn a_wrong_head_is_named_and_going_on_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let node = crate::start(&NodeConfig::in_dir(dir.path()));
    let chain = Chain::sample();
    push_all(&node, &chain);

    let mut client = PushClient::connect(&node, PATH);
    let answer = client.plan(Some(&chain.blocks[3].0), 2);
    // The names are swapped on a node too.
    let heads = json!({ "actual_head": chain.blocks[3].0, "expected_head": chain.head() });
    assert_eq!(answer, json!({ "Err": { "InvalidHead": heads } }));
    let (strategies, close, _) = client.finish(&chain.blocks[4..], &chain.slices);
    assert_eq!(strategies, ["SkipUpload", "SkipUpload"]);
    let reason = r#"{"Err":{"Internal":{"phase":{"Push":"CompleteRequest"},"error_message":"Internal error"}}}"#;
    assert_eq!(close["close"], 1011);
    let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(parsed(close["reason"].as_str().unwrap()), parsed(reason));
    assert_eq!(head(&node).as_deref(), Some(chain.head()));
}

#[test]
fn a_tampered_block_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = crate::start(&NodeConfig::in_dir(dir.path()));
    let mut chain = Chain::sample();
    chain.blocks[2].1.push(0);
    let mut client = PushClient::connect(&node, PATH);
    client.plan(None, 6);
    client.blocks(&chain.blocks);
    assert_eq!(client.next(), json!({ "Ok": {} }));
    assert_eq!(client.objects(&chain.slices), Value::Null);
    assert_eq!(head(&node).as_ref(), Some(&chain.blocks[0].0), "only the Seed is there");
}

#[test]
fn a_chain_that_breaks_a_rule_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = crate::start(&NodeConfig::in_dir(dir.path()));
    let chain = Chain::sample();
    let mut blocks = chain.blocks.clone();
    blocks.remove(2);
    let mut client = PushClient::connect(&node, PATH);
    client.plan(None, 5);
    let (_, close, _) = client.finish(&blocks, &chain.slices);
    assert_eq!(close["close"], 1011);
    assert_eq!(head(&node).as_ref(), Some(&chain.blocks[0].0));
}

#[test]
fn an_id_has_one_name() {
    let dir = tempfile::tempdir().unwrap();
    let node = crate::start(&NodeConfig::in_dir(dir.path()));
    let chain = Chain::sample();
    push_all(&node, &chain);
    let mut client = PushClient::connect(&node, "/acme/other/push");
    client.plan(None, 6);
    client.blocks(&chain.blocks);
    assert_eq!(client.next(), json!({ "Ok": {} }));
    let close = client.next();
    assert_eq!(close["close"], 1011);
    assert!(close["reason"].as_str().unwrap().starts_with(r#"{"Err":{"RefCollision":{"dataset_id":"did:odf:fed01"#));
}

#[test]
fn a_ping_and_a_wrong_count_end_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let node = crate::start(&NodeConfig::in_dir(dir.path()));
    let chain = Chain::sample();
    let mut client = PushClient::connect(&node, PATH);
    client.plan(None, 6);
    client.ping();
    assert_eq!(client.next(), Value::Null);
    let mut client = PushClient::connect(&node, PATH);
    client.plan(None, 5);
    client.blocks(&chain.blocks);
    assert_eq!(client.next(), Value::Null);
    assert_eq!(head(&node), None);
}

#[test]
fn progress_is_asked_for_while_uploads_run() {
    let dir = tempfile::tempdir().unwrap();
    let node = crate::start(&NodeConfig::in_dir(dir.path()).progress_every(Duration::from_millis(20)));
    let chain = Chain::sample();
    let mut client = PushClient::connect(&node, PATH);
    client.plan(None, 6);
    client.blocks(&chain.blocks);
    client.next();
    client.objects(&chain.slices);
    for count in 0..2 {
        assert_eq!(client.next(), json!({}));
        client.send(&json!({ "details": { "Running": { "uploaded_objects_count": count } } }));
    }
    client.send(&json!({ "details": "Complete" }));
    client.send(&json!({}));
    // Questions that were on their way, then the confirmation: all of them `{}`.
    while client.next() == json!({}) {}
    assert_eq!(head(&node).as_deref(), Some(chain.head()), "that objects are there is not checked");
}

#[test]
fn a_commit_whose_answer_was_lost_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = crate::start(&NodeConfig::in_dir(dir.path()));
    let chain = Chain::sample();
    for (stage, head_after) in [("plan", None), ("complete", Some(0)), ("after-commit", Some(5))] {
        node.faults(&[json!({ "on": "push", "stage": stage, "do": "exit" })]).unwrap();
        let mut client = PushClient::connect(&node, PATH);
        let first = head(&node).map_or(0, |_| 1);
        let current = head(&node);
        if client.plan(current.as_deref(), chain.blocks.len() - first) == json!({ "Ok": {} }) {
            let (_, done, _) = client.finish(&chain.blocks[first..], &chain.slices);
            assert_eq!(done, Value::Null);
        }
        node.restart().unwrap();
        assert_eq!(head(&node).as_ref(), head_after.map(|index: usize| &chain.blocks[index].0), "{stage}");
    }
}

#[test]
fn an_upgrade_is_refused_as_on_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let node = crate::start(&NodeConfig::in_dir(dir.path()));
    let bearer = format!("Bearer {}", node.token());
    let auth = ("authorization", bearer.as_str());
    let upgrade =
        [("upgrade", "websocket"), ("sec-websocket-version", "13"), ("sec-websocket-key", "x3JJHMbDL1EzLkh9GBhXDw==")];
    let of = |path: &str, headers: &[(&str, &str)]| {
        let headers = [&upgrade[..], headers].concat();
        let answer = node.request("GET", path, &headers, b"").unwrap();
        (answer.status, answer.text())
    };
    let version = ("x-odf-smtp-version", "1");
    assert_eq!(of(PATH, &[auth]), (400, "Header of type `x-odf-smtp-version` was missing".to_owned()));
    let other = ("x-odf-smtp-version", "2");
    assert_eq!(of(PATH, &[auth, other]), (400, r#"{"message":"Incompatible client version"}"#.to_owned()));
    assert_eq!(of(PATH, &[version]), (401, r#"{"message":"Unauthenticated"}"#.to_owned()));
    assert_eq!(of(PATH, &[("authorization", "Bearer no"), version]).0, 401);
    assert_eq!(of("/else/edge/push", &[auth, version]), (403, String::new()));
    push_all(&node, &Chain::sample());
    assert_eq!(of(PATH, &[version]), (404, String::new()), "private");
}
