//! Both configurations against each other, in memory, and what each failure is said to be.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{ExtendedKeyUsagePurpose, IsCa, SerialNumber};
use rustls::{ClientConnection, ProtocolVersion, ServerConfig};
use rustls_pki_types::ServerName;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::fixtures::{Authority, Files, Pair, host};
use super::*;
use crate::protocol::HostId;

const SERVER_NAME: &str = "host123.containers.example.net";

fn ask_nobody(prompt: &str) -> Result<zeroize::Zeroizing<Vec<u8>>> {
    Err(Error::new(Code::Internal, prompt))
}

/// One endpoint, one client, and all their files.
struct Scene {
    files: Files,
    servers: Authority,
    clients: Authority,
    host: Host,
    crl: Vec<PathBuf>,
}

impl Scene {
    fn new() -> Scene {
        let (files, servers, clients) = (Files::new(), Authority::new("servers"), Authority::new("clients"));
        let ca = files.write("servers-ca.crt", &servers.pem());
        files.write("clients-ca.crt", &clients.pem());
        files.write_pair("server", &servers.server(SERVER_NAME));
        let (cert, key) = files.write_pair("client", &clients.client("ann.example.org"));
        let host = host(&cert, &key, &ca);
        Scene { files, servers, clients, host, crl: Vec::new() }
    }

    fn with_server(self, pair: &Pair) -> Scene {
        self.files.write_pair("server", pair);
        self
    }

    fn with_client(self, pair: &Pair) -> Scene {
        self.files.write_pair("client", pair);
        self
    }

    fn server_config(&self) -> Result<ServerConfig> {
        let path = |name: &str| self.files.path(name);
        server(&path("server.crt"), &path("server.key"), &[path("clients-ca.crt")], &self.crl)
    }

    /// Connects, and has the server send `hello`: the client's negotiated connection, or what it is told.
    async fn connect(&self) -> Result<ClientConnection> {
        let client = client_config(&self.host, &mut ask_nobody)?;
        self.connect_as(client, ServerName::try_from(SERVER_NAME).unwrap())
            .await
            .map_err(|error| classify_client_error(&error, &self.host))
    }

    async fn connect_as(
        &self,
        client: rustls::ClientConfig,
        name: ServerName<'static>,
    ) -> io::Result<ClientConnection> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let server = Arc::new(self.server_config().unwrap());
        let served = tokio::spawn(async move {
            let mut stream = accept(far, server, |_| ()).await?;
            stream.write_all(b"hello").await?;
            stream.shutdown().await
        });
        let outcome = async {
            let mut stream = TlsConnector::from(Arc::new(client)).connect(name, near).await?;
            let mut greeting = String::new();
            stream.read_to_string(&mut greeting).await?;
            assert_eq!(greeting, "hello");
            Ok(stream.into_inner().1)
        }
        .await;
        let served = served.await.unwrap();
        assert_eq!(served.is_ok(), outcome.is_ok(), "one side alone was content: {served:?}");
        outcome
    }

    async fn refusal(&self) -> Error {
        self.connect().await.expect_err("the connection was refused")
    }
}

/// The server's configuration from its files alone.
fn server(cert: &Path, key: &Path, client_ca: &[PathBuf], crl: &[PathBuf]) -> Result<ServerConfig> {
    server_config(cert, key, client_verifier(client_ca, crl)?)
}

fn hours(hours: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + time::Duration::hours(hours)
}

#[tokio::test]
async fn both_sides_speak_tls_1_3_and_http_1_1_without_tickets() {
    let connection = Scene::new().connect().await.unwrap();
    assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(connection.alpn_protocol(), Some(ALPN));
    assert_eq!(connection.tls13_tickets_received(), 0);
    assert_eq!(connection.handshake_kind(), Some(rustls::HandshakeKind::Full));
}

