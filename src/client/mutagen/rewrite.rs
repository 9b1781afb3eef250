//! Mutagen's arguments with `tstunnel://` URLs → arguments that Mutagen takes, and what the stand-ins must remember
//! of the URLs. Reads the configuration and what is remembered, writes nothing.
//!
//! Mutagen knows `[user@]host:path` alone (`pkg/url/parse_ssh.go`), and hands nothing but that host to `ssh`. So a URL
//! becomes an alias, under which its meaning is kept. The invariant: one alias never stands for two different sets of
//! parameters, or a session that exists would be led elsewhere by a later one. So what is to be remembered is rewritten under
//! [`config::lock`].

use std::ffi::OsString;

use crate::config::url::{Target, TunnelUrl, is_tunnel_url};
use crate::config::{self, Endpoint, Environment, Overrides, Remembered, WeakDefaults};
use crate::error::{Code, Error, Result};
use crate::protocol::encoding::hex;

/// What [`rewrite`] makes of arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// Arguments for Mutagen.
    pub args: Vec<OsString>,
    /// Aliases and what they stand for.
    pub remember: Vec<(String, Remembered)>,
}

/// What Mutagen is asked to do with a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Synchronization,
    Forwarding,
}

/// Replaces every argument that is a `tstunnel://` URL; the others stay as they are.
///
/// # Errors
/// `usage` where a URL is malformed or cannot be said in Mutagen's terms; `config` where it does not say all that is needed
/// to reach its host, and nothing else does.
pub fn rewrite(args: &[OsString], env: &Environment) -> Result<Rewritten> {
    let command = args.iter().find(|arg| !arg.as_encoded_bytes().starts_with(b"-"));
    let kind = match command.and_then(|command| command.to_str()) {
        Some("sync") => Some(Kind::Synchronization),
        Some("forward") => Some(Kind::Forwarding),
        _ => None,
    };
    let mut rewritten = Rewritten { args: Vec::with_capacity(args.len()), remember: Vec::new() };
    for arg in args {
        if !is_tunnel_url(&arg.to_string_lossy()) {
            rewritten.args.push(arg.clone());
            continue;
        }
        let text = arg
            .to_str()
            .ok_or_else(|| usage(format!("`{}` is not UTF-8", arg.display()), "write it in UTF-8, with %XX"))?;
        rewritten.args.push(in_mutagens_terms(text, kind, &mut rewritten.remember, env)?.into());
    }
    Ok(rewritten)
}

/// Replaces one `tstunnel://` URL, and notes what it meant.
///
/// # Errors
/// Those of [`rewrite`].
pub(super) fn in_mutagens_terms(
    text: &str,
    kind: Option<Kind>,
    noted: &mut Vec<(String, Remembered)>,
    env: &Environment,
) -> Result<String> {
    let url = TunnelUrl::parse(text)?;
    let path = path(url.target.as_ref(), kind)?;
    let user = match &url.user {
        Some(user) if user.starts_with('-') || user.contains(['@', ':', '/']) => {
            return Err(usage(format!("`{user}` cannot be an account in a URL"), "use the parameter `user`"));
        }
        Some(user) => format!("{user}@"),
        None => String::new(),
    };
    // What is wrong or missing is said here, rather than by every session from then on.
    config::resolve(text, &Overrides::default(), &WeakDefaults::default(), env)?;
    let alias = alias(Remembered::of(&url, env)?, noted, env)?;
    Ok(format!("{user}{alias}:{path}"))
}

