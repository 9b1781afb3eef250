//! The sessions that are alive: how many there may be, in all, for one principal and from one source, and how one is told to
//! end; and the requests that are none yet. Running out costs new sessions, never live ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::error::{Code, Error, Result};
use crate::protocol::Principal;
use crate::server::config::Limits;
use crate::server::handshake::Peer;
use crate::server::policy::{Authorized, Request};
use crate::server::source::Source;

/// The part of the requests that one principal may have.
const PRINCIPAL_SHARE: usize = 2;

/// The sessions that are alive; one for a server.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    live: Arc<Mutex<Live>>,
    work: Count,
    connections: Count,
}

/// How many of something have not ended.
#[derive(Clone, Debug, Default)]
struct Count(watch::Sender<usize>);

/// One of what is counted, until it is dropped.
#[derive(Debug)]
pub struct Counted(watch::Sender<usize>);

#[derive(Debug, Default)]
struct Live {
    next_id: u64,
    sessions: HashMap<u64, Arc<Session>>,
    /// Whose the requests are that have not become a session.
    requests: HashMap<u64, Option<Principal>>,
}

/// What is known of a session while it lives.
#[derive(Debug)]
pub struct Session {
    /// Whose it is.
    pub principal: Principal,
    /// What was asked for.
    pub asked: Arc<Request>,
    peer: Mutex<Arc<Peer>>,
    authorized: Mutex<Option<Arc<Authorized>>>,
    end: watch::Sender<Option<End>>,
}

/// Why a session has to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The server stops: there is time for the ladder.
    ServerStops,
    /// What allowed the session does so no more: it ends at once, and its client is told this.
    Withdrawn(Error),
}

/// Why there is no place for another session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The server has as many as it takes.
    Server,
    /// The principal has its share.
    Principal,
    /// The source has.
    Source,
}

/// The right to one session, until it is dropped.
#[derive(Debug)]
pub struct Ticket {
    admission: Admission,
    id: u64,
    session: Arc<Session>,
    _work: Counted,
}

/// The right to one request that is no session, until it is dropped.
#[derive(Debug)]
pub struct Place {
    admission: Admission,
    id: u64,
}

/// Tells when a session has to end.
#[derive(Clone, Debug)]
pub struct Ending(watch::Receiver<Option<End>>);

impl Admission {
    /// Admits one session of `principal`.
    ///
    /// # Errors
    /// Which limit was reached.
    pub fn session(
        &self,
        limits: &Limits,
        principal: &Principal,
        peer: &Arc<Peer>,
        asked: Arc<Request>,
    ) -> Result<Ticket, Full> {
        let mut live = self.lock();
        if live.sessions.len() >= limits.max_sessions.get() {
            return Err(Full::Server);
        }
        let count = live.sessions.values().filter(|session| session.principal == *principal).count();
        if count >= limits.max_sessions_per_principal.get() {
            return Err(Full::Principal);
        }
        let source = Source::of(peer.address.ip());
        let count = live.sessions.values().filter(|session| session.is_from(source)).count();
        if count >= limits.max_sessions_per_source.get() {
            return Err(Full::Source);
        }
        let peer = Mutex::new(peer.clone());
        let (principal, authorized, end) = (principal.clone(), Mutex::default(), watch::Sender::new(None));
        let session = Arc::new(Session { principal, asked, peer, authorized, end });
        let id = live.next_id();
        live.sessions.insert(id, session.clone());
        Ok(Ticket { admission: self.clone(), id, session, _work: self.working() })
    }

    /// Admits one request of `peer`.
    ///
    /// # Errors
    /// `overloaded` where there are as many as the server takes, `too-many` where the principal has its share.
    pub fn request(&self, limits: &Limits, peer: &Peer) -> Result<Place> {
        let mut live = self.lock();
        let most = limits.max_requests.get();
        if live.requests.len() >= most {
            return Err(Error::new(Code::Overloaded, "the server has as many requests as it takes"));
        }
        let principal = peer.principal.as_ref().ok().cloned();
        let count = live.requests.values().filter(|other| **other == principal).count();
        if count >= (most / PRINCIPAL_SHARE).max(1) {
            return Err(Error::new(Code::TooMany, "this principal has as many requests as it may have"));
        }
        let id = live.next_id();
        live.requests.insert(id, principal);
        Ok(Place { admission: self.clone(), id })
    }

    /// Whether a session is alive that was asked for from `source`.
    pub fn has_session_from(&self, source: Source) -> bool {
        self.lock().sessions.values().any(|session| session.is_from(source))
    }

