//! A failed TLS connection, as the client sees it → what it means to a person.
//!
//! In TLS 1.3 the server judges the client's certificate after the client has finished its handshake (RFC 8446 §4.4.2.4):
//! its alert arrives with the first read, so errors of reads belong here too, not only those of connecting.

use std::error::Error as StdError;
use std::io;

use rustls::{AlertDescription, CertificateError, InvalidMessage, PeerIncompatible};
use rustls_pki_types::UnixTime;

use crate::config::{Host, MinTls, value};
use crate::error::{Code, Error};
use crate::tls::date;

/// What to do about a certificate of the client's that was revoked.
pub(super) const REVOKED_HINT: &str = "it was revoked: ask whoever runs the endpoint for a new one";

/// Bytes of an alert that is sent before any key is agreed on (RFC 8446 §5.1 and §6).
pub const ALERT_BYTES: usize = 7;

/// Most names of a certificate that a message lists.
const MAX_NAMES: usize = 4;

/// Says what an I/O error of a TLS handshake means. Who has not yet seen a certificate denies access to an address: in TLS 1.3 the
/// client's is judged after the handshake.
pub fn classify_handshake_error(error: &io::Error, host: &Host) -> Error {
    match tls_error_inside(error) {
        Some(rustls::Error::AlertReceived(AlertDescription::AccessDenied)) => shut_out(host),
        _ => classify_client_error(error, host),
    }
}

/// Says what an alert means that came before the ClientHello could be sent; `None` for what is no alert.
pub fn classify_unasked(record: [u8; ALERT_BYTES], host: &Host) -> Option<Error> {
    let [21, 3, _, 0, 2, _, description] = record else { return None };
    let alert = rustls::Error::AlertReceived(AlertDescription::from(description));
    Some(classify_handshake_error(&io::Error::new(io::ErrorKind::InvalidData, alert), host))
}

/// Says what an I/O error of a TLS connection means, during the handshake or at the first read after it. One without TLS
/// inside is a connection that ended before TLS could say anything.
pub fn classify_client_error(error: &io::Error, host: &Host) -> Error {
    if let Some(tls) = tls_error_inside(error) {
        return classify_tls_error(tls, host);
    }
    let name = &host.endpoint;
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            // What a balancer does that has nobody to hand the connection on to.
            Error::new(Code::TlsHandshake, format!("{name} closed the connection during the TLS handshake")).with_hint(
                format!(
                    "check that a server for {} is up behind the endpoint, where that is a load balancer, and that it speaks TLS 1.3",
                    host.server_name
                ),
            )
        }
        _ => Error::new(Code::TlsHandshake, format!("the TLS handshake with {name} failed: {error}")),
    }
}

fn tls_error_inside(error: &io::Error) -> Option<&rustls::Error> {
    let mut source: Option<&(dyn StdError + 'static)> = error.get_ref().map(|inner| inner as _);
    while let Some(inner) = source {
        if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        // An io::Error's own `source` passes over what it wraps.
        source = match inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped as _),
            None => inner.source(),
        };
    }
    None
}

/// Says what a TLS error means.
pub fn classify_tls_error(error: &rustls::Error, host: &Host) -> Error {
    let name = &host.endpoint.host;
    match error {
        rustls::Error::InvalidCertificate(why) => classify_certificate(why, host),
        rustls::Error::AlertReceived(alert) => classify_alert(*alert, host),
        // What came instead of a TLS record: most likely plain HTTP, or another protocol's greeting.
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            Error::new(Code::NotTstunnel, format!("{} does not speak TLS", host.endpoint))
                .with_hint("check the endpoint's port: what answered is not a TLS server")
        }
        rustls::Error::NoApplicationProtocol => not_http(host),
        rustls::Error::PeerIncompatible(why) => {
            let error = handshake(host, &format!("{error}"));
            match why {
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => error.with_hint(version_hint(host)),
                _ => error,
            }
        }
        rustls::Error::NoCertificatesPresented => Error::new(Code::TlsHandshake, format!("{name} has no certificate")),
        other => handshake(host, &other.to_string()),
    }
}

