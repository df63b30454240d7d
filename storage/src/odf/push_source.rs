//! `AddPushSource`: how rows that are posted to a node are to be read and merged.
//!
//! The gateway does not need one to push whole slices; datasets made by `kamu add` have one, and it must survive being
//! read and checked here.

use super::flatbuffer::{Builder, FlatbufferError, Offset, Slot, Table, required};
use super::schema::DataSchema;

/// Declares a push source, or replaces the one of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddPushSource {
    /// Its name.
    pub source_name: String,
    /// How bytes become rows.
    pub read: ReadStep,
    /// What is done with them before merging.
    pub preprocess: Option<TransformSql>,
    /// How they are combined with the rows that are there.
    pub merge: MergeStrategy,
}

/// How bytes become rows. Absent options have ODF's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields as in ODF's ReadStep")]
pub enum ReadStep {
    /// Boxed: ten times the size of the others.
    Csv(Box<ReadCsv>),
    GeoJson {
        ddl_schema: Option<Vec<String>>,
        schema: Option<DataSchema>,
    },
    EsriShapefile {
        ddl_schema: Option<Vec<String>>,
        sub_path: Option<String>,
        schema: Option<DataSchema>,
    },
    Parquet {
        ddl_schema: Option<Vec<String>>,
        schema: Option<DataSchema>,
    },
    Json {
        sub_path: Option<String>,
        text: ReadText,
    },
    NdJson(ReadText),
    NdGeoJson {
        ddl_schema: Option<Vec<String>>,
        schema: Option<DataSchema>,
    },
}

/// What JSON and NDJSON share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields as in ODF's ReadStepNdJson")]
pub struct ReadText {
    pub ddl_schema: Option<Vec<String>>,
    pub date_format: Option<String>,
    pub encoding: Option<String>,
    pub timestamp_format: Option<String>,
    pub schema: Option<DataSchema>,
}

/// Options of CSV.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields as in ODF's ReadStepCsv")]
pub struct ReadCsv {
    pub ddl_schema: Option<Vec<String>>,
    pub separator: Option<String>,
    pub encoding: Option<String>,
    pub quote: Option<String>,
    pub escape: Option<String>,
    pub header: Option<bool>,
    pub infer_schema: Option<bool>,
    pub null_value: Option<String>,
    pub date_format: Option<String>,
    pub timestamp_format: Option<String>,
    pub schema: Option<DataSchema>,
}

/// A transformation by SQL, the only kind there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields as in ODF's TransformSql")]
pub struct TransformSql {
    pub engine: String,
    pub version: Option<String>,
    pub query: Option<String>,
    pub queries: Option<Vec<SqlQueryStep>>,
    pub temporal_tables: Option<Vec<TemporalTable>>,
}

/// One of several queries.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields as in ODF's SqlQueryStep")]
pub struct SqlQueryStep {
    pub alias: Option<String>,
    pub query: String,
}

/// An input read as a temporal table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields as in ODF's TemporalTable")]
pub struct TemporalTable {
    pub name: String,
    pub primary_key: Vec<String>,
}

/// How new rows are combined with the rows that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in ODF's MergeStrategy")]
pub enum MergeStrategy {
    Append,
    Ledger { primary_key: Vec<String> },
    Snapshot { primary_key: Vec<String>, compare_columns: Option<Vec<String>> },
    ChangelogStream { primary_key: Vec<String> },
    UpsertStream { primary_key: Vec<String> },
}

impl AddPushSource {
    pub(super) fn build(&self, builder: &mut Builder) -> Offset {
        let slots = [
            builder.string(&self.source_name),
            self.read.build(builder),
            build_preprocess(self.preprocess.as_ref(), builder),
            self.merge.build(builder),
        ];
        builder.table(&slots)
    }

    pub(super) fn read(table: &Table<'_>) -> Result<Self, FlatbufferError> {
        Ok(Self {
            source_name: required(table.string(0)?, "AddPushSource.source_name")?,
            read: ReadStep::read(table, 1)?,
            preprocess: read_preprocess(table, 3)?,
            merge: MergeStrategy::read(table, 5)?,
        })
    }
}

