//! An interrupted session → its new connection: dial with back-off, ask the server to go on, until it does, or says that
//! it never will, or the grace is over.
//!
//! A new connection is made beside one that is only suspected, and used only if that one is still silent when the new
//! one stands: the old path is left as soon as there is a better one, and not before.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::bridge::Bridge;
use crate::client::dial::{Connection, Dialler, Stream};
use crate::error::{Code, Error, Result, Retry};
use crate::protocol::head::Request;
use crate::protocol::{HEADER_EARLY, HEADER_RECEIVED, HEADER_SESSION, UPGRADE_FRAMED};

/// The pause after the first attempt that failed, and the longest one: an outage that ends is noticed this soon.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A connection that lasted so long was a good one, though it carried nothing.
const LASTING: Duration = Duration::from_secs(10);
/// How long the answer to a resume may take: what is slower than this is no better than the path that was left.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the server has given a client to go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumption {
    /// `<id>.<secret>`.
    pub token: String,
    /// How long an interrupted session is kept.
    pub grace: Duration,
    /// How many bytes of frames a resume may bring along.
    pub early_bytes: usize,
}

type Attempt<T> = Pin<Box<dyn Future<Output = T> + Send>>;

enum State {
    /// There is a connection, and nothing against it.
    Whole,
    Dialling(Attempt<Result<Connection>>),
    Asking(Attempt<Result<Resumed>>),
}

/// A connection that the server goes on over.
pub struct Resumed {
    stream: Stream,
    leftover: BytesMut,
    round_trip: Duration,
    /// How many frames the server has received.
    received: u64,
}

/// What an attempt has come to.
pub enum Step {
    /// A connection stands.
    Dialled(Result<Connection>),
    /// The server has answered.
    Answered(Result<Resumed>),
}

/// Keeps a session's path in repair.
pub struct Path {
    dialler: Dialler,
    resumption: Resumption,
    state: State,
    pause: Duration,
    /// When the session last went on, and how many frames each side had received by then.
    resumed: Option<(Instant, [u64; 2])>,
    /// The last resume has failed, perhaps because of what it brought along: the next one brings nothing.
    brings_nothing: bool,
    /// When the path broke, while it is broken.
    broken: Option<Instant>,
    /// Ends a pause early.
    hurry: Arc<Notify>,
    interruptions: u32,
    /// When the path last broke, by the clock on the wall.
    last_broken: Option<SystemTime>,
}

