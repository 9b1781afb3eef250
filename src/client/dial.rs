//! Host → an authenticated connection → an answer: names, address racing (RFC 8305), a proxy, TLS, one HTTP/1.1 request.
//!
//! Each step fails with a code of its own. The connection's set-up is bounded by `connect_timeout`, the answer by
//! `answer_timeout`.

mod proxy;
mod send;
mod transport;

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rustix::io::Errno;
use rustls::{ClientConfig, ClientConnection, ProtocolVersion};
use rustls_pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub use transport::Transport;

use crate::cli::openssh::AddressFamily;
use crate::client::passphrase;
use crate::config::proxy::Scheme;
use crate::config::{Endpoint, Host, Proxy};
use crate::error::{Code, Error, Result, printable};
use crate::protocol::frame::FRAME_BYTES;
use crate::protocol::head::Response;
use crate::protocol::{HEADER_GRACE, MAX_PROBLEM_BYTES};
use crate::{socket, tls};

/// How long a connection attempt has before the next address is tried beside it (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// How long a connection may wait for the files that TLS needs; one that has waited for longer, perhaps for a person who was asked
/// for a passphrase, is made anew, because the server may have given it up.
const LOADING: Duration = Duration::from_millis(100);

/// An authenticated TLS stream.
pub type Stream = TlsStream<BufReader<Transport>>;

