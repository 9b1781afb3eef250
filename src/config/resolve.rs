//! All sources together → one [`Host`], and whether a host is ours at all.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::file::{self, Entry, Settings};
use crate::config::remembered::{basic_string, recall};
use crate::config::url::{self, TunnelUrl};
use crate::config::{Endpoint, Environment, Host, Overrides, Parameters, WeakDefaults, pattern, proxy, value};
use crate::error::{Code, Error, Result, nearest, printable};
use crate::protocol::{DEFAULT_UPGRADE_BASE, HostId};

// Built in, where no source says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const ALIVE_COUNT: u32 = 3;
const RESUME: Duration = Duration::from_secs(120);

/// Resolves an alias, `user@alias` or a `tstunnel://` URL to everything that is needed to reach it.
///
/// # Errors
/// `usage` where a URL is malformed; `config` where a file, variable or value is wrong, or something required is missing.
pub fn resolve(host_or_url: &str, overrides: &Overrides, weak: &WeakDefaults, env: &Environment) -> Result<Host> {
    let gathered = gather(host_or_url, overrides, env)?;
    let host = complete(&gathered, weak, env)?;
    let Host { alias, endpoint, .. } = &host;
    tracing::debug!(host = %printable(alias), %endpoint, files = %gathered.files(), "resolved");
    Ok(host)
}

/// The same, and what each key of the host's has for a value, from where. Keys that nobody set are there where the host is of
/// no use without them.
///
/// # Errors
/// Those of [`resolve`].
pub fn explain(host_or_url: &str, overrides: &Overrides, env: &Environment) -> Result<(Host, Vec<Stated>)> {
    let gathered = gather(host_or_url, overrides, env)?;
    let host = complete(&gathered, &WeakDefaults::default(), env)?;
    let stated = |key: &'static str| {
        let mut sources = gathered.sources.iter();
        let said = sources.find_map(|source| Some((source.settings.text(key)?, source.origin.label(key))));
        let said = said.or_else(|| {
            Some((host.proxy.as_ref()?.to_string(), gathered.proxies.name()?.to_owned())).filter(|_| key == "proxy")
        });
        let (value, from) = said.or_else(|| Some((host.text(key)?, "default".to_owned())))?;
        Some(Stated { key, value, from })
    };
    Ok((host.clone(), file::KEYS.into_iter().filter_map(stated).collect()))
}

/// A key's value as it counts, and where it comes from: an option, a variable, the URL, a file with its entry, or `default`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated {
    /// The key, as in a file.
    pub key: &'static str,
    /// The value, as a person would write it.
    pub value: String,
    /// Who says so.
    pub from: String,
}

impl Host {
    /// The value of `key`, where the host is of no use without one.
    fn text(&self, key: &str) -> Option<String> {
        match key {
            "endpoint" => Some(self.endpoint.to_string()),
            "host_id" => Some(self.host_id.to_string()),
            "cert" => Some(self.cert.display().to_string()),
            "key" => Some(self.key.display().to_string()),
            "ca" => {
                Some(self.ca.as_ref().map_or_else(|| "the system's roots".to_owned(), |ca| ca.display().to_string()))
            }
            "upgrade_base" => Some(self.upgrade_base.clone()),
            "sni" => Some(self.server_name.clone()),
            _ => None,
        }
    }
}

/// What the sources say, the strongest first.
struct Gathered {
    /// By which the files know the host.
    alias: String,
    sources: Vec<Source>,
    /// The names and patterns of the files' other entries.
    others: Vec<String>,
    overrides: Overrides,
    /// What counts where they name no proxy.
    proxies: proxy::Variables,
}

impl Gathered {
    /// The files that say something of the host, as a person reads them.
    fn files(&self) -> String {
        let mut files: Vec<String> = Vec::new();
        for source in &self.sources {
            if let Origin::File(path, _) = &source.origin {
                files.push(printable(&path.display().to_string()));
            }
        }
        files.dedup();
        files.join(", ")
    }
}

/// One source of settings.
struct Source {
    origin: Origin,
    settings: Settings,
}

/// Where settings come from.
enum Origin {
    Option,
    Url,
    /// What stands before the host's `@`.
    Destination,
    Variable,
    /// The URL that `tstunnel mutagen` was given for this alias.
    Remembered(String),
    File(PathBuf, String),
}

impl Origin {
    /// How a person finds the value of `key` there.
    fn label(&self, key: &str) -> String {
        match self {
            Origin::Option => format!("--{}", key.replace('_', "-")),
            Origin::Url => format!("the URL's `{key}`"),
            Origin::Destination => format!("the `{key}` before the host"),
            Origin::Variable => format!("TSTUNNEL_{}", key.to_ascii_uppercase()),
            Origin::Remembered(alias) => format!("`{alias}`'s `{key}`"),
            Origin::File(path, pattern) => format!("{} [host.{}]", path.display(), basic_string(pattern)),
        }
    }
}

