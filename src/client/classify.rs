//! A failed command's stderr and exit status → what went wrong, and what would help. [`classify`] is pure.
//!
//! It knows tstunnel's own report (`tstunnel: error[CODE]: …`), the fragments and statuses that Mutagen's
//! `ClassifyError` reads (`pkg/agent/transport/ssh/transport.go`, `pkg/process/errors.go`), and what OpenSSH says when
//! it fails. An answer of `install` is Mutagen's answer wherever Mutagen has one.

use std::io::{Read, Write};

use crate::error::{Code, Error, Result, Retry};

/// What a failure means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The kind of failure, if it has one of the protocol's codes.
    pub code: Option<Code>,
    /// Whether installing the agent would help.
    pub install: bool,
    /// Whether the remote is Windows, with `cmd.exe` for a shell.
    pub windows: bool,
    /// Whether the same attempt may succeed later; on Windows, with that platform's paths.
    pub retry: bool,
    /// What to do about it.
    pub hint: String,
}

impl Verdict {
    /// Whether it is known what happened.
    pub fn known(&self) -> bool {
        self.code.is_some() || self.windows
    }

    /// The verdict as one line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::json!({
            "code": self.code.map(Code::name),
            "install": self.install,
            "windows": self.windows,
            "retry": self.retry,
            "hint": self.hint,
        })
        .to_string()
    }

    /// The verdict for a person: the code, what would help, the hint.
    pub fn to_text(&self) -> String {
        let mut text = self.code.map_or("unknown", Code::name).to_owned();
        for (is, word) in [(self.install, "install"), (self.windows, "windows"), (self.retry, "retry")] {
            if is {
                text.push(' ');
                text.push_str(word);
            }
        }
        format!("{text}\n{}", self.hint)
    }

    fn of(code: Code, hint: Option<String>) -> Verdict {
        Verdict {
            code: Some(code),
            install: code.retry() == Retry::AfterInstall,
            windows: false,
            retry: code.retry() == Retry::Yes,
            hint: hint.unwrap_or_else(|| code.default_hint().to_owned()),
        }
    }
}

/// The order is that of certainty: what tstunnel says of itself, what a shell says by its exit status, what Mutagen
/// searches for, what OpenSSH says.
pub fn classify(stderr: &str, exit_status: Option<i32>) -> Verdict {
    if let Some((code, hint)) = own_report(stderr) {
        return Verdict::of(code, hint);
    }
    match exit_status {
        Some(126) => return Verdict::of(Code::AgentNotExecutable, None),
        Some(127) => return Verdict::of(Code::AgentMissing, None),
        _ => {}
    }
    if stderr.contains("ommand not found") {
        return Verdict::of(Code::AgentMissing, None);
    }
    // cmd.exe did not even understand the path: the agent may well be there.
    if stderr.contains("is not recognized as an internal or external command") {
        let hint = "start the agent by a path with backslashes: the host runs cmd.exe".to_owned();
        return Verdict { code: None, install: false, windows: true, retry: true, hint };
    }
    if stderr.contains("The system cannot find the path specified") {
        return Verdict { windows: true, ..Verdict::of(Code::AgentMissing, None) };
    }
    let said = SSH_MESSAGES
        .iter()
        .find(|(fragments, ..)| stderr.lines().any(|line| fragments.iter().all(|fragment| line.contains(fragment))));
    if let Some((_, code, hint)) = said {
        return Verdict::of(*code, (!hint.is_empty()).then(|| (*hint).to_owned()));
    }
    let hint = match (stderr.trim().is_empty(), exit_status) {
        (true, Some(0)) => "the command succeeded and said nothing",
        (true, _) => "the command said nothing: run it by hand, with `-v`, to see where it stops",
        (false, _) => "nothing known: read the command's own words",
    };
    Verdict { code: None, install: false, windows: false, retry: false, hint: hint.to_owned() }
}

/// The last `tstunnel: error[CODE]: …`, and the hint below it.
fn own_report(stderr: &str) -> Option<(Code, Option<String>)> {
    let lines: Vec<&str> = stderr.lines().collect();
    lines.iter().enumerate().rev().find_map(|(index, line)| {
        let (name, _) = line.strip_prefix("tstunnel: error[")?.split_once("]: ")?;
        let hint = lines.get(index + 1).and_then(|next| next.strip_prefix("tstunnel: hint: "));
        Some((Code::from_name(name)?, hint.map(str::to_owned)))
    })
}

