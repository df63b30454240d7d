//! A bucket of an S3-compatible store as a place for repositories.

use std::fs::File;
use std::future::Future;
use std::io::Read as _;
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use forebay_storage::odf::Multihash;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    Certificate, ClientOptions, Error, MultipartUpload as _, ObjectStore as _, ObjectStoreExt as _, PutMode,
    PutOptions, PutPayload, RetryConfig, UpdateVersion,
};

use super::http::{IDLE_MAX, install_crypto};
use super::outcome::{self, Failure, FailureKind};
use super::pace::Pace;
use super::repository::{FileVersion, RemoteFile, RemoteHead, parse_head};
use crate::config::{Bucket, Upstream};

/// A slice beyond this is put in parts of this size: it bounds what is held in memory, and what a cut connection costs.
/// S3 wants at least 5 MiB.
const PART_BYTES: usize = 5 << 20;
/// Longest `refs/head` that is looked at, bytes; a hash has 69.
const HEAD_BYTES_MAX: u64 = 256;
/// How long the end of an upload that failed is waited for.
const ABORT_MAX: Duration = Duration::from_secs(5);
/// The slowest link that is waited for, bytes a second.
const SLOWEST_LINK: u64 = 16 << 10;

/// What a store's words mean to a person.
const ADVICE: &[(&str, &str)] = &[
    ("NoSuchBucket", "there is no such bucket: create it, or correct `url`"),
    ("InvalidAccessKeyId", "the store does not know this access_key_id"),
    ("SignatureDoesNotMatch", "the secret access key does not belong to the access_key_id"),
    ("RequestTimeTooSkewed", "the gateway's clock is wrong"),
    ("AuthorizationHeaderMalformed", "set `region` to that of the bucket"),
    ("PermanentRedirect", "set `region` to that of the bucket"),
    ("169.254.169.254", "no keys: name access_key_id and secret_access_key_file, or set AWS_ACCESS_KEY_ID"),
    ("UnknownIssuer", "the certificate of the store is not trusted: name the CA that signed it in `ca_file`"),
    ("QuotaExceeded", "the bucket's quota is used up"),
];

/// One bucket and the prefix in it.
#[derive(Debug)]
pub struct BucketStore {
    store: AmazonS3,
    name: String,
    prefix: Path,
    pace: Pace,
    timeout: Duration,
    /// The store has said that it knows no conditional put.
    is_unconditional: AtomicBool,
}

