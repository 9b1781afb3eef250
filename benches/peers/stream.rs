//! A running client whose other end does what it is told, and what carrying took both ends.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::measure::{cpu_of, server_cpu};
use crate::peers::Peer;
use crate::support::wait::find_within;
use crate::worker::{DONE, Orders, READY, give, take};

/// How long a client may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// A client, and pipes to it as Mutagen has them.
pub(crate) struct Stream {
    client: Child,
    /// None where somebody has taken it.
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: ChildStdout,
}

/// What it took to carry something.
pub(crate) struct Carried {
    /// From exec until the other end has answered.
    pub(crate) connecting: f64,
    /// From then on, until the other end has said that it has everything.
    pub(crate) carrying: f64,
    /// Seconds of both ends' processors, connecting included.
    pub(crate) client_cpu: f64,
    /// With what the server started.
    pub(crate) server_cpu: f64,
}

/// Carries so many bytes there and so many back at the same time, in writes of `block` bytes.
pub(crate) fn carry(peer: &Peer, [up, down]: [u64; 2], block: usize) -> Carried {
    let server_before = server_cpu(peer.server);
    let started = Instant::now();
    let Stream { mut client, mut stdin, mut stdout } =
        Stream::open(peer, peer.address, Orders::Carry { up, down, block });
    let connecting = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let mut stdin = stdin.take().unwrap();
    let giving = thread::spawn(move || {
        give(&mut stdin, up, block).unwrap_or_else(|error| panic!("the client takes no more: {error}"));
        stdin
    });
    take(&mut stdout, down).unwrap_or_else(|error| panic!("{}: {error}", peer.name));
    let mut last = [0];
    stdout.read_exact(&mut last).unwrap_or_else(|error| panic!("{}: {error}", peer.name));
    let carrying = started.elapsed().as_secs_f64();
    assert_eq!(last, [DONE], "{} brought something else", peer.name);
    let client_cpu = cpu_of(client.id());
    drop(giving.join().unwrap());
    end(&mut client);
    Carried { connecting, carrying, client_cpu, server_cpu: server_cpu(peer.server) - server_before }
}

impl Stream {
    /// Starts a client that goes by way of `address`, and returns when its other end has its orders.
    pub(crate) fn open(peer: &Peer, address: SocketAddr, orders: Orders) -> Stream {
        let mut command = peer.client(address);
        let client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut client = client.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (mut stdin, mut stdout) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
        stdin.write_all(orders.line().as_bytes()).unwrap();
        let mut answer = [0];
        stdout.read_exact(&mut answer).unwrap_or_else(|error| panic!("{command:?} brought no answer: {error}"));
        assert_eq!(answer, [READY], "{command:?} brought something else");
        Stream { client, stdin: Some(stdin), stdout }
    }

    /// Ends it in the middle of what it does.
    pub(crate) fn stop(self) {
        let Stream { mut client, stdin, stdout } = self;
        drop((stdin, stdout));
        let _ = kill_process(Pid::from_child(&client), Signal::TERM);
        end(&mut client);
    }
}

/// Waits for a client that has no more to do; some don't see that.
fn end(client: &mut Child) {
    if find_within(PATIENCE, || client.try_wait().unwrap()).is_none() {
        client.kill().unwrap();
        client.wait().unwrap();
    }
}
