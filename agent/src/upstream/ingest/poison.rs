//! A row that a node refuses although it takes its neighbours: what is kept of it, and as what.

use std::path::Path;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatchReader as _};
use arrow::datatypes::{DataType, Date32Type, Int64Type, TimestampMillisecondType};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use forebay_storage::dead_letter::DeadLetter;
use forebay_storage::message::{Flags, Message};
use forebay_storage::position::{DatasetId, Seq};

use super::ndjson::Lines;
use super::payload::{self, PayloadError, SEQ, damaged};

/// Index of the event-time column among those that a node gets.
const EVENT_TIME: usize = 0;
/// Begins the reason of a dead letter of such a row; the URL of the upstream follows.
const REFUSED_BY: &str = "refused by upstream ";
const MICROS_PER_DAY: i64 = 86_400_000_000;

/// A row that is refused for its own sake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoisonRow {
    /// Its position in the spool.
    pub seq: Seq,
    /// When its message was received, µs: of the column `received_at` if there is one, else the event time.
    pub received_at_us: i64,
    /// Of the column `topic`, if there is one.
    pub topic: Option<String>,
    /// Of the column `client_id`, if there is one.
    pub client_id: Option<String>,
    /// The row as a node gets it, as one line of JSON, without the line end.
    pub json: Bytes,
}

impl PoisonRow {
    /// The dead letter to keep of it. Its payload is the row, which is posted when it is replayed; the payload that the
    /// device sent is no longer there.
    #[must_use]
    pub fn dead_letter(&self, dataset: DatasetId, upstream: &str, at_us: i64) -> DeadLetter {
        let message = Message {
            dataset,
            received_at_us: self.received_at_us,
            flags: Flags::default(),
            topic: Bytes::from(self.topic.clone().unwrap_or_default()),
            captures: Vec::new(),
            client_id: self.client_id.clone().unwrap_or_default().into(),
            payload: self.json.clone(),
        };
        let reason = format!("{REFUSED_BY}{upstream}: 500 for this row alone, its neighbours were taken");
        DeadLetter { seq: self.seq, message, reason, at_us }
    }
}

/// The upstream that refused a row, if that is why there is a dead letter of it.
#[must_use]
pub fn refused_by(reason: &str) -> Option<&str> {
    Some(reason.strip_prefix(REFUSED_BY)?.split_once(": ")?.0)
}

/// Reads rows by their numbers, ascending.
///
/// # Errors
/// The slice cannot be read.
pub(super) fn read(slice: &Path, rows: &[u64]) -> Result<Vec<PoisonRow>, PayloadError> {
    let rows: Vec<_> = rows.iter().map(|&row| row..row + 1).collect();
    let reader = payload::read(slice, &rows)?;
    let lines = Lines::new(&reader.schema());
    let mut poison = Vec::with_capacity(rows.len());
    for batch in reader {
        let batch = batch.map_err(|error| damaged(slice, error))?;
        for row in 0..batch.num_rows() {
            poison.push(poison_row(&lines, &batch, row).map_err(|problem| damaged(slice, problem))?);
        }
    }
    Ok(poison)
}

fn poison_row(lines: &Lines, batch: &RecordBatch, row: usize) -> Result<PoisonRow, String> {
    let seq = batch.column_by_name(SEQ).and_then(|column| column.as_primitive_opt::<Int64Type>());
    let seq = seq.and_then(|seqs| u64::try_from(seqs.value(row)).ok());
    let received_at = batch.column_by_name("received_at").and_then(|column| micros(column, row));
    let event_time = batch.columns().get(EVENT_TIME).and_then(|column| micros(column, row));
    let mut json = Vec::new();
    lines.write(batch, row, &mut json).map_err(|error| error.to_string())?;
    json.pop();
    Ok(PoisonRow {
        seq: Seq(seq.ok_or_else(|| format!("there is no column {SEQ} of positions"))?),
        received_at_us: received_at.or(event_time).unwrap_or(0),
        topic: text(batch, "topic", row),
        client_id: text(batch, "client_id", row),
        json: json.into(),
    })
}

fn micros(column: &ArrayRef, row: usize) -> Option<i64> {
    match column.data_type() {
        _ if column.is_null(row) => None,
        DataType::Timestamp(..) => Some(column.as_primitive_opt::<TimestampMillisecondType>()?.value(row) * 1_000),
        DataType::Date32 => Some(i64::from(column.as_primitive::<Date32Type>().value(row)) * MICROS_PER_DAY),
        _ => None,
    }
}

fn text(batch: &RecordBatch, name: &str, row: usize) -> Option<String> {
    let column = batch.column_by_name(name)?.as_string_opt::<i32>()?;
    column.is_valid(row).then(|| column.value(row).to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use forebay_storage::dataset::row::RowBuilder;
    use forebay_storage::dataset::spec::DatasetSpec;
    use forebay_storage::position::Offset;
    use forebay_storage::slice::SliceWriter;

    use super::*;

    #[test]
    fn what_the_envelope_says_of_a_row_is_kept_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let slice = dir.path().join("slice");
        write_messages(&slice, &DatasetSpec::messages(), 5);

        let rows = read(&slice, &[1, 4]).unwrap();

        assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [Seq(11), Seq(14)]);
        assert_eq!(rows[0].topic.as_deref(), Some("site/1"));
        assert_eq!(rows[0].client_id.as_deref(), Some("device"));
        assert_eq!(rows[0].received_at_us, 1_788_220_801_000_000);
        let text = std::str::from_utf8(&rows[0].json).unwrap();
        assert!(
            text.starts_with("{\"event_time\":\"2026-09-01T00:00:01.000Z\",\"gateway\":\"gw\",\"seq\":11,"),
            "{text}"
        );
        assert!(text.ends_with('}'), "{text}");
    }

    #[test]
    fn its_dead_letter_says_who_refused_it() {
        let row = PoisonRow {
            seq: Seq(7),
            received_at_us: 3,
            topic: None,
            client_id: None,
            json: Bytes::from_static(b"{\"seq\":7}"),
        };

        let letter = row.dead_letter(DatasetId(2), "https://node.example/acme", 9);

        assert_eq!((letter.seq, letter.message.dataset, letter.at_us), (Seq(7), DatasetId(2), 9));
        assert_eq!(letter.message.payload, row.json);
        assert_eq!(
            letter.reason,
            "refused by upstream https://node.example/acme: 500 for this row alone, its neighbours were taken"
        );
    }

    fn write_messages(slice: &Path, spec: &DatasetSpec, count: u64) {
        let mut rows = RowBuilder::new(spec, "gw");
        for n in 0..count {
            let message = Message {
                dataset: DatasetId(1),
                received_at_us: 1_788_220_800_000_000 + n as i64 * 1_000_000,
                flags: Flags::default(),
                topic: Bytes::from(format!("site/{n}")),
                captures: Vec::new(),
                client_id: "device".into(),
                payload: Bytes::from_static(b"x"),
            };
            rows.push(Seq(10 + n), &message).unwrap();
        }
        let batch = rows.take_batch(Offset(0), 0);
        let mut writer = SliceWriter::new(batch.schema(), File::create(slice).unwrap()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
    }
}
