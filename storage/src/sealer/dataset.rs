//! One dataset: its repository, and how a batch gets into it.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::SealError;
use super::batch::{Plan, READ_BYTES, READ_MESSAGES, plan};
use crate::batcher::BatchLimits;
use crate::dataset::row::RowBuilder;
use crate::dataset::schema::Columns;
use crate::dataset::spec::DatasetSpec;
use crate::dataset::unknown::{UNKNOWN_NAMES_MAX, UnknownFields};
use crate::dead_letter::DeadLetter;
use crate::durable_fs::DurableFs;
use crate::message::Message;
use crate::odf::event::SetVocab;
use crate::odf::multihash::HashKind;
use crate::odf::repository::{AppendError, OpenError};
use crate::odf::{
    AddData, DataSchema, DataSlice, Event, Multihash, Repository, RuleViolation, SetDataSchema, SourceState,
};
use crate::position::{DatasetId, Offset, Seq};
use crate::slice::{self, Slice, SliceWriter};
use crate::spool::{SealCommit, Spool};

/// Begins the name of a counter of undeclared fields; the field's name follows.
const UNKNOWN_FIELD: &str = "unknown_field:";
/// Counts the undeclared fields beyond those that are told apart.
const UNKNOWN_FIELDS_OTHERS: &str = "unknown_fields_others";

/// What was sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Name of the dataset.
    pub dataset: String,
    /// Messages that left the spool.
    pub messages: u64,
    /// Their payload bytes.
    pub payload_bytes: u64,
    /// Rows of the slice.
    pub rows: u64,
    /// Messages that could not become rows.
    pub dead_letters: u64,
    /// Rows whose primary key the Ledger had.
    pub duplicates: u64,
    /// Bytes of the slice.
    pub bytes: u64,
    /// The head of the chain afterwards.
    pub head: Multihash,
    /// Receipt of the oldest message that is left, when the batch was full.
    pub rest_since_us: Option<i64>,
}

/// Seals one dataset.
pub struct DatasetSealer {
    id: DatasetId,
    spec: Arc<DatasetSpec>,
    gateway: String,
    repository: Repository,
    sealed: Seq,
    /// The last seal did not end well: what is on disk is looked at anew before the next one.
    must_reopen: bool,
}

/// What becomes of the messages of a batch besides rows.
#[derive(Default)]
struct Rest {
    dead_letters: Vec<DeadLetter>,
    keys: Vec<([u8; 16], Seq)>,
    duplicates: u64,
    /// How often each undeclared field came.
    unknown: Vec<(String, u64)>,
}

impl DatasetSealer {
    /// Opens the dataset's repository under `root`, or creates it; continues its schema; finishes what a crash interrupted.
    pub(super) fn open(
        spool: &Spool,
        fs: &DurableFs,
        root: &Path,
        gateway: &str,
        spec: &Arc<DatasetSpec>,
        now_us: i64,
    ) -> Result<Self, SealError> {
        let dir = root.join(&spec.name);
        let mut repository = match Repository::open(&dir, fs.clone()) {
            Err(OpenError::NoHead(_)) => Repository::create(&dir, fs.clone(), instant(now_us))?,
            opened => opened?,
        };
        let id = spool.dataset_id(&spec.name)?;
        repository.sweep_orphans(spool.released(id)?)?;
        declare(&mut repository, spec, instant(now_us))?;
        let sealed = spool.sealed(id)?;
        let mut dataset =
            Self { id, spec: Arc::clone(spec), gateway: gateway.to_owned(), repository, sealed, must_reopen: false };
        dataset.catch_up(spool)?;
        Ok(dataset)
    }

    /// Whether the chain allows this declaration, of which nothing is written.
    pub(super) fn check(&mut self, spool: &Spool, spec: &DatasetSpec, now_us: i64) -> Result<(), SealError> {
        self.make_ready(spool)?;
        check_declaration(&self.repository, spec, now_us)
    }

    /// Goes on with another declaration of the same dataset: what was not sealed before becomes rows by this one.
    pub(super) fn redeclare(&mut self, spool: &Spool, spec: &Arc<DatasetSpec>, now_us: i64) -> Result<(), SealError> {
        self.make_ready(spool)?;
        self.must_reopen = true;
        declare(&mut self.repository, spec, instant(now_us))?;
        self.must_reopen = false;
        self.spec = Arc::clone(spec);
        Ok(())
    }

