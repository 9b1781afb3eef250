//! A command that does nothing, on loopback and over long paths, and the round trips that it takes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User};

use crate::Plan;
use crate::interruptions::echo;
use crate::measure::until_exit;
use crate::peers::{BRIDGE, SSH, TCP, bridge};
use crate::report::{Goal, Measure, Report, Section, TSTUNNEL};
use crate::servers::Plain;
use crate::support::relay::Relay;

const SECTION: Section = Section {
    title: "A command that does nothing",
    note: "`true`, from exec to exit, on loopback and through a relay that adds a round trip. Round trips are what that relay \
           added, divided by the time that a byte takes there and back beside it, less the one of TCP's own where there is a fresh \
           connection. A ControlMaster keeps a process and a connection for each host. The bridge has the account's shell do it, and \
           makes the same handshake: as short as a connection of its own can be.",
};
const CONTROL_MASTER: &str = "ssh over a ControlMaster";
const LINE: &str = "true";

/// A round trip, and how often it is measured in a round.
const PATHS: [(u64, usize); 2] = [(50, 2), (200, 1)];
const ON_LOOPBACK: usize = 4;

pub(crate) fn measure(plan: &Plan, report: &mut Report) {
    let host = Plain::start();
    let loopback = Measure::less(&SECTION, "loopback", "ms").charted();
    let loopback = loopback.goal(Goal::Times(0.05, SSH)).goal(Goal::Times(0.5, CONTROL_MASTER));
    let mut shortest = [f64::MAX; 4];
    let master = host.master(host.sshd_address());
    let account = User::from_uid(Uid::effective()).unwrap().unwrap();
    let bridge = bridge(&[account.shell.to_str().unwrap().to_owned(), "-c".to_owned(), LINE.to_owned()]);
    for index in 0..ON_LOOPBACK {
        let mut commands = [
            (0, host.tstunnel_to(host.tunnel().address(), LINE)),
            (1, host.ssh_to(host.sshd_address(), &[], LINE)),
            (2, host.ssh_over(&master, LINE)),
            (3, bridge.client(bridge.address)),
        ];
        // Whoever comes behind ssh finds the machine as that has left it: an ssh finds its own program there, and tstunnel does not.
        if index % 2 == 1 {
            commands.reverse();
        }
        let mut seconds = [0.0; 4];
        for (peer, command) in &mut commands {
            seconds[*peer] = until_exit(command);
        }
        for ((peer, seconds), shortest) in names().zip(seconds).zip(&mut shortest) {
            report.add(&loopback, peer, seconds * 1e3);
            *shortest = shortest.min(seconds);
        }
    }
    drop(master);
    for (milliseconds, count) in PATHS.into_iter().take(if plan.quick { 1 } else { PATHS.len() }) {
        let round_trip = Duration::from_millis(milliseconds);
        let [to_tunnel, to_sshd] = [host.tunnel().address(), host.sshd_address()].map(|address| {
            let relay = Relay::to(address);
            relay.delay(round_trip);
            relay
        });
        let master = host.master(to_sshd.address());
        let to_echo = Relay::to(echo());
        to_echo.delay(round_trip);
        let mut line = TcpStream::connect(to_echo.address()).unwrap();
        line.set_nodelay(true).unwrap();
        // The first byte waits for the connection too.
        there_and_back(&mut line);
        let byte = Measure::less(&SECTION, format!("{milliseconds} ms away: a byte there and back"), "ms");
        let time = Measure::less(&SECTION, format!("{milliseconds} ms away"), "ms");
        let trips = Measure::less(&SECTION, format!("{milliseconds} ms away: round trips after TCP's own"), "");
        let trips = trips.goal(Goal::Limit(2.2));
        for _ in 0..count {
            let seconds = [
                until_exit(&mut host.tstunnel_to(to_tunnel.address(), LINE)),
                until_exit(&mut host.ssh_to(to_sshd.address(), &[], LINE)),
                until_exit(&mut host.ssh_over(&master, LINE)),
            ];
            let round_trip = there_and_back(&mut line);
            report.add(&byte, TCP, round_trip * 1e3);
            for (((peer, seconds), shortest), tcp) in names().zip(seconds).zip(shortest).zip([1.0, 1.0, 0.0]) {
                report.add(&time, peer, seconds * 1e3);
                report.add(&trips, peer, (seconds - shortest) / round_trip - tcp);
            }
        }
    }
}

/// Seconds that a byte takes to an echo and back.
fn there_and_back(line: &mut TcpStream) -> f64 {
    let started = Instant::now();
    line.write_all(b"x").unwrap();
    line.read_exact(&mut [0]).unwrap();
    started.elapsed().as_secs_f64()
}

fn names() -> impl Iterator<Item = &'static str> {
    [TSTUNNEL, SSH, CONTROL_MASTER, BRIDGE].into_iter()
}
