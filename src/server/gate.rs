//! Who may begin a handshake: addresses of connections just accepted → a [`Pass`] each, or none.
//!
//! Handshakes are bounded as sshd's `MaxStartups` bounds them (sshd_config(5)): from a number on, a newcomer costs one of them its place
//! with a probability that rises to certainty at the maximum. But the place is not the newcomer's while there is one that
//! a peer only holds: one whose handshake has failed, one that has not sent its ClientHello, one that does not go on. So
//! whoever speaks at once is let in, however many say nothing. Sources that fail again and again are shut out for a time
//! (`gate/penalties.rs`).
//!
//! Nothing here touches a socket: whoever has a pass is told by it to hang up.

mod penalties;
mod report;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::server::audit::Audit;
use crate::server::audit::record::{Event, Record, Text};
use crate::server::config::Limits;
use crate::server::source::Source;
use crate::tls::Stage;
use penalties::Penalties;
use report::{Line, Report};

pub use report::Closed;

/// How long a peer may take to go on, before its place may be another's: longer than any round trip.
const STALLED: Duration = Duration::from_secs(1);
/// How often it is looked for what was closed and not yet said.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The handshakes in flight, and the sources that have failed; one for a server.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    known: Mutex<Known>,
    audit: Audit,
}

#[derive(Debug, Default)]
struct Known {
    next_id: u64,
    /// The handshakes in flight, the oldest first.
    handshakes: BTreeMap<u64, Handshake>,
    /// How many of them each source has.
    held: HashMap<Source, usize>,
    penalties: Penalties,
    report: Report,
}

#[derive(Debug)]
struct Handshake {
    source: Source,
    is_exempt: bool,
    progress: Progress,
    taken_back: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The peer has not sent its ClientHello.
    Silent,
    /// It has, at that time.
    Speaking(Instant),
    /// The handshake has failed: the connection lasts only until the peer has read why.
    Failed,
}

/// A source that was not shut out before, and for how long it is from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ShutOut {
    source: Source,
    time: Duration,
}

/// The right to one handshake, until it is dropped, or taken back.
#[derive(Debug)]
pub struct Pass {
    gate: Gate,
    id: u64,
    taken_back: Arc<Notify>,
}

impl Gate {
    /// Nobody is there yet. `audit` is told of sources that are shut out.
    pub fn new(audit: Audit) -> Gate {
        Gate(Arc::new(Inner { known: Mutex::default(), audit }))
    }

    /// Lets a connection from `address` begin its handshake, which may cost another one its place.
    ///
    /// A source that has a session is never shut out: whoever shares its address with strangers must be able to resume. Nor is a
    /// balancer that speaks for itself, which is nobody's address.
    ///
    /// # Errors
    /// Why it is to be closed at once.
    pub fn enter(
        &self,
        address: IpAddr,
        is_balancer: bool,
        limits: &Limits,
        has_session: impl FnOnce(Source) -> bool,
    ) -> Result<Pass, Closed> {
        let source = Source::of(address);
        let is_exempt = is_balancer || limits.penalty_exempt.iter().any(|network| network.contains(address));
        let now = Instant::now();
        let is_shut_out = !is_exempt && self.lock().penalties.shut_out(source, now);
        let entered = if is_shut_out && !has_session(source) {
            Err(Closed::ShutOut)
        } else {
            self.lock().enter(source, is_exempt, limits, now, random)
        };
        match entered {
            Ok(Entered { id, taken_back, line, shut_out }) => {
                say(line);
                self.say_shut_out(shut_out);
                Ok(Pass { gate: self.clone(), id, taken_back })
            }
            Err(why) => {
                self.closed(address, why);
                Err(why)
            }
        }
    }

    /// A connection from `address` is closed at once: counts it for the log.
    pub fn closed(&self, address: IpAddr, why: Closed) {
        let line = self.lock().report.count(Source::of(address), why, Instant::now());
        say(line);
    }

    /// Says for ever what was closed, a line for each source and minute.
    pub async fn report(self) {
        loop {
            tokio::time::sleep(REPORT_INTERVAL).await;
            let lines = self.lock().report.due(Instant::now());
            say(lines);
        }
    }

