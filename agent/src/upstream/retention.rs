//! Which slices leave the gateway: only those that every upstream has, oldest first, and only beyond what is kept.
//!
//! Blocks stay for ever, so the chain can be walked and continued; the newest slice of a dataset stays, because a restart
//! may need it to finish an interrupted seal. The position is recorded before the first file goes, so `verify` knows what
//! may be missing, and the next start sweeps what a crash left in between.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use forebay_storage::durable_fs::DurableFs;
use forebay_storage::odf::{ChainFiles, Multihash};
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::spool::Spool;
use tracing::info;

use crate::config::Upstream;

/// One slice on the gateway's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The last `seq` that the chain accounts for with it.
    pub last_seq: Seq,
    /// Bytes of its file.
    pub bytes: u64,
    /// Every upstream has it.
    pub is_delivered: bool,
}

/// How many of the oldest slices of each dataset may go (pure). `kept` holds each dataset's slices, oldest first. Of those
/// that are delivered `keep_bytes` stay, over all datasets, unless the disk lacks `lacking_bytes`.
#[must_use]
pub fn to_release(kept: &BTreeMap<String, Vec<Kept>>, keep_bytes: u64, lacking_bytes: u64) -> BTreeMap<String, usize> {
    let mut candidates: Vec<(Seq, &str, u64)> = Vec::new();
    for (dataset, slices) in kept {
        let but_newest = slices.len().saturating_sub(1);
        let delivered = slices.iter().take(but_newest).take_while(|slice| slice.is_delivered);
        candidates.extend(delivered.map(|slice| (slice.last_seq, dataset.as_str(), slice.bytes)));
    }
    candidates.sort_unstable();
    let mut delivered_bytes: u64 = candidates.iter().map(|(_, _, bytes)| bytes).sum();
    let mut lacking = lacking_bytes;
    let mut release: BTreeMap<String, usize> = BTreeMap::new();
    for (_, dataset, bytes) in candidates {
        if delivered_bytes <= keep_bytes && lacking == 0 {
            break;
        }
        delivered_bytes -= bytes;
        lacking = lacking.saturating_sub(bytes);
        *release.entry(dataset.to_owned()).or_default() += 1;
    }
    release
}

/// Lets slices go as [`to_release`] says.
#[derive(Debug)]
pub struct Retention {
    spool: Spool,
    fs: DurableFs,
    upstreams: Vec<Upstream>,
    keep_bytes: u64,
    min_free_bytes: u64,
    datasets: Mutex<Vec<Dataset>>,
}

#[derive(Debug)]
struct Dataset {
    name: String,
    id: DatasetId,
    files: ChainFiles,
    /// Slices that are on disk, oldest first, up to the newest that was looked at.
    slices: VecDeque<(Seq, Multihash, u64)>,
    /// The next slice to look for.
    looked: Option<Seq>,
}

impl Retention {
    /// For these datasets, whose repositories are under `root`. Without an upstream nothing is ever released.
    pub fn new(
        spool: &Spool,
        fs: &DurableFs,
        root: &Path,
        datasets: &[(String, DatasetId)],
        upstreams: &[Upstream],
        (keep_bytes, min_free_bytes): (u64, u64),
    ) -> Self {
        let datasets = datasets.iter().map(|(name, id)| Dataset {
            name: name.clone(),
            id: *id,
            files: ChainFiles::new(&root.join(name)),
            slices: VecDeque::new(),
            looked: None,
        });
        Self {
            spool: spool.clone(),
            fs: fs.clone(),
            upstreams: upstreams.to_vec(),
            keep_bytes,
            min_free_bytes,
            datasets: Mutex::new(datasets.collect()),
        }
    }

    /// Releases nothing.
    pub fn none(spool: &Spool, fs: &DurableFs) -> Self {
        Self::new(spool, fs, Path::new(""), &[], &[], (0, 0))
    }

    /// Releases what may go now.
    ///
    /// # Errors
    /// A chain or the spool cannot be read, or a file not be removed; what went is recorded.
    pub fn run(&self) -> Result<()> {
        if self.upstreams.is_empty() {
            return Ok(());
        }
        let mut datasets = self.datasets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = BTreeMap::new();
        for dataset in datasets.iter_mut() {
            dataset.look(&self.spool)?;
            kept.insert(dataset.name.clone(), self.kept(dataset)?);
        }
        let free = self.spool.usage().free_bytes.unwrap_or(u64::MAX);
        let release = to_release(&kept, self.keep_bytes, self.min_free_bytes.saturating_sub(free));
        for dataset in datasets.iter_mut() {
            if let Some(count) = release.get(&dataset.name) {
                self.release(dataset, *count).with_context(|| format!("release slices of dataset {}", dataset.name))?;
            }
        }
        Ok(())
    }

