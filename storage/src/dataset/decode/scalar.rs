//! From one JSON or text value to a cell of the declared type.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, NaiveDate, NaiveTime, Timelike as _};
use serde::de::IgnoredAny;

use crate::dataset::decode::error::{Problem, excerpt, parser_message};
use crate::dataset::decode::scratch::{Cell, Scratch};
use crate::dataset::spec::{DataType, FieldSpec, TimestampEncoding};

/// 0001-01-01T00:00:00Z: RFC 3339 has years of four digits, and every lake reads those.
const MILLIS_MIN: i64 = -62_135_596_800_000;
/// 9999-12-31T23:59:59.999Z. A number of milliseconds read as seconds lies far beyond.
const MILLIS_MAX: i64 = 253_402_300_799_999;
/// Up to here a 64-bit float holds every whole number.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// A number as JSON or text wrote it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    fn parse(text: &str) -> Option<Self> {
        // Rust also reads "inf" and "nan"; no payload means a number by them.
        let float = || text.parse::<f64>().ok().filter(|_| !text.contains(['n', 'N']));
        text.parse::<i128>().map(Self::Whole).ok().or_else(|| float().map(Self::Float))
    }

    fn show(self) -> String {
        match self {
            Self::Whole(number) => number.to_string(),
            Self::Float(number) => format!("{number:?}"),
        }
    }
}

/// A JSON number.
pub(crate) fn from_number(field: &FieldSpec, number: Number) -> Result<Cell, Problem> {
    let expected = field.data_type;
    let found = || number.show();
    match expected {
        DataType::Int8 => signed(expected, number, i8::MIN.into(), i8::MAX.into()),
        DataType::Int16 => signed(expected, number, i16::MIN.into(), i16::MAX.into()),
        DataType::Int32 => signed(expected, number, i32::MIN.into(), i32::MAX.into()),
        DataType::Int64 => signed(expected, number, i64::MIN, i64::MAX),
        DataType::UInt8 => signed(expected, number, 0, u8::MAX.into()),
        DataType::UInt16 => signed(expected, number, 0, u16::MAX.into()),
        DataType::UInt32 => signed(expected, number, 0, u32::MAX.into()),
        DataType::UInt64 => {
            let whole = whole(expected, number)?;
            let in_range = u64::try_from(whole).map_err(|_| Problem::OutOfRange { expected, found: found() })?;
            Ok(Cell::Unsigned(in_range))
        }
        DataType::Float32 | DataType::Float64 => float(expected, number),
        DataType::Timestamp(TimestampEncoding::Rfc3339 | TimestampEncoding::Rfc3339OrUtc) => {
            Err(Problem::NumericTimestamp { found: found() })
        }
        DataType::Timestamp(encoding) => {
            let millis = millis(expected, encoding, number)?;
            in_years_of_four_digits(millis).ok_or_else(|| Problem::OutOfRange { expected, found: found() })
        }
        DataType::Bool | DataType::String | DataType::Binary | DataType::Date | DataType::Json => {
            Err(Problem::WrongType { expected, found: found() })
        }
    }
}

/// A JSON string.
pub(crate) fn from_string(field: &FieldSpec, text: &str, scratch: &mut Scratch) -> Result<Cell, Problem> {
    let found = || excerpt(text);
    match field.data_type {
        DataType::String => Ok(scratch.push_text(text)),
        DataType::Binary => {
            let start = scratch.bytes.len();
            STANDARD.decode_vec(text, &mut scratch.bytes).map_err(|_| Problem::Base64 { found: found() })?;
            Ok(Cell::Bytes(start..scratch.bytes.len()))
        }
        DataType::Date => date(text).and_then(days).ok_or_else(|| Problem::Date { found: found() }),
        DataType::Timestamp(TimestampEncoding::Rfc3339) => {
            rfc3339(text).and_then(in_years_of_four_digits).ok_or_else(|| Problem::Rfc3339 { found: found() })
        }
        DataType::Timestamp(TimestampEncoding::Rfc3339OrUtc) => rfc3339(text)
            .or_else(|| without_offset(text))
            .and_then(in_years_of_four_digits)
            .ok_or_else(|| Problem::Rfc3339OrUtc { found: found() }),
        expected => Err(Problem::WrongType { expected, found: format!("the text {}", found()) }),
    }
}

/// A value of a format that has only text: as it stands for `String`, else trimmed of ASCII white space and parsed. Empty
/// is null where that is allowed.
pub(crate) fn from_bare_text(field: &FieldSpec, text: &str, scratch: &mut Scratch) -> Result<Cell, Problem> {
    let is_text = field.data_type == DataType::String;
    let value = if is_text { text } else { text.trim_ascii() };
    match field.data_type {
        _ if value.is_empty() && field.optional => Ok(Cell::Null),
        DataType::String | DataType::Binary => from_string(field, value, scratch),
        _ if value.is_empty() => Err(Problem::Missing),
        DataType::Date | DataType::Timestamp(TimestampEncoding::Rfc3339 | TimestampEncoding::Rfc3339OrUtc) => {
            from_string(field, value, scratch)
        }
        DataType::Bool => match value {
            "true" => Ok(Cell::Bool(true)),
            "false" => Ok(Cell::Bool(false)),
            _ => Err(Problem::WrongType { expected: DataType::Bool, found: excerpt(value) }),
        },
        DataType::Json => match serde_json::from_str::<IgnoredAny>(value) {
            Ok(_) => Ok(scratch.push_text(value)),
            Err(error) => Err(Problem::Json { message: parser_message(&error) }),
        },
        expected => match Number::parse(value) {
            Some(Number::Float(number)) if number.is_infinite() => {
                Err(Problem::OutOfRange { expected, found: excerpt(value) })
            }
            Some(number) => from_number(field, number),
            None => Err(Problem::WrongType { expected, found: excerpt(value) }),
        },
    }
}

