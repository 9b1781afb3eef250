use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateRevocationListDer, UnixTime};
use x509_parser::extensions::ParsedExtension;

use super::*;
use crate::server::principal::principal;

const ANN: &str = "spiffe://example.org/users/ann";

/// A folder with an authority in it.
struct Pki(tempfile::TempDir);

impl Pki {
    fn new() -> Pki {
        let parent = tempfile::tempdir().unwrap();
        init(&parent.path().join("pki"), Some("containers.example.net")).unwrap();
        Pki(parent)
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("pki")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Whether a server that has this authority and its list accepts the client's certificate.
    fn accepts(&self, cert: &Path) -> bool {
        let crl = CertificateRevocationListDer::from_pem_slice(&fs::read(self.dir().join("ca.crl")).unwrap()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(der(&self.dir().join("ca.crt"))).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .with_crls([crl])
            .enforce_revocation_expiration()
            .build()
            .unwrap();
        verifier.verify_client_cert(&der(cert), &[], UnixTime::now()).is_ok()
    }
}

fn der(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Runs the real openssl; the output and whether it succeeded.
fn openssl(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

fn shown(cert: &Path) -> String {
    let (good, text) = openssl(&["x509", "-in", cert.to_str().unwrap(), "-noout", "-text"]);
    assert!(good, "{text}");
    text
}

fn openssl_verifies(pki: &Pki, purpose: &str, cert: &Path, more: &[&str]) -> bool {
    let ca = pki.dir().join("ca.crt");
    let mut arguments = vec!["verify", "-x509_strict", "-CAfile", ca.to_str().unwrap(), "-purpose", purpose];
    arguments.extend(more);
    arguments.push(cert.to_str().unwrap());
    openssl(&arguments).0
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

#[test]
fn a_new_authority_has_its_four_files() {
    let pki = Pki::new();
    assert_eq!(pki.names(), ["ca.crl", "ca.crt", "ca.key", "issued.toml"]);
    assert_eq!(mode(&pki.dir()), 0o700);
    assert_eq!(mode(&pki.dir().join("ca.key")), 0o600);
    let text = shown(&pki.dir().join("ca.crt"));
    for part in [
        "Subject: CN = tstunnel CA for containers.example.net (",
        "CA:TRUE, pathlen:0",
        "Certificate Sign, CRL Sign",
        "X509v3 Subject Key Identifier",
        "ecdsa-with-SHA256",
        "NIST CURVE: P-256",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn every_authority_has_a_name_of_its_own_from_its_keys_identifier() {
    let parent = tempfile::tempdir().unwrap();
    let longest = "a".repeat(37);
    let too_long = format!("{longest}a");
    for domain in [Some("example.net"), Some(longest.as_str()), Some(too_long.as_str()), None] {
        let mut subjects = Vec::new();
        for dir in ["one", "two"] {
            let made = init(&parent.path().join(domain.unwrap_or("none")).join(dir), domain).unwrap();
            let der = der(&made.cert);
            let (_, cert) = X509Certificate::from_der(&der).unwrap();
            let identifier = cert.iter_extensions().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(identifier) => Some(hex(identifier.0)),
                _ => None,
            });
            let subject = cert.subject().to_string();
            assert!(subject.ends_with(&format!(" ({})", &identifier.unwrap()[..8])), "{subject}");
            assert!(subject.len() <= "CN=".len() + MAX_COMMON_NAME_BYTES, "{subject}");
            let shows_domain = domain.is_some_and(|domain| subject.contains(&format!("tstunnel CA for {domain} (")));
            assert_eq!(shows_domain, domain.is_some_and(|domain| domain != too_long), "{subject}");
            subjects.push(subject);
        }
        assert_ne!(subjects[0], subjects[1]);
    }
}

#[test]
fn a_second_authority_in_the_same_folder_is_refused() {
    let pki = Pki::new();
    let before = fs::read(pki.dir().join("ca.crt")).unwrap();
    let error = init(&pki.dir(), None).unwrap_err();
    assert!(error.code == Code::Config && error.text.contains("ca.key: already exists"), "{error}");
    assert_eq!(fs::read(pki.dir().join("ca.crt")).unwrap(), before);
}

#[test]
fn a_failed_init_leaves_nothing_behind() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("pki");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("issued.toml"), "mine").unwrap();
    assert!(init(&dir, None).unwrap_err().text.contains("issued.toml: already exists"));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    assert_eq!(fs::read(dir.join("issued.toml")).unwrap(), b"mine");
    assert_eq!(init(&parent.path().join("other"), Some("a b")).unwrap_err().code, Code::Usage);
    assert!(!parent.path().join("other").exists());
    fs::write(parent.path().join("file"), "").unwrap();
    assert_eq!(init(&parent.path().join("file"), None).unwrap_err().code, Code::Config);
}

#[test]
fn openssl_accepts_a_server_certificate_for_servers_alone() {
    let pki = Pki::new();
    let names = strings(&["Host.example.net", "*.containers.example.net", "127.0.0.1", "::1"]);
    let issued = server(&pki.dir(), &names).unwrap();
    assert_eq!(issued.cert, pki.dir().join("host.example.net.crt"));
    assert_eq!((mode(&issued.key), mode(&issued.cert)), (0o600, 0o644));
    assert!(openssl_verifies(&pki, "sslserver", &issued.cert, &["-verify_hostname", "a.containers.example.net"]));
    assert!(openssl_verifies(&pki, "sslserver", &issued.cert, &["-verify_ip", "::1"]));
    assert!(!openssl_verifies(&pki, "sslserver", &issued.cert, &["-verify_hostname", "other.example.net"]));
    assert!(!openssl_verifies(&pki, "sslclient", &issued.cert, &[]));
    let text = shown(&issued.cert);
    for part in [
        "DNS:host.example.net, DNS:*.containers.example.net, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1",
        "TLS Web Server Authentication",
        "X509v3 Subject Key Identifier",
        "X509v3 Authority Key Identifier",
        "CA:FALSE",
        "Digital Signature",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("TLS Web Client Authentication"));
}

#[test]
fn openssl_accepts_a_client_certificate_for_clients_alone() {
    let pki = Pki::new();
    for (name, stem, shows) in [
        (ANN, "example.org_users_ann", format!("URI:{ANN}")),
        ("ann@example.org", "ann@example.org", "email:ann@example.org".into()),
        ("laptop.example.org", "laptop.example.org", "DNS:laptop.example.org".into()),
    ] {
        let issued = client(&pki.dir(), name).unwrap();
        assert_eq!(issued.key, pki.dir().join(format!("{stem}.key")));
        assert_eq!(mode(&issued.key), 0o600);
        assert!(openssl_verifies(&pki, "sslclient", &issued.cert, &[]));
        assert!(!openssl_verifies(&pki, "sslserver", &issued.cert, &[]));
        assert!(shown(&issued.cert).contains(&shows));
        assert_eq!(principal(&der(&issued.cert), false).unwrap().0, name);
        assert!(pki.accepts(&issued.cert));
    }
}

#[test]
fn a_long_principal_is_an_alternative_name_only() {
    let pki = Pki::new();
    let name = format!("spiffe://example.org/{}", "a".repeat(900));
    let issued = client(&pki.dir(), &name).unwrap();
    assert!(openssl_verifies(&pki, "sslclient", &issued.cert, &[]));
    assert_eq!(principal(&der(&issued.cert), false).unwrap().0, name);
    assert!(pki.accepts(&issued.cert));
}

#[test]
fn certificate_and_key_belong_together() {
    let pki = Pki::new();
    let issued = client(&pki.dir(), ANN).unwrap();
    let (_, of_cert) = openssl(&["x509", "-in", issued.cert.to_str().unwrap(), "-noout", "-pubkey"]);
    let (_, of_key) = openssl(&["pkey", "-in", issued.key.to_str().unwrap(), "-pubout"]);
    assert!(of_cert.contains("PUBLIC KEY"));
    assert_eq!(of_cert, of_key);
}

#[test]
fn validity_begins_a_little_earlier_and_ends_when_said() {
    let pki = Pki::new();
    for (issued, days) in
        [(server(&pki.dir(), &[]).unwrap(), SERVER_DAYS), (client(&pki.dir(), ANN).unwrap(), CLIENT_DAYS)]
    {
        let der = der(&issued.cert);
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        let (from, until) = (parsed.validity().not_before.to_datetime(), parsed.validity().not_after.to_datetime());
        assert_eq!(until - from, Duration::days(days) + BACKDATED);
        assert_eq!(Timestamp::from(until), issued.not_after);
        let age = OffsetDateTime::now_utc() - from;
        assert!(age >= BACKDATED && age < BACKDATED + Duration::minutes(1), "{age}");
    }
}

#[test]
fn a_server_without_names_has_those_of_the_domain() {
    let pki = Pki::new();
    let issued = server(&pki.dir(), &[]).unwrap();
    assert_eq!(issued.name, "containers.example.net");
    assert!(shown(&issued.cert).contains("DNS:containers.example.net, DNS:*.containers.example.net"));
    let parent = tempfile::tempdir().unwrap();
    init(parent.path(), None).unwrap();
    assert_eq!(server(parent.path(), &[]).unwrap_err().code, Code::Usage);
}

#[test]
fn nothing_that_exists_is_overwritten_and_a_failure_leaves_nothing() {
    let pki = Pki::new();
    for existing in ["ann@example.org.crt", "ann@example.org.key"] {
        let path = pki.dir().join(existing);
        fs::write(&path, "mine").unwrap();
        let (names, record) = (pki.names(), fs::read(pki.dir().join("issued.toml")).unwrap());
        let error = client(&pki.dir(), "ann@example.org").unwrap_err();
        assert!(error.code == Code::Config && error.text.contains(existing), "{error}");
        assert_eq!(pki.names(), names);
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert_eq!(fs::read(pki.dir().join("issued.toml")).unwrap(), record);
        fs::remove_file(&path).unwrap();
    }
    std::os::unix::fs::symlink("/nonexistent/target", pki.dir().join("ann@example.org.key")).unwrap();
    assert!(client(&pki.dir(), "ann@example.org").unwrap_err().text.contains("already exists"));
    assert!(server(&pki.dir(), &strings(&["ca"])).unwrap_err().text.contains("ca.key: already exists"));
}

#[test]
fn a_record_that_cannot_be_written_leaves_no_certificate() {
    let pki = Pki::new();
    // A folder in the way of the record's new text, which even root cannot remove as a file.
    fs::create_dir(pki.dir().join("issued.toml.new")).unwrap();
    let names = pki.names();
    assert_eq!(client(&pki.dir(), ANN).unwrap_err().code, Code::Config);
    assert_eq!(pki.names(), names);
}

#[test]
fn bad_names_are_refused_before_anything_is_written() {
    let pki = Pki::new();
    for bad in ["", "a b", "a\0", "spiffe://Example.org/a", &"a".repeat(4096)] {
        assert_eq!(client(&pki.dir(), bad).unwrap_err().code, Code::Usage);
        assert_eq!(server(&pki.dir(), &strings(&["good.example.net", bad])).unwrap_err().code, Code::Usage);
    }
    assert_eq!(pki.names().len(), 4);
}

#[test]
fn a_missing_or_damaged_authority_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let error = client(&parent.path().join("none"), ANN).unwrap_err();
    assert!(error.code == Code::Config && error.hint().contains("pki init"), "{error:?}");
    assert_eq!(client(parent.path(), ANN).unwrap_err().code, Code::Config);

    for (file, content, what) in [
        ("ca.crt", "nonsense", "not a PEM certificate"),
        ("ca.key", "nonsense", "no private key"),
        ("issued.toml", "crl_number = \"x\"", "issued.toml:1: "),
    ] {
        let pki = Pki::new();
        fs::write(pki.dir().join(file), content).unwrap();
        let error = client(&pki.dir(), ANN).unwrap_err();
        assert!(error.code == Code::Config && error.text.contains(what), "{error}");
    }

    let (pki, other) = (Pki::new(), Pki::new());
    fs::copy(other.dir().join("ca.key"), pki.dir().join("ca.key")).unwrap();
    assert!(client(&pki.dir(), ANN).unwrap_err().text.contains("not the key of ca.crt"));
}

#[test]
fn an_authority_key_that_others_can_read_is_refused() {
    let pki = Pki::new();
    fs::set_permissions(pki.dir().join("ca.key"), fs::Permissions::from_mode(0o640)).unwrap();
    for error in [client(&pki.dir(), ANN).unwrap_err(), revoke(&pki.dir(), None).unwrap_err()] {
        assert!(error.code == Code::Config && error.text.contains("ca.key"), "{error}");
    }
}

#[test]
fn openssl_accepts_the_revocation_list_before_and_after() {
    let pki = Pki::new();
    let (crl, ca) = (pki.dir().join("ca.crl"), pki.dir().join("ca.crt"));
    let list = || {
        let (good, text) =
            openssl(&["crl", "-in", crl.to_str().unwrap(), "-CAfile", ca.to_str().unwrap(), "-noout", "-text"]);
        assert!(good && text.contains("verify OK"), "{text}");
        text
    };
    assert!(list().contains("No Revoked Certificates"));
    let issued = client(&pki.dir(), ANN).unwrap();
    let checked =
        |cert: &Path| openssl_verifies(&pki, "sslclient", cert, &["-crl_check", "-CRLfile", crl.to_str().unwrap()]);
    assert!(checked(&issued.cert));
    revoke(&pki.dir(), Some(ANN)).unwrap();
    let text = list();
    assert!(text.contains(&format!("Serial Number: {}", issued.serial.to_uppercase())), "{text}");
    assert!(!checked(&issued.cert));
}

#[test]
fn a_revoked_client_is_no_longer_accepted_by_name_serial_or_file() {
    let pki = Pki::new();
    let issue = |name: &str| client(&pki.dir(), name).unwrap();
    let (a, b, c, d, stays) =
        (issue("a@x.org"), issue("b@x.org"), issue("c@x.org"), issue("d@x.org"), issue("e@x.org"));
    let spaced: Vec<String> =
        b.serial.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).to_uppercase()).collect();
    for (what, serial) in [
        ("a@x.org".to_owned(), &a.serial),
        (spaced.join(":"), &b.serial),
        (c.cert.to_str().unwrap().to_owned(), &c.serial),
        ("d@x.org.crt".to_owned(), &d.serial),
    ] {
        let outcome = revoke(&pki.dir(), Some(&what)).unwrap();
        let serials: Vec<_> = outcome.revoked.iter().map(|revoked| &revoked.serial).collect();
        assert_eq!(serials, [serial], "{what}");
    }
    for gone in [&a, &b, &c, &d] {
        assert!(!pki.accepts(&gone.cert), "{}", gone.name);
    }
    assert!(pki.accepts(&stays.cert));
}

