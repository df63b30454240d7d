//! Push ingest as a node does it: Ledger, all or nothing, and what happens when an answer or the node is lost.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use forebay_storage::odf::{Depth, verify};
use forebay_tests::node::{NodeConfig, StubNode};
use parquet::arrow::ArrowWriter;
use serde_json::json;
use tempfile::TempDir;

const NDJSON: &str = "application/x-ndjson";
const PARQUET: &str = "application/vnd.apache.parquet";

const SNAPSHOT: &str = "
kind: DatasetSnapshot
version: 1
content:
  name: readings
  kind: Root
  metadata:
    - kind: AddPushSource
      sourceName: default
      read:
        kind: NdJson
        schema:
          fields:
            - {name: event_time, type: Timestamp}
            - {name: gateway, type: String}
            - {name: seq, type: Int64}
            - {name: value, type: {kind: Option, inner: Float64}}
      merge: {kind: Ledger, primaryKey: [gateway, seq]}
";

fn with_dataset(dir: &TempDir, config: impl FnOnce(NodeConfig) -> NodeConfig) -> StubNode {
    let node = crate::start(&config(NodeConfig::in_dir(dir.path())));
    assert_eq!(node.create_dataset(SNAPSHOT).unwrap(), "CreateDatasetResultSuccess");
    node
}

fn lines(seqs: Range<u64>) -> String {
    seqs.fold(String::new(), |mut text, seq| {
        let row =
            json!({ "event_time": "2026-01-01T00:00:00.123456Z", "gateway": "g", "seq": seq, "topic": "ignored" });
        writeln!(text, "{row}").unwrap();
        text
    })
}

fn post(node: &StubNode, body: &str) -> u16 {
    node.call("POST", "/acme/readings/ingest", Some(NDJSON), body.as_bytes()).unwrap().status
}

fn seqs(node: &StubNode) -> Vec<u64> {
    node.rows("acme", "readings").unwrap().into_iter().map(|(_, seq)| seq).collect()
}

#[test]
fn a_retry_adds_no_row_and_duplicates_within_a_batch_stay() {
    let dir = tempfile::tempdir().unwrap();
    let node = with_dataset(&dir, |config| config);
    assert_eq!(node.create_dataset(SNAPSHOT).unwrap(), "CreateDatasetResultNameCollision");

    assert_eq!(post(&node, &lines(0..3)), 200);
    assert_eq!(post(&node, &lines(0..3)), 200);
    assert_eq!(post(&node, &lines(1..5)), 200);
    assert_eq!(post(&node, &lines(7..8).repeat(2)), 200);

    assert_eq!(seqs(&node), [0, 1, 2, 3, 4, 7, 7]);
    let rows = node.rows_all("acme", "readings").unwrap();
    assert_eq!(rows[0]["event_time"], "2026-01-01T00:00:00.123Z", "microseconds are cut");
    assert_eq!(rows[0].get("topic"), None, "what the schema has not is dropped");
    let report = verify(&node.dataset_dir("acme", "readings"), Depth::Files);
    assert!(report.is_ok(), "{report:?}");
}

