//! Each append rule by name: a block that keeps it is accepted, one that breaks it is refused and changes nothing.

use super::*;
use crate::odf::event::{Checkpoint, DataSlice, SetInfo};
use crate::odf::multihash::HashKind;
use crate::odf::push_source::{MergeStrategy, ReadStep, ReadText};
use crate::odf::schema::{DataField, DataType};

#[test]
fn the_first_block_is_seed() {
    let block = first(Event::SetInfo(SetInfo::default()));

    let result = ChainState::start(hash(0), &block);

    assert_eq!(result, Err(RuleViolation::SeedFirst { found: "SetInfo" }));
}

#[test]
fn the_first_block_has_number_0_and_no_predecessor() {
    let numbered = MetadataBlock { sequence_number: 1, ..first(seed()) };
    let linked = MetadataBlock { prev_block_hash: Some(hash(9)), ..first(seed()) };

    for block in [numbered, linked] {
        assert_eq!(ChainState::start(hash(0), &block), Err(RuleViolation::SeedPosition));
    }
}

#[test]
fn a_derivative_dataset_is_refused() {
    let seed = Seed { dataset_id: DatasetDid::from_public_key([1; 32]), dataset_kind: DatasetKind::Derivative };

    let result = ChainState::start(hash(0), &first(Event::Seed(seed)));

    assert_eq!(result, Err(RuleViolation::RootOnly));
}

#[test]
fn there_is_one_seed() {
    assert_eq!(Chain::new().append(seed()), Err(RuleViolation::SeedOnce));
}

#[test]
fn sequence_numbers_go_up_by_one() {
    let mut chain = Chain::new();
    for number in [0, 2, u64::MAX] {
        let mut block = chain.state.next_block(info(), time(1));
        block.sequence_number = number;

        let result = chain.accept(&block);

        assert_eq!(result, Err(RuleViolation::SequenceNumber { expected: 1, found: number }));
    }
}

#[test]
fn the_previous_block_is_the_head() {
    let mut chain = Chain::new();
    for found in [None, Some(hash(77))] {
        let mut block = chain.state.next_block(info(), time(1));
        block.prev_block_hash = found;

        let result = chain.accept(&block);

        assert_eq!(result, Err(RuleViolation::PrevBlock { expected: hash(0), found }));
    }
}

#[test]
fn system_time_never_goes_back() {
    let mut chain = Chain::new();
    chain.append_at(info(), time(10)).unwrap();
    chain.append_at(info(), time(10)).unwrap();

    let result = chain.append_at(info(), time(9));

    assert_eq!(result, Err(RuleViolation::SystemTime { previous: time(10), found: time(9) }));
}

#[test]
fn the_schema_comes_before_the_first_data() {
    assert_eq!(Chain::new().append(data(0, 4)), Err(RuleViolation::SchemaFirst));
}

#[test]
fn offsets_follow_one_another() {
    let mut chain = Chain::with_schema();
    chain.append(data(0, 4)).unwrap();

    for (start, end) in [(4, 8), (6, 8), (0, 4), (5, 4), (5, u64::MAX)] {
        let event = AddData { new_data: Some(slice(start, end)), prev_offset: Some(4), ..AddData::default() };
        let result = chain.append(Event::AddData(Box::new(event)));
        assert_eq!(result, Err(RuleViolation::Offsets { expected: 5, start, end }));
    }
    chain.append(data(5, 5)).unwrap();
    assert_eq!((chain.state.next_offset, chain.state.slices, chain.state.data_bytes), (Offset(6), 2, 200));
}

#[test]
fn the_first_offset_is_0() {
    let mut chain = Chain::with_schema();
    let event = AddData { new_data: Some(slice(1, 2)), ..AddData::default() };

    let result = chain.append(Event::AddData(Box::new(event)));

    assert_eq!(result, Err(RuleViolation::Offsets { expected: 0, start: 1, end: 2 }));
}

#[test]
fn prev_offset_is_the_last_offset_before() {
    let mut chain = Chain::with_schema();
    chain.append(data(0, 4)).unwrap();

    for found in [None, Some(3), Some(5)] {
        let event = AddData { new_data: Some(slice(5, 6)), prev_offset: found, ..AddData::default() };
        let result = chain.append(Event::AddData(Box::new(event)));
        assert_eq!(result, Err(RuleViolation::PrevOffset { expected: Some(4), found }));
    }
}

