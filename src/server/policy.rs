//! Principal, server name and request → [`Permit`] or a refusal.
//!
//! No I/O, no clock, no network. Fails closed: what no grant opens and no list names is refused, and an empty policy
//! denies everyone. Nothing is started, stored or connected without a [`Permit`], and only [`Policy::judge`] makes one.

mod allowed;
mod command;
mod environment;
pub mod grant;
mod mutagen;
pub mod target;
pub mod terms;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::error::{Code, Error, Result};
use crate::protocol::{CommandRequest, HostId, Principal};
use crate::server::config::{HostConfig, ServerConfig};
use crate::server::principal::{server_name_to_host, trust_domain};

use crate::protocol::target::Target;
use allowed::Allowed;
pub use command::Invocation;
use grant::Grant;
use terms::Terms;

/// Who may do what, where.
#[derive(Clone, Debug)]
pub struct Policy {
    domain: Option<String>,
    trust_domains: Option<Vec<String>>,
    hosts: BTreeMap<HostId, HostConfig>,
    grants: Vec<Grant>,
}

/// Who asks, from where, when, and with what from elsewhere: all that a decision may depend on beside the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The verified principal.
    pub principal: Principal,
    /// The address that the connection comes from.
    pub source: IpAddr,
    /// When.
    pub now: SystemTime,
    /// What the `authorize` command has granted, where it was asked.
    pub authorized: Option<Arc<Authorized>>,
}

/// A grant that the `authorize` command gave, to one principal on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorized {
    /// To whom.
    pub principal: Principal,
    /// Where.
    pub host: HostId,
    /// How far.
    pub terms: Terms,
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
    /// `GET /host`.
    Host {
        /// The account asked for.
        user: Option<String>,
    },
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

/// The proof that the policy allows something. Only [`Policy::judge`] makes one.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    host: HostId,
    principal: Principal,
    account: String,
    home: Option<PathBuf>,
    wrapper: Vec<String>,
    pool: usize,
    rule: String,
    authorized: Option<Arc<Authorized>>,
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
        /// Where there are any, the program is an agent whose SHA-256 (lower-case hexadecimal) must be one of these.
        digests: Vec<String>,
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

    /// The home directory that the host's configuration names, if it names one and this is the host's own account.
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

    /// What allows this, for the audit log: the grant, and the entry of the host's `commands` or `targets`, with the grant's own
    /// where it has any.
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// What the `authorize` command granted, where this rests on that.
    pub fn authorized(&self) -> Option<&Arc<Authorized>> {
        self.authorized.as_ref()
    }

    /// What may be done.
    pub fn action(&self) -> &Action {
        &self.action
    }
}

/// A request that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What the client is told.
    pub error: Error,
    /// What refuses it: a grant, or that there is none. Not for the client.
    pub rule: String,
    /// Whether that is for lack of a decision: whoever else was asked has not answered.
    pub is_undecided: bool,
}

impl Refused {
    /// One that `rule` refuses.
    pub fn by(rule: impl Into<String>, error: Error) -> Refused {
        Refused { error, rule: rule.into(), is_undecided: false }
    }
}

impl Policy {
    /// Takes what decides from a configuration.
    pub fn new(config: &ServerConfig) -> Policy {
        let ServerConfig { domain, trust_domains, hosts, grants, .. } = config.clone();
        Policy { domain, trust_domains, hosts, grants }
    }

    /// Decides on one request of a verified principal that came for `server_name` (its SNI).
    ///
    /// Grants count in their order. One that does not cover principal, host, source and time is not there for this request; of the
    /// others the first that allows account and request gives the permit. Where none does, the first says why.
    ///
    /// # Errors
    /// `host-unknown` where there is no such host or no grant to it, with the same words either way; `unauthorized` for a
    /// principal of a foreign trust domain and for an account outside the grant; `command-denied` and `bad-request` as
    /// tstunnel-protocol(7) has them.
    pub fn decide(&self, asker: &Asker, server_name: &str, request: &Request) -> Result<Permit> {
        self.judge(asker, server_name, request).map_err(|refused| refused.error)
    }

    /// The same, with the rule behind a refusal.
    ///
    /// # Errors
    /// Those of [`Policy::decide`].
    pub fn judge(&self, asker: &Asker, server_name: &str, request: &Request) -> Result<Permit, Refused> {
        let (host, config) = self.host(asker, server_name)?;
        let account = request.user().unwrap_or(&config.account);
        let mut first = None;
        for Open { rule, terms, authorized } in self.open(asker, &host.clone()) {
            match allow(Asked { host: &host, principal: &asker.principal }, config, terms, account, request) {
                Ok(allowed) => {
                    return Ok(Permit {
                        host,
                        principal: asker.principal.clone(),
                        account: account.to_owned(),
                        home: config.home.clone().filter(|_| account == config.account),
                        wrapper: config.wrapper.clone(),
                        pool: config.pool,
                        rule: allowed.rule(rule),
                        authorized: authorized.cloned(),
                        action: allowed.action,
                    });
                }
                Err(error) => {
                    first.get_or_insert(Refused::by(rule, error));
                }
            }
        }
        Err(first.unwrap_or_else(|| Refused::by("no grant", unknown(asker, server_name))))
    }

