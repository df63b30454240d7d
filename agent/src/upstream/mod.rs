//! Upstreams: where sealed datasets go.
//!
//! ```text
//! sealer ──bell──▶ deliver (a thread an upstream) ──▶ carrier ─┬─▶ repository: directory, bucket
//!                     │  schedule, backoff, outcome (pure)      ├─▶ smart: ODF Smart Transfer Protocol
//!                     │                                         └─▶ ingest: rows by POST
//!                     └─▶ position in the spool ─▶ backlog (what waits) and retention (what may go)
//! ```
//!
//! Repositories and smart push bring the chain itself, and the head there decides what is missing: nothing else has to be
//! remembered to be exactly once. Push ingest brings rows, and the node's Ledger by (`gateway`, `seq`) makes a repeated
//! request a no-op. Every position that the spool keeps is noted after the upstream has what it stands for, so a crash in
//! between costs a repetition and never a row.
//!
//! Reading order: [`deliver`] the loop, [`outcome`] what failures mean, [`schedule`] and [`backoff`] when, [`repository`],
//! [`retention`], [`backlog`], [`http`] and [`node`] below the kinds that speak HTTP, [`report`] what others see.

pub mod backlog;
pub mod backoff;
pub mod bell;
#[cfg(feature = "s3")]
mod bucket;
#[cfg(not(feature = "s3"))]
#[path = "bucket_left_out.rs"]
mod bucket;
mod carrier;
pub mod deliver;
pub mod http;
pub mod ingest;
pub mod node;
pub mod outcome;
mod pace;
mod patience;
pub mod provision;
pub mod report;
pub mod repository;
pub mod retention;
pub mod schedule;
#[cfg(feature = "smart-push")]
pub mod smart;
#[cfg(not(feature = "smart-push"))]
#[path = "smart_left_out.rs"]
pub mod smart;
