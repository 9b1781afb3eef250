//! A request that upgrades → streams over the connection until the other side's end: what `exec`, `connect` and the
//! `ssh` stand-in share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::signal::unix::SignalKind;
use tokio::sync::{mpsc, oneshot};

use crate::bridge::{self, Bridge, Connection, Event, RawEnd, RawOver};
use crate::client::dial::Dialler;
use crate::client::disturbance::Disturbances;
use crate::client::footprint;
use crate::client::redial::{Path, Resumption, Step};
use crate::client::signals::Listeners;
use crate::client::status;
use crate::client::status::report::{Measure, Report};
use crate::config::Host;
use crate::error::{Code, Error, Result, reason};
use crate::protocol::early::MAX_EARLY_BYTES;
use crate::protocol::frame::{self, Kind, Role};
use crate::protocol::head::{Request, Response};
use crate::protocol::liveness::Policy;
use crate::protocol::session::{DEFAULT_WINDOW_BYTES, MAX_WINDOW_BYTES, Session};
use crate::protocol::{
    HEADER_EARLY, HEADER_GRACE, HEADER_SESSION, HEADER_USER, HEADER_WINDOW, UPGRADE_FRAMED, UPGRADE_RAW,
};
use crate::stdio::{self, Counted, Stdio, Stdout, Streams};

/// How long the last words to a server, or its own, may take.
pub(super) const GOODBYE: Duration = Duration::from_secs(1);

/// Which protocols a client offers, in its order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Frames, or a plain stream where the server speaks nothing else.
    FramedFirst,
    /// A plain stream.
    Raw,
}

/// What a session is opened for.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The path and query below the upgrade base.
    pub path: String,
    /// The JSON body.
    pub body: Option<Vec<u8>>,
    /// The protocols.
    pub offer: Offer,
    /// The command line or the target, for `tstunnel status`; `None` for the host's default target.
    pub command: Option<String>,
}

/// An upgraded connection.
pub struct Opened {
    connection: Box<dyn Connection>,
    leftover: BytesMut,
    /// What the handshake took.
    round_trip: Duration,
    /// The window of a framed session; `None` for a plain stream.
    window_bytes: Option<usize>,
    /// What it takes to go on after an interruption.
    resumption: Option<Resumption>,
    report: Report,
}

impl Opened {
    /// The protocol that the server chose.
    pub fn protocol(&self) -> &'static str {
        if self.window_bytes.is_some() { UPGRADE_FRAMED } else { UPGRADE_RAW }
    }

    /// How long the server keeps the session when it is interrupted; `None` where it cannot be resumed.
    pub fn grace(&self) -> Option<Duration> {
        self.resumption.as_ref().map(|resumption| resumption.grace)
    }

    /// The connection, and what was received behind the upgrade, for a peer that carries no streams of this process's.
    pub fn into_connection(self) -> (Box<dyn Connection>, BytesMut) {
        (self.connection, self.leftover)
    }
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("window_bytes", &self.window_bytes).finish_non_exhaustive()
    }
}

