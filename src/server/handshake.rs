//! An accepted TCP connection → an authenticated TLS stream and who is at its other end.
//!
//! Fails closed: without SNI, without a certificate, or with one that does not verify, the connection ends here, with
//! the alert that says why.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use rustls::CertificateError;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::bridge::Connection;
use crate::error::{Code, Error, Result};
use crate::protocol::Principal;
use crate::protocol::frame::FRAME_BYTES;
use crate::server::policy::Asker;
use crate::server::principal::principal;
use crate::server::proxy_protocol::Fault;
use crate::server::read_ahead::ReadAhead;
use crate::server::state::State;
use crate::tls;

/// A TLS stream after its handshake.
pub type Stream = TlsStream<ReadAhead>;

impl Connection for Stream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.get_ref().0.tcp())
    }
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The address that the connection comes from.
    pub address: SocketAddr,
    /// The SNI, in lower case.
    pub server_name: String,
    /// Who the certificate names, or why it names nobody.
    pub principal: Result<Principal>,
    /// The certificates that it showed, its own first.
    pub chain: Vec<CertificateDer<'static>>,
    /// What the chain was verified by.
    pub verified_by: Weak<State>,
    /// How long the handshake's one round trip took, this side's work for it included.
    pub round_trip: Duration,
}

impl Peer {
    /// The policy's question about this peer as `principal`.
    pub fn asker(&self, principal: Principal) -> Asker {
        Asker { principal, source: self.address.ip(), now: SystemTime::now(), authorized: None }
    }

    /// A client whose handshake was with another process: it counts for nothing until it is verified again.
    pub fn handed_over(address: SocketAddr, server_name: String, chain: Vec<CertificateDer<'static>>) -> Peer {
        let principal = Err(Error::new(Code::Unauthorized, "the client was not verified here"));
        Peer { address, server_name, principal, chain, verified_by: Weak::new(), round_trip: Duration::ZERO }
    }

    #[cfg(test)]
    pub(crate) fn for_tests(name: &str) -> Peer {
        Peer {
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            server_name: "host123.example.net".to_owned(),
            principal: Ok(Principal(name.to_owned())),
            chain: Vec::new(),
            verified_by: Weak::new(),
            round_trip: Duration::ZERO,
        }
    }
}

/// Why a peer was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It sent no server name.
    NoServerName,
    /// It sent no certificate.
    NoCertificate,
    /// Its certificate is of no authority that counts here.
    Untrusted,
    /// Its certificate is not valid now.
    Expired,
    /// Its certificate is revoked.
    Revoked,
    /// Whether its certificate is revoked cannot be told: the lists do not cover it, or are out of date.
    RevocationUnknown,
    /// Its certificate is of no use for another reason.
    BadCertificate,
    /// It does not speak TLS 1.3 as this server does, or does not speak TLS.
    Protocol,
    /// It was gone before the end.
    Closed,
    /// It took too long.
    Slow,
}

impl Failure {
    /// Every one of them.
    pub const ALL: &'static [Failure] = &[
        Failure::NoServerName,
        Failure::NoCertificate,
        Failure::Untrusted,
        Failure::Expired,
        Failure::Revoked,
        Failure::RevocationUnknown,
        Failure::BadCertificate,
        Failure::Protocol,
        Failure::Closed,
        Failure::Slow,
    ];

    /// Its name in the audit log and the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Failure::NoServerName => "no-server-name",
            Failure::NoCertificate => "no-certificate",
            Failure::Untrusted => "untrusted",
            Failure::Expired => "expired",
            Failure::Revoked => "revoked",
            Failure::RevocationUnknown => "revocation-unknown",
            Failure::BadCertificate => "bad-certificate",
            Failure::Protocol => "protocol",
            Failure::Closed => "closed",
            Failure::Slow => "slow",
        }
    }

    /// What an error of [`accept`] means.
    pub fn of(error: &io::Error) -> Failure {
        let inner = error.get_ref();
        if inner.is_some_and(|inner| inner.is::<tls::NoServerName>()) {
            return Failure::NoServerName;
        }
        if inner.is_some_and(|inner| inner.is::<Fault>()) {
            return Failure::Protocol;
        }
        match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::NoCertificatesPresented) => Failure::NoCertificate,
            Some(rustls::Error::InvalidCertificate(why)) => match why {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Failure::Untrusted,
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Failure::Expired,
                CertificateError::Revoked => Failure::Revoked,
                CertificateError::UnknownRevocationStatus
                | CertificateError::ExpiredRevocationList
                | CertificateError::ExpiredRevocationListContext { .. } => Failure::RevocationUnknown,
                _ => Failure::BadCertificate,
            },
            Some(_) => Failure::Protocol,
            None => Failure::Closed,
        }
    }
}

/// Authenticates the peer of a connection by `state`, and says how far it has come.
///
/// # Errors
/// Those of the handshake, for the log; the peer has its alert.
pub async fn accept(
    connection: ReadAhead,
    address: SocketAddr,
    state: &Arc<State>,
    reached: impl Fn(tls::Stage),
) -> io::Result<(Stream, Peer)> {
    let greeted = OnceLock::new();
    let reached = |stage| {
        if stage == tls::Stage::Hello {
            let _ = greeted.set(Instant::now());
        }
        reached(stage);
    };
    let mut stream = tls::accept(connection, state.tls.clone(), reached).await?;
    let round_trip = greeted.get().map_or(Duration::ZERO, Instant::elapsed);
    stream.get_mut().0.begin();
    stream.get_mut().1.set_buffer_limit(Some(FRAME_BYTES));
    let server_name = stream.get_ref().1.server_name().unwrap_or_default().to_ascii_lowercase();
    let chain: Vec<_> =
        stream.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
    let principal = principal_of(&chain, state);
    Ok((stream, Peer { address, server_name, principal, chain, verified_by: Arc::downgrade(state), round_trip }))
}

/// Who the first certificate of a chain names, as `state` has it.
///
/// # Errors
/// `unauthorized` where it names nobody.
pub fn principal_of(chain: &[CertificateDer<'_>], state: &State) -> Result<Principal> {
    match chain.first() {
        Some(leaf) => principal(leaf, state.config.allow_cn),
        None => Err(Error::new(Code::Unauthorized, "there is no client certificate")),
    }
}
