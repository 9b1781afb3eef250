//! Mutagen's arguments with `tstunnel://` URLs → arguments that Mutagen takes, and what the stand-ins must remember
//! of the URLs. No I/O.
//!
//! Mutagen knows `[user@]host:path` alone (`pkg/url/parse_ssh.go`), and hands nothing but that host to `ssh`. So a URL
//! becomes an alias, under which its parameters are kept. The invariant: one alias never stands for two different sets
//! of parameters, or a session that exists would be led elsewhere by a later one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result};

/// What a URL, or the environment, says about a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// `HOST[:PORT]`.
    pub endpoint: Option<String>,
    /// The client's certificate chain.
    pub cert: Option<PathBuf>,
    /// The client's private key.
    pub key: Option<PathBuf>,
    /// The trust anchors.
    pub ca: Option<PathBuf>,
    /// The path prefix of requests.
    pub upgrade_base: Option<String>,
    /// The server name.
    pub sni: Option<String>,
    /// The account asked for.
    pub user: Option<String>,
    /// Which host behind the endpoint, where the alias doesn't say it.
    pub host_id: Option<String>,
}

/// A `tstunnel://[USER@]HOST/PATH?PARAMETERS`, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelUrl {
    /// Before the `@`.
    pub user: Option<String>,
    /// The host id, or a host of the configuration.
    pub host: String,
    /// With its leading slash; empty if there is none.
    pub path: String,
    /// What stands behind the `?`.
    pub parameters: Parameters,
}

/// What rewriting needs to know.
pub struct Rewriter<'a> {
    /// Parses a URL.
    pub parse: &'a dyn Fn(&str) -> Result<TunnelUrl>,
    /// What an alias already stands for.
    pub remembered: &'a dyn Fn(&str) -> Result<Option<Parameters>>,
    /// What the environment says, which the daemon's environment need not: it fills what a URL leaves open.
    pub environment: &'a Parameters,
    /// What relative paths are relative to: the daemon has another working folder.
    pub folder: &'a Path,
    /// What `~/` stands for.
    pub home: Option<&'a Path>,
}

/// What [`Rewriter::rewrite`] makes of arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// Arguments for Mutagen.
    pub args: Vec<OsString>,
    /// Aliases and what they stand for.
    pub remember: Vec<(String, Parameters)>,
}

/// What Mutagen is asked to do with a URL.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Synchronization,
    Forwarding,
}

