//! Frames and bundles against what was recorded between a Kamu node 0.265 and two clients.
//!
//! The files in `tests/data/smart` are lines of those recordings, with two changes: host and token, and `num_records`, which
//! that client left at 0 while Kamu's own counts rows. Archives differ from run to run there (they hold the time), so ours
//! are unpacked instead.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use forebay_storage::odf::{ChainFiles, Multihash};

use super::bundle::Bundle;
use super::frames::{self, Empty, End, NewBlocks, ObjectFiles, Progress, Request, Step, Strategies};
use super::pack;
use crate::upstream::outcome::{Failure, FailureKind};

const NEW: &str = include_str!("../../../tests/data/smart/new.txt");
const INCREMENTAL: &str = include_str!("../../../tests/data/smart/incremental.txt");
const SKIPPED: &str = include_str!("../../../tests/data/smart/skipped.txt");
const STALE: &str = include_str!("../../../tests/data/smart/stale.txt");
const CLOSED: &str = include_str!("../../../tests/data/smart/closed.txt");

const HEAD: &str = "f1620e26bc3964334769d999698b7693037a42d99c4ea7cbb58b54523b6ac4a87c441";
const STALE_HEAD: &str = "f162038519617fa268af700f6e909db7a39bf6a9985774a0e1c9510cab6c12206d9b0";

#[test]
fn what_we_say_is_to_the_byte_what_a_node_was_seen_to_take() {
    let bundle = sample();
    let said: Vec<&str> = lines(NEW, "> ").collect();

    let frames = [
        frames::text(&Request::new(None, bundle.plan)),
        frames::text(&ObjectFiles::new(&bundle.objects)),
        frames::text(&Progress::complete()),
        frames::text(&Empty {}),
    ];

    assert_eq!(frames.map(Result::unwrap).as_slice(), said);
}

#[test]
fn an_incremental_push_names_the_head_it_follows() {
    let known: Multihash = "f162059f9138facc60a91ca32894e71a7226f53905ec0ae6fedec44dc53880a49a374".parse().unwrap();
    let plan = frames::Plan {
        num_blocks: 2,
        num_objects: 2,
        num_records: 10,
        bytes_in_raw_blocks: 848,
        bytes_in_raw_objects: 3_248,
    };

    let text = frames::text(&Request::new(Some(&known), plan)).unwrap();

    assert_eq!(Some(text.as_str()), lines(INCREMENTAL, "> ").next());
}

#[test]
fn the_payload_is_an_array_of_numbers() {
    let text = frames::text(&NewBlocks::new(6, &[31, 139, 8])).unwrap();

    assert_eq!(
        text,
        r#"{"new_blocks":{"num_blocks":6,"media_type":"application/tar+gzip","encoding":"raw","payload":[31,139,8]}}"#
    );
    assert_eq!(frames::text(&Progress::running(7)).unwrap(), r#"{"details":{"Running":{"uploaded_objects_count":7}}}"#);
}

#[test]
fn the_archive_holds_each_block_under_its_hash_oldest_first() {
    let bundle = sample();
    let mut archive = tar::Archive::new(GzDecoder::new(&*bundle.archive).take(1 << 20));
    let mut unpacked = Vec::new();

    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.mode().unwrap(), header.mtime().unwrap()), (0o644, 0));
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        unpacked.push((name, bytes));
    }

    let expected =
        blocks().into_iter().map(|hash| (hash.to_string(), std::fs::read(files().block_path(&hash)).unwrap()));
    assert_eq!(unpacked, expected.collect::<Vec<_>>());
}

#[test]
fn the_same_blocks_are_the_same_archive() {
    assert_eq!(sample().archive, sample().archive);
    assert_eq!(sample().archive[..10], [31, 139, 8, 0, 0, 0, 0, 0, 0, 255]);
}

#[test]
fn a_block_that_is_not_there_is_our_own_fault() {
    let failure = pack(&ChainFiles::new(Path::new("/nonexistent")), &blocks()).unwrap_err();

    assert_eq!(failure.kind, FailureKind::Local);
}

#[test]
fn each_slice_goes_where_the_node_wants_it() {
    let objects = sample().objects;
    let answer = lines(NEW, "< ").nth(2).unwrap();

    let strategies: Strategies = frames::accepted(answer, Step::Objects).unwrap();
    let uploads = strategies.uploads(&objects).unwrap();

    let urls: Vec<&str> = uploads.iter().map(|(_, place)| place.url.rsplit('/').next().unwrap()).collect();
    assert_eq!(urls, objects.iter().map(|object| object.physical_hash.to_string()).collect::<Vec<_>>());
    let headers = &uploads[0].1.headers;
    assert_eq!((headers[0].name.as_str(), headers[0].value.as_str()), ("x-odf-smtp-version", "1"));
}

