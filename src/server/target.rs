//! A permitted target → a connection to it as the account, made before the request is answered.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use crate::bridge::{Reader, Writer};
use crate::error::{Code, Error, Result, reason};
use crate::protocol::target::Target;
use crate::server::account::Login;
use crate::server::child;

/// How long a target has to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What an echo holds: enough that neither direction waits for the other at every turn.
const ECHO_BYTES: usize = 256 << 10;

/// Connects to `target` as `login`, where the echo sends back at most `max_echo_bytes`. A thread that a name or a file system holds up
/// goes on when nobody waits for it any more: until it is done it has `place`, so that there are no more of them than of places.
///
/// # Errors
/// `target-unreachable`.
pub async fn connect(
    target: &Target,
    login: &Login,
    max_echo_bytes: u64,
    place: &(impl Clone + Send + 'static),
) -> Result<(Reader, Writer)> {
    let unreachable = |why: String| Error::new(Code::TargetUnreachable, format!("cannot reach {target}: {why}"));
    let connecting = async {
        match target {
            Target::Tcp { host, port } => {
                let stream = connect_tcp(host, *port, login, place.clone()).await?;
                stream.set_nodelay(true)?;
                let (reader, writer) = stream.into_split();
                Ok((Box::new(reader) as Reader, Box::new(writer) as Writer))
            }
            Target::Unix(path) => {
                let (reader, writer) = connect_unix(Path::new(path), login, place.clone()).await?.into_split();
                Ok((Box::new(reader) as Reader, Box::new(writer) as Writer))
            }
            Target::Echo => {
                let (reader, writer) = tokio::io::simplex(ECHO_BYTES);
                Ok((Box::new(Bounded { reader, left: max_echo_bytes }) as Reader, Box::new(writer) as Writer))
            }
        }
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(result) => result.map_err(|error: std::io::Error| unreachable(reason(&error))),
        Err(_) => Err(unreachable("no answer in time".to_owned())),
    }
}

/// Tries each address of `host` in turn.
async fn connect_tcp(host: &str, port: u16, login: &Login, place: impl Send + 'static) -> io::Result<TcpStream> {
    let addresses = look_up(host, port, place).await?;
    let (login, families) = (login.clone(), addresses.clone());
    let open = move || {
        let open = || {
            let socket = |address: &SocketAddr| {
                if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
            };
            Ok(families.iter().map(socket).collect::<Vec<_>>())
        };
        login.with_sockets(open)
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (address, socket) in addresses.into_iter().zip(child::aside(open).await?) {
        let connected = match socket {
            Ok(socket) => socket.connect(address).await,
            Err(error) => Err(error),
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn look_up(host: &str, port: u16, place: impl Send + 'static) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let host = host.to_owned();
    let looking_up = tokio::task::spawn_blocking(move || {
        let _place = place;
        Ok((host.as_str(), port).to_socket_addrs()?.collect())
    });
    looking_up.await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// With the account's rights to each folder on the way, and to what a link of its leads to.
async fn connect_unix(path: &Path, login: &Login, place: impl Send + 'static) -> io::Result<UnixStream> {
    let (path, login) = (path.to_owned(), login.clone());
    let connect = move || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(socket)
    };
    let connecting = child::aside(move || {
        let _place = place;
        login.with_sockets(connect)
    });
    let socket = connecting.await?;
    UnixStream::from_std(std::os::fd::OwnedFd::from(socket).into())
}

/// A reader that fails where it has given as much as it may.
struct Bounded<R> {
    reader: R,
    left: u64,
}

impl<R: AsyncRead + Unpin> AsyncRead for Bounded<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(cx, buf))?;
        let count = (buf.filled().len() - before) as u64;
        match self.left.checked_sub(count) {
            Some(left) => self.left = left,
            None => return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into())),
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn an_echo_gives_back_what_it_gets_and_not_more_than_its_bound() {
        let login = Login { name: "dev".into(), home: "/".into(), shell: "/bin/sh".into(), identity: None };
        let (mut reader, mut writer) = connect(&Target::Echo, &login, 5, &()).await.unwrap();
        writer.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        reader.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
        writer.write_all(b"!").await.unwrap();
        assert_eq!(reader.read(&mut heard).await.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        let (mut reader, mut writer) = connect(&Target::Echo, &login, 5, &()).await.unwrap();
        writer.shutdown().await.unwrap();
        assert_eq!(reader.read(&mut heard).await.unwrap(), 0);
    }
}
