//! A file of an agent's size put on the host, and put there again when the server has it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Plan;
use crate::measure::until_exit;
use crate::peers::SSH;
use crate::report::{Measure, Report, Section, TSTUNNEL};
use crate::servers::Plain;
use crate::support::mutagen;
use crate::support::relay::Relay;
use crate::support::tree::noise;

const SECTION: Section = Section {
    title: "Upload of an agent",
    note: "20 MiB of the real `mutagen-agent` by `tstunnel upload`, which compresses, verifies and syncs, and by `scp`: a content \
           that the server has never seen, and then the same under another name.",
};
const BYTES: usize = 20 << 20;
/// On loopback, and over a path.
const ROUND_TRIPS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(50)];

pub(crate) fn measure(_: &Plan, report: &mut Report) {
    let agent = fs::read(mutagen::programs().join("mutagen-agent")).unwrap();
    let host = Plain::start();
    for (seed, round_trip) in (1..).zip(ROUND_TRIPS) {
        // As much of the agent as there is, and an end that makes it another one.
        let mut content: Vec<u8> = agent.iter().copied().cycle().take(BYTES - 16).collect();
        content.extend(noise(16, seed));
        let file = host.folder().join(format!("agent-{seed}"));
        fs::write(&file, content).unwrap();
        let relays = [host.tunnel().address(), host.sshd_address()].map(|address| {
            let relay = Relay::to(address);
            relay.delay(round_trip);
            relay
        });
        let [to_tunnel, to_sshd] = relays.each_ref().map(Relay::address);
        for what in ["first time", "again"] {
            let name = format!("{}{seed}", what.replace(' ', "-"));
            let place = match round_trip.as_millis() {
                0 => "loopback".to_owned(),
                milliseconds => format!("{milliseconds} ms away"),
            };
            let measure = Measure::less(&SECTION, format!("{place}, {what}"), "ms").charted();
            let ours = until_exit(&mut host.tunnel().upload(to_tunnel, &file, &name));
            let theirs = until_exit(&mut scp(&host, to_sshd, &file, &name));
            report.add(&measure, TSTUNNEL, ours * 1e3);
            report.add(&measure, SSH, theirs * 1e3);
        }
    }
}

fn scp(host: &Plain, address: SocketAddr, file: &Path, name: &str) -> Command {
    let mut command = host.openssh("scp", address);
    command.arg("-q").arg(file).arg(format!("host123:{}", host.folder().join(name).display()));
    command
}
