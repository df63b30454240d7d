//! Publish-only MQTT 3.1.1 and 5.0 broker.
//!
//! Devices publish; nobody subscribes. A PUBLISH becomes an [`inbound::Inbound`] on a bounded channel, and its PUBACK or
//! PUBREC leaves only after whoever stores has resolved its [`inbound::Ticket`] with "it is on disk". There is no disk, no
//! dataset and no routing here.
//!
//! Reading order: [`config`], [`codec`] (bytes to packets), [`packet`] and [`reason`], [`session`] (the protocol as a value:
//! packets and `now` in, actions out), [`registry`] (who is connected, takeover), `connection` (one session over one
//! socket), `listener`, `broker` (what they share, and the handle that the agent holds), [`stats`].

mod broker;
pub mod codec;
pub mod config;
mod connection;
pub mod inbound;
mod listener;
pub mod packet;
pub mod reason;
pub mod registry;
pub mod session;
pub mod stats;
pub mod topic;

pub use broker::{Broker, StoredSession};
pub use connection::Peer;
pub use listener::Listener;
