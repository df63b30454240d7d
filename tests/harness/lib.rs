//! What the stories and the benchmark share: an agent as a process, devices as raw sockets, datasets read back.
//!
//! Reading order: `agent` (a `forebay run` that is ended whatever happens), `log` (its lines; an ERROR fails the test),
//! `device` (a publisher that keeps what is not acknowledged), `packets` (its bytes), `dataset` (rows of Parquet),
//! `s3` (a bucket to mirror into).

pub mod agent;
pub mod dataset;
pub mod device;
pub mod log;
pub mod packets;
pub mod s3;
