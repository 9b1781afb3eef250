//! A server's files that can be used → what is wrong with them all the same: who is not let in, and whom clients do not take the
//! server for. One sentence each, with the file's name. Decides nothing: each handshake is asked everything anew.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate, X509Name, X509Version};

use crate::error::{Result, printable};
use crate::tls::failure::names;
use crate::tls::probe::Certificate;
use crate::tls::{check_validity, date, pem, provider, seconds_since_1970};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// From how long before its end on a certificate or a list is spoken of.
const SOON: i64 = 14 * DAY;

/// What keeps clients out by the files alone: a certificate that none of them takes, or none for some of the `hosts`, each given by the
/// names that it may be asked for by, the usual one first; and authorities without a list that counts.
///
/// # Errors
/// `config`, with the file's name, where a file cannot be read.
pub fn doubts(
    cert: &Path,
    hosts: &[Vec<String>],
    client_ca: &[PathBuf],
    crl: &[PathBuf],
    now: SystemTime,
) -> Result<Vec<String>> {
    let mut doubts = Vec::new();
    if let Some(leaf) = pem::certificates(cert)?.first() {
        // A clock that is set only after the start must not keep the server down.
        doubts.extend(check_validity(cert, leaf, now).err().map(|error| error.text));
        let what = [purpose(leaf).map(str::to_owned), uncovered(leaf, hosts)];
        doubts.extend(what.into_iter().flatten().map(|what| format!("{}: the certificate {what}", cert.display())));
    }
    let lists = lists(crl)?;
    for (path, list) in &lists {
        let Ok((_, list)) = CertificateRevocationList::from_der(list) else { continue };
        if let Some(end) = end(&list).filter(|end| *end <= seconds_since_1970(now)) {
            doubts.push(format!(
                "{}: the revocation list expired at {}, so nobody of {} is let in",
                path.display(),
                date(end),
                name(list.issuer())
            ));
        }
    }
    let authorities = authorities(client_ca)?;
    doubts.extend(authorities.iter().filter_map(|(path, certificate)| no_authority(path, certificate)));
    if lists.is_empty() {
        return Ok(doubts);
    }
    doubts.extend(of_one_name(&authorities));
    for (path, authority) in &authorities {
        let Ok((_, authority)) = X509Certificate::from_der(authority) else { continue };
        if !lists.iter().any(|(_, list)| is_of(list, &authority)) {
            let (who, path) = (name(authority.subject()), path.display());
            doubts.push(format!("`crl` has no list that {who} in {path} has signed, so nobody of it is let in"));
        }
    }
    Ok(doubts)
}

/// Says that a certificate in `client_ca` is one of a client, whom that does not let in. Before version 3 nothing tells authorities apart.
fn no_authority(path: &Path, certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let is_known = certificate.version() == X509Version::V3 && !certificate.is_ca();
    is_known.then(|| {
        let (path, who) = (path.display(), name(certificate.subject()));
        format!(
            "{path}: {who} is no authority, so nobody is let in by it: name in `client_ca` the one that has signed it"
        )
    })
}

