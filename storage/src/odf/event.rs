//! What a block can say.
//!
//! Each event is written and read field by field in the order of ODF's FlatBuffers schema; the number in a read is the
//! field's slot there. Events that a gateway's dataset has no use for are kept as [`Event::Opaque`]: their chain can be
//! walked and its hashes checked, but they cannot be written.

use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, Timelike, Utc};

use super::flatbuffer::{Builder, FlatbufferError, Slot, Table, required};
use super::multihash::{DatasetDid, Multihash};
use super::push_source::AddPushSource;
use super::schema::{DataSchema, build_extra, read_extra};
use crate::position::Seq;

/// One change of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is documented by its type")]
pub enum Event {
    Seed(Seed),
    AddData(Box<AddData>),
    SetVocab(SetVocab),
    SetAttachments(SetAttachments),
    SetInfo(SetInfo),
    SetLicense(SetLicense),
    SetDataSchema(SetDataSchema),
    AddPushSource(Box<AddPushSource>),
    /// The push source of this name is no longer used.
    DisablePushSource {
        source_name: String,
    },
    DisablePollingSource,
    /// An event that this crate does not read.
    Opaque(OpaqueEvent),
}

/// An event known by its union tag only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpaqueEvent {
    /// Tag in the union `MetadataEvent`.
    pub tag: u8,
}

/// The first block: whose chain this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    /// The dataset's id.
    pub dataset_id: DatasetDid,
    /// Where its rows come from.
    pub dataset_kind: DatasetKind,
}

/// Where a dataset's rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatasetKind {
    /// From outside.
    Root,
    /// Computed from other datasets.
    Derivative,
}

/// A slice of rows, a watermark, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddData {
    /// The last checkpoint, if there is one.
    pub prev_checkpoint: Option<Multihash>,
    /// Last offset before this event; absent while the dataset is empty.
    pub prev_offset: Option<u64>,
    /// The rows.
    pub new_data: Option<DataSlice>,
    /// State of a stateful source or engine.
    pub new_checkpoint: Option<Checkpoint>,
    /// Event time before which no more rows are expected. Once set, every later event repeats or raises it.
    pub new_watermark: Option<DateTime<Utc>>,
    /// How far the source was read.
    pub new_source_state: Option<SourceState>,
    /// JSON text.
    pub extra: Option<String>,
}

/// A Parquet file and the rows in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSlice {
    /// Of the rows (`arrow0-sha3-256`).
    pub logical_hash: Multihash,
    /// Of the file; also its name.
    pub physical_hash: Multihash,
    /// First offset.
    pub start: u64,
    /// Last offset: the interval is closed.
    pub end: u64,
    /// Of the file, bytes.
    pub size: u64,
}

/// A file in `checkpoints/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Of the file; also its name.
    pub physical_hash: Multihash,
    /// Of the file, bytes.
    pub size: u64,
}

/// How far a source was read, in the source's own terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// Which source.
    pub source_name: String,
    /// What kind of state.
    pub kind: String,
    /// The state.
    pub value: String,
}

/// Renames the system columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetVocab {
    /// Default `offset`.
    pub offset_column: Option<String>,
    /// Default `op`.
    pub operation_type_column: Option<String>,
    /// Default `system_time`.
    pub system_time_column: Option<String>,
    /// Default `event_time`.
    pub event_time_column: Option<String>,
}

/// Files about the dataset, such as a README.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAttachments {
    /// The files.
    pub items: Vec<Attachment>,
}

/// A file held in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its name.
    pub path: String,
    /// Its text.
    pub content: String,
}

/// What people should know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetInfo {
    /// A sentence.
    pub description: Option<String>,
    /// For searching.
    pub keywords: Option<Vec<String>>,
}

/// Under which terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetLicense {
    /// e.g. `OGL-Canada-2.0`.
    pub short_name: String,
    /// In full.
    pub name: String,
    /// SPDX identifier.
    pub spdx_id: Option<String>,
    /// Where to read it.
    pub website_url: String,
}

/// The columns from here on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetDataSchema {
    /// Legacy form: a schema message of Arrow IPC, not looked into.
    pub raw_arrow_schema: Option<Vec<u8>>,
    /// The columns.
    pub schema: Option<DataSchema>,
}

impl OpaqueEvent {
    /// The event's name, if the tag was given one.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.tag {
            2 => "ExecuteTransform",
            4 => "SetPollingSource",
            5 => "SetTransform",
            _ => "an event unknown to ODF 0.39",
        }
    }
}

