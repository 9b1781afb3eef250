//! The server's side: its own certificate, the authorities of its clients, and revocation.
//!
//! Fails closed: no client is let in without a certificate that chains to `client_ca`, and with revocation lists configured
//! none whose chain is not covered by lists that are valid now.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

use crate::error::{Code, Error, Result};
use crate::tls::failure::REVOKED_HINT;
use crate::tls::signatures::remembering_algorithms;
use crate::tls::{ALPN, add_roots, date, pem, provider, seconds_since_1970, unusable_pair};

/// A fatal alert `unrecognized_name` (RFC 6066 §3) as the record that is sent before any key is agreed on: content type
/// alert, the legacy version, two bytes of payload (RFC 8446 §5.1 and §6).
pub const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// The same with `access_denied`, before anything is read: the source is shut out.
pub const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// How long a peer that was refused may still send before its connection is closed.
const LINGER: Duration = Duration::from_secs(1);
/// How many bytes it may, while nobody knows who it is.
const LINGER_BYTES: u64 = 256 << 10;
/// How many certificates a client may send besides its own: a path that is longer nobody has, and what may be asked of each other grows
/// with each.
const MAX_ISSUERS: usize = 4;
/// How many expired certificates and lists of one chain are looked behind.
const MAX_LOOKS_BACK: usize = 16;

/// Makes the server's configuration, for clients whose certificates `clients` verifies.
///
/// # Errors
/// `config`, with the file's name, where a file cannot be read, holds nothing that can be used, or is readable by others
/// though it is this account's private key.
pub fn server_config(cert: &Path, key: &Path, clients: Arc<dyn ClientCertVerifier>) -> Result<ServerConfig> {
    let provider = provider();
    let chain = pem::certificates(cert)?;
    let private_key = pem::private_key(key)?;
    let certified_key =
        CertifiedKey::from_der(chain, private_key, &provider).map_err(|error| unusable_pair(cert, key, &error))?;

    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Error::new(Code::Internal, format!("the TLS library refuses its own version: {error}")))?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(ForNamedHosts(Arc::new(certified_key))));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// Makes what verifies clients' certificates. With revocation lists every certificate of a chain below the anchor must be
/// covered by one that has not expired; without any, revocation is not checked.
///
/// # Errors
/// `config`, with the file's name, where a file cannot be read or holds nothing that can be used.
pub fn client_verifier(client_ca: &[PathBuf], crl: &[PathBuf]) -> Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for path in client_ca {
        add_roots(&mut roots, path)?;
    }
    if roots.is_empty() {
        return Err(Error::new(Code::Config, "no `client_ca` is configured")
            .with_hint("set `client_ca` to the files of the authorities that sign clients' certificates"));
    }
    let roots = Arc::new(roots);
    let mut lists = Vec::new();
    for path in crl {
        let in_file = pem::revocation_lists(path)?;
        // Each file by itself first: the library does not say which list it could not use.
        verifier(&roots, in_file.clone()).map_err(|why| {
            Error::new(Code::Config, format!("{}: the revocation list cannot be used: {why}", path.display()))
        })?;
        lists.extend(in_file);
    }
    verifier(&roots, lists)
        .map_err(|why| Error::new(Code::Config, format!("clients' certificates cannot be verified: {why}")))
}

/// Refuses revocation lists that have expired: nobody whom they cover could be let in.
///
/// # Errors
/// `config`, with the file's name and the date.
pub fn check_lists(crl: &[PathBuf], now: SystemTime) -> Result<()> {
    for path in crl {
        for list in pem::revocation_lists(path)? {
            if let Some(end) = next_update(&list).filter(|end| *end <= seconds_since_1970(now)) {
                let what = format!("{}: the revocation list expired at {}", path.display(), date(end));
                return Err(Error::new(Code::Config, what)
                    .with_hint("get a new list from the authority, and check this machine's clock"));
            }
        }
    }
    Ok(())
}

