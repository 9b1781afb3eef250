//! The sessions that can be resumed: by whom, and where the task that carries each is reached.
//!
//! Memory is bounded: what interrupted sessions hold counts against one limit in all and a share of it for each
//! principal, and where that is not enough the one that was interrupted first gives way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::bridge::Connection;
use crate::error::{Code, Error, Result};
use crate::protocol::flight::assumed_bytes;
use crate::protocol::session::{DEFAULT_WINDOW_BYTES, Violation};
use crate::protocol::{HostId, Principal};
use crate::server::admission::Session;
use crate::server::config::{Limits, MIN_WINDOW_BYTES};
use crate::server::handshake::Peer;

/// A session's name: not secret.
type SessionId = [u8; 16];
/// What proves that a resume is the session's own client's.
type Secret = [u8; 32];

/// The part of the memory limit that one principal's interrupted sessions may hold.
const PRINCIPAL_SHARE: usize = 4;
/// The part of the free memory that a new session's window may be: sessions seldom fill theirs, and seldom at once. There
/// are few clients so far away that a larger one is worth it; theirs may be all that one principal may hold.
const WINDOW_SHARE: usize = 16;
/// Messages that wait for a session's task; a client sends one at a time.
const MESSAGES: usize = 4;

/// Sessions by id; one for a server.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Kept {
    entries: HashMap<SessionId, Entry>,
    grace: Duration,
    max_window_bytes: usize,
    memory_bytes: usize,
}

#[derive(Debug)]
struct Entry {
    secret: Secret,
    host: HostId,
    session: Arc<Session>,
    window_bytes: usize,
    messages: mpsc::Sender<Message>,
    parked: Option<Parked>,
}

/// A session that can be resumed.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where the task that carries it is reached.
    pub task: mpsc::Sender<Message>,
    /// What is known of it.
    pub session: Arc<Session>,
}

#[derive(Clone, Copy, Debug)]
struct Parked {
    since: Instant,
    bytes: usize,
}

/// What a session's task is told.
pub enum Message {
    /// A client wants to go on; it has received so many frames.
    Resume {
        /// The client's count.
        peer_received: u64,
        /// Where the grant goes, or why the count cannot be.
        reply: oneshot::Sender<std::result::Result<Grant, Violation>>,
    },
    /// The connection for a grant.
    Attach {
        /// The grant's.
        generation: u64,
        /// The connection after its upgrade.
        connection: Box<dyn Connection>,
        /// What was received behind the upgrade.
        leftover: Bytes,
        /// Who is at its other end.
        peer: Arc<Peer>,
    },
    /// Give way: the memory is needed.
    GiveWay,
}

/// The right to go on over a new connection; a later one makes it void.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    /// Tells this grant from earlier ones.
    pub generation: u64,
    /// How many frames the session has received.
    pub received: u64,
}

/// A session's place in the registry, until it is dropped.
#[derive(Debug)]
pub struct Enrolment {
    registry: Registry,
    id: SessionId,
    grace: Duration,
    /// `<id>.<secret>`, for the client.
    pub token: String,
    messages: mpsc::Receiver<Message>,
}

impl Registry {
    /// A registry within `limits`.
    pub fn new(limits: &Limits) -> Registry {
        let registry = Registry(Arc::new(Mutex::new(Kept {
            entries: HashMap::new(),
            grace: Duration::ZERO,
            max_window_bytes: 0,
            memory_bytes: 0,
        })));
        registry.follow(limits);
        registry
    }

    /// Goes by other limits from now on. What a session was promised stays.
    pub fn follow(&self, limits: &Limits) {
        let mut kept = self.lock();
        kept.grace = limits.resume_grace;
        kept.max_window_bytes = limits.resume_window_bytes.get();
        kept.memory_bytes = limits.resume_memory_bytes;
    }

    /// The window of a new session whose client is `round_trip` away: twice what a fast path of that length has in flight, so that
    /// the path is what limits it, and smaller where memory is short.
    pub fn window_bytes(&self, round_trip: Duration) -> usize {
        let kept = self.lock();
        let (least, most) = (MIN_WINDOW_BYTES.min(kept.max_window_bytes), kept.max_window_bytes);
        // Without resuming there is nothing to keep for longer than it is in flight.
        let free = if kept.can_resume() { kept.free_bytes() } else { usize::MAX };
        let near = (free / WINDOW_SHARE).min(DEFAULT_WINDOW_BYTES);
        let far = (2 * assumed_bytes(round_trip)).min(free / PRINCIPAL_SHARE);
        near.max(far).clamp(least, most)
    }

    /// How many interrupted sessions there are, and how many bytes they hold.
    pub fn parked(&self) -> (usize, usize) {
        self.lock().parked()
    }

