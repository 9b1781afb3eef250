//! What a broken network costs: the time that a reset of every connection takes from whoever uses them, and the throughput
//! that being able to go on afterwards takes from everyone.
//!
//! Client and server reach each other through a relay on loopback that adds a round trip and resets on demand.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::Plan;
use crate::measure::{Direction, GIB, transfer};
use crate::report::{Goal, Measure, Report, Section, TSTUNNEL};
use crate::servers::{Host, answering};
use crate::support::mutagen::{self, Daemon};
use crate::support::port;
use crate::support::relay::Relay;
use crate::support::remote::{Remote, Setup, Transport};
use crate::support::wait::{AFTER_MUTAGENS_PAUSE, SOON};

/// Loopback as it is, a continent, and the other side of the planet with a detour.
const ROUND_TRIPS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(200)];
/// Resets of one `exec`.
const EXEC_RESETS: usize = 5;
/// Resets of one Mutagen session over tstunnel. OpenSSH gets one a session: after a second one Mutagen would first wait for 15 s.
const RESETS: usize = 3;
/// What throughput with resuming is to be of that without.
const LEAST_RATIO: f64 = 0.95;
/// How often it is looked whether something has arrived: well below what is measured.
const LOOK: Duration = Duration::from_micros(500);

const RESETS_SECTION: Section = Section {
    title: "After a reset of every connection",
    note: "The same through a relay that resets every connection, at three round trips: `exec` with `cat`, and a file and a \
           forwarded byte of the real Mutagen's. A goal is five round trips and 50 ms; a changed file misses it on long paths, \
           since Mutagen by itself takes four round trips for one. No value of `ssh`: the forwarded connection was lost.",
};

const RESUMING: Section = Section {
    title: "What resuming costs",
    note: "The same bytes, kept until they are acknowledged, and by a server that keeps nothing (`resume_grace = \"0s\"`).",
};

/// The peer that keeps nothing.
const WITHOUT: &str = "without resuming";

/// Milliseconds that a file and a forwarded byte took, with nothing wrong and after a reset.
#[derive(Default)]
struct Samples {
    calm_file: Vec<f64>,
    file: Vec<f64>,
    calm_byte: Vec<f64>,
    /// Without those of connections that were lost.
    byte: Vec<f64>,
}

/// Resets `exec`, then Mutagen over both, at every round trip.
pub(crate) fn resets(_: &Plan, report: &mut Report) {
    for round_trip in ROUND_TRIPS {
        let milliseconds = round_trip.as_millis();
        let measure = |what: &str| Measure::less(&RESETS_SECTION, format!("{what}, {milliseconds} ms away"), "ms");
        let goal = Goal::Limit(milliseconds as f64 * 5.0 + 50.0);
        let echo = measure("`exec`: a byte comes back").goal(goal);
        exec(round_trip).into_iter().for_each(|sample| report.add(&echo, TSTUNNEL, sample));
        let peers = [(TSTUNNEL, Transport::Tstunnel, RESETS), ("ssh", Transport::OpenSsh, 1)];
        for (peer, transport, resets) in peers {
            let samples = sessions(transport, round_trip, resets);
            assert!(peer != TSTUNNEL || samples.byte.len() == resets, "tstunnel lost a forwarded connection");
            for (what, samples, goal) in [
                ("Mutagen: a changed file arrives", samples.file, Some(goal)),
                ("Mutagen: the same, nothing reset", samples.calm_file, None),
                ("Mutagen: a forwarded byte comes back", samples.byte, Some(goal)),
                ("Mutagen: the same byte, nothing reset", samples.calm_byte, None),
            ] {
                let measure = goal.into_iter().fold(measure(what), Measure::goal);
                samples.into_iter().for_each(|sample| report.add(&measure, peer, sample));
            }
        }
    }
}

/// The same bytes with and without a copy kept until they are acknowledged: in halves, and each first as often, because
/// what else the machine does changes faster than the runs.
pub(crate) fn throughput(plan: &Plan, report: &mut Report) {
    let bytes = plan.bytes.div_ceil(2);
    let folder = tempfile::Builder::new().prefix("ts-bench-").tempdir().unwrap();
    let on = Host::start(&folder.path().join("on"), "any");
    let off = Host::start_with(&folder.path().join("off"), "commands = \"any\"\n", "resume_grace = \"0s\"\n");
    for direction in [Direction::Up, Direction::Down] {
        let line = direction.line(bytes);
        let name = direction.name();
        let speed = Measure::more(&RESUMING, name, "GB/s").goal(Goal::Times(LEAST_RATIO, WITHOUT));
        let cpu = Measure::less(&RESUMING, format!("{name}: both ends' processor time"), "s/GiB");
        for (peer, host) in [(TSTUNNEL, &on), (WITHOUT, &off), (WITHOUT, &off), (TSTUNNEL, &on)].repeat(4) {
            let measured = transfer(&mut host.client(&[], &line), host.id(), direction, bytes);
            report.add(&speed, peer, bytes as f64 / 1e9 / measured.seconds);
            report.add(&cpu, peer, (measured.client_cpu + measured.server_cpu) / (bytes as f64 / GIB));
        }
    }
}

