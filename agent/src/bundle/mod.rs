//! Datasets carried by hand: a bundle on a stick, and the receipt that comes back on it.
//!
//! ```text
//! gateway                       stick                              somewhere with a link
//! forebay export --to DIR ──▶   DIR/bundle.json                    forebay import DIR --to URL
//!                               DIR/NAME/{blocks,data,refs}   ──▶  (verifies, delivers as the sync job would)
//! forebay export --to DIR ◀──   DIR/receipt.json              ◀──
//!   └─ the upstream's position moves, retention may release
//! ```
//!
//! Each `DIR/NAME` is the dataset's repository with all blocks and those slices that the upstream lacks; with nothing
//! delivered yet it is complete, and `kamu pull file://DIR/NAME` reads it. A receipt is believed as far as its heads are
//! blocks of this gateway's own chains. Without a receipt nothing is ever taken for delivered.

mod export;
mod import;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::status::Shared;
use crate::sync::SEAL_ALL_MAX;

pub use self::export::{Exported, Which, export};
pub use self::import::{Imported, import};

/// Version of the two files.
const VERSION: u32 = 1;

/// `bundle.json`: what is on the stick.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// Of this format.
    pub version: u32,
    /// Whose datasets.
    pub gateway: String,
    /// The upstream, by its URL in the gateway's configuration, that the bundle is for; its position moves by the receipt.
    pub upstream: String,
    /// The datasets.
    pub datasets: Vec<BundledDataset>,
}

/// One dataset on the stick.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundledDataset {
    /// Its name, and the folder's.
    pub name: String,
    /// Its id.
    pub dataset_id: String,
    /// The newest block.
    pub head: String,
    /// The first `seq` whose slice is on the stick.
    pub from: u64,
    /// The first `seq` that the chain does not account for.
    pub end: u64,
}

/// `receipt.json`: what was taken over from the stick.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Of this format.
    pub version: u32,
    /// As of the bundle.
    pub gateway: String,
    /// As of the bundle.
    pub upstream: String,
    /// Where the datasets were delivered to.
    pub delivered_to: String,
    /// Those that are there whole, as of the bundle.
    pub datasets: Vec<BundledDataset>,
}

/// Seals what waits in a running agent, writes a bundle, and releases what its receipt allows. Blocks.
///
/// # Errors
/// As of [`export`], or something cannot be sealed.
pub fn export_from(shared: &Shared, dir: &Path, which: &Which) -> Result<Exported> {
    shared.sealing.seal_all(SEAL_ALL_MAX)?;
    let running = shared.running();
    let exported = export(&running.config, &shared.spool, dir, which);
    // A receipt may have been taken although the bundle could not be written.
    let reread = shared.reread_positions();
    let released = running.retention.run();
    let exported = exported?;
    reread.and(released)?;
    Ok(exported)
}

fn bundle_file(dir: &Path) -> PathBuf {
    dir.join("bundle.json")
}

fn receipt_file(dir: &Path) -> PathBuf {
    dir.join("receipt.json")
}

/// Reads one of the two files; none: it is not there.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("read {}", path.display()))?,
    };
    serde_json::from_str(&text).map(Some).with_context(|| format!("understand {}", path.display()))
}

fn check_version(path: &Path, version: u32) -> Result<()> {
    if version != VERSION {
        bail!("{}: has version {version}; this forebay knows version {VERSION}", path.display());
    }
    Ok(())
}
