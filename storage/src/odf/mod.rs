//! Open Data Fabric: a dataset as a chain of hashed metadata blocks over immutable data slices.
//!
//! ```text
//! <dataset>/blocks/<hash>   one MetadataBlock a file, named by the SHA3-256 of its bytes
//! <dataset>/data/<hash>     Parquet slices, named by the SHA3-256 of their bytes
//! <dataset>/refs/head       the hash of the newest block, no newline
//! <dataset>.key             the ed25519 secret of the dataset's id, mode 0600, never synced
//! ```
//!
//! Any file server or bucket that holds this layout is an upstream (ODF RFC-007), so the directory *is* the product and
//! `refs/head` is the only file in it that ever changes.
//!
//! Reading order: [`multihash`] names things, [`flatbuffer`] lays out bytes, [`schema`], [`push_source`] and [`event`]
//! are what a block can say, [`block`] is the block and its file, [`chain`] (pure) the rules by which one block follows
//! another, [`repository`] the directory, [`ChainFiles`] the same for those who only read, [`mod@verify`] the sceptic who believes none of it.

pub mod arrow_schema;
pub mod block;
pub mod chain;
pub mod event;
mod files;
pub mod flatbuffer;
mod key;
pub mod multihash;
pub mod push_source;
pub mod repository;
pub mod schema;
mod slice_check;
pub mod verify;
mod walk;

pub use block::{BlockError, MetadataBlock};
pub use chain::{ChainState, RuleViolation};
pub use event::{AddData, Checkpoint, DataSlice, DatasetKind, Event, SetDataSchema, SourceState};
pub use files::{ChainFiles, SealedSlice};
pub use multihash::{DatasetDid, Multihash};
pub use repository::Repository;
pub use schema::{DataField, DataSchema, DataType, TimeUnit};
pub use verify::{Depth, Report, verify, verify_kept};
