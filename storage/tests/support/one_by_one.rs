//! A writer that is asked one thing at a time, and plain messages to ask it with.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use forebay_storage::message::{Flags, Message};
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::spool::{Outcome, Request, SealCommit, Spool, SpoolConfig, WriteError, Writer};
use tokio::sync::mpsc;

use super::workload::read_all;

pub const A: DatasetId = DatasetId(1);
pub const B: DatasetId = DatasetId(2);

pub fn small() -> SpoolConfig {
    SpoolConfig { min_free_bytes: 0, ballast_bytes: 0, ..SpoolConfig::default() }
}

pub fn message(dataset: DatasetId, ticket: u64, text: &str) -> Message {
    Message {
        dataset,
        received_at_us: ticket as i64,
        flags: Flags { qos: 1, ..Flags::default() },
        topic: Bytes::from_static(b"site/a/temp"),
        captures: Vec::new(),
        client_id: "device".into(),
        payload: Bytes::from(text.to_owned()),
    }
}

/// About 7,000 bytes of text for a number, always the same, that LZ4 cannot shrink.
pub fn noise() -> impl Fn(u64) -> String {
    |n| {
        let mut rng = fastrand::Rng::with_seed(n);
        (0..7000).map(|_| char::from(rng.u8(1..0x80))).collect()
    }
}

pub fn append(message: Message) -> Request<()> {
    Request::Append { message, packet_id: None, retained_once: false, ticket: () }
}

pub fn exactly_once(mut message: Message, packet_id: u16) -> Request<()> {
    message.flags.qos = 2;
    Request::Append { message, packet_id: Some(packet_id), retained_once: false, ticket: () }
}

pub fn seal(dataset: DatasetId, sealed: Seq) -> SealCommit {
    SealCommit { dataset, sealed, dead_letters: Vec::new(), ledger_keys: Vec::new(), counters: Vec::new() }
}

/// What `message` was given as ticket, of all that is there.
pub fn tickets(spool: &Spool) -> Vec<u64> {
    read_all(spool, Seq(0)).iter().map(|(_, message)| message.received_at_us as u64).collect()
}

pub fn run(writer: &mut Writer<impl FnMut((), Outcome)>, requests: Vec<Request<()>>) {
    run_result(writer, requests).unwrap();
}

pub fn run_result(writer: &mut Writer<impl FnMut((), Outcome)>, requests: Vec<Request<()>>) -> Result<(), WriteError> {
    let (sender, receiver) = mpsc::channel(requests.len().max(1));
    for request in requests {
        sender.try_send(request).unwrap();
    }
    drop(sender);
    writer.run(receiver)
}

/// A writer that is asked one thing at a time.
pub struct OneByOne<F> {
    pub writer: Writer<F>,
    answers: Arc<Mutex<Vec<Outcome>>>,
}

impl<F: FnMut((), Outcome)> OneByOne<F> {
    pub fn send(&mut self, request: Request<()>) -> Outcome {
        run(&mut self.writer, vec![request]);
        self.answers.lock().unwrap().pop().unwrap()
    }
}

pub fn recording_writer(spool: &Spool) -> OneByOne<impl FnMut((), Outcome) + use<>> {
    let answers = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&answers);
    OneByOne { writer: Writer::new(spool.clone(), move |(), outcome| heard.lock().unwrap().push(outcome)), answers }
}
