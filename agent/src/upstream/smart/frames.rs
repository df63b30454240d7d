//! The frames of a push, and what the node's answers mean. (pure)
//!
//! Every frame is JSON in one text message, without an envelope: what it is follows from whose turn it is. The node answers
//! with `{"Ok":{..}}` or `{"Err":{"Variant":{..}}}`; a fatal error comes as the reason of a close frame 1011 in the same
//! form. Field names and their order are the node's own.
//!
//! In `InvalidHead` the names are swapped: `actual_head` is what we said, `expected_head` what the node has.

use std::collections::BTreeMap;
use std::fmt;

use forebay_storage::odf::Multihash;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::upstream::outcome::{Failure, FailureKind, words_of};

/// Largest frame, bytes of JSON. A node takes messages of 64 MiB and frames of 16 MiB; a byte of an archive is about 3.6
/// bytes of JSON. Beyond: [`FailureKind::Local`].
pub(super) const FRAME_BYTES_MAX: usize = 16 << 20;

/// Close code of a node that cannot go on; its reason is an answer.
const CLOSE_ERROR: u16 = 1011;
/// Close code for a message that is larger than the node or a proxy takes.
const CLOSE_TOO_BIG: u16 = 1009;

/// What refused blocks mean, as far as a node tells it.
const ENCODER: &str = "should it stay so: a node on kamu 0.264 or older refuses blocks that it did not write: update the node, or use push \
                       ingest (`url` with https:// in place of odf+https://)";

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Request,
    Blocks,
    Objects,
    Upload,
    Commit,
}

/// 1. What is about to come, and on top of what.
#[derive(Debug, Serialize)]
pub(super) struct Request<'a> {
    current_head: Option<&'a Multihash>,
    transfer_plan: Plan,
    force_update_if_diverged: bool,
    visibility_for_created_dataset: &'static str,
}

/// How much is about to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Plan {
    /// A node whose count differs from that of the frame that follows drops the connection.
    pub(super) num_blocks: u32,
    pub(super) num_objects: u32,
    pub(super) num_records: u64,
    pub(super) bytes_in_raw_blocks: u64,
    pub(super) bytes_in_raw_objects: u64,
}

/// 2. The blocks.
#[derive(Debug, Serialize)]
pub(super) struct NewBlocks<'a> {
    new_blocks: Archive<'a>,
}

#[derive(Debug, Serialize)]
struct Archive<'a> {
    num_blocks: u32,
    media_type: &'static str,
    encoding: &'static str,
    payload: &'a [u8],
}

/// 3. The files that the blocks speak of.
#[derive(Debug, Serialize)]
pub(super) struct ObjectFiles<'a> {
    object_files: &'a [ObjectFile],
    is_truncated: bool,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ObjectFile {
    object_type: ObjectType,
    pub(super) physical_hash: Multihash,
    pub(super) size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum ObjectType {
    DataSlice,
    Checkpoint,
}

/// 4. Where the uploads are: asked for with `{}` every few seconds; the end is said unasked.
#[derive(Debug, Serialize)]
pub(super) struct Progress {
    details: Details,
}

#[derive(Debug, Serialize)]
enum Details {
    Running { uploaded_objects_count: u32 },
    Complete,
}

/// 5. Now commit; the node's `{}` is its consent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Empty {}

/// Where the node wants each object.
#[derive(Deserialize)]
pub(super) struct Strategies {
    object_transfer_strategies: Vec<Strategy>,
}

#[derive(Deserialize)]
struct Strategy {
    object_file: ObjectFile,
    push_strategy: PushStrategy,
    upload_to: Option<Place>,
}

#[derive(Clone, Copy, Deserialize)]
enum PushStrategy {
    SkipUpload,
    HttpUpload,
}

/// Where an object is to be put. It may hold credentials: it is never printed.
#[derive(Deserialize)]
pub(super) struct Place {
    pub(super) url: String,
    pub(super) headers: Vec<Header>,
}

/// One header of the upload.
#[derive(Deserialize)]
pub(super) struct Header {
    pub(super) name: String,
    pub(super) value: String,
}

/// Why a push ended before its commit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    HeadMoved { theirs: Option<Multihash> },
    Failed(Failure),
}

#[derive(Deserialize)]
enum Refusal {
    InvalidHead { expected_head: Option<Multihash> },
    Internal { phase: Value, error_message: String },
    SeedBlockOverwriteRestricted {},
    RefCollision { dataset_id: String },
    NameCollision {},
}

impl<'a> Request<'a> {
    /// Never by force: somebody else's rows would be lost. A dataset that the push creates is private until its owner
    /// says otherwise.
    pub(super) fn new(current_head: Option<&'a Multihash>, transfer_plan: Plan) -> Self {
        let visibility_for_created_dataset = "Private";
        Self { current_head, transfer_plan, force_update_if_diverged: false, visibility_for_created_dataset }
    }
}

impl<'a> NewBlocks<'a> {
    pub(super) fn new(num_blocks: u32, payload: &'a [u8]) -> Self {
        Self { new_blocks: Archive { num_blocks, media_type: "application/tar+gzip", encoding: "raw", payload } }
    }
}

impl<'a> ObjectFiles<'a> {
    /// All at once.
    pub(super) fn new(object_files: &'a [ObjectFile]) -> Self {
        Self { object_files, is_truncated: false }
    }
}

impl ObjectFile {
    pub(super) fn slice(physical_hash: Multihash, size: u64) -> Self {
        Self { object_type: ObjectType::DataSlice, physical_hash, size }
    }
}

