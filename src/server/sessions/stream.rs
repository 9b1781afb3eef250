//! A target's stream in frames, until both directions have ended.

use std::time::Duration;

use super::link::{Link, outcome_of, stopped, withdraw};
use crate::bridge::{Bridge, Connection, Event, Reader, Writer};
use crate::protocol::frame::Kind;
use crate::protocol::session::Exit;
use crate::server::admission::{End, Ending};
use crate::server::trail::Outcome;

/// How long a target that has ended its direction may still be sent something, while nothing is.
const LINGER: Duration = Duration::from_secs(5);

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    use crate::protocol::frame::Role;
    use crate::protocol::session::Session;
    use crate::server::sessions::link::LIVENESS;

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
