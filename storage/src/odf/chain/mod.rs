//! The rules by which one block may follow another. Pure.
//!
//! [`ChainState`] is what a chain has said so far; [`ChainState::accept`] is the only way to move it on. The same rules
//! serve writing (a block is refused before it reaches the disk), opening, verifying, and judging what a node holds. They
//! are the ones a node enforces when it pulls a chain or is pushed one (ODF spec, "Metadata chain"; RFC-009, RFC-015), so
//! that what is accepted here is accepted there.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};

use super::block::MetadataBlock;
use super::event::{AddData, DatasetKind, Event, OpaqueEvent, Seed, SetDataSchema, SetVocab, SourceState};
use super::multihash::{DatasetDid, Multihash};
use super::push_source::AddPushSource;
use super::schema::DataSchema;
use crate::position::Offset;

/// What a chain has said up to its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainState {
    /// Whose chain it is.
    pub dataset_id: DatasetDid,
    /// The newest block.
    pub head: Multihash,
    /// Its number; the first block has 0.
    pub sequence_number: u64,
    /// Its time.
    pub system_time: DateTime<Utc>,
    /// The first offset that no row has yet.
    pub next_offset: Offset,
    /// Event time before which no more rows are expected.
    pub watermark: Option<DateTime<Utc>>,
    /// The columns; absent before the first `SetDataSchema`, and for good after a legacy one.
    pub schema: Option<DataSchema>,
    /// Names of the system columns.
    pub vocab: SetVocab,
    /// How far the source was read: the newest state that an `AddData` carried.
    pub source_state: Option<SourceState>,
    /// Slices in the chain.
    pub slices: u64,
    /// Their size, bytes.
    pub data_bytes: u64,
    schema_block: Option<SetDataSchema>,
    checkpoint: Option<Multihash>,
    push_sources: BTreeMap<String, AddPushSource>,
    has_polling_source: bool,
}

/// A block that must not follow. The text names the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleViolation {
    /// The first block is something else.
    #[error("the first block of a chain must be Seed; this one is {found}")]
    SeedFirst {
        /// The event found.
        found: &'static str,
    },
    /// A second Seed.
    #[error("only the first block of a chain may be Seed")]
    SeedOnce,
    /// A first block with a predecessor or a number.
    #[error("the first block must have sequence number 0 and no previous block")]
    SeedPosition,
    /// Derivative datasets are computed, never gathered.
    #[error("the dataset is Derivative; a gateway writes and checks Root datasets only")]
    RootOnly,
    /// An event of derivative datasets.
    #[error("a Root dataset cannot have {found}")]
    EventOfDerivative {
        /// The event found.
        found: &'static str,
    },
    /// A gap or a repetition.
    #[error("sequence numbers go up by one: expected {expected}, found {found}")]
    SequenceNumber {
        /// One more than the previous.
        expected: u64,
        /// The block's.
        found: u64,
    },
    /// Follows another block.
    #[error("the previous block must be the head {expected}; this one names {}", .found.map_or("none".to_owned(), |hash| hash.to_string()))]
    PrevBlock {
        /// The head.
        expected: Multihash,
        /// The block's.
        found: Option<Multihash>,
    },
    /// Made before its predecessor.
    #[error("system time never goes back: {} is before {}", utc(.found), utc(.previous))]
    SystemTime {
        /// Of the previous block.
        previous: DateTime<Utc>,
        /// The block's.
        found: DateTime<Utc>,
    },
    /// Lower than before.
    #[error("the watermark never goes back: {} is before {}", utc(.found), utc(.previous))]
    WatermarkBack {
        /// The last one.
        previous: DateTime<Utc>,
        /// The block's.
        found: DateTime<Utc>,
    },
    /// Left out after it was set.
    #[error("the watermark, once set, is carried on every AddData: this one drops {}", utc(.previous))]
    WatermarkDropped {
        /// The last one.
        previous: DateTime<Utc>,
    },
    /// A gap, an overlap, or an interval that is none.
    #[error("offsets follow one another: expected a slice from {expected}, found [{start}; {end}]")]
    Offsets {
        /// The first free offset.
        expected: u64,
        /// The slice's first.
        start: u64,
        /// The slice's last.
        end: u64,
    },
    /// Names another last offset.
    #[error("prev_offset must be the last offset of the data before: expected {}, found {}", number(.expected), number(.found))]
    PrevOffset {
        /// The last offset.
        expected: Option<u64>,
        /// The block's.
        found: Option<u64>,
    },
    /// Rows before columns.
    #[error("SetDataSchema must come before the first data")]
    SchemaFirst,
    /// Names another checkpoint.
    #[error("prev_checkpoint must be the last checkpoint: expected {expected:?}, found {found:?}")]
    Checkpoint {
        /// The last checkpoint.
        expected: Option<Multihash>,
        /// The block's.
        found: Option<Multihash>,
    },
    /// Says nothing new.
    #[error("AddData must bring rows or change the watermark, the checkpoint or the source state")]
    NoOpAddData,
    /// Says nothing at all, or what was said.
    #[error("SetDataSchema must change the schema")]
    NoOpSchema,
    /// Would make the rows that are there unreadable.
    #[error("a schema may only gain optional columns, be reordered or change attributes: {0}")]
    SchemaEvolution(String),
    /// Says what was said.
    #[error("AddPushSource must change the source `{0}`")]
    NoOpPushSource(String),
    /// A source of the other kind is active.
    #[error("a dataset has push sources or a polling source, not both")]
    SourceKinds,
    /// Nothing to disable.
    #[error("{0} is not active and cannot be disabled")]
    NoSuchSource(String),
}

