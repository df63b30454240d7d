//! Stands in for smart push in a build without the feature `smart-push`: the configuration refuses its URLs.

use std::sync::Arc;

use forebay_storage::odf::{ChainFiles, Multihash};

use super::http::Http;
use super::outcome::Failure;
use crate::config::NodeUrl;

/// Pushes nothing.
#[derive(Clone, Debug)]
pub struct Smart;

/// What became of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Push {
    /// The node's head is the last block.
    Done {
        /// Bytes that were sent.
        bytes: u64,
    },
    /// The blocks do not follow the node's head.
    HeadMoved {
        /// The head there.
        theirs: Option<Multihash>,
    },
}

impl Smart {
    /// Of no node.
    #[must_use]
    pub fn new(_: Arc<Http>, _: NodeUrl) -> Self {
        Self
    }

    /// Nobody is asked.
    ///
    /// # Errors
    /// Always.
    pub async fn head(&self, _: &str) -> Result<Option<Multihash>, Failure> {
        Err(left_out())
    }

    /// Nothing is pushed.
    ///
    /// # Errors
    /// Always.
    pub async fn push(&self, _: &str, _: &ChainFiles, _: Option<&Multihash>, _: &[Multihash]) -> Result<Push, Failure> {
        Err(left_out())
    }
}

fn left_out() -> Failure {
    Failure::local("smart push is left out of this build")
}
