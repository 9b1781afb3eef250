//! A permitted request's streams over an upgraded connection, until one side ends it: processes and targets, with frames
//! and without.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::bridge::{self, Bridge, Connection, Event, RawEnd, RawOver, Reader, Sinks, Sources, Writer};
use crate::error::Code;
use crate::protocol::frame::{self, Kind, Role};
use crate::protocol::liveness::Policy;
use crate::protocol::session::{Exit, Session};
use crate::server::admission::{End, Ending};
use crate::server::child::Pipes;
use crate::server::process::{self, Group, Ladder, Process};
use crate::server::registry::{Enrolment, Grant, Message};
use crate::server::trail::{Outcome, Trail};
use crate::stdio::Counted;

/// How long a process's output may stay silent after its end, while something that it started keeps it open.
const DRAIN_QUIET: Duration = Duration::from_secs(1);
/// After that time, what is read beyond this is not the process's own: a pipe holds no more.
const DRAIN_BYTES: u64 = 1 << 20;
/// How often the process's output may have been found to go on after its end: what still comes is not the process's own, either.
const DRAIN_LOOKS: u32 = 5;
/// How long a target that has ended its direction may still be sent something, while nothing is.
const LINGER: Duration = Duration::from_secs(5);
/// How long the last words to a client may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// A client that is gone shows within half a minute.
const LIVENESS: Policy = Policy { interval: Duration::from_secs(10), count: 3 };

/// What a session is about.
#[derive(Debug)]
pub enum Work {
    /// A process that runs.
    Process(Process, Pipes),
    /// A process that could not be started: what its stderr says, and its status.
    Unstarted(String, u32),
}

/// Carries a process's streams in frames.
pub async fn command(
    connection: Box<dyn Connection>,
    leftover: &[u8],
    work: Work,
    window_bytes: usize,
    mut link: Link,
    mut ending: Ending,
) -> Outcome {
    let session = link.begin(window_bytes);
    let mut exit = None;
    let (process, sources, sinks): (_, Sources, Sinks) = match work {
        Work::Process(process, pipes) => (
            Some(process),
            // Stderr first: what a process has said before it ended must not come after its stdout's end.
            vec![(Kind::Stderr, link.outgoing(pipes.stderr)), (Kind::Stdout, link.outgoing(pipes.stdout))],
            vec![(Kind::Stdin, link.incoming(pipes.stdin))],
        ),
        Work::Unstarted(text, status) => {
            exit = Some(Exit::Status(status));
            let stderr = std::io::Cursor::new(format!("tstunnel: {}\n", crate::error::printable(&text)));
            (None, vec![(Kind::Stderr, link.outgoing(stderr)), (Kind::Stdout, Box::new(tokio::io::empty()))], vec![])
        }
    };
    let mut bridge = Bridge::new(session, connection, leftover, sources, sinks);
    let mut process = process;
    let mut group = process.as_ref().and_then(Process::group);
    let mut ladder = Ladder::default();
    let mut drain = Drain::default();
    let mut told = false;
    // Whether the process's stdin was ended here, and whether its end is the server's doing.
    let (mut is_cut, mut is_spoilt) = (false, false);
    let mut outcome = loop {
        let running = process.as_mut().filter(|_| exit.is_none());
        tokio::select! {
            event = bridge.next() => match event {
                Event::SourcesEnded { .. } => drain.is_over = true,
                Event::Signal(name) => if let Some(group) = group { group.signal(&name) },
                Event::SinkClosed(..) | Event::Exit(_) | Event::Suspect => {}
                Event::Finished if is_spoilt => break stopped(&mut bridge).await,
                event => if let Some(outcome) = link.ended(event, &mut bridge).await { break outcome },
            },
            happening = link.next() => if let Some(outcome) = link.follow(happening, &mut bridge) { break outcome },
            end = ended(running) => {
                exit = Some(end);
                group = process.as_ref().and_then(Process::group);
            }
            () = tokio::time::sleep(DRAIN_QUIET), if exit.is_some() && !drain.is_over => drain.look(&bridge),
            end = ending.wait(), if !ladder.is_started() => {
                if matches!(end, End::Withdrawn(_)) {
                    break withdraw(&end, &mut bridge).await;
                }
                is_cut = exit.is_none() && !bridge.sinks_ended();
                bridge.close_sinks();
                ladder.start();
            }
            () = climb(&mut ladder, group), if exit.is_none() => {}
        }
        if let Some(exit) = exit
            && drain.is_over
            && !told
        {
            bridge.abandon_sources();
            // What looks like a success must be one, and a death by the server's own signal is the server's end.
            is_spoilt = if ladder.has_signalled() { Ladder::explains(exit) } else { is_cut };
            if is_spoilt {
                bridge.session().queue_nothing_more();
            } else {
                bridge.session().queue_exit(exit);
            }
            told = true;
        }
        // A client that is away cannot be waited for when the server stops.
        if ladder.is_started() && !bridge.is_attached() {
            break outcome_of(&End::ServerStops);
        }
    };
    // From here on there is nothing to resume, and stdin ends.
    drop((link, bridge));
    if let Some(process) = process {
        process::end(process, ladder, exit.is_some()).await;
    }
    outcome.exit = exit;
    outcome
}

