//! A failed command's stderr and exit status → what went wrong, and what would help. [`classify`] is pure.
//!
//! It knows tstunnel's own report (`tstunnel: error[CODE]: …`), the fragments and statuses that Mutagen's
//! `ClassifyError` reads (`pkg/agent/transport/ssh/transport.go`, `pkg/process/errors.go`), and what OpenSSH says when
//! it fails. An answer of `install` is Mutagen's answer wherever Mutagen has one.

use std::io::{Read, Write};

use crate::error::{Code, Error, Result, Retry, printable};
use crate::stdio;

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

    /// The verdict for a person: the code, what would help, the hint, which may be a peer's words.
    pub fn to_text(&self) -> String {
        let mut text = self.code.map_or("unknown", Code::name).to_owned();
        for (is, word) in [(self.install, "install"), (self.windows, "windows"), (self.retry, "retry")] {
            if is {
                text.push(' ');
                text.push_str(word);
            }
        }
        format!("{text}\n{}", printable(&self.hint))
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
    if is_powershells(stderr) {
        return Verdict { windows: true, ..Verdict::of(Code::AgentMissing, Some(POWERSHELL_HINT.to_owned())) };
    }
    let said = SSH_MESSAGES
        .iter()
        .find(|(fragments, ..)| stderr.lines().any(|line| fragments.iter().all(|fragment| line.contains(fragment))));
    if let Some((_, code, hint)) = said {
        return Verdict::of(*code, (!hint.is_empty()).then(|| (*hint).to_owned()));
    }
    // Without its exit status a shell can only be taken at its word.
    if exit_status.is_none() && stderr.lines().any(is_shells_not_found) {
        return Verdict::of(Code::AgentMissing, None);
    }
    Verdict { code: None, install: false, windows: false, retry: false, hint: unknown(stderr, exit_status) }
}

/// PowerShell has no program of the name. It breaks its lines at the width of a terminal that is not there.
fn is_powershells(stderr: &str) -> bool {
    let words = stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    ["is not recognized as the name of a cmdlet", "is not recognized as a name of a cmdlet", "CommandNotFoundException"]
        .into_iter()
        .any(|fragment| words.contains(fragment))
}

const POWERSHELL_HINT: &str = "install the program on the host, whose shell is PowerShell";

/// What shells say of a program that is not there, where it is not `command not found`: `sh: 1: NAME: not found` of dash and
/// BusyBox, `fish: Unknown command: NAME`. What bash says of one with a slash it also says of any other file.
fn is_shells_not_found(line: &str) -> bool {
    let line = line.trim_end();
    let is_of = |shells: &[&str]| shells.iter().any(|shell| line.starts_with(shell));
    (is_of(&["sh: ", "-sh: ", "ash: ", "-ash: ", "/bin/sh: ", "dash: ", "ksh: "]) && line.ends_with(": not found"))
        || is_of(&["fish: Unknown command"])
}

/// What to do about a failure that says nothing known.
fn unknown(stderr: &str, exit_status: Option<i32>) -> String {
    match (stderr.trim().is_empty(), exit_status) {
        (true, Some(0)) => "the command succeeded and said nothing".to_owned(),
        (_, Some(255)) => {
            "ssh itself failed, or lost its connection: run it by hand, with `-v`, to see where".to_owned()
        }
        (_, Some(status @ 129..=192)) => match signal_name(status - 128) {
            Some(name) => format!("the command was ended by SIG{name}: look for who sent that"),
            None => format!("the command was ended by signal {}: look for who sent that", status - 128),
        },
        (true, _) => "the command said nothing: run it by hand, with `-v`, to see where it stops".to_owned(),
        (false, _) => "nothing known: read the command's own words".to_owned(),
    }
}

