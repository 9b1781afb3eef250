//! What is seen of a request: a [`Draft`] until it is decided, then a [`Trail`] until what it opened has ended. Every decision
//! has its line in the audit log, and whatever was allowed to begin has a line of its end too, however that comes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::error::{Code, Error, Result};
use crate::protocol::HostId;
use crate::protocol::session::Exit;
use crate::server::Shared;
use crate::server::admission::Ticket;
use crate::server::audit::Audit;
use crate::server::audit::record::{Asked, Event, Record, Text, Verdict};
use crate::server::handshake::Peer;
use crate::server::metrics::{Held, Metrics};
use crate::server::policy::{Action, Permit, Request};
use crate::stdio::Tally;

/// A request before its decision.
#[derive(Debug)]
pub struct Draft {
    audit: Audit,
    metrics: Arc<Metrics>,
    record: Record,
    is_decided: bool,
}

impl Draft {
    /// A request of which no more is known than who sent it and, where it has one, its head.
    pub fn new(shared: &Shared, peer: &Peer, request: Option<Asked>) -> Draft {
        let record = Record { request, ..Record::of(Event::Refused, peer) };
        Draft { audit: shared.audit.clone(), metrics: shared.metrics.clone(), record, is_decided: false }
    }

    /// The request is understood.
    pub fn asks(&mut self, request: &Request) {
        self.record.request = Some(Asked::request(request));
    }

    /// It is for this host, which the peer may know of.
    pub fn reached(&mut self, host: &HostId) {
        self.record.host = Some(Text::new(host.as_str()));
    }

    /// The request is refused by `rule`.
    pub fn ruled(&mut self, rule: &str) {
        self.record.rule = Some(Text::new(rule));
    }

    /// The request is answered as `permit` allows, and nothing begins.
    pub fn answered(&mut self, permit: &Permit) {
        self.record.permitted(permit);
        self.decide(Event::Query, Verdict::Allowed);
        self.audit.push(self.record.clone());
    }

    /// The request is refused. What was decided before is not decided again: its end says what went wrong.
    pub fn refused(&mut self, error: &Error) {
        if !self.is_decided {
            self.decide(Event::Refused, Verdict::Refused);
            self.record.failed(error);
            self.audit.push(self.record.clone());
        }
    }

    /// What `permit` allows is about to begin.
    ///
    /// # Errors
    /// `overloaded` where that cannot be recorded, and must be: then it must not begin.
    pub async fn open(&mut self, permit: &Permit, ticket: Ticket) -> Result<Arc<Trail>> {
        self.record.permitted(permit);
        self.record.session = Some(self.audit.session_name());
        let kind = Kind::of(permit);
        self.decide(if kind == Kind::Upload { Event::Upload } else { Event::Session }, Verdict::Allowed);
        let trail = Arc::new(Trail::new(self, kind, permit.host(), ticket));
        match self.audit.insist(self.record.clone()).await {
            Ok(()) => Ok(trail),
            Err(error) => {
                trail.end(Outcome::failed(&error));
                Err(error)
            }
        }
    }

    fn decide(&mut self, event: Event, verdict: Verdict) {
        self.is_decided = true;
        self.record = self.record.again(event);
        self.record.verdict = Some(verdict);
    }
}

/// What begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Command,
    Stream,
    Upload,
}

impl Kind {
    fn of(permit: &Permit) -> Kind {
        match permit.action() {
            Action::Command { .. } => Kind::Command,
            Action::Copy { .. } => Kind::Upload,
            Action::Stream { .. } | Action::Host => Kind::Stream,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Command => "command",
            Kind::Stream => "stream",
            Kind::Upload => "upload",
        }
    }
}

/// What was allowed to begin, until it has ended. Its last owner's end is the session's.
#[derive(Debug)]
pub struct Trail {
    audit: Audit,
    metrics: Arc<Metrics>,
    kind: Kind,
    ticket: Ticket,
    _alive: Held,
    /// What its lines have in common.
    record: Record,
    since: Instant,
    sent: Arc<Tally>,
    received: Arc<Tally>,
    resumes: AtomicU32,
    outcome: Mutex<Option<Outcome>>,
}

