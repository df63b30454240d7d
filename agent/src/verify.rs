//! Verifies what is on disk: every checksum of the spool, every hash and every rule of the datasets' chains.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use forebay_storage::odf::{self, Depth};
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::spool::Spool;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::store::datasets_dir;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Nothing is wrong.
    pub ok: bool,
    /// Chunks of the spool that were read.
    pub spool_chunks: u64,
    /// Messages in them.
    pub spool_messages: u64,
    /// Chunks whose checksum does not hold.
    pub spool_problems: Vec<String>,
    /// Recorded gaps: acknowledged messages that were dropped by choice, or damaged on disk.
    pub spool_gaps: Vec<String>,
    /// The datasets.
    pub datasets: Vec<DatasetReport>,
}

/// What was found in one dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetReport {
    /// Its name.
    pub name: String,
    /// Nothing is wrong.
    pub ok: bool,
    /// Hash of the newest block.
    pub head: Option<String>,
    /// Blocks.
    pub blocks: u64,
    /// Slices.
    pub slices: u64,
    /// Rows, read one by one.
    pub rows: u64,
    /// What is wrong, with the file.
    pub problems: Vec<String>,
    /// What is allowed and may still surprise.
    pub notes: Vec<String>,
}

/// Verifies the spool, and one dataset or all.
pub fn run(config: &Config, spool: &Spool, only: Option<&str>) -> Result<VerifyReport> {
    let root = datasets_dir(&config.data_dir);
    let ids: BTreeMap<String, DatasetId> =
        spool.datasets().context("read the datasets of the spool")?.into_iter().collect();
    let names = names(config, &root, &ids);
    if let Some(only) = only
        && !names.contains(&only)
    {
        bail!("there is no dataset {only}; there are: {}", names.join(", "));
    }
    let released = |name: &str| ids.get(name).and_then(|id| spool.released(*id).ok()).unwrap_or_default();
    // Rows take minutes to read, and meanwhile an upstream may get what then goes: such a dataset is looked at again.
    let checked = |name: &str| {
        let before = released(name);
        let report = kept_dataset(name, &root.join(name), before);
        let after = released(name);
        if report.ok || after == before { report } else { kept_dataset(name, &root.join(name), after) }
    };
    let datasets: Vec<DatasetReport> =
        names.into_iter().filter(|name| only.is_none_or(|only| only == *name)).map(checked).collect();
    let checked = spool.verify().context("verify the spool")?;
    let spool_problems: Vec<String> =
        checked.damaged.iter().map(|(seq, problem)| format!("chunk at {seq}: {problem}")).collect();
    let gaps = spool.gaps().context("read the gaps of the spool")?;
    let spool_gaps = gaps
        .iter()
        .map(|gap| {
            let messages = gap.messages;
            format!("{:?}: at most {messages} messages in seq {} to {}", gap.reason, gap.first, gap.end)
        })
        .collect();
    Ok(VerifyReport {
        ok: spool_problems.is_empty() && datasets.iter().all(|dataset| dataset.ok),
        spool_chunks: checked.chunks,
        spool_messages: checked.messages,
        spool_problems,
        spool_gaps,
        datasets,
    })
}

/// The datasets that are here: those of the configuration, unless they never began, and those of an earlier one or of a
/// manifest that was pulled.
fn names<'a>(config: &'a Config, root: &Path, known: &'a BTreeMap<String, DatasetId>) -> Vec<&'a str> {
    let mut names: Vec<&str> = config.datasets.iter().map(|dataset| dataset.spec.name.as_str()).collect();
    names.retain(|name| known.contains_key(*name) || root.join(name).exists());
    let others = known.keys().map(String::as_str).filter(|name| root.join(name).exists());
    let others: Vec<&str> = others.filter(|name| !names.contains(name)).collect();
    names.extend(others);
    names
}

/// Verifies one dataset's directory, wherever it is.
pub fn dataset(name: &str, dir: &Path) -> DatasetReport {
    kept_dataset(name, dir, Seq(0))
}

/// The same where the slices below `released` may have gone.
fn kept_dataset(name: &str, dir: &Path, released: Seq) -> DatasetReport {
    let report = odf::verify_kept(dir, Depth::Rows, released);
    DatasetReport {
        name: name.to_owned(),
        ok: report.is_ok(),
        head: report.head.as_ref().map(ToString::to_string),
        blocks: report.blocks,
        slices: report.slices,
        rows: report.rows,
        problems: report.problems.iter().map(ToString::to_string).collect(),
        notes: report.notes.iter().map(ToString::to_string).collect(),
    }
}
