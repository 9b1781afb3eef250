//! Drives a session between a connection and local streams, on both sides. Frames come in and go out through
//! [`Session`]; this module only moves bytes and keeps time.
//!
//! Everything happens in one task: sources are read straight into a frame's buffer with the header's place left free,
//! and what was received is written straight from the buffer that TLS filled. [`Bridge::next`] is cancel-safe, so that
//! its owner can wait for a child or a signal beside it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::time::Sleep;

use crate::protocol::frame::{FRAME_BYTES, HEADER_BYTES, Kind};
use crate::protocol::liveness::Verdict;
use crate::protocol::session::{Event as PeerEvent, Exit, Session};

/// Most bytes of one read from a source.
const READ_BYTES: usize = FRAME_BYTES - HEADER_BYTES;
/// What TLS gives at once.
const RECORD_BYTES: usize = 16 << 10;
/// A read shorter than this is copied into a frame of its own size, so that what is kept is what was sent.
const COPY_BELOW_BYTES: usize = RECORD_BYTES;
/// Most bytes that wait for the connection before sources are left alone: whatever comes later waits behind them.
const MAX_UNSENT_BYTES: usize = FRAME_BYTES;
/// How many pieces one write to the connection gathers.
const SLICES: usize = 16;

/// A connection: the TLS stream after its upgrade.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// Something to read from.
pub type Reader = Box<dyn AsyncRead + Unpin + Send>;
/// Something to write to.
pub type Writer = Box<dyn AsyncWrite + Unpin + Send>;

/// What is read from, and as which stream.
pub type Sources = Vec<(Kind, Reader)>;
/// What is written to, and as which stream.
pub type Sinks = Vec<(Kind, Writer)>;

/// What the owner of a bridge has to know.
#[derive(Debug)]
pub enum Event {
    /// All sources have ended, and the peer has been told.
    SourcesEnded {
        /// Whether one of them ended with an error, such as a reset.
        failed: bool,
    },
    /// The peer's process has ended, and everything before that has been written.
    Exit(Exit),
    /// A signal for the process, without `SIG`.
    Signal(String),
    /// A local stream no longer takes what it is given; the rest is dropped.
    SinkClosed(Kind),
    /// The client ends the process now.
    Close,
    /// Every sequenced frame, EXIT among them, is acknowledged.
    Finished,
    /// The peer's last word, `code: text`.
    PeerError(String),
    /// The peer broke the protocol; it has been told where that was possible.
    Violation(String),
    /// The connection has ended without a word; `None` where TLS was closed properly.
    Lost(Option<io::Error>),
    /// A question has stayed without an answer; the connection is still there.
    Suspect,
    /// Nothing has been heard for too long; the connection is given up.
    Silent,
}

struct Source {
    stream: Kind,
    reader: Option<Reader>,
}

struct Sink {
    stream: Kind,
    writer: Option<Writer>,
    queue: VecDeque<(u64, Bytes)>,
    /// A write is not yet flushed.
    unflushed: bool,
}

impl Sink {
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.unflushed
    }
}

/// A session between a connection and local streams.
pub struct Bridge {
    session: Session,
    connection: Option<Box<dyn Connection>>,
    /// The connection has ended, behind what was just received.
    end: Option<Option<io::Error>>,
    sources: Vec<Source>,
    sinks: Vec<Sink>,
    exit: Option<(u64, Exit)>,
    events: VecDeque<Event>,
    needs_flush: bool,
    finished: bool,
    timer: Pin<Box<Sleep>>,
    source_failed: bool,
    source_bytes: u64,
    sink_bytes: u64,
}

impl std::fmt::Debug for Bridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bridge").field("session", &self.session).finish_non_exhaustive()
    }
}

impl Bridge {
    /// Puts `session` between `connection` and local streams. `leftover` is what was received behind the upgrade.
    pub fn new(
        mut session: Session,
        connection: Box<dyn Connection>,
        leftover: &[u8],
        sources: Sources,
        sinks: Sinks,
    ) -> Bridge {
        session.receive_buffer().extend_from_slice(leftover);
        Bridge {
            session,
            connection: Some(connection),
            end: None,
            sources: sources.into_iter().map(|(stream, reader)| Source { stream, reader: Some(reader) }).collect(),
            sinks: sinks
                .into_iter()
                .map(|(stream, writer)| Sink { stream, writer: Some(writer), queue: VecDeque::new(), unflushed: false })
                .collect(),
            exit: None,
            events: VecDeque::new(),
            needs_flush: false,
            finished: false,
            timer: Box::pin(tokio::time::sleep_until(Instant::now().into())),
            source_failed: false,
            source_bytes: 0,
            sink_bytes: 0,
        }
    }

