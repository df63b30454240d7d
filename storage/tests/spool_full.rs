//! What a full disk may look like, and what the spool may make of it.

#![expect(clippy::unwrap_used, clippy::unwrap_in_result, reason = "a step that fails fails the test")]

mod support;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay_storage::durable_fs::DurableFs;
use forebay_storage::position::Seq;
use forebay_storage::spool::{Medium, OnFull, Outcome, Request, Spool, SpoolConfig, SpoolError};
use redb::{ReadableTable, StorageBackend, TableDefinition};
use support::one_by_one::{A, append, message, noise, recording_writer, run_result, seal, small, tickets};
use support::{Shared, SmallDisk, write_at};

/// A file system that takes writes on credit says only at the sync that it is full. Taken for a write that found no room,
/// the database was opened again in the process, showed a message that may not be on disk, acknowledged its resend, and
/// gave its seq to the next message.
#[test]
fn a_sync_that_says_the_disk_is_full_is_fatal_like_any_failed_sync() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(64 << 20, dir.path().join("ballast"));
    let (spool, _) = Spool::open_on(&disk.medium(), dir.path(), small(), DurableFs::new()).unwrap();
    let mut writer = recording_writer(&spool);
    assert_eq!(writer.send(append(message(A, 0, "x"))), Outcome::Stored);

    *disk.sync_fault.lock().unwrap() = Some(io::ErrorKind::StorageFull);
    let failed = run_result(&mut writer.writer, vec![append(message(A, 1, "x"))]);
    *disk.sync_fault.lock().unwrap() = None;
    let after = run_result(&mut writer.writer, vec![append(message(A, 1, "x"))]);

    assert!(failed.is_err() && after.is_err());
    assert_eq!(spool.counters().disk_full, 0);
}

/// A commit that found the disk full is on disk all the same when only its last write was refused and had arrived. Opened
/// again, the database shows it: its resend is the same message, and its seq is taken.
#[test]
fn whichever_write_of_a_commit_finds_the_disk_full_its_resend_is_stored_once_and_seqs_once_given() {
    let mut there_all_the_same = 0;
    for nth in 1..30 {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(FullAtWrite::default());
        let medium = Medium::Backend { storage: Arc::clone(&disk) as _, free_bytes: Arc::new(|| 1 << 40) };
        let config = SpoolConfig { patience: Duration::ZERO, ..small() };
        let (spool, _) = Spool::open_on(&medium, dir.path(), config, DurableFs::new()).unwrap();
        let mut writer = recording_writer(&spool);
        let publish = |ticket: u16, dup| {
            let mut message = message(A, u64::from(ticket), &format!("{ticket}"));
            message.flags.dup = dup;
            Request::Append { message, packet_id: Some(ticket + 1), retained_once: false, ticket: () }
        };
        assert_eq!(writer.send(publish(0, false)), Outcome::Stored);

        disk.writes_left.store(nth, Ordering::SeqCst);
        let first = writer.send(publish(1, false));
        disk.writes_left.store(0, Ordering::SeqCst);
        let resent = writer.send(publish(1, true));
        let next = writer.send(publish(2, false));

        assert_eq!((resent, next), (Outcome::Stored, Outcome::Stored), "write {nth}");
        assert_eq!(tickets(&spool), [0, 1, 2], "write {nth}");
        assert_eq!(spool.log_end(), Seq(3), "write {nth}");
        let counters = spool.counters();
        assert_eq!(counters.disk_full, u64::from(first == Outcome::Unavailable));
        there_all_the_same += counters.disk_full * counters.duplicates_qos1;
    }
    assert!(there_all_the_same > 0);
}

