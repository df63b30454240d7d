//! The other side: a bundle is verified, delivered by the same code that a gateway delivers with, and receipted.
//!
//! A delivery needs positions, so a spool is begun in a temporary directory and told what the gateway's knew: which slices
//! the upstream has, and how far the chains go.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use forebay_storage::durable_fs::DurableFs;
use forebay_storage::odf::{self, ChainFiles, Depth};
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::spool::{SealCommit, Spool, SpoolConfig};
use serde::{Deserialize, Serialize};

use super::{Bundle, BundledDataset, Receipt, VERSION, bundle_file, check_version, read, receipt_file};
use crate::config::Upstream;
use crate::upstream::backlog::Backlog;
use crate::upstream::bell::Bell;
use crate::upstream::deliver::Delivery;
use crate::upstream::report::{DeliveryReport, Progress};
use crate::upstream::retention::Retention;

/// Dead letters read at a time.
const LETTERS_MAX: usize = 256;
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Datasets that are there whole.
    pub datasets: Vec<BundledDataset>,
    /// What is not there, and why.
    pub problems: Vec<String>,
    /// Files with rows that the upstream refuses, one JSON object a line. They count as delivered, as on a gateway.
    pub refused: Vec<PathBuf>,
    /// What the delivery says of itself.
    pub report: DeliveryReport,
}

/// Verifies the bundle in `dir`, delivers it to `upstream`, and writes the receipt for what is there. Blocks.
///
/// # Errors
/// It is no bundle, or something in it is damaged.
pub fn import(dir: &Path, upstream: &Upstream, tell: &mut dyn FnMut(&DeliveryReport)) -> Result<Imported> {
    let path = bundle_file(dir);
    let bundle: Bundle =
        read(&path)?.with_context(|| format!("{} is no bundle: it has no bundle.json", dir.display()))?;
    check_version(&path, bundle.version)?;
    bundle.datasets.iter().try_for_each(|dataset| verify(dir, dataset))?;
    let scratch = Scratch::new(dir)?;
    let spool = &scratch.spool;
    let datasets: Vec<(String, DatasetId)> =
        bundle.datasets.iter().map(|dataset| known(spool, upstream, dataset)).collect::<Result<_>>()?;
    let report = deliver(dir, &scratch, upstream, &datasets, tell)?;
    let mut imported = Imported { report, ..Imported::default() };
    for (name, id) in &datasets {
        imported.refused.extend(keep_refused(dir, spool, name, *id)?);
    }
    for (dataset, (name, id)) in bundle.datasets.iter().zip(&datasets) {
        if spool.delivered(&upstream.url, *id)? >= Seq(dataset.end) && !imported.report.problems.contains_key(name) {
            imported.datasets.push(dataset.clone());
            continue;
        }
        let problem = imported.report.problems.get(name).map(|problem| problem.words.clone());
        let why = problem.or_else(|| imported.report.last_error.clone()).unwrap_or_else(|| "not delivered".to_owned());
        imported.problems.push(format!("dataset {name}: {why}"));
    }
    let receipt = Receipt {
        version: VERSION,
        gateway: bundle.gateway,
        upstream: bundle.upstream,
        delivered_to: upstream.url.clone(),
        datasets: imported.datasets.clone(),
    };
    // An attempt that failed leaves the receipt of one that did not.
    if !receipt.datasets.is_empty() {
        DurableFs::new().replace(&receipt_file(dir), &serde_json::to_vec_pretty(&receipt)?)?;
    }
    Ok(imported)
}

/// Blocks, rules, and every slice that should be on the stick.
fn verify(dir: &Path, dataset: &BundledDataset) -> Result<()> {
    let report = odf::verify_kept(&dir.join(&dataset.name), Depth::Files, Seq(dataset.from));
    if let Some(problem) = report.problems.first() {
        bail!("dataset {} in the bundle is damaged: {problem}; export it again", dataset.name);
    }
    let (id, head) = (report.dataset_id.map(|id| id.to_string()), report.head.map(|head| head.to_string()));
    if id.as_deref() != Some(&*dataset.dataset_id) || head.as_deref() != Some(&*dataset.head) {
        bail!("dataset {} in the bundle is not the one that bundle.json names; export it again", dataset.name);
    }
    Ok(())
}