/// A byte that is written right after a reset comes back from `cat`.
fn exec(round_trip: Duration) -> Vec<f64> {
    let folder = tempfile::Builder::new().prefix("ts-bench-").tempdir().unwrap();
    let host = Host::start(folder.path(), "any");
    let relay = Relay::to(host.address());
    relay.delay(round_trip);
    let mut client = host.client(&["--endpoint", &relay.address().to_string()], "cat");
    let mut session = answering(&mut client);
    let echo = |_| {
        // The path is whole again, in both directions.
        session.exchange();
        let before = relay.accepted();
        let started = Instant::now();
        relay.reset();
        session.exchange();
        let milliseconds = started.elapsed().as_secs_f64() * 1e3;
        assert!(relay.accepted() > before, "the byte came back over a connection that was to be reset");
        milliseconds
    };
    (0..EXEC_RESETS).map(echo).collect()
}

/// A session of each kind through one relay, whose users go on right after a reset.
fn sessions(transport: Transport, round_trip: Duration, resets: usize) -> Samples {
    let remote = Setup::new(transport).behind_relay().start();
    remote.relay().delay(round_trip);
    install_agent(&remote);
    let daemon = Daemon::start(&remote);
    let here = daemon.folder("files");
    fs::create_dir(&here).unwrap();
    let there = remote.home().join("files");
    let sync = daemon.create_sync(&here, &remote.url("files"));

    let source = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()));
    let destination = format!("{}:tcp:{}", remote.host(), echo());
    let forward = daemon.create_forward(&format!("tcp:{source}"), &destination);
    sync.wait_until_ready(SOON);
    forward.wait_until_ready(SOON);
    let mut connection = TcpStream::connect(source).unwrap();
    connection.set_nodelay(true).unwrap();
    connection.set_nonblocking(true).unwrap();

    let mut change = Change { here: here.join("file"), there: there.join("file"), count: 0 };
    // Once, so that everything stands and Mutagen watches this file.
    let _ = change.arrives(&mut connection, Instant::now());
    let mut samples = Samples::default();
    for _ in 0..resets {
        let (file, byte) = change.arrives(&mut connection, Instant::now());
        samples.calm_file.push(file);
        samples.calm_byte.push(byte.expect("a forwarded connection that nobody resets lasts"));

        // A cycle that is cut off between the change there and the note of it here is a conflict in the next one, and the
        // file never arrives: OpenSSH's session must be idle.
        sync.flush();
        let started = Instant::now();
        remote.relay().reset();
        let (file, byte) = change.arrives(&mut connection, started);
        samples.file.push(file);
        samples.byte.extend(byte);
    }
    samples
}

/// Spares Mutagen the copying of its agent, which is measured elsewhere.
fn install_agent(remote: &Remote) {
    let file = remote.agent_file();
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::copy(mutagen::programs().join("mutagen-agent"), file).unwrap();
}

/// A file that is the same on both sides, with a new content each time.
struct Change {
    here: PathBuf,
    there: PathBuf,
    count: u8,
}

impl Change {
    /// Changes the file and sends a byte; milliseconds since `started` until each was through, none where the connection is
    /// gone.
    fn arrives(&mut self, connection: &mut TcpStream, started: Instant) -> (f64, Option<f64>) {
        self.count += 1;
        let content = vec![self.count; 1000];
        // A connection that is gone already is noticed when it is read.
        let _ = connection.write_all(&[self.count]);
        fs::write(&self.here, &content).unwrap();
        let (mut file, mut byte) = (None, None);
        let deadline = started + AFTER_MUTAGENS_PAUSE;
        loop {
            let milliseconds = started.elapsed().as_secs_f64() * 1e3;
            if file.is_none() && is(&self.there, &content) {
                file = Some(milliseconds);
            }
            if byte.is_none() {
                let mut read = [0];
                byte = match connection.read(&mut read) {
                    Ok(1) => {
                        assert_eq!(read[0], self.count, "what comes back is what was sent");
                        Some(Some(milliseconds))
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                    _ => Some(None),
                };
            }
            if let (Some(file), Some(byte)) = (file, byte) {
                return (file, byte);
            }
            assert!(Instant::now() < deadline, "after {milliseconds:.0} ms: file {file:?}, forwarded byte {byte:?}");
            thread::sleep(LOOK);
        }
    }
}

fn is(file: &Path, content: &[u8]) -> bool {
    fs::read(file).is_ok_and(|bytes| bytes == content)
}

/// A listener that sends everything back; its thread ends with the process.
pub(crate) fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = connection.set_nodelay(true);
                let _ = std::io::copy(&mut &connection, &mut &connection);
                let _ = connection.shutdown(Shutdown::Both);
            });
        }
    });
    address
}
