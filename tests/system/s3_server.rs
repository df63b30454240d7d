//! The S3 server of the stories does what S3 does: what it lets pass would pass nowhere else.

use std::time::Duration;

use forebay_tests::s3::{self, S3Server};
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use object_store::{
    ClientOptions, Error, MultipartUpload as _, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    PutResult, RetryConfig, UpdateVersion,
};

/// The smallest part that S3 takes.
const PART_BYTES: usize = 5 << 20;

#[tokio::test]
async fn what_is_put_is_read_listed_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let store = client(&server).build().unwrap();
    let key = Path::from("data/a");
    let put = store.put(&key, "0123456789".into()).await.unwrap();

    let head = store.head(&key).await.unwrap();
    assert_eq!((head.size, head.e_tag), (10, put.e_tag));
    assert_eq!(store.get_range(&key, 2..5).await.unwrap(), "234");
    assert_eq!(std::fs::read(server.object_path("data/a")).unwrap(), b"0123456789");
    let listed = store.list_with_delimiter(None).await.unwrap();
    assert_eq!(listed.common_prefixes, [Path::from("data")]);
    let listed = store.list_with_delimiter(Some(&Path::from("data"))).await.unwrap();
    assert_eq!(listed.objects.iter().map(|object| &object.location).collect::<Vec<_>>(), [&key]);

    store.delete(&key).await.unwrap();
    store.delete(&key).await.expect("S3 deletes what is not there");
    assert!(matches!(store.get(&key).await, Err(Error::NotFound { .. })));
    assert!(matches!(store.head(&Path::from("data")).await, Err(Error::NotFound { .. })), "a directory is no object");
}

#[tokio::test]
async fn a_long_listing_comes_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    std::fs::create_dir(server.object_path("data")).unwrap();
    for number in 0..1_001 {
        std::fs::write(server.object_path(&format!("data/{number:04}")), "a").unwrap();
    }
    std::fs::write(server.object_path("data!"), "sorts before the prefix").unwrap();
    let store = client(&server).build().unwrap();

    let listed = store.list_with_delimiter(Some(&Path::from("data"))).await.unwrap();

    let keys: Vec<_> = listed.objects.iter().map(|object| object.location.to_string()).collect();
    assert_eq!(keys, (0..1_001).map(|number| format!("data/{number:04}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_object_is_created_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let store = client(&server).build().unwrap();
    let key = Path::from("refs/head");
    put(&store, &key, "first", PutMode::Create).await.expect("nobody was here");

    let second = put(&store, &key, "second", PutMode::Create).await;

    assert!(matches!(second, Err(Error::AlreadyExists { .. })), "{second:?}");
    assert_eq!(read(&store, &key).await, "first");
}

#[tokio::test]
async fn of_many_creators_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let creators = (0..16).map(|creator| {
        let store = client(&server).build().unwrap();
        tokio::spawn(async move { put(&store, &Path::from("refs/head"), &format!("{creator}"), PutMode::Create).await })
    });
    let creators: Vec<_> = creators.collect();
    let mut winners = 0;
    for creator in creators {
        winners += usize::from(creator.await.unwrap().is_ok());
    }
    assert_eq!(winners, 1);
}

#[tokio::test]
async fn an_update_from_a_stale_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let store = client(&server).build().unwrap();
    let key = Path::from("refs/head");
    let first = put(&store, &key, "first", PutMode::Create).await.unwrap();
    put(&store, &key, "second", PutMode::Update(version(&first))).await.expect("the version is current");

    let stale = put(&store, &key, "third", PutMode::Update(version(&first))).await;
    let absent = put(&store, &Path::from("refs/none"), "first", PutMode::Update(version(&first))).await;

    assert!(matches!(stale, Err(Error::Precondition { .. })), "{stale:?}");
    assert!(matches!(absent, Err(Error::Precondition { .. })), "{absent:?}");
    assert_eq!(read(&store, &key).await, "second");
}

#[tokio::test]
async fn a_store_without_conditions_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start_unconditional(crate::S3_PROGRAM.as_ref(), dir.path()).unwrap();
    let store = client(&server).build().unwrap();
    let key = Path::from("refs/head");
    put(&store, &key, "first", PutMode::Overwrite).await.unwrap();

    let refused = put(&store, &key, "second", PutMode::Create).await;

    assert!(refused.as_ref().is_err_and(|error| format!("{error}").contains("501")), "{refused:?}");
    assert_eq!(read(&store, &key).await, "first");
}

#[tokio::test]
async fn parts_become_an_object_when_the_upload_completes() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let store = client(&server).build().unwrap();
    let key = Path::from("data/large");
    let mut upload = store.put_multipart(&key).await.unwrap();
    upload.put_part(vec![1; PART_BYTES].into()).await.unwrap();
    upload.put_part(vec![2; 10].into()).await.unwrap();
    assert!(!server.object_path("data/large").exists(), "an upload under way does not show");

    let put = upload.complete().await.unwrap();

    let head = store.head(&key).await.unwrap();
    assert_eq!((head.size, head.e_tag), (PART_BYTES as u64 + 10, put.e_tag));
    assert_eq!(store.get_range(&key, head.size - 11..head.size).await.unwrap()[..2], [1, 2]);
}