#[test]
fn a_name_revokes_every_certificate_that_has_it() {
    let pki = Pki::new();
    let old = client(&pki.dir(), ANN).unwrap();
    let aside = pki.dir().join("old.crt");
    fs::rename(&old.cert, &aside).unwrap();
    fs::remove_file(&old.key).unwrap();
    let new = client(&pki.dir(), ANN).unwrap();
    assert_ne!(old.serial, new.serial);
    server(&pki.dir(), &strings(&["host.example.net"])).unwrap();
    assert_eq!(revoke(&pki.dir(), Some("HOST.example.net")).unwrap().revoked.len(), 1);
    let outcome = revoke(&pki.dir(), Some(ANN)).unwrap();
    assert_eq!(outcome.revoked.len(), 2);
    assert_eq!(outcome.remains, Some(Remains { name: ANN.to_owned(), kind: Kind::Client, good: 0 }));
    assert!(!pki.accepts(&aside) && !pki.accepts(&new.cert));
}

#[test]
fn the_old_certificates_file_revokes_it_alone() {
    let pki = Pki::new();
    let old = client(&pki.dir(), "ann").unwrap();
    let aside = pki.dir().join("old");
    fs::create_dir(&aside).unwrap();
    fs::rename(&old.cert, aside.join("ann.crt")).unwrap();
    fs::rename(&old.key, aside.join("ann.key")).unwrap();
    let new = client(&pki.dir(), "ann").unwrap();
    let outcome = revoke(&pki.dir(), Some("old/ann.crt")).unwrap();
    assert_eq!(outcome.revoked.len(), 1);
    assert_eq!(outcome.remains, Some(Remains { name: "ann".to_owned(), kind: Kind::Client, good: 1 }));
    assert!(!pki.accepts(&aside.join("ann.crt")) && pki.accepts(&new.cert));
}

