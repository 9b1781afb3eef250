//! The requests that upgrade: what was permitted is started or found first, then answered with a 101, and carried on behind
//! it in a task of its own.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::decision::Decision;
use super::{Answer, internal};
use crate::bridge::Connection;
use crate::error::{Code, Error};
use crate::protocol::early::{Early, MAX_EARLY_BYTES};
use crate::protocol::head;
use crate::protocol::session::Exit;
use crate::protocol::{HEADER_EARLY, HEADER_RECEIVED, HEADER_SESSION, UPGRADE_FRAMED, UPGRADE_RAW};
use crate::server::account::Login;
use crate::server::admission::{Counted, Ticket};
use crate::server::child::{self, Pipes};
use crate::server::connection::Lingering;
use crate::server::handshake::{Peer, Stream};
use crate::server::policy::{Action, Permit};
use crate::server::pool::{Bounds, Label, Pool};
use crate::server::process::{self, Prepared, Process, StartFailure};
use crate::server::refusal::Refusal;
use crate::server::registry::{Enrolment, Found, Grant, Message};
use crate::server::sessions::{self, Link, Work};
use crate::server::state::State;
use crate::server::trail::{Outcome, Trail};
use crate::server::{Shared, succession, target};

/// The protocol of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Framed,
    Raw,
}

/// The first protocol of the client's list that this server speaks (RFC 9110 §7.8).
pub(super) fn chosen_protocol(headers: &HeaderMap) -> Result<Protocol, Refusal> {
    let list = |name: HeaderName| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).map(|item| item.trim().to_ascii_lowercase()).collect::<Vec<_>>()
    };
    let asks = list(CONNECTION).iter().any(|item| item == "upgrade");
    let chosen = list(UPGRADE).iter().find_map(|item| match item.as_str() {
        UPGRADE_FRAMED => Some(Protocol::Framed),
        UPGRADE_RAW => Some(Protocol::Raw),
        _ => None,
    });
    chosen.filter(|_| asks).ok_or_else(|| Refusal::bad_request(426, "this path needs an upgrade"))
}

/// `POST /command`: starts the process and answers.
pub(super) async fn command(
    shared: &Arc<Shared>,
    state: &State,
    protocol: Protocol,
    permit: Permit,
    login: Login,
    trail: Arc<Trail>,
    request: Request<()>,
) -> Result<Answer, Refusal> {
    let limits = &state.config.limits;
    let bounds = Bounds { of_shelf: permit.pool(), in_all: limits.max_pooled, idle: limits.pool_idle };
    let started = child::in_place(|| {
        let prepared = process::prepare(&permit, login, &shared.agents)?;
        start(&shared.pool, bounds, &permit, prepared)
    });
    let started = started.await;
    let opened = Opened::new(shared, &permit, protocol, trail.ticket())?;
    let (window_bytes, ending) = (opened.window_bytes, trail.ticket().ending());
    let work = match (started, protocol) {
        (Ok((process, pipes)), _) => Work::Process(process, pipes),
        (Err(StartFailure::Missing(text)), Protocol::Framed) => {
            unstarted(&trail, Error::new(Code::AgentMissing, text), 127)
        }
        (Err(StartFailure::NotExecutable(text)), Protocol::Framed) => {
            unstarted(&trail, Error::new(Code::AgentNotExecutable, text), 126)
        }
        (Err(StartFailure::Missing(text)), Protocol::Raw) => return Err(Error::new(Code::AgentMissing, text).into()),
        (Err(StartFailure::NotExecutable(text)), Protocol::Raw) => {
            return Err(Error::new(Code::AgentNotExecutable, text).into());
        }
        (Err(StartFailure::Exhausted(text)), _) => return Err(Error::new(Code::Overloaded, text).into()),
        (Err(StartFailure::NoHome(error)), _) => return Err(error.into()),
        (Err(StartFailure::Broken(text)), _) => return Err(Error::new(Code::Internal, text).into()),
    };
    let answer = opened.answer()?;
    let link = Link::new(opened.enrolment, trail.clone());
    carry(request, trail, move |upgraded| async move {
        match (upgraded, work) {
            (Some((stream, leftover)), work) if protocol == Protocol::Framed => {
                sessions::command(Box::new(stream), &leftover, work, window_bytes, link, ending).await
            }
            (Some((stream, leftover)), Work::Process(process, pipes)) => {
                sessions::raw::command(Box::new(stream), &leftover, process, pipes, link, ending).await
            }
            // The client was gone before its answer.
            (_, Work::Process(process, pipes)) => {
                drop(pipes);
                process::end(process, process::Ladder::default(), false).await;
                gone()
            }
            (_, Work::Unstarted(..)) => gone(),
        }
    });
    Ok(answer)
}

