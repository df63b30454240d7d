//! Ledger keys: which primary keys were sealed lately, per dataset, bounded.

use redb::{ReadableTable, WriteTransaction};

use crate::position::{DatasetId, Seq};

use super::Spool;
use super::store::{Abort, SpoolError};
use super::tables::{LEDGER, LEDGER_ORDER};

impl Spool {
    /// Whether a row with this key was sealed, as far back as [`SpoolConfig::ledger_keys_max`] reaches.
    ///
    /// [`SpoolConfig::ledger_keys_max`]: super::SpoolConfig::ledger_keys_max
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when redb itself is damaged.
    pub fn ledger_contains(&self, dataset: DatasetId, key: &[u8; 16]) -> Result<bool, SpoolError> {
        self.inner.store.read(|txn| Ok(txn.open_table(LEDGER)?.get((dataset.0, key))?.is_some()))
    }
}

/// Adds keys and forgets the oldest beyond `keys_max`. Returns how many were forgotten.
pub(super) fn insert(
    txn: &WriteTransaction,
    dataset: DatasetId,
    keys: &[([u8; 16], Seq)],
    keys_max: u64,
) -> Result<u64, Abort> {
    let mut ledger = txn.open_table(LEDGER)?;
    let mut order = txn.open_table(LEDGER_ORDER)?;
    for (key, seq) in keys {
        let before = ledger.insert((dataset.0, key), seq.0)?.map(|seq| seq.value());
        if let Some(before) = before {
            order.remove((dataset.0, before))?;
        }
        let displaced = order.insert((dataset.0, seq.0), key)?.map(|key| *key.value());
        if let Some(displaced) = displaced.filter(|displaced| displaced != key) {
            ledger.remove((dataset.0, &displaced))?;
        }
    }
    let all = (dataset.0, 0)..=(dataset.0, u64::MAX);
    let excess = (order.range(all.clone())?.count() as u64).saturating_sub(keys_max);
    let oldest: Vec<(u64, [u8; 16])> = order
        .range(all)?
        .take(excess as usize)
        .map(|row| row.map(|(at, key)| (at.value().1, *key.value())))
        .collect::<Result<_, _>>()?;
    for (seq, key) in oldest {
        order.remove((dataset.0, seq))?;
        ledger.remove((dataset.0, &key))?;
    }
    Ok(excess)
}