/// Says which authorities share their name with another that has another key: the list of a certificate is looked for by that name
/// alone. Without lists an authority is found by name and key.
fn of_one_name(authorities: &[(&Path, CertificateDer<'_>)]) -> Vec<String> {
    let mut seen: Vec<(Vec<u8>, Vec<u8>, &Path)> = Vec::new();
    let mut doubts = Vec::new();
    for (path, authority) in authorities {
        let Ok((_, authority)) = X509Certificate::from_der(authority) else { continue };
        let (its_name, key) = (authority.subject().as_raw(), authority.public_key().raw);
        if let Some((_, _, other)) = seen.iter().find(|(name, other, _)| name == its_name && other != key) {
            doubts.push(format!(
                "{} and {}: both authorities are called {}, with different keys, and a revocation list is found by \
                 that name alone; only clients of the one whose list comes first in `crl` are let in: replace the other \
                 by an authority with a name of its own, which `tstunnel pki init` makes",
                other.display(),
                path.display(),
                name(authority.subject())
            ));
        }
        seen.push((its_name.to_vec(), key.to_vec(), path));
    }
    doubts
}

/// What ends within two weeks: the server's own certificates, and its lists, which live for days rather than months, in the last
/// third of their life.
///
/// # Errors
/// `config`, with the file's name, where a file cannot be read.
pub fn ending(cert: &Path, crl: &[PathBuf], now: SystemTime) -> Result<Vec<String>> {
    let now = seconds_since_1970(now);
    let mut ending = Vec::new();
    for (index, certificate) in pem::certificates(cert)?.iter().enumerate() {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { continue };
        let end = certificate.validity().not_after.timestamp();
        let of = if index == 0 { String::new() } else { format!(" of {}", name(certificate.subject())) };
        let what = format!("{}: the certificate{of}", cert.display());
        match end - now {
            // The first of a chain that has expired is among the doubts.
            left if left < 0 && index > 0 => ending.push(format!("{what} expired at {}", date(end))),
            left @ 0..SOON => ending.push(format!("{what} is valid for {} more, until {}", time(left), date(end))),
            _ => {}
        }
    }
    for (path, list) in &lists(crl)? {
        let Ok((_, list)) = CertificateRevocationList::from_der(list) else { continue };
        let Some(end) = end(&list) else { continue };
        let soon = SOON.min((end - list.last_update().timestamp()) / 3);
        let left = end - now;
        if (1..soon).contains(&left) {
            ending.push(format!(
                "{}: the revocation list is good for {} more, until {}; nobody of {} is let in then",
                path.display(),
                time(left),
                date(end),
                name(list.issuer())
            ));
        }
    }
    Ok(ending)
}

/// The hosts whose names the certificate does not have.
fn uncovered(leaf: &CertificateDer<'_>, hosts: &[Vec<String>]) -> Option<String> {
    let parsed = ParsedCertificate::try_from(leaf).ok()?;
    let is_for = |name: &String| {
        ServerName::try_from(name.as_str()).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
    };
    let missing: Vec<String> =
        hosts.iter().filter(|host| !host.iter().any(is_for)).filter_map(|host| host.first().cloned()).collect();
    if missing.is_empty() {
        return None;
    }
    let has = printable(&names(&Certificate::read(leaf)?.names)).to_string();
    Some(format!("is for {has}, so no client takes it for {}", names(&missing)))
}

/// Why a client takes the certificate for no server's (RFC 5280 §4.2.1.9, §4.2.1.12), if it does not.
fn purpose(leaf: &CertificateDer<'_>) -> Option<&'static str> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    if certificate.is_ca() {
        return Some("is an authority's own, which no client takes for a server's");
    }
    let usage = certificate.extended_key_usage().ok().flatten()?;
    (!usage.value.server_auth).then_some("is not one for a server: its extended key usage must have serverAuth")
}

fn authorities(client_ca: &[PathBuf]) -> Result<Vec<(&Path, CertificateDer<'static>)>> {
    let mut authorities = Vec::new();
    for path in client_ca {
        authorities.extend(pem::certificates(path)?.into_iter().map(|authority| (path.as_path(), authority)));
    }
    Ok(authorities)
}

fn lists(crl: &[PathBuf]) -> Result<Vec<(&Path, CertificateRevocationListDer<'static>)>> {
    let mut lists = Vec::new();
    for path in crl {
        lists.extend(pem::revocation_lists(path)?.into_iter().map(|list| (path.as_path(), list)));
    }
    Ok(lists)
}

/// Whether a list is an authority's: by its name, and by its key, which another of the same name has not.
fn is_of(list: &CertificateRevocationListDer<'_>, authority: &X509Certificate<'_>) -> bool {
    let Ok((_, list)) = CertificateRevocationList::from_der(list) else { return false };
    let key = &authority.public_key().subject_public_key.data;
    let (signed, signature) = (list.tbs_cert_list.as_ref(), &list.signature_value.data);
    let mut algorithms = provider().signature_verification_algorithms.all.iter();
    list.issuer().as_raw() == authority.subject().as_raw()
        && algorithms.any(|algorithm| algorithm.verify_signature(key, signed, signature).is_ok())
}

fn end(list: &CertificateRevocationList<'_>) -> Option<i64> {
    list.next_update().map(|time| time.timestamp())
}

fn name(name: &X509Name<'_>) -> String {
    format!("`{}`", printable(&name.to_string()))
}

/// A time in the unit that says enough of it.
fn time(seconds: i64) -> String {
    match seconds {
        ..HOUR => "less than an hour".to_owned(),
        HOUR..7200 => "1 hour".to_owned(),
        7200..172_800 => format!("{} hours", seconds / HOUR),
        _ => format!("{} days", seconds / DAY),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa};
    use time::OffsetDateTime;

    use super::*;
    use crate::tls::fixtures::{Authority, Files};

    const NAME: &str = "web.example.net";

    fn in_hours(hours: i64) -> OffsetDateTime {
        OffsetDateTime::now_utc() + Duration::from_secs(60) + time::Duration::hours(hours)
    }

    /// What is said of a server's certificate with this purpose, and after this change.
    fn said(purpose: ExtendedKeyUsagePurpose, change: impl FnOnce(&mut CertificateParams)) -> String {
        let files = Files::new();
        let (cert, _) = files.write_pair("server", &Authority::new("servers").issue(&[NAME], purpose, change));
        let now = SystemTime::now();
        let all = [doubts(&cert, &[], &[], &[], now).unwrap(), ending(&cert, &[], now).unwrap()].concat().join("\n");
        all.replace(&format!("{}: the certificate ", cert.display()), "")
    }

    #[test]
    fn a_certificate_that_no_client_takes_is_told_once() {
        let server = ExtendedKeyUsagePurpose::ServerAuth;
        assert_eq!(said(server.clone(), |_| {}), "");
        assert_eq!(said(server.clone(), |params| params.extended_key_usages.clear()), "");
        let other = "is not one for a server: its extended key usage must have serverAuth";
        assert_eq!(said(ExtendedKeyUsagePurpose::ClientAuth, |_| {}), other);
        let authority =
            |params: &mut CertificateParams| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        assert_eq!(said(server.clone(), authority), "is an authority's own, which no client takes for a server's");
        let expired = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        assert_eq!(said(server.clone(), expired), "expired at 2021-01-01 00:00:00 UTC");
        let early = |params: &mut CertificateParams| params.not_before = rcgen::date_time_ymd(3000, 1, 1);
        assert_eq!(said(server, early), "is not valid before 3000-01-01 00:00:00 UTC");
    }

    #[test]
    fn what_ends_within_two_weeks_is_told_in_days_or_hours() {
        for (hours, left) in [
            (0, "less than an hour"),
            (1, "1 hour"),
            (2, "2 hours"),
            (47, "47 hours"),
            (48, "2 days"),
            (13 * 24, "13 days"),
            (14 * 24, ""),
        ] {
            let said = said(ExtendedKeyUsagePurpose::ServerAuth, |params| params.not_after = in_hours(hours));
            match left {
                "" => assert_eq!(said, ""),
                left => assert!(said.starts_with(&format!("is valid for {left} more, until 2")), "{said}"),
            }
        }
    }

    #[test]
    fn a_list_is_told_of_in_the_last_third_of_its_life() {
        let files = Files::new();
        let (clients, servers) = (Authority::new("clients"), Authority::new("servers"));
        let (cert, _) = files.write_pair("server", &servers.server(NAME));
        // Two hours old.
        let list = files.write("clients.crl", &clients.revocation_list(&[], in_hours(28)));
        let at = |hours: u64| {
            let now = SystemTime::now() + Duration::from_secs(hours * 3600);
            let ca = [files.write("ca.crt", &clients.pem())];
            let lists = [list.clone()];
            [doubts(&cert, &[], &ca, &lists, now).unwrap(), ending(&cert, &lists, now).unwrap()].concat().join("\n")
        };
        assert_eq!(at(0), "");
        assert_eq!(at(17), "");
        let said = at(20);
        assert!(said.contains("clients.crl: the revocation list is good for 8 hours more, until 2"), "{said}");
        assert!(said.ends_with(" UTC; nobody of `CN=clients` is let in then"), "{said}");
        let said = at(29);
        assert!(said.contains("clients.crl: the revocation list expired at 2"), "{said}");
        assert!(!said.contains('\n'), "{said}");
    }

    #[test]
    fn an_authority_without_a_list_of_its_own_is_named() {
        let files = Files::new();
        let (ann, bob, other_bob) = (Authority::new("ann"), Authority::new("bob"), Authority::new("bob"));
        let (cert, _) = files.write_pair("server", &Authority::new("servers").server(NAME));
        let ca = [files.write("ann.crt", &ann.pem()), files.write("bob.crt", &bob.pem())];
        let said = |of: &[&Authority]| {
            let lists: String = of.iter().map(|authority| authority.revocation_list(&[], in_hours(2000))).collect();
            let crl = [files.write("all.crl", &lists)];
            doubts(&cert, &[], &ca, &crl, SystemTime::now()).unwrap()
        };
        assert_eq!(said(&[&ann, &bob]), Vec::<String>::new());
        let without_bob = |said: Vec<String>| {
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].contains("CN=bob") && said[0].contains("bob.crt has signed, so nobody"), "{said:?}");
        };
        without_bob(said(&[&ann]));
        without_bob(said(&[&ann, &other_bob]));
        assert_eq!(said(&[&other_bob]).len(), 2);
        assert_eq!(doubts(&cert, &[], &ca, &[], SystemTime::now()).unwrap(), Vec::<String>::new());
        assert!(doubts(&cert, &[], &ca, &[], UNIX_EPOCH).unwrap()[0].contains("is not valid before"));
    }

    #[test]
    fn hosts_whose_names_the_certificate_has_not_are_named() {
        let files = Files::new();
        let names = ["*.example.net", "bare"];
        let pair = Authority::new("servers").issue(&names, ExtendedKeyUsagePurpose::ServerAuth, |_| {});
        let (cert, _) = files.write_pair("server", &pair);
        let said = |hosts: &[&[&str]]| {
            let hosts: Vec<Vec<String>> =
                hosts.iter().map(|names| names.iter().map(ToString::to_string).collect()).collect();
            doubts(&cert, &hosts, &[], &[], SystemTime::now()).unwrap().pop()
        };
        assert_eq!(said(&[]), None);
        assert_eq!(said(&[&["web.example.net", "web"], &["other.example.org", "bare"]]), None);
        let path = cert.display();
        assert_eq!(
            said(&[&["web.example.net"], &["a.web.example.net", "a.web"], &["x.org"]]).unwrap(),
            format!(
                "{path}: the certificate is for *.example.net, bare, so no client takes it for a.web.example.net, x.org"
            )
        );
    }
}
