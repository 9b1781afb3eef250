//! Certificates, keys and trust anchors in files → rustls configurations for both sides; no network.
//!
//! What comes in are paths, what goes out is a configuration that cannot be weakened any more: TLS 1.3 (RFC 8446; 1.2 only
//! for a host that allows it by name), certificates on both sides, `http/1.1` by ALPN, no early data, and no resumption, so
//! that every connection verifies every certificate again (`signatures` remembers arithmetic alone). Everything here fails
//! closed: a file that cannot be read or understood is an error that names it, never a weaker check.
//!
//! [`classify_client_error`] says what a failed handshake means to a person, [`probe`] shows more of it.

#[cfg(feature = "server")]
mod doubts;
mod encrypted;
mod failure;
mod pem;
pub mod probe;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
mod signatures;

#[cfg(all(test, feature = "server"))]
pub(crate) mod fixtures;

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::{CipherSuite, ClientConfig, ConfigBuilder, InconsistentKeys, RootCertStore, WantsVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};

#[cfg(feature = "server")]
pub use doubts::{doubts, ending};
pub use encrypted::Ask;
pub use failure::{ALERT_BYTES, classify_client_error, classify_handshake_error, classify_tls_error, classify_unasked};
#[cfg(feature = "server")]
pub use server::{
    ACCESS_DENIED, Expiry, NoServerName, Stage, UNRECOGNIZED_NAME, accept, check_lists, check_standing,
    client_verifier, expiry, linger, server_config, verify_again,
};

#[cfg(feature = "server")]
pub(crate) use pem::private_key;

use crate::config::{Host, MinTls};
use crate::error::{Code, Error, Result};

/// What both sides offer by ALPN (RFC 7301 §6).
const ALPN: &[u8] = b"http/1.1";

/// Makes the client's configuration for one host; `ask` is called for the passphrase of a key that has one.
///
/// # Errors
/// What `ask` says; and `config`, with the file's name, where a file cannot be read, holds nothing usable, is readable by
/// others though it is a private key, or does not fit the other; where the client's certificate is not valid now; and where
/// there is no root.
pub fn client_config(host: &Host, ask: &mut Ask<'_>) -> Result<ClientConfig> {
    let (chain, key) = own_certificate(host, ask)?;
    let config = versions(host)?
        .with_root_certificates(roots(host.ca.as_deref())?)
        .with_client_auth_cert(chain, key)
        .map_err(|error| unusable_pair(&host.cert, &host.key, &error))?;
    Ok(without_shortcuts(config))
}

/// The client's certificate chain, valid now, and its key.
fn own_certificate(host: &Host, ask: &mut Ask<'_>) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = pem::certificates(&host.cert)?;
    if let Some(leaf) = chain.first() {
        check_validity(&host.cert, leaf, SystemTime::now())?;
    }
    Ok((chain, pem::private_key_asking(&host.key, ask)?))
}

/// A client's configuration of the versions that the host allows, and nothing else yet.
fn versions(host: &Host) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>> {
    let versions: &[&rustls::SupportedProtocolVersion] = match host.min_tls {
        MinTls::V1_3 => &[&rustls::version::TLS13],
        MinTls::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
    };
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|error| Error::new(Code::Internal, format!("the TLS library refuses its own versions: {error}")))
}

fn without_shortcuts(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config
}

/// Makes the configuration for a proxy over TLS: one that the system trusts, in the versions that such proxies speak, and
/// without a certificate of ours.
///
/// # Errors
/// `config` where there is no root.
pub fn proxy_config() -> Result<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(Code::Internal, format!("the TLS library refuses its own versions: {error}")))?
        .with_root_certificates(roots(None)?)
        .with_no_client_auth();
    Ok(without_shortcuts(config))
}

