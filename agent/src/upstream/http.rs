//! HTTP as every upstream but a directory uses it: one client with its trust, its token, its pace and its patience.
//!
//! HTTP/1.1 only, so that a WebSocket can begin as a request of the same client (same proxy, same certificates); no
//! redirects, since they would turn a POST into a GET; a proxy by `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`. A failure is
//! told in one line that says what to change.

use std::error::Error as _;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{self, HeaderValue};
use reqwest::{Certificate, ClientBuilder, Method, RequestBuilder, Response, StatusCode, Url};
use tokio::io::AsyncReadExt as _;

use super::outcome::{self, Failure, FailureKind};
use super::pace::Pace;
use super::patience::Patience;
use crate::config::{Secret, Upstream};

/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// How often an idle connection is tested, and after how many silent tests it is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TESTS: u32 = 3;
/// How long a connection is kept for the next request.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(20);
/// Bytes of an answer that are read at the most; all that a node says to us is small.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Bytes of a body that are sent without asking the pacer again.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// A client of one upstream.
#[derive(Debug)]
pub struct Http {
    client: reqwest::Client,
    secret: Option<Secret>,
    token: Mutex<Option<String>>,
    pace: Pace,
    patience: Patience,
    timeout: Duration,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// `Retry-After`, as it came.
    pub retry_after: Option<String>,
    /// The body; text beyond 1 MiB is cut.
    pub body: String,
}

