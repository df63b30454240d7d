//! A certificate authority that exists for one test, and a server certificate of it for 127.0.0.1 and localhost.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// What a client trusts.
    pub ca: PathBuf,
    /// What the server shows.
    pub cert: PathBuf,
    /// The server's private key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Makes the three files in `dir`: `ca.pem`, `cert.pem`, `key.pem`.
    pub fn make(dir: &Path) -> Result<Self> {
        Self::make_as(dir, |_| {})
    }

    /// The same with a server certificate that was good for one year, long ago.
    pub fn make_expired(dir: &Path) -> Result<Self> {
        Self::make_as(dir, |params| {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        })
    }

    /// The same with the certificate of a client whose common name is `name`.
    pub fn make_client(dir: &Path, name: &str) -> Result<Self> {
        Self::make_as(dir, |params| {
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }

    fn make_as(dir: &Path, change: impl FnOnce(&mut CertificateParams)) -> Result<Self> {
        let ca_key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "Forebay test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = params.self_signed(&ca_key)?;
        let issuer = Issuer::new(params, ca_key);

        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, "localhost");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let cert = params.signed_by(&key, &issuer)?;

        let write = |name: &str, text: String| {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            Ok::<_, anyhow::Error>(path)
        };
        fs::create_dir_all(dir)?;
        Ok(Self {
            ca: write("ca.pem", ca.pem())?,
            cert: write("cert.pem", cert.pem())?,
            key: write("key.pem", key.serialize_pem())?,
        })
    }
}
