//! What a session costs, in counts instead of times: a change that makes it cost more fails here, whatever else the machine has
//! to do.
//!
//! Counted are instructions (valgrind's callgrind) and system calls (`strace -c`), of the client and of the server, for a no-op
//! and for a fixed transfer each way. `budgets/client.toml` and `budgets/server.toml` say what they may be. More than 5 % above
//! fails; so does 15 % below, which would leave room for a later change to cost more unnoticed. `make budgets` records anew, and
//! the difference in these files is for a review like any other.
//!
//! It is the tests' own program that is counted: the dependencies, and with them cryptography and copying, are optimised in it
//! and this crate is not. Its counts are therefore no users' costs, but grow with them, and it needs no further build: an optimised
//! one would compile every dependency once more. For 8 MiB each way an optimised client has 3 % fewer instructions and 3 % more.
//!
//! What decides how much one read returns is who waits for whom, so that is decided here: client and server share one processor,
//! and the one that is counted is the slower by far, by emulation or by a delay before each call on its socket. So its peer has
//! always done all that it can.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "budgets/count.rs"]
mod count;
#[path = "budgets/record.rs"]
mod record;
mod support;
mod support_net;

use count::{Counts, Tool, client, server};
use record::{Costs, hold, is_recording};

/// A session to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    NoOp,
    Up,
    Down,
}

impl Task {
    const ALL: [Task; 3] = [Task::NoOp, Task::Up, Task::Down];

    fn name(self) -> &'static str {
        match self {
            Task::NoOp => "no-op",
            Task::Up => "up",
            Task::Down => "down",
        }
    }

    /// The command on the host. What `dd` writes comes by one call, so its pipe is full whenever the server reads it.
    fn command(self, bytes: usize) -> String {
        match self {
            Task::NoOp => "true".to_owned(),
            Task::Up => "cat >/dev/null".to_owned(),
            Task::Down => format!("dd if=/dev/zero bs={bytes} count=1 status=none"),
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

/// The costs of each task.
fn costs(count: fn(Task, Tool) -> Counts) -> Vec<(&'static str, Costs)> {
    let of = |task| Costs {
        instructions: median(Tool::Callgrind, |tool| count(task, tool))["instructions"],
        system_calls: median(Tool::Strace, |tool| count(task, tool)),
    };
    Task::ALL.map(|task| (task.name(), of(task))).to_vec()
}

/// The counts whose sum is the one in the middle of several; of more where they are recorded, since later ones are held to them.
fn median(tool: Tool, count: impl Fn(Tool) -> Counts) -> Counts {
    let number = match (tool, is_recording()) {
        (Tool::Callgrind, _) => 3,
        (Tool::Strace, false) => 5,
        (Tool::Strace, true) => 9,
    };
    let mut runs: Vec<Counts> = (0..number).map(|_| count(tool)).collect();
    runs.sort_by_key(|counts| counts.values().sum::<u64>());
    runs.swap_remove(number / 2)
}
