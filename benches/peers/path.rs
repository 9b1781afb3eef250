//! What everybody carries over a long path, once it is filled, and how soon it is: through a relay that adds a round trip.

use std::io::Read;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::Plan;
use crate::peers::{BRIDGE, Peer, SSH, keeping_bridge, path_peers};
use crate::report::{Goal, Measure, Report, Section};
use crate::stream::Stream;
use crate::support::relay::Relay;
use crate::worker::{BLOCK_BYTES, Orders, give};

const SECTION: Section = Section {
    title: "Over a long path",
    note: "One stream through a relay that adds a round trip and loses nothing: what arrives in a second after the first eight \
           round trips, and how long the first 16 MiB take once the stream stands. Upwards, that is known half a round \
           trip later. The relay's buffers are larger than a real path's would be: what limits plain TCP here is the machine. \
           The bridge that keeps leaves what it has sent in memory, 200 MiB of it, as whoever could send it again must.",
};

/// A continent, and the other side of the planet with a detour.
const ROUND_TRIPS: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(200)];
/// What fills a path is left out: so many round trips.
const FILLING: u32 = 8;
/// How long it is watched from then on.
const WATCHED: Duration = Duration::from_secs(1);
/// What must have arrived at first.
const FIRST_BYTES: u64 = 16 << 20;

/// Both directions at each round trip; the longer one, and what keeping costs, in full runs alone.
pub(crate) fn measure(plan: &Plan, report: &mut Report) {
    let mut peers = path_peers();
    let round_trips = if plan.quick { &ROUND_TRIPS[..1] } else { &ROUND_TRIPS };
    if !plan.quick {
        peers.push(keeping_bridge());
    }
    for round_trip in round_trips {
        for (direction, orders) in [("up", Orders::Take), ("down", Orders::Give)] {
            let name = format!("{direction}, {} ms", round_trip.as_millis());
            let speed = Measure::more(&SECTION, &name, "MB/s").charted();
            let speed = speed.goal(Goal::Times(10.0, SSH)).goal(Goal::Times(0.95, BRIDGE));
            let first = Measure::less(&SECTION, format!("{name}: the first 16 MiB"), "ms");
            for peer in &peers {
                let relay = Relay::to(peer.address);
                relay.delay(*round_trip);
                let arrivals = watch(peer, relay.address(), orders, *round_trip * FILLING);
                report.add(&speed, peer.name, arrivals.rate() / 1e6);
                report.add(&first, peer.name, arrivals.first().as_secs_f64() * 1e3);
            }
        }
    }
}

/// When how many bytes had arrived.
struct Arrivals {
    /// Since when a rate is taken.
    filled: Duration,
    seen: Vec<(Duration, u64)>,
}

impl Arrivals {
    /// Bytes a second, once the path is filled.
    fn rate(&self) -> f64 {
        let from = self.seen.iter().find(|(time, _)| *time >= self.filled).unwrap();
        let to = self.seen.last().unwrap();
        (to.1 - from.1) as f64 / (to.0 - from.0).as_secs_f64()
    }

    fn first(&self) -> Duration {
        self.seen.iter().find(|(_, count)| *count >= FIRST_BYTES).unwrap().0
    }
}

/// Watches a stream that is driven as hard as it can be.
fn watch(peer: &Peer, address: SocketAddr, orders: Orders, filled: Duration) -> Arrivals {
    let mut stream = Stream::open(peer, address, orders);
    let started = Instant::now();
    let mut seen = Vec::new();
    let mut note = |count: u64| {
        let time = started.elapsed();
        seen.push((time, count));
        time < filled + WATCHED || count < FIRST_BYTES
    };
    match orders {
        Orders::Take => {
            let mut stdin = stream.stdin.take().unwrap();
            // It ends with the client.
            thread::spawn(move || give(&mut stdin, u64::MAX, BLOCK_BYTES));
            let mut count = [0; 8];
            while {
                stream.stdout.read_exact(&mut count).unwrap_or_else(|error| panic!("{}: {error}", peer.name));
                note(u64::from_be_bytes(count))
            } {}
        }
        _ => {
            let mut block = vec![0; BLOCK_BYTES];
            let mut count = 0;
            while {
                count += stream.stdout.read(&mut block).unwrap() as u64;
                note(count)
            } {}
        }
    }
    stream.stop();
    Arrivals { filled, seen }
}