impl Progress {
    pub(super) fn running(uploaded_objects_count: u32) -> Self {
        Self { details: Details::Running { uploaded_objects_count } }
    }

    pub(super) fn complete() -> Self {
        Self { details: Details::Complete }
    }
}

impl Strategies {
    /// The objects that the node lacks. A node does not look whether it got what it asked for, so each object must have
    /// its answer.
    pub(super) fn uploads(self, objects: &[ObjectFile]) -> Result<Vec<(&ObjectFile, Place)>, Failure> {
        let strategies = self.object_transfer_strategies.into_iter();
        let mut by_hash: BTreeMap<_, _> = strategies.map(|one| (one.object_file.physical_hash, one)).collect();
        let mut uploads = Vec::new();
        for object in objects {
            let strategy = by_hash.remove(&object.physical_hash).map(|one| (one.push_strategy, one.upload_to));
            match strategy {
                Some((PushStrategy::SkipUpload, _)) => {}
                Some((PushStrategy::HttpUpload, Some(place))) => uploads.push((object, place)),
                _ => {
                    let words = format!("the node did not say where to put slice {}", object.physical_hash);
                    return Err(Failure::new(FailureKind::Unknown, words));
                }
            }
        }
        Ok(uploads)
    }
}

/// A frame as text.
pub(super) fn text(frame: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(frame).map_err(Failure::local)?;
    if text.len() > FRAME_BYTES_MAX {
        return Err(Failure::local(format!("a frame of {} bytes is larger than a node takes", text.len())));
    }
    Ok(text)
}

/// What `{"Ok":..}` holds.
pub(super) fn accepted<T: DeserializeOwned>(text: &str, step: Step) -> Result<T, End> {
    match serde_json::from_str::<Result<T, Value>>(text) {
        Ok(Ok(accepted)) => Ok(accepted),
        Ok(Err(refusal)) => Err(meaning(refusal, step)),
        Err(_) => Err(not_understood(text, step)),
    }
}

/// Whether it is the `{}` by which the node asks for progress, and by which it consents.
pub(super) fn nod(text: &str, step: Step) -> Result<(), End> {
    if let Some(end) = refusal(text, step) {
        return Err(end);
    }
    serde_json::from_str::<Empty>(text).map(drop).map_err(|_| not_understood(text, step))
}

/// What a close frame means that comes before its time.
pub(super) fn closed(code: u16, reason: &str, step: Step) -> End {
    if let Some(end) = refusal(reason, step) {
        return end;
    }
    let said = words_of(reason).map(|said| format!(": {said}")).unwrap_or_default();
    let words = format!("the node ended the push {step} (close code {code}){said}");
    match code {
        CLOSE_ERROR => Failure::new(FailureKind::Unknown, words).into(),
        CLOSE_TOO_BIG => Failure::new(FailureKind::Refused, words).into(),
        _ => Failure::unreachable(words).into(),
    }
}

fn refusal(text: &str, step: Step) -> Option<End> {
    let answer = serde_json::from_str::<Result<IgnoredAny, Value>>(text).ok()?;
    answer.err().map(|refusal| meaning(refusal, step))
}

fn meaning(refusal: Value, step: Step) -> End {
    let said = refusal.to_string();
    let refused = |words: String| Failure::new(FailureKind::Refused, words).into();
    match serde_json::from_value(refusal) {
        Ok(Refusal::InvalidHead { expected_head }) => End::HeadMoved { theirs: expected_head },
        Ok(Refusal::SeedBlockOverwriteRestricted {}) => refused(
            "the node has another dataset of this name and keeps its Seed: rename one of the two, or delete that one"
                .to_owned(),
        ),
        Ok(Refusal::RefCollision { dataset_id }) => refused(format!(
            "the node has this dataset ({dataset_id}) under another name: give it the same name here, or delete that one"
        )),
        Ok(Refusal::NameCollision {}) => {
            refused("the node has another dataset of this name: rename one of the two, or delete that one".to_owned())
        }
        Ok(Refusal::Internal { phase, error_message }) => internal(&phase, &error_message, step).into(),
        Err(_) => Failure::new(FailureKind::Unknown, format!("the node refused {step}: {}", shortened(&said))).into(),
    }
}

/// A node says little of its own errors. Blocks that it could not read it reports as an error of the phase `InitialRequest`,
/// which is over by then; but its own trouble may look the same, so the push is tried again, and the words say both.
fn internal(phase: &Value, message: &str, step: Step) -> Failure {
    let phase = phase.get("Push").and_then(Value::as_str).unwrap_or("unknown");
    let words = format!("the node failed {step} (phase {phase}): {}", shortened(message));
    let unread = step == Step::Blocks && phase == "InitialRequest";
    let lower = message.to_lowercase();
    if lower.contains("hash") || lower.contains("version") {
        return Failure::new(FailureKind::Refused, format!("{words}; {ENCODER}"));
    }
    let words = if unread { format!("{words}; {ENCODER}") } else { words };
    Failure::new(FailureKind::Unknown, words)
}

fn not_understood(text: &str, step: Step) -> End {
    let words = format!("the node's answer {step} is not understood: {}", shortened(text));
    Failure::new(FailureKind::Unknown, words).into()
}

fn shortened(text: &str) -> String {
    words_of(text).unwrap_or_else(|| "nothing".to_owned())
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "when asked to take a push",
            Self::Blocks => "after the blocks were sent",
            Self::Objects => "when told which slices there are",
            Self::Upload => "during the upload of slices",
            Self::Commit => "before the push was committed",
        })
    }
}
