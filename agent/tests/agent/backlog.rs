//! `spool.max_bytes` bounds what an upstream that is away leaves on the gateway: messages and slices together.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use arrow::array::AsArray as _;
use forebay_agent::config::Config;
use forebay_agent::status::Status;
use forebay_agent::supervisor::Agent;
use forebay_agent::verify;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rumqttc::{Event, Packet, QoS};

use crate::support::{Gateway, PATIENCE, connect};

const FRAMES: &str = "[[dataset]]\nname = \"frames\"\ntopics = [\"frames\"]\nformat = \"bytes\"\n";
const MAX_BYTES: u64 = 4 << 20;
/// Of one payload; rumqttc sends 10 KiB at the most. Random, so that a slice is as large as its messages.
const FRAME_BYTES: usize = 7 << 10;

/// Messages on their way at a time; the last ones go alone, since those of a window are refused together.
const WINDOW: usize = 10;

type Frames = BTreeSet<Vec<u8>>;

#[tokio::test(flavor = "multi_thread")]
async fn slices_that_an_unplugged_upstream_lacks_fill_the_spool_until_it_is_back() {
    let disk = tempfile::tempdir().unwrap();
    let mount = disk.path().join("mount");
    let url = mount.join("forebay");
    let gateway = Gateway::new(&format!("{FRAMES}[upstream]\nurl = 'file://{}'\n", url.display()));
    let agent = Agent::start(config(&gateway), None).await.unwrap();
    let mut acknowledged = Frames::new();

    // Two slices of a mebibyte, and then messages as long as there is room.
    for _ in 0..2 {
        assert!(publish_frames(agent.addresses()[0], 15, WINDOW, &mut acknowledged).await);
        agent.seal_all().await.unwrap();
    }
    let sealed = status(&agent).await;
    fill(agent.addresses()[0], &mut acknowledged).await;
    let full = status(&agent).await;
    let at_full = acknowledged.len();
    assert!(!publish_frames(agent.addresses()[0], 1, 1, &mut acknowledged).await, "a full spool acknowledges nothing");
    agent.stop().await.unwrap();

    assert!(sealed.upstreams[0].undelivered_bytes > 2 << 20, "{sealed:?}");
    assert_eq!(sealed.upstreams[0].undelivered_bytes, sealed.datasets[0].chain.bytes);
    assert_eq!(full.spool.undelivered_bytes, sealed.upstreams[0].undelivered_bytes);
    let used = full.spool.bytes + full.spool.undelivered_bytes;
    assert!(used <= MAX_BYTES, "{used}");
    assert!(used + 2 * FRAME_BYTES as u64 > MAX_BYTES, "{used} is not full");
    assert_eq!(acknowledged.len(), at_full);

    // A restart finds the same in the chain.
    let agent = Agent::start(config(&gateway), None).await.unwrap();
    let restarted = status(&agent).await;
    assert_eq!(restarted.upstreams[0].undelivered_bytes, sealed.upstreams[0].undelivered_bytes);
    assert!(!publish_frames(agent.addresses()[0], 15, WINDOW, &mut acknowledged).await, "still full after a restart");

    // What is delivered makes room.
    fs::create_dir(&mount).unwrap();
    until(&agent, |status| status.upstreams[0].undelivered_bytes == 0).await;
    assert_eq!(status(&agent).await.spool.undelivered_bytes, 0);
    assert!(publish_frames(agent.addresses()[0], 4, WINDOW, &mut acknowledged).await);
    agent.seal_all().await.unwrap();
    until(&agent, |status| status.upstreams[0].delivered.get("frames") == Some(&status.datasets[0].chain.sealed)).await;
    agent.stop().await.unwrap();

    let there = url.join("frames");
    let report = verify::dataset("frames", &there);
    assert!(report.ok, "{report:?}");
    assert!(frames_in(&there).is_superset(&acknowledged), "every acknowledged message is in the upstream's copy");
}

fn config(gateway: &Gateway) -> Config {
    let mut config = gateway.config();
    config.spool.max_bytes = MAX_BYTES;
    config.spool.patience = Duration::from_millis(100);
    config
}

/// Publishes window after window and keeps what is acknowledged, until the connection is closed: then false. PUBACKs come
/// in the order of the messages [MQTT-4.6.0-2].
async fn publish_frames(address: SocketAddr, windows: usize, window: usize, acknowledged: &mut Frames) -> bool {
    let (client, mut events) = connect(address, "camera");
    for _ in 0..windows {
        let mut waiting = VecDeque::new();
        for _ in 0..window {
            let frame: Vec<u8> = (0..FRAME_BYTES / 8).flat_map(|_| fastrand::u64(..).to_le_bytes()).collect();
            client.publish("frames", QoS::AtLeastOnce, false, frame.clone()).await.unwrap();
            waiting.push_back(frame);
        }
        while !waiting.is_empty() {
            match tokio::time::timeout(PATIENCE, events.poll()).await.unwrap() {
                Ok(Event::Incoming(Packet::PubAck(_))) => acknowledged.extend(waiting.pop_front()),
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }
    true
}

/// Publishes until there is no room for a single message.
async fn fill(address: SocketAddr, acknowledged: &mut Frames) {
    assert!(!publish_frames(address, 100, WINDOW, acknowledged).await, "the spool is bounded");
    while publish_frames(address, 1, 1, acknowledged).await {}
}

async fn status(agent: &Agent) -> Status {
    let shared = std::sync::Arc::clone(agent.shared());
    tokio::task::spawn_blocking(move || shared.status()).await.unwrap().unwrap()
}

async fn until(agent: &Agent, is_so: impl Fn(&Status) -> bool) {
    let wait = async {
        while !is_so(&status(agent).await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}

fn frames_in(dataset: &Path) -> Frames {
    let mut frames = Frames::new();
    for slice in fs::read_dir(dataset.join("data")).unwrap() {
        let file = File::open(slice.unwrap().path()).unwrap();
        for batch in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            let values = batch.column_by_name("value").unwrap().as_binary::<i32>();
            frames.extend(values.iter().flatten().map(<[u8]>::to_vec));
        }
    }
    frames
}
