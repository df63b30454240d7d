//! The agent as a whole, in this process or as the binary, over real sockets and directories.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod backlog;
mod commands;
mod ingest;
mod passwd;
mod provision;
mod rumqttc_loop;
mod running;
mod smart;
mod smart_node;
mod support;
mod upstream;
