//! The tables of `spool.redb`. An ordinary ingest commit touches `chunks` only: every further table is a page more.

use redb::{TableDefinition, TableError, WriteTransaction};

/// `(first seq, part)` → at most [`PART_BYTES`](super::chunk::PART_BYTES) of a chunk.
pub(super) const CHUNKS: TableDefinition<'_, (u64, u16), &[u8]> = TableDefinition::new("chunks");
/// See the `META_` keys.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Dataset name → id.
pub(super) const DATASETS: TableDefinition<'_, &str, u32> = TableDefinition::new("datasets");
/// Dataset → first seq not sealed.
pub(super) const SEALED: TableDefinition<'_, u32, u64> = TableDefinition::new("sealed");
/// `(upstream, dataset)` → first seq not delivered; with an empty upstream: first seq whose slice is kept.
pub(super) const DELIVERED: TableDefinition<'_, (&str, u32), u64> = TableDefinition::new("delivered");
/// `(client id, packet id)` of QoS 2 between PUBLISH and PUBREL → seq.
pub(super) const PACKET_IDS: TableDefinition<'_, (&str, u16), u64> = TableDefinition::new("packet_ids");
/// Client id → session expiry, seconds.
pub(super) const SESSIONS: TableDefinition<'_, &str, u32> = TableDefinition::new("sessions");
/// Topic → last retained value, see `retained`.
pub(super) const RETAINED: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("retained");
/// `(dataset, seq)` → dead letter, see `dead_letter`.
pub(super) const DEAD_LETTERS: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("dead_letters");
/// `(dataset or DatasetId::NONE, first seq)` → `(end, messages, bytes, reason, time µs)`.
pub(super) const GAPS: TableDefinition<'_, (u32, u64), GapRow> = TableDefinition::new("gaps");
/// `(dataset, key)` → seq of the row that has it.
pub(super) const LEDGER: TableDefinition<'_, (u32, &[u8; 16]), u64> = TableDefinition::new("ledger");
/// `(dataset, seq)` → key: the order in which ledger keys are forgotten.
pub(super) const LEDGER_ORDER: TableDefinition<'_, (u32, u64), &[u8; 16]> = TableDefinition::new("ledger_order");
/// `(dataset, name)` → what sealing counted.
pub(super) const SEAL_COUNTERS: TableDefinition<'_, (u32, &str), u64> = TableDefinition::new("seal_counters");

/// Value of [`GAPS`]: end, messages, bytes, reason, time.
pub(super) type GapRow = (u64, u64, u64, u8, i64);

/// Key in [`META`]: messages of this source below that seq are of a session that its broker has forgotten.
pub(super) fn forgotten_key(client_id: &str) -> String {
    format!("{FORGOTTEN}{client_id}")
}

/// Begins such keys.
pub(super) const FORGOTTEN: &str = "forgotten ";

/// Version of this layout.
pub(super) const META_FORMAT: &str = "format";
/// The next seq is at least this, whatever the chunks say.
pub(super) const META_SEQ_FLOOR: &str = "seq_floor";
/// Bytes of all dead letters.
pub(super) const META_DEAD_LETTER_BYTES: &str = "dead_letter_bytes";

/// The layout that this code reads and writes.
pub(super) const FORMAT: u64 = 1;

/// Makes every table, so that a reader finds all of them.
pub(super) fn create_all(txn: &WriteTransaction) -> Result<(), TableError> {
    txn.open_table(CHUNKS)?;
    txn.open_table(META)?;
    txn.open_table(DATASETS)?;
    txn.open_table(SEALED)?;
    txn.open_table(DELIVERED)?;
    txn.open_table(PACKET_IDS)?;
    txn.open_table(SESSIONS)?;
    txn.open_table(RETAINED)?;
    txn.open_table(DEAD_LETTERS)?;
    txn.open_table(GAPS)?;
    txn.open_table(LEDGER)?;
    txn.open_table(LEDGER_ORDER)?;
    txn.open_table(SEAL_COUNTERS)?;
    Ok(())
}
