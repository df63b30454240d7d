//! Datasets: what they declare, and how a message becomes a row.

pub mod spec;