#[tokio::test]
async fn a_server_of_another_authority_is_untrusted() {
    let error = Scene::new().with_server(&Authority::new("others").server(SERVER_NAME)).refusal().await;
    assert_eq!(error.code, Code::TlsUntrusted);
    assert!(
        error.text.starts_with("containers.example.net's certificate is signed by an authority that is not in /"),
        "{error}"
    );
    assert!(error.text.ends_with("servers-ca.crt"), "{error}");
}

#[tokio::test]
async fn a_server_with_another_name_is_told_by_both_names() {
    let scene = Scene::new();
    let pair = scene.servers.server("*.example.org");
    let error = scene.with_server(&pair).refusal().await;
    assert_eq!(error.code, Code::TlsName);
    assert_eq!(
        error.text,
        "containers.example.net's certificate is for *.example.org, not host123.containers.example.net"
    );
}

#[tokio::test]
async fn a_server_with_many_names_is_told_by_a_few() {
    let scene = Scene::new();
    let names = ["a.test", "10.0.0.1", "c.test", "d.test", "e.test", "f.test"];
    let pair = scene.servers.issue(&names, ExtendedKeyUsagePurpose::ServerAuth, |_| {});
    let error = scene.with_server(&pair).refusal().await;
    assert!(error.text.contains("is for a.test, 10.0.0.1, c.test, d.test and 2 more, not host123."), "{error}");
    assert_eq!(failure_names(&[]), "no name at all");
}

fn failure_names(presented: &[String]) -> String {
    super::failure::names(presented)
}

#[tokio::test]
async fn a_server_name_that_the_certificate_has_for_the_host_is_named_in_the_hint() {
    let hint = async |names: &[&str], change: fn(&mut Host)| {
        let mut scene = Scene::new();
        let pair = scene.servers.issue(names, ExtendedKeyUsagePurpose::ServerAuth, |_| {});
        change(&mut scene.host);
        let error = scene.with_server(&pair).refusal().await;
        assert_eq!(error.code, Code::TlsName);
        error.hint().to_owned()
    };
    let ask = "or ask whoever runs the endpoint for a certificate for host123.containers.example.net";
    for (names, named) in [
        (&["example.org", "*.example.org"][..], "host123.example.org"),
        (&["other.test", "HOST123.test"], "host123.test"),
        (&["10.0.0.1", "host123", "*.a.test"], "host123 or host123.a.test"),
    ] {
        assert_eq!(hint(names, |_| {}).await, format!("set `sni` to {named}, {ask}"), "{names:?}");
    }
    // Another host may be meant by these.
    for (names, named) in [
        (&["other.test"][..], "other.test"),
        (&["10.0.0.1", "a.test", "b.test", "c.test", "d.test", "e.test"], "a.test or b.test or c.test or d.test"),
    ] {
        let expected = format!("set `sni` to {named} if that is this host's name, {ask}");
        assert_eq!(hint(names, |_| {}).await, expected, "{names:?}");
    }
    assert_eq!(hint(&["10.0.0.1"], |_| {}).await, Code::TlsName.default_hint());
    // A wildcard is one label.
    let of_two_labels = |host: &mut Host| host.host_id = HostId::parse("dev.host123").unwrap();
    assert_eq!(hint(&["*.example.org"], of_two_labels).await, Code::TlsName.default_hint());
}

#[test]
fn names_that_no_server_name_can_be_are_in_no_hint() {
    let host = Scene::new().host;
    let hint = |host: &Host, presented: &[&str]| {
        let presented = presented.iter().map(|name| (*name).to_owned()).collect();
        let expected = ServerName::try_from(SERVER_NAME).unwrap();
        let why = rustls::CertificateError::NotValidForNameContext { expected, presented };
        classify_tls_error(&rustls::Error::InvalidCertificate(why), host).hint().to_owned()
    };
    for odd in [
        "DnsName(\"a b\")",
        "DnsName(\"a\u{1b}[1m.test\")",
        "DnsName(\"*\")",
        "DnsName(\"*.test\")",
        "DnsName(\"*.\")",
        "DnsName(\"a.*.test\")",
        "DnsName(\"\")",
        "DnsName(\"10.0.0.1\")",
        "IpAddress(10.0.0.1)",
        "UniformResourceIdentifier(\"a.test\")",
        "DirectoryName",
    ] {
        assert_eq!(hint(&host, &[odd]), Code::TlsName.default_hint(), "{odd}");
    }
    // Behind the system's roots anybody has a certificate, of whatever name.
    let of_the_system = Host { ca: None, ..host };
    assert_eq!(hint(&of_the_system, &["DnsName(\"*.example.org\")"]), Code::TlsName.default_hint());
}

