//! Sources that fail to authenticate, again and again → which of them are shut out, and until when: as sshd's
//! `PerSourcePenalties` (sshd_config(5)). The time comes in; no I/O.
//!
//! A failure adds to a source's time. Once that is longer than a threshold the source is shut out, until the time has run down. A success
//! clears it. Memory is bounded: the source with the least time gives way.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::server::config::Limits;
use crate::server::source::Source;

/// How many sources are remembered, as in sshd: some 10 MiB.
const MAX_SOURCES: usize = 65_536;

/// The sources with a penalty.
#[derive(Debug, Default)]
pub(super) struct Penalties {
    sources: HashMap<Source, Penalty>,
    /// The same by the end of their time, the first to end first.
    ends: BTreeSet<(Instant, Source)>,
}

#[derive(Clone, Copy, Debug)]
struct Penalty {
    end: Instant,
    is_shut_out: bool,
}

impl Penalties {
    /// Whether `source` is shut out at `now`.
    pub(super) fn shut_out(&mut self, source: Source, now: Instant) -> bool {
        self.forget_ended(now);
        self.sources.get(&source).is_some_and(|penalty| penalty.is_shut_out)
    }

    /// `source` has failed once more; for how long that has shut it out, where it was not before.
    pub(super) fn add(&mut self, source: Source, limits: &Limits, now: Instant) -> Option<Duration> {
        self.forget_ended(now);
        if limits.penalty_failed.is_zero() {
            return None;
        }
        let before = self.take(source);
        if before.is_none() && self.sources.len() >= MAX_SOURCES {
            self.forget_first();
        }
        let start = before.map_or(now, |penalty| penalty.end);
        let end = (start + limits.penalty_failed).min(now + limits.penalty_max);
        let was_shut_out = before.is_some_and(|penalty| penalty.is_shut_out);
        let is_shut_out = was_shut_out || end.duration_since(now) >= limits.penalty_threshold.min(limits.penalty_max);
        self.sources.insert(source, Penalty { end, is_shut_out });
        self.ends.insert((end, source));
        (is_shut_out && !was_shut_out).then(|| end.duration_since(now))
    }

    /// `source` has authenticated.
    pub(super) fn clear(&mut self, source: Source) {
        self.take(source);
    }

    fn take(&mut self, source: Source) -> Option<Penalty> {
        let penalty = self.sources.remove(&source)?;
        self.ends.remove(&(penalty.end, source));
        Some(penalty)
    }

    fn forget_ended(&mut self, now: Instant) {
        while self.ends.first().is_some_and(|(end, _)| *end <= now) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, source)) = self.ends.pop_first() {
            self.sources.remove(&source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn source(number: u32) -> Source {
        Source::of(IpAddr::V4(Ipv4Addr::from_bits(number)))
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// A second for each failure, three of them, and never more than a minute.
    fn limits() -> Limits {
        Limits {
            penalty_failed: seconds(1),
            penalty_threshold: seconds(3),
            penalty_max: seconds(60),
            ..Limits::default()
        }
    }

    #[test]
    fn a_source_that_fails_again_and_again_is_shut_out_until_its_time_has_run_down() {
        let (mut penalties, start) = (Penalties::default(), Instant::now());
        assert_eq!(penalties.add(source(1), &limits(), start), None);
        assert_eq!(penalties.add(source(1), &limits(), start), None);
        assert!(!penalties.shut_out(source(1), start));
        assert_eq!(penalties.add(source(1), &limits(), start), Some(seconds(3)), "the third is too many");
        assert_eq!(penalties.add(source(1), &limits(), start), None, "it is told once");
        assert!(penalties.shut_out(source(1), start));
        assert!(!penalties.shut_out(source(2), start), "others are not");
        assert!(penalties.shut_out(source(1), start + seconds(3)), "not only while above the threshold");
        assert!(!penalties.shut_out(source(1), start + seconds(4)));
        assert_eq!(penalties.add(source(1), &limits(), start + seconds(4)), None, "and begins anew");
    }

    #[test]
    fn a_source_that_fails_now_and_then_is_not_shut_out() {
        let (mut penalties, start) = (Penalties::default(), Instant::now());
        for count in 0..1000 {
            assert_eq!(penalties.add(source(1), &limits(), start + seconds(2) * count), None);
        }
    }

    #[test]
    fn a_success_clears_it() {
        let (mut penalties, now) = (Penalties::default(), Instant::now());
        for _ in 0..100 {
            penalties.add(source(1), &limits(), now);
        }
        penalties.clear(source(1));
        assert!(!penalties.shut_out(source(1), now));
        assert!(penalties.sources.is_empty() && penalties.ends.is_empty());
    }

    #[test]
    fn the_time_has_an_end() {
        let (mut penalties, now) = (Penalties::default(), Instant::now());
        for _ in 0..1000 {
            penalties.add(source(1), &limits(), now);
        }
        assert!(penalties.shut_out(source(1), now + seconds(59)));
        assert!(!penalties.shut_out(source(1), now + seconds(60)));
    }

    #[test]
    fn the_least_penalised_gives_way_and_memory_is_bounded() {
        let (mut penalties, now) = (Penalties::default(), Instant::now());
        for _ in 0..5 {
            penalties.add(source(0), &limits(), now);
        }
        for number in 1..=2 * MAX_SOURCES as u32 {
            penalties.add(source(number), &limits(), now);
        }
        assert!(penalties.shut_out(source(0), now));
        assert_eq!((penalties.sources.len(), penalties.ends.len()), (MAX_SOURCES, MAX_SOURCES));
        assert!(!penalties.shut_out(source(0), now + seconds(3600)));
        assert!(penalties.sources.is_empty() && penalties.ends.is_empty());
    }

    #[test]
    fn without_a_penalty_nobody_is_remembered() {
        let mut penalties = Penalties::default();
        let limits = Limits { penalty_failed: Duration::ZERO, ..limits() };
        assert!((0..100).all(|_| penalties.add(source(1), &limits, Instant::now()).is_none()));
        assert!(penalties.sources.is_empty());
    }
}
