//! Push ingest against a node that takes and refuses as Kamu's does: whole requests, with a 500 that says nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::AsArray as _;
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use forebay_agent::config::{Ingest, IngestFormat, Secret, Upstream};
use forebay_agent::upstream::http::Http;
use forebay_agent::upstream::ingest::bisect::PROBES;
use forebay_agent::upstream::ingest::{Delivered, Poster, TRIES};
use forebay_agent::upstream::outcome::{Failure, FailureKind};
use forebay_storage::dataset::row::RowBuilder;
use forebay_storage::dataset::spec::{DataType, DatasetSpec, FieldSpec, Format};
use forebay_storage::message::{Flags, Message};
use forebay_storage::odf::{DataSlice, Multihash, SealedSlice};
use forebay_storage::position::{DatasetId, Offset, Seq};
use forebay_storage::slice::SliceWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::support::PATIENCE;

const FORMATS: [IngestFormat; 2] = [IngestFormat::Parquet, IngestFormat::NdJson];

#[tokio::test]
async fn a_request_looks_as_a_node_expects_it() {
    for (format, media_type) in FORMATS.into_iter().zip(["application/vnd.apache.parquet", "application/x-ndjson"]) {
        let node = Node::start(|_| Answer::Status(200)).await;
        let slice = Slice::of(10..15, |_| "fine".to_owned());
        let mut poster = node.poster(|ingest| {
            ingest.format = format;
            ingest.source_name = Some("gate way".to_owned());
        });

        let delivered = slice.deliver(&mut poster).await.unwrap();

        let requests = node.requests();
        let request = &requests[0];
        assert_eq!(request.line, "POST /acme/temperature/ingest?sourceName=gate+way HTTP/1.1");
        assert_eq!(request.headers["content-type"], media_type);
        assert_eq!(request.headers["content-length"], delivered.bytes.to_string());
        assert_eq!(request.headers["authorization"], "Bearer ka_secret");
        for absent in ["transfer-encoding", "content-encoding", "expect"] {
            assert!(!request.headers.contains_key(absent), "{absent}");
        }
        assert_eq!(request.seqs(), Vec::from_iter(10..15));
        assert_eq!((delivered.rows, delivered.requests, delivered.poison.len(), requests.len()), (5, 1, 0, 1));
    }
}

#[tokio::test]
async fn a_row_that_is_refused_alone_becomes_poison_after_five_tries_and_all_others_arrive_once_and_in_order() {
    for format in FORMATS {
        let node = Node::start(refuse_bad_rows).await;
        let slice = Slice::of(100..400, |seq| if seq == 217 || seq == 399 { "bad" } else { "fine" }.to_owned());
        let mut poster = node.poster(|ingest| ingest.format = format);

        for _ in 1..TRIES {
            let failure = slice.deliver(&mut poster).await.unwrap_err();
            assert_eq!(failure.kind, FailureKind::Unknown, "{failure}");
        }
        let delivered = slice.deliver(&mut poster).await.unwrap();

        let poison: Vec<_> = delivered.poison.iter().map(|row| row.seq).collect();
        assert_eq!(poison, [Seq(217), Seq(399)]);
        assert_eq!(delivered.rows, 298);
        let text = std::str::from_utf8(&delivered.poison[0].json).unwrap();
        assert!(text.contains("\"seq\":217,") && text.contains("\"payload\":\"bad\""), "{text}");
        assert_eq!(delivered.poison[0].topic.as_deref(), Some("site/217"));
        assert_eq!(node.taken(), Vec::from_iter((100..399).filter(|seq| *seq != 217)));
        assert!(delivered.requests < 50, "{}", delivered.requests);
        assert!(slice.deliver(&mut poster).await.is_err(), "what is done is forgotten: the next refusal is the first");
        assert_eq!(node.requests().len() as u64, u64::from(TRIES) - 1 + delivered.requests + 1);
    }
}

#[tokio::test]
async fn a_node_that_refuses_every_row_is_told_to_a_person_and_nothing_is_poison() {
    let node = Node::start(|_| Answer::Status(500)).await;
    let slice = Slice::of(0..1_000, |_| "fine".to_owned());
    let mut poster = node.poster(|_| {});
    for _ in 1..TRIES {
        slice.deliver(&mut poster).await.unwrap_err();
    }

    let refused = slice.deliver(&mut poster).await.unwrap_err();

    assert_eq!(refused.kind, FailureKind::Refused);
    let words = &refused.words;
    assert!(words.contains("/acme/temperature/ingest was answered with 500 for every row of temperature"), "{words}");
    assert!(words.contains("`forebay manifest temperature`") && !words.contains('\n'), "{words}");
    assert_eq!(node.requests().len() as u64, u64::from(TRIES) + PROBES);

    node.answers_with(|_| Answer::Status(200));
    let delivered = slice.deliver(&mut poster).await.unwrap();
    assert_eq!((delivered.rows, delivered.requests), (1_000, 1), "the whole slice first");
}

