//! A damaged database is salvaged as a whole or not at all, wherever its salvage is cut off.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a step that fails fails the test")]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use forebay_storage::durable_fs::DurableFs;
use forebay_storage::position::Seq;
use forebay_storage::spool::{Outcome, Spool};
use support::one_by_one::{A, append, message, recording_writer, small, tickets};

const MESSAGES: u64 = 150;

/// A salvage that was killed used to pass for done: the next start took the half that had been copied for the spool, said
/// nothing of the rest, and gave its seqs again.
#[test]
fn a_salvage_that_is_killed_at_any_step_is_begun_again_and_loses_nothing() {
    let (damaged, half) = marked_as_damaged();
    let mut steps = 0;
    loop {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(damaged.path(), dir.path());

        let opened = killed_after(steps, dir.path());
        let finished = opened.is_ok();
        drop(opened);
        if !dir.path().join("spool.redb").exists() {
            // It was killed while the new database was being filled.
            std::fs::write(dir.path().join("spool.redb.new"), &half).unwrap();
        }
        let (spool, report) = Spool::open(dir.path(), small(), DurableFs::new()).unwrap();

        assert_eq!(tickets(&spool), (0..MESSAGES).collect::<Vec<_>>(), "killed after {steps} steps: {report:?}");
        assert_eq!(spool.gaps().unwrap(), []);
        assert_eq!(spool.log_end(), Seq(MESSAGES));
        assert_eq!(spool.datasets().unwrap().len(), 1);
        for left in ["spool.redb.new", "spool.redb.damaged", "bad/spool.redb.corrupt-2"] {
            assert!(!dir.path().join(left).exists(), "killed after {steps} steps: {left}");
        }
        if finished {
            break;
        }
        steps += 1;
    }
    assert!(steps > 8, "{steps}");
}

#[test]
fn a_spool_that_was_killed_while_it_began_begins_again_and_misses_nothing() {
    let (_, half) = marked_as_damaged();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("spool.redb.new"), half).unwrap();
    std::fs::write(dir.path().join(".forebay-tmp-3"), "torn").unwrap();

    let (spool, report) = Spool::open(dir.path(), small(), DurableFs::new()).unwrap();

    assert_eq!((report.damage, report.put_aside), (None, None));
    assert_eq!(spool.gaps().unwrap(), []);
    assert!(!dir.path().join("spool.redb.new").exists() && !dir.path().join(".forebay-tmp-3").exists());
}

/// A spool with messages that is whole but marked, and the first half of its database.
fn marked_as_damaged() -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), small(), DurableFs::new()).unwrap();
    spool.dataset_id("temperature").unwrap();
    let mut writer = recording_writer(&spool);
    for n in 0..MESSAGES {
        assert_eq!(writer.send(append(message(A, n, "{\"temperature\":21.5}"))), Outcome::Stored);
    }
    drop((writer, spool));
    std::fs::write(dir.path().join("spool.redb.damaged"), "a page").unwrap();
    let mut half = std::fs::read(dir.path().join("spool.redb")).unwrap();
    half.truncate(half.len() / 2);
    (dir, half)
}

/// Opens the spool in a process that dies once so many steps on its files were done.
fn killed_after(steps: usize, dir: &Path) -> std::thread::Result<Spool> {
    let done = Arc::new(AtomicUsize::new(0));
    let fs = DurableFs::recording(Arc::new(move |_| {
        if done.fetch_add(1, Ordering::SeqCst) == steps {
            panic!("killed");
        }
    }));
    catch_unwind(AssertUnwindSafe(|| Spool::open(dir, small(), fs).unwrap().0))
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}
