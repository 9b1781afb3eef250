//! `server.toml` as it is written, and the way from there to [`ServerConfig`]. Each value is checked where it is read, so
//! that an error knows its line. No I/O.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

use super::authorize::AuthorizeTable;
use super::grants::GrantTable;
use super::{Account, Commands, HostConfig, Limits, MAX_POOL, MIN_WINDOW_BYTES, ServerConfig};
use crate::config::{duration, pattern, toml_file};
use crate::error::Result;
use crate::protocol::{DEFAULT_UPGRADE_BASE, HostId, is_dns_name};
use crate::server::audit::Destination;
use crate::server::policy::target::TargetPattern;
use crate::server::policy::terms::Network;
use crate::server::principal::{SPIFFE_PREFIX, check_spiffe_id};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<Vec<Address>>,
    #[serde(default)]
    proxy_protocol: Vec<Network>,
    cert: Text,
    key: Text,
    client_ca: Spanned<Vec<Text>>,
    #[serde(default)]
    crl: Vec<Text>,
    watch: Option<bool>,
    run_dir: Option<Home>,
    domain: Option<Domain>,
    upgrade_base: Option<UpgradeBase>,
    #[serde(default)]
    allow_cn: bool,
    trust_domains: Option<Vec<TrustDomain>>,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, Host>,
    #[serde(default)]
    grant: Vec<GrantTable>,
    authorize: Option<Spanned<AuthorizeTable>>,
    limits: Option<LimitsTable>,
    #[serde(default)]
    audit: Destination,
    audit_required: Option<Spanned<bool>>,
    monitor: Option<Monitor>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Monitor {
    listen: Vec<Address>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    account: Option<Spanned<Text>>,
    home: Option<Home>,
    commands: Option<Commands>,
    #[serde(default)]
    targets: Vec<TargetPattern>,
    shell: Option<bool>,
    env: Option<Vec<EnvPattern>>,
    #[serde(default)]
    wrapper: Words,
    pool: Option<Spanned<PoolSize>>,
    #[serde(default)]
    agent_digests: Vec<Digest>,
    trusted_agents: Option<Spanned<Vec<Text>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    handshake_timeout: Option<Timeout>,
    head_timeout: Option<Timeout>,
    body_idle_timeout: Option<Timeout>,
    max_handshakes: Option<NonZeroUsize>,
    handshakes_drop_start: Option<NonZeroUsize>,
    penalty_failed: Option<Grace>,
    penalty_threshold: Option<Grace>,
    penalty_max: Option<Grace>,
    penalty_exempt: Option<Vec<Network>>,
    max_requests: Option<NonZeroUsize>,
    max_sessions: Option<NonZeroUsize>,
    max_sessions_per_principal: Option<NonZeroUsize>,
    max_sessions_per_source: Option<NonZeroUsize>,
    max_held_uploads: Option<usize>,
    max_upload_bytes: Option<NonZeroU64>,
    max_pooled: Option<usize>,
    pool_idle: Option<Timeout>,
    drain_timeout: Option<Grace>,
    resume_grace: Option<Grace>,
    resume_window_bytes: Option<WindowBytes>,
    resume_memory_bytes: Option<usize>,
}