#[test]
fn refusals_look_as_on_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let node = with_dataset(&dir, |config| config);
    let path = "/acme/readings/ingest";
    let good = lines(0..1);
    let bearer = format!("Bearer {}", node.token());
    let of = |path: &str, headers: &[(&str, &str)], body: &str| {
        let answer = node.request("POST", path, headers, body.as_bytes()).unwrap();
        (answer.status, answer.text())
    };
    let refused = |status: u16, body: &str| (status, body.to_owned());
    let auth = ("authorization", bearer.as_str());
    let wrong = ("authorization", "Bearer ka_wrong");
    let media = ("content-type", NDJSON);

    assert_eq!(of(path, &[wrong, media], &good), refused(401, "Authentication token invalid"));
    assert_eq!(of(path, &[media], &good), refused(404, ""), "a private dataset is not there for others");
    assert_eq!(of("/acme/nosuch/ingest", &[auth, media], &good), refused(404, ""));
    let unsupported = r#"{"message":"Unsupported media type"}"#;
    assert_eq!(
        of(path, &[auth, ("content-type", "application/x-ndjson; charset=utf-8")], &good),
        refused(415, unsupported)
    );
    let no_source = r#"{"message":"Source 'nope' not found"}"#;
    assert_eq!(of(&format!("{path}?sourceName=nope"), &[auth, media], &good), refused(400, no_source));
    for bad in [
        r#"{"event_time": "2026-01-01T00:00:00Z", "gateway": "g", "se"#,
        r#"{"event_time": "2026-01-01T00:00:00Z", "gateway": "g"}"#,
        r#"{"event_time": "2026-01-01T00:00:00Z", "gateway": "g", "seq": "x"}"#,
        r#"{"event_time": "yesterday", "gateway": "g", "seq": 1}"#,
    ] {
        assert_eq!(of(path, &[auth, media], &(good.clone() + bad)), refused(500, ""), "{bad}");
    }
    assert_eq!(of(path, &[auth, ("content-type", PARQUET)], "PAR1"), refused(500, ""));
    assert!(seqs(&node).is_empty(), "a refused batch leaves nothing");
    assert_eq!(node.create_dataset("content: {}").unwrap(), "MetadataManifestMalformed");
}

#[test]
fn an_answer_lost_after_the_commit_makes_no_duplicate() {
    let dir = tempfile::tempdir().unwrap();
    let node = with_dataset(&dir, |config| config);
    node.faults(&[json!({ "on": "ingest", "stage": "after-commit", "do": "cut" })]).unwrap();

    let lost = node.call("POST", "/acme/readings/ingest", Some(NDJSON), lines(0..3).as_bytes());
    assert!(lost.is_err(), "{lost:?}");
    assert_eq!(seqs(&node), [0, 1, 2]);
    assert_eq!(post(&node, &lines(0..3)), 200);
    assert_eq!(seqs(&node), [0, 1, 2]);
}

#[test]
fn a_stall_or_a_body_cut_short_commits_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let node = with_dataset(&dir, |config| config);
    let bearer = format!("Bearer {}", node.token());
    for (faults, sent) in [(vec![json!({ "on": "ingest", "stage": "mid-body", "do": "stall" })], 1), (vec![], 2)] {
        node.faults(&faults).unwrap();
        let body = lines(0..100);
        let mut stream = TcpStream::connect(node.addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let head = format!(
            "POST /acme/readings/ingest HTTP/1.1\r\nhost: x\r\nauthorization: {bearer}\r\ncontent-type: {NDJSON}\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&body.as_bytes()[..body.len() / sent]).unwrap();
        assert!(stream.read(&mut [0]).is_err(), "no answer");
    }
    assert!(seqs(&node).is_empty());
    assert_eq!(post(&node, &lines(0..1)), 200);
}

#[test]
fn what_was_answered_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = with_dataset(&dir, |config| config);
    assert_eq!(post(&node, &lines(0..3)), 200);
    let addr = node.addr();

    node.restart().unwrap();
    assert_eq!(node.addr(), addr);
    assert_eq!(post(&node, &lines(2..5)), 200, "the keys are known again");
    node.faults(&[json!({ "on": "ingest", "stage": "after-commit", "do": "exit" })]).unwrap();
    assert!(node.call("POST", "/acme/readings/ingest", Some(NDJSON), lines(5..6).as_bytes()).is_err());
    node.restart().unwrap();
    node.faults(&[json!({ "on": "ingest", "stage": "mid-body", "do": "exit" })]).unwrap();
    assert!(node.call("POST", "/acme/readings/ingest", Some(NDJSON), lines(6..7).as_bytes()).is_err());
    node.restart().unwrap();

    assert_eq!(seqs(&node), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_poisoned_row_refuses_its_batch_until_it_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let node = with_dataset(&dir, |config| config);
    node.faults(&[json!({ "on": "ingest", "poison": { "column": "seq", "values": [2] } })]).unwrap();

    assert_eq!(post(&node, &lines(0..4)), 500);
    assert_eq!(post(&node, &lines(0..2)), 200);
    assert_eq!(post(&node, &lines(2..3)), 500);
    assert_eq!(post(&node, &lines(3..4)), 200);
    assert_eq!(seqs(&node), [0, 1, 3]);
    node.clear_faults().unwrap();
    assert_eq!(post(&node, &lines(2..3)), 200);
}

#[test]
fn faults_are_used_up_and_requests_are_logged() {
    let dir = tempfile::tempdir().unwrap();
    let node = with_dataset(&dir, |config| config);
    node.faults(&[
        json!({ "on": "ingest", "do": "status", "status": 503, "retry_after": 7 }),
        json!({ "on": "any", "do": "status", "status": 401 }),
    ])
    .unwrap();

    let answer = node.call("POST", "/acme/readings/ingest", Some(NDJSON), lines(0..1).as_bytes()).unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("retry-after: 7"), "{}", answer.head);
    assert_eq!(post(&node, &lines(0..1)), 401);
    assert_eq!(post(&node, &lines(0..1)), 200);

    let log = node.log().unwrap();
    let statuses: Vec<_> = log["requests"].as_array().unwrap().iter().map(|entry| entry["status"].clone()).collect();
    assert_eq!(statuses, [200, 503, 401, 200]);
    assert_eq!(log["requests"][3]["bytes"], lines(0..1).len());
    assert_eq!(log["requests"][3]["content_type"], NDJSON);
}

