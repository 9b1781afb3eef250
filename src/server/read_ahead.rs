//! A TCP connection that is read ahead of TLS, once it is worth it: rustls by itself asks the kernel for 4 KiB at a time.
//!
//! While nobody knows who is at the other end, nothing is read ahead. Memory is held by a connection only while there is
//! something in it.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::server::descriptors::Connection;
use crate::server::proxy_protocol::{self, Fault};
use crate::socket;

/// A connection that counts while it is open.
#[derive(Debug)]
pub struct ReadAhead {
    tcp: TcpStream,
    /// Nothing has come yet, and what comes first may not be a balancer's header.
    is_fresh: bool,
    is_begun: bool,
    /// Empty while nothing is read ahead.
    buffer: Vec<u8>,
    /// What of the buffer is not yet taken.
    start: usize,
    end: usize,
    is_abandoned: Abandoned,
    _counted: Connection,
}

/// Has a connection reset when it is dropped, wherever it is by then.
#[derive(Clone, Debug, Default)]
pub struct Abandoned(Arc<AtomicBool>);

impl Abandoned {
    /// From now on.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl ReadAhead {
    /// Reads nothing ahead yet.
    pub fn new(tcp: TcpStream, counted: Connection) -> ReadAhead {
        ReadAhead::started(tcp, counted, true, Vec::new())
    }

    /// The same behind a balancer's header, of which `rest` has been read already.
    pub fn behind_header(tcp: TcpStream, counted: Connection, rest: Vec<u8>) -> ReadAhead {
        ReadAhead::started(tcp, counted, false, rest)
    }

    fn started(tcp: TcpStream, counted: Connection, is_fresh: bool, buffer: Vec<u8>) -> ReadAhead {
        let (is_abandoned, end) = (Abandoned::default(), buffer.len());
        ReadAhead { tcp, is_fresh, is_begun: false, buffer, start: 0, end, is_abandoned, _counted: counted }
    }

    /// The connection that is read.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// What abandons it.
    pub fn abandoned(&self) -> Abandoned {
        self.is_abandoned.clone()
    }

    /// Begins to read ahead.
    pub fn begin(&mut self) {
        self.is_begun = true;
    }
}

thread_local! {
    /// A buffer to read into, for whichever connection of the thread is read next.
    static SPARE: Cell<Vec<u8>> = Cell::default();
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        if self.is_abandoned.0.load(Ordering::Relaxed) {
            socket::reset_on_close(&self.tcp);
        }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let ReadAhead { tcp, is_fresh, is_begun, buffer, start, end, .. } = self.get_mut();
        if start == end {
            if !*is_begun || into.remaining() >= socket::READ_AHEAD_BYTES {
                let before = into.filled().len();
                let read = Pin::new(tcp).poll_read(cx, into);
                let came = into.filled().get(before..).unwrap_or_default();
                if *is_fresh && !came.is_empty() {
                    *is_fresh = false;
                    if proxy_protocol::is_begun(came) {
                        return Poll::Ready(Err(Fault::Unexpected.into()));
                    }
                }
                return read;
            }
            let mut spare = SPARE.take();
            if spare.is_empty() {
                spare = vec![0; socket::READ_AHEAD_BYTES];
            }
            let mut ahead = ReadBuf::new(&mut spare);
            let read = Pin::new(tcp).poll_read(cx, &mut ahead);
            (*start, *end) = (0, ahead.filled().len());
            if *end == 0 {
                SPARE.set(spare);
                return read;
            }
            *buffer = spare;
        }
        let held = buffer.get(*start..*end).unwrap_or_default();
        let count = held.len().min(into.remaining());
        into.put_slice(held.get(..count).unwrap_or_default());
        *start += count;
        if start == end {
            let read = std::mem::take(buffer);
            // What came with a balancer's header is in a smaller one.
            if read.len() == socket::READ_AHEAD_BYTES {
                SPARE.set(read);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::descriptors::Connections;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn what_was_sent_is_read_whole_with_and_without_reading_ahead() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let connections = Connections::default();
        let (near, _) = listener.accept().await.unwrap();
        let mut near = ReadAhead::new(near, connections.add(1).unwrap());
        let sent: Vec<u8> = (0..1 << 20).map(|index: u32| (index / 251) as u8).collect();
        let expected = sent.clone();
        let sending = tokio::spawn(async move {
            far.write_all(&sent).await.unwrap();
            far.shutdown().await.unwrap();
        });
        let mut read = vec![0; 1000];
        near.read_exact(&mut read).await.unwrap();
        near.begin();
        near.begin();
        // Less than is read ahead, and more.
        let mut piece = vec![0; 100_000];
        for size in [1, 7, 4096, 65_536, 100_000].into_iter().cycle() {
            let count = near.read(&mut piece[..size]).await.unwrap();
            if count == 0 {
                break;
            }
            read.extend_from_slice(&piece[..count]);
        }
        assert!(read == expected);
        sending.await.unwrap();
        assert!(connections.add(1).is_none(), "it counts while it is open");
        drop(near);
        assert!(connections.add(1).is_some());
    }

    #[tokio::test]
    async fn one_that_is_abandoned_is_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for is_abandoned in [false, true] {
            let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let near = ReadAhead::new(listener.accept().await.unwrap().0, Connections::default().add(1).unwrap());
            if is_abandoned {
                near.abandoned().set();
            }
            drop(near);
            assert_eq!(far.read(&mut [0; 1]).await.is_err(), is_abandoned);
        }
    }
}
