//! A target's stream in frames, until both directions have ended.

use std::time::{Duration, Instant};

use super::link::{Link, outcome_of, stopped, withdraw};
use crate::bridge::{Bridge, Connection, Event, Reader, Writer};
use crate::protocol::frame::Kind;
use crate::protocol::session::Exit;
use crate::server::admission::{End, Ending};
use crate::server::trail::Outcome;

/// How long a target that has ended its direction may still be sent something, while nothing is.
const LINGER: Duration = Duration::from_secs(5);
/// How often a client's answer is looked for that has been asked whether this is all.
const ANSWER_LOOK: Duration = Duration::from_millis(500);

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
                    linger.look(&mut bridge, link.generation);
                    lingering.as_mut().reset(tokio::time::Instant::now() + linger.pause());
                }
                Event::SinkClosed(..) | Event::Signal(_) | Event::Exit(_) | Event::Suspect => {}
                Event::Finished if is_cut => break stopped(&mut bridge).await,
                event => if let Some(outcome) = link.ended(event, &mut bridge).await { break outcome },
            },
            happening = link.next() => if let Some(outcome) = link.follow(happening, &mut bridge) { break outcome },
            () = &mut lingering, if end.is_some() && exit.is_none() => {
                if linger.look(&mut bridge, link.generation) {
                    bridge.close_sinks();
                }
                lingering.as_mut().reset(tokio::time::Instant::now() + linger.pause());
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

/// Decides when a target that has ended its direction is sent nothing more: nothing has come for a while, nothing waits for the target,
/// and nothing is on its way, since the client has answered a question that it was asked afterwards. A connection keeps the order.
#[derive(Debug, Default)]
struct Linger {
    /// How many frames had come, and over which connection, where there was one and the target had taken everything.
    last: Option<(u64, u64)>,
    /// When the client was asked, after nothing more had come.
    asked: Option<Instant>,
}

impl Linger {
    /// Looks what has come; says whether that is all. To be called again after [`Linger::pause`].
    fn look(&mut self, bridge: &mut Bridge, generation: u64) -> bool {
        let is_settled = bridge.is_attached() && bridge.sinks_are_idle();
        let now = is_settled.then(|| (bridge.session().received_count(), generation));
        let last = std::mem::replace(&mut self.last, now);
        if now.is_none() || now != last {
            self.asked = None;
            return false;
        }
        let asked = *self.asked.get_or_insert_with(Instant::now);
        if bridge.session().has_answered_since(asked) {
            return true;
        }
        // Another question may have been open until now.
        bridge.session().doubt(Instant::now());
        false
    }

    /// How long to wait for the next look.
    fn pause(&self) -> Duration {
        if self.asked.is_some() { ANSWER_LOOK } else { LINGER }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, DuplexStream};

    use crate::protocol::frame::{HEADER_BYTES, Role};
    use crate::protocol::session::Session;
    use crate::server::sessions::link::LIVENESS;

    /// A server's end whose target takes four bytes at once, the client's end, and what the target reads.
    fn ends() -> (Bridge, Bridge, DuplexStream) {
        let (near, far) = tokio::io::duplex(4096);
        let (target, reads) = tokio::io::duplex(4);
        let session = |role| Session::new(role, 10_000, LIVENESS, Instant::now());
        let sinks: Vec<(_, Writer)> = vec![(Kind::Stdin, Box::new(target))];
        let server = Bridge::new(session(Role::Server), Box::new(near), &[], vec![], sinks);
        (server, Bridge::new(session(Role::Client), Box::new(far), &[], vec![], vec![]), reads)
    }

    /// Has each do what it can, and then once more with what it gets by that.
    async fn run(bridges: &mut [&mut Bridge]) {
        for _ in 0..3 {
            for bridge in &mut *bridges {
                tokio::select! {
                    biased;
                    event = bridge.next() => panic!("{event:?}"),
                    () = std::future::ready(()) => {}
                }
            }
        }
    }

    fn send(client: &mut Bridge, bytes: &[u8]) {
        let memory = [&[0; HEADER_BYTES], bytes].concat();
        let length = memory.len();
        client.session().queue_data(Kind::Stdin, memory, length);
    }

    #[tokio::test]
    async fn a_target_is_sent_nothing_more_once_its_client_has_answered_after_a_silence() {
        let (mut server, mut client, _reads) = ends();
        let mut linger = Linger::default();
        assert!(!linger.look(&mut server, 0));
        assert_eq!(linger.pause(), LINGER);
        run(&mut [&mut server, &mut client]).await;
        assert!(!linger.look(&mut server, 0), "it has not been asked");
        assert_eq!(linger.pause(), ANSWER_LOOK);
        run(&mut [&mut server]).await;
        assert!(!linger.look(&mut server, 0), "it has not answered");
        run(&mut [&mut server, &mut client]).await;
        assert!(linger.look(&mut server, 0));
    }

    #[tokio::test]
    async fn a_target_that_takes_its_time_is_waited_for() {
        let (mut server, mut client, mut reads) = ends();
        let mut linger = Linger::default();
        send(&mut client, b"abcdef");
        for _ in 0..4 {
            run(&mut [&mut client, &mut server]).await;
            assert!(!linger.look(&mut server, 0) && linger.pause() == LINGER);
        }
        for part in [4, 2] {
            reads.read_exact(&mut [0; 4][..part]).await.unwrap();
            run(&mut [&mut server]).await;
        }
        let mut looks = Vec::new();
        for _ in 0..3 {
            run(&mut [&mut client, &mut server]).await;
            looks.push(linger.look(&mut server, 0));
        }
        assert_eq!(looks, [false, false, true]);
    }

    #[tokio::test]
    async fn what_is_on_its_way_to_a_target_is_waited_for() {
        let (mut server, mut client, _reads) = ends();
        let mut linger = Linger::default();
        run(&mut [&mut client, &mut server]).await;
        send(&mut client, b"ab");
        // The network carries nothing.
        for _ in 0..4 {
            run(&mut [&mut server]).await;
            assert!(!linger.look(&mut server, 0));
        }
        run(&mut [&mut client, &mut server]).await;
        assert!(!linger.look(&mut server, 0), "the answer came behind something");
        assert_eq!(linger.pause(), LINGER);
    }

    #[tokio::test]
    async fn a_target_is_kept_for_a_client_that_is_away() {
        let (mut server, mut client, _reads) = ends();
        let mut linger = Linger::default();
        assert!(!linger.look(&mut server, 0) && !linger.look(&mut server, 0));
        run(&mut [&mut server, &mut client]).await;
        server.detach();
        assert_eq!([0, 1].map(|generation| linger.look(&mut server, generation)), [false, false]);
        server.attach(Box::new(tokio::io::duplex(4096).0), &[], Duration::ZERO);
        assert_eq!([1, 1, 1].map(|generation| linger.look(&mut server, generation)), [false; 3]);
        assert!(!linger.look(&mut server, 2) && linger.asked.is_none(), "it was away between two looks");
    }
}