/// Rows that the upstream refuses go back to the gateway's people on the stick.
fn keep_refused(dir: &Path, spool: &Spool, name: &str, id: DatasetId) -> Result<Option<PathBuf>> {
    let (mut lines, mut from) = (Vec::new(), Seq(0));
    loop {
        let letters = spool.dead_letters(id, from, LETTERS_MAX)?;
        let Some(last) = letters.last() else { break };
        from = last.seq.next();
        for letter in &letters {
            lines.extend_from_slice(&letter.message.payload);
            lines.push(b'\n');
        }
    }
    if lines.is_empty() {
        return Ok(None);
    }
    let path = dir.join(format!("refused-{name}.ndjson"));
    DurableFs::new().replace(&path, &lines).with_context(|| format!("write {}", path.display()))?;
    Ok(Some(path))
}

struct Scratch {
    spool: Spool,
    fs: DurableFs,
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new(bundle: &Path) -> Result<Self> {
        let dir = tempfile::tempdir().context("create a temporary directory")?;
        let fs = DurableFs::new();
        let config = SpoolConfig { min_free_bytes: 0, ..SpoolConfig::default() };
        let (spool, _) = Spool::open(&dir.path().join("spool"), config, fs.clone())
            .with_context(|| format!("prepare the import of {}", bundle.display()))?;
        Ok(Self { spool, fs, dir })
    }
}

/// Tells the spool what the gateway's knew of a dataset.
fn known(spool: &Spool, upstream: &Upstream, dataset: &BundledDataset) -> Result<(String, DatasetId)> {
    let id = spool.dataset_id(&dataset.name)?;
    let sealed = Seq(dataset.end);
    spool.raise_seq_floor(sealed)?;
    spool.commit_seal(&SealCommit {
        dataset: id,
        sealed,
        dead_letters: Vec::new(),
        ledger_keys: Vec::new(),
        counters: Vec::new(),
    })?;
    spool.set_delivered(&upstream.url, id, Seq(dataset.from.min(dataset.end)))?;
    Ok((dataset.name.clone(), id))
}

fn deliver(
    dir: &Path,
    scratch: &Scratch,
    upstream: &Upstream,
    datasets: &[(String, DatasetId)],
    tell: &mut dyn FnMut(&DeliveryReport),
) -> Result<DeliveryReport> {
    let bell = Arc::new(Bell::default());
    let chains = datasets.iter().map(|(name, id)| (name.as_str(), *id, ChainFiles::new(&dir.join(name))));
    let backlog = Arc::new(Backlog::of_chains(&scratch.spool, chains, std::slice::from_ref(upstream))?);
    let progress: Arc<Progress> = Arc::clone(&backlog.upstreams()[0]);
    let delivery = Delivery {
        upstream: upstream.clone(),
        number: 0,
        datasets: datasets.to_vec(),
        datasets_dir: dir.to_owned(),
        scratch_dir: scratch.dir.path().to_owned(),
        spool: scratch.spool.clone(),
        fs: scratch.fs.clone(),
        progress: Arc::clone(&progress),
        backlog,
        // Nothing on the stick is deleted here: the gateway does that when it has seen the receipt.
        retention: Arc::new(Retention::none(&scratch.spool, &scratch.fs)),
        bell: Arc::clone(&bell),
    };
    let urge = bell.urge();
    let thread = std::thread::Builder::new().name("import".to_owned()).spawn(move || delivery.run())?;
    while progress.urged() < urge && !thread.is_finished() {
        std::thread::sleep(TELL_EVERY);
        tell(&progress.report());
    }
    bell.stop();
    thread.join().map_err(|_| anyhow::anyhow!("the delivery failed"))?;
    Ok(progress.report())
}
