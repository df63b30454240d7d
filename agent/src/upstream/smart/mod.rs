//! Smart push: a chain to a Kamu node over the ODF Smart Transfer Protocol (RFC-008).
//!
//! ```text
//! we                                        node
//! GET …/push, Upgrade: websocket     ──▶    101
//! the head we know, what will come   ──▶    ok, or: my head is another one
//! blocks as tar.gz                   ──▶    ok (a new dataset has its Seed now)
//! which slices they bring            ──▶    for each: have it, or a place to put it
//! PUT each slice, answer `{}`        ──▶
//! complete, commit                   ──▶    `{}`
//! GET …/refs/head                    ──▶    the head that was pushed
//! ```
//!
//! The node appends blocks and moves its head by compare-and-swap on the block that ours follow, so a push that is repeated
//! or was cut off anywhere cannot write anything twice: whoever begins again reads the head and goes on from there. Slices
//! that arrived are skipped. What the node does *not* check is that slices were uploaded at all, so the commit is asked for
//! only after every upload was answered.
//!
//! Reading order: `frames` what is said (pure), `bundle` the blocks (pure), `session` who speaks when, `upload`.

mod bundle;
mod frames;
mod session;
#[cfg(test)]
mod tests;
mod upload;

use std::sync::Arc;

use forebay_storage::odf::{ChainFiles, Multihash};
use reqwest::StatusCode;

use self::bundle::{Bundle, Packer};
use self::frames::End;
use self::session::Session;
use super::http::Http;
use super::node;
use super::outcome::{Failure, FailureKind};
use crate::config::NodeUrl;

/// A node that takes pushes.
#[derive(Clone, Debug)]
pub struct Smart {
    http: Arc<Http>,
    node: NodeUrl,
}

/// What became of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Push {
    /// The node's head is the last block.
    Done {
        /// Bytes that were sent: frames and slices.
        bytes: u64,
        /// Slices that the node had already.
        objects_skipped: u64,
    },
    /// The blocks do not follow the node's head. Nothing was written.
    HeadMoved {
        /// The head there; none: there is no such dataset.
        theirs: Option<Multihash>,
    },
}

impl Smart {
    /// Datasets of the account that `node` names.
    #[must_use]
    pub fn new(http: Arc<Http>, node: NodeUrl) -> Self {
        Self { http, node }
    }

    /// The head of the dataset there; none: there is no such dataset, or the token may not see it.
    ///
    /// # Errors
    /// There is no answer, or another one than a hash.
    pub async fn head(&self, dataset: &str) -> Result<Option<Multihash>, Failure> {
        let url = self.node.fill("{account}/{dataset}/refs/head", dataset);
        let what = format!("GET {url}");
        let answer = node::get(&self.http, url).await?;
        match answer.status {
            StatusCode::OK => answer.body.trim().parse().map(Some).map_err(|error| {
                Failure::new(FailureKind::Unknown, format!("{what} was answered with something else: {error}"))
            }),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(answer.failure(&what)),
        }
    }

    /// Pushes `blocks`, oldest first, which follow `known` (none: from the Seed). At most about 1,000 at a time.
    ///
    /// # Errors
    /// The push did not succeed, or nobody knows whether it did: the head tells.
    pub async fn push(
        &self,
        dataset: &str,
        files: &ChainFiles,
        known: Option<&Multihash>,
        blocks: &[Multihash],
    ) -> Result<Push, Failure> {
        let Some(head) = blocks.last() else { return Ok(Push::Done { bytes: 0, objects_skipped: 0 }) };
        let bundle = pack(files, blocks)?;
        match self.converse(dataset, files, known, &bundle, head).await {
            Ok(done) => Ok(done),
            Err(End::HeadMoved { theirs }) => Ok(Push::HeadMoved { theirs }),
            Err(End::Failed(failure)) => Err(failure),
        }
    }

    async fn converse(
        &self,
        dataset: &str,
        files: &ChainFiles,
        known: Option<&Multihash>,
        bundle: &Bundle,
        head: &Multihash,
    ) -> Result<Push, End> {
        let url = self.node.fill("{account}/{dataset}/push", dataset);
        let mut session = Session::open(&self.http, url).await?;
        session.request(known, bundle).await?;
        session.blocks(bundle).await?;
        let uploads = session.objects(&bundle.objects).await?;
        session.upload(files, &uploads).await?;
        session.complete().await?;
        self.committed(&mut session, dataset, head).await?;
        let objects_skipped = (bundle.objects.len() - uploads.len()) as u64;
        Ok(Push::Done { bytes: session.close().await, objects_skipped })
    }

    /// Waits until the node has committed and its head says so.
    async fn committed(&self, session: &mut Session, dataset: &str, head: &Multihash) -> Result<(), End> {
        session.consent().await?;
        loop {
            let theirs = self.head(dataset).await?;
            if theirs.as_ref() == Some(head) {
                return Ok(());
            }
            session.consent().await.map_err(|end| uncommitted(end, head, theirs))?;
        }
    }
}

/// The node consented, then its head was another one, and then it said no more.
fn uncommitted(end: End, head: &Multihash, theirs: Option<Multihash>) -> End {
    match end {
        End::Failed(failure) if matches!(failure.kind, FailureKind::Unreachable { .. }) => {
            let theirs = theirs.map_or_else(|| "none".to_owned(), |theirs| theirs.to_string());
            let words = format!("the node said that the push is committed, but its head is {theirs} and not {head}");
            Failure::new(FailureKind::Unknown, words).into()
        }
        end => end,
    }
}

fn pack(files: &ChainFiles, blocks: &[Multihash]) -> Result<Bundle, Failure> {
    let mut packer = Packer::new();
    for hash in blocks {
        packer.add(hash, &files.block_bytes(hash).map_err(Failure::local)?)?;
    }
    packer.finish()
}
