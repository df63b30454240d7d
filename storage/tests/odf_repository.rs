//! A dataset's directory: creating, appending, opening, sweeping; and what a power cut leaves of it.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod odf_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use chrono::{DateTime, Utc};
use forebay_storage::durable_fs::{DurableFs, FsOp};
use forebay_storage::odf::event::SetInfo;
use forebay_storage::odf::multihash::HashKind;
use forebay_storage::odf::repository::{AppendError, CreateError, OpenError};
use forebay_storage::odf::{
    AddData, DataField, DataSchema, DataSlice, DataType, Depth, Event, Multihash, Repository, SetDataSchema, verify,
};
use forebay_storage::position::Seq;
use odf_support::copy_of;

#[test]
fn a_new_dataset_is_a_complete_chain_of_one_seed() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("datasets/temperature");

    let created = Repository::create(&dir, DurableFs::new(), time(1)).unwrap();

    let opened = Repository::open(&dir, DurableFs::new()).unwrap();
    assert_eq!(opened.state(), created.state());
    assert_eq!(fs::read_to_string(dir.join("refs/head")).unwrap(), opened.state().head.to_string());
    assert!(verify(&dir, Depth::Rows).is_ok());
}

#[test]
fn the_secret_key_is_beside_the_dataset_and_readable_by_its_owner_only() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("temperature");

    Repository::create(&dir, DurableFs::new(), time(1)).unwrap();

    let key = temp.path().join("temperature.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let names: Vec<_> = dir.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "blocks, data, refs and nothing secret: {names:?}");
}

#[test]
fn a_dataset_is_not_made_where_there_is_one() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("temperature");
    Repository::create(&dir, DurableFs::new(), time(1)).unwrap();

    let again = Repository::create(&dir, DurableFs::new(), time(2));

    assert!(matches!(again, Err(CreateError::Exists(_))));
}

#[test]
fn a_directory_without_a_head_is_no_dataset() {
    let temp = tempfile::tempdir().unwrap();

    let opened = Repository::open(temp.path(), DurableFs::new());

    assert!(matches!(opened, Err(OpenError::NoHead(_))));
}

#[test]
fn a_dataset_that_lost_its_head_is_not_mistaken_for_an_unfinished_one() {
    let (_temp, dir) = copy_of("odf-edge-sample");
    fs::remove_file(dir.join("refs/head")).unwrap();

    let result = Repository::create(&dir, DurableFs::new(), time(1));

    assert!(matches!(result, Err(CreateError::HeadLost(_))));
}

#[test]
fn an_unfinished_creation_is_made_again_with_the_same_id() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("temperature");
    let first = Repository::create(&dir, DurableFs::new(), time(1)).unwrap();
    fs::remove_file(dir.join("refs/head")).unwrap();

    let mut second = Repository::create(&dir, DurableFs::new(), time(2)).unwrap();

    assert_eq!(second.state().dataset_id, first.state().dataset_id);
    assert_eq!(second.sweep_orphans(Seq(0)).unwrap().removed.len(), 1, "the first Seed");
    assert!(verify(&dir, Depth::Chain).notes.is_empty());
}

#[test]
fn appended_events_are_in_the_chain_when_it_is_opened_again() {
    let (_temp, mut repository) = dataset(DurableFs::new());

    let head = repository.append(&[schema(), data(&repository, 0, 4)], time(3)).unwrap();

    let opened = Repository::open(repository.dir(), DurableFs::new()).unwrap();
    assert_eq!(opened.state(), repository.state());
    assert_eq!(opened.state().head, head);
    assert_eq!(opened.state().next_offset.0, 5);
    let names = |after| -> Vec<_> {
        let blocks = opened.blocks(after).unwrap();
        blocks.map(|item| item.unwrap().1.event.name()).collect()
    };
    assert_eq!(names(None), ["Seed", "SetDataSchema", "AddData"]);
    let seed = opened.blocks(None).unwrap().next().unwrap().unwrap().0;
    assert_eq!(names(Some(&seed)), ["SetDataSchema", "AddData"]);
}

#[test]
fn an_event_that_breaks_a_rule_leaves_the_dataset_as_it_was() {
    let (_temp, mut repository) = dataset(DurableFs::new());
    let before = repository.state().clone();
    let files = odf_support::files_of(repository.dir());

    let result = repository.append(&[schema(), schema()], time(3));

    assert!(matches!(result, Err(AppendError::Rule(_))));
    assert_eq!(repository.state(), &before);
    assert_eq!(odf_support::files_of(repository.dir()), files);
}

