//! An accepted TCP connection → an authenticated TLS stream and who is at its other end.
//!
//! Fails closed: without SNI, without a certificate, or with one that does not verify, the connection ends here, with
//! the alert that says why.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::{Code, Error, Result};
use crate::protocol::Principal;
use crate::server::principal::principal;

/// Bytes read ahead of TLS: rustls by itself asks the kernel for 4 KiB at a time.
const READ_AHEAD_BYTES: usize = 64 << 10;
/// A fatal `unrecognized_name` alert as it stands on the wire (RFC 8446 §5.1, §6; RFC 6066 §3), which rustls has no way
/// to send by itself.
const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 112];
/// How long, and how much, a peer that was refused may still send before its connection is closed: closing over unread
/// bytes would send a reset, and a reset overtakes the alert.
const LINGER: (Duration, u64) = (Duration::from_secs(1), 256 << 10);

/// A TLS stream after its handshake.
pub type Stream = TlsStream<BufReader<TcpStream>>;

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The address that the connection comes from.
    pub address: SocketAddr,
    /// The SNI, in lower case.
    pub server_name: String,
    /// Who the certificate names, or why it names nobody.
    pub principal: Result<Principal>,
}

/// Authenticates the peer of `tcp`.
///
/// # Errors
/// Those of the handshake, for the log; the peer has its alert.
pub async fn accept(
    tcp: TcpStream,
    address: SocketAddr,
    config: Arc<rustls::ServerConfig>,
    allow_cn: bool,
) -> io::Result<(Stream, Peer)> {
    // Interactive traffic must not wait for an acknowledgement of what came before it.
    let _ = tcp.set_nodelay(true);
    let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), BufReader::with_capacity(READ_AHEAD_BYTES, tcp));
    let mut start = match (&mut acceptor).await {
        Ok(start) => start,
        Err(error) => {
            if let Some(io) = acceptor.take_io() {
                linger(io).await;
            }
            return Err(error);
        }
    };
    let Some(server_name) = start.client_hello().server_name().map(str::to_ascii_lowercase) else {
        let _ = start.io.write_all(&UNRECOGNIZED_NAME).await;
        linger(start.io).await;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the client names no server (SNI)"));
    };
    let stream = match start.into_stream(config).into_fallible().await {
        Ok(stream) => stream,
        Err((error, io)) => {
            linger(io).await;
            return Err(error);
        }
    };
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let principal = match leaf {
        Some(leaf) => principal(leaf, allow_cn),
        None => Err(Error::new(Code::Unauthorized, "there is no client certificate")),
    };
    Ok((stream, Peer { address, server_name, principal }))
}

/// Ends this side's direction and reads for a moment what the peer still sends.
pub async fn linger(mut io: impl AsyncWrite + tokio::io::AsyncRead + Unpin) {
    let ending = async {
        io.shutdown().await?;
        tokio::io::copy(&mut io.take(LINGER.1), &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(LINGER.0, ending).await;
}
