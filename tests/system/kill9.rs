//! The one promise, under `kill -9`: what was acknowledged is in the dataset, and QoS 2 is there once.
//!
//! Devices with persistent sessions publish as fast as their window allows. After a random number of acknowledgements the
//! agent is killed and started again on the same directory; the devices come back and send again, with DUP, what was not
//! acknowledged, as a real client does. `FOREBAY_KILLS` sets how often, `FOREBAY_SEED` repeats a run.

use std::collections::BTreeMap;

use crate::publisher::{Publisher, publish_meanwhile};
use crate::{finish, from_env, sealing_soon, start};

const DEVICES: u32 = 12;
/// A round is cut after at most so many acknowledgements of all devices together.
const ACKS_A_ROUND_MAX: usize = 3_000;

#[test]
fn what_was_acknowledged_survives_kill_9_and_qos_2_is_stored_once() {
    let kills: u32 = from_env("FOREBAY_KILLS", 3);
    let seed: u64 = from_env("FOREBAY_SEED", fastrand::u64(..));
    println!("FOREBAY_KILLS={kills} FOREBAY_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let config = sealing_soon(dir.path());
    let mut devices: Vec<Publisher> = (0..DEVICES).map(Publisher::new).collect();

    for _ in 0..kills {
        let agent = start(&config);
        let cut_after = random.usize(1..ACKS_A_ROUND_MAX);
        devices =
            publish_meanwhile(devices, agent.mqtt_addr(), cut_after, || agent.kill().expect("no ERROR in the log"));
    }
    let agent = start(&config);
    for device in &mut devices {
        device.settle(agent.mqtt_addr()).expect("the last round acknowledges everything");
    }
    let rows = finish(agent, &config, "messages");

    let mut stored: BTreeMap<String, u32> = BTreeMap::new();
    for payload in rows.texts("payload").unwrap() {
        *stored.entry(payload).or_default() += 1;
    }
    let acknowledged: Vec<&String> = devices.iter().flat_map(|device| &device.acknowledged).collect();
    let lost = acknowledged.iter().filter(|payload| !stored.contains_key(**payload)).count();
    let twice = |qos: u8| {
        let prefix = format!("qos{qos}");
        stored.iter().filter(|(payload, count)| payload.starts_with(&prefix) && **count > 1).count()
    };
    println!(
        "kill -9 × {kills}: acknowledged {}, in dataset {}, lost {lost}; stored twice: QoS 1 {}, QoS 2 {}",
        acknowledged.len(),
        rows.len(),
        twice(1),
        twice(2),
    );
    assert_eq!(lost, 0, "acknowledged messages are in the dataset");
    assert_eq!(twice(2), 0, "QoS 2 is stored once");
    assert_eq!(stored.len(), acknowledged.len(), "nothing is stored that was not sent");
    assert!(devices.iter().all(|device| device.sessions_lost == 0), "sessions survive kill -9");
}
