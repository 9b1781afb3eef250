//! `tstunnel://` URLs: text → [`TunnelUrl`], no I/O; nothing that a user writes can panic.
//!
//! ```text
//! tstunnel://[user@]HOST[/PATH][?parameter=value&…]                 synchronisation
//! tstunnel://[user@]HOST/{tcp|tcp4|tcp6|unix|npipe}:ADDRESS[?…]     forwarding
//! ```
//!
//! The generic syntax is RFC 3986's: everything may be percent-encoded, `+` is a plus. An unknown or repeated parameter is
//! an error, so that a misspelt `cert` does not silently mean another certificate.

use crate::config::Parameters;
use crate::error::{Code, Error, Result, nearest};
use crate::protocol::encoding::percent_decode;

/// What every such URL begins with, in lower case.
pub const PREFIX: &str = "tstunnel://";

/// The parameters that a URL may carry.
const PARAMETERS: [&str; 7] = ["endpoint", "cert", "key", "ca", "upgrade_base", "sni", "user"];

/// The protocols that Mutagen's forwarding specifications know (`pkg/url/forwarding/parse.go`).
pub(crate) const FORWARDING_PROTOCOLS: [&str; 5] = ["tcp", "tcp4", "tcp6", "unix", "npipe"];

/// A parsed `tstunnel://` URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelUrl {
    /// The host's alias, percent-decoded, never empty.
    pub host: String,
    /// The `user@` before the host; there is not also a `user` parameter then.
    pub user: Option<String>,
    /// What follows the host, if anything does.
    pub target: Option<Target>,
    /// What follows the question mark.
    pub parameters: Parameters,
}

/// What a URL points at on its host, in the words of Mutagen's own URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A path to synchronise: `/home/dev/app`, `~/app` (written `/~/app`), or `C:\app` (written `/C:\app`).
    Path(String),
    /// A forwarding specification: `tcp:localhost:8080`, `unix:/var/run/docker.sock`.
    Forwarding(String),
}

impl Target {
    /// The target as Mutagen's SSH URLs have it after the host's colon.
    pub fn as_str(&self) -> &str {
        match self {
            Target::Path(text) | Target::Forwarding(text) => text,
        }
    }
}

/// What ends a URL's scheme.
const MARK: &str = "://";

/// Whether `text` is meant as a `tstunnel://` URL; upper case is fine, and [`TunnelUrl::parse`] says what is misspelt.
pub fn is_tunnel_url(text: &str) -> bool {
    let is_scheme = |scheme: &str| scheme.bytes().all(|byte| byte.is_ascii_alphabetic());
    let scheme = text.split_once(MARK).map(|(scheme, _)| scheme).filter(|scheme| is_scheme(scheme));
    scheme.is_some_and(|scheme| nearest(scheme, PREFIX.strip_suffix(MARK)).is_some())
}

