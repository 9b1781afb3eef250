//! Principal, server name and request → [`Permit`] or a refusal.
//!
//! No I/O, no clock, no network. Fails closed: what no grant opens and no list names is refused, and an empty policy
//! denies everyone. Nothing is started, stored or connected without a [`Permit`], and only [`Policy::decide`] makes one.

mod command;
mod environment;
pub mod grant;
mod mutagen;
pub mod target;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Code, Error, Result};
use crate::protocol::{CommandRequest, HostId, Principal};
use crate::server::config::{Commands, HostConfig, ServerConfig};
use crate::server::principal::server_name_to_host;

pub use command::Invocation;
use grant::Grant;
use target::{Target, TargetPattern};

/// Longest name of an uploaded file (tstunnel-protocol(7)), which is Linux' `NAME_MAX` too.
const MAX_FILENAME_BYTES: usize = 255;

/// Who may do what, where.
#[derive(Clone, Debug)]
pub struct Policy {
    domain: Option<String>,
    hosts: BTreeMap<HostId, HostConfig>,
    grants: Vec<Grant>,
}

/// Who asks, from where, and when: all that a decision may depend on beside the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The verified principal.
    pub principal: Principal,
    /// The address that the connection comes from.
    pub source: IpAddr,
    /// When.
    pub now: SystemTime,
}

/// What a client asks for, as the server read it from the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `POST /command`.
    Command {
        /// What is to be run.
        line: CommandLine,
        /// The environment asked for.
        env: BTreeMap<String, String>,
        /// The account asked for.
        user: Option<String>,
    },
    /// `POST` or `HEAD /copy/{filename}`.
    Copy {
        /// The path's last segment, percent-decoded.
        filename: String,
        /// The account asked for.
        user: Option<String>,
    },
    /// `POST /stream`.
    Stream {
        /// The target as it was written; the host's default if `None`.
        target: Option<String>,
        /// The account asked for.
        user: Option<String>,
    },
    /// `GET /host`, and whatever asks only whether this principal may come here at all, like a resume.
    Host,
}

/// The command of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandLine {
    /// A whole line.
    Line(String),
    /// A program and its arguments.
    Words(String, Vec<String>),
}

impl From<CommandRequest> for Request {
    /// Merges `envs` into `env`. A name in both has its value from `env`; an entry of `envs` without `=` is dropped.
    fn from(request: CommandRequest) -> Request {
        let mut env = BTreeMap::new();
        for entry in &request.envs {
            if let Some((name, value)) = entry.split_once('=') {
                env.insert(name.to_owned(), value.to_owned());
            }
        }
        env.extend(request.env);
        let line = match request.args {
            Some(arguments) => CommandLine::Words(request.command, arguments),
            None => CommandLine::Line(request.command),
        };
        Request::Command { line, env, user: request.user }
    }
}

/// The proof that the policy allows something. Only [`Policy::decide`] makes one.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    host: HostId,
    principal: Principal,
    account: String,
    home: Option<PathBuf>,
    wrapper: Vec<String>,
    pool: usize,
    rule: String,
    action: Action,
}

/// What a [`Permit`] is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run a command.
    Command {
        /// What is started.
        invocation: Invocation,
        /// The variables to add to the account's own environment, sorted by name.
        env: Vec<(String, String)>,
        /// Whether the program must lead, links resolved, to a file inside `<home>/.mutagen/agents`.
        confined_agent: bool,
    },
    /// Store a file in the home directory.
    Copy {
        /// Its name: one path component.
        filename: String,
        /// Where there are any, the file's SHA-256 (lower-case hexadecimal) must be one of these.
        digests: Vec<String>,
    },
    /// Connect a stream.
    Stream {
        /// Where to, in its one form.
        target: Target,
    },
    /// Say what the server thinks of the client.
    Host,
}

impl Permit {
    /// The host that this is about.
    pub fn host(&self) -> &HostId {
        &self.host
    }

    /// Who asked.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The account whose processes and files these are.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// The home directory that the host's configuration names for its account, if it names one.
    pub fn home_override(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    /// The words to put before a command.
    pub fn wrapper(&self) -> &[String] {
        &self.wrapper
    }

    /// How many agents may be kept started for what this permits; none but for an agent.
    pub fn pool(&self) -> usize {
        match &self.action {
            Action::Command { confined_agent: true, .. } => self.pool,
            _ => 0,
        }
    }

    /// What allows this, for the audit log: the grant, and the entry of the host's `commands` or `targets`.
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// What may be done.
    pub fn action(&self) -> &Action {
        &self.action
    }
}

impl Policy {
    /// Takes what decides from a configuration.
    pub fn new(config: &ServerConfig) -> Policy {
        Policy { domain: config.domain.clone(), hosts: config.hosts.clone(), grants: config.grants.clone() }
    }

