//! What S3 promises and `s3s-fs` does not: conditional reads and writes, a 404 for a bucket that is not there, an ETag
//! from HEAD, parts of at least 5 MiB, deletes that may be repeated, listings in pages.
//!
//! Writes to a bucket are one at a time, from the check of their condition until the new object has its name. A put is
//! received whole before that, so that an upload that stalls holds up nobody.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use s3s::access::S3Access;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput, CompleteMultipartUploadOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput,
    DeleteObjectsOutput, DeletedObject, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput,
    HeadObjectInput, HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, ListPartsInput, PutObjectInput,
    PutObjectOutput, StreamingBlob, UploadPartInput, UploadPartOutput,
};
use s3s::{Body, S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::listing;

/// The smallest part of a multipart upload, its last excepted.
const PART_BYTES_MIN: i64 = 5 << 20;

/// Files as objects, under the rules of S3.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    files: Arc<FileSystem>,
    root: PathBuf,
    conditional: bool,
    writers: Arc<Mutex<BTreeMap<String, Arc<AsyncMutex<()>>>>>,
}

impl Rules {
    /// Serves the directories of `root`. Without `conditional`, a put with a condition is not implemented.
    pub(crate) fn new(root: &Path, conditional: bool) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
        let root = root.canonicalize().with_context(|| format!("resolve {}", root.display()))?;
        let files = FileSystem::new(&root).map_err(|error| anyhow::anyhow!("serve {}: {error:?}", root.display()))?;
        Ok(Self { files: Arc::new(files), root, conditional, writers: Arc::default() })
    }

    fn check_bucket(&self, bucket: &str) -> S3Result<()> {
        if self.root.join(bucket).is_dir() { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
    }

    /// Waits until no one else writes to the bucket.
    async fn writer(&self, bucket: &str) -> OwnedMutexGuard<()> {
        self.lock_of(bucket).lock_owned().await
    }

    fn lock_of(&self, bucket: &str) -> Arc<AsyncMutex<()>> {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(writers.entry(bucket.to_owned()).or_default())
    }

    /// The ETag of an object, if it exists. A directory is not an object, though `s3s-fs` would answer for it.
    async fn e_tag(&self, bucket: &str, key: &str) -> S3Result<Option<String>> {
        self.check_bucket(bucket)?;
        let path = Path::new(key);
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(s3_error!(InvalidArgument, "not a key that a file can have"));
        }
        if !self.root.join(bucket).join(path).is_file() {
            return Ok(None);
        }
        let mut input = GetObjectInput::builder();
        input.set_bucket(bucket.to_owned()).set_key(key.to_owned());
        let input = input.build().map_err(S3Error::internal_error)?;
        Ok(self.files.get_object(S3Request::new(input)).await?.output.e_tag)
    }

    /// Decides only while the bucket's writer is held.
    async fn check_write(&self, bucket: &str, key: &str, condition: Condition<'_>) -> S3Result<()> {
        if condition.is_none() {
            return self.check_bucket(bucket);
        }
        if !self.conditional {
            return Err(not_implemented());
        }
        let e_tag = self.e_tag(bucket, key).await?;
        match (condition.if_none_match, condition.if_match, e_tag) {
            (Some("*"), None, None) => Ok(()),
            (Some("*"), None, Some(_)) => Err(s3_error!(PreconditionFailed)),
            (None, Some(_), None) => Err(s3_error!(NoSuchKey)),
            (None, Some(wanted), Some(e_tag)) if same_tag(wanted, &e_tag) => Ok(()),
            (None, Some(_), Some(_)) => Err(s3_error!(PreconditionFailed)),
            _ => Err(not_implemented()),
        }
    }

    async fn check_read(&self, bucket: &str, key: &str, condition: Condition<'_>) -> S3Result<String> {
        let e_tag = self.e_tag(bucket, key).await?.ok_or_else(|| s3_error!(NoSuchKey))?;
        if condition.if_match.is_some_and(|wanted| !same_tag(wanted, &e_tag)) {
            return Err(s3_error!(PreconditionFailed));
        }
        if condition.if_none_match.is_some_and(|known| same_tag(known, &e_tag)) {
            return Err(s3_error!(NotModified));
        }
        Ok(e_tag)
    }

    async fn check_parts(&self, req: &S3Request<CompleteMultipartUploadInput>) -> S3Result<()> {
        let mut input = ListPartsInput::builder();
        input.set_bucket(req.input.bucket.clone()).set_key(req.input.key.clone());
        input.set_upload_id(req.input.upload_id.clone());
        let mut list = S3Request::new(input.build().map_err(S3Error::internal_error)?);
        list.credentials.clone_from(&req.credentials);
        let mut parts = self.files.list_parts(list).await?.output.parts.unwrap_or_default();
        parts.sort_by_key(|part| part.part_number);
        parts.pop().ok_or_else(|| s3_error!(NoSuchUpload))?;
        if parts.iter().any(|part| part.size.is_some_and(|size| size < PART_BYTES_MIN)) {
            return Err(s3_error!(EntityTooSmall));
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl S3 for Rules {
    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.files.head_bucket(req).await
    }

    async fn put_object(&self, mut req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        req.input.body = match req.input.body.take() {
            Some(body) => Some(received(body).await?),
            None => None,
        };
        let _writer = self.writer(&req.input.bucket).await;
        let condition = Condition::new(req.input.if_match.as_deref(), req.input.if_none_match.as_deref());
        self.check_write(&req.input.bucket, &req.input.key, condition).await?;
        self.files.put_object(req).await
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let condition = Condition::new(req.input.if_match.as_deref(), req.input.if_none_match.as_deref());
        self.check_read(&req.input.bucket, &req.input.key, condition).await?;
        self.files.get_object(req).await
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let condition = Condition::new(req.input.if_match.as_deref(), req.input.if_none_match.as_deref());
        let e_tag = self.check_read(&req.input.bucket, &req.input.key, condition).await?;
        let mut answer = self.files.head_object(req).await?;
        answer.output.e_tag = Some(e_tag);
        Ok(answer)
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.check_bucket(&req.input.bucket)?;
        let mut all = ListObjectsV2Input::builder();
        all.set_bucket(req.input.bucket.clone());
        let all = all.build().map_err(S3Error::internal_error)?;
        let objects = self.files.list_objects_v2(S3Request::new(all)).await?.output.contents.unwrap_or_default();
        let bucket = req.input.bucket.clone();
        let mut page = listing::page(objects, req.input);
        for object in page.contents.iter_mut().flatten() {
            object.e_tag = self.e_tag(&bucket, object.key.as_deref().unwrap_or_default()).await?;
        }
        Ok(S3Response::new(page))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let _writer = self.writer(&req.input.bucket).await;
        match self.e_tag(&req.input.bucket, &req.input.key).await? {
            Some(_) => self.files.delete_object(req).await,
            None => Ok(S3Response::new(DeleteObjectOutput::default())),
        }
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let _writer = self.writer(&req.input.bucket).await;
        self.check_bucket(&req.input.bucket)?;
        let keys = req.input.delete.objects.iter().map(|object| object.key.clone());
        let deleted = keys.map(|key| DeletedObject { key: Some(key), ..Default::default() }).collect();
        let mut answer = self.files.delete_objects(req).await?;
        answer.output.deleted = Some(deleted);
        Ok(answer)
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.check_bucket(&req.input.bucket)?;
        self.files.create_multipart_upload(req).await
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        self.files.upload_part(req).await.map_err(no_such_upload)
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let _writer = self.writer(&req.input.bucket).await;
        let condition = Condition::new(req.input.if_match.as_deref(), req.input.if_none_match.as_deref());
        self.check_write(&req.input.bucket, &req.input.key, condition).await?;
        self.files.complete_multipart_upload(req).await.map_err(no_such_upload)
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.files.abort_multipart_upload(req).await.map_err(no_such_upload)
    }
}

/// Completing an upload is judged here first: `s3s` sends the status 200 before it calls what completes, and an error
/// would hide in the body. S3 does so only for what fails late.
#[async_trait::async_trait]
impl S3Access for Rules {
    async fn complete_multipart_upload(&self, req: &mut S3Request<CompleteMultipartUploadInput>) -> S3Result<()> {
        let condition = Condition::new(req.input.if_match.as_deref(), req.input.if_none_match.as_deref());
        self.check_write(&req.input.bucket, &req.input.key, condition).await?;
        self.check_parts(req).await
    }
}

/// The headers that make a request depend on the object that is there.
#[derive(Clone, Copy, Debug)]
struct Condition<'a> {
    if_match: Option<&'a str>,
    if_none_match: Option<&'a str>,
}

impl<'a> Condition<'a> {
    fn new(if_match: Option<&'a str>, if_none_match: Option<&'a str>) -> Self {
        Self { if_match, if_none_match }
    }

    fn is_none(self) -> bool {
        self.if_match.is_none() && self.if_none_match.is_none()
    }
}

/// Reads an upload to its end; one that breaks off is refused before it touches the bucket.
async fn received(body: StreamingBlob) -> S3Result<StreamingBlob> {
    let bytes = Body::from(body).store_all_unlimited().await.map_err(|_| s3_error!(IncompleteBody))?;
    Ok(Body::from(bytes).into())
}

/// With or without quotes: clients send both.
fn same_tag(wanted: &str, e_tag: &str) -> bool {
    wanted == "*" || wanted.trim_matches('"') == e_tag.trim_matches('"')
}

/// `s3s-fs` denies access to an upload that it does not know.
fn no_such_upload(error: S3Error) -> S3Error {
    if *error.code() == S3ErrorCode::AccessDenied { s3_error!(NoSuchUpload) } else { error }
}

fn not_implemented() -> S3Error {
    s3_error!(NotImplemented, "A header you provided implies functionality that is not implemented")
}
