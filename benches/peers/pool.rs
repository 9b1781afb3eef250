//! From exec of a client to the real agent's first byte, with agents that are kept started and without.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use crate::Plan;
use crate::report::{Measure, Report, Section, TSTUNNEL};
use crate::servers::Host;
use crate::support::mutagen;
use crate::support::process;
use crate::support::wait::{SOON, wait_until};

const AGENT: &str = ".mutagen/agents/0.18.1/mutagen-agent";
const KEPT: usize = 2;

const SECTION: Section = Section {
    title: "Agents that are kept started",
    note: "From exec to the first byte of the real `mutagen-agent`; the server keeps two started (`pool = 2`), or none.",
};

/// Measures both side by side, each with a server of its own.
pub(crate) fn measure(_: &Plan, report: &mut Report) {
    let measure = Measure::less(&SECTION, "exec to the agent's first byte", "ms");
    let folders = [0; 2].map(|_| tempfile::Builder::new().prefix("ts-bench-").tempdir().unwrap());
    let hosts = [(TSTUNNEL, KEPT), ("tstunnel without a pool", 0)];
    let hosts: Vec<_> = folders
        .iter()
        .zip(hosts)
        .map(|(folder, (peer, kept))| {
            (peer, kept, start(folder.path(), &format!("commands = \"mutagen\"\npool = {kept}\n")))
        })
        .collect();
    for round in 0..10 {
        for (peer, kept, host) in &hosts {
            let milliseconds = first_byte(host);
            // The first of a pool is what fills it.
            if round > 0 {
                report.add(&measure, peer, milliseconds);
            }
            wait_until("what is kept is there", SOON, || process::children(host.id()).len() == *kept);
        }
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
