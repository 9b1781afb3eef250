//! What two servers of one configuration say to each other over a Unix socket: a length (4 bytes, big-endian) and that much JSON,
//! to and fro; descriptors come with the length (unix(7), `SCM_RIGHTS`). Behind a granted resume come the session's own bytes.
//!
//! Both sides make sure that the other is their own account (`SO_PEERCRED`). An older or a newer server may be at the other end: what
//! is not known of a message is passed over, and a message that is not known is an error, which costs this line only.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// Longest message: a certificate chain is most of it.
const MAX_BYTES: usize = 1 << 20;
/// Most descriptors in one message.
const MAX_DESCRIPTORS: usize = 64;

/// What a later server asks of an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum Ask {
    /// Its listening sockets.
    Sockets,
    /// To accept no more from them.
    Retire,
    /// To carry on one of its sessions over this line.
    Resume(Resume),
    /// To read its configuration again.
    Reload,
    /// To drain and to end; the line ends when the process does.
    Stop,
    /// To end at once, in the same way.
    Kill,
}

/// A client that wants to go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The session's `<id>.<secret>`.
    pub token: String,
    /// How many frames the client has received.
    pub received: u64,
    /// Where it comes from.
    pub address: SocketAddr,
    /// The SNI.
    pub server_name: String,
    /// Its certificates, DER in base64.
    pub chain: Vec<String>,
}

/// What the earlier one answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    /// A socket for each, in this order; none where it accepts no more.
    Sockets {
        /// What the listening ones were asked for by.
        addresses: Vec<SocketAddr>,
        /// Whether they are the service manager's.
        #[serde(default)]
        is_given: bool,
        /// The same of those of the monitor.
        #[serde(default)]
        monitors: Vec<SocketAddr>,
    },
    /// It is done, or being done.
    Done,
    /// The session goes on here.
    Granted {
        /// How many frames it has received.
        received: u64,
    },
    /// It does not.
    Refused {
        /// The HTTP status.
        status: u16,
        /// A code of the protocol's.
        code: String,
        /// What the client may know.
        text: String,
        /// What to do about it, beyond what the code says by itself.
        #[serde(default)]
        hint: Option<String>,
    },
}

/// A connection to another process of this account.
#[derive(Debug)]
pub struct Line {
    stream: UnixStream,
}

impl Line {
    /// Makes sure of who is at the other end.
    ///
    /// # Errors
    /// `PermissionDenied` where that is another account, be it root.
    pub fn new(stream: UnixStream) -> io::Result<Line> {
        let theirs = stream.peer_cred()?.uid();
        if theirs == rustix::process::geteuid().as_raw() {
            Ok(Line { stream })
        } else {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("uid {theirs} is at the other end")))
        }
    }

    /// The process at the other end, as it was when it connected or began to listen.
    pub fn process(&self) -> Option<i32> {
        self.stream.peer_cred().ok()?.pid()
    }

    /// What is behind the last message.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Sends a message.
    ///
    /// # Errors
    /// Those of the socket, and where it is too long.
    pub async fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        self.send_with(message, &[]).await
    }

    /// Sends a message, and descriptors with it.
    ///
    /// # Errors
    /// Those of the socket, and where it is too long or has too many.
    pub async fn send_with(&mut self, message: &impl Serialize, descriptors: &[OwnedFd]) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        if body.len() > MAX_BYTES || descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"));
        }
        let wire = [&(body.len() as u32).to_be_bytes()[..], &body].concat();
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            Ok(rustix::net::sendmsg(&self.stream, &[IoSlice::new(&wire)], &mut ancillary, SendFlags::NOSIGNAL)?)
        };
        let sent = self.stream.async_io(Interest::WRITABLE, send).await?;
        self.stream.write_all(wire.get(sent..).unwrap_or_default()).await
    }

    /// Receives a message; descriptors that come with it are closed.
    ///
    /// # Errors
    /// Those of the socket, `UnexpectedEof` where it has ended, and `InvalidData` where this is no such message.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        Ok(self.receive_with().await?.0)
    }

    /// Receives a message and what comes with it.
    ///
    /// # Errors
    /// Those of [`Line::receive`].
    pub async fn receive_with<T: DeserializeOwned>(&mut self) -> io::Result<(T, Vec<OwnedFd>)> {
        let mut length = [0; 4];
        let mut descriptors = Vec::new();
        let receive = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut length)];
            let received = rustix::net::recvmsg(&self.stream, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            Ok(received.bytes)
        };
        let received = self.stream.async_io(Interest::READABLE, receive).await?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.stream.read_exact(length.get_mut(received..).unwrap_or_default()).await?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"));
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok((serde_json::from_slice(&body)?, descriptors))
    }

    /// Waits until the other side has ended the line. Cancel-safe.
    pub async fn ended(&mut self) {
        let mut rest = [0; 64];
        while matches!(self.stream.read(&mut rest).await, Ok(count) if count > 0) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn pair() -> (Line, Line) {
        let (one, other) = UnixStream::pair().unwrap();
        (Line::new(one).unwrap(), Line::new(other).unwrap())
    }

    #[tokio::test]
    async fn message_and_its_descriptors_arrive_together_and_the_bytes_behind_them_are_left() {
        let (mut one, mut other) = pair();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 7));
        let answer = Answer::Sockets { addresses: vec![address], is_given: false, monitors: vec![] };
        one.send_with(&answer, &[writer.into()]).await.unwrap();
        one.send(&Answer::Granted { received: 7 }).await.unwrap();
        let mut stream = one.into_stream();
        stream.write_all(b"the session").await.unwrap();
        drop(stream);

        let (received, descriptors): (Answer, _) = other.receive_with().await.unwrap();
        assert_eq!((received, descriptors.len()), (answer, 1));
        for descriptor in descriptors {
            std::fs::File::from(descriptor).write_all(b"written").unwrap();
        }
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "written", "no copy of the pipe's end is left open");
        assert_eq!(other.receive::<Answer>().await.unwrap(), Answer::Granted { received: 7 });
        let mut rest = String::new();
        other.into_stream().read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "the session");
    }

    #[tokio::test]
    async fn what_is_no_message_is_an_error() {
        for wire in [&b"\0\0\0\x04nope"[..], b"\xff\xff\xff\xff", b"\0\0", b"\0\0\0\x0f{\"ask\":\"other\"}", b""] {
            let (one, mut other) = pair();
            let mut stream = one.into_stream();
            stream.write_all(wire).await.unwrap();
            drop(stream);
            assert!(other.receive::<Ask>().await.is_err(), "{wire:?}");
        }
    }
}
