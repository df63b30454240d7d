//! Push ingest: the rows of each slice, posted to a dataset that belongs to the node.
//!
//! ```text
//! slice ─▶ payload (no offset, op, system_time) ─▶ POST {node}/{account}/{dataset}/ingest ─▶ 200: durable there
//!                                                    │ 500, for the TRIES-th time
//!                                                    └─▶ bisect ─▶ the rows at fault, as dead letters
//! ```
//!
//! A node answers 200 once the rows are in its chain, and again when they are sent once more: it knows them by
//! `(gateway, seq)` (merge strategy Ledger). So a request whose answer was lost is made again, and nothing has to be
//! remembered between two attempts but how often a slice was refused.
//!
//! A 500 has no words and many reasons: the node's own trouble, a schema that differs, one row that it cannot read. Trouble
//! passes, so a slice is tried [`TRIES`] times, with the pauses that whoever calls makes; then [`bisect`] looks for rows. Only
//! a row that is refused alone, while others are taken, becomes a dead letter. When everything is refused the rows are not
//! at fault, and none is given up.
//!
//! [`payload`] makes the bodies, [`ndjson`] their text form, [`poison`] what is kept of a refused row.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forebay_storage::odf::{Multihash, SealedSlice};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Method, StatusCode, Url};
use tracing::{debug, info};

use self::bisect::{Bisect, POISON_MAX, Verdict};
use self::payload::{Payload, PayloadError};
use super::http::{Http, paced_body};
use super::outcome::{Failure, FailureKind};
use crate::config::{Ingest, IngestFormat};

pub mod bisect;
pub mod ndjson;
pub mod payload;
pub mod poison;

pub use self::poison::{PoisonRow, refused_by};

/// Times that a slice is refused before it is looked for the rows that are at fault.
pub const TRIES: u32 = 5;

/// Posts slices to one node.
#[derive(Debug)]
pub struct Poster {
    http: Arc<Http>,
    target: Ingest,
    /// Where bodies are made.
    scratch: PathBuf,
    /// By dataset: which slice was refused, and how often in a row.
    refusals: BTreeMap<String, (Multihash, u32)>,
}

/// A slice that the node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Rows that it took.
    pub rows: u64,
    /// Bytes of the bodies that were sent.
    pub bytes: u64,
    /// Requests that were made.
    pub requests: u64,
    /// Rows that it will not take.
    pub poison: Vec<PoisonRow>,
}

impl Poster {
    /// A poster to `target`. `scratch` is made when it is needed.
    #[must_use]
    pub fn new(http: Arc<Http>, target: Ingest, scratch: PathBuf) -> Self {
        Self { http, target, scratch, refusals: BTreeMap::new() }
    }

    /// Brings one slice, whose file is at `path`, to the node. It can be interrupted anywhere and called again. A slice that
    /// is refused for the [`TRIES`]-th time in a row is searched for the rows that are at fault.
    ///
    /// # Errors
    /// [`FailureKind::Unknown`]: refused, fewer than [`TRIES`] times, or the node refuses what it took before.
    /// [`FailureKind::Refused`]: every row is refused, or too many. [`FailureKind::Local`]: the file cannot be read or the
    /// scratch directory not written. All others as the node answers.
    pub async fn deliver(&mut self, dataset: &str, slice: &SealedSlice, path: &Path) -> Result<Delivered, Failure> {
        let id = slice.slice.physical_hash;
        let counting = path.to_owned();
        let rows = 0..blocking(move || payload::rows(&counting)).await?;
        let mut errand = Errand::new(self, dataset, path);
        if self.refusals(dataset, id) < TRIES {
            match errand.post(rows.clone()).await? {
                Reply::Taken => return Ok(self.done(dataset, errand.delivered)),
                Reply::Refused(failure) if self.refused(dataset, id) < TRIES => return Err(failure),
                Reply::Refused(_) => {}
            }
        }
        info!(dataset, rows = rows.end, refused = TRIES, "Looking for the rows that the node refuses.");
        match errand.search(rows).await? {
            Verdict::Poison(poison) => {
                let slice = path.to_owned();
                errand.delivered.poison = blocking(move || poison::read(&slice, &poison)).await?;
                Ok(self.done(dataset, errand.delivered))
            }
            verdict => {
                // A person may have put it right by the next call: the whole slice first, then the search again.
                let tries = if verdict == Verdict::Fickle { 0 } else { TRIES - 1 };
                self.refusals.insert(dataset.to_owned(), (id, tries));
                Err(errand.failure(dataset, &verdict))
            }
        }
    }

    /// Posts one row that was refused before, as the line of JSON that was kept of it.
    ///
    /// # Errors
    /// It is still refused, or cannot be posted.
    pub async fn repost(&self, dataset: &str, json: bytes::Bytes) -> Result<(), Failure> {
        let mut errand = Errand::new(self, dataset, Path::new(""));
        errand.format = IngestFormat::NdJson;
        let bytes = json.len() as u64;
        match errand.send(reqwest::Body::from(json), 1, bytes).await? {
            Reply::Taken => Ok(()),
            Reply::Refused(failure) => Err(failure),
        }
    }

    /// How often the slice was refused in a row.
    fn refusals(&self, dataset: &str, slice: Multihash) -> u32 {
        self.refusals.get(dataset).filter(|(refused, _)| *refused == slice).map_or(0, |(_, times)| *times)
    }

    /// Counts one more.
    fn refused(&mut self, dataset: &str, slice: Multihash) -> u32 {
        let times = self.refusals(dataset, slice) + 1;
        self.refusals.insert(dataset.to_owned(), (slice, times));
        times
    }

