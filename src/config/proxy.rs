//! The key `proxy` and the environment's variables → the proxy, if any, through which an endpoint is reached; no I/O.
//!
//! The variables mean what they mean to curl(1). A password is never part of a message: neither of an error nor of what
//! `Debug` and `Display` print.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use crate::config::Endpoint;
use crate::error::{Code, Error, Result};
use crate::protocol::encoding::percent_decode;

/// The port where a proxy's URL names none, as curl has it; that of a proxy over TLS is 443.
const DEFAULT_PROXY_PORT: u16 = 1080;
/// The longest user and password: what a byte can count (RFC 1929 §2).
const MAX_CREDENTIAL_BYTES: usize = 255;

/// What a proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP's `CONNECT` (RFC 9110 §9.3.6).
    Http,
    /// The same over TLS.
    Https,
    /// SOCKS5 (RFC 1928), with names that the proxy looks up.
    Socks5,
}

impl Scheme {
    fn parse(text: &str) -> Option<Scheme> {
        match text.to_ascii_lowercase().as_str() {
            "http" => Some(Scheme::Http),
            "https" => Some(Scheme::Https),
            "socks5" | "socks5h" => Some(Scheme::Socks5),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Socks5 => "socks5",
        }
    }

    fn default_port(self) -> u16 {
        if self == Scheme::Https { crate::protocol::DEFAULT_PORT } else { DEFAULT_PROXY_PORT }
    }
}

/// Who a proxy is told is asking.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user, at most 255 bytes.
    pub user: String,
    /// The password, at most 255 bytes, perhaps empty.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// What it speaks.
    pub scheme: Scheme,
    /// Where it is.
    pub endpoint: Endpoint,
    /// What it is told about the user.
    pub credentials: Option<Credentials>,
}

/// Without the credentials.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.endpoint)
    }
}

impl Proxy {
    /// Reads `[SCHEME://][USER[:PASSWORD]@]HOST[:PORT][/]`; the scheme is `http` if left out. User and password may be
    /// percent-encoded.
    ///
    /// # Errors
    /// The sentence that says what is wrong, without the credentials.
    pub fn parse(text: &str) -> Result<Proxy, String> {
        let (scheme, rest) = text.split_once("://").map_or((None, text), |(scheme, rest)| (Some(scheme), rest));
        // A slash ends the host; one in a password is percent-encoded.
        let (authority, path) = rest.find(['/', '?', '#']).map_or((rest, ""), |end| rest.split_at(end));
        let (user_info, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        let wrong = |why: &str| format!("`{host}` is not a proxy: {why}");
        let scheme = match scheme {
            None => Scheme::Http,
            Some(scheme) => Scheme::parse(scheme).ok_or_else(|| {
                // What stands before `://` may be anything where the URL is malformed.
                wrong("its URL begins with http://, https://, socks5:// or socks5h://")
            })?,
        };
        if !matches!(path, "" | "/") {
            return Err(wrong("nothing follows its port; write a `/` in a password as %2F"));
        }
        let mut endpoint = Endpoint::parse(host).map_err(|_| {
            wrong("it is HOST:PORT, where the host is a name, an address, or an IPv6 address in brackets")
        })?;
        let names_port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
        if !names_port {
            endpoint.port = scheme.default_port();
        }
        let credentials = user_info.map(|text| Credentials::parse(text, scheme)).transpose().map_err(wrong)?;
        Ok(Proxy { scheme, endpoint, credentials })
    }

    /// Reads the key `proxy`: a proxy, or `none`.
    pub(super) fn parse_key(text: &str) -> Result<Option<Proxy>, String> {
        if text == "none" { Ok(None) } else { Proxy::parse(text).map(Some) }
    }
}

impl Credentials {
    fn parse(text: &str, scheme: Scheme) -> Result<Credentials, &'static str> {
        let (user, password) = text.split_once(':').unwrap_or((text, ""));
        let decode = |text: &str| {
            let text = percent_decode(text).and_then(|bytes| String::from_utf8(bytes).ok());
            text.filter(|text| text.len() <= MAX_CREDENTIAL_BYTES && !text.contains(char::is_control))
                .ok_or("its user and password are at most 255 bytes of UTF-8 each, percent-encoded where needed")
        };
        let (user, password) = (decode(user)?, decode(password)?);
        if user.is_empty() {
            return Err("its user is empty");
        }
        if user.contains(':') && scheme != Scheme::Socks5 {
            return Err("a user has no colon in HTTP (RFC 7617)");
        }
        Ok(Credentials { user, password })
    }
}

