//! The server's file, `server.toml` → [`ServerConfig`]. Whatever is unknown, of the wrong type or of no sense is an error
//! that names file and line; nothing is guessed. Only [`ServerConfig::load`] reads, and that file alone.

mod authorize;
mod file;
mod grants;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::toml_file;
use crate::error::{Code, Error, Result};
use crate::protocol::HostId;
use crate::server::audit::Destination;
use crate::server::policy::grant::Grant;
use crate::server::policy::target::TargetPattern;
use crate::server::policy::terms::Network;

pub use authorize::AuthorizeConfig;

/// Everything that `tstunnel serve` goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Where to listen; never empty, though sockets from the service manager take their place.
    pub listen: Vec<SocketAddr>,
    /// The load balancers whose connections begin with a header of the PROXY protocol.
    pub proxy_protocol: Vec<Network>,
    /// The server's certificate chain, PEM.
    pub cert: PathBuf,
    /// The server's private key, PEM.
    pub key: PathBuf,
    /// The authorities whose client certificates are accepted, PEM; never empty.
    pub client_ca: Vec<PathBuf>,
    /// Their revocation lists, PEM.
    pub crl: Vec<PathBuf>,
    /// Whether a change of any of the files is noticed without a signal.
    pub watch: bool,
    /// The folder for what the server keeps while it runs, where it is not the usual one.
    pub run_dir: Option<PathBuf>,
    /// What is removed from a server name to get the host id, in lower case.
    pub domain: Option<String>,
    /// The path prefix of every request, without a trailing slash.
    pub upgrade_base: String,
    /// Whether a certificate without any usable alternative name is known by its common name.
    pub allow_cn: bool,
    /// The trust domains whose SPIFFE IDs are principals; all of them if `None`.
    pub trust_domains: Option<Vec<String>>,
    /// The hosts, by exact id.
    pub hosts: BTreeMap<HostId, HostConfig>,
    /// Who may reach which of them; nobody does without one.
    pub grants: Vec<Grant>,
    /// The command that is asked where none of these opens a host.
    pub authorize: Option<AuthorizeConfig>,
    /// The bounds on what peers can make the server hold.
    pub limits: Limits,
    /// Where the audit log goes.
    pub audit: Destination,
    /// Whether nothing may begin that the audit log does not hold.
    pub audit_required: bool,
    /// Where to answer about the server itself; usually loopback.
    pub monitor: Vec<SocketAddr>,
}

/// One `[host.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// The account whose processes and files these are.
    pub account: String,
    /// Its home directory, absolute, where it is not the account's own.
    pub home: Option<PathBuf>,
    /// The commands and uploads that are allowed.
    pub commands: Commands,
    /// What `/stream` may reach.
    pub targets: Vec<TargetPattern>,
    /// Whether a command line goes to the account's login shell.
    pub shell: bool,
    /// Patterns for the names of the environment variables that a client may set.
    pub env: Vec<String>,
    /// The words that are put before every command.
    pub wrapper: Vec<String>,
    /// How many idle agents are kept started for each account and grant.
    pub pool: usize,
    /// SHA-256 digests in lower-case hexadecimal; where there are any, no other file can be uploaded, and no other agent run.
    pub agent_digests: Vec<String>,
    /// Files with more of these, which are read into `agent_digests` with the rest of the state.
    pub trusted_agents: Vec<PathBuf>,
}

/// Which commands a host allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commands {
    /// Everything.
    Any,
    /// What the list says and nothing else; nothing at all if it is empty.
    Listed {
        /// What Mutagen itself asks for, uploads of its agent included.
        mutagen: bool,
        /// Patterns of whole command lines.
        patterns: Vec<String>,
    },
}