#[tokio::test]
async fn a_server_that_is_not_valid_now_is_told_with_the_date() {
    let scene = Scene::new();
    let pair = scene.servers.issue(&[SERVER_NAME], ExtendedKeyUsagePurpose::ServerAuth, |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 31);
    });
    let scene = scene.with_server(&pair);
    let error = scene.refusal().await;
    assert_eq!(error.code, Code::TlsExpired);
    assert_eq!(error.text, "containers.example.net's certificate expired at 2020-01-31 00:00:00 UTC");

    let pair = scene.servers.issue(&[SERVER_NAME], ExtendedKeyUsagePurpose::ServerAuth, |params| {
        params.not_before = rcgen::date_time_ymd(3000, 12, 1);
    });
    let error = scene.with_server(&pair).refusal().await;
    assert_eq!(error.code, Code::TlsExpired);
    assert_eq!(error.text, "containers.example.net's certificate is not valid before 3000-12-01 00:00:00 UTC");
}

#[tokio::test]
async fn a_certificate_that_is_not_for_servers_is_untrusted() {
    let scene = Scene::new();
    let pair = scene.servers.client(SERVER_NAME);
    let error = scene.with_server(&pair).refusal().await;
    assert_eq!(
        (error.code, error.text.as_str()),
        (Code::TlsUntrusted, "containers.example.net's certificate is not one for a server")
    );

    let scene = Scene::new();
    let pair = scene.servers.issue(&[SERVER_NAME], ExtendedKeyUsagePurpose::ServerAuth, |params| {
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    let error = scene.with_server(&pair).refusal().await;
    assert_eq!(error.code, Code::TlsUntrusted);
    assert!(error.text.ends_with("is an authority's own, not one for a server"), "{error}");
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let error = Scene::new().with_client(&Authority::new("others").client("ann.example.org")).refusal().await;
    assert_eq!(error.code, Code::ClientCert);
    assert!(error.text.starts_with("containers.example.net rejected the certificate /"), "{error}");
    assert!(error.text.ends_with("client.crt (alert unknown_ca)"), "{error}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let scene = Scene::new();
    let mut roots = RootCertStore::empty();
    add_roots(&mut roots, scene.host.ca.as_deref().unwrap()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let error = scene.connect_as(client, ServerName::try_from(SERVER_NAME).unwrap()).await.err().unwrap();
    let error = classify_client_error(&error, &scene.host);
    assert_eq!(error.code, Code::ClientCert);
    assert!(error.text.ends_with("(alert certificate_required)"), "{error}");
}

#[tokio::test]
async fn a_certificate_that_is_not_for_clients_is_refused() {
    let scene = Scene::new();
    let pair = scene.clients.server("ann.example.org");
    let error = scene.with_client(&pair).refusal().await;
    assert_eq!(error.code, Code::ClientCert);
    assert!(error.text.ends_with("(alert unsupported_certificate)"), "{error}");
}

#[tokio::test]
async fn a_revoked_client_is_refused_and_another_is_not() {
    let mut scene = Scene::new();
    let serial: &[u8] = &[0x11, 0x22];
    let revoked = scene.clients.issue(&["ann.example.org"], ExtendedKeyUsagePurpose::ClientAuth, |params| {
        params.serial_number = Some(SerialNumber::from_slice(serial));
    });
    scene.crl = vec![scene.files.write("clients.crl", &scene.clients.revocation_list(&[serial], hours(1)))];
    assert!(scene.connect().await.is_ok());
    let error = scene.with_client(&revoked).refusal().await;
    assert_eq!(error.code, Code::ClientCert);
    assert!(error.text.ends_with("(alert certificate_revoked)"), "{error}");
}

#[tokio::test]
async fn an_expired_or_foreign_revocation_list_lets_no_client_in() {
    let mut scene = Scene::new();
    scene.crl = vec![scene.files.write("clients.crl", &scene.clients.revocation_list(&[], hours(-1)))];
    assert!(scene.refusal().await.text.ends_with("(alert unknown_ca)"));
    scene.crl = vec![scene.files.write("clients.crl", &Authority::new("others").revocation_list(&[], hours(1)))];
    assert!(scene.refusal().await.text.ends_with("(alert unknown_ca)"));
}

#[tokio::test]
async fn of_two_authorities_of_one_name_the_first_list_decides_and_the_hint_is_true() {
    let mut scene = Scene::new();
    let second = Authority::new("clients");
    let list = |name: &str, of: &Authority| scene.files.write(name, &of.revocation_list(&[], hours(1)));
    let (list_of_first, list_of_second) = (list("first.crl", &scene.clients), list("second.crl", &second));
    let both = [scene.clients.pem() + &second.pem(), second.pem() + &scene.clients.pem()];
    for (authorities, alert) in both.iter().zip(["unknown_ca", "decrypt_error"]) {
        scene.files.write("clients-ca.crt", authorities);
        scene.crl = vec![list_of_first.clone(), list_of_second.clone()];
        assert!(scene.connect().await.is_ok());
        scene.crl.reverse();
        let error = scene.refusal().await;
        assert_eq!(error.code, Code::ClientCert);
        assert!(error.text.ends_with(&format!("(alert {alert})")), "{error}");
        assert!(error.hint().contains("revocation lists"), "{error:?}");
    }
}

#[test]
fn authorities_of_one_name_are_pointed_out_where_there_are_lists() {
    let (files, first) = (Files::new(), Authority::new("clients"));
    let list = files.write("first.crl", &first.revocation_list(&[], hours(1)));
    let first = files.write("first.crt", &first.pem());
    let second = files.write("second.crt", &Authority::new("clients").pem());
    let third = files.write("third.crt", &Authority::new("other clients").pem());
    let said = |authorities: &[&PathBuf], lists: &[PathBuf]| {
        let authorities: Vec<PathBuf> = authorities.iter().map(|path| (*path).clone()).collect();
        let mut said = doubts(&first, &[], &authorities, lists, SystemTime::now()).unwrap();
        said.retain(|doubt| doubt.contains("both authorities are called"));
        said
    };
    assert_eq!(said(&[&first, &second], &[]), [""; 0]);
    let lists = [list];
    assert_eq!(said(&[&first, &third, &first], &lists), [""; 0]);
    let doubts = said(&[&first, &third, &second], &lists);
    let files = format!("{} and {}: both authorities are called `CN=clients`", first.display(), second.display());
    assert!(doubts.len() == 1 && doubts[0].starts_with(&files), "{doubts:?}");
}

#[tokio::test]
async fn a_certificate_that_was_let_in_is_asked_everything_again() {
    let mut scene = Scene::new();
    let serial: &[u8] = &[0x11, 0x22];
    let known = scene.clients.issue(&["ann.example.org"], ExtendedKeyUsagePurpose::ClientAuth, |params| {
        params.serial_number = Some(SerialNumber::from_slice(serial));
    });
    scene = scene.with_client(&known);
    for _ in 0..2 {
        assert!(scene.connect().await.is_ok());
    }

    // Whoever shows it has another key.
    let mut client = client_config(&scene.host, &mut ask_nobody).unwrap();
    let chain = pem::certificates(&scene.host.cert).unwrap();
    let stranger = scene.files.write_pair("stranger", &scene.clients.client("eve.example.org"));
    let key = pem::private_key(&stranger.1).unwrap();
    let signing_key = provider().key_provider.load_private_key(key).unwrap();
    let pair = rustls::sign::CertifiedKey::new(chain, signing_key);
    client.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(pair));
    let error = scene.connect_as(client, ServerName::try_from(SERVER_NAME).unwrap()).await.err().unwrap();
    let tls = error.get_ref().unwrap().downcast_ref::<rustls::Error>().unwrap();
    assert_eq!(*tls, rustls::Error::AlertReceived(rustls::AlertDescription::DecryptError));

    // Its last byte, which is the signature's, is another.
    let mut forged = pem::certificates(&scene.host.cert).unwrap().remove(0).to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let verifier = client_verifier(&[scene.files.path("clients-ca.crt")], &[]).unwrap();
    let error = verifier.verify_client_cert(&forged.into(), &[], rustls_pki_types::UnixTime::now()).unwrap_err();
    assert_eq!(error, rustls::CertificateError::BadSignature.into());

    // It is revoked.
    scene.crl = vec![scene.files.write("clients.crl", &scene.clients.revocation_list(&[serial], hours(1)))];
    assert!(scene.refusal().await.text.ends_with("(alert certificate_revoked)"));

    // Its authority is not trusted any more.
    scene.crl = Vec::new();
    scene.files.write("clients-ca.crt", &Authority::new("others").pem());
    assert!(scene.refusal().await.text.ends_with("(alert unknown_ca)"));
}

#[tokio::test]
async fn a_client_hello_without_sni_gets_unrecognized_name() {
    let scene = Scene::new();
    let client = client_config(&scene.host, &mut ask_nobody).unwrap();
    let error = scene.connect_as(client, ServerName::try_from("10.0.0.1").unwrap()).await.err().unwrap();
    let tls = error.get_ref().unwrap().downcast_ref::<rustls::Error>().unwrap();
    assert_eq!(*tls, rustls::Error::AlertReceived(rustls::AlertDescription::UnrecognisedName));
    let error = classify_client_error(&error, &scene.host);
    assert_eq!(
        (error.code, error.text.as_str()),
        (Code::HostUnknown, "containers.example.net serves no host named host123.containers.example.net")
    );
}

#[tokio::test]
async fn the_configuration_alone_refuses_a_client_hello_without_sni() {
    let scene = Scene::new();
    let client = client_config(&scene.host, &mut ask_nobody).unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let server = TlsAcceptor::from(Arc::new(scene.server_config().unwrap())).accept(far);
    let client = TlsConnector::from(Arc::new(client)).connect(ServerName::try_from("10.0.0.1").unwrap(), near);
    let (server, client) = tokio::join!(server, client);
    assert!(server.is_err());
    assert!(client.err().unwrap().to_string().contains("AccessDenied"));
}

#[tokio::test]
async fn the_server_does_not_speak_tls_1_2() {
    let mut scene = Scene::new();
    scene.host.min_tls = MinTls::V1_2;
    assert_eq!(scene.connect().await.unwrap().protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let mut roots = RootCertStore::empty();
    add_roots(&mut roots, scene.host.ca.as_deref().unwrap()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let error = scene.connect_as(client, ServerName::try_from(SERVER_NAME).unwrap()).await.err().unwrap();
    let error = classify_client_error(&error, &scene.host);
    assert_eq!(error.code, Code::TlsHandshake);
    assert!(error.text.contains("alert protocol_version"), "{error}");
}

/// What the client says of a peer that sends `answer` and closes.
async fn said_of(answer: &'static [u8], min_tls: MinTls) -> Error {
    let mut scene = Scene::new();
    scene.host.min_tls = min_tls;
    let client = client_config(&scene.host, &mut ask_nobody).unwrap();
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let peer = tokio::spawn(async move {
        let mut hello = [0; 1024];
        let _ = far.read(&mut hello).await.unwrap();
        far.write_all(answer).await.unwrap();
    });
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let error = TlsConnector::from(Arc::new(client)).connect(name, near).await.err().unwrap();
    peer.await.unwrap();
    classify_handshake_error(&error, &scene.host)
}

#[tokio::test]
async fn a_peer_that_does_not_speak_tls_is_not_tstunnel() {
    for answer in [&b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9.9\r\n"] {
        let error = said_of(answer, MinTls::V1_3).await;
        assert_eq!(
            (error.code, error.text.as_str()),
            (Code::NotTstunnel, "containers.example.net:443 does not speak TLS")
        );
    }
}

#[tokio::test]
async fn a_peer_that_closes_at_once_failed_the_handshake() {
    let error = said_of(b"", MinTls::V1_3).await;
    assert_eq!(
        (error.code, error.text.as_str()),
        (Code::TlsHandshake, "containers.example.net:443 closed the connection during the TLS handshake")
    );
}

#[tokio::test]
async fn an_alert_is_named_as_the_standard_does() {
    for (number, code, text) in [
        (40, Code::TlsHandshake, "alert handshake_failure"),
        (42, Code::ClientCert, "alert bad_certificate"),
        (51, Code::ClientCert, "alert decrypt_error"),
        (43, Code::ClientCert, "alert unsupported_certificate"),
        (44, Code::ClientCert, "alert certificate_revoked"),
        (45, Code::ClientCert, "alert certificate_expired"),
        (46, Code::ClientCert, "alert certificate_unknown"),
        (48, Code::ClientCert, "alert unknown_ca"),
        (49, Code::ClientCert, "alert access_denied"),
        (70, Code::TlsHandshake, "alert protocol_version"),
        (112, Code::HostUnknown, "serves no host named"),
        (116, Code::ClientCert, "alert certificate_required"),
        (120, Code::NotTstunnel, "does not speak http/1.1"),
        (200, Code::TlsHandshake, "alert number 200"),
    ] {
        let host = Scene::new().host;
        let error = classify_tls_error(&rustls::Error::AlertReceived(rustls::AlertDescription::from(number)), &host);
        assert_eq!(error.code, code, "{error}");
        assert!(error.text.contains(text), "{error}");
    }
    assert_eq!(said_of(&UNRECOGNIZED_NAME, MinTls::V1_3).await.code, Code::HostUnknown);
    assert_eq!(classify_unasked(UNRECOGNIZED_NAME, &Scene::new().host).unwrap().code, Code::HostUnknown);
    assert!(said_of(&[21, 3, 3, 0, 2, 2, 70], MinTls::V1_3).await.hint().contains("min_tls"));
    assert!(!said_of(&[21, 3, 3, 0, 2, 2, 70], MinTls::V1_2).await.hint().contains("min_tls"));
}

#[tokio::test]
async fn whoever_denies_access_before_it_has_seen_a_certificate_means_the_address() {
    let said = said_of(&ACCESS_DENIED, MinTls::V1_3).await;
    assert_eq!(said.code, Code::TooMany);
    assert!(said.text.contains("does not let this address in for now"), "{said}");
    assert_eq!(classify_unasked(ACCESS_DENIED, &Scene::new().host), Some(said));
    assert_eq!(classify_unasked(*b"HTTP/1.", &Scene::new().host), None);
}

#[test]
fn a_tls_error_is_found_however_deep_it_is_wrapped() {
    let inner = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::NoApplicationProtocol);
    let outer = io::Error::other(io::Error::other(inner));
    assert_eq!(classify_client_error(&outer, &Scene::new().host).code, Code::NotTstunnel);
    let other = classify_client_error(&io::Error::other("something"), &Scene::new().host);
    assert_eq!(
        (other.code, other.text.as_str()),
        (Code::TlsHandshake, "the TLS handshake with containers.example.net:443 failed: something")
    );
}

/// What is wrong with the client's files.
fn complaint(scene: &Scene) -> Error {
    let error = client_config(&scene.host, &mut ask_nobody).unwrap_err();
    assert_eq!(error.code, Code::Config);
    error
}

#[test]
fn a_client_certificate_that_is_not_valid_now_is_refused_here() {
    let scene = Scene::new();
    let issue = |change: fn(&mut rcgen::CertificateParams)| {
        scene.clients.issue(&["ann.example.org"], ExtendedKeyUsagePurpose::ClientAuth, change)
    };
    let expired = issue(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 31));
    let early = issue(|params| params.not_before = rcgen::date_time_ymd(3000, 12, 1));
    let path = scene.host.cert.display().to_string();
    let scene = scene.with_client(&expired);
    assert_eq!(complaint(&scene).text, format!("{path}: the certificate expired at 2020-01-31 00:00:00 UTC"));
    let scene = scene.with_client(&early);
    assert_eq!(complaint(&scene).text, format!("{path}: the certificate is not valid before 3000-12-01 00:00:00 UTC"));
}

#[test]
fn a_key_that_is_not_the_certificates_is_refused() {
    let mut scene = Scene::new();
    scene.host.key = scene.files.path("server.key");
    let error = complaint(&scene);
    assert!(error.text.contains("server.key: the private key is not that of the certificate in"), "{error}");
    assert_eq!(
        server(
            &scene.files.path("server.crt"),
            &scene.files.path("client.key"),
            &[scene.files.path("clients-ca.crt")],
            &[]
        )
        .unwrap_err()
        .code,
        Code::Config
    );
}

#[test]
fn a_key_or_certificate_that_is_malformed_inside_is_refused() {
    let scene = Scene::new();
    scene.files.write("client.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    assert!(complaint(&scene).text.contains("client.key: the private key cannot be used"));
    scene.files.write("client.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    assert!(complaint(&scene).text.contains("client.crt: the certificate is malformed"));
    scene.files.write("servers-ca.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let scene = scene.with_client(&Authority::new("x").client("x.test"));
    assert!(complaint(&scene).text.contains("servers-ca.crt: no certificate in it can be a trust anchor"));
}

#[test]
fn every_file_of_the_client_must_be_there() {
    for name in ["client.crt", "client.key", "servers-ca.crt"] {
        let scene = Scene::new();
        fs::remove_file(scene.files.path(name)).unwrap();
        let error = complaint(&scene);
        assert!(error.text.starts_with("cannot read /") && error.text.contains(name), "{error}");
    }
}

#[test]
fn a_servers_key_that_others_can_read_is_refused() {
    let scene = Scene::new();
    let key = scene.files.path("server.key");
    fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    assert_eq!(scene.server_config().unwrap_err().hint(), format!("chmod 600 {}", key.display()));
}

#[test]
fn a_client_key_that_others_can_read_is_refused() {
    let scene = Scene::new();
    fs::set_permissions(&scene.host.key, Permissions::from_mode(0o644)).unwrap();
    let error = complaint(&scene);
    assert_eq!(error.hint(), format!("chmod 600 {}", scene.host.key.display()));
}

#[test]
fn a_ca_file_keeps_its_good_anchors_beside_a_bad_one() {
    let scene = Scene::new();
    let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    scene.files.write("servers-ca.crt", &format!("{bad}{}", scene.servers.pem()));
    assert_eq!(roots(scene.host.ca.as_deref()).unwrap().len(), 1);
}

#[test]
fn a_server_without_authorities_or_with_a_bad_list_does_not_start() {
    let mut scene = Scene::new();
    let path = |name: &str| scene.files.path(name);
    let error = server(&path("server.crt"), &path("server.key"), &[], &[]).unwrap_err();
    assert_eq!((error.code, error.text.as_str()), (Code::Config, "no `client_ca` is configured"));
    scene.crl = vec![scene.files.path("none.crl")];
    assert!(scene.server_config().unwrap_err().text.contains("none.crl"));
    scene.crl = vec![
        scene.files.write("good.crl", &scene.clients.revocation_list(&[], hours(1))),
        scene.files.write("bad.crl", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"),
    ];
    let error = scene.server_config().unwrap_err();
    assert!(error.text.contains("bad.crl: the revocation list cannot be used"), "{error}");
}

#[test]
fn a_date_is_written_in_utc() {
    assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
    assert_eq!(date(1_709_210_096), "2024-02-29 12:34:56 UTC");
    assert_eq!(date(i64::MAX), "9223372036854775807 seconds after 1970");
}
