//! One session, idle and then at full speed → the memory that client and server have, from /proc.

use std::time::Duration;
use std::{fs, thread};

use crate::Plan;
use crate::measure::Direction;
use crate::peers::SSH;
use crate::report::{Goal, Measure, Report, Section, TSTUNNEL};
use crate::servers::{Plain, answering};

/// Enough for a second at full speed, whatever a transfer carries elsewhere.
const MOST_BYTES: u64 = 512 << 20;
/// How long a session that counts as idle has been so.
const IDLE: Duration = Duration::from_secs(2);
const IDLE_GOAL_MIB: f64 = 6.0;
const BUSY_GOAL_MIB: f64 = 8.0;
/// How much more either end may hold at full speed than when it is idle.
const MORE_GOAL_MIB: f64 = 4.0;

const SECTION: Section = Section {
    title: "Memory of one session",
    note: "Resident memory of a session that has been idle for two seconds, and the peak at full speed. A process's share of it (PSS) counts what it has in \
           common with others once among all of them.",
};

/// Measures both directions, each with servers and clients of its own.
pub(crate) fn measure(plan: &Plan, report: &mut Report) {
    let bytes = plan.bytes.min(MOST_BYTES);
    for direction in [Direction::Up, Direction::Down] {
        let plain = Plain::start();
        let line = line(direction, bytes);
        let tunnel = plain.tunnel();
        let ssh = plain.ssh_to(plain.sshd_address(), &[], &line);
        for (peer, mut client, server) in [(TSTUNNEL, tunnel.client(&[], &line), Some(tunnel.id())), (SSH, ssh, None)] {
            let mut session = answering(&mut client);
            session.exchange();
            thread::sleep(IDLE);
            // What sshd is for a session are two processes among others: another part looks at them.
            let sides = [("client", Some(session.id())), ("server", server)];
            let processes: Vec<(&str, u32)> = sides.iter().filter_map(|(side, pid)| Some((*side, (*pid)?))).collect();
            let idle: Vec<f64> = processes.iter().map(|(_, pid)| rss_kib(*pid)).collect();
            for (side, pid) in &processes {
                report.add(&measured(format!("{side}, idle, its share (PSS)")), peer, pss_kib(*pid) / KIB_PER_MIB);
                reset_peak(*pid);
            }
            match direction {
                Direction::Up => session.send(bytes),
                Direction::Down => {
                    session.send(1);
                    session.receive(bytes);
                }
            }
            for ((side, pid), idle) in processes.iter().zip(idle) {
                let [idle, peak] = [idle, peak_kib(*pid)].map(|kib| kib / KIB_PER_MIB);
                let name = direction.name();
                report.add(&wanted(format!("{side}, idle"), *side == "client", IDLE_GOAL_MIB), peer, idle);
                report.add(&wanted(format!("{side}, peak, {name}"), *side == "client", BUSY_GOAL_MIB), peer, peak);
                report.add(&wanted(format!("{side}, more than idle, {name}"), true, MORE_GOAL_MIB), peer, peak - idle);
            }
        }
    }
}

fn measured(name: String) -> Measure {
    Measure::less(&SECTION, name, "MiB")
}

fn wanted(name: String, is_wanted: bool, limit: f64) -> Measure {
    if is_wanted { measured(name).goal(Goal::Limit(limit)) } else { measured(name) }
}

/// A byte comes back before anything goes fast, so that both ends have all that a session takes, and the shell waits for the
/// end of stdin afterwards, so that both still live.
fn line(direction: Direction, bytes: u64) -> String {
    match direction {
        Direction::Up => "head -c 1; exec cat >/dev/null".to_owned(),
        Direction::Down => format!("head -c 1; head -c 1 >/dev/null; head -c {bytes} /dev/zero; exec cat"),
    }
}

const KIB_PER_MIB: f64 = 1024.0;

/// What a process holds, in KiB.
pub(crate) fn rss_kib(pid: u32) -> f64 {
    // VmRSS of /proc/PID/status may be off by what each processor has not added up yet.
    size(pid, "smaps_rollup", "Rss")
}

/// Its share of what it holds together with others, in KiB.
pub(crate) fn pss_kib(pid: u32) -> f64 {
    size(pid, "smaps_rollup", "Pss")
}

/// The most that it has held since [`reset_peak`], in KiB.
fn peak_kib(pid: u32) -> f64 {
    size(pid, "status", "VmHWM")
}

/// proc(5): 5 sets the peak back to what there is.
fn reset_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

fn size(pid: u32, file: &str, name: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    value.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}
