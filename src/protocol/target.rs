//! What `/stream` may be asked for: the text of a target → [`Target`].
//!
//! A target is brought into one form before anything is compared with it, so that what was allowed is what is
//! connected to. No I/O: names are not resolved here.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Longest path of a Unix socket on Linux (unix(7): `sun_path` is 108 bytes with its final NUL).
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Where a stream goes, in its one form. Shown as in a request, it is what patterns are compared with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A TCP port.
    Tcp {
        /// A name in lower case or an IP address, without brackets.
        host: String,
        /// The port, never 0.
        port: u16,
    },
    /// The absolute path of a Unix socket, without `.`, `..` and empty components.
    Unix(String),
    /// The server itself, which sends back what it gets; no `targets` name it.
    Echo,
}

/// How a request asks for [`Target::Echo`].
pub const ECHO: &str = "echo";

impl Target {
    /// Reads what a request asks for: [`ECHO`], or what [`Target::parse`] takes.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn asked(text: &str) -> Result<Target, &'static str> {
        if text == ECHO { Ok(Target::Echo) } else { Target::parse(text) }
    }

    /// Parses `tcp:HOST:PORT` (an IPv6 address in brackets) or `unix:PATH`.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn parse(text: &str) -> Result<Target, &'static str> {
        if text.contains('\0') {
            return Err("a target has no NUL");
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Target::Unix);
        }
        let Some(rest) = text.strip_prefix("tcp:") else { return Err("a target is tcp:HOST:PORT or unix:PATH") };
        let Some((host, port)) = rest.rsplit_once(':') else { return Err("a TCP target is tcp:HOST:PORT") };
        Ok(Target::Tcp { host: tcp_host(host)?, port: tcp_port(port)? })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Target::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Target::Unix(path) => write!(f, "unix:{path}"),
            Target::Echo => f.write_str(ECHO),
        }
    }
}

/// A host in its one form. A name that ends in a number must be a plain IPv4 address: the system's resolver would take
/// `127.1` or `0x7f000001` for one, and the text that the policy saw would be something else.
///
/// # Errors
/// What is wrong with it.
pub fn tcp_host(text: &str) -> Result<String, &'static str> {
    if let Some(inner) = text.strip_prefix('[') {
        let address = inner.strip_suffix(']').and_then(|address| address.parse::<Ipv6Addr>().ok());
        return address.map(|address| address.to_string()).ok_or("brackets hold an IPv6 address");
    }
    let name = text.to_ascii_lowercase();
    if name.parse::<Ipv4Addr>().is_ok() {
        return Ok(name);
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err("a TCP target's host is a name, an IPv4 address, or an IPv6 address in brackets");
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x") {
        return Err("a TCP target's host that ends in a number is a whole IPv4 address");
    }
    Ok(name)
}

/// A port in its one form, never 0.
///
/// # Errors
/// What is wrong with it.
pub fn tcp_port(text: &str) -> Result<u16, &'static str> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("a port is a number from 1 to 65535");
    }
    let digits = text.trim_start_matches('0');
    digits.parse().map_err(|_| "a port is a number from 1 to 65535")
}

fn socket_path(path: &str) -> Result<String, &'static str> {
    if !path.starts_with('/') {
        return Err("a socket's path is absolute");
    }
    let mut normal = String::with_capacity(path.len());
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => return Err("a socket's path has no `..`"),
            _ => {
                normal.push('/');
                normal.push_str(component);
            }
        }
    }
    if normal.is_empty() || path.ends_with('/') {
        return Err("a socket's path names a file");
    }
    if normal.len() > MAX_SOCKET_PATH_BYTES {
        return Err("a socket's path has at most 107 bytes");
    }
    Ok(normal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normal(text: &str) -> String {
        Target::parse(text).unwrap().to_string()
    }

    #[test]
    fn a_target_has_one_form() {
        for (text, expected) in [
            ("tcp:LocalHost:080", "tcp:localhost:80"),
            ("tcp:127.0.0.1:65535", "tcp:127.0.0.1:65535"),
            ("tcp:[0:0:0:0:0:0:0:1]:22", "tcp:[::1]:22"),
            ("tcp:[FE80::A]:22", "tcp:[fe80::a]:22"),
            ("tcp:my_db.internal:5432", "tcp:my_db.internal:5432"),
            ("unix:/var/run/docker.sock", "unix:/var/run/docker.sock"),
            ("unix://run/./a//b.sock", "unix:/run/a/b.sock"),
            ("unix:/run/A b.sock", "unix:/run/A b.sock"),
        ] {
            assert_eq!(normal(text), expected);
        }
        assert_eq!(Target::parse("tcp:[::1]:1"), Ok(Target::Tcp { host: "::1".into(), port: 1 }));
    }

    #[test]
    fn a_malformed_target_is_refused() {
        for text in [
            "",
            "localhost:80",
            "udp:localhost:80",
            "TCP:localhost:80",
            "tcp:",
            "tcp:80",
            "tcp::80",
            "tcp:localhost",
            "tcp:localhost:",
            "tcp:localhost:0",
            "tcp:localhost:000",
            "tcp:localhost:65536",
            "tcp:localhost:99999999999999999999",
            "tcp:localhost:+80",
            "tcp:localhost:-1",
            "tcp:localhost:80 ",
            "tcp:localhost:*",
            "tcp:local host:80",
            "tcp:localhost.:80",
            "tcp:-x:80",
            "tcp:a..b:80",
            "tcp:::1:80",
            "tcp:[::1:80",
            "tcp:[127.0.0.1]:80",
            "tcp:[fe80::1%eth0]:80",
            "tcp:[]:80",
            "tcp:127.1:80",
            "tcp:2130706433:80",
            "tcp:0x7f000001:80",
            "tcp:0177.0.0.1:80",
            "tcp:127.0.0.1.0x1:80",
            "tcp:ann@localhost:80",
            "tcp:localhost/x:80",
            "tcp:lo\0calhost:80",
            "unix:",
            "unix:/",
            "unix:///",
            "unix:run/x",
            "unix:@abstract",
            "unix:\0abstract",
            "unix:/run/../etc/x",
            "unix:/run/..",
            "unix:/run/x/",
            "unix:/run/x\0",
            &format!("unix:/{}", "a".repeat(107)),
        ] {
            assert!(Target::parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn the_one_form_is_parsed_as_itself(text in "(tcp|unix):[/.a-z0-9\\[\\]:]{0,20}") {
            if let Ok(target) = Target::parse(&text) {
                prop_assert_eq!(Target::parse(&target.to_string()), Ok(target));
            }
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in any::<String>(), prefix in "(tcp:|unix:/?)") {
            let _ = Target::parse(&text);
            let _ = Target::parse(&format!("{prefix}{text}"));
        }
    }
}
