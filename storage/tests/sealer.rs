//! From spool to dataset: what becomes a row, what a crash leaves, and that the same messages give the same bytes.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod sealer_support;

use std::path::Path;

use forebay_storage::batcher::{BatchLimits, CutReason};
use forebay_storage::dataset::spec::{DataType, DatasetSpec};
use forebay_storage::durable_fs::DurableFs;
use forebay_storage::odf::Event;
use forebay_storage::position::Seq;
use forebay_storage::sealer::{SealError, Sealer};
use forebay_storage::spool::{Spool, SpoolConfig};
use sealer_support::{
    GATEWAY, NOW_US, drain, field, files, leak, message, open_sealer, rows, spool_config, store, temperature,
    with_payload,
};

#[test]
fn messages_become_rows_of_a_dataset_that_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_spool(dir.path());
    let mut sealer = open_sealer(&spool, dir.path(), &[temperature()], BatchLimits::default());
    let id = spool.dataset_id("temperature").unwrap();
    store(&spool, (0..10).map(|n| message(id, n as i64, n)).collect(), |_| {});

    let sealed = drain(&mut sealer);

    assert_eq!((sealed.len(), sealed[0].rows, sealed[0].messages), (1, 10, 10));
    assert_eq!(rows(&sealer, "temperature"), (0..10).collect::<Vec<_>>());
    assert_eq!(spool.sealed(id).unwrap(), Seq(10));
    let dataset = sealer.datasets().next().unwrap();
    let state = dataset.repository().state();
    assert_eq!(state.source_state.as_ref().unwrap().value, "9");
    assert_eq!(state.watermark.unwrap().timestamp_micros(), NOW_US + 9_000_000);
    assert_eq!(state.system_time, state.watermark.unwrap());
    assert_eq!(state.vocab.event_time_column.as_deref(), Some("ts"));
}

/// The clock of the gateway is not to be trusted here, so the row is taken; the watermark must not follow it.
#[test]
fn a_reading_from_the_future_does_not_end_everybodys_windows() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_spool(dir.path());
    let mut sealer = open_sealer(&spool, dir.path(), &[temperature()], BatchLimits::default());
    let id = spool.dataset_id("temperature").unwrap();
    let mut ahead = with_payload(id, 0, &format!(r#"{{"ts":{},"id":1}}"#, NOW_US / 1_000 + 86_400_000));
    ahead.flags.clock_synchronised = false;
    store(&spool, vec![ahead], |_| {});

    drain(&mut sealer);

    let state = sealer.datasets().next().unwrap().repository().state();
    assert_eq!(state.watermark.unwrap().timestamp_micros(), NOW_US);
}

#[test]
fn a_payload_that_is_no_row_is_a_dead_letter_and_its_neighbours_are_rows() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_spool(dir.path());
    let mut sealer = open_sealer(&spool, dir.path(), &[temperature()], BatchLimits::default());
    let id = spool.dataset_id("temperature").unwrap();
    let bad = with_payload(id, 1, r#"{"ts":0,"id":"seven"}"#);
    store(&spool, vec![message(id, 0, 0), bad.clone(), message(id, 2, 2)], |_| {});

    drain(&mut sealer);

    assert_eq!(rows(&sealer, "temperature"), [0, 2]);
    let letters = spool.dead_letters(id, Seq(0), 10).unwrap();
    assert_eq!((letters.len(), letters[0].seq, &letters[0].message), (1, Seq(1), &bad));
    assert!(letters[0].reason.contains("id"), "{}", letters[0].reason);
    assert_eq!(spool.seal_counters(id).unwrap().get("dead_letters"), Some(&1));
}

#[test]
fn undeclared_fields_are_counted_by_name_and_a_flood_of_names_together() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_spool(dir.path());
    let mut sealer = open_sealer(&spool, dir.path(), &[temperature()], BatchLimits::default());
    let id = spool.dataset_id("temperature").unwrap();
    let with = |field: &str| with_payload(id, 0, &format!(r#"{{"ts":{},"id":1,"{field}":0}}"#, NOW_US / 1_000));
    for batch in 0..2 {
        let mut messages: Vec<_> = (0..60).map(|n| with(&format!("f{}", batch * 60 + n))).collect();
        messages.push(with("humidity"));
        store(&spool, messages, |_| {});
        drain(&mut sealer);
    }

    let counters = spool.seal_counters(id).unwrap();

    assert_eq!(counters.get("unknown_field:humidity"), Some(&2));
    assert_eq!(counters.keys().filter(|name| name.starts_with("unknown_field:")).count(), 64);
    assert_eq!(counters.get("unknown_fields_others"), Some(&(121 - 64)));
}

#[test]
fn a_batch_of_dead_letters_alone_makes_no_block_and_leaves_the_spool() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_spool(dir.path());
    let mut sealer = open_sealer(&spool, dir.path(), &[temperature()], BatchLimits::default());
    let id = spool.dataset_id("temperature").unwrap();
    let blocks = sealer.datasets().next().unwrap().repository().state().sequence_number;
    store(&spool, vec![with_payload(id, 0, "not json")], |_| {});

    let sealed = drain(&mut sealer);

    assert_eq!((sealed[0].rows, sealed[0].dead_letters), (0, 1));
    assert_eq!(sealer.datasets().next().unwrap().repository().state().sequence_number, blocks);
    assert_eq!(spool.log_start().unwrap(), Seq(1));
}

#[test]
fn a_ledger_keeps_the_first_row_of_a_key_within_a_batch_and_across_batches_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_spool(dir.path());
    let mut sealer = open_sealer(&spool, dir.path(), &[leak()], BatchLimits::default());
    let id = spool.dataset_id("leak").unwrap();
    store(&spool, vec![message(id, 0, 7), message(id, 1, 7), message(id, 2, 8)], |_| {});
    drain(&mut sealer);
    drop(sealer);
    let mut sealer = open_sealer(&spool, dir.path(), &[leak()], BatchLimits::default());
    store(&spool, vec![message(id, 3, 8), message(id, 4, 9)], |_| {});

    let sealed = drain(&mut sealer);

    assert_eq!((sealed[0].rows, sealed[0].duplicates), (1, 1));
    assert_eq!(rows(&sealer, "leak"), [7, 8, 9]);
}

