//! A client that asks the live server one thing after another, as plainly as can be.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;
use tstunnel::error::Code;
use tstunnel::protocol::encoding::percent_encode;
use tstunnel::protocol::head::Response;

use crate::support::pki::Identity;
use crate::support_net::site::Site;

/// The SHA-256 of no bytes at all (FIPS 180-2), as a digest field has it: what is uploaded is empty.
const DIGEST_OF_NOTHING: &str = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";

/// One thing to ask.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) host: &'a str,
    /// `upload:NAME`, `stream:TARGET`, a line, or a program and its arguments.
    pub(crate) words: &'a [&'a str],
    pub(crate) user: Option<&'a str>,
    pub(crate) source: Ipv4Addr,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Allowed,
    Refused(String),
}

/// Whoever has the certificate.
pub(crate) struct Client {
    config: Arc<ClientConfig>,
    server: SocketAddr,
}

impl Client {
    pub(crate) fn new(site: &Site, identity: &Identity) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(site.servers.certificate().as_bytes()).unwrap()).unwrap();
        let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        Client { config: Arc::new(config), server: site.address() }
    }

    /// Asks, and says what the answer means.
    pub(crate) fn ask(&self, asked: &Asked<'_>) -> Verdict {
        let response = self.exchange(asked);
        let (head, length) = Response::parse(&response).unwrap().expect("a whole head");
        // Started or stored; or allowed, and then there was no such program or no such socket.
        if matches!(head.status, 101 | 200 | 201) {
            return Verdict::Allowed;
        }
        match head.refusal(&response[length..]).code {
            Code::AgentMissing | Code::AgentNotExecutable | Code::TargetUnreachable => Verdict::Allowed,
            code => Verdict::Refused(code.to_string()),
        }
    }

    fn exchange(&self, asked: &Asked<'_>) -> Vec<u8> {
        let name = format!("{}.tunnel.test", asked.host);
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&socket, &SocketAddr::from((asked.source, 0))).unwrap();
        connect(&socket, &self.server).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        let server_name = ServerName::try_from(name.clone()).unwrap();
        let mut tls = StreamOwned::new(ClientConnection::new(self.config.clone(), server_name).unwrap(), stream);
        tls.write_all(request(asked, &name).as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let read = tls.read(&mut chunk).unwrap_or(0);
            answer.extend_from_slice(&chunk[..read]);
            let whole = Response::parse(&answer).unwrap().is_some_and(|(head, length)| {
                head.status == 101 || answer.len() as u64 >= length as u64 + head.content_length().unwrap_or(0)
            });
            if whole || read == 0 {
                return answer;
            }
        }
    }
}

fn request(asked: &Asked<'_>, name: &str) -> String {
    let user = asked.user.map_or_else(String::new, |user| format!("Tstunnel-User: {user}\r\n"));
    let upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n";
    let (path, fields, body) = match asked.words {
        [word] if word.starts_with("upload:") => (
            format!("/copy/{}", percent_encode(&word["upload:".len()..])),
            format!("{user}Unencoded-Digest: {DIGEST_OF_NOTHING}\r\n"),
            String::new(),
        ),
        [word] if word.starts_with("stream:") => {
            let target = &word["stream:".len()..];
            let query = if target.is_empty() { String::new() } else { format!("?target={}", percent_encode(target)) };
            (format!("/stream{query}"), format!("{user}{upgrade}"), String::new())
        }
        [line] => ("/command".to_owned(), upgrade.to_owned(), json!({"command": line, "user": asked.user}).to_string()),
        [program, arguments @ ..] => {
            let body = json!({"command": program, "args": arguments}).to_string();
            ("/command".to_owned(), format!("{user}{upgrade}"), body)
        }
        [] => unreachable!("there is a command"),
    };
    format!("POST /tinyscale/v1{path} HTTP/1.1\r\nHost: {name}\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len())
}
