//! `tstunnel serve`: listener, handshakes, requests; and the end, which leaves nothing running.
//!
//! Data flows down: [`listener`] accepts, [`gate`] bounds who may begin, [`handshake`] authenticates, [`routes`] asks
//! [`policy`] and answers, [`process`], [`target`] and [`upload`] do what was permitted, [`sessions`] carries the streams.
//! [`state`] is what all of it goes by; [`life`] exchanges it, and brings the server to its end. [`audit`] says what was done.

pub mod account;
pub mod admission;
pub mod agents;
pub mod audit;
pub mod authorize;
pub mod check;
pub mod child;
pub mod config;
pub mod connection;
pub mod descriptors;
pub mod files;
pub mod gate;
pub mod handshake;
pub mod life;
pub mod listener;
mod memory;
pub mod metrics;
pub mod monitor;
pub mod orphans;
pub mod policy;
pub mod pool;
pub mod principal;
pub mod process;
pub mod proxy_protocol;
pub mod read_ahead;
pub mod refusal;
pub mod registry;
pub mod reload;
pub mod review;
pub mod routes;
pub mod sessions;
pub mod source;
pub mod spawn;
pub mod state;
pub mod store;
pub mod succession;
pub mod systemd;
pub mod target;
pub mod trail;
pub mod trusted;
pub mod upload;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::error::Result;
use crate::server::account::Login;
use crate::server::admission::Admission;
use crate::server::agents::Agents;
use crate::server::audit::Audit;
use crate::server::audit::record::{Event, Record, Text};
use crate::server::config::Account;
use crate::server::descriptors::Connections;
use crate::server::gate::Gate;
use crate::server::life::Life;
use crate::server::listener::{Given, Purpose};
use crate::server::metrics::Metrics;
use crate::server::monitor::{Monitor, Monitors};
use crate::server::pool::Pool;
use crate::server::registry::Registry;
use crate::server::state::State;
use crate::server::succession::{Arrival, Predecessors};
use crate::server::upload::Uploads;

/// What all connections share.
#[derive(Debug)]
pub struct Shared {
    state: RwLock<Arc<State>>,
    gate: Gate,
    connections: Connections,
    uploads: Uploads,
    pool: Pool,
    agents: Agents,
    admission: Admission,
    registry: Registry,
    audit: Audit,
    metrics: Arc<Metrics>,
    predecessors: Predecessors,
    stop: Stop,
}

impl Shared {
    /// What the server goes by now. A connection takes it once, so that its checks are all of one state.
    pub fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Goes by another state from now on.
    pub fn exchange(&self, state: State) {
        self.registry.follow(&state.config.limits);
        self.metrics.loaded(&state);
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        // What was started ahead was started by the rules of before.
        self.pool.clear();
    }

    /// Whether no new session is taken any more.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_stopping()
    }
}

/// How far the server is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It takes sessions.
    Serving,
    /// Sessions are ending, and whoever asks for another is told so.
    Draining,
    /// Nobody is waited for any more but to hear the answer to what was asked.
    Closing,
}

/// Locks `mutex`, also where a thread panicked that had it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells when the server stops.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<Phase>);

impl Stop {
    /// Whether it does.
    pub fn is_stopping(&self) -> bool {
        *self.0.borrow() != Phase::Serving
    }

    /// Waits until the last connections have to end. Cancel-safe.
    pub async fn closing(&mut self) {
        let _ = self.0.wait_for(|phase| *phase == Phase::Closing).await;
    }
}

/// Serves with the configuration at `path`, and on `sockets` where there are any instead of what that says, until SIGTERM or SIGINT, or until a successor has taken over and the last session
/// has ended.
///
/// # Errors
/// `config` where the configuration or a file that it names is wrong, or an address cannot be listened on.
pub async fn run(path: &Path, sockets: Vec<Given>) -> Result<()> {
    let account = Account::of_process()?;
    let (state, warnings) = State::load(path, &account)?;
    for warning in warnings {
        tracing::warn!("{}: {warning}", path.display());
    }
    let mut arrival = Arrival::look_around(state.config.run_dir.as_deref(), path, sockets).await;
    let listening = arrival.listen(&state.config.listen)?;
    let monitor = &state.config.monitor;
    let monitors = listener::bind(monitor, monitor, arrival.take_monitors(), Purpose::Monitor)?;
    let limits = &state.config.limits;
    let uploads = Uploads::new();
    tokio::spawn(sweep(uploads.clone(), state.config.accounts(), limits.resume_grace));
    let metrics = Arc::new(Metrics::new());
    metrics.loaded(&state);
    let audit = Audit::start(&state.config.audit, state.config.audit_required, &metrics)?;
    audit.push(Record { reason: Some(Text::new(&started())), ..Record::new(Event::Start) });
    let admission = Admission::default();
    let (phase, stop) = watch::channel(Phase::Serving);
    let gate = Gate::new(audit.clone());
    tokio::spawn(gate.clone().report());
    let shared = Arc::new(Shared {
        gate,
        connections: Connections::default(),
        uploads,
        pool: Pool::new(admission.clone()),
        agents: Agents::default(),
        admission,
        registry: Registry::new(limits),
        audit: audit.clone(),
        metrics,
        predecessors: arrival.predecessors(),
        stop: Stop(stop),
        state: RwLock::new(Arc::new(state)),
    });
    let control = arrival.open(&shared);
    let monitors = Monitors::open(&Monitor::new(&shared), monitors)?;
    let life = Life::new(path, account, shared, phase, control, listening, monitors)?;
    arrival.complete().await;
    life.run().await;
    audit.close().await;
    Ok(())
}

/// Removes what an earlier server has left of uploads: what broke before the grace at once, the rest when that is over.
async fn sweep(uploads: Uploads, accounts: BTreeSet<(String, Option<PathBuf>)>, grace: Duration) {
    // What is written from now on is this server's own.
    let now = SystemTime::now();
    if let Some(end) = now.checked_sub(grace) {
        sweep_until(&uploads, &accounts, end).await;
    }
    tokio::time::sleep(grace).await;
    sweep_until(&uploads, &accounts, now).await;
}

/// Removes what is left of uploads that nobody has written to since `end`.
async fn sweep_until(uploads: &Uploads, accounts: &BTreeSet<(String, Option<PathBuf>)>, end: SystemTime) {
    for (name, home) in accounts.clone() {
        let found = tokio::task::spawn_blocking(move || Login::find(&name, home.as_deref()));
        if let Ok(Ok(login)) = found.await
            && login.home.is_dir()
        {
            upload::sweep(uploads, &login, end).await;
        }
    }
}

/// Which program this is, and which process.
fn started() -> String {
    format!("tstunnel {}, process {}", env!("CARGO_PKG_VERSION"), std::process::id())
}
