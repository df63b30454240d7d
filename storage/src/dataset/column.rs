//! Arrow builders, one for each column, filled from cells.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Float32Builder, Float64Builder, Int8Builder, Int16Builder,
    Int32Builder, Int64Builder, StringBuilder, TimestampMillisecondBuilder, UInt8Builder, UInt16Builder, UInt32Builder,
    UInt64Builder,
};
use arrow::datatypes::DataType as ArrowType;

use crate::dataset::decode::scratch::{Cell, Scratch};

/// The values of one column that have been gathered.
#[derive(Debug)]
pub(crate) enum Column {
    Bool(BooleanBuilder),
    Int8(Int8Builder),
    Int16(Int16Builder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    UInt8(UInt8Builder),
    UInt16(UInt16Builder),
    UInt32(UInt32Builder),
    UInt64(UInt64Builder),
    Float32(Float32Builder),
    Float64(Float64Builder),
    Text(StringBuilder),
    Bytes(BinaryBuilder),
    Date(Date32Builder),
    Instant(TimestampMillisecondBuilder),
}

impl Column {
    /// An empty column of a type that [`arrow_type`](crate::dataset::schema::arrow_type) makes.
    pub(crate) fn new(data_type: &ArrowType) -> Self {
        match data_type {
            ArrowType::Boolean => Self::Bool(BooleanBuilder::new()),
            ArrowType::Int8 => Self::Int8(Int8Builder::new()),
            ArrowType::Int16 => Self::Int16(Int16Builder::new()),
            ArrowType::Int32 => Self::Int32(Int32Builder::new()),
            ArrowType::Int64 => Self::Int64(Int64Builder::new()),
            ArrowType::UInt8 => Self::UInt8(UInt8Builder::new()),
            ArrowType::UInt16 => Self::UInt16(UInt16Builder::new()),
            ArrowType::UInt32 => Self::UInt32(UInt32Builder::new()),
            ArrowType::UInt64 => Self::UInt64(UInt64Builder::new()),
            ArrowType::Float32 => Self::Float32(Float32Builder::new()),
            ArrowType::Float64 => Self::Float64(Float64Builder::new()),
            ArrowType::Binary => Self::Bytes(BinaryBuilder::new()),
            ArrowType::Date32 => Self::Date(Date32Builder::new()),
            ArrowType::Timestamp(..) => Self::Instant(TimestampMillisecondBuilder::new().with_timezone("UTC")),
            _ => Self::Text(StringBuilder::new()),
        }
    }

    /// Appends a cell of `scratch`. Decoding made it of the column's type; any other is a null.
    pub(crate) fn append(&mut self, cell: &Cell, scratch: &Scratch) {
        match self {
            Self::Bool(column) => column.append_option(if let Cell::Bool(value) = cell { Some(*value) } else { None }),
            Self::Int8(column) => column.append_option(signed(cell)),
            Self::Int16(column) => column.append_option(signed(cell)),
            Self::Int32(column) => column.append_option(signed(cell)),
            Self::Int64(column) => column.append_option(signed(cell)),
            Self::UInt8(column) => column.append_option(signed(cell)),
            Self::UInt16(column) => column.append_option(signed(cell)),
            Self::UInt32(column) => column.append_option(signed(cell)),
            Self::UInt64(column) => {
                column.append_option(if let Cell::Unsigned(value) = cell { Some(*value) } else { None });
            }
            Self::Float32(column) => {
                column.append_option(if let Cell::Float32(value) = cell { Some(*value) } else { None });
            }
            Self::Float64(column) => {
                column.append_option(if let Cell::Float64(value) = cell { Some(*value) } else { None });
            }
            Self::Text(column) => column.append_option(scratch.text_of(cell)),
            Self::Bytes(column) => column.append_option(scratch.bytes_of(cell)),
            Self::Date(column) => column.append_option(if let Cell::Date(days) = cell { Some(*days) } else { None }),
            Self::Instant(column) => {
                column.append_option(if let Cell::Millis(millis) = cell { Some(*millis) } else { None });
            }
        }
    }

    /// Appends to a text column; none is a null.
    pub(crate) fn append_text(&mut self, text: Option<&str>) {
        if let Self::Text(column) = self {
            column.append_option(text);
        }
    }

    /// Takes what was gathered and starts anew.
    pub(crate) fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Bool(column) => Arc::new(column.finish()),
            Self::Int8(column) => Arc::new(column.finish()),
            Self::Int16(column) => Arc::new(column.finish()),
            Self::Int32(column) => Arc::new(column.finish()),
            Self::Int64(column) => Arc::new(column.finish()),
            Self::UInt8(column) => Arc::new(column.finish()),
            Self::UInt16(column) => Arc::new(column.finish()),
            Self::UInt32(column) => Arc::new(column.finish()),
            Self::UInt64(column) => Arc::new(column.finish()),
            Self::Float32(column) => Arc::new(column.finish()),
            Self::Float64(column) => Arc::new(column.finish()),
            Self::Text(column) => Arc::new(column.finish()),
            Self::Bytes(column) => Arc::new(column.finish()),
            Self::Date(column) => Arc::new(column.finish()),
            Self::Instant(column) => Arc::new(column.finish()),
        }
    }
}

fn signed<T: TryFrom<i64>>(cell: &Cell) -> Option<T> {
    let Cell::Signed(value) = cell else {
        return None;
    };
    T::try_from(*value).ok()
}