/// Parses and checks `text`; see [`ServerConfig::parse`]. The warnings are of what only the text shows.
pub(super) fn parse(path: &Path, text: &str, account: &Account) -> Result<(ServerConfig, Vec<String>)> {
    let file: File = toml_file::parse(path, text)?;
    let mut warnings = Vec::new();
    if file.client_ca.get_ref().is_empty() {
        let what = "`client_ca` names no authority, so no client could be verified";
        return Err(toml_file::error_at(path, text, Some(file.client_ca.span()), what));
    }
    let audit_required = file.audit_required.as_ref().filter(|required| *required.get_ref());
    if let Some(required) = audit_required.filter(|_| file.audit == Destination::Off) {
        let what = "`audit_required` needs an audit log, and `audit` is \"off\"";
        return Err(toml_file::error_at(path, text, Some(required.span()), what));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let resolve = |written: Text| resolve(folder, &account.home, &written.0);
    let mut hosts = BTreeMap::new();
    for (name, host) in file.host {
        let fails = |what: String| toml_file::error_at(path, text, Some(name.span()), &what);
        if pattern::has_wildcard(name.get_ref()) {
            return Err(fails(format!(
                "`[host.\"{}\"]` is a pattern, but a host here has one exact id",
                name.get_ref()
            ))
            .with_hint("name each host; patterns belong into a grant's `hosts`"));
        }
        let id = HostId::parse(name.get_ref()).map_err(|cause| fails(cause.text))?;
        if let Some(other) = &host.account {
            check_account(path, text, account, other)?;
        } else if account.is_root {
            warnings.push(format!("host `{id}` has no `account`, so it is `{}`'s: everything there is", account.name));
        }
        if let Some(pool) = host.pool.as_ref().filter(|_| !host.wrapper.0.is_empty()) {
            let what =
                "agents behind a `wrapper` cannot be kept started: whether their file has changed cannot be told";
            return Err(toml_file::error_at(path, text, Some(pool.span()), what).with_hint("leave `pool` out"));
        }
        if let Some(empty) = host.trusted_agents.as_ref().filter(|files| files.get_ref().is_empty()) {
            let what = "`trusted_agents` names no file, so no agent could be run: leave it out to trust every one";
            return Err(toml_file::error_at(path, text, Some(empty.span()), what));
        }
        let commands = host.commands.unwrap_or(Commands::Listed { mutagen: true, patterns: Vec::new() });
        let of_host = host.account.map_or_else(|| account.name.clone(), |other| other.into_inner().0);
        // The server's own home is what its environment says; that of another account, its entry in passwd(5).
        let own_home = || (of_host == account.name).then(|| account.home.clone());
        let configured = HostConfig {
            home: host.home.map(|home| resolve(Text(home.0))).or_else(own_home),
            account: of_host,
            shell: host.shell.unwrap_or(commands == Commands::Any),
            commands,
            targets: host.targets,
            env: host.env.map_or_else(default_env, |patterns| patterns.into_iter().map(|pattern| pattern.0).collect()),
            wrapper: host.wrapper.0,
            pool: host.pool.map_or(0, |pool| pool.into_inner().0),
            agent_digests: host.agent_digests.into_iter().map(|digest| digest.0).collect(),
            trusted_agents: host.trusted_agents.into_iter().flat_map(Spanned::into_inner).map(resolve).collect(),
        };
        if hosts.insert(id, configured).is_some() {
            return Err(fails(format!("host `{}` is there twice: case does not matter", name.get_ref())));
        }
    }
    let grants = file.grant.into_iter().map(|grant| grant.checked(path, text, account)).collect::<Result<_>>()?;
    let authorize = file.authorize.map(|table| AuthorizeTable::checked(table, path, text, account));
    let config = ServerConfig {
        listen: file.listen.map_or_else(|| vec![SocketAddr::from(([0, 0, 0, 0], 8443))], addresses),
        proxy_protocol: file.proxy_protocol,
        cert: resolve(file.cert),
        key: resolve(file.key),
        client_ca: file.client_ca.into_inner().into_iter().map(resolve).collect(),
        crl: file.crl.into_iter().map(resolve).collect(),
        watch: file.watch.unwrap_or(true),
        run_dir: file.run_dir.map(|folder| resolve(Text(folder.0))),
        domain: file.domain.map(|domain| domain.0),
        upgrade_base: file.upgrade_base.map_or_else(|| DEFAULT_UPGRADE_BASE.to_owned(), |base| base.0),
        allow_cn: file.allow_cn,
        trust_domains: file.trust_domains.map(|domains| domains.into_iter().map(|domain| domain.0).collect()),
        hosts,
        grants,
        authorize: authorize.transpose()?,
        limits: file.limits.map(LimitsTable::over_defaults).unwrap_or_default(),
        audit: file.audit,
        audit_required: audit_required.is_some(),
        monitor: file.monitor.map(|monitor| addresses(monitor.listen)).unwrap_or_default(),
    };
    Ok((config, warnings))
}

/// Refuses an account that this server could never become.
pub(super) fn check_account(path: &Path, text: &str, account: &Account, asked: &Spanned<Text>) -> Result<()> {
    let name = &asked.get_ref().0;
    if account.is_root || *name == account.name {
        return Ok(());
    }
    let what = format!("this server runs as `{}` and serves its own account only", account.name);
    Err(toml_file::error_at(path, text, Some(asked.span()), &what)
        .with_hint(format!("leave `{name}` out, or run the server as `{name}`")))
}

impl LimitsTable {
    fn over_defaults(self) -> Limits {
        let default = Limits::default();
        let max_handshakes = self.max_handshakes.unwrap_or(default.max_handshakes);
        let half = NonZeroUsize::new(max_handshakes.get() / 2).unwrap_or(NonZeroUsize::MIN);
        Limits {
            handshake_timeout: self.handshake_timeout.map_or(default.handshake_timeout, |timeout| timeout.0),
            head_timeout: self.head_timeout.map_or(default.head_timeout, |timeout| timeout.0),
            body_idle_timeout: self.body_idle_timeout.map_or(default.body_idle_timeout, |timeout| timeout.0),
            max_handshakes,
            handshakes_drop_start: self.handshakes_drop_start.unwrap_or(half),
            penalty_failed: self.penalty_failed.map_or(default.penalty_failed, |time| time.0),
            penalty_threshold: self.penalty_threshold.map_or(default.penalty_threshold, |time| time.0),
            penalty_max: self.penalty_max.map_or(default.penalty_max, |time| time.0),
            penalty_exempt: self.penalty_exempt.unwrap_or(default.penalty_exempt),
            max_requests: self.max_requests.unwrap_or(default.max_requests),
            max_sessions: self.max_sessions.unwrap_or(default.max_sessions),
            max_sessions_per_principal: self.max_sessions_per_principal.unwrap_or(default.max_sessions_per_principal),
            max_sessions_per_source: self.max_sessions_per_source.unwrap_or(default.max_sessions_per_source),
            max_held_uploads: self.max_held_uploads.unwrap_or(default.max_held_uploads),
            max_upload_bytes: self.max_upload_bytes.unwrap_or(default.max_upload_bytes),
            max_pooled: self.max_pooled.unwrap_or(default.max_pooled),
            pool_idle: self.pool_idle.map_or(default.pool_idle, |idle| idle.0),
            drain_timeout: self.drain_timeout.map_or(default.drain_timeout, |timeout| timeout.0),
            resume_grace: self.resume_grace.map_or(default.resume_grace, |grace| grace.0),
            resume_window_bytes: self.resume_window_bytes.map_or(default.resume_window_bytes, |window| window.0),
            resume_memory_bytes: self.resume_memory_bytes.unwrap_or(default.resume_memory_bytes),
        }
    }
}

fn resolve(folder: &Path, home: &Path, written: &str) -> PathBuf {
    match written.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None if written == "~" => home.to_owned(),
        None => folder.join(written),
    }
}

