//! Session → a local stream.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite as _;

use super::{Event, RECORD_BYTES, Writer};
use crate::protocol::frame::Kind;
use crate::protocol::session::Session;

/// What is written to, and what waits for that.
pub(super) struct Sink {
    pub(super) stream: Kind,
    pub(super) writer: Option<Writer>,
    queue: VecDeque<Piece>,
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
        if !self.queue.back_mut().is_some_and(|last| last.takes(sequence, &payload)) {
            self.queue.push_back(Piece::new(sequence, payload));
        }
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
        while let Some(piece) = self.queue.front_mut() {
            let left = piece.payload.bytes();
            let result = match &mut self.writer {
                None => Ok(left.len()),
                // An empty payload ends the stream.
                Some(writer) if left.is_empty() => match Pin::new(writer).poll_shutdown(cx) {
                    Poll::Pending => return progress,
                    Poll::Ready(_) => {
                        self.writer = None;
                        Ok(0)
                    }
                },
                Some(writer) => match Pin::new(writer).poll_write(cx, left) {
                    Poll::Pending => break,
                    Poll::Ready(result) => result,
                },
            };
            progress = true;
            match result {
                Ok(count) => {
                    *bytes += count as u64;
                    piece.payload.advance(count);
                    self.queued_bytes -= count;
                    self.unflushed = self.writer.is_some();
                    if piece.payload.bytes().is_empty()
                        && let Some(piece) = self.queue.pop_front()
                    {
                        for sequence in piece.frames.into_iter().flatten() {
                            session.consumed(sequence, now);
                        }
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

/// What is written at once: a frame's payload as it came, or those of small frames that wait, put together. So what waits takes
/// about as much memory as it counts for, however small the frames are.
struct Piece {
    payload: Payload,
    /// How much there was of it.
    bytes: usize,
    /// The frames' numbers.
    frames: Vec<Range<u64>>,
}

enum Payload {
    Whole(Bytes),
    Gathered(BytesMut),
}

impl Payload {
    fn bytes(&self) -> &[u8] {
        match self {
            Payload::Whole(bytes) => bytes,
            Payload::Gathered(bytes) => bytes,
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Payload::Whole(bytes) => bytes.advance(count),
            Payload::Gathered(bytes) => bytes.advance(count),
        }
    }
}

impl Piece {
    fn new(sequence: u64, payload: Bytes) -> Piece {
        Piece {
            bytes: payload.len(),
            payload: Payload::Whole(payload),
            frames: std::iter::once(sequence..sequence + 1).collect(),
        }
    }

    /// Takes another payload, which comes behind it, if both are small; an empty one is an end, and stands alone.
    fn takes(&mut self, sequence: u64, payload: &[u8]) -> bool {
        if payload.is_empty() || self.bytes + payload.len() > RECORD_BYTES {
            return false;
        }
        self.bytes += payload.len();
        match &mut self.payload {
            Payload::Whole(bytes) => self.payload = Payload::Gathered([bytes, payload].concat().as_slice().into()),
            Payload::Gathered(bytes) => bytes.extend_from_slice(payload),
        }
        match self.frames.last_mut() {
            Some(last) if last.end == sequence => last.end += 1,
            _ => self.frames.push(sequence..sequence + 1),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;
    use std::time::Duration;

    use super::*;
    use crate::protocol::frame::{self, Role};
    use crate::protocol::liveness::Policy;
    use crate::protocol::session::Event as Received;

    /// A session's end that has received a frame of standard input for each of `payloads`, and hands them to a sink of `bytes`.
    fn received(payloads: &[&[u8]], bytes: usize) -> (Session, Sink, tokio::io::DuplexStream) {
        let now = Instant::now();
        let policy = Policy { interval: Duration::from_secs(10), count: 3 };
        let mut session = Session::new(Role::Server, 1 << 20, policy, now);
        for payload in payloads {
            session.receive_buffer().extend_from_slice(&frame::encode(Kind::Stdin, payload));
        }
        let (near, far) = tokio::io::duplex(bytes);
        let mut sink = Sink::new(Kind::Stdin, Box::new(near));
        while let Some(Received::Data { sequence, payload, .. }) = session.next_event(now).unwrap() {
            sink.queue(sequence, payload);
        }
        (session, sink, far)
    }

    /// Writes what is taken, and reads it at the other end.
    async fn carry(sink: &mut Sink, session: &mut Session, far: &mut tokio::io::DuplexStream, got: &mut Vec<u8>) {
        use tokio::io::AsyncReadExt as _;

        tokio::task::unconstrained(async {
            let mut cx = Context::from_waker(Waker::noop());
            sink.write(&mut cx, Instant::now(), session, &mut VecDeque::new(), &mut 0);
            far.read_buf(got).await.unwrap();
        })
        .await;
    }

    #[tokio::test]
    async fn small_frames_that_wait_are_put_together_and_all_consumed() {
        let large = vec![b'l'; RECORD_BYTES];
        let mut payloads: Vec<&[u8]> = vec![b"x"; 100_000];
        payloads.extend([&large[..], b"y", b""]);
        let (mut session, mut sink, mut far) = received(&payloads, 10);
        assert!(sink.queue.len() <= 100_000 / RECORD_BYTES + 4, "{}", sink.queue.len());
        assert!(sink.queue.iter().all(|piece| piece.frames.len() == 1));
        assert_eq!(sink.queued_bytes(), 100_000 + large.len() + 1);
        let mut got = Vec::new();
        while !sink.is_idle() || got.len() < 100_001 + large.len() {
            carry(&mut sink, &mut session, &mut far, &mut got).await;
        }
        assert!(got == payloads.concat());
        carry(&mut sink, &mut session, &mut far, &mut got).await;
        assert!(sink.writer.is_none() && got.len() == 100_001 + large.len(), "the end comes behind them");
        session.on_time(Instant::now() + Duration::from_secs(1));
        assert_eq!((session.received_count(), session.held_bytes()), (payloads.len() as u64, 0));
    }

    #[tokio::test]
    async fn a_piece_that_is_written_in_part_grows_and_ends() {
        let (mut session, mut sink, mut far) = received(&[b"abcdef", b"ghi"], 4);
        let mut got = Vec::new();
        carry(&mut sink, &mut session, &mut far, &mut got).await;
        session.receive_buffer().extend_from_slice(&frame::encode(Kind::Stdin, b"jkl"));
        if let Some(Received::Data { sequence, payload, .. }) = session.next_event(Instant::now()).unwrap() {
            sink.queue(sequence, payload);
        }
        assert_eq!(sink.queue.len(), 1);
        while got.len() < 12 {
            carry(&mut sink, &mut session, &mut far, &mut got).await;
        }
        assert_eq!((&got[..], sink.queued_bytes(), sink.is_idle()), (&b"abcdefghijkl"[..], 0, true));
    }
}
