//! Listening sockets → authenticated connections. Everybody is accepted, so that nobody waits behind others in the kernel's
//! queue; whoever is not authenticated in time, or at all, is gone.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::error::{Code, Error, Result, reason};
use crate::server::admission::Counted;
use crate::server::audit::record::{Event, Record, Text};
use crate::server::descriptors::Shortage;
use crate::server::gate::{Closed, Pass};
use crate::server::handshake::{Failure, Peer, Stream};
use crate::server::metrics::Held;
use crate::server::proxy_protocol::{self, Header};
use crate::server::read_ahead::ReadAhead;
use crate::server::state::State;
use crate::server::{Shared, connection, descriptors, handshake};
use crate::{socket, tls};

/// Connections that the kernel holds until they are accepted, as far as it does (`net.core.somaxconn`). It drops the SYN of a
/// client that finds more, which costs that one a second.
const BACKLOG: u32 = 4096;
/// The part of all handshakes that are let in before those that were are heard: fewer than it takes for one of them to
/// lose its place meanwhile.
const BATCH_SHARE: usize = 8;

/// The sockets that the server listens on.
#[derive(Debug)]
pub struct Listeners {
    shared: Arc<Shared>,
    open: Vec<Open>,
    /// Whether what to listen on is not the configuration's to say: the sockets are the service manager's, or a successor's by now.
    is_fixed: bool,
}

#[derive(Debug)]
struct Open {
    /// The same socket, for a successor, and the address that it was asked for by: its port may be 0.
    copy: Given,
    /// Whether a successor accepts instead. Its end stops the accepting too.
    handed_over: watch::Sender<bool>,
}

/// A socket that nobody accepts from yet, and the address that it was asked for by.
#[derive(Debug)]
pub struct Bound {
    address: SocketAddr,
    socket: TcpListener,
}

/// A socket that another process listened on, and the address that it was asked for by there.
#[derive(Debug)]
pub struct Given {
    /// The address.
    pub address: SocketAddr,
    /// The socket.
    pub socket: OwnedFd,
}

/// What to listen on.
#[derive(Debug)]
pub struct Listening {
    /// The sockets.
    pub bound: Vec<Bound>,
    /// Whether they are the service manager's, whatever the configuration says.
    pub is_given: bool,
}

/// Whose addresses are listened on, which a failure to do so names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Those of `listen`, for clients.
    Sessions,
    /// Those of `[monitor]`.
    Monitor,
}

impl Purpose {
    fn verb(self) -> &'static str {
        match self {
            Purpose::Sessions => "listen",
            Purpose::Monitor => "monitor",
        }
    }

    /// Where the addresses stand in the configuration, behind "another".
    fn place(self) -> &'static str {
        match self {
            Purpose::Sessions => "in `listen`",
            Purpose::Monitor => "for `listen` in [monitor]",
        }
    }

    fn failure(self, address: SocketAddr, cause: &io::Error) -> Error {
        let (verb, place) = (self.verb(), self.place());
        let hint = match cause.kind() {
            io::ErrorKind::PermissionDenied => format!(
                "ports below 1024 are root's: run it as root or as a service, give the program CAP_NET_BIND_SERVICE, or \
                 choose another port {place}"
            ),
            _ => format!("choose another address {place}, or stop what has this one"),
        };
        Error::new(Code::Config, format!("cannot {verb} on {address}: {}", reason(cause))).with_hint(hint)
    }
}

/// Listens on `given` alone.
///
/// # Errors
/// `internal` where a socket cannot be used.
pub fn adopt(given: Vec<Given>, purpose: Purpose) -> Result<Vec<Bound>> {
    let adopt = |Given { address, socket }| {
        let socket = std::net::TcpListener::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Bound { address, socket: TcpListener::from_std(socket)? })
    };
    given.into_iter().map(adopt).collect::<io::Result<_>>().map_err(|error| {
        let verb = purpose.verb();
        Error::new(Code::Internal, format!("cannot {verb} on a socket that was handed over: {error}"))
    })
}

