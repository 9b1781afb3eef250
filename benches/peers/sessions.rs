//! Sessions that are open and idle → what a server grows by for each, from /proc.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Plan;
use crate::client::{Client, Connection, KeyExchange};
use crate::interruptions::echo;
use crate::memory::{pss_kib, rss_kib};
use crate::peers::SSH;
use crate::report::{Goal, Measure, Report, Section, TSTUNNEL};
use crate::servers::{Host, Plain, answering};
use crate::support::process;
use crate::terminators::{haproxy, stunnel};

const SECTION: Section = Section {
    title: "Memory of idle sessions",
    note: "What a server grows by from its start, divided by its sessions, once each has carried a byte both ways. Of one process the \
           resident memory; of sshd, which has two processes a session, their share of it (PSS). The processes that were asked \
           for are not counted.",
};
const GOAL_KIB: f64 = 40.0;
/// How many sessions there are when it is looked.
const COUNTS: [usize; 3] = [1, 100, 1000];
/// sshd's, whose every session takes a fifth of a second and several megabytes.
const MOST_OF_SSH: usize = 100;
/// The quicker of ssh's two usual key exchanges.
const QUICKLY: [&str; 2] = ["-o", "KexAlgorithms=curve25519-sha256"];
/// More files than any process here opens.
const FILES: u64 = 8192;

pub(crate) fn measure(_: &Plan, report: &mut Report) {
    raise_file_limit();
    let folder = tempfile::Builder::new().prefix("ts-bench-").tempdir().unwrap();
    let settings = "commands = \"any\"\ntargets = [\"tcp:127.0.0.1:*\"]\n";
    let limits = ["max_sessions", "max_sessions_per_principal", "max_sessions_per_source"]
        .map(|name| format!("{name} = 2000\n"));
    let start = |name: &str| Host::start_with(&folder.path().join(name), settings, &limits.concat());

    let host = start("commands");
    let client = Client::of(&host, KeyExchange::PostQuantum);
    let command = || client.open_session(host.address(), "/command", r#"{"command": "cat"}"#);
    commands(report, TSTUNNEL, &COUNTS, || rss_kib(host.id()), command);
    drop(host);
    ssh(report);

    let target = echo();
    let host = start("streams");
    let client = Client::of(&host, KeyExchange::PostQuantum);
    let path = format!("/stream?target=tcp:{target}");
    streams(report, TSTUNNEL, host.id(), || client.open_session(host.address(), &path, ""));
    for (peer, terminator) in [("haproxy", haproxy(&host, Some(target))), ("stunnel", stunnel(&host, target))] {
        streams(report, peer, terminator.id(), || client.open_stream(terminator.address));
    }
}

fn ssh(report: &mut Report) {
    let plain = Plain::start();
    let server = plain.sshd_id();
    let shares = || {
        let processes = process::descendants(server).into_iter().filter(|process| process.mentions("sshd"));
        pss_kib(server) + processes.map(|process| pss_kib(process.pid as u32)).sum::<f64>()
    };
    let counts = COUNTS.iter().copied().filter(|count| *count <= MOST_OF_SSH).collect::<Vec<_>>();
    commands(report, SSH, &counts, shares, || {
        let mut session = answering(&mut plain.ssh_to(plain.sshd_address(), &QUICKLY, "cat"));
        session.exchange();
        session
    });
}

fn commands<Session>(
    report: &mut Report,
    peer: &'static str,
    counts: &[usize],
    memory: impl Fn() -> f64,
    open: impl FnMut() -> Session,
) {
    for (count, kib) in counts.iter().zip(growth(counts, memory, open)) {
        let measure = Measure::less(&SECTION, format!("a command, {count} at once"), "KiB");
        let measure = if *count == 1000 { measure.goal(Goal::Limit(GOAL_KIB)).charted() } else { measure };
        report.add(&measure, peer, kib);
    }
}

fn streams(report: &mut Report, peer: &'static str, server: u32, open: impl FnMut() -> Connection) {
    for (count, kib) in COUNTS.iter().zip(growth(&COUNTS, || rss_kib(server), open)) {
        report.add(&Measure::less(&SECTION, format!("a stream to a socket, {count} at once"), "KiB"), peer, kib);
    }
}

/// KiB a session, at each of these numbers of sessions.
fn growth<Session>(counts: &[usize], memory: impl Fn() -> f64, mut open: impl FnMut() -> Session) -> Vec<f64> {
    let before = memory();
    let mut sessions = Vec::new();
    let of = |count: &usize| {
        sessions.resize_with(*count, &mut open);
        (memory() - before) / *count as f64
    };
    counts.iter().map(of).collect()
}

/// Lets this process and its children open as many files as so many connections take.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.map(|current| current.max(FILES));
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current, ..limit }) {
        panic!("this measure needs {FILES} open files at once: {error}");
    }
}