impl Event {
    /// The event's name in ODF.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Seed(_) => "Seed",
            Self::AddData(_) => "AddData",
            Self::SetVocab(_) => "SetVocab",
            Self::SetAttachments(_) => "SetAttachments",
            Self::SetInfo(_) => "SetInfo",
            Self::SetLicense(_) => "SetLicense",
            Self::SetDataSchema(_) => "SetDataSchema",
            Self::AddPushSource(_) => "AddPushSource",
            Self::DisablePushSource { .. } => "DisablePushSource",
            Self::DisablePollingSource => "DisablePollingSource",
            Self::Opaque(event) => event.name(),
        }
    }

    /// The slice that it brings.
    #[must_use]
    pub fn new_data(&self) -> Option<&DataSlice> {
        match self {
            Self::AddData(event) => event.new_data.as_ref(),
            _ => None,
        }
    }

    /// The union's tag and table, or the opaque event that cannot be written.
    pub(super) fn build(&self, builder: &mut Builder) -> Result<Slot, OpaqueEvent> {
        let (tag, table) = match self {
            Self::AddData(event) => (1, event.slots(builder)),
            Self::Seed(event) => (3, event.slots(builder)),
            Self::SetVocab(event) => (6, event.slots(builder)),
            Self::SetAttachments(event) => (7, event.slots(builder)),
            Self::SetInfo(event) => (8, event.slots(builder)),
            Self::SetLicense(event) => (9, event.slots(builder)),
            Self::SetDataSchema(event) => (10, event.slots(builder)),
            Self::AddPushSource(event) => return Ok(Slot::Union(11, event.build(builder))),
            Self::DisablePushSource { source_name } => (12, vec![builder.string(source_name)]),
            Self::DisablePollingSource => (13, vec![]),
            Self::Opaque(event) => return Err(*event),
        };
        Ok(Slot::Union(tag, builder.table(&table)))
    }

    pub(super) fn read(tag: u8, table: &Table<'_>) -> Result<Self, FlatbufferError> {
        Ok(match tag {
            1 => Self::AddData(Box::new(AddData::read(table)?)),
            3 => Self::Seed(Seed::read(table)?),
            6 => Self::SetVocab(SetVocab::read(table)?),
            7 => Self::SetAttachments(SetAttachments::read(table)?),
            8 => Self::SetInfo(SetInfo { description: table.string(0)?, keywords: table.strings(1)? }),
            9 => Self::SetLicense(SetLicense::read(table)?),
            10 => Self::SetDataSchema(SetDataSchema::read(table)?),
            11 => Self::AddPushSource(Box::new(AddPushSource::read(table)?)),
            12 => Self::DisablePushSource { source_name: required(table.string(0)?, "DisablePushSource.source_name")? },
            13 => Self::DisablePollingSource,
            tag => Self::Opaque(OpaqueEvent { tag }),
        })
    }
}

impl Seed {
    fn slots(&self, builder: &mut Builder) -> Vec<Slot> {
        let kind = match self.dataset_kind {
            DatasetKind::Root => 0,
            DatasetKind::Derivative => 1,
        };
        vec![builder.bytes(&self.dataset_id.to_bytes()), Slot::i32(kind)]
    }

    fn read(table: &Table<'_>) -> Result<Self, FlatbufferError> {
        let id = required(table.bytes(0)?, "Seed.dataset_id")?;
        let dataset_id =
            DatasetDid::from_bytes(id).map_err(|error| FlatbufferError::bad_value("Seed.dataset_id", &error))?;
        let dataset_kind = match table.i32(1)? {
            None | Some(0) => DatasetKind::Root,
            Some(1) => DatasetKind::Derivative,
            Some(kind) => return Err(FlatbufferError::bad_value("Seed.dataset_kind", &kind)),
        };
        Ok(Self { dataset_id, dataset_kind })
    }
}

impl AddData {
    fn slots(&self, builder: &mut Builder) -> Vec<Slot> {
        let prev_checkpoint = self.prev_checkpoint.map(|hash| hash.to_bytes());
        vec![
            builder.optional_bytes(prev_checkpoint.as_deref()),
            Slot::optional_u64(self.prev_offset),
            self.new_data.as_ref().map_or(Slot::Absent, |slice| slice.build(builder)),
            self.new_checkpoint.as_ref().map_or(Slot::Absent, |checkpoint| checkpoint.build(builder)),
            self.new_watermark.map_or(Slot::Absent, build_timestamp),
            self.new_source_state.as_ref().map_or(Slot::Absent, |state| state.build(builder)),
            build_extra(self.extra.as_deref(), builder),
        ]
    }

