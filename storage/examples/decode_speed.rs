//! Rows per second from stored message to slice, on one core: `cargo run --release --example decode_speed [rows]`.
//!
//! Prints decoding alone and decoding with sealing (Parquet, both hashes), and the size of the slice per row.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay_storage::dataset::row::RowBuilder;
use forebay_storage::dataset::spec::{DatasetSpec, Envelope, FieldSpec, Format};
use forebay_storage::message::{Flags, Message};
use forebay_storage::position::{DatasetId, Offset, Seq};
use forebay_storage::slice::SliceWriter;

const RECEIVED_US: i64 = 1_795_341_600_250_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rows = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    let messages: Vec<Message> = (0..10_000).map(message).collect();
    let payload_bytes: usize = messages.iter().map(|message| message.payload.len()).sum();
    println!("{rows} rows, {:.1} B of JSON each", payload_bytes as f64 / 10_000.0);

    let (decoded, _) = timed(|| decode(&messages, rows, |_| Ok(())))?;
    println!("decode        {:>10.0} rows/s", rate(rows, decoded));

    let (sealed, size) = timed(|| seal(&messages, rows))?;
    println!("decode + seal {:>10.0} rows/s", rate(rows, sealed));
    println!("slice         {:>10.2} B/row", size as f64 / rows as f64);
    Ok(())
}

type Batch = arrow::record_batch::RecordBatch;
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn seal(messages: &[Message], rows: u64) -> Outcome<u64> {
    let columns = RowBuilder::new(&spec(), "gw-07").columns().clone();
    let mut writer = SliceWriter::new(Arc::clone(columns.schema()), io::sink())?;
    decode(messages, rows, |batch| Ok(writer.write(&batch)?))?;
    Ok(writer.finish()?.1.size)
}

fn decode(messages: &[Message], rows: u64, mut take: impl FnMut(Batch) -> Outcome<()>) -> Outcome<()> {
    let mut builder = RowBuilder::new(&spec(), "gw-07");
    let mut offset = 0;
    for (seq, message) in (0..rows).zip(messages.iter().cycle()) {
        builder.push(Seq(seq), message)?;
        if builder.is_full() || seq + 1 == rows {
            let taken = builder.len() as u64;
            take(builder.take_batch(Offset(offset), RECEIVED_US / 1_000))?;
            offset += taken;
        }
    }
    Ok(())
}

fn spec() -> DatasetSpec {
    let field = |(name, word)| FieldSpec::parse(name, word);
    let fields = [("ts", "Timestamp"), ("temperature", "Float64"), ("humidity", "Float64"), ("battery", "Float32?")];
    DatasetSpec {
        captures: vec!["site".to_owned(), "device".to_owned()],
        format: Format::Json,
        fields: fields.into_iter().map(field).collect::<Result<_, _>>().unwrap_or_default(),
        event_time: Some("ts".to_owned()),
        envelope: Envelope::default(),
        ..DatasetSpec::messages()
    }
}

fn message(n: u32) -> Message {
    let noise = n.wrapping_mul(2_654_435_761);
    let payload = format!(
        r#"{{"ts":"2026-11-22T09:{:02}:{:02}.{:03}Z","temperature":{}.{:02},"humidity":{}.{},"battery":{}.{}}}"#,
        n / 60 % 60,
        n % 60,
        noise % 1_000,
        18 + noise % 7,
        noise / 7 % 100,
        40 + noise / 11 % 30,
        noise / 13 % 10,
        3,
        noise / 17 % 10,
    );
    Message {
        dataset: DatasetId(1),
        received_at_us: RECEIVED_US,
        flags: Flags { qos: 1, clock_synchronised: true, ..Flags::default() },
        topic: Bytes::from(format!("site/9/dev-{:03}/temp", n % 200)),
        captures: vec![5..6, 7..14],
        client_id: "client-1".into(),
        payload: payload.into(),
    }
}

#[expect(clippy::disallowed_methods, reason = "it measures wall time, and nothing depends on it")]
fn timed<T>(work: impl FnOnce() -> Outcome<T>) -> Outcome<(Duration, T)> {
    let start = Instant::now();
    let result = work()?;
    Ok((start.elapsed(), result))
}

fn rate(rows: u64, time: Duration) -> f64 {
    rows as f64 / time.as_secs_f64()
}