/// The variables that name proxies, as they were found.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variables {
    /// `https_proxy`, else `HTTPS_PROXY`. `HTTP_PROXY` is none of ours: it is for plain HTTP, and what a CGI program calls
    /// a request's header.
    pub https_proxy: Option<String>,
    /// `all_proxy`, else `ALL_PROXY`.
    pub all_proxy: Option<String>,
    /// `no_proxy`, else `NO_PROXY`.
    pub no_proxy: Option<String>,
}

/// Tells different ones apart, but for what a password could be.
impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown =
            |text: &Option<String>| text.as_deref().map(|text| Proxy::parse(text).map(|proxy| proxy.to_string()));
        f.debug_struct("Variables")
            .field("https_proxy", &shown(&self.https_proxy))
            .field("all_proxy", &shown(&self.all_proxy))
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

impl Variables {
    /// Reads them by `variable`, which passes over empty ones.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Variables {
        let either = |name: &str| variable(name).or_else(|| variable(&name.to_ascii_uppercase()));
        Variables { https_proxy: either("https_proxy"), all_proxy: either("all_proxy"), no_proxy: either("no_proxy") }
    }

    fn chosen(&self) -> Option<(&'static str, &str)> {
        let https = self.https_proxy.as_deref().map(|text| ("HTTPS_PROXY", text));
        https.or_else(|| self.all_proxy.as_deref().map(|text| ("ALL_PROXY", text)))
    }

    /// The variable that names the proxy.
    pub(super) fn name(&self) -> Option<&'static str> {
        self.chosen().map(|(name, _)| name)
    }

    /// The proxy for `endpoint`, if there is one.
    ///
    /// # Errors
    /// `config` for a variable that would count and cannot be understood.
    pub(super) fn proxy_for(&self, endpoint: &Endpoint) -> Result<Option<Proxy>> {
        let Some((name, text)) = self.chosen() else { return Ok(None) };
        if self.no_proxy.as_deref().is_some_and(|list| is_exempt(list, endpoint)) {
            return Ok(None);
        }
        Proxy::parse(text).map(Some).map_err(|why| {
            Error::new(Code::Config, format!("{name}: {why}"))
                .with_hint("correct or unset the variable, or set `proxy` in the configuration")
        })
    }
}

/// Whether `endpoint` is on a list as curl reads it: `*`, names with those below them, addresses and blocks of addresses,
/// between commas or blanks. A block covers addresses alone: no name is looked up for it.
fn is_exempt(list: &str, endpoint: &Endpoint) -> bool {
    let mut entries = list.split(|end: char| end == ',' || end.is_whitespace()).filter(|entry| !entry.is_empty());
    match endpoint.ip() {
        Some(address) => entries.any(|entry| entry == "*" || covers(entry, address)),
        None => entries.any(|entry| entry == "*" || is_at_or_above(entry, &endpoint.host)),
    }
}

fn covers(entry: &str, address: IpAddr) -> bool {
    let bare = entry.strip_prefix('[').and_then(|entry| entry.strip_suffix(']')).unwrap_or(entry);
    match bare.parse::<IpNet>() {
        Ok(block) => block.contains(&address),
        Err(_) => bare.parse() == Ok(address),
    }
}

