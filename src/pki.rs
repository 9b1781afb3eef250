//! A small certificate authority in a folder, for trying tstunnel out and for small teams: one root (RFC 5280), server and
//! client certificates under it, one revocation list, and a record of what was issued.
//!
//! Nothing that exists is ever overwritten but the list and the record, and those whole or not at all; what fails leaves
//! nothing behind. Private keys are created readable by their owner alone. Nothing is printed here.

mod name;
pub mod report;
mod store;

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::config::toml_file;
use crate::error::{Code, Error, Result};
use crate::protocol::encoding::hex;
use crate::tls;
use store::{Database, Folder, NewFiles, Record};

pub use store::{Kind, Timestamp};

/// The folder of an authority for which none is named.
pub const DEFAULT_DIR: &str = "./tstunnel-pki";

/// Ten years: whoever trusts the root would have to be told of a new one.
const CA_DAYS: i64 = 3650;
/// The longest that public authorities were allowed, and some clients still enforce.
const SERVER_DAYS: i64 = 397;
const CLIENT_DAYS: i64 = 365;
/// How long a revocation list is good for. A server that enforces its end lets nobody in once it is over.
pub const CRL_DAYS: i64 = 30;
/// Everything is valid from a little earlier: the clocks of small machines differ.
const BACKDATED: Duration = Duration::minutes(5);
/// Longest common name (RFC 5280 §A.1, ub-common-name). A longer name is an alternative name only.
const MAX_COMMON_NAME_BYTES: usize = 64;

/// A new authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// The root's certificate: what servers and clients trust.
    pub cert: PathBuf,
    /// The root's private key.
    pub key: PathBuf,
    /// The revocation list, empty so far.
    pub crl: PathBuf,
    /// Until when the revocation list is good.
    pub crl_until: Timestamp,
    /// The record of what was issued.
    pub database: PathBuf,
    /// Until when the root is valid.
    pub not_after: Timestamp,
}

/// A new certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The serial number in hexadecimal, by which it can be revoked.
    pub serial: String,
    /// The first of its names.
    pub name: String,
    /// Until when it is valid.
    pub not_after: Timestamp,
}

/// A new revocation list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The list.
    pub crl: PathBuf,
    /// Until when the list is good; renew it before, or servers let nobody in.
    pub until: Timestamp,
    /// The certificates that were asked for, those revoked before included. Empty where the list was only renewed.
    pub revoked: Vec<Revoked>,
    /// What there is for the name of those.
    pub remains: Option<Remains>,
}

/// What there is for a name after one of its certificates was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    /// The name.
    pub name: String,
    /// What its certificates are for.
    pub kind: Kind,
    /// How many of them are neither revoked nor expired.
    pub good: usize,
}

/// One revoked certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Its serial number in hexadecimal.
    pub serial: String,
    /// The first of its names.
    pub name: String,
    /// Since when.
    pub since: Timestamp,
}

/// Makes a new authority in `dir`, which is created if it is missing: `ca.crt`, `ca.key`, `ca.crl` and `issued.toml`.
/// `domain` is remembered: it is whose names [`server`] takes if it gets none.
///
/// # Errors
/// `usage` for a domain that is none; `config`, naming the file, where one of the files exists or cannot be written.
pub fn init(dir: &Path, domain: Option<&str>) -> Result<Authority> {
    let domain = domain.map(name::domain).transpose()?;
    let folder = Folder::create(dir)?;
    let now = OffsetDateTime::now_utc();
    let serial = new_serial()?;
    let not_after = now + Duration::days(CA_DAYS);

    let mut params = CertificateParams::default();
    let key = new_key()?;
    params.distinguished_name = common_name(&title(domain.as_deref(), &hex(&params.key_identifier(&key))));
    params.serial_number = Some(serial_number(&serial)?);
    (params.not_before, params.not_after) = (now - BACKDATED, not_after);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let cert = params.self_signed(&key).map_err(cannot_sign)?;
    let key_pem = key.serialize_pem();
    let issuer = Issuer::new(params, key);

    let database = Database { domain, crl_number: 1, certificate: Vec::new() };
    let crl_until = now + Duration::days(CRL_DAYS);
    let crl = sign_crl(&database, &issuer, now, crl_until)?;

    let mut files = NewFiles::default();
    files.create(&folder.ca_key(), key_pem.as_bytes(), 0o600)?;
    files.create(&folder.ca_cert(), cert.pem().as_bytes(), 0o644)?;
    files.create(&folder.crl(), crl.as_bytes(), 0o644)?;
    files.create(&folder.database(), database.to_toml().as_bytes(), 0o600)?;
    folder.sync()?;
    files.keep();
    let made = Authority {
        cert: folder.ca_cert(),
        key: folder.ca_key(),
        crl: folder.crl(),
        crl_until: Timestamp::from(crl_until),
        database: folder.database(),
        not_after: Timestamp::from(not_after),
    };
    folder.keep();
    Ok(made)
}

