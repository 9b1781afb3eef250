//! The names that a certificate may be asked for → alternative names (RFC 5280 §4.2.1.6) and file names. No I/O.

use std::net::IpAddr;

use rcgen::SanType;

use crate::error::{Code, Error, Result};
use crate::protocol::encoding::hex;
use crate::protocol::is_dns_name;
use crate::server::principal::{check_email, check_spiffe_id};

/// Longest file name before `.crt`; longer ones are cut and end in a digest.
const MAX_STEM_BYTES: usize = 120;

/// Checks the domain of an authority.
pub(super) fn domain(text: &str) -> Result<String> {
    if is_dns_name(text) { Ok(text.to_ascii_lowercase()) } else { Err(refused(text, "is not a DNS name")) }
}

/// A server's names: DNS names, also with `*.` before them, and IP addresses.
pub(super) fn server_names(names: &[String]) -> Result<Vec<SanType>> {
    let mut checked = Vec::new();
    for name in names {
        let alternative = match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => {
                let rest = name.strip_prefix("*.");
                if rest.is_some_and(|rest| is_dns_name(rest) && !rest.contains('.')) {
                    let why = "is a wildcard for a whole top-level domain, which no client accepts";
                    return Err(refused(name, why).with_hint("name each server: `tstunnel pki server NAME...`"));
                }
                if !is_dns_name(rest.unwrap_or(name)) {
                    return Err(refused(name, "is neither a DNS name (perhaps with `*.` before it) nor an IP address"));
                }
                let folded = name.to_ascii_lowercase();
                SanType::DnsName(folded.try_into().map_err(|_| refused(name, "is not ASCII"))?)
            }
        };
        if checked.contains(&alternative) {
            return Err(refused(name, "is there twice"));
        }
        checked.push(alternative);
    }
    Ok(checked)
}

/// A client's one name: a SPIFFE ID, an e-mail address or a DNS name, by the same rules as the server reads them.
pub(super) fn principal(text: &str) -> Result<SanType> {
    let not_ascii = |_| refused(text, "is not ASCII");
    if text.contains("://") {
        check_spiffe_id(text).map_err(|why| refused(text, why))?;
        Ok(SanType::URI(text.try_into().map_err(not_ascii)?))
    } else if text.contains('@') {
        check_email(text).map_err(|why| refused(text, why))?;
        Ok(SanType::Rfc822Name(text.try_into().map_err(not_ascii)?))
    } else if is_dns_name(text) {
        Ok(SanType::DnsName(text.try_into().map_err(not_ascii)?))
    } else {
        Err(refused(text, "is neither a spiffe:// URI, an e-mail address nor a DNS name"))
    }
}

/// What the files of a checked name are called: itself where that is safe, with `_` for everything else.
pub(super) fn file_stem(name: &str) -> String {
    let plain = name.strip_prefix("spiffe://").unwrap_or(name);
    let plain = plain.strip_prefix("*.").map_or_else(|| plain.to_owned(), |rest| format!("_wildcard.{rest}"));
    let is_safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '@');
    let mut stem: String = plain.chars().map(|c| if is_safe(c) { c } else { '_' }).collect();
    // Neither hidden nor an option.
    if stem.starts_with(['.', '-']) {
        stem.insert(0, '_');
    }
    if stem.len() > MAX_STEM_BYTES {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, name.as_bytes());
        let mut tail = hex(digest.as_ref());
        tail.truncate(16);
        stem.truncate(MAX_STEM_BYTES - 1 - tail.len());
        stem = format!("{stem}-{tail}");
    }
    stem
}

fn refused(text: &str, why: &str) -> Error {
    let shown: String = text.chars().take(64).collect();
    Error::new(Code::Usage, format!("`{shown}` {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_is_safe_whatever_the_name() {
        for (name, stem) in [
            ("ann@example.org", "ann@example.org"),
            ("spiffe://example.org/users/ann", "example.org_users_ann"),
            ("*.containers.example.net", "_wildcard.containers.example.net"),
            ("::1", "__1"),
            ("-rf@example.org", "_-rf@example.org"),
            (".x@example.org", "_.x@example.org"),
            ("a/../b$'", "a_.._b__"),
        ] {
            assert_eq!(file_stem(name), stem);
        }
    }

    #[test]
    fn long_names_have_short_and_different_file_names() {
        let (one, other) = (format!("{}@a", "x".repeat(300)), format!("{}@b", "x".repeat(300)));
        assert_eq!(file_stem(&one).len(), MAX_STEM_BYTES);
        assert_ne!(file_stem(&one), file_stem(&other));
    }

    #[test]
    fn bad_server_names_are_refused() {
        for bad in [
            "",
            "*",
            "*.",
            "*.net",
            "**.a.net",
            "a.*.net",
            "a b",
            "a..b",
            "a.",
            "ä.net",
            "a\0b",
            "1.2.3.4:80",
            "[::1]",
            "https://a.net",
            &"a".repeat(2000),
        ] {
            let error = server_names(&[bad.to_owned()]).unwrap_err();
            assert_eq!(error.code, Code::Usage, "{bad:?}");
            assert!(error.text.len() < 200);
        }
        assert!(server_names(&["a.net".into(), "A.net".into()]).is_err());
    }

    #[test]
    fn a_wildcard_below_a_single_label_is_told_from_what_is_no_name() {
        let error = server_names(&["localhost".into(), "*.localhost".into()]).unwrap_err();
        assert!(error.text.starts_with("`*.localhost` is a wildcard for a whole top-level domain"), "{error}");
        assert!(error.hint().contains("`tstunnel pki server NAME...`"));
    }

    #[test]
    fn bad_principals_are_refused() {
        for bad in [
            "",
            " ",
            "a b",
            "ä",
            "a\0",
            "*.example.org",
            "a@",
            "@b",
            "a@b@c",
            "a@b c",
            "a\n@b",
            "spiffe://",
            "spiffe:x",
            "spiffe:///a",
            "spiffe://Example.org/a",
            "spiffe://example.org/a?b",
            "spiffe://example.org/a#b",
            "spiffe://example.org:1/a",
            "spiffe://u@example.org/a",
            "spiffe://example.org/a/",
            "spiffe://example.org//a",
            "spiffe://example.org/..",
            "https://example.org/a",
            &"a".repeat(2000),
            &format!("{}@b", "a".repeat(2000)),
            &format!("spiffe://example.org/{}", "a".repeat(2000)),
        ] {
            assert_eq!(principal(bad).unwrap_err().code, Code::Usage, "{bad:?}");
        }
    }

    #[test]
    fn a_bad_domain_is_refused() {
        for bad in ["", "*.a.net", "a b", "a."] {
            assert_eq!(domain(bad).unwrap_err().code, Code::Usage, "{bad}");
        }
    }
}