#[test]
fn the_watermark_never_goes_back() {
    let mut chain = Chain::with_schema();
    chain.append(watermark(Some(time(10)))).unwrap();

    let result = chain.append(watermark(Some(time(9))));

    assert_eq!(result, Err(RuleViolation::WatermarkBack { previous: time(10), found: time(9) }));
    assert_eq!(chain.state.watermark, Some(time(10)));
}

#[test]
fn the_watermark_once_set_is_carried_on() {
    let mut chain = Chain::with_schema();
    chain.append(watermark(Some(time(10)))).unwrap();

    let result = chain.append(data(0, 4));

    assert_eq!(result, Err(RuleViolation::WatermarkDropped { previous: time(10) }));
}

#[test]
fn add_data_says_something_new() {
    let mut chain = Chain::with_schema();
    let state = SourceState { source_name: "default".into(), kind: "seq".into(), value: "7".into() };
    let event = AddData { new_source_state: Some(state.clone()), ..AddData::default() };
    chain.append(Event::AddData(Box::new(event.clone()))).unwrap();

    assert_eq!(chain.append(Event::AddData(Box::new(event))), Err(RuleViolation::NoOpAddData));
    assert_eq!(chain.append(Event::AddData(Box::default())), Err(RuleViolation::NoOpAddData));
    assert_eq!(chain.state.source_state, Some(state));
}

#[test]
fn checkpoints_follow_one_another() {
    let mut chain = Chain::with_schema();
    let add = |prev, new| {
        let new_checkpoint = Some(Checkpoint { physical_hash: hash(new), size: 1 });
        Event::AddData(Box::new(AddData { prev_checkpoint: prev, new_checkpoint, ..AddData::default() }))
    };
    chain.append(add(None, 40)).unwrap();

    for found in [None, Some(hash(39))] {
        let result = chain.append(add(found, 41));
        assert_eq!(result, Err(RuleViolation::Checkpoint { expected: Some(hash(40)), found }));
    }
    chain.append(add(Some(hash(40)), 41)).unwrap();
}

#[test]
fn a_schema_is_not_set_twice_nor_to_nothing() {
    let mut chain = Chain::with_schema();

    assert_eq!(chain.append(schema(&COLUMNS)), Err(RuleViolation::NoOpSchema));
    let nothing = Event::SetDataSchema(SetDataSchema::default());
    assert_eq!(chain.append(nothing), Err(RuleViolation::NoOpSchema));
}

#[test]
fn a_schema_may_gain_optional_columns_be_reordered_and_change_attributes() {
    let mut chain = Chain::with_schema();

    chain.append(schema(&[COLUMNS[1], COLUMNS[0], ("c", "String?")])).unwrap();
    let Event::SetDataSchema(mut attributed) = schema(&[COLUMNS[1], COLUMNS[0], ("c", "String?")]) else {
        unreachable!()
    };
    attributed.schema.as_mut().unwrap().fields[0].extra = Some("{}".to_owned());
    chain.append(Event::SetDataSchema(attributed)).unwrap();

    assert_eq!(chain.state.schema.unwrap().fields.len(), 3);
}

#[test]
fn a_schema_never_loses_a_column_changes_a_type_or_gains_a_required_column() {
    let changes: [&[(&str, &str)]; 4] = [
        &[COLUMNS[0]],
        &[COLUMNS[0], ("b", "Int64?")],
        &[COLUMNS[0], ("b", "String")],
        &[COLUMNS[0], COLUMNS[1], ("c", "String")],
    ];
    for change in changes {
        let mut chain = Chain::with_schema();
        let result = chain.append(schema(change));
        assert!(matches!(result, Err(RuleViolation::SchemaEvolution(_))), "{change:?}: {result:?}");
    }
}

#[test]
fn a_push_source_is_not_added_twice_and_a_changed_one_replaces_it() {
    let mut chain = Chain::new();
    chain.append(push_source(MergeStrategy::Append)).unwrap();

    let again = chain.append(push_source(MergeStrategy::Append));

    assert_eq!(again, Err(RuleViolation::NoOpPushSource("default".to_owned())));
    let ledger = MergeStrategy::Ledger { primary_key: vec!["a".to_owned()] };
    chain.append(push_source(ledger)).unwrap();
}

#[test]
fn push_and_polling_sources_exclude_each_other() {
    let polling = Event::Opaque(OpaqueEvent { tag: 4 });
    let mut pushed = Chain::new();
    pushed.append(push_source(MergeStrategy::Append)).unwrap();
    let mut polled = Chain::new();
    polled.append(polling.clone()).unwrap();

    assert_eq!(pushed.append(polling), Err(RuleViolation::SourceKinds));
    assert_eq!(polled.append(push_source(MergeStrategy::Append)), Err(RuleViolation::SourceKinds));

    polled.append(Event::DisablePollingSource).unwrap();
    polled.append(push_source(MergeStrategy::Append)).unwrap();
}

