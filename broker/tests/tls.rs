//! TLS of a listener: what a client sees of it, who a certificate says it is, and what happens when certificates change.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use forebay_broker::Broker;
use forebay_broker::auth::Access;
use forebay_broker::config::{Limits, ListenerConfig};
use forebay_broker::inbound::Outcome::Stored;
use forebay_broker::tls::{CertificateIdentity, ClientCertificates, ServerTls, TlsError, TlsSettings, validity};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use support::*;
use tokio::io::DuplexStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

#[tokio::test(start_paused = true)]
async fn a_device_that_trusts_the_authority_publishes_over_tls_1_2_and_1_3() {
    let (broker, mut storage) = start(Limits::default());
    let authority = Authority::new("ca");
    let config = listener(authority.server("localhost"), None);

    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut device = dial(&broker, &config, client(&authority, None, version)).await.unwrap();
        assert_eq!(device.socket.get_ref().1.protocol_version(), Some(version.version));
        device.send(&connect_4("a", 0x02, 0)).await;
        device.expect(CONNACK).await;
        device.send(&publish_4("t", 1, 1)).await;
        storage.answer("publish", Stored).await;
        device.expect(&with_id(PUBACK, 1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_tls_is_counted_and_closed_and_silence_does_not_last() {
    let (broker, _storage) = start(Limits::default());
    let config = listener(Authority::new("ca").server("localhost"), None);

    let mut plain = Device::dial_from(&broker, "test", &config);
    plain.send(&connect_4("a", 0x02, 0)).await;
    while plain.packet().await.is_some() {} // a TLS alert
    let mut half = Device::dial_from(&broker, "test", &config);
    half.send(&[0x16, 0x03, 0x01, 0x02, 0x00]).await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    half.expect_nothing().await;
    half.expect_closed().await;

    let stats = broker.stats();
    assert_eq!((stats.tls_handshakes_failed, stats.connect_timeouts, stats.connections_open), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_time_for_connect_runs_from_before_the_handshake() {
    let (broker, _storage) = start(Limits::default());
    let authority = Authority::new("ca");
    let config = listener(authority.server("localhost"), None);
    let slow = Device::dial_from(&broker, "test", &config);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let mut device = handshake(slow, client(&authority, None, &rustls::version::TLS13)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    device.expect_nothing().await;
    device.expect_closed().await;
    assert_eq!(broker.stats().connect_timeouts, 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_handshakes() {
    let (broker, _storage) = start(Limits::default());
    let config = listener(Authority::new("ca").server("localhost"), None);
    let mut half = Device::dial_from(&broker, "test", &config);
    half.send(&[0x16, 0x03]).await;
    let stopped = tokio::time::timeout(Duration::from_secs(1), broker.shutdown()).await;
    assert!(stopped.is_ok(), "it waits for the handshake");
}

#[tokio::test(start_paused = true)]
async fn a_client_certificate_says_who_it_is() {
    let devices = Authority::new("devices");
    let ann = devices.client("ann", &["ann.site.example", "other.example"]);
    for (identity, user) in [
        (CertificateIdentity::CommonName, Some("ann")),
        (CertificateIdentity::SubjectAltName, Some("ann.site.example")),
    ] {
        let (broker, mut storage) = start(Limits::default());
        broker.set_access(Access { refuse_anonymous: true, ..Access::default() });
        let server = Authority::new("ca");
        let config = listener(server.server("localhost"), Some(devices.clients(true, identity)));

        let mut device = connected(&broker, &config, client(&server, Some(&ann), &rustls::version::TLS13)).await;
        device.send(&publish_4("t", 1, 1)).await;
        assert_eq!(storage.next_publish().await.user_name.as_deref(), user);
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_only_opens_the_door_leaves_the_rest_to_the_password() {
    let (broker, _storage) = start(Limits::default());
    broker.set_access(Access { refuse_anonymous: true, ..Access::default() });
    let (server, devices) = (Authority::new("ca"), Authority::new("devices"));
    let config = listener(server.server("localhost"), Some(devices.clients(true, CertificateIdentity::None)));
    let ann = devices.client("ann", &[]);

    let mut device = dial(&broker, &config, client(&server, Some(&ann), &rustls::version::TLS13)).await.unwrap();
    device.send(&connect_4("a", 0x02, 0)).await;
    device.expect(&[0x20, 2, 0, 5]).await;
}

#[tokio::test(start_paused = true)]
async fn no_certificate_or_one_of_another_authority_does_not_come_in_where_one_is_required() {
    let (broker, _storage) = start(Limits::default());
    let (server, devices, others) = (Authority::new("ca"), Authority::new("devices"), Authority::new("others"));
    let stranger = others.client("ann", &[]);
    let nameless = devices.client("", &[]);
    let required = listener(server.server("localhost"), Some(devices.clients(true, CertificateIdentity::CommonName)));
    let optional = listener(server.server("localhost"), Some(devices.clients(false, CertificateIdentity::CommonName)));

    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        assert!(!comes_in(&broker, &required, client(&server, None, version)).await);
        assert!(!comes_in(&broker, &required, client(&server, Some(&stranger), version)).await);
        assert!(!comes_in(&broker, &required, client(&server, Some(&nameless), version)).await);
        assert!(comes_in(&broker, &optional, client(&server, None, version)).await);
        assert!(!comes_in(&broker, &optional, client(&server, Some(&stranger), version)).await);
    }
    assert_eq!(broker.stats().tls_handshakes_failed, 8);
}

#[tokio::test(start_paused = true)]
async fn a_new_certificate_is_seen_by_new_connections_and_old_ones_go_on() {
    let (broker, mut storage) = start(Limits::default());
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let config = listener(before.server("localhost"), None);
    let mut old = connected(&broker, &config, client(&before, None, &rustls::version::TLS13)).await;

    let tls = config.tls.as_ref().unwrap();
    tls.replace(&ServerTls::new(settings(after.server("localhost"), None)).unwrap());
    broker.revoke(tls);

    assert!(!comes_in(&broker, &config, client(&before, None, &rustls::version::TLS13)).await);
    assert!(comes_in(&broker, &config, client(&after, None, &rustls::version::TLS13)).await);
    old.send(&publish_4("t", 1, 1)).await;
    storage.answer("publish", Stored).await;
    old.expect(&with_id(PUBACK, 1)).await;
    assert_eq!(broker.stats().revoked, 0);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_used_leaves_the_certificate_of_before() {
    let (broker, _storage) = start(Limits::default());
    let authority = Authority::new("ca");
    let config = listener(authority.server("localhost"), None);
    let (chain, _) = authority.server("localhost");
    let (_, another_key) = authority.server("localhost");

    let error = ServerTls::new(settings((chain, another_key), None)).unwrap_err();

    assert!(matches!(error, TlsError::Key(_)), "{error}");
    assert!(error.to_string().contains("does not belong to the certificate"), "{error}");
    assert!(comes_in(&broker, &config, client(&authority, None, &rustls::version::TLS13)).await);
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_certificate_is_revoked_is_closed_and_does_not_come_in_again() {
    let (broker, _storage) = start(Limits::default());
    let (server, devices) = (Authority::new("ca"), Authority::new("devices"));
    let (ann, bob) = (devices.client("ann", &[]), devices.client("bob", &[]));
    let identity = CertificateIdentity::CommonName;
    let config = listener(server.server("localhost"), Some(devices.clients(true, identity)));
    let mut ann_there = connected(&broker, &config, client(&server, Some(&ann), &rustls::version::TLS13)).await;
    let mut bob_there = connected(&broker, &config, client(&server, Some(&bob), &rustls::version::TLS13)).await;

    let clients =
        ClientCertificates { revocation_lists: vec![devices.revoke(&ann)], ..devices.clients(true, identity) };
    let tls = config.tls.as_ref().unwrap();
    tls.replace(&ServerTls::new(settings(server.server("localhost"), Some(clients))).unwrap());
    broker.revoke(tls);

    ann_there.expect_closed().await;
    bob_there.send(PINGREQ).await;
    bob_there.expect(PINGRESP).await;
    assert!(!comes_in(&broker, &config, client(&server, Some(&ann), &rustls::version::TLS13)).await);
    assert!(comes_in(&broker, &config, client(&server, Some(&bob), &rustls::version::TLS13)).await);
    assert_eq!(broker.stats().revoked, 1);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_revoked_between_handshake_and_connect_does_not_come_in() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (broker, _storage) = start(Limits::default());
        let (server, devices) = (Authority::new("ca"), Authority::new("devices"));
        let ann = devices.client("ann", &[]);
        let identity = CertificateIdentity::CommonName;
        let config = listener(server.server("localhost"), Some(devices.clients(true, identity)));
        let mut device = dial(&broker, &config, client(&server, Some(&ann), version)).await.unwrap();

        let clients =
            ClientCertificates { revocation_lists: vec![devices.revoke(&ann)], ..devices.clients(true, identity) };
        let tls = config.tls.as_ref().unwrap();
        tls.replace(&ServerTls::new(settings(server.server("localhost"), Some(clients))).unwrap());
        broker.revoke(tls); // it does not know yet whose the connection is

        device.send(&connect_4("a", 0x02, 0)).await;
        device.expect(&[0x20, 2, 0, 3]).await;
        device.expect_closed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_list_of_one_authority_shuts_out_no_other_and_not_those_below_another() {
    let (broker, _storage) = start(Limits::default());
    let (server, root, others) = (Authority::new("ca"), Authority::new("root"), Authority::new("others"));
    let site = Authority::below(&root, "site");
    let (ann, bob) = (site.client("ann", &[]).with(&site), site.client("bob", &[]).with(&site));
    let cyd = others.client("cyd", &[]);
    let clients = ClientCertificates {
        authorities: vec![root.issuer.der().clone(), others.issuer.der().clone()],
        revocation_lists: vec![site.revoke(&ann)],
        ..root.clients(true, CertificateIdentity::CommonName)
    };
    let config = listener(server.server("localhost"), Some(clients));

    assert!(!comes_in(&broker, &config, client(&server, Some(&ann), &rustls::version::TLS13)).await);
    assert!(comes_in(&broker, &config, client(&server, Some(&bob), &rustls::version::TLS13)).await);
    assert!(comes_in(&broker, &config, client(&server, Some(&cyd), &rustls::version::TLS13)).await);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_signed_by_an_authority_that_is_revoked_does_not_come_in() {
    let (broker, _storage) = start(Limits::default());
    let (server, root) = (Authority::new("ca"), Authority::new("root"));
    let (lost, kept) = (Authority::below(&root, "lost"), Authority::below(&root, "kept"));
    let (ann, bob) = (lost.client("ann", &[]).with(&lost), kept.client("bob", &[]).with(&kept));
    let clients = ClientCertificates {
        revocation_lists: vec![root.revoke_number(&lost.number)],
        ..root.clients(true, CertificateIdentity::CommonName)
    };
    let config = listener(server.server("localhost"), Some(clients));

    assert!(!comes_in(&broker, &config, client(&server, Some(&ann), &rustls::version::TLS13)).await);
    assert!(comes_in(&broker, &config, client(&server, Some(&bob), &rustls::version::TLS13)).await);
}

#[test]
fn a_list_that_cannot_be_used_is_not_blamed_on_the_authority() {
    let authority = Authority::new("ca");
    let clients = ClientCertificates {
        revocation_lists: vec![b"no list".to_vec().into()],
        ..authority.clients(true, CertificateIdentity::CommonName)
    };
    let error = ServerTls::new(settings(authority.server("localhost"), Some(clients))).unwrap_err();
    assert!(matches!(error, TlsError::RevocationList(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_client_of_an_authority_that_is_no_longer_trusted_is_closed() {
    let (broker, _storage) = start(Limits::default());
    let (server, devices, others) = (Authority::new("ca"), Authority::new("devices"), Authority::new("others"));
    let ann = devices.client("ann", &[]);
    let identity = CertificateIdentity::CommonName;
    let config = listener(server.server("localhost"), Some(devices.clients(true, identity)));
    let mut device = connected(&broker, &config, client(&server, Some(&ann), &rustls::version::TLS13)).await;

    let tls = config.tls.as_ref().unwrap();
    tls.replace(&ServerTls::new(settings(server.server("localhost"), Some(others.clients(true, identity)))).unwrap());
    broker.revoke(tls);

    device.expect_closed().await;
}

#[test]
fn a_certificate_says_from_when_until_when_it_is_valid() {
    let authority = Authority::new("ca");
    let (chain, _) = authority.sign(|params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 2);
    });
    let validity = validity(&chain).unwrap();
    assert_eq!(validity.ends.duration_since(validity.begins).unwrap(), Duration::from_secs(24 * 3_600));
    assert!(matches!(forebay_broker::tls::validity(&[]), Err(TlsError::Certificate(_))));
}

/// Who signs certificates.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    number: SerialNumber,
}

type Signed = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A certificate that a client shows, with its number.
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    number: SerialNumber,
}

impl Shown {
    /// With the certificate of who signed it behind it.
    fn with(mut self, authority: &Authority) -> Self {
        self.chain.push(authority.issuer.der().clone());
        self
    }
}

impl Authority {
    fn new(name: &str) -> Self {
        let (params, number) = Self::params(name);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(), number }
    }

    fn below(other: &Self, name: &str) -> Self {
        let (params, number) = Self::params(name);
        let key = KeyPair::generate().unwrap();
        Self { issuer: CertifiedIssuer::signed_by(params, key, &other.issuer).unwrap(), number }
    }

    fn params(name: &str) -> (CertificateParams, SerialNumber) {
        let number = SerialNumber::from(fastrand::u64(1..));
        let mut params = CertificateParams::new([]).unwrap();
        params.serial_number = Some(number.clone());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params, number)
    }

    fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> Signed {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (vec![certificate.into()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    fn server(&self, name: &str) -> Signed {
        self.sign(|params| {
            params.subject_alt_names = vec![rcgen::SanType::DnsName(name.try_into().unwrap())];
        })
    }

    fn client(&self, name: &str, alt_names: &[&str]) -> Shown {
        let number = SerialNumber::from(fastrand::u64(1..));
        let (chain, key) = self.sign(|params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.subject_alt_names =
                alt_names.iter().map(|name| rcgen::SanType::DnsName((*name).try_into().unwrap())).collect();
            params.serial_number = Some(number.clone());
        });
        Shown { chain, key, number }
    }

    fn clients(&self, are_required: bool, identity: CertificateIdentity) -> ClientCertificates {
        let authorities = vec![self.issuer.der().clone()];
        ClientCertificates { authorities, revocation_lists: Vec::new(), are_required, identity }
    }

    fn revoke(&self, shown: &Shown) -> CertificateRevocationListDer<'static> {
        self.revoke_number(&shown.number)
    }

    fn revoke_number(&self, number: &SerialNumber) -> CertificateRevocationListDer<'static> {
        let revoked = RevokedCertParams {
            serial_number: number.clone(),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(4096, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().into()
    }
}

fn settings((chain, key): Signed, clients: Option<ClientCertificates>) -> TlsSettings {
    TlsSettings { chain, key, clients }
}

fn listener(server: Signed, clients: Option<ClientCertificates>) -> ListenerConfig {
    let tls = ServerTls::new(settings(server, clients)).unwrap();
    ListenerConfig { tls: Some(tls), ..ListenerConfig::default() }
}

fn client(
    trusts: &Authority,
    shows: Option<&Shown>,
    version: &'static rustls::SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(trusts.issuer.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
    let builder = builder.with_root_certificates(roots);
    Arc::new(match shows {
        None => builder.with_no_client_auth(),
        Some(shown) => builder.with_client_auth_cert(shown.chain.clone(), shown.key.clone_key()).unwrap(),
    })
}

async fn dial(
    broker: &Broker,
    listener: &ListenerConfig,
    client: Arc<ClientConfig>,
) -> io::Result<Device<TlsStream<DuplexStream>>> {
    handshake(Device::dial_from(broker, "test", listener), client).await
}

async fn handshake(device: Device, client: Arc<ClientConfig>) -> io::Result<Device<TlsStream<DuplexStream>>> {
    let name = ServerName::try_from("localhost").unwrap();
    let socket = TlsConnector::from(client).connect(name, device.socket).await?;
    Ok(Device { socket })
}

async fn connected(
    broker: &Broker,
    listener: &ListenerConfig,
    client: Arc<ClientConfig>,
) -> Device<TlsStream<DuplexStream>> {
    let mut device = dial(broker, listener, client).await.unwrap();
    device.send(&connect_4("", 0x02, 0)).await;
    device.expect(CONNACK).await;
    device
}

/// In TLS 1.3 a client learns after its handshake that its certificate is not accepted.
async fn comes_in(broker: &Broker, listener: &ListenerConfig, client: Arc<ClientConfig>) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let Ok(mut device) = dial(broker, listener, client).await else { return false };
    if device.socket.write_all(&connect_4("", 0x02, 0)).await.is_err() {
        return false;
    }
    let mut answer = [0; 4];
    device.socket.read_exact(&mut answer).await.is_ok() && answer == CONNACK
}