/// Issues a server's certificate for `names`: DNS names, `*.` before one, IP addresses. The first names the files. Without
/// any names, those of the authority's domain: itself and `*.` before it.
///
/// # Errors
/// `usage` for a name that is none; `config`, naming the file, where a file exists, is missing or cannot be written.
pub fn server(dir: &Path, names: &[String]) -> Result<Issued> {
    let open = Open::folder(dir)?;
    let of_domain: Vec<String>;
    let names = match (&open.database.domain, names) {
        (Some(domain), []) => {
            of_domain = vec![domain.clone(), format!("*.{domain}")];
            &of_domain
        }
        (None, []) => {
            let error = Error::new(Code::Usage, "a server's certificate needs at least one name");
            return Err(error.with_hint("say which: `tstunnel pki server NAME...`"));
        }
        (_, names) => names,
    };
    let alternative_names = name::server_names(names)?;
    open.issue(Kind::Server, &names[0].to_ascii_lowercase(), alternative_names)
}

/// Issues a client's certificate for `principal`: a `spiffe://` URI, an e-mail address or a DNS name.
///
/// # Errors
/// `usage` for a principal that is none of these; `config`, naming the file, where a file exists, is missing or cannot be
/// written.
pub fn client(dir: &Path, principal: &str) -> Result<Issued> {
    let alternative_name = name::principal(principal)?;
    Open::folder(dir)?.issue(Kind::Client, principal, vec![alternative_name])
}

/// Revokes every certificate called `what`, also one that was made a moment ago, or the one with this serial number, or the one in this file (also one that the
/// record has lost, as long as the authority signed it), and writes a new list. Without `what` the list is only renewed.
/// Revoking a certificate again changes nothing.
///
/// # Errors
/// `config` where no such certificate is known, or a file cannot be read or written.
pub fn revoke(dir: &Path, what: Option<&str>) -> Result<Revocation> {
    let mut open = Open::folder(dir)?;
    let now = open.now;
    let (mut revoked, mut asked) = (Vec::new(), None);
    for index in what.map(|what| open.find(what)).transpose()?.unwrap_or_default() {
        let Some(record) = open.database.certificate.get_mut(index) else { continue };
        let since = *record.revoked.get_or_insert(Timestamp::from(now));
        revoked.push(Revoked { serial: record.serial.clone(), name: record.name.clone(), since });
        asked = Some((record.name.clone(), record.kind));
    }
    let remains = asked.map(|(name, kind)| {
        let is_good = |record: &&Record| {
            record.kind == kind
                && record.name == name
                && record.revoked.is_none()
                && OffsetDateTime::from(record.not_after) > now
        };
        let good = open.database.certificate.iter().filter(is_good).count();
        Remains { name, kind, good }
    });
    open.database.crl_number += 1;
    let until = now + Duration::days(CRL_DAYS);
    let crl = sign_crl(&open.database, &open.issuer, now, until)?;
    // The record goes first: should the list then fail, the next one has what is missing.
    open.folder.replace(&open.folder.database(), open.database.to_toml().as_bytes(), 0o600)?;
    open.folder.replace(&open.folder.crl(), crl.as_bytes(), 0o644)?;
    Ok(Revocation { crl: open.folder.crl(), until: Timestamp::from(until), revoked, remains })
}

