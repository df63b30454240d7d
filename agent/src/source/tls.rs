//! Trust, and who we are, when a source is reached over TLS.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::access;
use crate::config::Source;

/// The client's side of TLS 1.2 and 1.3 for this source. Files are read now, so that renewed ones count from the next
/// connection on.
///
/// # Errors
/// One line that names the file.
pub fn client_config(source: &Source) -> Result<Arc<ClientConfig>, String> {
    let roots = match &source.ca_file {
        Some(path) => roots_of(path)?,
        None => system_roots()?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let Some((cert_file, key_file)) = &source.client_cert else {
        return Ok(Arc::new(builder.with_no_client_auth()));
    };
    let chain = certificates(cert_file)?;
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| unusable(key_file, &error.to_string()))?;
    let config = builder.with_client_auth_cert(chain, key).map_err(|error| {
        format!("{} and {} are no certificate and its key: {error}", cert_file.display(), key_file.display())
    })?;
    Ok(Arc::new(config))
}

fn roots_of(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| unusable(path, &error.to_string()))?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    match roots.is_empty() {
        true => Err("this system has no trusted certificates: name some with `ca_file`".to_owned()),
        false => Ok(roots),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    access::pem(path, "no certificate").map_err(|error| error.to_string())
}

fn unusable(path: &Path, problem: &str) -> String {
    access::unusable(path, problem).to_string()
}
