//! Mutual handshakes, by the same client against tstunnel and HAProxy → how many a second, and how many a second of the
//! server's processor time.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::Plan;
use crate::client::{Client, KeyExchange};
use crate::measure::times;
use crate::peers::{BRIDGE, Running};
use crate::report::{Goal, Measure, Report, Section, TSTUNNEL};
use crate::servers::Host;
use crate::support::port;
use crate::terminators::haproxy;
use crate::worker::Bridge;

const SECTION: Section = Section {
    title: "Mutual handshakes",
    note: "TLS 1.3 with ECDSA P-256 on both sides and nothing resumed, completed and closed, by eight clients at a time. \
           Debian's HAProxy knows no post-quantum key exchange: offered one, it takes X25519. The bridge has nothing else to do: \
           no HTTP, names, limits or log, and one thread.",
};
const HAPROXY: &str = "haproxy";
/// With each server and each key exchange.
const DURATION: Duration = Duration::from_secs(2);
/// Enough to keep every processor of the server's busy, and too few to be dropped as an attack's.
const CLIENTS: usize = 8;

pub(crate) fn measure(_: &Plan, report: &mut Report) {
    let folder = tempfile::Builder::new().prefix("ts-bench-").tempdir().unwrap();
    let host = Host::start(folder.path(), "any");
    let haproxy = haproxy(&host, None);
    let bridge = handshakes_alone(&host);
    for (exchange, name) in [(KeyExchange::X25519, "X25519"), (KeyExchange::PostQuantum, "X25519MLKEM768 offered")] {
        let per_cpu = Measure::more(&SECTION, format!("a CPU second of the server, {name}"), "1/s");
        let per_cpu = per_cpu.goal(Goal::Times(4.0, HAPROXY)).charted();
        let per_second = Measure::more(&SECTION, format!("a second, the clients on the same machine, {name}"), "1/s");
        let client = Client::of(&host, exchange);
        for (peer, address, server) in [
            (TSTUNNEL, host.address(), host.id()),
            (BRIDGE, bridge.address, bridge.id()),
            (HAPROXY, haproxy.address, haproxy.id()),
        ] {
            let done = shake(&client, address, server);
            report.add(&per_cpu, peer, done.count as f64 / done.server_cpu);
            report.add(&per_second, peer, done.count as f64 / done.seconds);
        }
    }
}

/// The bridge, with the certificates of a host and nothing behind it.
fn handshakes_alone(host: &Host) -> Running {
    let port = port::free();
    let bridge = Bridge { folder: Some(host.folder().to_owned()), kept_bytes: 0 };
    Running::start(bridge.server(port, &[]), port, None)
}

/// Handshakes that a server has completed, and what they took.
struct Done {
    count: usize,
    seconds: f64,
    server_cpu: f64,
}

fn shake(client: &Client, address: SocketAddr, server: u32) -> Done {
    let before = times(server);
    let started = Instant::now();
    let count = thread::scope(|scope| {
        let clients = [(); CLIENTS].map(|()| {
            scope.spawn(|| {
                let mut count = 0;
                while started.elapsed() < DURATION {
                    client.shake(address);
                    count += 1;
                }
                count
            })
        });
        clients.map(|client| client.join().unwrap()).into_iter().sum()
    });
    let seconds = started.elapsed().as_secs_f64();
    let after = times(server);
    // The user's and the system's.
    let server_cpu = after[0] + after[1] - before[0] - before[1];
    Done { count, seconds, server_cpu }
}