/// Listens on each of `addresses`, or on none; by one of the sockets in `given` where that is for the same address. `all` are those that
/// are listened on then.
///
/// # Errors
/// `config` where that is not possible.
pub fn bind(addresses: &[SocketAddr], all: &[SocketAddr], given: Vec<Given>, purpose: Purpose) -> Result<Vec<Bound>> {
    let mut given = adopt(given, purpose)?;
    let mut bound = Vec::new();
    for &address in addresses {
        let is_it =
            |given: &Bound| given.address == address || given.socket.local_addr().is_ok_and(|local| local == address);
        let socket = match given.iter().position(is_it) {
            Some(index) => given.swap_remove(index).socket,
            None => listen(address, all).map_err(|cause| purpose.failure(address, &cause))?,
        };
        bound.push(Bound { address, socket });
    }
    Ok(bound)
}

fn listen(address: SocketAddr, all: &[SocketAddr]) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() && all.iter().any(|other| other.is_ipv4() && other.port() == address.port()) {
        // By itself `[::]` takes IPv4 too, and leaves nothing to an address of that kind.
        SockRef::from(&socket).set_only_v6(true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Bound {
    /// The socket once more, for a successor.
    ///
    /// # Errors
    /// `internal` where there is no descriptor left.
    pub fn copy(&self) -> Result<Given> {
        let copy = self.socket.as_fd().try_clone_to_owned();
        let no_copy = |error| Error::new(Code::Internal, format!("cannot listen on {}: {error}", self.address));
        Ok(Given { address: self.address, socket: copy.map_err(no_copy)? })
    }

    /// The socket.
    pub fn into_socket(self) -> TcpListener {
        self.socket
    }
}

impl Given {
    /// The same socket once more.
    ///
    /// # Errors
    /// Where there is no descriptor left.
    pub fn copy(&self) -> io::Result<Given> {
        Ok(Given { address: self.address, socket: self.socket.try_clone()? })
    }
}

impl Listeners {
    /// Listens on nothing yet. The configuration says what to listen on, unless that `is_fixed`.
    pub fn new(shared: Arc<Shared>, is_fixed: bool) -> Listeners {
        Listeners { shared, open: Vec::new(), is_fixed }
    }

    /// Those of `addresses` that nothing listens on yet; none where it is not theirs to say.
    pub fn missing(&self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        if self.is_fixed {
            return Vec::new();
        }
        let mut open: Vec<SocketAddr> = self.open.iter().map(|open| open.copy.address).collect();
        let mut missing = addresses.to_vec();
        missing.retain(|address| match open.iter().position(|open| open == address) {
            Some(index) => {
                open.swap_remove(index);
                false
            }
            None => true,
        });
        missing
    }

    /// Accepts from `bound` too, and lets go of whatever is not one of `addresses`. A connection that the kernel has taken by
    /// then is served.
    ///
    /// # Errors
    /// `internal` where there is no descriptor left.
    pub fn exchange(&mut self, bound: Vec<Bound>, addresses: &[SocketAddr]) -> Result<()> {
        let mut opened = Vec::new();
        for bound in bound {
            opened.push((bound.copy()?, bound));
        }
        self.open.retain(|open| self.is_fixed || addresses.contains(&open.copy.address));
        for (copy, Bound { address, socket }) in opened {
            match socket.local_addr() {
                Ok(local) => tracing::info!("listening on {local}"),
                Err(error) => tracing::warn!(%error, "listening on {address}"),
            }
            let (handed_over, stop) = watch::channel(false);
            tokio::spawn(accept(socket, self.shared.clone(), stop));
            self.open.push(Open { copy, handed_over });
        }
        Ok(())
    }

    /// Whether what to listen on is not the configuration's to say.
    pub fn is_fixed(&self) -> bool {
        self.is_fixed
    }

    /// The sockets once more, for a successor.
    ///
    /// # Errors
    /// Where there is no descriptor left.
    pub fn copies(&self) -> io::Result<Vec<Given>> {
        self.open.iter().map(|open| open.copy.copy()).collect()
    }

    /// Leaves accepting to a successor: what the kernel has taken by now is its to serve.
    pub fn hand_over(&mut self) {
        self.is_fixed = true;
        for open in self.open.drain(..) {
            let _ = open.handed_over.send(true);
        }
    }
}

/// Accepts connections until the other end of `stop` has something to say or is gone, each served in a task of its own.
async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut shortage = Shortage::default();
    let mut unheard = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => break,
        };
        match accepted {
            Ok((tcp, address)) => admit(&shared, tcp, address),
            Err(error) if descriptors::is_exhaustion(&error) => shortage.wait("the server", &error).await,
            // The connection's own failure: accept(2) passes it on.
            Err(error) => tracing::debug!(%error, "a connection failed before it was accepted"),
        }
        // Whoever was let in may have sent its ClientHello already.
        unheard += 1;
        if unheard >= shared.state().config.limits.max_handshakes.get() / BATCH_SHARE {
            unheard = 0;
            tokio::task::yield_now().await;
        }
    }
    if *stop.borrow() {
        return;
    }
    // What the kernel has taken by now would be reset.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((tcp, address)) = listener.accept() {
        if let Ok(tcp) = tcp.set_nonblocking(true).and_then(|()| TcpStream::from_std(tcp)) {
            admit(&shared, tcp, address);
        }
    }
}

