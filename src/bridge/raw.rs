//! A connection without frames, joined to local streams.

use std::io;
use std::pin::pin;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::{Connection, Reader, Writer};
use crate::protocol::frame::FRAME_BYTES;
use crate::socket;

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
/// dropped, and nothing else is; with [`RawEnd::Incoming`] they are the end.
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
    let (from_peer, mut to_peer) = tokio::io::split(connection);
    let mut reader = BufReader::with_capacity(FRAME_BYTES, reader);
    let mut from_peer = BufReader::with_capacity(FRAME_BYTES, from_peer);
    let mut outgoing = pin!(async {
        tokio::io::copy_buf(&mut reader, &mut to_peer).await?;
        to_peer.shutdown().await
    });
    let mut incoming = pin!(async {
        let mut written = writer.write_all(leftover).await;
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
                written = writer.write_all(bytes).await;
            }
            if written.is_ok() {
                written = writer.flush().await;
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
