//! `forebay-stub-rumqttd`: rumqttd in a process of its own, so that a test can kill it, with the limits of its sample
//! configuration.

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::{Value, json};

/// A broker that keeps everything in memory.
#[derive(Parser)]
struct Args {
    /// Loopback port of MQTT 3.1.1.
    #[arg(long)]
    port: u16,
    /// Loopback port of MQTT 5.0; without it that is not spoken.
    #[arg(long)]
    port_v5: Option<u16>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let v5 = args.port_v5.map_or_else(|| json!({}), |port| json!({ "1": listener("v5-1", port) }));
    let config = serde_json::from_value(json!({
        "id": 0,
        "router": {
            "max_connections": 10_010,
            "max_outgoing_packet_count": 200,
            "max_segment_size": 104_857_600,
            "max_segment_count": 10,
        },
        "v4": { "1": listener("v4-1", args.port) },
        "v5": v5,
    }))
    .context("configure rumqttd")?;
    rumqttd::Broker::new(config).start().context("run rumqttd")
}

fn listener(name: &str, port: u16) -> Value {
    json!({
        "name": name,
        "listen": format!("127.0.0.1:{port}"),
        "next_connection_delay_ms": 1,
        "connections": {
            "connection_timeout_ms": 60_000,
            "max_payload_size": 1_048_576,
            "max_inflight_count": 1_000,
            "dynamic_filters": true,
        },
    })
}