/// Starts what is prepared, or takes what was started ahead, and sees to the next. Blocks.
fn start(pool: &Pool, bounds: Bounds, permit: &Permit, prepared: Prepared) -> Result<(Process, Pipes), StartFailure> {
    if bounds.of_shelf == 0 {
        return prepared.start();
    }
    let label = Label::of(permit);
    let ahead = pool.take(&label, &prepared);
    let started = ahead.map_or_else(|| prepared.clone().start(), Ok)?;
    pool.refill(label, &prepared, bounds);
    Ok(started)
}

/// A session whose client is told on its stderr why there is no process.
fn unstarted(trail: &Trail, error: Error, status: u32) -> Work {
    trail.end(Outcome { exit: Some(Exit::Status(status)), ..Outcome::failed(&error) });
    Work::Unstarted(error.text, status)
}

/// `POST /stream`: connects to the target and answers.
pub(super) async fn stream(
    shared: &Arc<Shared>,
    state: &State,
    protocol: Protocol,
    permit: Permit,
    trail: Arc<Trail>,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let Action::Stream { target } = permit.action() else {
        return Err(Error::new(Code::Internal, "this permit is not for a stream").into());
    };
    let login = super::login(&permit).await?;
    let ends = target::connect(target, &login, state.config.limits.max_upload_bytes.get(), &trail).await?;
    let opened = Opened::new(shared, &permit, protocol, trail.ticket())?;
    let (window_bytes, ending) = (opened.window_bytes, trail.ticket().ending());
    let answer = opened.answer()?;
    let link = Link::new(opened.enrolment, trail.clone());
    carry(request, trail, move |upgraded| async move {
        match upgraded {
            None => gone(),
            Some((stream, leftover)) if protocol == Protocol::Framed => {
                sessions::stream(Box::new(stream), &leftover, ends, window_bytes, link, ending).await
            }
            Some((stream, leftover)) => sessions::raw::stream(Box::new(stream), &leftover, ends, link, ending).await,
        }
    });
    Ok(answer)
}

/// `POST /resume`: the session's task takes over the connection behind the answer, here or in an earlier server.
pub(super) async fn resume(
    shared: &Arc<Shared>,
    state: &Arc<State>,
    peer: &Arc<Peer>,
    decision: &mut Decision<'_>,
    mut request: Request<()>,
    body: Bytes,
) -> Result<Answer, Refusal> {
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let token = text(HEADER_SESSION).unwrap_or_default();
    let received = text(HEADER_RECEIVED)
        .and_then(head::number)
        .ok_or_else(|| Refusal::bad_request(400, format!("{HEADER_RECEIVED} is not a number")))?;
    let first = if body.is_empty() { Some(0) } else { text(HEADER_EARLY).and_then(head::number) };
    let early = first.and_then(|first| Early::decode(first, body));
    let early = early.ok_or_else(|| {
        Refusal::bad_request(400, format!("the body is not whole frames behind those that {HEADER_EARLY} counts"))
    })?;
    let place = match claim(shared, state, peer, decision, token, received).await {
        Ok(claim) => Place::Here(claim),
        Err(refusal) if refusal.error.code == Code::SessionLost && !shared.is_stopping() => {
            let (received, session) = shared.predecessors.offer(peer, token, received).await?;
            Place::Earlier(received, session, shared.admission.working())
        }
        Err(refusal) => return Err(refusal),
    };
    let mut answer = switching(Protocol::Framed);
    let received = match &place {
        Place::Here(claim) => claim.received(),
        Place::Earlier(received, ..) => *received,
    };
    let (early, received) = early.behind(received);
    answer.headers_mut().insert("tstunnel-received", HeaderValue::from(received));
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Some((stream, leftover)) = stream_of(upgrading).await {
            let leftover = Bytes::from([early, leftover].concat());
            match place {
                Place::Here(claim) => claim.attach(Box::new(stream), leftover).await,
                Place::Earlier(_, session, working) => succession::relay(stream, leftover, session, working).await,
            }
        }
    });
    Ok(answer)
}

/// Where a resumed session is.
enum Place {
    Here(Claim),
    Earlier(u64, UnixStream, Counted),
}

