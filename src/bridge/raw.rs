//! A connection without frames, joined to local streams.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{Connection, Reader, Writer};
use crate::protocol::frame::FRAME_BYTES;
use crate::socket;

/// How long a write waits before the connection is watched beside it: few wait for so long.
const WATCHED_AFTER: Duration = Duration::from_secs(1);

/// When a stream without frames is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawEnd {
    /// When the peer has ended its direction: there is nothing left to wait for.
    Incoming,
    /// When the local reader has ended and the peer has been told.
    Outgoing,
    /// When both directions have ended, each by itself.
    Both,
}

/// How one was over.
#[derive(Debug)]
pub enum RawOver {
    /// As its [`RawEnd`] says.
    Ended,
    /// The writer no longer takes what comes, and that is all that there was to wait for.
    Untaken(io::Error),
}

/// Moves bytes both ways between a connection without frames and local streams. Bytes that `writer` no longer takes are
/// dropped, and nothing else is; with [`RawEnd::Incoming`] they are the end. A connection that fails while `writer` takes nothing ends
/// it too, but with [`RawEnd::Incoming`]: what has come is then all that there is to wait for.
///
/// # Errors
/// Those of the connection.
pub async fn raw(
    connection: &mut dyn Connection,
    leftover: &[u8],
    reader: Reader,
    mut writer: Writer,
    end: RawEnd,
) -> io::Result<RawOver> {
    if let Some(tcp) = connection.tcp() {
        socket::allow_pauses(tcp);
    }
    let mut watch = Watch::over(connection.tcp().filter(|_| end != RawEnd::Incoming));
    let (from_peer, mut to_peer) = tokio::io::split(connection);
    let mut reader = BufReader::with_capacity(FRAME_BYTES, reader);
    let mut from_peer = BufReader::with_capacity(FRAME_BYTES, from_peer);
    let mut outgoing = pin!(async {
        tokio::io::copy_buf(&mut reader, &mut to_peer).await?;
        to_peer.shutdown().await
    });
    let mut incoming = pin!(async {
        let mut written = write(&mut writer, leftover, &mut watch).await?;
        loop {
            if end == RawEnd::Incoming
                && let Err(error) = written
            {
                return Ok(RawOver::Untaken(error));
            }
            let bytes = from_peer.fill_buf().await?;
            if bytes.is_empty() {
                let _ = writer.shutdown().await;
                drop(writer);
                return Ok::<RawOver, io::Error>(RawOver::Ended);
            }
            if written.is_ok() {
                written = write(&mut writer, bytes, &mut watch).await?;
            }
            let length = bytes.len();
            from_peer.consume(length);
        }
    });
    let (mut has_sent, mut has_received) = (false, false);
    let mut over = RawOver::Ended;
    loop {
        tokio::select! {
            result = &mut outgoing, if !has_sent => {
                result?;
                has_sent = true;
            }
            result = &mut incoming, if !has_received => {
                over = result?;
                has_received = true;
            }
        }
        let is_over = match end {
            RawEnd::Incoming => has_received,
            RawEnd::Outgoing => has_sent,
            RawEnd::Both => has_sent && has_received,
        };
        if is_over {
            return Ok(over);
        }
    }
}

/// Gives `bytes` to the writer; says what became of that.
///
/// # Errors
/// Those of the connection, which nobody reads meanwhile.
async fn write(writer: &mut Writer, bytes: &[u8], watch: &mut Watch) -> io::Result<io::Result<()>> {
    let writing = async {
        writer.write_all(bytes).await?;
        writer.flush().await
    };
    tokio::select! {
        biased;
        written = writing => Ok(written),
        error = watch.failure() => Err(error),
    }
}

/// A second descriptor of a connection, by which its failure shows while it is not read.
struct Watch {
    idle: Option<OwnedFd>,
    /// From the first write on that has waited for long: each event of the connection is one of this too.
    watched: Option<TcpStream>,
}

impl Watch {
    fn over(connection: Option<&TcpStream>) -> Watch {
        Watch { idle: connection.and_then(|tcp| tcp.as_fd().try_clone_to_owned().ok()), watched: None }
    }

    /// Waits until the connection has failed. Cancel-safe.
    async fn failure(&mut self) -> io::Error {
        tokio::time::sleep(WATCHED_AFTER).await;
        if let Some(idle) = self.idle.take() {
            self.watched = TcpStream::from_std(idle.into()).ok();
        }
        match &self.watched {
            Some(connection) => socket::failed(connection).await,
            None => pending().await,
        }
    }
}
