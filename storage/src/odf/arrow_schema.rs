//! ODF's column types in Arrow's words, and back.
//!
//! Width of offsets, views and dictionaries are Arrow's business: `Utf8`, `LargeUtf8` and `Utf8View` are all `String`,
//! and the logical hash of the rows does not see the difference either. On the way back the plain form is chosen.

use std::sync::Arc;

use arrow::datatypes as arrow;

use super::schema::{DataField, DataSchema, DataType, TimeUnit};

/// A column type that has no counterpart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column `{column}` has the type {data_type}, which {reason}")]
pub struct UnsupportedType {
    /// Its name.
    pub column: String,
    /// As its side calls it.
    pub data_type: String,
    /// Why not.
    pub reason: &'static str,
}

impl DataSchema {
    /// The ODF schema of Arrow columns: a nullable column becomes an `Option`.
    pub fn from_arrow(schema: &arrow::Schema) -> Result<Self, UnsupportedType> {
        Ok(Self { fields: fields_from_arrow(schema.fields())?, extra: None })
    }

    /// The Arrow schema that rows of this schema are written with.
    pub fn to_arrow(&self) -> Result<arrow::Schema, UnsupportedType> {
        Ok(arrow::Schema::new(fields_to_arrow(&self.fields)?))
    }
}

fn fields_from_arrow(fields: &arrow::Fields) -> Result<Vec<DataField>, UnsupportedType> {
    let fields = fields.iter().map(|field| {
        Ok(DataField { name: field.name().clone(), data_type: field_type_from_arrow(field)?, extra: None })
    });
    fields.collect()
}

fn field_type_from_arrow(field: &arrow::Field) -> Result<DataType, UnsupportedType> {
    let data_type = type_from_arrow(field)?;
    if field.is_nullable() && data_type != DataType::Null {
        return Ok(DataType::Option { inner: Box::new(data_type) });
    }
    Ok(data_type)
}

fn type_from_arrow(field: &arrow::Field) -> Result<DataType, UnsupportedType> {
    use arrow::DataType as A;
    Ok(match field.data_type() {
        A::Null => DataType::Null,
        A::Boolean => DataType::Bool,
        A::Int8 => DataType::Int8,
        A::Int16 => DataType::Int16,
        A::Int32 => DataType::Int32,
        A::Int64 => DataType::Int64,
        A::UInt8 => DataType::UInt8,
        A::UInt16 => DataType::UInt16,
        A::UInt32 => DataType::UInt32,
        A::UInt64 => DataType::UInt64,
        A::Float16 => DataType::Float16,
        A::Float32 => DataType::Float32,
        A::Float64 => DataType::Float64,
        A::Utf8 | A::LargeUtf8 | A::Utf8View => DataType::String,
        A::Binary | A::LargeBinary | A::BinaryView => DataType::Binary { fixed_length: None },
        A::FixedSizeBinary(size) => DataType::Binary { fixed_length: u64::try_from(*size).ok() },
        A::Date32 => DataType::Date,
        A::Timestamp(unit, zone) => DataType::Timestamp {
            unit: Some(unit_from_arrow(*unit)),
            timezone: Some(zone.as_deref().map_or("UTC", utc_name).to_owned()),
        },
        A::Time32(unit) | A::Time64(unit) => DataType::Time { unit: Some(unit_from_arrow(*unit)) },
        A::Duration(unit) => DataType::Duration { unit: Some(unit_from_arrow(*unit)) },
        A::Decimal128(precision, scale) => {
            DataType::Decimal { precision: u32::from(*precision), scale: i32::from(*scale) }
        }
        A::List(item) | A::LargeList(item) => list_from_arrow(item, None)?,
        A::FixedSizeList(item, size) => list_from_arrow(item, u64::try_from(*size).ok())?,
        A::Struct(fields) => DataType::Struct { fields: fields_from_arrow(fields)? },
        other => {
            return Err(UnsupportedType {
                column: field.name().clone(),
                data_type: other.to_string(),
                reason: "ODF cannot express",
            });
        }
    })
}

/// Arrow's spellings of UTC.
fn utc_name(zone: &str) -> &str {
    match zone {
        "+00:00" | "Z" => "UTC",
        other => other,
    }
}

fn list_from_arrow(item: &arrow::Field, fixed_length: Option<u64>) -> Result<DataType, UnsupportedType> {
    let item_type = Box::new(field_type_from_arrow(item)?);
    Ok(DataType::List { item_type, fixed_length })
}

fn fields_to_arrow(fields: &[DataField]) -> Result<Vec<arrow::Field>, UnsupportedType> {
    fields.iter().map(|field| field_to_arrow(&field.name, &field.data_type)).collect()
}

fn field_to_arrow(name: &str, data_type: &DataType) -> Result<arrow::Field, UnsupportedType> {
    let arrow_type = type_to_arrow(name, data_type.without_option())?;
    Ok(arrow::Field::new(name, arrow_type, data_type.is_optional()))
}

