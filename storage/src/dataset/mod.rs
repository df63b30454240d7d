//! Datasets: what they declare, and how a message becomes a row.
//!
//! [`spec`] is the declaration, [`schema`] the columns that follow from it, [`type_word`] the words for column types.

pub mod schema;
pub mod spec;
pub mod type_word;
