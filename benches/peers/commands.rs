//! `true`, on a fresh connection and beside an ssh over a ControlMaster.

use crate::Plan;
use crate::measure::until_exit;
use crate::report::{Measure, Report, Section, TSTUNNEL};
use crate::servers::Plain;

const SECTION: Section = Section { title: "`true` on the host", note: "" };

pub(crate) fn measure(_: &Plan, report: &mut Report) {
    let measure = Measure::less(&SECTION, "loopback", "ms");
    let host = Plain::start();
    let tunnel = host.tstunnel_to(host.tunnel().address(), "true");
    let ssh = host.ssh_to(host.sshd_address(), &[], "true");
    for (peer, mut client) in [(TSTUNNEL, tunnel), ("ssh", ssh)] {
        report.add(&measure, peer, until_exit(&mut client) * 1e3);
    }
}