/// Whether a name is `domain` or below it; dots around the domain say nothing.
fn is_at_or_above(domain: &str, name: &str) -> bool {
    let domain = domain.strip_prefix('.').unwrap_or(domain);
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    let Some(start) = name.len().checked_sub(domain.len()) else { return false };
    let is_end = name.get(start..).is_some_and(|end| end.eq_ignore_ascii_case(domain));
    is_end && !domain.is_empty() && (start == 0 || name.as_bytes().get(start - 1) == Some(&b'.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::parse(text).unwrap()
    }

    #[test]
    fn a_proxy_is_a_url_with_curls_default_port() {
        for (text, shown, credentials) in [
            ("http://proxy.example.net:3128", "http://proxy.example.net:3128", None),
            ("proxy:3128/", "http://proxy:3128", None),
            ("http://proxy", "http://proxy:1080", None),
            ("HTTPS://proxy", "https://proxy:443", None),
            ("socks5h://[::1]", "socks5://[::1]:1080", None),
            ("socks5://10.0.0.1:9050", "socks5://10.0.0.1:9050", None),
            ("http://ann:s%40cret%2F:x@proxy:1", "http://proxy:1", Some(("ann", "s@cret/:x"))),
            ("http://ann@b:secret@proxy:1", "http://proxy:1", Some(("ann@b", "secret"))),
            ("ann@proxy:1", "http://proxy:1", Some(("ann", ""))),
        ] {
            let proxy = Proxy::parse(text).unwrap();
            assert_eq!(proxy.to_string(), shown, "{text}");
            let found = proxy.credentials.as_ref().map(|found| (found.user.as_str(), found.password.as_str()));
            assert_eq!(found, credentials, "{text}");
        }
        assert_eq!(Proxy::parse_key("none"), Ok(None));
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_its_password() {
        let long = format!("http://ann:secret{}@proxy", "x".repeat(255));
        for text in [
            "",
            "http://",
            "socks4://ann:secret@proxy",
            "ftp://ann:secret@proxy",
            "http://ann:secret@",
            "http://ann:secret@proxy:0",
            "http://ann:secret@proxy:many",
            "http://ann:secret@::1",
            "http://ann:secret@proxy:1/path",
            "http://ann:sec/ret@proxy:1",
            "http://ann:secret%@proxy",
            "http://ann:secret%ff@proxy",
            "http://ann:secret%0d%0aX@proxy",
            "http://:secret@proxy",
            "http://a%3Ann:secret@proxy",
            &long,
        ] {
            let why = Proxy::parse(text).unwrap_err();
            assert!(why.contains("is not a proxy: ") && !why.contains("secret"), "{text}: {why}");
        }
    }

    #[test]
    fn a_password_is_in_no_debug_text() {
        let url = "http://ann:secret@proxy:1";
        let variables = Variables { https_proxy: Some(url.into()), ..Variables::default() };
        let shown = format!("{:?} {variables:?}", Proxy::parse(url));
        assert!(shown.contains("proxy") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn variables_are_read_in_curls_order() {
        let read = |set: &[(&str, &str)]| {
            let variables =
                Variables::read(|name| set.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned()));
            variables.proxy_for(&endpoint("a.example.net")).unwrap().map(|proxy| proxy.endpoint.host)
        };
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[("HTTP_PROXY", "a"), ("http_proxy", "b")]), None);
        assert_eq!(read(&[("ALL_PROXY", "a")]).as_deref(), Some("a"));
        assert_eq!(read(&[("ALL_PROXY", "a"), ("all_proxy", "b")]).as_deref(), Some("b"));
        assert_eq!(read(&[("all_proxy", "b"), ("HTTPS_PROXY", "c")]).as_deref(), Some("c"));
        assert_eq!(read(&[("HTTPS_PROXY", "c"), ("https_proxy", "d")]).as_deref(), Some("d"));
        assert_eq!(read(&[("HTTPS_PROXY", "c"), ("NO_PROXY", "example.net")]), None);
        assert_eq!(read(&[("HTTPS_PROXY", "c"), ("NO_PROXY", "example.net"), ("no_proxy", "b")]).as_deref(), Some("c"));
    }

    #[test]
    fn a_variable_that_would_not_count_is_not_read() {
        let variables = Variables {
            https_proxy: Some("ftp://x".into()),
            no_proxy: Some("localhost".into()),
            ..Variables::default()
        };
        assert_eq!(variables.proxy_for(&endpoint("localhost")), Ok(None));
        let error = variables.proxy_for(&endpoint("a.example.net")).unwrap_err();
        assert!(error.code == Code::Config && error.text.starts_with("HTTPS_PROXY: "), "{error}");
    }

    #[test]
    fn exceptions_are_names_with_what_is_below_and_blocks_of_addresses() {
        for (list, host, exempt) in [
            ("*", "a.example.net", true),
            ("*", "10.0.0.1", true),
            ("other, *", "a.example.net", true),
            ("example.net", "a.example.net", true),
            (".example.net", "a.example.net", true),
            (".Example.net.", "example.net", true),
            ("x,\texample.net ,y", "example.net", true),
            ("ample.net", "a.example.net", false),
            ("b.a.example.net", "a.example.net", false),
            (".", "a.example.net", false),
            ("", "a.example.net", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("0.0.1", "10.0.0.1", false),
            ("10.1.2.3/8", "10.200.0.1", true),
            ("10.0.0.0/33", "10.0.0.0", false),
            ("10.0.0.0/16", "10.1.0.1", false),
            ("127.0.0.0/8", "localhost", false),
            ("[::1]", "[::1]", true),
            ("fd00::/8", "[fd12::1]", true),
            ("fd00::/8", "[fe80::1]", false),
        ] {
            assert_eq!(is_exempt(list, &endpoint(host)), exempt, "{list} and {host}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*", list in "\\PC*") {
            if let Ok(proxy) = Proxy::parse(&text) {
                prop_assert_eq!(Proxy::parse(&proxy.to_string()), Ok(Proxy { credentials: None, ..proxy }));
            }
            let _ = (is_exempt(&list, &endpoint("a.example.net")), is_exempt(&list, &endpoint("[::1]")));
        }
    }
}
