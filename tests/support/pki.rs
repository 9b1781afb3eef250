//! Certificates for the tests, made in memory: right ones, and wrong ones of every kind.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};

type Time = time::OffsetDateTime;

static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validity {
    Now,
    Past,
    Future,
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    Server,
    Client,
}

/// A certificate authority.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    serial: SerialNumber,
}

/// A certificate and its key.
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
    serial: SerialNumber,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let (params, serial) = Authority::params(name);
        Authority { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(), serial }
    }

    /// An authority whose own certificate is this one's.
    pub(crate) fn intermediate(&self, name: &str) -> Authority {
        let (params, serial) = Authority::params(name);
        let key = KeyPair::generate().unwrap();
        Authority { issuer: CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap(), serial }
    }

    fn params(name: &str) -> (CertificateParams, SerialNumber) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2100, 1, 1));
        params.use_authority_key_identifier_extension = true;
        let serial = SerialNumber::from(NEXT_SERIAL.fetch_add(1, Ordering::Relaxed));
        params.serial_number = Some(serial.clone());
        (params, serial)
    }

    /// The authority's own certificate, PEM.
    pub(crate) fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for a server with these DNS names or addresses.
    pub(crate) fn server(&self, names: &[&str]) -> Identity {
        self.issue(Usage::Server, Validity::Now, params(names))
    }

    /// A certificate for the principal that this SPIFFE URI names.
    pub(crate) fn client(&self, uri: &str) -> Identity {
        self.issue(Usage::Client, Validity::Now, uri_params(&[uri]))
    }

    /// A certificate that is valid until a time after 1970.
    pub(crate) fn issue_until(&self, usage: Usage, end: Duration, params: CertificateParams) -> Identity {
        self.sign(usage, (date_time_ymd(2020, 1, 1), date_time_ymd(1970, 1, 1) + end), params)
    }

    /// A certificate that is valid from one time after 1970 until another.
    pub(crate) fn issue_between(
        &self,
        usage: Usage,
        first: Duration,
        last: Duration,
        params: CertificateParams,
    ) -> Identity {
        let epoch = date_time_ymd(1970, 1, 1);
        self.sign(usage, (epoch + first, epoch + last), params)
    }

    /// A certificate with whatever subject and names `params` has: see [`params`] and [`uri_params`].
    pub(crate) fn issue(&self, usage: Usage, validity: Validity, params: CertificateParams) -> Identity {
        let (first, last) = match validity {
            Validity::Now => (2020, 2100),
            Validity::Past => (2020, 2021),
            Validity::Future => (2099, 2100),
        };
        self.sign(usage, (date_time_ymd(first, 1, 1), date_time_ymd(last, 1, 1)), params)
    }

    fn sign(&self, usage: Usage, (first, last): (Time, Time), mut params: CertificateParams) -> Identity {
        params.extended_key_usages = vec![match usage {
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (first, last);
        let serial = SerialNumber::from(NEXT_SERIAL.fetch_add(1, Ordering::Relaxed));
        params.serial_number = Some(serial.clone());
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate: certificate.pem(), key: key.serialize_pem(), serial }
    }

    /// A revocation list, PEM, that is good for ever or long out of date.
    pub(crate) fn revoke(&self, revoked: &[&Identity], validity: Validity) -> String {
        self.list(revoked.iter().map(|identity| &identity.serial), validity)
    }

    /// A revocation list with the certificate of an authority in it.
    pub(crate) fn revoke_authority(&self, revoked: &Authority) -> String {
        self.list([&revoked.serial].into_iter(), Validity::Now)
    }

    fn list<'a>(&self, revoked: impl Iterator<Item = &'a SerialNumber>, validity: Validity) -> String {
        let entry = |serial: &SerialNumber| RevokedCertParams {
            serial_number: serial.clone(),
            revocation_time: date_time_ymd(2020, 6, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let next_update = if validity == Validity::Past { 2021 } else { 2100 };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 6, 1),
            next_update: date_time_ymd(next_update, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

impl Identity {
    /// The certificate's serial number, in hexadecimal.
    pub(crate) fn serial(&self) -> String {
        let bytes = self.serial.to_bytes();
        bytes.iter().skip_while(|byte| **byte == 0).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Writes `NAME.crt` and `NAME.key` into `folder`, and returns where they are.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        std::fs::write(&certificate, &self.certificate).unwrap();
        std::fs::write(&key, &self.key).unwrap();
        // A key that others may read is something that a program may rightly refuse.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&key, mode).unwrap();
        (certificate, key)
    }
}

/// A certificate for DNS names or addresses, without a common name.
pub(crate) fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
}

/// A certificate with these URIs.
pub(crate) fn uri_params(uris: &[&str]) -> CertificateParams {
    let mut params = params(&[]);
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params
}