#[test]
fn revoking_again_changes_nothing_and_renews_the_list() {
    let pki = Pki::new();
    let issued = client(&pki.dir(), ANN).unwrap();
    let first = revoke(&pki.dir(), Some(ANN)).unwrap();
    let again = revoke(&pki.dir(), Some(ANN)).unwrap();
    assert_eq!(first.revoked, again.revoked);
    let renewed = revoke(&pki.dir(), None).unwrap();
    assert_eq!((renewed.revoked, renewed.remains), (Vec::new(), None));
    assert!(!pki.accepts(&issued.cert));
    let days = OffsetDateTime::from(renewed.until) - OffsetDateTime::now_utc();
    assert!(days > Duration::days(29) && days <= Duration::days(30), "{days}");
    let database = Database::read(&pki.dir().join("issued.toml")).unwrap();
    assert_eq!(database.crl_number, 4);
}

#[test]
fn a_certificate_that_the_record_has_lost_is_revoked_by_its_file() {
    let pki = Pki::new();
    let issued = client(&pki.dir(), ANN).unwrap();
    fs::write(pki.dir().join("issued.toml"), "crl_number = 9\n").unwrap();
    assert_eq!(revoke(&pki.dir(), Some(ANN)).unwrap_err().code, Code::Config);
    let outcome = revoke(&pki.dir(), Some(issued.cert.to_str().unwrap())).unwrap();
    assert_eq!(outcome.revoked[0].serial, issued.serial);
    assert!(!pki.accepts(&issued.cert));
}