#[tokio::test]
async fn a_node_that_refuses_what_it_took_before_accuses_no_row() {
    let takes = |request: &Request| request.seqs() == [0] && request.number < 10;
    let node = Node::start(move |request| Answer::Status(if takes(request) { 200 } else { 500 })).await;
    let slice = Slice::of(0..1_000, |_| "fine".to_owned());
    let mut poster = node.poster(|_| {});
    for _ in 1..TRIES {
        slice.deliver(&mut poster).await.unwrap_err();
    }

    let failure = slice.deliver(&mut poster).await.unwrap_err();

    assert_eq!(failure.kind, FailureKind::Unknown);
    assert!(failure.words.contains("even for rows that the node took before"), "{failure}");
    assert!(node.requests().len() < 60, "{}", node.requests().len());
    node.answers_with(|_| Answer::Status(200));
    assert_eq!(slice.deliver(&mut poster).await.unwrap().requests, 1, "the whole slice first");
}

#[tokio::test]
async fn every_other_answer_is_a_failure_of_its_kind_at_once() {
    let node = Node::start(|_| Answer::Status(200)).await;
    let slice = Slice::of(0..3, |_| "fine".to_owned());
    let mut poster = node.poster(|_| {});
    let wait = FailureKind::Unreachable { retry_after: Some(Duration::from_secs(7)) };
    let kinds = [
        (401, FailureKind::Unauthorised),
        (403, FailureKind::Refused),
        (404, FailureKind::Refused),
        (415, FailureKind::Refused),
        (429, wait),
        (503, wait),
        (507, FailureKind::Unknown),
    ];

    for (status, kind) in kinds {
        node.answers_with(move |_| Answer::Status(status));
        for _ in 0..=TRIES {
            assert_eq!(slice.deliver(&mut poster).await.unwrap_err().kind, kind, "{status}");
        }
    }
    assert_eq!(node.requests().len(), kinds.len() * (TRIES as usize + 1), "nothing was searched");
}

#[tokio::test]
async fn a_search_that_is_interrupted_starts_over_and_its_rows_are_there_once() {
    let node = Node::start(refuse_bad_rows).await;
    let slice = Slice::of(0..64, |seq| if seq == 40 { "bad" } else { "fine" }.to_owned());
    let mut poster = node.poster(|_| {});
    for _ in 1..TRIES {
        slice.deliver(&mut poster).await.unwrap_err();
    }
    let before = node.requests().len();
    let interrupts = move |request: &Request| match request.number - before {
        4 => Answer::Status(429),
        8 => Answer::Cut,
        _ => refuse_bad_rows(request),
    };
    node.answers_with(interrupts);

    for _ in 0..2 {
        let failure = slice.deliver(&mut poster).await.unwrap_err();
        assert!(matches!(failure.kind, FailureKind::Unreachable { .. }), "{failure}");
    }
    let delivered = slice.deliver(&mut poster).await.unwrap();

    assert_eq!(delivered.poison.len(), 1);
    assert_eq!(BTreeSet::from_iter(node.taken()), BTreeSet::from_iter((0..64).filter(|seq| *seq != 40)));
}