/// `[limits]`. The defaults suit a small machine: some 64 MiB for handshakes, heads and bodies, and 768 MiB for resumes. What
/// descriptors there are lowers them further ([`descriptors`](crate::server::descriptors)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From accept to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// For a request's head.
    pub head_timeout: Duration,
    /// Longest silence while a body is read.
    pub body_idle_timeout: Duration,
    /// Connections that are not yet authenticated.
    pub max_handshakes: NonZeroUsize,
    /// How many of them there are before a newcomer may cost one of them its place.
    pub handshakes_drop_start: NonZeroUsize,
    /// What one failure to authenticate adds to the time for which its source may be shut out; nobody is if zero.
    pub penalty_failed: Duration,
    /// From how much of it on the source is shut out.
    pub penalty_threshold: Duration,
    /// The most that a source collects.
    pub penalty_max: Duration,
    /// Networks that are never shut out.
    pub penalty_exempt: Vec<Network>,
    /// Authenticated connections whose request has not become a session, and is not yet answered.
    pub max_requests: NonZeroUsize,
    /// Sessions in all, raw and interrupted ones too.
    pub max_sessions: NonZeroUsize,
    /// Sessions of one principal.
    pub max_sessions_per_principal: NonZeroUsize,
    /// Sessions from one source.
    pub max_sessions_per_source: NonZeroUsize,
    /// Uploads that broke off and are kept to be gone on with.
    pub max_held_uploads: usize,
    /// Largest file that can be uploaded.
    pub max_upload_bytes: NonZeroU64,
    /// Idle agents that are kept started, in all.
    pub max_pooled: usize,
    /// How long an idle agent is kept.
    pub pool_idle: Duration,
    /// How long a server that stops waits for its sessions to end.
    pub drain_timeout: Duration,
    /// How long an interrupted session is kept; not at all if zero.
    pub resume_grace: Duration,
    /// Most unacknowledged bytes of one session, per direction.
    pub resume_window_bytes: NonZeroUsize,
    /// Most unacknowledged bytes of all sessions; no session can be resumed if zero.
    pub resume_memory_bytes: usize,
}

const MIB: usize = 1024 * 1024;

/// Largest `pool` of a host: more would never be used before they are replaced.
pub const MAX_POOL: usize = 16;

/// Smallest `resume_window_bytes`: less would stop a session at every round trip.
pub const MIN_WINDOW_BYTES: usize = 64 * 1024;

impl Default for Limits {
    fn default() -> Limits {
        let at_least_one = |count| NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN);
        Limits {
            handshake_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(30),
            // Some 3 KiB while the peer is silent, then 30: all clients of a full server that come back at once.
            max_handshakes: at_least_one(256),
            // sshd begins at a tenth of its maximum, but it takes the newcomer; here it is seldom one that matters.
            handshakes_drop_start: at_least_one(128),
            // As sshd's `PerSourcePenalties` has them.
            penalty_failed: Duration::from_secs(1),
            penalty_threshold: Duration::from_secs(15),
            penalty_max: Duration::from_secs(600),
            // Behind a balancer on this machine everybody looks alike.
            penalty_exempt: Network::LOOPBACK.to_vec(),
            // Some 120 KiB each.
            max_requests: at_least_one(256),
            // Each is a process on this machine.
            max_sessions: at_least_one(256),
            // Mutagen has one for each of its sessions: a person with more than 64 is a program that went wild.
            max_sessions_per_principal: at_least_one(64),
            // Half of them, for an office or a balancer that many share.
            max_sessions_per_source: at_least_one(128),
            max_held_uploads: 16,
            // An agent is some 20 MiB; this leaves room for `tstunnel upload`.
            max_upload_bytes: NonZeroU64::new(1024 * MIB as u64).unwrap_or(NonZeroU64::MIN),
            // Each is a process of some 20 MiB.
            max_pooled: 16,
            pool_idle: Duration::from_secs(600),
            // The ladder of a process, and a little.
            drain_timeout: Duration::from_secs(10),
            resume_grace: Duration::from_secs(120),
            // 10 Gbit/s over 200 ms; and a principal, who may hold a quarter of the memory, keeps what such a path of 8 Gbit/s has in flight.
            resume_window_bytes: at_least_one(256 * MIB),
            resume_memory_bytes: 768 * MIB,
        }
    }
}

/// The account that this process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its home directory, absolute.
    pub home: PathBuf,
    /// Whether it may become other accounts.
    pub is_root: bool,
}

impl Account {
    /// Reads the name from `/etc/passwd` by the effective user id, and the home from `HOME`, else from there. An account
    /// that only a directory service knows is called as `LOGNAME` or `USER` say, else by its number.
    ///
    /// # Errors
    /// `config` where no home directory is known.
    pub fn of_process() -> Result<Account> {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let said = variable("LOGNAME").or_else(|| variable("USER"));
        Account::find(&passwd, rustix::process::geteuid().as_raw(), said, variable("HOME"))
    }

