//! Listening sockets → authenticated connections. Everybody is accepted, so that nobody waits behind others in the kernel's
//! queue; whoever is not authenticated in time, or at all, is gone.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::error::{Code, Error, Result, printable};
use crate::server::gate::{Closed, Pass};
use crate::server::handshake::{Peer, Stream};
use crate::server::read_ahead::ReadAhead;
use crate::server::state::State;
use crate::server::{Shared, connection, descriptors, handshake};
use crate::socket;

/// Connections that the kernel holds until they are accepted, as far as it does (`net.core.somaxconn`). It drops the SYN of a
/// client that finds more, which costs that one a second.
const BACKLOG: u32 = 4096;
/// The part of all handshakes that are let in before those that were are heard: fewer than it takes for one of them to
/// lose its place meanwhile.
const BATCH_SHARE: usize = 8;
/// Pause after an accept that failed for want of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often that is logged.
const FAILURE_INTERVAL: Duration = Duration::from_secs(60);

/// The sockets that the server listens on.
#[derive(Debug)]
pub struct Listeners {
    shared: Arc<Shared>,
    open: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    /// As it was asked for; its port may be 0.
    address: SocketAddr,
    /// Its end stops the accepting.
    _accepting: watch::Sender<()>,
}

/// A socket that nobody accepts from yet, and the address that it was asked for by.
#[derive(Debug)]
pub struct Bound {
    address: SocketAddr,
    socket: TcpListener,
}

/// Listens on each of `addresses`, or on none.
///
/// # Errors
/// `config` where that is not possible.
pub fn bind(addresses: &[SocketAddr]) -> Result<Vec<Bound>> {
    let mut bound = Vec::new();
    for &address in addresses {
        let socket = listen(address).map_err(|error| {
            Error::new(Code::Config, format!("cannot listen on {address}: {error}"))
                .with_hint("choose another address in `listen`, or stop what has this one")
        })?;
        bound.push(Bound { address, socket });
    }
    Ok(bound)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Listeners {
    /// Listens on nothing yet.
    pub fn new(shared: Arc<Shared>) -> Listeners {
        Listeners { shared, open: Vec::new() }
    }

    /// Those of `addresses` that nothing listens on yet.
    pub fn missing(&self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut open: Vec<SocketAddr> = self.open.iter().map(|open| open.address).collect();
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
    pub fn exchange(&mut self, bound: Vec<Bound>, addresses: &[SocketAddr]) {
        self.open.retain(|open| addresses.contains(&open.address));
        for Bound { address, socket } in bound {
            match socket.local_addr() {
                Ok(local) => tracing::info!("listening on {local}"),
                Err(error) => tracing::warn!(%error, "listening on {address}"),
            }
            let (accepting, stop) = watch::channel(());
            tokio::spawn(accept(socket, self.shared.clone(), stop));
            self.open.push(Open { address, _accepting: accepting });
        }
    }
}

/// Accepts connections until the other end of `stop` is gone, each served in a task of its own.
async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stop: watch::Receiver<()>) {
    let mut last_failure: Option<Instant> = None;
    let mut unheard = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => break,
        };
        match accepted {
            Ok((tcp, address)) => admit(&shared, tcp, address),
            Err(error) if descriptors::is_exhaustion(&error) => {
                if last_failure.is_none_or(|last| last.elapsed() >= FAILURE_INTERVAL) {
                    tracing::warn!(%error, "cannot accept");
                    last_failure = Some(Instant::now());
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
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
    // What the kernel has taken by now would be reset.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((tcp, address)) = listener.accept() {
        if let Ok(tcp) = tcp.set_nonblocking(true).and_then(|()| TcpStream::from_std(tcp)) {
            admit(&shared, tcp, address);
        }
    }
}

/// Serves a connection in a task of its own, where there is room for it; else closes it.
fn admit(shared: &Arc<Shared>, tcp: TcpStream, address: SocketAddr) {
    let state = shared.state();
    let limits = &state.config.limits;
    let Some(counted) = shared.connections.add(descriptors::max_connections(limits)) else {
        shared.gate.closed(address.ip(), Closed::Full);
        return socket::reset_on_close(&tcp);
    };
    match shared.gate.enter(address.ip(), limits, |source| shared.admission.has_session_from(source)) {
        Ok(pass) => {
            socket::tune(&tcp);
            tokio::spawn(serve(shared.clone(), state, ReadAhead::new(tcp, counted), address, pass));
        }
        Err(_) => socket::reset_on_close(&tcp),
    }
}

async fn serve(shared: Arc<Shared>, state: Arc<State>, connection: ReadAhead, address: SocketAddr, pass: Pass) {
    let Some((stream, peer)) = authenticate(&state, connection, address, &pass).await else { return };
    pass.authenticated();
    drop(state);
    // In a place of its own: what a connection needs later would be held for every handshake.
    Box::pin(connection::serve(shared, stream, peer)).await;
}

/// A handshake within its time, and for as long as it has its place.
async fn authenticate(
    state: &Arc<State>,
    connection: ReadAhead,
    address: SocketAddr,
    pass: &Pass,
) -> Option<(Stream, Peer)> {
    let limits = &state.config.limits;
    let abandoned = connection.abandoned();
    let handshake = handshake::accept(connection, address, state, |stage| pass.reached(stage, limits));
    let mut handshake = std::pin::pin!(tokio::time::timeout(limits.handshake_timeout, handshake));
    let result = tokio::select! {
        result = &mut handshake => result,
        () = pass.taken_back() => {
            abandoned.set();
            return None;
        }
    };
    let reason: io::Error = match result {
        Ok(Ok(authenticated)) => return Some(authenticated),
        Ok(Err(error)) => error,
        Err(_) => io::Error::new(io::ErrorKind::TimedOut, "too slow"),
    };
    pass.failed(limits);
    tracing::info!(peer = %address, reason = %printable(&reason.to_string()), "handshake failed");
    None
}
