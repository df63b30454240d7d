//! A gateway's disk in a test: two datasets, messages whose payload says which they are, and rows read back.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::allow_attributes,
    reason = "shared by several test binaries; a step that fails fails the test"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use forebay_storage::batcher::BatchLimits;
use forebay_storage::dataset::spec::DatasetSpec;
use forebay_storage::dataset::spec::{DataType, Envelope, FieldSpec, Format, Merge, TimestampEncoding};
use forebay_storage::message::{Flags, Message};
use forebay_storage::odf::{Depth, Event, verify};
use forebay_storage::position::DatasetId;
use forebay_storage::sealer::{Sealed, Sealer};
use forebay_storage::spool::{Outcome, Request, Spool, SpoolConfig, Writer};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tokio::sync::mpsc;

/// Receipt of the first message: 2026-11-22T10:00:00Z.
pub const NOW_US: i64 = 1_795_341_600_000_000;
pub const GATEWAY: &str = "gw-07";

/// `temperature`: every message a row.
pub fn temperature() -> DatasetSpec {
    spec("temperature", Merge::Append)
}

/// `leak`: one row for each `id`.
pub fn leak() -> DatasetSpec {
    spec("leak", Merge::Ledger { primary_key: vec!["id".into()] })
}

fn spec(name: &str, merge: Merge) -> DatasetSpec {
    DatasetSpec {
        name: name.into(),
        captures: vec!["device".into()],
        format: Format::Json,
        fields: vec![
            field("ts", DataType::Timestamp(TimestampEncoding::Millis), false),
            field("id", DataType::Int64, false),
            field("value", DataType::Float64, true),
        ],
        event_time: Some("ts".into()),
        event_time_tolerance: std::time::Duration::from_secs(300),
        merge,
        envelope: Envelope::default(),
        extra: false,
    }
}

pub fn field(name: &str, data_type: DataType, optional: bool) -> FieldSpec {
    FieldSpec { name: name.into(), data_type, optional }
}

/// A message received `n` seconds after the first, whose row has this `id`.
pub fn message(dataset: DatasetId, n: i64, id: u64) -> Message {
    let ts = NOW_US / 1_000 + n * 1_000;
    with_payload(dataset, n, &format!(r#"{{"ts":{ts},"id":{id},"value":{id}.5}}"#))
}

pub fn with_payload(dataset: DatasetId, n: i64, payload: &str) -> Message {
    Message {
        dataset,
        received_at_us: NOW_US + n * 1_000_000,
        flags: Flags { qos: 1, clock_synchronised: true, ..Flags::default() },
        topic: Bytes::from_static(b"site/d1/temp"),
        captures: std::iter::once(5..7).collect(),
        client_id: "device".into(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
    }
}

pub fn spool_config() -> SpoolConfig {
    SpoolConfig { min_free_bytes: 0, ballast_bytes: 0, dup_tail_bytes: 0, ..SpoolConfig::default() }
}

/// Stores messages, all of which must be acknowledged. `on_ack` hears of each by its place.
pub fn store(spool: &Spool, messages: Vec<Message>, mut on_ack: impl FnMut(usize)) {
    let (sender, receiver) = mpsc::channel(messages.len().max(1));
    for (ticket, message) in messages.into_iter().enumerate() {
        sender.try_send(Request::Append { message, packet_id: None, retained_once: false, ticket }).unwrap();
    }
    drop(sender);
    let mut writer = Writer::new(spool.clone(), |ticket, outcome| {
        assert_eq!(outcome, Outcome::Stored);
        on_ack(ticket);
    });
    writer.run(receiver).unwrap();
}

/// Opens the sealer of both datasets under `dir/datasets`.
pub fn open_sealer(spool: &Spool, dir: &Path, specs: &[DatasetSpec], limits: BatchLimits) -> Sealer {
    let specs: Vec<_> = specs.iter().cloned().map(Arc::new).collect();
    let fs = forebay_storage::durable_fs::DurableFs::new();
    Sealer::open(spool.clone(), &fs, &dir.join("datasets"), GATEWAY, &specs, limits, NOW_US).unwrap()
}

/// Seals everything that is in the spool.
pub fn drain(sealer: &mut Sealer) -> Vec<Sealed> {
    let mut all = Vec::new();
    sealer.handle_drain().unwrap();
    while !sealer.is_drained() {
        all.extend(sealer.seal_due(NOW_US).unwrap().map(|(sealed, _)| sealed));
    }
    all
}

/// The `id` of each row of a dataset in order, after a whole verify.
pub fn rows(sealer: &Sealer, name: &str) -> Vec<u64> {
    let dataset = sealer.datasets().find(|dataset| dataset.spec().name == name).unwrap();
    let repository = dataset.repository();
    let report = verify(repository.dir(), Depth::Rows);
    assert_eq!(report.problems, [], "{name}");
    let mut ids = Vec::new();
    for block in repository.blocks(None).unwrap() {
        let Event::AddData(event) = block.unwrap().1.event else { continue };
        let Some(slice) = event.new_data else { continue };
        let file = File::open(repository.data_path(&slice.physical_hash)).unwrap();
        for batch in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
            let column = batch.unwrap().column_by_name("id").unwrap().clone();
            ids.extend(column.as_primitive::<Int64Type>().iter().flatten().map(|id| id as u64));
        }
    }
    ids
}

/// Every file of the datasets with its bytes.
pub fn files(dir: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                all.insert(path.strip_prefix(dir).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    all
}