/// Names ring as the provider of cryptography of this process. Does nothing the second time.
pub fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl Http {
    /// A client for this upstream. Its token is read at the first request.
    ///
    /// # Errors
    /// `ca_file` cannot be read or holds no certificate.
    pub fn new(upstream: &Upstream) -> Result<Self, Failure> {
        install_crypto();
        let mut builder = ClientBuilder::new()
            .user_agent(concat!("forebay/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_MAX.min(upstream.timeout))
            .tcp_keepalive(KEEP_ALIVE)
            .tcp_keepalive_interval(KEEP_ALIVE)
            .tcp_keepalive_retries(KEEP_ALIVE_TESTS)
            .tcp_user_timeout(upstream.timeout)
            .pool_max_idle_per_host(1)
            // Sooner than nodes and what stands before them close it: a request on a closed one would have to be made again.
            .pool_idle_timeout(IDLE_MAX);
        if let Some(path) = &upstream.ca_file {
            let unusable = |problem: String| Failure::unreachable(format!("ca_file {}: {problem}", path.display()));
            let pem = fs::read(path).map_err(|error| unusable(error.to_string()))?;
            let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| unusable(chain_of(&error)))?;
            if certificates.is_empty() {
                return Err(unusable("holds no certificate in PEM".to_owned()));
            }
            builder = builder.tls_certs_only(certificates);
        }
        let client = builder.build().map_err(|error| Failure::unreachable(chain_of(&error)))?;
        Ok(Self {
            client,
            secret: upstream.token.clone(),
            token: Mutex::default(),
            pace: Pace::new(upstream.rate_limit),
            patience: Patience::new(upstream.timeout),
            timeout: upstream.timeout,
        })
    }

    /// A request with the token, if there is one.
    ///
    /// # Errors
    /// The token cannot be read.
    pub fn request(&self, method: Method, url: Url) -> Result<RequestBuilder, Failure> {
        let request = self.client.request(method, url);
        let Some(value) = self.authorization()? else { return Ok(request) };
        Ok(request.header(header::AUTHORIZATION, value))
    }

    /// A request that carries no token of ours, such as one to a URL that the node signed.
    pub fn bare_request(&self, method: Method, url: Url) -> RequestBuilder {
        self.client.request(method, url)
    }

    /// The token as a header.
    ///
    /// # Errors
    /// The token cannot be read.
    pub fn authorization(&self) -> Result<Option<HeaderValue>, Failure> {
        let Some(secret) = &self.secret else { return Ok(None) };
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        let text = match token.clone() {
            Some(text) => text,
            None => secret.read().map_err(|problem| Failure::new(FailureKind::Unauthorised, problem))?,
        };
        *token = Some(text.clone());
        let not_ascii = |_| Failure::new(FailureKind::Unauthorised, format!("{secret} holds characters no token has"));
        let mut value = HeaderValue::try_from(format!("Bearer {text}")).map_err(not_ascii)?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Reads the token again. Whether it is another one.
    pub fn reread_token(&self) -> bool {
        let Some(Ok(fresh)) = self.secret.as_ref().map(Secret::read) else { return false };
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        token.replace(fresh.clone()).is_none_or(|old| old != fresh)
    }

    /// Where the token comes from, for people.
    pub fn token_name(&self) -> Option<String> {
        self.secret.as_ref().map(ToString::to_string)
    }

    /// Sends it and waits for the head of the answer.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let failed = |error| of_error(&error, self.timeout);
        let request = request.build().map_err(failed)?;
        let host = request.url().host_str().unwrap_or("the upstream").to_owned();
        match self.patience.limit(self.client.execute(request)).await {
            Some(answered) => answered.map_err(failed),
            None => Err(self.silent(&host)),
        }
    }

    /// Sends it and waits for the whole answer.
    ///
    /// # Errors
    /// There is no whole answer.
    pub async fn answer(&self, request: RequestBuilder) -> Result<Answer, Failure> {
        let response = self.send(request).await?;
        self.whole(response).await
    }

    /// Waits for the rest of an answer.
    ///
    /// # Errors
    /// There is no rest.
    pub async fn whole(&self, mut response: Response) -> Result<Answer, Failure> {
        let status = response.status();
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut body = Vec::new();
        while let Some(piece) = self.piece(&mut response).await? {
            body.extend_from_slice(&piece);
            if body.len() > ANSWER_BYTES_MAX {
                body.truncate(ANSWER_BYTES_MAX);
                break;
            }
        }
        Ok(Answer { status, retry_after, body: String::from_utf8_lossy(&body).into_owned() })
    }

    async fn piece(&self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        match self.patience.limit(response.chunk()).await {
            Some(read) => read.map_err(|error| of_error(&error, self.timeout)),
            None => Err(self.silent(response.url().host_str().unwrap_or("the upstream"))),
        }
    }

    fn silent(&self, host: &str) -> Failure {
        Failure::unreachable(format!("{host} was silent for {} s", self.timeout.as_secs_f32()))
    }

    /// Waits until so many bytes may be sent.
    pub async fn pace(&self, bytes: usize) {
        self.pace.wait(bytes).await;
    }

    /// How long the other side may be silent.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}

impl Answer {
    /// The answer as the failure that it is. `what` was asked, as in "POST https://…".
    pub fn failure(&self, what: &str) -> Failure {
        outcome::of_status(what, self.status.as_u16(), self.retry_after.as_deref(), &self.body)
    }
}

/// No answer, in one line. What the TLS layer did not like is said in words that name the key to change.
pub fn of_error(error: &reqwest::Error, timeout: Duration) -> Failure {
    let chain = chain_of(error);
    let host = error.url().and_then(Url::host_str).unwrap_or("the upstream").to_owned();
    let words = if chain.contains("UnknownIssuer") {
        format!("the certificate of {host} is not trusted: name the CA that signed it in `ca_file`")
    } else if chain.contains("invalid peer certificate") || chain.contains("certificate") {
        format!("the certificate of {host} cannot be accepted: {chain}")
    } else if chain.contains("InvalidContentType") {
        format!("{host} speaks no TLS at this port: write http:// in place of https:// if that is meant")
    } else if chain.contains("dns error") {
        format!("no address is known for {host}: check the host in `url`, and the gateway's DNS ({chain})")
    } else if error.is_timeout() {
        format!("{host} was silent for {} s: {chain}", timeout.as_secs_f32())
    } else if error.is_connect() {
        format!("cannot connect to {host}: {chain}")
    } else {
        format!("the connection to {host} broke: {chain}")
    };
    Failure::unreachable(words)
}

/// An error's causes; its own text repeats the URL only.
fn chain_of(error: &reqwest::Error) -> String {
    let causes = outcome::causes(error.source());
    if causes.is_empty() { error.to_string() } else { causes }
}

/// A file as the body of a request, piece by piece at the pace of the upstream.
pub fn paced_body(http: &Arc<Http>, file: tokio::fs::File) -> reqwest::Body {
    let pieces = futures_util::stream::try_unfold((Arc::clone(http), file), |(http, mut file)| async move {
        let mut piece = vec![0; PIECE_BYTES];
        let read = file.read(&mut piece).await?;
        if read == 0 {
            return Ok::<_, std::io::Error>(None);
        }
        piece.truncate(read);
        http.patience.hold();
        http.pace(read).await;
        http.patience.sent(read);
        Ok(Some((Bytes::from(piece), (http, file))))
    });
    reqwest::Body::wrap_stream(pieces)
}