/// The moment between `refs/head` and the spool's commit: the spool of before, the chain of after.
#[test]
fn a_seal_that_lost_its_last_commit_is_finished_once_whatever_the_declaration_says_now() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_spool(dir.path());
    let specs = [temperature(), leak()];
    let mut sealer = open_sealer(&spool, dir.path(), &specs, BatchLimits::default());
    let (all, once) = (spool.dataset_id("temperature").unwrap(), spool.dataset_id("leak").unwrap());
    let unwanted = with_payload(all, 1, &format!(r#"{{"ts":{},"id":1,"value":"x"}}"#, NOW_US / 1_000));
    store(&spool, vec![message(all, 0, 0), unwanted, message(once, 2, 5), message(once, 3, 5)], |_| {});
    let before = std::fs::read(dir.path().join("spool.redb")).unwrap();
    drain(&mut sealer);
    drop((sealer, spool));
    std::fs::write(dir.path().join("spool.redb"), before).unwrap();

    let spool = open_spool(dir.path());
    let mut later = [temperature(), leak()];
    later[0].extra = true; // an optional column more
    let mut sealer = open_sealer(&spool, dir.path(), &later, BatchLimits::default());

    assert_eq!((spool.sealed(all).unwrap(), spool.sealed(once).unwrap()), (Seq(4), Seq(4)));
    assert_eq!(drain(&mut sealer), []);
    assert_eq!(spool.dead_letters(all, Seq(0), 10).unwrap().len(), 1);
    store(&spool, vec![message(once, 4, 5), message(all, 5, 1)], |_| {});
    drain(&mut sealer);
    assert_eq!((rows(&sealer, "temperature"), rows(&sealer, "leak")), (vec![0, 1], vec![5]));
}

/// I4 and D10: nothing of the clock, the moment or the machine is in the bytes.
#[test]
fn the_same_messages_give_the_same_bytes_however_the_spool_was_filled() {
    let run = |pieces: usize| {
        let dir = tempfile::tempdir().unwrap();
        let spool = open_spool(dir.path());
        let root = dir.path().join("datasets");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join("temperature.key"), format!("f{}\n", "07".repeat(32))).unwrap();
        let mut sealer =
            open_sealer(&spool, dir.path(), &[temperature()], BatchLimits { rows: 40, ..Default::default() });
        let id = spool.dataset_id("temperature").unwrap();
        let messages: Vec<_> = (0..100).map(|n| message(id, n as i64, n)).collect();
        for piece in messages.chunks(pieces) {
            store(&spool, piece.to_vec(), |_| {});
        }
        drain(&mut sealer);
        files(&root.join("temperature"))
    };

    let (whole, pieces) = (run(100), run(7));
    assert_eq!(whole.keys().collect::<Vec<_>>(), pieces.keys().collect::<Vec<_>>());
    assert!(whole == pieces, "same names, other bytes");
}