#[tokio::test]
async fn a_connection_that_breaks_is_no_refusal() {
    let node = Node::start(|_| Answer::Cut).await;
    let slice = Slice::of(0..20_000, |seq| format!("{:x}", seq.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    let mut poster = node.poster(|_| {});

    for cut in [Answer::Cut, Answer::HangUp] {
        node.answers_with(move |_| cut);
        for _ in 0..TRIES {
            let failure = slice.deliver(&mut poster).await.unwrap_err();
            assert_eq!(failure.kind, FailureKind::Unreachable { retry_after: None }, "{failure}");
        }
    }
    node.answers_with(|_| Answer::Status(200));
    assert_eq!(slice.deliver(&mut poster).await.unwrap().rows, 20_000);
}

#[tokio::test]
async fn refusals_count_for_one_slice_of_one_dataset() {
    let node = Node::start(refuse_bad_rows).await;
    let (one, other) = (Slice::of(0..4, |_| "bad".to_owned()), Slice::of(4..8, |_| "bad".to_owned()));
    let mut poster = node.poster(|_| {});

    for _ in 0..TRIES {
        assert_eq!(one.deliver(&mut poster).await.unwrap_err().kind, FailureKind::Unknown);
        assert_eq!(other.deliver(&mut poster).await.unwrap_err().kind, FailureKind::Unknown);
    }
}

#[tokio::test]
async fn a_slice_that_is_gone_is_the_gateways_own_trouble() {
    let node = Node::start(|_| Answer::Status(200)).await;
    let slice = Slice::of(0..4, |_| "fine".to_owned());
    std::fs::remove_file(&slice.path).unwrap();

    let failure = slice.deliver(&mut node.poster(|_| {})).await.unwrap_err();

    assert_eq!(failure.kind, FailureKind::Local);
    assert!(failure.words.contains("is not there"), "{failure}");
    assert_eq!(node.requests().len(), 0);
}

#[tokio::test]
async fn a_slow_link_is_not_a_silent_node() {
    let node = Node::start(|_| Answer::Status(200)).await;
    let slice = Slice::of(0..20_000, |seq| format!("{:x}", seq.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    let mut upstream = node.upstream();
    upstream.timeout = Duration::from_millis(300);
    upstream.rate_limit = NonZeroU64::new(150_000);
    let mut poster = node.poster_of(&upstream, |_| {});

    let delivered = slice.deliver(&mut poster).await.unwrap();
    assert!(delivered.bytes > 200_000, "{} bytes take longer than the timeout", delivered.bytes);

    node.answers_with(|_| Answer::Silence);
    upstream.rate_limit = None;
    let failure = slice.deliver(&mut node.poster_of(&upstream, |_| {})).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable { retry_after: None });
    assert!(failure.words.contains("silent for 0.3 s"), "{failure}");
}

#[tokio::test]
async fn a_login_page_is_no_acknowledgement() {
    let node = Node::start(|_| Answer::LoginPage).await;
    let slice = Slice::of(0..3, |seq| format!("row {seq}"));

    let failure = slice.deliver(&mut node.poster(|_| {})).await.unwrap_err();

    assert_eq!(failure.kind, FailureKind::Unreachable { retry_after: None });
    assert!(failure.words.contains("is there a login page in between?"), "{failure}");
}

fn refuse_bad_rows(request: &Request) -> Answer {
    Answer::Status(if request.rows.iter().any(|(_, payload)| payload == "bad") { 500 } else { 200 })
}

/// A sealed slice of messages.
struct Slice {
    path: PathBuf,
    sealed: SealedSlice,
    _dir: TempDir,
}

impl Slice {
    fn of(seqs: std::ops::Range<u64>, payload: impl Fn(u64) -> String) -> Self {
        let mut spec = DatasetSpec::messages();
        spec.format = Format::Text;
        spec.fields = vec![FieldSpec::required("payload", DataType::String)];
        let mut rows = RowBuilder::new(&spec, "gw");
        for seq in seqs.clone() {
            let message = Message {
                dataset: DatasetId(1),
                received_at_us: 1_788_220_800_000_000 + seq as i64,
                flags: Flags::default(),
                topic: Bytes::from(format!("site/{seq}")),
                captures: Vec::new(),
                client_id: "device".into(),
                payload: Bytes::from(payload(seq)),
            };
            rows.push(Seq(seq), &message).unwrap();
        }
        let batch = rows.take_batch(Offset(seqs.start), 0);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slice");
        let mut writer = SliceWriter::new(batch.schema(), File::create(&path).unwrap()).unwrap();
        writer.write(&batch).unwrap();
        let (_, slice) = writer.finish().unwrap();
        let hash = Multihash::of(&slice.physical_hash);
        let (start, end) = (seqs.start, seqs.end - 1);
        let slice = DataSlice { logical_hash: hash, physical_hash: hash, start, end, size: slice.size };
        Self { path, sealed: SealedSlice { block: hash, slice, last_seq: Seq(end) }, _dir: dir }
    }

    async fn deliver(&self, poster: &mut Poster) -> Result<Delivered, Failure> {
        let delivering = poster.deliver("temperature", &self.sealed, &self.path);
        tokio::time::timeout(PATIENCE, delivering).await.unwrap()
    }
}

/// What the node does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    /// Answers; with 200 it has taken the rows.
    Status(u16),
    /// Closes after the head.
    Cut,
    /// Takes the rows and closes instead of answering.
    HangUp,
    /// Takes the rows and says nothing.
    Silence,
    /// Is no node: a hotspot that wants a login, with status 200.
    LoginPage,
}

/// A request that the node has heard.
#[derive(Clone, Debug)]
struct Request {
    /// From 1.
    number: usize,
    line: String,
    headers: BTreeMap<String, String>,
    /// `seq` and `payload`.
    rows: Vec<(i64, String)>,
}

impl Request {
    fn seqs(&self) -> Vec<i64> {
        self.rows.iter().map(|(seq, _)| *seq).collect()
    }
}

type Behaviour = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

/// A node whose dataset has the merge strategy Ledger.
struct Node {
    address: SocketAddr,
    shared: Arc<Shared>,
    dir: TempDir,
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    requests: Mutex<Vec<Request>>,
    taken: Mutex<Vec<i64>>,
}

impl Node {
    async fn start(behaviour: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(Arc::new(behaviour)),
            requests: Mutex::default(),
            taken: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                let mut socket = BufReader::new(socket);
                tokio::spawn(async move { while serve(&shared, &mut socket).await {} });
            }
        });
        Self { address, shared, dir: tempfile::tempdir().unwrap() }
    }

    fn answers_with(&self, behaviour: impl Fn(&Request) -> Answer + Send + Sync + 'static) {
        *self.shared.behaviour.lock().unwrap() = Arc::new(behaviour);
    }

    fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The `seq` of each row that it has, in order of arrival.
    fn taken(&self) -> Vec<i64> {
        self.shared.taken.lock().unwrap().clone()
    }

    fn upstream(&self) -> Upstream {
        let token = self.dir.path().join("token");
        std::fs::write(&token, "ka_secret\n").unwrap();
        let mut upstream = Upstream::at(&format!("http://{}/acme", self.address)).unwrap();
        upstream.token = Some(Secret::File(token));
        upstream
    }

    fn poster(&self, change: impl Fn(&mut Ingest)) -> Poster {
        self.poster_of(&self.upstream(), change)
    }

    fn poster_of(&self, upstream: &Upstream, change: impl Fn(&mut Ingest)) -> Poster {
        let node = upstream.kind.node().unwrap().clone();
        let path = "{account}/{dataset}/ingest".to_owned();
        let mut ingest = Ingest { node, path, format: IngestFormat::default(), source_name: None };
        change(&mut ingest);
        Poster::new(Arc::new(Http::new(upstream).unwrap()), ingest, self.dir.path().join("scratch"))
    }
}

