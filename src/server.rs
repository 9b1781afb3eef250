//! `tstunnel serve`: listener, handshakes, requests; and the end, which leaves nothing running.
//!
//! Data flows down: [`listener`] accepts, [`gate`] bounds who may begin, [`handshake`] authenticates, [`routes`] asks
//! [`policy`] and answers, [`process`], [`target`] and [`upload`] do what was permitted, [`sessions`] carries the streams.
//! [`state`] is what all of it goes by; [`life`] exchanges it, and brings the server to its end.

pub mod account;
pub mod admission;
pub mod agents;
pub mod config;
pub mod connection;
pub mod descriptors;
pub mod files;
pub mod gate;
pub mod handshake;
pub mod life;
pub mod listener;
pub mod policy;
pub mod pool;
pub mod principal;
pub mod process;
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
pub mod target;
pub mod trusted;
pub mod upload;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::error::Result;
use crate::server::account::Login;
use crate::server::admission::Admission;
use crate::server::agents::Agents;
use crate::server::config::{Account, HostConfig};
use crate::server::descriptors::Connections;
use crate::server::gate::Gate;
use crate::server::life::Life;
use crate::server::pool::Pool;
use crate::server::registry::Registry;
use crate::server::state::State;
use crate::server::upload::Uploads;
use crate::tls;

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
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        // What was started ahead was started by the rules of before.
        self.pool.clear();
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
    descriptors::raise();
    let account = Account::of_process()?;
    let (state, warnings) = State::load(path, &account)?;
    for warning in warnings {
        tracing::warn!("{}: {warning}", path.display());
    }
    if let Err(error) = tls::check_lists(&state.config.crl, SystemTime::now()) {
        tracing::warn!("{}, so nobody is let in", error.text);
    }
    let bound = listener::bind(&state.config.listen)?;
    let limits = &state.config.limits;
    // What is written from now on is this server's own.
    if let Some(end) = SystemTime::now().checked_sub(limits.resume_grace) {
        tokio::spawn(sweep(state.config.hosts.values().cloned().collect(), end));
    }
    let (admission, ended) = Admission::new();
    let (stop_sender, stop) = watch::channel(false);
    let gate = Gate::default();
    tokio::spawn(gate.clone().report());
    let shared = Arc::new(Shared {
        gate,
        connections: Connections::default(),
        uploads: Uploads::new(),
        pool: Pool::new(admission.alive()),
        agents: Agents::default(),
        admission,
        registry: Registry::new(limits),
        stop: Stop(stop),
        state: RwLock::new(Arc::new(state)),
    });
    Life::new(path, account, shared, stop_sender, ended, bound)?.run().await;
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
