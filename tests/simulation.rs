//! The session machine in a simulated world: whatever happens to its connections, every byte arrives once and in order.
//!
//! Each schedule follows from its seed. `TSTUNNEL_SIM_SEED=N` replays one and tells its story;
//! `TSTUNNEL_SIM_SCHEDULES=N` runs that many.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "simulation/end.rs"]
mod end;
#[path = "simulation/network.rs"]
mod network;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use world::World;

/// How many schedules run where nothing else is asked for.
const SCHEDULES: u64 = 20_000;

/// What is wrong.
type Fault = String;

/// What a schedule has come across.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Cut,
    CutInFlight,
    CutWhileAsking,
    HalfOpen,
    Freeze,
    Jump,
    Suspect,
    Dead,
    Mended,
    LeftSuspect,
    Resumed,
    BroughtAlong,
    TakenOver,
    AnswerLost,
    AnswerLate,
    StaleRefused,
    GrantVoid,
    WindowFull,
    ExitWhileAway,
    LastAckLost,
}

impl Seen {
    const ALL: [Seen; 20] = [
        Seen::Cut,
        Seen::CutInFlight,
        Seen::CutWhileAsking,
        Seen::HalfOpen,
        Seen::Freeze,
        Seen::Jump,
        Seen::Suspect,
        Seen::Dead,
        Seen::Mended,
        Seen::LeftSuspect,
        Seen::Resumed,
        Seen::BroughtAlong,
        Seen::TakenOver,
        Seen::AnswerLost,
        Seen::AnswerLate,
        Seen::StaleRefused,
        Seen::GrantVoid,
        Seen::WindowFull,
        Seen::ExitWhileAway,
        Seen::LastAckLost,
    ];
}

/// How often what was seen.
#[derive(Default)]
struct Tally([u64; Seen::ALL.len()]);

impl Tally {
    fn see(&mut self, seen: Seen) {
        self.0[seen as usize] += 1;
    }

    fn add(&mut self, other: &Tally) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

fn number(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

fn run(seed: u64, is_traced: bool, tally: &mut Tally) -> Result<(), Fault> {
    let outcome = catch_unwind(AssertUnwindSafe(|| World::new(seed, is_traced, tally).run()));
    outcome.unwrap_or_else(|_| Err("a panic (see above)".to_owned()))
}

#[test]
#[allow(clippy::print_stderr, reason = "what was simulated is worth a look")]
fn every_byte_arrives_once_and_in_order_whatever_happens_to_the_connections() {
    if let Some(seed) = number("TSTUNNEL_SIM_SEED") {
        run(seed, true, &mut Tally::default()).unwrap_or_else(|fault| panic!("{fault}"));
        return;
    }
    let schedules = number("TSTUNNEL_SIM_SCHEDULES").unwrap_or(SCHEDULES);
    let next = AtomicU64::new(0);
    let total = Mutex::new(Tally::default());
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(8) {
            scope.spawn(|| {
                let mut tally = Tally::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= schedules {
                        break;
                    }
                    if let Err(fault) = run(seed, false, &mut tally) {
                        next.store(schedules, Ordering::Relaxed);
                        failure.lock().unwrap().get_or_insert((seed, fault));
                    }
                }
                total.lock().unwrap().add(&tally);
            });
        }
    });
    if let Some((seed, fault)) = failure.into_inner().unwrap() {
        panic!("schedule {seed}: {fault}\nreplay: TSTUNNEL_SIM_SEED={seed} cargo test --test simulation");
    }
    let total = total.into_inner().unwrap();
    for seen in Seen::ALL {
        let count = total.0[seen as usize];
        eprintln!("{count:>10} {seen:?}");
        assert!(count > 0 || schedules < SCHEDULES, "{seen:?} never happened: the simulation checks less than it says");
    }
}