    fn find(passwd: &str, uid: u32, said: Option<String>, home: Option<String>) -> Result<Account> {
        let entries = || {
            passwd.lines().filter_map(|line| match line.split(':').collect::<Vec<_>>().as_slice() {
                [name, _, uid, _, _, home, _] => Some((*name, uid.parse::<u32>().ok()?, *home)),
                _ => None,
            })
        };
        let mine = || entries().filter(|(_, entry_uid, _)| *entry_uid == uid);
        // Two names may share a number; the environment may choose between them, and name one that no line here has.
        let said = said.filter(|said| entries().all(|(name, entry_uid, _)| name != said || entry_uid == uid));
        let said_and_listed = said.as_deref().filter(|said| mine().any(|(name, ..)| name == *said));
        let name = match (said_and_listed, mine().next()) {
            (Some(name), _) | (None, Some((name, ..))) => name.to_owned(),
            (None, None) => said.unwrap_or_else(|| uid.to_string()),
        };
        let home = home
            .or_else(|| mine().find(|(entry, ..)| *entry == name).map(|(_, _, home)| home.to_owned()))
            .map(PathBuf::from)
            .filter(|home| home.is_absolute())
            .ok_or_else(|| {
                Error::new(Code::Config, format!("the home directory of account `{name}` is unknown"))
                    .with_hint("set HOME to an absolute path")
            })?;
        Ok(Account { name, home, is_root: uid == 0 })
    }
}

impl ServerConfig {
    /// Reads and checks the file at `path` for a server that runs as `account`. Also returns what is allowed but hardly
    /// meant, a sentence each, to be logged at the start.
    ///
    /// # Errors
    /// `config`, with file and line.
    pub fn load(path: &Path, account: &Account) -> Result<(ServerConfig, Vec<String>)> {
        let text = toml_file::read(path)?;
        ServerConfig::parse(path, &text, account)
    }

    /// The same from `text`, without touching a file; relative paths start at `path`'s folder.
    ///
    /// # Errors
    /// `config`, with file and line.
    pub fn parse(path: &Path, text: &str, account: &Account) -> Result<(ServerConfig, Vec<String>)> {
        let (config, mut warnings) = file::parse(path, text, account)?;
        warnings.extend(config.warnings());
        Ok((config, warnings))
    }

    /// The files that are read beside the configuration's own.
    pub fn files(&self) -> Vec<PathBuf> {
        let own = [&self.cert, &self.key];
        let of_hosts = self.hosts.values().flat_map(|host| &host.trusted_agents);
        own.into_iter().chain(&self.client_ca).chain(&self.crl).chain(of_hosts).cloned().collect()
    }

    /// The accounts that requests may be for, each with the home that a host names for it.
    pub fn accounts(&self) -> BTreeSet<(String, Option<PathBuf>)> {
        let of_hosts = self.hosts.values().map(|host| (host.account.clone(), host.home.clone()));
        let of_grants = self.grants.iter().flat_map(|grant| grant.terms.accounts.iter().flatten());
        let is_of_host = |name: &str| self.hosts.values().any(|host| host.account == name);
        of_hosts.chain(of_grants.filter(|name| !is_of_host(name)).map(|name| (name.clone(), None))).collect()
    }

    /// The names by which clients may ask for each host, the usual one first.
    pub fn server_names(&self) -> Vec<Vec<String>> {
        let of_host = |host: &HostId| match &self.domain {
            Some(domain) if host.as_str().contains('.') => vec![host.to_string(), format!("{host}.{domain}")],
            Some(domain) => vec![format!("{host}.{domain}"), host.to_string()],
            None => vec![host.to_string()],
        };
        self.hosts.keys().map(of_host).collect()
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for address in self.monitor.iter().filter(|address| !address.ip().is_loopback()) {
            warnings
                .push(format!("[monitor] listens on {address}: whoever can reach that learns what the server does"));
        }
        if self.hosts.is_empty() {
            warnings.push("the configuration has no [host.NAME]: there is nothing to reach".to_owned());
        }
        // A dotted id may be the whole name that clients ask for.
        let bare = self.hosts.keys().find(|host| !host.as_str().contains('.'));
        if let (None, Some(host)) = (&self.domain, bare) {
            warnings.push(format!(
                "the configuration has no `domain`: clients have to ask for a host by its bare name, as with sni = \"{host}\""
            ));
        }
        if self.grants.is_empty() && self.authorize.is_none() {
            warnings.push("the configuration has no [[grant]]: nobody is let in".to_owned());
        }
        for (index, grant) in self.grants.iter().enumerate() {
            let principal = &grant.principal;
            let mut warn = |why: &str| warnings.push(format!("grant {} for `{}` {why}", index + 1, principal.as_str()));
            let opens_any = self.hosts.keys().any(|host| grant.hosts.iter().any(|pattern| pattern.covers(host)));
            if !opens_any && !self.hosts.is_empty() {
                warn("covers none of the hosts");
            }
            let is_trusted = |domain| self.trust_domains.as_ref().is_none_or(|all| all.iter().any(|one| one == domain));
            if !principal.trust_domain().is_none_or(is_trusted) {
                warn("is of none of the `trust_domains`");
            }
        }
        warnings
    }
}

#[cfg(test)]
mod tests;
