//! What a reading costs on the wire, beside the same readings as gzipped lines of JSON. Sizes, not times: they are the same
//! in every run but for a few bytes of hashes and positions.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;
use forebay_agent::config::IngestFormat;
use forebay_agent::upstream::ingest::payload;
use forebay_tests::agent::{Agent, AgentConfig};
use forebay_tests::device::Device;
use forebay_tests::packets::{Connect, Publish, Reply, Version};
use forebay_tests::proxy::Proxy;
use serde_json::json;

use crate::{forebay, start, start_node};

const READINGS: usize = 20_000;
const DEVICES: usize = 50;
/// Fewer than the server's Receive Maximum.
const WINDOW: usize = 200;

const DATASET: &str = r#"
[batch]
age = "1h"
[[dataset]]
name = "NAME"
topics = ["site/{device}"]
event_time = "ts"
[dataset.schema]
ts = "Timestamp(ms)"
temp = "Float32"
hum = "Float32"
battery = "Float32"
"#;

#[test]
fn a_reading_costs_less_on_the_wire_than_gzipped_lines_of_json() {
    let readings = readings();
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config);
    for scheme in ["http", "odf+http"] {
        let proxy = Proxy::start(node.addr()).unwrap();
        let (url, keys) = (format!("{scheme}://{}/acme", proxy.addr()), format!("token_file = '{}'", token.display()));
        let name = if scheme == "http" { "posted" } else { "pushed" };
        let config = AgentConfig::in_dir(&dir.path().join(name))
            .with(&DATASET.replace("NAME", name))
            .with(&format!("[upstream]\nurl = '{url}'\n{keys}"));
        assert!(scheme != "http" || forebay(&config, &["provision"]).0);
        let agent = start(&config);
        publish(&agent, &readings);
        let before = proxy.bytes_up();

        assert_eq!(agent.sync().unwrap()["ok"], json!(true));

        let sent = proxy.bytes_up() - before;
        agent.stop().unwrap();
        let rows = gzipped_rows(&config, name);
        let payloads = gzip(readings.iter().map(|(_, payload)| payload.as_str()));
        println!(
            "{scheme}: {:.2} bytes a row on the wire; the same rows as NDJSON + gzip {:.2}, the payloads alone {:.2}",
            per_row(sent),
            per_row(rows),
            per_row(payloads)
        );
        assert!(sent < rows, "{sent} bytes on the wire, {rows} as gzipped rows");
        assert!(sent < payloads, "{sent} bytes on the wire, {payloads} as gzipped payloads");
    }
}

/// Devices that report once a minute what drifts slowly and is rounded as sensors round. (The random walk has a seed.)
fn readings() -> Vec<(usize, String)> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut state = vec![(215_i32, 480_i32, 372_i32); DEVICES];
    // Long ago, as far as a tolerance of the clock is concerned.
    let start = 1_767_225_600_000;
    (0..READINGS)
        .map(|number| {
            let (device, minute) = (number % DEVICES, (number / DEVICES) as u64);
            let (temp, hum, battery) = &mut state[device];
            *temp += random.i32(-2..=2);
            *hum = (*hum + random.i32(-5..=5)).clamp(200, 900);
            *battery -= i32::from(random.u32(..500) == 0);
            let ts = start + minute * 60_000 + random.u64(..2_000);
            let tenths = |value: i32| format!("{}.{}", value / 10, value.abs() % 10);
            let (temp, hum) = (tenths(*temp), tenths(*hum));
            let battery = format!("{}.{:02}", *battery / 100, *battery % 100);
            (device, format!("{{\"ts\":{ts},\"temp\":{temp},\"hum\":{hum},\"battery\":{battery}}}"))
        })
        .collect()
}

fn publish(agent: &Agent, readings: &[(usize, String)]) {
    let mut device = Device::connect(agent.mqtt_addr(), Version::V5, &Connect::clean("gateway")).unwrap();
    for window in readings.chunks(WINDOW) {
        for ((number, payload), packet_id) in window.iter().zip(1..) {
            let topic = format!("site/{number}");
            device.publish(&Publish::new(&topic, payload.as_bytes(), 1, packet_id)).unwrap();
        }
        for (_, packet_id) in window.iter().zip(1..) {
            device.expect(&Reply::PubAck { packet_id, code: 0 }).unwrap();
        }
    }
}

/// The rows of the gateway's own dataset as lines of JSON, gzipped.
fn gzipped_rows(config: &AgentConfig, name: &str) -> u64 {
    let data = config.data_dir().join("datasets").join(name).join("data");
    let mut bytes = 0;
    for slice in std::fs::read_dir(data).unwrap() {
        let path = slice.unwrap().path();
        let rows = payload::rows(&path).unwrap();
        let mut text = String::new();
        let body = payload::write(&path, 0..rows, IngestFormat::NdJson, &config.data_dir().join("scratch")).unwrap();
        body.into_file().read_to_string(&mut text).unwrap();
        bytes += gzip(text.lines());
    }
    bytes
}

fn gzip<'a>(lines: impl Iterator<Item = &'a str>) -> u64 {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    for line in lines {
        encoder.write_all(line.as_bytes()).unwrap();
        encoder.write_all(b"\n").unwrap();
    }
    encoder.finish().unwrap().len() as u64
}

#[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
fn per_row(bytes: u64) -> f64 {
    bytes as f64 / READINGS as f64
}
