//! What the service manager gives and is told: sockets that it has listened on (sd_listen_fds(3)), and how the server is
//! (sd_notify(3), `Type=notify-reload`). Without a service manager none of this does anything.
//!
//! It hears one process only, the main one: a server that was replaced says who that is now, and is silent from then on. Nothing of
//! its variables reaches a session's process, whose environment is its own.

use std::os::fd::OwnedFd;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::task::JoinHandle;

use crate::error::{Code, Error, Result};
use crate::server::listener::Given;

/// The TCP sockets that the service manager listens on for this process; none where it does not. To be called before there is a
/// second thread: it takes the variables out of the environment.
///
/// # Errors
/// `config` where what it has passed is something else.
pub fn sockets() -> Result<Vec<Given>> {
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..passed.len() {
        let unusable = |error| {
            Error::new(Code::Config, format!("socket {index} of the service manager cannot be listened on: {error}"))
                .with_hint("a socket unit for this server has `ListenStream=` with a port, and `Accept=no`")
        };
        let Some(socket) = passed.take_tcp_listener(index).map_err(unusable)? else { continue };
        if !rustix::net::sockopt::socket_acceptconn(&socket).map_err(|error| unusable(error.into()))? {
            return Err(unusable(std::io::ErrorKind::NotConnected.into()));
        }
        sockets.push(Given { address: socket.local_addr().map_err(unusable)?, socket: OwnedFd::from(socket) });
    }
    Ok(sockets)
}

/// What tells the service manager how this server is, while it is the main process.
#[derive(Debug, Default)]
pub struct Manager {
    watchdog: Option<JoinHandle<()>>,
    is_main: bool,
}

impl Manager {
    /// The server accepts connections. From now on the watchdog hears of the runtime as often as it wants.
    pub fn ready() -> Manager {
        tell(&[NotifyState::Ready]);
        let watchdog = sd_notify::watchdog_enabled().map(|limit| tokio::spawn(watch(limit / 2)));
        Manager { watchdog, is_main: true }
    }

    /// It reads its files again; [`Manager::reloaded`] is to follow.
    pub fn reloading(&self) {
        // systemd tells by the time that this answers its own signal.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "the service manager is not told of a reload"),
        }
    }

    /// It has read them, and goes by them or by what was before.
    pub fn reloaded(&self, error: Option<&Error>) {
        let status = error.map_or_else(|| "reloaded".to_owned(), |error| format!("not reloaded: {}", error.text));
        self.tell(&[NotifyState::Ready, NotifyState::Status(&crate::error::printable(&status))]);
    }

    /// In a few words, how it is.
    pub fn status(&self, text: &str) {
        self.tell(&[NotifyState::Status(text)]);
    }

    /// It is on its way to its end.
    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// `process`, which it has started, is in its place.
    pub fn succeeded_by(&mut self, process: Option<u32>) {
        if let Some(process) = process {
            self.tell(&[NotifyState::MainPid(process)]);
        }
        self.is_main = false;
        self.watchdog.take().inspect(JoinHandle::abort);
    }

    fn tell(&self, news: &[NotifyState<'_>]) {
        if self.is_main {
            tell(news);
        }
    }
}

fn tell(news: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(news) {
        tracing::warn!(%error, "the service manager is not told how the server is");
    }
}

/// A task of the runtime that serves connections: where that hangs, this is silent.
async fn watch(interval: Duration) {
    let mut time = tokio::time::interval(interval.max(Duration::from_millis(1)));
    loop {
        time.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}