/// A service manager that asks every few seconds must not keep a disk awake, and a disk that is full is no hang.
#[test]
fn a_probe_is_answered_without_touching_the_disk_also_while_that_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(64 << 20, dir.path().join("ballast"));
    let config = SpoolConfig { patience: Duration::ZERO, ..small() };
    let (spool, _) = Spool::open_on(&disk.medium(), dir.path(), config, DurableFs::new()).unwrap();
    let mut writer = recording_writer(&spool);
    assert_eq!(writer.send(append(message(A, 0, "x"))), Outcome::Stored);

    let before = disk.bytes().clone();
    *disk.sync_fault.lock().unwrap() = Some(io::ErrorKind::Other);
    assert_eq!(writer.send(Request::Probe { ticket: () }), Outcome::Stored);
    *disk.sync_fault.lock().unwrap() = None;
    assert!(*disk.bytes() == before, "nothing is written");

    *disk.fault.lock().unwrap() = Some(io::ErrorKind::StorageFull);
    assert_eq!(writer.send(append(message(A, 1, "x"))), Outcome::Unavailable);
    assert_eq!(writer.send(Request::Probe { ticket: () }), Outcome::Stored);
    assert_eq!(spool.counters().disk_full, 1, "the probe has not tried the disk again");
}

/// Dropped chunks leave free pages in the file and no free space around it. While the file system was too full, every
/// batch, however small, used to drop another megabyte, until the whole backlog was gone.
#[test]
fn below_min_free_bytes_drop_oldest_drops_no_more_than_what_comes_in() {
    let dir = tempfile::tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(1 << 40));
    let (spool, noise) = (drop_oldest_spool(dir.path(), &free), noise());
    let mut writer = recording_writer(&spool);
    for n in 0..300 {
        assert_eq!(writer.send(append(message(A, n, &noise(n)))), Outcome::Stored);
    }

    free.store(100 << 20, Ordering::SeqCst);
    for n in 300..400 {
        assert_eq!(writer.send(append(message(A, n, "21.5"))), Outcome::Stored);
    }

    let dropped = spool.counters().messages_dropped;
    assert!((1..5).contains(&dropped), "{dropped} messages of 7,000 bytes for 100 that share a few pages");
    assert_eq!(tickets(&spool), (dropped..400).collect::<Vec<_>>());
}

#[test]
fn when_dropping_all_would_not_do_nothing_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(1 << 40));
    let (spool, noise) = (drop_oldest_spool(dir.path(), &free), noise());
    let mut writer = recording_writer(&spool);
    assert_eq!(writer.send(append(message(A, 0, &noise(0)))), Outcome::Stored);

    free.store(100 << 20, Ordering::SeqCst);
    let too_much = writer.send(append(message(A, 1, &noise(1).repeat(10))));

    assert_eq!(too_much, Outcome::Unavailable);
    assert_eq!(tickets(&spool), [0]);
    assert_eq!((spool.gaps().unwrap(), spool.counters().messages_dropped), (vec![], 0));
}

/// On a full disk reading steps over a damaged chunk so that sealing, which makes room, goes on. Its gap used to be
/// forgotten, and the chunk trimmed as if it had been sealed.
#[test]
fn a_damaged_chunk_that_a_full_disk_let_nobody_record_is_recorded_by_the_seal_that_passes_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FullAtWrite::default());
    let medium = Medium::Backend { storage: Arc::clone(&disk) as _, free_bytes: Arc::new(|| 1 << 40) };
    let config = SpoolConfig { dup_tail_bytes: 0, ..small() };
    let (spool, _) = Spool::open_on(&medium, dir.path(), config.clone(), DurableFs::new()).unwrap();
    let (mut writer, noise) = (recording_writer(&spool), noise());
    for n in 0..3 {
        assert_eq!(writer.send(append(message(A, n, &noise(n)))), Outcome::Stored);
    }
    drop((writer, spool));
    damage_in_redb(&disk, 1);
    let (spool, _) = Spool::open_on(&medium, dir.path(), config, DurableFs::new()).unwrap();

    disk.writes_left.store(1, Ordering::SeqCst);
    let read = spool.read(Seq(0), Some(A), 100, 1 << 20).unwrap();
    let unrecorded = spool.gaps().unwrap();
    let again = spool.read(Seq(0), Some(A), 100, 1 << 20).unwrap();
    spool.commit_seal(&seal(A, Seq(3))).unwrap();

    assert_eq!(read.messages.iter().map(|(seq, _)| seq.0).collect::<Vec<_>>(), [0, 2]);
    assert_eq!((read.damaged.len(), unrecorded), (1, vec![]));
    assert_eq!(again, read, "it is still there, and the same");
    assert_eq!(spool.gaps().unwrap(), read.damaged);
    assert_eq!((spool.log_start().unwrap(), spool.counters().chunks_damaged), (Seq(3), 1));
    assert_eq!(spool.usage().live_bytes, 0);
}

