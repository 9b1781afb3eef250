//! One HTTP/1.1 request of an authenticated peer → its answer, and the session or upload behind it.
//!
//! The order of checks is that of what a peer may know: principal, host, path, method, policy. Nothing is started
//! before the policy has given its permit.

mod copy;
mod decision;
mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use hyper::http::uri::{Authority, Scheme};
use hyper::{Method, Request, Response, StatusCode, Version};

use crate::error::{Code, Error};
use crate::protocol::early::MAX_EARLY_BYTES;
use crate::protocol::encoding::percent_decode;
use crate::protocol::{CommandRequest, HEADER_USER, MAX_COMMAND_BYTES, UPGRADE_FRAMED, UPGRADE_RAW};
use crate::server::Shared;
use crate::server::account::Login;
use crate::server::audit::record::Asked;
use crate::server::child;
use crate::server::handshake::Peer;
use crate::server::policy::{Permit, Request as PolicyRequest};
use crate::server::refusal::Refusal;
use crate::server::state::State;
use crate::server::trail::{Draft, Outcome};
use decision::Decision;
use upgrade::{Protocol, chosen_protocol};

pub use upgrade::Claim;

type Answer = Response<Full<Bytes>>;

/// Answers one request.
pub async fn answer(shared: Arc<Shared>, peer: Arc<Peer>, request: Request<Incoming>) -> Answer {
    let state = shared.state();
    let path = request.uri().path().to_owned();
    let route = Route::of(&state.config.upgrade_base, &path);
    let name = route.map_or("none", Route::name);
    let asked = Asked::head(name, request.method().as_str(), &path);
    let mut draft = Draft::new(&shared, &peer, Some(asked));
    let result = respond(&shared, &state, &peer, route, request, &mut draft).await;
    shared.metrics.request(name, result.as_ref().err().map(|refusal| refusal.error.code)).inc();
    result.unwrap_or_else(|refusal| {
        draft.refused(&refusal.error);
        refusal.response(route.map_or("", Route::allow))
    })
}

