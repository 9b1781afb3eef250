//! One end of a `tstunnel/1` session: numbers what it sends, keeps it until the peer has consumed it, and tells what
//! the peer sent. Received bytes and the time come in, bytes to send and events come out. No I/O, no clock.
//!
//! Invariants: a sequenced frame is kept until an ACK covers it; at most a window of unacknowledged frames is sent (or
//! one single frame), and no more is kept but for ends, signals and EXIT that wait behind it; what the peer sends is handed
//! on in order and once; and at most a window of it is held for a consumer that is slow.

mod event;
mod incoming;
mod outgoing;
#[cfg(test)]
mod tests;

use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::frame::{self, HEADER_BYTES, Kind, MAX_ERROR_BYTES, Role};
use super::liveness::{Liveness, Policy, Verdict};
use incoming::Incoming;
use outgoing::{Outgoing, Wire};

pub use event::{Event, Exit, Violation};

/// Most bytes of unacknowledged sequenced frames, headers counted, where nothing else was agreed: 1 Gbit/s for 130 ms.
pub const DEFAULT_WINDOW_BYTES: usize = 16 << 20;
/// The largest window that a client agrees to, whatever it is offered: what a server can make it hold.
pub const MAX_WINDOW_BYTES: usize = 256 << 20;

/// One end of a session.
#[derive(Debug)]
pub struct Session {
    role: Role,
    outgoing: Outgoing,
    incoming: Incoming,
    liveness: Liveness,
}

impl Session {
    /// A new session's end, with nothing sent or received.
    pub fn new(role: Role, window_bytes: usize, policy: Policy, now: Instant) -> Session {
        Session {
            role,
            outgoing: Outgoing::new(window_bytes),
            incoming: Incoming::new(role, window_bytes, now),
            liveness: Liveness::new(policy, now),
        }
    }

    /// Which half of the protocol this is.
    pub fn role(&self) -> Role {
        self.role
    }

    // What this side sends.

    /// How many bytes of payload the next data frame may have; 0 while the window, or the path, is full.
    pub fn room(&self) -> usize {
        self.outgoing.room()
    }

    /// The memory of an earlier frame, [`FRAME_BYTES`](frame::FRAME_BYTES) with whatever is in them.
    pub fn spare_frame(&mut self) -> Option<Vec<u8>> {
        self.outgoing.spare_frame()
    }

    /// Queues a data frame that is the first `bytes` of `memory`. Its header has been left free: the first [`HEADER_BYTES`] are
    /// written here.
    pub fn queue_data(&mut self, stream: Kind, mut memory: Vec<u8>, bytes: usize) {
        let header = frame::header(stream, bytes - HEADER_BYTES);
        memory[..HEADER_BYTES].copy_from_slice(&header);
        self.outgoing.keep(Wire::of(memory, bytes));
    }

    /// Queues any other sequenced frame.
    fn queue(&mut self, kind: Kind, payload: &[u8]) {
        let wire = frame::encode(kind, payload);
        let bytes = wire.len();
        self.outgoing.keep(Wire::of(wire, bytes));
    }

    /// Queues the end of a stream.
    pub fn queue_end(&mut self, stream: Kind) {
        self.queue(stream, b"");
    }

    /// Queues how the process ended; nothing sequenced may follow.
    pub fn queue_exit(&mut self, exit: Exit) {
        self.queue(Kind::Exit, &exit.encode());
        self.outgoing.end();
    }

    /// Nothing sequenced follows any more, not even EXIT: the session is finished once everything is acknowledged.
    pub fn queue_nothing_more(&mut self) {
        self.outgoing.end();
    }

    /// Queues a signal for the process: a name without `SIG` (RFC 4254 §6.9).
    pub fn queue_signal(&mut self, name: &str) {
        self.queue(Kind::Signal, name.as_bytes());
    }

    /// Queues CLOSE: the peer shall end the process and keep nothing.
    pub fn queue_close(&mut self) {
        self.outgoing.queue_control(Kind::Close, b"");
    }

    /// Queues a last word; the caller closes the connection once it is sent.
    pub fn queue_error(&mut self, text: &str) {
        let mut end = text.len().min(MAX_ERROR_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.outgoing.queue_control(Kind::Error, &text.as_bytes()[..end]);
    }

    /// Whether everything queued, its end among it, has been acknowledged: the session is over for a server.
    pub fn is_finished(&self) -> bool {
        self.outgoing.is_finished()
    }

    // The connection, outgoing.

    /// Whether there is anything to send now.
    pub fn wants_transmit(&self) -> bool {
        self.outgoing.wants_transmit()
    }

    /// Lets an ACK ride along when data leaves anyway. To be called before [`Session::transmit`].
    pub fn before_transmit(&mut self, now: Instant) {
        if self.outgoing.may_send_frame() {
            self.queue_ack(now);
        }
    }

    /// The bytes to send next, in order, as many as `slices` has places for; returns how many places were filled.
    pub fn transmit<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.outgoing.transmit(slices)
    }

    /// Reports that the first `count` bytes of what [`Session::transmit`] gave are on the connection.
    pub fn transmitted(&mut self, count: usize, now: Instant) {
        if self.outgoing.transmitted(count, now) {
            self.liveness.sent_data(now);
        }
    }