impl Rewriter<'_> {
    /// Replaces every argument that is a `tstunnel://` URL; the others stay as they are.
    ///
    /// # Errors
    /// `usage` where a URL cannot be said in Mutagen's terms, and whatever parsing and remembering fail with.
    pub fn rewrite(&self, args: &[OsString]) -> Result<Rewritten> {
        let command = args.iter().find(|arg| !arg.as_encoded_bytes().starts_with(b"-"));
        let kind = match command.and_then(|command| command.to_str()) {
            Some("sync") => Some(Kind::Synchronization),
            Some("forward") => Some(Kind::Forwarding),
            _ => None,
        };
        let mut rewritten = Rewritten { args: Vec::with_capacity(args.len()), remember: Vec::new() };
        for arg in args {
            if !is_url(arg.as_encoded_bytes()) {
                rewritten.args.push(arg.clone());
                continue;
            }
            let text = arg
                .to_str()
                .ok_or_else(|| usage(format!("`{}` is not UTF-8", arg.display()), "write it in UTF-8, with %XX"))?;
            let url = (self.parse)(text)?;
            let path = mutagen_path(&url.path, kind)?;
            let user = match &url.user {
                Some(user) if user.is_empty() || user.starts_with('-') || user.contains(['@', ':', '/']) => {
                    return Err(usage(format!("`{user}` cannot be an account in a URL"), "use the parameter `user`"));
                }
                Some(user) => format!("{user}@"),
                None => String::new(),
            };
            let alias = self.alias(url, &mut rewritten.remember)?;
            rewritten.args.push(format!("{user}{alias}:{path}").into());
        }
        Ok(rewritten)
    }

    /// Finds the alias of a URL's host and parameters, and notes it.
    fn alias(&self, url: TunnelUrl, noted: &mut Vec<(String, Parameters)>) -> Result<String> {
        let mut parameters = self.complete(url.parameters);
        let endpoint = parameters.endpoint.as_deref().map(endpoint_host);
        let plain = match endpoint {
            Some(endpoint) if !url.host.ends_with(&format!(".{endpoint}")) => format!("{}.{endpoint}", url.host),
            _ => url.host.clone(),
        };
        let plain: String = plain.chars().map(|character| if is_plain(character) { character } else { '-' }).collect();
        if plain.is_empty() || plain.starts_with('-') {
            return Err(usage(format!("`{}` is not a host", url.host), "write tstunnel://HOST/PATH"));
        }
        if plain != url.host {
            parameters.host_id.get_or_insert(url.host);
        }
        // An alias lives as long as its session, so a URL with another certificate is given another: the plain name, or
        // that with at least six digits of what makes it different.
        let said = format!("{parameters:?}");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, said.as_bytes());
        let digits: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let longer = (6..=digits.len()).step_by(2).filter_map(|length| digits.get(..length));
        let candidates = std::iter::once(plain.clone()).chain(longer.map(|digits| format!("{plain}+{digits}")));
        for alias in candidates {
            if let Some((_, known)) = noted.iter().find(|(noted, _)| *noted == alias) {
                if *known == parameters {
                    return Ok(alias);
                }
            } else if (self.remembered)(&alias)?.is_none_or(|known| known == parameters) {
                noted.push((alias.clone(), parameters));
                return Ok(alias);
            }
        }
        Err(Error::new(Code::Internal, format!("no alias is free for {plain}")))
    }

    /// Fills what is open from the environment, and makes paths absolute.
    fn complete(&self, url: Parameters) -> Parameters {
        let environment = self.environment.clone();
        let path = |url: Option<PathBuf>, environment: Option<PathBuf>| {
            url.or(environment).map(|path| match (path.strip_prefix("~"), self.home) {
                (Ok(rest), Some(home)) => home.join(rest),
                _ => self.folder.join(path),
            })
        };
        Parameters {
            endpoint: url.endpoint.or(environment.endpoint),
            cert: path(url.cert, environment.cert),
            key: path(url.key, environment.key),
            ca: path(url.ca, environment.ca),
            upgrade_base: url.upgrade_base.or(environment.upgrade_base),
            sni: url.sni.or(environment.sni),
            user: url.user.or(environment.user),
            host_id: url.host_id.or(environment.host_id),
        }
    }
}

fn is_url(arg: &[u8]) -> bool {
    arg.get(..11).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"tstunnel://"))
}

/// What may stand in an alias: nothing that Mutagen, a shell or a terminal reads as something else.
fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_')
}

/// `HOST[:PORT]` or `[HOST]:PORT`, less the port and the brackets, in lower case.
fn endpoint_host(endpoint: &str) -> String {
    let host = match endpoint.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((bracketed, _)) => bracketed,
        None => match endpoint.split_once(':') {
            Some((host, port)) if !port.contains(':') => host,
            _ => endpoint,
        },
    };
    host.to_ascii_lowercase()
}

/// The protocols of `pkg/url/forwarding`.
const FORWARDING_PROTOCOLS: [&str; 5] = ["tcp", "tcp4", "tcp6", "unix", "npipe"];

/// A URL's path as Mutagen writes it: `/~/x` is below the home directory and `/C:/x` is on a drive, as in Mutagen's
/// own `docker://` URLs; a forwarding has `/tcp:…` or `/unix:…`.
fn mutagen_path(path: &str, kind: Option<Kind>) -> Result<String> {
    let inner = path.strip_prefix('/').unwrap_or(path);
    let forwarding = inner
        .split_once(':')
        .is_some_and(|(protocol, address)| FORWARDING_PROTOCOLS.contains(&protocol) && !address.is_empty());
    match kind {
        Some(Kind::Forwarding) if !forwarding => Err(usage(
            format!("`{path}` is not where a forwarding ends"),
            "write tstunnel://HOST/tcp:localhost:PORT or tstunnel://HOST/unix:/PATH",
        )),
        Some(Kind::Forwarding) => Ok(inner.to_owned()),
        None if forwarding => Ok(inner.to_owned()),
        _ if path.is_empty() => Err(usage("the URL names no folder", "write tstunnel://HOST/PATH, or /~/PATH")),
        _ if inner == "~" || inner.starts_with("~/") || is_drive(inner) => Ok(inner.to_owned()),
        _ => Ok(path.to_owned()),
    }
}

fn is_drive(path: &str) -> bool {
    matches!(path.as_bytes(), [letter, b':', b'/' | b'\\', ..] if letter.is_ascii_alphabetic())
}

