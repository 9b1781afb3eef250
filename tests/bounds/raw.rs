//! Connections of strangers: what TCP alone can do to a server, from any of loopback's addresses.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::Stdio;

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use crate::support::wait::SOON;
use crate::support_net::child::Watched;
use crate::support_net::site::{SERVER_NAME, Site};

/// The content type of a TLS alert (RFC 8446 §5.1), and the one that only a source gets that is shut out.
const ALERT: u8 = 21;
const ACCESS_DENIED: u8 = 49;

/// Connects from one of loopback's addresses.
pub(crate) fn connect_from(source: Ipv4Addr, to: SocketAddr) -> TcpStream {
    try_connect_from(source, to).unwrap()
}

fn try_connect_from(source: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrV4::new(source, 0)).unwrap();
    connect(&socket, &to)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON)).unwrap();
    Ok(stream)
}

/// Says something that is not TLS, and whether it was heard; else it was hung up on.
pub(crate) fn is_answered(source: Ipv4Addr, to: SocketAddr) -> bool {
    let mut answer = [0; 7];
    let mut ask = || {
        // A server that hangs up at once may have done so before connect(2) returns.
        let mut stream = try_connect_from(source, to)?;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        stream.read(&mut answer)
    };
    match ask() {
        Ok(0) => false,
        Ok(_) => {
            assert_eq!(answer[0], ALERT);
            answer[6] != ACCESS_DENIED
        }
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
            false
        }
    }
}

/// Whether the server has not yet hung up on a peer to which it has nothing to say.
pub(crate) fn is_open(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = stream.read(&mut [0; 64]);
    stream.set_nonblocking(false).unwrap();
    read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// A ClientHello as any client of this server sends it.
pub(crate) fn client_hello() -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(SERVER_NAME).unwrap();
    let mut connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

/// A session that is there for certain, and stays until it is dropped.
pub(crate) fn held_session(site: &Site) -> Watched {
    let mut session = Watched::start(site.exec(&["cat"]).stdin(Stdio::piped()));
    session.write(b"here\n");
    session.wait_for_output("here");
    session
}

/// Checks that a session goes on.
#[track_caller]
pub(crate) fn assert_goes_on(session: &mut Watched) {
    let before = session.stdout().len();
    session.write(b"still here\n");
    crate::support::wait::wait_until("a live session goes on", SOON, || {
        session.stdout().get(before..).is_some_and(|said| said == b"still here\n")
    });
}
