//! Rows as lines of JSON, in the form in which a Kamu node's reader takes every type back. (pure)
//!
//! | column | JSON |
//! | --- | --- |
//! | Timestamp | RFC 3339 with milliseconds and `Z`; never a number, which a node reads as milliseconds whatever was meant |
//! | Date | `YYYY-MM-DD` |
//! | Binary | lower-case hexadecimal: the reader's only form (`arrow-json`), although a device sends base64 |
//! | integers, Bool, String | as they are |
//! | floats | shortest form that reads back; NaN and the infinities, which JSON cannot write, as null |
//! | null | left out |

use std::io::{self, Write};

use arrow::array::{Array, AsArray as _};
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, SchemaRef,
    TimestampMillisecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, SecondsFormat};

const SECS_PER_DAY: i64 = 86_400;

/// Writes lines for rows of one schema.
#[derive(Debug)]
pub struct Lines {
    /// Each column's name as JSON, with the colon.
    keys: Vec<String>,
}

impl Lines {
    /// For batches with these columns.
    #[must_use]
    pub fn new(schema: &SchemaRef) -> Self {
        let key = |name: &str| format!("{}:", serde_json::Value::from(name));
        Self { keys: schema.fields().iter().map(|field| key(field.name())).collect() }
    }

    /// One row as a line, with its line end.
    ///
    /// # Errors
    /// What `out` says; [`io::ErrorKind::Unsupported`] for a type that datasets do not use.
    pub fn write(&self, batch: &RecordBatch, row: usize, out: &mut impl Write) -> io::Result<()> {
        let mut separator = "{";
        for (key, column) in self.keys.iter().zip(batch.columns()) {
            if column.is_null(row) {
                continue;
            }
            out.write_all(separator.as_bytes())?;
            out.write_all(key.as_bytes())?;
            write_value(column, row, out)?;
            separator = ",";
        }
        out.write_all(if separator == "{" { b"{}\n" } else { b"}\n" })
    }
}

