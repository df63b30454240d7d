//! Datasets: what they declare, and how a message becomes a row.
//!
//! Reading order: [`spec`] is the declaration ([`type_word`] its words for types), [`schema`] the columns that follow from
//! it, [`decode`] reads one payload into a scratch row, [`row`] gathers whole rows into Arrow batches. `ledger_key`
//! recognises a row that is there already; [`unknown`] counts what payloads say beyond their declaration.

mod column;
pub mod decode;
mod ledger_key;
pub mod row;
pub mod schema;
pub mod spec;
pub mod type_word;
pub mod unknown;
