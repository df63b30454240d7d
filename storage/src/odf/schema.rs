//! The types of a dataset's columns, as ODF writes them down (`DataSchema`, ODF RFC-018).
//!
//! A column may hold nulls exactly when its type is an `Option`. What a block leaves unsaid (a timestamp's unit or zone)
//! stays unsaid here, so that a block that was read is written back with the same bytes.

use super::flatbuffer::{Builder, FlatbufferError, Offset, Slot, Table, required};

/// Columns in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataSchema {
    /// The columns.
    pub fields: Vec<DataField>,
    /// Attributes of the whole schema: JSON text.
    pub extra: Option<String>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataField {
    /// Its name.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// Its attributes (description, JSON type …): JSON text.
    pub extra: Option<String>,
}

/// The type of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it; units and defaults are documented where there are any")]
pub enum DataType {
    /// Bytes; all values `fixed_length` bytes long if that is set.
    Binary {
        fixed_length: Option<u64>,
    },
    Bool,
    Date,
    Decimal {
        precision: u32,
        scale: i32,
    },
    /// Without a unit: milliseconds.
    Duration {
        unit: Option<TimeUnit>,
    },
    Float16,
    Float32,
    Float64,
    Int8,
    Int16,
    Int32,
    Int64,
    UInt8,
    UInt16,
    UInt32,
    UInt64,
    /// All values `fixed_length` items long if that is set.
    List {
        item_type: Box<DataType>,
        fixed_length: Option<u64>,
    },
    Map {
        key_type: Box<DataType>,
        value_type: Box<DataType>,
        keys_sorted: Option<bool>,
    },
    Null,
    /// May be null.
    Option {
        inner: Box<DataType>,
    },
    Struct {
        fields: Vec<DataField>,
    },
    /// Time of day. Without a unit: milliseconds.
    Time {
        unit: Option<TimeUnit>,
    },
    /// Instant. Without a unit: milliseconds; without a zone: UTC.
    Timestamp {
        unit: Option<TimeUnit>,
        timezone: Option<String>,
    },
    String,
}

/// What a number of a time type counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum TimeUnit {
    Second,
    Millisecond,
    Microsecond,
    Nanosecond,
}

impl DataSchema {
    /// The column of this name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&DataField> {
        self.fields.iter().find(|field| field.name == name)
    }

    pub(super) fn build(&self, builder: &mut Builder) -> Offset {
        let slots = [build_fields(&self.fields, builder), build_extra(self.extra.as_deref(), builder)];
        builder.table(&slots)
    }

    pub(super) fn read(table: &Table<'_>) -> Result<Self, FlatbufferError> {
        Ok(Self { fields: read_fields(table, 0, "DataSchema.fields")?, extra: read_extra(table, 1)? })
    }
}

impl DataField {
    fn plain(&self) -> Self {
        Self { name: self.name.clone(), data_type: self.data_type.plain(), extra: None }
    }
}

impl DataType {
    /// The type of the values that are there: what an `Option` holds, or the type itself.
    #[must_use]
    pub fn without_option(&self) -> &Self {
        match self {
            Self::Option { inner } => inner.without_option(),
            other => other,
        }
    }

    /// The same type, with a difference in attributes at most: a unit or zone left unsaid is the default one.
    #[must_use]
    pub fn is_same_type(&self, other: &Self) -> bool {
        self.plain() == other.plain()
    }

    /// Without attributes, and with defaults spelt out.
    fn plain(&self) -> Self {
        let boxed = |inner: &Self| Box::new(inner.plain());
        match self {
            Self::Duration { unit } => Self::Duration { unit: unit.or(Some(TimeUnit::Millisecond)) },
            Self::Time { unit } => Self::Time { unit: unit.or(Some(TimeUnit::Millisecond)) },
            Self::Timestamp { unit, timezone } => Self::Timestamp {
                unit: unit.or(Some(TimeUnit::Millisecond)),
                timezone: Some(timezone.as_deref().unwrap_or("UTC").to_owned()),
            },
            Self::Option { inner } => Self::Option { inner: boxed(inner) },
            Self::List { item_type, fixed_length } => {
                Self::List { item_type: boxed(item_type), fixed_length: *fixed_length }
            }
            Self::Map { key_type, value_type, .. } => {
                Self::Map { key_type: boxed(key_type), value_type: boxed(value_type), keys_sorted: None }
            }
            Self::Struct { fields } => Self::Struct { fields: fields.iter().map(DataField::plain).collect() },
            other => other.clone(),
        }
    }

    /// May hold nulls.
    #[must_use]
    pub fn is_optional(&self) -> bool {
        matches!(self, Self::Option { .. } | Self::Null)
    }

