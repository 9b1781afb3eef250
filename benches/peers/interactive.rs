//! Small messages beside bytes that saturate the same session, over a narrow and long path → how long each takes to come back.
//!
//! One way, a command sends its stdin back on stderr while its stdout never ends, which is one session of tstunnel and one
//! channel of ssh's. The other way, a forward of Mutagen's carries two connections over one session. Beside both, a
//! connection of its own meets the same queue with nothing of ours in it: what the path alone makes of a message.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::Plan;
use crate::bottleneck::{Bottleneck, Path};
use crate::peers::SSH;
use crate::report::{Goal, Measure, Report, Section, TSTUNNEL};
use crate::support::mutagen::Daemon;
use crate::support::port;
use crate::support::remote::{Setup, Transport};
use crate::support::wait::SOON;

/// A message, which begins with its number.
const MESSAGE_BYTES: usize = 64;
const INTERVAL: Duration = Duration::from_millis(10);
/// Messages before anything counts, while the path fills.
const FIRST: usize = 150;
/// Messages that count: five of them are slower than the 99th percentile.
const COUNTED: usize = 500;
const SHARE: f64 = 0.99;
/// A message that takes longer never comes, nor does one whose session is lost; it counts as one that took so long.
const PATIENCE: Duration = Duration::from_secs(20);
/// stdin to stderr, and a stdout that never ends. A shell gives a command in the background no stdin unless told to.
const LINE: &str = "exec 3<&0; cat <&3 >&2 & exec cat /dev/zero";
/// Connections that carry bytes through a forward at once: Mutagen has no more than 64 KiB of one in flight.
const SINKS: usize = 24;
const BLOCK_BYTES: usize = 256 << 10;

const SECTION: Section = Section {
    title: "Small messages beside a transfer",
    note: "64 bytes every 10 ms in a session that carries all it can over a path of 50 ms and 100 Mbit/s: the 99th percentile of \
           the time until they are back. A queue of one bandwidth-delay product (BDP), once it is full, makes a message of \
           anybody's take 100 ms, one of a quarter 62.5 ms; `own connection` is a connection beside the session, through the \
           same queue. Beside a forward's upload Mutagen itself has up to 1.5 MB in flight.",
};
/// One and a half round trips.
const GOAL_MS: f64 = 75.0;
/// A connection in the same queue that has nothing but messages.
const OWN: &str = "own connection";

pub(crate) fn measure(_: &Plan, report: &mut Report) {
    for (session, products, name, goal) in [
        (Session::Command, 1.0, "beside a command's output, queue of a BDP", Some(Goal::Limit(GOAL_MS))),
        (Session::Command, 0.25, "beside a command's output, queue of a quarter", Some(Goal::Limit(GOAL_MS))),
        (Session::Forward, 1.0, "beside a forward's upload, queue of a BDP", None),
    ] {
        let time = Measure::less(&SECTION, name, "ms");
        let time = goal.into_iter().fold(time, |time, goal| time.goal(goal).charted());
        let half = Measure::less(&SECTION, format!("{name}: the median"), "ms");
        let speed = Measure::more(&SECTION, format!("{name}: what else was carried"), "Mbit/s");
        for (peer, transport) in [(TSTUNNEL, Transport::Tstunnel), (SSH, Transport::OpenSsh)] {
            let (beside, own) = beside(transport, session, products);
            let mut messages = vec![(peer, beside.echoes)];
            if peer == TSTUNNEL {
                messages.push((OWN, own));
            }
            for (peer, milliseconds) in messages {
                report.add(&time, peer, percentile(&milliseconds, SHARE));
                report.add(&half, peer, percentile(&milliseconds, 0.5));
            }
            report.add(&speed, peer, beside.bulk_mbit_per_second);
        }
    }
}

/// The path of the goal: of 50 ms and 100 Mbit/s, with so much of a queue in bandwidth-delay products.
fn path(products: f64) -> Path {
    let (bytes_per_second, round_trip) = (100e6 / 8.0, Duration::from_millis(50));
    let queue_bytes = (bytes_per_second * round_trip.as_secs_f64() * products) as usize;
    Path { bytes_per_second, round_trip, queue_bytes }
}

/// What became of the messages that count, and of the bytes meanwhile.
#[derive(Debug)]
struct Beside {
    /// Milliseconds from when each message was to be sent until it was back.
    echoes: Vec<f64>,
    bulk_mbit_per_second: f64,
}

