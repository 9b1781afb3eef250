//! What a session costs, in counts instead of times: a change that makes it cost more fails here, whatever else the machine has
//! to do.
//!
//! Counted are instructions (valgrind's callgrind) and system calls (`strace -c`), of the client and of the server, for a no-op,
//! for small messages that come back, and for a fixed transfer each way. `budgets/client.toml` and `budgets/server.toml` say what they may be. More than 5 % above
//! fails; so does 15 % below, which would leave room for a later change to cost more unnoticed. `make budgets` records anew, and
//! the difference in these files is for a review like any other.
//!
//! It is the tests' own program that is counted: the dependencies, and with them cryptography and copying, are optimised in it
//! and this crate is not. Its counts are therefore no users' costs, but grow with them, and it needs no further build: an optimised
//! one would compile every dependency once more.
//!
//! How much one read of a transfer returns is decided by who waits for whom. So client and server share one processor, and the one
//! that is counted is emulated: it is the slower by far, and its peer has always done all that it can. The system calls of a
//! transfer are those that valgrind sees. Under strace, as a no-op's, they would depend on what else the machine does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "these tests print what they have counted")]

#[path = "budgets/count.rs"]
mod count;
#[path = "budgets/record.rs"]
mod record;
mod support;
mod support_net;

use count::{BYTES, Counts, INSTRUCTIONS, Tool, client, server};
use record::{Costs, hold};

/// How often each is counted.
const RUNS: usize = 5;

/// A session to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    NoOp,
    Echo,
    Up,
    Down,
}

impl Task {
    const ALL: [Task; 4] = [Task::NoOp, Task::Echo, Task::Up, Task::Down];

    fn name(self) -> &'static str {
        match self {
            Task::NoOp => "no-op",
            Task::Echo => "echo",
            Task::Up => "up",
            Task::Down => "down",
        }
    }

    /// The command on the host. What `dd` writes comes by one call, and it may run on any processor: its pipe is full again whenever
    /// the server comes to read it. On that of the other two it had to wait for them now and then, and frames were smaller.
    fn command(self) -> String {
        match self {
            Task::NoOp => "true".to_owned(),
            Task::Echo => "cat".to_owned(),
            Task::Up => "cat >/dev/null".to_owned(),
            Task::Down => format!("exec taskset 0xffffffff dd if=/dev/zero bs={BYTES} count=1 status=none"),
        }
    }
}

#[test]
fn the_client_keeps_to_its_budgets() {
    hold("client", &costs(client));
}

#[test]
fn the_server_keeps_to_its_budgets() {
    hold("server", &costs(server));
}

/// The costs of each task, the least of several runs: what else the machine does meanwhile only adds to them. A no-op's system
/// calls are those without emulation.
fn costs(count: fn(Task, Tool) -> Counts) -> Vec<(&'static str, Costs)> {
    let of = |task| {
        let mut runs: Vec<Counts> = (0..RUNS).map(|_| count(task, Tool::Callgrind)).collect();
        let instructions = runs.iter_mut().filter_map(|counts| counts.remove(INSTRUCTIONS)).min().unwrap();
        if task == Task::NoOp {
            runs = (0..RUNS).map(|_| count(task, Tool::Strace)).collect();
        }
        Costs { instructions, system_calls: runs.into_iter().min_by_key(total).unwrap() }
    };
    Task::ALL.map(|task| (task.name(), of(task))).to_vec()
}

fn total(counts: &Counts) -> u64 {
    counts.values().sum()
}