fn addresses(written: Vec<Address>) -> Vec<SocketAddr> {
    written.into_iter().map(|address| address.0).collect()
}

fn default_env() -> Vec<String> {
    vec!["LC_*".to_owned(), "LANG".to_owned()]
}

/// Makes a type that holds a checked value, read from a string (or from what `$from` names).
macro_rules! checked {
    ($($(#[$doc:meta])* $name:ident($inner:ty) from $from:literal: $source:ty = $check:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Deserialize)]
        #[serde(try_from = $from)]
        pub(super) struct $name(pub(super) $inner);

        impl TryFrom<$source> for $name {
            type Error = String;

            fn try_from(value: $source) -> Result<$name, String> {
                let check: fn($source) -> Result<$inner, String> = $check;
                check(value).map($name)
            }
        }
    )*};
}

checked! {
    /// A path, an account's name or a word of a command.
    Text(String) from "String": String = |text| {
        if text.is_empty() || text.contains('\0') { Err("an empty text has no meaning here".to_owned()) } else { Ok(text) }
    };
    Address(SocketAddr) from "String": String = |text| {
        text.parse().map_err(|_| format!("`{text}` is not an address with a port, like \"0.0.0.0:8443\" or \"[::]:8443\""))
    };
    Home(String) from "String": String = |text| {
        if (text.starts_with('/') || text.starts_with("~/") || text == "~") && !text.contains('\0') {
            Ok(text)
        } else {
            Err(format!("`{text}` is not an absolute path"))
        }
    };
    Domain(String) from "String": String = |text| {
        if is_dns_name(&text) { Ok(text.to_ascii_lowercase()) } else { Err(format!("`{text}` is not a DNS name")) }
    };
    TrustDomain(String) from "String": String = |text| {
        let is_one = !text.contains('/') && check_spiffe_id(&format!("{SPIFFE_PREFIX}{text}")).is_ok();
        if is_one { Ok(text) } else { Err(format!("`{text}` is not a trust domain, like \"example.org\"")) }
    };
    UpgradeBase(String) from "String": String = upgrade_base;
    EnvPattern(String) from "String": String = |text| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'*' | b'?');
        if !text.is_empty() && text.bytes().all(is_part) {
            Ok(text)
        } else {
            Err(format!("`{text}` is no pattern for names of environment variables"))
        }
    };
    Digest(String) from "String": String = |text| {
        if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(text.to_ascii_lowercase())
        } else {
            Err(format!("`{text}` is not a SHA-256 digest in hexadecimal"))
        }
    };
    PoolSize(usize) from "usize": usize = |size| {
        if size <= MAX_POOL { Ok(size) } else { Err(format!("`pool` is at most {MAX_POOL}")) }
    };
    Timeout(Duration) from "String": String = |text| match duration::parse(&text)? {
        Duration::ZERO => Err("a timeout of zero lets nothing happen".to_owned()),
        timeout => Ok(timeout),
    };
    Grace(Duration) from "String": String = |text| duration::parse(&text);
    WindowBytes(NonZeroUsize) from "usize": usize = |bytes| {
        NonZeroUsize::new(bytes)
            .filter(|bytes| bytes.get() >= MIN_WINDOW_BYTES)
            .ok_or_else(|| format!("`resume_window_bytes` is at least {MIN_WINDOW_BYTES}"))
    };
}

