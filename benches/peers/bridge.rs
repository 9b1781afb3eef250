//! The least that joins two pipes over a network, as the limit of what tstunnel could be: the same runtime, cryptography and
//! mutual TLS 1.3, without HTTP, frames, policy, resuming, stderr or exit status. And the same without TLS, as the limit
//! of what anybody could be.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::Poll;

use rustix::pipe::fcntl_setpipe_size;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::servers::SERVER_NAME;

/// What a pipe holds.
const PIPE_BYTES: usize = 256 << 10;
/// What a read takes at most, and rustls to send at once: with more, sending took nearly twice the processor time when it
/// was tried, and with less it took no less.
const BLOCK_BYTES: usize = 128 << 10;
/// What is read ahead of rustls, which by itself asks the kernel for 4 KiB at a time.
const AHEAD_BYTES: usize = 256 << 10;

/// Listens on a loopback port for ever. Every connection gets a process of `words`, or is ended where there are none. Without a
/// folder of certificates there is no TLS. `kept_bytes`: see [`copy`].
pub(crate) fn serve(folder: Option<&Path>, port: u16, kept_bytes: usize, words: &[&str]) {
    runtime().block_on(async {
        let acceptor = folder.map(|folder| TlsAcceptor::from(Arc::new(server_config(folder))));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            let command = words.split_first().map(|(program, words)| {
                let mut command = Command::new(program);
                command.args(words);
                command
            });
            // One that comes and goes without a word has only looked whether somebody listens.
            tokio::spawn(async move {
                tcp.set_nodelay(true)?;
                match (acceptor, command) {
                    (None, None) => Ok(()),
                    (None, Some(command)) => attend(tcp, command, kept_bytes).await,
                    (Some(acceptor), None) => acceptor.accept(tcp).await?.shutdown().await,
                    (Some(acceptor), Some(command)) => {
                        attend(tuned(acceptor.accept(ahead(tcp)).await?.into()), command, kept_bytes).await
                    }
                }
            });
        }
    });
}

/// Joins this process's stdin and stdout to a server's, and sends `first` before all else.
pub(crate) fn connect(folder: Option<&Path>, address: SocketAddr, kept_bytes: usize, first: &str) {
    let result: io::Result<()> = runtime().block_on(async {
        let stdin = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
        let stdout = pipe::Sender::from_owned_fd(io::stdout().as_fd().try_clone_to_owned()?)?;
        let mut tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        match folder {
            None => {
                tcp.write_all(first.as_bytes()).await?;
                join(tcp, stdin, stdout, kept_bytes).await
            }
            Some(folder) => {
                let connector = TlsConnector::from(Arc::new(client_config(folder)));
                let name = ServerName::try_from(SERVER_NAME).unwrap();
                let mut tls = tuned(connector.connect(name, ahead(tcp)).await?.into());
                tls.write_all(first.as_bytes()).await?;
                join(tls, stdin, stdout, kept_bytes).await
            }
        }
    });
    result.unwrap();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn attend(connection: impl AsyncRead + AsyncWrite, mut command: Command, kept_bytes: usize) -> io::Result<()> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    join(connection, child.stdout.take().unwrap(), child.stdin.take().unwrap(), kept_bytes).await?;
    child.wait().await?;
    Ok(())
}

/// Copies both ways until the connection's other end has ended and everything of ours is sent.
async fn join(
    connection: impl AsyncRead + AsyncWrite,
    mut source: impl AsyncRead + AsFd + Unpin,
    sink: impl AsyncWrite + AsFd + Unpin,
    kept_bytes: usize,
) -> io::Result<()> {
    let _ = fcntl_setpipe_size(&source, PIPE_BYTES);
    let _ = fcntl_setpipe_size(&sink, PIPE_BYTES);
    let (mut from_peer, mut to_peer) = tokio::io::split(connection);
    let out = async {
        copy(&mut source, &mut to_peer, kept_bytes).await?;
        to_peer.shutdown().await
    };
    let back = async move {
        let mut sink = sink;
        copy(&mut from_peer, &mut sink, 0).await
    };
    tokio::try_join!(out, back).map(|_| ())
}

/// Copies to the end. What was read stays where it is until `kept_bytes` of memory behind it have been used, as whoever might have to
/// send it again must have it.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    kept_bytes: usize,
) -> io::Result<()> {
    let mut memory = vec![0; kept_bytes.next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES)];
    loop {
        for block in memory.chunks_mut(BLOCK_BYTES) {
            let count = read_ready(from, block).await?;
            if count == 0 {
                return Ok(());
            }
            to.write_all(&block[..count]).await?;
            to.flush().await?;
        }
    }
}

/// Reads what there is, be it in several pieces, as far as the block takes it: TLS gives one record at a time.
async fn read_ready(from: &mut (impl AsyncRead + Unpin), block: &mut [u8]) -> io::Result<usize> {
    let mut block = ReadBuf::new(block);
    poll_fn(|context| {
        loop {
            let before = block.filled().len();
            match Pin::new(&mut *from).poll_read(context, &mut block) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if before == 0 => return Poll::Pending,
                Poll::Ready(Ok(())) if block.filled().len() > before && block.remaining() > 0 => {}
                _ => return Poll::Ready(Ok(block.filled().len())),
            }
        }
    })
    .await
}

fn ahead(tcp: TcpStream) -> BufReader<TcpStream> {
    BufReader::with_capacity(AHEAD_BYTES, tcp)
}

fn tuned(mut stream: TlsStream<BufReader<TcpStream>>) -> TlsStream<BufReader<TcpStream>> {
    match &mut stream {
        TlsStream::Client(stream) => stream.get_mut().1.set_buffer_limit(Some(BLOCK_BYTES)),
        TlsStream::Server(stream) => stream.get_mut().1.set_buffer_limit(Some(BLOCK_BYTES)),
    }
    stream
}

fn server_config(folder: &Path) -> ServerConfig {
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(folder)), provider.clone()).build();
    let (chain, key) = identity(folder, "server");
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]).unwrap();
    let mut config = builder.with_client_cert_verifier(verifier.unwrap()).with_single_cert(chain, key).unwrap();
    config.send_tls13_tickets = 0;
    config
}

fn client_config(folder: &Path) -> ClientConfig {
    let (chain, key) = identity(folder, "client");
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_protocol_versions(&[&TLS13]).unwrap().with_root_certificates(roots(folder));
    builder.with_client_auth_cert(chain, key).unwrap()
}

fn roots(folder: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.crt")).unwrap()).unwrap();
    roots
}

fn identity(folder: &Path, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_file(folder.join(format!("{name}.crt"))).unwrap();
    (vec![certificate], PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key"))).unwrap())
}
