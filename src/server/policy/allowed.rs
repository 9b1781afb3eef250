//! What a host and the terms of a grant allow of one request, each by itself: both have to. No I/O.

use std::collections::BTreeMap;

use super::target::TargetPattern;
use super::terms::Terms;
use super::{Action, Asked, By, CommandLine, clipped, command, environment, mutagen};
use crate::error::{Code, Error, Result};
use crate::protocol::file_name::check_file_name;
use crate::protocol::target::Target;
use crate::server::config::{Commands, HostConfig};

/// A request that is allowed, and by which entries.
pub(super) struct Allowed {
    pub(super) action: Action,
    /// The entry of the host's `commands` or `targets`.
    pub(super) by_host: Option<String>,
    /// The entry of the grant's, where it has its own.
    pub(super) by_grant: Option<String>,
}

impl Allowed {
    /// The whole rule, behind the grant's name.
    pub(super) fn rule(&self, mut rule: String) -> String {
        for (word, entry) in [(" for ", &self.by_grant), ("; ", &self.by_host)] {
            if let Some(entry) = entry {
                rule.push_str(word);
                rule.push_str(entry);
            }
        }
        rule
    }
}

pub(super) fn command(
    asked: Asked<'_>,
    host: &HostConfig,
    terms: &Terms,
    line: &CommandLine,
    env: &BTreeMap<String, String>,
) -> Result<Allowed> {
    let command::Allowed { invocation, kind, rule, granted } =
        command::decide(asked, host, terms.commands.as_ref(), line)?;
    if env.iter().any(|(name, value)| name.contains('\0') || value.contains('\0')) {
        return Err(Error::new(Code::BadRequest, "the environment has a NUL in it"));
    }
    let is_agent = matches!(kind, Some(mutagen::Kind::Agent | mutagen::Kind::Install));
    let action = Action::Command {
        invocation,
        env: environment::filtered(env, &host.env),
        confined_agent: kind == Some(mutagen::Kind::Agent),
        digests: if is_agent { host.agent_digests.clone() } else { Vec::new() },
    };
    let named = |rule: String| format!("command `{rule}`");
    Ok(Allowed { action, by_host: Some(named(rule)), by_grant: granted.map(named) })
}

pub(super) fn copy(asked: Asked<'_>, host: &HostConfig, terms: &Terms, filename: &str) -> Result<Allowed> {
    let malformed = |unfit| Error::new(Code::BadRequest, format!("the file's name {unfit}"));
    check_file_name(filename).map_err(malformed)?;
    let denied = |by: By| {
        let hint = if mutagen::is_uploaded_agent(filename) {
            by.wants_mutagen()
        } else {
            format!("ask whoever runs the endpoint to set the {}'s `commands` to `\"any\"`", by.name())
        };
        asked.denied(by, &format!("an upload as `{}`", clipped(filename))).with_hint(hint)
    };
    let by_host = upload(&host.commands, filename).ok_or_else(|| denied(By::Host))?;
    let by_grant = match &terms.commands {
        Some(commands) => Some(upload(commands, filename).ok_or_else(|| denied(By::Grant))?),
        None => None,
    };
    let is_agent = by_host == MUTAGEN || by_grant == Some(MUTAGEN);
    let digests = if is_agent { host.agent_digests.clone() } else { Vec::new() };
    let action = Action::Copy { filename: filename.to_owned(), digests };
    let named = |rule: &str| format!("upload `{rule}`");
    Ok(Allowed { action, by_host: Some(named(by_host)), by_grant: by_grant.map(named) })
}

/// The entry of `commands` for what Mutagen asks for.
const MUTAGEN: &str = "mutagen";

/// Under `any` every name, under `mutagen` those of Mutagen's agents; patterns of command lines allow no upload.
fn upload(commands: &Commands, filename: &str) -> Option<&'static str> {
    match commands {
        Commands::Any => Some("any"),
        Commands::Listed { mutagen: true, .. } if mutagen::is_uploaded_agent(filename) => Some(MUTAGEN),
        Commands::Listed { .. } => None,
    }
}

/// Without a target it is the host's first, whether or not the grant allows that one. The echo reaches nothing, so whoever has a
/// grant to the host may have it.
pub(super) fn stream(asked: Asked<'_>, host: &HostConfig, terms: &Terms, target: Option<&str>) -> Result<Allowed> {
    let target = match target {
        Some(text) => match Target::asked(text).map_err(|why| Error::new(Code::BadRequest, why))? {
            echo @ Target::Echo => {
                return Ok(Allowed { action: Action::Stream { target: echo }, by_host: None, by_grant: None });
            }
            target => target,
        },
        None => host
            .targets
            .iter()
            .find_map(|entry| match entry {
                TargetPattern::One(target) => Some(target.clone()),
                TargetPattern::Pattern(_) => None,
            })
            .ok_or_else(|| {
                Error::new(Code::CommandDenied, format!("{} has no default target", asked.host))
                    .with_hint("name a target, or ask whoever runs the endpoint for one in the host's `targets`")
            })?,
    };
    let entry_of = |by: By, entries: &[TargetPattern]| {
        let entry = entries.iter().find(|entry| entry.allows(&target)).map(|entry| format!("target `{entry}`"));
        entry.ok_or_else(|| {
            let hint = format!("ask whoever runs the endpoint to allow it in the {}'s `targets`", by.name());
            asked.denied(by, &format!("the target `{}`", clipped(&target.to_string()))).with_hint(hint)
        })
    };
    let by_host = entry_of(By::Host, &host.targets)?;
    let by_grant = terms.targets.as_ref().map(|entries| entry_of(By::Grant, entries)).transpose()?;
    Ok(Allowed { action: Action::Stream { target }, by_host: Some(by_host), by_grant })
}