    /// Bytes of sequenced frames that wait for the connection.
    pub fn unsent_bytes(&self) -> usize {
        self.outgoing.unsent_bytes()
    }

    // The connection, incoming.

    /// The buffer that received bytes are appended to.
    pub fn receive_buffer(&mut self) -> &mut BytesMut {
        self.incoming.buffer()
    }

    /// The same with room for what is missing of a frame that has begun; for `frame_bytes` where none has, and there is not
    /// even room for `least_bytes`.
    pub fn room_to_receive(&mut self, frame_bytes: usize, least_bytes: usize) -> &mut BytesMut {
        self.incoming.room(frame_bytes, least_bytes)
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
        while let Some(frame) = self.incoming.next_frame()? {
            if frame.kind.is_sequenced() {
                self.liveness.received_data(now);
                let (sequence, event) = self.incoming.accept(frame)?;
                if matches!(event, Event::Signal(_)) {
                    // It has no consumer that could be slow.
                    self.consumed(sequence, now);
                }
                return Ok(Some(event));
            }
            match frame.kind {
                Kind::Ping => {
                    self.liveness.questioned(now);
                    self.outgoing.queue_control_if_read(Kind::Pong, &frame.payload);
                }
                Kind::Pong => self.liveness.answered(&frame.payload, now),
                Kind::Ack => self.outgoing.acknowledge(&frame.payload, now)?,
                Kind::Close => return Ok(Some(Event::Close)),
                _ => {
                    let text = &frame.payload[..frame.payload.len().min(MAX_ERROR_BYTES)];
                    return Ok(Some(Event::Error(String::from_utf8_lossy(text).into_owned())));
                }
            }
        }
        Ok(None)
    }

    /// Reports that a frame has been handed on: written to where it belongs, or dropped because nobody reads there.
    pub fn consumed(&mut self, sequence: u64, now: Instant) {
        if self.incoming.consumed(sequence, now) {
            self.queue_ack(now);
        }
    }

    /// Queues an ACK of everything consumed, if there is news.
    fn queue_ack(&mut self, now: Instant) {
        if let Some(count) = self.incoming.take_ack(now) {
            self.outgoing.queue_ack(count);
        }
    }

    // Time.

    /// When [`Session::on_time`] wants to be called next.
    pub fn deadline(&self) -> Instant {
        let alive = self.liveness.deadline();
        self.incoming.ack_due().map_or(alive, |due| due.min(alive))
    }

    /// Does what is due: sends delayed ACKs, asks for a sign of life, and judges that there is none.
    pub fn on_time(&mut self, now: Instant) -> Verdict {
        if self.incoming.ack_due().is_some_and(|due| due <= now) {
            self.queue_ack(now);
        }
        self.outgoing.let_go();
        self.incoming.let_go();
        let verdict = self.liveness.on_time(now);
        if let Verdict::Ask(opaque) | Verdict::Suspect(opaque) = verdict {
            self.outgoing.queue_control_if_read(Kind::Ping, &opaque);
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

    /// Whether the peer has answered a question that was asked then or later: what it had sent until it got that has been received.
    pub fn has_answered_since(&self, then: Instant) -> bool {
        self.liveness.has_answered_since(then)
    }

    // Resuming.

    /// Bytes that it takes in memory: frames that are not acknowledged, and frames that are not consumed.
    pub fn memory_bytes(&self) -> usize {
        self.outgoing.memory_bytes() + self.incoming.memory_bytes()
    }

    /// Bytes of frames that the peer has not acknowledged.
    pub fn kept_bytes(&self) -> usize {
        self.outgoing.kept_bytes()
    }

    /// Bytes of received frames that are not acknowledged.
    pub fn held_bytes(&self) -> usize {
        self.incoming.held_bytes()
    }

    /// How many sequenced frames have been received whole and in order, consumed or not.
    pub fn received_count(&self) -> u64 {
        self.incoming.received_count()
    }

    /// The number of the first frame that is not acknowledged, and all those frames as they stand on the wire, where there
    /// are any and they are no more than `max_bytes` and the window. They count as sent: whoever is given them may have received them.
    pub fn early(&mut self, max_bytes: usize) -> Option<(u64, Vec<u8>)> {
        self.outgoing.early(max_bytes)
    }

    /// Carries the session on over a new connection, whose other end has received `peer_received` frames.
    ///
    /// # Errors
    /// The count, where it cannot be: fewer than were acknowledged, or more than were sent. Nothing has changed then.
    pub fn resume(&mut self, peer_received: u64, now: Instant) -> Result<(), Violation> {
        self.outgoing.resume(peer_received)?;
        self.incoming.resume();
        // The peer may have missed the last ACK.
        self.outgoing.queue_ack(self.incoming.ack_sent());
        self.liveness.restart(now);
        self.expect_round_trip(Duration::ZERO);
        Ok(())
    }

    /// The connection's handshake has taken `round_trip`: all that is known of its path as long as it carries nothing.
    pub fn expect_round_trip(&mut self, round_trip: Duration) {
        self.outgoing.expect_round_trip(round_trip);
    }

    /// The measured round trip, once there was an answer to a PING.
    pub fn round_trip(&self) -> Option<Duration> {
        self.liveness.round_trip()
    }

    /// How long nothing has been heard from the peer.
    pub fn silence(&self, now: Instant) -> Duration {
        self.liveness.silence(now)
    }
}
