//! CSV, text and bytes: formats whose values are bare text.

use forebay_storage::dataset::spec::{DatasetSpec, Format};

use crate::support::{row, spec, value};

fn csv(fields: &[&str]) -> DatasetSpec {
    spec(Format::Csv { delimiter: b',' }, fields)
}

#[test]
fn a_csv_payload_is_one_record_in_schema_order() {
    let spec = csv(&["device: String", "temp: Float32", "ts: Timestamp(s)?"]);

    assert_eq!(row(&spec, "a,21.5,1795341600"), "device=a temp=21.5 ts=2026-11-22T10:00:00Z");
    assert_eq!(row(&spec, "a, 21.5 ,\r\n"), "device=a temp=21.5 ts=null");
    assert_eq!(row(&spec, "\"a,\"\"b\"\"\n\",1,"), "device=a,\"b\"\n temp=1.0 ts=null");
    assert_eq!(row(&spec, ",1,"), "device= temp=1.0 ts=null");
}

#[test]
fn a_csv_payload_of_another_shape_is_refused() {
    let spec = csv(&["a: Int32", "b: Int32"]);
    let table = [
        ("", "the payload must be one CSV record, found none"),
        ("\n\n", "the payload must be one CSV record, found none"),
        ("1,2\n3,4", "the payload must be one CSV record, found more"),
        ("1", "the CSV record has 1 fields, 2 are declared"),
        ("1,2,3", "the CSV record has at least 3 fields, 2 are declared"),
        ("1,2,3,4,5", "the CSV record has at least 3 fields, 2 are declared"),
        ("1,\"2", "a quote in the CSV record is never closed"),
        ("1,", "field \"b\": is required, but missing"),
        ("1,x", "field \"b\": expected Int32, found \"x\""),
        ("1,2.5", "field \"b\": 2.5 is not exactly a whole number, as Int32 needs"),
    ];
    for (payload, reason) in table {
        assert_eq!(row(&spec, payload), format!("refused: {reason}"), "{payload:?}");
    }
    assert_eq!(row(&spec, "1,2\n"), "a=1 b=2");
    assert_eq!(row(&spec, b"1,\xff"), "refused: the payload is not UTF-8 from byte 2 on");
}

#[test]
fn a_csv_delimiter_can_be_chosen() {
    let spec = spec(Format::Csv { delimiter: b';' }, &["a: Float64", "b: String"]);

    assert_eq!(row(&spec, "1.5;x,y"), "a=1.5 b=x,y");
}

#[test]
fn a_text_payload_is_one_value_of_the_declared_type() {
    let becomes = |word: &str, payload: &str| value(&spec(Format::Text, &[&format!("value: {word}")]), payload);
    let table = [
        ("String", " as it is\n", " as it is\n"),
        ("String", "", ""),
        ("String?", "", "null"),
        ("Float32", "21.5\n", "21.5"),
        ("Float64", "-1e-3", "-0.001"),
        ("Int8", " 7 ", "7"),
        ("UInt64", "18446744073709551615", "18446744073709551615"),
        ("Int32?", " ", "null"),
        ("Bool", "true", "true"),
        ("Date", "2026-11-22\n", "2026-11-22"),
        ("Timestamp", "2026-11-22T10:00:00Z", "2026-11-22T10:00:00Z"),
        ("Timestamp(utc)", "2026-11-22 10:00:00.5\n", "2026-11-22T10:00:00.500Z"),
        ("Timestamp(ms)", "1795341600123", "2026-11-22T10:00:00.123Z"),
        ("Binary", "AP8=", "00ff"),
        ("Json", " {\"a\": 1} ", "{\"a\": 1}"),
    ];
    for (word, payload, expected) in table {
        assert_eq!(becomes(word, payload), expected, "{payload:?} into {word}");
    }
}

#[test]
fn text_that_is_not_of_the_declared_type_is_refused() {
    let becomes = |word: &str, payload: &str| row(&spec(Format::Text, &[&format!("value: {word}")]), payload);
    let table = [
        ("Float64", "inf", "expected Float64, found \"inf\""),
        ("Float64", "-Infinity", "expected Float64, found \"-Infinity\""),
        ("Float64", "NaN", "expected Float64, found \"NaN\""),
        ("Float64", "1e400", "\"1e400\" is out of range for Float64"),
        ("Float64", "21,5", "expected Float64, found \"21,5\""),
        ("Float64", "", "is required, but missing"),
        ("Int8", "128", "128 is out of range for Int8"),
        ("Bool", "1", "expected Bool, found \"1\""),
        ("Bool", "True", "expected Bool, found \"True\""),
        ("Timestamp(ms)", "2026-11-22T10:00:00Z", "expected Timestamp(ms), found \"2026-11-22T10:00:00Z\""),
        ("Timestamp", "1795341600", "\"1795341600\" is not an RFC 3339 instant with offset, like 2026-11-22T10:00:00Z"),
        ("Json", "{\"a\"}", "is not JSON: expected `:` at line 1 column 5"),
        ("Binary", "%", "\"%\" is not base64 (RFC 4648, padded)"),
    ];
    for (word, payload, reason) in table {
        assert_eq!(becomes(word, payload), format!("refused: field \"value\": {reason}"), "{payload:?} into {word}");
    }
}

#[test]
fn a_bytes_payload_is_kept_as_it_is() {
    assert_eq!(value(&spec(Format::Bytes, &["value: Binary"]), [0, 255]), "00ff");
    assert_eq!(value(&spec(Format::Bytes, &["value: Binary"]), []), "");
    assert_eq!(value(&spec(Format::Bytes, &["value: Binary?"]), []), "null");
}