#[test]
fn only_an_active_source_is_disabled() {
    let mut chain = Chain::new();
    let disable = || Event::DisablePushSource { source_name: "default".to_owned() };

    assert!(matches!(chain.append(disable()), Err(RuleViolation::NoSuchSource(_))));
    assert!(matches!(chain.append(Event::DisablePollingSource), Err(RuleViolation::NoSuchSource(_))));

    chain.append(push_source(MergeStrategy::Append)).unwrap();
    chain.append(disable()).unwrap();
}

#[test]
fn a_root_dataset_has_no_events_of_derivative_ones() {
    for (tag, found) in [(2, "ExecuteTransform"), (5, "SetTransform")] {
        let result = Chain::new().append(Event::Opaque(OpaqueEvent { tag }));
        assert_eq!(result, Err(RuleViolation::EventOfDerivative { found }));
    }
}

#[test]
fn an_event_of_a_later_odf_is_walked_over() {
    let mut chain = Chain::new();

    chain.append(Event::Opaque(OpaqueEvent { tag: 99 })).unwrap();

    assert_eq!(chain.state.sequence_number, 1);
}

/// A chain in the making. A refused block must leave its state as it was.
struct Chain {
    state: ChainState,
}

impl Chain {
    fn new() -> Self {
        Self { state: ChainState::start(hash(0), &first(seed())).unwrap() }
    }

    fn with_schema() -> Self {
        let mut chain = Self::new();
        chain.append(schema(&COLUMNS)).unwrap();
        chain
    }

    fn append(&mut self, event: Event) -> Result<(), RuleViolation> {
        self.append_at(event, self.state.system_time)
    }

    fn append_at(&mut self, event: Event, system_time: DateTime<Utc>) -> Result<(), RuleViolation> {
        self.accept(&self.state.next_block(event, system_time))
    }

    fn accept(&mut self, block: &MetadataBlock) -> Result<(), RuleViolation> {
        let before = self.state.clone();
        let result = self.state.accept(hash(before.sequence_number as u8 + 1), block);
        if result.is_err() {
            assert_eq!(self.state, before);
        }
        result
    }
}

const COLUMNS: [(&str, &str); 2] = [("a", "Int64"), ("b", "String?")];

fn first(event: Event) -> MetadataBlock {
    MetadataBlock { system_time: time(0), prev_block_hash: None, sequence_number: 0, event }
}

fn seed() -> Event {
    let dataset_id = DatasetDid::from_public_key([1; 32]);
    Event::Seed(Seed { dataset_id, dataset_kind: DatasetKind::Root })
}

fn info() -> Event {
    Event::SetInfo(SetInfo::default())
}

fn data(start: u64, end: u64) -> Event {
    Event::AddData(Box::new(AddData {
        prev_offset: start.checked_sub(1),
        new_data: Some(slice(start, end)),
        ..AddData::default()
    }))
}

fn watermark(new_watermark: Option<DateTime<Utc>>) -> Event {
    Event::AddData(Box::new(AddData { new_watermark, ..AddData::default() }))
}

fn slice(start: u64, end: u64) -> DataSlice {
    let logical_hash = Multihash::new(HashKind::Arrow0Sha3_256, [2; 32]);
    DataSlice { logical_hash, physical_hash: hash(200), start, end, size: 100 }
}

fn schema(columns: &[(&str, &str)]) -> Event {
    let fields = columns.iter().map(|(name, data_type)| DataField {
        name: (*name).to_owned(),
        data_type: match *data_type {
            "Int64" => DataType::Int64,
            "Int64?" => DataType::Option { inner: Box::new(DataType::Int64) },
            "String?" => DataType::Option { inner: Box::new(DataType::String) },
            _ => DataType::String,
        },
        extra: None,
    });
    let schema = DataSchema { fields: fields.collect(), extra: None };
    Event::SetDataSchema(SetDataSchema { raw_arrow_schema: None, schema: Some(schema) })
}

fn push_source(merge: MergeStrategy) -> Event {
    Event::AddPushSource(Box::new(AddPushSource {
        source_name: "default".to_owned(),
        read: ReadStep::NdJson(ReadText::default()),
        preprocess: None,
        merge,
    }))
}

fn hash(number: u8) -> Multihash {
    Multihash::new(HashKind::Sha3_256, [number; 32])
}

fn time(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap()
}
