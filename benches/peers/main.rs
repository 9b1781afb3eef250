//! How tstunnel compares with OpenSSH and with whatever else joins two pipes over a network: both ends of everybody on this
//! machine, interleaved. It starts everything itself, prints medians and ratios, and fails where something could not be
//! measured.
//!
//! A full run writes `FIGURES.md` and `FIGURES.svg` too. The environment makes it another run, which only prints:
//! - `BENCH_QUICK=1`: the main ratios alone, in two minutes;
//! - `BENCH_ONLY=start,throughput`: these [`PARTS`] alone;
//! - `BENCH_ROUNDS`, `BENCH_MIB`: how many rounds at most, and what a transfer carries;
//! - `BENCH_OUT`: a folder to write the figures to, whatever the run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "what cannot be measured is a failure")]
#![allow(clippy::print_stdout, reason = "the table is what this is for")]

mod bottleneck;
mod bridge;
mod client;
mod commands;
mod handshakes;
mod interactive;
mod interruptions;
mod measure;
mod memory;
mod mutagen;
mod path;
mod peers;
mod pool;
mod report;
mod servers;
mod sessions;
mod size;
mod start;
mod stream;
mod terminators;
mod throughput;
mod upload;
mod worker;

#[path = "../../tests/support/mod.rs"]
mod support;

#[path = "../../tests/support_net/frames.rs"]
#[allow(dead_code, reason = "the tests need the other kinds")]
mod frames;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use report::Report;

/// What is measured together, once a round, with servers of its own that end with it.
struct Part {
    name: &'static str,
    /// How many rounds it takes part in.
    rounds: usize,
    /// The same in a quick run.
    quick: usize,
    measure: fn(&Plan, &mut Report),
}

/// In the order of the report.
const PARTS: &[Part] = &[
    Part { name: "start", rounds: 5, quick: 3, measure: start::measure },
    Part { name: "throughput", rounds: 5, quick: 3, measure: throughput::measure },
    Part { name: "path", rounds: 5, quick: 2, measure: path::measure },
    Part { name: "commands", rounds: 5, quick: 3, measure: commands::measure },
    Part { name: "upload", rounds: 5, quick: 0, measure: upload::measure },
    Part { name: "handshakes", rounds: 3, quick: 0, measure: handshakes::measure },
    Part { name: "mutagen", rounds: 5, quick: 0, measure: mutagen::create },
    Part { name: "mutagen-bytes", rounds: 3, quick: 0, measure: mutagen::carry },
    Part { name: "pool", rounds: 5, quick: 0, measure: pool::measure },
    Part { name: "resuming", rounds: 5, quick: 0, measure: interruptions::throughput },
    Part { name: "memory", rounds: 3, quick: 0, measure: memory::measure },
    Part { name: "sessions", rounds: 1, quick: 0, measure: sessions::measure },
    Part { name: "interactive", rounds: 2, quick: 0, measure: interactive::measure },
    Part { name: "resets", rounds: 2, quick: 0, measure: interruptions::resets },
    Part { name: "size", rounds: 1, quick: 0, measure: size::measure },
];

/// What the environment asks for.
pub(crate) struct Plan {
    /// Only the main ratios, soon.
    pub(crate) quick: bool,
    /// What a bulk transfer carries.
    pub(crate) bytes: u64,
    only: Option<Vec<String>>,
    most_rounds: usize,
    out: Option<PathBuf>,
}

fn main() {
    if worker::run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        return;
    }
    let plan = Plan::from_environment();
    let parts: Vec<&Part> = PARTS.iter().filter(|part| plan.rounds(part) > 0).collect();
    let rounds = parts.iter().map(|part| plan.rounds(part)).max().unwrap_or_default();
    let mut report = Report::new(rounds);
    for round in 0..rounds {
        for part in parts.iter().filter(|part| round < plan.rounds(part)) {
            let started = Instant::now();
            progress(&format!("round {} of {rounds}: {}", round + 1, part.name));
            (part.measure)(&plan, &mut report);
            progress(&format!(" {:.1} s\n", started.elapsed().as_secs_f64()));
        }
    }
    report.print();
    if let Some(folder) = &plan.out {
        report.save(folder);
    }
}

impl Plan {
    fn from_environment() -> Plan {
        let text = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let number = |name: &str, default: u64| match text(name) {
            None => default,
            Some(text) => text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`, which is no number")),
        };
        let quick = number("BENCH_QUICK", 0) > 0;
        let only = text("BENCH_ONLY").map(|text| text.split(',').map(str::to_owned).collect::<Vec<_>>());
        for name in only.iter().flatten() {
            let names: Vec<&str> = PARTS.iter().map(|part| part.name).collect();
            assert!(names.contains(&name.as_str()), "BENCH_ONLY names `{name}`; there are {}", names.join(", "));
        }
        let is_whole = !quick && only.is_none();
        let project = is_whole.then(|| Path::new(env!("CARGO_MANIFEST_DIR")).to_owned());
        Plan {
            quick,
            bytes: number("BENCH_MIB", if quick { 512 } else { 1024 }).max(1) << 20,
            only,
            most_rounds: number("BENCH_ROUNDS", u64::MAX) as usize,
            out: text("BENCH_OUT").map(PathBuf::from).or(project),
        }
    }

    /// How many rounds a part takes part in.
    fn rounds(&self, part: &Part) -> usize {
        let rounds = match &self.only {
            Some(only) if !only.iter().any(|name| name == part.name) => 0,
            Some(_) => part.rounds.min(if self.quick { part.quick.max(1) } else { part.rounds }),
            None if self.quick => part.quick,
            None => part.rounds,
        };
        rounds.min(self.most_rounds)
    }
}

/// Says what is going on: on a terminal in one line that is written again and again.
fn progress(text: &str) {
    let mut stderr = std::io::stderr();
    let _ = match (stderr.is_terminal(), text.ends_with('\n')) {
        (true, true) => write!(stderr, "\r\x1b[K"),
        _ => write!(stderr, "{text}"),
    };
    let _ = stderr.flush();
}