#[test]
fn a_batch_ends_at_the_limits_and_the_rest_follows() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_spool(dir.path());
    let limits = BatchLimits { rows: 4, ..BatchLimits::default() };
    let mut sealer = open_sealer(&spool, dir.path(), &[temperature()], limits);
    let id = spool.dataset_id("temperature").unwrap();
    store(&spool, (0..10).map(|n| message(id, n as i64, n)).collect(), |_| {});

    let by_rows: Vec<_> = std::iter::from_fn(|| sealer.seal_due(NOW_US).unwrap()).collect();
    let rest = drain(&mut sealer);

    assert_eq!(
        by_rows.iter().map(|(sealed, reason)| (sealed.rows, *reason)).collect::<Vec<_>>(),
        [(4, CutReason::Rows), (4, CutReason::Rows)]
    );
    assert_eq!(rest[0].rows, 2);
    assert_eq!(rows(&sealer, "temperature"), (0..10).collect::<Vec<_>>());
}

#[test]
fn an_optional_field_may_be_added_and_anything_else_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_spool(dir.path());
    drop(open_sealer(&spool, dir.path(), &[temperature()], BatchLimits::default()));
    let mut wider = temperature();
    wider.fields.push(field("battery", DataType::Float32, true));

    let sealer = open_sealer(&spool, dir.path(), &[wider], BatchLimits::default());

    let repository = sealer.datasets().next().unwrap().repository();
    let schemas = repository
        .blocks(None)
        .unwrap()
        .filter(|block| matches!(block.as_ref().unwrap().1.event, Event::SetDataSchema(_)));
    assert_eq!(schemas.count(), 2);
    drop(sealer);

    let mut narrower = temperature();
    narrower.fields[2].data_type = DataType::String;
    let refused = Sealer::open(
        spool,
        &DurableFs::new(),
        &dir.path().join("datasets"),
        GATEWAY,
        &[std::sync::Arc::new(narrower)],
        BatchLimits::default(),
        NOW_US,
    );
    let Err(SealError::Incompatible { dataset, difference }) = refused else { panic!("accepted") };
    assert_eq!(dataset, "temperature");
    assert!(difference.contains("value"), "{difference}");
}

#[test]
fn a_sealer_goes_on_with_other_datasets_and_seals_what_waits_by_the_new_declaration() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_spool(dir.path());
    let mut sealer = open_sealer(&spool, dir.path(), &[temperature()], BatchLimits::default());
    let temperatures = spool.dataset_id("temperature").unwrap();
    store(&spool, vec![message(temperatures, 0, 0)], |_| {});
    drain(&mut sealer);
    let mut wider = temperature();
    wider.fields.push(field("battery", DataType::Float32, true));

    redeclare(&mut sealer, &[wider, leak()]).unwrap();
    let leaks = spool.dataset_id("leak").unwrap();
    store(&spool, vec![message(temperatures, 1, 1), message(leaks, 2, 2)], |_| {});
    drain(&mut sealer);
    assert_eq!((rows(&sealer, "temperature"), rows(&sealer, "leak")), (vec![0, 1], vec![2]));

    // What is removed keeps what it has, also in the spool, and goes on when it comes back.
    redeclare(&mut sealer, &[leak()]).unwrap();
    store(&spool, vec![message(temperatures, 3, 3), message(leaks, 4, 4)], |_| {});
    drain(&mut sealer);
    assert_eq!(rows(&sealer, "leak"), [2, 4]);
    assert_eq!(sealer.unserved().unwrap(), [("temperature".to_owned(), 1)]);
    let mut wider = temperature();
    wider.fields.push(field("battery", DataType::Float32, true));
    redeclare(&mut sealer, &[wider, leak()]).unwrap();
    drain(&mut sealer);
    assert_eq!(rows(&sealer, "temperature"), [0, 1, 3]);
}