    fn done(&mut self, dataset: &str, delivered: Delivered) -> Delivered {
        self.refusals.remove(dataset);
        delivered
    }

    /// Where rows of the dataset are posted to.
    fn url(&self, dataset: &str) -> Url {
        let mut url = self.target.node.fill(&self.target.path, dataset);
        if let Some(source) = &self.target.source_name {
            url.query_pairs_mut().append_pair("sourceName", source);
        }
        url
    }
}

/// One slice on its way.
struct Errand {
    http: Arc<Http>,
    url: Url,
    format: IngestFormat,
    scratch: PathBuf,
    slice: PathBuf,
    delivered: Delivered,
}

/// What a node says to rows, if it says something about them.
enum Reply {
    Taken,
    /// With 500.
    Refused(Failure),
}

impl Errand {
    fn new(poster: &Poster, dataset: &str, slice: &Path) -> Self {
        Self {
            http: Arc::clone(&poster.http),
            url: poster.url(dataset),
            format: poster.target.format,
            scratch: poster.scratch.clone(),
            slice: slice.to_owned(),
            delivered: Delivered::default(),
        }
    }

    /// Sends parts of the slice until it is known which rows are refused.
    async fn search(&mut self, rows: Range<u64>) -> Result<Verdict, Failure> {
        let mut bisect = Bisect::new(rows);
        while let Some(rows) = bisect.poll_request() {
            // A row that is sent again only to see whether the node still takes it counts once.
            let counted = self.delivered.rows;
            let is_control = bisect.is_control();
            match self.post(rows.clone()).await? {
                Reply::Taken => bisect.handle_taken(&rows),
                Reply::Refused(_) => bisect.handle_refused(&rows),
            }
            if is_control {
                self.delivered.rows = counted;
            }
        }
        Ok(bisect.verdict().cloned().unwrap_or(Verdict::Fickle))
    }

    /// Sends rows.
    async fn post(&mut self, rows: Range<u64>) -> Result<Reply, Failure> {
        let payload = self.payload(rows.clone()).await?;
        let (count, bytes) = (payload.rows, payload.bytes);
        let body = paced_body(&self.http, tokio::fs::File::from_std(payload.into_file()));
        debug!(?rows, count, bytes, "Posting rows.");
        self.send(body, count, bytes).await
    }

    async fn send(&mut self, body: reqwest::Body, count: u64, bytes: u64) -> Result<Reply, Failure> {
        // Without parameters: the node compares the type as a whole. With the length, so that a cut body is known as one.
        let request = self
            .http
            .request(Method::POST, self.url.clone())?
            .header(CONTENT_TYPE, media_type(self.format))
            .header(CONTENT_LENGTH, bytes)
            .body(body);
        self.delivered.requests += 1;
        self.delivered.bytes += bytes;
        let answer = self.http.answer(request).await?;
        debug!(count, bytes, status = answer.status.as_u16(), "Posted rows.");
        match answer.status {
            StatusCode::OK if is_a_nodes(&answer.body) => {
                self.delivered.rows += count;
                Ok(Reply::Taken)
            }
            StatusCode::OK => Err(Failure::unreachable(format!(
                "{} was answered with 200 by something that is no Kamu node: is there a login page in between?",
                self.what()
            ))),
            StatusCode::INTERNAL_SERVER_ERROR => Ok(Reply::Refused(answer.failure(&self.what()))),
            _ => Err(answer.failure(&self.what())),
        }
    }

    async fn payload(&self, rows: Range<u64>) -> Result<Payload, Failure> {
        let (slice, format, scratch) = (self.slice.clone(), self.format, self.scratch.clone());
        blocking(move || payload::write(&slice, rows, format, &scratch)).await
    }

    fn what(&self) -> String {
        format!("POST {}", self.url)
    }

    /// Why a search accuses no row.
    fn failure(&self, dataset: &str, verdict: &Verdict) -> Failure {
        let what = self.what();
        let advice = format!(
            "a 500 says nothing more, so compare `forebay manifest {dataset}` with the node's schema; every row is kept"
        );
        match verdict {
            Verdict::Fickle => Failure::new(
                FailureKind::Unknown,
                format!("{what} was answered with 500 even for rows that the node took before: it will be tried again"),
            ),
            Verdict::TooMany => Failure::new(
                FailureKind::Refused,
                format!("{what} was answered with 500 for more than {POISON_MAX} single rows of {dataset}: {advice}"),
            ),
            Verdict::Everything | Verdict::Poison(_) => Failure::new(
                FailureKind::Refused,
                format!("{what} was answered with 500 for every row of {dataset} that was tried: {advice}"),
            ),
        }
    }
}

/// A node's 200 has nothing in it; one of a later version may have JSON. A hotspot's login page is neither.
fn is_a_nodes(body: &str) -> bool {
    body.trim().is_empty() || serde_json::from_str::<serde::de::IgnoredAny>(body).is_ok()
}

fn media_type(format: IngestFormat) -> &'static str {
    match format {
        IngestFormat::Parquet => "application/vnd.apache.parquet",
        IngestFormat::NdJson => "application/x-ndjson",
    }
}

/// Reads and writes files where nothing else waits for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PayloadError> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(Failure::local)?.map_err(local)
}

fn local(error: PayloadError) -> Failure {
    match &error {
        PayloadError::Open { path, problem } if problem.kind() == ErrorKind::NotFound => {
            Failure::local(format!("the slice {} is not there, so it cannot be posted", path.display()))
        }
        _ => Failure::local(error),
    }
}