#[test]
fn a_slice_that_the_node_has_is_not_uploaded_and_one_that_it_forgot_is_noticed() {
    let objects = sample().objects;
    let strategies = || frames::accepted::<Strategies>(lines(SKIPPED, "< ").next().unwrap(), Step::Objects).unwrap();
    let forgotten = frames::accepted::<Strategies>(r#"{"Ok":{"object_transfer_strategies":[]}}"#, Step::Objects);

    assert!(strategies().uploads(&objects).unwrap().is_empty());
    let Err(failure) = forgotten.unwrap().uploads(&objects) else { panic!("accepted") };
    assert_eq!(failure.kind, FailureKind::Unknown);
}

#[test]
fn of_the_two_heads_that_a_refusal_names_the_second_is_theirs() {
    let answers: Vec<&str> = lines(STALE, "< ").collect();
    let theirs = |text| frames::accepted::<Empty>(text, Step::Request).unwrap_err();

    assert!(answers[0].contains(STALE_HEAD));
    assert_eq!(theirs(answers[0]), End::HeadMoved { theirs: HEAD.parse().ok() });
    assert_eq!(theirs(answers[1]), End::HeadMoved { theirs: HEAD.parse().ok() });
    assert_eq!(
        theirs(&format!(r#"{{"Err":{{"InvalidHead":{{"actual_head":"{HEAD}","expected_head":null}}}}}}"#)),
        End::HeadMoved { theirs: None }
    );
}

#[test]
fn the_reason_of_a_close_frame_is_an_answer() {
    let reasons: Vec<&str> = lines(CLOSED, "# ").collect();
    let closed = |reason, step| failure(frames::closed(1011, reason, step));

    let unread = closed(reasons[0], Step::Blocks);
    let uncommitted = closed(reasons[1], Step::Commit);
    let collision = closed(reasons[2], Step::Objects);

    assert_eq!((unread.kind, unread.words.contains("use push ingest")), (FailureKind::Unknown, true), "{unread}");
    assert_eq!(uncommitted.kind, FailureKind::Unknown);
    assert_eq!(
        uncommitted.words,
        "the node failed before the push was committed (phase CompleteRequest): Internal error"
    );
    assert_eq!((collision.kind, collision.words.contains("did:odf:fed01")), (FailureKind::Refused, true));
}

#[test]
fn a_close_frame_without_an_answer_is_told_by_its_code() {
    let kind = |code| failure(frames::closed(code, "", Step::Upload)).kind;

    assert_eq!(kind(1011), FailureKind::Unknown);
    assert_eq!(kind(1009), FailureKind::Refused);
    for code in [1000, 1001, 1006, 1012] {
        assert_eq!(kind(code), FailureKind::Unreachable { retry_after: None }, "{code}");
    }
}

#[test]
fn what_only_a_person_can_put_right_is_refused_in_words_that_say_what_to_do() {
    let refused = |variant: &str, advice| {
        let failure = failure(frames::nod(&format!(r#"{{"Err":{variant}}}"#), Step::Blocks).unwrap_err());
        assert_eq!((failure.kind, failure.words.contains(advice)), (FailureKind::Refused, true), "{failure}");
        assert_eq!(failure.words.lines().count(), 1);
    };
    let internal = |message: &str| {
        format!(r#"{{"Internal":{{"phase":{{"Push":"MetadataRequest"}},"error_message":"{message}"}}}}"#)
    };

    refused(r#"{"SeedBlockOverwriteRestricted":{}}"#, "rename");
    refused(r#"{"RefCollision":{"dataset_id":"did:odf:fed01"}}"#, "another name");
    refused(r#"{"NameCollision":{"dataset_alias":"edge/temp"}}"#, "rename");
    refused(&internal("Block hash mismatch"), "push ingest");
    refused(&internal("Unsupported manifest version 3"), "push ingest");
}

#[test]
fn what_is_not_understood_accuses_nobody() {
    for text in ["", "nonsense", "[]", "{\"Ok\":{\"x\":1}}", "{\"Err\":{\"Novelty\":{}}}", "{\"Err\":7}", "{}"] {
        let end = frames::accepted::<Strategies>(text, Step::Objects).err().unwrap();
        assert_eq!(failure(end).kind, FailureKind::Unknown, "{text}");
    }
    for text in ["", "nonsense", "7", "{\"Err\":{\"Novelty\":{}}}"] {
        let end = frames::nod(text, Step::Commit).unwrap_err();
        assert_eq!(failure(end).kind, FailureKind::Unknown, "{text}");
    }
}

#[test]
fn a_frame_that_a_node_would_not_take_is_never_sent() {
    let payload = vec![200; frames::FRAME_BYTES_MAX / 4];

    let failure = frames::text(&NewBlocks::new(1, &payload)).unwrap_err();

    assert_eq!(failure.kind, FailureKind::Local);
}

fn failure(end: End) -> Failure {
    match end {
        End::Failed(failure) => failure,
        End::HeadMoved { theirs } => panic!("head moved to {theirs:?}"),
    }
}

fn lines<'a>(text: &'a str, mark: &'static str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| line.strip_prefix(mark))
}

fn files() -> ChainFiles {
    ChainFiles::new(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../storage/tests/data/odf-edge-sample"))
}

fn blocks() -> Vec<Multihash> {
    let head = files().head().unwrap().unwrap();
    files().blocks_after(head, None).unwrap().unwrap()
}

fn sample() -> Bundle {
    pack(&files(), &blocks()).unwrap()
}
