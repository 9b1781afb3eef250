//! A permitted target → a connection to it, made before the request is answered.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::bridge::{Reader, Writer};
use crate::error::{Code, Error, Result, reason};
use crate::protocol::target::Target;

/// How long a target has to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What an echo holds: enough that neither direction waits for the other at every turn.
const ECHO_BYTES: usize = 256 << 10;

/// Connects to `target`, where the echo sends back at most `max_echo_bytes`.
///
/// # Errors
/// `target-unreachable`.
pub async fn connect(target: &Target, max_echo_bytes: u64) -> Result<(Reader, Writer)> {
    let unreachable = |why: String| Error::new(Code::TargetUnreachable, format!("cannot reach {target}: {why}"));
    let connecting = async {
        match target {
            Target::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let (reader, writer) = stream.into_split();
                Ok((Box::new(reader) as Reader, Box::new(writer) as Writer))
            }
            Target::Unix(path) => {
                let (reader, writer) = UnixStream::connect(path).await?.into_split();
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
        let (mut reader, mut writer) = connect(&Target::Echo, 5).await.unwrap();
        writer.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        reader.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
        writer.write_all(b"!").await.unwrap();
        assert_eq!(reader.read(&mut heard).await.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        let (mut reader, mut writer) = connect(&Target::Echo, 5).await.unwrap();
        writer.shutdown().await.unwrap();
        assert_eq!(reader.read(&mut heard).await.unwrap(), 0);
    }
}