impl ChainState {
    /// The state after the first block.
    pub fn start(hash: Multihash, block: &MetadataBlock) -> Result<Self, RuleViolation> {
        let Event::Seed(Seed { dataset_id, dataset_kind }) = block.event else {
            return Err(RuleViolation::SeedFirst { found: block.event.name() });
        };
        if block.sequence_number != 0 || block.prev_block_hash.is_some() {
            return Err(RuleViolation::SeedPosition);
        }
        if dataset_kind != DatasetKind::Root {
            return Err(RuleViolation::RootOnly);
        }
        Ok(Self {
            dataset_id,
            head: hash,
            sequence_number: 0,
            system_time: block.system_time,
            next_offset: Offset(0),
            watermark: None,
            schema: None,
            vocab: SetVocab::default(),
            source_state: None,
            slices: 0,
            data_bytes: 0,
            schema_block: None,
            checkpoint: None,
            push_sources: BTreeMap::new(),
            has_polling_source: false,
        })
    }

    /// The block that would follow, saying `event`. Checked by [`accept`](Self::accept).
    #[must_use]
    pub fn next_block(&self, event: Event, system_time: DateTime<Utc>) -> MetadataBlock {
        MetadataBlock {
            system_time,
            prev_block_hash: Some(self.head),
            sequence_number: self.sequence_number + 1,
            event,
        }
    }

    /// The last offset that a row has.
    #[must_use]
    pub fn prev_offset(&self) -> Option<u64> {
        self.next_offset.0.checked_sub(1)
    }

    /// Moves on to `block`, whose hash is `hash`, or leaves the state as it was and says which rule the block breaks.
    pub fn accept(&mut self, hash: Multihash, block: &MetadataBlock) -> Result<(), RuleViolation> {
        self.check_link(block)?;
        match &block.event {
            Event::Seed(_) => return Err(RuleViolation::SeedOnce),
            Event::AddData(event) => self.accept_data(event)?,
            Event::SetDataSchema(event) => self.accept_schema(event)?,
            Event::SetVocab(event) => self.vocab = event.clone(),
            Event::AddPushSource(event) => self.accept_push_source(event)?,
            Event::DisablePushSource { source_name } => self
                .push_sources
                .remove(source_name)
                .map(drop)
                .ok_or_else(|| RuleViolation::NoSuchSource(format!("push source `{source_name}`")))?,
            Event::DisablePollingSource => self.disable_polling()?,
            Event::Opaque(event) => self.accept_opaque(*event)?,
            Event::SetAttachments(_) | Event::SetInfo(_) | Event::SetLicense(_) => {}
        }
        self.head = hash;
        self.sequence_number = block.sequence_number;
        self.system_time = block.system_time;
        Ok(())
    }

    fn check_link(&self, block: &MetadataBlock) -> Result<(), RuleViolation> {
        let expected = self.sequence_number + 1;
        if block.sequence_number != expected {
            return Err(RuleViolation::SequenceNumber { expected, found: block.sequence_number });
        }
        if block.prev_block_hash != Some(self.head) {
            return Err(RuleViolation::PrevBlock { expected: self.head, found: block.prev_block_hash });
        }
        if block.system_time < self.system_time {
            return Err(RuleViolation::SystemTime { previous: self.system_time, found: block.system_time });
        }
        Ok(())
    }

    fn accept_data(&mut self, event: &AddData) -> Result<(), RuleViolation> {
        self.check_no_op(event)?;
        if event.prev_checkpoint != self.checkpoint {
            return Err(RuleViolation::Checkpoint { expected: self.checkpoint, found: event.prev_checkpoint });
        }
        if event.prev_offset != self.prev_offset() {
            return Err(RuleViolation::PrevOffset { expected: self.prev_offset(), found: event.prev_offset });
        }
        self.check_watermark(event)?;
        let next_offset = self.check_slice(event)?;

        if let Some(slice) = &event.new_data {
            self.slices += 1;
            self.data_bytes = self.data_bytes.saturating_add(slice.size);
        }
        self.next_offset = next_offset;
        self.watermark = event.new_watermark;
        if let Some(checkpoint) = &event.new_checkpoint {
            self.checkpoint = Some(checkpoint.physical_hash);
        }
        if event.new_source_state.is_some() {
            self.source_state.clone_from(&event.new_source_state);
        }
        Ok(())
    }