fn signed(expected: DataType, number: Number, min: i64, max: i64) -> Result<Cell, Problem> {
    let whole = whole(expected, number)?;
    match i64::try_from(whole) {
        Ok(whole) if (min..=max).contains(&whole) => Ok(Cell::Signed(whole)),
        _ => Err(Problem::OutOfRange { expected, found: number.show() }),
    }
}

fn whole(expected: DataType, number: Number) -> Result<i128, Problem> {
    match number {
        Number::Whole(whole) => Ok(whole),
        #[expect(clippy::cast_possible_truncation, reason = "a whole number of at most 2^53")]
        Number::Float(float) if float.fract() == 0.0 && float.abs() <= EXACT_MAX => Ok(float as i128),
        Number::Float(_) => Err(Problem::NotWhole { expected, found: number.show() }),
    }
}

fn float(expected: DataType, number: Number) -> Result<Cell, Problem> {
    #[expect(clippy::cast_precision_loss, reason = "a float is the nearest to what was written")]
    let float = match number {
        Number::Whole(whole) => whole as f64,
        Number::Float(float) => float,
    };
    #[expect(clippy::cast_possible_truncation, reason = "rounding is what Float32 means; overflow is caught below")]
    let narrow = float as f32;
    match expected {
        DataType::Float32 if narrow.is_finite() => Ok(Cell::Float32(narrow)),
        DataType::Float64 if float.is_finite() => Ok(Cell::Float64(float)),
        _ => Err(Problem::OutOfRange { expected, found: number.show() }),
    }
}

/// Milliseconds, cut towards the past.
fn millis(expected: DataType, encoding: TimestampEncoding, number: Number) -> Result<i128, Problem> {
    match (encoding, number) {
        // A float of seconds is exact to about 0.2 µs today: rounded to the microsecond it is the number that was written.
        (TimestampEncoding::Seconds, Number::Float(seconds)) => Ok(rounded(seconds * 1e6).div_euclid(1_000)),
        (TimestampEncoding::Millis, Number::Float(millis)) => Ok(rounded(millis * 1e3).div_euclid(1_000)),
        (TimestampEncoding::Seconds, Number::Whole(seconds)) => Ok(seconds.saturating_mul(1_000)),
        (TimestampEncoding::Millis, Number::Whole(millis)) => Ok(millis),
        (TimestampEncoding::Micros, number) => Ok(whole(expected, number)?.div_euclid(1_000)),
        (TimestampEncoding::Nanos, number) => Ok(whole(expected, number)?.div_euclid(1_000_000)),
        (TimestampEncoding::Rfc3339 | TimestampEncoding::Rfc3339OrUtc, number) => {
            Err(Problem::NumericTimestamp { found: number.show() })
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "saturates, and what saturates is out of range")]
fn rounded(float: f64) -> i128 {
    float.round() as i128
}

fn in_years_of_four_digits(millis: i128) -> Option<Cell> {
    let millis = i64::try_from(millis).ok()?;
    (MILLIS_MIN..=MILLIS_MAX).contains(&millis).then_some(Cell::Millis(millis))
}

/// An instant with its offset, in milliseconds.
fn rfc3339(text: &str) -> Option<i128> {
    let instant = DateTime::parse_from_rfc3339(text).ok()?;
    Some(instant.timestamp_millis().into())
}

/// `2026-11-22T10:00:00.123456` as UTC, in milliseconds: RFC 3339 but for the offset, any number of digits after the point.
fn without_offset(text: &str) -> Option<i128> {
    let (day, clock) = text.split_at_checked(10)?;
    let clock = clock.strip_prefix(['T', 't', ' '])?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    if !all_digits(fraction) {
        return None;
    }
    let digits = fraction.bytes().chain(*b"00").take(3);
    let millis = digits.fold(0, |millis, digit| millis * 10 + u32::from(digit - b'0'));
    let instant = date(day)?.and_time(time(clock, millis)?);
    Some(instant.and_utc().timestamp_millis().into())
}

/// `10:00:00`, and a leap second as RFC 3339 writes it: `23:59:60`.
fn time(text: &str, millis: u32) -> Option<NaiveTime> {
    let [hour, minute, second] = numbers(text, ':', [2, 2, 2])?;
    match second {
        60 => NaiveTime::from_hms_opt(hour, minute, 59)?.with_nanosecond((1_000 + millis) * 1_000_000),
        _ => NaiveTime::from_hms_milli_opt(hour, minute, second, millis),
    }
}

/// `2026-11-22` and nothing else.
fn date(text: &str) -> Option<NaiveDate> {
    let [year, month, day] = numbers(text, '-', [4, 2, 2])?;
    let year = i32::try_from(year).ok().filter(|year| *year > 0)?;
    NaiveDate::from_ymd_opt(year, month, day)
}

/// Three numbers of so many digits each.
fn numbers(text: &str, between: char, lengths: [usize; 3]) -> Option<[u32; 3]> {
    let mut parts = text.split(between);
    let mut numbers = [0; 3];
    for (number, length) in numbers.iter_mut().zip(lengths) {
        let part = parts.next().filter(|part| part.len() == length && all_digits(part))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

fn all_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn days(date: NaiveDate) -> Option<Cell> {
    let days = date.signed_duration_since(DateTime::UNIX_EPOCH.date_naive()).num_days();
    i32::try_from(days).ok().map(Cell::Date)
}
