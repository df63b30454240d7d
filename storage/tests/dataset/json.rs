//! What a JSON payload must say to become a row.

use crate::support::{json, push, row, value};

/// Shows what `{"v": <json>}` becomes in a field of a type.
fn becomes(word: &str, json_value: &str) -> String {
    value(&json(&[&format!("v: {word}")]), format!(r#"{{"v":{json_value}}}"#))
}

#[track_caller]
fn accepted(word: &str, table: &[(&str, &str)]) {
    for (json_value, expected) in table {
        assert_eq!(&becomes(word, json_value), expected, "{json_value} into {word}");
    }
}

#[track_caller]
fn refused(word: &str, table: &[(&str, &str)]) {
    for (json_value, reason) in table {
        let expected = format!("refused: field \"v\": {reason}");
        assert_eq!(becomes(word, json_value), expected, "{json_value} into {word}");
    }
}

#[test]
fn booleans_are_true_and_false_only() {
    accepted("Bool", &[("true", "true"), ("false", "false")]);
    refused(
        "Bool",
        &[
            ("1", "expected Bool, found 1"),
            ("\"true\"", "expected Bool, found the text \"true\""),
            ("null", "is required, but null"),
        ],
    );
}

#[test]
fn whole_numbers_fill_their_type_and_no_more() {
    let ranges = [
        ("Int8", "-128", "127", "-129", "128"),
        ("Int16", "-32768", "32767", "-32769", "32768"),
        ("Int32", "-2147483648", "2147483647", "-2147483649", "2147483648"),
        ("UInt8", "0", "255", "-1", "256"),
        ("UInt16", "0", "65535", "-1", "65536"),
        ("UInt32", "0", "4294967295", "-1", "4294967296"),
        ("Int64", "-9223372036854775808", "9223372036854775807", "", "9223372036854775808"),
        ("UInt64", "0", "18446744073709551615", "-1", ""),
    ];
    for (word, min, max, below, above) in ranges {
        accepted(word, &[(min, min), (max, max)]);
        for outside in [below, above].into_iter().filter(|text| !text.is_empty()) {
            refused(word, &[(outside, &format!("{outside} is out of range for {word}"))]);
        }
    }
    refused(
        "UInt64",
        &[("18446744073709551616", "1.8446744073709552e19 is not exactly a whole number, as UInt64 needs")],
    );
}

#[test]
fn an_integer_is_never_cut_or_converted() {
    accepted("Int32", &[("7", "7"), ("1.0", "1"), ("-0.0", "0"), ("1e3", "1000")]);
    refused(
        "Int32",
        &[
            ("1.5", "1.5 is not exactly a whole number, as Int32 needs"),
            ("1e300", "1e300 is not exactly a whole number, as Int32 needs"),
            ("\"7\"", "expected Int32, found the text \"7\""),
            ("true", "expected Int32, found true"),
            ("[1]", "expected Int32, found an array"),
            ("{}", "expected Int32, found an object"),
        ],
    );
}

#[test]
fn floats_keep_every_digit_they_can_and_are_finite() {
    accepted("Float64", &[("1", "1.0"), ("5.0364397108843537", "5.036439710884354"), ("-1e-3", "-0.001")]);
    accepted("Float32", &[("21.5", "21.5"), ("16777217", "16777216.0")]);
    refused("Float32", &[("1e39", "1e39 is out of range for Float32")]);
    refused("Float64", &[("\"21.5\"", "expected Float64, found the text \"21.5\"")]);
    assert_eq!(
        becomes("Float64", "1e400"),
        "refused: not JSON: number out of range at line 1 column 10, in field \"v\""
    );
    assert!(becomes("Float64", "NaN").starts_with("refused: not JSON: "));
}

#[test]
fn text_is_text_and_binary_is_padded_base64() {
    accepted("String", &[("\"\"", ""), (r#""a\n\u00e9""#, "a\n\u{e9}")]);
    refused("String", &[("1", "expected String, found 1"), ("null", "is required, but null")]);
    accepted("Binary", &[("\"\"", ""), ("\"AP8=\"", "00ff")]);
    refused(
        "Binary",
        &[("\"AP8\"", "\"AP8\" is not base64 (RFC 4648, padded)"), ("\"*\"", "\"*\" is not base64 (RFC 4648, padded)")],
    );
    assert!(becomes("String", r#""\ud800""#).starts_with("refused: not JSON: "), "a lone surrogate");
    assert!(becomes("String", "\"a\nb\"").starts_with("refused: not JSON: "), "a raw line feed");
}

#[test]
fn a_timestamp_is_rfc_3339_with_an_offset() {
    accepted(
        "Timestamp",
        &[
            ("\"2026-11-22T10:00:00Z\"", "2026-11-22T10:00:00Z"),
            ("\"2026-11-22T12:00:00.123456789+02:00\"", "2026-11-22T10:00:00.123Z"),
            ("\"1969-12-31T23:59:59.9999Z\"", "1969-12-31T23:59:59.999Z"),
        ],
    );
    let offset = "is not an RFC 3339 instant with offset, like 2026-11-22T10:00:00Z";
    for text in ["2026-11-22", "2026-11-22 10:00:00", "2026-11-22T10:00:00", "yesterday", "", "0000-01-01T00:00:00Z"] {
        refused("Timestamp", &[(&format!("{text:?}"), &format!("{text:?} {offset}"))]);
    }
    let units = "; for numbers declare Timestamp(s), Timestamp(ms), Timestamp(us) or Timestamp(ns)";
    refused("Timestamp", &[("1795341600", &format!("expected RFC 3339 text, found 1795341600{units}"))]);
}

#[test]
fn a_timestamp_whose_offset_may_be_missing_is_utc_then() {
    accepted(
        "Timestamp(utc)",
        &[
            ("\"2026-11-22T10:00:00\"", "2026-11-22T10:00:00Z"),
            ("\"2026-11-25T11:00:24.123456\"", "2026-11-25T11:00:24.123Z"),
            ("\"2026-11-25 11:00:24.1\"", "2026-11-25T11:00:24.100Z"),
            ("\"2026-11-25t11:00:24.12345678901234567890\"", "2026-11-25T11:00:24.123Z"),
            ("\"1969-12-31T23:59:59.9999\"", "1969-12-31T23:59:59.999Z"),
            ("\"2026-12-31T23:59:60.5\"", "2027-01-01T00:00:00.500Z"),
            ("\"2026-12-31T23:59:60.5Z\"", "2027-01-01T00:00:00.500Z"),
            ("\"2026-11-22T10:00:00Z\"", "2026-11-22T10:00:00Z"),
            ("\"2026-11-22T12:00:00.123456789+02:00\"", "2026-11-22T10:00:00.123Z"),
        ],
    );
    let instant = "is not an instant like 2026-11-22T10:00:00Z or, in UTC, 2026-11-22T10:00:00";
    for text in [
        "2026-11-22",
        "2026-11-22T10:00",
        "2026-11-22T10:00:00.",
        "2026-11-22T10:00:00.1e3",
        "2026-11-22T24:00:00",
        "2026-11-22_10:00:00",
        "2026-02-29T10:00:00",
        "2026-11-2éT10:00:00",
        "+026-11-22T10:00:00",
        "2026-11-22T10:00:00 ",
        "2026-11-22T10:00:00+0200",
        "0000-01-01T00:00:00",
        "now",
        "",
    ] {
        refused("Timestamp(utc)", &[(&format!("{text:?}"), &format!("{text:?} {instant}"))]);
    }
    let units = "; for numbers declare Timestamp(s), Timestamp(ms), Timestamp(us) or Timestamp(ns)";
    refused("Timestamp(utc)", &[("1795341600", &format!("expected RFC 3339 text, found 1795341600{units}"))]);
}

#[test]
fn a_number_of_time_has_the_declared_unit_and_is_cut_to_milliseconds() {
    let instant = "2026-11-22T10:00:00.123Z";
    accepted(
        "Timestamp(s)",
        &[("1795341600.123", instant), ("1795341600", "2026-11-22T10:00:00Z"), ("-0.0001", "1969-12-31T23:59:59.999Z")],
    );
    accepted("Timestamp(ms)", &[("1795341600123", instant), ("1795341600123.9", instant)]);
    accepted("Timestamp(us)", &[("1795341600123999", instant)]);
    accepted("Timestamp(ns)", &[("1795341600123999999", instant)]);
    refused(
        "Timestamp(s)",
        &[
            ("1795341600123", "1795341600123 is out of range for Timestamp(s)"),
            ("1e300", "1e300 is out of range for Timestamp(s)"),
            ("\"1795341600\"", "expected Timestamp(s), found the text \"1795341600\""),
        ],
    );
    refused("Timestamp(us)", &[("1.5", "1.5 is not exactly a whole number, as Timestamp(us) needs")]);
}

#[test]
fn a_date_is_year_month_day() {
    accepted("Date", &[("\"2026-11-22\"", "2026-11-22"), ("\"2024-02-29\"", "2024-02-29")]);
    for text in ["2026-02-29", "2026-1-2", "+2026-01-02", "20260102", "2026-11-22T00:00:00Z", "0000-01-01", ""] {
        refused("Date", &[(&format!("{text:?}"), &format!("{text:?} is not a date like 2026-11-22"))]);
    }
    refused("Date", &[("20260102", "expected Date, found 20260102")]);
}

#[test]
fn json_keeps_the_text_of_any_value() {
    accepted("Json", &[("[1, {\"a\":2.50}]", "[1, {\"a\":2.50}]"), ("\"x\"", "\"x\""), ("7", "7")]);
    accepted("Json?", &[("null", "null")]);
    refused("Json", &[("null", "is required, but null")]);
}

#[test]
fn an_optional_field_may_be_missing_or_null_and_a_required_one_may_not() {
    let spec = json(&["a: Int32", "b: String?"]);

    assert_eq!(row(&spec, r#"{"b":"x","a":1}"#), "a=1 b=x");
    assert_eq!(row(&spec, r#"{"a":1,"b":null}"#), "a=1 b=null");
    assert_eq!(row(&spec, r#"{"a":1}"#), "a=1 b=null");
    assert_eq!(row(&spec, r#"{"b":"x"}"#), "refused: field \"a\": is required, but missing");
}

#[test]
fn a_payload_is_exactly_one_object() {
    let spec = json(&["a: Int32"]);
    let table = [
        ("", "the payload must be one JSON object, found nothing"),
        ("  ", "the payload must be one JSON object, found nothing"),
        ("5", "the payload must be one JSON object, found a number"),
        ("\"secret\"", "the payload must be one JSON object, found a string"),
        ("[{\"a\":1}]", "the payload must be one JSON object, found an array"),
        ("{\"a\":1}{\"a\":2}", "not JSON: trailing characters at line 1 column 8"),
        ("{\"a\":1,}", "not JSON: trailing comma at line 1 column 8"),
        ("{\"a\":1", "not JSON: EOF while parsing an object at line 1 column 6"),
        ("{\"a\":", "not JSON: EOF while parsing a value at line 1 column 5, in field \"a\""),
        ("\u{feff}{}", "not JSON: expected value at line 1 column 1"),
        ("{\"a\":1,\"a\":1}", "field \"a\": stands twice"),
        ("{\"a\":1,\"x\":1,\"\\u0078\":2}", "key \"x\" stands twice"),
    ];
    for (payload, reason) in table {
        assert_eq!(row(&spec, payload), format!("refused: {reason}"), "{payload}");
    }
    assert_eq!(row(&spec, "\n {\"a\":1}\r\n"), "a=1");
    assert_eq!(row(&spec, b"{\"a\":1,\"b\":\"\xff\"}"), "refused: the payload is not UTF-8 from byte 12 on");
}

#[test]
fn unknown_fields_are_kept_as_one_object_when_asked_for() {
    let mut spec = json(&["a: Int32"]);
    assert_eq!(row(&spec, r#"{"x":[1, 2],"a":1}"#), "a=1");

    spec.extra = true;
    assert_eq!(row(&spec, r#"{"x":[1, 2],"a":1,"q\"":null}"#), r#"a=1 extra={"x":[1, 2],"q\"":null}"#);
    assert_eq!(row(&spec, r#"{"a":1}"#), "a=1 extra=null");
}

#[test]
fn a_reason_repeats_only_a_short_excerpt_of_the_payload() {
    let long = "secret ".repeat(1_000);
    let payloads = [
        format!(r#"{{"a":"{long}"}}"#),
        format!(r#"{{"a":1,"{long}":1,"{long}":1}}"#),
        format!(r#""{long}""#),
        format!("{{{long}"),
        long.clone(),
    ];
    for payload in payloads {
        let reason = push(&json(&["a: Int32"]), &payload).unwrap_err().to_string();

        assert!(reason.len() < 200, "{reason}");
    }
}