fn merged(sources: &[Source]) -> Settings {
    sources.iter().fold(Settings::default(), |settings, source| settings.or(&source.settings))
}

fn gather(host_or_url: &str, overrides: &Overrides, env: &Environment) -> Result<Gathered> {
    let mut sources = vec![read(Origin::Option, overrides, env)?];
    let (mut overrides, mut proxies) = (overrides.clone(), env.proxies.clone());
    let alias = if url::is_tunnel_url(host_or_url) {
        let url = TunnelUrl::parse(host_or_url)?;
        let parameters = Parameters { user: url.user.or(url.parameters.user), ..url.parameters };
        sources.push(read(Origin::Url, &parameters.into(), env)?);
        sources.push(read(Origin::Variable, &env.as_overrides(), env)?);
        url.host
    } else {
        let (user, alias) = split_user(host_or_url);
        if alias.is_empty() {
            return Err(Error::new(Code::Usage, "the host is empty")
                .with_hint("name a host of the configuration; a variable that was meant may not be set"));
        }
        let user = Overrides { user: user.map(str::to_owned), ..Overrides::default() };
        sources.push(read(Origin::Destination, &user, env)?);
        match recall(alias, env)? {
            None => {
                sources.push(read(Origin::Variable, &env.as_overrides(), env)?);
                alias.to_owned()
            }
            // The variables that counted for the URL are in its memory; those of Mutagen's daemon are none of its business.
            Some(remembered) => {
                sources.push(read(Origin::Remembered(alias.to_owned()), &remembered.parameters.into(), env)?);
                overrides.config = overrides.config.or_else(|| remembered.config.map(PathBuf::from));
                proxies = remembered.proxies;
                remembered.host
            }
        }
    };
    let mut others = Vec::new();
    for entry in load(&overrides, env)? {
        if entry.matches(&alias) {
            sources.push(Source { origin: Origin::File(entry.file, entry.pattern), settings: entry.settings });
        } else {
            others.push(entry.pattern);
        }
    }
    Ok(Gathered { alias, sources, others, overrides, proxies })
}

/// Whether the `ssh` and `scp` stand-ins serve `host` themselves: an entry of a file matches it, it ends in `.` and the
/// endpoint's host, `TSTUNNEL_HOSTS` names it, or parameters are remembered for it.
///
/// # Errors
/// `config` where a file, or the endpoint given, is wrong.
pub fn is_ours(host: &str, env: &Environment, overrides: &Overrides) -> Result<bool> {
    Ok(entries_beside(host, env, overrides)?.is_none())
}

/// The files' entries, where neither they nor anything else makes `host` ours.
fn entries_beside(host: &str, env: &Environment, overrides: &Overrides) -> Result<Option<Vec<Entry>>> {
    let (_, alias) = split_user(host);
    if url::is_tunnel_url(host) || recall(alias, env)?.is_some() {
        return Ok(None);
    }
    let entries = load(overrides, env)?;
    let mut endpoints: Vec<Endpoint> = entries.iter().filter_map(|entry| entry.settings.endpoint.clone()).collect();
    for (text, label) in [(&overrides.endpoint, "--endpoint"), (&env.endpoint, "TSTUNNEL_ENDPOINT")] {
        endpoints.extend(text.as_deref().map(|text| located(Endpoint::parse(text), label)).transpose()?);
    }
    let is_ours = entries.iter().any(|entry| entry.matches(alias))
        || listed(env).any(|pattern| pattern::matches_folded(pattern, alias))
        || endpoints.iter().any(|endpoint| without_suffix(alias, &endpoint.host).is_some());
    Ok((!is_ours).then_some(entries))
}

/// The patterns of `TSTUNNEL_HOSTS`.
fn listed(env: &Environment) -> impl Iterator<Item = &str> {
    env.hosts.iter().flat_map(|patterns| patterns.split_whitespace())
}

/// The host of a file's or of `TSTUNNEL_HOSTS` that `host`, which is not ours, was most likely meant to be. It is none that has
/// other digits and nothing else: of a series of hosts some may well be somebody else's.
///
/// # Errors
/// Those of [`is_ours`].
pub fn misspelt(host: &str, env: &Environment) -> Result<Option<String>> {
    let Some(entries) = entries_beside(host, env, &Overrides::default())? else { return Ok(None) };
    let names = entries.iter().map(|entry| entry.pattern.as_str()).chain(listed(env));
    let letters = |name: &str| name.replace(|character: char| character.is_ascii_digit(), "");
    let meant = nearest(host, names.filter(|name| !pattern::has_wildcard(name)));
    Ok(meant.filter(|meant| letters(meant) != letters(host)).map(str::to_owned))
}

