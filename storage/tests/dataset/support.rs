//! Specs, messages and readable rows.

use arrow::array::{Array as _, RecordBatch, TimestampMillisecondArray};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use bytes::Bytes;
use chrono::SecondsFormat;
use forebay_storage::dataset::decode::RowError;
use forebay_storage::dataset::row::{RowBuilder, RowFacts};
use forebay_storage::dataset::spec::{DatasetSpec, Envelope, FieldSpec, Format};
use forebay_storage::message::{Flags, Message};
use forebay_storage::position::{DatasetId, Offset, Seq};

/// 2026-11-22T10:00:00.250Z, when every test message is received.
pub(crate) const RECEIVED_MS: i64 = 1_795_341_600_250;

/// A dataset of one format with fields as the configuration writes them: `temp: Float32?`.
pub(crate) fn spec(format: Format, fields: &[&str]) -> DatasetSpec {
    let field = |text: &&str| {
        let (name, word) = text.split_once(": ").unwrap();
        FieldSpec::parse(name, word).unwrap()
    };
    DatasetSpec {
        format,
        fields: fields.iter().map(field).collect(),
        envelope: Envelope::default(),
        ..DatasetSpec::messages()
    }
}

pub(crate) fn json(fields: &[&str]) -> DatasetSpec {
    spec(Format::Json, fields)
}

/// A message of topic `site/9/dev-1/temp` whose captures are `9` and `dev-1` if `captures` is 2.
pub(crate) fn message(captures: usize, payload: impl AsRef<[u8]>) -> Message {
    Message {
        dataset: DatasetId(1),
        received_at_us: RECEIVED_MS * 1_000 + 999,
        flags: Flags { qos: 1, clock_synchronised: true, ..Flags::default() },
        topic: Bytes::from_static(b"site/9/dev-1/temp"),
        captures: [5..6, 7..12].into_iter().take(captures).collect(),
        client_id: "client-1".into(),
        payload: Bytes::copy_from_slice(payload.as_ref()),
    }
}

/// Decodes one payload of a spec.
pub(crate) fn push(spec: &DatasetSpec, payload: impl AsRef<[u8]>) -> Result<RowFacts, RowError> {
    assert_eq!(spec.validate(), Ok(()));
    RowBuilder::new(spec, "gw").push(Seq(7), &message(spec.captures.len(), payload))
}

/// The row that one payload becomes, as `column=value` of the declared columns (those after `seq`).
pub(crate) fn row(spec: &DatasetSpec, payload: impl AsRef<[u8]>) -> String {
    assert_eq!(spec.validate(), Ok(()));
    let mut builder = RowBuilder::new(spec, "gw");
    match builder.push(Seq(7), &message(spec.captures.len(), payload)) {
        Ok(_) => show_row(&builder.take_batch(Offset(0), RECEIVED_MS), 6, 0),
        Err(error) => format!("refused: {error}"),
    }
}

/// The value that one payload gives the only field of a spec.
pub(crate) fn value(spec: &DatasetSpec, payload: impl AsRef<[u8]>) -> String {
    let row = row(spec, payload);
    row.split_once('=').map(|(_, value)| value.to_owned()).unwrap_or(row)
}

/// One row from its `from`th column on.
pub(crate) fn show_row(batch: &RecordBatch, from: usize, row: usize) -> String {
    let show = |index: usize| format!("{}={}", batch.schema().field(index).name(), show_value(batch, index, row));
    (from..batch.num_columns()).map(show).collect::<Vec<_>>().join(" ")
}

fn show_value(batch: &RecordBatch, column: usize, row: usize) -> String {
    let array = batch.column(column);
    // Arrow shows instants only with a database of time zones.
    if let Some(instants) = array.as_any().downcast_ref::<TimestampMillisecondArray>()
        && instants.is_valid(row)
    {
        let instant = instants.value_as_datetime(row).unwrap().and_utc();
        return instant.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    }
    let options = FormatOptions::default().with_null("null");
    match array.is_valid(row) {
        true => ArrayFormatter::try_new(array, &options).unwrap().value(row).to_string(),
        false => "null".to_owned(),
    }
}
