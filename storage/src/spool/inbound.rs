//! What the broker must know when it starts: stored sessions and their Packet Identifiers; and the DUP window, rebuilt
//! from the end of the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use redb::{ReadTransaction, ReadableTable};

use crate::position::Seq;

use super::Spool;
use super::dup_window::DupWindow;
use super::reader::{first_at_or_before, load, load_header};
use super::store::{Abort, SpoolError};
use super::tables::{CHUNKS, FORGOTTEN, META, PACKET_IDS, SESSIONS};

/// A session that outlives its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSession {
    /// Client Identifier.
    pub client_id: Arc<str>,
    /// Seconds after the end of its connection; `u32::MAX` for ever; 0: it has ended.
    pub expiry_secs: u32,
    /// Packet Identifiers of QoS 2 messages that were stored and not yet released, ascending.
    pub packet_ids: Vec<u16>,
}

impl Spool {
    /// The stored sessions, by client id. A client that left Packet Identifiers and no session is among them with an
    /// expiry of 0: its session has ended, and whoever serves it must close it before the same identifiers come again, or a
    /// new message would be taken for the old one.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when redb itself is damaged.
    pub fn sessions(&self) -> Result<Vec<StoredSession>, SpoolError> {
        self.inner.store.read(|txn| {
            let mut sessions = BTreeMap::new();
            for row in txn.open_table(SESSIONS)?.iter()? {
                let (client_id, expiry) = row?;
                let client_id: Arc<str> = client_id.value().into();
                let session = StoredSession {
                    client_id: Arc::clone(&client_id),
                    expiry_secs: expiry.value(),
                    packet_ids: Vec::new(),
                };
                sessions.insert(client_id, session);
            }
            for row in txn.open_table(PACKET_IDS)?.iter()? {
                let key = row?.0;
                let (client_id, packet_id) = key.value();
                let client_id: Arc<str> = client_id.into();
                let ended = StoredSession { client_id: Arc::clone(&client_id), expiry_secs: 0, packet_ids: Vec::new() };
                sessions.entry(client_id).or_insert(ended).packet_ids.push(packet_id);
            }
            Ok(sessions.into_values().collect())
        })
    }

    /// The DUP window as the messages at the end of the log make it.
    pub(super) fn dup_window(&self) -> DupWindow {
        let config = &self.inner.config;
        let empty =
            || DupWindow::new(config.dup_window_max, config.dup_window_client_max, config.dup_window_source_max);
        let from = match self
            .inner
            .store
            .read(|txn| tail_start(&txn.open_table(CHUNKS)?, config.dup_window_max as u64, config.tail_bytes()))
        {
            Ok(from) => from,
            Err(error) => {
                tracing::warn!(%error, "Messages that are sent again may be stored twice.");
                return empty();
            }
        };
        // Without this at worst a message that is sent again is stored again.
        let forgotten = self.inner.store.read(forgotten).unwrap_or_default();
        let mut window = empty();
        let mut next = from;
        // One chunk in memory at a time.
        while let Ok(Some((first, records))) = self.inner.store.read(|txn| {
            let chunks = txn.open_table(CHUNKS)?;
            let Some(first) = super::reader::first_from(&chunks, next)? else { return Ok(None) };
            let chunk = load(&chunks, first)?;
            let records = load_header(&chunks, first)?.and_then(|header| header.records(&chunk));
            Ok(Some((first, records.unwrap_or_default())))
        }) {
            for (seq, record) in (first.0..).zip(records) {
                let is_of_its_session = seq >= forgotten.get(&*record.message.client_id).copied().unwrap_or(0);
                if let Some(packet_id) = record.packet_id.filter(|_| is_of_its_session) {
                    window.stored(&record.message, packet_id);
                }
            }
            next = first.next();
        }
        window
    }
}

/// For each source whose broker forgot the session: the first seq of the new one.
fn forgotten(txn: &ReadTransaction) -> Result<BTreeMap<String, u64>, Abort> {
    let mut forgotten = BTreeMap::new();
    for row in txn.open_table(META)?.iter()? {
        let (key, seq) = row?;
        if let Some(client_id) = key.value().strip_prefix(FORGOTTEN) {
            forgotten.insert(client_id.to_owned(), seq.value());
        }
    }
    Ok(forgotten)
}

/// Where the last `messages_max` messages and `bytes_max` bytes of chunks begin.
fn tail_start(
    chunks: &impl ReadableTable<(u64, u16), &'static [u8]>,
    messages_max: u64,
    bytes_max: u64,
) -> Result<Seq, Abort> {
    let (mut messages, mut bytes) = (0, 0);
    let mut start = Seq(u64::MAX);
    while let Some(first) = start.0.checked_sub(1).map(Seq)
        && let Some(first) = first_at_or_before(chunks, first)?
    {
        if let Ok(header) = load_header(chunks, first)? {
            messages += header.info.end.0 - header.info.first.0;
            bytes += header.info.bytes_on_disk;
        }
        if bytes > bytes_max && start.0 != u64::MAX {
            break;
        }
        start = first;
        if messages >= messages_max || bytes > bytes_max {
            break;
        }
    }
    Ok(start)
}
