//! A spec is refused for each rule it breaks, with a text that says what to do.

use super::*;

#[test]
fn the_default_dataset_is_valid_and_keeps_the_payload_as_it_came() {
    let spec = DatasetSpec::messages();

    assert_eq!(spec.validate(), Ok(()));
    assert_eq!(spec.fields, [FieldSpec::required("payload", DataType::Binary)]);
}

#[test]
fn a_dataset_name_follows_the_odf_grammar() {
    for name in ["a", "temperature", "plant-1.temp", "9lives"] {
        assert_eq!(json(|spec| spec.name = name.into()), Ok(()), "{name}");
    }
    for name in ["", "-a", "a-", "a--b", "a..b", "../a", "a/b", "a_b", "\u{e9}t\u{e9}", &"a".repeat(101)] {
        assert_eq!(json(|spec| spec.name = name.into()), Err(SpecError::Name(name.into())), "{name}");
    }
}

#[test]
fn a_column_name_belongs_to_one_column() {
    for reserved in ["offset", "op", "system_time", "gateway", "seq", "event_time"] {
        assert!(is_duplicate(&json(|spec| spec.fields.push(text(reserved)))), "{reserved}");
    }
    assert!(is_duplicate(&json(|spec| spec.captures = vec!["temp".into()])));
    assert!(is_duplicate(&json(|spec| spec.fields.push(text("temp")))));
    let both = |spec: &mut DatasetSpec| {
        spec.envelope.topic = true;
        spec.fields.push(text("topic"));
    };
    assert!(is_duplicate(&json(both)));
    let both = |spec: &mut DatasetSpec| {
        spec.extra = true;
        spec.fields.push(text("extra"));
    };
    assert!(is_duplicate(&json(both)));
}

#[test]
fn names_differing_in_case_are_two_columns_and_unused_reserved_names_are_free() {
    assert_eq!(json(|spec| spec.fields.extend([text("Temp"), text("topic"), text("extra")])), Ok(()));
}

#[test]
fn the_event_time_column_takes_the_name_of_its_field() {
    let renamed = |spec: &mut DatasetSpec| {
        spec.fields.push(FieldSpec::required("event_time", DataType::Date));
        spec.event_time = Some("event_time".into());
    };

    assert_eq!(json(renamed), Ok(()));
}

#[test]
fn event_time_must_name_a_required_time() {
    assert!(matches!(json(|spec| spec.event_time = Some("nope".into())), Err(SpecError::EventTimeUnknown(_))));
    assert!(matches!(json(|spec| spec.event_time = Some("temp".into())), Err(SpecError::EventTimeField { .. })));
    let optional = |spec: &mut DatasetSpec| {
        spec.fields.push(FieldSpec::parse("ts", "Timestamp?").unwrap());
        spec.event_time = Some("ts".into());
    };
    let message = json(optional).unwrap_err().to_string();
    assert!(message.ends_with("must be a required Timestamp or Date, not Timestamp?"), "{message}");
}

#[test]
fn a_column_name_is_bounded_and_printable() {
    for name in ["", "a\nb", "\0", &"a".repeat(129)] {
        assert!(matches!(json(|spec| spec.fields.push(text(name))), Err(SpecError::ColumnName(_))), "{name:?}");
    }
    assert_eq!(json(|spec| spec.fields.push(text("Temp. \u{b0}C"))), Ok(()));
}

#[test]
fn text_and_bytes_have_exactly_one_field() {
    let one = |format: Format| json(|spec| spec.fields = take(&mut spec.format, format));
    assert_eq!(one(Format::Text), Ok(()));
    assert_eq!(one(Format::Bytes), Ok(()));

    let none = |format: Format| json(|spec| (spec.format, spec.fields) = (format, vec![]));
    assert_eq!(none(Format::Text), Err(SpecError::OneField("text", 0)));
    assert_eq!(none(Format::Bytes), Err(SpecError::OneField("bytes", 0)));
    assert_eq!(none(Format::Json), Err(SpecError::NoFields));
    assert_eq!(none(Format::Csv { delimiter: b',' }), Err(SpecError::NoFields));
    assert!(matches!(json(|spec| spec.format = Format::Bytes), Err(SpecError::BytesType(..))));
}

#[test]
fn a_csv_delimiter_is_one_printable_character() {
    for delimiter in [b',', b';', b'\t', b'|', b' '] {
        assert_eq!(json(|spec| spec.format = Format::Csv { delimiter }), Ok(()));
    }
    for delimiter in [b'"', b'\n', b'\r', 0, 0xe9] {
        assert!(json(|spec| spec.format = Format::Csv { delimiter }).is_err(), "{delimiter}");
    }
}

#[test]
fn extra_needs_json_and_is_enough_for_it() {
    assert_eq!(json(|spec| (spec.fields, spec.extra) = (vec![], true)), Ok(()));
    let csv = |spec: &mut DatasetSpec| (spec.format, spec.extra) = (Format::Csv { delimiter: b',' }, true);
    assert_eq!(json(csv), Err(SpecError::ExtraWithoutJson));
}

#[test]
fn ledger_key_columns_exist_and_are_never_optional() {
    let key = |names: &[&str]| {
        let primary_key = names.iter().map(|name| (*name).to_owned()).collect();
        json(|spec| {
            spec.captures = vec!["device".into()];
            spec.fields.push(FieldSpec::parse("battery", "Float32?").unwrap());
            spec.fields.push(FieldSpec::parse("raw", "Json").unwrap());
            spec.merge = Merge::Ledger { primary_key };
        })
    };

    assert_eq!(key(&["device", "temp"]), Ok(()));
    assert_eq!(key(&[]), Err(SpecError::EmptyKey));
    assert_eq!(key(&["device", "device"]), Err(SpecError::RepeatedKey("device".into())));
    assert_eq!(key(&["seq"]), Err(SpecError::UnknownKey("seq".into())));
    assert_eq!(key(&["battery"]), Err(SpecError::OptionalKey("battery".into())));
    assert_eq!(key(&["raw"]), Err(SpecError::JsonKey("raw".into())));
}

#[test]
fn a_reserved_name_is_answered_with_a_way_out() {
    let message = json(|spec| spec.fields.push(text("seq"))).unwrap_err().to_string();

    assert_eq!(
        message,
        "column name \"seq\" is taken: a system column and a payload field both have it; rename one, \
         or leave it undeclared and set extra = true to keep it"
    );
}

/// Validates a JSON dataset of one Float32 field `temp`, changed.
fn json(change: impl FnOnce(&mut DatasetSpec)) -> Result<(), SpecError> {
    let mut spec = DatasetSpec {
        name: "temperature".into(),
        format: Format::Json,
        fields: vec![FieldSpec::required("temp", DataType::Float32)],
        envelope: Envelope::default(),
        ..DatasetSpec::messages()
    };
    change(&mut spec);
    spec.validate()
}

fn take(format: &mut Format, new: Format) -> Vec<FieldSpec> {
    *format = new;
    format.default_fields().unwrap()
}

fn text(name: &str) -> FieldSpec {
    FieldSpec::required(name, DataType::String)
}

fn is_duplicate(result: &Result<(), SpecError>) -> bool {
    matches!(result, Err(SpecError::DuplicateColumn { .. }))
}