#[tokio::test]
async fn an_aborted_upload_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let store = client(&server).build().unwrap();
    let mut upload = store.put_multipart(&Path::from("data/large")).await.unwrap();
    upload.put_part(vec![1; PART_BYTES].into()).await.unwrap();

    upload.abort().await.unwrap();

    let completed = upload.complete().await;
    assert!(matches!(completed, Err(Error::NotFound { .. })), "{completed:?}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [s3::BUCKET]);
}

#[tokio::test]
async fn small_parts_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let store = client(&server).build().unwrap();
    let mut upload = store.put_multipart(&Path::from("data/large")).await.unwrap();
    upload.put_part(vec![1; PART_BYTES - 1].into()).await.unwrap();
    upload.put_part(vec![2; 10].into()).await.unwrap();

    let refused = upload.complete().await;

    assert!(refused.as_ref().is_err_and(|error| format!("{error}").contains("EntityTooSmall")), "{refused:?}");
}

#[tokio::test]
async fn strangers_and_missing_buckets_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let key = Path::from("data/a");
    let elsewhere = client(&server).with_bucket_name("elsewhere").build().unwrap();
    let forged = client(&server).with_secret_access_key("guessed").build().unwrap();
    let unknown = client(&server).with_access_key_id("nobody").build().unwrap();

    for absent in [elsewhere.put(&key, "a".into()).await.map(|_| ()), elsewhere.head(&key).await.map(|_| ())] {
        assert!(matches!(absent, Err(Error::NotFound { .. })), "{absent:?}");
    }
    let unsigned = client(&server).with_skip_signature(true).build().unwrap();
    for stranger in [forged, unknown, unsigned] {
        let denied = stranger.put(&key, "a".into()).await;
        assert!(matches!(denied, Err(Error::PermissionDenied { .. })), "{denied:?}");
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path());
    let store = client(&server).build().unwrap();
    let key = Path::from("refs/head");
    let first = put(&store, &key, "first", PutMode::Create).await.unwrap();

    server.kill().unwrap();
    let away = store.head(&key).await;
    assert!(matches!(away, Err(Error::Generic { .. })), "{away:?}");
    server.restart().unwrap();

    assert_eq!(read(&store, &key).await, "first");
    put(&store, &key, "second", PutMode::Update(version(&first))).await.expect("the version is the same as before");
}

#[tokio::test]
async fn a_kill_in_the_middle_of_a_put_shows_the_old_object_or_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path());
    let store = client(&server).build().unwrap();
    let key = Path::from("data/a");
    let contents = |round: u8| vec![round; 2 << 20];
    store.put(&key, contents(0).into()).await.unwrap();
    let mut before = 0;
    for round in 1..=20 {
        let writer = store.clone();
        let payload = PutPayload::from(contents(round));
        let put = tokio::spawn(async move { writer.put(&Path::from("data/a"), payload).await });
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 2)).await;
        server.kill().unwrap();
        let acknowledged = put.await.unwrap().is_ok();
        server.restart().unwrap();

        let found = store.get(&key).await.unwrap().bytes().await.unwrap();
        assert!(found == contents(round) || (found == contents(before) && !acknowledged), "round {round}");
        before = found[0];
    }
}

fn start(dir: &std::path::Path) -> S3Server {
    S3Server::start(crate::S3_PROGRAM.as_ref(), dir).expect("the S3 server starts")
}

/// A client that shows each failure: it never tries again.
fn client(server: &S3Server) -> AmazonS3Builder {
    // An error says that another test was here before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    AmazonS3Builder::new()
        .with_endpoint(server.endpoint())
        .with_allow_http(true)
        .with_virtual_hosted_style_request(false)
        .with_bucket_name(s3::BUCKET)
        .with_region(s3::REGION)
        .with_access_key_id(s3::ACCESS_KEY)
        .with_secret_access_key(s3::SECRET_KEY)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_client_options(
            ClientOptions::new()
                .with_allow_http(true)
                .with_pool_max_idle_per_host(0)
                .with_timeout(Duration::from_secs(60)),
        )
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
}

async fn put(store: &AmazonS3, key: &Path, contents: &str, mode: PutMode) -> Result<PutResult, Error> {
    store.put_opts(key, contents.to_owned().into(), PutOptions::from(mode)).await
}

async fn read(store: &AmazonS3, key: &Path) -> String {
    let bytes = store.get(key).await.unwrap().bytes().await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn version(put: &PutResult) -> UpdateVersion {
    UpdateVersion { e_tag: put.e_tag.clone(), version: None }
}
