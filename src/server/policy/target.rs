//! What `/stream` may reach: the configuration's `targets` → [`TargetPattern`]. No I/O.

use std::fmt;
use std::net::Ipv4Addr;

use serde::Deserialize;

use crate::config::pattern;
use crate::protocol::target::{Target, tcp_host, tcp_port};

/// What to write for all that there is.
const ALL: &str = "; write `tcp:*:*` for every host and port, `unix:/*` for every socket";

/// One entry of a host's `targets`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum TargetPattern {
    /// One target; the first of these in a list is the default.
    One(Target),
    /// A pattern for the whole text of a target in its one form. `*` crosses dots and slashes; but where the host is written like an
    /// IPv4 address, no name is covered that only begins like one: whoever owns a domain can make such names, and have them lead anywhere.
    Pattern(String),
}

impl TargetPattern {
    /// Whether this entry allows `target`.
    pub fn allows(&self, target: &Target) -> bool {
        match self {
            TargetPattern::One(allowed) => allowed == target,
            TargetPattern::Pattern(pattern) => {
                pattern::matches(pattern, &target.to_string()) && (!is_of_addresses(pattern) || is_address(target))
            }
        }
    }
}

/// Whether the host of a pattern is digits, dots and wildcards, as an IPv4 address is written.
fn is_of_addresses(pattern: &str) -> bool {
    let host = pattern.strip_prefix("tcp:").and_then(|rest| rest.rsplit_once(':')).map_or("", |(host, _)| host);
    let is_part = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'*' | b'?');
    host.bytes().all(is_part) && host.contains(|character: char| character.is_ascii_digit())
}

fn is_address(target: &Target) -> bool {
    matches!(target, Target::Tcp { host, .. } if host.parse::<Ipv4Addr>().is_ok())
}

impl fmt::Display for TargetPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TargetPattern::One(target) => target.fmt(f),
            TargetPattern::Pattern(pattern) => f.write_str(pattern),
        }
    }
}

impl TryFrom<String> for TargetPattern {
    type Error = String;

    fn try_from(text: String) -> Result<TargetPattern, String> {
        parse_pattern(&text).map_err(|why| {
            let advice = match text.as_str() {
                "*" | "any" | "all" | "tcp:*" | "unix:*" => ALL,
                _ => "",
            };
            format!("`{text}` is no target: {why}{advice}")
        })
    }
}

fn parse_pattern(text: &str) -> Result<TargetPattern, &'static str> {
    if !pattern::has_wildcard(text) {
        return Target::parse(text).map(TargetPattern::One);
    }
    if text.contains('\0') {
        return Err("a target has no NUL");
    }
    if let Some(path) = text.strip_prefix("unix:") {
        // The components between wildcards must be in the one form too, or the pattern could never match.
        return if path.starts_with('/') && !path[1..].split('/').any(|part| matches!(part, "" | "." | "..")) {
            Ok(TargetPattern::Pattern(text.to_owned()))
        } else {
            Err("a socket's path is absolute, without empty, `.` or `..` components")
        };
    }
    let Some(rest) = text.strip_prefix("tcp:") else { return Err("a target is tcp:HOST:PORT or unix:PATH") };
    let Some((host, port)) = rest.rsplit_once(':') else { return Err("a TCP target is tcp:HOST:PORT") };
    if host.is_empty() {
        return Err("a TCP target has a host");
    }
    let host = if pattern::has_wildcard(host) {
        host.to_ascii_lowercase()
    } else {
        let host = tcp_host(host)?;
        if host.contains(':') { format!("[{host}]") } else { host }
    };
    let port = if pattern::has_wildcard(port) {
        if !port.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'*' | b'?')) {
            return Err("a port is a number from 1 to 65535");
        }
        port.to_owned()
    } else {
        tcp_port(port)?.to_string()
    };
    Ok(TargetPattern::Pattern(format!("tcp:{host}:{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn allows(entry: &str, target: &str) -> bool {
        TargetPattern::try_from(entry.to_owned()).unwrap().allows(&Target::parse(target).unwrap())
    }

    #[test]
    fn an_entry_allows_what_it_names_in_whatever_form() {
        assert!(allows("tcp:LOCALHOST:0080", "tcp:localhost:80"));
        assert!(allows("tcp:127.0.0.1:*", "tcp:127.0.0.1:00022"));
        assert!(allows("tcp:[0::1]:*", "tcp:[::1]:80"));
        assert!(allows("tcp:*.Internal:80?0", "tcp:db.INTERNAL:8080"));
        assert!(allows("tcp:*:443", "tcp:[::1]:443"));
        assert!(allows("unix:/run/app/*.sock", "unix:/run//app/x/y.sock"));
        assert!(allows("unix:/var/run/docker.sock", "unix:/var/run/./docker.sock"));
    }

    #[test]
    fn an_entry_allows_nothing_else() {
        assert!(!allows("tcp:127.0.0.1:80", "tcp:127.0.0.1:8080"));
        assert!(!allows("tcp:127.0.0.1:*", "tcp:127.0.0.11:80"));
        assert!(!allows("tcp:*.internal:80", "tcp:internal:80"));
        assert!(!allows("tcp:*.internal:80", "tcp:a.internal.evil:80"));
        assert!(!allows("tcp:*:443", "tcp:localhost:80"));
        assert!(!allows("unix:/run/app/*.sock", "unix:/run/other/x.sock"));
        assert!(!allows("unix:/run/x.sock", "unix:/run/X.sock"));
        assert!(!allows("unix:/*", "tcp:localhost:80"));
    }

    #[test]
    fn an_entry_of_addresses_allows_no_name_that_begins_like_one() {
        for entry in ["tcp:10.0.0.*:*", "tcp:10.*:22", "tcp:10.0.0.?*:22", "tcp:*.0.0.*:22", "tcp:1*:22"] {
            assert!(allows(entry, "tcp:10.0.0.1:22"), "{entry}");
            assert!(!allows(entry, "tcp:10.0.0.1.evil.example:22"), "{entry}");
        }
        assert!(allows("tcp:*.*:22", "tcp:10.0.0.1.evil.example:22") && allows("tcp:db1*:22", "tcp:db1.internal:22"));
    }

    #[test]
    fn an_entry_that_could_never_match_is_refused() {
        for entry in [
            "*",
            "tcp:*",
            "tcp::*",
            "tcp:local host:*",
            "tcp:*:0",
            "tcp:*:65536",
            "tcp:*:a*",
            "udp:*:1",
            "unix:*",
            "unix:/run/../*",
            "unix:/run//*",
            "unix:/*/",
            "unix:/run/\0*",
            "tcp:127.1:*",
        ] {
            let error = TargetPattern::try_from(entry.to_owned()).unwrap_err();
            assert!(error.contains("is no target"), "{entry} {error}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text in any::<String>(), prefix in "(tcp:|unix:/?)") {
            let _ = TargetPattern::try_from(format!("{prefix}{text}"));
        }
    }
}