/// How a session or an upload ended.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The process's end, where it was seen.
    pub exit: Option<Exit>,
    /// What kind of failure it was, where it was one of the server's.
    pub code: Option<Code>,
    /// What ended it.
    pub reason: String,
    /// Bytes and digest of the file that was stored.
    pub stored: Option<(u64, String)>,
}

impl Outcome {
    /// An end that is no failure of the server's.
    pub fn because(reason: impl Into<String>) -> Outcome {
        Outcome { reason: reason.into(), ..Outcome::default() }
    }

    /// A failure.
    pub fn failed(error: &Error) -> Outcome {
        Outcome { code: Some(error.code), ..Outcome::because(&error.text) }
    }
}

impl Trail {
    fn new(draft: &Draft, kind: Kind, host: &HostId, ticket: Ticket) -> Trail {
        let Draft { audit, metrics, record, .. } = draft;
        let (alive, started) = metrics.session(host, kind.name());
        started.inc();
        let (sent, received) = match kind {
            Kind::Upload => (Tally::default(), Tally::default()),
            Kind::Command | Kind::Stream => (Tally::within(&metrics.bytes_out), Tally::within(&metrics.bytes_in)),
        };
        Trail {
            audit: audit.clone(),
            metrics: metrics.clone(),
            kind,
            ticket,
            _alive: Held::new(alive),
            record: Record { request: None, verdict: None, rule: None, ..record.clone() },
            since: Instant::now(),
            sent: Arc::new(sent),
            received: Arc::new(received),
            resumes: AtomicU32::new(0),
            outcome: Mutex::new(None),
        }
    }

    /// The right to it.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Counts bytes to the client.
    pub fn sent(&self) -> &Arc<Tally> {
        &self.sent
    }

    /// Counts bytes from the client.
    pub fn received(&self) -> &Arc<Tally> {
        &self.received
    }

    /// It goes on over another connection, from `peer`.
    pub fn resumed(&self, peer: &Peer) {
        self.metrics.resumes.inc();
        let resumes = 1 + self.resumes.fetch_add(1, Ordering::Relaxed);
        let Record { session, host, account, .. } = self.record.clone();
        self.audit.push(Record { session, host, account, resumes: Some(resumes), ..Record::of(Event::Resume, peer) });
    }

    /// It has to end because others need its memory.
    pub fn gave_way(&self) {
        self.metrics.limit("resume-memory").inc();
    }

    /// Says how it ends; the first word counts.
    pub fn end(&self, outcome: Outcome) {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(outcome);
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        let outcome = self.outcome.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Outcome { exit, code, reason, stored } =
            outcome.unwrap_or_else(|| Outcome::because("the client was gone before its answer"));
        let (status, signal) = match exit {
            Some(Exit::Status(status)) => (Some(status), None),
            Some(Exit::Signal(signal)) => (None, Some(signal)),
            None => (None, None),
        };
        if self.kind == Kind::Upload {
            self.metrics.upload(if stored.is_some() { "stored" } else { "failed" }).inc();
            self.metrics.uploaded_bytes.inc_by(self.received.bytes());
        }
        let lasted = self.since.elapsed();
        self.metrics.session_seconds.observe(lasted.as_secs_f64());
        let (size, sha256) = stored.unzip();
        self.audit.push(Record {
            code: code.map(Code::name),
            status,
            signal,
            bytes_in: Some(self.received.bytes()),
            bytes_out: Some(self.sent.bytes()),
            duration_ms: u64::try_from(lasted.as_millis()).ok(),
            resumes: Some(self.resumes.load(Ordering::Relaxed)),
            size,
            sha256,
            reason: Some(Text::new(&reason)),
            ..self.record.again(Event::End)
        });
    }
}
