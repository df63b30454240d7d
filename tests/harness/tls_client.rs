//! A device's side of TLS: what it trusts, the certificate that it shows, and which certificate it was shown.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto};

use crate::device::REPLY_MAX;

/// Bytes over TLS.
pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// An authority for the certificates of devices.
pub struct Devices {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// PEM files of a device.
#[derive(Clone, Debug)]
pub struct DeviceFiles {
    /// Its certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Devices {
    /// Makes an authority whose certificate is `devices-ca.pem` in `dir`.
    pub fn make(dir: &Path) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Forebay test devices");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::create_dir_all(dir)?;
        fs::write(dir.join("devices-ca.pem"), issuer.pem())?;
        Ok(Self { dir: dir.to_owned(), issuer })
    }

    /// What a server trusts.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("devices-ca.pem")
    }

    /// Signs a certificate for a device of this Common Name.
    pub fn sign(&self, name: &str) -> Result<DeviceFiles> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.signed_by(&key, &self.issuer)?;
        let files =
            DeviceFiles { cert: self.dir.join(format!("{name}.pem")), key: self.dir.join(format!("{name}.key")) };
        fs::write(&files.cert, cert.pem())?;
        fs::write(&files.key, key.serialize_pem())?;
        Ok(files)
    }
}

/// Trusts the authority of a PEM file, and shows a certificate if it has one.
pub fn config(ca: &Path, shows: Option<&DeviceFiles>) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(ca)?)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(Arc::new(match shows {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let key = PrivateKeyDer::from_pem_file(&files.key).context("read the device's key")?;
            builder.with_client_auth_cert(vec![certificate(&files.cert)?], key)?
        }
    }))
}

/// Connects, and completes the handshake.
pub fn connect(addr: SocketAddr, config: &Arc<ClientConfig>) -> Result<TlsStream> {
    let mut socket = TcpStream::connect(addr).with_context(|| format!("connect to {addr}"))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(REPLY_MAX))?;
    socket.set_write_timeout(Some(REPLY_MAX))?;
    let mut connection = ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost")?)?;
    while connection.is_handshaking() {
        let (read, written) = connection.complete_io(&mut socket).context("shake hands")?;
        if read + written == 0 {
            bail!("the server closed the connection");
        }
    }
    Ok(StreamOwned::new(connection, socket))
}

/// The certificate that the server showed.
pub fn shown(stream: &TlsStream) -> Option<CertificateDer<'static>> {
    stream.conn.peer_certificates()?.first().cloned().map(CertificateDer::into_owned)
}

/// The first certificate of a PEM file.
pub fn certificate(path: &Path) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_file(path).with_context(|| format!("read {}", path.display()))
}