/// The signals that end commands, by the numbers that they have on every Linux and most other systems.
fn signal_name(number: i32) -> Option<&'static str> {
    Some(match number {
        1 => "HUP",
        2 => "INT",
        3 => "QUIT",
        4 => "ILL",
        6 => "ABRT",
        8 => "FPE",
        9 => "KILL",
        11 => "SEGV",
        13 => "PIPE",
        14 => "ALRM",
        15 => "TERM",
        _ => return None,
    })
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
/// mislead, since it is not tstunnel that failed. The first that is found counts, so causes stand before their consequences.
const SSH_MESSAGES: &[(&[&str], Code, &str)] = &[
    (
        &["Could not resolve hostname"],
        Code::Dns,
        "check the host's spelling; ssh took it, so tstunnel's configuration has no entry for it",
    ),
    (
        &["open failed: administratively prohibited"],
        Code::CommandDenied,
        "ask whoever runs the host to allow it: AllowTcpForwarding, PermitOpen and DisableForwarding of its sshd",
    ),
    (&["open failed: unknown channel type"], Code::CommandDenied, "use a host whose ssh server has such a service"),
    (&["stdio forwarding failed"], Code::TargetUnreachable, ""),
    (
        &["open failed: connect failed: open failed"],
        Code::TooMany,
        "raise MaxSessions of the host's sshd, or connect anew",
    ),
    (&["Session open refused by peer"], Code::TooMany, "raise MaxSessions of the host's sshd, or connect anew"),
    (&["subsystem request failed"], Code::CommandDenied, "ask whoever runs the host to enable sftp, or use `scp -O`"),
    (&["ssh: connect to host", "Connection refused"], Code::ConnectRefused, SSH_REFUSED),
    (
        &["REMOTE HOST IDENTIFICATION HAS CHANGED"],
        Code::TlsUntrusted,
        "ask the host's owner why its key has changed, and correct ~/.ssh/known_hosts",
    ),
    (
        &["Host key verification failed"],
        Code::TlsUntrusted,
        "compare the host's key with its owner, and correct ~/.ssh/known_hosts",
    ),
    (&["Unable to negotiate with"], Code::TlsHandshake, "one side is too old: allow an algorithm that both know"),
    (&["Protocol major versions differ"], Code::NotTstunnel, NOT_SSH),
    (&["banner exchange:", "invalid format"], Code::NotTstunnel, NOT_SSH),
    (&["banner exchange:", "could not read protocol version"], Code::NotTstunnel, NOT_SSH),
    (&["banner line contains invalid characters"], Code::NotTstunnel, NOT_SSH),
    (&["UNPROTECTED PRIVATE KEY FILE"], Code::Config, "let nobody else read the key: chmod 600"),
    (&["Bad owner or permissions on"], Code::Config, "let nobody else write ssh's configuration: chmod 600"),
    (
        &["Permission denied ("],
        Code::Unauthorized,
        "check the account, and that ssh offers a key that the host accepts",
    ),
    (&["Permission denied, please try again"], Code::Unauthorized, "check the account and the password"),
    (&["Too many authentication failures"], Code::Unauthorized, "offer one key alone: IdentitiesOnly and IdentityFile"),
    (&["This account is currently not available"], Code::Unauthorized, "use an account that has a login shell"),
    (&["Bad configuration option"], Code::Config, "correct ssh's configuration"),
    (&["terminating,", "bad configuration options"], Code::Config, "correct ssh's configuration"),
    (&["Can't open user config file"], Code::Config, "correct the file that follows ssh's -F"),
    (&["usage: ssh "], Code::Usage, "correct ssh's arguments"),
    (&["usage: scp "], Code::Usage, "correct scp's arguments"),
    (&["scp: stat local"], Code::Usage, "check the file's name and permissions"),
    (&["scp: dest open"], Code::Storage, "check that the account may write there, and that there is space"),
    (&["scp: write remote"], Code::Storage, ""),
    (&["scp: ", "No space left on device"], Code::Storage, ""),
    (&["scp: ", ": No such file or directory"], Code::Storage, "check the folder's name on the host"),
    (&["scp: ", ": Permission denied"], Code::Storage, "check that the account may write there"),
    (&["No route to host"], Code::ConnectTimeout, "check the route and firewall to the host"),
    (&["Network is unreachable"], Code::ConnectTimeout, "check this machine's network"),
    (&["ssh: connect to host", "timed out"], Code::ConnectTimeout, "check the route and firewall to the host"),
    (&["Connection timed out"], Code::ConnectTimeout, "check the route and firewall to the host"),
    (&["Connection refused"], Code::ConnectRefused, SSH_REFUSED),
    (&["UNKNOWN port 65535"], Code::Proxy, "run ssh's ProxyCommand or ProxyJump by hand"),
    (&["Timeout, server ", " not responding"], Code::NetworkLost, ""),
    (
        &["kex_exchange_identification:"],
        Code::NetworkLost,
        "check that this is the ssh server's port, and that the server is not full (MaxStartups)",
    ),
    (&["Connection closed by"], Code::NetworkLost, ""),
    (&["Connection reset by"], Code::NetworkLost, ""),
    (&["closed by remote host"], Code::NetworkLost, ""),
    (&["client_loop: send disconnect"], Code::NetworkLost, ""),
    (&["Broken pipe"], Code::NetworkLost, ""),
];

