//! Samples → medians beside each other, goals with met or missed; on the terminal, as Markdown and as a chart.
//!
//! A [`Measure`] is a value that says what is measured and what is wanted; whoever measures adds samples of each peer to it,
//! one a round and peer, in any order. Samples of one round are of one state of the machine: so a ratio is the median of the
//! rounds' ratios, wherever two peers have as many samples.

mod chart;
mod markdown;
mod surroundings;
mod terminal;

use std::fs;
use std::path::Path;

use surroundings::Surroundings;

/// Whom the goals are for, and every ratio.
pub(crate) const TSTUNNEL: &str = "tstunnel";

/// What belongs into one table.
#[derive(Debug, PartialEq)]
pub(crate) struct Section {
    pub(crate) title: &'static str,
    /// How it was measured, in sentences of Markdown.
    pub(crate) note: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Better {
    More,
    Less,
}

/// What tstunnel's median is to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    /// So many times a peer's: at least where more is better, at most where less is.
    Times(f64, &'static str),
    /// In the measure's unit: at least where more is better, at most where less is.
    Limit(f64),
}

/// One row of a section.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measure {
    section: &'static Section,
    name: String,
    unit: &'static str,
    better: Better,
    goals: Vec<Goal>,
    charted: bool,
}

impl Measure {
    /// Of which more is better.
    pub(crate) fn more(section: &'static Section, name: impl Into<String>, unit: &'static str) -> Measure {
        Measure { section, name: name.into(), unit, better: Better::More, goals: Vec::new(), charted: false }
    }

    /// Of which less is better.
    pub(crate) fn less(section: &'static Section, name: impl Into<String>, unit: &'static str) -> Measure {
        Measure { better: Better::Less, ..Measure::more(section, name, unit) }
    }

    /// Wants something of tstunnel.
    pub(crate) fn goal(mut self, goal: Goal) -> Measure {
        self.goals.push(goal);
        self
    }

    /// Shows it in the chart too.
    pub(crate) fn charted(mut self) -> Measure {
        self.charted = true;
        self
    }
}

/// A measure with the samples of each peer, in the order in which peers were first seen.
struct Row {
    measure: Measure,
    samples: Vec<(&'static str, Vec<f64>)>,
}

impl Row {
    fn of(&self, peer: &str) -> &[f64] {
        self.samples.iter().find(|(name, _)| *name == peer).map_or(&[], |(_, samples)| samples)
    }

    /// tstunnel's values divided by a peer's: one by one, or the medians.
    fn quotients(&self, peer: &str) -> Vec<f64> {
        let (ours, theirs) = (self.of(TSTUNNEL), self.of(peer));
        if ours.len() == theirs.len() {
            return ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        }
        let medians = [ours, theirs].map(|samples| median(samples.to_vec()));
        medians[0].zip(medians[1]).map(|(ours, theirs)| ours / theirs).into_iter().collect()
    }

    /// How many times better tstunnel is than a peer, none for itself.
    fn times_better(&self, peer: &str) -> Option<f64> {
        let quotient = median(self.quotients(peer)).filter(|_| peer != TSTUNNEL)?;
        Some(if self.measure.better == Better::More { quotient } else { 1.0 / quotient })
    }

    fn verdict(&self, goal: Goal) -> Option<Verdict> {
        let sign = if self.measure.better == Better::More { '≥' } else { '≤' };
        let (wanted, values, bound) = match goal {
            Goal::Times(times, peer) => (format!("{sign} {times} × {peer}"), self.quotients(peer), times),
            Goal::Limit(limit) => {
                let wanted = format!("{sign} {limit} {}", self.measure.unit).trim_end().to_owned();
                (wanted, self.of(TSTUNNEL).to_vec(), limit)
            }
        };
        let least = values.iter().copied().min_by(f64::total_cmp)?;
        let most = values.iter().copied().max_by(f64::total_cmp)?;
        let value = median(values)?;
        let met = if self.measure.better == Better::More { value >= bound } else { value <= bound };
        Some(Verdict {
            measure: format!("{}: {}", self.measure.section.title, self.measure.name),
            wanted,
            measured: digits(value),
            range: format!("{}–{}", digits(least), digits(most)),
            met,
        })
    }
}

/// What became of a goal.
struct Verdict {
    measure: String,
    wanted: String,
    /// The median, and from which to which the samples were.
    measured: String,
    range: String,
    met: bool,
}

impl Verdict {
    fn word(&self) -> &'static str {
        if self.met { "met" } else { "MISSED" }
    }
}