#[test]
fn a_declaration_that_is_refused_leaves_every_dataset_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_spool(dir.path());
    let mut sealer = open_sealer(&spool, dir.path(), &[temperature(), leak()], BatchLimits::default());
    let before = files(dir.path().join("datasets").as_path());
    let (mut wider, mut other) = (temperature(), leak());
    wider.fields.push(field("battery", DataType::Float32, true));
    other.fields[2].data_type = DataType::String;
    let added = DatasetSpec { name: "added".to_owned(), ..temperature() };

    let refused = redeclare(&mut sealer, &[added, wider, other]).unwrap_err();

    assert!(matches!(&refused, SealError::Incompatible { dataset, .. } if dataset == "leak"), "{refused}");
    assert_eq!(files(dir.path().join("datasets").as_path()), before);
    let temperatures = spool.dataset_id("temperature").unwrap();
    store(&spool, vec![message(temperatures, 0, 0)], |_| {});
    drain(&mut sealer);
    assert_eq!(rows(&sealer, "temperature"), [0]);
}

#[test]
fn a_new_dataset_that_cannot_be_made_is_refused_and_one_that_was_damaged_before_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_spool(dir.path());
    drop(open_sealer(&spool, dir.path(), &[temperature()], BatchLimits::default()));
    let head = dir.path().join("datasets/temperature/refs/head");
    let whole = std::fs::read(&head).unwrap();
    std::fs::write(&head, "torn").unwrap();
    let mut sealer = open_sealer(&spool, dir.path(), &[temperature()], BatchLimits::default());
    std::fs::write(dir.path().join("datasets/leak"), "in the way").unwrap();

    redeclare(&mut sealer, &[temperature(), leak()]).unwrap_err();
    assert_eq!(sealer.datasets().count(), 0);
    std::fs::remove_file(dir.path().join("datasets/leak")).unwrap();
    redeclare(&mut sealer, &[temperature(), leak()]).unwrap();
    assert_eq!((sealer.datasets().count(), sealer.unusable().len()), (1, 1));
    std::fs::write(&head, whole).unwrap();
    redeclare(&mut sealer, &[temperature(), leak()]).unwrap();

    assert_eq!((sealer.datasets().count(), sealer.unusable().len()), (2, 0));
}

fn redeclare(sealer: &mut Sealer, specs: &[DatasetSpec]) -> Result<(), SealError> {
    let specs: Vec<_> = specs.iter().cloned().map(std::sync::Arc::new).collect();
    sealer.redeclare(&specs, BatchLimits::default(), NOW_US)
}

/// I7: the gateway starts, the others are sealed, and nothing of the damaged one is lost.
#[test]
fn a_damaged_dataset_keeps_its_messages_in_the_spool_and_does_not_stop_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_spool(dir.path());
    let specs = [temperature(), leak()];
    drop(open_sealer(&spool, dir.path(), &specs, BatchLimits::default()));
    let head = dir.path().join("datasets/temperature/refs/head");
    std::fs::write(&head, "torn").unwrap();
    let (damaged, whole) = (spool.dataset_id("temperature").unwrap(), spool.dataset_id("leak").unwrap());

    let mut sealer = open_sealer(&spool, dir.path(), &specs, BatchLimits::default());
    store(&spool, vec![message(damaged, 0, 0), message(whole, 1, 1)], |_| {});
    drain(&mut sealer);

    let unusable: Vec<_> = sealer.unusable().iter().map(|one| (one.dataset.as_str(), one.error.to_string())).collect();
    assert_eq!(unusable.len(), 1);
    assert!(unusable[0].0 == "temperature" && unusable[0].1.contains("refs/head"), "{unusable:?}");
    assert_eq!(rows(&sealer, "leak"), [1]);
    assert_eq!(spool.read(Seq(0), Some(damaged), 10, 1 << 20).unwrap().messages.len(), 1);
    assert_eq!(std::fs::read(&head).unwrap(), b"torn");
}

