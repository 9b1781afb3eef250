//! One end of a `tstunnel/1` session: numbers what it sends, keeps it until the peer has consumed it, and tells what
//! the peer sent. Received bytes and the time come in, bytes to send and events come out. No I/O, no clock.
//!
//! Invariants: a sequenced frame is kept until an ACK covers it; at most a window of unacknowledged frames is sent (or
//! one single frame), and no more is kept but for ends, signals and EXIT that wait behind it; what the peer sends is handed
//! on in order and once; and at most a window of it is held for a consumer that is slow.

mod event;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

use super::flight::Flight;
use super::frame::{self, Decoder, HEADER_BYTES, Kind, MAX_PAYLOAD_BYTES, Role};
use super::liveness::{Liveness, Policy, Verdict};

pub use event::{Event, Exit, Violation};

/// Most bytes of unacknowledged sequenced frames, headers counted, where nothing else was agreed: 1 Gbit/s for 130 ms.
pub const DEFAULT_WINDOW_BYTES: usize = 16 << 20;
/// The largest window that a client agrees to, whatever it is offered: what a server can make it hold.
pub const MAX_WINDOW_BYTES: usize = 256 << 20;
/// Consumed bytes after which an ACK is sent whatever else happens: often enough that what the peer keeps is what is in
/// flight, seldom enough to cost nothing.
const ACK_BYTES: usize = 256 << 10;
/// Consumed bytes after which an ACK is sent where the last one is [`ACK_SPACING`] ago: a slow path is measured by its ACKs.
const SPACED_ACK_BYTES: usize = 32 << 10;
const ACK_SPACING: Duration = Duration::from_millis(2);
/// Consumed frames after which an ACK is sent, for the same reason where frames are small.
const ACK_FRAMES: u64 = 64;
/// How long an ACK waits for data that it can ride along with.
const ACK_DELAY: Duration = Duration::from_millis(20);
/// Bytes of unsent control frames above which a PING goes without its PONG, and none is asked: a peer that asks faster
/// than it reads.
const MAX_CONTROL_BYTES: usize = 1024;
/// Less room than that is none, where the window has more: a path would fill with crumbs.
const MIN_ROOM_BYTES: usize = 4 << 10;
/// A shorter payload is handed on in an allocation of its own: a slow consumer of small frames must not keep the large
/// buffers that they came in.
const COPY_BELOW_BYTES: usize = 16 << 10;
/// Frames of at least so many bytes have their memory used again, at most so many at a time.
const SPARED_FROM_BYTES: usize = 64 << 10;
const MAX_SPARES: usize = 8;
/// Most bytes of an ERROR frame's text that are looked at.
const MAX_ERROR_BYTES: usize = 1024;

/// What stands on the connection unfinished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Partial {
    Nothing,
    /// This many bytes of the frame under the cursor are sent.
    Frame(usize),
    /// Some bytes of the control frames are sent; they are gone from the buffer.
    Control,
}

/// A frame received and not yet acknowledged.
#[derive(Debug)]
struct Held {
    bytes: usize,
    consumed: bool,
}

/// One end of a session.
#[derive(Debug)]
pub struct Session {
    role: Role,
    window_bytes: usize,

    /// Unacknowledged frames as they stand on the wire; the first has number `acked`.
    kept: VecDeque<Bytes>,
    /// Memory of frames that were acknowledged, for the next ones.
    spares: Vec<BytesMut>,
    kept_bytes: usize,
    acked: u64,
    /// Index into `kept` of the next frame for this connection.
    cursor: usize,
    unsent_bytes: usize,
    /// How many frames any connection has carried, at least in part: what the peer can claim to have.
    transmitted: u64,
    control: BytesMut,
    /// Where in `control` the last ACK stands, in bytes from its end, while nothing of it is sent: a newer one takes its
    /// place, so that a peer that sends and never reads makes nothing grow.
    unsent_ack: Option<usize>,
    partial: Partial,
    exit_queued: bool,

    decoder: Decoder,
    /// Frames received and not acknowledged, first the number `ack_sent`.
    held: VecDeque<Held>,
    held_bytes: usize,
    ack_sent: u64,
    /// Number up to which all frames are consumed, and the bytes since the last ACK.
    consumed: u64,
    consumed_bytes: usize,
    ack_due: Option<Instant>,
    acked_at: Instant,
    ended: [bool; 3],
    exit_received: bool,

    liveness: Liveness,
    flight: Flight,
}

