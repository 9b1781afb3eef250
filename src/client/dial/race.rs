//! A name → its addresses → a TCP connection to the first of them that takes one (RFC 8305).

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cli::openssh::AddressFamily;
use crate::config::Endpoint;
use crate::error::{Code, Error, Result, reason};

/// How long a connection attempt has before the next address is tried beside it (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The addresses of `target` of that family, in the order in which they are tried.
///
/// # Errors
/// `dns`.
pub(super) async fn lookup(target: &Endpoint, family: AddressFamily) -> Result<Vec<SocketAddr>> {
    let (name, port) = (target.host.as_str(), target.port);
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let no_address = |why: String| Error::new(Code::Dns, format!("cannot look up {name}: {why}"));
    let found = tokio::net::lookup_host((name, port)).await.map_err(|error| no_address(reason(&error)))?;
    let found: Vec<SocketAddr> = found
        .filter(|address| match family {
            AddressFamily::Any => true,
            AddressFamily::Inet => address.is_ipv4(),
            AddressFamily::Inet6 => address.is_ipv6(),
        })
        .collect();
    if found.is_empty() { Err(no_address("the name has no address".to_owned())) } else { Ok(interleave(found)) }
}

/// Alternates address families, beginning with that of the first address (RFC 8305 §4).
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut preferred, mut other): (VecDeque<_>, VecDeque<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut alternated = Vec::new();
    while !preferred.is_empty() || !other.is_empty() {
        alternated.extend(preferred.pop_front());
        alternated.extend(other.pop_front());
    }
    alternated
}

/// The first of `addresses` that takes a connection; each has a head start before the next.
pub(super) async fn race(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    if let [address] = addresses {
        return connect(*address).await;
    }
    let mut attempts = JoinSet::new();
    let mut waiting = addresses.iter().copied();
    let mut failure = None;
    let mut delay = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
    loop {
        if attempts.is_empty() {
            let Some(address) = waiting.next() else {
                return Err(failure.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()));
            };
            attempts.spawn(connect(address));
            delay.as_mut().reset(Instant::now() + ATTEMPT_DELAY);
        }
        tokio::select! {
            Some(result) = attempts.join_next() => match result.map_err(io::Error::other)? {
                Ok(stream) => return Ok(stream),
                // A refusal tells more than an unreachable network.
                Err(error) => if failure.is_none() || error.kind() == io::ErrorKind::ConnectionRefused {
                    failure = Some(error);
                },
            },
            () = &mut delay, if waiting.len() > 0 => {
                if let Some(address) = waiting.next() {
                    attempts.spawn(connect(address));
                }
                delay.as_mut().reset(Instant::now() + ATTEMPT_DELAY);
            }
        }
    }
}

/// A connection to `address`. One that was reset as soon as it stood is one too: what the peer has said before can still be read.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => return Err(error),
        _ => {}
    }
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
        _ => Ok(stream),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_alternate_beginning_with_the_first() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (a, b, c) = (parse("[::1]:1"), parse("[::2]:1"), parse("127.0.0.1:1"));
        assert_eq!(interleave(vec![a, b, c]), [a, c, b]);
        assert_eq!(interleave(vec![c, a, b]), [c, a, b]);
    }

    #[tokio::test]
    async fn a_refused_address_does_not_hold_up_the_next() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refused = closed.local_addr().unwrap();
        drop(closed);
        assert_eq!(race(&[refused, good]).await.unwrap().peer_addr().unwrap(), good);
        assert_eq!(race(&[refused]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