fn handshake(host: &Host, why: &str) -> Error {
    Error::new(Code::TlsHandshake, format!("the TLS handshake with {} failed: {why}", host.endpoint))
}

fn shut_out(host: &Host) -> Error {
    let text =
        format!("{} does not let this address in for now: authentication from it failed too often", host.endpoint);
    Error::new(Code::TooMany, text).with_hint(
        "wait until that has run down; whoever runs the server sees in its log what failed, and can name the address in \
         `penalty_exempt`",
    )
}

fn not_http(host: &Host) -> Error {
    Error::new(Code::NotTstunnel, format!("{} does not speak http/1.1 over TLS", host.endpoint))
}

fn version_hint(host: &Host) -> &'static str {
    match host.min_tls {
        MinTls::V1_3 => "ask whoever runs the endpoint for TLS 1.3, or allow the older with `min_tls = \"1.2\"`",
        MinTls::V1_2 => "ask whoever runs the endpoint for TLS 1.3",
    }
}

/// Why the server's certificate was not taken.
fn classify_certificate(why: &CertificateError, host: &Host) -> Error {
    let name = &host.endpoint.host;
    let certificate = |code: Code, what: &str| Error::new(code, format!("{name}'s certificate {what}"));
    let at = |time: &UnixTime| date(i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
    match why {
        CertificateError::NotValidForNameContext { presented, .. } => {
            let error = certificate(Code::TlsName, &format!("is for {}, not {}", names(presented), host.server_name));
            match sni_hint(presented, host) {
                Some(hint) => error.with_hint(hint),
                None => error,
            }
        }
        CertificateError::NotValidForName => certificate(Code::TlsName, &format!("is not for {}", host.server_name)),
        CertificateError::ExpiredContext { not_after, .. } => {
            certificate(Code::TlsExpired, &format!("expired at {}", at(not_after)))
        }
        CertificateError::Expired => certificate(Code::TlsExpired, "has expired"),
        CertificateError::NotValidYetContext { not_before, .. } => {
            certificate(Code::TlsExpired, &format!("is not valid before {}", at(not_before)))
        }
        CertificateError::NotValidYet => certificate(Code::TlsExpired, "is not valid yet"),
        CertificateError::UnknownIssuer => match &host.ca {
            Some(ca) => {
                certificate(Code::TlsUntrusted, &format!("is signed by an authority that is not in {}", ca.display()))
            }
            None => certificate(Code::TlsUntrusted, "is signed by an authority that this system does not trust"),
        },
        CertificateError::BadSignature => {
            certificate(Code::TlsUntrusted, "is not signed by the authority that it names")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            certificate(Code::TlsUntrusted, "is not one for a server")
                .with_hint("ask whoever runs the endpoint for a certificate with the extended key usage serverAuth")
        }
        other if is_webpkis(other, "CaUsedAsEndEntity") => {
            certificate(Code::TlsUntrusted, "is an authority's own, not one for a server")
                .with_hint("ask whoever runs the endpoint for a certificate that is not an authority (CA:FALSE)")
        }
        other if is_of_another_version(other) => certificate(Code::TlsUntrusted, "is not of version 3 of X.509")
            .with_hint("ask whoever runs the endpoint for a certificate with alternative names, which make it one"),
        other => certificate(Code::TlsUntrusted, &format!("cannot be verified: {other}")),
    }
}

/// Whether a certificate is of a version before 3, as those are that `openssl x509 -req` makes where it is given no extension.
pub(super) fn is_of_another_version(why: &CertificateError) -> bool {
    is_webpkis(why, "UnsupportedCertVersion")
}

/// rustls hands on webpki's own errors here, whose type is not part of its interface.
fn is_webpkis(why: &CertificateError, name: &str) -> bool {
    matches!(why, CertificateError::Other(other) if other.to_string().contains(name))
}

/// Which `sni` the certificate would be right for, where its authority was chosen for this endpoint: of the system's, anybody has
/// a certificate, and following its names would lead to whoever stands in between.
fn sni_hint(presented: &[String], host: &Host) -> Option<String> {
    host.ca.as_ref()?;
    let id = host.host_id.as_str();
    let (mut of_host, mut others) = (Vec::new(), Vec::new());
    for name in presented.iter().filter_map(|name| name.strip_prefix("DnsName(\"")?.strip_suffix("\")")) {
        let name = match name.strip_prefix("*.") {
            // It stands for one label, before two at least.
            Some(rest) if !id.contains('.') && rest.contains('.') => format!("{id}.{rest}"),
            _ => name.to_owned(),
        };
        // What a peer writes is shown only where it can be a server name: letters, digits, hyphens and dots.
        let Ok(name) = value::server_name(&name) else { continue };
        let is_hosts = name.strip_prefix(id).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        if is_hosts { of_host.push(name) } else { others.push(name) }
    }
    // By another's name another host may be reached.
    let (names, condition) = if of_host.is_empty() { (others, " if that is this host's name") } else { (of_host, "") };
    let list = names.into_iter().take(MAX_NAMES).reduce(|list, name| format!("{list} or {name}"))?;
    Some(format!(
        "set `sni` to {list}{condition}, or ask whoever runs the endpoint for a certificate for {}",
        host.server_name
    ))
}

/// The names of a certificate, as rustls presents them: `DnsName("a.example.org")`, `IpAddress(10.0.0.1)`.
pub(super) fn names(presented: &[String]) -> String {
    if presented.is_empty() {
        return "no name at all".to_owned();
    }
    let bare = |name: &String| {
        let inside = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
        inside.trim_matches('"').to_owned()
    };
    let mut list = presented.iter().take(MAX_NAMES).map(bare).collect::<Vec<_>>().join(", ");
    if presented.len() > MAX_NAMES {
        list.push_str(&format!(" and {} more", presented.len() - MAX_NAMES));
    }
    list
}

/// What the server meant by an alert.
fn classify_alert(alert: AlertDescription, host: &Host) -> Error {
    let name = &host.endpoint.host;
    let cert = host.cert.display();
    let hint = match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "check that `cert` and `key` are those of the endpoint: its authorities did not fit the certificate"
        }
        AlertDescription::UnknownCA => {
            "the server does not know the authority that signed it, or cannot tell whether it was revoked: use a certificate of the endpoint's own authority, or ask whoever runs it about its revocation lists"
        }
        AlertDescription::DecryptError => {
            "an authority of the server's, or one of its revocation lists, has the name of the one that signed it, but another key: ask whoever runs the endpoint for a certificate of its own authority, and about authorities of one name"
        }
        AlertDescription::CertificateRevoked => REVOKED_HINT,
        AlertDescription::CertificateExpired => {
            "it is not valid by the server's clock: get a new certificate, and check the clocks"
        }
        AlertDescription::UnsupportedCertificate => {
            "it is not one for a client: its extended key usage must have clientAuth"
        }
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
            Code::ClientCert.default_hint()
        }
        AlertDescription::UnrecognisedName => {
            return Error::new(Code::HostUnknown, format!("{name} serves no host named {}", host.server_name))
                .with_hint("check the host's name and `sni`");
        }
        AlertDescription::NoApplicationProtocol => return not_http(host),
        AlertDescription::ProtocolVersion => {
            return handshake(host, "the server refused the TLS version (alert protocol_version)")
                .with_hint(version_hint(host));
        }
        other => return handshake(host, &format!("the server sent the alert {}", alert_name(other))),
    };
    Error::new(Code::ClientCert, format!("{name} rejected the certificate {cert} (alert {})", alert_name(alert)))
        .with_hint(hint)
}

/// An alert's name as in RFC 8446 §6, which is what other programs' logs say.
fn alert_name(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CloseNotify => "close_notify".to_owned(),
        AlertDescription::UnknownCA => "unknown_ca".to_owned(),
        AlertDescription::UnrecognisedName => "unrecognized_name".to_owned(),
        AlertDescription::UnknownPSKIdentity => "unknown_psk_identity".to_owned(),
        AlertDescription::Unknown(number) => format!("number {number}"),
        // The rest are the same words, written together.
        other => {
            let mut name = String::new();
            for character in format!("{other:?}").chars() {
                if character.is_ascii_uppercase() && !name.is_empty() {
                    name.push('_');
                }
                name.push(character.to_ascii_lowercase());
            }
            name
        }
    }
}