    /// Enrols a new session on `host`, whose window has `window_bytes`; `None` where sessions cannot be resumed.
    ///
    /// # Errors
    /// `internal` where the system has no random numbers.
    pub fn enrol(&self, host: &HostId, session: &Arc<Session>, window_bytes: usize) -> Result<Option<Enrolment>> {
        let mut kept = self.lock();
        if !kept.can_resume() {
            return Ok(None);
        }
        let (mut id, mut secret) = ([0; 16], [0; 32]);
        let filled = aws_lc_rs::rand::fill(&mut id).and_then(|()| aws_lc_rs::rand::fill(&mut secret));
        filled.map_err(|_| Error::new(Code::Internal, "the system has no random numbers"))?;
        let (sender, messages) = mpsc::channel(MESSAGES);
        let token = format!("{}.{}", BASE64URL.encode(id), BASE64URL.encode(secret));
        let (host, session) = (host.clone(), session.clone());
        kept.entries.insert(id, Entry { secret, host, session, window_bytes, messages: sender, parked: None });
        Ok(Some(Enrolment { registry: self.clone(), id, grace: kept.grace, token, messages }))
    }

    /// Finds the session that `token` names, for its own principal on its own host.
    ///
    /// # Errors
    /// `session-lost`, whatever does not fit.
    pub fn find(&self, token: &str, principal: &Principal, host: &HostId) -> Result<Found> {
        let lost = || Error::new(Code::SessionLost, "there is no such session");
        let (id, secret) = token.split_once('.').ok_or_else(lost)?;
        let decode = |text: &str| BASE64URL.decode(text).map_err(|_| lost());
        let id = SessionId::try_from(decode(id)?).map_err(|_| lost())?;
        let secret = decode(secret)?;
        let kept = self.lock();
        let entry = kept.entries.get(&id).ok_or_else(lost)?;
        let is_its_own = verify_slices_are_equal(&entry.secret, &secret).is_ok();
        if is_its_own && entry.session.principal == *principal && entry.host == *host {
            Ok(Found { task: entry.messages.clone(), session: entry.session.clone() })
        } else {
            Err(lost())
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn can_resume(&self) -> bool {
        self.memory_bytes > 0 && !self.grace.is_zero()
    }

    /// What is left for windows: neither held by interrupted sessions, nor promised to those whose window is a large one.
    fn free_bytes(&self) -> usize {
        let promised = self.entries.values().map(|entry| entry.window_bytes.saturating_sub(DEFAULT_WINDOW_BYTES));
        self.memory_bytes.saturating_sub(self.parked().1).saturating_sub(promised.sum())
    }

    fn parked(&self) -> (usize, usize) {
        let parked = self.entries.values().filter_map(|entry| entry.parked);
        parked.fold((0, 0), |(sessions, bytes), parked| (sessions + 1, bytes + parked.bytes))
    }
}

impl Enrolment {
    /// The next message. Cancel-safe.
    pub async fn message(&mut self) -> Message {
        // The registry's sender lives as long as this enrolment.
        self.messages.recv().await.unwrap_or(Message::GiveWay)
    }

    /// How long the session is kept while it is interrupted.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// The session is interrupted, and holds `bytes`.
    pub fn park(&self, bytes: usize) {
        let mut kept = self.registry.lock();
        let Kept { entries, memory_bytes, .. } = &mut *kept;
        let Some(entry) = entries.get_mut(&self.id) else { return };
        entry.parked = Some(Parked { since: Instant::now(), bytes });
        let principal = entry.session.principal.clone();
        make_room(entries, *memory_bytes / PRINCIPAL_SHARE, |entry| entry.session.principal == principal);
        make_room(entries, *memory_bytes, |_| true);
    }

    /// The session has a connection again.
    pub fn unpark(&self) {
        if let Some(entry) = self.registry.lock().entries.get_mut(&self.id) {
            entry.parked = None;
        }
    }
}

/// Lets the sessions that were interrupted first give way, until the others of `scope` fit into `limit`. One that holds nothing
/// would end for nothing.
fn make_room(entries: &mut HashMap<SessionId, Entry>, limit: usize, scope: impl Fn(&Entry) -> bool) {
    loop {
        let parked =
            || entries.iter().filter(|(_, entry)| scope(entry)).filter_map(|(id, entry)| Some((*id, entry.parked?)));
        let bytes: usize = parked().map(|(_, parked)| parked.bytes).sum();
        let oldest =
            parked().filter(|(_, parked)| parked.bytes > 0).min_by_key(|(_, parked)| parked.since).map(|(id, _)| id);
        let Some(entry) = oldest.filter(|_| bytes > limit).and_then(|id| entries.get_mut(&id)) else { return };
        tracing::warn!(principal = %entry.session.principal, host = %entry.host, "interrupted session gives way: memory is short");
        entry.parked = None;
        let _ = entry.messages.try_send(Message::GiveWay);
    }
}

impl Drop for Enrolment {
    fn drop(&mut self) {
        self.registry.lock().entries.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroUsize;

    fn registry(memory_bytes: usize) -> Registry {
        let resume_window_bytes = NonZeroUsize::new(1 << 20).unwrap();
        Registry::new(&Limits { resume_memory_bytes: memory_bytes, resume_window_bytes, ..Limits::default() })
    }

    fn principal(name: &str) -> Principal {
        Principal(name.to_owned())
    }

    fn enrol(registry: &Registry, name: &str) -> Option<Enrolment> {
        enrol_with(registry, name, 1 << 20)
    }

    fn enrol_with(registry: &Registry, name: &str, window_bytes: usize) -> Option<Enrolment> {
        registry.enrol(&host(), &Arc::new(Session::for_tests(name)), window_bytes).unwrap()
    }

    fn host() -> HostId {
        HostId::parse("host1").unwrap()
    }

    #[test]
    fn only_its_own_client_finds_a_session() {
        let registry = registry(64 << 20);
        let ann = principal("ann");
        let enrolment = enrol(&registry, "ann").unwrap();
        let token = enrolment.token.clone();
        assert!(registry.find(&token, &ann, &host()).is_ok());
        let mut wrong = token.clone();
        let last = if token.ends_with('A') { "E" } else { "A" };
        wrong.replace_range(token.len() - 1.., last);
        for bad in [
            "",
            ".",
            "a.b",
            &token[..token.len() - 4],
            &wrong,
            &format!("{token}AAAA"),
            token.split('.').next().unwrap(),
        ] {
            assert_eq!(registry.find(bad, &ann, &host()).unwrap_err().code, Code::SessionLost, "{bad}");
        }
        assert!(registry.find(&token, &principal("bob"), &host()).is_err());
        assert!(registry.find(&token, &ann, &HostId::parse("host2").unwrap()).is_err());
        drop(enrolment);
        assert!(registry.find(&token, &ann, &host()).is_err());
    }

    #[test]
    fn the_session_that_was_interrupted_first_gives_way() {
        let registry = registry(4000);
        let mut sessions: Vec<Enrolment> = (0..3).map(|_| enrol(&registry, "ann").unwrap()).collect();
        sessions[0].park(500);
        sessions[1].park(400);
        assert!(sessions[0].messages.try_recv().is_err());
        sessions[2].park(300);
        assert!(matches!(sessions[0].messages.try_recv(), Ok(Message::GiveWay)));
        assert!(sessions[1].messages.try_recv().is_err() && sessions[2].messages.try_recv().is_err());
    }

    #[test]
    fn a_session_that_holds_nothing_does_not_give_way() {
        let registry = registry(4000);
        let mut sessions: Vec<Enrolment> = (0..3).map(|_| enrol(&registry, "ann").unwrap()).collect();
        sessions[0].park(0);
        sessions[1].park(900);
        sessions[2].park(500);
        assert!(matches!(sessions[1].messages.try_recv(), Ok(Message::GiveWay)));
        assert!(sessions[0].messages.try_recv().is_err() && sessions[2].messages.try_recv().is_err());
    }

    #[test]
    fn windows_shrink_where_memory_is_short_and_nothing_is_resumed_without_any() {
        let full = registry(64 << 20);
        assert_eq!(full.window_bytes(Duration::ZERO), 1 << 20);
        let enrolment = enrol(&full, "ann").unwrap();
        enrolment.park(15 << 20);
        let other = enrol(&full, "bob").unwrap();
        other.park(15 << 20);
        assert!(full.window_bytes(Duration::ZERO) >= MIN_WINDOW_BYTES);
        enrolment.unpark();
        let none = registry(0);
        assert!(enrol(&none, "ann").is_none());
    }

    #[test]
    fn a_far_client_gets_a_larger_window_as_long_as_there_is_memory() {
        let registry = Registry::new(&Limits { resume_memory_bytes: 1 << 30, ..Limits::default() });
        let (near, far) = (Duration::from_millis(1), Duration::from_millis(100));
        let mut promised = Vec::new();
        assert_eq!(registry.window_bytes(near), DEFAULT_WINDOW_BYTES);
        assert_eq!(registry.window_bytes(far), 180_000_000);
        for _ in 0..100 {
            let window_bytes = registry.window_bytes(far);
            promised.push(enrol_with(&registry, "ann", window_bytes).unwrap());
        }
        assert!(registry.window_bytes(far) <= DEFAULT_WINDOW_BYTES);
        let large = promised.iter().map(|enrolment| registry.lock().entries[&enrolment.id].window_bytes);
        assert!(large.map(|bytes| bytes.saturating_sub(DEFAULT_WINDOW_BYTES)).sum::<usize>() <= 1 << 30);
        drop(promised);
        assert_eq!(registry.window_bytes(far), 180_000_000);
    }
}