impl TunnelUrl {
    /// Parses a URL.
    ///
    /// # Errors
    /// `usage` where the text is not such a URL, names no host, or has an unknown, repeated or empty parameter.
    pub fn parse(text: &str) -> Result<TunnelUrl> {
        let (prefix, rest) = text.split_at_checked(PREFIX.len()).unwrap_or((text, ""));
        if !prefix.eq_ignore_ascii_case(PREFIX) {
            // What stands behind the scheme may hold a password.
            let shown = text.find(MARK).and_then(|at| text.get(..at + MARK.len())).unwrap_or(text);
            return Err(wrong(format!("the URL's `{shown}` is not {PREFIX}")));
        }
        if rest.contains('#') {
            return Err(wrong("a tstunnel URL has no fragment: write a `#` as %23"));
        }
        let (hierarchy, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match hierarchy.find('/') {
            Some(slash) => hierarchy.split_at(slash),
            None => (hierarchy, ""),
        };
        let (user, host) = match authority.rsplit_once('@') {
            // The user information is not repeated in the message: it may hold a password.
            Some((user, _)) if user.contains(':') => return Err(wrong("a tstunnel URL has no password")),
            Some((user, host)) => (Some(decode("user", user)?), host),
            None => (None, authority),
        };
        if user.as_deref() == Some("") {
            return Err(wrong("the URL's user is empty"));
        }
        if host.contains(':') {
            return Err(wrong(format!("`{host}` has a port: the port belongs to `endpoint`")));
        }
        let host = decode("host", host)?;
        if host.is_empty() {
            return Err(wrong("the URL names no host"));
        }
        let parameters = parse_query(query)?;
        if user.is_some() && parameters.user.is_some() {
            return Err(wrong("the URL names the user twice: before the host and as a parameter"));
        }
        Ok(TunnelUrl { host, user, target: parse_target(&decode("path", path)?)?, parameters })
    }
}

/// `path` is decoded, and empty or with its slash.
fn parse_target(path: &str) -> Result<Option<Target>> {
    let Some(inner) = path.strip_prefix('/') else { return Ok(None) };
    if let Some((protocol, address)) = inner.split_once(':')
        && FORWARDING_PROTOCOLS.contains(&protocol)
    {
        if address.is_empty() {
            return Err(wrong(format!("`{inner}` has no address")));
        }
        return Ok(Some(Target::Forwarding(inner.to_owned())));
    }
    // The slash only separates where what follows is absolute by itself; Mutagen's Docker URLs read the same way.
    let path = if inner.starts_with('~') || begins_with_drive(inner) { inner } else { path };
    Ok(Some(Target::Path(path.to_owned())))
}

fn begins_with_drive(path: &str) -> bool {
    matches!(path.as_bytes(), [letter, b':', b'\\' | b'/', ..] if letter.is_ascii_alphabetic())
}

fn parse_query(query: &str) -> Result<Parameters> {
    let mut parameters = Parameters::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode("parameter", name)?;
        let field = match name.as_str() {
            "endpoint" => &mut parameters.endpoint,
            "cert" => &mut parameters.cert,
            "key" => &mut parameters.key,
            "ca" => &mut parameters.ca,
            "upgrade_base" => &mut parameters.upgrade_base,
            "sni" => &mut parameters.sni,
            "user" => &mut parameters.user,
            _ => {
                let error = wrong(format!("unknown parameter `{name}` in the URL"));
                return Err(match nearest(&name, PARAMETERS) {
                    Some(known) => error.with_hint(format!("did you mean `{known}`?")),
                    None => error.with_hint(format!("the parameters are {}", PARAMETERS.join(", "))),
                });
            }
        };
        if field.is_some() {
            return Err(wrong(format!("the URL gives `{name}` more than once")));
        }
        let value = decode(&name, value)?;
        if value.is_empty() {
            return Err(wrong(format!("the URL's `{name}` is empty")));
        }
        *field = Some(value);
    }
    Ok(parameters)
}

/// Undoes percent-encoding. What comes out is UTF-8 without control characters.
fn decode(part: &str, text: &str) -> Result<String> {
    let decoded = percent_decode(text).ok_or_else(|| {
        wrong(format!("the URL's {part} has a `%` that is not followed by two hexadecimal digits"))
            .with_hint("write a percent sign as %25")
    })?;
    match String::from_utf8(decoded) {
        Ok(text) if text.chars().any(char::is_control) => {
            Err(wrong(format!("the URL's {part} has a control character in it")))
        }
        Ok(text) => Ok(text),
        Err(_) => Err(wrong(format!("the URL's {part} is not UTF-8 once it is decoded"))),
    }
}

