//! A command → how long it took, and the processor time of both ends, from /proc.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::support::wait::{SOON, wait_until};

pub(crate) const GIB: f64 = (1u64 << 30) as f64;

/// What one write or read of this side carries: enough that this side is not what is measured.
const BLOCK_BYTES: usize = 256 << 10;
/// proc(5)'s clock ticks are a hundredth of a second on Linux, whatever the kernel's own are.
const TICKS_PER_SECOND: f64 = 100.0;

/// Which way bytes go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    Up,
    Down,
}

impl Direction {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Direction::Up => "upload",
            Direction::Down => "download",
        }
    }

    /// What the host has to run, for the shell.
    pub(crate) fn line(self, bytes: u64) -> String {
        match self {
            Direction::Up => "cat >/dev/null".to_owned(),
            Direction::Down => format!("head -c {bytes} /dev/zero"),
        }
    }
}

/// What a transfer took, from exec to exit.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) seconds: f64,
    pub(crate) client_cpu: f64,
    /// With what the server started.
    pub(crate) server_cpu: f64,
}

/// Seconds from exec until a listener has a client's first byte.
pub(crate) fn first_byte(client: impl Fn(SocketAddr) -> Command) -> f64 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut command = client(listener.local_addr().unwrap());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        if connection.read_exact(&mut [0]).is_ok() {
            let _ = sender.send((Instant::now(), connection));
        }
    });
    let started = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let received = receiver.recv_timeout(Duration::from_secs(10));
    let (first, connection) = received.unwrap_or_else(|error| panic!("{command:?} sent nothing: {error}"));
    drop(connection);
    // It has nobody to talk to any more, and its exit status means nothing.
    let _ = child.kill();
    child.wait().unwrap();
    first.duration_since(started).as_secs_f64()
}

/// Seconds from exec to the exit of a command that must succeed. It gets pipes as Mutagen has them, and nothing by them.
pub(crate) fn until_exit(command: &mut Command) -> f64 {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let started = Instant::now();
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let seconds = started.elapsed().as_secs_f64();
    assert!(output.status.success(), "{command:?}: {}", output.status);
    seconds
}

/// Sends `bytes` to a client's stdin or takes them from its stdout, through pipes as Mutagen has them.
pub(crate) fn transfer(command: &mut Command, server: u32, direction: Direction, bytes: u64) -> Transfer {
    let server_before = server_cpu(server);
    match direction {
        Direction::Up => command.stdin(Stdio::piped()).stdout(Stdio::null()),
        Direction::Down => command.stdin(Stdio::null()).stdout(Stdio::piped()),
    };
    let started = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    match direction {
        Direction::Up => send(&mut child.stdin.take().unwrap(), bytes),
        Direction::Down => {
            assert_eq!(receive(&mut child.stdout.take().unwrap()), bytes, "{command:?} brought something else")
        }
    }
    let client_cpu = cpu_at_end(&child);
    let status = child.wait().unwrap();
    let seconds = started.elapsed().as_secs_f64();
    assert!(status.success(), "{command:?}: {status}");
    Transfer { seconds, client_cpu, server_cpu: server_cpu(server) - server_before }
}

/// Writes so many bytes.
pub(crate) fn send(stdin: &mut impl Write, bytes: u64) {
    let block = vec![0; BLOCK_BYTES];
    let mut left = bytes;
    while left > 0 {
        let count = left.min(BLOCK_BYTES as u64);
        stdin.write_all(&block[..count as usize]).unwrap();
        left -= count;
    }
}

/// Reads to the end, and says how many bytes that were.
pub(crate) fn receive(stdout: &mut impl Read) -> u64 {
    let mut block = vec![0; BLOCK_BYTES];
    let mut received = 0;
    loop {
        match stdout.read(&mut block).unwrap() {
            0 => return received,
            count => received += count as u64,
        }
    }
}

/// Waits for a child's end without reaping it, so that /proc still tells what it has used.
fn cpu_at_end(child: &Child) -> f64 {
    waitid(WaitId::Pid(Pid::from_child(child)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
    cpu_of(child.id())
}

/// What a process has used so far, without its children.
pub(crate) fn cpu_of(pid: u32) -> f64 {
    let [user, system, ..] = times(pid);
    user + system
}

/// What a server has used, with every process that it has started and reaped; waits until it has reaped all.
pub(crate) fn server_cpu(server: u32) -> f64 {
    wait_until("the server's processes have ended", SOON, || !has_children(server));
    times(server).iter().sum()
}

/// Whether a process has any children that it has not reaped: proc(5) tells them by the thread that started them.
fn has_children(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    children.into_iter().any(|children| !children.trim().is_empty())
}

/// proc(5): `utime`, `stime`, `cutime` and `cstime` of /proc/PID/stat, in seconds.
pub(crate) fn times(pid: u32) -> [f64; 4] {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The second field is a name in parentheses that may hold anything. The first behind it is the third of all.
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = rest.split(' ').collect();
    [14, 15, 16, 17].map(|field| fields[field - 3].parse::<f64>().unwrap() / TICKS_PER_SECOND)
}
