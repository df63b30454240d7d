//! Pulls the plug: at every sync, at every acknowledgement, and at random writes between; then once more while the spool
//! recovers. What was acknowledged must be there, whatever the disk made of the rest (I1, I2, I3).
//!
//! `FOREBAY_POWER_CUTS=2000 cargo test -p forebay-storage --test power_loss` makes more cuts than the everyday number;
//! `FOREBAY_POWER_SEED` chooses where. The last tests break a rule on purpose and must be caught: they are what the others
//! are worth.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use fastrand::Rng;
use forebay_storage::durable_fs::FsOp;
use forebay_storage::spool::Spool;
use redb::{Database, Durability, ReadableDatabase, TableDefinition};
use support::image::{Damage, Replay};
use support::workload::{Note, Planned, Promise, Workload, config};
use support::{Event, Log, from_env};

#[test]
fn no_cut_loses_or_doubles_what_was_acknowledged() {
    let cuts = from_env("FOREBAY_POWER_CUTS", 400);
    let seed = from_env("FOREBAY_POWER_SEED", 1);
    let mut rng = Rng::with_seed(seed);
    let (mut done, mut again, mut run) = (0, 0, 0);
    while done < cuts {
        let recorded = record(seed.wrapping_add(run), 12);
        let tried = try_cuts(&recorded, cuts - done, 8, &mut rng, Tamper::Nothing);
        assert_eq!(tried.failures, Vec::<String>::new(), "seed {seed} + {run}");
        done += tried.cuts;
        again += tried.cuts_in_recovery;
        run += 1;
    }
    println!("{done} cuts, {again} cuts inside recovery, {run} workloads, seed {seed}");
    assert!(again > 0);
}

#[test]
fn an_acknowledgement_before_its_sync_is_caught() {
    let mut recorded = record(1, 20);
    move_acks_before_their_sync(&mut recorded.events);

    let tried = try_cuts(&recorded, 300, u64::MAX, &mut Rng::with_seed(1), Tamper::Nothing);

    println!("{} of {} caught", tried.failures.len(), tried.cuts);
    assert!(tried.failures.len() * 100 > tried.cuts as usize * 3, "{} caught", tried.failures.len());
}

#[test]
fn a_device_that_lies_about_sync_is_caught() {
    let recorded = record(1, 20);

    let tried = try_cuts(&recorded, 200, u64::MAX, &mut Rng::with_seed(1), Tamper::SyncLies);

    println!("{} of {} caught", tried.failures.len(), tried.cuts);
    assert!(tried.failures.len() * 2 > tried.cuts as usize, "{} caught", tried.failures.len());
}

#[test]
fn commits_without_durability_are_caught() {
    const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("t");
    let log = Log::<u64>::default();
    let open = |bytes, log: &Log<u64>| -> Database {
        let forebay_storage::spool::Medium::Backend { storage, .. } = log.medium(bytes) else { unreachable!() };
        Database::builder().create_with_backend(support::Shared(storage)).unwrap()
    };
    let database = open(Vec::new(), &log);
    for number in 0..50 {
        let mut txn = database.begin_write().unwrap();
        let durability = if number == 0 { Durability::Immediate } else { Durability::None };
        txn.set_durability(durability).unwrap();
        txn.open_table(TABLE).unwrap().insert(number, number).unwrap();
        txn.commit().unwrap();
        log.note(number);
    }
    let events = log.events();

    let mut rng = Rng::with_seed(1);
    let (mut replay, mut acked, mut lost, mut cuts) = (Replay::default(), 0, 0, 0);
    for event in &events {
        replay.apply(event);
        if let Event::Note(number) = event {
            acked = number + 1;
            let image = replay.cut(Damage::any(&mut rng), &mut rng);
            let database = open(image.database, &Log::default());
            let table = database.begin_read().unwrap().open_table(TABLE).unwrap();
            cuts += 1;
            lost += u64::from(redb::ReadableTableMetadata::len(&table).unwrap() < acked);
        }
    }

    println!("{lost} of {cuts} caught");
    assert!(acked == 50 && lost * 10 > cuts * 9, "{lost} of {cuts}");
}

#[test]
fn a_replaced_file_is_the_old_one_or_the_new_one_whole_at_every_cut() {
    let failures = cut_replacements(|_| true);

    assert_eq!(failures, 0);
}

#[test]
fn a_rename_without_a_sync_before_or_after_it_is_caught() {
    assert!(cut_replacements(|op| !matches!(op, FsOp::SyncFile(_))) > 50);
    assert!(cut_replacements(|op| !matches!(op, FsOp::SyncDir(_))) > 50);
}

