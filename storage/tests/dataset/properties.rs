//! Any bytes: never a panic, and nothing of a refused payload in the rows.

use forebay_storage::dataset::row::RowBuilder;
use forebay_storage::dataset::spec::{DatasetSpec, Format};
use forebay_storage::position::{Offset, Seq};
use proptest::prelude::*;

use crate::support::{json, message, show_row, spec};

const ALL_TYPES: [&str; 21] = [
    "b: Bool?",
    "i8: Int8?",
    "i16: Int16?",
    "i32: Int32?",
    "i64: Int64?",
    "u8: UInt8?",
    "u16: UInt16?",
    "u32: UInt32?",
    "u64: UInt64?",
    "f32: Float32?",
    "f64: Float64?",
    "s: String?",
    "bin: Binary?",
    "d: Date?",
    "t: Timestamp?",
    "tu: Timestamp(utc)?",
    "ts: Timestamp(s)?",
    "tms: Timestamp(ms)?",
    "tus: Timestamp(us)?",
    "tns: Timestamp(ns)?",
    "j: Json?",
];

fn every_format() -> Vec<DatasetSpec> {
    let mut extra = json(&ALL_TYPES);
    extra.extra = true;
    let of = |format: Format| ALL_TYPES.map(|field| spec(format.clone(), &[field]));
    let mut specs = vec![extra, spec(Format::Csv { delimiter: b',' }, &ALL_TYPES), spec(Format::Bytes, &["v: Binary"])];
    specs.extend(of(Format::Text));
    specs.extend(of(Format::Csv { delimiter: b'\t' }));
    specs
}

/// JSON that looks like what devices send, right and wrong.
fn json_payload() -> impl Strategy<Value = String> {
    let name = prop::sample::select(
        ALL_TYPES
            .map(|field| field.split(':').next().unwrap_or_default())
            .into_iter()
            .chain(["x", "y\\n"])
            .collect::<Vec<_>>(),
    );
    let text =
        prop_oneof!["[a-z0-9:.+TZ=-]{0,30}", Just("2026-11-22T10:00:00Z".to_owned()), Just("2026-11-22".to_owned())];
    let value = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        text.prop_map(|text| format!("{text:?}")),
        prop::sample::select(vec!["null", "true", "[]", "{}", "[1,{\"a\":null}]", "1e400", "-", ""])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec((name, value), 0..6).prop_map(|members| {
        let members: Vec<_> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", members.join(","))
    })
}

proptest! {
    #[test]
    fn no_payload_panics_and_a_refused_one_leaves_no_trace(payload in prop::collection::vec(any::<u8>(), 0..200)) {
        for spec in every_format() {
            check_trace(&spec, &payload)?;
        }
    }

    #[test]
    fn no_json_panics_and_a_refused_one_leaves_no_trace(payload in json_payload()) {
        for spec in [json(&ALL_TYPES), every_format().swap_remove(0)] {
            check_trace(&spec, payload.as_bytes())?;
        }
    }

    #[test]
    fn good_rows_do_not_notice_bad_ones_between_them(payloads in prop::collection::vec(prop_oneof![
        (0..1000i32).prop_map(|n| format!(r#"{{"n":{n},"s":"{n}"}}"#)),
        json_payload(),
    ], 0..40)) {
        let spec = json(&["n: Int32", "s: String", "x: Json?"]);
        let mut all = RowBuilder::new(&spec, "gw");
        let mut good = RowBuilder::new(&spec, "gw");
        for (seq, payload) in (0..).map(Seq).zip(&payloads) {
            if all.push(seq, &message(0, payload)).is_ok() {
                good.push(seq, &message(0, payload)).unwrap();
            }
        }

        prop_assert_eq!(all.unknown_fields(), good.unknown_fields());
        prop_assert_eq!(all.take_batch(Offset(0), 0), good.take_batch(Offset(0), 0));
    }
}

/// Pushes a payload between two good ones, if it is refused, and expects the two as if alone.
fn check_trace(spec: &DatasetSpec, payload: &[u8]) -> Result<(), TestCaseError> {
    let mut builder = RowBuilder::new(spec, "gw");
    let result = builder.push(Seq(2), &message(0, payload));

    let rows = usize::from(result.is_ok());
    prop_assert_eq!(builder.len(), rows);
    let batch = builder.take_batch(Offset(0), 0);
    prop_assert_eq!(batch.num_rows(), rows);
    match result {
        Ok(_) => prop_assert!(!show_row(&batch, 0, 0).is_empty()),
        Err(error) => prop_assert!(error.to_string().chars().count() < 250),
    }
    Ok(())
}
