//! How one server takes the place of another without a refused connection and without an end of a session.
//!
//! Servers of one configuration find each other in a [`folder`], and talk over a Unix socket there ([`wire`]). A new one gets copies of
//! the listening sockets, accepts from them, and then tells the earlier one to stop doing so ([`control`] is that one's side): the
//! kernel's queue of connections is the same throughout. The earlier one keeps its sessions until they end. A client that resumes one
//! reaches the new server, which authenticates it, offers it to its [`Predecessors`], and relays bytes to the one that knows the
//! session; that one asks its own policy too. [`successor`] is how a server starts the one that comes after it.
//!
//! Without a folder there is none of this, and a session ends with its server.

pub mod control;
pub mod folder;
pub mod successor;
pub mod wire;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::bridge::{self, Connection, RawEnd};
use crate::error::{Code, Error, Result, printable};
use crate::server::Shared;
use crate::server::admission::Counted;
use crate::server::handshake::Peer;
use crate::server::listener::{self, Given, Listening, Purpose};
use crate::server::refusal::Refusal;
use crate::tls;
use control::Control;
use folder::{Folder, IS_ALONE, Lock, NO_PLACE, REMEDY, Usual};
use wire::{Answer, Ask, Line, Resume};

/// How long an earlier server may take for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A server that has looked around before it starts.
#[derive(Debug, Default)]
pub struct Arrival {
    place: Option<(Folder, Lock)>,
    predecessors: Vec<PathBuf>,
    /// Those that accept connections.
    serving: Vec<Line>,
    given: Sockets,
}

/// The sockets of a server that accepts connections.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Those that it listens on.
    pub listening: Vec<Given>,
    /// Whether they are the service manager's, whatever the configuration says.
    pub is_given: bool,
    /// Those of its monitor.
    pub monitoring: Vec<Given>,
}

impl Arrival {
    /// Finds the earlier servers of the configuration at `path`, and gets their sockets; they go on accepting. Until the arrival is
    /// over no other server starts. `given` are the service manager's own sockets, which count more.
    pub async fn look_around(run_dir: Option<&Path>, path: &Path, given: Vec<Given>) -> Arrival {
        let mut arrival = Arrival::find(run_dir, path).await;
        if !given.is_empty() {
            arrival.given.listening = given;
            arrival.given.is_given = true;
        }
        arrival
    }

    async fn find(run_dir: Option<&Path>, path: &Path) -> Arrival {
        let folder = match Folder::open(run_dir, Usual::of_process(), path) {
            Ok(Some(folder)) => folder,
            Ok(None) => {
                tracing::warn!("this server {IS_ALONE}: {NO_PLACE}");
                return Arrival::default();
            }
            Err(why) => {
                tracing::warn!("this server {IS_ALONE}: {why}; {REMEDY}");
                return Arrival::default();
            }
        };
        let lock = match folder.lock().await {
            Ok(lock) => lock,
            Err(error) => {
                tracing::warn!(%error, "this server {IS_ALONE}: the run folder is in use");
                return Arrival::default();
            }
        };
        let mut arrival = Arrival::default();
        for (path, mut line) in folder.others(&lock).await {
            match sockets(&mut line).await {
                Ok(given) if given.listening.is_empty() => {}
                Ok(given) => {
                    arrival.given = given;
                    arrival.serving.push(line);
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "an earlier server gives no answer"),
            }
            arrival.predecessors.push(path);
        }
        arrival.place = Some((folder, lock));
        arrival
    }

    /// Listens on each of `addresses`, by the earlier server's socket where there is one for it, or on what the service manager has
    /// given.
    ///
    /// # Errors
    /// `config` where that is not possible.
    pub fn listen(&mut self, addresses: &[SocketAddr]) -> Result<Listening> {
        let given = std::mem::take(&mut self.given.listening);
        let is_given = self.given.is_given;
        let bound = match is_given {
            true => listener::adopt(given, Purpose::Sessions)?,
            false => listener::bind(addresses, addresses, given, Purpose::Sessions)?,
        };
        Ok(Listening { bound, is_given })
    }

    /// The sockets of the earlier server's monitor.
    pub fn take_monitors(&mut self) -> Vec<Given> {
        std::mem::take(&mut self.given.monitoring)
    }

    /// The earlier servers.
    pub fn predecessors(&self) -> Predecessors {
        Predecessors(Mutex::new(self.predecessors.clone()))
    }

    /// Opens this server's own socket; nothing where it cannot be replaced.
    pub fn open(&self, shared: &Arc<Shared>) -> Option<Control> {
        let (folder, _) = self.place.as_ref()?;
        let opened = Control::open(folder.socket(), shared);
        opened.inspect_err(|error| tracing::warn!(%error, "this server {IS_ALONE}")).ok()
    }

    /// Ends the arrival of a server that accepts connections: the earlier ones need not any more.
    pub async fn complete(self) {
        for mut line in self.serving {
            let process = line.process().unwrap_or_default();
            match ask(&mut line, &Ask::Retire).await {
                Ok(_) => tracing::info!("took over from process {process}"),
                Err(error) => tracing::error!(process, %error, "the earlier server does not give way"),
            }
        }
    }
}

