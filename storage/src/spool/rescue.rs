//! Opening a database file that may be damaged: put it aside, salvage it into a new one, and only then use that.
//!
//! ```text
//! mark ─▶ mark names the place ─▶ rename to bad/ ─▶ salvage into spool.redb.new ─▶ rename to spool.redb ─▶ remove the mark
//! ```
//!
//! Each step is durable before the next begins, and a start that finds the mark goes on where the last one was cut off.
//! An unfinished `spool.redb.new` is worth nothing: salvage begins again from the file that was put aside. A spool that
//! begins takes the same way, so a `spool.redb` is whole from its first moment.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Builder, Database};

use crate::durable_fs::DurableFs;

use super::config::SpoolConfig;
use super::open::{OpenReport, make_tables, open_store};
use super::salvage::{salvage, write};
use super::store::{DAMAGE_MARK, DATABASE, Medium, OpenError, Store};

/// The database that is being made.
const UNFINISHED: &str = "spool.redb.new";
/// Begins the line of the mark that says where the damaged database is, or is about to be.
const ASIDE: &str = "aside: ";

/// Opens the database in `dir`, or begins one. One that cannot be used is put aside and salvaged. `Err(Ok(reason))` is
/// damage that this did not help against.
pub(super) fn open(
    dir: &Path,
    config: &SpoolConfig,
    fs: &DurableFs,
    report: &mut OpenReport,
) -> Result<Store, Result<String, OpenError>> {
    open_with(dir, config, fs, report, file)
}

/// The same with the function that creates the unfinished database.
fn open_with(
    dir: &Path,
    config: &SpoolConfig,
    fs: &DurableFs,
    report: &mut OpenReport,
    create: impl FnOnce(&Path, &SpoolConfig) -> Result<Database, OpenError>,
) -> Result<Store, Result<String, OpenError>> {
    let io = |error: io::Error| Err(OpenError::Io(error));
    let database = dir.join(DATABASE);
    fs.remove(&dir.join(UNFINISHED)).map_err(io)?;
    let mark = match Mark::read(dir).map_err(io)? {
        Some(mark) => mark,
        None if !database.exists() => {
            make(dir, fs, config, create, |_| Ok(())).map_err(Err)?;
            return open_store(&Medium::File, dir, config, fs);
        }
        None => match open_store(&Medium::File, dir, config, fs) {
            Err(Ok(reason)) => Mark { reason, aside: None },
            opened => return opened,
        },
    };
    let aside = put_aside(dir, fs, &mark).map_err(io)?;
    // Otherwise it is the new one already.
    if !database.exists() {
        let fill = |new: &Database| {
            let salvaged = salvage(&aside, config.cache_bytes, new, config.gaps_max)
                .map_err(|error| OpenError::Database(format!("while salvaging {}: {error}", aside.display())))?;
            report.salvaged_chunks = salvaged.chunks;
            Ok(())
        };
        make(dir, fs, config, create, fill).map_err(Err)?;
    }
    fs.remove(&dir.join(DAMAGE_MARK)).map_err(io)?;
    report.damage = Some(mark.reason);
    report.put_aside = Some(aside);
    open_store(&Medium::File, dir, config, fs)
}

/// What is known of a damaged database.
struct Mark {
    reason: String,
    /// Its name under `bad/`, once one was chosen.
    aside: Option<String>,
}

impl Mark {
    fn read(dir: &Path) -> io::Result<Option<Self>> {
        let text = match std::fs::read(dir.join(DAMAGE_MARK)) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(match text.strip_prefix(ASIDE).and_then(|text| text.split_once('\n')) {
            Some((aside, reason)) => Self { reason: reason.to_owned(), aside: Some(aside.to_owned()) },
            None => Self { reason: text, aside: None },
        }))
    }
}

/// Renames the database into `bad/` under the first free number, or as the mark says. Nothing is there any more when a
/// start before this one did.
fn put_aside(dir: &Path, fs: &DurableFs, mark: &Mark) -> io::Result<PathBuf> {
    let bad = dir.join("bad");
    fs.create_dir_all(&bad)?;
    let name = mark.aside.clone().unwrap_or_else(|| {
        let mut names = (1..=u32::MAX).map(|number| format!("{DATABASE}.corrupt-{number}"));
        names.find(|name| !bad.join(name).exists()).unwrap_or_else(|| format!("{DATABASE}.corrupt"))
    });
    let aside = bad.join(&name);
    tracing::error!(reason = mark.reason, aside = %aside.display(), "The spool is damaged: put aside and salvaged.");
    if mark.aside.is_none() {
        fs.replace(&dir.join(DAMAGE_MARK), format!("{ASIDE}{name}\n{}", mark.reason).as_bytes())?;
    }
    // Once it is there, what has its name is its successor.
    if !aside.exists() && dir.join(DATABASE).exists() {
        fs.rename(&dir.join(DATABASE), &aside)?;
    }
    Ok(aside)
}