async fn ended(process: Option<&mut Process>) -> Exit {
    match process {
        Some(process) => process.wait().await,
        None => std::future::pending().await,
    }
}

async fn climb(ladder: &mut Ladder, group: Option<Group>) {
    match group {
        Some(group) => ladder.step(group).await,
        None => std::future::pending().await,
    }
}

/// Decides when the output of a process that has ended is over, while something else keeps it open.
#[derive(Debug, Default)]
struct Drain {
    is_over: bool,
    first: Option<u64>,
    last: u64,
    looks: u32,
}

impl Drain {
    /// Looks how far the output has come, [`DRAIN_QUIET`] after the last event.
    fn look(&mut self, bridge: &Bridge) {
        let count = bridge.byte_counts().0;
        let first = *self.first.get_or_insert(count);
        // A client that takes nothing is no sign that there is nothing; one that does has got all that was there at the end.
        if bridge.is_reading() {
            self.looks += 1;
            self.is_over |= count == self.last || self.looks > DRAIN_LOOKS;
        }
        self.is_over |= count - first > DRAIN_BYTES;
        self.last = count;
    }
}

/// Carries a target's stream in frames.
pub async fn stream(
    connection: Box<dyn Connection>,
    leftover: &[u8],
    (reader, writer): (Reader, Writer),
    window_bytes: usize,
    mut link: Link,
    mut ending: Ending,
) -> Outcome {
    let session = link.begin(window_bytes);
    let sources = vec![(Kind::Stdout, link.outgoing(reader))];
    let sinks = vec![(Kind::Stdin, link.incoming(writer))];
    let mut bridge = Bridge::new(session, connection, leftover, sources, sinks);
    let mut end = None;
    let mut exit = None;
    // Whether the server stops, and whether the stream was ended for that.
    let (mut is_stopping, mut is_cut) = (false, false);
    let mut lingering = std::pin::pin!(tokio::time::sleep(LINGER));
    let mut linger = Linger::default();
    let mut outcome = loop {
        tokio::select! {
            event = bridge.next() => match event {
                Event::SourcesEnded { failed } => {
                    end = Some(Exit::Status(u32::from(failed)));
                    lingering.as_mut().reset(tokio::time::Instant::now() + LINGER);
                    linger.look(&bridge, link.generation);
                }
                Event::SinkClosed(..) | Event::Signal(_) | Event::Exit(_) | Event::Suspect => {}
                Event::Finished if is_cut => break stopped(&mut bridge).await,
                event => if let Some(outcome) = link.ended(event, &mut bridge).await { break outcome },
            },
            happening = link.next() => if let Some(outcome) = link.follow(happening, &mut bridge) { break outcome },
            () = &mut lingering, if end.is_some() && exit.is_none() => {
                if linger.look(&bridge, link.generation) {
                    bridge.close_sinks();
                }
                lingering.as_mut().reset(tokio::time::Instant::now() + LINGER);
            }
            why = ending.wait(), if !is_stopping => {
                if matches!(why, End::Withdrawn(_)) {
                    break withdraw(&why, &mut bridge).await;
                }
                is_stopping = true;
                // One that has ended by itself only waits for its client to have heard.
                if exit.is_none() {
                    bridge.abandon_sources();
                    bridge.close_sinks();
                    bridge.session().queue_end(Kind::Stderr);
                    bridge.session().queue_nothing_more();
                    is_cut = true;
                }
            }
        }
        // A client that is away cannot be waited for when the server stops.
        if is_stopping && !bridge.is_attached() {
            break outcome_of(&End::ServerStops);
        }
        if exit.is_none()
            && !is_cut
            && let Some(end) = end
            && (end == Exit::Status(1) || bridge.sinks_ended())
        {
            exit = Some(end);
            bridge.session().queue_end(Kind::Stderr);
            bridge.session().queue_exit(end);
        }
    };
    outcome.exit = exit;
    outcome
}

/// Decides when a target that has ended its direction is sent nothing more.
#[derive(Debug, Default)]
struct Linger {
    /// How much it had been sent, and over which connection, where there was one.
    last: Option<(u64, u64)>,
}

impl Linger {
    /// Looks what it has been sent, every [`LINGER`]; says whether that is all. A client that is away, or has been, cannot send anything.
    fn look(&mut self, bridge: &Bridge, generation: u64) -> bool {
        let now = bridge.is_attached().then(|| (bridge.byte_counts().1, generation));
        let last = std::mem::replace(&mut self.last, now);
        now.is_some() && now == last
    }
}

/// A framed session's way to its client: what happens when it breaks, and how it goes on.
#[derive(Debug)]
pub struct Link {
    enrolment: Option<Enrolment>,
    generation: u64,
    /// Until when an interrupted session waits for its client.
    waits_until: Option<tokio::time::Instant>,
    trail: Arc<Trail>,
}

/// What has happened to a [`Link`].
enum Happening {
    Message(Message),
    GraceOver,
}