    /// Seals one batch; `None` when there is no message.
    pub(super) fn seal(&mut self, spool: &Spool, limits: &BatchLimits) -> Result<Option<Sealed>, SealError> {
        self.make_ready(spool)?;
        self.must_reopen = true;
        let sealed = self.seal_batch(spool, limits)?;
        self.must_reopen = false;
        Ok(sealed)
    }

    fn make_ready(&mut self, spool: &Spool) -> Result<(), SealError> {
        if self.must_reopen {
            self.repository = Repository::open(self.repository.dir(), self.repository.fs().clone())?;
            self.repository.sweep_orphans(spool.released(self.id)?)?;
            self.catch_up(spool)?;
            self.must_reopen = false;
        }
        Ok(())
    }

    fn seal_batch(&mut self, spool: &Spool, limits: &BatchLimits) -> Result<Option<Sealed>, SealError> {
        let Some(plan) = plan(spool, self.id, self.sealed, limits)? else { return Ok(None) };
        let system_time = instant(plan.latest_received_us).max(self.repository.state().system_time);
        let (slice, rest) = self.write_slice(spool, &plan, system_time)?;
        if let Some(slice) = &slice {
            self.append_block(&plan, slice, system_time)?;
        }
        let rows = slice.map_or(0, |slice| slice.rows);
        let (dead_letters, duplicates) = (rest.dead_letters.len() as u64, rest.duplicates);
        self.commit(spool, plan.end, rows, rest)?;
        Ok(Some(Sealed {
            dataset: self.spec.name.clone(),
            messages: plan.messages,
            payload_bytes: plan.payload_bytes,
            rows,
            dead_letters,
            duplicates,
            bytes: slice.map_or(0, |slice| slice.size),
            head: self.repository.state().head,
            rest_since_us: plan.rest_since_us,
        }))
    }

    /// The chain is ahead of the spool when the commit that follows `refs/head` did not happen. What the slice does not hold
    /// was a duplicate or a dead letter then, and is so now, whatever the declaration says today.
    fn catch_up(&mut self, spool: &Spool) -> Result<(), SealError> {
        let Some(end) = chain_sealed(&self.repository) else { return Ok(()) };
        spool.raise_seq_floor(end)?;
        if end <= self.sealed {
            return Ok(());
        }
        let sealed_rows = self.last_slice_seqs()?;
        let mut rows = RowBuilder::new(&self.spec, &self.gateway);
        let mut rest = Rest::default();
        let mut keys = HashSet::new();
        for_each_message(spool, self.id, self.sealed, end, |seq, message| {
            let is_row = sealed_rows.contains(&seq.0);
            match rows.decode(seq, message).map(|row| row.facts().ledger_key) {
                Ok(Some(key)) if is_row => {
                    keys.insert(key);
                    rest.keys.push((key, seq));
                }
                _ if is_row => {}
                Ok(Some(key)) if keys.contains(&key) || spool.ledger_contains(self.id, &key)? => rest.duplicates += 1,
                Ok(_) => {
                    rest.bury(seq, message, "refused by an earlier declaration of the dataset", message.received_at_us);
                }
                Err(reason) => rest.bury(seq, message, &reason.to_string(), message.received_at_us),
            }
            Ok(())
        })?;
        tracing::info!(dataset = self.spec.name, sealed = end.0, "Finished a seal that was interrupted.");
        self.commit(spool, end, sealed_rows.len() as u64, rest)
    }

    /// The `seq` of each row of the newest slice.
    fn last_slice_seqs(&self) -> Result<HashSet<u64>, SealError> {
        let mut newest = None;
        for block in self.repository.blocks(None)? {
            if let Event::AddData(event) = block?.1.event {
                newest = event.new_data.or(newest);
            }
        }
        let Some(newest) = newest else { return Ok(HashSet::new()) };
        Ok(slice::read_seqs(&self.repository.data_path(&newest.physical_hash))?)
    }

