//! One HTTP/1.1 request of an authenticated peer → its answer, and the session or upload behind it.
//!
//! The order of checks is that of what a peer may know: principal, host, path, method, policy. Nothing is started
//! before the policy has given its permit.

mod copy;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;

use crate::error::{Code, Error, printable};
use crate::protocol::encoding::percent_decode;
use crate::protocol::{
    CommandRequest, HEADER_RECEIVED, HEADER_SESSION, MAX_COMMAND_BYTES, UPGRADE_FRAMED, UPGRADE_RAW,
};
use crate::server::Lingering;
use crate::server::admission::Ticket;
use crate::server::handshake::{Peer, Stream};
use crate::server::policy::{Action, Permit, Request as PolicyRequest};
use crate::server::process::{self, StartFailure};
use crate::server::refusal::Refusal;
use crate::server::registry::{Enrolment, Message};
use crate::server::sessions::{self, Link, Summary, Work};
use crate::server::{Shared, target};

type Answer = Response<Full<Bytes>>;

/// The protocol of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Framed,
    Raw,
}

/// Answers one request.
pub async fn answer(shared: Arc<Shared>, peer: Arc<Peer>, request: Request<Incoming>) -> Answer {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = Route::of(&shared.config.upgrade_base, &path);
    match respond(shared, &peer, route, request).await {
        Ok(answer) => answer,
        Err(refusal) => {
            let principal = peer.principal.as_ref().map_or("-", |principal| principal.0.as_str());
            tracing::info!(
                peer = %peer.address, principal, server_name = peer.server_name, %method, path = %printable(&path),
                status = refusal.status, reason = %printable(&refusal.error.to_string()), "refused"
            );
            refusal.response(route.map_or("", Route::allow))
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route<'a> {
    Command,
    Stream,
    Resume,
    Host,
    /// The name as it stands in the path.
    Copy(&'a str),
}

impl<'a> Route<'a> {
    fn of(base: &str, path: &'a str) -> Option<Route<'a>> {
        match path.strip_prefix(base)? {
            "/command" => Some(Route::Command),
            "/stream" => Some(Route::Stream),
            "/resume" => Some(Route::Resume),
            "/host" => Some(Route::Host),
            rest => rest.strip_prefix("/copy/").map(Route::Copy),
        }
    }

    fn allow(self) -> &'static str {
        match self {
            Route::Command | Route::Stream | Route::Resume => "POST",
            Route::Host => "GET, HEAD",
            Route::Copy(_) => "POST, HEAD",
        }
    }

    fn allows(self, method: &Method) -> bool {
        self.allow().split(", ").any(|allowed| allowed == method.as_str())
    }
}

async fn respond(
    shared: Arc<Shared>,
    peer: &Arc<Peer>,
    route: Option<Route<'_>>,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let principal = peer.principal.clone()?;
    let decide = |asked: &PolicyRequest| shared.policy.decide(&principal, &peer.server_name, asked);
    check_host(peer, request.headers())?;
    let here = decide(&PolicyRequest::Host)?;
    let route = route.ok_or_else(|| Refusal::bad_request(404, "there is nothing under this path"))?;
    if !route.allows(request.method()) {
        return Err(Refusal::bad_request(405, format!("this path takes {}", route.allow())));
    }
    if shared.is_stopping() {
        return Err(Error::new(Code::Overloaded, "the server is stopping").into());
    }
    match route {
        Route::Host => Ok(host(&here)),
        Route::Command => {
            let protocol = chosen_protocol(request.headers())?;
            let (request, body) = read_body(request, MAX_COMMAND_BYTES, shared.config.limits.body_idle_timeout).await?;
            let asked: CommandRequest = serde_json::from_slice(&body)
                .map_err(|error| Refusal::bad_request(400, format!("the body is not a command: {error}")))?;
            let permit = decide(&asked.into())?;
            let ticket = shared.admission.session(&principal)?;
            command(&shared, peer, protocol, permit, ticket, request)
        }
        Route::Stream => {
            let protocol = chosen_protocol(request.headers())?;
            let target = target_of(request.uri().query())?;
            let permit = decide(&PolicyRequest::Stream { target, user: None })?;
            let ticket = shared.admission.session(&principal)?;
            stream(&shared, peer, protocol, permit, ticket, request).await
        }
        Route::Resume => {
            if chosen_protocol(request.headers())? != Protocol::Framed {
                return Err(Refusal::bad_request(426, "only a framed session can be resumed"));
            }
            resume(&shared, peer, &here, request).await
        }
        Route::Copy(name) => {
            let filename = decoded(name)?;
            let permit = decide(&PolicyRequest::Copy { filename, user: None })?;
            let ticket = shared.admission.session(&principal)?;
            copy::copy(&shared, peer, permit, ticket, request).await
        }
    }
}

/// PROTOCOL §1: a request whose `Host` is not the server name, port and case aside, is for somebody else.
fn check_host(peer: &Peer, headers: &HeaderMap) -> Result<(), Refusal> {
    let host = headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    if name.eq_ignore_ascii_case(&peer.server_name) {
        return Ok(());
    }
    let text = format!("the request is for another host than {}", peer.server_name);
    Err(Error::new(Code::HostUnknown, text).into())
}

/// The first protocol of the client's list that this server speaks (RFC 9110 §7.8).
fn chosen_protocol(headers: &HeaderMap) -> Result<Protocol, Refusal> {
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

fn target_of(query: Option<&str>) -> Result<Option<String>, Refusal> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(None) };
    match query.strip_prefix("target=") {
        Some(target) if !target.contains('&') => decoded(target).map(Some),
        _ => Err(Refusal::bad_request(400, "the query is not `target=…`")),
    }
}

fn decoded(text: &str) -> Result<String, Refusal> {
    let decoded = percent_decode(text).and_then(|bytes| String::from_utf8(bytes).ok());
    decoded.ok_or_else(|| Refusal::bad_request(400, "the percent-encoding is malformed"))
}

/// Reads a body whole, and gives the request back for its upgrade.
async fn read_body(
    request: Request<Incoming>,
    max_bytes: usize,
    idle: Duration,
) -> Result<(Request<()>, Bytes), Refusal> {
    let (parts, body) = request.into_parts();
    if body.size_hint().lower() > max_bytes as u64 {
        return Err(Refusal::bad_request(413, format!("the body is larger than {max_bytes} bytes")));
    }
    let collected = tokio::time::timeout(idle, Limited::new(body, max_bytes).collect()).await;
    let body = collected.map_err(|_| Refusal::bad_request(400, "the body did not come in time"))?.map_err(|error| {
        Refusal::bad_request(if error.is::<http_body_util::LengthLimitError>() { 413 } else { 400 }, error.to_string())
    })?;
    Ok((Request::from_parts(parts, ()), body.to_bytes()))
}

fn host(permit: &Permit) -> Answer {
    json(
        StatusCode::OK,
        &serde_json::json!({
            "server": concat!("tstunnel/", env!("CARGO_PKG_VERSION")),
            "host": permit.host().as_str(),
            "principal": permit.principal().0,
            "user": permit.account(),
            "features": [UPGRADE_FRAMED, UPGRADE_RAW, "resume", "copy-zstd"],
        }),
    )
}

fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(value.to_string())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn command(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    protocol: Protocol,
    permit: Permit,
    ticket: Ticket,
    request: Request<()>,
) -> Result<Answer, Refusal> {
    let started = process::start(&permit);
    let opened = Opened::new(shared, &permit, protocol)?;
    let (window_bytes, stop) = (opened.window_bytes, shared.stop.clone());
    let work = match (started, protocol) {
        (Ok((process, pipes)), _) => Work::Process(process, pipes),
        (Err(StartFailure::Missing(text)), Protocol::Framed) => Work::Unstarted(text, 127),
        (Err(StartFailure::NotExecutable(text)), Protocol::Framed) => Work::Unstarted(text, 126),
        (Err(StartFailure::Missing(text)), Protocol::Raw) => return Err(Error::new(Code::AgentMissing, text).into()),
        (Err(StartFailure::NotExecutable(text)), Protocol::Raw) => {
            return Err(Error::new(Code::AgentNotExecutable, text).into());
        }
        (Err(StartFailure::Broken(text)), _) => return Err(Error::new(Code::Internal, text).into()),
    };
    let session = Session { peer: peer.clone(), permit, ticket };
    let answer = opened.answer()?;
    let link = Link::new(opened.enrolment);
    carry(request, session, move |upgraded| async move {
        match (upgraded, work) {
            (Some((stream, leftover)), work) if protocol == Protocol::Framed => {
                sessions::command(Box::new(stream), &leftover, work, window_bytes, link, stop).await
            }
            (Some((stream, leftover)), Work::Process(process, pipes)) => {
                sessions::raw_command(Box::new(stream), &leftover, process, pipes, stop).await
            }
            // The client was gone before its answer.
            (_, Work::Process(process, pipes)) => {
                drop(pipes);
                process::end(process, process::Ladder::default(), false).await;
                Summary::default()
            }
            (_, Work::Unstarted(..)) => Summary::default(),
        }
    });
    Ok(answer)
}

async fn stream(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    protocol: Protocol,
    permit: Permit,
    ticket: Ticket,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let Action::Stream { target } = permit.action() else {
        return Err(Error::new(Code::Internal, "this permit is not for a stream").into());
    };
    let ends = target::connect(target).await?;
    let opened = Opened::new(shared, &permit, protocol)?;
    let (window_bytes, stop) = (opened.window_bytes, shared.stop.clone());
    let session = Session { peer: peer.clone(), permit, ticket };
    let answer = opened.answer()?;
    let link = Link::new(opened.enrolment);
    carry(request, session, move |upgraded| async move {
        match upgraded {
            None => Summary::default(),
            Some((stream, leftover)) if protocol == Protocol::Framed => {
                sessions::stream(Box::new(stream), &leftover, ends, window_bytes, link, stop).await
            }
            Some((stream, leftover)) => sessions::raw_stream(Box::new(stream), &leftover, ends, stop).await,
        }
    });
    Ok(answer)
}

/// `POST /resume`: the session's task takes over the connection behind the answer.
async fn resume(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    here: &Permit,
    mut request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let task = shared.registry.find(text(HEADER_SESSION).unwrap_or_default(), here.principal(), here.host())?;
    let peer_received = text(HEADER_RECEIVED)
        .and_then(|count| count.parse().ok())
        .ok_or_else(|| Refusal::bad_request(400, format!("{HEADER_RECEIVED} is not a number")))?;
    let (reply, granted) = oneshot::channel();
    let lost = || Error::new(Code::SessionLost, "the session has ended");
    task.send(Message::Resume { peer_received, reply }).await.map_err(|_| lost())?;
    let grant = granted
        .await
        .map_err(|_| lost())?
        .map_err(|violation| Refusal::bad_request(400, format!("{HEADER_RECEIVED}: {violation}")))?;
    let upgrading = hyper::upgrade::on(&mut request);
    let peer = peer.clone();
    tokio::spawn(async move {
        if let Some((stream, leftover)) = stream_of(upgrading).await {
            tracing::debug!(peer = %peer.address, "session resumed");
            let (connection, generation) = (Box::new(stream), grant.generation);
            let _ = task.send(Message::Attach { generation, connection, leftover }).await;
        }
    });
    let mut answer = switching(Protocol::Framed);
    answer.headers_mut().insert("tstunnel-received", HeaderValue::from(grant.received));
    Ok(answer)
}

/// What a session's answer says.
struct Opened {
    protocol: Protocol,
    window_bytes: usize,
    enrolment: Option<Enrolment>,
}

impl Opened {
    fn new(shared: &Shared, permit: &Permit, protocol: Protocol) -> Result<Opened, Refusal> {
        let enrolment = match protocol {
            Protocol::Framed => shared.registry.enrol(permit.principal(), permit.host())?,
            Protocol::Raw => None,
        };
        Ok(Opened { protocol, window_bytes: shared.registry.window_bytes(), enrolment })
    }

    fn answer(&self) -> Result<Answer, Refusal> {
        let mut answer = switching(self.protocol);
        if self.protocol == Protocol::Framed {
            answer.headers_mut().insert("tstunnel-window", HeaderValue::from(self.window_bytes));
        }
        if let Some(enrolment) = &self.enrolment {
            let token = HeaderValue::from_str(&enrolment.token).map_err(internal)?;
            answer.headers_mut().insert("tstunnel-session", token);
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

/// What a session is accounted and logged by.
struct Session {
    peer: Arc<Peer>,
    permit: Permit,
    ticket: Ticket,
}

/// Carries a session on behind its answer, in a task of its own. `with` gets the stream, or nothing where the connection
/// ended before.
fn carry<B, F, C>(mut request: Request<B>, session: Session, with: C)
where
    C: FnOnce(Option<(Stream, Bytes)>) -> F + Send + 'static,
    F: Future<Output = Summary> + Send,
{
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Session { peer, permit, ticket } = session;
        let principal = &permit.principal().0;
        tracing::info!(
            peer = %peer.address, principal, host = %permit.host(), action = ?permit.action(), rule = permit.rule(), "session"
        );
        let summary = with(stream_of(upgrading).await).await;
        tracing::info!(
            peer = %peer.address, principal, host = %permit.host(), exit = ?summary.exit, sent = summary.sent_bytes,
            received = summary.received_bytes, resumes = summary.resumes, reason = %printable(&summary.reason), "session ended"
        );
        drop(ticket);
    });
}

fn internal(error: impl std::fmt::Display) -> Refusal {
    Error::new(Code::Internal, error.to_string()).into()
}
