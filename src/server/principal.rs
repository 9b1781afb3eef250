//! A verified client certificate → [`Principal`], and a server name → host id.
//!
//! The certificate's chain, validity and revocation have been verified before; here only its names are read (RFC 5280
//! §4.2.1.6, SPIFFE X509-SVID). Fails closed: where the names are ambiguous or malformed there is no principal. No I/O.

use std::collections::BTreeMap;

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::error::{Code, Error, Result};
use crate::protocol::encoding::hex;
use crate::protocol::{HostId, Principal, is_dns_name};

/// Longest principal. SPIFFE allows 2 KiB; nobody needs them, and every log line repeats it.
pub const MAX_PRINCIPAL_BYTES: usize = 1024;

/// What every SPIFFE ID begins with.
pub const SPIFFE_PREFIX: &str = "spiffe://";

/// Reads who the client is from its leaf certificate: its one SPIFFE URI, else its one e-mail or DNS name, else, only
/// with `allow_cn`, its one common name.
///
/// A certificate with any `spiffe:` URI must have exactly one URI, and a well-formed one. E-mail and DNS names count
/// together: one of each is ambiguous. Names of other kinds (IP addresses, other URIs) are ignored.
///
/// # Errors
/// `unauthorized` where the certificate names no usable principal.
pub fn principal(leaf: &CertificateDer<'_>, allow_cn: bool) -> Result<Principal> {
    let (rest, certificate) =
        X509Certificate::from_der(leaf).map_err(|_| refused("the client certificate cannot be parsed"))?;
    if !rest.is_empty() {
        return Err(refused("the client certificate has bytes after its end"));
    }
    let names = Names::read(&certificate)?;
    let text = if names.uris.iter().any(|uri| has_spiffe_scheme(uri)) {
        let [uri] = names.uris.as_slice() else {
            return Err(refused("the client certificate has a SPIFFE URI and another URI"));
        };
        check_spiffe_id(uri).map_err(|why| refused(format!("the client certificate's SPIFFE ID {why}")))?;
        uri
    } else {
        match (names.emails.as_slice(), names.dns.as_slice()) {
            ([email], []) => {
                check_email(email).map_err(|why| refused(format!("the client certificate's e-mail name {why}")))?;
                email
            }
            ([], [name]) if is_dns_name(name) => name,
            ([], [_]) => return Err(refused("the client certificate's DNS name is not one")),
            ([], []) if allow_cn => common_name(&certificate)?,
            ([], []) => return Err(refused("the client certificate has no SPIFFE URI, e-mail or DNS name")),
            _ => return Err(refused("the client certificate has more than one e-mail or DNS name")),
        }
    };
    check_principal_text(text).map_err(|why| refused(format!("the client certificate's name {why}")))?;
    Ok(Principal(text.to_owned()))
}

/// A certificate's serial number in lower-case hexadecimal; `None` for what is no certificate.
pub fn serial(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    // DER puts a zero before a first bit that is set (X.690 §8.3); other programs don't show it.
    let bytes = certificate.raw_serial();
    Some(hex(bytes.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(bytes)))
}

/// Finds the host that a server name (SNI) stands for: the exact name of one, or one after removing `.` and `domain`.
/// Case does not matter; a trailing dot does.
pub fn server_name_to_host<T>(server_name: &str, domain: Option<&str>, hosts: &BTreeMap<HostId, T>) -> Option<HostId> {
    let exact = HostId::parse(server_name).ok()?;
    if hosts.contains_key(&exact) {
        return Some(exact);
    }
    let label = exact.as_str().strip_suffix(&domain?.to_ascii_lowercase())?.strip_suffix('.')?;
    HostId::parse(label).ok().filter(|host| hosts.contains_key(host))
}

/// Checks a SPIFFE ID (the SPIFFE-ID specification §2): `spiffe://`, a trust domain in lower case without user or
/// port, and a path without empty, `.` or `..` segments, no query and no fragment.
///
/// # Errors
/// What is wrong, as the end of a sentence.
pub fn check_spiffe_id(text: &str) -> Result<(), &'static str> {
    check_principal_text(text)?;
    let Some(rest) = text.strip_prefix(SPIFFE_PREFIX) else { return Err("does not begin with spiffe://") };
    let (trust_domain, path) = match rest.split_once('/') {
        Some((trust_domain, path)) => (trust_domain, Some(path)),
        None => (rest, None),
    };
    if trust_domain.is_empty() || trust_domain.len() > 255 {
        return Err("has no trust domain, or one longer than 255 bytes");
    }
    if !trust_domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_')) {
        return Err("has a trust domain with more than lower-case letters, digits, dots, hyphens and underscores");
    }
    for segment in path.iter().flat_map(|path| path.split('/')) {
        if matches!(segment, "" | "." | "..") {
            return Err("has an empty or relative path segment");
        }
        if !segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) {
            return Err("has a path with more than letters, digits, dots, hyphens and underscores");
        }
    }
    Ok(())
}

