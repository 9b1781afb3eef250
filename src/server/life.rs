//! A server's life after its start: signals, changed files and the passing of time, until it ends and leaves nothing running.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::error::{Code, Error, Result};
use crate::server::Shared;
use crate::server::admission::End;
use crate::server::config::Account;
use crate::server::listener::{Bound, Listeners};
use crate::server::reload::Source;
use crate::server::review::Scope;

/// Longest wait for sessions to end once the server stops: the ladder of a process and a little.
const DRAIN: Duration = Duration::from_secs(10);
/// How often live sessions are asked about again where nothing but time has passed: a grant may have expired.
const REVIEW: Duration = Duration::from_secs(10);

/// A server that has started.
#[derive(Debug)]
pub struct Life {
    shared: Arc<Shared>,
    source: Source,
    listeners: Listeners,
    signals: Signals,
    stop: watch::Sender<bool>,
    /// Ends when nothing is left that must end before the server may.
    ended: mpsc::Receiver<()>,
}

#[derive(Debug)]
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Life {
    /// Begins to accept from `bound`.
    ///
    /// # Errors
    /// `internal` where signals cannot be listened for.
    pub fn new(
        path: &Path,
        account: Account,
        shared: Arc<Shared>,
        stop: watch::Sender<bool>,
        ended: mpsc::Receiver<()>,
        bound: Vec<Bound>,
    ) -> Result<Life> {
        let state = shared.state();
        let signals = Signals {
            hangup: listen_for(SignalKind::hangup())?,
            terminate: listen_for(SignalKind::terminate())?,
            interrupt: listen_for(SignalKind::interrupt())?,
        };
        let source = Source::new(path, account, &state);
        let mut listeners = Listeners::new(shared.clone());
        listeners.exchange(bound, &state.config.listen);
        Ok(Life { shared, source, listeners, signals, stop, ended })
    }

    /// Lives until SIGTERM or SIGINT, and ends.
    pub async fn run(mut self) {
        let mut time = tokio::time::interval(REVIEW);
        loop {
            tokio::select! {
                _ = self.signals.terminate.recv() => break,
                _ = self.signals.interrupt.recv() => break,
                _ = self.signals.hangup.recv() => self.source.reload(&self.shared, &mut self.listeners).await,
                () = self.source.changed() => self.source.reload(&self.shared, &mut self.listeners).await,
                _ = time.tick() => self.shared.review(Scope::Request),
            }
        }
        self.end().await;
    }

    async fn end(self) {
        tracing::info!("stopping");
        let Life { shared, listeners, stop, mut ended, .. } = self;
        drop(listeners);
        let _ = stop.send(true);
        for session in shared.admission.live() {
            session.end(End::ServerStops);
        }
        shared.pool.clear();
        drop(shared);
        if tokio::time::timeout(DRAIN, ended.recv()).await.is_err() {
            tracing::warn!("stopped with sessions that did not end in time");
        }
    }
}

fn listen_for(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|error| Error::new(Code::Internal, format!("cannot listen for signals: {error}")))
}