fn usage(text: impl Into<String>, hint: &str) -> Error {
    Error::new(Code::Usage, text).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// `tstunnel://[USER@]HOST[/PATH][?endpoint=…&cert=…&sni=…]`, without decoding.
    fn parse(text: &str) -> Result<TunnelUrl> {
        let (rest, query) = text[11..].split_once('?').unwrap_or((&text[11..], ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (user, host) =
            authority.split_once('@').map_or((None, authority), |(user, host)| (Some(user.into()), host));
        let mut parameters = Parameters::default();
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "endpoint" => parameters.endpoint = Some(value.into()),
                "cert" => parameters.cert = Some(value.into()),
                "sni" => parameters.sni = Some(value.into()),
                _ => return Err(Error::new(Code::Usage, format!("`{name}` is no parameter"))),
            }
        }
        Ok(TunnelUrl { user, host: host.into(), path: path.into(), parameters })
    }

    fn rewrite_with(
        known: &BTreeMap<String, Parameters>,
        environment: &Parameters,
        args: &[&str],
    ) -> Result<Rewritten> {
        let remembered = |alias: &str| Ok(known.get(alias).cloned());
        let (folder, home) = (Path::new("/work"), Some(Path::new("/home/me")));
        let rewriter = Rewriter { parse: &parse, remembered: &remembered, environment, folder, home };
        rewriter.rewrite(&args.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn rewritten(args: &[&str]) -> (Vec<String>, Vec<(String, Parameters)>) {
        let Rewritten { args, remember } = rewrite_with(&BTreeMap::new(), &Parameters::default(), args).unwrap();
        (args.into_iter().map(|arg| arg.into_string().unwrap()).collect(), remember)
    }

    #[test]
    fn a_folder_becomes_mutagens_host_and_path() {
        let url = "tstunnel://dev@host123/home/dev/app?endpoint=containers.example.net:443&cert=/c";
        let (args, remember) = rewritten(&["sync", "create", "--name", "x", "./app", url]);
        assert_eq!(
            args,
            ["sync", "create", "--name", "x", "./app", "dev@host123.containers.example.net:/home/dev/app"]
        );
        let parameters = Parameters {
            endpoint: Some("containers.example.net:443".into()),
            cert: Some("/c".into()),
            host_id: Some("host123".into()),
            ..Parameters::default()
        };
        assert_eq!(remember, [("host123.containers.example.net".to_owned(), parameters)]);
    }

    #[test]
    fn a_forwarding_becomes_mutagens_host_and_endpoint() {
        for target in ["tcp:localhost:8080", "unix:/var/run/docker.sock", "tcp6:[::1]:80"] {
            let url = format!("TSTUNNEL://h/{target}?endpoint=e");
            let (args, _) = rewritten(&["forward", "create", "tcp:localhost:8080", &url]);
            assert_eq!(args[2..], ["tcp:localhost:8080".to_owned(), format!("h.e:{target}")]);
        }
        let refused = |url| rewrite_with(&BTreeMap::new(), &Parameters::default(), &["forward", "create", url]);
        for url in ["tstunnel://h/home", "tstunnel://h", "tstunnel://h/tcp:", "tstunnel://h/ftp:x"] {
            assert_eq!(refused(url).unwrap_err().code, Code::Usage, "{url}");
        }
    }

    #[test]
    fn the_command_says_what_a_path_means_and_its_look_where_there_is_none() {
        assert_eq!(rewritten(&["sync", "create", "tstunnel://h/tcp:x"]).0[2], "h:/tcp:x");
        assert_eq!(rewritten(&["tstunnel://h/tcp:x:1"]).0[0], "h:tcp:x:1");
        assert_eq!(rewritten(&["tstunnel://h/tcp"]).0[0], "h:/tcp");
    }

    #[test]
    fn home_and_drives_are_written_as_in_mutagens_docker_urls() {
        for (path, written) in [("/~", "~"), ("/~/a", "~/a"), ("/~a", "/~a"), ("/C:/a", "C:/a"), ("/", "/")] {
            assert_eq!(rewritten(&["sync", "create", &format!("tstunnel://h{path}")]).0[2], format!("h:{written}"));
        }
        let none = rewrite_with(&BTreeMap::new(), &Parameters::default(), &["sync", "create", "tstunnel://h"]);
        assert!(none.unwrap_err().text.contains("no folder"));
    }

    #[test]
    fn an_alias_is_taken_again_for_the_same_parameters_and_never_for_others() {
        let url = |cert: &str| format!("tstunnel://h/p?endpoint=e.example&cert={cert}");
        let (first, noted) = rewritten(&["sync", "create", &url("/a"), &url("/a")]);
        assert_eq!((first[2].as_str(), first[3].as_str(), noted.len()), ("h.e.example:/p", "h.e.example:/p", 1));
        let (both, noted) = rewritten(&["sync", "create", &url("/a"), &url("/b")]);
        assert_eq!(noted.len(), 2);
        assert_eq!(both[2], "h.e.example:/p");
        let (alias, _) = both[3].split_once(':').unwrap();
        assert!(alias.strip_prefix("h.e.example+").is_some_and(|digits| digits.len() == 6), "{alias}");
        assert_eq!(noted[1].1.host_id.as_deref(), Some("h"));
        // The same again in a later call, when both are remembered.
        let known: BTreeMap<_, _> = noted.into_iter().collect();
        let again = rewrite_with(&known, &Parameters::default(), &["sync", "create", &url("/b"), &url("/a")]).unwrap();
        assert_eq!(again.args[2..], [OsString::from(&both[3]), OsString::from(&both[2])]);
        // And a third when even the short name is taken by something else.
        let mut taken = known.clone();
        taken.values_mut().for_each(|parameters| parameters.sni = Some("other".into()));
        let third = rewrite_with(&taken, &Parameters::default(), &["sync", "create", &url("/b")]).unwrap();
        assert!(third.remember[0].0.starts_with(alias) && third.remember[0].0.len() == alias.len() + 2);
    }

    #[test]
    fn relative_paths_are_made_absolute() {
        let cert = |text: &str| {
            let (_, noted) = rewritten(&["sync", "create", &format!("tstunnel://h/p?cert={text}")]);
            noted[0].1.cert.clone().unwrap()
        };
        assert_eq!(cert("a/b.crt"), Path::new("/work/a/b.crt"));
        assert_eq!(cert("/a/b.crt"), Path::new("/a/b.crt"));
        assert_eq!(cert("~/b.crt"), Path::new("/home/me/b.crt"));
    }

    #[test]
    fn what_the_environment_says_is_remembered_too() {
        let environment =
            Parameters { endpoint: Some("env.example".into()), cert: Some("c".into()), ..Parameters::default() };
        let args = ["sync", "create", "tstunnel://h/p", "tstunnel://h/p?endpoint=url.example"];
        let found = rewrite_with(&BTreeMap::new(), &environment, &args).unwrap();
        assert_eq!(found.args[2..], ["h.env.example:/p", "h.url.example:/p"]);
        assert!(found.remember.iter().all(|(_, parameters)| parameters.cert == Some("/work/c".into())));
    }

    #[test]
    fn a_host_of_the_configuration_keeps_its_name_and_its_host_id() {
        let (args, noted) = rewritten(&["sync", "create", "tstunnel://dev-7/p"]);
        assert_eq!(args[2], "dev-7:/p");
        assert_eq!(noted, [("dev-7".to_owned(), Parameters::default())]);
        assert_eq!(rewritten(&["sync", "create", "tstunnel://h.e/p?endpoint=E:443"]).0[2], "h.e:/p");
    }

    #[test]
    fn an_alias_holds_nothing_that_mutagen_reads_as_something_else() {
        assert_eq!(rewritten(&["sync", "create", "tstunnel://h/p?endpoint=[::1]:8443"]).0[2], "h.--1:/p");
        assert_eq!(rewritten(&["sync", "create", "tstunnel://a b:c/p"]).0[2], "a-b-c:/p");
        for url in ["tstunnel:///p", "tstunnel://-h/p", "tstunnel://-oX@h/p", "tstunnel://a:b@h/p", "tstunnel://@h/p"] {
            let refused = rewrite_with(&BTreeMap::new(), &Parameters::default(), &["sync", "create", url]);
            assert_eq!(refused.unwrap_err().code, Code::Usage, "{url}");
        }
    }

    #[test]
    fn everything_else_stays_as_it_is_and_a_bad_url_is_refused() {
        let (args, noted) = rewritten(&["sync", "list", "docker://c/p", "h:/p", "x=tstunnel://", "tstunnel:/"]);
        assert_eq!(args, ["sync", "list", "docker://c/p", "h:/p", "x=tstunnel://", "tstunnel:/"]);
        assert!(noted.is_empty());
        assert!(rewrite_with(&BTreeMap::new(), &Parameters::default(), &["tstunnel://h/p?x=1"]).is_err());
    }
}
