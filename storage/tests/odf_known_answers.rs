//! Known answers: blocks whose bytes and hashes the reference implementation of ODF accepts, made again here byte for
//! byte. A hash covers every byte of a block, so a layout that differs in padding alone fails.
//!
//! `odf-kat.json` lists events and their blocks; `odf-golden` is a dataset written by kamu 0.265; `odf-edge-sample` one
//! written by another independent encoder, which kamu pulled and verified.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod odf_support;

use arrow::array::TimestampMillisecondArray;
use arrow::array::{ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow_digest::{RecordDigest, RecordDigestV0};
use forebay_storage::odf::event::{Seed, SetInfo};
use forebay_storage::odf::multihash::HashKind;
use forebay_storage::odf::push_source::{AddPushSource, MergeStrategy, ReadStep, ReadText};
use forebay_storage::odf::{
    AddData, DataField, DataSchema, DataSlice, DataType, DatasetDid, DatasetKind, Event, MetadataBlock, Multihash,
    SetDataSchema, SourceState, TimeUnit,
};
use odf_support::{data, from_hex, hex};
use serde_json::Value;

#[test]
fn every_known_block_is_encoded_to_the_same_bytes_and_hash() {
    for known in known_blocks() {
        let block = block_of(&known);

        let bytes = block.encode().unwrap();

        assert_eq!(hex(&bytes), known["bytes_hex"].as_str().unwrap(), "{}", block.event.name());
        assert_eq!(Multihash::of(&bytes).to_string(), known["hash"].as_str().unwrap());
    }
}

#[test]
fn every_known_block_is_decoded_to_the_event_it_was_made_of() {
    for known in known_blocks() {
        let bytes = from_hex(known["bytes_hex"].as_str().unwrap());

        assert_eq!(MetadataBlock::decode(&bytes), Ok(block_of(&known)));
    }
}

#[test]
fn blocks_of_other_encoders_are_encoded_again_to_identical_bytes() {
    let mut blocks = 0;
    for dir in ["odf-golden/dataset/blocks", "odf-edge-sample/blocks"] {
        for entry in data(dir).read_dir().unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();

            let block = MetadataBlock::decode(&bytes).unwrap();

            assert_eq!(hex(&block.encode().unwrap()), hex(&bytes), "{}", path.display());
            blocks += 1;
        }
    }
    assert_eq!(blocks, 13);
}

#[test]
fn the_logical_hash_of_the_example_rows_is_the_published_one() {
    let (batch, expected) = logical_hash_example();

    let digest = RecordDigestV0::<forebay_hash::Sha3_256>::digest(&batch);

    let hash = Multihash::new(HashKind::Arrow0Sha3_256, digest.into());
    assert_eq!(hash.to_string(), expected);
}

fn known_answers() -> Value {
    serde_json::from_slice(&std::fs::read(data("odf-kat.json")).unwrap()).unwrap()
}

fn known_blocks() -> Vec<Value> {
    known_answers()["blocks"].as_array().unwrap().clone()
}

fn block_of(known: &Value) -> MetadataBlock {
    MetadataBlock {
        system_time: time(&known["system_time"]),
        prev_block_hash: known["prev"].as_str().map(|hash| hash.parse().unwrap()),
        sequence_number: known["sequence_number"].as_u64().unwrap(),
        event: event_of(&known["event"]),
    }
}