impl std::fmt::Debug for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Path").field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl Path {
    /// The path of a session that can be resumed.
    pub fn new(dialler: Dialler, resumption: Resumption) -> Path {
        Path {
            dialler,
            resumption,
            state: State::Whole,
            pause: Duration::ZERO,
            resumed: None,
            brings_nothing: false,
            broken: None,
            hurry: Arc::new(Notify::new()),
            interruptions: 0,
            last_broken: None,
        }
    }

    /// The connection is gone, because of `reason`.
    pub fn broke(&mut self, reason: &Error) {
        tracing::info!(%reason, "interrupted");
        self.mark_broken();
        self.look();
    }

    fn mark_broken(&mut self) {
        if self.broken.is_none() {
            (self.broken, self.last_broken) = (Some(Instant::now()), Some(SystemTime::now()));
        }
    }

    /// Whether the session has no connection now.
    pub fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// How many interruptions the session has survived, and when the last one began, or the one that lasts.
    pub fn interruptions(&self) -> (u32, Option<SystemTime>) {
        (self.interruptions, self.last_broken)
    }

    /// The connection may be dead: looks for another beside it.
    pub fn look(&mut self) {
        if matches!(self.state, State::Whole) {
            self.state = State::Dialling(self.dial());
        }
    }

    /// The network has changed: an attempt that waits need not.
    pub fn hurry(&self) {
        self.hurry.notify_waiters();
    }

    /// Waits for the attempt under way. Cancel-safe.
    pub async fn next(&mut self) -> Step {
        match &mut self.state {
            State::Whole => std::future::pending().await,
            State::Dialling(attempt) => Step::Dialled(attempt.await),
            State::Asking(attempt) => Step::Answered(attempt.await),
        }
    }

    /// Goes on from what an attempt has come to.
    ///
    /// # Errors
    /// What ends the session: a refusal that no retry mends, or `network-lost` when the time is over.
    pub fn follow(&mut self, step: Step, bridge: &mut Bridge) -> Result<()> {
        match step {
            Step::Dialled(Ok(connection)) => {
                if bridge.is_attached() && !bridge.session().is_suspect() {
                    // The old path has spoken again meanwhile.
                    self.mended();
                    return Ok(());
                }
                if bridge.is_attached() {
                    tracing::info!("leaving a silent connection");
                }
                bridge.detach();
                self.mark_broken();
                let early_bytes = if self.brings_nothing { 0 } else { self.resumption.early_bytes };
                let early = bridge.session().early(early_bytes);
                self.state = State::Asking(self.ask(connection, bridge.session().received_count(), early));
            }
            Step::Answered(Ok(Resumed { stream, leftover, round_trip, received })) => {
                let resumed = bridge.session().resume(received, std::time::Instant::now());
                resumed
                    .map_err(|violation| Error::new(Code::Protocol, format!("the server answered with {violation}")))?;
                bridge.attach(Box::new(stream), &leftover, round_trip);
                self.interruptions += 1;
                let milliseconds = self.broken.map_or(0, |broken| broken.elapsed().as_millis() as u64);
                tracing::info!(milliseconds, interruptions = self.interruptions, "resumed");
                let counts = [received, bridge.session().received_count()];
                let last = self.resumed.replace((Instant::now(), counts));
                let is_in_vain = last.is_some_and(|(at, before)| counts == before && at.elapsed() < LASTING);
                let pause = if is_in_vain { self.longer_pause() } else { Duration::ZERO };
                self.mended();
                // Whatever cuts each connection before it has carried a frame may do so to the next.
                self.pause = pause;
            }
            Step::Dialled(Err(error)) | Step::Answered(Err(error)) => {
                self.brings_nothing |= matches!(self.state, State::Asking(_));
                self.state = State::Whole;
                if bridge.is_attached() && (!bridge.session().is_suspect() || !may_pass(&error)) {
                    // There is no better path than the old one, which may only be slow; it is looked at again.
                    tracing::debug!(%error, "staying on a silent connection");
                    self.mended();
                    return Ok(());
                }
                if !may_pass(&error) {
                    return Err(error);
                }
                let patience = self.patience();
                if self.broken.is_some_and(|broken| broken.elapsed() >= patience) {
                    return Err(given_up("the session could not be resumed", patience, &error));
                }
                tracing::debug!(%error, "cannot resume yet");
                self.pause = self.longer_pause();
                self.look();
            }
        }
        Ok(())
    }

    fn longer_pause(&self) -> Duration {
        (self.pause * 2).clamp(BACK_OFF.0, BACK_OFF.1)
    }

    fn mended(&mut self) {
        (self.state, self.pause, self.broken) = (State::Whole, Duration::ZERO, None);
        self.brings_nothing = false;
    }

    fn patience(&self) -> Duration {
        self.resumption.grace.min(self.dialler.host().resume.unwrap_or_default())
    }

    fn dial(&self) -> Attempt<Result<Connection>> {
        let (dialler, hurry, pause) = (self.dialler.clone(), self.hurry.clone(), jittered(self.pause));
        Box::pin(async move {
            if !pause.is_zero() {
                let _ = timeout(pause, hurry.notified()).await;
            }
            dialler.dial().await
        })
    }

    /// Asks the server to go on: this side has received `received` frames, and sends those that the server may lack.
    fn ask(
        &self,
        mut connection: Connection,
        received: u64,
        early: Option<(u64, Vec<u8>)>,
    ) -> Attempt<Result<Resumed>> {
        let host = self.dialler.host();
        let mut request = Request::new("POST", &format!("{}/resume", host.upgrade_base), &host.server_name)
            .field("Connection", "Upgrade")
            .field("Upgrade", UPGRADE_FRAMED)
            .field(HEADER_SESSION, &self.resumption.token)
            .field(HEADER_RECEIVED, received);
        if let Some((first, _)) = &early {
            request = request.field(HEADER_EARLY, first);
        }
        let body = early.map(|(_, frames)| frames).unwrap_or_default();
        let mut request = request.field("Content-Length", body.len()).into_bytes();
        request.extend_from_slice(&body);
        let endpoint = host.endpoint.host.clone();
        Box::pin(async move {
            let asking = async {
                connection.send(&request).await?;
                let response = connection.answer().await?;
                if response.status != 101 {
                    return Err(connection.refusal(&response).await);
                }
                let received = response.number(HEADER_RECEIVED);
                let received = received.ok_or_else(|| {
                    Error::new(Code::Protocol, format!("{endpoint} resumed without saying what it has received"))
                })?;
                let round_trip = connection.round_trip();
                let (stream, leftover) = connection.into_parts();
                Ok(Resumed { stream, leftover, round_trip, received })
            };
            timeout(ANSWER_TIMEOUT, asking).await.unwrap_or_else(|_| {
                Err(Error::new(Code::ConnectTimeout, format!("{endpoint} did not answer a resume in time")))
            })
        })
    }
}

/// Whether a later attempt may fare better. What stands between here and the server on a strange network (a portal that
/// answers in its place) passes, and so does a wrong clock; what the server itself has decided does not.
pub(crate) fn may_pass(error: &Error) -> bool {
    match error.code {
        Code::SessionLost => false,
        Code::Proxy
        | Code::TlsUntrusted
        | Code::TlsExpired
        | Code::TlsName
        | Code::TlsHandshake
        | Code::NotTstunnel => true,
        code => code.retry() == Retry::Yes,
    }
}

/// The failure of what has been tried for as long as it may be; `last` is that of the last attempt.
pub(super) fn given_up(what: &str, patience: Duration, last: &Error) -> Error {
    Error::new(Code::NetworkLost, format!("{what} within {} s; last: {}", patience.as_secs(), last.text))
}

/// Between half of `pause` and all of it, so that clients of one server do not come back in step.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0; 1];
    let _ = aws_lc_rs::rand::fill(&mut byte);
    pause.mul_f64(0.5 + f64::from(byte[0]) / 512.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_jittered_within_half_of_their_length() {
        for _ in 0..100 {
            let pause = jittered(BACK_OFF.1);
            assert!(pause >= BACK_OFF.1 / 2 && pause <= BACK_OFF.1);
        }
    }

    #[test]
    fn what_the_server_has_decided_is_not_asked_again() {
        for (code, passes) in [
            (Code::SessionLost, false),
            (Code::ClientCert, false),
            (Code::Unauthorized, false),
            (Code::HostUnknown, false),
            (Code::BadRequest, false),
            (Code::ConnectRefused, true),
            (Code::NetworkLost, true),
            (Code::Dns, true),
            (Code::Overloaded, true),
            (Code::TooMany, true),
            (Code::TlsUntrusted, true),
            (Code::TlsExpired, true),
            (Code::TlsName, true),
            (Code::NotTstunnel, true),
        ] {
            assert_eq!(may_pass(&Error::new(code, "")), passes, "{code}");
        }
    }
}