impl BucketStore {
    pub(super) fn new(bucket: &Bucket, upstream: &Upstream) -> Result<Self, Failure> {
        install_crypto();
        // Keys of the configuration stand alone: a session token of the environment does not belong to them.
        let builder = match &bucket.access_key_id {
            Some(_) => AmazonS3Builder::new(),
            None => AmazonS3Builder::from_env(),
        };
        let mut builder = builder
            .with_bucket_name(&bucket.name)
            .with_client_options(client_options(upstream)?)
            // Waiting and trying again is done in one place, `deliver`.
            .with_retry(RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() });
        if let Some(endpoint) = &bucket.endpoint {
            builder = builder.with_endpoint(endpoint).with_virtual_hosted_style_request(false);
        }
        let region = bucket.region.clone().or_else(|| std::env::var("AWS_REGION").ok());
        if let Some(region) = region {
            builder = builder.with_region(region);
        }
        if let (Some(id), Some(secret)) = (&bucket.access_key_id, &bucket.secret_access_key) {
            let secret = secret.read().map_err(|problem| Failure::new(FailureKind::Unauthorised, problem))?;
            builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        }
        let store = builder.build().map_err(|error| Failure::unreachable(error.to_string()))?;
        Ok(Self {
            store,
            name: bucket.name.clone(),
            prefix: Path::from(bucket.prefix.as_str()),
            pace: Pace::new(upstream.rate_limit),
            timeout: upstream.timeout,
            is_unconditional: AtomicBool::new(false),
        })
    }

    fn path(&self, dataset: &str, file: RemoteFile<'_>) -> Path {
        file.to_string().split('/').fold(self.prefix.clone().join(dataset), Path::join)
    }

    pub(super) async fn reach(&self) -> Result<(), Failure> {
        // Any answer is one; the usual one is that nothing has this name. A HEAD would not say whether the bucket is there.
        match self.soon(self.store.get(&self.prefix.clone().join("forebay"))).await? {
            Ok(_) => Ok(()),
            Err(error) if is_missing_object(&error) => Ok(()),
            Err(error) => Err(self.failure(&error)),
        }
    }

    pub(super) async fn head(&self, dataset: &str) -> Result<Option<RemoteHead>, Failure> {
        let path = self.path(dataset, RemoteFile::Head);
        let got = match self.soon(self.store.get(&path)).await? {
            Ok(got) => got,
            Err(error) if is_missing_object(&error) => return Ok(None),
            Err(error) => return Err(self.failure(&error)),
        };
        let version = FileVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
        let text = if got.meta.size > HEAD_BYTES_MAX {
            Bytes::from_static(b"too long")
        } else {
            self.soon(got.bytes()).await?.map_err(|error| self.failure(&error))?
        };
        parse_head(path.as_ref(), &String::from_utf8_lossy(&text), Some(version)).map(Some)
    }

    pub(super) async fn has(&self, dataset: &str, file: RemoteFile<'_>, size: u64) -> Result<bool, Failure> {
        match self.soon(self.store.head(&self.path(dataset, file))).await? {
            Ok(meta) => Ok(meta.size == size),
            Err(error) if is_missing_object(&error) => Ok(false),
            Err(error) => Err(self.failure(&error)),
        }
    }

    pub(super) async fn put(
        &self,
        dataset: &str,
        file: RemoteFile<'_>,
        from: &FilePath,
        size: u64,
    ) -> Result<u64, Failure> {
        let local = |error: std::io::Error| Failure::local(format!("{}: {error}", from.display()));
        let mut source = File::open(from).map_err(local)?;
        let path = self.path(dataset, file);
        if size <= PART_BYTES as u64 {
            let mut whole = Vec::new();
            source.read_to_end(&mut whole).map_err(local)?;
            self.pace.wait(whole.len()).await;
            self.store.put(&path, PutPayload::from(whole)).await.map_err(|error| self.failure(&error))?;
            return Ok(size);
        }
        let mut upload = self.store.put_multipart(&path).await.map_err(|error| self.failure(&error))?;
        loop {
            let mut part = Vec::with_capacity(PART_BYTES);
            if let Err(error) = source.by_ref().take(PART_BYTES as u64).read_to_end(&mut part) {
                let _ = tokio::time::timeout(ABORT_MAX, upload.abort()).await;
                return Err(local(error));
            }
            if part.is_empty() {
                break;
            }
            self.pace.wait(part.len()).await;
            if let Err(error) = upload.put_part(PutPayload::from(part)).await {
                // Parts of an upload that nobody finishes cost money; the bucket's lifecycle rule is the second guard.
                let _ = tokio::time::timeout(ABORT_MAX, upload.abort()).await;
                return Err(self.failure(&error));
            }
        }
        upload.complete().await.map_err(|error| self.failure(&error))?;
        Ok(size)
    }

    /// Whether the head was moved; if not, it was not what `known` says.
    pub(super) async fn set_head(
        &self,
        dataset: &str,
        known: Option<&RemoteHead>,
        head: &Multihash,
    ) -> Result<bool, Failure> {
        let path = self.path(dataset, RemoteFile::Head);
        let text = PutPayload::from(head.to_string().into_bytes());
        let condition = match known.and_then(|known| known.version.clone()) {
            Some(FileVersion { e_tag, version }) => PutMode::Update(UpdateVersion { e_tag, version }),
            None => PutMode::Create,
        };
        if !self.is_unconditional.load(Ordering::Relaxed) {
            let put = self.store.put_opts(&path, text.clone(), PutOptions::from(condition));
            match self.soon(put).await? {
                Ok(_) => return Ok(true),
                Err(Error::Precondition { .. } | Error::AlreadyExists { .. }) => return Ok(false),
                Err(error) if is_unknown_condition(&error) => {
                    self.is_unconditional.store(true, Ordering::Relaxed);
                    tracing::warn!(
                        bucket = self.name,
                        "The store knows no conditional put: make sure that no other gateway writes to this prefix."
                    );
                }
                Err(error) => return Err(self.failure(&error)),
            }
        }
        if self.head(dataset).await?.as_ref() != known {
            return Ok(false);
        }
        self.soon(self.store.put(&path, text)).await?.map_err(|error| self.failure(&error))?;
        Ok(true)
    }

    /// Something small has to be answered within the timeout; slices have their own.
    async fn soon<W: Future>(&self, work: W) -> Result<W::Output, Failure> {
        tokio::time::timeout(self.timeout, work).await.map_err(|_| {
            let seconds = self.timeout.as_secs_f32();
            Failure::unreachable(format!("bucket {}: the store was silent for {seconds} s", self.name))
        })
    }

    /// In one line that says what to change.
    fn failure(&self, error: &Error) -> Failure {
        let text = outcome::causes(Some(error));
        let advice = ADVICE.iter().find(|(code, _)| text.contains(code)).map(|(_, advice)| *advice);
        let advice = match (advice, error) {
            (None, Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) => Some(
                "the store refuses these keys: check access_key_id and its secret; they need s3:GetObject and s3:PutObject below the prefix, and \
                     s3:ListBucket on the bucket, without which a store answers 403 for what is not there yet",
            ),
            (advice, _) => advice,
        };
        let (bucket, said) = (&self.name, said(&text));
        let words = match advice {
            Some(advice) => format!("bucket {bucket}: {advice} ({said})"),
            None => format!("bucket {bucket}: {said}"),
        };
        match error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                Failure::new(FailureKind::Unauthorised, words)
            }
            // Of one object, as far as anybody knows: the other datasets go on.
            _ if text.contains("status code: 500") => Failure::new(FailureKind::Unknown, words),
            _ => Failure::unreachable(words),
        }
    }
}

