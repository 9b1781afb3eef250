//! While strangers attack, a granted client gets in at once, what runs goes on, and memory stays where it was.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::attack::{Attack, FAILING, HALF_OPEN};
use crate::figures::{machine_time, memory_kib, processor_time};
use crate::support::wait::let_pass;
use crate::support_net::child::run;
use crate::support_net::site::{Plan, Site};
use crate::transfer::Transfer;
use crate::{is_long, turn};

/// How often what runs is looked at.
const SAMPLE: Duration = Duration::from_millis(250);
/// From the beginning of an attack until it is at its height.
const RISE: Duration = Duration::from_secs(1);
/// The pause of a client between two sessions.
const PAUSE: Duration = Duration::from_millis(200);
/// What the server may take beyond what it has when it is idle.
const MOST_MEMORY_KIB: u64 = 64 << 10;

/// What is asked for: the longest that a client takes, and what live sessions keep.
struct Goals {
    connect: Duration,
    /// How much of the attack this machine must manage.
    attack: f64,
    kept: f64,
    paced_kept: f64,
}

/// What was measured of one phase.
struct Phase {
    /// Bytes a second, of each transfer.
    rates: [Vec<f64>; 2],
    connects: Vec<Duration>,
    memory_kib: u64,
    /// How many processors the server, the saturating session's client, and everything on this machine kept busy.
    busy: [f64; 3],
}

#[test]
fn strangers_cost_clients_and_sessions_little() {
    let _turn = turn();
    let (quiet, attacked, goals) = if is_long() {
        let goals = Goals { connect: Duration::from_secs(1), attack: 0.8, kept: 0.8, paced_kept: 0.95 };
        (Duration::from_secs(8), Duration::from_secs(30), goals)
    } else {
        // What a machine that others use too still shows: nobody is kept out, and nothing stands still.
        let goals = Goals { connect: Duration::from_secs(10), attack: 0.5, kept: 0.2, paced_kept: 0.5 };
        (Duration::from_secs(2), Duration::from_secs(5), goals)
    };
    let mut site = Site::start(&Plan::any());
    let id = site.server().id();
    run(&mut site.exec(&["true"])).ok();
    let idle_kib = memory_kib(id);
    let mut transfers = [Transfer::saturating(&site), Transfer::paced(&site)];
    let_pass(RISE);

    let before = watch(&site, id, &transfers, quiet);
    let attack = Attack::begin(site.address());
    let rising = watch(&site, id, &transfers, RISE);
    let during = watch(&site, id, &transfers, attacked);
    let open = attack.open();
    let done = attack.end();
    let after = watch(&site, id, &transfers, quiet);

    let lasted = RISE + attacked;
    let attackers = done.processor_time.as_secs_f64() / lasted.as_secs_f64();
    println!(
        "attacked for {:.0} s: {} connections begun and left, {HALF_OPEN} at once of which {open} were still open, {:.0} a second \
         failed to authenticate; that cost {attackers:.2} processors beside the server",
        lasted.as_secs_f64(),
        done.begun,
        done.failed as f64 / lasted.as_secs_f64(),
    );
    for (name, phase) in [("before", &before), ("attack", &during), ("after", &after)] {
        println!(
            "{name}: saturating {:.0} MiB/s, paced {:.2} MiB/s, {} clients in {:.0} ms at the median and {:.0} at most, \
             server {:.1} MiB; busy: server {:.2}, client {:.2}, machine {:.2} processors",
            median(&phase.rates[0]) / f64::from(1 << 20),
            median(&phase.rates[1]) / f64::from(1 << 20),
            phase.connects.len(),
            median(&milliseconds(&phase.connects)),
            milliseconds(&phase.connects).into_iter().fold(0.0, f64::max),
            phase.memory_kib as f64 / 1024.0,
            phase.busy[0],
            phase.busy[1],
            phase.busy[2],
        );
    }
    let kept = [0, 1].map(|index| {
        let calm = [&before, &after].map(|phase| median(&phase.rates[index]));
        median(&during.rates[index]) / ((calm[0] + calm[1]) / 2.0)
    });
    let peak_kib = rising.memory_kib.max(during.memory_kib);
    let more_mib = peak_kib.saturating_sub(idle_kib) as f64 / 1024.0;
    println!("kept: saturating {:.2}, paced {:.2}; memory: {more_mib:.1} MiB over idle", kept[0], kept[1]);

    assert!(transfers.iter_mut().all(Transfer::is_alive), "a live session ended");
    let rate = done.failed as f64 / lasted.as_secs_f64();
    assert!(rate > goals.attack * f64::from(FAILING), "this machine was too slow to attack: {rate:.0} a second");
    let slowest = rising.connects.iter().chain(&during.connects).max().unwrap();
    assert!(*slowest < goals.connect, "a client took {slowest:?}");
    assert!(kept[0] > goals.kept && kept[1] > goals.paced_kept, "live sessions kept {kept:?} of their throughput");
    assert!(peak_kib < idle_kib + MOST_MEMORY_KIB, "{idle_kib} KiB, and then {peak_kib}");
}

/// Looks at everything for so long, while a client begins a session every now and then.
fn watch(site: &Site, server: u32, transfers: &[Transfer; 2], time: Duration) -> Phase {
    let stop = AtomicBool::new(false);
    let times = || {
        let used = [processor_time(server), processor_time(transfers[0].client_id()), machine_time()];
        used.map(|time| time.as_secs_f64())
    };
    let (start, used) = (Instant::now(), times());
    thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let mut connects = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                connects.push(run(&mut site.exec(&["true"])).ok().took);
                let_pass(PAUSE);
            }
            connects
        });
        let mut rates = [Vec::new(), Vec::new()];
        let mut peak_kib = 0;
        let mut last = (start, [0, 1].map(|index| transfers[index].count()));
        while start.elapsed() < time {
            let_pass(SAMPLE);
            let now = (Instant::now(), [0, 1].map(|index| transfers[index].count()));
            for (index, rates) in rates.iter_mut().enumerate() {
                rates.push((now.1[index] - last.1[index]) as f64 / (now.0 - last.0).as_secs_f64());
            }
            last = now;
            peak_kib = peak_kib.max(memory_kib(server));
        }
        stop.store(true, Ordering::Relaxed);
        let elapsed = start.elapsed().as_secs_f64();
        let now = times();
        let busy = [0, 1, 2].map(|index| (now[index] - used[index]) / elapsed);
        Phase { rates, connects: clients.join().unwrap(), memory_kib: peak_kib, busy }
    })
}

fn milliseconds(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| time.as_secs_f64() * 1000.0).collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