/// Fragments that stand in one line of OpenSSH's messages, what they mean, and a hint where the code's own would
/// mislead, since it is not tstunnel that failed.
const SSH_MESSAGES: &[(&[&str], Code, &str)] = &[
    (
        &["Could not resolve hostname"],
        Code::Dns,
        "check the host's spelling; ssh took it, so tstunnel's configuration has no entry for it",
    ),
    (&["Connection refused"], Code::ConnectRefused, "check that the host's ssh server is running, and its port"),
    (
        &["Host key verification failed"],
        Code::TlsUntrusted,
        "compare the host's key with its owner, and correct ~/.ssh/known_hosts",
    ),
    (&["REMOTE HOST IDENTIFICATION HAS CHANGED"], Code::TlsUntrusted, "ask the host's owner why its key has changed"),
    (
        &["Permission denied ("],
        Code::Unauthorized,
        "check the account, and that ssh offers a key that the host accepts",
    ),
    (&["Permission denied, please try again"], Code::Unauthorized, "check the account and the password"),
    (&["Too many authentication failures"], Code::Unauthorized, "offer one key alone: IdentitiesOnly and IdentityFile"),
    (&["Bad configuration option"], Code::Config, "correct ssh's configuration"),
    (&["usage: ssh "], Code::Usage, "correct ssh's arguments"),
    (&["No route to host"], Code::ConnectTimeout, "check the route and firewall to the host"),
    (&["Network is unreachable"], Code::ConnectTimeout, "check this machine's network"),
    (&["ssh: connect to host", "timed out"], Code::ConnectTimeout, "check the route and firewall to the host"),
    (&["Connection timed out"], Code::ConnectTimeout, "check the route and firewall to the host"),
    (&["Timeout, server ", " not responding"], Code::NetworkLost, ""),
    (&["Connection closed by"], Code::NetworkLost, ""),
    (&["Connection reset by"], Code::NetworkLost, ""),
    (&["closed by remote host"], Code::NetworkLost, ""),
    (&["client_loop: send disconnect"], Code::NetworkLost, ""),
    (&["Broken pipe"], Code::NetworkLost, ""),
];

/// Most bytes of stderr that are read; Mutagen itself looks at the first 32 KiB.
const MAX_STDERR_BYTES: u64 = 1024 * 1024;

