//! A session's way to its client: what happens when it breaks, how it goes on, and the last words.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::bridge::{Bridge, Event, Reader, Writer};
use crate::error::Code;
use crate::protocol::frame::{self, Role};
use crate::protocol::liveness::Policy;
use crate::protocol::session::Session;
use crate::server::admission::End;
use crate::server::registry::{Enrolment, Grant, Message};
use crate::server::trail::{Outcome, Trail};
use crate::stdio::Counted;

/// How long the last words to a client may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// A client that is gone shows within half a minute.
pub(super) const LIVENESS: Policy = Policy { interval: Duration::from_secs(10), count: 3 };

/// A framed session's way to its client: what happens when it breaks, and how it goes on.
#[derive(Debug)]
pub struct Link {
    enrolment: Option<Enrolment>,
    pub(super) generation: u64,
    /// Until when an interrupted session waits for its client.
    waits_until: Option<tokio::time::Instant>,
    trail: Arc<Trail>,
}

/// What has happened to a [`Link`].
pub(super) enum Happening {
    Message(Message),
    GraceOver,
}

impl Link {
    /// The way to the client of a session that can be resumed by `enrolment`.
    pub fn new(enrolment: Option<Enrolment>, trail: Arc<Trail>) -> Link {
        Link { enrolment, generation: 0, waits_until: None, trail }
    }

    /// A new session with its client.
    pub(super) fn begin(&self, window_bytes: usize) -> Session {
        let mut session = Session::new(Role::Server, window_bytes, LIVENESS, Instant::now());
        session.expect_round_trip(self.trail.ticket().session().peer().round_trip);
        session
    }

    /// Counts what `reader` gives.
    pub(super) fn outgoing(&self, reader: impl AsyncRead + Unpin + Send + 'static) -> Reader {
        Box::new(Counted::new(reader, self.trail.sent()))
    }

    /// Counts what `writer` takes.
    pub(super) fn incoming(&self, writer: impl AsyncWrite + Unpin + Send + 'static) -> Writer {
        Box::new(Counted::new(writer, self.trail.received()))
    }

    /// Waits for a message or the end of the grace. Cancel-safe.
    pub(super) async fn next(&mut self) -> Happening {
        let Some(enrolment) = &mut self.enrolment else { return std::future::pending().await };
        match self.waits_until {
            None => Happening::Message(enrolment.message().await),
            Some(end) => tokio::select! {
                message = enrolment.message() => Happening::Message(message),
                () = tokio::time::sleep_until(end) => Happening::GraceOver,
            },
        }
    }

    /// Does what a message asks; says why the session is over, where it is.
    pub(super) fn follow(&mut self, happening: Happening, bridge: &mut Bridge) -> Option<Outcome> {
        match happening {
            Happening::GraceOver => return Some(Outcome::because("interrupted, and not resumed within the grace")),
            // It was told so while its client came back: what it held leaves with the connection.
            Happening::Message(Message::GiveWay) if bridge.is_attached() => {}
            Happening::Message(Message::GiveWay) => {
                self.trail.gave_way();
                return Some(Outcome::because("interrupted, and gave way"));
            }
            Happening::Message(Message::Resume { peer_received, reply }) => {
                let resumed = bridge.session().resume(peer_received, Instant::now());
                let _ = reply.send(resumed.map(|()| {
                    // The old connection may still seem alive: nothing that it brings counts any more.
                    bridge.detach();
                    self.generation += 1;
                    self.park(bridge);
                    Grant { generation: self.generation, received: bridge.session().received_count() }
                }));
            }
            Happening::Message(Message::Attach { generation, connection, leftover, peer }) => {
                if generation == self.generation {
                    bridge.attach(connection, &leftover, peer.round_trip);
                    self.waits_until = None;
                    self.trail.resumed(&peer);
                    if let Some(enrolment) = &self.enrolment {
                        enrolment.unpark();
                    }
                }
            }
        }
        None
    }

    fn park(&mut self, bridge: &mut Bridge) {
        if let Some(enrolment) = &self.enrolment {
            self.waits_until.get_or_insert(tokio::time::Instant::now() + enrolment.grace());
            enrolment.park(bridge.session().memory_bytes());
        }
    }

    /// What is due when the peer, or the connection to it, has ended; says why, where the session is over.
    pub(super) async fn ended(&mut self, event: Event, bridge: &mut Bridge) -> Option<Outcome> {
        let reason = match event {
            Event::Lost(_) | Event::Silent if self.enrolment.is_some() => {
                tracing::debug!(?event, "session interrupted");
                self.park(bridge);
                return None;
            }
            Event::Lost(None) => return Some(Outcome::because("connection closed")),
            Event::Lost(Some(error)) => return Some(Outcome::because(format!("connection lost: {error}"))),
            Event::Silent => return Some(Outcome::because("nothing was heard from the client")),
            Event::Finished => "finished".to_owned(),
            Event::Close => "closed by the client".to_owned(),
            Event::Violation(text) => format!("protocol error: {text}"),
            Event::PeerError(text) => format!("the client gave up: {text}"),
            other => format!("{other:?}"),
        };
        say_goodbye(bridge).await;
        Some(Outcome::because(reason))
    }
}

/// Tells the client that what allowed its session does so no more; says it for the log too. Nothing that the client still
/// sends reaches anything.
pub(super) async fn withdraw(end: &End, bridge: &mut Bridge) -> Outcome {
    bridge.close_sinks();
    if let End::Withdrawn(error) = end {
        bridge.session().queue_error(&frame::last_word(error));
    }
    say_goodbye(bridge).await;
    outcome_of(end)
}

/// Tells the client that its session has ended with the server, and is no success; says it for the log too.
pub(super) async fn stopped(bridge: &mut Bridge) -> Outcome {
    bridge.session().queue_error(&format!("{}: the server is stopping", Code::Overloaded));
    say_goodbye(bridge).await;
    outcome_of(&End::ServerStops)
}

/// Why a session is over that the server ends.
pub(super) fn outcome_of(end: &End) -> Outcome {
    match end {
        End::ServerStops => Outcome::because("the server stops"),
        End::Withdrawn(error) => {
            Outcome { code: Some(error.code), ..Outcome::because(format!("withdrawn: {}", error.text)) }
        }
    }
}

async fn say_goodbye(bridge: &mut Bridge) {
    let goodbye = async {
        if bridge.shutdown().await.is_ok() {
            bridge.drain().await;
        }
    };
    let _ = tokio::time::timeout(GOODBYE, goodbye).await;
}