/// The disk refused a block once. The next attempts look at the disk anew, leave no slices behind, and the others go on.
#[test]
fn a_dataset_whose_block_could_not_be_written_rests_while_the_others_are_sealed_and_then_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_spool(dir.path());
    let mut sealer = open_sealer(&spool, dir.path(), &[temperature(), leak()], BatchLimits::default());
    let (broken, whole) = (spool.dataset_id("temperature").unwrap(), spool.dataset_id("leak").unwrap());
    let (blocks, aside) = (dir.path().join("datasets/temperature/blocks"), dir.path().join("aside"));
    store(&spool, vec![message(broken, 0, 0), message(whole, 1, 1)], |_| {});
    std::fs::rename(&blocks, &aside).unwrap();
    sealer.handle_drain().unwrap();

    let attempts = [0, 1, 2, 6, 12].map(|second| sealer.seal_due(NOW_US + second * 1_000_000));
    let done = attempts.map(|attempt| attempt.map(|sealed| sealed.map(|(sealed, _)| sealed.dataset)));

    assert!(matches!(&done, [Err(_), Ok(Some(leak)), Ok(None), Err(_), Err(_)] if leak == "leak"), "{done:?}");
    assert!(sealer.is_resting());
    std::fs::rename(&aside, &blocks).unwrap();
    let (sealed, _) = sealer.seal_due(NOW_US + 18_000_000).unwrap().unwrap();
    assert_eq!((sealed.rows, sealer.is_resting()), (1, false));
    assert_eq!(rows(&sealer, "temperature"), [0]);
    assert_eq!(std::fs::read_dir(dir.path().join("datasets/temperature/data")).unwrap().count(), 1);
}

/// Its messages fill the spool and nobody seals them: that is no reason to cut what is sealed into crumbs.
#[test]
fn a_dataset_that_is_no_longer_declared_is_named_and_does_not_press_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { max_bytes: 4 << 20, ..spool_config() };
    let spool = Spool::open(dir.path(), config, DurableFs::new()).unwrap().0;
    let gone = spool.dataset_id("renamed").unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let mut noise = || (0..7_000).map(|_| rng.alphanumeric()).collect::<String>();
    store(&spool, (0..570).map(|_| with_payload(gone, 0, &noise())).collect(), |_| {});
    assert!(spool.usage().live_bytes > 3 << 20, "{:?}", spool.usage());
    let mut sealer = open_sealer(&spool, dir.path(), &[temperature()], BatchLimits::default());
    let id = spool.dataset_id("temperature").unwrap();

    store(&spool, vec![message(id, 0, 0)], |_| {});

    assert_eq!(sealer.unserved().unwrap(), [("renamed".to_owned(), 570)]);
    assert_eq!(sealer.seal_due(NOW_US).unwrap(), None, "{:?}", spool.usage());
}

/// A reading a second for a week, no upstream: slices of full size, none because of its age; then the link comes back.
#[test]
fn a_week_offline_gives_few_full_slices_and_the_rest_when_the_link_is_back() {
    const WEEK_S: u64 = 7 * 24 * 3_600;
    let dir = tempfile::tempdir().unwrap();
    let spool = open_spool(dir.path());
    let mut sealer = open_sealer(&spool, dir.path(), &[temperature()], BatchLimits::default());
    let id = spool.dataset_id("temperature").unwrap();
    let mut offline = Vec::new();
    for hour in 0..WEEK_S / 3_600 {
        let seconds = hour * 3_600..(hour + 1) * 3_600;
        store(&spool, seconds.clone().map(|n| message(id, n as i64, n)).collect(), |_| {});
        let now = NOW_US + seconds.end as i64 * 1_000_000;
        offline.extend(sealer.seal_due(now).unwrap());
    }
    sealer.handle_upstream(true);
    let online = sealer.seal_due(NOW_US + (WEEK_S as i64 + 60) * 1_000_000).unwrap().unwrap();

    let cuts: Vec<_> = offline.iter().map(|(sealed, reason)| (sealed.rows, *reason)).collect();
    assert_eq!(cuts, [(100_000, CutReason::Rows); 6]);
    assert_eq!((online.0.rows, online.1), (4_800, CutReason::Age));
    assert!(spool.usage().live_bytes < 8 << 20, "{:?}", spool.usage());
    let dataset = sealer.datasets().next().unwrap();
    assert_eq!(dataset.repository().state().next_offset.0, WEEK_S);
}

fn open_spool(dir: &Path) -> Spool {
    Spool::open(dir, spool_config(), DurableFs::new()).unwrap().0
}
