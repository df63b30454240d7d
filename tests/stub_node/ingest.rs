//! `POST /ingest`: a body becomes one commit or nothing. 200 without a body for "committed" and for "nothing new".

use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{
    Array, ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, TimestampMillisecondArray, UInt64Array,
};
use arrow::compute::{cast, concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Fields, Int64Type, Schema, SchemaRef, TimestampMillisecondType};
use arrow::util::display::array_value_to_string;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use forebay_storage::odf::multihash::HashKind;
use forebay_storage::odf::{AddData, DataSchema, DataSlice, Event, Multihash, SetDataSchema};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::Value;

use crate::faults::{Call, Poison, Stage};
use crate::objects::blocking;
use crate::refusal::{Refusal, internal};
use crate::router::DatasetPath;
use crate::source::Source;
use crate::store::{Chain, Dataset, now};
use crate::{Node, ledger, rows};

#[derive(Debug, Deserialize)]
pub(crate) struct IngestQuery {
    #[serde(rename = "sourceName")]
    source_name: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum Format {
    NdJson,
    Json,
    Parquet,
}

pub(crate) async fn ingest(
    State(node): State<Arc<Node>>,
    Path(path): Path<DatasetPath>,
    Query(query): Query<IngestQuery>,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let (mut parts, body) = request.into_parts();
    let call: Call = parts.extensions.remove().ok_or(Refusal::INTERNAL)?;
    let caller = node.caller(&parts.headers)?;
    let dataset = node.writable(caller, path.account(&node), &path.dataset)?;
    let source = source(&dataset, query.source_name.as_deref())?;
    let format = format(&parts.headers, source)?;
    let event_time = event_time(&parts.headers)?;
    let body = read_body(&node, &call, &parts.headers, body).await?;
    node.check_quota(body.len() as u64)?;
    let poisons = node.faults.poisons();
    blocking(move || Ok(commit(&dataset, format, body, event_time, &poisons))).await??;
    node.faults.reach(&call, Stage::AfterCommit).await?;
    Ok(StatusCode::OK)
}

/// The whole body; a fault may happen half way through it. Cut short, it is an error, and nothing was done with it.
pub(crate) async fn read_body(node: &Node, call: &Call, headers: &HeaderMap, body: Body) -> Result<Bytes, Refusal> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let mut bytes = Vec::new();
    let mut chunks = body.into_data_stream();
    let mut is_first_half = true;
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk.map_err(internal)?);
        if is_first_half && bytes.len() >= length.unwrap_or(0) / 2 {
            is_first_half = false;
            node.faults.reach(call, Stage::MidBody).await?;
        }
    }
    Ok(bytes.into())
}

fn source<'a>(dataset: &'a Dataset, name: Option<&str>) -> Result<&'a Source, Refusal> {
    let wanted = name.unwrap_or("default");
    let missing = || Refusal::message(StatusCode::BAD_REQUEST, format!("Source '{wanted}' not found"));
    let source = dataset.source.as_ref().ok_or_else(missing)?;
    if name.is_some_and(|name| name != source.name) {
        return Err(missing());
    }
    Ok(source)
}

fn format(headers: &HeaderMap, source: &Source) -> Result<Format, Refusal> {
    let unsupported = || Refusal::message(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type");
    match headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default()) {
        Some("application/x-ndjson") => Ok(Format::NdJson),
        Some("application/json") => Ok(Format::Json),
        Some("application/vnd.apache.parquet") => Ok(Format::Parquet),
        Some(_) => Err(unsupported()),
        None => match source.read_kind.as_str() {
            "NdJson" => Ok(Format::NdJson),
            "Json" => Ok(Format::Json),
            "Parquet" => Ok(Format::Parquet),
            _ => Err(unsupported()),
        },
    }
}

/// The event time of rows that have none.
fn event_time(headers: &HeaderMap) -> Result<DateTime<Utc>, Refusal> {
    let Some(value) = headers.get("odf-event-time") else {
        return Ok(now());
    };
    let time = value.to_str().ok().and_then(|text| DateTime::parse_from_rfc3339(text).ok());
    let time = time.ok_or_else(|| Refusal::message(StatusCode::BAD_REQUEST, "Invalid odf-event-time header"))?;
    Ok(time.to_utc())
}

fn commit(
    dataset: &Dataset,
    format: Format,
    body: Bytes,
    event_time: DateTime<Utc>,
    poisons: &[Poison],
) -> Result<(), Refusal> {
    let source = dataset.source.as_ref().ok_or(Refusal::INTERNAL)?;
    let batches = read(format, body, source)?;
    if poisons.iter().any(|poison| batches.iter().any(|batch| is_poisoned(batch, poison))) {
        return Err(internal("a poisoned row"));
    }
    let mut chain = dataset.lock();
    merge(dataset, source, &mut chain, &batches, event_time).map_err(internal)
}

fn read(format: Format, body: Bytes, source: &Source) -> Result<Vec<RecordBatch>, Refusal> {
    if body.is_empty() {
        return Ok(Vec::new());
    }
    match format {
        Format::NdJson => rows::from_ndjson(&body, &source.schema).map_err(internal),
        Format::Parquet => rows::from_parquet(body, &source.schema).map_err(internal),
        Format::Json => {
            let refused = |text: &str| Refusal::message(StatusCode::BAD_REQUEST, text);
            let value: Value = serde_json::from_slice(&body).map_err(|_| refused("Internal error"))?;
            let items = value.as_array().ok_or_else(|| refused("Sub-path does not specify an array: ."))?;
            let lines: Vec<_> = items.iter().map(ToString::to_string).collect();
            rows::from_ndjson(lines.join("\n").as_bytes(), &source.schema).map_err(internal)
        }
    }
}

