//! `POST /copy/{filename}` and `HEAD`: headers → an upload's order, the body → the process that writes it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::{Answer, internal, json, login};
use crate::error::{Code, Error, Result};
use crate::protocol::encoding::hex;
use crate::protocol::head;
use crate::protocol::{HEADER_MODE, HEADER_UNENCODED_DIGEST, HEADER_UPLOAD_OFFSET};
use crate::server::Shared;
use crate::server::account::Login;
use crate::server::admission::{Ending, Ticket};
use crate::server::config::Limits;
use crate::server::policy::{Action, Permit};
use crate::server::refusal::Refusal;
use crate::server::state::State;
use crate::server::store::helper::{Answer as Storing, Helper, Task};
use crate::server::store::{Encoding, Order, Sha256, Stored, taken_over};
use crate::server::trail::{Draft, Outcome, Trail};
use crate::server::upload::{Left, Turn};

/// What is said of a body whose connection ended before it.
const BROKE_OFF: &str = "the body broke off";
/// A file's permission bits where the client says none.
const DEFAULT_MODE: u32 = 0o644;

/// Answers an upload, or the question how much of one is held.
pub(super) async fn copy(
    shared: &Arc<Shared>,
    state: &State,
    permit: Permit,
    ticket: Ticket,
    draft: &mut Draft,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let Action::Copy { filename, digests } = permit.action() else {
        return Err(internal("this permit is not for a file"));
    };
    let login = login(&permit).await?;
    let order = order(&state.config.limits, &permit, &login, filename, request.headers())?;
    if !digests.is_empty() && !order.digest.is_some_and(|digest| digests.contains(&hex(&digest))) {
        let denied = Error::new(Code::CommandDenied, "this file is not one of those that the host trusts");
        return Err(denied.with_hint("ask whoever runs the endpoint to add it to the host's `trusted_agents`").into());
    }
    if request.method() == Method::HEAD {
        let answer = held(shared, &permit, &order, login, state.config.limits.resume_grace).await?;
        draft.answered(&permit);
        return Ok(answer);
    }
    let body_bytes = length(request.headers(), order.max_bytes)?;
    let trail = draft.open(&permit, ticket).await?;
    // A task of its own: what has come is dealt with even where the connection ends.
    let idle = state.config.limits.body_idle_timeout;
    let (grace, max_held) = (state.config.limits.resume_grace, state.config.limits.max_held_uploads);
    let shared = shared.clone();
    let uploading = tokio::spawn(async move {
        let login = Arc::new(login);
        let turn = shared.uploads.turn(permit.principal(), login, &order.name, order.digest.as_ref(), grace).await;
        shared.uploads.visit(&turn, grace);
        let order = Order { part: turn.part(), may_hold: turn.may_hold(max_held), ..order };
        let mut ending = trail.ticket().ending();
        let mut uploaded = upload(&turn, &order, request.into_body(), body_bytes, idle, &mut ending, &trail).await;
        let is_broken = matches!(uploaded, Err(Failed::Lost | Failed::Broken(_)));
        // What has failed to store it, or was killed over it, may have left the part.
        let is_left = matches!(&uploaded, Err(Failed::Refused(refusal)) if [Code::Storage, Code::Internal].contains(&refusal.error.code));
        if is_broken && let Some(withdrawn) = ending.is_withdrawn() {
            turn.discard().await;
            uploaded = Err(Failed::Refused(withdrawn.into()));
        } else if is_left {
            turn.discard().await;
        } else {
            turn.finish(if is_broken && order.may_hold { Left::Anew } else { Left::Nothing });
        }
        trail.end(match &uploaded {
            Ok((_, stored)) => {
                Outcome { stored: Some((stored.size, hex(&stored.sha256))), ..Outcome::because("finished") }
            }
            Err(failed) => Outcome::failed(&failed.reason()),
        });
        drop(trail);
        uploaded.map_err(Failed::into_refusal)
    });
    let (status, stored) = uploading.await.map_err(internal)??;
    Ok(json(status, &serde_json::json!({"size": stored.size, "sha256": hex(&stored.sha256)})))
}