#[test]
fn a_full_account_is_forbidden() {
    let dir = tempfile::tempdir().unwrap();
    let node = with_dataset(&dir, |config| config.quota_bytes(10_000));
    assert_eq!(post(&node, &lines(0..10)), 200);
    assert_eq!(post(&node, &lines(10..200)), 403);
    assert_eq!(seqs(&node).len(), 10);
}

#[test]
fn single_tenant_paths_have_no_account() {
    let dir = tempfile::tempdir().unwrap();
    let node = with_dataset(&dir, NodeConfig::single_tenant);
    let status = |path: &str| node.call("POST", path, Some(NDJSON), lines(0..1).as_bytes()).unwrap().status;
    assert_eq!(status("/readings/ingest"), 200);
    assert_eq!(status("/kamu/readings/ingest"), 404);
    assert_eq!(node.call("GET", "/info", None, b"").unwrap().json().unwrap(), json!({ "isMultiTenant": false }));
    assert_eq!(node.rows("kamu", "readings").unwrap(), [("g".to_owned(), 0)]);
}

/// Other columns than the schema's, in another order, microseconds without a zone; a hundred thousand rows.
#[test]
fn a_large_parquet_body_is_no_bottleneck() {
    const ROWS: i64 = 100_000;
    let dir = tempfile::tempdir().unwrap();
    let node = with_dataset(&dir, |config| config);
    let columns: [(&str, ArrayRef); 4] = [
        ("extra", Arc::new(Int64Array::from_iter_values(0..ROWS))),
        ("seq", Arc::new(Int64Array::from_iter_values(0..ROWS))),
        ("gateway", Arc::new(StringArray::from_iter_values((0..ROWS).map(|_| "g")))),
        ("event_time", Arc::new(TimestampMicrosecondArray::from_iter_values((0..ROWS).map(|row| row * 1_000 + 999)))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    let body = writer.into_inner().unwrap();

    for _ in 0..2 {
        assert_eq!(node.call("POST", "/acme/readings/ingest", Some(PARQUET), &body).unwrap().status, 200);
    }

    let rows = node.rows("acme", "readings").unwrap();
    assert!(rows.iter().map(|(_, seq)| *seq).eq(0..ROWS.cast_unsigned()));
    let missing = RecordBatch::try_from_iter([("seq", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), missing.schema(), None).unwrap();
    writer.write(&missing).unwrap();
    let body = writer.into_inner().unwrap();
    assert_eq!(node.call("POST", "/acme/readings/ingest", Some(PARQUET), &body).unwrap().status, 500);
}