impl Link {
    /// The way to the client of a session that can be resumed by `enrolment`.
    pub fn new(enrolment: Option<Enrolment>, trail: Arc<Trail>) -> Link {
        Link { enrolment, generation: 0, waits_until: None, trail }
    }

    /// A new session with its client.
    fn begin(&self, window_bytes: usize) -> Session {
        let mut session = Session::new(Role::Server, window_bytes, LIVENESS, Instant::now());
        session.expect_round_trip(self.trail.ticket().session().peer().round_trip);
        session
    }

    /// Counts what `reader` gives.
    fn outgoing(&self, reader: impl AsyncRead + Unpin + Send + 'static) -> Reader {
        Box::new(Counted::new(reader, self.trail.sent()))
    }

    /// Counts what `writer` takes.
    fn incoming(&self, writer: impl AsyncWrite + Unpin + Send + 'static) -> Writer {
        Box::new(Counted::new(writer, self.trail.received()))
    }

    /// Waits for a message or the end of the grace. Cancel-safe.
    async fn next(&mut self) -> Happening {
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
    fn follow(&mut self, happening: Happening, bridge: &mut Bridge) -> Option<Outcome> {
        match happening {
            Happening::GraceOver => return Some(Outcome::because("interrupted, and not resumed within the grace")),
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
    async fn ended(&mut self, event: Event, bridge: &mut Bridge) -> Option<Outcome> {
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
async fn withdraw(end: &End, bridge: &mut Bridge) -> Outcome {
    bridge.close_sinks();
    if let End::Withdrawn(error) = end {
        bridge.session().queue_error(&frame::last_word(error));
    }
    say_goodbye(bridge).await;
    outcome_of(end)
}

/// Tells the client that its session has ended with the server, and is no success; says it for the log too.
async fn stopped(bridge: &mut Bridge) -> Outcome {
    bridge.session().queue_error(&format!("{}: the server is stopping", Code::Overloaded));
    say_goodbye(bridge).await;
    outcome_of(&End::ServerStops)
}

fn outcome_of(end: &End) -> Outcome {
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

/// Carries a process's stdin and stdout without frames. Its stderr goes nowhere, but is read.
pub async fn raw_command(
    connection: Box<dyn Connection>,
    leftover: &[u8],
    mut process: Process,
    pipes: Pipes,
    link: Link,
    mut ending: Ending,
) -> Outcome {
    let Pipes { stdin, stdout, mut stderr } = pipes;
    let (stdout, stdin) = (link.outgoing(stdout), link.incoming(stdin));
    let mut connection = connection;
    let discard = tokio::spawn(async move {
        let mut rest = vec![0; 4096];
        while matches!(stderr.read(&mut rest).await, Ok(count) if count > 0) {}
    });
    let mut exit = None;
    let mut streams = Box::pin(async move {
        let result = bridge::raw(&mut *connection, leftover, stdout, stdin, RawEnd::Outgoing).await;
        (raw_outcome(result), Some(connection))
    });
    let (mut outcome, connection) = loop {
        tokio::select! {
            over = &mut streams => break over,
            end = process.wait(), if exit.is_none() => exit = Some(end),
            end = ending.wait() => break (outcome_of(&end), None),
        }
    };
    // What the server cuts does not wait for the process: its stdin ends here, and the client's connection.
    drop(streams);
    discard.abort();
    process::end(process, Ladder::default(), exit.is_some()).await;
    drop(connection);
    outcome.exit = exit;
    outcome
}

/// Carries a target's stream without frames.
pub async fn raw_stream(
    connection: Box<dyn Connection>,
    leftover: &[u8],
    (reader, writer): (Reader, Writer),
    link: Link,
    mut ending: Ending,
) -> Outcome {
    let (reader, writer) = (link.outgoing(reader), link.incoming(writer));
    let mut connection = connection;
    tokio::select! {
        result = bridge::raw(&mut *connection, leftover, reader, writer, RawEnd::Both) => raw_outcome(result),
        end = ending.wait() => outcome_of(&end),
    }
}

fn raw_outcome(result: std::io::Result<RawOver>) -> Outcome {
    match result {
        Ok(_) => Outcome::because("finished"),
        Err(error) => Outcome::because(format!("connection lost: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_kept_for_a_client_that_is_away() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _guard = runtime.enter();
        let connection = || Box::new(tokio::io::duplex(1).0);
        let session = Session::new(Role::Server, 1000, LIVENESS, Instant::now());
        let mut bridge = Bridge::new(session, connection(), &[], vec![], vec![]);
        let mut linger = Linger::default();
        assert_eq!([0, 0].map(|generation| linger.look(&bridge, generation)), [false, true]);
        bridge.detach();
        assert_eq!([0, 1].map(|generation| linger.look(&bridge, generation)), [false, false]);
        bridge.attach(connection(), &[], Duration::ZERO);
        assert_eq!([1, 1].map(|generation| linger.look(&bridge, generation)), [false, true]);
        assert_eq!(
            [2, 2].map(|generation| linger.look(&bridge, generation)),
            [false, true],
            "it was away between two looks"
        );
    }
}
