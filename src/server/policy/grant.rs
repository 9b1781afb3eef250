//! Who may reach which host: the configuration's `[[grant]]` tables. Fails closed. No I/O.
//!
//! `*` and `?` cover any text, so a `*` in a principal's pattern crosses `/`. A pattern speaks of one kind of principal
//! only: what begins with `spiffe://` of SPIFFE IDs, what has an `@` of e-mail names, anything else of the rest. Without
//! that `*.example.org` would be every principal that manages to end so, `spiffe://evil.test/x.example.org` too. The
//! lone `*` is everybody that the client authorities vouch for.

use serde::Deserialize;

use crate::config::pattern;
use crate::protocol::{HostId, Principal};
use crate::server::policy::terms::Terms;
use crate::server::principal::{SPIFFE_PREFIX, check_principal_text, check_spiffe_id};

/// One `[[grant]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who.
    pub principal: PrincipalPattern,
    /// Which hosts, any of these.
    pub hosts: Vec<HostPattern>,
    /// How far.
    pub terms: Terms,
}

impl Grant {
    /// The pattern by which this grant opens `host` to `principal`, whatever its terms.
    pub fn opens(&self, principal: &Principal, host: &HostId) -> Option<&HostPattern> {
        if !self.principal.covers(principal) {
            return None;
        }
        self.hosts.iter().find(|pattern| pattern.covers(host))
    }
}

/// A pattern for principals; case matters, and a SPIFFE trust domain is always literal.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PrincipalPattern(String);

impl PrincipalPattern {
    /// Whether this pattern covers `principal`.
    pub fn covers(&self, principal: &Principal) -> bool {
        let same_kind = self.0 == "*" || Kind::of(&self.0) == Kind::of(&principal.0);
        same_kind && !principal.0.is_empty() && pattern::matches(&self.0, &principal.0)
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one trust domain of the SPIFFE IDs that it is a pattern for.
    pub fn trust_domain(&self) -> Option<&str> {
        self.0.strip_prefix(SPIFFE_PREFIX)?.split('/').next()
    }
}

#[derive(PartialEq, Eq)]
enum Kind {
    Spiffe,
    Email,
    Other,
}

impl Kind {
    fn of(text: &str) -> Kind {
        if text.starts_with(SPIFFE_PREFIX) {
            Kind::Spiffe
        } else if text.contains('@') {
            Kind::Email
        } else {
            Kind::Other
        }
    }
}

impl TryFrom<String> for PrincipalPattern {
    type Error = String;

    fn try_from(text: String) -> Result<PrincipalPattern, String> {
        check_principal_text(&text).map_err(|why| format!("the principal `{text}` {why}"))?;
        if let Some(rest) = text.strip_prefix(SPIFFE_PREFIX) {
            let trust_domain = rest.split('/').next().unwrap_or_default();
            if pattern::has_wildcard(trust_domain) {
                return Err(format!(
                    "the principal `{text}` has a wildcard in its trust domain, which must be literal"
                ));
            }
            // A wildcard stands for at least one letter here, so that the rest is held to the specification.
            let example = text.replace(['*', '?'], "x");
            check_spiffe_id(&example).map_err(|why| format!("the principal `{text}` {why}"))?;
        } else if text.contains("://") || text.to_ascii_lowercase().starts_with("spiffe:") {
            // `spiffe:*`, `s*://…` and `SPIFFE://…` look like more than they could ever cover.
            return Err(format!(
                "the principal `{text}` is no SPIFFE ID: those begin with spiffe:// and a trust domain"
            ));
        }
        Ok(PrincipalPattern(text))
    }
}

/// A pattern for host ids, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HostPattern(String);

impl HostPattern {
    /// Whether this pattern covers `host`.
    pub fn covers(&self, host: &HostId) -> bool {
        pattern::matches(&self.0, host.as_str())
    }

    /// The pattern in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for HostPattern {
    type Error = String;

    fn try_from(text: String) -> Result<HostPattern, String> {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'*' | b'?');
        if text.is_empty() || !text.bytes().all(is_part) {
            return Err(format!("`{text}` is neither a host id nor a pattern for them"));
        }
        Ok(HostPattern(text.to_ascii_lowercase()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(pattern: &str, principal: &str) -> bool {
        PrincipalPattern::try_from(pattern.to_owned()).unwrap().covers(&Principal(principal.to_owned()))
    }

    #[test]
    fn a_pattern_covers_principals_of_its_kind() {
        assert!(covers("spiffe://example.org/users/*", "spiffe://example.org/users/ann"));
        assert!(covers("spiffe://example.org/users/*", "spiffe://example.org/users/ann/laptop"));
        assert!(covers("spiffe://example.org/*/ann", "spiffe://example.org/users/eu/ann"));
        assert!(covers("*@example.org", "ann@example.org"));
        assert!(covers("*.example.org", "a.example.org"));
        for anybody in ["spiffe://example.org/a", "ann@example.org", "a.example.org", "Ann Example"] {
            assert!(covers("*", anybody));
        }
    }

    #[test]
    fn a_pattern_covers_nothing_of_another_kind_or_domain() {
        assert!(!covers("spiffe://example.org/users/*", "spiffe://example.org.evil/users/ann"));
        assert!(!covers("spiffe://example.org/users/*", "spiffe://example.org/users"));
        assert!(!covers("spiffe://example.org/users/ann", "spiffe://example.org/users/Ann"));
        assert!(!covers("*.example.org", "spiffe://evil.test/x.example.org"));
        assert!(!covers("*.example.org", "ann@a.example.org"));
        assert!(!covers("*@example.org", "spiffe://evil.test/@example.org"));
        assert!(!covers("*n*", "ann@example.org"));
        assert!(!covers("*", ""));
    }

    #[test]
    fn a_wildcard_in_a_trust_domain_is_refused() {
        for bad in ["spiffe://*/users/ann", "spiffe://*.example.org/a", "spiffe://exampl?.org/a", "spiffe://*"] {
            let error = PrincipalPattern::try_from(bad.to_owned()).unwrap_err();
            assert!(error.contains("trust domain"), "{bad} {error}");
        }
    }

    #[test]
    fn a_pattern_that_no_principal_could_have_is_refused() {
        for bad in [
            "",
            "spiffe:*",
            "s*://example.org/a",
            "*://example.org/a",
            "SPIFFE://example.org/a",
            "spiffe://Example.org/a",
            "spiffe://example.org//*",
            "spiffe://example.org/a?b#c",
            "spiffe://",
            "Änn",
            "a\0*",
            &"a".repeat(1025),
        ] {
            assert!(PrincipalPattern::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn host_patterns_are_folded_and_checked() {
        let dev = HostPattern::try_from("Dev-*".to_owned()).unwrap();
        assert!(dev.covers(&HostId::parse("DEV-7").unwrap()));
        assert!(!dev.covers(&HostId::parse("prod").unwrap()));
        for bad in ["", "a b", "ä", "a/b", "spiffe://x", "a\0"] {
            assert!(HostPattern::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }
}
