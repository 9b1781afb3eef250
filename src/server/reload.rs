//! Everything that the server's files say, read again and put in the place of what it went by: whole, or not at all.
//!
//! A new state that would not start is refused with one line that names file and line, and the old one stays. What lives is then
//! asked again ([`review`](crate::server::review)).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Code, Error, Result, printable};
use crate::server::Shared;
use crate::server::audit::record::{Event, Record};
use crate::server::config::{Account, ServerConfig};
use crate::server::files::Files;
use crate::server::listener::{self, Listeners, Purpose};
use crate::server::review::Scope;
use crate::server::state::State;

/// What a server's state comes from.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    account: Account,
    files: Files,
}

impl Source {
    /// The configuration at `path`, for a server that runs as `account` and goes by `state`.
    pub fn new(path: &Path, account: Account, state: &State) -> Source {
        let mut source = Source { path: path.to_owned(), account, files: Files::new() };
        source.watch(&state.config);
        source
    }

    /// Waits until a file has changed. Cancel-safe.
    pub async fn changed(&mut self) {
        self.files.changed().await;
    }

    /// Reads everything again, and goes by it where all of it is right.
    ///
    /// # Errors
    /// `config` where something is not, after it was logged.
    pub async fn reload(&mut self, shared: &Arc<Shared>, listeners: &mut Listeners) -> Result<()> {
        // What changes while it is read is another change.
        match ServerConfig::load(&self.path, &self.account) {
            Ok((config, _)) => self.watch(&config),
            Err(_) => self.files.watch_on(),
        }
        let result = self.try_reload(shared, listeners).await;
        match &result {
            Ok(()) => {
                tracing::info!("reloaded {}", self.path.display());
                shared.metrics.reload("ok").inc();
                shared.audit.push(Record::new(Event::Reload));
                shared.review(Scope::Everything);
            }
            Err(error) => {
                tracing::error!("the new state is refused and the old one stays: {}", printable(&error.text));
                shared.metrics.reload("failed").inc();
                let mut record = Record::new(Event::Reload);
                record.failed(error);
                shared.audit.push(record);
            }
        }
        result
    }

    async fn try_reload(&self, shared: &Arc<Shared>, listeners: &mut Listeners) -> Result<()> {
        let (path, account) = (self.path.clone(), self.account.clone());
        let loading = tokio::task::spawn_blocking(move || State::load(&path, &account));
        let (state, warnings) = loading.await.map_err(|error| Error::new(Code::Internal, error.to_string()))??;
        state.check_as_next()?;
        let missing = listeners.missing(&state.config.listen);
        let bound = listener::bind(&missing, &state.config.listen, Vec::new(), Purpose::Sessions)?;
        // The last that may fail: it is done when it succeeds.
        shared.audit.reopen(&state.config.audit, state.config.audit_required)?;
        for warning in warnings {
            tracing::warn!("{}: {warning}", self.path.display());
        }
        let old = shared.state();
        for (key, is_other) in [
            ("[monitor]", old.config.monitor != state.config.monitor),
            ("`run_dir`", old.config.run_dir != state.config.run_dir),
        ] {
            if is_other {
                tracing::warn!("{key} has changed, which takes effect with the next start or a SIGUSR2");
            }
        }
        if state.config.crl.is_empty() && !old.config.crl.is_empty() {
            let shown = self.path.display();
            tracing::warn!(
                "{shown}: there is no `crl` any more: revocation is no longer checked, and who was revoked is let in"
            );
        }
        let addresses = state.config.listen.clone();
        listeners.exchange(bound, &addresses)?;
        shared.exchange(state);
        Ok(())
    }

    fn watch(&mut self, config: &ServerConfig) {
        let mut paths = Vec::new();
        if config.watch {
            paths.push(self.path.clone());
            paths.extend(config.files());
        }
        self.files.watch(paths);
    }
}