    /// Records that a source is shut out. Whoever has many sources can cause many such lines: of very many there are only some.
    fn say_shut_out(&self, shut_out: Option<ShutOut>) {
        let Some(ShutOut { source, time }) = shut_out else { return };
        let seconds = time.as_secs_f64().ceil();
        let is_recorded = self.0.audit.push_throttled(Record {
            source: Some(Text::new(&source.to_string())),
            reason: Some(Text::new(&format!("authentication failed too often: shut out for {seconds} s"))),
            ..Record::new(Event::ShutOut)
        });
        if is_recorded {
            tracing::info!("{source} is shut out for {seconds} s: authentication from it failed too often");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn say(lines: impl IntoIterator<Item = Line>) {
    for line in lines {
        tracing::info!("{line}");
    }
}

impl Pass {
    /// Waits until the place is needed for another: the connection is to be closed at once. Cancel-safe.
    pub async fn taken_back(&self) {
        self.taken_back.notified().await;
    }

    /// The handshake has come so far.
    pub fn reached(&self, stage: Stage, limits: &Limits) {
        match stage {
            Stage::Hello => {
                if let Some(handshake) = self.gate.lock().handshakes.get_mut(&self.id) {
                    handshake.progress = Progress::Speaking(Instant::now());
                }
            }
            Stage::Failed => self.failed(limits),
        }
    }

    /// The handshake has failed, which counts once against its source. The place is kept.
    pub fn failed(&self, limits: &Limits) {
        let shut_out = self.gate.lock().failed(self.id, limits, Instant::now());
        self.gate.say_shut_out(shut_out);
    }

    /// The peer is authenticated, which clears its source's penalty. Gives the place back.
    pub fn authenticated(self) {
        let mut known = self.gate.lock();
        if let Some(handshake) = known.remove(self.id) {
            known.penalties.clear(handshake.source);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.lock().remove(self.id);
    }
}

/// A newcomer's place.
#[derive(Debug)]
struct Entered {
    id: u64,
    taken_back: Arc<Notify>,
    /// What is to be said of the one that had it before.
    line: Option<Line>,
    /// Its source, where that is shut out for it.
    shut_out: Option<ShutOut>,
}

impl Known {
    /// Gives a newcomer a place, its own or another's. `random` gives a number from 0 up to, not including, 1.
    fn enter(
        &mut self,
        source: Source,
        is_exempt: bool,
        limits: &Limits,
        now: Instant,
        random: impl FnOnce() -> f64,
    ) -> Result<Entered, Closed> {
        let (mut line, mut shut_out) = (None, None);
        if self.is_crowded(limits, random) {
            let victim = self.victim(now).and_then(|id| self.remove(id)).ok_or(Closed::Crowded)?;
            victim.taken_back.notify_one();
            // Of one that has failed, it was said.
            if victim.progress != Progress::Failed {
                shut_out = self.fail(&victim, limits, now);
                line = self.report.count(victim.source, Closed::Crowded, now);
            }
        }
        let taken_back = Arc::new(Notify::new());
        let id = self.next_id;
        self.next_id += 1;
        *self.held.entry(source).or_default() += 1;
        let (progress, told) = (Progress::Silent, taken_back.clone());
        self.handshakes.insert(id, Handshake { source, is_exempt, progress, taken_back: told });
        Ok(Entered { id, taken_back, line, shut_out })
    }

    /// Whether a newcomer costs a place.
    fn is_crowded(&self, limits: &Limits, random: impl FnOnce() -> f64) -> bool {
        let (start, most) = (limits.handshakes_drop_start.get(), limits.max_handshakes.get());
        let count = self.handshakes.len();
        count >= most || count > start && random() < (count - start) as f64 / (most - start) as f64
    }

    /// The handshake that is the least loss: see the top of this file. Of those that are the same, one of the source that
    /// has most, and of those the oldest.
    fn victim(&self, now: Instant) -> Option<u64> {
        let candidates = self.handshakes.iter().filter_map(|(id, handshake)| {
            let loss = match handshake.progress {
                Progress::Failed => 0,
                Progress::Silent => 1,
                Progress::Speaking(since) if now.duration_since(since) >= STALLED => 2,
                Progress::Speaking(_) => return None,
            };
            Some((loss, usize::MAX - self.held.get(&handshake.source).copied().unwrap_or(0), *id))
        });
        candidates.min().map(|(.., id)| id)
    }

    fn remove(&mut self, id: u64) -> Option<Handshake> {
        let handshake = self.handshakes.remove(&id)?;
        if let Some(held) = self.held.get_mut(&handshake.source) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&handshake.source);
            }
        }
        Some(handshake)
    }

    /// A handshake has failed, and keeps its place.
    fn failed(&mut self, id: u64, limits: &Limits, now: Instant) -> Option<ShutOut> {
        let mut handshake = self.handshakes.remove(&id)?;
        let shut_out = if handshake.progress == Progress::Failed { None } else { self.fail(&handshake, limits, now) };
        handshake.progress = Progress::Failed;
        self.handshakes.insert(id, handshake);
        shut_out
    }

    fn fail(&mut self, handshake: &Handshake, limits: &Limits, now: Instant) -> Option<ShutOut> {
        let Handshake { source, is_exempt: false, .. } = *handshake else { return None };
        self.penalties.add(source, limits, now).map(|time| ShutOut { source, time })
    }
}

/// A number that nobody foresees.
fn random() -> f64 {
    let mut bytes = [0; 4];
    // Without random numbers the newcomer costs a place for certain.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_ne_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroUsize;

    use crate::server::audit::Destination;
    use crate::server::metrics::Metrics;

    fn source(number: u32) -> Source {
        Source::of(IpAddr::V4(number.into()))
    }

    fn gate() -> Gate {
        Gate::new(Audit::start(&Destination::Off, false, &Metrics::new()).unwrap())
    }

    fn limits(start: usize, most: usize) -> Limits {
        let at_most = |count| NonZeroUsize::new(count).unwrap();
        Limits { handshakes_drop_start: at_most(start), max_handshakes: at_most(most), ..Limits::default() }
    }

    /// A newcomer that has good luck below the maximum.
    fn enter(known: &mut Known, number: u32, limits: &Limits, now: Instant) -> Result<Entered, Closed> {
        known.enter(source(number), false, limits, now, || 0.999)
    }

    fn speak(known: &mut Known, entered: &Entered, now: Instant) {
        known.handshakes.get_mut(&entered.id).unwrap().progress = Progress::Speaking(now);
    }

    fn has_place(known: &Known, entered: &Entered) -> bool {
        known.handshakes.contains_key(&entered.id)
    }

    #[test]
    fn whoever_speaks_at_once_is_let_in_however_many_say_nothing() {
        let (mut known, limits, now) = (Known::default(), limits(4, 8), Instant::now());
        let mut silent = Vec::new();
        for _ in 0..20 {
            for number in 0..500 {
                silent.push(enter(&mut known, number, &limits, now).unwrap());
            }
            let client = enter(&mut known, 1000, &limits, now).unwrap();
            speak(&mut known, &client, now);
            for number in 0..500 {
                silent.push(enter(&mut known, number, &limits, now).unwrap());
            }
            assert!(has_place(&known, &client));
            assert_eq!(known.handshakes.len(), 8);
            known.remove(client.id);
        }
        assert!(silent.iter().filter(|silent| has_place(&known, silent)).count() < 8);
    }

    #[test]
    fn who_loses_its_place_is_who_is_least_loss() {
        let (mut known, limits, now) = (Known::default(), limits(6, 6), Instant::now());
        // 1 holds two silent ones, 2 one, and all the others have spoken.
        let held = [1, 2, 1, 3, 3, 3].map(|number| enter(&mut known, number, &limits, now).unwrap());
        for entered in &held[3..] {
            speak(&mut known, entered, now);
        }
        known.handshakes.get_mut(&held[4].id).unwrap().progress = Progress::Failed;
        let mut lost = Vec::new();
        let mut loses = |index: usize, now: Instant| {
            let newcomer = enter(&mut known, 100 + index as u32, &limits, now).unwrap();
            speak(&mut known, &newcomer, now);
            lost.push(index);
            for (index, entered) in held.iter().enumerate() {
                assert_eq!(has_place(&known, entered), !lost.contains(&index), "{lost:?}: {index}");
            }
        };
        // The one that has failed, then the older one of the source with most, then the oldest silent ones.
        for index in [4, 0, 1, 2] {
            loses(index, now);
        }
        // Of those that spoke and do not go on, the oldest.
        for index in [3, 5] {
            loses(index, now + STALLED);
        }
        assert!(matches!(enter(&mut known, 1, &limits, now), Err(Closed::Crowded)), "all the others go on");
    }

    #[test]
    fn the_probability_rises_from_the_start_to_certainty_at_the_maximum() {
        let (mut known, limits, now) = (Known::default(), limits(10, 20), Instant::now());
        for count in 0..20 {
            let threshold = if count <= 10 { 0.0 } else { f64::from(count - 10) / 10.0 };
            assert!(!known.is_crowded(&limits, || threshold), "{count}");
            assert_eq!(known.is_crowded(&limits, || threshold - 0.01), count > 10, "{count}");
            enter(&mut known, 1, &limits, now).unwrap();
        }
        assert!(known.is_crowded(&limits, || 0.999_999));
        assert!((0..1000).all(|_| (0.0..1.0).contains(&random())));
    }

    #[test]
    fn a_start_beyond_the_maximum_drops_nothing_early() {
        let (mut known, limits, now) = (Known::default(), limits(50, 2), Instant::now());
        for _ in 0..100 {
            known.enter(source(1), false, &limits, now, || 0.0).unwrap();
        }
        assert_eq!(known.handshakes.len(), 2);
    }

    #[test]
    fn who_was_silent_and_lost_its_place_has_failed() {
        let (mut known, now) = (Known::default(), Instant::now());
        let limits = Limits { penalty_threshold: Duration::from_secs(2), ..limits(1, 1) };
        let shut_out: Vec<_> = (0..5).filter_map(|_| enter(&mut known, 1, &limits, now).unwrap().shut_out).collect();
        assert_eq!(shut_out, [ShutOut { source: source(1), time: Duration::from_secs(2) }], "it is told once");
        assert!(known.penalties.shut_out(source(1), now));
    }

    #[tokio::test]
    async fn a_pass_gives_its_place_back_and_its_failures_count_once() {
        let (gate, limits) = (gate(), Limits { penalty_exempt: Vec::new(), ..limits(4, 8) });
        let address = IpAddr::from([127, 0, 0, 1]);
        let failures = limits.penalty_threshold.div_duration_f64(limits.penalty_failed).ceil() as usize;
        for _ in 0..=failures {
            let pass = gate.enter(address, false, &limits, |_| false).unwrap();
            pass.reached(Stage::Hello, &limits);
            pass.reached(Stage::Failed, &limits);
            pass.failed(&limits);
        }
        assert!(gate.lock().handshakes.is_empty() && gate.lock().held.is_empty());
        assert!(matches!(gate.enter(address, false, &limits, |_| false), Err(Closed::ShutOut)));
        // A balancer that speaks for itself is let in, and one with a session, and an authenticated one clears it.
        gate.enter(address, true, &limits, |_| false).unwrap();
        gate.enter(address, false, &limits, |_| true).unwrap().authenticated();
        gate.enter(address, false, &limits, |_| false).unwrap();
    }

    #[tokio::test]
    async fn whoever_loses_its_place_is_told() {
        let (gate, limits) = (gate(), limits(1, 1));
        let first = gate.enter([192, 0, 2, 1].into(), false, &limits, |_| false).unwrap();
        let _second = gate.enter([192, 0, 2, 2].into(), false, &limits, |_| false).unwrap();
        first.taken_back().await;
    }

    #[test]
    fn exempt_networks_have_no_penalty() {
        let (gate, limits) = (gate(), Limits::default());
        for address in [IpAddr::from([127, 0, 0, 1]), "::1".parse().unwrap(), "::ffff:127.0.0.1".parse().unwrap()] {
            for _ in 0..1000 {
                gate.enter(address, false, &limits, |_| false).unwrap().failed(&limits);
            }
        }
    }
}
