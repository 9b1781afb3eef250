//! What one end receives: sequenced frames, counted until they are consumed and that is said.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::{Event, Exit, Violation};
use crate::protocol::frame::{Decoder, FRAME_BYTES, Frame, FrameError, HEADER_BYTES, Kind, Role, WIRE_BYTES};

/// Consumed bytes after which an ACK is sent whatever else happens: often enough that what the peer keeps is what is in
/// flight, seldom enough to cost nothing.
const ACK_BYTES: usize = 2 * WIRE_BYTES;
/// A larger window is that of a long path, which is fast where so much comes at once: each ACK wakes whoever is on the way.
const ACKS_PER_WINDOW: usize = 64;
/// Consumed bytes after which an ACK is sent [`ACK_SPACING`] after the last one: a slow path is measured by its ACKs, and whoever
/// has all in flight that he may waits for them.
const SPACED_ACK_BYTES: usize = 32 << 10;
pub(super) const ACK_SPACING: Duration = Duration::from_millis(2);
/// Consumed frames after which an ACK is sent, for the same reason where frames are small.
const ACK_FRAMES: u64 = 64;
/// How long an ACK waits for data that it can ride along with.
pub(super) const ACK_DELAY: Duration = Duration::from_millis(20);
/// A shorter payload is handed on in an allocation of its own: a slow consumer of small frames must not keep the large
/// buffers that they came in.
pub(super) const COPY_BELOW_BYTES: usize = 16 << 10;
/// The same while so much waits already that the consumer is slow: a peer can have anything that does not count in the rest of the
/// buffer. A frame of a source that has much is longer.
const COPY_WAITING_BELOW_BYTES: usize = FRAME_BYTES / 2;
const SLOW_BYTES: usize = 4 * WIRE_BYTES;
/// Most bytes of a signal's name that are looked at.
const MAX_SIGNAL_BYTES: usize = 32;

/// A frame received and not yet acknowledged: its bytes, and whether it is consumed. A peer may send as many as a window holds of the
/// smallest, so one takes no more than that does.
#[derive(Clone, Copy, Debug)]
struct Held(u32);

impl Held {
    const CONSUMED: u32 = 1 << 31;

    /// A frame's length takes 24 bits.
    fn new(bytes: usize) -> Held {
        Held(bytes as u32 & !Held::CONSUMED)
    }

    fn bytes(self) -> usize {
        (self.0 & !Held::CONSUMED) as usize
    }

    fn is_consumed(self) -> bool {
        self.0 & Held::CONSUMED != 0
    }
}

/// The receiving half of a session's end.
#[derive(Debug)]
pub(super) struct Incoming {
    window_bytes: usize,
    decoder: Decoder,
    /// Frames received and not acknowledged, first the number `ack_sent`.
    held: VecDeque<Held>,
    held_bytes: usize,
    ack_sent: u64,
    /// Number up to which all frames are consumed, and the bytes since the last ACK.
    pub(super) consumed: u64,
    consumed_bytes: usize,
    ack_due: Option<Instant>,
    acked_at: Instant,
    ended: [bool; 3],
    exit_received: bool,
}

