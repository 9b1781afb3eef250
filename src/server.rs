//! `tstunnel serve`: listener, handshakes, requests; and the end, which leaves nothing running.
//!
//! Data flows down: [`listener`] accepts, [`handshake`] authenticates, [`routes`] asks [`policy`] and answers, [`process`],
//! [`target`] and [`upload`] do what was permitted, [`sessions`] carries the streams. [`state`] is what all of it goes by.

pub mod account;
pub mod admission;
pub mod config;
pub mod connection;
pub mod handshake;
pub mod listener;
pub mod policy;
pub mod pool;
pub mod principal;
pub mod process;
pub mod refusal;
pub mod registry;
pub mod routes;
pub mod sessions;
pub mod spawn;
pub mod state;
pub mod store;
pub mod target;
pub mod upload;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::error::{Code, Error, Result};
use crate::server::account::Login;
use crate::server::admission::{Admission, End};
use crate::server::config::{Account, HostConfig};
use crate::server::pool::Pool;
use crate::server::registry::Registry;
use crate::server::state::State;
use crate::server::upload::Uploads;

/// Longest wait for sessions to end once the server stops: the ladder of a process and a little.
const DRAIN: Duration = Duration::from_secs(10);

/// What all connections share.
#[derive(Debug)]
pub struct Shared {
    state: RwLock<Arc<State>>,
    uploads: Uploads,
    pool: Pool,
    admission: Admission,
    registry: Registry,
    stop: Stop,
}

impl Shared {
    /// What the server goes by now. A connection takes it once, so that its checks are all of one state.
    pub fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

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
    let (state, warnings) = State::load(path, &account)?;
    if state.config.listen.is_empty() {
        let text = format!("{}: `listen` names no address", path.display());
        return Err(Error::new(Code::Config, text).with_hint("set `listen = [\"0.0.0.0:8443\"]`"));
    }
    for warning in warnings {
        tracing::warn!("{}: {warning}", path.display());
    }
    let mut listeners = Vec::new();
    for address in &state.config.listen {
        listeners.push(listener::listen(*address).await?);
    }
    let mut endings = (listen_for(SignalKind::terminate())?, listen_for(SignalKind::interrupt())?);
    let (stop_sender, stop) = watch::channel(false);
    let limits = &state.config.limits;
    let (admission, mut ended) = Admission::new();
    let handshakes = Arc::new(Semaphore::new(limits.max_handshakes.get()));
    let registry = Registry::new(limits);
    let uploads = Uploads::new();
    // What is written from now on is this server's own.
    if let Some(end) = SystemTime::now().checked_sub(limits.resume_grace) {
        tokio::spawn(sweep(state.config.hosts.values().cloned().collect(), end));
    }
    let state = RwLock::new(Arc::new(state));
    let shared =
        Arc::new(Shared { state, uploads, pool: Pool::new(admission.alive()), admission, registry, stop: Stop(stop) });
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(listener::accept(listener, shared.clone(), handshakes.clone()));
    }
    tokio::select! {
        _ = endings.0.recv() => {}
        _ = endings.1.recv() => {}
    }
    tracing::info!("stopping");
    accepting.shutdown().await;
    let _ = stop_sender.send(true);
    shared.admission.end(|_| Some(End::ServerStops));
    shared.pool.clear();
    drop(shared);
    if tokio::time::timeout(DRAIN, ended.recv()).await.is_err() {
        tracing::warn!("stopped with sessions that did not end in time");
    }
    Ok(())
}

/// Removes what an earlier server has left of uploads that broke before `end`.
async fn sweep(hosts: Vec<HostConfig>, end: SystemTime) {
    let mut accounts: Vec<_> = hosts.into_iter().map(|host| (host.account, host.home)).collect();
    accounts.sort();
    accounts.dedup();
    for (name, home) in accounts {
        let found = tokio::task::spawn_blocking(move || Login::find(&name, home.as_deref()));
        if let Ok(Ok(login)) = found.await
            && login.home.is_dir()
        {
            upload::sweep(&login, end).await;
        }
    }
}

fn listen_for(kind: SignalKind) -> Result<tokio::signal::unix::Signal> {
    signal(kind).map_err(|error| Error::new(Code::Internal, format!("cannot listen for signals: {error}")))
}