/// An authority that is there, locked against others.
struct Open {
    folder: Folder,
    database: Database,
    issuer: Issuer<'static, KeyPair>,
    cert: CertificateDer<'static>,
    not_after: OffsetDateTime,
    now: OffsetDateTime,
}

impl Open {
    fn folder(dir: &Path) -> Result<Open> {
        let folder = Folder::open(dir)?;
        let fails = |path: &Path, what: &str| Error::new(Code::Config, format!("{}: {what}", path.display()));
        let (cert_path, key_path) = (folder.ca_cert(), folder.ca_key());
        let cert = CertificateDer::from_pem_slice(toml_file::read(&cert_path)?.as_bytes())
            .map_err(|_| fails(&cert_path, "not a PEM certificate"))?;
        let key = KeyPair::try_from(&tls::private_key(&key_path)?)
            .map_err(|_| fails(&key_path, "not a private key that this program can use"))?;
        let (_, parsed) = X509Certificate::from_der(&cert).map_err(|_| fails(&cert_path, "not a certificate"))?;
        if parsed.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(fails(&key_path, "not the key of ca.crt"));
        }
        let not_after = parsed.validity().not_after.to_datetime();
        let now = OffsetDateTime::now_utc();
        if not_after <= now {
            return Err(fails(&cert_path, "expired")
                .with_hint("make a new authority in another folder with `tstunnel pki init`"));
        }
        let issuer =
            Issuer::from_ca_cert_der(&cert, key).map_err(|_| fails(&cert_path, "not an authority's certificate"))?;
        let database = Database::read(&folder.database())?;
        Ok(Open { folder, database, issuer, cert, not_after, now })
    }

    fn issue(mut self, kind: Kind, name: &str, alternative_names: Vec<SanType>) -> Result<Issued> {
        let (days, usage) = match kind {
            Kind::Server => (SERVER_DAYS, ExtendedKeyUsagePurpose::ServerAuth),
            Kind::Client => (CLIENT_DAYS, ExtendedKeyUsagePurpose::ClientAuth),
        };
        let serial = new_serial()?;
        // A certificate that outlived its root would fail in a way that nobody expects.
        let not_after = (self.now + Duration::days(days)).min(self.not_after);
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        params.serial_number = Some(serial_number(&serial)?);
        (params.not_before, params.not_after) = (self.now - BACKDATED, not_after);
        params.subject_alt_names = alternative_names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = new_key()?;
        let cert = params.signed_by(&key, &self.issuer).map_err(cannot_sign)?;

        let (cert_path, key_path) = self.folder.pair(&name::file_stem(name));
        let mut files = NewFiles::default();
        files.create(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        files.create(&cert_path, cert.pem().as_bytes(), 0o644)?;
        let not_after = Timestamp::from(not_after);
        self.database.certificate.push(Record {
            serial: serial.clone(),
            kind,
            name: name.to_owned(),
            not_after,
            revoked: None,
        });
        self.folder.replace(&self.folder.database(), self.database.to_toml().as_bytes(), 0o600)?;
        files.keep();
        Ok(Issued { cert: cert_path, key: key_path, serial, name: name.to_owned(), not_after })
    }

    /// The records that `what` means: by name, else by serial number, else by a certificate's file.
    fn find(&mut self, what: &str) -> Result<Vec<usize>> {
        let records = &self.database.certificate;
        let by = |means: &dyn Fn(&Record) -> bool| -> Vec<usize> {
            (0..records.len()).filter(|&index| records.get(index).is_some_and(means)).collect()
        };
        // A server's names have no case; a SPIFFE ID has.
        let named = by(&|record| {
            record.name == what || (record.kind == Kind::Server && record.name.eq_ignore_ascii_case(what))
        });
        if !named.is_empty() {
            return Ok(named);
        }
        let serial = what.replace(':', "").to_ascii_lowercase();
        let numbered = by(&|record| record.serial == serial);
        if !numbered.is_empty() {
            return Ok(numbered);
        }
        let beside = self.folder.path().join(what);
        for path in [Path::new(what), &beside] {
            if path.is_file() {
                return self.find_file(path).map(|index| vec![index]);
            }
        }
        let database = self.folder.database();
        Err(Error::new(Code::Config, format!("{}: no certificate `{what}`", database.display()))
            .with_hint("name a certificate, its serial number or its file, as that file lists them"))
    }

    fn find_file(&mut self, path: &Path) -> Result<usize> {
        let fails = |what: &str| Error::new(Code::Config, format!("{}: {what}", path.display()));
        let der = CertificateDer::from_pem_slice(toml_file::read(path)?.as_bytes())
            .map_err(|_| fails("not a PEM certificate"))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| fails("not a certificate"))?;
        if der == self.cert || parsed.is_ca() {
            return Err(fails("an authority's own certificate cannot be revoked by its list"));
        }
        let (_, root) = X509Certificate::from_der(&self.cert).map_err(|_| fails("not a certificate"))?;
        if parsed.verify_signature(Some(root.public_key())).is_err() {
            return Err(fails("not issued by this authority"));
        }
        let serial = hex(parsed.raw_serial());
        if let Some(index) = self.database.certificate.iter().position(|record| record.serial == serial) {
            return Ok(index);
        }
        let usage = parsed.extended_key_usage().ok().flatten();
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        self.database.certificate.push(Record {
            serial,
            kind: if usage.is_some_and(|usage| usage.value.server_auth) { Kind::Server } else { Kind::Client },
            name: common_name.unwrap_or_default().to_owned(),
            not_after: Timestamp::from(parsed.validity().not_after.to_datetime()),
            revoked: None,
        });
        Ok(self.database.certificate.len() - 1)
    }
}