/// A session that goes on over the connection that it is attached to.
#[derive(Debug)]
pub struct Claim {
    task: mpsc::Sender<Message>,
    grant: Grant,
    peer: Arc<Peer>,
}

impl Claim {
    /// How many frames the session has received.
    pub fn received(&self) -> u64 {
        self.grant.received
    }

    /// Gives it its connection, and what was received behind the upgrade.
    pub async fn attach(self, connection: Box<dyn Connection>, leftover: Bytes) {
        let Claim { task, grant, peer } = self;
        let _ = task.send(Message::Attach { generation: grant.generation, connection, leftover, peer }).await;
    }
}

/// Finds the session that `token` names, and has its task let go of the connection that it has.
pub(super) async fn claim(
    shared: &Arc<Shared>,
    state: &Arc<State>,
    peer: &Arc<Peer>,
    decision: &mut Decision<'_>,
    token: &str,
    peer_received: u64,
) -> Result<Claim, Refusal> {
    let lost = || Error::new(Code::SessionLost, "the session has ended");
    if shared.is_stopping() {
        return Err(Error::new(Code::SessionLost, "the server is stopping").into());
    }
    let Found { task, session } = shared.registry.find(token, &decision.asker().principal, decision.host())?;
    decision.show();
    // From where and by which certificate it is asked for may be new.
    let permit = decision.on(&session.asked).await.map_err(|refused| match refused.is_undecided {
        // The session is kept for a while, and the client asks again.
        true => Error::new(Code::Overloaded, "whether the session may go on cannot be decided now"),
        false => refused.error,
    })?;
    let (reply, granted) = oneshot::channel();
    task.send(Message::Resume { peer_received, reply }).await.map_err(|_| lost())?;
    let grant = granted
        .await
        .map_err(|_| lost())?
        .map_err(|violation| Refusal::bad_request(400, format!("{HEADER_RECEIVED}: {violation}")))?;
    shared.go_on(state, &permit, peer, &session);
    Ok(Claim { task, grant, peer: peer.clone() })
}

/// What a session's answer says.
struct Opened {
    protocol: Protocol,
    window_bytes: usize,
    enrolment: Option<Enrolment>,
}

impl Opened {
    fn new(shared: &Shared, permit: &Permit, protocol: Protocol, ticket: &Ticket) -> Result<Opened, Refusal> {
        let session = ticket.session();
        let window_bytes = shared.registry.window_bytes(session.peer().round_trip);
        let enrolment = match protocol {
            Protocol::Framed => shared.registry.enrol(permit.host(), session, window_bytes)?,
            Protocol::Raw => None,
        };
        Ok(Opened { protocol, window_bytes, enrolment })
    }

    fn answer(&self) -> Result<Answer, Refusal> {
        let mut answer = switching(self.protocol);
        if self.protocol == Protocol::Framed {
            answer.headers_mut().insert("tstunnel-window", HeaderValue::from(self.window_bytes));
        }
        if let Some(enrolment) = &self.enrolment {
            let token = HeaderValue::from_str(&enrolment.token).map_err(internal)?;
            answer.headers_mut().insert("tstunnel-session", token);
            answer.headers_mut().insert("tstunnel-early", HeaderValue::from(MAX_EARLY_BYTES));
            answer.headers_mut().insert("tstunnel-grace", HeaderValue::from(enrolment.grace().as_secs()));
        }
        Ok(answer)
    }
}

/// A 101 to `protocol`.
fn switching(protocol: Protocol) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let token = match protocol {
        Protocol::Framed => UPGRADE_FRAMED,
        Protocol::Raw => UPGRADE_RAW,
    };
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(token));
    answer
}

/// The stream behind a 101, and what was received with it; nothing where the connection ended before.
async fn stream_of(upgrading: OnUpgrade) -> Option<(Stream, Bytes)> {
    let parts = upgrading.await.ok()?.downcast::<TokioIo<Lingering>>().ok()?;
    Some((parts.io.into_inner().into_inner()?, parts.read_buf))
}

/// Carries a session on behind its answer, in a task of its own. `with` gets the stream, or nothing where the connection
/// ended before.
fn carry<B, F, C>(mut request: Request<B>, trail: Arc<Trail>, with: C)
where
    C: FnOnce(Option<(Stream, Bytes)>) -> F + Send + 'static,
    F: Future<Output = Outcome> + Send,
{
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        trail.end(with(stream_of(upgrading).await).await);
    });
}

/// The end of a session whose client was gone before its answer.
fn gone() -> Outcome {
    Outcome::because("the client was gone before its answer")
}
