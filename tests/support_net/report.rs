//! What tstunnel says when it fails: exactly one error line and one hint, and `tstunnel classify` reads the code back.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::child::{Ran, run, run_with_input};
use super::site::{CONNECT_SECONDS, Site};
use crate::support::serve::TSTUNNEL;

/// What Mutagen searches a stderr for, and would take for something else.
const FRAGMENTS: [&str; 3] = [
    "ommand not found",
    "is not recognized as an internal or external command",
    "The system cannot find the path specified",
];

/// Beyond the connect time-out: for starting processes on a machine with other work to do.
const SLACK: Duration = Duration::from_secs(6);

/// Runs what must fail with `status` and `code`, and returns what its error line says.
#[track_caller]
pub(crate) fn fails(command: &mut Command, status: i32, code: &str) -> String {
    let ran = run(command);
    check(&format!("{command:?}"), &ran, status, code)
}

/// The same of one that has run.
#[track_caller]
pub(crate) fn check(what: &str, ran: &Ran, status: i32, code: &str) -> String {
    let Ran { stdout, stderr, took, .. } = ran;
    assert_eq!(ran.code(), Some(status), "{what}: {}\n{stderr}", ran.status);
    assert!(stdout.is_empty(), "{what} wrote to stdout: {}", String::from_utf8_lossy(stdout));
    let limit = Duration::from_secs(CONNECT_SECONDS) + SLACK;
    assert!(*took < limit, "{what} took {took:?}");
    let text = error_line(what, stderr, code);
    classified(what, stderr, status, code);
    text
}

/// Checks that a stderr is one error line of `code` and one hint, and returns what the line says.
#[track_caller]
pub(crate) fn error_line(what: &str, stderr: &str, code: &str) -> String {
    let lines: Vec<&str> = stderr.lines().collect();
    let [error, hint] = lines.as_slice() else { panic!("{what}: not two lines:\n{stderr}") };
    let text = error
        .strip_prefix(&format!("tstunnel: error[{code}]: "))
        .unwrap_or_else(|| panic!("{what}: not error[{code}]:\n{stderr}"));
    let advice = hint.strip_prefix("tstunnel: hint: ").unwrap_or_else(|| panic!("{what}: no hint:\n{stderr}"));
    assert!(
        !text.is_empty() && !advice.is_empty() && (!text.ends_with('.') || text.ends_with("...")),
        "{what}:\n{stderr}"
    );
    for fragment in FRAGMENTS {
        assert!(!stderr.contains(fragment), "{what} says what Mutagen takes for something else:\n{stderr}");
    }
    text.to_owned()
}

/// Checks that `tstunnel classify` reads `code` from a stderr, and knows what happened.
#[track_caller]
pub(crate) fn classified(what: &str, stderr: &str, status: i32, code: &str) {
    let mut command = Command::new(TSTUNNEL);
    command.args(["classify", "--json", "--exit-status", &status.to_string()]);
    let ran = run_with_input(&mut command, stderr.as_bytes());
    assert_eq!((ran.code(), ran.stderr.as_str()), (Some(0), ""), "{what}: classify does not know\n{stderr}");
    let verdict: Value = serde_json::from_slice(&ran.stdout).expect("classify writes JSON");
    assert_eq!(verdict["code"], code, "{what}: {verdict}\n{stderr}");
}

/// Runs every command that reaches the host, and checks that each fails with `code` and the status that it stands for;
/// returns what `exec` says.
#[track_caller]
pub(crate) fn every_command_fails(site: &Site, host: &str, code: &str) -> String {
    let file = site.local_file("some-file", b"contents");
    let file = file.to_str().unwrap();
    let text = fails(&mut site.tstunnel(&["exec", host, "--", "uname -s -m"]), 255, code);
    for (mut command, status) in [
        (site.tstunnel(&["connect", host, "--target", "tcp:127.0.0.1:9"]), 255),
        (site.tstunnel(&["upload", file, &format!("{host}:.mutagen-agent1")]), 1),
        (site.ssh(&["-oConnectTimeout=4", host, "uname -s -m"]), 255),
        (site.scp(&["-C", "-oConnectTimeout=4", file, &format!("{host}:.mutagen-agent1")]), 255),
    ] {
        fails(&mut command, status, code);
    }
    text
}
