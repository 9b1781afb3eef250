//! What one end sends: sequenced frames, kept until the peer has consumed them, and control frames, which are sent once.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Deref;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, BytesMut};

use super::Violation;
use crate::protocol::flight::Flight;
use crate::protocol::frame::{self, FRAME_BYTES, HEADER_BYTES, Kind, MAX_PAYLOAD_BYTES};

/// Bytes of unsent control frames above which nothing more is asked or answered: a peer that asks faster than it reads.
pub(super) const MAX_CONTROL_BYTES: usize = 1024;
/// Less room than that is none, where the window has more: a path would fill with crumbs.
pub(super) const MIN_ROOM_BYTES: usize = 4 << 10;
/// What a kept frame takes beside its bytes: its place among them, and the allocator's least. It counts against the window, or of tiny
/// frames a window would be many times its size in memory.
pub(super) const KEPT_OVERHEAD_BYTES: usize = size_of::<Wire>() + 32;
/// How many frames' memory is held to be used again, where there are not even more of them unacknowledged.
const SPARES: usize = 8;

/// A sequenced frame as it stands on the wire: the beginning of memory that may be larger, and is not blanked when it is used again.
#[derive(Debug)]
pub(super) struct Wire {
    memory: Vec<u8>,
    bytes: usize,
}

impl Wire {
    /// The first `bytes` of `memory`.
    pub(super) fn of(memory: Vec<u8>, bytes: usize) -> Wire {
        Wire { bytes: bytes.min(memory.len()), memory }
    }
}

impl Deref for Wire {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.bytes]
    }
}

/// What stands on the connection unfinished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Partial {
    Nothing,
    /// This many bytes of the frame under the cursor are sent.
    Frame(usize),
    /// Some bytes of the control frames are sent; they are gone from the buffer.
    Control,
}

/// The sending half of a session's end.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) window_bytes: usize,
    /// Unacknowledged frames as they stand on the wire; the first has number `acked`.
    pub(super) kept: VecDeque<Wire>,
    kept_bytes: usize,
    pub(super) acked: u64,
    /// Memory of frames that were acknowledged, for the next ones.
    spares: Vec<Vec<u8>>,
    /// Index into `kept` of the next frame for this connection.
    pub(super) cursor: usize,
    unsent_bytes: usize,
    /// How many frames any connection has carried, at least in part: what the peer can claim to have.
    transmitted: u64,
    pub(super) control: BytesMut,
    /// Where in `control` the last ACK stands, in bytes from its end, while nothing of it is sent: a newer one takes its
    /// place, so that a peer that sends and never reads makes nothing grow.
    unsent_ack: Option<usize>,
    partial: Partial,
    /// Nothing sequenced follows any more.
    is_ended: bool,
    flight: Flight,
}

impl Outgoing {
    pub(super) fn new(window_bytes: usize) -> Outgoing {
        Outgoing {
            window_bytes,
            kept: VecDeque::new(),
            kept_bytes: 0,
            acked: 0,
            spares: Vec::new(),
            cursor: 0,
            unsent_bytes: 0,
            transmitted: 0,
            control: BytesMut::new(),
            unsent_ack: None,
            partial: Partial::Nothing,
            is_ended: false,
            flight: Flight::new(Duration::ZERO),
        }
    }

    /// How many bytes of payload the next data frame may have; 0 while the window, or the path, is full.
    pub(super) fn room(&self) -> usize {
        if self.is_ended {
            return 0;
        }
        if self.kept.is_empty() {
            // A single frame may be larger than the window; only where that is tiny is it.
            return self.window_bytes.saturating_sub(HEADER_BYTES).clamp(MIN_ROOM_BYTES, MAX_PAYLOAD_BYTES);
        }
        let overhead_bytes = self.kept.len() * KEPT_OVERHEAD_BYTES;
        let limit = self.window_bytes.saturating_sub(overhead_bytes).min(self.flight.limit_bytes());
        match limit.saturating_sub(self.kept_bytes + HEADER_BYTES) {
            room if room < MIN_ROOM_BYTES.min(limit / 4) => 0,
            room => room.min(self.flight.frame_bytes()).min(MAX_PAYLOAD_BYTES),
        }
    }