/// Everything that a run has measured.
pub(crate) struct Report {
    rounds: usize,
    surroundings: Surroundings,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(rounds: usize) -> Report {
        Report { rounds, surroundings: Surroundings::look(), rows: Vec::new() }
    }

    /// Adds a sample of a peer's, in the measure's unit.
    pub(crate) fn add(&mut self, measure: &Measure, peer: &'static str, sample: f64) {
        let row = match self.rows.iter().position(|row| row.measure == *measure) {
            Some(index) => &mut self.rows[index],
            None => {
                self.rows.push(Row { measure: measure.clone(), samples: Vec::new() });
                self.rows.last_mut().unwrap()
            }
        };
        match row.samples.iter_mut().find(|(name, _)| *name == peer) {
            Some((_, samples)) => samples.push(sample),
            None => row.samples.push((peer, vec![sample])),
        }
    }

    /// Prints everything.
    pub(crate) fn print(&self) {
        print!("{}", terminal::write(self));
    }

    /// Writes `FIGURES.md`, and the chart beside it.
    pub(crate) fn save(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("FIGURES.svg"), chart::draw(self)).unwrap();
        fs::write(folder.join("FIGURES.md"), markdown::write(self)).unwrap();
    }

    /// The sections in the order in which they were first added to, each with its rows.
    fn sections(&self) -> Vec<(&'static Section, Vec<&Row>)> {
        let mut sections: Vec<(&'static Section, Vec<&Row>)> = Vec::new();
        for row in &self.rows {
            match sections.iter_mut().find(|(section, _)| *section == row.measure.section) {
                Some((_, rows)) => rows.push(row),
                None => sections.push((row.measure.section, vec![row])),
            }
        }
        sections
    }

    fn verdicts(&self) -> Vec<Verdict> {
        self.rows.iter().flat_map(|row| row.measure.goals.iter().filter_map(|goal| row.verdict(*goal))).collect()
    }

    /// How it was measured, in one sentence.
    fn method(&self) -> String {
        format!(
            "Medians of at most {} rounds, everybody measured in each: `n` samples. Behind a value: how many times better \
             {TSTUNNEL} is, as the median of what samples taken side by side say.",
            self.rounds
        )
    }
}

/// The peers of some rows, in the order in which they were first seen, tstunnel before all.
fn peers(rows: &[&Row]) -> Vec<&'static str> {
    let mut peers = Vec::new();
    for (peer, _) in rows.iter().flat_map(|row| &row.samples) {
        if !peers.contains(peer) {
            peers.push(*peer);
        }
    }
    peers.sort_by_key(|peer| *peer != TSTUNNEL);
    peers
}

/// The one in the middle, or between the two there; none of nothing.
pub(crate) fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    let upper = *samples.get(middle)?;
    Some(if samples.len() % 2 == 1 { upper } else { (samples[middle - 1] + upper) / 2.0 })
}

/// A value with three digits that count, and no more than it has.
fn digits(value: f64) -> String {
    let places = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        0.1.. => 2,
        _ => 3,
    };
    format!("{value:.places$}")
}

/// How many samples there are of whoever has most: everybody is measured as often, or not at all.
fn count(row: &Row) -> String {
    row.samples.iter().map(|(_, samples)| samples.len()).max().unwrap_or(0).to_string()
}

/// A peer's median, with how many times better tstunnel is; nothing where it was not measured.
fn cell(row: &Row, peer: &str) -> String {
    let Some(median) = median(row.of(peer).to_vec()) else { return String::new() };
    match row.times_better(peer) {
        Some(times) => format!("{} ({}×)", digits(median), digits(times)),
        None => digits(median),
    }
}

/// What a row is called, with its unit.
fn name(row: &Row) -> String {
    match row.measure.unit {
        "" => row.measure.name.clone(),
        unit => format!("{}, {unit}", row.measure.name),
    }
}
