//! The steps of a check, as they are taken → lines for a person, or one JSON object; and the exit status. Text that a peer, a file
//! or a user wrote is escaped.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use crate::error::{Code, Error, Result, printable};
use crate::stdio;

/// Where the words of a step begin, and those of what belongs to it.
const NAME_COLUMNS: usize = 16;
const OUTCOME_COLUMNS: usize = 9;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named for what it looks at")]
pub enum Part {
    Configuration,
    Name,
    Proxy,
    Tcp,
    Tls,
    OwnCertificate,
    Host,
    Upgrade,
    Policy,
    RoundTrip,
    Agent,
    Target,
    Throughput,
    Mutagen,
}

impl Part {
    /// Every part, in the order of a report.
    pub const ALL: &'static [Part] = &[
        Part::Configuration,
        Part::Name,
        Part::Proxy,
        Part::Tcp,
        Part::Tls,
        Part::OwnCertificate,
        Part::Host,
        Part::Upgrade,
        Part::Policy,
        Part::RoundTrip,
        Part::Agent,
        Part::Target,
        Part::Throughput,
        Part::Mutagen,
    ];

    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Part::Configuration => "configuration",
            Part::Name => "name",
            Part::Proxy => "proxy",
            Part::Tcp => "tcp",
            Part::Tls => "tls",
            Part::OwnCertificate => "own certificate",
            Part::Host => "host",
            Part::Upgrade => "upgrade",
            Part::Policy => "policy",
            Part::RoundTrip => "round trip",
            Part::Agent => "agent",
            Part::Target => "target",
            Part::Throughput => "throughput",
            Part::Mutagen => "mutagen",
        }
    }

    /// The exit status of a check that failed there first.
    pub fn status(self) -> u8 {
        match self {
            Part::Configuration => 3,
            Part::Name => 4,
            Part::Proxy | Part::Tcp => 5,
            Part::Tls => 6,
            Part::OwnCertificate => 7,
            Part::Host | Part::Upgrade | Part::Policy | Part::RoundTrip => 8,
            Part::Agent => 9,
            Part::Mutagen => 10,
            Part::Target => 11,
            Part::Throughput => 12,
        }
    }
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It works, and will not for long or not for everything.
    Warning,
    /// It does not work.
    Failed,
    /// There was nothing to look at.
    Skipped,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Warning => "warning",
            Outcome::Failed => "failed",
            Outcome::Skipped => "-",
        }
    }
}

/// One line of the report, and what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    part: Part,
    outcome: Outcome,
    text: String,
    code: Option<Code>,
    hints: Vec<String>,
    details: Vec<String>,
    facts: Map<String, Value>,
}

impl Step {
    /// A step without anything to complain of.
    pub fn ok(part: Part, text: impl Into<String>) -> Step {
        let (text, facts) = (text.into(), Map::new());
        Step { part, outcome: Outcome::Ok, text, code: None, hints: Vec::new(), details: Vec::new(), facts }
    }

    /// A step that is not taken.
    pub fn skipped(part: Part, why: impl Into<String>) -> Step {
        Step { outcome: Outcome::Skipped, ..Step::ok(part, why) }
    }

    /// A step that failed.
    pub fn failed(part: Part, error: &Error) -> Step {
        let step = Step::ok(part, error.text.clone());
        Step { outcome: Outcome::Failed, code: Some(error.code), hints: vec![error.hint().to_owned()], ..step }
    }

    /// The same, of what works without it.
    pub fn doubtful(part: Part, error: &Error) -> Step {
        Step { outcome: Outcome::Warning, ..Step::failed(part, error) }
    }

    /// Adds something that should be seen to.
    #[must_use]
    pub fn warn(mut self, text: &str, hint: impl Into<String>) -> Step {
        if self.outcome == Outcome::Ok {
            self.outcome = Outcome::Warning;
        }
        self.text = format!("{}; {text}", self.text);
        self.hints.push(hint.into());
        self
    }

    /// Adds lines below it.
    #[must_use]
    pub fn with_details(mut self, details: impl IntoIterator<Item = String>) -> Step {
        self.details.extend(details);
        self
    }

