//! One session, idle and then at full speed → the memory that client and server have, from /proc.

use std::fs;

use crate::Plan;
use crate::measure::Direction;
use crate::report::{Goal, Measure, Report, Section, TSTUNNEL};
use crate::servers::{Host, answering};

const MIB: f64 = (1u64 << 20) as f64;
/// Enough for a second at full speed, whatever a transfer carries elsewhere.
const MOST_BYTES: u64 = 512 << 20;
const GOAL_MIB: f64 = 4.0;

const SECTION: Section = Section {
    title: "Memory of one session",
    note: "What client and server hold while a session is idle, and how much more at most at full speed.",
};

/// Measures both directions, each with a server and a client of its own.
pub(crate) fn measure(plan: &Plan, report: &mut Report) {
    let bytes = plan.bytes.min(MOST_BYTES);
    for direction in [Direction::Up, Direction::Down] {
        let folder = tempfile::Builder::new().prefix("ts-bench-").tempdir().unwrap();
        let host = Host::start(folder.path(), "any");
        // A byte comes back before anything goes fast, so that both ends have all that a session takes, and the shell
        // waits for the end of stdin afterwards, so that both still live.
        let line = match direction {
            Direction::Up => "head -c 1; exec cat >/dev/null".to_owned(),
            Direction::Down => format!("head -c 1; head -c 1 >/dev/null; head -c {bytes} /dev/zero; exec cat"),
        };
        let mut session = answering(&mut host.client(&[], &line));
        session.exchange();
        let processes = [session.id(), host.id()];
        let idle = processes.map(|pid| mib(pid, "VmRSS"));
        // proc(5): 5 sets the peak back to what there is.
        for pid in processes {
            fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        }
        match direction {
            Direction::Up => session.send(bytes),
            Direction::Down => {
                session.send(1);
                session.receive(bytes);
            }
        }
        let peak = processes.map(|pid| mib(pid, "VmHWM"));
        for (side, (idle, peak)) in ["client", "server"].into_iter().zip(idle.into_iter().zip(peak)) {
            let name = format!("{side}, {}", direction.name());
            report.add(&Measure::less(&SECTION, format!("{name}: idle"), "MiB"), TSTUNNEL, idle);
            let more = Measure::less(&SECTION, format!("{name}: more at full speed"), "MiB");
            report.add(&more.goal(Goal::Limit(GOAL_MIB)), TSTUNNEL, peak - idle);
        }
    }
}

/// A size of /proc/PID/status.
fn mib(pid: u32, name: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    value.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() * 1024.0 / MIB
}
