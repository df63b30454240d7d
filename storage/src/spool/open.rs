//! Opening the spool, whatever is found on disk (I7), and verifying it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use redb::{ReadableTable, WriteTransaction};

use crate::durable_fs::DurableFs;
use crate::position::Seq;

use super::chunk::cost;
use super::commit::{next_seq, owned_by_sources};
use super::config::{CHUNK_MESSAGES_MAX, SpoolConfig};
use super::gaps::Gap;
use super::positions::sealed_of_all;
use super::reader::{Damage, first_from, load, load_header};
use super::retention;
use super::store::{Abort, DATABASE, Medium, OpenError, SpoolError, Store};
use super::tables::{self, CHUNKS, FORMAT, META, META_FORMAT, PACKET_IDS, RETAINED, SEALED};
use super::{Inner, Spool, State, rescue, retained};

/// What opening found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// The database could not be used; it was put aside here, and a new one begun.
    pub put_aside: Option<PathBuf>,
    /// How many of its chunks could be taken over.
    pub salvaged_chunks: u64,
    /// Why.
    pub damage: Option<String>,
    /// Chunks that could not be read. They are under `bad/` and recorded among the gaps.
    pub damaged: Vec<Gap>,
    /// Chunks in the spool.
    pub chunks: u64,
    /// Messages in them.
    pub messages: u64,
}

/// What [`Spool::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Chunks that are whole.
    pub chunks: u64,
    /// Messages in them.
    pub messages: u64,
    /// Where chunks that are not whole begin, and what is wrong with each.
    pub damaged: Vec<(Seq, String)>,
}

impl Spool {
    /// Opens the spool in `dir`, or begins one. A database that cannot be used is put aside under `bad/`.
    ///
    /// # Errors
    /// Another process has it open, a later version wrote it, or the file system refuses.
    pub fn open(dir: &Path, config: SpoolConfig, fs: DurableFs) -> Result<(Self, OpenReport), OpenError> {
        Self::open_on(&Medium::File, dir, config, fs)
    }

    /// The same on another medium: the seam for disk faults.
    ///
    /// # Errors
    /// As of [`open`](Self::open); a damaged [`Medium::Backend`] is an error, since it has no file to put aside.
    pub fn open_on(
        medium: &Medium,
        dir: &Path,
        config: SpoolConfig,
        fs: DurableFs,
    ) -> Result<(Self, OpenReport), OpenError> {
        fs.create_dir_all(dir)?;
        fs.remove_temporary(dir)?;
        let bad = dir.join("bad");
        if bad.is_dir() {
            fs.remove_temporary(&bad)?;
        }
        let mut report = OpenReport::default();
        let opened = match medium {
            Medium::Backend { .. } => open_store(medium, dir, &config, &fs),
            Medium::File => rescue::open(dir, &config, &fs, &mut report),
        };
        let store = opened.map_err(|reason| reason.map_or_else(|error| error, OpenError::Database))?;
        let found = store.read(look_at).map_err(|error| OpenError::Database(error.to_string()))?;
        report.chunks = found.chunks;
        report.messages = found.messages;
        let inner =
            Inner { dir: dir.to_owned(), fs, config, store, state: Mutex::new(found.state), appended: Condvar::new() };
        let spool = Self { inner: Arc::new(inner) };
        if let Err(error) = spool.inner.store.ensure_ballast() {
            tracing::warn!(%error, "No room for the ballast file: messages are refused until there is.");
        }
        for damage in &found.damage {
            let gaps = spool.step_over(damage).map_err(|error| OpenError::Database(error.to_string()))?;
            report.damaged.extend(gaps);
        }
        Ok((spool, report))
    }