fn client_options(upstream: &Upstream) -> Result<ClientOptions, Failure> {
    let mut options = ClientOptions::new()
        .with_allow_http(true) // the scheme of `url` decides
        .with_http1_only()
        .with_pool_idle_timeout(IDLE_MAX)
        .with_connect_timeout(upstream.timeout.min(Duration::from_secs(15)))
        // Of a whole request: a part has to get through a slow link.
        .with_timeout(upstream.timeout + Duration::from_secs(PART_BYTES as u64 / SLOWEST_LINK));
    if let Some(path) = &upstream.ca_file {
        let unusable = |problem: String| Failure::unreachable(format!("ca_file {}: {problem}", path.display()));
        let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.to_string()))?;
        if certificates.is_empty() {
            return Err(unusable("holds no certificate in PEM".to_owned()));
        }
        options = options.with_no_system_certificates(true);
        for certificate in certificates {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

/// The object is not there; a bucket that is not there is another matter.
fn is_missing_object(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. }) && !outcome::causes(Some(error)).contains("NoSuchBucket")
}

/// What the store said, if it said something; else the whole text.
fn said(text: &str) -> String {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once("</")?.0.to_owned())
    };
    match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        (None, _) => text.to_owned(),
    }
}

fn is_unknown_condition(error: &Error) -> bool {
    let text = outcome::causes(Some(error));
    matches!(error, Error::NotImplemented { .. })
        || text.contains("NotImplemented")
        || text.contains("status code: 501")
        || text.contains("ETag required")
}
