//! What a stranger's block may do to us: nothing. And what is written is what was meant.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod odf_support;

use chrono::{DateTime, Utc};
use forebay_storage::odf::block::{BLOCK_BYTES_MAX, BlockError};
use forebay_storage::odf::event::{Attachment, OpaqueEvent, Seed, SetAttachments, SetInfo, SetLicense, SetVocab};
use forebay_storage::odf::multihash::HashKind;
use forebay_storage::odf::push_source::{
    AddPushSource, MergeStrategy, ReadCsv, ReadStep, ReadText, SqlQueryStep, TemporalTable, TransformSql,
};
use forebay_storage::odf::{
    AddData, Checkpoint, DataField, DataSchema, DataSlice, DataType, DatasetDid, DatasetKind, Event, MetadataBlock,
    Multihash, SetDataSchema, SourceState, TimeUnit,
};
use odf_support::data;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_was_encoded_is_decoded(block in block()) {
        let bytes = block.encode().unwrap();

        prop_assert_eq!(MetadataBlock::decode(&bytes), Ok(block));
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_decoded_without_a_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = MetadataBlock::decode(&bytes);
    }

    #[test]
    fn a_damaged_block_is_refused_or_decoded_without_a_panic(
        block in block(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = block.encode().unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));

        // What is still a block can be written, and is read back as the same.
        if let Ok(block) = MetadataBlock::decode(&bytes) && let Ok(again) = block.encode() {
            prop_assert_eq!(MetadataBlock::decode(&again), Ok(block));
        }
    }
}

#[test]
fn every_single_byte_of_every_golden_block_may_be_anything_without_a_panic() {
    let mut refused = 0;
    for entry in data("odf-golden/dataset/blocks").read_dir().unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        for at in 0..bytes.len() {
            for value in [0x00, 0x01, 0x7f, 0x80, 0xff, bytes[at] ^ 4] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                refused += usize::from(MetadataBlock::decode(&damaged).is_err());
            }
        }
    }
    assert!(refused > 1_000, "{refused}");
}

#[test]
fn version_2_is_read_and_other_versions_are_refused_by_number() {
    let mut bytes = seed_block().encode().unwrap();
    let at = position_of_version(&bytes);

    bytes[at] = 2;
    assert_eq!(MetadataBlock::decode(&bytes), Ok(seed_block()));
    for version in [0, 1, 4] {
        bytes[at] = version;
        let version = i32::from(version);
        assert_eq!(MetadataBlock::decode(&bytes), Err(BlockError::UnsupportedVersion { version }));
    }
}

#[test]
fn a_manifest_of_another_kind_is_refused() {
    let mut bytes = seed_block().encode().unwrap();
    let at = position_of_version(&bytes) + 4;
    assert_eq!(bytes[at..at + 8], 0x40_0000_i64.to_le_bytes());
    bytes[at] = 1;

    assert_eq!(MetadataBlock::decode(&bytes), Err(BlockError::NotABlock { kind: 0x40_0001 }));
}

#[test]
fn a_block_beyond_the_limit_is_neither_written_nor_read() {
    let content = "x".repeat(BLOCK_BYTES_MAX);
    let items = vec![Attachment { path: "README.md".to_owned(), content }];
    let block = MetadataBlock { event: Event::SetAttachments(SetAttachments { items }), ..seed_block() };

    assert!(matches!(block.encode(), Err(BlockError::TooLarge { .. })));
    let bytes = vec![0; BLOCK_BYTES_MAX + 1];
    assert!(matches!(MetadataBlock::decode(&bytes), Err(BlockError::TooLarge { .. })));
}

#[test]
fn an_event_that_is_only_carried_along_is_not_written() {
    let event = OpaqueEvent { tag: 4 };
    let block = MetadataBlock { event: Event::Opaque(event), ..seed_block() };

    let error = block.encode().unwrap_err();

    assert_eq!(error, BlockError::Opaque(event));
    assert!(error.to_string().contains("SetPollingSource"), "{error}");
}

#[test]
fn column_types_nested_beyond_reason_are_refused() {
    let nested = |depth| {
        let mut data_type = DataType::Int64;
        for _ in 0..depth {
            data_type = DataType::List { item_type: Box::new(data_type), fixed_length: None };
        }
        let fields = vec![DataField { name: "a".to_owned(), data_type, extra: None }];
        let schema = Some(DataSchema { fields, extra: None });
        let event = Event::SetDataSchema(SetDataSchema { raw_arrow_schema: None, schema });
        MetadataBlock { event, ..seed_block() }.encode().unwrap()
    };

    assert!(MetadataBlock::decode(&nested(50)).is_ok());
    let error = MetadataBlock::decode(&nested(1_000)).unwrap_err();
    assert!(error.to_string().contains("nested deeper than 64"), "{error}");
}

/// The manifest's version stands four bytes before its kind in the canonical layout.
fn position_of_version(bytes: &[u8]) -> usize {
    let kind = 0x40_0000_i64.to_le_bytes();
    bytes.windows(8).position(|window| window == kind).unwrap() - 4
}