/// Runs a client whose command is [`LINE`].
fn beside_output(command: &mut Command) -> Beside {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdin, stdout, stderr) =
        (child.stdin.take().unwrap(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let bulk = Arc::<AtomicU64>::default();
    let counted = bulk.clone();
    thread::spawn(move || count(stdout, &counted));
    let measured = exchange(stdin, stderr, &bulk);
    let _ = child.kill();
    let _ = child.wait();
    measured
}

/// Sends messages to one connection and bytes without end to others, all at `address`; `taken` counts what arrives of these.
fn beside_input(address: SocketAddr, taken: &Arc<AtomicU64>) -> Beside {
    let kind = |kind: u8| {
        let mut connection = TcpStream::connect(address).unwrap();
        connection.set_nodelay(true).unwrap();
        connection.write_all(&[kind]).unwrap();
        connection
    };
    let (echo, sinks) = (kind(ECHO), [(); SINKS].map(|()| kind(SINK)));
    for sink in &sinks {
        let mut sink = sink.try_clone().unwrap();
        thread::spawn(move || {
            let block = vec![0; BLOCK_BYTES];
            while sink.write_all(&block).is_ok() {}
        });
    }
    let measured = exchange(echo.try_clone().unwrap(), echo, taken);
    for sink in &sinks {
        let _ = sink.shutdown(Shutdown::Both);
    }
    measured
}

/// Messages over a connection of their own.
fn alone(address: SocketAddr) -> Vec<f64> {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_nodelay(true).unwrap();
    connection.write_all(&[ECHO]).unwrap();
    exchange(connection.try_clone().unwrap(), connection, &Arc::default()).echoes
}

/// What the first byte of a connection to [`destination`] asks for.
const ECHO: u8 = b'e';
const SINK: u8 = b's';

/// A server that sends everything back, or takes it and counts; its threads end with their connections, and the listener with
/// the process.
fn destination(taken: &Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let taken = taken.clone();
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let taken = taken.clone();
            thread::spawn(move || {
                let _ = connection.set_nodelay(true);
                let mut kind = [0];
                match connection.read_exact(&mut kind).map(|()| kind) {
                    Ok([ECHO]) => _ = std::io::copy(&mut &connection, &mut &connection),
                    Ok([SINK]) => count(connection, &taken),
                    _ => {}
                }
            });
        }
    });
    address
}

/// Reads to the end, and counts.
fn count(mut from: impl Read, bytes: &AtomicU64) {
    let mut block = vec![0; BLOCK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut block) {
        bytes.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// Sends a message at each interval, whether or not those before are back, and takes them as they come.
///
/// A message's time begins when it was to be sent: one that can't be written yet is waited for too.
fn exchange(
    mut to: impl Write + Send + 'static,
    mut from: impl Read + Send + 'static,
    bulk: &Arc<AtomicU64>,
) -> Beside {
    let start = Instant::now();
    let due = move |number: usize| start + INTERVAL * number as u32;
    thread::spawn(move || {
        for number in 0..FIRST + COUNTED {
            thread::sleep(due(number).saturating_duration_since(Instant::now()));
            let mut message = [b'.'; MESSAGE_BYTES];
            message[..8].copy_from_slice(&(number as u64).to_be_bytes());
            // Whoever ends early is noticed by who waits for the messages.
            if to.write_all(&message).and_then(|()| to.flush()).is_err() {
                return;
            }
        }
    });
    let (sender, receiver) = mpsc::channel();
    let bulk = bulk.clone();
    thread::spawn(move || {
        let mut message = [0; MESSAGE_BYTES];
        for expected in 0..FIRST + COUNTED {
            if from.read_exact(&mut message).is_err() {
                return;
            }
            let now = Instant::now();
            if !message.starts_with(&(expected as u64).to_be_bytes()) {
                let _ = sender.send(Err(String::from_utf8_lossy(&message).into_owned()));
                return;
            }
            let _ = sender.send(Ok((now, now - due(expected), bulk.load(Ordering::Relaxed))));
        }
    });
    let mut come: Vec<(Instant, Duration, u64)> = Vec::new();
    while come.len() < FIRST + COUNTED
        && let Ok(message) = receiver.recv_timeout(PATIENCE)
    {
        come.push(message.unwrap_or_else(|found| panic!("message {} is `{found}`", come.len())));
    }
    let counted = come.get(FIRST..).unwrap_or_default();
    let times = counted.iter().map(|(_, time, _)| *time).chain(std::iter::repeat(PATIENCE));
    Beside {
        echoes: times.take(COUNTED).map(|time| time.as_secs_f64() * 1e3).collect(),
        bulk_mbit_per_second: match counted {
            [first, .., last] => (last.2 - first.2) as f64 * 8.0 / 1e6 / (last.0 - first.0).as_secs_f64(),
            _ => 0.0,
        },
    }
}

/// The value that this share of the samples does not exceed.
fn percentile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted[rank.saturating_sub(1)]
}

/// The session that messages share with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Session {
    Command,
    Forward,
}

/// Measures one kind of session through a path of its own, with a queue of so many bandwidth-delay products: what it makes of
/// messages, and what the path alone does at the same time.
fn beside(transport: Transport, session: Session, products: f64) -> (Beside, Vec<f64>) {
    let remote = Setup::new(transport).with_any_command().start();
    let bottleneck = Bottleneck::new(path(products));
    remote.send_clients_to(bottleneck.relay_to(remote.server_address()));
    let taken = Arc::default();
    let destination = destination(&taken);
    let own = bottleneck.relay_to(destination);
    let own = || thread::spawn(move || alone(own));
    let (own, beside) = match session {
        Session::Command => (own(), beside_output(&mut remote.ssh(LINE))),
        Session::Forward => {
            let daemon = Daemon::start(&remote);
            let source = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()));
            let there = format!("{}:tcp:{destination}", remote.host());
            let forward = daemon.create_forward(&format!("tcp:{source}"), &there);
            forward.wait_until_ready(SOON);
            (own(), beside_input(source, &taken))
        }
    };
    (beside, own.join().unwrap())
}