/// Sealing must not pass what is neither delivered nor recorded.
#[test]
fn a_damaged_chunk_that_cannot_be_recorded_for_another_reason_stops_reading() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(64 << 20, dir.path().join("ballast"));
    let (spool, _) = Spool::open_on(&disk.medium(), dir.path(), small(), DurableFs::new()).unwrap();
    let (mut writer, noise) = (recording_writer(&spool), noise());
    for n in 0..3 {
        assert_eq!(writer.send(append(message(A, n, &noise(n)))), Outcome::Stored);
    }
    drop((writer, spool));
    let needle = &noise(1).into_bytes()[..64];
    let mut bytes = disk.bytes();
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    bytes[at] ^= 1;
    drop(bytes);
    let (spool, _) = Spool::open_on(&disk.medium(), dir.path(), small(), DurableFs::new()).unwrap();

    *disk.fault.lock().unwrap() = Some(io::ErrorKind::Other);
    let read = spool.read(Seq(0), Some(A), 100, 1 << 20);

    assert!(matches!(read, Err(SpoolError::Fatal(_))), "{read:?}");
}

/// Flips a bit of the chunk at `first` as bad memory does before redb takes its checksum. Damage on the disk would not let
/// redb open the database again after a failed commit.
fn damage_in_redb(disk: &Arc<FullAtWrite>, first: u64) {
    const CHUNKS: TableDefinition<'_, (u64, u16), &[u8]> = TableDefinition::new("chunks");
    let database = redb::Database::builder().create_with_backend(Shared(Arc::clone(disk) as _)).unwrap();
    let txn = database.begin_write().unwrap();
    let mut chunks = txn.open_table(CHUNKS).unwrap();
    let mut part = chunks.get((first, 0)).unwrap().unwrap().value().to_vec();
    part[1000] ^= 1;
    chunks.insert((first, 0), part.as_slice()).unwrap();
    drop(chunks);
    txn.commit().unwrap();
}

/// A spool that drops the oldest, on a file system with so much free space.
fn drop_oldest_spool(dir: &Path, free: &Arc<AtomicU64>) -> Spool {
    let free = Arc::clone(free);
    let medium = Medium::Backend {
        storage: Arc::new(redb::backends::InMemoryBackend::new()),
        free_bytes: Arc::new(move || free.load(Ordering::SeqCst)),
    };
    let config =
        SpoolConfig { min_free_bytes: 256 << 20, on_full: OnFull::DropOldest, patience: Duration::ZERO, ..small() };
    Spool::open_on(&medium, dir, config, DurableFs::new()).unwrap().0
}

/// A storage in memory that refuses one write with ENOSPC, and keeps it.
#[derive(Debug, Default)]
struct FullAtWrite {
    bytes: Mutex<Vec<u8>>,
    /// The write that takes this from 1 to 0 is refused.
    writes_left: AtomicU64,
}

impl StorageBackend for FullAtWrite {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        out.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        write_at(&mut self.bytes.lock().unwrap(), offset, data);
        let left = self.writes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left == Ok(1) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}