/// Verifies the chain of a client that was let in before, as a handshake would.
///
/// # Errors
/// `unauthorized`.
pub fn verify_again(clients: &dyn ClientCertVerifier, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<()> {
    match verify_at(clients, chain, unix_time(now)) {
        None => Ok(()),
        Some(error) => Err(distrusted(&error)),
    }
}

/// Whether the chain of a client that was let in before still holds. What has merely expired is asked about as of its last moment, so
/// that it hides nothing; only what no list tells, or one that has expired, is left open. Anything else ends it: a client chooses what
/// it sends besides its own certificate, and with that which of several reasons is found.
///
/// # Errors
/// `unauthorized`, with the reason.
pub fn check_standing(clients: &dyn ClientCertVerifier, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<()> {
    let (mut at, mut last) = (unix_time(now), None);
    for _ in 0..MAX_LOOKS_BACK {
        let Some(error) = verify_at(clients, chain, at) else { return Ok(()) };
        let earlier = match &error {
            rustls::Error::InvalidCertificate(why) => match why {
                CertificateError::ExpiredContext { not_after, .. } => not_after.as_secs(),
                CertificateError::ExpiredRevocationListContext { next_update, .. } => {
                    next_update.as_secs().saturating_sub(1)
                }
                CertificateError::UnknownRevocationStatus | CertificateError::ExpiredRevocationList => return Ok(()),
                _ => return Err(distrusted(&error)),
            },
            _ => return Err(distrusted(&error)),
        };
        if earlier >= at.as_secs() {
            return Err(distrusted(&error));
        }
        at = UnixTime::since_unix_epoch(Duration::from_secs(earlier));
        last = Some(error);
    }
    last.map_or(Ok(()), |error| Err(distrusted(&error)))
}

fn verify_at(clients: &dyn ClientCertVerifier, chain: &[CertificateDer<'_>], at: UnixTime) -> Option<rustls::Error> {
    match chain {
        [leaf, issuers @ ..] => clients.verify_client_cert(leaf, issuers, at).err(),
        [] => Some(rustls::Error::NoCertificatesPresented),
    }
}

fn unix_time(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn distrusted(error: &rustls::Error) -> Error {
    let text = match error {
        rustls::Error::InvalidCertificate(CertificateError::Revoked) => {
            return Error::new(Code::Unauthorized, "the client certificate was revoked").with_hint(REVOKED_HINT);
        }
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the client certificate's authority is no longer trusted".to_owned()
        }
        other => format!("the client certificate is no longer accepted: {other}"),
    };
    Error::new(Code::Unauthorized, text).with_hint("ask whoever runs the endpoint for a new certificate")
}

/// Until when the server's files are good, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// When the first certificate of the server's own chain expires.
    pub certificate: i64,
    /// When the first of the revocation lists does, where there is one.
    pub crl: Option<i64>,
}

/// Reads when the server's own certificate and the revocation lists expire.
///
/// # Errors
/// `config`, with the file's name, where a file cannot be read.
pub fn expiry(cert: &Path, crl: &[PathBuf]) -> Result<Expiry> {
    let ends = pem::certificates(cert)?;
    let ends = ends.iter().filter_map(|certificate| X509Certificate::from_der(certificate).ok());
    let ends = ends.map(|(_, certificate)| certificate.validity().not_after.timestamp());
    let mut next_updates = Vec::new();
    for path in crl {
        next_updates.extend(pem::revocation_lists(path)?.iter().filter_map(next_update));
    }
    Ok(Expiry { certificate: ends.min().unwrap_or(0), crl: next_updates.into_iter().min() })
}

/// When a revocation list expires, in seconds since 1970.
fn next_update(list: &CertificateRevocationListDer<'_>) -> Option<i64> {
    let (_, list) = CertificateRevocationList::from_der(list).ok()?;
    list.next_update().map(|time| time.timestamp())
}

/// The library's own defaults are the strict ones, and relied on: a certificate is required, the whole chain is checked, and
/// a status that no list tells is a refusal. Only an expired list would be taken by default.
fn verifier(
    roots: &Arc<RootCertStore>,
    lists: Vec<CertificateRevocationListDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::server::VerifierBuilderError> {
    let mut provider = Arc::unwrap_or_clone(provider());
    // The signature under the handshake itself is verified by what stands in `mapping`.
    provider.signature_verification_algorithms.all = remembering_algorithms();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::new(provider))
        .with_crls(lists)
        .enforce_revocation_expiration()
        .build()?;
    Ok(Arc::new(Bounded(verifier)))
}

/// The library's verifier with two bounds. It looks for a path through whatever certificates a client sends, in every order and before any
/// signature fits: of nine large ones for seconds, on a thread that serves others. And a list that cannot be used for a
/// certificate, as one of another key, leaves unknown whether that is revoked: by itself the library sends `handshake_failure` then,
/// which says nothing about the certificate.
#[derive(Debug)]
struct Bounded(Arc<dyn ClientCertVerifier>);

/// A client has sent more certificates than [`MAX_ISSUERS`] besides its own.
#[derive(Debug)]
struct TooManyIssuers;

impl fmt::Display for TooManyIssuers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the client sent more than {MAX_ISSUERS} certificates besides its own")
    }
}

