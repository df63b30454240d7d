//! The gateway's side: takes the receipt that came back, then writes what is still lacking.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use forebay_storage::durable_fs::DurableFs;
use forebay_storage::odf::{ChainFiles, Event, Multihash};
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::spool::{Spool, SpoolError};
use serde::{Deserialize, Serialize};

use super::{Bundle, BundledDataset, Receipt, VERSION, bundle_file, check_version, read, receipt_file};
use crate::config::{Config, Upstream, UpstreamKind};
use crate::store::datasets_dir;

/// What an export did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// The upstream that the bundle is for.
    pub upstream: String,
    /// Datasets whose receipt was accepted: name, and the first `seq` that the upstream lacks now.
    pub accepted: Vec<(String, u64)>,
    /// What is on the stick.
    pub datasets: Vec<ExportedDataset>,
}

/// One dataset on the stick.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedDataset {
    /// Its name.
    pub name: String,
    /// Slices on the stick.
    pub slices: u64,
    /// Rows in them.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The newest block.
    pub head: String,
}

/// Which upstream is meant, and what is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Which {
    /// URL of the upstream; it may be left out when there is only one.
    pub upstream: Option<String>,
    /// The place that a receipt may name instead of the upstream's URL, such as the same node by another name.
    pub accept: Option<String>,
}

/// Takes `DIR/receipt.json` if there is one, and writes a bundle of everything that the upstream lacks into `dir`, whose
/// parent must exist.
///
/// # Errors
/// There is no such upstream, `dir` belongs to another gateway, a slice is gone, or a disk refuses.
pub fn export(config: &Config, spool: &Spool, dir: &Path, which: &Which) -> Result<Exported> {
    let upstream = choose(config, which.upstream.as_deref())?;
    make_last(dir)?;
    check_place(config, dir)?;
    let ids = dataset_ids(config, spool, upstream)?;
    let stick = Stick { config, dir, fs: DurableFs::new() };
    stick.check_owner(upstream, &ids)?;
    let accepted = stick.take_receipt(spool, upstream, &ids, which.accept.as_deref())?;
    let mut bundle = stick.empty_bundle(upstream);
    let mut exported = Exported { upstream: upstream.url.clone(), accepted, datasets: Vec::new() };
    for (name, id) in &ids {
        let from = spool.delivered(&upstream.url, *id)?;
        let sealed = spool.sealed(*id)?;
        let Some((bundled, dataset)) = stick.write(name, from, sealed).with_context(|| format!("export {name}"))?
        else {
            continue;
        };
        bundle.datasets.push(bundled);
        exported.datasets.push(dataset);
    }
    stick.fs.replace(&bundle_file(dir), &serde_json::to_vec_pretty(&bundle)?)?;
    Ok(exported)
}

fn choose<'a>(config: &'a Config, url: Option<&str>) -> Result<&'a Upstream> {
    let urls: Vec<&str> = config.upstreams.iter().map(|upstream| upstream.url.as_str()).collect();
    match (config.upstreams.as_slice(), url) {
        ([], _) => bail!("no upstream is configured: a bundle is made for one, so that its receipt can count for it"),
        ([only], None) => Ok(only),
        (_, None) => bail!("say which upstream the bundle is for, by --for URL: {}", urls.join(", ")),
        (all, Some(url)) => all
            .iter()
            .find(|upstream| upstream.url == url)
            .with_context(|| format!("no upstream has the URL {url}; there are: {}", urls.join(", "))),
    }
}

/// The last component is made, but no disk is conjured up.
fn make_last(dir: &Path) -> Result<()> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(()),
        Err(_) if dir.is_dir() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("make {}: is the stick mounted?", dir.display())),
    }
}

