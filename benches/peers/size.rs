//! What has to be installed.

use std::path::Path;

use crate::Plan;
use crate::peers::SSH;
use crate::report::{Measure, Report, Section, TSTUNNEL};
use crate::support::process::program;
use crate::support::serve;

const SECTION: Section = Section {
    title: "Size",
    note: "tstunnel's one file, which is client and server; `ssh`, `scp` and `sshd` without the libraries that they share.",
};

pub(crate) fn measure(_: &Plan, report: &mut Report) {
    let measure = Measure::less(&SECTION, "programs", "MiB");
    let mib = |file: &Path| std::fs::metadata(file).unwrap().len() as f64 / (1 << 20) as f64;
    report.add(&measure, TSTUNNEL, mib(Path::new(serve::TSTUNNEL)));
    report.add(&measure, SSH, ["ssh", "scp", "sshd"].map(|name| mib(&program(name))).iter().sum());
}
