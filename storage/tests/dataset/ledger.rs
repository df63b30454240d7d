//! The key by which a Ledger recognises a row.

use forebay_storage::dataset::row::RowBuilder;
use forebay_storage::dataset::spec::{DatasetSpec, Merge};
use forebay_storage::position::{Offset, Seq};

use crate::support::{json, message, push, show_row};

fn ledger(fields: &[&str], primary_key: &[&str]) -> DatasetSpec {
    let mut spec = json(fields);
    spec.merge = Merge::Ledger { primary_key: primary_key.iter().map(|name| (*name).to_owned()).collect() };
    spec
}

fn key(spec: &DatasetSpec, payload: &str) -> [u8; 16] {
    push(spec, payload).unwrap().ledger_key.unwrap()
}

#[test]
fn equal_key_values_give_equal_keys_however_they_are_written() {
    let spec = ledger(&["ts: Timestamp", "n: Int64", "x: Float64", "other: String?"], &["ts", "n", "x"]);
    let first = key(&spec, r#"{"ts":"2026-11-22T10:00:00Z","n":1,"x":0.0,"other":"a"}"#);

    let again = key(&spec, r#"{"x":-0.0,"n":1.0,"ts":"2026-11-22T11:00:00.0004+01:00"}"#);

    assert_eq!(first, again);
}

#[test]
fn different_key_values_give_different_keys() {
    let spec = ledger(&["a: String", "b: String"], &["a", "b"]);

    assert_ne!(key(&spec, r#"{"a":"ab","b":"c"}"#), key(&spec, r#"{"a":"a","b":"bc"}"#));
    assert_ne!(key(&spec, r#"{"a":"","b":"x"}"#), key(&spec, r#"{"a":"x","b":""}"#));
}

#[test]
fn a_capture_can_be_a_key_column() {
    let mut spec = ledger(&["n: Int32"], &["device", "n"]);
    spec.captures = vec!["site".into(), "device".into()];
    let mut builder = RowBuilder::new(&spec, "gw");
    let mut other = message(2, r#"{"n":1}"#);
    other.captures[1] = 7..10;

    let first = builder.push(Seq(1), &message(2, r#"{"n":1}"#)).unwrap();
    let second = builder.push(Seq(2), &other).unwrap();

    assert_ne!(first.ledger_key, second.ledger_key);
}

#[test]
fn a_key_is_part_of_the_disk_format_and_does_not_change() {
    let spec = ledger(&["a: String", "n: Int32"], &["a", "n"]);

    let hex: String = key(&spec, r#"{"a":"pump","n":7}"#).iter().map(|byte| format!("{byte:02x}")).collect();

    assert_eq!(hex, "bd4635b80b710a2a7bce6e93ddcf9bba");
}

#[test]
fn a_row_that_the_ledger_has_is_dropped_without_a_trace() {
    let spec = ledger(&["n: Int32"], &["n"]);
    let mut builder = RowBuilder::new(&spec, "gw");
    let (first, again) = (message(0, r#"{"n":1}"#), message(0, r#"{"n":1,"unknown":2}"#));
    let seen = builder.push(Seq(1), &first).unwrap().ledger_key;

    let facts = builder.decode(Seq(2), &again).unwrap().facts();

    assert_eq!(facts.ledger_key, seen);
    assert_eq!(builder.len(), 1);
    assert!(builder.unknown_fields().by_name.is_empty());
    assert_eq!(show_row(&builder.take_batch(Offset(0), 0), 5, 0), "seq=1 n=1");
}