    /// Moves bytes until there is something that the owner has to know. Cancel-safe.
    pub async fn next(&mut self) -> Event {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    /// The session, to queue signals and the like; they leave with the next call of [`Bridge::next`].
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Bytes that came from local sources and went to local sinks.
    pub fn byte_counts(&self) -> (u64, u64) {
        (self.source_bytes, self.sink_bytes)
    }

    /// Whether a source could be read now if it had something.
    pub fn is_reading(&self) -> bool {
        self.may_collect() && self.sources.iter().any(|source| source.reader.is_some())
    }

    /// Reads no more from the sources, and tells the peer that they have ended.
    pub fn abandon_sources(&mut self) {
        for source in &mut self.sources {
            if source.reader.take().is_some() {
                self.session.queue_end(source.stream);
            }
        }
    }

    /// Whether no local sink takes anything any more.
    pub fn sinks_ended(&self) -> bool {
        self.sinks.iter().all(|sink| sink.writer.is_none())
    }

    /// Closes the local sinks: what the peer still sends for them is dropped.
    pub fn close_sinks(&mut self) {
        for sink in &mut self.sinks {
            sink.writer = None;
            sink.unflushed = false;
        }
    }

    /// Sends what is queued and ends this side's direction (`close_notify`).
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            self.transmit(cx);
            if self.connection.is_some() && (self.session.wants_transmit() || self.needs_flush) {
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        match &mut self.connection {
            Some(connection) => connection.shutdown().await,
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Reads until the peer has ended its direction too, so that closing sends no reset.
    pub async fn drain(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let mut rest = vec![0; 4096];
        while matches!(connection.read(&mut rest).await, Ok(count) if count > 0) {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(event);
            }
            let mut progress = self.deliver(cx);
            progress |= self.collect(cx);
            progress |= self.transmit(cx);
            progress |= self.receive(cx);
            progress |= self.keep_time(cx);
            if !self.finished && self.session.is_finished() {
                self.finished = true;
                self.events.push_back(Event::Finished);
            }
            if !progress && self.events.is_empty() {
                return Poll::Pending;
            }
        }
    }

    /// Connection → session, as much as is there, or about a frame.
    fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = self.take_events();
        if let Some(end) = self.end.take() {
            self.lose(end);
            return true;
        }
        let mut received = 0;
        while received < FRAME_BYTES && self.end.is_none() {
            let Some(connection) = &mut self.connection else { break };
            let buffer = self.session.room_to_receive(FRAME_BYTES, RECORD_BYTES);
            let Poll::Ready(result) = pin!(connection.read_buf(buffer)).poll(cx) else { break };
            progress = true;
            match result {
                Ok(count) if count > 0 => received += count,
                ended => self.end = Some(ended.err()),
            }
        }
        if received > 0 {
            self.session.received(Instant::now());
            self.take_events();
        }
        progress
    }

    fn lose(&mut self, error: Option<io::Error>) {
        if self.connection.is_some() {
            self.detach();
            self.events.push_back(Event::Lost(error));
        }
    }

    /// Leaves the connection: nothing that it still brings counts.
    pub fn detach(&mut self) {
        self.connection = None;
        self.end = None;
        self.needs_flush = false;
    }

    /// Whether there is a connection.
    pub fn is_attached(&self) -> bool {
        self.connection.is_some()
    }

    /// Goes on over another connection, after [`Session::resume`]. `leftover` is what was received behind the upgrade.
    pub fn attach(&mut self, connection: Box<dyn Connection>, leftover: &[u8]) {
        self.detach();
        self.session.receive_buffer().extend_from_slice(leftover);
        self.connection = Some(connection);
    }

    fn take_events(&mut self) -> bool {
        let mut progress = false;
        while self.connection.is_some() {
            match self.session.next_event(Instant::now()) {
                Ok(None) => break,
                Ok(Some(PeerEvent::Data { stream, sequence, payload })) => {
                    match self.sinks.iter_mut().find(|sink| sink.stream == stream && sink.writer.is_some()) {
                        Some(sink) => sink.queue.push_back((sequence, payload)),
                        None => self.session.consumed(sequence, Instant::now()),
                    }
                }
                Ok(Some(PeerEvent::Exit { sequence, exit })) => self.exit = Some((sequence, exit)),
                Ok(Some(PeerEvent::Signal(name))) => self.events.push_back(Event::Signal(name)),
                Ok(Some(PeerEvent::Close)) => self.events.push_back(Event::Close),
                Ok(Some(PeerEvent::Error(text))) => self.events.push_back(Event::PeerError(text)),
                Err(violation) => {
                    self.session.receive_buffer().clear();
                    self.session.queue_error(&format!("protocol: {violation}"));
                    self.events.push_back(Event::Violation(violation.to_string()));
                    return true;
                }
            }
            progress = true;
        }
        progress
    }

    /// Session → local sinks.
    fn deliver(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        for sink in &mut self.sinks {
            progress |= sink.write(cx, &mut self.session, &mut self.events, &mut self.sink_bytes);
        }
        if let Some((sequence, exit)) = self.exit
            && self.sinks.iter().all(Sink::is_idle)
        {
            self.exit = None;
            self.session.consumed(sequence, Instant::now());
            self.events.push_back(Event::Exit(exit));
            progress = true;
        }
        progress
    }

    fn may_collect(&self) -> bool {
        self.session.room() > 0 && self.session.unsent_bytes() < MAX_UNSENT_BYTES
    }

    /// Local sources → session, one read of each at a time.
    fn collect(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        for index in 0..self.sources.len() {
            if !self.may_collect() {
                break;
            }
            let room = self.session.room().min(READ_BYTES);
            let Some(source) = self.sources.get_mut(index) else { break };
            let Some(reader) = &mut source.reader else { continue };
            let mut frame = blank_frame(&mut self.session);
            let mut place = ReadBuf::new(&mut frame[HEADER_BYTES..HEADER_BYTES + room]);
            let read = Pin::new(reader).poll_read(cx, &mut place);
            let count = place.filled().len();
            let Poll::Ready(result) = read else {
                BLANK_FRAME.set(frame);
                continue;
            };
            progress = true;
            match result {
                Ok(()) if count >= COPY_BELOW_BYTES => {
                    self.source_bytes += count as u64;
                    frame.truncate(HEADER_BYTES + count);
                    self.session.queue_data(source.stream, frame);
                    continue;
                }
                Ok(()) if count > 0 => {
                    self.source_bytes += count as u64;
                    self.session.queue_data(source.stream, BytesMut::from(&frame[..HEADER_BYTES + count]));
                }
                ended => {
                    if let Err(error) = ended {
                        self.source_failed = true;
                        tracing::debug!(stream = ?source.stream, %error, "source failed");
                    }
                    source.reader = None;
                    self.session.queue_end(source.stream);
                    if self.sources.iter().all(|source| source.reader.is_none()) {
                        self.events.push_back(Event::SourcesEnded { failed: self.source_failed });
                    }
                }
            }
            BLANK_FRAME.set(frame);
        }
        progress
    }

    /// Session → connection.
    fn transmit(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        self.session.before_transmit(Instant::now());
        while let Some(connection) = &mut self.connection
            && self.session.wants_transmit()
        {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = self.session.transmit(&mut slices);
            match Pin::new(connection).poll_write_vectored(cx, &slices[..filled]) {
                Poll::Pending => break,
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.session.transmitted(count, Instant::now());
                    self.needs_flush = true;
                    progress = true;
                }
                Poll::Ready(result) => {
                    let error = result.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                    self.lose_writing(error);
                    progress = true;
                }
            }
        }
        if self.needs_flush
            && let Some(connection) = &mut self.connection
        {
            match Pin::new(connection).poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.needs_flush = false,
                Poll::Ready(Err(error)) => {
                    self.lose_writing(error);
                    progress = true;
                }
            }
        }
        progress
    }

    /// A failed write may have left the peer's reason unread: a TLS alert, or an ERROR frame before its close.
    fn lose_writing(&mut self, error: io::Error) {
        if let Some(connection) = &mut self.connection {
            let buffer = self.session.room_to_receive(FRAME_BYTES, RECORD_BYTES);
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let read = pin!(connection.read_buf(buffer)).poll(&mut cx);
            self.take_events();
            match read {
                Poll::Ready(Err(reason)) if reason.kind() == io::ErrorKind::InvalidData => self.lose(Some(reason)),
                _ => self.lose(Some(error)),
            }
        }
    }

    fn keep_time(&mut self, cx: &mut Context<'_>) -> bool {
        if self.connection.is_none() {
            return false;
        }
        // A timer that comes too early costs less than one that is set anew with each byte.
        let deadline = self.session.deadline().into();
        if self.timer.deadline() > deadline {
            self.timer.as_mut().reset(deadline);
        }
        // Nor is one that has elapsed ready for a task that has had its share of time and is to give way.
        loop {
            if self.timer.as_mut().poll(cx).is_pending() {
                return false;
            }
            if self.timer.deadline() >= deadline {
                break;
            }
            self.timer.as_mut().reset(deadline);
        }
        match self.session.on_time(Instant::now()) {
            Verdict::Dead => {
                self.detach();
                self.events.push_back(Event::Silent);
            }
            Verdict::Suspect(_) => self.events.push_back(Event::Suspect),
            Verdict::Alive | Verdict::Ask(_) => {}
        }
        true
    }
}