/// Dials, asks, and waits for the upgrade.
///
/// # Errors
/// Those of [`Dialler::dial`], and the server's refusal.
pub async fn open(dialler: &Dialler, opening: &Opening) -> Result<Opened> {
    let host = dialler.host();
    let offered = match opening.offer {
        Offer::FramedFirst => [UPGRADE_FRAMED, UPGRADE_RAW].join(", "),
        Offer::Raw => UPGRADE_RAW.to_owned(),
    };
    let mut request = Request::new("POST", &format!("{}{}", host.upgrade_base, opening.path), &host.server_name)
        .field("Connection", "Upgrade")
        .field("Upgrade", &offered);
    if opening.body.is_some() {
        request = request.field("Content-Type", "application/json");
    } else if let Some(user) = &host.user {
        // A body names the account itself.
        request = request.field(HEADER_USER, user);
    }
    let body = opening.body.as_deref().unwrap_or_default();
    let mut bytes = request.field("Content-Length", body.len()).into_bytes();
    bytes.extend_from_slice(body);
    let mut connection = dialler.dial_with(&bytes).await?;
    let response = connection.answer().await?;
    if response.status != 101 {
        let refusal = connection.refusal(&response).await;
        return Err(program_refused(refusal, &response, opening));
    }
    let chosen = response.field("upgrade").unwrap_or_default().to_ascii_lowercase();
    let window_bytes = match (chosen.as_str(), opening.offer) {
        (UPGRADE_FRAMED, Offer::FramedFirst) => Some(window(&response)),
        (UPGRADE_RAW, _) => None,
        _ => {
            let text = format!("{} upgraded to `{chosen}`, which was not offered", host.endpoint.host);
            return Err(Error::new(Code::NotTstunnel, text));
        }
    };
    let resumption = host.resume.and_then(|_| resumption(&response));
    let round_trip = connection.round_trip();
    let (stream, leftover) = connection.into_parts();
    let report = Report::new(host, status::Kind::Session, opening.command.as_deref());
    Ok(Opened { connection: Box::new(stream), leftover, round_trip, window_bytes, resumption, report })
}

fn window(response: &Response) -> usize {
    let offered = response.number(HEADER_WINDOW);
    offered.unwrap_or(DEFAULT_WINDOW_BYTES).min(MAX_WINDOW_BYTES)
}

fn resumption(response: &Response) -> Option<Resumption> {
    let token = response.field(&HEADER_SESSION.to_ascii_lowercase())?.to_owned();
    let grace = response.number(HEADER_GRACE).map(Duration::from_secs)?;
    let early_bytes = response.number(HEADER_EARLY).unwrap_or(0).min(MAX_EARLY_BYTES);
    Some(Resumption { token, grace, early_bytes })
}

/// A server that speaks only `tcp` says with a bare status that a program is missing or cannot be executed. A web
/// page with the same status is another kind of server.
fn program_refused(refusal: Error, response: &Response, opening: &Opening) -> Error {
    let is_page = response.field("content-type").is_some_and(|kind| kind.starts_with("text/html"));
    if refusal.code != Code::NotTstunnel || opening.path != "/command" || is_page {
        return refusal;
    }
    match response.status {
        404 => Error::new(Code::AgentMissing, "the server says that the program does not exist (404)"),
        403 => Error::new(Code::AgentNotExecutable, "the server says that the program cannot be executed (403)"),
        _ => refusal,
    }
}

/// Carries this process's streams over an upgraded connection; returns the exit status.
///
/// # Errors
/// `network-lost`, `protocol`, and whatever the server's last word names.
pub async fn run(opened: Opened, streams: Streams, dialler: &Dialler) -> Result<u8> {
    let host = dialler.host();
    let Streams { stdin, stdout, stderr } = streams;
    let Opened { connection, leftover, round_trip, window_bytes, resumption, report } = opened;
    let Some(window_bytes) = window_bytes else {
        return match run_raw(connection, &leftover, stdin, stdout, report).await {
            Ok(RawOver::Ended) => Ok(0),
            Ok(RawOver::Untaken(error)) => stdio::untaken(error),
            Err(error) => Err(lost(host, Some(&error))),
        };
    };
    let policy = Policy { interval: host.alive_interval, count: host.alive_count };
    let mut session = Session::new(Role::Client, window_bytes, policy, Instant::now());
    session.expect_round_trip(round_trip);
    let sources: bridge::Sources = vec![(Kind::Stdin, Box::new(stdin))];
    // Stderr first: a reader of both looks at it when stdout has ended.
    let sinks: bridge::Sinks = vec![(Kind::Stderr, Box::new(stderr)), (Kind::Stdout, Box::new(stdout))];
    let mut bridge = Bridge::new(session, connection, &leftover, sources, sinks);
    let mut path = resumption.map(|resumption| Path::new(dialler.clone(), resumption));
    let (sender, mut asides) = mpsc::channel(1);
    tokio::spawn(look_aside(signals()?, report, sender));
    loop {
        tokio::select! {
            event = bridge.next() => if let Some(status) = attend(event, &mut bridge, path.as_mut(), host).await? {
                return Ok(status);
            },
            step = next_step(&mut path) => if let Some(path) = &mut path {
                path.follow(step, &mut bridge)?;
            },
            Some(aside) = asides.recv() => match aside {
                Aside::Disturbed => {
                    bridge.session().doubt(Instant::now());
                    if let Some(path) = &path {
                        path.hurry();
                    }
                }
                Aside::Signalled(Meaning::End(status)) => {
                    close(&mut bridge).await;
                    return Ok(status);
                }
                Aside::Signalled(Meaning::Forward(name)) => bridge.session().queue_signal(name),
                Aside::Asked(reply) => {
                    let _ = reply.send(measure(&mut bridge, path.as_ref()));
                }
            },
        }
    }
}

