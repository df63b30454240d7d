//! Upstreams: where sealed datasets go.
//!
//! One thread an upstream runs [`deliver`]: wait for something sealed (or for the time to try again), bring every dataset
//! as far as it goes, note the position in the spool. What a kind of upstream is sits behind [`UpstreamKind`]; all of
//! them deliver whole chains, in order, and can be interrupted anywhere.
//!
//! [`UpstreamKind`]: crate::config::UpstreamKind

pub mod backlog;
pub mod backoff;
pub mod deliver;
pub mod http;
pub mod ingest;
pub mod node;
pub mod outcome;
mod patience;
pub mod provision;
pub mod repository;
pub mod schedule;
pub mod smart;
