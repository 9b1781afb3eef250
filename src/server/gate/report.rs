//! Connections that were closed before they were authenticated → at most one line of log for a source and a minute. The time
//! comes in; the lines go out by the caller.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use crate::server::source::Source;

/// How often one source is spoken of.
const INTERVAL: Duration = Duration::from_secs(60);
/// How many sources are spoken of by name; the rest are counted together.
const MAX_SOURCES: usize = 64;

/// Why a connection was closed before it was authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Its source has failed to authenticate too often.
    ShutOut,
    /// There were too many handshakes.
    Crowded,
    /// There were too many connections.
    Full,
}

impl Closed {
    /// Every reason.
    pub const ALL: &'static [Closed] = &[Closed::ShutOut, Closed::Crowded, Closed::Full];

    /// Its name in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Closed::ShutOut => "shut-out",
            Closed::Crowded => "crowded",
            Closed::Full => "full",
        }
    }
}

/// What was closed, and not yet said.
#[derive(Debug, Default)]
pub(super) struct Report {
    sources: HashMap<Source, Entry>,
    others: Option<Entry>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// When it was last spoken of.
    said: Option<Instant>,
    counts: Counts,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    shut_out: u64,
    crowded: u64,
    full: u64,
}

/// A line of log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// `None` for all the sources that are not spoken of by name.
    source: Option<Source>,
    counts: Counts,
}

impl Report {
    /// Counts one more; the line that it is time for.
    pub(super) fn count(&mut self, source: Source, why: Closed, now: Instant) -> Option<Line> {
        let is_named = self.sources.contains_key(&source) || self.sources.len() < MAX_SOURCES;
        let (name, entry) = if is_named {
            (Some(source), self.sources.entry(source).or_default())
        } else {
            (None, self.others.get_or_insert_default())
        };
        match why {
            Closed::ShutOut => entry.counts.shut_out += 1,
            Closed::Crowded => entry.counts.crowded += 1,
            Closed::Full => entry.counts.full += 1,
        }
        entry.due(name, now)
    }

    /// The lines that it is time for, and that no further connection brings out.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Line> {
        let mut lines = Vec::new();
        self.sources.retain(|source, entry| {
            let is_over = entry.is_over(now);
            lines.extend(entry.due(Some(*source), now));
            !is_over
        });
        self.others = self.others.filter(|entry| !entry.is_over(now));
        lines.extend(self.others.as_mut().and_then(|entry| entry.due(None, now)));
        lines
    }
}

impl Entry {
    /// The first one is said at once.
    fn due(&mut self, source: Option<Source>, now: Instant) -> Option<Line> {
        if self.counts == Counts::default() || !self.may_speak(now) {
            return None;
        }
        self.said = Some(now);
        Some(Line { source, counts: std::mem::take(&mut self.counts) })
    }

    /// Whether nothing has happened since it was spoken of.
    fn is_over(&self, now: Instant) -> bool {
        self.counts == Counts::default() && self.may_speak(now)
    }

    fn may_speak(&self, now: Instant) -> bool {
        self.said.is_none_or(|said| now.duration_since(said) >= INTERVAL)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            Some(source) => write!(f, "closed connections from {source} before they were authenticated:")?,
            None => f.write_str("closed connections from other sources before they were authenticated:")?,
        }
        let mut separator = " ";
        for (count, why) in [
            (self.counts.shut_out, "because of failures before"),
            (self.counts.crowded, "because there were too many handshakes"),
            (self.counts.full, "because there were too many connections"),
        ] {
            if count > 0 {
                write!(f, "{separator}{count} {why}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn source(number: u32) -> Source {
        Source::of(IpAddr::V4(Ipv4Addr::from_bits(number)))
    }

    #[test]
    fn one_source_has_one_line_a_minute_with_the_count() {
        let (mut report, start) = (Report::default(), Instant::now());
        let first = report.count(source(1), Closed::ShutOut, start).unwrap();
        assert_eq!(
            first.to_string(),
            "closed connections from 0.0.0.1 before they were authenticated: 1 because of failures before"
        );
        for _ in 0..1000 {
            assert_eq!(report.count(source(1), Closed::ShutOut, start), None);
        }
        assert_eq!(report.count(source(1), Closed::Crowded, start + INTERVAL / 2), None);
        assert!(report.due(start + INTERVAL / 2).is_empty());
        let lines = report.due(start + INTERVAL);
        assert_eq!(
            lines.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "closed connections from 0.0.0.1 before they were authenticated: 1000 because of failures before, 1 because \
              there were too many handshakes"
            ]
        );
        assert!(report.due(start + INTERVAL * 2).is_empty());
        assert!(report.sources.is_empty(), "what is over is forgotten");
    }

    #[test]
    fn a_line_is_due_with_the_next_connection_too() {
        let (mut report, start) = (Report::default(), Instant::now());
        assert!(report.count(source(1), Closed::Full, start).is_some());
        assert!(report.count(source(1), Closed::Full, start).is_none());
        let line = report.count(source(1), Closed::Full, start + INTERVAL).unwrap();
        assert_eq!(line.counts, Counts { full: 2, ..Counts::default() });
    }

    #[test]
    fn many_sources_are_counted_together() {
        let (mut report, start) = (Report::default(), Instant::now());
        let lines = (0..100_000).filter_map(|number| report.count(source(number), Closed::Crowded, start)).count();
        assert_eq!(lines, MAX_SOURCES + 1);
        let lines = report.due(start + INTERVAL);
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].counts.crowded, (100_000 - MAX_SOURCES - 1) as u64);
        assert!(lines[0].to_string().contains("other sources"), "{}", lines[0]);
    }
}