    /// Decides on one request of a verified principal that came for `server_name` (its SNI).
    ///
    /// # Errors
    /// `host-unknown` where there is no such host or no grant to it, with the same words either way; `unauthorized` for
    /// another account than the host's or one outside the grant; `command-denied` and `bad-request` as tstunnel-protocol(7) has them.
    pub fn decide(&self, asker: &Asker, server_name: &str, request: &Request) -> Result<Permit> {
        let principal = &asker.principal;
        let unknown = || Error::new(Code::HostUnknown, format!("no host {server_name} for this principal"));
        let host = server_name_to_host(server_name, self.domain.as_deref(), &self.hosts).ok_or_else(unknown)?;
        let config = self.hosts.get(&host).ok_or_else(unknown)?;
        let grant_rule = self.grant(principal, &host, &config.account, unknown)?;
        if let Some(user) = request.user().filter(|user| *user != config.account) {
            return Err(Error::new(Code::Unauthorized, format!("no account `{}` for this principal", clipped(user))));
        }
        let (action, rule) = match request {
            Request::Command { line, env, .. } => command(config, line, env)?,
            Request::Copy { filename, .. } => copy(config, filename)?,
            Request::Stream { target, .. } => stream(config, target.as_deref())?,
            Request::Host => (Action::Host, String::new()),
        };
        Ok(Permit {
            host,
            principal: principal.clone(),
            account: config.account.clone(),
            home: config.home.clone(),
            wrapper: config.wrapper.clone(),
            pool: config.pool,
            rule: if rule.is_empty() { grant_rule } else { format!("{grant_rule}; {rule}") },
            action,
        })
    }

    /// The first grant that opens `host` to `principal` as `account`, as the audit log names it.
    fn grant(
        &self,
        principal: &Principal,
        host: &HostId,
        account: &str,
        unknown: impl Fn() -> Error,
    ) -> Result<String> {
        let mut opens = false;
        for (index, grant) in self.grants.iter().enumerate() {
            let Some(host_pattern) = grant.opens(principal, host) else { continue };
            if grant.includes_account(account) {
                let (number, principal_pattern) = (index + 1, grant.principal.as_str());
                return Ok(format!("grant {number} `{principal_pattern}` on `{}`", host_pattern.as_str()));
            }
            opens = true;
        }
        if opens {
            Err(Error::new(Code::Unauthorized, "this principal's grant does not include the host's account"))
        } else {
            Err(unknown())
        }
    }
}

impl Request {
    fn user(&self) -> Option<&str> {
        match self {
            Request::Command { user, .. } | Request::Copy { user, .. } | Request::Stream { user, .. } => {
                user.as_deref()
            }
            Request::Host => None,
        }
    }
}

fn command(host: &HostConfig, line: &CommandLine, env: &BTreeMap<String, String>) -> Result<(Action, String)> {
    let allowed = command::decide(host, line)?;
    if env.iter().any(|(name, value)| name.contains('\0') || value.contains('\0')) {
        return Err(Error::new(Code::BadRequest, "the environment has a NUL in it"));
    }
    let command::Allowed { invocation, confined_agent, rule } = allowed;
    let action = Action::Command { invocation, env: environment::filtered(env, &host.env), confined_agent };
    Ok((action, format!("command `{rule}`")))
}

/// Under `any` every name, under `mutagen` those of Mutagen's agents; patterns of command lines allow no upload.
fn copy(host: &HostConfig, filename: &str) -> Result<(Action, String)> {
    let malformed = |why: &str| Err(Error::new(Code::BadRequest, format!("the file's name {why}")));
    match filename {
        "" | "." | ".." => return malformed("is empty, `.` or `..`"),
        _ if filename.len() > MAX_FILENAME_BYTES => return malformed("is longer than 255 bytes"),
        _ if filename.contains(['/', '\0']) => return malformed("has a slash or a NUL in it"),
        _ => {}
    }
    let rule = match &host.commands {
        Commands::Any => "any",
        Commands::Listed { mutagen: true, .. } if mutagen::is_uploaded_agent(filename) => "mutagen",
        Commands::Listed { .. } => {
            let text = format!("this host does not allow an upload as `{}`", clipped(filename));
            return Err(Error::new(Code::CommandDenied, text)
                .with_hint("ask whoever runs the endpoint to set the host's `commands` to \"any\""));
        }
    };
    let action = Action::Copy { filename: filename.to_owned(), digests: host.agent_digests.clone() };
    Ok((action, format!("upload `{rule}`")))
}

fn stream(host: &HostConfig, asked: Option<&str>) -> Result<(Action, String)> {
    let denied = |text: String| Error::new(Code::CommandDenied, text);
    let target = match asked {
        Some(text) => Target::parse(text).map_err(|why| Error::new(Code::BadRequest, why))?,
        None => host
            .targets
            .iter()
            .find_map(|entry| match entry {
                TargetPattern::One(target) => Some(target.clone()),
                TargetPattern::Pattern(_) => None,
            })
            .ok_or_else(|| denied("this host has no default target".to_owned()))?,
    };
    let Some(entry) = host.targets.iter().find(|entry| entry.allows(&target)) else {
        return Err(denied(format!("this host does not allow the target `{}`", clipped(&target.to_string()))));
    };
    Ok((Action::Stream { target }, format!("target `{entry}`")))
}

/// The beginning of what a peer sent, for a message.
fn clipped(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests;