/// Serves a connection in a task of its own, where there is room for it; else closes it.
fn admit(shared: &Arc<Shared>, mut tcp: TcpStream, address: SocketAddr) {
    let state = shared.state();
    let Some(descriptor) = shared.connections.add(descriptors::max_connections(&state.config.limits)) else {
        shared.gate.closed(address.ip(), Closed::Full);
        shared.metrics.closed_connection(Closed::Full).inc();
        return socket::reset_on_close(&tcp);
    };
    if !state.config.proxy_protocol.iter().any(|balancer| balancer.contains(address.ip())) {
        return begin(shared, state, ReadAhead::new(tcp, descriptor), address, false);
    }
    let shared = shared.clone();
    tokio::spawn(async move {
        let header = tokio::time::timeout(state.config.limits.handshake_timeout, proxy_protocol::read(&mut tcp));
        match header.await {
            Ok(Ok(Header { source, rest })) => {
                let connection = ReadAhead::behind_header(tcp, descriptor, rest);
                begin(&shared, state, connection, source.unwrap_or(address), source.is_none());
            }
            Ok(Err(error)) => unauthenticated(&shared, address, Failure::of(&error), &error.to_string()),
            Err(_) => unauthenticated(&shared, address, Failure::Slow, "the balancer's header did not come in time"),
        }
    });
}

/// Begins the handshake of a connection from `address`, where a balancer may speak for itself, if it may; else closes it.
fn begin(shared: &Arc<Shared>, state: Arc<State>, connection: ReadAhead, address: SocketAddr, is_balancer: bool) {
    let limits = &state.config.limits;
    match shared.gate.enter(address.ip(), is_balancer, limits, |source| shared.admission.has_session_from(source)) {
        Ok(pass) => {
            socket::tune(connection.tcp());
            let counted = shared.admission.connected();
            tokio::spawn(serve(shared.clone(), state, connection, address, pass, counted));
        }
        Err(why) => {
            shared.metrics.closed_connection(why).inc();
            if why == Closed::ShutOut {
                // Nothing is read, kept or waited for: whoever gets it knows why, whoever does not is as it was.
                socket::send_last(connection.tcp(), &tls::ACCESS_DENIED);
            }
            connection.abandoned().set();
        }
    }
}