fn wrong(text: impl Into<String>) -> Error {
    Error::new(Code::Usage, text).with_hint("a URL reads tstunnel://HOST/PATH?endpoint=HOST:PORT&cert=FILE&key=FILE")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(url: &str) -> Option<Target> {
        TunnelUrl::parse(url).unwrap().target
    }

    fn refusal(url: &str) -> String {
        let error = TunnelUrl::parse(url).unwrap_err();
        assert_eq!(error.code, Code::Usage);
        error.text
    }

    #[test]
    fn every_part_is_read() {
        let url = TunnelUrl::parse(
            "tstunnel://host123/home/dev/app?endpoint=containers.tinyscale.net:443&cert=./a.crt&key=~/a.key&ca=/ca&upgrade_base=/x&sni=a.b&user=dev",
        )
        .unwrap();
        assert_eq!(url.host, "host123");
        assert_eq!(url.user, None);
        assert_eq!(url.target, Some(Target::Path("/home/dev/app".into())));
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            url.parameters,
            Parameters {
                endpoint: text("containers.tinyscale.net:443"),
                cert: text("./a.crt"),
                key: text("~/a.key"),
                ca: text("/ca"),
                upgrade_base: text("/x"),
                sni: text("a.b"),
                user: text("dev"),
            }
        );
    }

    #[test]
    fn a_path_is_absolute_unless_it_begins_with_a_tilde_or_a_drive() {
        assert_eq!(path("tstunnel://h/home/dev"), Some(Target::Path("/home/dev".into())));
        assert_eq!(path("tstunnel://h/~/app"), Some(Target::Path("~/app".into())));
        assert_eq!(path("tstunnel://h/~"), Some(Target::Path("~".into())));
        assert_eq!(path("tstunnel://h/C:%5Capp"), Some(Target::Path("C:\\app".into())));
        assert_eq!(path("tstunnel://h/"), Some(Target::Path("/".into())));
        assert_eq!(path("tstunnel://h/a:b"), Some(Target::Path("/a:b".into())));
        assert_eq!(path("tstunnel://h//a"), Some(Target::Path("//a".into())));
        assert_eq!(path("tstunnel://h"), None);
        assert_eq!(path("tstunnel://h?user=a"), None);
    }

    #[test]
    fn a_forwarding_specification_is_told_from_a_path() {
        for spec in ["tcp:localhost:8080", "tcp6:[::1]:80", "unix:/var/run/docker.sock", "npipe:\\\\.\\pipe\\x"] {
            assert_eq!(path(&format!("tstunnel://h/{spec}")), Some(Target::Forwarding(spec.into())));
        }
        assert!(refusal("tstunnel://h/tcp:").contains("no address"));
    }

    #[test]
    fn parts_are_percent_decoded_and_a_plus_stays() {
        let url = TunnelUrl::parse("TSTUNNEL://an%6e@dev%20box/a%2Fb+c%3f?cert=%26%C3%A4").unwrap();
        assert_eq!((url.host.as_str(), url.user.as_deref()), ("dev box", Some("ann")));
        assert_eq!(url.target.unwrap().as_str(), "/a/b+c?");
        assert_eq!(url.parameters.cert.as_deref(), Some("&ä"));
    }

    #[test]
    fn what_is_wrong_is_refused_with_a_reason() {
        for (url, reason) in [
            ("https://h", "`https://` is not tstunnel://"),
            ("tstunnel:h", "`tstunnel:h` is not tstunnel://"),
            ("tstunnel://", "no host"),
            ("tstunnel:///path", "no host"),
            ("tstunnel://user@/path", "no host"),
            ("tstunnel://@h/path", "user is empty"),
            ("tstunnel://h:443/path", "has a port"),
            ("tstunnel://h?cert=a&cert=b", "more than once"),
            ("tstunnel://h?cert", "is empty"),
            ("tstunnel://h?cert=", "is empty"),
            ("tstunnel://a@h?user=b", "twice"),
            ("tstunnel://h?nonsense=1", "unknown parameter `nonsense`"),
            ("tstunnel://h/%zz", "two hexadecimal digits"),
            ("tstunnel://h/%4", "two hexadecimal digits"),
            ("tstunnel://h/%ff", "not UTF-8"),
            ("tstunnel://h/%00", "control character"),
            ("tstunnel://h/a\nb", "control character"),
            ("tstunnel://h/a#b", "no fragment"),
        ] {
            assert!(refusal(url).contains(reason), "{url}: {}", refusal(url));
        }
    }

    #[test]
    fn a_misspelt_parameter_gets_the_nearest_as_a_hint() {
        let error = TunnelUrl::parse("tstunnel://h?endpont=x").unwrap_err();
        assert_eq!(error.hint(), "did you mean `endpoint`?");
    }

    #[test]
    fn a_scheme_that_is_near_in_spelling_is_meant_as_the_scheme_and_refused_as_that() {
        for url in ["tstunel://h/p", "tstunnnel://h", "stunnel://h", "TSTUNEL://h"] {
            assert!(is_tunnel_url(url) && refusal(url).contains("is not tstunnel://"), "{url}");
        }
        assert!(is_tunnel_url("TSTUNNEL://h") && TunnelUrl::parse("TSTUNNEL://h").is_ok());
        for other in ["ssh://h", "docker://h/p", "https://h", "tstunel", "/tstunel://h", "tstunnel:/p", "h:/p", "://"] {
            assert!(!is_tunnel_url(other), "{other}");
        }
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        for scheme in ["tstunnel", "tstunel"] {
            let error = TunnelUrl::parse(&format!("{scheme}://ann:hunter2@h/x")).unwrap_err();
            assert!(!error.report().contains("hunter2"));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = TunnelUrl::parse(&text);
            let _ = TunnelUrl::parse(&format!("tstunnel://{text}"));
        }
    }
}
