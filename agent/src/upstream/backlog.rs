//! Slices that an upstream does not have yet. They stand in for the messages that they were made of, so they count
//! against `spool.max_bytes`: an upstream that is away for long must not fill the disk.
//!
//! The upstream that is furthest behind counts: the same slices wait for all of them. Without an upstream nothing does:
//! the dataset on the gateway is the destination then, and `spool.min_free_bytes` guards the disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use forebay_storage::odf::ChainFiles;
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::sealer::Sealer;
use forebay_storage::spool::Spool;

use super::report::Progress;
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
    /// One for each upstream; it names only datasets that go there.
    delivered: Vec<Totals>,
}

/// The first `seq` that an upstream lacks, by dataset name.
type Positions = BTreeMap<String, u64>;

impl Backlog {
    /// Reads from the chains which slices lie beyond the positions that the spool has for each upstream. A dataset that
    /// cannot be opened does not count. `before`: what is known of upstreams that are configured already.
    pub fn open(spool: &Spool, sealer: &Sealer, upstreams: &[Upstream], before: &[Arc<Progress>]) -> Result<Self> {
        let chains = sealer.datasets().map(|dataset| {
            let files = ChainFiles::new(dataset.repository().dir());
            (dataset.spec().name.as_str(), dataset.id(), files)
        });
        let (account, positions) = Self::account_of(spool, chains, upstreams)?;
        let going_on = |upstream: &Upstream, positions: Positions| {
            let known = before.iter().find(|known| known.report().url == upstream.url).map(Arc::clone);
            let progress = known.unwrap_or_else(|| Arc::new(Progress::new(upstream)));
            progress.go_on(positions);
            progress
        };
        let progress = upstreams.iter().zip(positions).map(|(upstream, positions)| going_on(upstream, positions));
        Ok(Self::with(spool, progress.collect(), account))
    }

    /// The same for chains that nobody appends to: name, id and directory of each.
    pub fn of_chains<'a>(
        spool: &Spool,
        chains: impl Iterator<Item = (&'a str, DatasetId, ChainFiles)>,
        upstreams: &[Upstream],
    ) -> Result<Self> {
        let (account, positions) = Self::account_of(spool, chains, upstreams)?;
        let upstreams: Vec<_> = upstreams.iter().map(|upstream| Arc::new(Progress::new(upstream))).collect();
        upstreams.iter().zip(positions).for_each(|(progress, positions)| progress.set_delivered(positions));
        Ok(Self::with(spool, upstreams, account))
    }

    fn with(spool: &Spool, upstreams: Vec<Arc<Progress>>, account: Account) -> Self {
        let backlog = Self { spool: spool.clone(), upstreams, account: Mutex::new(account) };
        backlog.publish(&backlog.account());
        backlog
    }

    fn account_of<'a>(
        spool: &Spool,
        chains: impl Iterator<Item = (&'a str, DatasetId, ChainFiles)>,
        upstreams: &[Upstream],
    ) -> Result<(Account, Vec<Positions>)> {
        let mut account = Account { sealed: Totals::new(), delivered: vec![Totals::new(); upstreams.len()] };
        let mut all = vec![Positions::new(); upstreams.len()];
        for (name, id, files) in chains {
            let positions = positions(spool, upstreams, id)?;
            let released = spool.released(id).context("read what was released")?;
            let (total, waiting) =
                waiting(&files, released, &positions).with_context(|| format!("read the chain of dataset {name}"))?;
            account.sealed.insert(name.to_owned(), total);
            for (number, _) in upstreams.iter().enumerate().filter(|(_, upstream)| upstream.takes(name)) {
                account.delivered[number].insert(name.to_owned(), total.saturating_sub(waiting[number]));
                all[number].insert(name.to_owned(), positions[number].0);
            }
        }
        Ok((account, all))
    }

    /// Takes the positions from the spool again, after a receipt has moved them.
    pub fn reread<'a>(
        &self,
        chains: impl Iterator<Item = (&'a str, DatasetId, ChainFiles)>,
        upstreams: &[Upstream],
    ) -> Result<()> {
        let mut account = self.account();
        let (fresh, positions) = Self::account_of(&self.spool, chains, upstreams)?;
        account.delivered = fresh.delivered;
        self.upstreams.iter().zip(positions).for_each(|(progress, positions)| progress.set_delivered(positions));
        self.publish(&account);
        Ok(())
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
        self.change(upstream, dataset, |_| bytes);
    }

    /// The upstream of this number has `bytes` more of the dataset's slices.
    pub fn handle_delivered_more(&self, upstream: usize, dataset: &str, bytes: u64) {
        self.change(upstream, dataset, |before| before.saturating_add(bytes));
    }

    fn change(&self, upstream: usize, dataset: &str, change: impl FnOnce(u64) -> u64) {
        let mut account = self.account();
        if let Some(delivered) = account.delivered.get_mut(upstream) {
            let bytes = delivered.entry(dataset.to_owned()).or_default();
            *bytes = change(*bytes);
        }
        self.publish(&account);
    }

    /// Bytes of the dataset's slices that the upstream of this number lacks.
    pub fn undelivered(&self, upstream: usize, dataset: &str) -> u64 {
        self.account().undelivered_of(upstream, dataset)
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
        self.sealed.keys().map(|dataset| self.undelivered_of(upstream, dataset)).sum()
    }

    fn undelivered_of(&self, upstream: usize, dataset: &str) -> u64 {
        let sealed = self.sealed.get(dataset).copied().unwrap_or(0);
        let delivered = self.delivered.get(upstream).and_then(|delivered| delivered.get(dataset));
        delivered.map_or(0, |delivered| sealed.saturating_sub(*delivered))
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

/// Bytes of all slices, and of those that lie beyond each position and are still here: what was released takes no room,
/// whoever lacks it.
fn waiting(files: &ChainFiles, released: Seq, positions: &[Seq]) -> Result<(u64, Vec<u64>)> {
    let (mut total, mut waiting) = (0u64, vec![0u64; positions.len()]);
    if positions.is_empty() {
        return Ok((total, waiting));
    }
    let Some(head) = files.head()? else { return Ok((total, waiting)) };
    for sealed in files.slices_from(head, Seq(0))? {
        let size = sealed.slice.size;
        total = total.saturating_add(size);
        for (bytes, position) in waiting.iter_mut().zip(positions) {
            if sealed.last_seq >= *position && sealed.last_seq >= released {
                *bytes = bytes.saturating_add(size);
            }
        }
    }
    Ok((total, waiting))
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
            delivered: vec![
                totals(&[("a", 100), ("b", 20)]),
                totals(&[("a", 10), ("b", 0)]),
                totals(&[("a", 100), ("b", 50)]),
            ],
        };

        assert_eq!([0, 1, 2].map(|upstream| account.undelivered(upstream)), [30, 140, 0]);
        assert_eq!(account.furthest_behind(), 140);
    }

    #[test]
    fn a_dataset_that_does_not_go_there_does_not_wait_for_it() {
        let account = Account { sealed: totals(&[("a", 100), ("b", 50)]), delivered: vec![totals(&[("b", 20)])] };

        assert_eq!(account.undelivered(0), 30);
    }

    #[test]
    fn without_an_upstream_nothing_waits() {
        let account = Account { sealed: totals(&[("a", 100)]), delivered: Vec::new() };

        assert_eq!(account.furthest_behind(), 0);
    }
}
