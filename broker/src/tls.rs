//! TLS of a listener: its certificate, which client certificates it takes, and who they say the client is.
//!
//! Files are read elsewhere; here come certificates and keys. A [`ServerTls`] can be given others while it is in use: new
//! connections see them, those that are there go on unless their client certificate is not accepted any more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::broker::lock;

/// Certificate, key and clients of one listener.
#[derive(Debug)]
pub struct TlsSettings {
    /// The server's certificate, then those that lead to its root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the first.
    pub key: PrivateKeyDer<'static>,
    /// Which client certificates are taken; `None`: none is asked for.
    pub clients: Option<ClientCertificates>,
}

/// Which client certificates a listener takes.
#[derive(Debug)]
pub struct ClientCertificates {
    /// Authorities that sign them.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Lists of those that are revoked, clients and the authorities between them and ours. Each speaks of what its issuer
    /// signed: what no list speaks of is not revoked, so that the list of one authority shuts out no other's clients. It
    /// counts when its next update is overdue, too.
    pub revocation_lists: Vec<CertificateRevocationListDer<'static>>,
    /// Whether a client without one is refused.
    pub are_required: bool,
    /// Where the user name stands in them.
    pub identity: CertificateIdentity,
}

/// Where in a client certificate the user name stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CertificateIdentity {
    /// The Common Name of the subject.
    #[default]
    CommonName,
    /// The first DNS name, e-mail address or URI among the Subject Alternative Names.
    SubjectAltName,
    /// Nowhere: the certificate opens the door, and a password says who comes in.
    None,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate has no such form.
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    /// The key is not that of the certificate, or of a kind that is not supported.
    #[error("the key does not belong to the certificate: {0}")]
    Key(rustls::Error),
    /// An authority for client certificates cannot be used.
    #[error("the authority for client certificates cannot be used: {0}")]
    Authority(String),
    /// A list of revoked certificates cannot be used.
    #[error("the list of revoked certificates cannot be used: {0}")]
    RevocationList(String),
    /// The versions or ciphers cannot be used.
    #[error(transparent)]
    Other(rustls::Error),
}

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Not before.
    pub begins: SystemTime,
    /// Not after.
    pub ends: SystemTime,
}

/// What a listener shows and asks for; the same for all clones.
#[derive(Clone, Debug)]
pub struct ServerTls {
    slot: Arc<Slot>,
}

#[derive(Debug)]
struct Slot {
    face: Mutex<Arc<Face>>,
    generation: AtomicU64,
}

/// What one handshake sees.
#[derive(Clone, Debug)]
pub(crate) struct Face {
    pub(crate) config: Arc<ServerConfig>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    identity: CertificateIdentity,
    validity: Validity,
    pub(crate) generation: u64,
}

impl ServerTls {
    /// TLS 1.2 and 1.3 as `settings` say.
    ///
    /// # Errors
    /// The certificate, key or authorities cannot be used.
    pub fn new(settings: TlsSettings) -> Result<Self, TlsError> {
        let face = Mutex::new(Arc::new(Face::new(settings)?));
        Ok(Self { slot: Arc::new(Slot { face, generation: AtomicU64::new(0) }) })
    }

    /// Shows and asks for what `other` does, from the next handshake on. Have [`crate::Broker::revoke`] look at the
    /// connections that are there.
    pub fn replace(&self, other: &Self) {
        let generation = self.generation() + 1;
        *lock(&self.slot.face) = Arc::new(Face { generation, ..(*other.face()).clone() });
        self.slot.generation.store(generation, Ordering::Release);
    }

    /// From when until when the server's certificate is valid.
    pub fn validity(&self) -> Validity {
        self.face().validity
    }

    pub(crate) fn face(&self) -> Arc<Face> {
        lock(&self.slot.face).clone()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.slot.generation.load(Ordering::Acquire)
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.slot, &other.slot)
    }
}

impl Face {
    fn new(settings: TlsSettings) -> Result<Self, TlsError> {
        let TlsSettings { chain, key, clients } = settings;
        let validity = validity(&chain)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut verifier = None;
        let mut identity = CertificateIdentity::None;
        if let Some(clients) = clients {
            identity = clients.identity;
            let mut roots = RootCertStore::empty();
            for authority in clients.authorities {
                roots.add(authority).map_err(|error| TlsError::Authority(error.to_string()))?;
            }
            let mut builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
                .with_crls(clients.revocation_lists)
                .allow_unknown_revocation_status();
            if !clients.are_required {
                builder = builder.allow_unauthenticated();
            }
            verifier = Some(builder.build().map_err(|error| match error {
                VerifierBuilderError::InvalidCrl(error) => TlsError::RevocationList(format!("{error:?}")),
                error => TlsError::Authority(error.to_string()),
            })?);
        }
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Other)?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let config = Arc::new(builder.with_single_cert(chain, key).map_err(TlsError::Key)?);
        Ok(Self { config, verifier, identity, validity, generation: 0 })
    }

    /// Whether a client certificate that was accepted before still is.
    pub(crate) fn accepts(&self, chain: &[CertificateDer<'static>], now: SystemTime) -> bool {
        let (Some(verifier), Some((leaf, rest))) = (&self.verifier, chain.split_first()) else { return false };
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        verifier.verify_client_cert(leaf, rest, UnixTime::since_unix_epoch(now)).is_ok()
    }

    /// Who a client with this certificate is. An error: the certificate names nobody where it should.
    pub(crate) fn user_name(&self, leaf: &CertificateDer<'_>) -> Result<Option<Arc<str>>, TlsError> {
        let names = match self.identity {
            CertificateIdentity::None => return Ok(None),
            CertificateIdentity::CommonName => common_name(leaf)?,
            CertificateIdentity::SubjectAltName => subject_alt_name(leaf)?,
        };
        match names {
            Some(name) if !name.is_empty() && !name.contains('\0') => Ok(Some(name.into())),
            _ => Err(TlsError::Certificate(format!("it has no {}", self.identity.words()))),
        }
    }
}

impl CertificateIdentity {
    fn words(self) -> &'static str {
        match self {
            Self::CommonName => "Common Name",
            Self::SubjectAltName => "DNS name, e-mail address or URI among its Subject Alternative Names",
            Self::None => "name",
        }
    }
}

fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, TlsError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| TlsError::Certificate(error.to_string()))?;
    Ok(parsed)
}

fn common_name(leaf: &CertificateDer<'_>) -> Result<Option<String>, TlsError> {
    let certificate = parsed(leaf)?;
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    Ok(name.map(str::to_owned))
}

fn subject_alt_name(leaf: &CertificateDer<'_>) -> Result<Option<String>, TlsError> {
    let certificate = parsed(leaf)?;
    let names = certificate.subject_alternative_name().map_err(|error| TlsError::Certificate(error.to_string()))?;
    let name = names.and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some(*name),
            _ => None,
        })
    });
    Ok(name.map(str::to_owned))
}

/// From when until when the first of these certificates is valid.
///
/// # Errors
/// There is none, or it is none.
pub fn validity(chain: &[CertificateDer<'_>]) -> Result<Validity, TlsError> {
    let Some(leaf) = chain.first() else { return Err(TlsError::Certificate("there is none".to_owned())) };
    let certificate = parsed(leaf)?;
    let validity = certificate.validity();
    let instant = |seconds: i64| {
        let seconds = u64::try_from(seconds).unwrap_or(0);
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
    };
    Ok(Validity { begins: instant(validity.not_before.timestamp()), ends: instant(validity.not_after.timestamp()) })
}
