//! A client that says any bytes over TLS, and tells exactly what came back and how the connection ended.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::support::pki::Identity;
use crate::support::wait::SOON;
use crate::support_net::site::{SERVER_NAME, Site};

/// The client's end of a connection.
pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Who calls, and where.
#[derive(Clone)]
pub(crate) struct Caller {
    config: Arc<ClientConfig>,
    address: SocketAddr,
    name: ServerName<'static>,
}

/// All that came back until the connection's end.
pub(crate) struct Heard {
    pub(crate) bytes: Vec<u8>,
    pub(crate) end: End,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With close_notify.
    Proper,
    /// Without a word of TLS, or with an alert.
    Broken(String),
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Caller {
    pub(crate) fn new(site: &Site, identity: &Identity) -> Caller {
        let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).map(Result::unwrap).collect();
        Caller::with_chain(site, chain, &PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap())
    }

    /// One that shows any chain, and proves that it has this key, whether that fits or not.
    pub(crate) fn with_chain(site: &Site, chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'_>) -> Caller {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(site.servers.certificate().as_bytes()).unwrap()).unwrap();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))));
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        Caller { config: Arc::new(config), address: site.address(), name }
    }

    /// The same caller, for another server name.
    pub(crate) fn of(self, name: &str) -> Caller {
        Caller { name: ServerName::try_from(name.to_owned()).unwrap(), ..self }
    }

    /// A connection on which nothing has been sent yet.
    pub(crate) fn connect(&self) -> Tls {
        let tcp = TcpStream::connect(self.address).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(SOON)).unwrap();
        tcp.set_write_timeout(Some(SOON)).unwrap();
        StreamOwned::new(ClientConnection::new(Arc::clone(&self.config), self.name.clone()).unwrap(), tcp)
    }

    /// Says `bytes`, and listens until the server has ended the connection.
    pub(crate) fn say(&self, bytes: impl AsRef<[u8]>) -> Heard {
        let mut tls = self.connect();
        // A server that has heard enough may be gone before the rest is said.
        let _ = tls.write_all(bytes.as_ref()).and_then(|()| tls.flush());
        listen(&mut tls)
    }

    /// Says `bytes` and close_notify behind them.
    pub(crate) fn say_all(&self, bytes: impl AsRef<[u8]>) -> Heard {
        let mut tls = self.connect();
        tls.write_all(bytes.as_ref()).unwrap();
        tls.conn.send_close_notify();
        let _ = tls.flush();
        listen(&mut tls)
    }
}

/// Reads until the end.
pub(crate) fn listen(tls: &mut Tls) -> Heard {
    let mut bytes = Vec::new();
    let end = match tls.read_to_end(&mut bytes) {
        Ok(_) => End::Proper,
        Err(error) => {
            let timed_out = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
            assert!(!timed_out, "the server holds on to the connection; it said {:?}", String::from_utf8_lossy(&bytes));
            End::Broken(error.to_string())
        }
    };
    Heard { bytes, end }
}

impl std::fmt::Debug for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({:?})", String::from_utf8_lossy(&self.bytes), self.end)
    }
}

impl Heard {
    /// The answers, cut where their lengths say, and what follows the last one.
    pub(crate) fn answers(&self) -> (Vec<Answer>, &[u8]) {
        let mut answers = Vec::new();
        let mut rest = self.bytes.as_slice();
        while let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") {
            let (head, after) = rest.split_at(end + 4);
            let head = String::from_utf8(head.to_vec()).unwrap();
            // hyper answers HTTP/1.0 in its own words.
            let status = head.strip_prefix("HTTP/1.1 ").or_else(|| head.strip_prefix("HTTP/1.0 "));
            let status = status.and_then(|rest| rest.get(..3)?.parse().ok());
            let status = status.unwrap_or_else(|| panic!("this is no answer: {head}"));
            let length = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
            // An answer to HEAD has a length and no body.
            let (body, after) = after.split_at(if after.is_empty() { 0 } else { length.min(after.len()) });
            answers.push(Answer { status, head, body: body.to_vec() });
            rest = after;
            if status == 101 {
                break;
            }
        }
        (answers, rest)
    }

    /// The one answer, with nothing behind it.
    #[track_caller]
    pub(crate) fn answer(&self) -> Answer {
        let (mut answers, rest) = self.answers();
        assert!(answers.len() == 1 && rest.is_empty(), "{:?}: {}", self.end, String::from_utf8_lossy(&self.bytes));
        assert_eq!(self.end, End::Proper, "{answers:?}");
        answers.remove(0)
    }

    /// Checks that this is one refusal, whole, as RFC 9457 and tstunnel-protocol(7) have it, and a proper end behind it.
    #[track_caller]
    pub(crate) fn is_refused(&self, what: &str, status: u16, code: &str) {
        let answer = self.answer();
        assert_eq!(answer.status, status, "{what}: {}{}", answer.head, String::from_utf8_lossy(&answer.body));
        assert_eq!(field(&answer.head, "content-type"), Some("application/problem+json"), "{what}: {}", answer.head);
        let problem: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(problem["type"], format!("urn:tstunnel:{code}"), "{what}: {problem}");
        assert_eq!(problem["status"], status, "{what}: {problem}");
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{what}: {problem}");
    }

    /// Checks that this is one answer with a status, and a proper end behind it.
    #[track_caller]
    pub(crate) fn is_served(&self, what: &str, status: u16) {
        let answer = self.answer();
        assert_eq!(answer.status, status, "{what}: {}{}", answer.head, String::from_utf8_lossy(&answer.body));
    }
}

/// A field of a head, by its name in lower case.
pub(crate) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