    fn check_no_op(&self, event: &AddData) -> Result<(), RuleViolation> {
        let new_state = event.new_source_state.is_some() && event.new_source_state != self.source_state;
        let new_watermark = event.new_watermark != self.watermark;
        if event.new_data.is_some() || event.new_checkpoint.is_some() || new_watermark || new_state {
            return Ok(());
        }
        Err(RuleViolation::NoOpAddData)
    }

    fn check_watermark(&self, event: &AddData) -> Result<(), RuleViolation> {
        match (self.watermark, event.new_watermark) {
            (Some(previous), None) => Err(RuleViolation::WatermarkDropped { previous }),
            (Some(previous), Some(found)) if found < previous => Err(RuleViolation::WatermarkBack { previous, found }),
            _ => Ok(()),
        }
    }

    /// The offset after the slice.
    fn check_slice(&self, event: &AddData) -> Result<Offset, RuleViolation> {
        let Some(slice) = &event.new_data else {
            return Ok(self.next_offset);
        };
        if self.schema_block.is_none() {
            return Err(RuleViolation::SchemaFirst);
        }
        let (start, end) = (slice.start, slice.end);
        match end.checked_add(1) {
            Some(next) if start == self.next_offset.0 && end >= start => Ok(Offset(next)),
            _ => Err(RuleViolation::Offsets { expected: self.next_offset.0, start, end }),
        }
    }

    fn accept_schema(&mut self, event: &SetDataSchema) -> Result<(), RuleViolation> {
        let is_empty = event.schema.is_none() && event.raw_arrow_schema.is_none();
        if is_empty || self.schema_block.as_ref() == Some(event) {
            return Err(RuleViolation::NoOpSchema);
        }
        if let (Some(old), Some(new)) = (&self.schema, &event.schema) {
            check_evolution(old, new)?;
        }
        self.schema.clone_from(&event.schema);
        self.schema_block = Some(event.clone());
        Ok(())
    }

    fn accept_push_source(&mut self, event: &AddPushSource) -> Result<(), RuleViolation> {
        if self.has_polling_source {
            return Err(RuleViolation::SourceKinds);
        }
        if self.push_sources.get(&event.source_name) == Some(event) {
            return Err(RuleViolation::NoOpPushSource(event.source_name.clone()));
        }
        self.push_sources.insert(event.source_name.clone(), event.clone());
        Ok(())
    }

    fn disable_polling(&mut self) -> Result<(), RuleViolation> {
        if !self.has_polling_source {
            return Err(RuleViolation::NoSuchSource("the polling source".to_owned()));
        }
        self.has_polling_source = false;
        Ok(())
    }

    fn accept_opaque(&mut self, event: OpaqueEvent) -> Result<(), RuleViolation> {
        match event.name() {
            "SetPollingSource" if !self.push_sources.is_empty() => Err(RuleViolation::SourceKinds),
            "SetPollingSource" => {
                self.has_polling_source = true;
                Ok(())
            }
            found @ ("SetTransform" | "ExecuteTransform") => Err(RuleViolation::EventOfDerivative { found }),
            _ => Ok(()),
        }
    }
}

/// Rows written under `old` must be readable under `new`.
fn check_evolution(old: &DataSchema, new: &DataSchema) -> Result<(), RuleViolation> {
    for field in &old.fields {
        let Some(kept) = new.field(&field.name) else {
            let text = format!("column `{}` is gone", field.name);
            return Err(RuleViolation::SchemaEvolution(text));
        };
        if !kept.data_type.is_same_type(&field.data_type) {
            let (name, old, new) = (&field.name, field.data_type.name(), kept.data_type.name());
            let text = format!("column `{name}` was {old} and becomes {new}");
            return Err(RuleViolation::SchemaEvolution(text));
        }
    }
    let added = new.fields.iter().filter(|field| old.field(&field.name).is_none());
    for field in added {
        if !field.data_type.is_optional() {
            let text = format!("the new column `{}` is not optional", field.name);
            return Err(RuleViolation::SchemaEvolution(text));
        }
    }
    Ok(())
}

fn utc(time: &DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

fn number(offset: &Option<u64>) -> String {
    offset.map_or("none".to_owned(), |offset| offset.to_string())
}

#[cfg(test)]
mod tests;
