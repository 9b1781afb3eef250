//! Drives a session between a connection and local streams, on both sides. Frames come in and go out through
//! [`Session`]; this module only moves bytes and keeps time.
//!
//! Everything happens in one task: sources are read straight into a frame's buffer with the header's place left free,
//! and what was received is written straight from the buffer that TLS filled. [`Bridge::next`] is cancel-safe, so that
//! its owner can wait for a child or a signal beside it.

mod patience;
mod raw;
mod sink;
mod source;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Sleep;

use self::patience::Patience;
use self::sink::Sink;
use self::source::{Read, Source};
use crate::protocol::frame::{FRAME_BYTES, Kind};
use crate::protocol::liveness::Verdict;
use crate::protocol::session::{Event as PeerEvent, Exit, Session};

pub use self::raw::{RawEnd, RawOver, raw};

/// What TLS gives at once.
const RECORD_BYTES: usize = 16 << 10;
/// Most bytes that wait for the connection before sources are left alone: whatever comes later waits behind them.
const MAX_UNSENT_BYTES: usize = FRAME_BYTES;
/// How many pieces one write to the connection gathers.
const SLICES: usize = 16;

/// A connection: the TLS stream after its upgrade.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Send {
    /// The TCP connection below everything; `None` where it is another process's.
    fn tcp(&self) -> Option<&TcpStream>;
}

impl Connection for UnixStream {
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

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
    SinkClosed(Kind, io::Error),
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

/// A session between a connection and local streams.
pub struct Bridge {
    session: Session,
    connection: Option<Box<dyn Connection>>,
    /// The connection has ended, behind what was just received.
    end: Option<Option<io::Error>>,
    /// The connection has nothing more, for now.
    is_dry: bool,
    sources: Vec<Source>,
    sinks: Vec<Sink>,
    patience: Patience,
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
            is_dry: false,
            sources: sources.into_iter().map(|(stream, reader)| Source::new(stream, reader)).collect(),
            sinks: sinks.into_iter().map(|(stream, writer)| Sink::new(stream, writer)).collect(),
            patience: Patience::default(),
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
        has_room(&self.session) && self.sources.iter().any(|source| source.reader.is_some())
    }

    /// Reads no more from the sources, and tells the peer that they have ended.
    pub fn abandon_sources(&mut self) {
        for source in &mut self.sources {
            source.end(&mut self.session);
        }
    }

    /// Whether no local sink takes anything any more.
    pub fn sinks_ended(&self) -> bool {
        self.sinks.iter().all(|sink| sink.writer.is_none())
    }

    /// Whether everything that has come is where it belongs.
    pub fn sinks_are_idle(&self) -> bool {
        self.sinks.iter().all(Sink::is_idle)
    }

    /// Closes the local sinks: what the peer still sends for them is dropped.
    pub fn close_sinks(&mut self) {
        for sink in &mut self.sinks {
            sink.close();
        }
    }