/// Finds the alias of what a URL means, and notes it.
fn alias(meant: Remembered, noted: &mut Vec<(String, Remembered)>, env: &Environment) -> Result<String> {
    let host = &meant.host;
    let endpoint = meant.parameters.endpoint.as_deref().and_then(|text| Endpoint::parse(text).ok());
    let plain = match endpoint.map(|endpoint| format!(".{}", endpoint.host)) {
        Some(suffix) if !host.ends_with(&suffix) => format!("{host}{suffix}"),
        _ => host.clone(),
    };
    let plain: String = plain.chars().map(|character| if is_plain(character) { character } else { '-' }).collect();
    if plain.starts_with('-') {
        return Err(usage(format!("`{host}` is not a host"), "write tstunnel://HOST/PATH"));
    }
    // A name without an endpoint is the configuration's, and goes on to mean what that says.
    let is_configured = meant.parameters.endpoint.is_none();
    let says_nothing = meant == Remembered { host: plain.clone(), ..Remembered::default() };
    if is_configured && says_nothing && config::recall(&plain, env)?.is_none() {
        return Ok(plain);
    }
    // An alias lives as long as its session, so a URL with another certificate is given another: the plain name, or that
    // with at least six digits of what makes it different.
    let said = format!("{meant:?}");
    let digits = hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, said.as_bytes()).as_ref());
    let longer = (6..=digits.len()).step_by(2).filter_map(|length| digits.get(..length));
    let candidates = std::iter::once(plain.clone())
        .filter(|_| !is_configured)
        .chain(longer.map(|digits| format!("{plain}+{digits}")));
    for alias in candidates {
        if let Some((_, known)) = noted.iter().find(|(noted, _)| *noted == alias) {
            if *known == meant {
                return Ok(alias);
            }
        } else if config::recall(&alias, env)?.is_none_or(|known| known == meant) {
            noted.push((alias.clone(), meant));
            return Ok(alias);
        }
    }
    Err(Error::new(Code::Internal, format!("no alias is free for {plain}")))
}

/// What may stand in an alias: nothing that Mutagen, a shell or a terminal reads as something else.
fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_')
}

/// What Mutagen has after the host's colon. The command tells a folder from a forwarding, and where there is none, the look.
fn path(target: Option<&Target>, kind: Option<Kind>) -> Result<String> {
    match (kind, target) {
        (Some(Kind::Synchronization), Some(Target::Forwarding(text))) => Ok(format!("/{text}")),
        (_, Some(Target::Forwarding(text))) => Ok(text.clone()),
        (Some(Kind::Forwarding), _) => Err(usage(
            "the URL does not say where the forwarding ends",
            "write tstunnel://HOST/tcp:localhost:PORT or tstunnel://HOST/unix:/PATH",
        )),
        (_, Some(Target::Path(text))) => Ok(text.clone()),
        (_, None) => Err(usage("the URL names no folder", "write tstunnel://HOST/PATH, or /~/PATH")),
    }
}

