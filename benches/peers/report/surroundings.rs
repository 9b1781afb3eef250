//! What it was measured on, and with: machine, load, commit, and the version of every peer.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::peers::websocat;
use crate::support::process::{program, run};

/// A peer's program, what makes it tell its version, and the text that its line of that begins with.
const VERSIONS: [(&str, &str, &str); 5] = [
    ("ssh", "-V", "OpenSSH"),
    ("openssl", "version", "OpenSSL"),
    ("stunnel", "-version", "stunnel "),
    ("socat", "-V", "socat version"),
    ("haproxy", "-v", "HAProxy version"),
];

pub(super) struct Surroundings {
    /// Minutes' average of processes that wanted a processor, before the run.
    load_before: String,
    /// Before the run too, which writes its figures into the checkout.
    commit: String,
    peers: Vec<String>,
}

impl Surroundings {
    pub(super) fn look() -> Surroundings {
        let peers = VERSIONS.iter().map(|(name, argument, line)| version(&program(name), argument, line));
        let peers = peers.chain([version(&websocat(), "--version", "websocat"), "Mutagen 0.18.1".to_owned()]);
        Surroundings { load_before: load(), commit: commit(), peers: peers.collect() }
    }

    /// Machine, program, and peers.
    pub(super) fn lines(&self) -> [String; 3] {
        let cores = std::thread::available_parallelism().unwrap();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        [
            format!(
                "{cores} × {}, Linux {}, load {} before and {} after",
                processor(),
                kernel.trim(),
                self.load_before,
                load()
            ),
            format!(
                "tstunnel {} (commit {}, {})",
                env!("CARGO_PKG_VERSION"),
                self.commit,
                run(Command::new("rustc").arg("--version")).trim()
            ),
            self.peers.join(", "),
        ]
    }
}

fn processor() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("a processor without a name", |(_, model)| model).to_owned()
}

fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap();
    load.split(' ').next().unwrap_or_default().to_owned()
}

fn commit() -> String {
    let mut git = Command::new("git");
    let output = git.args(["describe", "--always", "--dirty"]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// The line of a program's own version, without what stands behind it: dates, platforms, addresses.
fn version(program: &Path, argument: &str, line: &str) -> String {
    let output = Command::new(program).arg(argument).output().unwrap_or_else(|error| panic!("{program:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let said = said.lines().find(|said| said.starts_with(line));
    let said = said.unwrap_or_else(|| panic!("{program:?} {argument} says nothing of `{line}`"));
    let said = said.split([',', '(']).next().unwrap_or_default();
    let words = said.split_whitespace().filter(|word| *word != "version");
    // A date, a platform or an address follows what begins with a digit.
    let words: Vec<&str> = words.collect();
    let version = words.iter().position(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    words[..version.map_or(words.len(), |index| index + 1)].join(" ")
}
