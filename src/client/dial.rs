//! Host → an authenticated connection → an answer: names, address racing (RFC 8305), a proxy, TLS, one HTTP/1.1 request.
//!
//! Each step fails with a code of its own. The connection's set-up is bounded by `connect_timeout`, the answer by
//! `answer_timeout`.

mod connection;
mod proxy;
mod race;
mod send;
mod transport;

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub use connection::Connection;
pub use transport::Transport;

use self::race::{lookup, race};
use crate::cli::openssh::AddressFamily;
use crate::client::passphrase;
use crate::config::proxy::Scheme;
use crate::config::{Endpoint, Host, Proxy};
use crate::error::{Code, Error, Result, reason};
use crate::protocol::frame::FRAME_BYTES;
use crate::{bridge, socket, tls};

/// How long a connection may wait for the files that TLS needs; one that has waited for longer, perhaps for a person who was asked
/// for a passphrase, is made anew, because the server may have given it up.
const LOADING: Duration = Duration::from_millis(100);

/// An authenticated TLS stream.
pub type Stream = TlsStream<BufReader<Transport>>;

impl bridge::Connection for Stream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.get_ref().0.get_ref().tcp())
    }
}

/// Makes connections to one host.
#[derive(Clone)]
pub struct Dialler {
    host: Arc<Host>,
    /// What TLS needs, loaded with the first connection.
    loaded: Arc<Mutex<Option<Loaded>>>,
    family: AddressFamily,
    asks: bool,
}

/// What TLS needs, and what the files looked like that it is from.
struct Loaded {
    connectors: Arc<Connectors>,
    /// None where it is not from files.
    files: Option<Files>,
}

/// What tells a certificate, its key and the authorities from those that take their places, or are added.
type Files = [Option<(u64, u64, SystemTime)>; 3];

fn files(host: &Host) -> Files {
    let look = |path: &Path| {
        let file = path.metadata().ok()?;
        Some((file.ino(), file.len(), file.modified().ok()?))
    };
    [look(&host.cert), look(&host.key), host.ca.as_deref().and_then(look)]
}

/// TLS to the server, and to the proxy where that speaks it.
struct Connectors {
    server: TlsConnector,
    proxy: Option<TlsConnector>,
}

impl Connectors {
    fn new(host: &Host, config: ClientConfig) -> Result<Connectors> {
        let proxy = match &host.proxy {
            Some(proxy) if proxy.scheme == Scheme::Https => Some(TlsConnector::from(Arc::new(tls::proxy_config()?))),
            _ => None,
        };
        Ok(Connectors { server: TlsConnector::from(Arc::new(config)), proxy })
    }
}

