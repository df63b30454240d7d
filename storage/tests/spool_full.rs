//! What a full disk may look like, and what the spool may make of it.

#![expect(clippy::unwrap_used, clippy::unwrap_in_result, reason = "a step that fails fails the test")]

mod support;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay_storage::durable_fs::DurableFs;
use forebay_storage::position::Seq;
use forebay_storage::spool::{Medium, Outcome, Request, Spool, SpoolConfig};
use redb::StorageBackend;
use support::one_by_one::{A, append, message, recording_writer, run_result, small, tickets};
use support::{SmallDisk, write_at};

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
            Request::Append { message, packet_id: Some(ticket + 1), ticket: () }
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