/// What happens beside a session, seldom.
enum Aside {
    /// To the network, or to this machine.
    Disturbed,
    /// A signal has come.
    Signalled(Meaning),
    /// Somebody wants to know how the session is.
    Asked(oneshot::Sender<Measure>),
}

/// Waits for all of that until the session ends. It is a task of its own, so that nothing of it is looked at for each byte that a
/// session carries.
async fn look_aside(mut signals: Listeners<Meaning>, mut report: Report, asides: mpsc::Sender<Aside>) {
    let mut disturbances = Disturbances::new();
    let (mut start, mut has_started) = (std::pin::pin!(tokio::time::sleep(footprint::START)), false);
    loop {
        let aside = tokio::select! {
            () = &mut start, if !has_started => {
                has_started = true;
                footprint::give_back();
                continue;
            }
            () = disturbances.next() => Aside::Disturbed,
            meaning = signals.next() => Aside::Signalled(meaning),
            question = report.question() => {
                let (reply, measure) = oneshot::channel();
                if asides.send(Aside::Asked(reply)).await.is_ok() && let Ok(measure) = measure.await {
                    report.answer(question, measure);
                }
                continue;
            }
        };
        let _ = asides.send(aside).await;
    }
}

/// Carries a plain stream.
async fn run_raw(
    mut connection: Box<dyn Connection>,
    leftover: &[u8],
    stdin: Stdio,
    stdout: Stdout,
    mut report: Report,
) -> std::io::Result<RawOver> {
    let (sent, received) = (Arc::default(), Arc::default());
    let (stdin, stdout) = (Counted::new(stdin, &sent), Counted::new(stdout, &received));
    let carrying = bridge::raw(&mut *connection, leftover, Box::new(stdin), Box::new(stdout), RawEnd::Incoming);
    let mut carrying = std::pin::pin!(carrying);
    loop {
        tokio::select! {
            result = &mut carrying => return result,
            question = report.question() => {
                let bytes = (sent.bytes(), received.bytes());
                report.answer(question, Measure { bytes, ..Measure::default() });
            }
        }
    }
}

fn measure(bridge: &mut Bridge, path: Option<&Path>) -> Measure {
    let (interruptions, last_interruption) = path.map_or((0, None), Path::interruptions);
    Measure {
        bytes: bridge.byte_counts(),
        round_trip: bridge.session().round_trip(),
        silence: Some(bridge.session().silence(Instant::now())),
        is_interrupted: path.is_some_and(Path::is_broken),
        interruptions,
        last_interruption,
    }
}

async fn next_step(path: &mut Option<Path>) -> Step {
    match path {
        Some(path) => path.next().await,
        None => std::future::pending().await,
    }
}