    fn commit(&mut self, spool: &Spool, sealed: Seq, rows: u64, rest: Rest) -> Result<(), SealError> {
        let dead_letters = rest.dead_letters.len() as u64;
        let counts = [("rows", rows), ("duplicates", rest.duplicates), ("dead_letters", dead_letters)];
        let counts = counts.map(|(name, count)| (name.to_owned(), count)).into_iter().chain(rest.unknown);
        spool.commit_seal(&SealCommit {
            dataset: self.id,
            sealed,
            dead_letters: rest.dead_letters,
            ledger_keys: rest.keys,
            counters: counts.filter(|(_, count)| *count > 0).collect(),
        })?;
        self.sealed = sealed;
        Ok(())
    }

    /// Decodes the batch into a Parquet file that has its final name when this returns. `None` when no message became a
    /// row.
    fn write_slice(
        &self,
        spool: &Spool,
        plan: &Plan,
        system_time: DateTime<Utc>,
    ) -> Result<(Option<Slice>, Rest), SealError> {
        let mut rows = RowBuilder::new(&self.spec, &self.gateway);
        let file = self.repository.fs().create_temp(&self.repository.data_dir())?;
        let mut writer = SliceWriter::new(Arc::clone(rows.columns().schema()), file)?;
        let mut rest = Rest::default();
        let mut keys = HashSet::new();
        let mut offset = self.repository.state().next_offset;
        let mut flush = |rows: &mut RowBuilder| {
            let count = rows.len() as u64;
            let batch = rows.take_batch(offset, system_time.timestamp_millis());
            offset = Offset(offset.0 + count);
            writer.write(&batch)
        };
        for_each_message(spool, self.id, self.sealed, plan.end, |seq, message| {
            if rows.is_full() {
                flush(&mut rows)?;
            }
            let row = match rows.decode(seq, message) {
                Ok(row) => row,
                Err(reason) => {
                    rest.bury(seq, message, &reason.to_string(), plan.latest_received_us);
                    return Ok(());
                }
            };
            if let Some(key) = row.facts().ledger_key {
                if !keys.insert(key) || spool.ledger_contains(self.id, &key)? {
                    rest.duplicates += 1;
                    return Ok(());
                }
                rest.keys.push((key, seq));
            }
            row.append();
            Ok(())
        })?;
        flush(&mut rows)?;
        rest.unknown = unknown_counters(&spool.seal_counters(self.id)?, rows.unknown_fields());
        let (file, slice) = writer.finish()?;
        if slice.rows == 0 {
            return Ok((None, rest)); // the temporary file goes with `file`
        }
        let name = Multihash::new(HashKind::Sha3_256, slice.physical_hash);
        file.persist(&self.repository.data_path(&name))?;
        Ok((Some(slice), rest))
    }

    fn append_block(&mut self, plan: &Plan, slice: &Slice, system_time: DateTime<Utc>) -> Result<(), SealError> {
        let state = self.repository.state();
        let start = state.next_offset.0;
        // Never ahead of the system's own time: one device with a broken clock must not end everybody's windows.
        let event_time_max = slice.event_time_max.and_then(DateTime::from_timestamp_millis).min(Some(system_time));
        let last_seq = Seq(plan.end.0.saturating_sub(1));
        let event = AddData {
            prev_offset: state.prev_offset(),
            new_data: Some(DataSlice {
                logical_hash: Multihash::new(HashKind::Arrow0Sha3_256, slice.logical_hash),
                physical_hash: Multihash::new(HashKind::Sha3_256, slice.physical_hash),
                start,
                end: start + slice.rows - 1,
                size: slice.size,
            }),
            new_watermark: state.watermark.max(event_time_max),
            new_source_state: Some(SourceState::of_seq(last_seq)),
            ..AddData::default()
        };
        self.repository.append(&[Event::AddData(Box::new(event))], system_time)?;
        Ok(())
    }

    /// Its id in the spool.
    #[must_use]
    pub fn id(&self) -> DatasetId {
        self.id
    }

    /// What it declares.
    #[must_use]
    pub fn spec(&self) -> &Arc<DatasetSpec> {
        &self.spec
    }

    /// Its chain on disk.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The first `seq` that is not yet sealed.
    #[must_use]
    pub fn sealed(&self) -> Seq {
        self.sealed
    }
}

impl Rest {
    fn bury(&mut self, seq: Seq, message: &Message, reason: &str, at_us: i64) {
        self.dead_letters.push(DeadLetter { seq, message: message.clone(), reason: reason.to_owned(), at_us });
    }
}

