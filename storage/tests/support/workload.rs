//! A gateway's life in requests: publishes of every QoS, releases, resends, dead letters, seals, deliveries.
//!
//! Everything is derived from a seed, so that a found failure can be run again. Each message carries its ticket in its
//! payload: from what is found on a disk one can tell what it was.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use fastrand::Rng;
use forebay_storage::dead_letter::NO_DATASET;
use forebay_storage::message::{Flags, Message};
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::spool::{Outcome, Request, SealCommit, Spool, SpoolConfig, Writer};
use tokio::sync::mpsc;

use super::Log;

/// What the test notes between the disk's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A request was handed to the writer.
    Begin(u32),
    /// It was answered `Stored`.
    Ack(u32),
    /// A dataset is about to be sealed to a position, which covers these tickets.
    SealBegin(DatasetId, Seq, Vec<u32>),
    /// It is.
    SealEnd(DatasetId, Seq),
    /// Its delivery to the upstream was recorded up to a position.
    Delivered(DatasetId, Seq),
}

/// One request as planned; its place in the plan is its ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Planned {
    Publish(Publish),
    Release { client: u8, packet_id: u16 },
    Open { client: u8 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Of the first sending: what the payload says.
    pub ticket: u32,
    pub client: u8,
    pub packet_id: Option<u16>,
    pub qos: u8,
    pub dup: bool,
    pub retain: bool,
    /// None: no dataset takes it.
    pub dataset: Option<DatasetId>,
}

impl Publish {
    pub fn message(&self) -> Message {
        let filler = "0123456789abcdef".repeat(Rng::with_seed(u64::from(self.ticket)).usize(..20));
        Message {
            dataset: self.dataset.unwrap_or(NO_DATASET),
            received_at_us: 1_790_000_000_000_000 + i64::from(self.ticket),
            flags: Flags { qos: self.qos, dup: self.dup, retain: self.retain, ..Flags::default() },
            topic: Bytes::from(format!("site/{}/temp", self.client)),
            captures: vec![0..4, 5..6],
            client_id: client_id(self.client),
            payload: Bytes::from(format!("{:08} {filler}", self.ticket)),
        }
    }
}

impl Planned {
    pub fn request(&self, ticket: u32) -> Request<u32> {
        match self {
            Self::Publish(publish) if publish.dataset.is_none() => Request::DeadLetter {
                message: publish.message(),
                reason: "no dataset takes it".into(),
                packet_id: publish.packet_id,
                retained_once: false,
                ticket,
            },
            Self::Publish(publish) => Request::Append {
                message: publish.message(),
                packet_id: publish.packet_id,
                retained_once: false,
                ticket,
            },
            Self::Release { client, packet_id } => {
                Request::Release { client_id: client_id(*client), packet_id: *packet_id, ticket }
            }
            Self::Open { client } => Request::OpenSession { client_id: client_id(*client), expiry_secs: 60, ticket },
        }
    }
}

pub fn client_id(client: u8) -> std::sync::Arc<str> {
    format!("device-{client}").into()
}

/// The ticket that a payload names.
pub fn ticket_of(message: &Message) -> u32 {
    std::str::from_utf8(&message.payload[..8]).unwrap().parse().unwrap()
}

/// Small enough that everything that happens at a bound of a chunk happens often.
pub fn config() -> SpoolConfig {
    SpoolConfig {
        commit_messages_max: 7,
        ballast_bytes: 0,
        min_free_bytes: 0,
        dup_tail_bytes: 16 << 10,
        cache_bytes: 1 << 20,
        ..SpoolConfig::default()
    }
}

pub const CLIENTS: u8 = 4;
pub const UPSTREAM: &str = "file:///lake";

/// A gateway at work, with what it asked for so far.
pub struct Workload {
    rng: Rng,
    pub plan: Vec<Planned>,
    next_packet_id: [u16; CLIENTS as usize],
    /// QoS 2 identifiers that were stored and not released.
    unreleased: BTreeSet<(u8, u16)>,
    last_round: Vec<Publish>,
}