async fn held(
    shared: &Shared,
    permit: &Permit,
    order: &Order,
    login: Login,
    grace: Duration,
) -> Result<Answer, Refusal> {
    let Some(digest) = &order.digest else {
        return Err(Refusal::bad_request(400, format!("there is no {HEADER_UNENCODED_DIGEST}")));
    };
    let mut offset = 0;
    if order.wrapper.is_empty() {
        let turn = shared.uploads.turn(permit.principal(), Arc::new(login), &order.name, Some(digest), grace).await;
        shared.uploads.visit(&turn, grace);
        let held = turn.held().await;
        let left = turn.after_look(held.as_ref().ok().copied());
        turn.finish(left);
        offset = held?;
    }
    let mut answer = Response::new(Full::new(Bytes::new()));
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer.headers_mut().insert("upload-offset", HeaderValue::from(offset));
    Ok(answer)
}

/// Why nothing was stored.
enum Failed {
    /// The connection ended before the body, and the part may be gone on with.
    Lost,
    /// The body was given up, and the part may be gone on with.
    Broken(Refusal),
    /// Anything else.
    Refused(Refusal),
}

impl Failed {
    /// What the client is told, if it is still there.
    fn into_refusal(self) -> Refusal {
        match self {
            Failed::Lost => Refusal::bad_request(400, BROKE_OFF),
            Failed::Broken(refusal) | Failed::Refused(refusal) => refusal,
        }
    }

    /// What the log says.
    fn reason(&self) -> Error {
        match self {
            Failed::Lost => Error::new(Code::NetworkLost, BROKE_OFF),
            Failed::Broken(refusal) | Failed::Refused(refusal) => refusal.error.clone(),
        }
    }
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Failed {
        Failed::Refused(refusal)
    }
}

async fn upload(
    turn: &Turn,
    order: &Order,
    body: Incoming,
    body_bytes: u64,
    idle: Duration,
    ending: &mut Ending,
    trail: &Trail,
) -> Result<(StatusCode, Stored), Failed> {
    let file_bytes = order.offset.saturating_add(body_bytes).min(order.max_bytes);
    let mut helper = Helper::start(turn.login(), &Task::Store(Box::new(order.clone())), idle, file_bytes).await?;
    let stored = tokio::select! {
        wanted = helper.answer() => match wanted {
            Ok(Storing::Send) => carry(&mut helper, turn, body, idle, ending, trail).await,
            Ok(Storing::Known(stored)) => Ok((StatusCode::OK, stored)),
            Ok(other) => Err(unexpected(&other)),
            Err(refusal) => Err(refusal.into()),
        },
        () = ending.withdrawn() => {
            helper.stop().await;
            Err(was_stopped())
        }
    };
    match stored {
        // That says nothing about the disk, and what it has written until then can be gone on with.
        Err(Failed::Refused(refusal)) if helper.is_late() && order.may_hold => {
            helper.stop().await;
            Err(Failed::Broken(Refusal::bad_request(408, refusal.error.text)))
        }
        stored => stored,
    }
}

/// Has a body stored, piece by piece.
async fn carry(
    helper: &mut Helper,
    turn: &Turn,
    mut body: Incoming,
    idle: Duration,
    ending: &mut Ending,
    trail: &Trail,
) -> Result<(StatusCode, Stored), Failed> {
    let why_broken = loop {
        let frame = tokio::select! {
            frame = tokio::time::timeout(idle, body.frame()) => frame,
            () = turn.asked_for() => {
                break Some(Failed::Broken(taken_over().into()));
            }
            () = ending.withdrawn() => break Some(was_stopped()),
        };
        match frame {
            Ok(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else { continue };
                trail.received().add(data.len());
                // Where it takes no more, its answer says why.
                if !data.is_empty() && helper.send(&data).await.is_err() {
                    break Some(Failed::Broken(internal("a helper took no more")));
                }
            }
            Ok(None) => break None,
            Ok(Some(Err(_))) => break Some(Failed::Lost),
            Err(_) => break Some(Failed::Broken(Refusal::bad_request(408, "the body did not come in time"))),
        }
    };
    match helper.finish(why_broken.is_none()).await {
        Ok(Storing::Stored(stored)) => Ok((StatusCode::CREATED, stored)),
        Ok(other) => Err(unexpected(&other)),
        // Of a body that is not whole only this side knows why.
        Err(refusal) if refusal.error.code == Code::NetworkLost => Err(why_broken.unwrap_or(Failed::Broken(refusal))),
        Err(refusal) => Err(refusal.into()),
    }
}

