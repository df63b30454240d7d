//! Datasets on disk: `DIR/ACCOUNT/NAME/{blocks,data,refs/head}` as anyone lays them out, and `info/stub.json` for what a
//! node keeps in its database. `refs/head` moves last, by a rename: a kill leaves the old chain or the new one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use forebay_storage::odf::{ChainState, DatasetDid, Event, MetadataBlock, Multihash};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ledger::Ledger;
use crate::source::{Manifest, Source};
use crate::{ledger, rows};

/// Prefix of what is not yet anything.
const TEMPORARY: &str = ".tmp-";

/// Every dataset of the node.
#[derive(Debug)]
pub(crate) struct Store {
    files: Arc<Files>,
    datasets: Mutex<BTreeMap<(String, String), Arc<Dataset>>>,
}

/// One dataset.
#[derive(Debug)]
pub(crate) struct Dataset {
    dir: PathBuf,
    files: Arc<Files>,
    pub(crate) is_public: bool,
    /// What `POST /ingest` does; absent when the dataset was pushed.
    pub(crate) source: Option<Source>,
    chain: Mutex<Chain>,
}

/// What changes with a commit. Locked for the whole of it: a node has one writer a dataset too.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) state: ChainState,
    pub(crate) ledger: Ledger,
}

/// A block as it came or was made.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) hash: Multihash,
    pub(crate) bytes: Vec<u8>,
    pub(crate) block: MetadataBlock,
}

/// Why a dataset was not made.
#[derive(Debug)]
pub(crate) enum CreateError {
    /// The name is taken.
    Name,
    /// The id is taken, by another name.
    Ref(DatasetDid),
    Other(anyhow::Error),
}

#[derive(Debug, Serialize, Deserialize)]
struct Info {
    is_public: bool,
    snapshot: Option<Value>,
}

/// Writes files so that they are there as a whole or not at all.
#[derive(Debug)]
struct Files {
    dir: PathBuf,
    next: AtomicU64,
}

