//! Publish-only MQTT 3.1.1 and 5.0 broker.
//!
//! Devices publish; nobody subscribes. A PUBLISH becomes an [`inbound::Inbound`] on a bounded channel, and its PUBACK or
//! PUBREC leaves only after whoever stores has resolved its [`inbound::Ticket`] with "it is on disk". There is no disk, no
//! dataset and no routing here.
//!
//! Reading order: [`config`], [`codec`] (bytes to packets), [`packet`] and [`reason`], [`session`] (the protocol as a value:
//! packets and `now` in, actions out), [`registry`] (who is connected, takeover), [`auth`] (who may connect, and publish
//! where), `connection` (one session over one socket), `listener` with [`tls`] and `websocket`, `quota` and `connecting` (how
//! many), `broker` (what they share, and the handle that the agent holds), [`stats`].

pub mod auth;
mod broker;
pub mod codec;
pub mod config;
mod connecting;
mod connection;
pub mod inbound;
mod listener;
pub mod packet;
mod quota;
pub mod reason;
pub mod registry;
pub mod session;
pub mod stats;
pub mod tls;
pub mod topic;
mod websocket;

pub use broker::{Broker, StoredSession, Stream};
pub use connection::Peer;
pub use listener::Listener;
