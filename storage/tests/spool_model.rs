//! The spool against a model that one can hold in one's head: random requests, seals, reads and restarts.
//!
//! `FOREBAY_MODEL_RUNS` and `FOREBAY_MODEL_SEED` choose how many runs and the first seed; a failure prints its seed.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

#[path = "spool_model/model.rs"]
mod model;
mod support;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use fastrand::Rng;
use forebay_storage::dead_letter::NO_DATASET;
use forebay_storage::durable_fs::DurableFs;
use forebay_storage::message::{Flags, Message};
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::spool::{Request, SealCommit, Spool, SpoolConfig, Writer};
use model::Model;
use support::{SmallDisk, from_env};
use tokio::sync::mpsc;

const DATASETS: [DatasetId; 3] = [DatasetId(1), DatasetId(2), DatasetId(3)];
const UPSTREAM: &str = "s3://lake";

#[test]
fn the_spool_does_what_the_model_does() {
    let runs = from_env("FOREBAY_MODEL_RUNS", 30);
    let first = from_env("FOREBAY_MODEL_SEED", 1);
    for seed in first..first + runs {
        println!("seed {seed}");
        Run::new(seed).run(60);
    }
}

struct Run {
    rng: Rng,
    dir: tempfile::TempDir,
    disk: Arc<SmallDisk>,
    config: SpoolConfig,
    spool: Option<Spool>,
    model: Model,
    sent: u32,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let dir = tempfile::tempdir().unwrap();
        // Either every chunk stays for the DUP window, or none does.
        let keeps_tail = rng.bool();
        let config = SpoolConfig {
            commit_messages_max: rng.usize(1..12),
            dup_tail_bytes: if keeps_tail { u64::MAX } else { 0 },
            dup_window_client_max: 5,
            packet_ids_max: 6,
            sessions_max: 3,
            retained_topics_max: 2,
            min_free_bytes: 0,
            ballast_bytes: 0,
            ..SpoolConfig::default()
        };
        let model = Model::new(&config, keeps_tail);
        let disk = SmallDisk::new(u64::MAX, dir.path().join("ballast"));
        let mut run = Self { rng, dir, disk, config, spool: None, model, sent: 0 };
        run.reopen();
        for name in ["a", "b", "c"] {
            run.spool().dataset_id(name).unwrap();
        }
        run
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.rng.u8(..10) {
                0 => self.reopen(),
                1 => self.seal(),
                2 => (0..3).for_each(|_| self.seal()),
                3 => self.compare_read(),
                _ => self.send(),
            }
            self.compare();
        }
    }

    fn spool(&self) -> &Spool {
        self.spool.as_ref().unwrap()
    }

    fn reopen(&mut self) {
        self.spool = None;
        let (spool, report) =
            Spool::open_on(&self.disk.medium(), self.dir.path(), self.config.clone(), DurableFs::new()).unwrap();
        assert_eq!((&report.put_aside, &report.damaged[..]), (&None, &[][..]));
        self.spool = Some(spool);
        self.model.reopen();
    }

    fn send(&mut self) {
        let count = self.rng.usize(1..20);
        let requests: Vec<_> = (0..count).map(|_| self.request()).collect();
        // The writer below is new: it rebuilds its DUP window, as after a restart.
        self.model.reopen();
        let mut expected = Vec::new();
        for batch in requests.chunks(self.config.commit_messages_max) {
            expected.extend(self.model.commit(batch));
        }

        let answers = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&answers);
        let (sender, receiver) = mpsc::channel(count);
        for request in requests {
            sender.try_send(request).unwrap();
        }
        drop(sender);
        Writer::new(self.spool().clone(), move |(), outcome| heard.lock().unwrap().push(outcome))
            .run(receiver)
            .unwrap();
        assert_eq!(*answers.lock().unwrap(), expected);
    }

    fn request(&mut self) -> Request<()> {
        let client_id: Arc<str> = ["x", "y", "z", "w"][self.rng.usize(..4)].into();
        let packet_id = self.rng.u16(1..6);
        match self.rng.u8(..20) {
            0 => Request::OpenSession { client_id, expiry_secs: self.rng.u32(..3), ticket: () },
            1 => Request::CloseSession { client_id, ticket: () },
            19 => Request::Probe { ticket: () },
            2..=4 => Request::Release { client_id, packet_id, ticket: () },
            5 => {
                let message = self.message(client_id, 1);
                Request::DeadLetter {
                    message,
                    reason: "none takes it".into(),
                    packet_id: Some(packet_id),
                    retained_once: false,
                    ticket: (),
                }
            }
            _ => {
                let qos = self.rng.u8(..3);
                let message = self.message(client_id, qos);
                Request::Append { message, packet_id: (qos > 0).then_some(packet_id), retained_once: false, ticket: () }
            }
        }
    }

    fn message(&mut self, client_id: Arc<str>, qos: u8) -> Message {
        self.sent += 1;
        let text = if self.rng.u8(..8) == 0 { String::new() } else { format!("v{}", self.rng.u8(..4)) };
        Message {
            dataset: DATASETS[self.rng.usize(..3)],
            received_at_us: i64::from(self.sent),
            flags: Flags { qos, dup: qos > 0 && self.rng.bool(), retain: self.rng.bool(), ..Flags::default() },
            topic: Bytes::from(format!("t/{}", self.rng.u8(..3))),
            captures: vec![0..1, 2..3],
            client_id,
            payload: Bytes::from(text),
        }
    }

    fn seal(&mut self) {
        let dataset = DATASETS[self.rng.usize(..3)];
        let log_end = self.spool().log_end();
        let to = if self.rng.bool() { log_end } else { Seq(self.rng.u64(..=log_end.0 + 1)) };
        let seal =
            SealCommit { dataset, sealed: to, dead_letters: Vec::new(), ledger_keys: Vec::new(), counters: Vec::new() };
        let allowed = self.model.seal(dataset, to);
        assert_eq!(self.spool().commit_seal(&seal).is_ok(), allowed, "seal {dataset:?} to {to}");

        let delivered = Seq(self.rng.u64(..=to.0 + 1));
        let allowed = self.model.deliver(dataset, delivered);
        assert_eq!(self.spool().set_delivered(UPSTREAM, dataset, delivered).is_ok(), allowed);
    }

    fn compare_read(&mut self) {
        let from = Seq(self.rng.u64(..=self.spool().log_end().0));
        let dataset = self.rng.bool().then(|| DATASETS[self.rng.usize(..3)]);
        let max = self.rng.usize(1..10);
        let expected = self.model.messages(from, dataset);
        let (mut found, mut next) = (Vec::new(), from);
        while next < self.spool().log_end() {
            let max_bytes = self.rng.usize(1..100);
            let read = self.spool().read(next, dataset, max, max_bytes).unwrap();
            assert!(read.messages.len() <= max && read.next > next);
            found.extend(read.messages);
            next = read.next;
        }
        assert_eq!(found, expected);
    }

    fn compare(&self) {
        let (spool, model) = (self.spool(), &self.model);
        assert_eq!(spool.log_end(), model.log_end);
        assert_eq!(spool.log_start().unwrap(), model.log_start());
        assert_eq!(spool.verify().unwrap().messages, model.messages(Seq(0), None).len() as u64);
        let chunks = spool.chunks(Seq(0), usize::MAX).unwrap();
        assert_eq!(chunks.iter().map(|chunk| (chunk.first, chunk.end)).collect::<Vec<_>>(), model.chunk_bounds());
        assert_eq!(spool.usage().live_bytes, chunks.iter().map(|chunk| chunk.bytes_on_disk).sum::<u64>());
        for dataset in DATASETS {
            assert_eq!(spool.sealed(dataset).unwrap(), model.sealed_to(dataset));
            assert_eq!(spool.delivered(UPSTREAM, dataset).unwrap(), model.delivered_to(dataset));
        }
        let sessions: Vec<_> = spool.sessions().unwrap();
        assert_eq!(sessions, model.stored_sessions());
        for topic in ["t/0", "t/1", "t/2"] {
            let value = spool.retained(topic.as_bytes()).unwrap().and_then(|retained| retained.payload);
            assert_eq!(value, model.retained.get(topic.as_bytes()).cloned(), "{topic}");
        }
        let letters = spool.dead_letters(NO_DATASET, Seq(0), usize::MAX).unwrap();
        let letters: Vec<_> = letters.into_iter().map(|letter| (letter.seq, letter.message.payload)).collect();
        assert_eq!(letters, model.dead_letters);
    }
}