impl ReadStep {
    fn build(&self, builder: &mut Builder) -> Slot {
        let (tag, slots) = match self {
            Self::Csv(csv) => (1, csv.build(builder)),
            Self::GeoJson { ddl_schema, schema } => (2, build_schemas(ddl_schema, schema, builder)),
            Self::EsriShapefile { ddl_schema, sub_path, schema } => {
                let ddl_schema = builder.optional_strings(ddl_schema.as_deref());
                let sub_path = builder.optional_string(sub_path.as_deref());
                (3, vec![ddl_schema, sub_path, build_schema(schema, builder)])
            }
            Self::Parquet { ddl_schema, schema } => (4, build_schemas(ddl_schema, schema, builder)),
            Self::Json { sub_path, text } => {
                // The schema file orders these fields otherwise than NdJson's.
                let slots = vec![
                    builder.optional_string(sub_path.as_deref()),
                    builder.optional_strings(text.ddl_schema.as_deref()),
                    builder.optional_string(text.date_format.as_deref()),
                    builder.optional_string(text.encoding.as_deref()),
                    builder.optional_string(text.timestamp_format.as_deref()),
                    build_schema(&text.schema, builder),
                ];
                (5, slots)
            }
            Self::NdJson(text) => {
                let slots = vec![
                    builder.optional_strings(text.ddl_schema.as_deref()),
                    builder.optional_string(text.date_format.as_deref()),
                    builder.optional_string(text.encoding.as_deref()),
                    builder.optional_string(text.timestamp_format.as_deref()),
                    build_schema(&text.schema, builder),
                ];
                (6, slots)
            }
            Self::NdGeoJson { ddl_schema, schema } => (7, build_schemas(ddl_schema, schema, builder)),
        };
        Slot::Union(tag, builder.table(&slots))
    }

    fn read(table: &Table<'_>, slot: usize) -> Result<Self, FlatbufferError> {
        let (tag, table) = required(table.union(slot)?, "AddPushSource.read")?;
        Ok(match tag {
            1 => Self::Csv(Box::new(ReadCsv::read(&table)?)),
            2 => Self::GeoJson { ddl_schema: table.strings(0)?, schema: read_schema(&table, 1)? },
            3 => Self::EsriShapefile {
                ddl_schema: table.strings(0)?,
                sub_path: table.string(1)?,
                schema: read_schema(&table, 2)?,
            },
            4 => Self::Parquet { ddl_schema: table.strings(0)?, schema: read_schema(&table, 1)? },
            5 => Self::Json { sub_path: table.string(0)?, text: ReadText::read(&table, 1)? },
            6 => Self::NdJson(ReadText::read(&table, 0)?),
            7 => Self::NdGeoJson { ddl_schema: table.strings(0)?, schema: read_schema(&table, 1)? },
            tag => {
                let tag = format_args!("(tag {tag})");
                return Err(FlatbufferError::bad_value("AddPushSource.read", &tag));
            }
        })
    }
}

impl ReadText {
    fn read(table: &Table<'_>, first: usize) -> Result<Self, FlatbufferError> {
        Ok(Self {
            ddl_schema: table.strings(first)?,
            date_format: table.string(first + 1)?,
            encoding: table.string(first + 2)?,
            timestamp_format: table.string(first + 3)?,
            schema: read_schema(table, first + 4)?,
        })
    }
}

impl ReadCsv {
    fn build(&self, builder: &mut Builder) -> Vec<Slot> {
        vec![
            builder.optional_strings(self.ddl_schema.as_deref()),
            builder.optional_string(self.separator.as_deref()),
            builder.optional_string(self.encoding.as_deref()),
            builder.optional_string(self.quote.as_deref()),
            builder.optional_string(self.escape.as_deref()),
            Slot::optional_bool(self.header),
            Slot::optional_bool(self.infer_schema),
            builder.optional_string(self.null_value.as_deref()),
            builder.optional_string(self.date_format.as_deref()),
            builder.optional_string(self.timestamp_format.as_deref()),
            build_schema(&self.schema, builder),
        ]
    }

    fn read(table: &Table<'_>) -> Result<Self, FlatbufferError> {
        Ok(Self {
            ddl_schema: table.strings(0)?,
            separator: table.string(1)?,
            encoding: table.string(2)?,
            quote: table.string(3)?,
            escape: table.string(4)?,
            header: table.bool(5)?,
            infer_schema: table.bool(6)?,
            null_value: table.string(7)?,
            date_format: table.string(8)?,
            timestamp_format: table.string(9)?,
            schema: read_schema(table, 10)?,
        })
    }
}