impl std::fmt::Debug for Dialler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialler").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Dialler {
    /// Makes connections to `host`. What TLS needs is loaded with the first one, once for all; a key's passphrase is asked for then.
    pub fn new(host: Host) -> Dialler {
        Dialler { host: Arc::new(host), loaded: Arc::default(), family: AddressFamily::Any, asks: true }
    }

    /// Makes connections by a TLS configuration for `host` that is loaded already.
    ///
    /// # Errors
    /// `config` where the proxy speaks TLS and the system trusts nobody.
    pub fn with_config(host: Host, config: ClientConfig) -> Result<Dialler> {
        let dialler = Dialler::new(host);
        let connectors = Arc::new(Connectors::new(&dialler.host, config)?);
        *dialler.lock() = Some(Loaded { connectors, files: None });
        Ok(dialler)
    }

    /// Dials only addresses of `family`.
    #[must_use]
    pub fn with_family(mut self, family: AddressFamily) -> Dialler {
        self.family = family;
        self
    }

    /// Asks nobody for a key's passphrase.
    #[must_use]
    pub fn without_asking(mut self) -> Dialler {
        self.asks = false;
        self
    }

    /// The host that connections go to.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Connects and authenticates.
    ///
    /// # Errors
    /// `config` for files that are missing or wrong, and for a passphrase that nobody gives; `dns`, `connect-refused`,
    /// `connect-timeout`, `proxy`, and the `tls-…` codes.
    pub async fn dial(&self) -> Result<Connection> {
        self.dial_with(b"").await
    }

    /// The same with a request, or its beginning, which costs no round trip of its own.
    ///
    /// # Errors
    /// Those of [`Dialler::dial`] and [`Connection::send`].
    pub async fn dial_with(&self, request: &[u8]) -> Result<Connection> {
        let mut deadline = self.deadline();
        self.renew();
        let is_loaded = self.lock().is_some();
        let reached = if is_loaded { None } else { self.reach_while_loading(deadline).await? };
        let transport = match reached {
            Some(transport) => transport,
            None => {
                deadline = self.deadline();
                self.reach_endpoint(deadline).await?
            }
        };
        self.secure(transport, request, deadline).await
    }

    /// A stream to the endpoint, for which the network and the server have worked while files were read; none where that took
    /// too long.
    async fn reach_while_loading(&self, deadline: Instant) -> Result<Option<BufReader<Transport>>> {
        let begun = Instant::now();
        let mut reaching = pin!(self.reach_endpoint(deadline));
        let reached = std::future::poll_fn(|cx| Poll::Ready(reaching.as_mut().poll(cx))).await;
        self.connectors()?;
        Ok(match reached {
            _ if begun.elapsed() > LOADING => None,
            Poll::Ready(reached) => Some(reached?),
            Poll::Pending => Some(reaching.await?),
        })
    }

    /// What TLS needs, loaded once.
    ///
    /// # Errors
    /// `config`.
    fn connectors(&self) -> Result<Arc<Connectors>> {
        if let Some(loaded) = &*self.lock() {
            return Ok(loaded.connectors.clone());
        }
        let mut ask = if self.asks { passphrase::ask } else { passphrase::ask_nobody };
        self.load(&mut ask)
    }

    fn load(&self, ask: &mut tls::Ask<'_>) -> Result<Arc<Connectors>> {
        let files = Some(files(&self.host));
        let connectors = Arc::new(Connectors::new(&self.host, tls::client_config(&self.host, ask)?)?);
        *self.lock() = Some(Loaded { connectors: connectors.clone(), files });
        Ok(connectors)
    }

    /// Loads the files again where one has changed, so that a session can be resumed that outlives a certificate or an authority.
    /// Nobody is asked for a passphrase then. Where they cannot be loaded, perhaps since one is just being written, what was loaded
    /// before counts on.
    fn renew(&self) {
        let is_renewed = |loaded: &Loaded| loaded.files.as_ref().is_some_and(|before| *before != files(&self.host));
        if self.lock().as_ref().is_some_and(is_renewed)
            && let Err(error) = self.load(&mut passphrase::ask_nobody)
        {
            tracing::debug!(%error, "the files have changed, and cannot be loaded");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream to the endpoint, directly or through the proxy.
    async fn reach_endpoint(&self, deadline: Instant) -> Result<BufReader<Transport>> {
        let endpoint = &self.host.endpoint;
        match &self.host.proxy {
            None => {
                let addresses = self.look_up(endpoint, deadline).await?;
                Ok(Transport::Tcp(self.connect(endpoint, &addresses, deadline).await?).read_ahead())
            }
            Some(proxy) => self.connect_through(proxy, deadline).await,
        }
    }

    /// When a connection that is begun now must stand.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.host.connect_timeout
    }

    /// The addresses of `target`, in the order in which they are tried.
    ///
    /// # Errors
    /// `dns`, `connect-timeout`.
    pub(super) async fn look_up(&self, target: &Endpoint, deadline: Instant) -> Result<Vec<SocketAddr>> {
        let found = timeout_at(deadline, lookup(target, self.family)).await;
        found.map_err(|_| self.timed_out("looking up", target))?
    }

    /// The first of `addresses`, which are those of `target`, that takes a connection.
    ///
    /// # Errors
    /// `connect-refused`, `connect-timeout`.
    pub(super) async fn connect(
        &self,
        target: &Endpoint,
        addresses: &[SocketAddr],
        deadline: Instant,
    ) -> Result<TcpStream> {
        let connected = timeout_at(deadline, race(addresses)).await;
        let tcp = connected.map_err(|_| self.timed_out("connecting to", target))?.map_err(|error| {
            let code = match error.kind() {
                io::ErrorKind::ConnectionRefused => Code::ConnectRefused,
                _ => Code::ConnectTimeout,
            };
            Error::new(code, format!("cannot connect to {target}: {}", reason(&error)))
        })?;
        socket::tune(&tcp);
        if let Ok(address) = tcp.peer_addr() {
            tracing::debug!(%address, "connected");
        }
        Ok(tcp)
    }

    /// A stream to the endpoint through `proxy`.
    ///
    /// # Errors
    /// `proxy`.
    pub(super) async fn connect_through(&self, proxy: &Proxy, deadline: Instant) -> Result<BufReader<Transport>> {
        let reached = self.reach(proxy, deadline).await;
        let mut transport = reached
            .map_err(|error| Error::new(Code::Proxy, format!("the proxy {proxy} cannot be reached: {}", error.text)))?;
        let asking = timeout_at(deadline, proxy::through(&mut transport, proxy, &self.host.endpoint)).await;
        asking.unwrap_or_else(|_| {
            let seconds = self.host.connect_timeout.as_secs_f32();
            let text = format!("the proxy {proxy} did not connect to {} within {seconds} s", self.host.endpoint);
            Err(Error::new(Code::Proxy, text).with_hint("check the endpoint's address, or raise `connect_timeout`"))
        })?;
        Ok(transport)
    }

    /// A connection to `proxy` itself, over TLS where it speaks that.
    async fn reach(&self, proxy: &Proxy, deadline: Instant) -> Result<BufReader<Transport>> {
        let addresses = self.look_up(&proxy.endpoint, deadline).await?;
        let tcp = self.connect(&proxy.endpoint, &addresses, deadline).await?;
        let connectors = self.connectors()?;
        let Some(connector) = &connectors.proxy else { return Ok(Transport::Tcp(tcp).read_ahead()) };
        let name = server_name(&proxy.endpoint.host)?;
        let stream = timeout_at(deadline, connector.connect(name, tcp))
            .await
            .map_err(|_| self.timed_out("the TLS handshake with", &proxy.endpoint))?
            .map_err(|error| self.proxy_tls_error(proxy, &error))?;
        Ok(Transport::Tls(Box::new(stream)).read_ahead())
    }

    /// Authenticates both sides of a connection. `request` leaves together with the end of the handshake, once the server is
    /// known to be the right one.
    ///
    /// # Errors
    /// The `tls-…` codes, `connect-timeout`, `not-tstunnel`; and those of [`Connection::send`].
    pub(super) async fn secure(
        &self,
        transport: BufReader<Transport>,
        request: &[u8],
        deadline: Instant,
    ) -> Result<Connection> {
        let name = server_name(&self.host.server_name)?;
        let greeted = Instant::now();
        let mut begun = 0;
        let handshake = self.connectors()?.server.connect_with(name, transport, |tls| {
            begun = tls.writer().write(request).unwrap_or_default();
        });
        let handshake = timeout_at(deadline, handshake.into_fallible());
        let secured = handshake.await.map_err(|_| self.timed_out("the TLS handshake with", &self.host.endpoint))?;
        let mut stream = match secured {
            Ok(stream) => stream,
            Err((error, transport)) => return Err(self.handshake_error(&error, transport).await),
        };
        stream.get_mut().1.set_buffer_limit(Some(FRAME_BYTES));
        let round_trip = greeted.elapsed();
        let mut connection = Connection { stream, buffer: BytesMut::new(), round_trip, dialler: self.clone() };
        let milliseconds = round_trip.as_millis() as u64;
        tracing::debug!(version = connection.version(), milliseconds, "authenticated");
        if let Some(rest) = request.get(begun..).filter(|rest| !rest.is_empty()) {
            connection.send(rest).await?;
        }
        Ok(connection)
    }

    fn timed_out(&self, doing: &str, target: &Endpoint) -> Error {
        let seconds = self.host.connect_timeout.as_secs_f32();
        Error::new(Code::ConnectTimeout, format!("{doing} {target} took longer than {seconds} s"))
    }

    /// What a failed handshake with a proxy means, in the words for one with a server.
    fn proxy_tls_error(&self, proxy: &Proxy, error: &io::Error) -> Error {
        let (endpoint, server_name) = (proxy.endpoint.clone(), proxy.endpoint.host.clone());
        tls::classify_client_error(error, &Host { endpoint, server_name, ca: None, ..Host::clone(&self.host) })
    }

    /// What a failed handshake means. Whoever hung up before it was spoken to may have said why.
    async fn handshake_error(&self, error: &io::Error, mut transport: BufReader<Transport>) -> Error {
        if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
            let mut unread = [0; tls::ALERT_BYTES];
            let read = tokio::time::timeout(Duration::from_secs(1), transport.read_exact(&mut unread)).await;
            if let (Ok(Ok(_)), Some(said)) = (read, tls::classify_unasked(unread, &self.host)) {
                return said;
            }
        }
        tls::classify_handshake_error(error, &self.host)
    }

    fn tls_error(&self, error: &io::Error) -> Error {
        tls::classify_client_error(error, &self.host)
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>> {
    ServerName::try_from(name.to_owned())
        .map_err(|_| Error::new(Code::Config, format!("`{name}` is not a server name")))
}
