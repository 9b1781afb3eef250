//! Both configurations against each other, in memory, and what each failure is said to be.

mod clients;
mod files;
mod wire;

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