    /// Reads every chunk and checks every checksum. Changes nothing.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when redb itself is damaged.
    pub fn verify(&self) -> Result<VerifyReport, SpoolError> {
        let mut report = VerifyReport::default();
        let mut next = Seq(0);
        while let Some((first, checked)) = self.inner.store.read(|txn| {
            let chunks = txn.open_table(CHUNKS)?;
            let Some(first) = first_from(&chunks, next)? else { return Ok(None) };
            let chunk = load(&chunks, first)?;
            let checked = load_header(&chunks, first)?.and_then(|header| header.records(&chunk));
            Ok(Some((first, checked.map(|records| records.len() as u64))))
        })? {
            match checked {
                Ok(messages) => {
                    report.chunks += 1;
                    report.messages += messages;
                }
                Err(reason) => report.damaged.push((first, reason.to_string())),
            }
            next = first.next();
        }
        Ok(report)
    }
}

/// What a look at all headers found.
pub(super) struct Found {
    pub(super) state: State,
    chunks: u64,
    messages: u64,
    damage: Vec<Damage>,
}

/// Opens the database, makes its tables when it is new, and looks at all headers. `Err(Ok(reason))` is damage.
pub(super) fn open_store(
    medium: &Medium,
    dir: &Path,
    config: &SpoolConfig,
    fs: &DurableFs,
) -> Result<Store, Result<String, OpenError>> {
    let store = Store::open(medium.clone(), dir, fs.clone(), config.cache_bytes, config.ballast_bytes)?;
    let format = match store.read(|txn| match txn.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        meta => Ok(meta?.get(META_FORMAT)?.map(|format| format.value())),
    }) {
        Ok(format) => format,
        Err(error) => return Err(Ok(error.to_string())),
    };
    match format {
        None => store.write(make_tables).map_err(|error| Err(OpenError::Database(error.to_string())))?,
        Some(FORMAT) => {}
        Some(found) => return Err(Err(OpenError::Later { path: dir.join(DATABASE), found, known: FORMAT })),
    }
    // Damage that the look would meet is damage to be salvaged.
    store.read(look_at).map_err(|error| Ok(error.to_string()))?;
    Ok(store)
}

pub(super) fn make_tables(txn: &WriteTransaction) -> Result<(), Abort> {
    tables::create_all(txn)?;
    txn.open_table(META)?.insert(META_FORMAT, FORMAT)?;
    Ok(())
}

fn look_at(txn: &redb::ReadTransaction) -> Result<Found, Abort> {
    look(
        &txn.open_table(CHUNKS)?,
        &txn.open_table(SEALED)?,
        &txn.open_table(META)?,
        &txn.open_table(RETAINED)?,
        &txn.open_table(PACKET_IDS)?,
    )
}

/// Looks at all headers.
pub(super) fn look(
    chunks: &impl ReadableTable<(u64, u16), &'static [u8]>,
    sealed: &impl ReadableTable<u32, u64>,
    meta: &impl ReadableTable<&'static str, u64>,
    retained: &impl ReadableTable<&'static [u8], &'static [u8]>,
    packet_ids: &impl ReadableTable<(&'static str, u16), u64>,
) -> Result<Found, Abort> {
    let sealed = sealed_of_all(sealed)?;
    let mut found = Found { state: State::default(), chunks: 0, messages: 0, damage: Vec::new() };
    let mut end = Seq(0);
    let mut next = Seq(0);
    while let Some(first) = first_from(chunks, next)? {
        next = first.next();
        match load_header(chunks, first)? {
            Ok(header) => {
                let info = header.info;
                end = info.end;
                found.chunks += 1;
                found.messages += info.end.0 - info.first.0;
                found.state.live_bytes += info.bytes_on_disk;
                if retention::is_released(&info, &sealed) {
                    found.state.released.insert(first, info.bytes_on_disk);
                }
            }
            Err(reason) => {
                let bytes = load(chunks, first)?;
                found.state.live_bytes += cost(bytes.len());
                // As the last one it may have held as many messages as any.
                end = first_from(chunks, next)?.unwrap_or(first.plus(u64::from(CHUNK_MESSAGES_MAX)));
                found.damage.push(Damage { first, end, bytes, reason, info: None });
            }
        }
    }
    found.state.log_end = next_seq(meta, end)?;
    found.state.packet_ids_of_sources = owned_by_sources(packet_ids)?;
    found.state.retained = retained::shares_in(retained)?.into();
    Ok(found)
}
