//! The real Mutagen over both.

use crate::Plan;
use crate::report::{Measure, Report, Section, TSTUNNEL};
use crate::servers::{mutagen_over_openssh, mutagen_over_tstunnel};

const SECTION: Section = Section { title: "Mutagen", note: "`mutagen sync create`, until both sides are connected." };

pub(crate) fn measure(_: &Plan, report: &mut Report) {
    let fresh = Measure::less(&SECTION, "`sync create`, agent not there", "ms");
    let again = Measure::less(&SECTION, "`sync create`, agent there", "ms");
    for (peer, created) in [(TSTUNNEL, mutagen_over_tstunnel()), ("ssh", mutagen_over_openssh())] {
        report.add(&fresh, peer, created.fresh * 1e3);
        report.add(&again, peer, created.again * 1e3);
    }
}