impl Session {
    /// A new session's end, with nothing sent or received.
    pub fn new(role: Role, window_bytes: usize, policy: Policy, now: Instant) -> Session {
        Session {
            role,
            window_bytes,
            kept: VecDeque::new(),
            spares: Vec::new(),
            kept_bytes: 0,
            acked: 0,
            cursor: 0,
            unsent_bytes: 0,
            transmitted: 0,
            control: BytesMut::new(),
            unsent_ack: None,
            partial: Partial::Nothing,
            exit_queued: false,
            decoder: Decoder::new(role.peer()),
            held: VecDeque::new(),
            held_bytes: 0,
            ack_sent: 0,
            consumed: 0,
            consumed_bytes: 0,
            ack_due: None,
            acked_at: now,
            ended: [false; 3],
            exit_received: false,
            liveness: Liveness::new(policy, now),
            flight: Flight::new(Duration::ZERO),
        }
    }

    // What this side sends.

    /// How many bytes of payload the next data frame may have; 0 while the window, or the path, is full.
    pub fn room(&self) -> usize {
        if self.exit_queued {
            0
        } else if self.kept.is_empty() {
            // A single frame may be larger than the window; only where that is tiny is it.
            self.window_bytes.saturating_sub(HEADER_BYTES).clamp(MIN_ROOM_BYTES, MAX_PAYLOAD_BYTES)
        } else {
            let limit = self.window_bytes.min(self.flight.limit_bytes());
            let room = limit.saturating_sub(self.kept_bytes + HEADER_BYTES);
            if room < MIN_ROOM_BYTES.min(limit / 4) {
                0
            } else {
                room.min(self.flight.frame_bytes()).min(MAX_PAYLOAD_BYTES)
            }
        }
    }

    /// Bytes of sequenced frames that wait for the connection.
    pub fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// Queues a data frame whose header has been left free: the first [`HEADER_BYTES`] of `wire` are written here.
    pub fn queue_data(&mut self, stream: Kind, mut wire: BytesMut) {
        let header = frame::header(stream, wire.len() - HEADER_BYTES);
        wire[..HEADER_BYTES].copy_from_slice(&header);
        self.keep(wire.freeze());
    }

    /// Queues the end of a stream.
    pub fn queue_end(&mut self, stream: Kind) {
        self.keep(frame::encode(stream, b""));
    }

    /// Queues how the process ended; nothing sequenced may follow.
    pub fn queue_exit(&mut self, exit: Exit) {
        self.keep(frame::encode(Kind::Exit, &exit.encode()));
        self.exit_queued = true;
    }

    /// Nothing sequenced follows any more, not even EXIT: the session is finished once everything is acknowledged.
    pub fn queue_nothing_more(&mut self) {
        self.exit_queued = true;
    }

    /// Queues a signal for the process: a name without `SIG` (RFC 4254 §6.9).
    pub fn queue_signal(&mut self, name: &str) {
        self.keep(frame::encode(Kind::Signal, name.as_bytes()));
    }

    /// Queues CLOSE: the peer shall end the process and keep nothing.
    pub fn queue_close(&mut self) {
        self.queue_control(Kind::Close, b"");
    }

    /// Queues a last word; the caller closes the connection once it is sent.
    pub fn queue_error(&mut self, text: &str) {
        let text: String = text.chars().take(MAX_ERROR_BYTES / 4).collect();
        self.queue_control(Kind::Error, text.as_bytes());
    }

    /// Whether everything queued, its end among it, has been acknowledged: the session is over for a server.
    pub fn is_finished(&self) -> bool {
        self.exit_queued && self.kept.is_empty()
    }

    fn keep(&mut self, wire: Bytes) {
        debug_assert!(!self.exit_queued);
        self.kept_bytes += wire.len();
        self.unsent_bytes += wire.len();
        self.kept.push_back(wire);
    }

    fn queue_control(&mut self, kind: Kind, payload: &[u8]) {
        self.control.put_slice(&frame::header(kind, payload.len()));
        self.control.put_slice(payload);
        self.unsent_ack = match kind {
            Kind::Ack => Some(HEADER_BYTES + payload.len()),
            _ => self.unsent_ack.map(|place| place + HEADER_BYTES + payload.len()),
        };
    }

    // The connection, outgoing.

    /// Whether there is anything to send now.
    pub fn wants_transmit(&self) -> bool {
        !self.control.is_empty() || self.may_send_frame()
    }