fn event_of(event: &Value) -> Event {
    match event["kind"].as_str().unwrap() {
        "Seed" => Event::Seed(Seed {
            dataset_id: DatasetDid::from_bytes(&from_hex(text(&event["id"]).as_str())).unwrap(),
            dataset_kind: DatasetKind::Root,
        }),
        "SetInfo" => Event::SetInfo(SetInfo { description: Some(text(&event["description"])), keywords: None }),
        "AddPushSource" => Event::AddPushSource(Box::new(AddPushSource {
            source_name: text(&event["name"]),
            read: ReadStep::NdJson(ReadText { schema: Some(schema_of(&event["read"])), ..ReadText::default() }),
            preprocess: None,
            merge: MergeStrategy::Ledger { primary_key: event["pk"].as_array().unwrap().iter().map(text).collect() },
        })),
        "SetDataSchema" => {
            Event::SetDataSchema(SetDataSchema { raw_arrow_schema: None, schema: Some(schema_of(&event["fields"])) })
        }
        "AddData" => Event::AddData(Box::new(add_data_of(event))),
        other => unreachable!("unexpected event {other}"),
    }
}

fn add_data_of(event: &Value) -> AddData {
    let slice = &event["data"];
    let hash = |value: &Value| Multihash::from_bytes(&from_hex(value.as_str().unwrap())).unwrap();
    AddData {
        prev_offset: event["prev_offset"].as_u64(),
        new_data: Some(DataSlice {
            logical_hash: hash(&slice["logical"]),
            physical_hash: hash(&slice["physical"]),
            start: slice["start"].as_u64().unwrap(),
            end: slice["end"].as_u64().unwrap(),
            size: slice["size"].as_u64().unwrap(),
        }),
        new_watermark: Some(time(&event["watermark"])),
        new_source_state: event["source_state"].as_array().map(|state| SourceState {
            source_name: text(&state[0]),
            kind: text(&state[1]),
            value: text(&state[2]),
        }),
        ..AddData::default()
    }
}

fn schema_of(fields: &Value) -> DataSchema {
    let fields = fields.as_array().unwrap().iter().map(|field| DataField {
        name: text(&field[0]),
        data_type: type_of(&field[1]),
        extra: None,
    });
    DataSchema { fields: fields.collect(), extra: None }
}

fn type_of(value: &Value) -> DataType {
    match value.as_str() {
        None => DataType::Option { inner: Box::new(type_of(&value[1])) },
        Some("Int32") => DataType::Int32,
        Some("Int64") => DataType::Int64,
        Some("Float64") => DataType::Float64,
        Some("String") => DataType::String,
        Some("Timestamp") => {
            DataType::Timestamp { unit: Some(TimeUnit::Millisecond), timezone: Some("UTC".to_owned()) }
        }
        Some(other) => unreachable!("unexpected type {other}"),
    }
}

fn logical_hash_example() -> (RecordBatch, String) {
    let example = &known_answers()["logical_hash_example"];
    let rows = example["rows"].as_array().unwrap();
    let column = |index: usize| rows.iter().map(move |row| row[index].as_str().unwrap());
    let times = |index: usize| {
        let millis = column(index).map(|text| text.parse::<chrono::DateTime<chrono::Utc>>().unwrap());
        let array: TimestampMillisecondArray = millis.map(|time| Some(time.timestamp_millis())).collect();
        array.with_timezone("UTC")
    };
    let columns: [ArrayRef; 7] = [
        std::sync::Arc::new(column(0).map(|text| text.parse().ok()).collect::<Int64Array>()),
        std::sync::Arc::new(column(1).map(|text| text.parse().ok()).collect::<Int32Array>()),
        std::sync::Arc::new(times(2)),
        std::sync::Arc::new(times(3)),
        std::sync::Arc::new(column(4).map(Some).collect::<StringArray>()),
        std::sync::Arc::new(column(5).map(|text| text.parse().ok()).collect::<Int64Array>()),
        std::sync::Arc::new(column(6).map(|text| text.parse().ok()).collect::<Float64Array>()),
    ];
    let names = example["columns"].as_array().unwrap().iter();
    let named = names.map(|column| text(&column[0])).zip(columns);
    (RecordBatch::try_from_iter(named).unwrap(), text(&example["hash"]))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn time(value: &Value) -> chrono::DateTime<chrono::Utc> {
    value.as_str().unwrap().parse().unwrap()
}
