//! A client's configuration whose handshake can be looked at: what the server presented, also where that was refused, and what
//! this side's own certificate is.
//!
//! It verifies what [`client_config`](super::client_config) verifies, by the same verifier; all that it adds is a memory.

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use crate::config::Host;
use crate::error::{Code, Error, Result};
use crate::tls::failure::names;
use crate::tls::{
    Ask, own_certificate, pem, provider, roots, seconds_since_1970, unusable_pair, versions, without_shortcuts,
};

/// Most certificates of a chain that are remembered.
const MAX_CHAIN: usize = 8;

/// What a person wants to know of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The subject's distinguished name; empty where there is none.
    pub subject: String,
    /// The subject's alternative names: DNS, URI, e-mail, address.
    pub names: Vec<String>,
    /// The issuer's distinguished name.
    pub issuer: String,
    /// When it ends, in seconds since 1970.
    pub not_after: i64,
}

impl Certificate {
    /// Reads a certificate; `None` for what is none.
    pub fn read(der: &CertificateDer<'_>) -> Option<Certificate> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let alternative = certificate.subject_alternative_name().ok().flatten();
        let names = alternative.iter().flat_map(|extension| &extension.value.general_names).filter_map(name).collect();
        Some(Certificate {
            subject: certificate.subject().to_string(),
            names,
            issuer: certificate.issuer().to_string(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }

    /// Its alternative names, or its subject where there are none.
    pub fn shown(&self) -> String {
        if self.names.is_empty() { self.subject.clone() } else { names(&self.names) }
    }

    /// Whole days until it ends; negative where it has.
    pub fn days_left(&self, now: SystemTime) -> i64 {
        self.not_after.saturating_sub(seconds_since_1970(now)).div_euclid(86_400)
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(octets) => Some(std::net::Ipv4Addr::from(octets).to_string()),
            Err(_) => Some(std::net::Ipv6Addr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
        },
        _ => None,
    }
}

/// A configuration, and what there is to see of it.
#[derive(Debug)]
pub struct Probe {
    /// The configuration; it offers no certificate where [`Probe::own`] is an error.
    pub config: ClientConfig,
    /// The client's own certificate.
    pub own: Result<Certificate>,
    /// What should be said of its key.
    pub doubt: Option<&'static str>,
    presented: Arc<Mutex<Vec<Certificate>>>,
}

impl Probe {
    /// Loads what TLS needs; `ask` is called for the passphrase of a key that has one.
    ///
    /// # Errors
    /// `config` where there is no root of trust. What is wrong with the client's own files is in [`Probe::own`].
    pub fn new(host: &Host, ask: &mut Ask<'_>) -> Result<Probe> {
        let presented = Arc::default();
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(host.ca.as_deref())?), provider())
            .build()
            .map_err(|error| {
                Error::new(Code::Config, format!("the server's certificate cannot be verified: {error}"))
            })?;
        let memory = Arc::new(Remembering { verifier, presented: Arc::clone(&presented) });
        let builder = versions(host)?.dangerous().with_custom_certificate_verifier(memory);
        let with_own = own_certificate(host, ask).and_then(|(chain, key)| {
            let own = chain.first().and_then(Certificate::read);
            let own = own.ok_or_else(|| Error::new(Code::Config, "the certificate is malformed"))?;
            let config = builder.clone().with_client_auth_cert(chain, key);
            config.map(|config| (config, own)).map_err(|error| unusable_pair(&host.cert, &host.key, &error))
        });
        let (config, own) = match with_own {
            Ok((config, own)) => (config, Ok(own)),
            Err(error) => (builder.with_no_client_auth(), Err(error)),
        };
        Ok(Probe { config: without_shortcuts(config), own, doubt: pem::doubt(&host.key), presented })
    }

    /// The chain that the server presented last, its own certificate first, whether or not it was taken.
    pub fn presented(&self) -> Vec<Certificate> {
        self.presented.lock().map(|chain| chain.clone()).unwrap_or_default()
    }
}

/// A verifier that remembers what it was asked about.
#[derive(Debug)]
struct Remembering {
    verifier: Arc<WebPkiServerVerifier>,
    presented: Arc<Mutex<Vec<Certificate>>>,
}

impl ServerCertVerifier for Remembering {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Ok(mut presented) = self.presented.lock() {
            let chain = std::iter::once(end_entity).chain(intermediates).take(MAX_CHAIN);
            *presented = chain.filter_map(Certificate::read).collect();
        }
        self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use rustls_pki_types::pem::PemObject as _;

    use super::*;
    use crate::tls::fixtures::Authority;

    fn certificate() -> CertificateDer<'static> {
        let pair = Authority::new("servers").server("host123.containers.example.net");
        CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap()
    }

    #[test]
    fn a_certificate_is_shown_by_its_names() {
        let read = Certificate::read(&certificate()).unwrap();
        assert_eq!(read.shown(), "host123.containers.example.net");
        assert!(read.issuer.contains("servers"), "{}", read.issuer);
        let nameless = Certificate { names: Vec::new(), ..read };
        assert_eq!(nameless.shown(), nameless.subject);
    }

    #[test]
    fn days_are_counted_whole_and_below_zero_after_the_end() {
        let certificate = Certificate { not_after: 10 * 86_400, ..Certificate::read(&certificate()).unwrap() };
        let left = |seconds: u64| certificate.days_left(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!((left(9 * 86_400), left(9 * 86_400 + 1), left(10 * 86_400), left(10 * 86_400 + 1)), (1, 0, 0, -1));
    }

    /// A peer's certificate is read before it is verified.
    #[test]
    fn no_damage_to_a_certificate_panics() {
        let whole = certificate();
        for at in 0..whole.len() {
            for value in [0x00, 0x7f, 0x80, 0xff, whole[at] ^ 0x01, whole[at].wrapping_add(1)] {
                let mut damaged = whole.to_vec();
                damaged[at] = value;
                if let Some(read) = Certificate::read(&CertificateDer::from(damaged)) {
                    let _ = (read.shown(), read.days_left(SystemTime::now()));
                }
            }
            assert_eq!(Certificate::read(&CertificateDer::from(whole[..at].to_vec())), None);
        }
    }
}