    fn read(table: &Table<'_>) -> Result<Self, FlatbufferError> {
        let new_data = table.table(2)?.map(|table| DataSlice::read(&table));
        let new_checkpoint = table.table(3)?.map(|table| Checkpoint::read(&table));
        let new_source_state = table.table(5)?.map(|table| SourceState::read(&table));
        Ok(Self {
            prev_checkpoint: read_hash(table, 0, "AddData.prev_checkpoint")?,
            prev_offset: table.u64(1)?,
            new_data: new_data.transpose()?,
            new_checkpoint: new_checkpoint.transpose()?,
            new_watermark: read_timestamp(table, 4, "AddData.new_watermark")?,
            new_source_state: new_source_state.transpose()?,
            extra: read_extra(table, 6)?,
        })
    }
}

impl DataSlice {
    /// Rows in the slice, if the interval is one.
    #[must_use]
    pub fn rows(&self) -> Option<u64> {
        self.end.checked_sub(self.start)?.checked_add(1)
    }

    fn build(&self, builder: &mut Builder) -> Slot {
        let logical_hash = builder.bytes(&self.logical_hash.to_bytes());
        let physical_hash = builder.bytes(&self.physical_hash.to_bytes());
        let interval = builder.table(&[Slot::u64(self.start), Slot::u64(self.end)]);
        let slots = [logical_hash, physical_hash, Slot::Part(interval), Slot::u64(self.size)];
        Slot::Part(builder.table(&slots))
    }

    fn read(table: &Table<'_>) -> Result<Self, FlatbufferError> {
        let interval = required(table.table(2)?, "DataSlice.offset_interval")?;
        let logical_hash = read_hash(table, 0, "DataSlice.logical_hash")?;
        let physical_hash = read_hash(table, 1, "DataSlice.physical_hash")?;
        Ok(Self {
            logical_hash: required(logical_hash, "DataSlice.logical_hash")?,
            physical_hash: required(physical_hash, "DataSlice.physical_hash")?,
            start: interval.u64(0)?.unwrap_or_default(),
            end: interval.u64(1)?.unwrap_or_default(),
            size: table.u64(3)?.unwrap_or_default(),
        })
    }
}

impl Checkpoint {
    fn build(&self, builder: &mut Builder) -> Slot {
        let slots = [builder.bytes(&self.physical_hash.to_bytes()), Slot::u64(self.size)];
        Slot::Part(builder.table(&slots))
    }

    fn read(table: &Table<'_>) -> Result<Self, FlatbufferError> {
        let physical_hash = read_hash(table, 0, "Checkpoint.physical_hash")?;
        Ok(Self {
            physical_hash: required(physical_hash, "Checkpoint.physical_hash")?,
            size: table.u64(1)?.unwrap_or_default(),
        })
    }
}

/// Names the source state of a gateway: its value is the last `seq` that the chain accounts for.
const SEQ_KIND: &str = "forebay/seq";
/// The source, of which a gateway's dataset has one.
const SEQ_SOURCE: &str = "default";

impl SourceState {
    /// Says that the chain accounts for everything up to and with `last`.
    #[must_use]
    pub fn of_seq(last: Seq) -> Self {
        Self { source_name: SEQ_SOURCE.to_owned(), kind: SEQ_KIND.to_owned(), value: last.to_string() }
    }

    /// The last `seq` that the chain accounts for, if that is what the state says.
    #[must_use]
    pub fn seq(&self) -> Option<Seq> {
        if self.kind == SEQ_KIND { self.value.parse().ok().map(Seq) } else { None }
    }

    fn build(&self, builder: &mut Builder) -> Slot {
        let slots = [builder.string(&self.source_name), builder.string(&self.kind), builder.string(&self.value)];
        Slot::Part(builder.table(&slots))
    }

    fn read(table: &Table<'_>) -> Result<Self, FlatbufferError> {
        Ok(Self {
            source_name: required(table.string(0)?, "SourceState.source_name")?,
            kind: required(table.string(1)?, "SourceState.kind")?,
            value: required(table.string(2)?, "SourceState.value")?,
        })
    }
}

impl SetVocab {
    fn slots(&self, builder: &mut Builder) -> Vec<Slot> {
        vec![
            builder.optional_string(self.offset_column.as_deref()),
            builder.optional_string(self.operation_type_column.as_deref()),
            builder.optional_string(self.system_time_column.as_deref()),
            builder.optional_string(self.event_time_column.as_deref()),
        ]
    }

    fn read(table: &Table<'_>) -> Result<Self, FlatbufferError> {
        Ok(Self {
            offset_column: table.string(0)?,
            operation_type_column: table.string(1)?,
            system_time_column: table.string(2)?,
            event_time_column: table.string(3)?,
        })
    }
}

impl SetAttachments {
    fn slots(&self, builder: &mut Builder) -> Vec<Slot> {
        let mut parts = Vec::with_capacity(self.items.len());
        for item in &self.items {
            let slots = [builder.string(&item.path), builder.string(&item.content)];
            parts.push(builder.table(&slots));
        }
        let items = builder.parts(&parts);
        vec![Slot::Union(1, builder.table(&[items]))]
    }