thread_local! {
    /// A frame to read into, for whichever bridge of the thread has something to read: one that is idle holds none.
    static BLANK_FRAME: Cell<BytesMut> = Cell::default();
}

/// A whole frame whose bytes do not matter: the header's place, then that of what is read.
fn blank_frame(session: &mut Session) -> BytesMut {
    let mut frame = BLANK_FRAME.take();
    if frame.is_empty() {
        frame = session.spare_frame().unwrap_or_else(|| BytesMut::zeroed(FRAME_BYTES));
    }
    frame.resize(FRAME_BYTES, 0);
    frame
}

impl Sink {
    fn write(
        &mut self,
        cx: &mut Context<'_>,
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
                    self.unflushed = self.writer.is_some();
                    if payload.is_empty() {
                        self.queue.pop_front();
                        session.consumed(sequence, Instant::now());
                    }
                }
                Err(error) => {
                    tracing::debug!(stream = ?self.stream, %error, "sink closed");
                    self.writer = None;
                    self.unflushed = false;
                    events.push_back(Event::SinkClosed(self.stream));
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

/// When a stream without frames is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawEnd {
    /// When the peer has ended its direction: there is nothing left to wait for.
    Incoming,
    /// When the local reader has ended and the peer has been told.
    Outgoing,
    /// When both directions have ended, each by itself.
    Both,
}

/// Moves bytes both ways between a connection without frames and local streams. Bytes that `writer` no longer takes are
/// dropped, and nothing else is.
///
/// # Errors
/// Those of the connection.
pub async fn raw(
    connection: &mut dyn Connection,
    leftover: &[u8],
    reader: Reader,
    mut writer: Writer,
    end: RawEnd,
) -> io::Result<()> {
    let (from_peer, mut to_peer) = tokio::io::split(connection);
    let mut reader = BufReader::with_capacity(FRAME_BYTES, reader);
    let mut from_peer = BufReader::with_capacity(FRAME_BYTES, from_peer);
    let mut outgoing = pin!(async {
        tokio::io::copy_buf(&mut reader, &mut to_peer).await?;
        to_peer.shutdown().await
    });
    let mut incoming = pin!(async {
        let mut takes = writer.write_all(leftover).await.is_ok();
        loop {
            let bytes = from_peer.fill_buf().await?;
            if bytes.is_empty() {
                let _ = writer.shutdown().await;
                drop(writer);
                return Ok::<(), io::Error>(());
            }
            takes = takes && writer.write_all(bytes).await.is_ok() && writer.flush().await.is_ok();
            let length = bytes.len();
            from_peer.consume(length);
        }
    });
    let (mut has_sent, mut has_received) = (false, false);
    loop {
        tokio::select! {
            result = &mut outgoing, if !has_sent => {
                result?;
                has_sent = true;
            }
            result = &mut incoming, if !has_received => {
                result?;
                has_received = true;
            }
        }
        let is_over = match end {
            RawEnd::Incoming => has_received,
            RawEnd::Outgoing => has_sent,
            RawEnd::Both => has_sent && has_received,
        };
        if is_over {
            return Ok(());
        }
    }
}

#[cfg(test)]
#[path = "bridge_tests.rs"]
mod tests;
