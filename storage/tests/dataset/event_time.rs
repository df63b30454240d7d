//! Event time: a device with a broken clock must not poison the watermark.

use std::time::Duration;

use forebay_storage::dataset::decode::RowError;
use forebay_storage::dataset::row::{RowBuilder, RowFacts};
use forebay_storage::dataset::spec::DatasetSpec;
use forebay_storage::position::Seq;

use crate::support::{RECEIVED_MS, json, message, push};

fn by_field(word: &str) -> DatasetSpec {
    let mut spec = json(&[&format!("ts: {word}")]);
    spec.event_time = Some("ts".into());
    spec.event_time_tolerance = Duration::from_secs(60);
    spec
}

fn event_time(ms: i64) -> Result<i64, RowError> {
    push(&by_field("Timestamp(ms)"), format!(r#"{{"ts":{ms}}}"#)).map(|facts| facts.event_time_ms)
}

#[test]
fn without_a_field_the_event_time_is_the_time_of_receipt() {
    let facts = push(&json(&["a: Int32"]), r#"{"a":1}"#).unwrap();

    assert_eq!(facts, RowFacts { event_time_ms: RECEIVED_MS, ledger_key: None });
}

#[test]
fn an_event_may_be_as_far_ahead_of_its_receipt_as_the_tolerance() {
    assert_eq!(event_time(RECEIVED_MS + 60_000), Ok(RECEIVED_MS + 60_000));

    let reason = event_time(RECEIVED_MS + 60_001).unwrap_err().to_string();

    assert_eq!(
        reason,
        "event time 2026-11-22T10:01:00.251Z is later than receipt 2026-11-22T10:00:00.250Z plus 60000 ms: \
         is the device's clock right?"
    );
}

#[test]
fn an_event_may_be_old_but_not_before_1970() {
    assert_eq!(event_time(0), Ok(0));

    assert_eq!(event_time(-1), Err(RowError::EventTimeBefore1970 { event_time_ms: -1 }));
}

#[test]
fn a_receipt_by_an_unsynchronised_clock_judges_no_event() {
    let spec = by_field("Timestamp(ms)");
    let mut message = message(0, format!(r#"{{"ts":{RECEIVED_MS}}}"#));
    message.received_at_us = 12_000_000;
    message.flags.clock_synchronised = false;

    let facts = RowBuilder::new(&spec, "gw").push(Seq(1), &message);

    assert_eq!(facts.map(|facts| facts.event_time_ms), Ok(RECEIVED_MS));
}

#[test]
fn a_date_is_an_event_at_midnight_utc() {
    let spec = by_field("Date");

    let today = push(&spec, r#"{"ts":"2026-11-22"}"#).unwrap();
    let tomorrow = push(&spec, r#"{"ts":"2026-11-23"}"#);

    assert_eq!(today.event_time_ms % 86_400_000, 0);
    assert!(matches!(tomorrow, Err(RowError::EventTimeAhead { .. })));
}

#[test]
fn no_time_of_receipt_makes_it_panic() {
    for received_at_us in [i64::MIN, -1, i64::MAX] {
        let mut message = message(0, r#"{"ts":0}"#);
        message.received_at_us = received_at_us;

        let mut builder = RowBuilder::new(&by_field("Timestamp(ms)"), "gw");

        assert_eq!(builder.push(Seq(1), &message).map(|facts| facts.event_time_ms), Ok(0));
    }
}