fn is_poisoned(batch: &RecordBatch, poison: &Poison) -> bool {
    let Some(column) = batch.column_by_name(&poison.column) else {
        return false;
    };
    if let Some(numbers) = poison.values.iter().map(Value::as_i64).collect::<Option<Vec<_>>>() {
        return cast(column, &DataType::Int64)
            .is_ok_and(|column| column.as_primitive::<Int64Type>().iter().flatten().any(|n| numbers.contains(&n)));
    }
    let texts: Vec<_> =
        poison.values.iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).collect();
    (0..column.len()).any(|row| array_value_to_string(column, row).is_ok_and(|text| texts.contains(&text)))
}

/// Drops what is there already, adds the system columns, and moves the head.
fn merge(
    dataset: &Dataset,
    source: &Source,
    chain: &mut Chain,
    batches: &[RecordBatch],
    event_time: DateTime<Utc>,
) -> Result<()> {
    let mut survivors = Vec::new();
    for batch in batches {
        survivors.push(match &source.primary_key {
            None => batch.clone(),
            Some(key) => filter_record_batch(batch, &chain.ledger.new_rows(&ledger::keys(batch, key)?))?,
        });
    }
    let batch = concat_batches(&source.schema, &survivors)?;
    if batch.num_rows() == 0 {
        return Ok(());
    }
    let times = event_times(&batch, source, event_time)?;
    let (batch, times) = sort_by_time(batch, times)?;
    let keys = source.primary_key.as_ref().map(|key| ledger::keys(&batch, key)).transpose()?;
    let batch = with_system_columns(&batch, source, chain, times.clone())?;

    let bytes = rows::to_parquet(&batch)?;
    let physical_hash = Multihash::of(&bytes);
    dataset.write_data(&physical_hash, &bytes)?;
    let mut events = Vec::new();
    if chain.state.schema.is_none() {
        let schema = Some(DataSchema::from_arrow(&batch.schema())?);
        events.push(Event::SetDataSchema(SetDataSchema { raw_arrow_schema: None, schema }));
    }
    let start = chain.state.next_offset.0;
    let latest = times.values().iter().max().and_then(|millis| DateTime::from_timestamp_millis(*millis));
    events.push(Event::AddData(Box::new(AddData {
        prev_offset: chain.state.prev_offset(),
        new_data: Some(DataSlice {
            // Nobody recomputes it on a node either.
            logical_hash: Multihash::new(HashKind::Arrow0Sha3_256, [0; 32]),
            physical_hash,
            start,
            end: start + batch.num_rows() as u64 - 1,
            size: bytes.len() as u64,
        }),
        new_watermark: chain.state.watermark.max(latest),
        ..AddData::default()
    })));
    dataset.append(chain, events)?;
    chain.ledger.insert(&keys.unwrap_or_default());
    Ok(())
}

/// The event time column without its nulls.
fn event_times(batch: &RecordBatch, source: &Source, default: DateTime<Utc>) -> Result<TimestampMillisecondArray> {
    let default = default.timestamp_millis();
    let Some(column) = batch.column_by_name(&source.event_time_column) else {
        return Ok(TimestampMillisecondArray::from_value(default, batch.num_rows()).with_timezone(rows::WORKING_ZONE));
    };
    let column = cast(column, &rows::millis(rows::WORKING_ZONE))?;
    let column = column.as_primitive::<TimestampMillisecondType>();
    if column.null_count() == 0 {
        return Ok(column.clone());
    }
    let filled = column.iter().map(|time| time.or(Some(default)));
    Ok(filled.collect::<TimestampMillisecondArray>().with_timezone(rows::WORKING_ZONE))
}

/// As a node stores what it appends. Equal times stay in the order they came in.
fn sort_by_time(
    batch: RecordBatch,
    times: TimestampMillisecondArray,
) -> Result<(RecordBatch, TimestampMillisecondArray)> {
    let values = times.values();
    if values.is_sorted() {
        return Ok((batch, times));
    }
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by_key(|row| values.get(*row));
    let sorted = order.iter().filter_map(|row| values.get(*row).copied());
    let times = TimestampMillisecondArray::from_iter_values(sorted).with_timezone(rows::WORKING_ZONE);
    let order: UInt64Array = order.iter().map(|row| *row as u64).collect();
    Ok((take_record_batch(&batch, &order)?, times))
}

fn with_system_columns(
    batch: &RecordBatch,
    source: &Source,
    chain: &Chain,
    times: TimestampMillisecondArray,
) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    let start = i64::try_from(chain.state.next_offset.0).context("an offset fits")?;
    let system_time = now().max(chain.state.system_time).timestamp_millis();
    let system: [(&str, ArrayRef); 4] = [
        ("offset", Arc::new(Int64Array::from_iter_values((start..).take(rows)))),
        ("op", Arc::new(Int32Array::from_value(0, rows))),
        (
            "system_time",
            Arc::new(TimestampMillisecondArray::from_value(system_time, rows).with_timezone(rows::WORKING_ZONE)),
        ),
        (&source.event_time_column, Arc::new(times)),
    ];
    let mut fields: Vec<Arc<Field>> = Vec::new();
    let mut columns = Vec::new();
    for (name, column) in system {
        fields.push(Arc::new(Field::new(name, column.data_type().clone(), false)));
        columns.push(column);
    }
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if *field.name() != source.event_time_column {
            fields.push(Arc::clone(field));
            columns.push(Arc::clone(column));
        }
    }
    let schema: SchemaRef = Arc::new(Schema::new(Fields::from(fields)));
    rows::in_zone(&RecordBatch::try_new(schema, columns)?, rows::STORED_ZONE)
}
