//! The earlier server's side of a succession: its socket in the run folder, and what is asked of it there. Only processes of its own
//! account are listened to. What concerns the whole server is passed on to [`life`](crate::server::life); a resume is answered here.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use rustls_pki_types::CertificateDer;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::Sockets;
use super::wire::{Answer, Ask, Line, Resume};
use crate::error::{Code, Error, Result, printable};
use crate::server::Shared;
use crate::server::descriptors::Shortage;
use crate::server::handshake::Peer;
use crate::server::refusal::Refusal;
use crate::server::routes::{self, Claim};

/// Orders that wait for the server.
const ORDERS: usize = 8;

/// What another process of this account wants of the server.
#[derive(Debug)]
pub enum Order {
    /// Copies of its sockets.
    Sockets(oneshot::Sender<Sockets>),
    /// To leave accepting to `process`.
    Retire {
        /// The successor, where it is known.
        process: Option<i32>,
        /// Told when that is done.
        done: oneshot::Sender<()>,
    },
    /// To read its files again.
    Reload(oneshot::Sender<Result<()>>),
    /// To drain and end.
    Stop,
    /// To end at once.
    Kill,
}

/// The socket of a server that can be replaced; it is removed when this is dropped.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    orders: mpsc::Receiver<Order>,
}

impl Control {
    /// Listens at `path`.
    ///
    /// # Errors
    /// Where that is not possible.
    pub fn open(path: PathBuf, shared: &Arc<Shared>) -> io::Result<Control> {
        let listener = UnixListener::bind(&path)?;
        let (sender, orders) = mpsc::channel(ORDERS);
        tokio::spawn(listen(listener, shared.clone(), sender));
        Ok(Control { path, orders })
    }

    /// The next order. Cancel-safe.
    pub async fn next(&mut self) -> Order {
        match self.orders.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn listen(listener: UnixListener, shared: Arc<Shared>, orders: mpsc::Sender<Order>) {
    let mut shortage = Shortage::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                shortage.wait("the control socket", &error).await;
                continue;
            }
        };
        let line = match Line::new(stream) {
            Ok(line) => line,
            Err(error) => {
                tracing::warn!(%error, "somebody else has come to the control socket");
                continue;
            }
        };
        let (shared, orders) = (shared.clone(), orders.clone());
        tokio::spawn(async move {
            if let Err(error) = attend(line, shared, orders).await
                && error.kind() != io::ErrorKind::UnexpectedEof
            {
                tracing::warn!(%error, "a process at the control socket is not understood");
            }
        });
    }
}

async fn attend(mut line: Line, shared: Arc<Shared>, orders: mpsc::Sender<Order>) -> io::Result<()> {
    let gone = || io::Error::from(io::ErrorKind::UnexpectedEof);
    loop {
        match line.receive().await? {
            Ask::Sockets => {
                let (reply, answer) = oneshot::channel();
                orders.send(Order::Sockets(reply)).await.map_err(|_| gone())?;
                let Sockets { listening, is_given, monitoring } = answer.await.map_err(|_| gone())?;
                let addresses = listening.iter().map(|given| given.address).collect();
                let monitors = monitoring.iter().map(|given| given.address).collect();
                let sockets: Vec<_> = listening.into_iter().chain(monitoring).map(|given| given.socket).collect();
                line.send_with(&Answer::Sockets { addresses, is_given, monitors }, &sockets).await?;
            }
            Ask::Retire => {
                let (done, answer) = oneshot::channel();
                // A server that has nothing else to do ends then, but not before it has said so.
                let working = shared.admission.working();
                orders.send(Order::Retire { process: line.process(), done }).await.map_err(|_| gone())?;
                answer.await.map_err(|_| gone())?;
                line.send(&Answer::Done).await?;
                drop(working);
            }
            Ask::Reload => {
                let (reply, answer) = oneshot::channel();
                orders.send(Order::Reload(reply)).await.map_err(|_| gone())?;
                let answer = match answer.await.map_err(|_| gone())? {
                    Ok(()) => Answer::Done,
                    Err(error) => refused(&error.into()),
                };
                line.send(&answer).await?;
            }
            Ask::Resume(resume) => match claim(&shared, resume).await {
                Ok(claim) => {
                    line.send(&Answer::Granted { received: claim.received() }).await?;
                    claim.attach(Box::new(line.into_stream()), Bytes::new()).await;
                    return Ok(());
                }
                Err(refusal) => line.send(&refused(&refusal)).await?,
            },
            ask @ (Ask::Stop | Ask::Kill) => {
                let order = if ask == Ask::Stop { Order::Stop } else { Order::Kill };
                orders.send(order).await.map_err(|_| gone())?;
                line.send(&Answer::Done).await?;
                // The line's end tells that of this process.
                line.ended().await;
                return Ok(());
            }
        }
    }
}

/// A client whose certificate another process has verified, and which this one asks about again as for any request.
async fn claim(shared: &Arc<Shared>, resume: Resume) -> std::result::Result<Claim, Refusal> {
    let Resume { token, received, address, server_name, chain } = resume;
    let decode = |text: String| BASE64.decode(text).map(CertificateDer::from);
    let chain = chain.into_iter().map(decode).collect::<std::result::Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| Error::new(Code::BadRequest, format!("no certificate: {error}")))?;
    let peer = Arc::new(Peer::handed_over(address, server_name, chain));
    let claim = routes::claim(shared, &peer, &token, received).await;
    if let Err(refusal) = &claim {
        tracing::debug!(peer = %address, reason = %printable(&refusal.error.to_string()), "handed-over resume refused");
    }
    claim
}

fn refused(refusal: &Refusal) -> Answer {
    let Refusal { status, error } = refusal;
    Answer::Refused {
        status: *status,
        code: error.code.to_string(),
        text: error.text.clone(),
        hint: error.hint.clone(),
    }
}