impl Store {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let files = Arc::new(Files { dir: dir.to_owned(), next: AtomicU64::new(0) });
        files.sweep()?;
        let mut datasets = BTreeMap::new();
        for (account, account_dir) in children(dir)? {
            for (name, dataset_dir) in children(&account_dir)? {
                let dataset = Dataset::open(&dataset_dir, Arc::clone(&files))
                    .with_context(|| format!("open {}", dataset_dir.display()))?;
                datasets.insert((account.clone(), name), Arc::new(dataset));
            }
        }
        Ok(Self { files, datasets: Mutex::new(datasets) })
    }

    pub(crate) fn find(&self, account: &str, name: &str) -> Option<Arc<Dataset>> {
        self.lock().get(&(account.to_owned(), name.to_owned())).cloned()
    }

    /// Size of everything committed, bytes.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.lock().values().map(|dataset| dataset.lock().state.data_bytes).sum()
    }

    /// A dataset whose chain is `seed`.
    pub(crate) fn create(
        &self,
        (account, name): (&str, &str),
        is_public: bool,
        snapshot: Option<Value>,
        seed: &Block,
    ) -> Result<Arc<Dataset>, CreateError> {
        let state = ChainState::start(seed.hash, &seed.block).map_err(|error| CreateError::Other(error.into()))?;
        let mut datasets = self.lock();
        let key = (account.to_owned(), name.to_owned());
        if datasets.contains_key(&key) {
            return Err(CreateError::Name);
        }
        if datasets.values().any(|dataset| dataset.lock().state.dataset_id == state.dataset_id) {
            return Err(CreateError::Ref(state.dataset_id));
        }
        let dir = self.files.dir.join(account).join(name);
        let dataset = self.lay_out(&dir, &Info { is_public, snapshot }, seed).map_err(CreateError::Other)?;
        let dataset = Arc::new(dataset);
        datasets.insert(key, Arc::clone(&dataset));
        Ok(dataset)
    }

    fn lay_out(&self, dir: &Path, info: &Info, seed: &Block) -> Result<Dataset> {
        let building = self.files.temporary();
        for name in ["blocks", "data", "refs", "info"] {
            fs::create_dir_all(building.join(name))?;
        }
        fs::write(building.join("info/stub.json"), serde_json::to_vec(info)?)?;
        fs::write(building.join("blocks").join(seed.hash.to_string()), &seed.bytes)?;
        fs::write(building.join("refs/head"), seed.hash.to_string())?;
        fs::create_dir_all(dir.parent().context("a dataset's directory has a parent")?)?;
        fs::rename(&building, dir)?;
        Dataset::open(dir, Arc::clone(&self.files))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Arc<Dataset>>> {
        self.datasets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dataset {
    fn open(dir: &Path, files: Arc<Files>) -> Result<Self> {
        let info: Info = serde_json::from_slice(&fs::read(dir.join("info/stub.json"))?)?;
        let manifest = info.snapshot.as_ref().map(Manifest::read).transpose()?;
        let source = manifest.and_then(|manifest| manifest.source);
        let head: Multihash = fs::read_to_string(dir.join("refs/head"))?.parse()?;
        let blocks = read_chain(dir, head)?;
        let state = replay(&blocks)?;
        let mut ledger = Ledger::default();
        if let Some(key) = source.as_ref().and_then(|source| source.primary_key.as_deref()) {
            for path in slices(dir, &blocks) {
                for batch in rows::read_slice(&path, Some(key))? {
                    ledger.insert(&ledger::keys(&batch, key)?);
                }
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            files,
            is_public: info.is_public,
            source,
            chain: Mutex::new(Chain { state, ledger }),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn head(&self) -> Multihash {
        self.lock().state.head
    }

    pub(crate) fn block_path(&self, hash: &Multihash) -> PathBuf {
        self.dir.join("blocks").join(hash.to_string())
    }

    pub(crate) fn data_path(&self, hash: &Multihash) -> PathBuf {
        self.dir.join("data").join(hash.to_string())
    }

    pub(crate) fn write_data(&self, hash: &Multihash, bytes: &[u8]) -> Result<()> {
        self.files.write(&self.data_path(hash), bytes)
    }

    /// Blocks of our own making, after the head.
    pub(crate) fn append(&self, chain: &mut Chain, events: Vec<Event>) -> Result<()> {
        let mut state = chain.state.clone();
        let system_time = now().max(state.system_time);
        let mut blocks = Vec::new();
        for event in events {
            let block = Block::new(state.next_block(event, system_time))?;
            state.accept(block.hash, &block.block)?;
            blocks.push(block);
        }
        self.advance(chain, &blocks, state)
    }

    /// Blocks that were pushed: hashes, rules, and a compare-and-swap of the head on what the first one follows.
    pub(crate) fn accept(&self, blocks: &[Block], is_forced: bool) -> Result<()> {
        let mut chain = self.lock();
        // This push may have made the dataset from its own Seed.
        let blocks = match blocks.split_first() {
            Some((first, rest)) if first.hash == chain.state.head && chain.state.sequence_number == 0 => rest,
            _ => blocks,
        };
        let Some(first) = blocks.first() else {
            return Ok(());
        };
        let mut rest = blocks;
        let mut state = if first.block.prev_block_hash == Some(chain.state.head) {
            chain.state.clone()
        } else if !is_forced {
            bail!("the head is {} and the first block follows another", chain.state.head);
        } else if let Some(prev) = first.block.prev_block_hash {
            replay(&read_chain(&self.dir, prev)?)?
        } else {
            rest = blocks.get(1..).unwrap_or_default();
            ChainState::start(first.hash, &first.block)?
        };
        for block in blocks {
            ensure!(Multihash::of(&block.bytes) == block.hash, "the bytes of {} have another hash", block.hash);
        }
        for block in rest {
            state.accept(block.hash, &block.block)?;
        }
        self.advance(&mut chain, blocks, state)
    }

    fn advance(&self, chain: &mut Chain, blocks: &[Block], state: ChainState) -> Result<()> {
        for block in blocks {
            self.files.write(&self.block_path(&block.hash), &block.bytes)?;
        }
        self.files.write(&self.dir.join("refs/head"), state.head.to_string().as_bytes())?;
        chain.state = state;
        Ok(())
    }

    /// Rows in commit order, as NDJSON: all columns, or `gateway` and `seq`.
    pub(crate) fn rows(&self, is_all: bool) -> Result<Vec<u8>> {
        let blocks = read_chain(&self.dir, self.head())?;
        let columns = ["gateway".to_owned(), "seq".to_owned()];
        let mut lines = Vec::new();
        for path in slices(&self.dir, &blocks) {
            for batch in rows::read_slice(&path, (!is_all).then_some(&columns[..]))? {
                rows::write_lines(&batch, &mut lines)?;
            }
        }
        Ok(lines)
    }
}

impl Block {
    pub(crate) fn new(block: MetadataBlock) -> Result<Self> {
        let bytes = block.encode()?;
        Ok(Self { hash: Multihash::of(&bytes), bytes, block })
    }
}

impl Files {
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = self.temporary();
        fs::write(&temporary, bytes).with_context(|| format!("write {}", temporary.display()))?;
        fs::rename(&temporary, path).with_context(|| format!("write {}", path.display()))
    }

    fn temporary(&self) -> PathBuf {
        self.dir.join(format!("{TEMPORARY}{}", self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// What a kill left behind.
    fn sweep(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let is_temporary = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY));
            if is_temporary && path.is_dir() {
                fs::remove_dir_all(&path)?;
            } else if is_temporary {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// The blocks up to `head`, oldest first.
fn read_chain(dir: &Path, head: Multihash) -> Result<Vec<(Multihash, MetadataBlock)>> {
    let mut blocks = Vec::new();
    let mut next = Some(head);
    while let Some(hash) = next {
        let path = dir.join("blocks").join(hash.to_string());
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let block = MetadataBlock::decode(&bytes)?;
        next = block.prev_block_hash;
        blocks.push((hash, block));
    }
    blocks.reverse();
    Ok(blocks)
}

fn replay(blocks: &[(Multihash, MetadataBlock)]) -> Result<ChainState> {
    let ((hash, seed), rest) = blocks.split_first().context("a chain has a first block")?;
    let mut state = ChainState::start(*hash, seed)?;
    for (hash, block) in rest {
        state.accept(*hash, block)?;
    }
    Ok(state)
}

fn slices(dir: &Path, blocks: &[(Multihash, MetadataBlock)]) -> Vec<PathBuf> {
    let slices = blocks.iter().filter_map(|(_, block)| block.event.new_data());
    slices.map(|slice| dir.join("data").join(slice.physical_hash.to_string())).collect()
}

/// Directories in `dir`, by name.
fn children(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut children = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            children.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
        }
    }
    Ok(children)
}

#[expect(clippy::disallowed_methods, reason = "a node stamps what it commits")]
pub(crate) fn now() -> chrono::DateTime<chrono::Utc> {
    chrono::Utc::now()
}