/// Does what an event asks for; returns the exit status, where it is the last.
async fn attend(event: Event, bridge: &mut Bridge, path: Option<&mut Path>, host: &Host) -> Result<Option<u8>> {
    match event {
        Event::Exit(exit) => {
            let _ = tokio::time::timeout(GOODBYE, bridge.shutdown()).await;
            return Ok(Some(exit.status()));
        }
        Event::SinkClosed(Kind::Stdout, error) => {
            close(bridge).await;
            return stdio::untaken(error).map(Some);
        }
        Event::PeerError(text) => return Err(frame::error_of(&text)),
        Event::Violation(text) => {
            let _ = tokio::time::timeout(GOODBYE, bridge.shutdown()).await;
            return Err(Error::new(Code::Protocol, format!("{} sent {text}", host.endpoint.host)));
        }
        Event::Lost(error) => interrupted(path, lost(host, error.as_ref()))?,
        Event::Silent => {
            let text = format!("nothing was heard from {} for too long", host.endpoint.host);
            interrupted(path, Error::new(Code::NetworkLost, text))?;
        }
        Event::Suspect => {
            if let Some(path) = path {
                path.look();
            }
        }
        Event::SourcesEnded { .. } | Event::SinkClosed(..) | Event::Signal(_) | Event::Close | Event::Finished => {}
    }
    Ok(None)
}

/// Goes on after the connection's end, where that is possible.
fn interrupted(path: Option<&mut Path>, error: Error) -> Result<()> {
    path.map(|path| path.broke(&error)).ok_or(error)
}

/// Tells the server to end the process, and waits until it has heard.
async fn close(bridge: &mut Bridge) {
    bridge.close_sinks();
    bridge.session().queue_close();
    let goodbye = async {
        if bridge.shutdown().await.is_ok() {
            bridge.drain().await;
        }
    };
    let _ = tokio::time::timeout(GOODBYE, goodbye).await;
}

/// The failure of a session whose connection ended before it did.
pub(super) fn lost(host: &Host, error: Option<&std::io::Error>) -> Error {
    let why = match error {
        None => "it was closed".to_owned(),
        // rustls says this in a sentence for programmers.
        Some(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => "it was cut".to_owned(),
        Some(error) => reason(error),
    };
    Error::new(Code::NetworkLost, format!("the connection to {} was lost: {why}", host.endpoint.host))
}

/// What a signal to this process means for the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// The end, with this exit status.
    End(u8),
    /// The same signal for the remote process.
    Forward(&'static str),
}

/// The signals that mean something.
fn signals() -> Result<Listeners<Meaning>> {
    let end = |kind: SignalKind| (kind, Meaning::End(128 + kind.as_raw_value() as u8));
    Listeners::new([
        end(SignalKind::hangup()),
        end(SignalKind::interrupt()),
        end(SignalKind::terminate()),
        (SignalKind::quit(), Meaning::Forward("QUIT")),
        (SignalKind::user_defined1(), Meaning::Forward("USR1")),
        (SignalKind::user_defined2(), Meaning::Forward("USR2")),
    ])
}

/// The streams of a command that reads nothing and whose process has no stdin of its own to offer (`ssh -n`).
///
/// # Errors
/// Those of opening `/dev/null`.
pub fn without_stdin(mut streams: Streams) -> std::io::Result<Streams> {
    streams.stdin = Stdio::Ready(std::fs::File::open("/dev/null")?.into());
    Ok(streams)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_cannot_make_a_client_hold_what_it_likes() {
        let window_of = |field: &str| {
            let head = format!("HTTP/1.1 101 Switching Protocols\r\n{field}\r\n");
            window(&Response::parse(head.as_bytes()).unwrap().unwrap().0)
        };
        assert_eq!(window_of("Tstunnel-Window: 65536\r\n"), 65536);
        assert_eq!(window_of(""), DEFAULT_WINDOW_BYTES);
        assert_eq!(window_of("Tstunnel-Window: many\r\n"), DEFAULT_WINDOW_BYTES);
        assert_eq!(window_of("Tstunnel-Window: 18446744073709551615\r\n"), MAX_WINDOW_BYTES);
    }
}