    /// Finds the host that `server_name` stands for, where any grant opens it, for whatever that may be.
    ///
    /// # Errors
    /// Those of [`Policy::decide`], before account and request are looked at.
    pub fn reach(&self, asker: &Asker, server_name: &str) -> Result<HostId> {
        let (host, _) = self.host(asker, server_name).map_err(|refused| refused.error)?;
        let is_open = self.open(asker, &host).next().is_some();
        if is_open { Ok(host) } else { Err(unknown(asker, server_name)) }
    }

    /// The host that `server_name` stands for, where it is there and no grant opens it: what the `authorize` command decides on.
    pub fn closed(&self, asker: &Asker, server_name: &str) -> Option<HostId> {
        let (host, _) = self.host(asker, server_name).ok()?;
        let is_closed = self.open(asker, &host).next().is_none();
        is_closed.then_some(host)
    }

    fn host(&self, asker: &Asker, server_name: &str) -> Result<(HostId, &HostConfig), Refused> {
        if let (Some(trusted), Some(domain)) = (&self.trust_domains, trust_domain(&asker.principal))
            && !trusted.iter().any(|trusted| trusted == domain)
        {
            let error =
                Error::new(Code::Unauthorized, "the client certificate's SPIFFE ID is of a foreign trust domain");
            return Err(Refused::by("trust_domains", error));
        }
        let host = server_name_to_host(server_name, self.domain.as_deref(), &self.hosts);
        host.and_then(|host| self.hosts.get(&host).map(|config| (host, config)))
            .ok_or_else(|| Refused::by("no such host", unknown(asker, server_name)))
    }

    /// The grants that are there for a request to `host`: those of the configuration, and then what was granted elsewhere.
    fn open<'a>(&'a self, asker: &'a Asker, host: &'a HostId) -> impl Iterator<Item = Open<'a>> {
        let configured = self.grants.iter().enumerate().filter_map(|(index, grant)| {
            let host_pattern = grant.opens(&asker.principal, host)?;
            let (number, principal_pattern) = (index + 1, grant.principal.as_str());
            let rule = format!("grant {number} `{principal_pattern}` on `{}`", host_pattern.as_str());
            Some(Open { rule, terms: &grant.terms, authorized: None })
        });
        let elsewhere = asker.authorized.iter().filter_map(move |authorized| {
            let Authorized { principal, host: granted, terms } = &**authorized;
            let rule = format!("authorized `{principal}` on `{granted}`");
            let is_this = *principal == asker.principal && granted == host;
            is_this.then_some(Open { rule, terms, authorized: Some(authorized) })
        });
        configured.chain(elsewhere).filter(|open| open.terms.count(asker.source, asker.now))
    }
}

/// A grant that opens a host.
struct Open<'a> {
    /// As the audit log names it.
    rule: String,
    terms: &'a Terms,
    authorized: Option<&'a Arc<Authorized>>,
}

/// Whose request to which host it is, for the words of a refusal: the client knows both.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    host: &'a HostId,
    principal: &'a Principal,
}

/// What refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Host,
    Grant,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            By::Host => "host",
            By::Grant => "grant",
        }
    }

    /// The hint for what Mutagen asks for by itself.
    fn wants_mutagen(self) -> String {
        let list = self.name();
        format!(
            "ask whoever runs the endpoint for `\"mutagen\"` in the {list}'s `commands`, which is what Mutagen needs"
        )
    }
}

impl Asked<'_> {
    fn denied(self, by: By, what: &str) -> Error {
        let Asked { host, principal } = self;
        let text = match by {
            By::Host => format!("{host} does not allow {principal} {what}"),
            By::Grant => format!("the grant to {principal} on {host} does not allow {what}"),
        };
        Error::new(Code::CommandDenied, text)
    }
}

/// What a host and the terms of one grant to it make of a request as `account`.
fn allow(asked: Asked<'_>, host: &HostConfig, terms: &Terms, account: &str, request: &Request) -> Result<Allowed> {
    if !terms.includes_account(account, &host.account) {
        let text = match request.user() {
            Some(user) => format!("no account `{}` for {} on {}", clipped(user), asked.principal, asked.host),
            None => {
                format!("the grant to {} on {} does not include the host's account", asked.principal, asked.host)
            }
        };
        return Err(Error::new(Code::Unauthorized, text));
    }
    match request {
        Request::Command { line, env, .. } => allowed::command(asked, host, terms, line, env),
        Request::Copy { filename, .. } => allowed::copy(asked, host, terms, filename),
        Request::Stream { target, .. } => allowed::stream(asked, host, terms, target.as_deref()),
        Request::Host { .. } => Ok(Allowed { action: Action::Host, by_host: None, by_grant: None }),
    }
}

/// In the same words whether there is such a host or not.
fn unknown(asker: &Asker, server_name: &str) -> Error {
    Error::new(Code::HostUnknown, format!("no host {server_name} for {}", asker.principal))
}

impl Request {
    /// The account asked for.
    pub fn user(&self) -> Option<&str> {
        match self {
            Request::Command { user, .. }
            | Request::Copy { user, .. }
            | Request::Stream { user, .. }
            | Request::Host { user } => user.as_deref(),
        }
    }
}

/// The beginning of what a peer sent, for a message.
fn clipped(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests;