impl std::error::Error for TooManyIssuers {}

impl ClientCertVerifier for Bounded {
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if issuers.len() > MAX_ISSUERS {
            return Err(CertificateError::Other(OtherError(Arc::new(TooManyIssuers))).into());
        }
        self.0.verify_client_cert(leaf, issuers, now).map_err(|error| match error {
            rustls::Error::InvalidCertRevocationList(why) => {
                tracing::debug!("a client certificate's revocation list cannot be used: {why:?}");
                CertificateError::UnknownRevocationStatus.into()
            }
            other => other,
        })
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The ClientHello has no server name in it.
#[derive(Debug)]
pub struct NoServerName;

impl fmt::Display for NoServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client sent no server name")
    }
}

impl std::error::Error for NoServerName {}

/// One certificate for every server name, and none for a client that sends no name.
#[derive(Debug)]
struct ForNamedHosts(Arc<CertifiedKey>);

impl ResolvesServerCert for ForNamedHosts {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        hello.server_name().map(|_| Arc::clone(&self.0))
    }
}

/// How far a handshake has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The whole ClientHello is here.
    Hello,
    /// It has failed, and the alert is sent. The connection lasts a moment longer, for the peer to read it.
    Failed,
}

/// Accepts one TLS connection, and says how far it has come. A ClientHello without a server name is answered with the alert `unrecognized_name`.
///
/// rustls has no way to choose that alert: where no certificate is found it sends `access_denied`, which is what a server that
/// does not accept through this function sends instead.
///
/// # Errors
/// Whatever ended the handshake, with a [`rustls::Error`] inside where TLS did. The alert is sent by then.
pub async fn accept<IO>(io: IO, config: Arc<ServerConfig>, reached: impl Fn(Stage)) -> io::Result<TlsStream<IO>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), io);
    let mut start = match (&mut acceptor).await {
        Ok(start) => start,
        Err(error) => {
            reached(Stage::Failed);
            if let Some(io) = acceptor.take_io() {
                linger(io, LINGER_BYTES).await;
            }
            return Err(error);
        }
    };
    reached(Stage::Hello);
    if start.client_hello().server_name().is_none() {
        start.io.write_all(&UNRECOGNIZED_NAME).await?;
        reached(Stage::Failed);
        linger(start.io, LINGER_BYTES).await;
        return Err(io::Error::new(io::ErrorKind::InvalidData, NoServerName));
    }
    match start.into_stream(config).into_fallible().await {
        Ok(stream) => Ok(stream),
        Err((error, io)) => {
            reached(Stage::Failed);
            linger(io, LINGER_BYTES).await;
            Err(error)
        }
    }
}

/// Ends this side's direction and reads for a moment what the peer still sends, at most `max_bytes`: closing over unread bytes
/// sends a reset, and a reset overtakes the alert or the answer before it.
pub async fn linger(mut io: impl AsyncRead + AsyncWrite + Unpin, max_bytes: u64) {
    let ending = async {
        io.shutdown().await?;
        tokio::io::copy(&mut io.take(max_bytes), &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(LINGER, ending).await;
}
