//! What everybody carries on loopback, in writes of several sizes, and what that costs in processor time.

use crate::Plan;
use crate::measure::GIB;
use crate::peers::{BRIDGE, Peer, SSH, SSH_GCM, main_peers, other_peers};
use crate::report::{Goal, Measure, Report, Section};
use crate::stream::carry;
use crate::worker::BLOCK_BYTES;

const SECTION: Section = Section {
    title: "Throughput",
    note: "One stream on loopback through pipes, from when it stands until the other end has said that it has everything. \
           tstunnel's has frames, and can be resumed. Whoever sends does so in writes of 4 KiB, 64 KiB, or (bulk) 256 KiB. The \
           bridge does as little as can be done with the same library for TLS; plain TCP is the same without TLS. In bulk tstunnel, the \
           bridge and ssh have six turns a round: two runs of the same differ by half, by where the kernel puts the four programs. \
           `openssl s_client` has stunnel as its server, and websocat verifies nobody.",
};

const CPU: Section = Section {
    title: "Processor time",
    note: "Of the bulk transfers above: seconds for a GiB of client and server, the command's own and connecting included.",
};

/// In each direction, of what a transfer in larger writes carries.
const SMALL_WRITES: [(&str, usize); 2] = [("4 KiB", 4 << 10), ("64 KiB", 64 << 10)];
const SMALL_WRITES_SHARE: u64 = 4;

/// How often the main peers have their turn in bulk.
const TURNS: usize = 6;

/// The main peers in bulk, and in full runs everybody in everything.
pub(crate) fn measure(plan: &Plan, report: &mut Report) {
    let main = main_peers();
    let others = if plan.quick { Vec::new() } else { other_peers() };
    let peers: Vec<&Peer> = main.iter().chain(&others).collect();
    // Whoever is first finds the machine as nobody else does.
    let mut turns = vec![peers.clone()];
    if !plan.quick {
        turns.extend((1..TURNS).map(|turn| main.iter().cycle().skip(turn).take(main.len()).collect()));
    }
    for (name, share) in [("up", [1, 0]), ("down", [0, 1])] {
        let measure = Measure::more(&SECTION, format!("{name}, bulk"), "GB/s").charted();
        let goals = [Goal::Times(2.3, SSH), Goal::Times(1.6, SSH_GCM), Goal::Times(0.95, BRIDGE)];
        let speed = goals.into_iter().fold(measure, Measure::goal);
        let whole = Measure::more(&SECTION, format!("{name}, bulk, connecting included"), "GB/s");
        let cpu = |what: &str| Measure::less(&CPU, format!("{name}, {what}"), "s/GiB");
        let both_cpu = cpu("both ends").goal(Goal::Times(0.40, SSH)).charted();
        for peer in turns.iter().flatten() {
            let carried = carry(peer, share.map(|share| share * plan.bytes), BLOCK_BYTES);
            report.add(&speed, peer.name, gigabytes(plan.bytes) / carried.carrying);
            report.add(&whole, peer.name, gigabytes(plan.bytes) / (carried.connecting + carried.carrying));
            let gibs = plan.bytes as f64 / GIB;
            report.add(&cpu("client"), peer.name, carried.client_cpu / gibs);
            report.add(&cpu("server"), peer.name, carried.server_cpu / gibs);
            report.add(&both_cpu, peer.name, (carried.client_cpu + carried.server_cpu) / gibs);
        }
        if plan.quick {
            continue;
        }
        let bytes = plan.bytes / SMALL_WRITES_SHARE;
        for (size, block) in SMALL_WRITES {
            let speed = Measure::more(&SECTION, format!("{name}, writes of {size}"), "GB/s");
            for peer in &peers {
                let carried = carry(peer, share.map(|share| share * bytes), block);
                report.add(&speed, peer.name, gigabytes(bytes) / carried.carrying);
            }
        }
    }
    let bytes = plan.bytes / 2;
    let both = Measure::more(&SECTION, "both directions at once, together", "GB/s").charted();
    for peer in &peers {
        let carried = carry(peer, [bytes; 2], BLOCK_BYTES);
        report.add(&both, peer.name, gigabytes(2 * bytes) / carried.carrying);
    }
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
