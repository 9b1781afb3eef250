//! Open descriptors: how many there may be, and who may have them. The soft limit is raised to the hard one; what there is then is dealt
//! out at the start, between what the server needs itself, handshakes, requests and sessions, so that nobody can use up what
//! another needs. A session too many is then one over `max_sessions`, and is told so.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Code, Error, Result};
use crate::server::config::{Limits, ServerConfig};

/// What the server has open by itself, and while it starts processes.
const OWN: usize = 64;
/// Most that a session has: its connection, another one to resume it or, of a plain stream, the same one watched, three pipes, and the
/// process.
const PER_SESSION: usize = 6;
/// Most that a request has until it is answered: its connection, and what is looked up meanwhile.
const PER_REQUEST: usize = 3;
/// What an agent has that was started ahead: three pipes, and the process.
const PER_POOLED: usize = 4;
/// Pause after an accept that failed for want of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often that is logged.
const FAILURE_INTERVAL: Duration = Duration::from_secs(60);

/// The limit that the server was started with.
static ORIGINAL: OnceLock<Rlimit> = OnceLock::new();

/// The limit that the server was started with: that of the processes that it starts.
pub fn original() -> Rlimit {
    *ORIGINAL.get_or_init(|| getrlimit(Resource::Nofile))
}

/// Raises the soft limit to the hard one. To be called once, before anything is started.
pub fn raise() {
    let original = original();
    let raised = Rlimit { current: original.maximum, maximum: original.maximum };
    // A kernel may refuse what it does not take for a number of descriptors (`fs.nr_open`): then there are as many as before.
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
}

/// How many descriptors a server may have open, once the limit is raised.
pub fn limit() -> usize {
    original().maximum.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// Lowers the limits of `config` to what fits into `descriptors`. Also returns what is to be said of it.
///
/// # Errors
/// `config` where not one session fits.
pub fn fit(config: &mut ServerConfig, descriptors: usize) -> Result<Option<String>> {
    let has_pool = config.hosts.values().any(|host| host.pool > 0);
    let wanted = config.limits.max_sessions;
    let Some(limits) = dealt(&config.limits, has_pool, descriptors) else {
        let least =
            (descriptors..).find(|count| dealt(&config.limits, has_pool, *count).is_some()).unwrap_or(usize::MAX);
        let text = format!("{descriptors} open descriptors leave no room for a session: it takes at least {least}");
        return Err(Error::new(Code::Config, text)
            .with_hint("raise the limit: `ulimit -Hn`, or `LimitNOFILE=` in a unit of systemd"));
    };
    config.limits = limits;
    let sessions = config.limits.max_sessions;
    Ok((sessions < wanted).then(|| {
        format!("{descriptors} open descriptors are enough for {sessions} sessions, not for `max_sessions` = {wanted}")
    }))
}

/// `limits`, lowered to what fits into `descriptors`; `None` where not one session does.
fn dealt(limits: &Limits, has_pool: bool, descriptors: usize) -> Option<Limits> {
    let mut limits = limits.clone();
    let lower = |limit: &mut NonZeroUsize, most: usize| {
        *limit = NonZeroUsize::new(most).map_or(NonZeroUsize::MIN, |most| most.min(*limit));
    };
    lower(&mut limits.max_handshakes, descriptors / 8);
    lower(&mut limits.max_requests, descriptors / 4 / PER_REQUEST);
    limits.max_pooled = limits.max_pooled.min(descriptors / 16 / PER_POOLED);
    let pooled = if has_pool { limits.max_pooled * PER_POOLED } else { 0 };
    let reserve =
        OWN.max(descriptors / 8) + limits.max_handshakes.get() + limits.max_requests.get() * PER_REQUEST + pooled;
    let sessions = descriptors.saturating_sub(reserve) / PER_SESSION;
    lower(&mut limits.max_sessions, sessions);
    (sessions > 0).then_some(limits)
}

/// Whether this machine has run out of something, which only time brings back.
pub fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    // EAGAIN is how fork(2) says that there are too many processes.
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::AGAIN))
}

