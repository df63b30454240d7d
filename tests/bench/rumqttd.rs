//! rumqttd in a process of its own, with the limits of its sample configuration.

use anyhow::Result;

/// Serves MQTT 3.1.1 on a loopback port until killed.
#[cfg(feature = "rumqttd")]
pub(crate) fn serve(port: u16) -> Result<()> {
    use anyhow::Context;
    let config = serde_json::from_value(serde_json::json!({
        "id": 0,
        "router": {
            "max_connections": 10_010,
            "max_outgoing_packet_count": 200,
            "max_segment_size": 104_857_600,
            "max_segment_count": 10,
        },
        "v4": { "1": {
            "name": "v4-1",
            "listen": format!("127.0.0.1:{port}"),
            "next_connection_delay_ms": 1,
            "connections": {
                "connection_timeout_ms": 60_000,
                "max_payload_size": 1_048_576,
                "max_inflight_count": 1_000,
                "dynamic_filters": true,
            },
        } },
    }))
    .context("configure rumqttd")?;
    rumqttd::Broker::new(config).start().context("run rumqttd")
}

/// Says how to get it.
#[cfg(not(feature = "rumqttd"))]
pub(crate) fn serve(_port: u16) -> Result<()> {
    anyhow::bail!("built without rumqttd; build with `--features rumqttd`")
}
