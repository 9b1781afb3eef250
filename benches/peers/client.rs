//! A client of mutual TLS 1.3 in this process, for any server that has a [`Host`]'s certificates: many connections at once
//! that cost no process each.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::{CipherSuite, ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::frames::{self, frame, read_frame};
use crate::servers::{Host, SERVER_NAME};

/// A server that takes longer never answers.
const PATIENCE: Duration = Duration::from_secs(20);

/// How the keys of a connection are agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyExchange {
    /// X25519 and nothing else.
    X25519,
    /// X25519MLKEM768 where the server knows it, as every tstunnel does; else X25519, without another round trip.
    PostQuantum,
}

/// The client that a host grants its commands to.
#[derive(Clone)]
pub(crate) struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// An open connection.
pub(crate) type Connection = StreamOwned<ClientConnection, TcpStream>;

impl Client {
    /// One with the files of `host`, which resumes nothing.
    pub(crate) fn of(host: &Host, exchange: KeyExchange) -> Client {
        let file = |name: &str| host.folder().join(name);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(file("ca.crt")).unwrap()).unwrap();
        let certificate = CertificateDer::from_pem_file(file("client.crt")).unwrap();
        let key = PrivateKeyDer::from_pem_file(file("client.key")).unwrap();
        let mut provider = default_provider();
        // tstunnel's first choice, for whichever server leaves the choice to the client.
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        if exchange == KeyExchange::X25519 {
            provider.kx_groups = vec![kx_group::X25519];
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)
            .unwrap();
        config.resumption = Resumption::disabled();
        Client { config: Arc::new(config), name: ServerName::try_from(SERVER_NAME).unwrap() }
    }

    /// Connects; the handshake is made with the first byte that is sent or expected.
    pub(crate) fn connect(&self, address: SocketAddr) -> Connection {
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        StreamOwned::new(ClientConnection::new(self.config.clone(), self.name.clone()).unwrap(), tcp)
    }

    /// Makes one full handshake, and returns once the server has ended the connection behind it. Nothing but the client's own
    /// end is sent, so a server that does not take the certificate has nothing to say but an alert, which is a failure.
    pub(crate) fn shake(&self, address: SocketAddr) {
        let mut connection = self.connect(address);
        while connection.conn.is_handshaking() {
            connection.conn.complete_io(&mut connection.sock).unwrap();
        }
        assert_eq!(connection.conn.handshake_kind(), Some(HandshakeKind::Full));
        connection.conn.send_close_notify();
        connection.flush().unwrap();
        match connection.read(&mut [0]) {
            Ok(0) => {}
            // HAProxy ends the connection without a word of TLS.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            other => panic!("the server was to end the connection: {other:?}"),
        }
    }

    /// Opens a session of tstunnel's, by a request whose command or target sends back what it gets, and waits until it has
    /// done so.
    pub(crate) fn open_session(&self, address: SocketAddr, path: &str, body: &str) -> Connection {
        let mut connection = self.connect(address);
        let request = format!(
            "POST /tinyscale/v1{path} HTTP/1.1\r\nHost: {SERVER_NAME}\r\nConnection: Upgrade\r\nUpgrade: tstunnel/1\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            connection.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        connection.write_all(&frame(frames::STDIN, b"x")).unwrap();
        while read_frame(&mut connection).unwrap() != (frames::STDOUT, b"x".to_vec()) {}
        connection
    }

    /// Opens a connection to something behind the server that sends back what it gets, and waits until it has done so.
    pub(crate) fn open_stream(&self, address: SocketAddr) -> Connection {
        let mut connection = self.connect(address);
        connection.write_all(b"x").unwrap();
        connection.read_exact(&mut [0]).unwrap();
        connection
    }
}
