//! Datasets through their public doors: a message in, a row or a reason out; rows in, a slice out.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod bare_text;
mod columns;
mod event_time;
mod json;
mod ledger;
mod properties;
mod slices;
mod support;
