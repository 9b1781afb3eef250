//! Forwarding: TCP connections through an agent, in both directions.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::TRANSPORT;
use crate::support::mutagen::{Daemon, Session};
use crate::support::port;
use crate::support::remote::{Remote, Setup, Transport};
use crate::support::tree::{noise, sha256};
use crate::support::wait::{SOON, wait_until};

/// What each test sends through a tunnel, each way.
const SIZE_BYTES: usize = 20_000_000;

/// Where a forward listens; its destination is on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    FromHere,
    FromThere,
}

#[test]
fn twenty_megabytes_pass_from_here_to_there_and_back() {
    bytes_pass(TRANSPORT, Direction::FromHere);
}

#[test]
fn twenty_megabytes_pass_from_there_to_here_and_back() {
    bytes_pass(TRANSPORT, Direction::FromThere);
}

#[test]
fn eight_connections_from_here_are_open_at_once() {
    connections_are_open_at_once(Direction::FromHere);
}

#[test]
fn eight_connections_from_there_are_open_at_once() {
    connections_are_open_at_once(Direction::FromThere);
}

#[test]
fn terminated_forward_no_longer_listens_and_leaves_nothing_running() {
    let remote = Setup::new(TRANSPORT).start();
    let daemon = Daemon::start(&remote);
    let (session, address) = forward(&daemon, &remote, Direction::FromHere, "tcp:127.0.0.1:1");
    drop(TcpStream::connect(address).unwrap());

    session.terminate();

    assert!(TcpStream::connect(address).is_err());
    assert!(daemon.tunnels().is_empty());
    remote.wait_until_idle();
}

#[test]
fn paused_forward_listens_again_when_resumed() {
    let remote = Setup::new(TRANSPORT).start();
    let daemon = Daemon::start(&remote);
    let echo = Echo::start(1);
    let (session, address) = forward(&daemon, &remote, Direction::FromThere, &echo.url());
    session.pause();
    remote.wait_until_idle();
    wait_until("nothing listens there", SOON, || TcpStream::connect(address).is_err());

    session.resume();
    session.wait_until_ready(SOON);
    assert_eq!(ask(address, b"hello"), b"hello");
}

/// Sends one half, ends it, and only then gets the other: the end of one direction leaves the other one open.
pub(crate) fn bytes_pass(transport: Transport, direction: Direction) {
    let remote = Setup::new(transport).start();
    let daemon = Daemon::start(&remote);
    let (question, answer) = (noise(SIZE_BYTES, 7), noise(SIZE_BYTES, 8));
    let expected = sha256(&question);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let destination = format!("tcp:{}", listener.local_addr().unwrap());
    let server: JoinHandle<Vec<u8>> = thread::spawn(move || {
        let mut connection = patient(listener.accept().unwrap().0);
        let mut received = Vec::new();
        connection.read_to_end(&mut received).unwrap();
        connection.write_all(&noise(SIZE_BYTES, 8)).unwrap();
        sha256(&received)
    });
    let (_session, address) = forward(&daemon, &remote, direction, &destination);

    let received = ask(address, &question);

    assert_eq!(server.join().unwrap(), expected);
    assert_eq!(sha256(&received), sha256(&answer));
}

fn connections_are_open_at_once(direction: Direction) {
    let remote = Setup::new(TRANSPORT).start();
    let daemon = Daemon::start(&remote);
    let echo = Echo::start(8);
    let (_session, address) = forward(&daemon, &remote, direction, &echo.url());
    thread::scope(|scope| {
        for seed in 0..8 {
            scope.spawn(move || {
                let question = noise(500_000, seed);
                assert!(ask(address, &question) == question, "connection {seed} got another one's bytes");
            });
        }
    });
}

/// Creates a forward to `destination`, and returns where it listens.
pub(crate) fn forward<'a>(
    daemon: &'a Daemon,
    remote: &Remote,
    direction: Direction,
    destination: &str,
) -> (Session<'a>, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()));
    let host = remote.host();
    let session = match direction {
        Direction::FromHere => daemon.create_forward(&format!("tcp:{address}"), &format!("{host}:{destination}")),
        Direction::FromThere => daemon.create_forward(&format!("{host}:tcp:{address}"), destination),
    };
    session.wait_until_ready(SOON);
    (session, address)
}

/// Sends everything, ends the sending, and reads to the end, both at a time.
fn ask(address: SocketAddr, question: &[u8]) -> Vec<u8> {
    let mut connection = patient(TcpStream::connect(address).unwrap());
    let mut sending = connection.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            sending.write_all(question).unwrap();
            sending.shutdown(Shutdown::Write).unwrap();
        });
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        answer
    })
}

/// Bounds what would otherwise hang a test for ever.
fn patient(connection: TcpStream) -> TcpStream {
    connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    connection.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    connection
}

/// A server that answers nobody until a number of connections are open, and then sends back what each of them says.
struct Echo(SocketAddr);

impl Echo {
    fn start(at_once: usize) -> Echo {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let barrier = Arc::new(Barrier::new(at_once));
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let barrier = Arc::clone(&barrier);
                thread::spawn(move || {
                    barrier.wait();
                    let (mut from, mut to) = (connection.try_clone().unwrap(), connection);
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        });
        Echo(address)
    }

    /// How Mutagen is told of it.
    fn url(&self) -> String {
        format!("tcp:{}", self.0)
    }
}
