//! From messages to Arrow batches.
//!
//! A message is decoded as a whole first. Only a whole row is appended, so one that is refused leaves no trace, and its
//! neighbours do not notice it. Rows stay in the order in which they are pushed, that of their `seq`.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, TimestampMillisecondArray};
use arrow::record_batch::RecordBatch;

use crate::dataset::column::Column;
use crate::dataset::decode::scratch::{Cell, Scratch};
use crate::dataset::decode::{Decoder, RowError};
use crate::dataset::ledger_key::{KeyColumn, KeyHasher, key_columns};
use crate::dataset::schema::{Columns, Source};
use crate::dataset::spec::DatasetSpec;
use crate::dataset::unknown::UnknownFields;
use crate::message::Message;
use crate::position::{Offset, Seq};

/// Rows after which [`RowBuilder::is_full`] asks for the batch to be taken.
pub const BATCH_ROWS_MAX: usize = 4_096;
/// Bytes of payloads, topics and names after which [`RowBuilder::is_full`] asks for the batch to be taken.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes at which a row is refused with [`RowError::BatchFull`]: Arrow's text columns end at 2 GiB.
const BATCH_BYTES_LIMIT: usize = 1024 * 1024 * 1024;
/// What a row takes beside its texts, about.
const ROW_BYTES: usize = 64;
/// ODF `op` of a row that is added.
const OP_APPEND: i32 = 0;
const MILLIS_PER_DAY: i64 = 86_400_000;

/// Gathers the rows of one dataset.
#[derive(Debug)]
pub struct RowBuilder {
    decoder: Decoder,
    columns: Columns,
    /// One for each column; those that [`RowBuilder::take_batch`] makes stay empty.
    gathered: Vec<Column>,
    gateway: String,
    capture_count: usize,
    event_time_field: Option<usize>,
    tolerance_ms: i64,
    key: Option<Vec<KeyColumn>>,
    key_hasher: KeyHasher,
    scratch: Scratch,
    unknown: UnknownFields,
    rows: usize,
    bytes: usize,
}

/// What the sealer needs to know of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowFacts {
    /// Event time, milliseconds since 1970.
    pub event_time_ms: i64,
    /// Key of the row, when the dataset is a Ledger.
    pub ledger_key: Option<[u8; 16]>,
}

/// A decoded row that is not yet in the batch. Dropped, it leaves no trace: that is how a Ledger skips a row it has.
#[derive(Debug)]
#[must_use = "append it, or let it go"]
pub struct Row<'a> {
    builder: &'a mut RowBuilder,
    seq: Seq,
    message: &'a Message,
    facts: RowFacts,
}

impl RowBuilder {
    /// For a valid spec. `gateway` is this gateway's name, half of the exactly-once key.
    #[must_use]
    pub fn new(spec: &DatasetSpec, gateway: &str) -> Self {
        let columns = Columns::new(spec);
        let is_event_time = |name: &String| spec.fields.iter().position(|field| field.name == *name);
        Self {
            decoder: Decoder::new(spec),
            gathered: columns.schema().fields().iter().map(|field| Column::new(field.data_type())).collect(),
            columns,
            gateway: gateway.to_owned(),
            capture_count: spec.captures.len(),
            event_time_field: spec.event_time.as_ref().and_then(is_event_time),
            tolerance_ms: i64::try_from(spec.event_time_tolerance.as_millis()).unwrap_or(i64::MAX),
            key: key_columns(spec),
            key_hasher: KeyHasher::default(),
            scratch: Scratch::default(),
            unknown: UnknownFields::default(),
            rows: 0,
            bytes: 0,
        }
    }

    /// The columns of the batches.
    #[must_use]
    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    /// Decodes a message and appends its row.
    pub fn push(&mut self, seq: Seq, message: &Message) -> Result<RowFacts, RowError> {
        let row = self.decode(seq, message)?;
        let facts = row.facts();
        row.append();
        Ok(facts)
    }

    /// Decodes a message; the row is added by [`Row::append`].
    pub fn decode<'a>(&'a mut self, seq: Seq, message: &'a Message) -> Result<Row<'a>, RowError> {
        if self.bytes >= BATCH_BYTES_LIMIT {
            return Err(RowError::BatchFull);
        }
        self.check_topic(message)?;
        self.decoder.decode(&message.payload, &mut self.scratch)?;
        let facts = RowFacts { event_time_ms: self.event_time(message)?, ledger_key: self.ledger_key(message) };
        Ok(Row { builder: self, seq, message, facts })
    }

    /// Rows gathered since the last batch.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// No rows are gathered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// [`BATCH_ROWS_MAX`] or [`BATCH_BYTES_MAX`] is reached: take the batch before the next push, so that memory stays small.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.rows >= BATCH_ROWS_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    /// Undeclared fields of the rows appended so far, over all batches.
    #[must_use]
    pub fn unknown_fields(&self) -> &UnknownFields {
        &self.unknown
    }