async fn sockets(line: &mut Line) -> io::Result<Sockets> {
    let asking = async {
        line.send(&Ask::Sockets).await?;
        match line.receive_with().await? {
            (Answer::Sockets { addresses, is_given, monitors }, sockets)
                if addresses.len() + monitors.len() == sockets.len() =>
            {
                let mut sockets = sockets.into_iter();
                let mut given = |addresses: Vec<SocketAddr>| {
                    addresses.into_iter().zip(&mut sockets).map(|(address, socket)| Given { address, socket }).collect()
                };
                Ok(Sockets { listening: given(addresses), is_given, monitoring: given(monitors) })
            }
            (other, _) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected answer {other:?}"))),
        }
    };
    tokio::time::timeout(ANSWER_TIMEOUT, asking).await?
}

async fn ask(line: &mut Line, question: &Ask) -> io::Result<Answer> {
    let asking = async {
        line.send(question).await?;
        line.receive().await
    };
    tokio::time::timeout(ANSWER_TIMEOUT, asking).await?
}

/// Earlier servers of the same configuration that may have sessions.
#[derive(Debug, Default)]
pub struct Predecessors(Mutex<Vec<PathBuf>>);

impl Predecessors {
    /// Offers a client that wants to resume `token` to each; returns how many frames the session has received, and the way to it.
    ///
    /// # Errors
    /// The refusal of the one that knows the session, and `session-lost` where none does; `overloaded` where one that may know it cannot be
    /// reached just now.
    pub async fn offer(
        &self,
        peer: &Peer,
        token: &str,
        received: u64,
    ) -> std::result::Result<(u64, UnixStream), Refusal> {
        let resume = Ask::Resume(Resume {
            token: token.to_owned(),
            received,
            address: peer.address,
            server_name: peer.server_name.clone(),
            chain: peer.chain.iter().map(|certificate| BASE64.encode(certificate)).collect(),
        });
        let (lines, are_all) = self.lines().await;
        for (path, mut line) in lines {
            match ask(&mut line, &resume).await {
                Ok(Answer::Granted { received }) => return Ok((received, line.into_stream())),
                Ok(Answer::Refused { status, code, text, hint }) => {
                    let code = Code::from_name(&code).unwrap_or(Code::Internal);
                    if code != Code::SessionLost {
                        return Err(Refusal { status, error: Error { code, text, hint } });
                    }
                }
                other => tracing::warn!(path = %path.display(), ?other, "an earlier server takes no resume"),
            }
        }
        Err(match are_all {
            true => Error::new(Code::SessionLost, "there is no such session"),
            false => Error::new(Code::Overloaded, "an earlier server cannot be asked for the session now"),
        }
        .into())
    }

    /// Has each read its configuration again.
    pub async fn reload(&self) {
        for (_, mut line) in self.lines().await.0 {
            let process = line.process().unwrap_or_default();
            match ask(&mut line, &Ask::Reload).await {
                Ok(Answer::Done) => tracing::info!("process {process} has reloaded too"),
                Ok(Answer::Refused { text, .. }) => {
                    tracing::error!("process {process} goes on by its old state: {}", printable(&text));
                }
                other => tracing::error!(process, ?other, "the earlier server has not reloaded"),
            }
        }
    }

    /// Has each drain and end, or end at once, and waits until all have.
    pub async fn end(&self, at_once: bool) {
        let question = if at_once { Ask::Kill } else { Ask::Stop };
        let mut ending = JoinSet::new();
        for (_, mut line) in self.lines().await.0 {
            let question = question.clone();
            ending.spawn(async move {
                if ask(&mut line, &question).await.is_ok() {
                    line.ended().await;
                }
            });
        }
        ending.join_all().await;
    }

    /// A line to each that can be reached, and whether those are all that have not ended.
    async fn lines(&self) -> (Vec<(PathBuf, Line)>, bool) {
        let paths = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut lines = Vec::new();
        let mut are_all = true;
        for path in paths {
            match folder::connect(&path).await {
                Ok(line) => lines.push((path, line)),
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
                    tracing::debug!(path = %path.display(), %error, "an earlier server has ended");
                    self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| *other != path);
                }
                // One of the two lacks something, such as descriptors, which time brings back.
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "an earlier server cannot be reached now");
                    are_all = false;
                }
            }
        }
        (lines, are_all)
    }
}

/// Carries a resumed session's bytes between its client and the earlier server that has it, until one of them ends it.
pub async fn relay(mut client: impl Connection, leftover: Bytes, session: UnixStream, working: Counted) {
    let (reader, writer) = session.into_split();
    let carrying = bridge::raw(&mut client, &leftover, Box::new(reader), Box::new(writer), RawEnd::Outgoing);
    match carrying.await {
        Ok(_) => tls::linger(client, u64::MAX).await,
        // Closing both is all that there is to say to either.
        Err(error) => tracing::debug!(%error, "a relayed connection was lost"),
    }
    drop(working);
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_predecessor_is_forgotten_only_when_it_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let [ended, removed, file] = ["ended", "removed", "file"].map(|name| folder.path().join(name));
        drop(UnixListener::bind(&ended).unwrap());
        std::fs::write(&file, "").unwrap();
        let unreachable = file.join("socket");
        let predecessors = Predecessors(Mutex::new(vec![ended, unreachable.clone(), removed]));
        for _ in 0..2 {
            let (lines, are_all) = predecessors.lines().await;
            assert!(lines.is_empty() && !are_all);
            assert_eq!(*predecessors.0.lock().unwrap(), std::slice::from_ref(&unreachable));
        }
    }
}