impl Incoming {
    pub(super) fn new(role: Role, window_bytes: usize, now: Instant) -> Incoming {
        Incoming {
            window_bytes,
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
        }
    }

    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        self.decoder.buffer()
    }

    /// See [`Session::room_to_receive`](super::Session::room_to_receive).
    pub(super) fn room(&mut self, frame_bytes: usize, least_bytes: usize) -> &mut BytesMut {
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

    /// The next whole frame.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        self.decoder.next_frame()
    }

    /// Takes a sequenced frame: its number, and what it is for the one who asked.
    ///
    /// # Errors
    /// Where the peer may not send it.
    pub(super) fn accept(&mut self, frame: Frame) -> Result<(u64, Event), Violation> {
        if self.exit_received {
            return Err(Violation::AfterEnd(frame.kind));
        }
        let bytes = HEADER_BYTES + frame.payload.len();
        if !self.held.is_empty() && self.held_bytes + bytes > self.window_bytes {
            return Err(Violation::WindowExceeded);
        }
        let sequence = self.received_count();
        self.held.push_back(Held::new(bytes));
        self.held_bytes += bytes;
        let event = match frame.kind {
            Kind::Signal => {
                let name = &frame.payload[..frame.payload.len().min(MAX_SIGNAL_BYTES)];
                Event::Signal(String::from_utf8_lossy(name).into_owned())
            }
            Kind::Exit => {
                self.exit_received = true;
                let exit = Exit::decode(&frame.payload).ok_or(Violation::UnknownExit)?;
                Event::Exit { sequence, exit }
            }
            stream => {
                let ended = &mut self.ended[stream as usize];
                if *ended {
                    return Err(Violation::AfterEnd(stream));
                }
                *ended = frame.payload.is_empty();
                let is_slow = self.held_bytes - self.consumed_bytes > SLOW_BYTES;
                let least_bytes = if is_slow { COPY_WAITING_BELOW_BYTES } else { COPY_BELOW_BYTES };
                let is_short = frame.payload.len() < least_bytes;
                let payload = if is_short { Bytes::copy_from_slice(&frame.payload) } else { frame.payload };
                Event::Data { stream, sequence, payload }
            }
        };
        Ok((sequence, event))
    }

    /// A frame has been handed on; returns whether an ACK is to be sent now. Else it may wait.
    pub(super) fn consumed(&mut self, sequence: u64, now: Instant) -> bool {
        self.mark_consumed(sequence);
        let frames = self.consumed - self.ack_sent;
        if frames == 0 {
            return false;
        }
        let is_last = self.exit_received && self.consumed == self.received_count();
        let spaced = self.acked_at + ACK_SPACING;
        let is_bulk = self.consumed_bytes >= SPACED_ACK_BYTES;
        let is_much = self.consumed_bytes >= self.ack_bytes() || frames >= ACK_FRAMES;
        let is_due = is_last || is_much || (is_bulk && now >= spaced);
        if !is_due {
            let due = if is_bulk { spaced } else { now + ACK_DELAY };
            self.ack_due = Some(self.ack_due.map_or(due, |earlier| earlier.min(due)));
        }
        is_due
    }

    /// Consumed bytes after which an ACK is sent whatever else happens.
    fn ack_bytes(&self) -> usize {
        ACK_BYTES.max(self.window_bytes / ACKS_PER_WINDOW).min(self.window_bytes / 4)
    }

    fn mark_consumed(&mut self, sequence: u64) {
        if let Some(held) = self.held.get_mut((sequence - self.ack_sent) as usize) {
            held.0 |= Held::CONSUMED;
        }
        while let Some(held) = self.held.get((self.consumed - self.ack_sent) as usize)
            && held.is_consumed()
        {
            self.consumed_bytes += held.bytes();
            self.consumed += 1;
        }
    }

    /// What an ACK that is sent now says, if there is news.
    pub(super) fn take_ack(&mut self, now: Instant) -> Option<u64> {
        self.ack_due = None;
        let count = self.consumed - self.ack_sent;
        if count == 0 {
            return None;
        }
        self.held.drain(..count as usize);
        self.held_bytes -= self.consumed_bytes;
        self.consumed_bytes = 0;
        self.acked_at = now;
        self.ack_sent = self.consumed;
        Some(self.consumed)
    }

    /// When an ACK has waited for long enough.
    pub(super) fn ack_due(&self) -> Option<Instant> {
        self.ack_due
    }

    /// What the last ACK has said.
    pub(super) fn ack_sent(&self) -> u64 {
        self.ack_sent
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The same with what holding them takes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.held_bytes + self.held.len() * size_of::<Held>()
    }

    pub(super) fn received_count(&self) -> u64 {
        self.ack_sent + self.held.len() as u64
    }

    /// Forgets what a connection that is gone has brought of a frame.
    pub(super) fn resume(&mut self) {
        self.decoder.reset();
    }

    /// Gives back the memory that nothing received is in.
    pub(super) fn let_go(&mut self) {
        self.decoder.let_go();
    }
}
