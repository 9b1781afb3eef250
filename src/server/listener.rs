//! Listening sockets → authenticated connections. Whoever is not authenticated in time, or at all, is gone.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::error::{Code, Error, Result};
use crate::server::admission::Counted;
use crate::server::audit::record::{Event, Record, Text};
use crate::server::handshake::Failure;
use crate::server::metrics::Held;
use crate::server::{Shared, connection, handshake};

/// Pause after a failed accept: it fails for want of descriptors, which only time brings back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The sockets that the server listens on.
#[derive(Debug)]
pub struct Listeners {
    shared: Arc<Shared>,
    handshakes: Arc<Semaphore>,
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

/// Listens on `given` alone.
///
/// # Errors
/// `internal` where a socket cannot be used.
pub fn adopt(given: Vec<Given>) -> Result<Vec<Bound>> {
    let adopt = |Given { address, socket }| {
        let socket = std::net::TcpListener::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Bound { address, socket: TcpListener::from_std(socket)? })
    };
    given
        .into_iter()
        .map(adopt)
        .collect::<io::Result<_>>()
        .map_err(|error| Error::new(Code::Internal, format!("cannot listen on a socket that was handed over: {error}")))
}

/// Listens on each of `addresses`, or on none; by one of the sockets in `given` where that is for the same address.
///
/// # Errors
/// `config` where that is not possible.
pub async fn bind(addresses: &[SocketAddr], given: Vec<Given>) -> Result<Vec<Bound>> {
    let mut given = adopt(given)?;
    let mut bound = Vec::new();
    for &address in addresses {
        let is_it =
            |given: &Bound| given.address == address || given.socket.local_addr().is_ok_and(|local| local == address);
        let socket = match given.iter().position(is_it) {
            Some(index) => given.swap_remove(index).socket,
            None => TcpListener::bind(address).await.map_err(|error| {
                Error::new(Code::Config, format!("cannot listen on {address}: {error}"))
                    .with_hint("choose another address in `listen`, or stop what has this one")
            })?,
        };
        bound.push(Bound { address, socket });
    }
    Ok(bound)
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
    /// Listens on nothing yet. `max_handshakes` may be under way at once. The configuration says what to listen on, unless that
    /// `is_fixed`.
    pub fn new(shared: Arc<Shared>, max_handshakes: usize, is_fixed: bool) -> Listeners {
        Listeners { shared, handshakes: Arc::new(Semaphore::new(max_handshakes)), open: Vec::new(), is_fixed }
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
            tokio::spawn(accept(socket, self.shared.clone(), self.handshakes.clone(), stop));
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
async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    handshakes: Arc<Semaphore>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => break,
        };
        match accepted {
            Ok((tcp, address)) => serve(&shared, &handshakes, tcp, address).await,
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    if *stop.borrow() {
        return;
    }
    // What the kernel has taken by now would be reset.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((tcp, address)) = listener.accept() {
        if let Ok(tcp) = tcp.set_nonblocking(true).and_then(|()| TcpStream::from_std(tcp)) {
            serve(&shared, &handshakes, tcp, address).await;
        }
    }
}

/// Serves a connection in a task of its own. With all places taken a newcomer waits, and those behind it in the kernel's queue, for
/// as long as a handshake may take.
async fn serve(shared: &Arc<Shared>, handshakes: &Arc<Semaphore>, tcp: TcpStream, address: SocketAddr) {
    let counted = shared.admission.connected();
    if let Ok(place) = handshakes.clone().acquire_owned().await {
        tokio::spawn(authenticate(shared.clone(), tcp, address, place, counted));
    }
}

async fn authenticate(
    shared: Arc<Shared>,
    tcp: TcpStream,
    address: SocketAddr,
    place: OwnedSemaphorePermit,
    counted: Counted,
) {
    let held = Held::new(shared.metrics.connection("handshake"));
    let state = shared.state();
    let handshake = handshake::accept(tcp, address, &state);
    let result = tokio::time::timeout(state.config.limits.handshake_timeout, handshake).await;
    drop((state, place, held));
    let (failure, reason) = match result {
        Ok(Ok((stream, peer))) => {
            shared.metrics.handshake("ok").inc();
            return connection::serve(shared, stream, peer, counted).await;
        }
        Ok(Err(error)) => (Failure::of(&error), error.to_string()),
        Err(_) => (Failure::Slow, "the handshake did not end in time".to_owned()),
    };
    shared.metrics.handshake(failure.name()).inc();
    shared.audit.push_throttled(Record {
        source: Some(Text::new(&address.to_string())),
        code: Some(failure.name()),
        reason: Some(Text::new(&reason)),
        ..Record::new(Event::Handshake)
    });
}
