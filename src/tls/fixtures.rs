//! Certificates for tests: an authority in memory, and files in a folder of their own.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use time::OffsetDateTime;

use crate::config::{Endpoint, Host, MinTls};
use crate::protocol::HostId;

/// A certificate with its key, in PEM.
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// A certificate authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Issues a certificate after `change`.
    pub(crate) fn issue(
        &self,
        names: &[&str],
        usage: ExtendedKeyUsagePurpose,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![usage];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Pair { cert: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }

    pub(crate) fn server(&self, name: &str) -> Pair {
        self.issue(&[name], ExtendedKeyUsagePurpose::ServerAuth, |_| {})
    }

    pub(crate) fn client(&self, name: &str) -> Pair {
        self.issue(&[name], ExtendedKeyUsagePurpose::ClientAuth, |_| {})
    }

    /// A revocation list, issued two hours ago and to be renewed at `next_update`.
    pub(crate) fn revocation_list(&self, serials: &[&[u8]], next_update: OffsetDateTime) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &&[u8]| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now - Duration::from_secs(7200),
            next_update,
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().pem().unwrap()
    }
}

/// A folder of files; keys are readable by their owner alone.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Writes `NAME.crt` and `NAME.key`.
    pub(crate) fn write_pair(&self, name: &str, pair: &Pair) -> (PathBuf, PathBuf) {
        (self.write(&format!("{name}.crt"), &pair.cert), self.write(&format!("{name}.key"), &pair.key))
    }
}

/// `host123` behind `containers.example.net`.
pub(crate) fn host(cert: &Path, key: &Path, ca: &Path) -> Host {
    Host {
        alias: "host123".into(),
        endpoint: Endpoint { host: "containers.example.net".into(), port: 443 },
        host_id: HostId::parse("host123").unwrap(),
        server_name: "host123.containers.example.net".into(),
        upgrade_base: "/tinyscale/v1".into(),
        cert: cert.to_owned(),
        key: key.to_owned(),
        ca: Some(ca.to_owned()),
        user: None,
        proxy: None,
        connect_timeout: Duration::from_secs(5),
        answer_timeout: Duration::from_secs(30),
        alive_interval: Duration::from_secs(10),
        alive_count: 3,
        resume: None,
        min_tls: MinTls::V1_3,
    }
}