/// Makes a database with its tables and what `fill` puts into it. It gets its name when it is whole and synced.
fn make(
    dir: &Path,
    fs: &DurableFs,
    config: &SpoolConfig,
    create: impl FnOnce(&Path, &SpoolConfig) -> Result<Database, OpenError>,
    fill: impl FnOnce(&Database) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let path = dir.join(UNFINISHED);
    let refused = |error: &dyn std::fmt::Display| OpenError::Database(format!("{}: {error}", path.display()));
    let new = create(&path, config)?;
    write(&new, make_tables).map_err(|error| refused(&error))?;
    fill(&new)?;
    new.close().map_err(|error| refused(&error))?;
    File::open(&path).and_then(|file| file.sync_all())?;
    fs.rename(&path, &dir.join(DATABASE))?;
    Ok(())
}

fn file(path: &Path, config: &SpoolConfig) -> Result<Database, OpenError> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    FileBackend::new(file)
        .and_then(|backend| Builder::new().set_cache_size(config.cache_bytes).create_with_backend(backend))
        .map_err(|error| OpenError::Database(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use redb::{ReadableTableMetadata, StorageBackend};

    use super::super::tables::CHUNKS;
    use super::*;

    const CHUNKS_THERE: u64 = 300;

    /// Salvage used to write into the database that is used afterwards, and forgot the damage when it failed: what it had
    /// not copied yet was lost without a gap, and its seqs were given again.
    #[test]
    fn a_salvage_that_cannot_write_is_begun_again_from_the_file_that_was_put_aside() {
        let mut failed = 0;
        for writes in [1, 5, 10, 20, 30, 40, 50, 60, 1000] {
            let dir = tempfile::tempdir().unwrap();
            let (config, fs) = (SpoolConfig::default(), DurableFs::new());
            damaged_database(dir.path());

            let opened = open_with(dir.path(), &config, &fs, &mut OpenReport::default(), |path, _| {
                let backend = FailsAfter::new(path, writes);
                Database::builder()
                    .create_with_backend(backend)
                    .map_err(|error| OpenError::Database(format!("spool.redb: {error}")))
            });
            if let Err(Err(error)) = &opened {
                assert!(error.to_string().contains("spool.redb"), "{error}");
            }
            failed += u64::from(opened.is_err());
            drop(opened);
            let mut report = OpenReport::default();
            let Ok(store) = open(dir.path(), &config, &fs, &mut report) else { unreachable!("it has room now") };

            let chunks = store.read(|txn| Ok(txn.open_table(CHUNKS)?.len()?)).unwrap();
            assert_eq!(chunks, CHUNKS_THERE, "after {writes} writes");
            assert!(!dir.path().join(DAMAGE_MARK).exists() && !dir.path().join(UNFINISHED).exists());
        }
        assert!(failed > 3, "{failed}");
    }

    /// Chunks in a database that says that it is damaged, although it is not.
    fn damaged_database(dir: &Path) {
        let database = Database::create(dir.join(DATABASE)).unwrap();
        write(&database, make_tables).unwrap();
        write(&database, |txn| {
            let mut chunks = txn.open_table(CHUNKS)?;
            for first in 0..CHUNKS_THERE {
                let mut chunk = super::super::chunk::ChunkBuilder::default();
                chunk.push(&message(first), None);
                chunks.insert((first, 0), chunk.finish(crate::position::Seq(first)).as_slice())?;
            }
            Ok(())
        })
        .unwrap();
        std::fs::write(dir.join(DAMAGE_MARK), "a page").unwrap();
    }

    fn message(ticket: u64) -> crate::message::Message {
        crate::message::Message {
            dataset: crate::position::DatasetId(1),
            received_at_us: ticket as i64,
            flags: crate::message::Flags::default(),
            topic: bytes::Bytes::from_static(b"t"),
            captures: Vec::new(),
            client_id: "c".into(),
            payload: bytes::Bytes::from(vec![7; 1000]),
        }
    }

    /// A file that takes so many writes and no more.
    #[derive(Debug)]
    struct FailsAfter {
        file: FileBackend,
        left: AtomicU64,
    }

    impl FailsAfter {
        fn new(path: &Path, writes: u64) -> Self {
            let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
            Self { file: FileBackend::new(file).unwrap(), left: writes.into() }
        }
    }

    impl StorageBackend for FailsAfter {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.file.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.file.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if left.is_err() { Err(io::ErrorKind::StorageFull.into()) } else { self.file.write(offset, data) }
        }
    }
}