/// Claims the session that `token` names for a peer that another process has accepted; every check is made as for a request.
///
/// # Errors
/// The refusal.
pub async fn claim(shared: &Arc<Shared>, peer: &Arc<Peer>, token: &str, received: u64) -> Result<Claim, Refusal> {
    let state = shared.state();
    let asker = peer.asker(shared.principal(&state, peer)?);
    let mut decision = Decision::new(&state, peer, asker)?;
    match upgrade::claim(shared, &state, peer, &mut decision, token, received).await {
        Ok(claim) => Ok(claim),
        Err(refusal) => Err(decision.said(refusal).await),
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

    fn name(self) -> &'static str {
        match self {
            Route::Command => "command",
            Route::Stream => "stream",
            Route::Resume => "resume",
            Route::Host => "host",
            Route::Copy(_) => "copy",
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
    shared: &Arc<Shared>,
    state: &Arc<State>,
    peer: &Arc<Peer>,
    route: Option<Route<'_>>,
    request: Request<Incoming>,
    draft: &mut Draft,
) -> Result<Answer, Refusal> {
    let asker = peer.asker(shared.principal(state, peer)?);
    check_head(peer, &request)?;
    let mut decision = Decision::new(state, peer, asker)?;
    let served = serve(shared, state, peer, route, request, &mut decision, draft).await;
    let Err(refusal) = served else { return served };
    let said = decision.said(refusal).await;
    if let Some(host) = decision.shown() {
        draft.reached(host);
    }
    Err(said)
}

/// Decides on `asked`, and has it written down.
async fn decide(decision: &mut Decision<'_>, asked: &PolicyRequest, draft: &mut Draft) -> Result<Permit, Refusal> {
    draft.asks(asked);
    decision.on(asked).await.map_err(|refused| {
        draft.ruled(&refused.rule);
        refused.error.into()
    })
}

/// The same for a request that can be read in one way only.
async fn serve(
    shared: &Arc<Shared>,
    state: &Arc<State>,
    peer: &Arc<Peer>,
    route: Option<Route<'_>>,
    request: Request<Incoming>,
    decision: &mut Decision<'_>,
    draft: &mut Draft,
) -> Result<Answer, Refusal> {
    let limits = &state.config.limits;
    let admit = |permit: &Permit, asked| shared.admit(state, permit, peer, Arc::new(asked));
    let route = route.ok_or_else(|| {
        let error = Error::new(Code::BadRequest, "there is nothing under this path");
        Refusal { status: 404, error: error.with_hint("check the client's `upgrade_base`: it must be the server's") }
    })?;
    if !route.allows(request.method()) {
        return Err(Refusal::bad_request(405, format!("this path takes {}", route.allow())));
    }
    if shared.is_stopping() && route != Route::Resume {
        return Err(Error::new(Code::Overloaded, "the server is stopping").into());
    }
    let user = user(request.headers())?;
    match route {
        Route::Host => {
            let asked = PolicyRequest::Host { user };
            let permit = decide(decision, &asked, draft).await?;
            draft.answered(&permit);
            Ok(host(&permit))
        }
        Route::Command => {
            let protocol = chosen_protocol(request.headers())?;
            let (request, body) = read_body(request, MAX_COMMAND_BYTES, limits.body_idle_timeout).await?;
            let asked: CommandRequest = serde_json::from_slice(&body)
                .map_err(|error| Refusal::bad_request(400, format!("the body is not a command: {error}")))?;
            let asked = CommandRequest { user: one_user(user, asked.user)?, ..asked }.into();
            let permit = decide(decision, &asked, draft).await?;
            let ticket = admit(&permit, asked)?;
            let login = login(&permit).await?;
            let trail = draft.open(&permit, ticket).await?;
            upgrade::command(shared, state, protocol, permit, login, trail.clone(), request)
                .await
                .inspect_err(|refusal| trail.end(Outcome::failed(&refusal.error)))
        }
        Route::Stream => {
            let protocol = chosen_protocol(request.headers())?;
            let target = target_of(request.uri().query())?;
            let asked = PolicyRequest::Stream { target, user };
            let permit = decide(decision, &asked, draft).await?;
            let ticket = admit(&permit, asked)?;
            let trail = draft.open(&permit, ticket).await?;
            upgrade::stream(shared, state, protocol, permit, trail.clone(), request)
                .await
                .inspect_err(|refusal| trail.end(Outcome::failed(&refusal.error)))
        }
        Route::Resume => {
            if chosen_protocol(request.headers())? != Protocol::Framed {
                return Err(Refusal::bad_request(426, "only a framed session can be resumed"));
            }
            let (request, body) = read_body(request, MAX_EARLY_BYTES, limits.body_idle_timeout).await?;
            upgrade::resume(shared, state, peer, decision, request, body).await
        }
        Route::Copy(name) => {
            let filename = decoded(name)?;
            let asked = PolicyRequest::Copy { filename, user };
            let permit = decide(decision, &asked, draft).await?;
            let ticket = admit(&permit, asked)?;
            copy::copy(shared, state, permit, ticket, draft, request).await
        }
    }
}

/// What no request may be, whatever it asks for: read in two ways, or meant for another server name.
///
/// HTTP/1.0 could not be upgraded (RFC 9110 §7.8). A Transfer-Encoding would be a second way to say a length (RFC 9112
/// §6.1). There is exactly one valid Host (§3.2), and an authority in the target counts like it (§3.2.2).
fn check_head(peer: &Peer, request: &Request<Incoming>) -> Result<(), Refusal> {
    let malformed = |text: &str| Err(Refusal::bad_request(400, text));
    let (uri, headers) = (request.uri(), request.headers());
    if request.version() != Version::HTTP_11 {
        return malformed("this server speaks HTTP/1.1");
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        return malformed("a body has a Content-Length here, and no Transfer-Encoding");
    }
    let mut hosts = headers.get_all(HOST).into_iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return malformed("a request has one Host") };
    for authority in [Some(host.as_bytes()), uri.authority().map(|authority| authority.as_str().as_bytes())] {
        let Some(authority) = authority else { continue };
        let Some(authority) = plain_authority(authority) else { return malformed("the request's host is malformed") };
        let is_https = uri.scheme().is_none_or(|scheme| *scheme == Scheme::HTTPS);
        if !is_https || !authority.host().eq_ignore_ascii_case(&peer.server_name) {
            let text = format!("the request is for another host than {}", peer.server_name);
            return Err(Error::new(Code::HostUnknown, text).into());
        }
    }
    Ok(())
}

/// A host and perhaps a port, and no user (RFC 9110 §4.2.4, §7.2).
fn plain_authority(text: &[u8]) -> Option<Authority> {
    let authority = Authority::try_from(text).ok()?;
    let after = authority.as_str().strip_prefix(authority.host())?;
    let port = after.strip_prefix(':').unwrap_or(after);
    port.bytes().all(|byte| byte.is_ascii_digit()).then_some(authority)
}

/// The account that the head asks for.
fn user(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let mut values = headers.get_all(HEADER_USER).into_iter();
    let (Some(value), is_alone) = (values.next(), values.next().is_none()) else { return Ok(None) };
    match str::from_utf8(value.as_bytes()) {
        Ok(user) if is_alone => Ok(Some(user.to_owned())),
        _ => Err(Refusal::bad_request(400, format!("{HEADER_USER} is not the name of one account"))),
    }
}

/// The account that head and body ask for.
fn one_user(of_head: Option<String>, of_body: Option<String>) -> Result<Option<String>, Refusal> {
    match (of_head, of_body) {
        (Some(head), Some(body)) if head != body => {
            Err(Refusal::bad_request(400, format!("{HEADER_USER} and the body ask for two accounts")))
        }
        (head, body) => Ok(head.or(body)),
    }
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
    let body = collected.map_err(|_| Refusal::bad_request(408, "the body did not come in time"))?.map_err(|error| {
        Refusal::bad_request(if error.is::<http_body_util::LengthLimitError>() { 413 } else { 400 }, error.to_string())
    })?;
    Ok((Request::from_parts(parts, ()), body.to_bytes()))
}

/// The account that `permit` is for.
async fn login(permit: &Permit) -> Result<Login, Refusal> {
    Ok(child::in_place(|| Login::find(permit.account(), permit.home_override())).await?)
}

fn host(permit: &Permit) -> Answer {
    json(
        StatusCode::OK,
        &serde_json::json!({
            "server": concat!("tstunnel/", env!("CARGO_PKG_VERSION")),
            "host": permit.host().as_str(),
            "principal": permit.principal().0,
            "user": permit.account(),
            "features": [UPGRADE_FRAMED, UPGRADE_RAW, "resume", "copy-zstd", "echo"],
        }),
    )
}

fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(value.to_string())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn internal(error: impl std::fmt::Display) -> Refusal {
    Error::new(Code::Internal, error.to_string()).into()
}
