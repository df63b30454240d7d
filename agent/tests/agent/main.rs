//! The agent as a whole, in this process or as the binary, over real sockets and directories.

mod commands;
mod running;
mod support;
mod upstream;