impl Workload {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            plan: Vec::new(),
            next_packet_id: [1; CLIENTS as usize],
            unreleased: BTreeSet::new(),
            last_round: Vec::new(),
        }
    }

    /// Runs `rounds` of requests, seals and deliveries, noting each in `log`.
    pub fn run(&mut self, spool: &Spool, log: &Log<Note>, rounds: usize) {
        let datasets = [spool.dataset_id("temperature").unwrap(), spool.dataset_id("leak").unwrap()];
        let acks = log.clone();
        let mut writer = Writer::new(spool.clone(), move |ticket, outcome| {
            assert_eq!(outcome, Outcome::Stored, "ticket {ticket}");
            acks.note(Note::Ack(ticket));
        });
        let opens = (0..CLIENTS).map(|client| Planned::Open { client }).collect();
        self.send(&mut writer, log, opens);
        for _ in 0..rounds {
            let round = self.round(datasets);
            self.send(&mut writer, log, round);
            if self.rng.u8(..3) == 0 {
                seal(spool, log, datasets[self.rng.usize(..2)], &mut self.rng);
            }
        }
    }

    fn send(&mut self, writer: &mut Writer<impl FnMut(u32, Outcome)>, log: &Log<Note>, round: Vec<Planned>) {
        let (sender, receiver) = mpsc::channel(1024);
        for planned in round {
            let ticket = self.plan.len() as u32;
            log.note(Note::Begin(ticket));
            sender.try_send(planned.request(ticket)).unwrap();
            self.plan.push(planned);
        }
        drop(sender);
        writer.run(receiver).unwrap();
    }

    fn round(&mut self, datasets: [DatasetId; 2]) -> Vec<Planned> {
        let mut round = Vec::new();
        for publish in std::mem::take(&mut self.last_round) {
            let (client, Some(packet_id)) = (publish.client, publish.packet_id) else { continue };
            // Now and then an acknowledgement was lost on the way to the device.
            if self.rng.u8(..8) == 0 {
                round.push(Planned::Publish(Publish { dup: true, ..publish.clone() }));
            }
            if publish.qos == 2 && self.rng.u8(..3) > 0 {
                self.unreleased.remove(&(client, packet_id));
                round.push(Planned::Release { client, packet_id });
            }
        }
        for _ in 0..self.rng.usize(1..16) {
            let ticket = (self.plan.len() + round.len()) as u32;
            let publish = self.publish(ticket, datasets);
            if publish.dataset.is_some() {
                self.last_round.push(publish.clone());
            }
            round.push(Planned::Publish(publish));
        }
        round
    }

    fn publish(&mut self, ticket: u32, datasets: [DatasetId; 2]) -> Publish {
        let client = self.rng.u8(..CLIENTS);
        let lost = self.rng.u8(..20) == 0;
        let qos = if lost { 1 } else { self.rng.u8(..3) };
        let packet_id = (qos > 0).then(|| self.packet_id(client));
        if let (2, Some(packet_id)) = (qos, packet_id) {
            self.unreleased.insert((client, packet_id));
        }
        let dataset = (!lost).then(|| datasets[self.rng.usize(..2)]);
        Publish { ticket, client, packet_id, qos, dup: false, retain: self.rng.u8(..6) == 0, dataset }
    }

    fn packet_id(&mut self, client: u8) -> u16 {
        let next = &mut self.next_packet_id[usize::from(client)];
        loop {
            *next = *next % 90 + 1;
            if !self.unreleased.contains(&(client, *next)) {
                return *next;
            }
        }
    }
}

/// Seals a dataset to some place beyond where it is, and delivers a part of that.
fn seal(spool: &Spool, log: &Log<Note>, dataset: DatasetId, rng: &mut Rng) {
    let from = spool.sealed(dataset).unwrap();
    let to = Seq(rng.u64(from.0..=spool.log_end().0));
    let covered = read_all(spool, from).into_iter().filter(|(seq, message)| *seq < to && message.dataset == dataset);
    let covered = covered.map(|(_, message)| ticket_of(&message)).collect();
    log.note(Note::SealBegin(dataset, to, covered));
    let seal =
        SealCommit { dataset, sealed: to, dead_letters: Vec::new(), ledger_keys: Vec::new(), counters: Vec::new() };
    spool.commit_seal(&seal).unwrap();
    log.note(Note::SealEnd(dataset, to));
    let delivered = Seq(rng.u64(spool.delivered(UPSTREAM, dataset).unwrap().0..=to.0));
    spool.set_delivered(UPSTREAM, dataset, delivered).unwrap();
    log.note(Note::Delivered(dataset, delivered));
}

