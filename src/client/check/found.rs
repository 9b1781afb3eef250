//! What was found → the step that says so.

use std::time::SystemTime;

use serde_json::json;

use super::report::{Part, Step};
use super::talk::Talk;
use super::{AGENT_MAGIC, PROBE};
use crate::client::dial::Connection;
use crate::client::mutagen::{self, daemon::Daemon};
use crate::client::session::Opened;
use crate::config::Environment;
use crate::error::{Code, Error, printable};
use crate::protocol::UPGRADE_FRAMED;
use crate::protocol::session::Exit;
use crate::tls::probe::Certificate;

/// From how many days before its end a certificate is warned of.
const SOON_DAYS: i64 = 14;

/// The versions and algorithms that were agreed on, and who the server is.
pub(super) fn of_tls(connection: &Connection, chain: &[Certificate]) -> Step {
    let tls = connection.tls();
    let version = connection.version();
    let suite = tls.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite())).unwrap_or_default();
    let group = tls.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name())).unwrap_or_default();
    let mut step = Step::ok(Part::Tls, format!("{version}, {suite}, {group}")).with("version", version);
    step = step.with("cipher_suite", suite).with("key_exchange", group);
    if version != "TLS 1.3" {
        step = step.warn("an old version", "ask whoever runs the endpoint for TLS 1.3");
    }
    if chain.first().is_some_and(ends_soon) {
        let hint = "ask whoever runs the endpoint to renew its certificate";
        step = step.warn("the server's certificate ends soon", hint);
    }
    with_chain(step, chain)
}

/// Whether somebody has to see to a certificate now.
pub(super) fn ends_soon(certificate: &Certificate) -> bool {
    certificate.days_left(SystemTime::now()) <= SOON_DAYS
}

/// Adds what the server has presented.
pub(super) fn with_chain(step: Step, chain: &[Certificate]) -> Step {
    let described = chain.iter().map(|certificate| format!("{}, by {}", described(certificate), certificate.issuer));
    step.with_details(described.collect::<Vec<_>>()).with("chain", chain.iter().map(facts).collect::<Vec<_>>())
}

pub(super) fn with_certificate(step: Step, certificate: &Certificate) -> Step {
    step.with("certificate", facts(certificate))
}

fn facts(certificate: &Certificate) -> serde_json::Value {
    json!({
        "subject": certificate.subject,
        "names": certificate.names,
        "issuer": certificate.issuer,
        "not_after": certificate.not_after,
        "days_left": certificate.days_left(SystemTime::now()),
    })
}

/// Whose a certificate is, and for how long.
pub(super) fn described(certificate: &Certificate) -> String {
    let left = match certificate.days_left(SystemTime::now()) {
        ended if ended < 0 => "ended".to_owned(),
        0 => "less than a day left".to_owned(),
        1 => "1 day left".to_owned(),
        days => format!("{days} days left"),
    };
    format!("{}, {left}", certificate.shown())
}

pub(super) fn of_upgrade(opened: &Opened) -> Step {
    let protocol = opened.protocol();
    let step = match opened.grace() {
        Some(grace) => {
            let text = format!("{protocol}, an interrupted session is kept for {} s", grace.as_secs());
            Step::ok(Part::Upgrade, text).with("grace_seconds", grace.as_secs())
        }
        None if protocol == UPGRADE_FRAMED => Step::ok(Part::Upgrade, format!("{protocol}, without resuming")),
        None => Step::ok(Part::Upgrade, protocol)
            .warn("no stderr, exit status or resuming", "ask whoever runs the endpoint for a server with frames"),
    };
    step.with("protocol", protocol)
}

/// What became of Mutagen's first question.
pub(super) fn of_probe(talk: &Talk<'_>) -> Step {
    let said = first_line(&talk.stdout);
    match talk.exit {
        Some(Exit::Status(0)) => {
            Step::ok(Part::Policy, format!("allows `{PROBE}`, which says {said}")).with("uname", said)
        }
        exit => {
            let status = exit.map_or(0, Exit::status);
            let text = format!("allows `{PROBE}`, which ended with status {status}: {}", first_line(&talk.stderr));
            Step::ok(Part::Policy, text).warn(
                "Mutagen needs it to install its agent",
                "ask whoever runs the endpoint to look at the host's `wrapper`, and at what is on its PATH",
            )
        }
    }
}

