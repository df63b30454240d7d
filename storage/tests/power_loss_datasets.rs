//! Pulls the plug on the whole path: spool, slices, blocks and heads on one disk that loses, tears and reorders what was
//! not synced. After every cut the gateway starts again, seals what is left, and every acknowledged message must be in
//! exactly one place: a row, or a dead letter; once per key in a Ledger (I1 to I4).
//!
//! `FOREBAY_DATASET_CUTS` sets their number, `FOREBAY_POWER_SEED` where they fall.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod sealer_support;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fastrand::Rng;
use forebay_storage::batcher::BatchLimits;
use forebay_storage::durable_fs::DurableFs;
use forebay_storage::message::Message;
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::sealer::Sealer;
use forebay_storage::spool::Spool;
use sealer_support::{GATEWAY, NOW_US, drain, leak, message, rows, spool_config, store, temperature, with_payload};
use support::image::{CrashImage, Damage, Replay};
use support::{Event, Log, from_env};

/// Payload of a dead letter: what follows is its id.
const BAD: &str = "bad ";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Note {
    Begin(Told),
    Ack(Told),
}

/// A message as the test knows it: which dataset (true: the Ledger), which id, whether it is a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    once: bool,
    id: u64,
    good: bool,
}

#[test]
fn no_cut_loses_or_doubles_a_row_or_breaks_a_chain() {
    let cuts = from_env("FOREBAY_DATASET_CUTS", 100);
    let seed = from_env("FOREBAY_POWER_SEED", 1);
    let mut rng = Rng::with_seed(seed);
    let (mut done, mut again, mut run) = (0, 0, 0);
    while done < cuts {
        let recorded = record(seed.wrapping_add(run));
        let tried = try_cuts(&recorded, cuts - done, &mut rng);
        assert_eq!(tried.failures, Vec::<String>::new(), "seed {seed} + {run}");
        (done, again, run) = (done + tried.cuts, again + tried.cuts_in_recovery, run + 1);
    }
    println!("{done} cuts, {again} cuts inside recovery, {run} workloads, seed {seed}");
    assert!(again > 0);
}

/// What the test above is worth: a head that moves before its slice is synced must be noticed.
#[test]
fn a_slice_that_is_never_synced_is_caught() {
    let mut recorded = record(1);
    recorded.events.retain(|event| match event {
        Event::Fs(forebay_storage::durable_fs::FsOp::SyncFile(path)) => {
            !path.parent().is_some_and(|dir| dir.ends_with("data"))
        }
        _ => true,
    });

    let tried = try_cuts(&recorded, 60, &mut Rng::with_seed(1));

    println!("{} of {} caught", tried.failures.len(), tried.cuts);
    assert!(!tried.failures.is_empty());
}

struct Recorded {
    events: Vec<Event<Note>>,
    dir: std::path::PathBuf,
}

/// A gateway at work: messages of both datasets, some bad, some twice, sealed now and then.
fn record(seed: u64) -> Recorded {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::default();
    let fs = log.fs();
    let (spool, _) = Spool::open_on(&log.medium(Vec::new()), dir.path(), spool_config(), fs.clone()).unwrap();
    let mut sealer = open(&spool, &fs, dir.path());
    let ids = [spool.dataset_id("temperature").unwrap(), spool.dataset_id("leak").unwrap()];
    let mut rng = Rng::with_seed(seed);
    let mut next = 0;
    for _ in 0..8 {
        let told: Vec<_> = (0..rng.usize(1..8)).map(|_| tell(&mut next, &mut rng)).collect();
        for told in &told {
            log.note(Note::Begin(*told));
        }
        store(&spool, told.iter().map(|told| made(ids, *told)).collect(), |n| log.note(Note::Ack(told[n])));
        if rng.u8(..3) > 0 {
            drain(&mut sealer);
        }
    }
    Recorded { events: log.events(), dir: dir.path().to_owned() }
}

fn tell(next: &mut u64, rng: &mut Rng) -> Told {
    let once = rng.bool();
    // In the Ledger a key comes again now and then.
    let again = once && *next > 0 && rng.u8(..4) == 0;
    *next += u64::from(!again);
    Told { once, id: if again { rng.u64(1..=*next) } else { *next }, good: again || rng.u8(..6) > 0 }
}

fn made(ids: [DatasetId; 2], told: Told) -> Message {
    let dataset = ids[usize::from(told.once)];
    let second = told.id as i64;
    if told.good {
        message(dataset, second, told.id)
    } else {
        with_payload(dataset, second, &format!("{BAD}{}", told.id))
    }
}

fn open(spool: &Spool, fs: &DurableFs, dir: &Path) -> Sealer {
    let specs = [Arc::new(temperature()), Arc::new(leak())];
    let limits = BatchLimits { rows: 5, ..BatchLimits::default() };
    Sealer::open(spool.clone(), fs, &dir.join("datasets"), GATEWAY, &specs, limits, NOW_US).unwrap()
}

#[derive(Default)]
struct Tried {
    cuts: u64,
    cuts_in_recovery: u64,
    failures: Vec<String>,
}

