//! Slices that an upstream does not have yet. They stand in for the messages that they were made of, so they count
//! against `spool.max_bytes`: an upstream that is away for long must not fill the disk.
//!
//! The upstream that is furthest behind counts: the same slices wait for all of them. Without an upstream nothing does:
//! the dataset on the gateway is the destination then, and `spool.min_free_bytes` guards the disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use forebay_storage::odf::{Event, Repository};
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::sealer::Sealer;
use forebay_storage::spool::Spool;

use super::deliver::Progress;
use crate::config::Upstream;
use crate::sealing::Chain;

/// Keeps account of what waits, and tells the spool.
#[derive(Debug)]
pub struct Backlog {
    spool: Spool,
    upstreams: Vec<Arc<Progress>>,
    account: Mutex<Account>,
}

/// Bytes of slices since the beginning, by dataset name.
type Totals = BTreeMap<String, u64>;

#[derive(Debug, Default)]
struct Account {
    sealed: Totals,
    /// One for each upstream.
    delivered: Vec<Totals>,
}

impl Backlog {
    /// Reads from the chains which slices lie beyond the positions that the spool has for each upstream. A dataset that
    /// cannot be opened does not count.
    pub fn open(spool: &Spool, sealer: &Sealer, upstreams: &[Upstream]) -> Result<Self> {
        let mut account = Account { sealed: Totals::new(), delivered: vec![Totals::new(); upstreams.len()] };
        for dataset in sealer.datasets() {
            let name = &dataset.spec().name;
            let total = dataset.repository().state().data_bytes;
            let positions = positions(spool, upstreams, dataset.id())?;
            let waiting = waiting(dataset.repository(), dataset.sealed(), &positions)
                .with_context(|| format!("read the chain of dataset {name}"))?;
            account.sealed.insert(name.clone(), total);
            for (delivered, waiting) in account.delivered.iter_mut().zip(waiting) {
                delivered.insert(name.clone(), total.saturating_sub(waiting));
            }
        }
        let upstreams = upstreams.iter().map(|upstream| Arc::new(Progress::new(upstream))).collect();
        let backlog = Self { spool: spool.clone(), upstreams, account: Mutex::new(account) };
        backlog.publish(&backlog.account());
        Ok(backlog)
    }

    /// What is known of each upstream, in the order of the configuration.
    pub fn upstreams(&self) -> &[Arc<Progress>] {
        &self.upstreams
    }

    /// The sealer has been at work.
    pub fn handle_sealed(&self, chains: &BTreeMap<String, Chain>) {
        let mut account = self.account();
        account.sealed = chains.iter().map(|(name, chain)| (name.clone(), chain.bytes)).collect();
        self.publish(&account);
    }

    /// Bytes of all slices of a dataset, to be noted before a delivery looks at its head: the delivery brings at least
    /// these.
    pub fn sealed(&self, dataset: &str) -> u64 {
        self.account().sealed.get(dataset).copied().unwrap_or(0)
    }

    /// The upstream of this number has the first `bytes` of the dataset's slices.
    pub fn handle_delivered(&self, upstream: usize, dataset: &str, bytes: u64) {
        let mut account = self.account();
        if let Some(delivered) = account.delivered.get_mut(upstream) {
            delivered.insert(dataset.to_owned(), bytes);
        }
        self.publish(&account);
    }

    /// Under the lock of the account, so that the newest figure is the last one that the spool is told.
    fn publish(&self, account: &Account) {
        for (number, upstream) in self.upstreams.iter().enumerate() {
            upstream.set_undelivered(account.undelivered(number));
        }
        self.spool.set_external_bytes(account.furthest_behind());
    }

    /// A panic of another thread leaves plain data behind, which is still good to read.
    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    fn undelivered(&self, upstream: usize) -> u64 {
        let Some(delivered) = self.delivered.get(upstream) else { return 0 };
        let has = |dataset| delivered.get(dataset).copied().unwrap_or(0);
        self.sealed.iter().map(|(dataset, bytes)| bytes.saturating_sub(has(dataset))).sum()
    }

    fn furthest_behind(&self) -> u64 {
        (0..self.delivered.len()).map(|upstream| self.undelivered(upstream)).max().unwrap_or(0)
    }
}

/// The first `seq` of the dataset that each upstream does not have.
fn positions(spool: &Spool, upstreams: &[Upstream], dataset: DatasetId) -> Result<Vec<Seq>> {
    let position = |upstream: &Upstream| spool.delivered(&upstream.url, dataset);
    upstreams.iter().map(position).collect::<Result<_, _>>().context("read the positions of the upstreams")
}

/// Bytes of the slices that lie beyond each position. The chain is read only when there is one.
fn waiting(repository: &Repository, sealed: Seq, positions: &[Seq]) -> Result<Vec<u64>> {
    let mut waiting = vec![0u64; positions.len()];
    if positions.iter().all(|position| *position >= sealed) {
        return Ok(waiting);
    }
    for block in repository.blocks(None)? {
        let Event::AddData(event) = block?.1.event else { continue };
        let size = event.new_data.as_ref().map_or(0, |slice| slice.size);
        // The last `seq` that the chain accounts for; without one the slice counts.
        let last = event.new_source_state.and_then(|state| state.value.parse().ok()).map_or(Seq(u64::MAX), Seq);
        for (bytes, position) in waiting.iter_mut().zip(positions) {
            if last >= *position {
                *bytes = bytes.saturating_add(size);
            }
        }
    }
    Ok(waiting)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(of: &[(&str, u64)]) -> Totals {
        of.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect()
    }

    #[test]
    fn the_upstream_that_is_furthest_behind_counts() {
        let account = Account {
            sealed: totals(&[("a", 100), ("b", 50)]),
            delivered: vec![totals(&[("a", 100), ("b", 20)]), totals(&[("a", 10)]), totals(&[("a", 100), ("b", 50)])],
        };

        assert_eq!([0, 1, 2].map(|upstream| account.undelivered(upstream)), [30, 140, 0]);
        assert_eq!(account.furthest_behind(), 140);
    }

    #[test]
    fn without_an_upstream_nothing_waits() {
        let account = Account { sealed: totals(&[("a", 100)]), delivered: Vec::new() };

        assert_eq!(account.furthest_behind(), 0);
    }
}