    /// Takes the gathered rows, the first at `first_offset`, all with this `system_time`.
    pub fn take_batch(&mut self, first_offset: Offset, system_time_ms: i64) -> RecordBatch {
        let rows = self.rows;
        let first = to_i64(first_offset.0);
        let arrays = self.columns.sources().iter().zip(&mut self.gathered).map(|(source, column)| -> ArrayRef {
            match source {
                Source::Offset => Arc::new(Int64Array::from_iter_values((first..).take(rows))),
                Source::Op => Arc::new(Int32Array::from_value(OP_APPEND, rows)),
                Source::SystemTime => {
                    Arc::new(TimestampMillisecondArray::from_value(system_time_ms, rows).with_timezone("UTC"))
                }
                _ => column.finish(),
            }
        });
        let arrays = arrays.collect();
        (self.rows, self.bytes) = (0, 0);
        RecordBatch::try_new(Arc::clone(self.columns.schema()), arrays)
            .expect("every row appended one checked value to every column")
    }

    fn check_topic(&self, message: &Message) -> Result<(), RowError> {
        let found = message.captures.len();
        if found != self.capture_count {
            return Err(RowError::Captures { expected: self.capture_count, found });
        }
        let topic = topic_of(message).ok_or(RowError::Topic)?;
        let inside = |range| capture_of(topic, range).is_some();
        if message.captures.iter().all(inside) { Ok(()) } else { Err(RowError::Topic) }
    }

    /// The event time, when it can be one. It is held against the time of receipt only if the gateway's clock was right at
    /// that time: a gateway that booted in 1970 would refuse every honest device.
    fn event_time(&self, message: &Message) -> Result<i64, RowError> {
        let received_ms = received_ms(message);
        let event_time_ms = match self.event_time_field.and_then(|index| self.scratch.cells.get(index)) {
            Some(Cell::Millis(millis)) => *millis,
            Some(Cell::Date(days)) => i64::from(*days) * MILLIS_PER_DAY,
            _ => return Ok(received_ms),
        };
        if event_time_ms < 0 {
            return Err(RowError::EventTimeBefore1970 { event_time_ms });
        }
        let tolerance_ms = self.tolerance_ms;
        if message.flags.clock_synchronised && event_time_ms > received_ms.saturating_add(tolerance_ms) {
            return Err(RowError::EventTimeAhead { event_time_ms, received_ms, tolerance_ms });
        }
        Ok(event_time_ms)
    }

    fn ledger_key(&mut self, message: &Message) -> Option<[u8; 16]> {
        let topic = topic_of(message).unwrap_or_default();
        for column in self.key.as_deref()? {
            match column {
                KeyColumn::Capture(index) => {
                    self.key_hasher.push(nth_capture(message, topic, *index).unwrap_or_default().as_bytes());
                }
                KeyColumn::Field(index) => self.key_hasher.push_cell(&self.scratch.cells[*index], &self.scratch),
            }
        }
        Some(self.key_hasher.finish())
    }

    fn append(&mut self, seq: Seq, message: &Message) {
        let topic = topic_of(message).unwrap_or_default();
        let extra = self.scratch.take_extra();
        let flags = message.flags;
        let instant = Cell::Millis(received_ms(message));
        for (source, column) in self.columns.sources().iter().zip(&mut self.gathered) {
            let scratch = &self.scratch;
            match *source {
                Source::Offset | Source::Op | Source::SystemTime => {}
                Source::ReceiptAsEventTime | Source::ReceivedAt => column.append(&instant, scratch),
                Source::Gateway => column.append_text(Some(&self.gateway)),
                Source::Seq => column.append(&Cell::Signed(to_i64(seq.0)), scratch),
                Source::Capture(index) => column.append_text(nth_capture(message, topic, index)),
                Source::Field(index) => column.append(&scratch.cells[index], scratch),
                Source::Topic => column.append_text(Some(topic)),
                Source::ClientId => column.append_text(Some(message.publisher().name())),
                Source::Via => column.append_text(message.publisher().source()),
                Source::Qos => column.append(&Cell::Signed(flags.qos.into()), scratch),
                Source::Retain => column.append(&Cell::Bool(flags.retain), scratch),
                Source::Clock => column.append_text(Some(clock_word(flags.clock_synchronised))),
                Source::Extra => column.append_text(extra.as_deref()),
            }
        }
        self.unknown.count(&mut self.scratch.unknown);
        self.rows += 1;
        let texts = self.gateway.len() + message.topic.len() + message.client_id.len();
        self.bytes += ROW_BYTES + texts + message.payload.len();
    }
}

impl Row<'_> {
    /// What the sealer needs to know.
    #[must_use]
    pub fn facts(&self) -> RowFacts {
        self.facts
    }

    /// Adds the row to the batch.
    pub fn append(self) {
        self.builder.append(self.seq, self.message);
    }
}

/// When the message came, milliseconds since 1970 and never before.
fn received_ms(message: &Message) -> i64 {
    message.received_at_us.div_euclid(1_000).max(0)
}

fn topic_of(message: &Message) -> Option<&str> {
    std::str::from_utf8(&message.topic).ok()
}

fn nth_capture<'a>(message: &Message, topic: &'a str, index: usize) -> Option<&'a str> {
    capture_of(topic, message.captures.get(index)?)
}

fn capture_of<'a>(topic: &'a str, range: &Range<u16>) -> Option<&'a str> {
    topic.get(usize::from(range.start)..usize::from(range.end))
}

fn clock_word(synchronised: bool) -> &'static str {
    if synchronised { "synchronised" } else { "unsynchronised" }
}

/// Positions count messages from zero and do not reach 2^63.
fn to_i64(position: u64) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}