/// Undeclared fields as counters of the dataset. No more names than a batch may tell apart are ever kept: the rest is
/// counted together.
fn unknown_counters(kept: &BTreeMap<String, u64>, unknown: &UnknownFields) -> Vec<(String, u64)> {
    let mut room = UNKNOWN_NAMES_MAX.saturating_sub(kept.keys().filter(|name| name.starts_with(UNKNOWN_FIELD)).count());
    let (mut counters, mut others) = (Vec::new(), unknown.others);
    for (name, count) in &unknown.by_name {
        let name = format!("{UNKNOWN_FIELD}{name}");
        let is_kept = kept.contains_key(&name);
        if is_kept || room > 0 {
            room -= usize::from(!is_kept);
            counters.push((name, *count));
        } else {
            others += count;
        }
    }
    counters.push((UNKNOWN_FIELDS_OTHERS.to_owned(), others));
    counters
}

/// Copies the messages of `[from; end)` out of the spool piece by piece: no read transaction is open while they are encoded.
fn for_each_message(
    spool: &Spool,
    id: DatasetId,
    from: Seq,
    end: Seq,
    mut work: impl FnMut(Seq, &Message) -> Result<(), SealError>,
) -> Result<(), SealError> {
    let mut next = from;
    while next < end {
        let read = spool.read(next, Some(id), READ_MESSAGES, READ_BYTES)?;
        for (seq, message) in read.messages.iter().take_while(|(seq, _)| *seq < end) {
            work(*seq, message)?;
        }
        if read.next <= next {
            break;
        }
        next = read.next;
    }
    Ok(())
}

/// Says in the chain what must be said before the first row: the names of the columns, and the columns.
fn declare(repository: &mut Repository, spec: &DatasetSpec, now: DateTime<Utc>) -> Result<(), SealError> {
    let (events, system_time) = declaration(repository, spec, now)?;
    compatible(spec, repository.append(&events, system_time))
}

/// As of [`super::check`].
pub(super) fn check(root: &Path, fs: &DurableFs, spec: &DatasetSpec, now_us: i64) -> Result<(), SealError> {
    let repository = Repository::open(&root.join(&spec.name), fs.clone());
    repository.map_or(Ok(()), |repository| check_declaration(&repository, spec, now_us))
}

fn check_declaration(repository: &Repository, spec: &DatasetSpec, now_us: i64) -> Result<(), SealError> {
    let (events, system_time) = declaration(repository, spec, instant(now_us))?;
    compatible(spec, repository.check(&events, system_time))
}

/// What the chain does not say yet of this declaration, and its time.
fn declaration(
    repository: &Repository,
    spec: &DatasetSpec,
    now: DateTime<Utc>,
) -> Result<(Vec<Event>, DateTime<Utc>), SealError> {
    let columns = Columns::new(spec);
    let schema = DataSchema::from_arrow(columns.schema()).map_err(|error| incompatible(spec, error.to_string()))?;
    let state = repository.state();
    let mut events = Vec::new();
    let system_time = now.max(state.system_time);
    if state.schema.as_ref() == Some(&schema) {
        return Ok((events, system_time));
    }
    let event_time_column = Some(columns.event_time().to_owned()).filter(|name| name != "event_time");
    if state.vocab.event_time_column != event_time_column {
        if state.schema.is_some() {
            return Err(incompatible(spec, format!("the event-time column is now {}", columns.event_time())));
        }
        events.push(Event::SetVocab(SetVocab { event_time_column, ..SetVocab::default() }));
    }
    events.push(Event::SetDataSchema(SetDataSchema { raw_arrow_schema: None, schema: Some(schema) }));
    Ok((events, system_time))
}

fn compatible<T>(spec: &DatasetSpec, appended: Result<T, AppendError>) -> Result<(), SealError> {
    match appended {
        Err(AppendError::Rule(RuleViolation::SchemaEvolution(difference))) => Err(incompatible(spec, difference)),
        appended => Ok(appended.map(drop)?),
    }
}

fn incompatible(spec: &DatasetSpec, difference: String) -> SealError {
    SealError::Incompatible { dataset: spec.name.clone(), difference }
}

/// The first `seq` that the chain does not account for.
fn chain_sealed(repository: &Repository) -> Option<Seq> {
    Some(repository.state().source_state.as_ref()?.seq()?.next())
}

/// Datasets keep milliseconds.
fn instant(us: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(us.div_euclid(1_000)).unwrap_or_default()
}