fn usage(text: impl Into<String>, hint: &str) -> Error {
    Error::new(Code::Usage, text).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::remember;

    /// A home of its own, with a certificate and a key in the variables, and an endpoint for those who want one.
    struct Machine {
        _home: tempfile::TempDir,
        env: Environment,
    }

    impl Machine {
        fn new() -> Machine {
            let home = tempfile::tempdir().unwrap();
            let env = Environment {
                home: Some(home.path().to_owned()),
                current_dir: "/work".into(),
                cert: Some("/c".into()),
                key: Some("/k".into()),
                ..Environment::default()
            };
            Machine { _home: home, env }
        }

        fn with_endpoint(endpoint: &str) -> Machine {
            let mut machine = Machine::new();
            machine.env.endpoint = Some(endpoint.into());
            machine
        }

        fn rewrite(&self, args: &[&str]) -> Result<Rewritten> {
            rewrite(&args.iter().map(OsString::from).collect::<Vec<_>>(), &self.env)
        }

        fn rewritten(&self, args: &[&str]) -> (Vec<String>, Vec<(String, Remembered)>) {
            let Rewritten { args, remember } = self.rewrite(args).unwrap();
            (args.into_iter().map(|arg| arg.into_string().unwrap()).collect(), remember)
        }

        fn remember(&self, noted: &[(String, Remembered)]) {
            for (alias, remembered) in noted {
                remember(alias, remembered, &self.env).unwrap();
            }
        }
    }

    /// Whether an alias is `plain` with six digits behind it.
    fn is_longer(alias: &str, plain: &str) -> bool {
        alias.strip_prefix(plain).and_then(|rest| rest.strip_prefix('+')).is_some_and(|digits| digits.len() == 6)
    }

    #[test]
    fn a_folder_becomes_mutagens_host_and_path() {
        let url = "tstunnel://dev@host123/home/dev/app?endpoint=containers.example.net:443&cert=a/c";
        let (args, noted) = Machine::new().rewritten(&["sync", "create", "--name", "x", "./app", url]);
        assert_eq!(
            args,
            ["sync", "create", "--name", "x", "./app", "dev@host123.containers.example.net:/home/dev/app"]
        );
        let [(alias, remembered)] = noted.as_slice() else { panic!("{noted:?}") };
        assert_eq!((alias.as_str(), remembered.host.as_str()), ("host123.containers.example.net", "host123"));
        assert_eq!(remembered.parameters.endpoint.as_deref(), Some("containers.example.net:443"));
        assert_eq!(remembered.parameters.cert.as_deref(), Some("/work/a/c"));
        assert_eq!(remembered.parameters.key.as_deref(), Some("/k"));
    }

    #[test]
    fn a_forwarding_becomes_mutagens_host_and_endpoint() {
        let machine = Machine::new();
        for target in ["tcp:localhost:8080", "unix:/var/run/docker.sock", "tcp6:[::1]:80"] {
            let url = format!("TSTUNNEL://h/{target}?endpoint=e");
            let (args, _) = machine.rewritten(&["forward", "create", "tcp:localhost:8080", &url]);
            assert_eq!(args[2..], ["tcp:localhost:8080".to_owned(), format!("h.e:{target}")]);
        }
        for url in ["tstunnel://h/home", "tstunnel://h", "tstunnel://h/tcp:", "tstunnel://h/ftp:x"] {
            assert_eq!(machine.rewrite(&["forward", "create", url]).unwrap_err().code, Code::Usage, "{url}");
        }
    }

    #[test]
    fn the_command_says_what_a_path_means_and_its_look_where_there_is_none() {
        let machine = Machine::with_endpoint("e");
        assert_eq!(machine.rewritten(&["sync", "create", "tstunnel://h/tcp:x"]).0[2], "h.e:/tcp:x");
        assert_eq!(machine.rewritten(&["tstunnel://h/tcp:x:1"]).0[0], "h.e:tcp:x:1");
        assert_eq!(machine.rewritten(&["tstunnel://h/tcp"]).0[0], "h.e:/tcp");
        assert!(machine.rewrite(&["sync", "create", "tstunnel://h"]).unwrap_err().text.contains("no folder"));
    }

    #[test]
    fn home_and_drives_are_written_as_in_mutagens_docker_urls() {
        let machine = Machine::with_endpoint("e");
        for (path, written) in [("/~", "~"), ("/~/a", "~/a"), ("/~a", "~a"), ("/C:/a", "C:/a"), ("/", "/")] {
            let url = format!("tstunnel://h{path}");
            assert_eq!(machine.rewritten(&["sync", "create", &url]).0[2], format!("h.e:{written}"));
        }
    }

    #[test]
    fn an_alias_is_taken_again_for_the_same_meaning_and_never_for_another() {
        let machine = Machine::with_endpoint("e.example");
        let url = |cert: &str| format!("tstunnel://h/p?cert={cert}");
        let (first, noted) = machine.rewritten(&["sync", "create", &url("/a"), &url("/a")]);
        assert_eq!((first[2].as_str(), first[3].as_str(), noted.len()), ("h.e.example:/p", "h.e.example:/p", 1));
        let (both, noted) = machine.rewritten(&["sync", "create", &url("/a"), &url("/b")]);
        assert_eq!((both[2].as_str(), noted.len()), ("h.e.example:/p", 2));
        let (alias, _) = both[3].split_once(':').unwrap();
        assert!(is_longer(alias, "h.e.example"), "{alias}");
        // The same again in a later call, when both are remembered.
        machine.remember(&noted);
        assert_eq!(
            machine.rewritten(&["sync", "create", &url("/b"), &url("/a")]).0[2..],
            [both[3].clone(), both[2].clone()]
        );
        // And a third when even the short name is taken by something else.
        machine.remember(&[(alias.to_owned(), Remembered { host: "other".into(), ..Remembered::default() })]);
        let third = &machine.rewritten(&["sync", "create", &url("/b")]).1[0].0;
        assert!(third.starts_with(alias) && third.len() == alias.len() + 2, "{third}");
    }

    #[test]
    fn every_alias_resolves_to_what_its_url_resolved_to() {
        let machine = Machine::with_endpoint("e.example:444");
        let resolve =
            |host: &str| config::resolve(host, &Overrides::default(), &WeakDefaults::default(), &machine.env).unwrap();
        for url in [
            "tstunnel://h/p",
            "tstunnel://h/p?cert=/other",
            "tstunnel://h/p?cert=./third&ca=~/ca&sni=s.example&user=u&upgrade_base=/x",
            "tstunnel://h.e.example/p",
            "tstunnel://h/tcp:localhost:1?endpoint=10.0.0.1",
        ] {
            let noted = machine.rewritten(&[url]).1;
            machine.remember(&noted);
            assert_eq!(resolve(&noted[0].0), resolve(url), "{url}");
        }
    }

    #[test]
    fn upper_case_makes_no_other_alias() {
        let machine = Machine::with_endpoint("e");
        let (args, noted) = machine.rewritten(&["tstunnel://H/p", "tstunnel://h/p?endpoint=E"]);
        assert_eq!(args[0], "h.e:/p");
        assert!(args[1].starts_with("h.e+"), "the parameters are not the same text: {args:?}");
        assert_eq!(noted.len(), 2);
    }

    #[test]
    fn a_host_of_the_configuration_keeps_its_name_and_what_that_means() {
        let mut machine = Machine::new();
        let file = machine.env.home.clone().unwrap().join(".config/tstunnel/config.toml");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "[host.\"dev-*\"]\nendpoint = \"e\"\ncert = \"/c\"\nkey = \"/k\"\n").unwrap();
        (machine.env.cert, machine.env.key) = (None, None);
        let (args, noted) = machine.rewritten(&["sync", "create", "tstunnel://dev-7/p"]);
        assert_eq!((args[2].as_str(), noted.len()), ("dev-7:/p", 0));
        // Not where that name was given to something else once.
        machine.remember(&[("dev-8".to_owned(), Remembered { host: "other".into(), ..Remembered::default() })]);
        let kept = &machine.rewritten(&["sync", "create", "tstunnel://dev-8/p"]).0[2];
        assert!(kept.strip_suffix(":/p").is_some_and(|alias| is_longer(alias, "dev-8")), "{kept}");

        // What is said besides, by the URL or by a variable, is remembered under another name.
        let named = |machine: &Machine, url: &str| {
            let (args, noted) = machine.rewritten(&["sync", "create", url]);
            let [(alias, remembered)] = noted.as_slice() else { panic!("{noted:?}") };
            assert!(is_longer(alias, "dev-7"), "{alias}");
            assert_eq!(args[2], format!("{alias}:/p"));
            remembered.clone()
        };
        assert_eq!(named(&machine, "tstunnel://dev-7/p?cert=/other").parameters.cert.as_deref(), Some("/other"));
        machine.env.proxies.https_proxy = Some("http://proxy:1".to_owned());
        assert_eq!(named(&machine, "tstunnel://dev-7/p").proxies, machine.env.proxies);
        machine.env.config = Some(file.clone());
        assert_eq!(named(&machine, "tstunnel://dev-7/p").config.as_deref(), file.to_str());
        assert_eq!(machine.rewritten(&["tstunnel://h.e/p?endpoint=E:443&cert=/c&key=/k"]).0[0], "h.e:/p");
    }

    #[test]
    fn what_would_never_connect_is_refused_at_once() {
        let machine = Machine::new();
        let refusal = |url: &str| machine.rewrite(&["sync", "create", ".", url]).unwrap_err();
        assert!(refusal("tstunnel://h/p").text.contains("has no `endpoint`"));
        assert!(refusal("tstunnel://h/p?endpoint=e&sni=10.0.0.1").text.contains("the URL's `sni`"));
        assert!(refusal("tstunnel://a%20b/p?endpoint=e").text.contains("not a host id"));
        assert!(refusal("tstunnel://h/p?x=1").text.contains("unknown parameter"));
    }

    #[test]
    fn an_alias_holds_nothing_that_mutagen_reads_as_something_else() {
        let mut machine = Machine::new();
        assert_eq!(machine.rewritten(&["sync", "create", "tstunnel://h/p?endpoint=[::1]:8443"]).0[2], "h.--1:/p");
        let file = machine.env.home.clone().unwrap().join("c.toml");
        std::fs::write(&file, "[host.\"*\"]\nendpoint = \"e\"\nhost_id = \"x\"\n").unwrap();
        machine.env.config = Some(file);
        let odd = &machine.rewritten(&["sync", "create", "tstunnel://a%20b%3Ac/p"]).0[2];
        assert!(odd.strip_suffix(":/p").is_some_and(|alias| is_longer(alias, "a-b-c")), "{odd}");
        for url in ["tstunnel:///p", "tstunnel://-h/p", "tstunnel://-oX@h/p", "tstunnel://a%3Ab@h/p", "tstunnel://@h/p"]
        {
            assert_eq!(machine.rewrite(&["sync", "create", url]).unwrap_err().code, Code::Usage, "{url}");
        }
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        let args = ["sync", "list", "docker://c/p", "h:/p", "x=tstunnel://", "tstunnel:/"];
        let (rewritten, noted) = Machine::new().rewritten(&args);
        assert_eq!(rewritten, args);
        assert!(noted.is_empty());
    }
}