fn sign_crl(
    database: &Database,
    issuer: &Issuer<'static, KeyPair>,
    now: OffsetDateTime,
    until: OffsetDateTime,
) -> Result<String> {
    let mut revoked_certs = Vec::new();
    for record in &database.certificate {
        let Some(since) = record.revoked else { continue };
        revoked_certs.push(RevokedCertParams {
            serial_number: serial_number(&record.serial)?,
            revocation_time: since.into(),
            reason_code: None,
            invalidity_date: None,
        });
    }
    let params = CertificateRevocationListParams {
        this_update: now - BACKDATED,
        next_update: until,
        crl_number: SerialNumber::from(database.crl_number),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).and_then(|list| list.pem()).map_err(cannot_sign)
}

/// An authority's own name, with the beginning of its key's identifier, as certificate viewers show it: a server looks for the
/// list of a certificate by the issuer's name alone, and would find that of another authority of the domain.
fn title(domain: Option<&str>, key_identifier: &str) -> String {
    let key = key_identifier.get(..8).unwrap_or(key_identifier);
    let with_domain = domain.map(|domain| format!("tstunnel CA for {domain} ({key})"));
    with_domain.filter(|title| title.len() <= MAX_COMMON_NAME_BYTES).unwrap_or_else(|| format!("tstunnel CA ({key})"))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    if name.len() <= MAX_COMMON_NAME_BYTES {
        subject.push(DnType::CommonName, name);
    }
    subject
}

fn new_key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(cannot_sign)
}

/// A random serial number of 126 bits in hexadecimal. Its first digit is 4 to 7: positive, and always of one length.
fn new_serial() -> Result<String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::new(Code::Internal, "no random numbers from the system"))?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(hex(&bytes))
}

fn serial_number(serial: &str) -> Result<SerialNumber> {
    let digit = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| u8::from_str_radix(text, 16).ok());
    let bytes: Option<Vec<u8>> = serial.as_bytes().chunks(2).map(digit).collect();
    // RFC 5280 §4.1.2.2: at most 20 octets.
    bytes
        .filter(|bytes| (1..=20).contains(&bytes.len()))
        .map(SerialNumber::from)
        .ok_or_else(|| Error::new(Code::Config, format!("`{serial}` is not a serial number")))
}

fn cannot_sign(cause: rcgen::Error) -> Error {
    Error::new(Code::Internal, format!("cannot sign: {cause}"))
}

#[cfg(test)]
mod tests;
