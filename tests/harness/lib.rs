//! What the stories and the benchmark share: an agent as a process, devices as raw sockets, datasets read back.
//!
//! Reading order: `agent` (a `forebay run` that is ended whatever happens), `log` (its lines; an ERROR fails the test),
//! `device` (a publisher that keeps what is not acknowledged), `packets` (its bytes), `dataset` (rows of Parquet), `node` (a
//! Kamu node as far as an agent sees one), `s3` (a bucket to mirror into), `proxy` (a bad link), `tls` (certificates for one
//! test).

pub mod agent;
pub mod dataset;
pub mod device;
pub mod log;
pub mod node;
pub mod packets;
pub mod proxy;
pub mod s3;
pub mod tls;