    /// Sends what is queued and ends this side's direction (`close_notify`).
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            self.transmit(cx, Instant::now());
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
        // Whoever has nothing will wake this task, and is not asked again before.
        self.is_dry = false;
        for source in &mut self.sources {
            source.is_dry = false;
        }
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(event);
            }
            let now = Instant::now();
            let mut progress = self.receive(cx, now);
            if !self.events.is_empty() {
                // The owner may want nothing of what came with it to be handed on.
                continue;
            }
            progress |= self.deliver(cx, now);
            progress |= self.collect(cx);
            progress |= self.transmit(cx, now);
            if !self.finished && self.session.is_finished() {
                self.finished = true;
                self.events.push_back(Event::Finished);
            }
            if !progress && self.events.is_empty() && !self.keep_time(cx, now) {
                return Poll::Pending;
            }
        }
    }

    /// Connection → session, as much as is there, or about a frame.
    fn receive(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut progress = self.take_events(now);
        if let Some(end) = self.end.take() {
            self.lose(end);
            return true;
        }
        let undelivered_bytes = self.sinks.iter().map(Sink::queued_bytes).max().unwrap_or(0);
        self.patience.look(undelivered_bytes, now);
        if self.patience.end().is_some() {
            return progress;
        }
        let mut received = 0;
        while received < FRAME_BYTES && self.end.is_none() && !self.is_dry {
            let Some(connection) = &mut self.connection else { break };
            let buffer = self.session.room_to_receive(FRAME_BYTES, RECORD_BYTES);
            match pin!(connection.read_buf(buffer)).poll(cx) {
                Poll::Pending => self.is_dry = true,
                Poll::Ready(Ok(count)) if count > 0 => received += count,
                Poll::Ready(ended) => self.end = Some(ended.err()),
            }
        }
        progress |= received > 0 || self.end.is_some();
        if received > 0 {
            self.session.received(now);
            self.take_events(now);
        }
        progress
    }

    fn lose(&mut self, error: Option<io::Error>) {
        if self.connection.is_some() {
            self.detach();
            self.events.push_back(Event::Lost(error));
        }
    }

    /// Leaves the connection: nothing that it still brings counts, nor what became of it.
    pub fn detach(&mut self) {
        self.connection = None;
        self.end = None;
        self.needs_flush = false;
        self.events.retain(|event| !matches!(event, Event::Lost(_) | Event::Suspect | Event::Silent));
    }

    /// Whether there is a connection.
    pub fn is_attached(&self) -> bool {
        self.connection.is_some()
    }

    /// Goes on over another connection, after [`Session::resume`]. `leftover` is what was received behind the upgrade, and
    /// `round_trip` what its handshake took for one.
    pub fn attach(&mut self, connection: Box<dyn Connection>, leftover: &[u8], round_trip: Duration) {
        self.detach();
        self.session.expect_round_trip(round_trip);
        self.session.receive_buffer().extend_from_slice(leftover);
        self.connection = Some(connection);
    }

    fn take_events(&mut self, now: Instant) -> bool {
        let mut progress = false;
        while self.connection.is_some() {
            match self.session.next_event(now) {
                Ok(None) => break,
                Ok(Some(PeerEvent::Data { stream, sequence, payload })) => {
                    match self.sinks.iter_mut().find(|sink| sink.stream == stream && sink.writer.is_some()) {
                        Some(sink) => sink.queue(sequence, payload),
                        None => self.session.consumed(sequence, now),
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
    fn deliver(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut progress = false;
        for sink in &mut self.sinks {
            progress |= sink.write(cx, now, &mut self.session, &mut self.events, &mut self.sink_bytes);
        }
        if let Some((sequence, exit)) = self.exit
            && self.sinks_are_idle()
        {
            self.exit = None;
            self.session.consumed(sequence, now);
            self.events.push_back(Event::Exit(exit));
            progress = true;
        }
        progress
    }

    /// Local sources → session, one read of each at a time.
    fn collect(&mut self, cx: &mut Context<'_>) -> bool {
        let (mut progress, mut ended) = (false, false);
        for source in &mut self.sources {
            if !has_room(&self.session) {
                break;
            }
            match source.read(cx, &mut self.session) {
                Read::Nothing => continue,
                Read::Bytes(count) => self.source_bytes += count as u64,
                Read::End(error) => {
                    ended = true;
                    if let Some(error) = error {
                        self.source_failed = true;
                        tracing::debug!(stream = ?source.stream, %error, "source failed");
                    }
                }
            }
            progress = true;
        }
        if ended && self.sources.iter().all(|source| source.reader.is_none()) {
            self.events.push_back(Event::SourcesEnded { failed: self.source_failed });
        }
        progress
    }

    /// Session → connection.
    fn transmit(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut progress = false;
        self.session.before_transmit(now);
        while let Some(connection) = &mut self.connection
            && self.session.wants_transmit()
        {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = self.session.transmit(&mut slices);
            match Pin::new(connection).poll_write_vectored(cx, &slices[..filled]) {
                Poll::Pending => break,
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.session.transmitted(count, now);
                    self.needs_flush = true;
                    progress = true;
                }
                Poll::Ready(result) => {
                    let error = result.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                    self.lose_writing(error, now);
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
                    self.lose_writing(error, now);
                    progress = true;
                }
            }
        }
        progress
    }

    /// A failed write may have left the peer's reason unread: a TLS alert, or an ERROR frame before its close.
    fn lose_writing(&mut self, error: io::Error, now: Instant) {
        if let Some(connection) = &mut self.connection {
            let buffer = self.session.room_to_receive(FRAME_BYTES, RECORD_BYTES);
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let read = pin!(connection.read_buf(buffer)).poll(&mut cx);
            self.take_events(now);
            match read {
                Poll::Ready(Err(reason)) if reason.kind() == io::ErrorKind::InvalidData => self.lose(Some(reason)),
                _ => self.lose(Some(error)),
            }
        }
    }

    /// Does what is due; else sees to it that this task is woken when something is.
    fn keep_time(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        if self.connection.is_none() {
            return false;
        }
        let due = self.session.deadline();
        let due = self.patience.end().map_or(due, |end| end.min(due));
        if now < due {
            // A timer that comes too early costs less than one that is set anew with each byte.
            if self.timer.deadline() > due.into() || self.timer.is_elapsed() {
                self.timer.as_mut().reset(due.into());
            }
            return self.timer.as_mut().poll(cx).is_ready();
        }
        match self.session.on_time(now) {
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

/// Whether what is read now could be sent soon.
fn has_room(session: &Session) -> bool {
    session.room() > 0 && session.unsent_bytes() < MAX_UNSENT_BYTES
}