fn seed_block() -> MetadataBlock {
    MetadataBlock {
        system_time: DateTime::from_timestamp(1_800_000_000, 5).unwrap(),
        prev_block_hash: None,
        sequence_number: 0,
        event: Event::Seed(Seed { dataset_id: DatasetDid::from_public_key([7; 32]), dataset_kind: DatasetKind::Root }),
    }
}

// Boxed: the trees of unboxed strategies fill a debug build's stack.

fn block() -> impl Strategy<Value = MetadataBlock> {
    (time(), option::of(hash()), any::<u64>(), event()).prop_map(|(system_time, prev_block_hash, number, event)| {
        MetadataBlock { system_time, prev_block_hash, sequence_number: number, event }
    })
}

fn event() -> BoxedStrategy<Event> {
    prop_oneof![
        seed(),
        add_data(),
        vec(opt_text(), 4).prop_map(|texts| {
            let [a, b, c, d] = texts.try_into().unwrap();
            Event::SetVocab(SetVocab {
                offset_column: a,
                operation_type_column: b,
                system_time_column: c,
                event_time_column: d,
            })
        }),
        vec((text(), text()), 0..3).prop_map(|items| {
            let items = items.into_iter().map(|(path, content)| Attachment { path, content });
            Event::SetAttachments(SetAttachments { items: items.collect() })
        }),
        (opt_text(), option::of(texts()))
            .prop_map(|(description, keywords)| Event::SetInfo(SetInfo { description, keywords })),
        (text(), text(), opt_text(), text()).prop_map(|(short_name, name, spdx_id, website_url)| {
            Event::SetLicense(SetLicense { short_name, name, spdx_id, website_url })
        }),
        (option::of(vec(any::<u8>(), 0..20)), option::of(schema())).prop_map(|(raw_arrow_schema, schema)| {
            Event::SetDataSchema(SetDataSchema { raw_arrow_schema, schema })
        }),
        push_source(),
        text().prop_map(|source_name| Event::DisablePushSource { source_name }),
        Just(Event::DisablePollingSource),
    ]
    .boxed()
}

fn seed() -> BoxedStrategy<Event> {
    (any::<[u8; 32]>(), prop_oneof![Just(DatasetKind::Root), Just(DatasetKind::Derivative)])
        .prop_map(|(key, kind)| Event::Seed(Seed { dataset_id: DatasetDid::from_public_key(key), dataset_kind: kind }))
        .boxed()
}

fn add_data() -> BoxedStrategy<Event> {
    let slice = (hash(), hash(), any::<[u64; 3]>()).prop_map(|(logical_hash, physical_hash, [start, end, size])| {
        DataSlice { logical_hash, physical_hash, start, end, size }
    });
    let checkpoint = (hash(), any::<u64>()).prop_map(|(physical_hash, size)| Checkpoint { physical_hash, size });
    let state =
        (text(), text(), text()).prop_map(|(source_name, kind, value)| SourceState { source_name, kind, value });
    let parts = (
        option::of(hash()),
        any::<Option<u64>>(),
        option::of(slice),
        option::of(checkpoint),
        option::of(time()),
        option::of(state),
        opt_text(),
    );
    parts
        .prop_map(|(prev_checkpoint, prev_offset, new_data, new_checkpoint, new_watermark, new_source_state, extra)| {
            Event::AddData(Box::new(AddData {
                prev_checkpoint,
                prev_offset,
                new_data,
                new_checkpoint,
                new_watermark,
                new_source_state,
                extra,
            }))
        })
        .boxed()
}

fn push_source() -> BoxedStrategy<Event> {
    (text(), read_step(), option::of(transform()), merge())
        .prop_map(|(source_name, read, preprocess, merge)| {
            Event::AddPushSource(Box::new(AddPushSource { source_name, read, preprocess, merge }))
        })
        .boxed()
}

fn read_step() -> BoxedStrategy<ReadStep> {
    let ddl = || option::of(texts());
    let read_text = || {
        (ddl(), opt_text(), opt_text(), opt_text(), option::of(schema())).prop_map(
            |(ddl_schema, date_format, encoding, timestamp_format, schema)| ReadText {
                ddl_schema,
                date_format,
                encoding,
                timestamp_format,
                schema,
            },
        )
    };
    let csv = (vec(opt_text(), 7), any::<[Option<bool>; 2]>(), ddl(), option::of(schema())).prop_map(
        |(texts, [header, infer_schema], ddl_schema, schema)| {
            let [separator, encoding, quote, escape, null_value, date_format, timestamp_format] =
                texts.try_into().unwrap();
            ReadStep::Csv(Box::new(ReadCsv {
                ddl_schema,
                separator,
                encoding,
                quote,
                escape,
                header,
                infer_schema,
                null_value,
                date_format,
                timestamp_format,
                schema,
            }))
        },
    );
    let schemas = || (ddl(), option::of(schema()));
    prop_oneof![
        csv,
        schemas().prop_map(|(ddl_schema, schema)| ReadStep::GeoJson { ddl_schema, schema }),
        (schemas(), opt_text()).prop_map(|((ddl_schema, schema), sub_path)| ReadStep::EsriShapefile {
            ddl_schema,
            sub_path,
            schema
        }),
        schemas().prop_map(|(ddl_schema, schema)| ReadStep::Parquet { ddl_schema, schema }),
        (opt_text(), read_text()).prop_map(|(sub_path, text)| ReadStep::Json { sub_path, text }),
        read_text().prop_map(ReadStep::NdJson),
        schemas().prop_map(|(ddl_schema, schema)| ReadStep::NdGeoJson { ddl_schema, schema }),
    ]
    .boxed()
}