impl Entry {
    fn matches(&self, alias: &str) -> bool {
        pattern::matches_folded(&self.pattern, alias)
    }
}

/// Splits at the last `@`, as OpenSSH does.
fn split_user(destination: &str) -> (Option<&str>, &str) {
    match destination.rsplit_once('@') {
        Some((user, alias)) => (Some(user), alias),
        None => (None, destination),
    }
}

/// The entries of the one file that was asked for, or of the user's and then the system's.
fn load(overrides: &Overrides, env: &Environment) -> Result<Vec<Entry>> {
    let asked_for = match (&overrides.config, &env.config) {
        (Some(path), _) => Some((path, "--config")),
        (None, Some(path)) => Some((path, "TSTUNNEL_CONFIG")),
        (None, None) => None,
    };
    if let Some((path, label)) = asked_for {
        let path = env.path(path, label)?;
        return file::read(&path, env.home.as_deref())?.ok_or_else(|| {
            Error::new(Code::Config, format!("{label}: there is no {}", path.display()))
                .with_hint("name a file that exists, or leave it out to use the default files")
        });
    }
    let mut entries = Vec::new();
    for path in env.user_file().iter().chain(&env.system_file) {
        entries.extend(file::read(path, env.home.as_deref())?.unwrap_or_default());
    }
    Ok(entries)
}

impl From<Parameters> for Overrides {
    fn from(parameters: Parameters) -> Overrides {
        Overrides {
            config: None,
            endpoint: parameters.endpoint,
            cert: parameters.cert.map(Into::into),
            key: parameters.key.map(Into::into),
            ca: parameters.ca.map(Into::into),
            upgrade_base: parameters.upgrade_base,
            sni: parameters.sni,
            user: parameters.user,
        }
    }
}

/// Reads the values of a source.
fn read(origin: Origin, overrides: &Overrides, env: &Environment) -> Result<Source> {
    let label = |key: &str| origin.label(key);
    let path = |text: &Option<PathBuf>, key: &str| text.as_deref().map(|text| env.path(text, &label(key))).transpose();
    fn parsed<T>(
        text: &Option<String>,
        parse: impl Fn(&str) -> Result<T, String>,
        label: impl Fn(&str) -> String,
        key: &str,
    ) -> Result<Option<T>> {
        text.as_deref().map(|text| located(parse(text), &label(key))).transpose()
    }
    let settings = Settings {
        endpoint: parsed(&overrides.endpoint, Endpoint::parse, label, "endpoint")?,
        cert: path(&overrides.cert, "cert")?,
        key: path(&overrides.key, "key")?,
        ca: path(&overrides.ca, "ca")?,
        upgrade_base: parsed(&overrides.upgrade_base, value::upgrade_base, label, "upgrade_base")?,
        sni: parsed(&overrides.sni, value::server_name, label, "sni")?,
        user: parsed(&overrides.user, value::user, label, "user")?,
        ..Settings::default()
    };
    Ok(Source { origin, settings })
}

fn located<T>(value: Result<T, String>, label: &str) -> Result<T> {
    value.map_err(|why| Error::new(Code::Config, format!("{label}: {why}")))
}

/// Adds the weak and the built-in defaults to what the sources said, and refuses what lacks something.
fn complete(gathered: &Gathered, weak: &WeakDefaults, env: &Environment) -> Result<Host> {
    let (alias, settings) = (gathered.alias.clone(), merged(&gathered.sources));
    let (Some(endpoint), Some(cert), Some(key)) = (settings.endpoint, settings.cert, settings.key) else {
        return Err(missing(gathered, env));
    };
    let host_id = match settings.host_id {
        Some(host_id) => host_id,
        None => default_host_id(&alias, &endpoint)?,
    };
    let server_name = match settings.sni {
        Some(sni) => sni,
        None => default_server_name(&alias, &host_id, &endpoint)?,
    };
    let proxy = match settings.proxy {
        Some(proxy) => proxy,
        None => gathered.proxies.proxy_for(&endpoint)?,
    };
    // OpenSSH's 0 means "not at all" there; a session that never notices a dead peer is nobody's wish here.
    let time = |weak: Option<Duration>| weak.filter(|time| !time.is_zero());
    Ok(Host {
        endpoint,
        host_id,
        server_name,
        upgrade_base: settings.upgrade_base.unwrap_or_else(|| DEFAULT_UPGRADE_BASE.to_owned()),
        cert,
        key,
        ca: settings.ca,
        user: settings.user,
        proxy,
        connect_timeout: settings.connect_timeout.or(time(weak.connect_timeout)).unwrap_or(CONNECT_TIMEOUT),
        answer_timeout: settings.answer_timeout.unwrap_or(ANSWER_TIMEOUT),
        alive_interval: settings.alive_interval.or(time(weak.alive_interval)).unwrap_or(ALIVE_INTERVAL),
        alive_count: settings.alive_count.or(weak.alive_count.filter(|count| *count > 0)).unwrap_or(ALIVE_COUNT),
        resume: settings.resume.unwrap_or(Some(RESUME)),
        min_tls: settings.min_tls.unwrap_or_default(),
        alias,
    })
}

