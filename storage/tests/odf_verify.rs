//! `verify` finds whatever is wrong with a dataset and names the file.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod odf_support;

use std::fs;
use std::path::{Path, PathBuf};

use forebay_storage::durable_fs::DurableFs;
use forebay_storage::odf::{Depth, Report, Repository, verify};
use odf_support::{copy_of, data, files_of};

const DATASETS: [&str; 2] = ["odf-golden/dataset", "odf-edge-sample"];

#[test]
fn a_dataset_written_by_kamu_verifies_down_to_its_rows() {
    let report = verify(&data("odf-golden/dataset"), Depth::Rows);

    assert_eq!(report.problems, []);
    assert_eq!(report.notes, []);
    assert_eq!((report.blocks, report.slices, report.rows), (7, 3, 15));
    assert_eq!(
        report.dataset_id.unwrap().to_string(),
        "did:odf:fed01aadf75c7f94f0d7b5f6328cab6bf82bdf481ab67521a806bffbb87859f97ef3b"
    );
}

#[test]
fn a_dataset_written_by_another_encoder_verifies_down_to_its_rows() {
    let report = verify(&data("odf-edge-sample"), Depth::Rows);

    assert_eq!(report.problems, []);
    assert_eq!((report.blocks, report.slices), (6, 2));
    assert!(report.rows > 0);
}

#[test]
fn a_dataset_written_by_kamu_opens() {
    let (_temp, dir) = copy_of("odf-golden/dataset");

    let repository = Repository::open(&dir, DurableFs::new()).unwrap();

    let state = repository.state();
    assert_eq!(state.next_offset.0, 15);
    assert_eq!(state.sequence_number, 6);
    assert_eq!(state.watermark.unwrap().to_rfc3339(), "2026-09-01T12:00:24.123+00:00");
    assert_eq!(state.schema.as_ref().unwrap().fields.len(), 8);
    assert_eq!(repository.blocks(None).unwrap().count(), 7);
}

#[test]
fn every_flipped_bit_of_every_file_is_reported_with_the_name_of_the_file() {
    let mut flips = 0;
    for dataset in DATASETS {
        let (_temp, dir) = copy_of(dataset);
        for file in files_of(&dir) {
            let bytes = fs::read(dir.join(&file)).unwrap();
            // A spread of positions; the bit varies with them.
            let step = (bytes.len() / 24).max(1);
            for at in (0..bytes.len()).step_by(step) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << (at / step % 8);
                fs::write(dir.join(&file), &damaged).unwrap();

                assert_names(&verify(&dir, Depth::Files), &file);
                let _ = Repository::open(&dir, DurableFs::new());
                flips += 1;
            }
            fs::write(dir.join(&file), &bytes).unwrap();
        }
    }
    assert!(flips > 400, "{flips}");
}

#[test]
fn every_truncated_file_is_reported_with_its_name() {
    for dataset in DATASETS {
        let (_temp, dir) = copy_of(dataset);
        for file in files_of(&dir) {
            let bytes = fs::read(dir.join(&file)).unwrap();
            for len in [0, 1, bytes.len() / 2, bytes.len() - 1] {
                fs::write(dir.join(&file), &bytes[..len]).unwrap();

                assert_names(&verify(&dir, Depth::Rows), &file);
            }
            fs::write(dir.join(&file), &bytes).unwrap();
        }
    }
}

#[test]
fn every_missing_file_is_reported_with_its_name() {
    for dataset in DATASETS {
        let (_temp, dir) = copy_of(dataset);
        for file in files_of(&dir) {
            let bytes = fs::read(dir.join(&file)).unwrap();
            fs::remove_file(dir.join(&file)).unwrap();

            assert_names(&verify(&dir, Depth::Rows), &file);
            fs::write(dir.join(&file), &bytes).unwrap();
        }
    }
}

#[test]
fn two_files_that_changed_places_are_both_reported() {
    for dataset in DATASETS {
        let (_temp, dir) = copy_of(dataset);
        let files = files_of(&dir);
        for pair in files.windows(2).filter(|pair| pair[0].parent() == pair[1].parent()) {
            swap(&dir.join(&pair[0]), &dir.join(&pair[1]));

            let report = verify(&dir, Depth::Rows);

            assert_names(&report, &pair[0]);
            assert_names(&report, &pair[1]);
            swap(&dir.join(&pair[0]), &dir.join(&pair[1]));
        }
        assert!(verify(&dir, Depth::Rows).is_ok());
    }
}

#[test]
fn a_head_with_a_newline_is_reported_because_kamu_refuses_it() {
    let (_temp, dir) = copy_of("odf-edge-sample");
    let head = fs::read_to_string(dir.join("refs/head")).unwrap();
    fs::write(dir.join("refs/head"), format!("{head}\n")).unwrap();

    let report = verify(&dir, Depth::Chain);

    assert_names(&report, Path::new("refs/head"));
    assert!(report.problems[0].what.contains("newline"), "{:?}", report.problems);
}

#[test]
fn files_that_no_block_refers_to_are_noted_and_no_problem() {
    let (_temp, dir) = copy_of("odf-edge-sample");
    fs::write(dir.join("data/left-over"), "x").unwrap();

    let report = verify(&dir, Depth::Files);

    assert!(report.is_ok());
    assert_eq!(report.notes[0].file, Path::new("data/left-over"));
}

fn assert_names(report: &Report, file: &Path) {
    let named: Vec<&PathBuf> = report.problems.iter().map(|problem| &problem.file).collect();
    assert!(named.contains(&&file.to_owned()), "{} is not in {named:?}", file.display());
}

fn swap(one: &Path, other: &Path) {
    let (a, b) = (fs::read(one).unwrap(), fs::read(other).unwrap());
    fs::write(one, b).unwrap();
    fs::write(other, a).unwrap();
}