/// `tstunnel classify`: reads a stderr, writes the verdict, and returns the exit status: 0 when it is known what
/// happened, 1 when not. What lies beyond a MiB is not read.
///
/// # Errors
/// `internal` where stdin cannot be read or stdout not be written.
pub fn run(stdin: &mut dyn Read, stdout: &mut dyn Write, exit_status: Option<i32>, json: bool) -> Result<i32> {
    let mut stderr = Vec::new();
    stdin
        .take(MAX_STDERR_BYTES)
        .read_to_end(&mut stderr)
        .map_err(|error| Error::new(Code::Internal, format!("stdin cannot be read: {error}")))?;
    let verdict = classify(&String::from_utf8_lossy(&stderr), exit_status);
    let said = if json { verdict.to_json() } else { verdict.to_text() };
    writeln!(stdout, "{said}")
        .and_then(|()| stdout.flush())
        .map_err(|error| Error::new(Code::Internal, format!("stdout cannot be written: {error}")))?;
    Ok(if verdict.known() { 0 } else { 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(stderr: &str, exit_status: Option<i32>) -> (Option<Code>, bool, bool, bool) {
        let Verdict { code, install, windows, retry, .. } = classify(stderr, exit_status);
        (code, install, windows, retry)
    }

    #[test]
    fn every_report_of_tstunnels_is_read_back() {
        for code in Code::ALL {
            let error = Error::new(*code, "what happened, to `x]: y`").with_hint("do this");
            let verdict = classify(&format!("noise\n{}\n", error.report()), Some(255));
            assert_eq!((verdict.code, verdict.hint.as_str()), (Some(*code), "do this"));
            assert_eq!(verdict.retry, code.retry() == Retry::Yes, "{code}");
            assert_eq!(verdict.install, code.retry() == Retry::AfterInstall, "{code}");
        }
    }

    #[test]
    fn the_last_report_counts_and_one_without_a_hint_gets_the_codes_own() {
        let two = "tstunnel: error[dns]: a\ntstunnel: hint: b\r\ntstunnel: error[proxy]: c";
        let verdict = classify(two, None);
        assert_eq!((verdict.code, verdict.hint.as_str()), (Some(Code::Proxy), Code::Proxy.default_hint()));
        assert_eq!(said("tstunnel: error[made-up]: x", None).0, None);
        assert_eq!(said("x tstunnel: error[dns]: not at a line's beginning", None).0, None);
        assert_eq!(said("tstunnel: error[", None).0, None);
    }

    #[test]
    fn mutagens_fragments_and_statuses_mean_what_they_mean_to_mutagen() {
        let missing = (Some(Code::AgentMissing), true, false, false);
        assert_eq!(said("anything", Some(127)), missing);
        assert_eq!(said("", Some(126)), (Some(Code::AgentNotExecutable), true, false, false));
        assert_eq!(said("sh: x: command not found", Some(1)), missing);
        assert_eq!(said("zsh: Command not found", None), missing);
        let invalid = "'.mutagen' is not recognized as an internal or external command,\r\noperable program";
        assert_eq!(said(invalid, Some(1)), (None, false, true, true));
        assert!(classify(invalid, Some(1)).known());
        let no_path = "The system cannot find the path specified.";
        assert_eq!(said(no_path, Some(1)), (Some(Code::AgentMissing), true, true, false));
        // A status that a POSIX shell gives wins over Windows words, as in Mutagen.
        assert_eq!(said(no_path, Some(127)), missing);
    }

    #[test]
    fn opensshs_messages_are_known() {
        for (stderr, code) in [
            ("ssh: connect to host h port 22: Connection refused", Code::ConnectRefused),
            ("ssh: connect to host h port 22: Connection timed out", Code::ConnectTimeout),
            ("ssh: connect to host h port 22: Operation timed out", Code::ConnectTimeout),
            ("ssh: connect to host h port 22: No route to host", Code::ConnectTimeout),
            ("ssh: connect to host h port 22: Network is unreachable", Code::ConnectTimeout),
            ("ssh: Could not resolve hostname h: Name or service not known", Code::Dns),
            ("dev@h: Permission denied (publickey,password).", Code::Unauthorized),
            ("Permission denied, please try again.", Code::Unauthorized),
            ("Received disconnect from ::1 port 22:2: Too many authentication failures", Code::Unauthorized),
            ("No ED25519 host key is known for h\nHost key verification failed.", Code::TlsUntrusted),
            ("kex_exchange_identification: Connection closed by remote host", Code::NetworkLost),
            ("Connection closed by 10.0.0.1 port 22", Code::NetworkLost),
            ("kex_exchange_identification: read: Connection reset by peer", Code::NetworkLost),
            ("Connection to h closed by remote host.", Code::NetworkLost),
            ("client_loop: send disconnect: Broken pipe", Code::NetworkLost),
            ("Timeout, server h not responding.", Code::NetworkLost),
            ("command-line: line 0: Bad configuration option: foo", Code::Config),
            ("usage: ssh [-46AaCf] ...", Code::Usage),
        ] {
            let verdict = classify(&format!("Warning: something\r\n{stderr}\r\n"), Some(255));
            assert_eq!(verdict.code, Some(code), "{stderr}");
            assert!(!verdict.hint.is_empty() && !verdict.install && !verdict.windows);
        }
    }

    #[test]
    fn a_files_permissions_are_not_an_account() {
        assert_eq!(said("bash: ./x: Permission denied", Some(1)).0, None);
        assert_eq!(said("bash: ./x: Permission denied", Some(126)).0, Some(Code::AgentNotExecutable));
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        for (stderr, status) in
            [("", None), ("", Some(0)), ("", Some(255)), ("panic: oh no", Some(2)), ("timed out", None)]
        {
            let verdict = classify(stderr, status);
            assert!(!verdict.known() && !verdict.install && !verdict.retry && !verdict.hint.is_empty(), "{stderr}");
        }
    }

    #[test]
    fn the_command_prints_the_verdict_and_exits_by_what_it_knows() {
        let run = |stderr: &[u8], status, json| {
            let mut stdout = Vec::new();
            let exit = run(&mut &*stderr, &mut stdout, status, json).unwrap();
            (exit, String::from_utf8(stdout).unwrap())
        };
        let hint = Code::AgentMissing.default_hint();
        assert_eq!(run(b"", Some(127), false), (0, format!("agent-missing install\n{hint}\n")));
        let (exit, json) = run(b"\xff\n", Some(3), true);
        assert_eq!(exit, 1);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["code"], serde_json::Value::Null);
        assert_eq!(json["install"], false);
        assert_eq!(json["windows"], false);
        assert_eq!(json["retry"], false);
        assert!(json["hint"].is_string());
        let (_, json) = run(b"tstunnel: error[dns]: x", None, true);
        assert!(json.contains("\"code\":\"dns\"") && json.contains("\"retry\":true") && json.ends_with("}\n"));
    }

    #[test]
    fn no_more_than_a_mebibyte_is_read() {
        let mut endless = std::io::repeat(b'x');
        let mut stdout = Vec::new();
        assert_eq!(run(&mut endless, &mut stdout, None, true), Ok(1));
    }
}