#[test]
fn a_slice_that_is_not_there_or_not_whole_is_not_appended() {
    let (_temp, mut repository) = dataset(DurableFs::new());
    repository.append(&[schema()], time(3)).unwrap();
    let event = data(&repository, 0, 4);
    let path = odf_support::files_of(repository.dir()).into_iter().find(|path| path.starts_with("data"));
    let path = repository.dir().join(path.unwrap());

    fs::write(&path, "shorter").unwrap();
    let short = repository.append(std::slice::from_ref(&event), time(4)).unwrap_err();
    fs::remove_file(&path).unwrap();
    let missing = repository.append(&[event], time(4)).unwrap_err();

    assert!(short.to_string().contains("the slice has 7 bytes"), "{short}");
    assert!(missing.to_string().contains("the slice is not there"), "{missing}");
}

#[test]
fn after_a_failed_write_nothing_is_appended_until_the_dataset_is_opened_again() {
    let (_temp, mut repository) = dataset(DurableFs::new());
    let blocks = repository.dir().join("blocks");
    let aside = repository.dir().join("aside");
    fs::rename(&blocks, &aside).unwrap();

    let failed = repository.append(&[info("a")], time(3));
    fs::rename(&aside, &blocks).unwrap();
    let refused = repository.append(&[info("a")], time(3));

    assert!(matches!(failed, Err(AppendError::Io(_))));
    assert!(matches!(refused, Err(AppendError::WriteFailed(_))));
    let mut opened = Repository::open(repository.dir(), DurableFs::new()).unwrap();
    opened.append(&[info("a")], time(3)).unwrap();
}

#[test]
fn sweeping_removes_what_nothing_refers_to_and_leaves_foreign_files() {
    let (_temp, mut repository) = dataset(DurableFs::new());
    repository.append(&[schema(), data(&repository, 0, 4)], time(3)).unwrap();
    let dir = repository.dir().to_owned();
    let kept = odf_support::files_of(&dir);
    let orphan = Multihash::of(b"orphan").to_string();
    for name in [format!("data/{orphan}"), format!("blocks/{orphan}"), "refs/.forebay-tmp-7".to_owned()] {
        fs::write(dir.join(name), "orphan").unwrap();
    }
    fs::write(dir.join("data/README"), "mine").unwrap();

    let sweep = repository.sweep_orphans(Seq(0)).unwrap();

    assert_eq!((sweep.removed.len(), sweep.bytes), (3, 18));
    assert_eq!(sweep.foreign, [dir.join("data/README")]);
    fs::remove_file(dir.join("data/README")).unwrap();
    assert_eq!(odf_support::files_of(&dir), kept);
}

#[test]
fn i4_the_head_is_moved_only_after_its_blocks_and_their_directory_are_synced() {
    let ops = Arc::new(Mutex::new(Vec::new()));
    let (_temp, mut repository) = dataset(recording(&ops));
    ops.lock().unwrap().clear();

    repository.append(&[info("a"), info("b")], time(3)).unwrap();

    let ops = ops.lock().unwrap();
    let blocks = repository.dir().join("blocks");
    let renamed_into = |dir: &Path| -> Vec<usize> {
        let is_in = |op: &FsOp| matches!(op, FsOp::Rename(_, to) if to.parent() == Some(dir));
        (0..ops.len()).filter(|at| is_in(&ops[*at])).collect()
    };
    let block_renames = renamed_into(&blocks);
    let head_renames = renamed_into(&repository.dir().join("refs"));
    assert_eq!((block_renames.len(), head_renames.len()), (2, 1));
    for at in block_renames {
        let FsOp::Rename(from, _) = &ops[at] else { unreachable!() };
        assert!(ops[..at].contains(&FsOp::SyncFile(from.clone())), "synced before it has its name");
        let synced = ops[at..head_renames[0]].contains(&FsOp::SyncDir(blocks.clone()));
        assert!(synced, "the name is synced before the head moves");
    }
}

