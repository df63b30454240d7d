//! The disk of Forebay: the spool that acknowledges, and the datasets it is sealed into. No socket, no MQTT types.
//!
//! Reading order: [`position`], [`message`], [`spool`] (the log in redb, group commit), [`dead_letter`], [`dataset`] (message
//! to row), [`batcher`] (when to cut), [`mod@slice`] (Parquet), [`odf`] (the chain of blocks), [`sealer`] (spool to slice to
//! block), [`durable_fs`].

pub mod batcher;
pub mod dataset;
pub mod dead_letter;
pub mod durable_fs;
pub mod message;
pub mod odf;
pub mod position;
pub mod sealer;
pub mod slice;
pub mod spool;