/// What a listener does when it cannot accept for want of something.
#[derive(Debug, Default)]
pub struct Shortage(Option<Instant>);

impl Shortage {
    /// Says now and then that `listener` cannot accept, and waits a moment.
    pub async fn wait(&mut self, listener: &str, error: &io::Error) {
        if self.0.is_none_or(|last| last.elapsed() >= FAILURE_INTERVAL) {
            tracing::warn!(%error, "{listener} cannot accept");
            self.0 = Some(Instant::now());
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// How many connections there may be: more are closed as soon as they are accepted.
pub fn max_connections(limits: &Limits) -> usize {
    // A session that is resumed has two for a moment.
    [limits.max_handshakes, limits.max_requests, limits.max_sessions, limits.max_sessions]
        .into_iter()
        .fold(0, |sum, count| sum.saturating_add(count.get()))
}

/// Counts open connections; one for a server.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<AtomicUsize>);

/// One open connection, until it is dropped.
#[derive(Debug)]
pub struct Connection(Connections);

impl Connections {
    /// Counts one more; `None` where there are `most`.
    pub fn add(&self, most: usize) -> Option<Connection> {
        let connection = Connection(self.clone());
        (self.0.fetch_add(1, Ordering::Relaxed) < most).then_some(connection)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::config::Account;
    use std::path::Path;

    fn config(hosts: &str) -> ServerConfig {
        let text = format!("cert = \"a\"\nkey = \"a\"\nclient_ca = [\"a\"]\n{hosts}");
        let account = Account { name: "dev".into(), home: "/home/dev".into(), is_root: false };
        ServerConfig::parse(Path::new("server.toml"), &text, &account).unwrap().0
    }

    #[test]
    fn what_is_dealt_out_fits_below_every_limit() {
        for (hosts, is_pooled) in [("", false), ("[host.a]\npool = 2", true)] {
            for descriptors in (0..5000).chain([20_000, 524_288, 1 << 30, usize::MAX]) {
                let mut config = config(hosts);
                let Ok(warning) = fit(&mut config, descriptors) else {
                    assert!(descriptors < 128, "{descriptors} are too few");
                    continue;
                };
                let Limits { max_handshakes, max_requests, max_sessions, max_pooled, .. } = config.limits;
                let used = OWN
                    + max_handshakes.get()
                    + PER_REQUEST * max_requests.get()
                    + PER_SESSION * max_sessions.get()
                    + if is_pooled { PER_POOLED * max_pooled } else { 0 };
                assert!(used <= descriptors, "{descriptors}: {:?}", config.limits);
                assert_eq!(warning.is_some(), max_sessions < Limits::default().max_sessions, "{descriptors}");
            }
        }
    }

    #[test]
    fn where_there_are_enough_nothing_is_lowered() {
        let mut config = config("[host.a]\npool = 2");
        assert_eq!(fit(&mut config, 4096).unwrap(), None);
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn where_there_are_too_few_it_is_said() {
        for hosts in ["", "[host.a]\npool = 2"] {
            let error = fit(&mut config(hosts), 64).unwrap_err();
            assert_eq!(error.code, Code::Config);
            let least = error.text.rsplit(' ').next().unwrap().parse().unwrap();
            assert!(fit(&mut config(hosts), least).is_ok() && fit(&mut config(hosts), least - 1).is_err(), "{least}");
        }
        let warning = fit(&mut config(""), 1024).unwrap().unwrap();
        assert!(warning.starts_with("1024 open descriptors are enough for "), "{warning}");
    }

    #[test]
    fn connections_count_while_they_are_open() {
        let connections = Connections::default();
        let first = connections.add(2).unwrap();
        let _second = connections.add(2).unwrap();
        assert!(connections.add(2).is_none() && connections.add(2).is_none());
        drop(first);
        assert!(connections.add(2).is_some());
    }
}