fn unexpected(answer: &Storing) -> Failed {
    internal(format!("unexpected answer of a helper: {answer:?}")).into()
}

fn was_stopped() -> Failed {
    Failed::Broken(Refusal::bad_request(400, "the upload was stopped"))
}

fn order(
    limits: &Limits,
    permit: &Permit,
    login: &Login,
    filename: &str,
    headers: &HeaderMap,
) -> Result<Order, Refusal> {
    let encoding = match text(headers, CONTENT_ENCODING.as_str())? {
        None | Some("identity") => Encoding::Identity,
        Some("zstd") => Encoding::Zstd,
        Some("gzip") => Encoding::Gzip,
        Some(_) => return Err(Refusal::bad_request(415, "the body's encoding is not identity, zstd or gzip")),
    };
    let mode = match text(headers, HEADER_MODE)? {
        None => DEFAULT_MODE,
        Some(mode) => head::permission_bits(mode)
            .ok_or_else(|| Refusal::bad_request(400, format!("{HEADER_MODE} is not permission bits in octal")))?,
    };
    let offset = match text(headers, HEADER_UPLOAD_OFFSET)? {
        None => 0,
        Some(offset) => head::number(offset)
            .ok_or_else(|| Refusal::bad_request(400, format!("{HEADER_UPLOAD_OFFSET} is not a number")))?,
    };
    let digest = digest(headers, HEADER_UNENCODED_DIGEST)?;
    if offset > 0 && digest.is_none() {
        return Err(Refusal::bad_request(400, format!("{HEADER_UPLOAD_OFFSET} without {HEADER_UNENCODED_DIGEST}")));
    }
    Ok(Order {
        home: login.home.clone(),
        name: filename.to_owned(),
        part: String::new(),
        may_hold: false,
        wrapper: permit.wrapper().to_vec(),
        mode,
        digest,
        body_digest: self::digest(headers, "Content-Digest")?,
        encoding,
        offset,
        max_bytes: limits.max_upload_bytes.get(),
    })
}

fn length(headers: &HeaderMap, max_bytes: u64) -> Result<u64, Refusal> {
    let length = text(headers, CONTENT_LENGTH.as_str())?.and_then(head::number::<u64>);
    match length {
        None => Err(Refusal::bad_request(400, "an upload needs a Content-Length")),
        Some(length) if length > max_bytes => Err(Refusal::file_too_large(max_bytes)),
        Some(length) => Ok(length),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Refusal> {
    let value = headers.get(name).map(|value| value.to_str().map(str::trim));
    value.transpose().map_err(|_| Refusal::bad_request(400, format!("{name} is not ASCII")))
}

/// The SHA-256 among the digests of a field (RFC 9530 §2); other algorithms are passed over.
fn digest(headers: &HeaderMap, name: &str) -> Result<Option<Sha256>, Refusal> {
    let Some(value) = text(headers, name)? else { return Ok(None) };
    let mut entries = value.split(',').map(str::trim);
    let Some(encoded) = entries.find_map(|entry| entry.strip_prefix("sha-256=")) else { return Ok(None) };
    let bytes =
        encoded.strip_prefix(':').and_then(|rest| rest.strip_suffix(':')).and_then(|rest| BASE64.decode(rest).ok());
    match bytes.and_then(|bytes| Sha256::try_from(bytes).ok()) {
        Some(digest) => Ok(Some(digest)),
        None => Err(Refusal::bad_request(400, format!("{name} is not `sha-256=:BASE64:`"))),
    }
}