    fn kept(&self, dataset: &Dataset) -> Result<Vec<Kept>> {
        let everywhere = self.delivered_everywhere(dataset)?;
        let kept = |(last_seq, _, bytes): &(Seq, Multihash, u64)| Kept {
            last_seq: *last_seq,
            bytes: *bytes,
            is_delivered: *last_seq < everywhere,
        };
        Ok(dataset.slices.iter().map(kept).collect())
    }

    /// The first `seq` that some upstream lacks. A dataset that goes nowhere stays here.
    fn delivered_everywhere(&self, dataset: &Dataset) -> Result<Seq> {
        let takers = self.upstreams.iter().filter(|upstream| upstream.takes(&dataset.name));
        let positions: Vec<Seq> =
            takers.map(|upstream| self.spool.delivered(&upstream.url, dataset.id)).collect::<Result<_, _>>()?;
        Ok(positions.into_iter().min().unwrap_or(Seq(0)))
    }

    fn release(&self, dataset: &mut Dataset, count: usize) -> Result<()> {
        let Some((last_seq, ..)) = count.checked_sub(1).and_then(|last| dataset.slices.get(last)) else {
            return Ok(());
        };
        self.spool.set_released(dataset.id, last_seq.next())?;
        let mut freed = 0;
        for (_, hash, bytes) in dataset.slices.drain(..count) {
            let path = dataset.files.data_path(&hash);
            match self.fs.remove(&path) {
                Ok(()) => freed += bytes,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("remove {}", path.display())),
            }
        }
        info!(dataset = dataset.name, slices = count, bytes = freed, "Released slices that every upstream has.");
        Ok(())
    }
}

impl Dataset {
    /// Takes note of the slices that came since the last look.
    fn look(&mut self, spool: &Spool) -> Result<()> {
        let from = match self.looked {
            Some(next) => next,
            None => spool.released(self.id)?,
        };
        let Some(head) = self.files.head()? else { return Ok(()) };
        for sealed in self.files.slices_from(head, from)? {
            self.slices.push_back((sealed.last_seq, sealed.slice.physical_hash, sealed.slice.size));
        }
        self.looked = Some(self.slices.back().map_or(from, |(last, ..)| last.next()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slices(of: &[(u64, u64, bool)]) -> Vec<Kept> {
        of.iter()
            .map(|&(last_seq, bytes, is_delivered)| Kept { last_seq: Seq(last_seq), bytes, is_delivered })
            .collect()
    }

    /// Last `seq`, bytes, delivered everywhere.
    type Slices = [(u64, u64, bool)];

    fn released(of: &[(&str, &Slices)], keep_bytes: u64, lacking: u64) -> Vec<(String, usize)> {
        let kept = of.iter().map(|(name, of)| ((*name).to_owned(), slices(of))).collect();
        to_release(&kept, keep_bytes, lacking).into_iter().collect()
    }

    #[test]
    fn what_an_upstream_lacks_is_never_released() {
        let kept: &[_] = &[(1, 100, true), (2, 100, false), (3, 100, true), (4, 100, true)];

        assert_eq!(released(&[("a", kept)], 0, u64::MAX), [("a".to_owned(), 1)]);
    }

    #[test]
    fn the_newest_slice_stays() {
        assert_eq!(released(&[("a", &[(1, 100, true)])], 0, u64::MAX), []);
    }

    #[test]
    fn the_oldest_go_first_whichever_dataset_they_are_of_until_what_is_kept_fits() {
        let a: &[_] = &[(1, 100, true), (5, 100, true), (9, 100, true)];
        let b: &[_] = &[(2, 100, true), (3, 100, true), (8, 100, true)];

        assert_eq!(released(&[("a", a), ("b", b)], 200, 0), [("a".to_owned(), 1), ("b".to_owned(), 1)]);
        assert_eq!(released(&[("a", a), ("b", b)], 400, 0), []);
    }

    #[test]
    fn a_full_disk_takes_what_would_have_been_kept() {
        let a: &[_] = &[(1, 100, true), (5, 100, true), (9, 100, true)];

        assert_eq!(released(&[("a", a)], 1_000, 150), [("a".to_owned(), 2)]);
    }
}
