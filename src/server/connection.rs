//! An authenticated stream → its one HTTP/1.1 request, answered by [`routes`], and an end that loses no answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::protocol::MAX_HEAD_BYTES;
use crate::server::handshake::{Peer, Stream};
use crate::server::{Shared, routes};
use crate::tls;

/// Serves the one request of an authenticated connection.
pub async fn serve(shared: Arc<Shared>, stream: Stream, peer: Peer) {
    let peer = Arc::new(peer);
    let address = peer.address;
    let alive = shared.admission.alive();
    let head_timeout = shared.state().config.limits.head_timeout;
    let mut stop = shared.stop.clone();
    let service = service_fn(move |request| {
        let (shared, peer) = (shared.clone(), peer.clone());
        async move { Ok::<_, std::convert::Infallible>(routes::answer(shared, peer, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .half_close(true)
        .keep_alive(false)
        .serve_connection(TokioIo::new(Lingering { stream: Some(stream), linger: None }), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = stop.wait() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(peer = %address, %error, "connection ended");
    }
    drop(alive);
}

/// A stream that is closed only after what the peer has sent was read, or a short time has passed: an answer must not be
/// lost to the reset that closing over unread bytes sends.
pub struct Lingering {
    stream: Option<Stream>,
    linger: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl std::fmt::Debug for Lingering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lingering").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Lingering {
    /// The stream, where it is not being closed.
    pub fn into_inner(mut self) -> Option<Stream> {
        self.stream.take()
    }

    fn stream(&mut self) -> io::Result<Pin<&mut Stream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Lingering {
    /// hyper drops a connection without shutting it down where an upgrade was asked for and refused, and where a head did
    /// not come in time.
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(tls::linger(stream, u64::MAX));
        }
    }
}

impl AsyncRead for Lingering {
    /// Ends while it lingers: what still comes is nobody's any more.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_read(cx, buf),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, bytes)
    }

    /// There is nothing to flush while it lingers. An error would end that: hyper flushes before each further look at the
    /// shutdown.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(stream) = self.stream.take() {
            // All of an upload that was refused in its middle: only time bounds what an authenticated peer still sends.
            self.linger = Some(Box::pin(tls::linger(stream, u64::MAX)));
        }
        match &mut self.linger {
            Some(linger) => linger.as_mut().poll(cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }
}
