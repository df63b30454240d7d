//! What the stories and the benchmark share: an agent as a process, devices as raw sockets, datasets read back.
//!
//! Reading order: `agent` (a `forebay run` that is ended whatever happens), `log` (its lines; an ERROR fails the test),
//! `device` (a publisher that keeps what is not acknowledged), `packets` (its bytes), `dataset` (rows of Parquet), `node` (a
//! Kamu node as far as an agent sees one), `s3` (a bucket to mirror into), `proxy` (a bad link), `tls` and `tls_client` (certificates for one
//! test).
//!
//! Brokers that an agent subscribes to: `server` (a stranger's program on a port), `mosquitto`, `rumqttd`, `broker` (one that
//! does what a test tells it, `client_packets` are what it reads), `feed` (what is published to them).

pub mod agent;
pub mod broker;
pub mod client_packets;
pub mod dataset;
pub mod device;
pub mod feed;
pub mod log;
pub mod mosquitto;
pub mod node;
pub mod packets;
pub mod proxy;
pub mod rumqttd;
pub mod s3;
pub mod server;
pub mod tls;
pub mod tls_client;