    pub(super) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// The same with what keeping them takes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.kept_bytes + self.kept.len() * KEPT_OVERHEAD_BYTES
    }

    pub(super) fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// Queues a sequenced frame.
    pub(super) fn keep(&mut self, wire: Wire) {
        debug_assert!(!self.is_ended);
        self.kept_bytes += wire.len();
        self.unsent_bytes += wire.len();
        self.kept.push_back(wire);
    }

    pub(super) fn end(&mut self) {
        self.is_ended = true;
    }

    /// Whether everything is acknowledged, and nothing follows.
    pub(super) fn is_finished(&self) -> bool {
        self.is_ended && self.kept.is_empty()
    }

    pub(super) fn queue_control(&mut self, kind: Kind, payload: &[u8]) {
        self.control.put_slice(&frame::header(kind, payload.len()));
        self.control.put_slice(payload);
        self.unsent_ack = match kind {
            Kind::Ack => Some(HEADER_BYTES + payload.len()),
            _ => self.unsent_ack.map(|place| place + HEADER_BYTES + payload.len()),
        };
    }

    /// The same, unless too much waits already.
    pub(super) fn queue_control_if_read(&mut self, kind: Kind, payload: &[u8]) {
        if self.control.len() < MAX_CONTROL_BYTES {
            self.queue_control(kind, payload);
        }
    }

    /// Queues an ACK of all frames before `count`, in place of one that is not sent yet.
    pub(super) fn queue_ack(&mut self, count: u64) {
        let count = count.to_be_bytes();
        match self.unsent_ack {
            Some(place) => {
                let start = self.control.len() - place + HEADER_BYTES;
                self.control[start..start + count.len()].copy_from_slice(&count);
            }
            None => self.queue_control(Kind::Ack, &count),
        }
    }

    pub(super) fn wants_transmit(&self) -> bool {
        !self.control.is_empty() || self.may_send_frame()
    }

    pub(super) fn may_send_frame(&self) -> bool {
        let is_begun = matches!(self.partial, Partial::Frame(_));
        let fits = |wire: &Wire| self.fits_window(self.kept_bytes - self.unsent_bytes, wire);
        self.kept.get(self.cursor).is_some_and(|wire| is_begun || fits(wire))
    }

    /// Whether the peer has room for a frame behind `ahead` bytes. What nobody can hold back (the end of a stream, a
    /// signal, EXIT) may be queued beyond the window, and waits here.
    fn fits_window(&self, ahead: usize, wire: &Wire) -> bool {
        ahead == 0 || ahead + wire.len() <= self.window_bytes
    }

    /// The bytes to send next, in order, as many as `slices` has places for; returns how many places were filled.
    pub(super) fn transmit<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
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

    /// Reports that the first `count` bytes of what [`Outgoing::transmit`] gave are on the connection; returns whether any of
    /// them were a sequenced frame's.
    pub(super) fn transmitted(&mut self, mut count: usize, now: Instant) -> bool {
        let unsent_bytes = self.unsent_bytes;
        while count > 0 {
            let offset = match self.partial {
                Partial::Frame(sent) => sent,
                Partial::Nothing | Partial::Control if !self.control.is_empty() => {
                    let sent = count.min(self.control.len());
                    self.control.advance(sent);
                    self.unsent_ack = self.unsent_ack.filter(|place| *place <= self.control.len());
                    count -= sent;
                    self.partial = if self.control.is_empty() { Partial::Nothing } else { Partial::Control };
                    continue;
                }
                Partial::Nothing | Partial::Control => 0,
            };
            let Some(wire) = self.kept.get(self.cursor) else {
                debug_assert!(false, "more was sent than there was");
                break;
            };
            let sent = count.min(wire.len() - offset);
            count -= sent;
            self.unsent_bytes -= sent;
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
        self.unsent_bytes < unsent_bytes
    }

    /// The peer has consumed all frames before the number in `payload`.
    ///
    /// # Errors
    /// The number, where it cannot be.
    pub(super) fn acknowledge(&mut self, payload: &[u8], now: Instant) -> Result<(), Violation> {
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

    /// Keeps the memory of a frame that is not needed any more for another, if it is that of a whole one.
    fn spare(&mut self, wire: Wire) {
        if wire.memory.len() == FRAME_BYTES && self.spares.len() < self.kept.len().max(SPARES) {
            self.spares.push(wire.memory);
        }
    }

    pub(super) fn spare_frame(&mut self) -> Option<Vec<u8>> {
        self.spares.pop()
    }

    /// Gives back the memory that nothing in flight will need.
    pub(super) fn let_go(&mut self) {
        if self.kept.is_empty() {
            self.spares = Vec::new();
        }
    }

    /// See [`Session::early`](super::Session::early).
    pub(super) fn early(&mut self, max_bytes: usize) -> Option<(u64, Vec<u8>)> {
        if self.kept.is_empty() || self.kept_bytes > max_bytes.min(self.window_bytes) {
            return None;
        }
        self.transmitted = self.transmitted.max(self.acked + self.kept.len() as u64);
        Some((self.acked, self.kept.iter().flat_map(|wire| wire.iter()).copied().collect()))
    }

    /// Goes on over a new connection, whose other end has received `peer_received` frames. Control frames are gone with the old
    /// one.
    ///
    /// # Errors
    /// The count, where it cannot be: fewer than were acknowledged, or more than were sent. Nothing has changed then.
    pub(super) fn resume(&mut self, peer_received: u64) -> Result<(), Violation> {
        if peer_received < self.acked || peer_received > self.transmitted.max(self.acked) {
            return Err(Violation::AckOutOfRange(peer_received));
        }
        self.cursor = (peer_received - self.acked) as usize;
        self.unsent_bytes = self.kept.iter().skip(self.cursor).map(|wire| wire.len()).sum();
        self.partial = Partial::Nothing;
        self.control.clear();
        self.unsent_ack = None;
        Ok(())
    }

    /// The connection's handshake has taken `round_trip`.
    pub(super) fn expect_round_trip(&mut self, round_trip: Duration) {
        self.flight = Flight::new(round_trip);
    }
}