/// Cuts around every sync, of the spool's file, of other files and of directories, and at random between. Every sixth
/// recovery is cut again.
fn try_cuts(recorded: &Recorded, cuts_max: u64, rng: &mut Rng) -> Tried {
    let mut places = cut_places(&recorded.events, rng);
    while places.len() as u64 > cuts_max {
        places.remove(rng.usize(..places.len()));
    }
    let mut tried = Tried::default();
    let mut replay = Replay::default();
    let (mut begun, mut acked) = (Vec::new(), Vec::new());
    let mut places = places.into_iter().peekable();
    for (place, event) in recorded.events.iter().enumerate() {
        replay.apply(event);
        match event {
            Event::Note(Note::Begin(told)) => begun.push(*told),
            Event::Note(Note::Ack(told)) => acked.push(*told),
            _ => {}
        }
        if places.next_if_eq(&place).is_none() {
            continue;
        }
        let image = replay.cut(Damage::any(rng), rng);
        tried.cuts += 1;
        let events = match contained(|| check(&image, &recorded.dir, &begun, &acked)) {
            Ok(events) => events,
            Err(failure) => {
                tried.failures.push(format!("cut at event {place}: {failure}"));
                continue;
            }
        };
        if tried.cuts % 6 == 0 {
            cut_recovery(&image, events, recorded, &begun, &acked, rng, &mut tried);
        }
    }
    tried
}

fn cut_recovery(
    image: &CrashImage,
    (events, dir): (Vec<Event<Note>>, std::path::PathBuf),
    recorded: &Recorded,
    begun: &[Told],
    acked: &[Told],
    rng: &mut Rng,
    tried: &mut Tried,
) {
    let mut places = cut_places(&events, rng);
    while places.len() > 6 {
        places.remove(rng.usize(..places.len()));
    }
    let mut replay = Replay::after(image, &recorded.dir, &dir);
    for (place, event) in events.iter().enumerate() {
        replay.apply(event);
        if places.contains(&place) {
            let image = replay.cut(Damage::any(rng), rng);
            tried.cuts_in_recovery += 1;
            if let Err(failure) = contained(|| check(&image, &dir, begun, acked)) {
                tried.failures.push(format!("cut again at event {place} of the recovery: {failure}"));
            }
        }
    }
}

/// Starts on an image, seals what is left, and compares with what was promised. Returns what that start did to the disk.
fn check(image: &CrashImage, from: &Path, begun: &[Told], acked: &[Told]) -> (Vec<Event<Note>>, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    image.materialise(from, dir.path());
    let log = Log::<Note>::default();
    let fs = log.fs();
    let opened = Spool::open_on(&log.medium(image.database.clone()), dir.path(), spool_config(), fs.clone());
    let Ok((spool, report)) = opened else {
        assert!(acked.is_empty(), "cannot be opened: {:?}", opened.err());
        return (log.events(), dir.path().to_owned());
    };
    assert!(report.damage.is_none() && report.damaged.is_empty(), "{report:?}");
    let mut sealer = open(&spool, &fs, dir.path());
    for dataset in sealer.datasets() {
        assert!(dataset.sealed() <= spool.log_end(), "I3");
    }
    drain(&mut sealer);

    let mut found = BTreeMap::<Told, usize>::new();
    for (name, once) in [("temperature", false), ("leak", true)] {
        for id in rows(&sealer, name) {
            *found.entry(Told { once, id, good: true }).or_default() += 1;
        }
        let id = spool.dataset_id(name).unwrap();
        for letter in spool.dead_letters(id, Seq(0), usize::MAX).unwrap() {
            let text = std::str::from_utf8(&letter.message.payload).unwrap();
            let id = text.strip_prefix(BAD).unwrap().parse().unwrap();
            *found.entry(Told { once, id, good: false }).or_default() += 1;
        }
    }
    for told in acked {
        assert!(found.contains_key(told), "acknowledged and lost: {told:?}");
    }
    for (told, times) in &found {
        assert!(begun.contains(told), "nobody sent {told:?}");
        assert_eq!(*times, 1, "{told:?}");
    }
    assert_eq!(spool.log_start().unwrap(), spool.log_end(), "I2: everything is sealed, so nothing is left");
    (log.events(), dir.path().to_owned())
}

/// A failed assertion is a failure of that cut.
fn contained<R>(check: impl FnOnce() -> R) -> Result<R, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        text.unwrap_or("panicked").to_owned()
    })
}

fn cut_places(events: &[Event<Note>], rng: &mut Rng) -> Vec<usize> {
    use forebay_storage::durable_fs::FsOp;
    let is_sync = |place: usize| {
        matches!(
            events.get(place),
            Some(Event::Sync | Event::Fs(FsOp::SyncFile(_) | FsOp::SyncDir(_) | FsOp::Rename(..)))
        )
    };
    let is_ack = |place: usize| matches!(events[place], Event::Note(Note::Ack(_)));
    (0..events.len())
        .filter(|&place| is_sync(place) || is_sync(place + 1) || is_ack(place) || rng.u8(..10) == 0)
        .collect()
}
