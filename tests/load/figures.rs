//! What a process holds and has used, from proc(5).

use std::fs;
use std::time::Duration;

use crate::support::process;

/// proc(5)'s clock ticks are a hundredth of a second on Linux, whatever the kernel's own are.
const TICK: Duration = Duration::from_millis(10);

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) memory_kib: u64,
    pub(crate) descriptors: usize,
    pub(crate) children: usize,
}

impl Figures {
    pub(crate) fn of(pid: u32) -> Figures {
        Figures {
            memory_kib: memory_kib(pid),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            children: process::children(pid).len(),
        }
    }
}

/// The memory that a process has.
pub(crate) fn memory_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is alive");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says VmRSS");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The processor time that a process has used, without its children's.
pub(crate) fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is alive");
    // Behind the name in parentheses, which may hold anything: utime and stime are the 14th and 15th field of all.
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
    TICK * fields.map(|ticks| ticks.parse::<u32>().unwrap()).sum::<u32>()
}

/// The processor time that everything on this machine has used.
pub(crate) fn machine_time() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let mut fields = stat.lines().next().unwrap().split_whitespace().skip(1).map(|ticks| ticks.parse::<u32>().unwrap());
    let all = fields.by_ref().take(8).collect::<Vec<_>>();
    // user, nice, system, then idle and iowait, then irq, softirq and steal.
    TICK * (all[0] + all[1] + all[2] + all[5] + all[6] + all[7])
}
