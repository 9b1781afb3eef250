//! A TCP connection's options, the same on both sides.

use std::io;
use std::time::Duration;

use rustix::net::sockopt::{
    set_socket_keepalive, set_socket_linger, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_user_timeout,
};
#[cfg(feature = "server")]
use rustix::net::{SendFlags, send};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// How long sent data may stay unacknowledged by the peer's kernel. A session with frames judges sooner by itself; this
/// ends whatever else would wait for the kernel's quarter of an hour.
const USER_TIMEOUT: Duration = Duration::from_secs(60);
/// Silence after which the kernel asks the peer's, how often, and how many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);

/// Most bytes that wait in the kernel unsent: whatever is written later waits behind them, and what is in flight does not count.
const NOT_SENT_BYTES: u32 = 128 << 10;

/// Bytes read ahead of TLS: rustls by itself asks the kernel for 4 KiB at a time.
pub const READ_AHEAD_BYTES: usize = 256 << 10;

/// Sets what every connection of this program has. None of it is needed for correctness, so a refusal is passed over.
pub fn tune(stream: &TcpStream) {
    // Interactive traffic must not wait for an acknowledgement of what came before it.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(NOT_SENT_BYTES);
    let _ = set_tcp_user_timeout(stream, USER_TIMEOUT.as_millis() as u32);
    let _ = set_socket_keepalive(stream, true);
    let _ = set_tcp_keepidle(stream, KEEPALIVE.0);
    let _ = set_tcp_keepintvl(stream, KEEPALIVE.1);
    let _ = set_tcp_keepcnt(stream, KEEPALIVE.2);
}

/// Lets sent data wait for a reader that pauses, for however long: to the kernel what a full buffer keeps back is unacknowledged too
/// (tcp(7)).
pub fn allow_pauses(stream: &TcpStream) {
    let _ = set_tcp_user_timeout(stream, 0);
}

/// Waits until the connection has failed, whether or not what came before has been read. Cancel-safe.
pub async fn failed(stream: &TcpStream) -> io::Error {
    let failed = stream.ready(Interest::ERROR).await.and_then(|_| stream.take_error());
    failed.unwrap_or_else(Some).unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
}

/// Sends a few last bytes, if they can leave at once. What arrived before a reset can still be read on Linux, though not on every
/// system.
#[cfg(feature = "server")]
pub fn send_last(stream: &TcpStream, bytes: &[u8]) {
    let _ = send(stream, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

/// Has the connection reset when it is closed: the peer may lose what it has not yet read, and nothing is left for the kernel to
/// keep.
pub fn reset_on_close(stream: &TcpStream) {
    let _ = set_socket_linger(stream, Some(Duration::ZERO));
}
