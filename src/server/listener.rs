//! Listening sockets → authenticated connections. Whoever is not authenticated in time, or at all, is gone.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::error::{Code, Error, Result, printable};
use crate::server::{Shared, connection, handshake};

/// Pause after a failed accept: it fails for want of descriptors, which only time brings back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens on `address`.
///
/// # Errors
/// `config` where that is not possible.
pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let failed = |error: io::Error| {
        Error::new(Code::Config, format!("cannot listen on {address}: {error}"))
            .with_hint("choose another address in `listen`, or stop what has this one")
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    tracing::info!("listening on {}", listener.local_addr().map_err(failed)?);
    Ok(listener)
}

/// Accepts connections for ever, each served in a task of its own.
pub async fn accept(listener: TcpListener, shared: Arc<Shared>, handshakes: Arc<Semaphore>) {
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
        let shared = shared.clone();
        tokio::spawn(async move {
            let state = shared.state();
            let limit = state.config.limits.handshake_timeout;
            let handshake = handshake::accept(tcp, address, state.tls.clone(), state.config.allow_cn);
            let result = tokio::time::timeout(limit, handshake).await;
            drop(state);
            drop(place);
            match result {
                Ok(Ok((stream, peer))) => connection::serve(shared, stream, peer).await,
                Ok(Err(error)) => {
                    tracing::info!(peer = %address, reason = %printable(&error.to_string()), "handshake failed")
                }
                Err(_) => tracing::info!(peer = %address, reason = "too slow", "handshake failed"),
            }
        });
    }
}
