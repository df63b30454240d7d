//! A client that trusts the test's authority, and one that does not.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use forebay_tests::node::{NodeConfig, StubNode};
use forebay_tests::tls::TlsFiles;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// The answer, or `None` if the handshake failed.
fn get_info(node: &StubNode, roots: RootCertStore) -> Option<String> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connection = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(node.addr()).unwrap());
    stream.write_all(b"GET /info HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    // The stub closes without a close_notify.
    let _ = stream.read_to_end(&mut answer);
    Some(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn the_certificate_is_of_the_authority_and_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles::make(&dir.path().join("tls")).unwrap();
    let node = crate::start(&NodeConfig::in_dir(&dir.path().join("node")).tls(&files));
    assert!(node.url().starts_with("https://"));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.ca).unwrap()).unwrap();

    let answer = get_info(&node, roots).unwrap();
    assert!(answer.ends_with(r#"{"isMultiTenant":true}"#), "{answer}");
    let others = TlsFiles::make(&dir.path().join("others")).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&others.ca).unwrap()).unwrap();
    assert!(get_info(&node, roots).is_none());
    assert!(node.log().unwrap()["requests_seen"].as_u64() > Some(0), "control calls come in the clear");
}