/// An export removes slices that are no longer wanted, so it must never be let loose on a repository.
fn check_place(config: &Config, dir: &Path) -> Result<()> {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (dir, data_dir) = (real(dir), real(&config.data_dir));
    if dir.starts_with(&data_dir) || data_dir.starts_with(&dir) {
        bail!("{} lies in data_dir or around it: name a directory on the stick", dir.display());
    }
    for upstream in &config.upstreams {
        if let UpstreamKind::Directory(root) = &upstream.kind
            && dir.starts_with(real(root))
        {
            bail!("{} belongs to the upstream {}: name another directory", dir.display(), upstream.url);
        }
    }
    Ok(())
}

fn dataset_ids(config: &Config, spool: &Spool, upstream: &Upstream) -> Result<Vec<(String, DatasetId)>> {
    let names = config.datasets.iter().map(|dataset| &dataset.spec.name).filter(|name| upstream.takes(name));
    names.map(|name| Ok((name.clone(), spool.dataset_id(name)?))).collect()
}

struct Stick<'a> {
    config: &'a Config,
    dir: &'a Path,
    fs: DurableFs,
}

impl Stick<'_> {
    fn empty_bundle(&self, upstream: &Upstream) -> Bundle {
        let gateway = self.config.gateway.clone();
        Bundle { version: VERSION, gateway, upstream: upstream.url.clone(), datasets: Vec::new() }
    }

    /// A stick carries the bundle of one gateway for one upstream at a time; a folder that no bundle names is not ours.
    fn check_owner(&self, upstream: &Upstream, ids: &[(String, DatasetId)]) -> Result<()> {
        let path = bundle_file(self.dir);
        let Some(bundle) = read::<Bundle>(&path)? else {
            if let Some((name, _)) = ids.iter().find(|(name, _)| self.dir.join(name).exists()) {
                bail!("{} holds {name}, and no bundle: name another directory", self.dir.display());
            }
            self.fs.replace(&path, &serde_json::to_vec_pretty(&self.empty_bundle(upstream))?)?;
            return Ok(());
        };
        check_version(&path, bundle.version)?;
        if bundle.gateway != self.config.gateway || bundle.upstream != upstream.url {
            bail!(
                "{} holds the bundle of gateway {} for {}: name another directory",
                self.dir.display(),
                bundle.gateway,
                bundle.upstream
            );
        }
        Ok(())
    }

    /// Moves the upstream's positions to what the receipt says. A head that is no block of ours is not believed.
    fn take_receipt(
        &self,
        spool: &Spool,
        upstream: &Upstream,
        ids: &[(String, DatasetId)],
        accept: Option<&str>,
    ) -> Result<Vec<(String, u64)>> {
        let path = receipt_file(self.dir);
        let Some(receipt) = read::<Receipt>(&path)? else { return Ok(Vec::new()) };
        check_version(&path, receipt.version)?;
        if receipt.gateway != self.config.gateway || receipt.upstream != upstream.url {
            bail!("{}: is the receipt of gateway {} for {}", path.display(), receipt.gateway, receipt.upstream);
        }
        let to = receipt.delivered_to.as_str();
        if to != upstream.url && accept != Some(to) {
            bail!(
                "{}: says that the datasets were delivered to {to}, and they are for {}: if that is the same place, say \
                 --accept {to}; if not, remove the receipt",
                path.display(),
                upstream.url
            );
        }
        let mut accepted = Vec::new();
        for dataset in &receipt.datasets {
            let Some((name, id)) = ids.iter().find(|(name, _)| *name == dataset.name) else { continue };
            let end = self.accounted_for(name, &dataset.head).with_context(|| {
                format!(
                    "{}: dataset {name}: head {} is not believed; remove the receipt to go on without it",
                    path.display(),
                    dataset.head
                )
            })?;
            // Not beyond what the bundle was: a head may have been there before its rows were accounted for.
            let end = end.min(Seq(dataset.end)).min(spool.sealed(*id)?);
            if end > spool.delivered(&upstream.url, *id)? {
                match spool.set_delivered(&upstream.url, *id, end) {
                    // The link came back meanwhile, and the sync job is further.
                    Ok(()) | Err(SpoolError::PositionGoesBack { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                accepted.push((name.clone(), end.0));
            }
        }
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        Ok(accepted)
    }

    /// The first `seq` that our chain does not account for at this head, however the receipt came by it.
    fn accounted_for(&self, name: &str, head: &str) -> Result<Seq> {
        let files = self.files(name);
        let head: Multihash = head.parse()?;
        let ours = files.head()?.context("the dataset has no chain here")?;
        if files.blocks_after(ours, Some(&head))?.is_none() {
            bail!("it is no block of this gateway's chain");
        }
        let mut next = Some(head);
        while let Some(hash) = next {
            let block = files.block(&hash)?;
            if let Some(last) = block.event.last_seq() {
                return Ok(last.next());
            }
            next = block.prev_block_hash;
        }
        Ok(Seq(0))
    }

    fn files(&self, name: &str) -> ChainFiles {
        ChainFiles::new(&datasets_dir(&self.config.data_dir).join(name))
    }

    /// Writes all blocks and the slices from `from` on; removes slices that the upstream has by now.
    fn write(&self, name: &str, from: Seq, sealed: Seq) -> Result<Option<(BundledDataset, ExportedDataset)>> {
        let files = self.files(name);
        let Some(head) = files.head()? else { return Ok(None) };
        let there = ChainFiles::new(&self.dir.join(name));
        for folder in ["blocks", "data", "checkpoints", "refs"] {
            let folder = there.dir().join(folder);
            self.fs.create_dir_all(&folder)?;
            self.fs.remove_temporary(&folder)?;
        }
        let mut dataset = ExportedDataset { name: name.to_owned(), head: head.to_string(), ..Default::default() };
        let mut wanted = BTreeSet::new();
        let mut dataset_id = String::new();
        for hash in files.blocks_after(head, None)?.unwrap_or_default() {
            let block = files.block(&hash)?;
            if let Event::Seed(seed) = &block.event {
                dataset_id = seed.dataset_id.to_string();
            }
            let is_lacking = block.event.last_seq().is_none_or(|last| last >= from);
            if let Some(slice) = block.event.new_data().filter(|_| is_lacking) {
                self.copy(&files.data_path(&slice.physical_hash), &there.data_path(&slice.physical_hash), slice.size)?;
                wanted.insert(slice.physical_hash.to_string());
                dataset.slices += 1;
                dataset.rows += slice.rows().unwrap_or(0);
                dataset.bytes += slice.size;
            }
            self.fs.write_new(&there.block_path(&hash), &files.block_bytes(&hash)?)?;
        }
        self.fs.replace(&there.dir().join("refs/head"), head.to_string().as_bytes())?;
        self.prune(&there.dir().join("data"), &wanted)?;
        let bundled =
            BundledDataset { name: name.to_owned(), dataset_id, head: head.to_string(), from: from.0, end: sealed.0 };
        Ok(Some((bundled, dataset)))
    }

    fn copy(&self, from: &Path, to: &Path, size: u64) -> Result<()> {
        if fs::metadata(to).is_ok_and(|there| there.len() == size) {
            return Ok(());
        }
        let mut source = File::open(from).with_context(|| format!("open {}", from.display()))?;
        let mut temp = self.fs.create_temp(to.parent().unwrap_or(to))?;
        io::copy(&mut source, &mut temp).with_context(|| format!("write {}", to.display()))?;
        temp.persist(to)?;
        Ok(())
    }

    /// Slices of earlier trips make room.
    fn prune(&self, data: &Path, wanted: &BTreeSet<String>) -> Result<()> {
        for entry in fs::read_dir(data).with_context(|| format!("list {}", data.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.parse::<Multihash>().is_ok() && !wanted.contains(&name) {
                self.fs.remove(&entry.path())?;
            }
        }
        Ok(())
    }
}