#[test]
fn i4_a_cut_before_any_operation_leaves_the_old_chain_or_the_new_one() {
    let before = Images::default();
    let (temp, mut repository) = dataset(before.recorder());
    repository.append(&[schema()], time(3)).unwrap();
    let old = repository.state().head;
    before.start(temp.path());

    let event = data(&repository, 0, 4);
    repository.append(&[event, info("b")], time(4)).unwrap();

    let new = repository.state().head;
    let mut heads = Vec::new();
    for image in before.images() {
        let dir = image.path().join("temperature");
        let mut opened = Repository::open(&dir, DurableFs::new()).unwrap();
        opened.sweep_orphans(Seq(0)).unwrap();
        let report = verify(&dir, Depth::Files);
        assert_eq!((report.problems, report.notes), (vec![], vec![]));
        heads.push(opened.state().head);
    }
    assert!(heads.len() >= 10, "{} images", heads.len());
    assert_eq!((heads[0], heads[heads.len() - 1]), (old, new));
    assert!(heads.is_sorted_by_key(|head| *head == new), "old, then new");
    assert!(heads.iter().all(|head| [old, new].contains(head)));
}

#[test]
fn a_cut_before_any_operation_of_a_creation_leaves_something_that_can_be_made_or_opened() {
    let temp = tempfile::tempdir().unwrap();
    let images = Images::default();
    images.start(temp.path());

    Repository::create(&temp.path().join("temperature"), images.recorder(), time(1)).unwrap();

    for image in images.images() {
        let dir = image.path().join("temperature");
        match Repository::open(&dir, DurableFs::new()) {
            Ok(_) => {}
            Err(OpenError::NoHead(_)) => {
                Repository::create(&dir, DurableFs::new(), time(2)).unwrap().sweep_orphans(Seq(0)).unwrap();
            }
            Err(error) => panic!("{error}"),
        }
        assert!(verify(&dir, Depth::Rows).is_ok());
    }
}

/// Copies of a directory, one after each operation: what a process that was killed there leaves.
#[derive(Clone, Default)]
struct Images {
    of: Arc<Mutex<Option<PathBuf>>>,
    copies: Arc<Mutex<Vec<tempfile::TempDir>>>,
}

impl Images {
    fn recorder(&self) -> DurableFs {
        let images = self.clone();
        DurableFs::recording(Arc::new(move |_| images.take()))
    }

    fn start(&self, dir: &Path) {
        *self.of.lock().unwrap() = Some(dir.to_owned());
        self.take();
    }

    fn take(&self) {
        let of = self.of.lock().unwrap();
        let Some(dir) = &*of else { return };
        let copy = tempfile::tempdir().unwrap();
        odf_support::copy_tree(dir, copy.path());
        self.copies.lock().unwrap().push(copy);
    }

    fn images(&self) -> Vec<tempfile::TempDir> {
        std::mem::take(&mut self.copies.lock().unwrap())
    }
}

fn recording(ops: &Arc<Mutex<Vec<FsOp>>>) -> DurableFs {
    let ops = ops.clone();
    DurableFs::recording(Arc::new(move |op| ops.lock().unwrap().push(op)))
}

fn dataset(fs: DurableFs) -> (tempfile::TempDir, Repository) {
    let temp = tempfile::tempdir().unwrap();
    let repository = Repository::create(&temp.path().join("temperature"), fs, time(1)).unwrap();
    (temp, repository)
}

fn schema() -> Event {
    let field = DataField { name: "offset".to_owned(), data_type: DataType::Int64, extra: None };
    let schema = DataSchema { fields: vec![field], extra: None };
    Event::SetDataSchema(SetDataSchema { raw_arrow_schema: None, schema: Some(schema) })
}

/// An `AddData` whose slice is on disk. Not Parquet: these tests do not look into it.
fn data(repository: &Repository, start: u64, end: u64) -> Event {
    let bytes = format!("rows {start} to {end}").into_bytes();
    let physical_hash = Multihash::of(&bytes);
    fs::write(repository.data_path(&physical_hash), &bytes).unwrap();
    let logical_hash = Multihash::new(HashKind::Arrow0Sha3_256, [0; 32]);
    let size = bytes.len() as u64;
    Event::AddData(Box::new(AddData {
        prev_offset: start.checked_sub(1),
        new_data: Some(DataSlice { logical_hash, physical_hash, start, end, size }),
        ..AddData::default()
    }))
}

fn info(description: &str) -> Event {
    Event::SetInfo(SetInfo { description: Some(description.to_owned()), keywords: None })
}

fn time(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap()
}