    /// `Int64`, `Option<String>`: for messages.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Option { inner } => format!("Option<{}>", inner.name()),
            Self::List { item_type, .. } => format!("List<{}>", item_type.name()),
            Self::Timestamp { unit, timezone } => format!(
                "Timestamp({:?}, {})",
                unit.unwrap_or(TimeUnit::Millisecond),
                timezone.as_deref().unwrap_or("UTC")
            ),
            other => format!("{other:?}"),
        }
    }

    fn build(&self, builder: &mut Builder) -> Slot {
        let (tag, slots) = match self {
            Self::Binary { fixed_length } => (1, vec![Slot::optional_u64(*fixed_length)]),
            Self::Bool => (2, vec![]),
            Self::Date => (3, vec![]),
            Self::Decimal { precision, scale } => (4, vec![Slot::u32(*precision), Slot::i32(*scale)]),
            Self::Duration { unit } => (5, vec![build_unit(*unit)]),
            Self::Float16 => (6, vec![]),
            Self::Float32 => (7, vec![]),
            Self::Float64 => (8, vec![]),
            Self::Int8 => (9, vec![]),
            Self::Int16 => (10, vec![]),
            Self::Int32 => (11, vec![]),
            Self::Int64 => (12, vec![]),
            Self::UInt8 => (13, vec![]),
            Self::UInt16 => (14, vec![]),
            Self::UInt32 => (15, vec![]),
            Self::UInt64 => (16, vec![]),
            Self::List { item_type, fixed_length } => {
                (17, vec![item_type.build(builder), Slot::optional_u64(*fixed_length)])
            }
            Self::Map { key_type, value_type, keys_sorted } => {
                let (key, value) = (key_type.build(builder), value_type.build(builder));
                (18, vec![key, value, Slot::optional_bool(*keys_sorted)])
            }
            Self::Null => (19, vec![]),
            Self::Option { inner } => (20, vec![inner.build(builder)]),
            Self::Struct { fields } => (21, vec![build_fields(fields, builder)]),
            Self::Time { unit } => (22, vec![build_unit(*unit)]),
            Self::Timestamp { unit, timezone } => {
                let timezone = builder.optional_string(timezone.as_deref());
                (23, vec![build_unit(*unit), timezone])
            }
            Self::String => (24, vec![]),
        };
        Slot::Union(tag, builder.table(&slots))
    }

    fn read(table: &Table<'_>, slot: usize, field: &'static str) -> Result<Self, FlatbufferError> {
        let (tag, table) = required(table.union(slot)?, field)?;
        Ok(match tag {
            1 => Self::Binary { fixed_length: table.u64(0)? },
            2 => Self::Bool,
            3 => Self::Date,
            4 => {
                Self::Decimal { precision: table.u32(0)?.unwrap_or_default(), scale: table.i32(1)?.unwrap_or_default() }
            }
            5 => Self::Duration { unit: read_unit(&table, 0)? },
            6 => Self::Float16,
            7 => Self::Float32,
            8 => Self::Float64,
            9 => Self::Int8,
            10 => Self::Int16,
            11 => Self::Int32,
            12 => Self::Int64,
            13 => Self::UInt8,
            14 => Self::UInt16,
            15 => Self::UInt32,
            16 => Self::UInt64,
            17 => Self::List {
                item_type: Box::new(Self::read(&table, 0, "DataTypeList.item_type")?),
                fixed_length: table.u64(2)?,
            },
            18 => Self::Map {
                key_type: Box::new(Self::read(&table, 0, "DataTypeMap.key_type")?),
                value_type: Box::new(Self::read(&table, 2, "DataTypeMap.value_type")?),
                keys_sorted: table.bool(4)?,
            },
            19 => Self::Null,
            20 => Self::Option { inner: Box::new(Self::read(&table, 0, "DataTypeOption.inner")?) },
            21 => Self::Struct { fields: read_fields(&table, 0, "DataTypeStruct.fields")? },
            22 => Self::Time { unit: read_unit(&table, 0)? },
            23 => Self::Timestamp { unit: read_unit(&table, 0)?, timezone: table.string(1)? },
            24 => Self::String,
            tag => {
                return Err(FlatbufferError::bad_value(field, &format_args!("(tag {tag})")));
            }
        })
    }
}

/// `ExtraAttributes`: a table around JSON text.
pub(super) fn build_extra(extra: Option<&str>, builder: &mut Builder) -> Slot {
    let Some(json) = extra else {
        return Slot::Absent;
    };
    let slots = [builder.string(json)];
    Slot::Part(builder.table(&slots))
}

pub(super) fn read_extra(table: &Table<'_>, slot: usize) -> Result<Option<String>, FlatbufferError> {
    let Some(extra) = table.table(slot)? else {
        return Ok(None);
    };
    required(extra.string(0)?, "ExtraAttributes.entries").map(Some)
}

fn build_fields(fields: &[DataField], builder: &mut Builder) -> Slot {
    let mut parts = Vec::with_capacity(fields.len());
    for field in fields {
        let slots =
            [builder.string(&field.name), field.data_type.build(builder), build_extra(field.extra.as_deref(), builder)];
        parts.push(builder.table(&slots));
    }
    builder.parts(&parts)
}

fn read_fields(table: &Table<'_>, slot: usize, name: &'static str) -> Result<Vec<DataField>, FlatbufferError> {
    let tables = required(table.tables(slot)?, name)?;
    tables.iter().map(read_field).collect()
}

fn read_field(table: &Table<'_>) -> Result<DataField, FlatbufferError> {
    Ok(DataField {
        name: required(table.string(0)?, "DataField.name")?,
        data_type: DataType::read(table, 1, "DataField.type")?,
        extra: read_extra(table, 3)?,
    })
}

fn build_unit(unit: Option<TimeUnit>) -> Slot {
    unit.map_or(Slot::Absent, |unit| Slot::I16(unit as i16))
}

fn read_unit(table: &Table<'_>, slot: usize) -> Result<Option<TimeUnit>, FlatbufferError> {
    Ok(match table.i16(slot)? {
        None => None,
        Some(0) => Some(TimeUnit::Second),
        Some(1) => Some(TimeUnit::Millisecond),
        Some(2) => Some(TimeUnit::Microsecond),
        Some(3) => Some(TimeUnit::Nanosecond),
        Some(value) => return Err(FlatbufferError::bad_value("unit", &value)),
    })
}