/// The error for what is required and was not given, with every way to give it.
fn missing(gathered: &Gathered, env: &Environment) -> Error {
    let Gathered { alias, sources, others, overrides, .. } = gathered;
    let settings = merged(sources);
    let absent: Vec<&str> =
        [("endpoint", settings.endpoint.is_none()), ("cert", settings.cert.is_none()), ("key", settings.key.is_none())]
            .into_iter()
            .filter_map(|(key, absent)| absent.then_some(key))
            .collect();
    let list = |write: &dyn Fn(&str) -> String| absent.iter().map(|key| write(key)).collect::<Vec<_>>().join(" and ");
    let file = (overrides.config.clone())
        .or_else(|| env.config.clone())
        .or_else(|| env.user_file())
        .or_else(|| env.system_file.clone())
        .map_or_else(|| "a file for `--config`".to_owned(), |path| path.display().to_string());
    let matching = sources.iter().filter_map(|source| match &source.origin {
        Origin::File(_, pattern) => Some(pattern.as_str()),
        _ => None,
    });
    let matching: Vec<&str> = matching.collect();
    let is_name = |pattern: &&str| !pattern::has_wildcard(pattern);
    let has_user_file = env.user_file().is_some() || overrides.config.is_some() || env.config.is_some();
    let unknown = match matching.is_empty() {
        true if !has_user_file => ", and HOME, below which the user's file is, is not set",
        true if !others.is_empty() => ", and no entry of the configuration is named so",
        _ => "",
    };
    // A pattern for every host says nothing about whether there is this one.
    let meant = match matching.iter().any(is_name) {
        true => None,
        false => nearest(alias, others.iter().map(String::as_str).filter(is_name)),
    };
    let text = format!("`{alias}` has no {}{unknown}", list(&|key| format!("`{key}`")));
    Error::new(Code::Config, text).with_hint(format!(
        "{}set {} below [host.{}] in {file}, or {}, or {}, or use tstunnel://HOST?{}{}",
        meant.map_or_else(String::new, |meant| format!("did you mean `{meant}`? otherwise ")),
        list(&|key| format!("`{key}`")),
        basic_string(alias),
        list(&|key| format!("TSTUNNEL_{}", key.to_ascii_uppercase())),
        list(&|key| format!("--{key}")),
        absent.iter().map(|key| format!("{key}=…")).collect::<Vec<_>>().join("&"),
        if sources.iter().any(|source| matches!(source.origin, Origin::Url)) {
            ", in quotes: a shell cuts a URL at `&`"
        } else {
            ""
        },
    ))
}

/// The alias, less the endpoint's host where it ends in that.
fn default_host_id(alias: &str, endpoint: &Endpoint) -> Result<HostId> {
    let id = without_suffix(alias, &endpoint.host).unwrap_or(alias);
    HostId::parse(id).map_err(|error| {
        error.with_hint(format!(
            "a host id is letters, digits and hyphens, in parts joined by dots: set `host_id` below [host.{}]",
            basic_string(alias)
        ))
    })
}

/// What stands before `.suffix`, case and a final dot of the alias aside.
fn without_suffix<'a>(alias: &'a str, suffix: &str) -> Option<&'a str> {
    let alias = alias.strip_suffix('.').unwrap_or(alias);
    let dot = alias.len().checked_sub(suffix.len() + 1).filter(|dot| *dot > 0)?;
    let (id, rest) = alias.split_at_checked(dot)?;
    rest.strip_prefix('.').is_some_and(|rest| rest.eq_ignore_ascii_case(suffix)).then_some(id)
}

/// The server name of tstunnel-protocol(7), where no `sni` is configured.
fn default_server_name(alias: &str, host_id: &HostId, endpoint: &Endpoint) -> Result<String> {
    let name = match endpoint.ip() {
        Some(_) => host_id.to_string(),
        None => format!("{host_id}.{}", endpoint.host),
    };
    value::server_name(&name).map_err(|_| {
        Error::new(Code::Config, format!("`{alias}` has no server name: `{name}` is not a DNS name"))
            .with_hint(format!("set `sni` or `host_id` below [host.{}]", basic_string(alias)))
    })
}

#[cfg(test)]
mod tests;
