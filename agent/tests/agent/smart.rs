//! Smart push over real sockets, against a node that behaves as each test tells it to.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use forebay_agent::config::{Secret, Upstream};
use forebay_agent::upstream::http::Http;
use forebay_agent::upstream::outcome::{Failure, FailureKind};
use forebay_agent::upstream::smart::{Push, Smart};
use forebay_storage::odf::event::SetInfo;
use forebay_storage::odf::{ChainFiles, Event, MetadataBlock, Multihash};
use tempfile::TempDir;

use crate::smart_node::{Node, Script};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../storage/tests/data/odf-edge-sample");
const THEIRS: &str = "f1620e26bc3964334769d999698b7693037a42d99c4ea7cbb58b54523b6ac4a87c441";

#[tokio::test]
async fn a_push_brings_blocks_and_slices_and_says_nothing_else() {
    let (node, pusher) = start(Script::default()).await;

    let head_before = pusher.smart.head("readings").await.unwrap();
    let pushed = pusher.push().await.unwrap();

    let seen = node.seen();
    let Push::Done { bytes, objects_skipped: 0 } = pushed else { panic!("{pushed:?}") };
    assert_eq!(bytes, 3_244 + seen.texts.iter().map(|text| text.len() as u64).sum::<u64>());
    assert_eq!((head_before, node.head()), (None, Some(pusher.head().to_string())));
    assert_eq!(seen.puts.values().map(Vec::len).collect::<Vec<_>>(), [1_624, 1_620]);
    for (path, bytes) in &seen.puts {
        assert!(path.ends_with(&format!("{}?signature=x", Multihash::of(bytes))), "{path}");
    }
    assert_eq!(seen.texts[3..], [r#"{"details":"Complete"}"#, "{}"]);
    assert_eq!((seen.texts.len(), seen.others, seen.close), (5, 0, Some(1000)));
}

#[tokio::test]
async fn the_socket_begins_as_a_request_with_token_and_version() {
    let (node, pusher) = start(Script::default()).await;

    pusher.push().await.unwrap();

    let requests = node.seen().requests;
    let push = requests.iter().find(|head| head.starts_with("GET /edge/readings/push HTTP/1.1")).unwrap();
    for line in [
        "connection: Upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "x-odf-smtp-version: 1",
        "authorization: Bearer ka_secret",
    ] {
        assert!(push.contains(&format!("\r\n{line}\r\n")), "{line} in {push}");
    }
    let put = requests.iter().find(|head| head.starts_with("PUT")).unwrap();
    assert!(put.contains("content-type: application/octet-stream\r\n"), "{put}");
    assert!(put.contains("\r\nx-odf-smtp-version: 1\r\n") && put.contains("authorization: Bearer ka_secret"), "{put}");
    assert!(!put.contains("transfer-encoding"), "{put}");
}

#[tokio::test]
async fn a_head_that_has_moved_is_told_and_nothing_is_sent() {
    let refusal = format!(r#"{{"Err":{{"InvalidHead":{{"actual_head":null,"expected_head":"{THEIRS}"}}}}}}"#);
    let (node, pusher) = start(Script { request_answer: Some(refusal), ..Script::default() }).await;

    let pushed = pusher.push().await.unwrap();

    assert_eq!(pushed, Push::HeadMoved { theirs: THEIRS.parse().ok() });
    assert_eq!(node.seen().texts.len(), 1);
}

#[tokio::test]
async fn slices_that_the_node_has_are_not_sent_again_and_need_not_be_here() {
    let (node, mut pusher) = start(Script { has_slices: true, ..Script::default() }).await;
    let released = pusher.copy_of_the_sample();
    std::fs::remove_dir_all(released.path().join("data")).unwrap();
    pusher.files = ChainFiles::new(released.path());

    let pushed = pusher.push().await.unwrap();

    assert!(matches!(pushed, Push::Done { objects_skipped: 2, .. }), "{pushed:?}");
    assert!(node.seen().puts.is_empty());
}

#[tokio::test]
async fn questions_during_a_slow_upload_are_answered() {
    let (node, pusher) = start(Script { questions: 3, ..Script::default() }).await;

    pusher.push().await.unwrap();

    let running = r#"{"details":{"Running":{"uploaded_objects_count":0}}}"#;
    assert_eq!(node.seen().texts[3..], [running, running, running, r#"{"details":"Complete"}"#, "{}"]);
    assert_eq!(node.seen().others, 0);
}

#[tokio::test]
async fn a_question_that_crosses_the_last_answer_is_not_taken_for_consent() {
    let (node, pusher) = start(Script { asks_too_late: true, ..Script::default() }).await;

    let pushed = pusher.push().await.unwrap();

    assert!(matches!(pushed, Push::Done { .. }));
    assert_eq!(node.head(), Some(pusher.head().to_string()));
    assert_eq!(node.seen().close, Some(1000));
}

#[tokio::test]
async fn consent_without_the_head_is_not_believed() {
    let (_node, pusher) = start(Script { lies: true, ..Script::default() }).await;

    let failure = pusher.push().await.unwrap_err();

    assert_eq!(failure.kind, FailureKind::Unknown);
    assert!(failure.words.contains("its head is none and not f1620"), "{failure}");
}

#[tokio::test]
async fn an_upload_at_a_slow_pace_outlasts_the_timeout() {
    let (node, pusher) = start_with(Script::default(), |upstream| {
        upstream.rate_limit = NonZeroU64::new(1_000);
        upstream.timeout = Duration::from_secs(2);
    })
    .await;

    pusher.push().await.unwrap();

    assert_eq!(node.seen().puts.len(), 2);
}

#[tokio::test]
async fn a_close_frame_with_a_reason_is_a_failure_with_words() {
    let reason = r#"{"Err":{"Internal":{"phase":{"Push":"InitialRequest"},"error_message":"Internal error"}}}"#;
    let script = Script { close_after_blocks: Some(reason.to_owned()), ..Script::default() };
    let (_node, pusher) = start(script).await;

    let failure = pusher.push().await.unwrap_err();

    assert_eq!((failure.kind, failure.words.contains("use push ingest")), (FailureKind::Unknown, true), "{failure}");
}

#[tokio::test]
async fn a_dropped_connection_is_tried_again() {
    let (node, pusher) = start(Script { drop_after_blocks: true, ..Script::default() }).await;

    let failure = pusher.push().await.unwrap_err();

    assert_eq!(failure.kind, FailureKind::Unreachable { retry_after: None });
    assert!(failure.words.starts_with("127.0.0.1 dropped the connection after the blocks were sent"), "{failure}");
    assert_eq!(node.seen().others, 0);
}

#[tokio::test]
async fn a_token_that_the_node_does_not_know_is_unauthorised() {
    let failure = refused(401, r#"{"message":"Unauthenticated"}"#).await;

    assert_eq!(failure.kind, FailureKind::Unauthorised);
    assert!(failure.words.ends_with("/edge/readings/push was answered with 401: Unauthenticated"), "{failure}");
}

#[tokio::test]
async fn whatever_is_no_upgrade_is_told_with_what_to_change() {
    let version = refused(400, r#"{"message":"Incompatible client version"}"#).await;
    let proxy = refused(400, "Connection header did not include 'upgrade'").await;
    let website = refused(200, "<html>").await;

    for (failure, advice) in [(version, "push ingest"), (proxy, "proxy"), (website, "check `url`")] {
        assert_eq!((failure.kind, failure.words.contains(advice)), (FailureKind::Refused, true), "{failure}");
    }
}

#[tokio::test]
async fn whoever_does_not_know_the_key_is_no_node() {
    let (_node, pusher) = start(Script { wrong_accept: true, ..Script::default() }).await;

    let failure = pusher.push().await.unwrap_err();

    assert_eq!(failure.kind, FailureKind::Unreachable { retry_after: None });
}

#[tokio::test]
async fn the_token_is_not_told_to_the_store_behind_the_node() {
    let store = Node::start(Script::default()).await;
    let (node, pusher) = start(Script { store: Some(store.address), ..Script::default() }).await;

    pusher.push().await.unwrap();

    assert!(node.seen().puts.is_empty());
    let requests = store.seen().requests;
    assert_eq!(requests.len(), 2);
    for head in requests {
        assert!(head.contains("x-odf-smtp-version: 1") && !head.to_lowercase().contains("authorization"), "{head}");
    }
}

#[tokio::test]
async fn a_signed_url_that_is_refused_is_asked_for_again() {
    let refusal = Some((403, "Request has expired".to_owned()));
    let store = Node::start(Script { refusal, ..Script::default() }).await;
    let (node, pusher) = start(Script { store: Some(store.address), ..Script::default() }).await;

    let failure = pusher.push().await.unwrap_err();

    assert_eq!((failure.kind, node.head()), (FailureKind::Unknown, None));
    assert!(failure.words.contains("403: Request has expired") && !failure.words.contains("signature"), "{failure}");
}

#[tokio::test]
async fn a_slice_that_is_not_here_is_our_own_fault() {
    let (_node, mut pusher) = start(Script::default()).await;
    let damaged = pusher.copy_of_the_sample();
    std::fs::remove_dir_all(damaged.path().join("data")).unwrap();
    pusher.files = ChainFiles::new(damaged.path());

    let failure = pusher.push().await.unwrap_err();

    assert_eq!(failure.kind, FailureKind::Local);
}

#[tokio::test]
async fn silence_is_not_waited_for_for_ever() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pusher = Pusher::to(listener.local_addr().unwrap(), |upstream| upstream.timeout = Duration::from_millis(100));

    let failure = pusher.push().await.unwrap_err();

    assert_eq!(failure.kind, FailureKind::Unreachable { retry_after: None });
    assert_eq!(failure.words, "127.0.0.1 was silent for 0.1 s");
}

#[tokio::test]
async fn a_long_frame_arrives_whole() {
    let (node, mut pusher) = start(Script::default()).await;
    let description: String = std::iter::repeat_with(fastrand::alphanumeric).take(200_000).collect();
    let event = Event::SetInfo(SetInfo { description: Some(description), keywords: None });
    let system_time = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
    let block = MetadataBlock { system_time, prev_block_hash: None, sequence_number: 0, event };
    let dir = chain_of(&block.encode().unwrap());
    pusher.files = ChainFiles::new(dir.path());

    pusher.push().await.unwrap();

    assert!(node.seen().texts[1].len() > 400_000);
    assert_eq!(node.head(), Some(pusher.head().to_string()));
}

#[tokio::test]
async fn whatever_is_no_hash_is_no_head() {
    let head = async |status, body: &str| {
        let (_node, pusher) = start(Script { refusal: Some((status, body.to_owned())), ..Script::default() }).await;
        pusher.smart.head("readings").await
    };

    assert_eq!(head(200, THEIRS).await, Ok(THEIRS.parse().ok()));
    assert_eq!(head(404, "").await, Ok(None));
    assert_eq!(head(200, "<html>").await.unwrap_err().kind, FailureKind::Unknown);
    assert_eq!(head(401, "").await.unwrap_err().kind, FailureKind::Unauthorised);
}

#[tokio::test]
async fn nothing_to_push_is_done() {
    let (node, pusher) = start(Script::default()).await;

    let pushed = pusher.smart.push("readings", &pusher.files, Some(&pusher.head()), &[]).await;

    assert_eq!(pushed, Ok(Push::Done { bytes: 0, objects_skipped: 0 }));
    assert!(node.seen().requests.is_empty());
}

struct Pusher {
    smart: Smart,
    files: ChainFiles,
    _token: TempDir,
}

impl Pusher {
    fn to(node: SocketAddr, change: impl FnOnce(&mut Upstream)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "ka_secret\n").unwrap();
        let mut upstream = Upstream::at(&format!("odf+http://{node}/edge")).unwrap();
        upstream.token = Some(Secret::File(token));
        change(&mut upstream);
        let url = upstream.kind.node().unwrap().clone();
        let smart = Smart::new(Arc::new(Http::new(&upstream).unwrap()), url);
        Self { smart, files: ChainFiles::new(Path::new(SAMPLE)), _token: dir }
    }

    async fn push(&self) -> Result<Push, Failure> {
        let blocks = self.files.blocks_after(self.head(), None).unwrap().unwrap();
        self.smart.push("readings", &self.files, None, &blocks).await
    }

    fn head(&self) -> Multihash {
        self.files.head().unwrap().unwrap()
    }

    fn copy_of_the_sample(&self) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        for folder in ["blocks", "data", "refs"] {
            std::fs::create_dir(copy.path().join(folder)).unwrap();
            for file in std::fs::read_dir(self.files.dir().join(folder)).unwrap() {
                let file = file.unwrap();
                std::fs::copy(file.path(), copy.path().join(folder).join(file.file_name())).unwrap();
            }
        }
        copy
    }
}

/// A chain of one block.
fn chain_of(block: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let hash = Multihash::of(block).to_string();
    for (folder, name, bytes) in [("blocks", hash.as_str(), block), ("refs", "head", hash.as_bytes())] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
        std::fs::write(dir.path().join(folder).join(name), bytes).unwrap();
    }
    dir
}

async fn start(script: Script) -> (Node, Pusher) {
    start_with(script, |_| {}).await
}

async fn start_with(script: Script, change: impl FnOnce(&mut Upstream)) -> (Node, Pusher) {
    let node = Node::start(script).await;
    let pusher = Pusher::to(node.address, change);
    (node, pusher)
}

async fn refused(status: u16, body: &str) -> Failure {
    let (_node, pusher) = start(Script { refusal: Some((status, body.to_owned())), ..Script::default() }).await;
    pusher.push().await.unwrap_err()
}