fn transform() -> BoxedStrategy<TransformSql> {
    let query = (opt_text(), text()).prop_map(|(alias, query)| SqlQueryStep { alias, query });
    let table = (text(), texts()).prop_map(|(name, primary_key)| TemporalTable { name, primary_key });
    (text(), opt_text(), opt_text(), option::of(vec(query, 0..3)), option::of(vec(table, 0..3)))
        .prop_map(|(engine, version, query, queries, temporal_tables)| TransformSql {
            engine,
            version,
            query,
            queries,
            temporal_tables,
        })
        .boxed()
}

fn merge() -> BoxedStrategy<MergeStrategy> {
    prop_oneof![
        Just(MergeStrategy::Append),
        texts().prop_map(|primary_key| MergeStrategy::Ledger { primary_key }),
        (texts(), option::of(texts()))
            .prop_map(|(primary_key, compare_columns)| MergeStrategy::Snapshot { primary_key, compare_columns }),
        texts().prop_map(|primary_key| MergeStrategy::ChangelogStream { primary_key }),
        texts().prop_map(|primary_key| MergeStrategy::UpsertStream { primary_key }),
    ]
    .boxed()
}

fn schema() -> BoxedStrategy<DataSchema> {
    (fields(data_type()), opt_text()).prop_map(|(fields, extra)| DataSchema { fields, extra }).boxed()
}

fn fields(data_type: BoxedStrategy<DataType>) -> BoxedStrategy<Vec<DataField>> {
    let field =
        (text(), data_type, opt_text()).prop_map(|(name, data_type, extra)| DataField { name, data_type, extra });
    vec(field, 0..4).boxed()
}

fn data_type() -> BoxedStrategy<DataType> {
    let leaf = prop_oneof![
        any::<Option<u64>>().prop_map(|fixed_length| DataType::Binary { fixed_length }),
        (any::<u32>(), any::<i32>()).prop_map(|(precision, scale)| DataType::Decimal { precision, scale }),
        unit().prop_map(|unit| DataType::Duration { unit }),
        unit().prop_map(|unit| DataType::Time { unit }),
        (unit(), opt_text()).prop_map(|(unit, timezone)| DataType::Timestamp { unit, timezone }),
        prop::sample::select(vec![
            DataType::Bool,
            DataType::Date,
            DataType::Float16,
            DataType::Float32,
            DataType::Float64,
            DataType::Int8,
            DataType::Int16,
            DataType::Int32,
            DataType::Int64,
            DataType::UInt8,
            DataType::UInt16,
            DataType::UInt32,
            DataType::UInt64,
            DataType::Null,
            DataType::String,
        ]),
    ];
    leaf.boxed()
        .prop_recursive(2, 8, 2, |inner| {
            let boxed = inner.clone().prop_map(Box::new).boxed();
            prop_oneof![
                (boxed.clone(), any::<Option<u64>>())
                    .prop_map(|(item_type, fixed_length)| DataType::List { item_type, fixed_length }),
                (boxed.clone(), boxed.clone(), any::<Option<bool>>()).prop_map(
                    |(key_type, value_type, keys_sorted)| { DataType::Map { key_type, value_type, keys_sorted } }
                ),
                boxed.prop_map(|inner| DataType::Option { inner }),
                fields(inner.boxed()).prop_map(|fields| DataType::Struct { fields }),
            ]
        })
        .boxed()
}

fn unit() -> impl Strategy<Value = Option<TimeUnit>> {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
    option::of(prop::sample::select(vec![Second, Millisecond, Microsecond, Nanosecond]))
}

fn hash() -> BoxedStrategy<Multihash> {
    (any::<bool>(), any::<[u8; 32]>())
        .prop_map(|(logical, digest)| {
            let kind = if logical { HashKind::Arrow0Sha3_256 } else { HashKind::Sha3_256 };
            Multihash::new(kind, digest)
        })
        .boxed()
}

/// Years -9999 to 9999, to the nanosecond.
fn time() -> BoxedStrategy<DateTime<Utc>> {
    (-377_000_000_000_i64..253_000_000_000, 0..1_000_000_000_u32)
        .prop_map(|(seconds, nanoseconds)| DateTime::from_timestamp(seconds, nanoseconds).unwrap())
        .boxed()
}

fn text() -> BoxedStrategy<String> {
    "\\PC{0,12}".boxed()
}

fn opt_text() -> BoxedStrategy<Option<String>> {
    option::of(text()).boxed()
}

fn texts() -> BoxedStrategy<Vec<String>> {
    vec(text(), 0..3).boxed()
}