/// One request of a connection. Whether there may be another.
async fn serve(shared: &Shared, socket: &mut BufReader<TcpStream>) -> bool {
    let Some((line, headers)) = head(socket).await else { return false };
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let number = shared.requests.lock().unwrap().len() + 1;
    let mut request = Request { number, line, headers, rows: Vec::new() };
    let behaviour = Arc::clone(&shared.behaviour.lock().unwrap());
    if behaviour(&request) == Answer::Cut {
        shared.requests.lock().unwrap().push(request);
        return false;
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await.unwrap();
    request.rows = rows(&request, body);
    let answer = behaviour(&request);
    shared.requests.lock().unwrap().push(request.clone());
    if !matches!(answer, Answer::Status(status) if status != 200) {
        let mut taken = shared.taken.lock().unwrap();
        let known = BTreeSet::from_iter(taken.iter().copied());
        taken.extend(request.seqs().into_iter().filter(|seq| !known.contains(seq)));
    }
    match answer {
        Answer::Status(status) => {
            let answer = format!("HTTP/1.1 {status} x\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n");
            socket.write_all(answer.as_bytes()).await.is_ok()
        }
        Answer::LoginPage => {
            let page = "<html><body>Please log in.</body></html>";
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{page}", page.len());
            socket.write_all(answer.as_bytes()).await.is_ok()
        }
        Answer::Silence => std::future::pending().await,
        Answer::Cut | Answer::HangUp => false,
    }
}

async fn head(socket: &mut BufReader<TcpStream>) -> Option<(String, BTreeMap<String, String>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let line = lines.next()?.to_owned();
    let headers = lines.filter_map(|line| line.split_once(": "));
    Some((line, headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect()))
}

fn rows(request: &Request, body: Vec<u8>) -> Vec<(i64, String)> {
    if request.headers["content-type"] == "application/x-ndjson" {
        let text = String::from_utf8(body).unwrap();
        let row = |line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            (row["seq"].as_i64().unwrap(), row["payload"].as_str().unwrap().to_owned())
        };
        return text.lines().map(row).collect();
    }
    let mut rows = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(Bytes::from(body)).unwrap().build().unwrap() {
        let batch = batch.unwrap();
        let seqs = batch.column_by_name("seq").unwrap().as_primitive::<Int64Type>().values().to_vec();
        let payloads = batch.column_by_name("payload").unwrap().as_string::<i32>();
        rows.extend(seqs.into_iter().zip(payloads.iter().map(|text| text.unwrap().to_owned())));
    }
    rows
}
