//! `tstunnel serve`: listener, handshakes, requests; and the end, which leaves nothing running.
//!
//! Data flows down: [`handshake`] authenticates, [`routes`] asks [`policy`] and answers, [`process`], [`target`] and
//! [`upload`] do what was permitted, [`sessions`] carries the streams.

pub mod admission;
pub mod config;
pub mod handshake;
pub mod policy;
pub mod principal;
pub mod process;
pub mod refusal;
pub mod registry;
pub mod routes;
pub mod sessions;
pub mod target;
pub mod upload;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::error::{Code, Error, Result, printable};
use crate::protocol::MAX_HEAD_BYTES;
use crate::server::admission::Admission;
use crate::server::config::{Account, ServerConfig};
use crate::server::handshake::{Peer, Stream};
use crate::server::policy::Policy;
use crate::server::registry::Registry;
use crate::server::upload::Uploads;
use crate::tls;

/// Longest wait for sessions to end once the server stops: the ladder of a process and a little.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after a failed accept: it fails for want of descriptors, which only time brings back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
#[derive(Debug)]
pub struct Shared {
    config: ServerConfig,
    policy: Policy,
    uploads: Uploads,
    admission: Admission,
    registry: Registry,
    stop: Stop,
}

impl Shared {
    fn is_stopping(&self) -> bool {
        *self.stop.0.borrow()
    }
}

/// Tells when the server stops.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Waits until the server stops. Cancel-safe.
    pub async fn wait(&mut self) {
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// Serves with the configuration at `path` until SIGTERM or SIGINT.
///
/// # Errors
/// `config` where the configuration or a file that it names is wrong, or an address cannot be listened on.
pub async fn run(path: &Path) -> Result<()> {
    let account = Account::of_process()?;
    let (config, warnings) = ServerConfig::load(path, &account)?;
    let tls = Arc::new(tls::server_config(&config.cert, &config.key, &config.client_ca, &config.crl)?);
    if config.listen.is_empty() {
        let text = format!("{}: `listen` names no address", path.display());
        return Err(Error::new(Code::Config, text).with_hint("set `listen = [\"0.0.0.0:8443\"]`"));
    }
    for warning in warnings {
        tracing::warn!("{}: {warning}", path.display());
    }
    let mut listeners = Vec::new();
    for address in &config.listen {
        listeners.push(listen(*address).await?);
    }
    let mut endings = (listen_for(SignalKind::terminate())?, listen_for(SignalKind::interrupt())?);
    let (stop_sender, stop) = watch::channel(false);
    let limits = &config.limits;
    let (admission, mut ended) = Admission::new(limits.max_sessions.get(), limits.max_sessions_per_principal.get());
    let handshakes = Arc::new(Semaphore::new(limits.max_handshakes.get()));
    let registry = Registry::new(limits);
    let uploads = Uploads::new(limits.resume_grace);
    for host in config.hosts.values() {
        uploads.sweep(&host.home);
    }
    let shared =
        Arc::new(Shared { policy: Policy::new(&config), config, uploads, admission, registry, stop: Stop(stop) });
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(listener, shared.clone(), tls.clone(), handshakes.clone()));
    }
    tokio::select! {
        _ = endings.0.recv() => {}
        _ = endings.1.recv() => {}
    }
    tracing::info!("stopping");
    accepting.shutdown().await;
    let _ = stop_sender.send(true);
    drop(shared);
    if tokio::time::timeout(DRAIN, ended.recv()).await.is_err() {
        tracing::warn!("stopped with sessions that did not end in time");
    }
    Ok(())
}

fn listen_for(kind: SignalKind) -> Result<tokio::signal::unix::Signal> {
    signal(kind).map_err(|error| Error::new(Code::Internal, format!("cannot listen for signals: {error}")))
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let failed = |error: io::Error| {
        Error::new(Code::Config, format!("cannot listen on {address}: {error}"))
            .with_hint("choose another address in `listen`, or stop what has this one")
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    tracing::info!("listening on {}", listener.local_addr().map_err(failed)?);
    Ok(listener)
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    tls: Arc<rustls::ServerConfig>,
    handshakes: Arc<Semaphore>,
) {
    loop {
        let (tcp, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // With all places taken a newcomer waits in the kernel's queue, for as long as a handshake may take.
        let Ok(place) = handshakes.clone().acquire_owned().await else { return };
        let (shared, tls) = (shared.clone(), tls.clone());
        tokio::spawn(async move {
            let limit = shared.config.limits.handshake_timeout;
            let handshake = handshake::accept(tcp, address, tls, shared.config.allow_cn);
            let result = tokio::time::timeout(limit, handshake).await;
            drop(place);
            match result {
                Ok(Ok((stream, peer))) => serve(shared, stream, peer).await,
                Ok(Err(error)) => {
                    tracing::info!(peer = %address, reason = %printable(&error.to_string()), "handshake failed")
                }
                Err(_) => tracing::info!(peer = %address, reason = "too slow", "handshake failed"),
            }
        });
    }
}

/// Serves the one request of an authenticated connection.
async fn serve(shared: Arc<Shared>, stream: Stream, peer: Peer) {
    let peer = Arc::new(peer);
    let address = peer.address;
    let alive = shared.admission.alive();
    let head_timeout = shared.config.limits.head_timeout;
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
    fn into_inner(mut self) -> Option<Stream> {
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