#[test]
fn what_is_not_this_authoritys_cannot_be_revoked() {
    let (pki, other) = (Pki::new(), Pki::new());
    let foreign = client(&other.dir(), ANN).unwrap();
    fs::write(pki.dir().join("junk.crt"), "junk").unwrap();
    for (what, why) in [
        ("nobody@example.org", "no certificate"),
        ("", "no certificate"),
        ("00", "no certificate"),
        ("junk.crt", "not a PEM certificate"),
        ("ca.crt", "own certificate"),
        (foreign.cert.to_str().unwrap(), "not issued by this authority"),
    ] {
        let error = revoke(&pki.dir(), Some(what)).unwrap_err();
        assert!(error.code == Code::Config && error.text.contains(why), "{what}: {error}");
    }
    assert_eq!(Database::read(&pki.dir().join("issued.toml")).unwrap().crl_number, 1);
}

#[test]
fn an_authority_that_has_issued_many_certificates_issues_and_revokes_on() {
    let pki = Pki::new();
    let (path, ann) = (pki.dir().join("issued.toml"), client(&pki.dir(), ANN).unwrap());
    let mut database = Database::read(&path).unwrap();
    database.certificate.extend((0..10_000).map(|number| Record {
        serial: format!("{number:032x}"),
        kind: Kind::Client,
        name: format!("user{number}@example.org"),
        not_after: ann.not_after,
        revoked: Some(ann.not_after),
    }));
    let text = database.to_toml();
    assert!(text.len() as u64 > toml_file::MAX_FILE_BYTES);
    fs::write(&path, text).unwrap();
    let bob = client(&pki.dir(), "bob@example.org").unwrap();
    revoke(&pki.dir(), Some(ANN)).unwrap();
    assert!(!pki.accepts(&ann.cert) && pki.accepts(&bob.cert));
}

#[test]
fn two_at_once_lose_no_record() {
    let pki = Pki::new();
    let dir = pki.dir();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let dir = &dir;
            scope.spawn(move || client(dir, &format!("user{number}@example.org")).unwrap());
        }
    });
    assert_eq!(Database::read(&dir.join("issued.toml")).unwrap().certificate.len(), 4);
}