    fn read(table: &Table<'_>) -> Result<Self, FlatbufferError> {
        let (tag, embedded) = required(table.union(0)?, "SetAttachments.attachments")?;
        if tag != 1 {
            let tag = format_args!("(tag {tag})");
            return Err(FlatbufferError::bad_value("SetAttachments.attachments", &tag));
        }
        let items = required(embedded.tables(0)?, "AttachmentsEmbedded.items")?;
        let items = items.iter().map(|item| {
            Ok(Attachment {
                path: required(item.string(0)?, "AttachmentEmbedded.path")?,
                content: required(item.string(1)?, "AttachmentEmbedded.content")?,
            })
        });
        Ok(Self { items: items.collect::<Result<_, FlatbufferError>>()? })
    }
}

impl SetInfo {
    fn slots(&self, builder: &mut Builder) -> Vec<Slot> {
        vec![builder.optional_string(self.description.as_deref()), builder.optional_strings(self.keywords.as_deref())]
    }
}

impl SetLicense {
    fn slots(&self, builder: &mut Builder) -> Vec<Slot> {
        vec![
            builder.string(&self.short_name),
            builder.string(&self.name),
            builder.optional_string(self.spdx_id.as_deref()),
            builder.string(&self.website_url),
        ]
    }

    fn read(table: &Table<'_>) -> Result<Self, FlatbufferError> {
        Ok(Self {
            short_name: required(table.string(0)?, "SetLicense.short_name")?,
            name: required(table.string(1)?, "SetLicense.name")?,
            spdx_id: table.string(2)?,
            website_url: required(table.string(3)?, "SetLicense.website_url")?,
        })
    }
}

impl SetDataSchema {
    fn slots(&self, builder: &mut Builder) -> Vec<Slot> {
        let raw_arrow_schema = builder.optional_bytes(self.raw_arrow_schema.as_deref());
        let schema = self.schema.as_ref().map(|schema| schema.build(builder));
        vec![raw_arrow_schema, schema.map_or(Slot::Absent, Slot::Part)]
    }

    fn read(table: &Table<'_>) -> Result<Self, FlatbufferError> {
        let schema = table.table(1)?.map(|table| DataSchema::read(&table));
        Ok(Self { raw_arrow_schema: table.bytes(0)?.map(<[u8]>::to_vec), schema: schema.transpose()? })
    }
}

/// The struct `Timestamp`: year, day of the year from 1, second of the day, nanosecond; little endian, aligned to four.
pub(super) fn build_timestamp(time: DateTime<Utc>) -> Slot {
    let ordinal = u16::try_from(time.ordinal()).expect("a year has at most 366 days");
    let mut bytes = [0; 16];
    bytes[0..4].copy_from_slice(&time.year().to_le_bytes());
    bytes[4..6].copy_from_slice(&ordinal.to_le_bytes());
    bytes[8..12].copy_from_slice(&time.num_seconds_from_midnight().to_le_bytes());
    bytes[12..16].copy_from_slice(&time.nanosecond().to_le_bytes());
    Slot::Timestamp(bytes)
}

pub(super) fn read_timestamp(
    table: &Table<'_>,
    slot: usize,
    field: &'static str,
) -> Result<Option<DateTime<Utc>>, FlatbufferError> {
    let Some([y0, y1, y2, y3, o0, o1, _, _, s0, s1, s2, s3, n0, n1, n2, n3]) = table.timestamp(slot)? else {
        return Ok(None);
    };
    let year = i32::from_le_bytes([y0, y1, y2, y3]);
    let ordinal = u16::from_le_bytes([o0, o1]);
    let seconds = u32::from_le_bytes([s0, s1, s2, s3]);
    let nanoseconds = u32::from_le_bytes([n0, n1, n2, n3]);
    NaiveDate::from_yo_opt(year, ordinal.into())
        .zip(NaiveTime::from_num_seconds_from_midnight_opt(seconds, nanoseconds))
        .map(|(date, time)| Some(date.and_time(time).and_utc()))
        .ok_or_else(|| {
            let value = format_args!("year {year}, day {ordinal}, second {seconds}, ns {nanoseconds}");
            FlatbufferError::bad_value(field, &value)
        })
}

pub(super) fn read_hash(
    table: &Table<'_>,
    slot: usize,
    field: &'static str,
) -> Result<Option<Multihash>, FlatbufferError> {
    let hash = table.bytes(slot)?.map(Multihash::from_bytes).transpose();
    hash.map_err(|error| FlatbufferError::bad_value(field, &error))
}
