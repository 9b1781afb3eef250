//! Peers that are not tstunnel: servers that say what a test wants, and a client that speaks bytes.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};

use super::frames::{self, frame, read_frame};
use super::site::{SERVER_NAME, Site};
use crate::support::pki::Identity;

/// A server's end of a TLS connection.
pub(crate) type Tls = StreamOwned<ServerConnection, TcpStream>;

/// A client's end of one.
pub(crate) type ClientTls = StreamOwned<ClientConnection, TcpStream>;

/// A peer that is waited for no longer than this.
const PATIENCE: Duration = Duration::from_secs(30);

/// A listener whose every connection is given to `serve`, in a thread of its own.
pub(crate) fn tcp_server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    // The thread ends with the process: there is no way to interrupt accept, and nothing that it would hold up.
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            connection.set_read_timeout(Some(PATIENCE)).unwrap();
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(connection));
        }
    });
    address
}

/// A TLS 1.3 server that reads a request, head and body, and gives it to `answer`.
pub(crate) fn https_server(
    identity: &Identity,
    answer: impl Fn(&mut Tls, &Request) -> io::Result<()> + Send + Sync + 'static,
) -> SocketAddr {
    https_server_of(identity, &rustls::version::TLS13, answer)
}

/// The same in another version of TLS.
pub(crate) fn https_server_of(
    identity: &Identity,
    version: &'static SupportedProtocolVersion,
    answer: impl Fn(&mut Tls, &Request) -> io::Result<()> + Send + Sync + 'static,
) -> SocketAddr {
    let config = server_config(identity, version);
    tls_server(config, move |tls| Request::read(tls).and_then(|request| answer(tls, &request)))
}

/// A TLS 1.3 server that reads a request's head, and gives it to `answer`; the body is left.
pub(crate) fn upload_server(
    identity: &Identity,
    answer: impl Fn(&mut Tls, &str) -> io::Result<()> + Send + Sync + 'static,
) -> SocketAddr {
    let config = server_config(identity, &rustls::version::TLS13);
    tls_server(config, move |tls| Request::read_head(tls).and_then(|head| answer(tls, &head)))
}

fn tls_server(config: ServerConfig, serve: impl Fn(&mut Tls) -> io::Result<()> + Send + Sync + 'static) -> SocketAddr {
    let config = Arc::new(config);
    tcp_server(move |connection| {
        let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), connection);
        // What the peer makes of it is what the test looks at.
        let _ = serve(&mut tls);
    })
}

/// A request as a fake server got it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Request {
    fn read_head(from: &mut impl Read) -> io::Result<String> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            from.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&head).into_owned())
    }

    pub(crate) fn read(from: &mut impl Read) -> io::Result<Request> {
        let head = Request::read_head(from)?;
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        from.read_exact(&mut body)?;
        Ok(Request { head, body })
    }
}

/// Ends a server's direction properly, and reads until the peer has ended its own, so that no reset overtakes anything.
pub(crate) fn finish(tls: &mut Tls) -> io::Result<()> {
    tls.conn.send_close_notify();
    tls.flush()?;
    let _ = tls.sock.shutdown(Shutdown::Write);
    io::copy(&mut tls.sock, &mut io::sink()).map(|_| ())
}

/// Ends the TCP connection without a word of TLS.
pub(crate) fn hang_up(tls: &mut Tls) -> io::Result<()> {
    tls.flush()?;
    tls.sock.shutdown(Shutdown::Write)?;
    io::copy(&mut tls.sock, &mut io::sink()).map(|_| ())
}

fn server_config(identity: &Identity, version: &'static SupportedProtocolVersion) -> ServerConfig {
    let (chain, key) = parse(identity);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}

fn parse(identity: &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).map(Result::unwrap).collect();
    (chain, PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap())
}

/// Connects to the site's server with TLS as `identity`.
pub(crate) fn connect(site: &Site, identity: &Identity) -> ClientTls {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(site.servers.certificate().as_bytes()).unwrap()).unwrap();
    let (chain, key) = parse(identity);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let connection = TcpStream::connect(site.address()).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), connection)
}

/// Sends a POST and reads the answer's head, and nothing behind it.
pub(crate) fn post(tls: &mut ClientTls, path: &str, fields: &str, body: &str) -> String {
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: {SERVER_NAME}\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len());
    tls.write_all(head.as_bytes()).unwrap();
    tls.flush().unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        tls.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    String::from_utf8(answer).unwrap()
}

/// Reads the beginning of an answer, and sends nothing more: what is left of a request would be answered with a reset, where the
/// server has stopped reading it.
pub(crate) fn read_only(tls: &mut ClientTls, answer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < answer.len() {
        match tls.conn.reader().read(&mut answer[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if tls.conn.read_tls(&mut tls.sock)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                tls.conn.process_new_packets().map_err(io::Error::other)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Opens a stream with frames to a target that resets it, reads all that the server says of it, and hangs up without having
/// acknowledged any of it. The site's host must allow the target.
pub(crate) fn leave_a_stream_that_has_ended(site: &Site, identity: &Identity) {
    let target = tcp_server(|mut connection| {
        // Closing with a linger of zero is a reset; one before anything has come would find the server still connecting.
        connection.read_exact(&mut [0]).unwrap();
        rustix::net::sockopt::set_socket_linger(&connection, Some(Duration::ZERO)).unwrap();
    });
    let mut tls = connect(site, identity);
    let path = format!("/tinyscale/v1/stream?target=tcp%3A127.0.0.1%3A{}", target.port());
    let answer = post(&mut tls, &path, "Connection: Upgrade\r\nUpgrade: tstunnel/1\r\n", "");
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    tls.write_all(&frame(frames::STDIN, b"x")).unwrap();
    tls.flush().unwrap();
    while read_frame(&mut tls).unwrap().0 != frames::EXIT {}
}
