//! A process's streams in frames, until it has ended and its client knows.

use std::time::Duration;

use super::link::{Link, outcome_of, stopped, withdraw};
use crate::bridge::{Bridge, Connection, Event, Sinks, Sources};
use crate::protocol::frame::Kind;
use crate::protocol::session::Exit;
use crate::server::admission::{End, Ending};
use crate::server::child::Pipes;
use crate::server::process::{self, Group, Ladder, Process};
use crate::server::trail::Outcome;

/// How long a process's output may stay silent after its end, while something that it started keeps it open.
const DRAIN_QUIET: Duration = Duration::from_secs(1);
/// After that time, what is read beyond this is not the process's own: a pipe holds no more.
const DRAIN_BYTES: u64 = 1 << 20;
/// How often the process's output may have been found to go on after its end: what still comes is not the process's own, either.
const DRAIN_LOOKS: u32 = 5;

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
    let group = process.as_ref().and_then(Process::group);
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
                // What the process has left behind is nobody's to signal.
                Event::Signal(name) => if let (None, Some(group)) = (exit, group) { group.signal(&name) },
                Event::SinkClosed(..) | Event::Exit(_) | Event::Suspect => {}
                Event::Finished if is_spoilt => break stopped(&mut bridge).await,
                event => if let Some(outcome) = link.ended(event, &mut bridge).await { break outcome },
            },
            happening = link.next() => if let Some(outcome) = link.follow(happening, &mut bridge) { break outcome },
            end = ended(running) => exit = Some(end),
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
