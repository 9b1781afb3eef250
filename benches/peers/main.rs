//! How tstunnel compares with OpenSSH on this machine: both ends of both on loopback, in interleaved runs, each beside the
//! other. It starts everything itself, prints tables of medians, and fails where something could not be measured.
//!
//! `TSTUNNEL_BENCH_RUNS` (5) is how many runs, `TSTUNNEL_BENCH_MIB` (1024) what a transfer carries.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "what cannot be measured is a failure")]
#![allow(clippy::print_stdout, reason = "the table is what this is for")]

mod interruptions;
mod measure;
mod memory;
mod pool;
mod servers;
mod table;

#[path = "../../tests/support/mod.rs"]
mod support;

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;

use interruptions::Interruptions;
use measure::{Direction, first_byte, transfer, until_exit};
use memory::Memory;
use pool::Pool;
use servers::{Plain, mutagen_over_openssh, mutagen_over_tstunnel};
use support::process::program;
use support::serve::TSTUNNEL;
use table::Table;

const GIB: f64 = (1u64 << 30) as f64;

/// Resets are repeated in so many runs at most: waiting for OpenSSH to come back is slow.
const INTERRUPTED_RUNS: u64 = 2;

/// The argument that makes this program the least that a client could be: a connect, and one byte.
const BARE: &str = "bare-connect";

fn main() {
    let mut arguments = std::env::args().skip(1);
    if let (Some(BARE), Some(address)) = (arguments.next().as_deref(), arguments.next()) {
        TcpStream::connect(address).unwrap().write_all(b"x").unwrap();
        return;
    }
    let runs = number("TSTUNNEL_BENCH_RUNS", 5).max(1);
    let bytes = number("TSTUNNEL_BENCH_MIB", 1024).max(1) << 20;

    let mut table = Table::default();
    let mut interruptions = Interruptions::default();
    let mut memory = Memory::default();
    let mut pool = Pool::default();
    for run in 1..=runs {
        table::progress(&format!("run {run} of {runs}: starting up"));
        starts(&mut table);
        table::progress(&format!("run {run} of {runs}: commands and transfers"));
        commands(&mut table, bytes);
        table::progress(&format!("run {run} of {runs}: Mutagen"));
        mutagen(&mut table);
        pool.measure();
        table::progress(&format!("run {run} of {runs}: resuming on and off, and memory"));
        interruptions.throughput(bytes);
        memory.measure(bytes);
        if run <= INTERRUPTED_RUNS {
            table::progress(&format!("run {run} of {runs}: resets"));
            interruptions.resets();
        }
    }
    sizes(&mut table);
    table.print(runs, bytes);
    pool.print();
    interruptions.print();
    memory.print();
}

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Err(_) => default,
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is `{text}`, which is no number")),
    }
}

/// From exec to the first byte on the wire: a ClientHello with one file of trust anchors, ssh's banner, a bare connect.
fn starts(table: &mut Table) {
    let host = Plain::start();
    let myself = std::env::current_exe().unwrap();
    for _ in 0..10 {
        let bare = first_byte(|address| {
            let mut command = std::process::Command::new(&myself);
            command.args([BARE, &address.to_string()]);
            command
        });
        let tunnel = first_byte(|address| host.tstunnel_to(&address.to_string(), "true"));
        let ssh = first_byte(|address| host.ssh_to(address.port(), "true"));
        table.add("exec to first byte sent, ms", [Some(tunnel * 1e3), Some(ssh * 1e3), None]);
        table.add("  a bare connect, ms", [Some(bare * 1e3), None, None]);
    }
}

fn commands(table: &mut Table, bytes: u64) {
    let host = Plain::start();
    for _ in 0..4 {
        let [tunnel, ssh, gcm] = host.clients("true").map(|(mut client, _)| until_exit(&mut client) * 1e3);
        table.add("`true`, a fresh connection, ms", [Some(tunnel), Some(ssh), Some(gcm)]);
    }
    let master = host.master();
    for _ in 0..4 {
        let tunnel = until_exit(&mut host.clients("true")[0].0) * 1e3;
        let ssh = until_exit(&mut host.ssh_over(&master, "true")) * 1e3;
        table.add("  beside ssh over a ControlMaster, ms", [Some(tunnel), Some(ssh), None]);
    }
    drop(master);
    for direction in [Direction::Up, Direction::Down] {
        let line = direction.line(bytes);
        let measured = host.clients(&line).map(|(mut client, server)| transfer(&mut client, server, direction, bytes));
        let per_gib = bytes as f64 / GIB;
        let name = direction.name();
        table.add(&format!("{name}, GB/s"), measured.each_ref().map(|it| Some(bytes as f64 / 1e9 / it.seconds)));
        table.add(&format!("  client, CPU s/GiB {name}"), measured.each_ref().map(|it| Some(it.client_cpu / per_gib)));
        table.add(&format!("  server, CPU s/GiB {name}"), measured.each_ref().map(|it| Some(it.server_cpu / per_gib)));
    }
}

fn mutagen(table: &mut Table) {
    let tunnel = mutagen_over_tstunnel();
    let ssh = mutagen_over_openssh();
    let (fresh, again) = ("`sync create`, agent not there, ms", "`sync create`, agent there, ms");
    table.add(fresh, [Some(tunnel.fresh * 1e3), Some(ssh.fresh * 1e3), None]);
    table.add(again, [Some(tunnel.again * 1e3), Some(ssh.again * 1e3), None]);
}

/// tstunnel is client and server in one file; OpenSSH's two share libraries that are not counted.
fn sizes(table: &mut Table) {
    let mib = |file: &Path| std::fs::metadata(file).unwrap().len() as f64 / (1 << 20) as f64;
    let ssh = ["ssh", "scp", "sshd"].map(|name| mib(&program(name))).iter().sum();
    table.add("size of the program(s), MiB", [Some(mib(Path::new(TSTUNNEL))), Some(ssh), None]);
}