const SSH_REFUSED: &str = "check that the host's ssh server is running, and its port";
const NOT_SSH: &str = "check the port: what answered is not an ssh server of today";

/// Most bytes of stderr that are read; Mutagen itself looks at the first 32 KiB.
const MAX_STDERR_BYTES: u64 = 1024 * 1024;

/// `tstunnel classify`: reads a stderr, writes the verdict, and returns the exit status: 0 when it is known what
/// happened, 1 when not. What lies beyond a MiB is not read.
///
/// # Errors
/// `internal` where stdin cannot be read or stdout not be written.
pub fn run(stdin: &mut dyn Read, stdout: &mut dyn Write, exit_status: Option<i32>, json: bool) -> Result<u8> {
    let mut stderr = Vec::new();
    stdin
        .take(MAX_STDERR_BYTES)
        .read_to_end(&mut stderr)
        .map_err(|error| Error::new(Code::Internal, format!("stdin cannot be read: {error}")))?;
    let verdict = classify(&String::from_utf8_lossy(&stderr), exit_status);
    let said = if json { verdict.to_json() } else { verdict.to_text() };
    let written = writeln!(stdout, "{said}").and_then(|()| stdout.flush());
    stdio::ended(written, u8::from(!verdict.known()))
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
    fn a_cause_counts_before_its_consequence() {
        let refused = "channel 0: open failed: connect failed: Connection refused\r\nstdio forwarding failed\r\n";
        assert_eq!(said(refused, Some(255)).0, Some(Code::TargetUnreachable));
        let ended =
            "kex_exchange_identification: Connection closed by remote host\r\nConnection closed by UNKNOWN port 65535";
        assert_eq!(said(ended, Some(255)).0, Some(Code::Proxy));
        // A ProxyCommand of ours says it better.
        assert_eq!(said(&format!("tstunnel: error[dns]: x\n{ended}"), Some(255)).0, Some(Code::Dns));
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
    fn what_a_report_says_to_do_reaches_no_terminal_as_it_is() {
        let verdict = classify("tstunnel: error[dns]: x\ntstunnel: hint: \u{1b}[31mred\u{7}\n", None);
        assert_eq!(verdict.to_text(), "dns retry\n\\u{1b}[31mred\\u{7}");
    }

    #[test]
    fn no_more_than_a_mebibyte_is_read() {
        let mut endless = std::io::repeat(b'x');
        let mut stdout = Vec::new();
        assert_eq!(run(&mut endless, &mut stdout, None, true), Ok(1));
    }
}