fn type_to_arrow(name: &str, data_type: &DataType) -> Result<arrow::DataType, UnsupportedType> {
    use arrow::DataType as A;
    let unsupported = |reason| UnsupportedType { column: name.to_owned(), data_type: data_type.name(), reason };
    Ok(match data_type {
        DataType::Null => A::Null,
        DataType::Bool => A::Boolean,
        DataType::Int8 => A::Int8,
        DataType::Int16 => A::Int16,
        DataType::Int32 => A::Int32,
        DataType::Int64 => A::Int64,
        DataType::UInt8 => A::UInt8,
        DataType::UInt16 => A::UInt16,
        DataType::UInt32 => A::UInt32,
        DataType::UInt64 => A::UInt64,
        DataType::Float16 => A::Float16,
        DataType::Float32 => A::Float32,
        DataType::Float64 => A::Float64,
        DataType::String => A::Utf8,
        DataType::Binary { fixed_length: None } => A::Binary,
        DataType::Binary { fixed_length: Some(size) } => {
            let size = i32::try_from(*size);
            A::FixedSizeBinary(size.map_err(|_| unsupported("is wider than Arrow allows"))?)
        }
        DataType::Date => A::Date32,
        DataType::Timestamp { unit, timezone } => {
            let zone = timezone.as_deref().unwrap_or("UTC");
            A::Timestamp(unit_to_arrow(*unit), Some(zone.into()))
        }
        DataType::Time { unit } => match unit_to_arrow(*unit) {
            unit @ (arrow::TimeUnit::Second | arrow::TimeUnit::Millisecond) => A::Time32(unit),
            unit => A::Time64(unit),
        },
        DataType::Duration { unit } => A::Duration(unit_to_arrow(*unit)),
        DataType::Decimal { precision, scale } => {
            let (precision, scale) = (u8::try_from(*precision), i8::try_from(*scale));
            match (precision, scale) {
                (Ok(precision @ 1..=38), Ok(scale)) => A::Decimal128(precision, scale),
                _ => return Err(unsupported("does not fit into 128 bits")),
            }
        }
        DataType::List { item_type, fixed_length } => {
            let item = Arc::new(field_to_arrow("item", item_type)?);
            match fixed_length {
                None => A::List(item),
                Some(size) => {
                    let size = i32::try_from(*size);
                    A::FixedSizeList(item, size.map_err(|_| unsupported("is longer than Arrow allows"))?)
                }
            }
        }
        DataType::Struct { fields } => A::Struct(fields_to_arrow(fields)?.into()),
        DataType::Map { .. } => return Err(unsupported("the logical hash does not define")),
        DataType::Option { .. } => return Err(unsupported("is optional twice")),
    })
}

fn unit_from_arrow(unit: arrow::TimeUnit) -> TimeUnit {
    match unit {
        arrow::TimeUnit::Second => TimeUnit::Second,
        arrow::TimeUnit::Millisecond => TimeUnit::Millisecond,
        arrow::TimeUnit::Microsecond => TimeUnit::Microsecond,
        arrow::TimeUnit::Nanosecond => TimeUnit::Nanosecond,
    }
}

fn unit_to_arrow(unit: Option<TimeUnit>) -> arrow::TimeUnit {
    match unit.unwrap_or(TimeUnit::Millisecond) {
        TimeUnit::Second => arrow::TimeUnit::Second,
        TimeUnit::Millisecond => arrow::TimeUnit::Millisecond,
        TimeUnit::Microsecond => arrow::TimeUnit::Microsecond,
        TimeUnit::Nanosecond => arrow::TimeUnit::Nanosecond,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::arrow::datatypes::{DataType as A, Field, Schema};

    #[test]
    fn the_columns_of_a_gateways_dataset_come_back_unchanged() {
        let utc = || A::Timestamp(arrow::TimeUnit::Millisecond, Some("UTC".into()));
        let schema = Schema::new(vec![
            Field::new("offset", A::Int64, false),
            Field::new("op", A::Int32, false),
            Field::new("system_time", utc(), false),
            Field::new("event_time", utc(), false),
            Field::new("seq", A::UInt64, false),
            Field::new("temp", A::Float32, true),
            Field::new("name", A::Utf8, true),
            Field::new("raw", A::Binary, true),
            Field::new("day", A::Date32, true),
            Field::new("on", A::Boolean, false),
        ]);

        let odf = DataSchema::from_arrow(&schema).unwrap();

        assert_eq!(odf.to_arrow().unwrap(), schema);
        assert_eq!(odf.fields[5].data_type.name(), "Option<Float32>");
        assert_eq!(odf.fields[2].data_type.name(), "Timestamp(Millisecond, UTC)");
    }

    #[test]
    fn a_type_that_odf_cannot_express_is_named_with_its_column() {
        let interval = A::Interval(arrow::IntervalUnit::DayTime);
        let schema = Schema::new(vec![Field::new("gap", interval, false)]);

        let error = DataSchema::from_arrow(&schema).unwrap_err();

        assert!(error.to_string().starts_with("column `gap` has the type Interval"), "{error}");
    }
}