/// The trust domain of a principal that is a SPIFFE ID.
pub fn trust_domain(principal: &Principal) -> Option<&str> {
    principal.0.strip_prefix(SPIFFE_PREFIX)?.split('/').next()
}

/// Checks an e-mail name (RFC 5280 §4.2.1.6): `local@domain` without quoting, comments or spaces.
///
/// # Errors
/// What is wrong, as the end of a sentence.
pub fn check_email(text: &str) -> Result<(), &'static str> {
    check_principal_text(text)?;
    let Some((local, domain)) = text.split_once('@') else { return Err("has no `@`") };
    // RFC 5321's atoms, which leave out every character that quoting, a URI or a list of addresses would need.
    let is_atom = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&b);
    if local.is_empty() || !local.bytes().all(is_atom) {
        return Err("has no plain local part before its `@`");
    }
    if !is_dns_name(domain) {
        return Err("has no DNS name after its `@`");
    }
    Ok(())
}

/// Checks what holds for every principal: printable ASCII, not empty, at most [`MAX_PRINCIPAL_BYTES`].
///
/// # Errors
/// What is wrong, as the end of a sentence.
pub fn check_principal_text(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        Err("is empty")
    } else if text.len() > MAX_PRINCIPAL_BYTES {
        Err("is longer than 1024 bytes")
    } else if text.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
        Err("has a control or non-ASCII character")
    } else {
        Ok(())
    }
}

/// Whether a URI is meant as a SPIFFE ID. Schemes have no case (RFC 3986 §3.1), so `SPIFFE:` is meant as one too, and
/// is then refused as malformed.
fn has_spiffe_scheme(uri: &str) -> bool {
    uri.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:"))
}

/// The certificate's one common name. One that could be taken for a SPIFFE ID is none: only a URI name is that.
fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str> {
    let mut names = certificate.subject().iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(refused("the client certificate has no common name, or more than one"));
    };
    let name = name.as_str().map_err(|_| refused("the client certificate's common name is not text"))?;
    if has_spiffe_scheme(name) {
        return Err(refused("the client certificate's common name pretends to be a SPIFFE ID"));
    }
    Ok(name)
}

/// The subject alternative names that can be a principal.
#[derive(Default)]
struct Names<'a> {
    uris: Vec<&'a str>,
    emails: Vec<&'a str>,
    dns: Vec<&'a str>,
}

impl<'a> Names<'a> {
    fn read(certificate: &'a X509Certificate<'_>) -> Result<Names<'a>> {
        let mut names = Names::default();
        let extension = certificate
            .subject_alternative_name()
            .map_err(|_| refused("the client certificate's alternative names cannot be parsed"))?;
        for name in extension.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                // IA5String, which the parser takes for any text.
                GeneralName::URI(name) | GeneralName::RFC822Name(name) | GeneralName::DNSName(name)
                    if !name.is_ascii() =>
                {
                    return Err(refused("the client certificate has an alternative name that is not ASCII"));
                }
                GeneralName::URI(uri) => names.uris.push(uri),
                GeneralName::RFC822Name(email) => names.emails.push(email),
                GeneralName::DNSName(name) => names.dns.push(name),
                GeneralName::Invalid(..) => {
                    return Err(refused("the client certificate has a malformed alternative name"));
                }
                _ => {}
            }
        }
        Ok(names)
    }
}

