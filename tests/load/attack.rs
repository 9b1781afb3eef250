//! Strangers: thousands of connections that are never more than begun, and hundreds a second that fail to authenticate. What
//! they cost this machine beside the server is kept small, and measured: elsewhere they have machines of their own.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

use crate::support::pki::Authority;
use crate::support::wait::let_pass;
use crate::support_net::site::{PRINCIPAL, SERVER_NAME};

/// How many connections are held that are only begun.
pub(crate) const HALF_OPEN: usize = 2000;
/// How many of those that the server closes are begun again, a second.
const REOPENED: usize = 500;
/// How often it is looked for them.
const SWEEP: Duration = Duration::from_millis(100);
/// How many fail to authenticate, a second.
pub(crate) const FAILING: u32 = 200;
/// Who shares the work of each kind.
const THREADS: u32 = 4;
/// Nobody waits longer for a server.
const PATIENCE: Duration = Duration::from_secs(5);

/// An attack that lasts until it is ended.
pub(crate) struct Attack {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    /// Each ends with the processor time that it took.
    threads: Vec<JoinHandle<Duration>>,
}

#[derive(Debug, Default)]
struct Counts {
    open: AtomicU64,
    begun: AtomicU64,
    failed: AtomicU64,
}

/// What an attack has done.
#[derive(Debug)]
pub(crate) struct Done {
    /// How many connections were begun and left.
    pub(crate) begun: u64,
    /// How many failed to authenticate.
    pub(crate) failed: u64,
    /// What all of it cost beside the server.
    pub(crate) processor_time: Duration,
}

/// What one thread of it does until it is told to stop.
type Work = Box<dyn FnOnce(&AtomicBool, &Counts) + Send>;

impl Attack {
    pub(crate) fn begin(address: SocketAddr) -> Attack {
        let (stop, counts) = (Arc::<AtomicBool>::default(), Arc::<Counts>::default());
        let mut threads = Vec::new();
        let mut spawn = |work: Work| {
            let (stop, counts) = (stop.clone(), counts.clone());
            threads.push(thread::spawn(move || {
                work(&stop, &counts);
                let time = clock_gettime(ClockId::ThreadCPUTime);
                Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
            }));
        };
        let hello = hello();
        for _ in 0..THREADS {
            let hello = hello.clone();
            spawn(Box::new(move |stop, counts| hold(address, &hello, stop, counts)));
        }
        let strangers = [Stranger::NotTls, Stranger::without_certificate(), Stranger::of_another_authority()];
        for number in 0..THREADS {
            let strangers = strangers.clone();
            spawn(Box::new(move |stop, counts| fail(address, &strangers, number, stop, counts)));
        }
        Attack { stop, counts, threads }
    }

    /// How many connections are begun and not yet closed.
    pub(crate) fn open(&self) -> u64 {
        self.counts.open.load(Ordering::Relaxed)
    }

    pub(crate) fn end(self) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        let processor_time = self.threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        let [begun, failed] = [&self.counts.begun, &self.counts.failed].map(|count| count.load(Ordering::Relaxed));
        Done { begun, failed, processor_time }
    }
}

/// Holds connections that say nothing, or half a ClientHello.
fn hold(address: SocketAddr, hello: &[u8], stop: &AtomicBool, counts: &Counts) {
    let mut held: Vec<TcpStream> = Vec::new();
    let mut next = Instant::now();
    let (most, mut allowed, mut known) = (HALF_OPEN / THREADS as usize, usize::MAX, 0);
    while !stop.load(Ordering::Relaxed) {
        held.retain_mut(|stream| stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
        for number in 0..(most - held.len()).min(allowed) {
            let Ok(mut stream) = TcpStream::connect_timeout(&address, PATIENCE) else { break };
            if number % 2 == 0 {
                let _ = stream.write_all(hello.split_at(hello.len() / 2).0);
            }
            stream.set_nonblocking(true).unwrap();
            held.push(stream);
            counts.begun.fetch_add(1, Ordering::Relaxed);
        }
        counts.open.fetch_add(held.len() as u64, Ordering::Relaxed);
        counts.open.fetch_sub(known, Ordering::Relaxed);
        known = held.len() as u64;
        allowed = REOPENED / THREADS as usize * SWEEP.as_millis() as usize / 1000;
        next += SWEEP;
        let_pass(next.saturating_duration_since(Instant::now()));
    }
}

/// Connects again and again, at a fixed rate, and fails.
fn fail(address: SocketAddr, strangers: &[Stranger], number: u32, stop: &AtomicBool, counts: &Counts) {
    let interval = Duration::from_secs(1) / FAILING;
    let mut next = Instant::now() + interval * number;
    let mut kinds = strangers.iter().cycle();
    while !stop.load(Ordering::Relaxed) {
        let_pass(next.saturating_duration_since(Instant::now()));
        next += interval * THREADS;
        if let (Some(stranger), Ok(stream)) = (kinds.next(), TcpStream::connect_timeout(&address, PATIENCE)) {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stranger.call(stream);
            counts.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Somebody whom the server lets in never.
#[derive(Clone)]
enum Stranger {
    NotTls,
    Tls(Arc<ClientConfig>),
}

impl Stranger {
    fn without_certificate() -> Stranger {
        Stranger::Tls(Arc::new(anyones().with_no_client_auth()))
    }

    fn of_another_authority() -> Stranger {
        let identity = Authority::new("an authority that nobody knows").client(PRINCIPAL);
        let chain = vec![CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        Stranger::Tls(Arc::new(anyones().with_client_auth_cert(chain, key).unwrap()))
    }

    /// Says what it has to say, until the server hangs up.
    fn call(&self, mut stream: TcpStream) {
        match self {
            Stranger::NotTls => {
                let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").and_then(|()| stream.read_to_end(&mut Vec::new()));
            }
            Stranger::Tls(config) => {
                let name = ServerName::try_from(SERVER_NAME).unwrap();
                let mut connection = ClientConnection::new(config.clone(), name).unwrap();
                // The server's alert ends it, unless the server has hung up before.
                while connection.complete_io(&mut stream).is_ok_and(|(read, written)| read + written > 0) {}
            }
        }
    }
}

/// A client that takes any server's certificate: what it checks would only cost this machine time.
fn anyones() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
}

fn hello() -> Vec<u8> {
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let mut connection = ClientConnection::new(Arc::new(anyones().with_no_client_auth()), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
