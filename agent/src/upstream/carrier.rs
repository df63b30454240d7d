//! How a kind of upstream is reached: what `deliver` needs of it, and nothing of when.

use std::path::Path;
use std::sync::Arc;

use forebay_storage::odf::{ChainFiles, Multihash, SealedSlice};
use forebay_storage::position::DatasetId;
use tracing::warn;

use super::deliver::Delivery;
use super::http::Http;
use super::ingest::{PoisonRow, Poster};
use super::node;
use super::outcome::Failure;
use super::repository::{Mirror, Pushed, RemoteHead};
use super::smart::{Push, Smart};
use crate::clock;
use crate::config::{NodeUrl, UpstreamKind};

/// A kind of upstream.
#[derive(Debug)]
pub(super) enum Carrier {
    /// The chain itself is brought there.
    Chain(ChainCarrier),
    /// Rows are posted.
    Ingest(IngestCarrier),
}

/// Where chains are brought to.
#[derive(Debug)]
pub(super) struct ChainCarrier {
    url: String,
    kind: ChainKind,
}

#[derive(Debug)]
enum ChainKind {
    /// A directory or a bucket.
    Mirror(Mirror),
    /// A node, by smart push.
    Smart(Smart, Arc<Http>, NodeUrl),
}

/// A node that takes rows.
#[derive(Debug)]
pub(super) struct IngestCarrier {
    poster: Poster,
    http: Arc<Http>,
    node: NodeUrl,
}

/// What became of a slice's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Posted {
    /// Rows that the node took.
    pub(super) rows: u64,
    /// Bytes that were sent.
    pub(super) bytes: u64,
    /// Rows that it refused, each by itself: they are dead letters.
    pub(super) refused: u64,
}

impl Carrier {
    /// For the upstream of a delivery.
    pub(super) fn new(delivery: &Delivery) -> Result<Self, Failure> {
        let upstream = &delivery.upstream;
        let chain = |kind| Self::Chain(ChainCarrier { url: upstream.url.clone(), kind });
        if let Some(mirror) = Mirror::new(upstream, &delivery.fs, &delivery.bell)? {
            return Ok(chain(ChainKind::Mirror(mirror)));
        }
        let http = Arc::new(Http::new(upstream)?);
        Ok(match &upstream.kind {
            UpstreamKind::Ingest(target) => Self::Ingest(IngestCarrier {
                poster: Poster::new(Arc::clone(&http), target.clone(), delivery.scratch_dir.clone()),
                http,
                node: target.node.clone(),
            }),
            UpstreamKind::Smart(node) => {
                chain(ChainKind::Smart(Smart::new(Arc::clone(&http), node.clone()), http, node.clone()))
            }
            UpstreamKind::Directory(_) | UpstreamKind::Bucket(_) => {
                return Err(Failure::local("a repository is mirrored"));
            }
        })
    }

    /// Makes sure that the upstream is there. `delivered`: the datasets of which something was delivered there before.
    pub(super) async fn reach(&self, delivered: &[&str]) -> Result<(), Failure> {
        match self {
            Self::Chain(ChainCarrier { kind: ChainKind::Mirror(mirror), .. }) => mirror.reach(delivered).await,
            Self::Chain(ChainCarrier { kind: ChainKind::Smart(_, http, node), .. })
            | Self::Ingest(IngestCarrier { http, node, .. }) => {
                let info = node::info(http, node).await?;
                node::check_account(node, info)
            }
        }
    }

    /// Reads the token again. Whether it is another one.
    pub(super) fn reread_token(&self) -> bool {
        match self {
            // The keys of a bucket are read when it is opened again.
            Self::Chain(ChainCarrier { kind: ChainKind::Mirror(_), .. }) => false,
            Self::Chain(ChainCarrier { kind: ChainKind::Smart(_, http, _), .. })
            | Self::Ingest(IngestCarrier { http, .. }) => http.reread_token(),
        }
    }
}

impl ChainCarrier {
    /// What people call the place of a dataset there.
    pub(super) fn place(&self, dataset: &str) -> String {
        format!("{}/{dataset}", self.url.trim_end_matches('/'))
    }

    /// The head of a dataset there; none: there is no such dataset yet. `delivered` as of [`Carrier::reach`].
    pub(super) async fn head(
        &self,
        dataset: &str,
        files: &ChainFiles,
        delivered: &[&str],
    ) -> Result<Option<RemoteHead>, Failure> {
        match &self.kind {
            ChainKind::Mirror(mirror) => mirror.head(dataset, files, delivered).await,
            ChainKind::Smart(smart, http, node) => match smart.head(dataset).await {
                Ok(hash) => Ok(hash.map(|hash| RemoteHead { hash, version: None })),
                Err(failure) => Err(node::explain(http, node, dataset, failure).await),
            },
        }
    }

    /// Brings blocks, oldest first, which follow `known`. `delivered` as of [`Carrier::reach`].
    pub(super) async fn push(
        &self,
        dataset: &str,
        files: &ChainFiles,
        known: Option<&RemoteHead>,
        blocks: &[Multihash],
        delivered: &[&str],
    ) -> Result<Pushed, Failure> {
        let (smart, http, node) = match &self.kind {
            ChainKind::Mirror(mirror) => return mirror.push(dataset, files, known, blocks, delivered).await,
            ChainKind::Smart(smart, http, node) => (smart, http, node),
        };
        match smart.push(dataset, files, known.map(|known| &known.hash), blocks).await {
            Ok(Push::Done { bytes, .. }) => Ok(Pushed::Done { bytes }),
            Ok(Push::HeadMoved { .. }) => Ok(Pushed::HeadMoved),
            Err(failure) => Err(node::explain(http, node, dataset, failure).await),
        }
    }
}

impl IngestCarrier {
    /// Posts the rows of a slice. A row that the node refuses by itself becomes a dead letter before this returns.
    pub(super) async fn deliver(
        &mut self,
        dataset: &str,
        id: DatasetId,
        slice: &SealedSlice,
        path: &Path,
        delivery: &Delivery,
    ) -> Result<Posted, Failure> {
        let delivered = match self.poster.deliver(dataset, slice, path).await {
            Ok(delivered) => delivered,
            Err(failure) => return Err(node::explain(&self.http, &self.node, dataset, failure).await),
        };
        let refused = delivered.poison.len() as u64;
        if refused > 0 {
            let now_us = clock::micros(clock::wall());
            let bury = |row: &PoisonRow| row.dead_letter(id, &delivery.upstream.url, now_us);
            let letters: Vec<_> = delivered.poison.iter().map(bury).collect();
            delivery
                .spool
                .add_dead_letters(&letters)
                .map_err(|error| Failure::local(format!("keep refused rows as dead letters: {error}")))?;
            warn!(upstream = delivery.upstream.url, dataset, rows = refused, "Refused rows became dead letters.");
        }
        Ok(Posted { rows: delivered.rows, bytes: delivered.bytes, refused })
    }
}
