//! The secret half of a dataset's id.
//!
//! Nothing signs with it today; it is the proof that a dataset is ours (ODF spec, "Dataset identity"), so it is kept, and
//! kept out of the directory that is synced.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;

use super::multihash::{DatasetDid, Hex, multibase16};
use crate::durable_fs::DurableFs;

/// `<dataset directory>.key`, beside it.
pub(super) fn path_for(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".key");
    dir.with_file_name(name)
}

/// The id of the key at `path`. A key that is not there, or that a power cut left half written, is made; only ever called
/// for a dataset that has no blocks yet.
pub(super) fn load_or_create(path: &Path, fs: &DurableFs) -> io::Result<DatasetDid> {
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let secret = match load(path).map_err(at)? {
        Some(secret) => secret,
        None => create(path, fs).map_err(at)?,
    };
    let public = SigningKey::from_bytes(&secret).verifying_key().to_bytes();
    Ok(DatasetDid::from_public_key(public))
}

fn load(path: &Path) -> io::Result<Option<[u8; 32]>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(multibase16(text.trim_end()).and_then(|bytes| bytes.try_into().ok())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Not through a temporary file: the mode must be right from the first byte on, and a torn key is made again.
fn create(path: &Path, fs: &DurableFs) -> io::Result<[u8; 32]> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| io::Error::other(error.to_string()))?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "f{}", Hex(&secret))?;
    file.sync_all()?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    fs.sync_dir(dir.unwrap_or(Path::new(".")))?;
    Ok(secret)
}