    /// Adds a member to its JSON.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Step {
        self.facts.insert(name.to_owned(), value.into());
        self
    }

    fn to_text(&self) -> String {
        let code = self.code.map_or_else(String::new, |code| format!("{code}: "));
        let mut text = format!(
            "{:NAME_COLUMNS$}{:OUTCOME_COLUMNS$}{code}{}\n",
            self.part.name(),
            self.outcome.word(),
            printable(&self.text)
        );
        let hints = self.hints.iter().map(|hint| format!("hint: {hint}"));
        for line in self.details.iter().cloned().chain(hints) {
            text.push_str(&format!("{:1$}{2}\n", "", NAME_COLUMNS + OUTCOME_COLUMNS, printable(&line)));
        }
        text
    }

    fn to_json(&self) -> Value {
        let mut object = self.facts.clone();
        let outcome = if self.outcome == Outcome::Skipped { "skipped" } else { self.outcome.word() };
        for (name, value) in [
            ("step", json!(self.part.name())),
            ("outcome", json!(outcome)),
            ("text", json!(self.text)),
            ("code", json!(self.code.map(Code::name))),
            ("hints", json!(self.hints)),
        ] {
            object.insert(name.to_owned(), value);
        }
        Value::Object(object)
    }
}

/// A check came to a step behind which nothing makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop;

/// Writes each step when it is known, or all of them in the end.
pub struct Report<'a> {
    stdout: &'a mut dyn Write,
    json: bool,
    steps: Vec<Value>,
    failed: Option<Part>,
    written: io::Result<()>,
}

impl std::fmt::Debug for Report<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Report").field("steps", &self.steps).finish_non_exhaustive()
    }
}

impl Report<'_> {
    /// A report without any step yet.
    pub fn new(stdout: &mut dyn Write, json: bool) -> Report<'_> {
        Report { stdout, json, steps: Vec::new(), failed: None, written: Ok(()) }
    }

    /// Adds a step.
    pub fn add(&mut self, step: Step) {
        if step.outcome == Outcome::Failed {
            self.failed.get_or_insert(step.part);
        }
        if self.json {
            self.steps.push(step.to_json());
        } else if self.written.is_ok() {
            self.written = self.stdout.write_all(step.to_text().as_bytes()).and_then(|()| self.stdout.flush());
        }
    }

    /// Adds a step that failed, and is the last of its kind.
    pub fn stop(&mut self, part: Part, error: &Error) -> Stop {
        self.add(Step::failed(part, error));
        Stop
    }

    /// Ends the report on `host`, and returns the exit status.
    ///
    /// # Errors
    /// `internal` where stdout cannot be written.
    pub fn end(self, host: &str) -> Result<u8> {
        let Report { stdout, json, steps, failed, mut written } = self;
        let status = failed.map_or(0, Part::status);
        if json {
            let report = json!({"host": host, "status": status, "failed": failed.map(Part::name), "steps": steps});
            written = writeln!(stdout, "{report}").and_then(|()| stdout.flush());
        }
        stdio::ended(written, status)
    }
}

/// Columns, as wide as they must be, two spaces apart.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(json: bool, steps: Vec<Step>) -> (String, u8) {
        let mut stdout = Vec::new();
        let mut report = Report::new(&mut stdout, json);
        steps.into_iter().for_each(|step| report.add(step));
        let status = report.end("h").unwrap();
        (String::from_utf8(stdout).unwrap(), status)
    }

    #[test]
    fn a_step_is_a_line_with_what_belongs_to_it_below() {
        let failed = Step::failed(Part::Name, &Error::new(Code::Dns, "no\u{1b}[31m").with_hint("do"));
        let ok = Step::ok(Part::Tls, "fine").with_details(["a".to_owned()]).warn("old", "renew");
        let (text, status) = report(false, vec![ok, Step::skipped(Part::Proxy, "direct"), failed]);
        let expected = "tls             warning  fine; old\n                         a\n                         \
                        hint: renew\nproxy           -        direct\nname            failed   dns: no\\u{1b}[31m\n\
                        \u{20}                        hint: do\n";
        assert_eq!((text.as_str(), status), (expected, 4));
    }

    #[test]
    fn the_first_failure_is_the_exit_status_and_warnings_are_none() {
        let error = Error::new(Code::Config, "x");
        let fails = |parts: &[Part]| report(true, parts.iter().map(|part| Step::failed(*part, &error)).collect()).1;
        assert_eq!(fails(&[Part::Agent, Part::Mutagen]), 9);
        assert_eq!(fails(&[]), 0);
        assert_eq!(report(false, vec![Step::doubtful(Part::Policy, &error)]).1, 0);
    }

    #[test]
    fn json_is_one_object_with_every_step() {
        let ok = Step::ok(Part::Tcp, "x").with("address", "127.0.0.1:1");
        let (text, _) = report(true, vec![ok, Step::skipped(Part::Agent, "y")]);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["host"], &value["status"], &value["failed"]), (&json!("h"), &json!(0), &Value::Null));
        assert_eq!(value["steps"][0]["address"], "127.0.0.1:1");
        assert_eq!(value["steps"][1]["outcome"], "skipped");
        assert!(text.ends_with("}\n") && text.lines().count() == 1);
    }
}
