//! Values as text, from whatever source → what they mean; no I/O.
//!
//! An error here is the sentence without its place: the caller puts file and line, option or variable before it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use rustls_pki_types::DnsName;

use crate::config::Endpoint;
use crate::protocol::{DEFAULT_PORT, is_dns_name};

/// Reads an upgrade base: an absolute path without a trailing slash, as it stands in a request's target. `/` is the empty one.
///
/// # Errors
/// The sentence that says what is wrong.
pub fn upgrade_base(text: &str) -> Result<String, String> {
    if text == "/" {
        return Ok(String::new());
    }
    let complaint = if !text.starts_with('/') {
        "does not begin with `/`"
    } else if text.ends_with('/') {
        "ends in `/`"
    } else if text.bytes().any(|byte| !byte.is_ascii_graphic() || matches!(byte, b'?' | b'#')) {
        "has a character in it that a path cannot have"
    } else {
        return Ok(text.to_owned());
    };
    Err(format!("`{text}` is not a path prefix: it {complaint}"))
}

/// Reads a server name: a DNS name, never an address, because SNI carries no addresses (RFC 6066 §3).
pub(crate) fn server_name(text: &str) -> Result<String, String> {
    if is_dns_name(text) && DnsName::try_from(text).is_ok() {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("`{text}` is not a DNS name"))
    }
}

/// Reads an account's name. What is a valid one only the server knows; nothing invisible gets there.
pub(super) fn user(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().any(char::is_control) {
        Err(format!("`{text}` is not a user"))
    } else {
        Ok(text.to_owned())
    }
}

/// Reads a path: `~/` is the home, anything relative is below `folder`.
///
/// # Errors
/// The sentence that says what is wrong.
pub fn path(text: &Path, folder: &Path, home: Option<&Path>) -> Result<PathBuf, String> {
    if text.as_os_str().is_empty() {
        return Err("the path is empty".to_owned());
    }
    let joined = match text.strip_prefix("~") {
        Ok(below) => {
            home.ok_or_else(|| format!("`{}` is below the home, but HOME is not set", text.display()))?.join(below)
        }
        Err(_) => folder.join(text),
    };
    // Drops the `.` of `./client.crt`, which would only be noise in a message.
    Ok(joined.components().collect())
}

impl Endpoint {
    /// Reads `HOST[:PORT]`, `ADDRESS[:PORT]` or `[IPv6 ADDRESS][:PORT]`; the port is 443 if left out.
    ///
    /// # Errors
    /// The sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Endpoint, String> {
        let wrong = |why: &str| format!("`{text}` is not an endpoint: {why}");
        if text.contains("://") {
            return Err(wrong("write it as host:port, without a scheme"));
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, after) = rest.split_once(']').ok_or_else(|| wrong("its bracket is not closed"))?;
                let address: Ipv6Addr = address.parse().map_err(|_| wrong("what is in brackets is no IPv6 address"))?;
                let port = match after.strip_prefix(':') {
                    Some(port) => Some(port),
                    None if after.is_empty() => None,
                    None => return Err(wrong("a colon and the port come after the bracket")),
                };
                (address.to_string(), port)
            }
            None if text.matches(':').count() > 1 => return Err(wrong("an IPv6 address is written in brackets")),
            None => {
                let (host, port) = match text.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (text, None),
                };
                // The dot of an absolute name is no part of a server name.
                let host = host.strip_suffix('.').unwrap_or(host);
                if !host.is_ascii() {
                    return Err(wrong("write a name with other letters than ASCII in its xn-- form"));
                }
                let valid = host.parse::<IpAddr>().is_ok() || server_name(host).is_ok();
                (valid.then(|| host.to_ascii_lowercase()).ok_or_else(|| wrong("its host is no name or address"))?, port)
            }
        };
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => Some(port)
                .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|port| port.parse().ok())
                .filter(|port| *port != 0)
                .ok_or_else(|| wrong("its port is not a number from 1 to 65535"))?,
        };
        Ok(Endpoint { host, port })
    }

    /// The host as an address, where it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_endpoint_has_port_443_if_it_names_none() {
        for (text, host, port) in [
            ("Containers.Example.NET", "containers.example.net", 443),
            ("containers.example.net.:8443", "containers.example.net", 8443),
            ("10.0.0.1:1", "10.0.0.1", 1),
            ("[::1]", "::1", 443),
            ("[2001:DB8::1]:65535", "2001:db8::1", 65535),
            ("localhost:443", "localhost", 443),
        ] {
            assert_eq!(Endpoint::parse(text), Ok(Endpoint { host: host.into(), port }), "{text}");
        }
        assert_eq!(Endpoint::parse("[::1]").unwrap().to_string(), "[::1]:443");
        assert_eq!(Endpoint::parse("a:1").unwrap().to_string(), "a:1");
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for bad in [
            "",
            ":443",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a:b",
            "::1",
            "[::1",
            "[::1]443",
            "[a]:1",
            "https://a",
            "a b",
            "ä.de",
            "a/b",
            "-a",
            "256.1.1.1",
            "127.1",
            "a..b",
            "user@a",
        ] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_upgrade_base_is_an_absolute_path_without_a_trailing_slash() {
        assert_eq!(upgrade_base("/tinyscale/v1").as_deref(), Ok("/tinyscale/v1"));
        assert_eq!(upgrade_base("/"), Ok(String::new()));
        for bad in ["", "//", "a", "/a/", "/a b", "/a?b", "/a#b", "/a\n", "/ä"] {
            assert!(upgrade_base(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_server_name_is_never_an_address() {
        assert_eq!(server_name("Host123.Example.net").as_deref(), Ok("host123.example.net"));
        for bad in ["", "10.0.0.1", "::1", "1.2.3", "a.", "a_b", "a b"] {
            assert!(server_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_is_below_its_folder_or_the_home() {
        let (folder, home) = (Path::new("/etc/tstunnel"), Path::new("/home/x"));
        let read = |text: &str| path(Path::new(text), folder, Some(home)).unwrap();
        assert_eq!(read("client.crt"), Path::new("/etc/tstunnel/client.crt"));
        assert_eq!(read("./a/../client.crt"), Path::new("/etc/tstunnel/a/../client.crt"));
        assert_eq!(read("~/client.crt"), Path::new("/home/x/client.crt"));
        assert_eq!(read("~x/client.crt"), Path::new("/etc/tstunnel/~x/client.crt"));
        assert_eq!(read("/client.crt"), Path::new("/client.crt"));
        assert!(path(Path::new(""), folder, None).is_err());
        assert!(path(Path::new("~/x"), folder, None).unwrap_err().contains("HOME"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = (upgrade_base(&text), server_name(&text), Endpoint::parse(&text));
        }

        #[test]
        fn an_endpoint_survives_being_written(text in "[a-f0-9:.\\[\\]]{1,20}") {
            if let Ok(endpoint) = Endpoint::parse(&text) {
                prop_assert_eq!(Endpoint::parse(&endpoint.to_string()), Ok(endpoint));
            }
        }
    }
}
