//! One session, idle and then at full speed → the memory that client and server have, from /proc.

use std::fs;

use crate::measure::Direction;
use crate::servers::{Host, answering};
use crate::table::{Goals, median};

const MIB: f64 = (1u64 << 20) as f64;
/// Enough for a second at full speed, whatever a transfer carries elsewhere.
const MOST_BYTES: u64 = 512 << 20;
const GOAL_MIB: f64 = 4.0;

/// Idle and peak, in MiB: of the client and of the server, up and down.
#[derive(Default)]
pub(crate) struct Memory([[[Vec<f64>; 2]; 2]; 2]);

impl Memory {
    /// Measures both directions, each with a server and a client of its own.
    pub(crate) fn measure(&mut self, bytes: u64) {
        let bytes = bytes.min(MOST_BYTES);
        for (direction, samples) in [Direction::Up, Direction::Down].into_iter().zip(&mut self.0) {
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
            for (samples, (idle, peak)) in samples.iter_mut().zip(idle.into_iter().zip(peak)) {
                samples[0].push(idle);
                samples[1].push(peak);
            }
        }
    }

    /// Prints what was measured beside what it should be.
    pub(crate) fn print(self) {
        let mut table = Goals::new("Memory of one session, MiB", ["idle", "busiest", "more"]);
        for (direction, samples) in [Direction::Up, Direction::Down].into_iter().zip(self.0) {
            for (side, [idle, peak]) in ["client", "server"].into_iter().zip(samples) {
                let differences = peak.iter().zip(&idle).map(|(peak, idle)| peak - idle).collect();
                let values = [idle, peak, differences].map(|samples| median(samples).unwrap());
                let met = values[2] < GOAL_MIB;
                let cells = values.map(|value| format!("{value:.1}"));
                table.row(&format!("{side}, {}", direction.name()), cells, Some((format!("< {GOAL_MIB}"), met)));
            }
        }
        table.print();
    }
}

/// A size of /proc/PID/status.
fn mib(pid: u32, name: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    value.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() * 1024.0 / MIB
}
