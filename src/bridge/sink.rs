//! Session → a local stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite as _;

use super::{Event, Writer};
use crate::protocol::frame::Kind;
use crate::protocol::session::Session;

/// What is written to, and what waits for that.
pub(super) struct Sink {
    pub(super) stream: Kind,
    pub(super) writer: Option<Writer>,
    /// Frames' numbers and what is left of their payloads.
    queue: VecDeque<(u64, Bytes)>,
    queued_bytes: usize,
    /// A write is not yet flushed.
    unflushed: bool,
}

impl Sink {
    pub(super) fn new(stream: Kind, writer: Writer) -> Sink {
        Sink { stream, writer: Some(writer), queue: VecDeque::new(), queued_bytes: 0, unflushed: false }
    }

    /// Takes a frame's payload, to be written behind what is there.
    pub(super) fn queue(&mut self, sequence: u64, payload: Bytes) {
        self.queued_bytes += payload.len();
        self.queue.push_back((sequence, payload));
    }

    /// What is not yet written.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Nothing is written any more, and what is left is dropped.
    pub(super) fn close(&mut self) {
        self.writer = None;
        self.unflushed = false;
    }

    /// Everything is where it belongs.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.unflushed
    }

    /// Writes as much as is taken, and reports what is written whole. `bytes` counts.
    pub(super) fn write(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        session: &mut Session,
        events: &mut VecDeque<Event>,
        bytes: &mut u64,
    ) -> bool {
        let mut progress = false;
        while let Some((sequence, payload)) = self.queue.front_mut() {
            let sequence = *sequence;
            let result = match &mut self.writer {
                None => Ok(payload.len()),
                // An empty payload ends the stream.
                Some(writer) if payload.is_empty() => match Pin::new(writer).poll_shutdown(cx) {
                    Poll::Pending => return progress,
                    Poll::Ready(_) => {
                        self.writer = None;
                        Ok(0)
                    }
                },
                Some(writer) => match Pin::new(writer).poll_write(cx, payload) {
                    Poll::Pending => break,
                    Poll::Ready(result) => result,
                },
            };
            progress = true;
            match result {
                Ok(count) => {
                    *bytes += count as u64;
                    payload.advance(count);
                    self.queued_bytes -= count;
                    self.unflushed = self.writer.is_some();
                    if payload.is_empty() {
                        self.queue.pop_front();
                        session.consumed(sequence, now);
                    }
                }
                Err(error) => {
                    tracing::debug!(stream = ?self.stream, %error, "sink closed");
                    self.close();
                    events.push_back(Event::SinkClosed(self.stream, error));
                }
            }
        }
        if self.unflushed
            && let Some(writer) = &mut self.writer
            && Pin::new(writer).poll_flush(cx).is_ready()
        {
            self.unflushed = false;
            progress = true;
        }
        progress
    }
}
