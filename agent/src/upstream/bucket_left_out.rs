//! Stands in for buckets in a build without the feature `s3`: the configuration refuses their URLs, so there never is one.

use std::path::Path;

use forebay_storage::odf::Multihash;

use super::outcome::Failure;
use super::repository::{RemoteFile, RemoteHead};
use crate::config::{Bucket, Upstream};

/// None is ever made.
#[derive(Debug)]
pub enum BucketStore {}

impl BucketStore {
    pub(super) fn new(_: &Bucket, upstream: &Upstream) -> Result<Self, Failure> {
        Err(Failure::local(format!("{}: buckets are left out of this build", upstream.url)))
    }

    pub(super) async fn reach(&self) -> Result<(), Failure> {
        match *self {}
    }

    pub(super) async fn head(&self, _: &str) -> Result<Option<RemoteHead>, Failure> {
        match *self {}
    }

    pub(super) async fn has(&self, _: &str, _: RemoteFile<'_>, _: u64) -> Result<bool, Failure> {
        match *self {}
    }

    pub(super) async fn put(&self, _: &str, _: RemoteFile<'_>, _: &Path, _: u64) -> Result<u64, Failure> {
        match *self {}
    }

    pub(super) async fn set_head(&self, _: &str, _: Option<&RemoteHead>, _: &Multihash) -> Result<bool, Failure> {
        match *self {}
    }
}