async fn serve(
    shared: Arc<Shared>,
    state: Arc<State>,
    connection: ReadAhead,
    address: SocketAddr,
    pass: Pass,
    counted: Counted,
) {
    let Some((stream, peer)) = authenticate(&shared, &state, connection, address, &pass).await else { return };
    pass.authenticated();
    drop(state);
    // In a place of its own: what a connection needs later would be held for every handshake.
    Box::pin(connection::serve(shared, stream, peer, counted)).await;
}

/// A handshake within its time, and for as long as it has its place.
async fn authenticate(
    shared: &Shared,
    state: &Arc<State>,
    connection: ReadAhead,
    address: SocketAddr,
    pass: &Pass,
) -> Option<(Stream, Peer)> {
    let _held = Held::new(shared.metrics.connection("handshake"));
    let limits = &state.config.limits;
    let abandoned = connection.abandoned();
    let handshake = handshake::accept(connection, address, state, |stage| pass.reached(stage, limits));
    let mut handshake = std::pin::pin!(tokio::time::timeout(limits.handshake_timeout, handshake));
    let result = tokio::select! {
        result = &mut handshake => result,
        () = pass.taken_back() => {
            shared.metrics.closed_connection(Closed::Crowded).inc();
            abandoned.set();
            return None;
        }
    };
    let (failure, reason) = match result {
        Ok(Ok(authenticated)) => {
            shared.metrics.handshake("ok").inc();
            return Some(authenticated);
        }
        Ok(Err(error)) => (Failure::of(&error), error.to_string()),
        Err(_) => (Failure::Slow, "the handshake did not end in time".to_owned()),
    };
    pass.failed(limits);
    unauthenticated(shared, address, failure, &reason);
    None
}

/// Records that a connection has come to nothing before it was known whose it is.
fn unauthenticated(shared: &Shared, address: SocketAddr, failure: Failure, reason: &str) {
    shared.metrics.handshake(failure.name()).inc();
    shared.audit.push_throttled(Record {
        source: Some(Text::new(&address.to_string())),
        code: Some(failure.name()),
        reason: Some(Text::new(reason)),
        ..Record::new(Event::Handshake)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_not_this_accounts_to_use_has_another_hint_than_one_in_use() {
        let address = SocketAddr::from(([127, 0, 0, 1], 443));
        let hint = |kind: io::ErrorKind| {
            let error = Purpose::Sessions.failure(address, &kind.into());
            assert!(
                error.code == Code::Config && error.text.starts_with("cannot listen on 127.0.0.1:443: "),
                "{error}"
            );
            error.hint().to_owned()
        };
        let denied = hint(io::ErrorKind::PermissionDenied);
        assert!(denied.starts_with("ports below 1024 are root's: ") && !denied.contains("stop what"), "{denied}");
        for remedy in ["as root or as a service", "CAP_NET_BIND_SERVICE", "another port in `listen`"] {
            assert!(denied.contains(remedy), "{denied}");
        }
        assert_eq!(hint(io::ErrorKind::AddrInUse), "choose another address in `listen`, or stop what has this one");
    }

    #[test]
    fn a_monitors_failure_names_the_key_of_the_monitor() {
        let address = SocketAddr::from(([127, 0, 0, 1], 443));
        let failure = |kind: io::ErrorKind| Purpose::Monitor.failure(address, &kind.into());
        let in_use = failure(io::ErrorKind::AddrInUse);
        assert_eq!(in_use.code, Code::Config);
        assert!(in_use.text.starts_with("cannot monitor on 127.0.0.1:443: "), "{in_use}");
        assert_eq!(in_use.hint(), "choose another address for `listen` in [monitor], or stop what has this one");
        let denied = failure(io::ErrorKind::PermissionDenied);
        assert!(denied.hint().ends_with(", or choose another port for `listen` in [monitor]"), "{}", denied.hint());
    }
}
