//! Samples → a table of medians, and what they were measured on.

use std::fs;
use std::io::{IsTerminal, Write};
use std::process::Command;

use crate::support::process::{program, run};

const PEERS: [&str; 3] = ["tstunnel", "ssh", "ssh aes-gcm"];

/// The rows in the order in which they were first added to.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<(String, [Vec<f64>; 3])>,
}

impl Table {
    /// Adds one sample a peer to a row; none for a peer that it does not concern.
    pub(crate) fn add(&mut self, name: &str, samples: [Option<f64>; 3]) {
        if !self.rows.iter().any(|(row, _)| row == name) {
            self.rows.push((name.to_owned(), Default::default()));
        }
        let (_, row) = self.rows.iter_mut().find(|(row, _)| row == name).unwrap();
        for (kept, sample) in row.iter_mut().zip(samples) {
            kept.extend(sample);
        }
    }

    /// Prints everything. A ratio is how many times better tstunnel is: less of everything but throughput.
    pub(crate) fn print(self, runs: u64, bytes: u64) {
        progress("");
        println!("{}", surroundings());
        println!("Medians of {runs} interleaved runs; transfers of {} MiB, connecting included.\n", bytes >> 20);
        let [tunnel, ssh, gcm] = PEERS;
        println!("{:<36} {tunnel:>9} {ssh:>9} {gcm:>12}   {:>7} {:>7}", "", "× ssh", "× gcm");
        for (name, samples) in self.rows {
            let medians = samples.map(median);
            let more_is_better = name.contains("/s") && !name.contains("CPU");
            let ratio = |other: Option<f64>| {
                let (mine, other) = (medians[0]?, other?);
                Some(if more_is_better { mine / other } else { other / mine })
            };
            let [tunnel, ssh, gcm] = medians.map(|value| cell(value, 2));
            let ratios = [medians[1], medians[2]].map(|other| cell(ratio(other), 1));
            println!("{name:<36} {tunnel:>9} {ssh:>9} {gcm:>12}   {:>7} {:>7}", ratios[0], ratios[1]);
        }
    }
}

/// Rows of three values, each with what it should be.
pub(crate) struct Goals {
    lines: Vec<String>,
}

impl Goals {
    pub(crate) fn new(title: &str, [first, second, third]: [&str; 3]) -> Goals {
        let heads = format!("{title:<38} {first:>9} {second:>9} {third:>9}   {:>7}", "goal");
        Goals { lines: vec![heads] }
    }

    /// Names the rows that follow.
    pub(crate) fn heading(&mut self, text: &str) {
        self.lines.push(format!("{text}:"));
    }

    /// Adds values, and what is wanted with whether that is met.
    pub(crate) fn row(&mut self, name: &str, [first, second, third]: [String; 3], goal: Option<(String, bool)>) {
        let goal = goal.map_or_else(String::new, |(goal, met)| {
            let word = if met { "met" } else { "MISSED" };
            format!("   {goal:>7} {word}")
        });
        self.lines.push(format!("{name:<38} {first:>9} {second:>9} {third:>9}{goal}"));
    }

    /// Adds median and maximum of tstunnel's samples, beside what the other did.
    pub(crate) fn plain(&mut self, name: &str, samples: &[f64], other: Option<String>) {
        self.samples(name, samples, other, None);
    }

    /// The same, where the median is to be below `goal`.
    pub(crate) fn below(&mut self, name: &str, samples: &[f64], other: Option<String>, goal: f64) {
        self.samples(name, samples, other, Some(goal));
    }

    /// Adds two medians and the median of the pairs' ratios, because the machine is another one in every run.
    pub(crate) fn ratio(&mut self, name: &str, first: &[f64], second: &[f64], least: Option<f64>) {
        let ratios = first.iter().zip(second).map(|(first, second)| first / second).collect();
        let ratio = median(ratios).unwrap();
        let cells = [median(first.to_vec()), median(second.to_vec()), Some(ratio)].map(|value| cell(value, 2));
        self.row(name, cells, least.map(|least| (format!("≥ {least}"), ratio >= least)));
    }

    fn samples(&mut self, name: &str, samples: &[f64], other: Option<String>, goal: Option<f64>) {
        let middle = median(samples.to_vec()).unwrap();
        let slowest = samples.iter().copied().max_by(f64::total_cmp);
        let cells = [cell(Some(middle), 1), cell(slowest, 1), other.unwrap_or_else(|| cell(None, 1))];
        self.row(&format!("  {name}"), cells, goal.map(|goal| (format!("< {goal}"), middle < goal)));
    }

    pub(crate) fn print(self) {
        println!();
        for line in self.lines {
            println!("{line}");
        }
    }
}

/// Says what is going on, to people alone.
pub(crate) fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
    }
}

/// The one in the middle, or between the two there; none of nothing.
pub(crate) fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    let upper = *samples.get(middle)?;
    Some(if samples.len() % 2 == 1 { upper } else { (samples[middle - 1] + upper) / 2.0 })
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

/// Machine, versions and commit, in one line each.
fn surroundings() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("a processor without a name", |(_, model)| model);
    let cores = std::thread::available_parallelism().unwrap();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let load = fs::read_to_string("/proc/loadavg").unwrap();
    let load = load.split(' ').next().unwrap_or_default();
    let ssh = Command::new(program("ssh")).arg("-V").output().unwrap();
    let ssh = String::from_utf8_lossy(&ssh.stderr);
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        output.ok().filter(|output| output.status.success())
    };
    let commit = git(&["describe", "--always", "--dirty"])
        .map_or_else(|| "no commit".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let rustc = run(Command::new("rustc").arg("--version"));
    format!(
        "{cores} × {model}, Linux {}, load {load}\ntstunnel {} ({commit}, {}), {}, Mutagen 0.18.1",
        kernel.trim(),
        env!("CARGO_PKG_VERSION"),
        rustc.trim(),
        ssh.trim()
    )
}
