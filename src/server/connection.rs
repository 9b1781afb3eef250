//! An authenticated stream → its one HTTP/1.1 request, answered by [`routes`], and an end that loses no answer.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use crate::protocol::MAX_HEAD_BYTES;
use crate::server::admission::Counted;
use crate::server::handshake::{Peer, Stream};
use crate::server::metrics::Held;
use crate::server::refusal::Refusal;
use crate::server::trail::Draft;
use crate::server::{Shared, routes};
use crate::tls;

/// How long a peer has to take a refusal that it has not asked for.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// What became of a request's head: nothing yet, a request, or a refusal.
type Head = Arc<OnceLock<Option<Refusal>>>;

/// Serves the one request of an authenticated connection, which is `counted` until then.
pub async fn serve(shared: Arc<Shared>, stream: Stream, peer: Peer, counted: Counted) {
    let peer = Arc::new(peer);
    let _held = Held::new(shared.metrics.connection("request"));
    let (admitted, head_timeout) = {
        let limits = &shared.state().config.limits;
        (shared.admission.request(limits, &peer), limits.head_timeout)
    };
    let place = match admitted {
        Ok(place) => place,
        Err(error) => {
            shared.metrics.request("none", Some(error.code)).inc();
            Draft::new(&shared, &peer, None).refused(&error);
            return end(stream, Head::new(Some(error.into()).into())).await;
        }
    };
    let mut stop = shared.stop.clone();
    let head = Head::default();
    let stream = Lingering { stream: Some(stream), linger: None, head: head.clone() };
    let (request_head, server, asker) = (head.clone(), shared.clone(), peer.clone());
    let service = service_fn(move |request| {
        let _ = request_head.set(None);
        let (shared, peer) = (server.clone(), asker.clone());
        async move { Ok::<_, std::convert::Infallible>(routes::answer(shared, peer, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .half_close(true)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = stop.closing() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        // hyper itself says nothing to a head that is late, nor to the preface of HTTP/2.
        if error.is_timeout() {
            let _ = head.set(Some(Refusal::bad_request(408, "the head did not come in time")));
        } else if error.is_parse() {
            let _ = head.set(Some(refused_head(400)));
        }
        tracing::debug!(peer = %peer.address, %error, "connection ended");
        if let Some(Some(refusal)) = head.get() {
            shared.metrics.request("none", Some(refusal.error.code)).inc();
            Draft::new(&shared, &peer, None).refused(&refusal.error);
        }
    }
    drop((place, counted));
}

/// The refusal behind a status that hyper gives to a head that it cannot read.
fn refused_head(status: u16) -> Refusal {
    let text = match status {
        414 => "the request's target is too long",
        431 => "the head or the length that it says is too large",
        _ => "the head is malformed",
    };
    Refusal::bad_request(status, text)
}

/// A stream that is closed only after what the peer has sent was read, or a short time has passed: an answer must not be
/// lost to the reset that closing over unread bytes sends.
pub struct Lingering {
    stream: Option<Stream>,
    linger: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    head: Head,
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

/// Ends a connection, with the refusal of its head if that was refused.
async fn end(mut stream: Stream, head: Head) {
    if let Some(Some(refusal)) = head.get() {
        let _ = tokio::time::timeout(REFUSAL_TIMEOUT, stream.write_all(&refusal.to_bytes())).await;
    }
    // All of an upload that was refused in its middle: only time bounds what an authenticated peer still sends.
    tls::linger(stream, u64::MAX).await;
}

impl Drop for Lingering {
    /// hyper drops a connection without shutting it down where an upgrade was asked for and refused, and where a head did
    /// not come in time.
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(end(stream, self.head.clone()));
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
    /// What hyper says before there was a request is its own refusal of the head, and has no body: it gets one in its place.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let status = || str::from_utf8(bytes.get(9..12)?).ok()?.parse().ok();
        if self.head.get_or_init(|| Some(refused_head(status().unwrap_or(400)))).is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
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
            self.linger = Some(Box::pin(end(stream, self.head.clone())));
        }
        match &mut self.linger {
            Some(linger) => linger.as_mut().poll(cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }
}
