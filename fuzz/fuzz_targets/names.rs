//! The names that a client shows: a certificate's to the principal, and the server name to the host.
//!
//! Input: a letter, then `D` a certificate in DER; `N` the names of one, each a line whose first letter says of what kind;
//! `S` a server name, a domain and hosts, a line each.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::{Corpus, fuzz_target};
use rustls_pki_types::CertificateDer;
use tstunnel::error::{Code, Result};
use tstunnel::protocol::{HostId, Principal, is_dns_name};
use tstunnel::server::principal::{
    MAX_PRINCIPAL_BYTES, SPIFFE_PREFIX, check_email, check_principal_text, check_spiffe_id, principal,
    server_name_to_host,
};

fuzz_target!(|data: &[u8]| -> Corpus {
    match data.split_first() {
        Some((b'D', certificate)) => any_certificate(certificate),
        Some((b'N', names)) => certificate_of(names),
        Some((b'S', lines)) => {
            let Ok(lines) = std::str::from_utf8(lines) else { return Corpus::Reject };
            server_name(lines);
        }
        _ => return Corpus::Reject,
    }
    Corpus::Keep
});

fn any_certificate(der: &[u8]) {
    let leaf = CertificateDer::from(der);
    let by_names = principal(&leaf, false);
    check(&by_names);
    let by_any_name = principal(&leaf, true);
    check(&by_any_name);
    if by_names.is_ok() {
        assert_eq!(by_names, by_any_name, "a common name counts beside another name");
    }
}

fn check(found: &Result<Principal>) {
    match found {
        Ok(Principal(text)) => {
            assert!((1..=MAX_PRINCIPAL_BYTES).contains(&text.len()));
            assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text:?}");
            // What reads like a SPIFFE ID is one.
            if text.to_ascii_lowercase().starts_with("spiffe:") {
                assert!(text.starts_with(SPIFFE_PREFIX) && check_spiffe_id(text).is_ok(), "{text:?}");
            }
        }
        Err(error) => {
            assert_eq!(error.code, Code::Unauthorized);
            assert_eq!(error.report().matches(char::is_control).count(), 1, "{error}");
        }
    }
}

/// Puts the names into a certificate, and expects the one that counts or none.
fn certificate_of(lines: &[u8]) {
    let (mut alternative, mut subject) = (Vec::new(), Vec::new());
    let (mut uris, mut others, mut common) = (Vec::new(), Vec::new(), Vec::new());
    let mut is_malformed = false;
    for line in lines.split(|byte| *byte == b'\n') {
        let Some((kind, name)) = line.split_first() else { continue };
        // The context tags of GeneralName (RFC 5280 §4.2.1.6).
        let tag = match kind {
            b'e' => 0x81,
            b'd' => 0x82,
            b'u' => 0x86,
            b'i' => 0x87,
            b'c' => {
                common.push(name);
                let attribute = sequence(&[&der(0x06, &[0x55, 4, 3]), &der(0x0c, name)]);
                subject.extend(der(0x31, &attribute));
                continue;
            }
            _ => continue,
        };
        alternative.extend(der(tag, name));
        match tag {
            0x86 => uris.push(name),
            0x87 => continue,
            _ => others.push((tag, name)),
        }
        is_malformed |= !name.is_ascii();
    }
    let certificate = certificate(&subject, &alternative);
    for allow_cn in [false, true] {
        let found = principal(&CertificateDer::from(certificate.as_slice()), allow_cn);
        check(&found);
        let is_spiffe = |name: &&&[u8]| name.get(..7).is_some_and(|start| start.eq_ignore_ascii_case(b"spiffe:"));
        let one = if uris.iter().any(|uri| is_spiffe(&uri)) {
            only(&uris).filter(|uri| check_spiffe_id(uri).is_ok())
        } else if others.is_empty() {
            only(&common).filter(|_| allow_cn).filter(|name| !is_spiffe(&&name.as_bytes()))
        } else {
            let names: Vec<&[u8]> = others.iter().map(|(_, name)| *name).collect();
            let is_email = others[0].0 == 0x81;
            only(&names).filter(|name| if is_email { check_email(name).is_ok() } else { is_dns_name(name) })
        };
        let expected = one.filter(|name| !is_malformed && check_principal_text(name).is_ok());
        assert_eq!(found.as_ref().ok().map(|found| found.0.as_str()), expected, "{found:?}");
    }
}

fn only<'a>(names: &[&'a [u8]]) -> Option<&'a str> {
    match names {
        [name] => std::str::from_utf8(name).ok(),
        _ => None,
    }
}

fn server_name(lines: &str) {
    let mut lines = lines.split('\n');
    let (Some(name), Some(domain)) = (lines.next(), lines.next()) else { return };
    let hosts: BTreeMap<HostId, ()> = lines.filter_map(|line| Some((HostId::parse(line).ok()?, ()))).collect();
    let domain = Some(domain).filter(|domain| !domain.is_empty());
    let stands_for = |host: &HostId| {
        let with_domain = |domain: &str| format!("{host}.{domain}").eq_ignore_ascii_case(name);
        host.as_str().eq_ignore_ascii_case(name) || domain.is_some_and(with_domain)
    };
    match server_name_to_host(name, domain, &hosts) {
        Some(host) => assert!(hosts.contains_key(&host) && stands_for(&host), "{host}"),
        None => assert!(!is_dns_name(name) || !hosts.keys().any(stands_for), "{name}"),
    }
}

/// A certificate (RFC 5280 §4.1) that nobody signed.
fn certificate(subject: &[u8], alternative: &[u8]) -> Vec<u8> {
    const ECDSA_WITH_SHA256: [u8; 8] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    const PUBLIC_KEY: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    const P256: [u8; 8] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let algorithm = sequence(&[&der(0x06, &ECDSA_WITH_SHA256)]);
    let validity = sequence(&[&der(0x17, b"260101000000Z"), &der(0x17, b"360101000000Z")]);
    let key = sequence(&[&sequence(&[&der(0x06, &PUBLIC_KEY), &der(0x06, &P256)]), &der(0x03, &[0, 4])]);
    let version = der(0xa0, &der(0x02, &[2]));
    let extensions = if alternative.is_empty() {
        Vec::new()
    } else {
        let names = der(0x04, &der(0x30, alternative));
        der(0xa3, &sequence(&[&sequence(&[&der(0x06, &[0x55, 0x1d, 0x11]), &names])]))
    };
    let (serial, issuer, subject) = (der(0x02, &[1]), sequence(&[]), der(0x30, subject));
    let signed = sequence(&[&version, &serial, &algorithm, &issuer, &validity, &subject, &key, &extensions]);
    sequence(&[&signed, &algorithm, &der(0x03, &[0])])
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    der(0x30, &parts.concat())
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("a small input").to_be_bytes();
    let mut encoded = vec![tag];
    match content.len() {
        0..0x80 => encoded.push(length[3]),
        0x80..0x100 => encoded.extend([0x81, length[3]]),
        0x100..0x1_0000 => encoded.extend([0x82, length[2], length[3]]),
        _ => encoded.extend([0x83, length[1], length[2], length[3]]),
    }
    encoded.extend_from_slice(content);
    encoded
}
