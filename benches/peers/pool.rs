//! From exec of a client to the real agent's first byte, with agents that are kept started and without.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use crate::servers::Host;
use crate::support::mutagen;
use crate::support::process;
use crate::support::wait::{SOON, wait_until};
use crate::table::Goals;

const AGENT: &str = ".mutagen/agents/0.18.1/mutagen-agent";
const KEPT: usize = 2;

/// Milliseconds without a pool, and with one.
#[derive(Default)]
pub(crate) struct Pool([Vec<f64>; 2]);

impl Pool {
    /// Measures both side by side, each with a server of its own.
    pub(crate) fn measure(&mut self) {
        let folders = [0; 2].map(|_| tempfile::Builder::new().prefix("ts-bench-").tempdir().unwrap());
        let hosts = [0, KEPT].map(|kept| (kept, format!("commands = \"mutagen\"\npool = {kept}\n")));
        let hosts: Vec<(usize, Host)> =
            folders.iter().zip(hosts).map(|(folder, (kept, lines))| (kept, start(folder.path(), &lines))).collect();
        for round in 0..10 {
            for (samples, (kept, host)) in self.0.iter_mut().zip(&hosts) {
                let milliseconds = first_byte(host);
                // The first of a pool is what fills it.
                if round > 0 {
                    samples.push(milliseconds);
                }
                wait_until("what is kept is there", SOON, || process::children(host.id()).len() == *kept);
            }
        }
    }

    /// Prints what was measured.
    pub(crate) fn print(self) {
        let [without, with] = self.0;
        let mut table = Goals::new("exec to the agent's first byte, ms", ["no pool", "pool = 2", "ratio"]);
        table.ratio("  the real mutagen-agent", &without, &with, None);
        table.print();
    }
}

fn start(folder: &Path, lines: &str) -> Host {
    let host = Host::start_with(folder, lines, "");
    let file = folder.join("home").join(AGENT);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::copy(mutagen::programs().join("mutagen-agent"), &file).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    host
}

fn first_byte(host: &Host) -> f64 {
    let mut command = host.client(&[], &format!("{AGENT} synchronizer"));
    let started = Instant::now();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    drop(child.stdin.take());
    child.wait().unwrap();
    seconds * 1e3
}
