//! From exec to the first byte on the wire: a ClientHello, with files of configuration, certificate, key and trust anchors
//! read before it; ssh's banner; and a bare connect, which is the least that a client could do.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Plan;
use crate::measure::first_byte;
use crate::report::{Goal, Measure, Report, Section, TSTUNNEL};
use crate::servers::Plain;
use crate::support::process::run;

const SECTION: Section = Section {
    title: "From exec to the first byte sent",
    note: "tstunnel reads its configuration, certificate, key and trust anchors and sends a ClientHello; `ssh` sends its \
           banner; a bare connect is a program that does nothing else and sends a byte.",
};
const STARTS: usize = 10;

pub(crate) fn measure(_: &Plan, report: &mut Report) {
    let measure =
        Measure::less(&SECTION, "exec to first byte", "ms").goal(Goal::Times(2.0, "a bare connect")).charted();
    let host = Plain::start();
    let bare = bare_connect(host.folder());
    for _ in 0..STARTS {
        let tunnel = first_byte(|address| host.tstunnel_to(address, "true"));
        let bare = first_byte(|address| {
            let mut command = Command::new(&bare);
            command.arg(address.to_string());
            command
        });
        let ssh = first_byte(|address| host.ssh_to(address, &[], "true"));
        for (peer, seconds) in [(TSTUNNEL, tunnel), ("a bare connect", bare), ("ssh", ssh)] {
            report.add(&measure, peer, seconds * 1e3);
        }
    }
}

/// Compiles the least that a client could be.
fn bare_connect(folder: &Path) -> PathBuf {
    let program = folder.join("bare-connect");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/bare.rs");
    run(Command::new("rustc").args(["--edition", "2024", "-O", "-C", "strip=symbols", "-o"]).arg(&program).arg(source));
    program
}