fn refused(text: impl Into<String>) -> Error {
    Error::new(Code::Unauthorized, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, OtherNameValue, SanType};

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }
    fn email(text: &str) -> SanType {
        SanType::Rfc822Name(text.try_into().unwrap())
    }
    fn dns(text: &str) -> SanType {
        SanType::DnsName(text.try_into().unwrap())
    }

    fn certificate(names: Vec<SanType>, common_names: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.distinguished_name = DistinguishedName::new();
        for name in common_names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().into()
    }

    fn read(names: Vec<SanType>) -> Option<String> {
        match principal(&certificate(names, &["cn.example.org"]), false) {
            Ok(principal) => Some(principal.0),
            Err(error) => {
                assert_eq!(error.code, Code::Unauthorized);
                None
            }
        }
    }

    const ANN: &str = "spiffe://example.org/users/ann";

    #[test]
    fn the_one_spiffe_uri_is_the_principal() {
        assert_eq!(read(vec![uri(ANN)]).as_deref(), Some(ANN));
        assert_eq!(read(vec![dns("a.example.org"), email("ann@example.org"), uri(ANN)]).as_deref(), Some(ANN));
    }

    #[test]
    fn a_second_uri_beside_a_spiffe_uri_leaves_no_principal() {
        assert_eq!(read(vec![uri(ANN), uri("spiffe://example.org/users/bob")]), None);
        assert_eq!(read(vec![uri(ANN), uri(ANN)]), None);
        assert_eq!(read(vec![uri("https://example.org"), uri(ANN)]), None);
    }

    #[test]
    fn a_malformed_spiffe_uri_does_not_fall_back_to_another_name() {
        for bad in ["spiffe:", "spiffe://", "SPIFFE://example.org/users/ann", "spiffe://Example.org/a"] {
            assert_eq!(read(vec![uri(bad), email("ann@example.org")]), None, "{bad}");
            assert!(principal(&certificate(vec![uri(bad)], &["ann"]), true).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_one_email_or_dns_name_is_the_principal() {
        assert_eq!(read(vec![email("ann@example.org")]).as_deref(), Some("ann@example.org"));
        assert_eq!(read(vec![dns("xn--bcher-kva.example")]).as_deref(), Some("xn--bcher-kva.example"));
        let others = vec![
            uri("https://example.org"),
            SanType::IpAddress([127, 0, 0, 1].into()),
            SanType::OtherName((vec![1, 2, 3], OtherNameValue::Utf8String("x".into()))),
            dns("a.example.org"),
        ];
        assert_eq!(read(others).as_deref(), Some("a.example.org"));
    }

    #[test]
    fn several_names_of_one_rank_leave_no_principal() {
        assert_eq!(read(vec![email("ann@example.org"), email("bob@example.org")]), None);
        assert_eq!(read(vec![dns("a.example.org"), dns("b.example.org")]), None);
        assert_eq!(read(vec![email("ann@example.org"), dns("a.example.org")]), None);
        assert_eq!(read(vec![email("ann@example.org"), email("bob@example.org"), dns("a.example.org")]), None);
    }

    #[test]
    fn names_that_are_not_what_they_should_be_leave_no_principal() {
        for bad in ["", "*.example.org", "a..example.org", "a.example.org.", "a\0.example.org", "a b", "-a"] {
            assert_eq!(read(vec![dns(bad)]), None, "{bad:?}");
        }
        for bad in ["", "ann", "@example.org", "ann@", "a@b@c", "ann@exa mple.org", "a n@b.c", "a\0@b.c", "a\n@b.c"] {
            assert_eq!(read(vec![email(bad)]), None, "{bad:?}");
        }
        assert_eq!(read(vec![email(&format!("{}@example.org", "a".repeat(1024)))]), None);
    }

    #[test]
    fn a_name_that_is_not_ascii_leaves_no_principal_beside_a_good_one() {
        for names in [
            [uri(ANN), email("xx-marked@example.org")],
            [uri(ANN), dns("xx-marked.example.org")],
            [dns("a.example.org"), uri("https://xx-marked")],
        ] {
            let mut der = certificate(names.to_vec(), &[]).to_vec();
            // Long enough to stand nowhere in the key by chance.
            let at = der.windows(9).position(|bytes| bytes == b"xx-marked").unwrap();
            der[at..at + 2].copy_from_slice("ä".as_bytes());
            assert!(principal(&CertificateDer::from(der), false).is_err());
        }
    }

    #[test]
    fn the_common_name_counts_only_where_it_is_allowed() {
        let plain = certificate(vec![], &["Ann Example"]);
        assert_eq!(principal(&plain, false).unwrap_err().code, Code::Unauthorized);
        assert_eq!(principal(&plain, true).unwrap().0, "Ann Example");
        let named = certificate(vec![dns("a.example.org")], &["Ann Example"]);
        assert_eq!(principal(&named, true).unwrap().0, "a.example.org");
        let ambiguous = certificate(vec![dns("a.example.org"), dns("b.example.org")], &["Ann Example"]);
        assert!(principal(&ambiguous, true).is_err());
    }

    #[test]
    fn an_unusable_common_name_is_refused() {
        for bad in ["", "Änn", "a\0b", "a\nb", ANN, "Spiffe:x", &"a".repeat(1025)] {
            assert!(principal(&certificate(vec![], &[bad]), true).is_err(), "{bad:?}");
        }
        assert!(principal(&certificate(vec![], &[]), true).is_err());
    }

    #[test]
    fn what_is_not_a_certificate_is_refused() {
        for bytes in [vec![], vec![0x30, 0x80], b"-----BEGIN CERTIFICATE-----".to_vec()] {
            assert_eq!(principal(&CertificateDer::from(bytes), true).unwrap_err().code, Code::Unauthorized);
        }
        let mut longer = certificate(vec![dns("a.example.org")], &[]).to_vec();
        longer.push(0);
        assert!(principal(&CertificateDer::from(longer), false).is_err());
    }

    #[test]
    fn a_spiffe_id_is_checked_by_its_specification() {
        for good in [ANN, "spiffe://example.org", "spiffe://a_b-1.c/x/Y_z.1/-", "spiffe://10.0.0.1/a/..."] {
            assert_eq!(check_spiffe_id(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "spiffe:",
            "spiffe:/example.org/a",
            "spiffe://",
            "spiffe:///a",
            "https://example.org/a",
            "Spiffe://example.org/a",
            "spiffe://Example.org/a",
            "spiffe://example.org:443/a",
            "spiffe://ann@example.org/a",
            "spiffe://example.org/",
            "spiffe://example.org/a/",
            "spiffe://example.org//a",
            "spiffe://example.org/./a",
            "spiffe://example.org/a/..",
            "spiffe://example.org/a?b",
            "spiffe://example.org/a#b",
            "spiffe://example.org?b",
            "spiffe://example.org/a%2fb",
            "spiffe://example.org/a b",
            "spiffe://example.org/a*",
            "spiffe://exämple.org/a",
            "spiffe://example.org/a\0",
            &format!("spiffe://{}/a", "a".repeat(256)),
            &format!("spiffe://example.org/{}", "a".repeat(1024)),
        ] {
            assert!(check_spiffe_id(bad).is_err(), "{bad:?}");
        }
    }

    fn hosts(names: &[&str]) -> BTreeMap<HostId, ()> {
        names.iter().map(|name| (HostId::parse(name).unwrap(), ())).collect()
    }

    #[test]
    fn a_server_name_is_a_host_by_itself_or_less_the_domain() {
        let hosts = hosts(&["host123", "a.b", "whole.example.org"]);
        let find =
            |name: &str| server_name_to_host(name, Some("Containers.example.net"), &hosts).map(|h| h.to_string());
        assert_eq!(find("host123.containers.example.net").as_deref(), Some("host123"));
        assert_eq!(find("HOST123.Containers.Example.NET").as_deref(), Some("host123"));
        assert_eq!(find("a.b.containers.example.net").as_deref(), Some("a.b"));
        assert_eq!(find("host123").as_deref(), Some("host123"));
        assert_eq!(find("whole.example.org").as_deref(), Some("whole.example.org"));
    }

    #[test]
    fn a_server_name_that_stands_for_no_host_finds_none() {
        let hosts = hosts(&["host123"]);
        for name in [
            "",
            ".",
            "containers.example.net",
            ".containers.example.net",
            "other.containers.example.net",
            "host123.containers.example.net.",
            "host123..containers.example.net",
            "host123containers.example.net",
            "host123.xcontainers.example.net",
            "host123.containers.example.net.evil",
            "host123.",
            "host123 ",
            "*.containers.example.net",
        ] {
            assert_eq!(server_name_to_host(name, Some("containers.example.net"), &hosts), None, "{name:?}");
        }
        assert_eq!(server_name_to_host("host123.containers.example.net", None, &hosts), None);
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_certificate_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = principal(&CertificateDer::from(bytes), true);
        }

        #[test]
        fn a_damaged_certificate_does_not_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            use std::sync::LazyLock;
            static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| certificate(vec![uri(ANN)], &["ann"]).to_vec());
            let mut damaged = WHOLE.clone();
            let index = at.index(damaged.len());
            damaged[index] = byte;
            let _ = principal(&CertificateDer::from(damaged), true);
        }
    }
}