/// Something that Mutagen asks for and the policy does not allow. Who `wants_mutagen` is not served; who has other plans for
/// this host may well be.
pub(super) fn denied(part: Part, error: &Error, wants_mutagen: bool) -> Step {
    if wants_mutagen { Step::failed(part, error) } else { Step::doubtful(part, error) }
}

/// What an agent has said for itself.
pub(super) fn of_agent(talk: &Talk<'_>, version: &str) -> Step {
    if let Some(exit @ (Exit::Status(126) | Exit::Status(127))) = talk.exit {
        let code = if exit == Exit::Status(127) { Code::AgentMissing } else { Code::AgentNotExecutable };
        return absent(Error::new(code, first_line(&talk.stderr)), version);
    }
    let Some(numbers) = talk.stdout.strip_prefix(&AGENT_MAGIC).and_then(|numbers| numbers.get(..12)) else {
        let said = if talk.stdout.is_empty() { &talk.stderr } else { &talk.stdout };
        let text = format!("the program in the place of agent {version} says `{}`", first_line(said));
        return Step::failed(Part::Agent, &Error::new(Code::Protocol, text).with_hint(reinstall(version)));
    };
    let numbers = numbers.chunks_exact(4).map(|bytes| bytes.iter().fold(0u32, |sum, byte| sum << 8 | u32::from(*byte)));
    let found = numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(".");
    // The wire has no tag such as `-rc1`.
    if version.split(['-', '+']).next() != Some(&found) {
        let text = format!("the agent {version} says that it is {found}");
        return Step::failed(Part::Agent, &Error::new(Code::Protocol, text).with_hint(reinstall(version)));
    }
    Step::ok(Part::Agent, format!("mutagen-agent {found} is installed")).with("version", found)
}

/// An agent that cannot be run: Mutagen installs one that is missing by itself.
pub(super) fn absent(error: Error, version: &str) -> Step {
    match error.code {
        Code::AgentMissing => {
            let error = error.with_hint("Mutagen installs it with the first session");
            Step::doubtful(Part::Agent, &error).with("wanted", version)
        }
        Code::AgentNotExecutable => Step::failed(Part::Agent, &error.with_hint(reinstall(version))),
        _ => Step::failed(Part::Agent, &error),
    }
}

fn reinstall(version: &str) -> String {
    format!("remove .mutagen/agents/{version} there; Mutagen installs it again with the first session")
}

/// The first line of what a command wrote, as far as a line of ours has room for it.
fn first_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().next().unwrap_or_default().trim();
    printable(line.strip_prefix("tstunnel: ").unwrap_or(line)).chars().take(200).collect()
}

/// Whether this machine's Mutagen is there, and takes tstunnel for its `ssh`.
pub(super) fn of_mutagen(env: &Environment) -> Step {
    let found = mutagen::version(env).and_then(|version| Ok((version, mutagen::running_daemon(env)?)));
    let (version, daemon) = match found {
        Ok(found) => found,
        Err(error) => return Step::failed(Part::Mutagen, &error),
    };
    let step = match daemon {
        Daemon::Ours => Step::ok(Part::Mutagen, format!("mutagen {version}, whose daemon takes tstunnel's ssh")),
        Daemon::None => Step::ok(
            Part::Mutagen,
            format!("mutagen {version}, no daemon: `tstunnel mutagen` starts one as it should be"),
        ),
        Daemon::Other { pid, ssh_path } => {
            let error = Error::new(Code::Config, mutagen::is_another(pid, ssh_path.as_deref()));
            Step::failed(Part::Mutagen, &error.with_hint(mutagen::RESTART_HINT))
        }
        Daemon::Unknown => {
            Step::ok(Part::Mutagen, format!("mutagen {version}")).warn(mutagen::IS_UNKNOWN, mutagen::STOP_HINT)
        }
    };
    step.with("version", version)
}