    fn may_send_frame(&self) -> bool {
        let is_begun = matches!(self.partial, Partial::Frame(_));
        let fits = |wire: &Bytes| self.fits_window(self.kept_bytes - self.unsent_bytes, wire);
        self.kept.get(self.cursor).is_some_and(|wire| is_begun || fits(wire))
    }

    /// Whether the peer has room for a frame behind `ahead` bytes. What nobody can hold back (the end of a stream, a
    /// signal, EXIT) may be queued beyond the window, and waits here.
    fn fits_window(&self, ahead: usize, wire: &Bytes) -> bool {
        ahead == 0 || ahead + wire.len() <= self.window_bytes
    }

    /// The bytes to send next, in order, as many as `slices` has places for; returns how many places were filled.
    pub fn transmit<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut places = slices.iter_mut();
        let mut filled = 0;
        let mut put = |bytes: &'a [u8]| match places.next() {
            Some(place) => {
                *place = IoSlice::new(bytes);
                filled += 1;
                true
            }
            None => false,
        };
        let mut frames = self.kept.iter().skip(self.cursor);
        let mut ahead = self.kept_bytes - self.unsent_bytes;
        let mut more = true;
        if let Partial::Frame(sent) = self.partial
            && let Some(wire) = frames.next()
        {
            more = put(&wire[sent..]);
            ahead += wire.len() - sent;
        }
        if more && !self.control.is_empty() {
            more = put(&self.control);
        }
        while more
            && let Some(wire) = frames.next()
            && self.fits_window(ahead, wire)
        {
            more = put(wire);
            ahead += wire.len();
        }
        filled
    }

    /// Reports that the first `count` bytes of what [`Session::transmit`] gave are on the connection.
    pub fn transmitted(&mut self, mut count: usize, now: Instant) {
        while count > 0 {
            let offset = match self.partial {
                Partial::Frame(sent) => sent,
                Partial::Nothing | Partial::Control if !self.control.is_empty() => {
                    let sent = count.min(self.control.len());
                    bytes::Buf::advance(&mut self.control, sent);
                    self.unsent_ack = self.unsent_ack.filter(|place| *place <= self.control.len());
                    count -= sent;
                    self.partial = if self.control.is_empty() { Partial::Nothing } else { Partial::Control };
                    continue;
                }
                Partial::Nothing | Partial::Control => 0,
            };
            let Some(wire) = self.kept.get(self.cursor) else {
                debug_assert!(false, "more was sent than there was");
                return;
            };
            let sent = count.min(wire.len() - offset);
            count -= sent;
            self.unsent_bytes -= sent;
            self.liveness.sent_data(now);
            self.transmitted = self.transmitted.max(self.acked + self.cursor as u64 + 1);
            if offset + sent == wire.len() {
                let is_full = self.unsent_bytes > 0 || self.room() == 0;
                self.flight.departed(self.acked + self.cursor as u64, is_full, now);
                self.cursor += 1;
                self.partial = Partial::Nothing;
            } else {
                self.partial = Partial::Frame(offset + sent);
            }
        }
    }

    // The connection, incoming.

    /// The buffer that received bytes are appended to.
    pub fn receive_buffer(&mut self) -> &mut BytesMut {
        self.decoder.buffer()
    }

    /// The same with room for what is missing of a frame that has begun; for `frame_bytes` where none has, and there is not
    /// even room for `least_bytes`.
    pub fn room_to_receive(&mut self, frame_bytes: usize, least_bytes: usize) -> &mut BytesMut {
        let missing = self.decoder.missing_bytes().filter(|missing| *missing > 0);
        let buffer = self.decoder.buffer();
        let spare = buffer.capacity() - buffer.len();
        match missing {
            Some(missing) => buffer.reserve(missing),
            None if spare < least_bytes => buffer.reserve(frame_bytes),
            None => {}
        }
        buffer
    }

    /// Reports that bytes were appended to [`Session::receive_buffer`].
    pub fn received(&mut self, now: Instant) {
        self.liveness.heard(now);
    }

    /// The next thing that the peer sent, or `None` until more has been received.
    ///
    /// # Errors
    /// A [`Violation`]: the caller sends it as an ERROR frame and closes.
    pub fn next_event(&mut self, now: Instant) -> Result<Option<Event>, Violation> {
        while let Some(frame) = self.decoder.next_frame()? {
            if frame.kind.is_sequenced() {
                self.liveness.received_data(now);
                return self.accept(frame, now).map(Some);
            }
            match frame.kind {
                Kind::Ping => {
                    self.liveness.questioned(now);
                    if self.control.len() < MAX_CONTROL_BYTES {
                        self.queue_control(Kind::Pong, &frame.payload);
                    }
                }
                Kind::Pong => self.liveness.answered(&frame.payload, now),
                Kind::Ack => self.acknowledge(&frame.payload, now)?,
                Kind::Close => return Ok(Some(Event::Close)),
                _ => {
                    let text = &frame.payload[..frame.payload.len().min(MAX_ERROR_BYTES)];
                    return Ok(Some(Event::Error(String::from_utf8_lossy(text).into_owned())));
                }
            }
        }
        Ok(None)
    }

    fn accept(&mut self, frame: frame::Frame, now: Instant) -> Result<Event, Violation> {
        if self.exit_received {
            return Err(Violation::AfterEnd(frame.kind));
        }
        let bytes = HEADER_BYTES + frame.payload.len();
        if !self.held.is_empty() && self.held_bytes + bytes > self.window_bytes {
            return Err(Violation::WindowExceeded);
        }
        let sequence = self.ack_sent + self.held.len() as u64;
        self.held.push_back(Held { bytes, consumed: false });
        self.held_bytes += bytes;
        match frame.kind {
            Kind::Signal => {
                let name = String::from_utf8_lossy(&frame.payload[..frame.payload.len().min(32)]).into_owned();
                // A signal has no consumer that could be slow.
                self.consumed(sequence, now);
                Ok(Event::Signal(name))
            }
            Kind::Exit => {
                self.exit_received = true;
                let exit = Exit::decode(&frame.payload).ok_or(Violation::UnknownExit)?;
                Ok(Event::Exit { sequence, exit })
            }
            stream => {
                let ended = &mut self.ended[stream as usize];
                if *ended {
                    return Err(Violation::AfterEnd(stream));
                }
                *ended = frame.payload.is_empty();
                let is_short = frame.payload.len() < COPY_BELOW_BYTES;
                let payload = if is_short { Bytes::copy_from_slice(&frame.payload) } else { frame.payload };
                Ok(Event::Data { stream, sequence, payload })
            }
        }
    }

    fn acknowledge(&mut self, payload: &[u8], now: Instant) -> Result<(), Violation> {
        let count = payload.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        if count < self.acked || count > self.acked + self.cursor as u64 {
            return Err(Violation::AckOutOfRange(count));
        }
        let kept_bytes = self.kept_bytes;
        while self.acked < count {
            if let Some(wire) = self.kept.pop_front() {
                self.kept_bytes -= wire.len();
                self.spare(wire);
            }
            self.acked += 1;
            self.cursor -= 1;
        }
        self.flight.acknowledged(count, kept_bytes - self.kept_bytes, now);
        Ok(())
    }

    /// Keeps the memory of a frame that is not needed any more, if it was a large one, for another.
    fn spare(&mut self, wire: Bytes) {
        if wire.len() >= SPARED_FROM_BYTES
            && self.spares.len() < MAX_SPARES
            && let Ok(wire) = wire.try_into_mut()
        {
            self.spares.push(wire);
        }
    }

    /// The memory of an earlier frame, with its bytes.
    pub fn spare_frame(&mut self) -> Option<BytesMut> {
        self.spares.pop()
    }

    // What this side has consumed.

    /// Reports that a frame has been handed on: written to where it belongs, or dropped because nobody reads there.
    pub fn consumed(&mut self, sequence: u64, now: Instant) {
        self.mark_consumed(sequence);
        let frames = self.consumed - self.ack_sent;
        if frames == 0 {
            return;
        }
        let last = self.exit_received && self.consumed == self.ack_sent + self.held.len() as u64;
        let is_due = match self.consumed_bytes {
            bytes if bytes >= ACK_BYTES.min(self.window_bytes / 4) => true,
            bytes => bytes >= SPACED_ACK_BYTES && now.saturating_duration_since(self.acked_at) >= ACK_SPACING,
        };
        if last || frames >= ACK_FRAMES || is_due {
            self.queue_ack(now);
        } else {
            self.ack_due.get_or_insert(now + ACK_DELAY);
        }
    }

    fn mark_consumed(&mut self, sequence: u64) {
        if let Some(held) = self.held.get_mut((sequence - self.ack_sent) as usize) {
            held.consumed = true;
        }
        while let Some(held) = self.held.get((self.consumed - self.ack_sent) as usize)
            && held.consumed
        {
            self.consumed_bytes += held.bytes;
            self.consumed += 1;
        }
    }

    /// Queues an ACK of everything consumed, if there is news.
    fn queue_ack(&mut self, now: Instant) {
        self.ack_due = None;
        let count = self.consumed - self.ack_sent;
        if count == 0 {
            return;
        }
        self.held.drain(..count as usize);
        self.held_bytes -= self.consumed_bytes;
        self.consumed_bytes = 0;
        self.acked_at = now;
        self.ack_sent = self.consumed;
        let count = self.consumed.to_be_bytes();
        match self.unsent_ack {
            Some(place) => {
                let start = self.control.len() - place + HEADER_BYTES;
                self.control[start..start + count.len()].copy_from_slice(&count);
            }
            None => self.queue_control(Kind::Ack, &count),
        }
    }

    /// Lets an ACK ride along when data leaves anyway. To be called before [`Session::transmit`].
    pub fn before_transmit(&mut self, now: Instant) {
        if self.may_send_frame() {
            self.queue_ack(now);
        }
    }

    // Time.

    /// When [`Session::on_time`] wants to be called next.
    pub fn deadline(&self) -> Instant {
        let alive = self.liveness.deadline();
        self.ack_due.map_or(alive, |due| due.min(alive))
    }

    /// Does what is due: sends delayed ACKs, asks for a sign of life, and judges that there is none.
    pub fn on_time(&mut self, now: Instant) -> Verdict {
        if self.ack_due.is_some_and(|due| due <= now) {
            self.queue_ack(now);
        }
        if self.kept.is_empty() {
            self.spares = Vec::new();
        }
        self.decoder.let_go();
        let verdict = self.liveness.on_time(now);
        if let Verdict::Ask(opaque) | Verdict::Suspect(opaque) = verdict
            && self.control.len() < MAX_CONTROL_BYTES
        {
            self.queue_control(Kind::Ping, &opaque);
        }
        verdict
    }

    /// Whether the peer has left a question without an answer.
    pub fn is_suspect(&self) -> bool {
        self.liveness.is_suspect()
    }

    /// Makes the next question due at once: something has happened to the network or to this machine.
    pub fn doubt(&mut self, now: Instant) {
        self.liveness.doubt(now);
    }

    // Resuming.

    /// Bytes held in memory: frames that are not acknowledged, and frames that are not consumed.
    pub fn memory_bytes(&self) -> usize {
        self.kept_bytes + self.held_bytes
    }

    /// Bytes of frames that the peer has not acknowledged.
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Bytes of received frames that are not acknowledged.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// How many sequenced frames have been received whole and in order, consumed or not.
    pub fn received_count(&self) -> u64 {
        self.ack_sent + self.held.len() as u64
    }

    /// The number of the first frame that is not acknowledged, and all those frames as they stand on the wire, where there
    /// are any and they are no more than `max_bytes` and the window. They count as sent: whoever is given them may have received them.
    pub fn early(&mut self, max_bytes: usize) -> Option<(u64, Vec<u8>)> {
        if self.kept.is_empty() || self.kept_bytes > max_bytes.min(self.window_bytes) {
            return None;
        }
        self.transmitted = self.transmitted.max(self.acked + self.kept.len() as u64);
        Some((self.acked, self.kept.iter().flatten().copied().collect()))
    }

    /// Carries the session on over a new connection, whose other end has received `peer_received` frames.
    ///
    /// # Errors
    /// The count, where it cannot be: fewer than were acknowledged, or more than were sent. Nothing has changed then.
    pub fn resume(&mut self, peer_received: u64, now: Instant) -> Result<(), Violation> {
        if peer_received < self.acked || peer_received > self.transmitted.max(self.acked) {
            return Err(Violation::AckOutOfRange(peer_received));
        }
        self.cursor = (peer_received - self.acked) as usize;
        self.unsent_bytes = self.kept.iter().skip(self.cursor).map(Bytes::len).sum();
        self.partial = Partial::Nothing;
        self.control.clear();
        self.unsent_ack = None;
        self.decoder.reset();
        // The peer may have missed the last ACK.
        self.queue_control(Kind::Ack, &self.ack_sent.to_be_bytes());
        self.liveness.restart(now);
        self.expect_round_trip(Duration::ZERO);
        Ok(())
    }

    /// The connection's handshake has taken `round_trip`: all that is known of its path as long as it carries nothing.
    pub fn expect_round_trip(&mut self, round_trip: Duration) {
        self.flight = Flight::new(round_trip);
    }

    /// Which half of the protocol this is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The measured round trip, once there was an answer to a PING.
    pub fn round_trip(&self) -> Option<Duration> {
        self.liveness.round_trip()
    }
}
