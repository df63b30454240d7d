//! The test equipment itself: a stub of a node that is not like a node proves nothing.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod brokers;
mod ingest;
mod link;
mod push;
mod push_client;
mod tls;

use std::path::Path;

use forebay_tests::node::{NodeConfig, StubNode};

/// The stub, built with these tests.
const PROGRAM: &str = env!("CARGO_BIN_EXE_forebay-stub-node");

fn start(config: &NodeConfig) -> StubNode {
    StubNode::start_program(Path::new(PROGRAM), config).expect("the stub starts")
}
