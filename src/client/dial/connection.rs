//! An authenticated connection on which one HTTP/1.1 request is made: its answer, and why there is none.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rustls::{ClientConnection, ProtocolVersion};
use tokio::io::AsyncReadExt;

use super::{Dialler, Stream, reason, send};
use crate::error::{Code, Error, Result, printable};
use crate::protocol::head::Response;
use crate::protocol::{HEADER_GRACE, MAX_PROBLEM_BYTES};

/// The status of an answer to what came too late (RFC 9110 §15.5.9).
const REQUEST_TIMEOUT: u16 = 408;

/// An authenticated connection on which a request is made.
#[derive(Debug)]
pub struct Connection {
    pub(super) stream: Stream,
    pub(super) buffer: BytesMut,
    pub(super) round_trip: Duration,
    pub(super) dialler: Dialler,
}

impl Connection {
    /// Sends a request's head, or a part of its body.
    ///
    /// # Errors
    /// What the server said if it closed (`client-cert`), else `network-lost`.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match send::send(&mut self.stream, &mut self.buffer, bytes).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failure_behind(error).await),
        }
    }

    /// A failed write may have left the peer's reason unread.
    async fn failure_behind(&mut self, error: io::Error) -> Error {
        let waited = tokio::time::timeout(Duration::from_secs(1), self.stream.read_buf(&mut self.buffer)).await;
        match waited {
            Ok(Err(reason)) if reason.kind() == io::ErrorKind::InvalidData => self.read_error(&reason),
            _ => self.read_error(&error),
        }
    }

    fn read_error(&self, error: &io::Error) -> Error {
        let endpoint = &self.dialler.host.endpoint.host;
        match error.kind() {
            io::ErrorKind::InvalidData => self.dialler.tls_error(error),
            io::ErrorKind::UnexpectedEof => {
                Error::new(Code::NetworkLost, format!("the connection to {endpoint} was cut before the answer"))
            }
            _ => Error::new(
                Code::NetworkLost,
                format!("the connection to {endpoint} broke before the answer: {}", reason(error)),
            ),
        }
    }

    /// Waits for the head of an answer, at most as long as the host's `answer_timeout`.
    ///
    /// # Errors
    /// `connect-timeout`, `not-tstunnel`, `network-lost`, `client-cert`. A server that got the request too late (408) has lost it on
    /// the way, or this side has slept meanwhile: `network-lost`.
    pub async fn answer(&mut self) -> Result<Response> {
        self.answer_within(self.dialler.host.answer_timeout).await
    }

    async fn answer_within(&mut self, limit: Duration) -> Result<Response> {
        let answered = tokio::time::timeout(limit, self.read_head()).await.unwrap_or_else(|_| {
            let endpoint = &self.dialler.host.endpoint.host;
            let text = format!("{endpoint} did not answer the request within {} s", limit.as_secs_f32());
            Err(Error::new(Code::ConnectTimeout, text).with_hint("check the server, or raise `answer_timeout`"))
        });
        if let Ok(response) = &answered {
            // The session itself is named by a secret.
            tracing::debug!(
                status = response.status,
                upgrade = response.field("upgrade").map(printable).map(tracing::field::display),
                grace_seconds = response.number::<u64>(HEADER_GRACE),
                "answered"
            );
            if response.status == REQUEST_TIMEOUT {
                let endpoint = &self.dialler.host.endpoint.host;
                let text = format!("{endpoint} did not get the whole request in time");
                return Err(Error::new(Code::NetworkLost, text));
            }
        }
        answered
    }

    /// Waits for the answer to a request whose body has been sent, in part or whole, whatever was said before it. The server may take
    /// `working` longer than for another.
    ///
    /// # Errors
    /// Those of [`Connection::answer`]; but whoever closes without a word has only gone: `network-lost`.
    pub async fn answer_to_body(&mut self, working: Duration) -> Result<Response> {
        let limit = self.dialler.host.answer_timeout + working;
        loop {
            match self.answer_within(limit).await {
                Ok(response) if response.status == 100 => {}
                Err(error) if error.code == Code::NotTstunnel && self.buffer.is_empty() => {
                    return Err(Error::new(Code::NetworkLost, error.text));
                }
                answered => return answered,
            }
        }
    }

    /// The answer that a server gave before it stopped reading the request.
    ///
    /// # Errors
    /// What is wrong with that answer, or `error`, where there is none.
    pub async fn answer_sent_before(&mut self, error: Error) -> Result<Response> {
        match tokio::time::timeout(Duration::from_secs(1), self.answer_to_body(Duration::ZERO)).await {
            Ok(Err(reason)) if reason.code != Code::NetworkLost => Err(reason),
            Ok(Ok(response)) => Ok(response),
            _ => Err(error),
        }
    }

    async fn read_head(&mut self) -> Result<Response> {
        loop {
            if let Some((response, length)) = Response::parse(&self.buffer)? {
                self.buffer.advance(length);
                return Ok(response);
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => {
                    let endpoint = &self.dialler.host.endpoint.host;
                    let text = format!("{endpoint} closed the connection before its answer was whole");
                    return Err(Error::new(Code::NotTstunnel, text));
                }
                Ok(_) => {}
                Err(error) => return Err(self.read_error(&error)),
            }
        }
    }

    /// The body of an answer: as long as its head says, or until the end, and never more than [`MAX_PROBLEM_BYTES`].
    pub async fn body(&mut self, response: &Response) -> Vec<u8> {
        let length = response.content_length().unwrap_or(u64::MAX).min(MAX_PROBLEM_BYTES as u64) as usize;
        let read = async {
            while self.buffer.len() < length && matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..)) {}
        };
        // What has come within a second says enough.
        let _ = tokio::time::timeout(Duration::from_secs(1), read).await;
        self.buffer[..self.buffer.len().min(length)].to_vec()
    }

    /// The failure that a refusal stands for.
    pub async fn refusal(&mut self, response: &Response) -> Error {
        let body = self.body(response).await;
        let error = response.refusal(&body);
        if error.code == Code::NotTstunnel {
            let host = &self.dialler.host;
            return Error::new(
                Code::NotTstunnel,
                format!(
                    "{} under {} {}",
                    host.endpoint.host,
                    host.upgrade_base,
                    error.text.trim_start_matches("the endpoint ")
                ),
            );
        }
        error
    }

    /// The stream after an upgrade, and what was received behind the answer's head.
    pub fn into_parts(self) -> (Stream, BytesMut) {
        (self.stream, self.buffer)
    }

    /// How long the handshake's one round trip took, this side's work for it included.
    pub fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// The version of TLS that was agreed on.
    pub(in crate::client) fn version(&self) -> &'static str {
        match self.tls().protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLS 1.2",
            _ => "TLS",
        }
    }

    /// The state of its TLS.
    pub(in crate::client) fn tls(&self) -> &ClientConnection {
        self.stream.get_ref().1
    }

    /// The stream while a request's body is sent.
    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }
}