/// The one provider, handed to each configuration: nothing depends on what is installed for the process.
///
/// Of its cipher suites that which everybody has to know (RFC 8446 §9.1) comes first. It takes the least time of all:
/// processors have instructions for SHA-256, and few have them for the SHA-384 of the library's own first choice.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// The anchors of `ca` alone, or the system's: loading those costs milliseconds.
fn roots(ca: Option<&Path>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => add_roots(&mut roots, path)?,
        None => {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!("cannot use a part of the system's roots: {error}");
            }
            let (added, ignored) = roots.add_parsable_certificates(found.certs);
            tracing::debug!("the system has {added} usable roots and {ignored} others");
            if roots.is_empty() {
                return Err(Error::new(Code::Config, "the system has no root certificate that can be used")
                    .with_hint("set `ca` to the file of the authority that signed the server's certificate, or install the system's root certificates"));
            }
        }
    }
    Ok(roots)
}

/// Adds the anchors in a file. One that cannot be an anchor is left out, which trusts less, not more; none left is an error.
fn add_roots(roots: &mut RootCertStore, path: &Path) -> Result<()> {
    let (added, ignored) = roots.add_parsable_certificates(pem::certificates(path)?);
    if ignored > 0 {
        tracing::warn!("{}: left out {ignored} certificates that cannot be trust anchors", path.display());
    }
    if added == 0 {
        return Err(Error::new(
            Code::Config,
            format!("{}: no certificate in it can be a trust anchor", path.display()),
        ));
    }
    Ok(())
}

/// Refuses a certificate of our own that is not valid at `now`: the server would, with less to say about it.
fn check_validity(path: &Path, certificate: &CertificateDer<'_>, now: SystemTime) -> Result<()> {
    let wrong = |what: String| Err(Error::new(Code::Config, format!("{}: the certificate {what}", path.display())));
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return wrong("is malformed".to_owned());
    };
    let now = seconds_since_1970(now);
    let validity = parsed.validity();
    if now > validity.not_after.timestamp() {
        return wrong(format!("expired at {}", date(validity.not_after.timestamp())))
            .map_err(|error| error.with_hint("get a new certificate, and check this machine's clock"));
    }
    if now < validity.not_before.timestamp() {
        return wrong(format!("is not valid before {}", date(validity.not_before.timestamp())))
            .map_err(|error| error.with_hint("check this machine's clock"));
    }
    Ok(())
}

fn seconds_since_1970(time: SystemTime) -> i64 {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// Seconds since 1970 as `2026-01-31 12:00:00 UTC`.
fn date(timestamp: i64) -> String {
    let Ok(time) = ASN1Time::from_timestamp(timestamp) else { return format!("{timestamp} seconds after 1970") };
    let time = time.to_datetime();
    let (hour, minute, second) = time.to_hms();
    format!("{:04}-{:02}-{:02} {hour:02}:{minute:02}:{second:02} UTC", time.year(), u8::from(time.month()), time.day())
}

/// The error for a certificate and a key that rustls does not take together.
fn unusable_pair(cert: &Path, key: &Path, error: &rustls::Error) -> Error {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => Error::new(
            Code::Config,
            format!("{}: the private key is not that of the certificate in {}", key.display(), cert.display()),
        )
        .with_hint("name the two files that belong together; in the certificate's file its own certificate comes first, then those of its issuers"),
        rustls::Error::InvalidCertificate(why) if failure::is_of_another_version(why) => {
            Error::new(Code::Config, format!("{}: the certificate is not of version 3 of X.509", cert.display()))
                .with_hint("get one with alternative names, which make it one: `openssl x509 -req` takes them by -extfile")
        }
        rustls::Error::InvalidCertificate(why) => {
            Error::new(Code::Config, format!("{}: the certificate cannot be used: {why}", cert.display()))
        }
        other => Error::new(Code::Config, format!("{}: the private key cannot be used: {other}", key.display()))
            .with_hint("the key must be an ECDSA, Ed25519 or RSA key of at least 2048 bits"),
    }
}

#[cfg(all(test, feature = "server"))]
mod tests;