/// An absolute path of plain segments. `/` alone is no prefix at all.
fn upgrade_base(text: String) -> Result<String, String> {
    if text == "/" {
        return Ok(String::new());
    }
    // RFC 3986's pchar without percent-encoding, so that there is one way to write a path.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte);
    let is_segment = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(is_plain);
    match text.strip_prefix('/') {
        Some(rest) if rest.split('/').all(is_segment) => Ok(text),
        _ => Err(format!("`{text}` is no path prefix: it begins with a slash, does not end in one, and is plain")),
    }
}

impl<'de> Deserialize<'de> for Commands {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Commands, D::Error> {
        deserializer.deserialize_any(CommandsVisitor)
    }
}

/// The words of a command line, which is never one string: where that would be split is nobody's to guess.
#[derive(Default)]
pub(super) struct Words(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Words, D::Error> {
        deserializer.deserialize_seq(WordsVisitor)
    }
}

struct WordsVisitor;

impl<'de> Visitor<'de> for WordsVisitor {
    type Value = Words;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(toml_file::WORDS)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Words, A::Error> {
        let mut words = Vec::new();
        while let Some(Text(word)) = list.next_element()? {
            words.push(word);
        }
        Ok(Words(words))
    }
}

struct CommandsVisitor;

impl<'de> Visitor<'de> for CommandsVisitor {
    type Value = Commands;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"mutagen\", \"any\" or a list of patterns")
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<Commands, E> {
        match word {
            "mutagen" => Ok(Commands::Listed { mutagen: true, patterns: Vec::new() }),
            "any" => Ok(Commands::Any),
            _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Commands, A::Error> {
        let (mut mutagen, mut patterns) = (false, Vec::new());
        while let Some(element) = list.next_element::<String>()? {
            match element.as_str() {
                "mutagen" => mutagen = true,
                // Somebody who means everything must not get the one command `any`, nor the other way round.
                "any" => return Err(de::Error::custom("`any` stands alone, as commands = \"any\"")),
                _ if element.split(' ').any(str::is_empty)
                    || element.chars().any(|c| c.is_whitespace() && c != ' ') =>
                {
                    return Err(de::Error::custom(format!(
                        "`{element}` is no pattern of a command line: words with one space between them"
                    )));
                }
                _ => patterns.push(element),
            }
        }
        Ok(Commands::Listed { mutagen, patterns })
    }
}