/// Replaces `refs/head` 50 times, cuts after each step that `happens`, and counts the images in which the file is torn, or
/// older than what was promised.
fn cut_replacements(happens: impl Fn(&FsOp) -> bool) -> usize {
    let (dir, log) = (tempfile::tempdir().unwrap(), Log::<u64>::default());
    let (fs, refs) = (log.fs(), dir.path().join("refs"));
    fs.create_dir_all(&refs).unwrap();
    for version in 1..=50 {
        fs.replace(&refs.join("head"), version.to_string().repeat(100).as_bytes()).unwrap();
        log.note(version);
    }

    let mut rng = Rng::with_seed(1);
    let (mut replay, mut promised, mut failures) = (Replay::default(), 0, 0);
    for event in log.events() {
        match &event {
            Event::Fs(op) if !happens(op) => continue,
            Event::Note(version) => promised = *version,
            _ => {}
        }
        replay.apply(&event);
        let image = replay.cut(Damage::any(&mut rng), &mut rng);
        let restored = tempfile::tempdir().unwrap();
        image.materialise(dir.path(), restored.path());
        let found = std::fs::read(restored.path().join("refs/head")).ok();
        let is_kept = match found {
            None => promised == 0,
            Some(bytes) => (promised.max(1)..=50).any(|version| bytes == version.to_string().repeat(100).as_bytes()),
        };
        failures += usize::from(!is_kept);
    }
    failures
}

/// A run on a whole disk: its log and its plan.
struct Recorded {
    events: Vec<Event<Note>>,
    plan: Vec<Planned>,
}

fn record(seed: u64, rounds: usize) -> Recorded {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::default();
    let (spool, _) = Spool::open_on(&log.medium(Vec::new()), dir.path(), config(), log.fs()).unwrap();
    let mut workload = Workload::new(seed);
    workload.run(&spool, &log, rounds);
    Recorded { events: log.events(), plan: workload.plan }
}

#[derive(Clone, Copy, PartialEq)]
enum Tamper {
    Nothing,
    SyncLies,
}

#[derive(Default)]
struct Tried {
    cuts: u64,
    cuts_in_recovery: u64,
    failures: Vec<String>,
}

/// Cuts after every sync and every note, and at random between, at most `cuts_max` times, evenly spread; in one of
/// `recovery_every` images the recovery is cut again.
fn try_cuts(recorded: &Recorded, cuts_max: u64, recovery_every: u64, rng: &mut Rng, tamper: Tamper) -> Tried {
    let dir = tempfile::tempdir().unwrap();
    let mut places = cut_places(&recorded.events, rng);
    while places.len() as u64 > cuts_max {
        places.remove(rng.usize(..places.len()));
    }
    let mut tried = Tried::default();
    let mut replay = Replay::default();
    let mut promise = Promise::new(&recorded.plan, std::iter::empty());
    let mut places = places.into_iter().peekable();
    for (place, event) in recorded.events.iter().enumerate() {
        match tamper {
            Tamper::SyncLies => replay.apply_lying(event),
            Tamper::Nothing => replay.apply(event),
        }
        if let Event::Note(note) = event {
            promise.note(note);
        }
        if places.next_if_eq(&place).is_none() {
            continue;
        }
        let damage = Damage::any(rng);
        let image = replay.cut(damage, rng);
        tried.cuts += 1;
        let log = Log::default();
        if let Err(failure) = contained(|| promise.check(image.database.clone(), dir.path(), &log)) {
            tried.failures.push(format!("cut at event {place}, {damage:?}: {failure}"));
            continue;
        }
        if tried.cuts % recovery_every == 0 {
            cut_recovery(&promise, image.database, dir.path(), place, rng, &mut tried);
        }
    }
    tried
}

/// Opens an image while recording, cuts that at every sync and at random, and looks at those images.
fn cut_recovery(
    promise: &Promise<'_>,
    database: Vec<u8>,
    dir: &std::path::Path,
    place: usize,
    rng: &mut Rng,
    tried: &mut Tried,
) {
    let log = Log::<Note>::default();
    if let Ok((spool, _)) = Spool::open_on(&log.medium(database.clone()), dir, config(), log.fs()) {
        drop(spool);
    }
    let events = log.events();
    let places = cut_places(&events, rng);
    let mut replay = Replay::from(database);
    for (inner, event) in events.iter().enumerate() {
        replay.apply(event);
        if !places.contains(&inner) {
            continue;
        }
        let damage = Damage::any(rng);
        let image = replay.cut(damage, rng);
        tried.cuts_in_recovery += 1;
        if let Err(failure) = contained(|| promise.check(image.database, dir, &Log::default())) {
            tried.failures.push(format!("cut at event {place}, again at {inner}, {damage:?}: {failure}"));
        }
    }
}

/// A broken disk may also make redb panic or an assertion fail: that is a failure like any other.
fn contained(check: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("panicked: {}", text.unwrap_or("?")))
    })
}

/// Every sync, every note, just before every sync, and one in ten of the rest.
fn cut_places(events: &[Event<Note>], rng: &mut Rng) -> Vec<usize> {
    let is_sync = |place: usize| matches!(events.get(place), Some(Event::Sync));
    (0..events.len())
        .filter(|&place| {
            let note = matches!(events[place], Event::Note(Note::Ack(_) | Note::SealEnd(..) | Note::Delivered(..)));
            is_sync(place) || is_sync(place + 1) || (note && rng.u8(..4) == 0) || rng.u8(..10) == 0
        })
        .collect()
}

fn move_acks_before_their_sync(events: &mut Vec<Event<Note>>) {
    let mut moved: Vec<Event<Note>> = Vec::new();
    for event in events.drain(..) {
        let last_sync = moved.iter().rposition(|event| matches!(event, Event::Sync));
        match (&event, last_sync) {
            (Event::Note(Note::Ack(_)), Some(sync)) => moved.insert(sync, event),
            _ => moved.push(event),
        }
    }
    *events = moved;
}