/// Makes connections to one host.
#[derive(Clone)]
pub struct Dialler {
    host: Arc<Host>,
    /// What TLS needs, loaded with the first connection.
    connectors: Arc<OnceLock<Connectors>>,
    family: AddressFamily,
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
        Dialler { host: Arc::new(host), connectors: Arc::default(), family: AddressFamily::Any }
    }

    /// Makes connections by a TLS configuration for `host` that is loaded already.
    ///
    /// # Errors
    /// `config` where the proxy speaks TLS and the system trusts nobody.
    pub fn with_config(host: Host, config: ClientConfig) -> Result<Dialler> {
        let dialler = Dialler::new(host);
        let connectors = Connectors::new(&dialler.host, config)?;
        dialler.connectors.get_or_init(|| connectors);
        Ok(dialler)
    }

    /// Dials only addresses of `family`.
    #[must_use]
    pub fn with_family(mut self, family: AddressFamily) -> Dialler {
        self.family = family;
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
        let reached = match self.connectors.get() {
            Some(_) => None,
            None => self.reach_while_loading(deadline).await?,
        };
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
    fn connectors(&self) -> Result<&Connectors> {
        if let Some(connectors) = self.connectors.get() {
            return Ok(connectors);
        }
        let config = tls::client_config(&self.host, &mut passphrase::ask)?;
        let connectors = Connectors::new(&self.host, config)?;
        Ok(self.connectors.get_or_init(|| connectors))
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
        let Some(connector) = &self.connectors()?.proxy else { return Ok(Transport::Tcp(tcp).read_ahead()) };
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

/// What an I/O error says, without Rust's number behind it.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

async fn lookup(target: &Endpoint, family: AddressFamily) -> Result<Vec<SocketAddr>> {
    let (name, port) = (target.host.as_str(), target.port);
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let no_address = |why: String| Error::new(Code::Dns, format!("cannot look up {name}: {why}"));
    let found = tokio::net::lookup_host((name, port)).await.map_err(|error| no_address(lookup_reason(&error)))?;
    let found: Vec<SocketAddr> = found
        .filter(|address| match family {
            AddressFamily::Any => true,
            AddressFamily::Inet => address.is_ipv4(),
            AddressFamily::Inet6 => address.is_ipv6(),
        })
        .collect();
    if found.is_empty() { Err(no_address("the name has no address".to_owned())) } else { Ok(interleave(found)) }
}

fn lookup_reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.strip_prefix("failed to lookup address information: ").unwrap_or(&text).to_lowercase()
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
async fn race(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
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

/// An authenticated connection on which a request is made.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    buffer: BytesMut,
    round_trip: Duration,
    dialler: Dialler,
}

impl Connection {
    /// Sends a request's head, or a part of its body.
    ///
    /// # Errors
    /// What the server said if it closed (`client-cert`), else `network-lost`.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match send::send(&mut self.stream, &mut self.buffer, bytes).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failure_behind(error).await),
        }
    }

    /// A failed write may have left the peer's reason unread.
    async fn failure_behind(&mut self, error: io::Error) -> Error {
        let waited = tokio::time::timeout(Duration::from_secs(1), self.stream.read_buf(&mut self.buffer)).await;
        match waited {
            Ok(Err(reason)) if reason.kind() == io::ErrorKind::InvalidData => self.read_error(&reason),
            _ => self.read_error(&error),
        }
    }

    fn read_error(&self, error: &io::Error) -> Error {
        let endpoint = &self.dialler.host.endpoint.host;
        match error.kind() {
            io::ErrorKind::InvalidData => self.dialler.tls_error(error),
            io::ErrorKind::UnexpectedEof => {
                Error::new(Code::NetworkLost, format!("the connection to {endpoint} was cut before the answer"))
            }
            _ => Error::new(
                Code::NetworkLost,
                format!("the connection to {endpoint} broke before the answer: {}", reason(error)),
            ),
        }
    }

    /// Waits for the head of an answer, at most as long as the host's `answer_timeout`.
    ///
    /// # Errors
    /// `connect-timeout`, `not-tstunnel`, `network-lost`, `client-cert`.
    pub async fn answer(&mut self) -> Result<Response> {
        let limit = self.dialler.host.answer_timeout;
        let answered = tokio::time::timeout(limit, self.read_head()).await.unwrap_or_else(|_| {
            let endpoint = &self.dialler.host.endpoint.host;
            let text = format!("{endpoint} did not answer the request within {} s", limit.as_secs_f32());
            Err(Error::new(Code::ConnectTimeout, text).with_hint("check the server, or raise `answer_timeout`"))
        });
        if let Ok(response) = &answered {
            // The session itself is named by a secret.
            tracing::debug!(
                status = response.status,
                upgrade = response.field("upgrade").map(printable).map(tracing::field::display),
                grace_seconds = response.number::<u64>(HEADER_GRACE),
                "answered"
            );
        }
        answered
    }

    /// The answer that a server gave before it stopped reading the request.
    ///
    /// # Errors
    /// What is wrong with that answer, or `error`, where there is none.
    pub async fn answer_sent_before(&mut self, error: Error) -> Result<Response> {
        match tokio::time::timeout(Duration::from_secs(1), self.read_head()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(reason)) if reason.code != Code::NetworkLost && !self.buffer.is_empty() => Err(reason),
            // Whoever has said nothing has only gone.
            _ => Err(error),
        }
    }

    async fn read_head(&mut self) -> Result<Response> {
        loop {
            if let Some((response, length)) = Response::parse(&self.buffer)? {
                self.buffer.advance(length);
                return Ok(response);
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => {
                    let endpoint = &self.dialler.host.endpoint.host;
                    let text = format!("{endpoint} closed the connection before its answer was whole");
                    return Err(Error::new(Code::NotTstunnel, text));
                }
                Ok(_) => {}
                Err(error) => return Err(self.read_error(&error)),
            }
        }
    }

    /// The body of an answer: as long as its head says, or until the end, and never more than [`MAX_PROBLEM_BYTES`].
    pub async fn body(&mut self, response: &Response) -> Vec<u8> {
        let length = response.content_length().unwrap_or(u64::MAX).min(MAX_PROBLEM_BYTES as u64) as usize;
        let read = async {
            while self.buffer.len() < length && matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..)) {}
        };
        // What has come within a second says enough.
        let _ = tokio::time::timeout(Duration::from_secs(1), read).await;
        self.buffer[..self.buffer.len().min(length)].to_vec()
    }

    /// The failure that a refusal stands for.
    pub async fn refusal(&mut self, response: &Response) -> Error {
        let body = self.body(response).await;
        let error = response.refusal(&body);
        if error.code == Code::NotTstunnel {
            let host = &self.dialler.host;
            return Error::new(
                Code::NotTstunnel,
                format!(
                    "{} under {} {}",
                    host.endpoint.host,
                    host.upgrade_base,
                    error.text.trim_start_matches("the endpoint ")
                ),
            );
        }
        error
    }

    /// The stream after an upgrade, and what was received behind the answer's head.
    pub fn into_parts(self) -> (Stream, BytesMut) {
        (self.stream, self.buffer)
    }

    /// How long the handshake's one round trip took, this side's work for it included.
    pub fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// The version of TLS that was agreed on.
    pub(super) fn version(&self) -> &'static str {
        match self.tls().protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLS 1.2",
            _ => "TLS",
        }
    }

    /// The state of its TLS.
    pub(super) fn tls(&self) -> &ClientConnection {
        self.stream.get_ref().1
    }

    /// The stream while a request's body is sent.
    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
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