/// Everything from a position on. Damage fails the test.
pub fn read_all(spool: &Spool, from: Seq) -> Vec<(Seq, Message)> {
    let (mut all, mut next) = (Vec::new(), from);
    while next < spool.log_end() {
        let read = spool.read(next, None, 100, 1 << 20).unwrap();
        assert!(read.damaged.is_empty() && read.next > next, "{read:?}");
        all.extend(read.messages);
        next = read.next;
    }
    all
}

macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}

/// What must be true of a disk whose power was cut, given what was noted before the cut and what was planned.
pub struct Promise<'a> {
    pub plan: &'a [Planned],
    begun: BTreeSet<u32>,
    acked: BTreeSet<u32>,
    /// Tickets that may be gone, since a seal covered them.
    sealed_tickets: BTreeSet<u32>,
    sealed: BTreeMap<DatasetId, Seq>,
    delivered: BTreeMap<DatasetId, Seq>,
}

impl<'a> Promise<'a> {
    pub fn new<'n>(plan: &'a [Planned], notes: impl Iterator<Item = &'n Note>) -> Self {
        let mut promise = Self {
            plan,
            begun: BTreeSet::new(),
            acked: BTreeSet::new(),
            sealed_tickets: BTreeSet::new(),
            sealed: BTreeMap::new(),
            delivered: BTreeMap::new(),
        };
        for note in notes {
            promise.note(note);
        }
        promise
    }

    pub fn note(&mut self, note: &Note) {
        match note {
            Note::Begin(ticket) => _ = self.begun.insert(*ticket),
            Note::Ack(ticket) => _ = self.acked.insert(*ticket),
            Note::SealBegin(_, _, tickets) => self.sealed_tickets.extend(tickets),
            Note::SealEnd(dataset, seq) => _ = self.sealed.insert(*dataset, *seq),
            Note::Delivered(dataset, seq) => _ = self.delivered.insert(*dataset, *seq),
        }
    }

    /// Opens what is left of the spool and looks whether every promise was kept. An error says which was not.
    pub fn check(&self, database: Vec<u8>, dir: &Path, log: &Log<Note>) -> Result<(), String> {
        let (spool, report) = match Spool::open_on(&log.medium(database), dir, config(), log.fs()) {
            Ok(opened) => opened,
            // A file that was never whole is put aside and begun anew, which nobody notices.
            Err(_) if self.acked.is_empty() && self.sealed.is_empty() => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        ensure!(report.damage.is_none() && report.damaged.is_empty(), "damage: {report:?}");
        let verified = spool.verify().map_err(|error| error.to_string())?;
        ensure!(verified.damaged.is_empty(), "damage: {verified:?}");
        self.check_positions(&spool)?;
        self.check_packet_ids(&spool)?;
        self.check_messages(&spool, |ticket| self.acked.contains(&ticket))?;
        self.check_dead_letters(&spool)?;
        self.resend(&spool);
        let qos = |ticket: u32| match &self.plan[ticket as usize] {
            Planned::Publish(publish) => publish.qos,
            _ => 0,
        };
        self.check_messages(&spool, |ticket| {
            self.acked.contains(&ticket) || (self.begun.contains(&ticket) && qos(ticket) > 0)
        })
    }

    fn check_positions(&self, spool: &Spool) -> Result<(), String> {
        for (_, dataset) in spool.datasets().map_err(|error| error.to_string())? {
            let sealed = spool.sealed(dataset).unwrap();
            let delivered = spool.delivered(UPSTREAM, dataset).unwrap();
            let log_end = spool.log_end();
            ensure!(delivered <= sealed && sealed <= log_end, "I3: {delivered} ≤ {sealed} ≤ {log_end}");
            ensure!(Some(&sealed) >= self.sealed.get(&dataset), "sealed went back to {sealed}");
            ensure!(Some(&delivered) >= self.delivered.get(&dataset), "delivered went back to {delivered}");
        }
        Ok(())
    }

    /// An identifier is held from its acknowledged PUBLISH until its PUBREL is begun, and not after that is acknowledged.
    fn check_packet_ids(&self, spool: &Spool) -> Result<(), String> {
        let mut must = BTreeMap::new();
        for &ticket in &self.begun {
            let acked = self.acked.contains(&ticket);
            match &self.plan[ticket as usize] {
                Planned::Publish(Publish { qos: 2, client, packet_id: Some(packet_id), .. }) if acked => {
                    must.insert((*client, *packet_id), Some(true));
                }
                Planned::Publish(Publish { qos: 2, client, packet_id: Some(packet_id), dup: false, .. }) => {
                    must.insert((*client, *packet_id), None);
                }
                Planned::Release { client, packet_id } => {
                    must.insert((*client, *packet_id), acked.then_some(false));
                }
                _ => {}
            }
        }
        let sessions = spool.sessions().map_err(|error| error.to_string())?;
        for ((client, packet_id), must) in must {
            let session = sessions.iter().find(|session| session.client_id == client_id(client));
            let held = session.is_some_and(|session| session.packet_ids.contains(&packet_id));
            ensure!(must.is_none_or(|must| must == held), "packet id {packet_id} of {client}: held {held}");
        }
        Ok(())
    }

    /// Every message is one that was begun, exactly as it was, once; and those that `must` be there are.
    fn check_messages(&self, spool: &Spool, must: impl Fn(u32) -> bool) -> Result<(), String> {
        let mut found = BTreeSet::new();
        let mut last = None;
        for (seq, message) in read_all(spool, Seq(0)) {
            let ticket = ticket_of(&message);
            ensure!(last < Some(seq) && seq < spool.log_end(), "seq {seq} after {last:?}");
            ensure!(self.begun.contains(&ticket), "ticket {ticket} was never begun");
            let Planned::Publish(publish) = &self.plan[ticket as usize] else { return Err("no publish".into()) };
            let mut expected = publish.message();
            expected.flags.dup = message.flags.dup;
            ensure!(message == expected, "ticket {ticket} is not what it was: {message:?}");
            ensure!(found.insert(ticket), "ticket {ticket} is there twice");
            last = Some(seq);
        }
        for (ticket, planned) in self.plan.iter().enumerate() {
            let Planned::Publish(publish) = planned else { continue };
            let missing = !found.contains(&publish.ticket) && !self.sealed_tickets.contains(&publish.ticket);
            ensure!(
                publish.dataset.is_none() || !missing || !must(ticket as u32),
                "ticket {ticket} was acknowledged and is lost"
            );
        }
        Ok(())
    }

    fn check_dead_letters(&self, spool: &Spool) -> Result<(), String> {
        let letters = spool.dead_letters(NO_DATASET, Seq(0), usize::MAX).map_err(|error| error.to_string())?;
        let mut found = BTreeSet::new();
        for letter in letters {
            ensure!(found.insert(ticket_of(&letter.message)), "dead letter twice: {letter:?}");
        }
        for &ticket in &self.acked {
            if let Planned::Publish(Publish { dataset: None, .. }) = self.plan[ticket as usize] {
                ensure!(found.contains(&ticket), "dead letter {ticket} was acknowledged and is lost");
            }
        }
        Ok(())
    }

    /// What devices do after a crash: each sends again, in order, what was not acknowledged; and, to be nasty, QoS 2
    /// messages that were.
    fn resend(&self, spool: &Spool) {
        let releases = self.begun.iter().filter_map(|&ticket| match self.plan[ticket as usize] {
            Planned::Release { client, packet_id } => Some((client, packet_id, ticket)),
            _ => None,
        });
        let released: BTreeSet<_> = releases.collect();
        let (sender, receiver) = mpsc::channel(1 << 16);
        for &ticket in &self.begun {
            let Planned::Publish(publish) = &self.plan[ticket as usize] else { continue };
            let Some(packet_id) = publish.packet_id.filter(|_| publish.dataset.is_some()) else { continue };
            let was_released =
                released.iter().any(|&(client, id, at)| (client, id) == (publish.client, packet_id) && at > ticket);
            if was_released || (publish.qos == 1 && self.acked.contains(&ticket)) {
                continue;
            }
            sender.try_send(Planned::Publish(Publish { dup: true, ..publish.clone() }).request(ticket)).unwrap();
        }
        drop(sender);
        Writer::new(spool.clone(), |_, outcome| assert_eq!(outcome, Outcome::Stored)).run(receiver).unwrap();
    }
}