fn write_value(column: &dyn Array, row: usize, out: &mut impl Write) -> io::Result<()> {
    match column.data_type() {
        DataType::Boolean => write!(out, "{}", column.as_boolean().value(row)),
        DataType::Int8 => write!(out, "{}", column.as_primitive::<Int8Type>().value(row)),
        DataType::Int16 => write!(out, "{}", column.as_primitive::<Int16Type>().value(row)),
        DataType::Int32 => write!(out, "{}", column.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => write!(out, "{}", column.as_primitive::<Int64Type>().value(row)),
        DataType::UInt8 => write!(out, "{}", column.as_primitive::<UInt8Type>().value(row)),
        DataType::UInt16 => write!(out, "{}", column.as_primitive::<UInt16Type>().value(row)),
        DataType::UInt32 => write!(out, "{}", column.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => write!(out, "{}", column.as_primitive::<UInt64Type>().value(row)),
        DataType::Float32 => Ok(serde_json::to_writer(out, &column.as_primitive::<Float32Type>().value(row))?),
        DataType::Float64 => Ok(serde_json::to_writer(out, &column.as_primitive::<Float64Type>().value(row))?),
        DataType::Utf8 => Ok(serde_json::to_writer(out, column.as_string::<i32>().value(row))?),
        DataType::Binary => write_hex(column.as_binary::<i32>().value(row), out),
        DataType::Date32 => write_date(column.as_primitive::<Date32Type>().value(row), out),
        DataType::Timestamp(..) => {
            let instants = column.as_primitive_opt::<TimestampMillisecondType>();
            let instants = instants.ok_or_else(|| unsupported(column))?;
            write_instant(instants.value(row), out)
        }
        _ => Err(unsupported(column)),
    }
}

fn write_instant(millis: i64, out: &mut impl Write) -> io::Result<()> {
    match DateTime::from_timestamp_millis(millis) {
        Some(instant) => write!(out, "\"{}\"", instant.to_rfc3339_opts(SecondsFormat::Millis, true)),
        None => out.write_all(b"null"),
    }
}

fn write_date(days: i32, out: &mut impl Write) -> io::Result<()> {
    match DateTime::from_timestamp(i64::from(days) * SECS_PER_DAY, 0) {
        Some(midnight) => write!(out, "\"{}\"", midnight.date_naive()),
        None => out.write_all(b"null"),
    }
}

fn write_hex(bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
    out.write_all(b"\"")?;
    for byte in bytes {
        write!(out, "{byte:02x}")?;
    }
    out.write_all(b"\"")
}

fn unsupported(column: &dyn Array) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("{} has no form in JSON here", column.data_type()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::*;
    use arrow::datatypes::{Field, Schema};

    use super::*;

    #[test]
    fn every_type_has_its_form() {
        let instant = TimestampMillisecondArray::from(vec![1_788_177_600_005, -1]).with_timezone("UTC");
        assert_eq!(values(instant), ["\"2026-08-31T12:00:00.005Z\"", "\"1969-12-31T23:59:59.999Z\""]);
        assert_eq!(values(Date32Array::from(vec![20_666, -1])), ["\"2026-08-01\"", "\"1969-12-31\""]);
        assert_eq!(values(BinaryArray::from(vec![&b"\x00\xffa"[..], b""])), ["\"00ff61\"", "\"\""]);
        assert_eq!(values(StringArray::from(vec!["a\"\\\n\u{1}é", "1"])), ["\"a\\\"\\\\\\n\\u0001é\"", "\"1\""]);
        assert_eq!(values(BooleanArray::from(vec![true, false])), ["true", "false"]);
        assert_eq!(values(Int8Array::from(vec![i8::MIN, i8::MAX])), ["-128", "127"]);
        assert_eq!(values(Int16Array::from(vec![i16::MIN])), ["-32768"]);
        assert_eq!(values(Int32Array::from(vec![i32::MIN])), ["-2147483648"]);
        assert_eq!(values(Int64Array::from(vec![i64::MIN])), ["-9223372036854775808"]);
        assert_eq!(values(UInt8Array::from(vec![u8::MAX])), ["255"]);
        assert_eq!(values(UInt16Array::from(vec![u16::MAX])), ["65535"]);
        assert_eq!(values(UInt32Array::from(vec![u32::MAX])), ["4294967295"]);
        assert_eq!(values(UInt64Array::from(vec![u64::MAX])), ["18446744073709551615"]);
        assert_eq!(values(Float32Array::from(vec![20.1, f32::NAN, f32::INFINITY])), ["20.1", "null", "null"]);
        assert_eq!(values(Float64Array::from(vec![0.1, 1e300, f64::NEG_INFINITY])), ["0.1", "1e+300", "null"]);
    }

    #[test]
    fn nulls_are_left_out_and_names_are_escaped() {
        let schema = Arc::new(Schema::new(vec![
            Field::new("a \"b\"", DataType::Int32, true),
            Field::new("c", DataType::Int32, true),
        ]));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from(vec![Some(1), None, None])),
            Arc::new(Int32Array::from(vec![Some(2), Some(3), None])),
        ];
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();

        let mut out = Vec::new();
        let lines = Lines::new(&schema);
        (0..3).for_each(|row| lines.write(&batch, row, &mut out).unwrap());

        assert_eq!(String::from_utf8(out).unwrap(), "{\"a \\\"b\\\"\":1,\"c\":2}\n{\"c\":3}\n{}\n");
    }

    #[test]
    fn a_type_that_no_dataset_has_is_an_error() {
        let error = write_value(&Time32SecondArray::from(vec![1]), 0, &mut Vec::new()).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }

    fn values(column: impl Array) -> Vec<String> {
        let value = |row| {
            let mut out = Vec::new();
            write_value(&column, row, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        (0..column.len()).map(value).collect()
    }
}
