//! Listening sockets → authenticated connections. Whoever is not authenticated in time, or at all, is gone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::error::{Code, Error, Result};
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
pub async fn bind(addresses: &[SocketAddr]) -> Result<Vec<Bound>> {
    let mut bound = Vec::new();
    for &address in addresses {
        let socket = TcpListener::bind(address).await.map_err(|error| {
            Error::new(Code::Config, format!("cannot listen on {address}: {error}"))
                .with_hint("choose another address in `listen`, or stop what has this one")
        })?;
        bound.push(Bound { address, socket });
    }
    Ok(bound)
}

impl Listeners {
    /// Listens on nothing yet. `max_handshakes` may be under way at once.
    pub fn new(shared: Arc<Shared>, max_handshakes: usize) -> Listeners {
        Listeners { shared, handshakes: Arc::new(Semaphore::new(max_handshakes)), open: Vec::new() }
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
            tokio::spawn(accept(socket, self.shared.clone(), self.handshakes.clone(), stop));
            self.open.push(Open { address, _accepting: accepting });
        }
    }
}

/// Accepts connections until the other end of `stop` is gone, each served in a task of its own.
async fn accept(listener: TcpListener, shared: Arc<Shared>, handshakes: Arc<Semaphore>, mut stop: watch::Receiver<()>) {
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
    if let Ok(place) = handshakes.clone().acquire_owned().await {
        tokio::spawn(authenticate(shared.clone(), tcp, address, place));
    }
}

async fn authenticate(shared: Arc<Shared>, tcp: TcpStream, address: SocketAddr, place: OwnedSemaphorePermit) {
    let held = Held::new(shared.metrics.connection("handshake"));
    let state = shared.state();
    let handshake = handshake::accept(tcp, address, &state);
    let result = tokio::time::timeout(state.config.limits.handshake_timeout, handshake).await;
    drop((state, place, held));
    let (failure, reason) = match result {
        Ok(Ok((stream, peer))) => {
            shared.metrics.handshake("ok").inc();
            return connection::serve(shared, stream, peer).await;
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
