//! A framed session that carries no streams of this process's: a command's short output, its exit status, and round trips.
//! What a peer sends is bounded in bytes and in time.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::bridge::Connection;
use crate::client::session::{self, GOODBYE, Opened};
use crate::config::Host;
use crate::error::{Code, Error, Result};
use crate::protocol::frame::{self, Decoder, Frame, Kind, Role, encode};
use crate::protocol::session::Exit;

/// Most bytes of a command's output that are kept, and that it may have: a fraction of any window, so that nothing has to be
/// acknowledged on the way.
const MAX_OUTPUT_BYTES: usize = 32 << 10;
/// How many round trips are measured: the first also finds everything asleep.
const ROUND_TRIPS: u64 = 3;

/// A session.
pub(super) struct Talk<'a> {
    host: &'a Host,
    connection: Box<dyn Connection>,
    decoder: Decoder,
    /// Sequenced frames received.
    count: u64,
    /// What the command has written so far.
    pub(super) stdout: Vec<u8>,
    /// The same, to its stderr.
    pub(super) stderr: Vec<u8>,
    /// How it ended.
    pub(super) exit: Option<Exit>,
    pong: Option<Vec<u8>>,
}

impl<'a> Talk<'a> {
    /// The session that was `opened` to `host`.
    pub(super) fn new(opened: Opened, host: &'a Host) -> Talk<'a> {
        let (connection, leftover) = opened.into_connection();
        let mut decoder = Decoder::new(Role::Server);
        decoder.buffer().extend_from_slice(&leftover);
        Talk { host, connection, decoder, count: 0, stdout: Vec::new(), stderr: Vec::new(), exit: None, pong: None }
    }

    /// Sends one frame.
    pub(super) async fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        let sent = async {
            self.connection.write_all(&encode(kind, payload)).await?;
            self.connection.flush().await
        };
        match timeout(self.host.answer_timeout, sent).await {
            Ok(sent) => sent.map_err(|error| session::lost(self.host, Some(&error))),
            Err(_) => Err(self.silent()),
        }
    }

    /// Reads until `is_done`, or the command has ended.
    pub(super) async fn until(&mut self, is_done: impl Fn(&Talk<'_>) -> bool) -> Result<()> {
        let limit = self.host.answer_timeout;
        let reading = async {
            while !is_done(self) && self.exit.is_none() {
                self.read().await?;
            }
            Ok(())
        };
        match timeout(limit, reading).await {
            Ok(result) => result,
            Err(_) => Err(self.silent()),
        }
    }

    /// The shortest of a few round trips.
    pub(super) async fn round_trip(&mut self) -> Result<Duration> {
        let mut shortest = Duration::MAX;
        for number in 1..=ROUND_TRIPS {
            let question = number.to_be_bytes();
            let asked = Instant::now();
            self.send(Kind::Ping, &question).await?;
            let limit = self.host.answer_timeout;
            let answered = async {
                while self.pong.as_deref() != Some(&question[..]) {
                    self.read().await?;
                }
                Ok(())
            };
            match timeout(limit, answered).await {
                Ok(result) => result?,
                Err(_) => return Err(self.silent()),
            }
            shortest = shortest.min(asked.elapsed());
        }
        Ok(shortest)
    }

    /// Ends the session, and keeps nothing of it there. How that goes changes nothing any more.
    pub(super) async fn end(mut self) {
        let goodbye = async {
            match self.exit {
                Some(_) => self.send(Kind::Ack, &self.count.to_be_bytes()).await?,
                None => self.send(Kind::Close, &[]).await?,
            }
            let _ = self.connection.shutdown().await;
            let mut rest = vec![0; 4096];
            while matches!(self.connection.read(&mut rest).await, Ok(1..)) {}
            Ok::<(), Error>(())
        };
        let _ = timeout(GOODBYE, goodbye).await;
    }

    /// Reads once, and takes what has come.
    async fn read(&mut self) -> Result<()> {
        if let Some(frame) = self.decoder.next_frame().map_err(|error| self.violation(&error))? {
            return self.take(frame).await;
        }
        match self.connection.read_buf(self.decoder.buffer()).await {
            Ok(0) => Err(session::lost(self.host, None)),
            Ok(_) => Ok(()),
            Err(error) => Err(session::lost(self.host, Some(&error))),
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<()> {
        if frame.kind.is_sequenced() {
            self.count += 1;
        }
        match frame.kind {
            Kind::Stdout => self.stdout.extend_from_slice(&frame.payload),
            Kind::Stderr => self.stderr.extend_from_slice(&frame.payload),
            Kind::Exit => {
                let exit = Exit::decode(&frame.payload).ok_or_else(|| self.violation(&"an EXIT of no known kind"))?;
                self.exit = Some(exit);
            }
            Kind::Pong => self.pong = Some(frame.payload.to_vec()),
            Kind::Ping => self.send(Kind::Pong, &frame.payload).await?,
            Kind::Error => return Err(frame::error_of(&String::from_utf8_lossy(&frame.payload))),
            _ => {}
        }
        if self.stdout.len() + self.stderr.len() > MAX_OUTPUT_BYTES {
            return Err(self.violation(&"far more output than was asked for"));
        }
        Ok(())
    }

    fn violation(&self, what: &dyn std::fmt::Display) -> Error {
        Error::new(Code::Protocol, format!("{} sent {what}", self.host.endpoint.host))
    }

    fn silent(&self) -> Error {
        let late = io::Error::new(io::ErrorKind::TimedOut, "nothing was heard for too long");
        session::lost(self.host, Some(&late))
    }
}