    /// The sessions that are alive now.
    pub fn live(&self) -> Vec<Arc<Session>> {
        self.lock().sessions.values().cloned().collect()
    }

    /// Something that must end before the server may, beside the sessions.
    pub fn working(&self) -> Counted {
        self.work.one()
    }

    /// A connection, from its accept to its end or to the session that it becomes.
    pub fn connected(&self) -> Counted {
        self.connections.one()
    }

    /// Waits until there is no session, and nothing else that must end. Cancel-safe.
    pub async fn quiet(&self) {
        self.work.none().await;
    }

    /// Waits until there is no connection either. Cancel-safe.
    pub async fn empty(&self) {
        // A connection may become a session: while both counts are looked at, none does.
        let (mut work, mut connections) = (self.work.0.subscribe(), self.connections.0.subscribe());
        while *work.borrow_and_update() + *connections.borrow_and_update() > 0 {
            let changed = tokio::select! {
                changed = work.changed() => changed,
                changed = connections.changed() => changed,
            };
            if changed.is_err() {
                break;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Full {
    /// The limit's name in the metrics.
    pub fn limit(self) -> &'static str {
        match self {
            Full::Server => "sessions",
            Full::Principal => "principal-sessions",
            Full::Source => "source-sessions",
        }
    }

    /// What the client is told.
    pub fn error(self) -> Error {
        let too_many = |text, limit| {
            let hint = format!("end sessions that are not needed, or ask whoever runs the endpoint to raise `{limit}`");
            Error::new(Code::TooMany, text).with_hint(hint)
        };
        match self {
            Full::Server => Error::new(Code::Overloaded, "the server has as many sessions as it takes"),
            Full::Principal => {
                too_many("this principal has as many sessions as it may have", "max_sessions_per_principal")
            }
            Full::Source => {
                too_many("there are as many sessions from this address as there may be", "max_sessions_per_source")
            }
        }
    }
}

impl Count {
    fn one(&self) -> Counted {
        self.0.send_modify(|count| *count += 1);
        Counted(self.0.clone())
    }

    async fn none(&self) {
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Live {
    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl Session {
    /// Who asked for it, from where and by which certificate: the client that resumed it last, where one has.
    pub fn peer(&self) -> Arc<Peer> {
        self.peer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[cfg(test)]
    pub(crate) fn for_tests(name: &str) -> Session {
        let peer = Mutex::new(Arc::new(Peer::for_tests(name)));
        let (principal, asked) = (Principal(name.to_owned()), Arc::new(Request::Host { user: None }));
        Session { principal, asked, peer, authorized: Mutex::default(), end: watch::Sender::new(None) }
    }

    /// The same principal goes on from elsewhere, or by another certificate.
    pub fn moved_to(&self, peer: &Arc<Peer>) {
        *self.peer.lock().unwrap_or_else(PoisonError::into_inner) = peer.clone();
    }

    /// What the `authorize` command granted, where the session rests on that.
    pub fn authorized(&self) -> Option<Arc<Authorized>> {
        self.authorized.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The session rests on this from now on.
    pub fn rests_on(&self, authorized: Option<&Arc<Authorized>>) {
        *self.authorized.lock().unwrap_or_else(PoisonError::into_inner) = authorized.cloned();
    }

    /// Tells the session to end, unless it has been told before.
    pub fn end(&self, why: End) {
        self.end.send_if_modified(|end| {
            let is_first = end.is_none();
            end.get_or_insert(why);
            is_first
        });
    }

    fn is_from(&self, source: Source) -> bool {
        Source::of(self.peer().address.ip()) == source
    }
}

impl Ticket {
    /// What is known of the session.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Tells when the session has to end.
    pub fn ending(&self) -> Ending {
        Ending(self.session.end.subscribe())
    }
}

impl Ending {
    /// Waits until the session has to end. Cancel-safe.
    pub async fn wait(&mut self) -> End {
        match self.0.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(End::ServerStops),
            // The session is over.
            Err(_) => End::ServerStops,
        }
    }

    /// Waits until what allowed the session does so no more. Cancel-safe.
    pub async fn withdrawn(&mut self) {
        if self.0.wait_for(|end| matches!(end, Some(End::Withdrawn(_)))).await.is_err() {
            std::future::pending().await
        }
    }

    /// Why the session is not allowed any more, where that is so.
    pub fn is_withdrawn(&self) -> Option<Error> {
        match &*self.0.borrow() {
            Some(End::Withdrawn(why)) => Some(why.clone()),
            _ => None,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission.lock().sessions.remove(&self.id);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.lock().requests.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroUsize;

    fn session(admission: &Admission, name: &str) -> Result<Ticket, Full> {
        let at_most = |count| NonZeroUsize::new(count).unwrap();
        let limits = Limits { max_sessions: at_most(3), max_sessions_per_principal: at_most(2), ..Limits::default() };
        let principal = Principal(name.to_owned());
        let peer = Arc::new(Peer::for_tests(name));
        admission.session(&limits, &principal, &peer, Arc::new(Request::Host { user: None }))
    }

    #[tokio::test]
    async fn limits_hold_and_a_dropped_ticket_gives_its_place_back() {
        let admission = Admission::default();
        let first = session(&admission, "ann").unwrap();
        let second = session(&admission, "ann").unwrap();
        assert_eq!(session(&admission, "ann").unwrap_err(), Full::Principal);
        let third = session(&admission, "bob").unwrap();
        assert_eq!(session(&admission, "bob").unwrap_err(), Full::Server);
        drop(first);
        let fourth = session(&admission, "bob").unwrap();
        drop((second, third));
        let is_quiet = admission.clone();
        let waiting = tokio::spawn(async move { is_quiet.quiet().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(fourth);
        waiting.await.unwrap();
        assert!(admission.lock().sessions.is_empty());
    }

    #[tokio::test]
    async fn connection_that_becomes_a_session_is_never_nothing() {
        let admission = Admission::default();
        let connection = admission.connected();
        let waiting = admission.clone();
        let waiting = tokio::spawn(async move { waiting.empty().await });
        tokio::task::yield_now().await;
        let session = session(&admission, "ann").unwrap();
        drop(connection);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(session);
        waiting.await.unwrap();
    }

    #[test]
    fn one_source_has_its_share_whoever_asks() {
        let admission = Admission::default();
        let limits = Limits { max_sessions_per_source: NonZeroUsize::new(2).unwrap(), ..Limits::default() };
        let mut count = 0;
        let mut ask = |address: &str| {
            count += 1;
            let name = format!("principal-{count}");
            let peer = Peer { address: format!("{address}:1").parse().unwrap(), ..Peer::for_tests(&name) };
            admission.session(&limits, &Principal(name), &Arc::new(peer), Arc::new(Request::Host { user: None }))
        };
        let first = ask("[2001:db8:0:1::1]").unwrap();
        let _second = ask("[2001:db8:0:1::2]").unwrap();
        assert_eq!(ask("[2001:db8:0:1::3]").unwrap_err(), Full::Source);
        let _other = ask("[2001:db8:0:2::3]").unwrap();
        drop(first);
        let _again = ask("[2001:db8:0:1::3]").unwrap();
        let is_there = |address: &str| admission.has_session_from(Source::of(address.parse().unwrap()));
        assert!(is_there("2001:db8:0:1::99") && !is_there("2001:db8:0:3::1"));
    }

    #[test]
    fn requests_are_bounded_and_one_principal_has_half_of_them() {
        let admission = Admission::default();
        let limits = Limits { max_requests: NonZeroUsize::new(4).unwrap(), ..Limits::default() };
        let ask = |name: &str| admission.request(&limits, &Peer::for_tests(name));
        let (first, _second) = (ask("ann").unwrap(), ask("ann").unwrap());
        assert_eq!(ask("ann").unwrap_err().code, Code::TooMany);
        let _others = (ask("bob").unwrap(), ask("cat").unwrap());
        assert_eq!(ask("dan").unwrap_err().code, Code::Overloaded);
        drop(first);
        ask("ann").unwrap();
    }

    #[tokio::test]
    async fn only_the_session_that_is_meant_is_told_to_end_and_only_once() {
        let admission = Admission::default();
        let (ann, bob) = (session(&admission, "ann").unwrap(), session(&admission, "bob").unwrap());
        let withdrawn = End::Withdrawn(Error::new(Code::Unauthorized, "revoked"));
        let live = admission.live();
        assert_eq!(live.len(), 2);
        for session in live.iter().filter(|session| session.principal.0 == "ann") {
            session.end(withdrawn.clone());
            session.end(End::ServerStops);
        }
        assert_eq!(ann.ending().wait().await, withdrawn);
        assert!(bob.ending().0.borrow().is_none());
    }
}