impl MergeStrategy {
    fn build(&self, builder: &mut Builder) -> Slot {
        let (tag, slots) = match self {
            Self::Append => (1, vec![]),
            Self::Ledger { primary_key } => (2, vec![builder.strings(primary_key)]),
            Self::Snapshot { primary_key, compare_columns } => {
                let primary_key = builder.strings(primary_key);
                (3, vec![primary_key, builder.optional_strings(compare_columns.as_deref())])
            }
            Self::ChangelogStream { primary_key } => (4, vec![builder.strings(primary_key)]),
            Self::UpsertStream { primary_key } => (5, vec![builder.strings(primary_key)]),
        };
        Slot::Union(tag, builder.table(&slots))
    }

    fn read(table: &Table<'_>, slot: usize) -> Result<Self, FlatbufferError> {
        let (tag, table) = required(table.union(slot)?, "AddPushSource.merge")?;
        let primary_key = || required(table.strings(0)?, "MergeStrategy.primary_key");
        Ok(match tag {
            1 => Self::Append,
            2 => Self::Ledger { primary_key: primary_key()? },
            3 => Self::Snapshot { primary_key: primary_key()?, compare_columns: table.strings(1)? },
            4 => Self::ChangelogStream { primary_key: primary_key()? },
            5 => Self::UpsertStream { primary_key: primary_key()? },
            tag => {
                let tag = format_args!("(tag {tag})");
                return Err(FlatbufferError::bad_value("AddPushSource.merge", &tag));
            }
        })
    }
}

fn build_schemas(ddl_schema: &Option<Vec<String>>, schema: &Option<DataSchema>, builder: &mut Builder) -> Vec<Slot> {
    vec![builder.optional_strings(ddl_schema.as_deref()), build_schema(schema, builder)]
}

fn build_schema(schema: &Option<DataSchema>, builder: &mut Builder) -> Slot {
    schema.as_ref().map_or(Slot::Absent, |schema| Slot::Part(schema.build(builder)))
}

fn read_schema(table: &Table<'_>, slot: usize) -> Result<Option<DataSchema>, FlatbufferError> {
    table.table(slot)?.map(|table| DataSchema::read(&table)).transpose()
}

fn build_preprocess(transform: Option<&TransformSql>, builder: &mut Builder) -> Slot {
    let Some(sql) = transform else {
        return Slot::AbsentUnion;
    };
    let slots = [
        builder.string(&sql.engine),
        builder.optional_string(sql.version.as_deref()),
        builder.optional_string(sql.query.as_deref()),
        build_list(sql.queries.as_deref(), builder, |step, builder| {
            [builder.optional_string(step.alias.as_deref()), builder.string(&step.query)]
        }),
        build_list(sql.temporal_tables.as_deref(), builder, |table, builder| {
            [builder.string(&table.name), builder.strings(&table.primary_key)]
        }),
    ];
    Slot::Union(1, builder.table(&slots))
}

fn build_list<T>(items: Option<&[T]>, builder: &mut Builder, slots: impl Fn(&T, &mut Builder) -> [Slot; 2]) -> Slot {
    let Some(items) = items else {
        return Slot::Absent;
    };
    let mut parts = Vec::with_capacity(items.len());
    for item in items {
        let slots = slots(item, builder);
        parts.push(builder.table(&slots));
    }
    builder.parts(&parts)
}

fn read_preprocess(table: &Table<'_>, slot: usize) -> Result<Option<TransformSql>, FlatbufferError> {
    let sql = match table.union(slot)? {
        None => return Ok(None),
        Some((1, sql)) => sql,
        Some((tag, _)) => {
            let tag = format_args!("(tag {tag})");
            return Err(FlatbufferError::bad_value("AddPushSource.preprocess", &tag));
        }
    };
    let queries = sql.tables(3)?.map(|tables| tables.iter().map(read_query).collect());
    let temporal_tables = sql.tables(4)?.map(|tables| tables.iter().map(read_temporal_table).collect());
    Ok(Some(TransformSql {
        engine: required(sql.string(0)?, "TransformSql.engine")?,
        version: sql.string(1)?,
        query: sql.string(2)?,
        queries: queries.transpose()?,
        temporal_tables: temporal_tables.transpose()?,
    }))
}

fn read_query(table: &Table<'_>) -> Result<SqlQueryStep, FlatbufferError> {
    Ok(SqlQueryStep { alias: table.string(0)?, query: required(table.string(1)?, "SqlQueryStep.query")? })
}

fn read_temporal_table(table: &Table<'_>) -> Result<TemporalTable, FlatbufferError> {
    Ok(TemporalTable {
        name: required(table.string(0)?, "TemporalTable.name")?,
        primary_key: required(table.strings(1)?, "TemporalTable.primary_key")?,
    })
}
