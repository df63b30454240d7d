//! What a row says beside its payload.

use forebay_storage::dataset::decode::RowError;
use forebay_storage::dataset::row::RowBuilder;
use forebay_storage::dataset::spec::DatasetSpec;
use forebay_storage::dataset::unknown::UNKNOWN_NAMES_MAX;
use forebay_storage::message::source_client_id;
use forebay_storage::position::{Offset, Seq};

use crate::support::{RECEIVED_MS, json, message, show_row};

#[test]
fn a_row_carries_its_place_its_key_its_captures_and_its_envelope() {
    let mut spec = DatasetSpec::messages();
    spec.captures = vec!["site".into(), "device".into()];
    spec.envelope.clock = true;
    let mut builder = RowBuilder::new(&spec, "gw-07");

    builder.push(Seq(41), &message(2, b"\x01")).unwrap();
    builder.push(Seq(43), &message(2, b"\x02")).unwrap();
    let batch = builder.take_batch(Offset(9), RECEIVED_MS + 1_000);

    assert_eq!(
        show_row(&batch, 0, 1),
        "offset=10 op=0 system_time=2026-11-22T10:00:01.250Z event_time=2026-11-22T10:00:00.250Z gateway=gw-07 seq=43 \
         site=9 device=dev-1 payload=02 topic=site/9/dev-1/temp client_id=client-1 qos=1 retain=false \
         received_at=2026-11-22T10:00:00.250Z clock=synchronised source=null"
    );
}

#[test]
fn a_message_from_a_source_has_its_name() {
    let mut builder = RowBuilder::new(&DatasetSpec::messages(), "gw");
    let mut from_source = message(0, "x");
    from_source.client_id = source_client_id("plant");

    builder.push(Seq(0), &from_source).unwrap();

    let row = show_row(&builder.take_batch(Offset(0), 0), 0, 0);
    assert!(row.contains("client_id=plant ") && row.ends_with(" source=plant"), "{row}");
}

#[test]
fn a_batch_takes_what_was_gathered_and_leaves_nothing() {
    let mut builder = RowBuilder::new(&DatasetSpec::messages(), "gw");
    builder.push(Seq(0), &message(0, "x")).unwrap();

    assert_eq!(builder.take_batch(Offset(0), 0).num_rows(), 1);

    assert!(builder.is_empty());
    assert_eq!(builder.take_batch(Offset(1), 0).num_rows(), 0);
}

#[test]
fn captures_that_are_not_the_datasets_are_refused() {
    let mut spec = DatasetSpec::messages();
    spec.captures = vec!["site".into(), "device".into()];
    let mut builder = RowBuilder::new(&spec, "gw");
    let push = |builder: &mut RowBuilder, captures| {
        let mut message = message(2, "x");
        message.captures = captures;
        builder.push(Seq(0), &message).unwrap_err()
    };

    assert_eq!(push(&mut builder, vec![]), RowError::Captures { expected: 2, found: 0 });
    assert_eq!(push(&mut builder, vec![0..4, 0..18]), RowError::Topic, "past the end");
    let (start, end) = (9, 3);
    assert_eq!(push(&mut builder, vec![0..4, start..end]), RowError::Topic, "backwards");
    assert!(builder.is_empty());
}

#[test]
fn unknown_fields_are_counted_by_name_within_a_bound() {
    let mut builder = RowBuilder::new(&json(&["a: Int32"]), "gw");
    for n in 0..UNKNOWN_NAMES_MAX + 10 {
        let payload = format!(r#"{{"a":1,"again":1,"name-{n}":2}}"#);
        builder.push(Seq(0), &message(0, payload)).unwrap();
    }
    builder.push(Seq(0), &message(0, r#"{"a":"bad","refused":1}"#)).unwrap_err();

    let unknown = builder.unknown_fields();

    assert_eq!(unknown.by_name["again"], UNKNOWN_NAMES_MAX as u64 + 10);
    assert_eq!(unknown.by_name.len(), UNKNOWN_NAMES_MAX);
    assert_eq!(unknown.others, 11);
    assert!(!unknown.by_name.contains_key("refused"));
}
