//! Delivery to a directory that comes and goes.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use forebay_agent::config::Upstream;
use forebay_agent::store::Store;
use forebay_agent::supervisor::Agent;
use forebay_agent::upstream::bell::Bell;
use forebay_agent::upstream::outcome::Failure;
use forebay_agent::upstream::report::DeliveryReport;
use forebay_agent::upstream::repository::{Mirror, Pushed, reach};
use forebay_agent::verify;
use forebay_storage::durable_fs::DurableFs;
use forebay_storage::odf::ChainFiles;
use forebay_storage::position::Seq;

use crate::support::{Gateway, PATIENCE, TEMPERATURE, publish, reading};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_while_the_disk_is_unplugged_is_delivered_when_it_is_back() {
    let disk = tempfile::tempdir().unwrap();
    let mount = disk.path().join("mount");
    let url = mount.join("forebay");
    let gateway = Gateway::new(&format!("{TEMPERATURE}[upstream]\nurl = 'file://{}'\n", url.display()));
    let agent = gateway.start().await;
    publish(agent.addresses()[0], "device", &[("site/a/temp", &reading(1))]).await;
    agent.seal_all().await.unwrap();
    until(&agent, |report| report.last_error.is_some()).await;
    assert!(!mount.exists(), "a mount point is never made");

    fs::create_dir(&mount).unwrap();
    until(&agent, |report| report.delivered.get("temperature") == Some(&1)).await;
    agent.stop().await.unwrap();

    let there = verify::dataset("temperature", &url.join("temperature"));
    assert!(there.ok, "{there:?}");
    assert_eq!((there.rows, there.head), (1, gateway.verify("temperature").head));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_was_cut_off_goes_on_where_it_stopped() {
    let (gateway, remote) = sealed_dataset().await;
    mirror(&gateway).await.unwrap();
    let whole = verify::dataset("temperature", &remote);
    fs::remove_file(remote.join("refs/head")).unwrap();
    let slice = fs::read_dir(remote.join("data")).unwrap().next().unwrap().unwrap().path();
    let size = fs::metadata(&slice).unwrap().len();
    fs::remove_file(&slice).unwrap();

    let written = mirror(&gateway).await.unwrap();

    assert_eq!(written, size);
    assert_eq!(verify::dataset("temperature", &remote), whole);
    assert!(whole.ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_with_nothing_new_writes_nothing() {
    let (gateway, _) = sealed_dataset().await;
    mirror(&gateway).await.unwrap();

    assert_eq!(mirror(&gateway).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_another_writer_is_never_overwritten() {
    let upstream = tempfile::tempdir().unwrap();
    let there = upstream.path().join("temperature/refs");
    let foreign = "f1620".to_owned() + &"0".repeat(64);
    fs::create_dir_all(&there).unwrap();
    fs::write(there.join("head"), &foreign).unwrap();
    let gateway = Gateway::new(&format!("{TEMPERATURE}[upstream]\nurl = 'file://{}'\n", upstream.path().display()));
    let agent = gateway.start().await;

    publish(agent.addresses()[0], "device", &[("site/a/temp", &reading(1))]).await;
    agent.seal_all().await.unwrap();
    until(&agent, |report| !report.problems.is_empty()).await;
    let problem = agent.shared().running().backlog.upstreams()[0].report().problems["temperature"].words.clone();
    agent.stop().await.unwrap();

    assert!(problem.contains(&foreign) && problem.contains("another writer"), "{problem}");
    assert_eq!(fs::read_to_string(there.join("head")).unwrap(), foreign);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_the_record_of_a_release_and_the_removal_is_finished_by_the_next_start() {
    let (gateway, _) = sealed_dataset().await;
    let config = gateway.config();
    let slices = || fs::read_dir(gateway.dataset("temperature").join("data")).unwrap().count();
    assert_eq!(slices(), 3);
    let store = Store::open_existing(&config).unwrap();
    let id = store.spool.dataset_id("temperature").unwrap();
    store.spool.set_released(id, Seq(2)).unwrap();
    drop(store);

    gateway.start().await.stop().await.unwrap();

    assert_eq!(slices(), 1, "what was to go has gone");
    let store = Store::open_existing(&config).unwrap();
    let report = verify::run(&config, &store.spool, None).unwrap();
    assert!(report.ok, "{report:?}");
    assert!(report.datasets[0].notes[0].contains("2 slices were released"), "{report:?}");
    assert!(!verify::dataset("temperature", &gateway.dataset("temperature")).ok, "elsewhere they would be missing");
}

#[test]
fn only_the_last_component_is_created_and_only_before_the_first_delivery() {
    let disk = tempfile::tempdir().unwrap();
    let root = disk.path().join("forebay");

    assert!(reach(&disk.path().join("no/forebay"), false).is_err());
    assert!(reach(&root, true).is_err(), "what was delivered to must still be there");
    assert!(!root.exists());
    assert!(reach(&root, false).is_ok());
    assert!(reach(&root, true).is_ok());
}

async fn sealed_dataset() -> (Gateway, PathBuf) {
    let gateway = Gateway::new(TEMPERATURE);
    let agent = gateway.start().await;
    for n in 0..3 {
        publish(agent.addresses()[0], "device", &[("site/a/temp", &reading(n))]).await;
        agent.seal_all().await.unwrap();
    }
    agent.stop().await.unwrap();
    let upstream = gateway.path().join("upstream");
    fs::create_dir(&upstream).unwrap();
    let remote = upstream.join("temperature");
    (gateway, remote)
}

/// Bytes written.
async fn mirror(gateway: &Gateway) -> Result<u64, Failure> {
    let url = format!("file://{}", gateway.path().join("upstream").display());
    let (upstream, bell) = (Upstream::at(&url).unwrap(), Arc::new(Bell::default()));
    let mirror = Mirror::new(&upstream, &DurableFs::new(), &bell)?.unwrap();
    let files = ChainFiles::new(&gateway.dataset("temperature"));
    let known = mirror.head("temperature", &files, &[]).await?;
    let head = files.head().unwrap().unwrap();
    let missing = files.blocks_after(head, known.as_ref().map(|known| &known.hash)).unwrap().unwrap();
    match mirror.push("temperature", &files, known.as_ref(), &missing, &[]).await? {
        Pushed::Done { bytes } => Ok(bytes),
        Pushed::HeadMoved => unreachable!("nobody else writes"),
    }
}

async fn until(agent: &Agent, is_so: impl Fn(&DeliveryReport) -> bool) {
    let progress = Arc::clone(&agent.shared().running().backlog.upstreams()[0]);
    let wait = async {
        while !is_so(&progress.report()) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}
