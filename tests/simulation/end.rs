//! One end of a simulated session: what it has sent, what it must receive, and its slow consumers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use tstunnel::protocol::frame::{HEADER_BYTES, Kind, Role};
use tstunnel::protocol::liveness::Policy;
use tstunnel::protocol::session::{Event, Exit, Session};

use super::Fault;
use super::random::bytes_at;

/// How soon an idle consumer acknowledges what it has taken.
const ACK_DELAY: Duration = Duration::from_millis(20);

/// A sequenced frame that was queued: the peer must get exactly this as its next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Data { stream: Kind, position: usize, length: usize },
    Signal(usize),
    Exit(Exit),
}

/// Where a stream comes from.
pub(crate) struct Source {
    pub(crate) stream: Kind,
    pub(crate) position: usize,
    pub(crate) left: usize,
    pub(crate) is_open: bool,
}

/// Where a stream goes.
pub(crate) struct Sink {
    pub(crate) stream: Kind,
    pub(crate) queue: VecDeque<(u64, usize)>,
    pub(crate) taken: usize,
    pub(crate) is_open: bool,
    pub(crate) ended: bool,
}

/// One end.
pub(crate) struct End {
    pub(crate) role: Role,
    pub(crate) session: Session,
    pub(crate) connection: Option<usize>,
    pub(crate) sources: Vec<Source>,
    pub(crate) sinks: Vec<Sink>,
    pub(crate) sent: Vec<Sent>,
    /// Sequenced frames that were received.
    pub(crate) received: usize,
    pub(crate) exit: Option<(u64, Exit)>,
    pub(crate) exits_delivered: usize,
    pub(crate) frozen_until: Instant,
    /// Since when everything is consumed and not everything acknowledged.
    idle: Option<Instant>,
    pub(crate) window: usize,
    largest_frame: usize,
    /// Bytes of frames that nobody can hold back: ends, signals and EXIT.
    overrun: usize,
}

impl End {
    pub(crate) fn new(role: Role, window: usize, policy: Policy, plan: &[(Kind, usize)], now: Instant) -> End {
        let sinks: &[Kind] = if role == Role::Client { &[Kind::Stderr, Kind::Stdout] } else { &[Kind::Stdin] };
        End {
            role,
            session: Session::new(role, window, policy, now),
            connection: Some(0),
            sources: plan.iter().map(|&(stream, left)| Source { stream, position: 0, left, is_open: true }).collect(),
            sinks: sinks
                .iter()
                .map(|&stream| Sink { stream, queue: VecDeque::new(), taken: 0, is_open: true, ended: false })
                .collect(),
            sent: Vec::new(),
            received: 0,
            exit: None,
            exits_delivered: 0,
            frozen_until: now,
            idle: None,
            window,
            largest_frame: 0,
            overrun: 0,
        }
    }

    // What it sends.

    fn note(&mut self, sent: Sent, payload: usize) {
        self.sent.push(sent);
        self.largest_frame = self.largest_frame.max(HEADER_BYTES + payload);
    }

    /// Reads at most `size` bytes of a source into a frame, if there is room; an empty source ends.
    pub(crate) fn produce(&mut self, index: usize, size: usize) -> bool {
        let room = self.session.room();
        let source = &mut self.sources[index];
        if room == 0 || !source.is_open {
            return false;
        }
        let (stream, position) = (source.stream, source.position);
        let length = size.min(room).min(source.left);
        source.left -= length;
        source.position += length;
        if length == 0 {
            source.is_open = false;
            self.session.queue_end(stream);
        } else {
            let wire = [&[0; HEADER_BYTES], bytes_at(stream as u8, position, length)].concat();
            self.session.queue_data(stream, wire, HEADER_BYTES + length);
        }
        self.note(Sent::Data { stream, position, length }, length);
        true
    }

    /// Ends all sources, room or not.
    pub(crate) fn abandon(&mut self) {
        for index in 0..self.sources.len() {
            let source = &mut self.sources[index];
            if source.is_open {
                (source.is_open, source.left) = (false, 0);
                let (stream, position) = (source.stream, source.position);
                self.session.queue_end(stream);
                self.overrun += HEADER_BYTES;
                self.note(Sent::Data { stream, position, length: 0 }, 0);
            }
        }
    }

    pub(crate) fn signal(&mut self, number: usize) {
        self.session.queue_signal(&number.to_string());
        self.overrun += HEADER_BYTES + number.to_string().len();
        self.note(Sent::Signal(number), number.to_string().len());
    }

    pub(crate) fn end_process(&mut self, exit: Exit) {
        self.session.queue_exit(exit);
        self.overrun += HEADER_BYTES + 5;
        self.note(Sent::Exit(exit), 5);
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.sent.last(), Some(Sent::Exit(_)))
    }

    // What it receives.

    /// Takes bytes of its connection; what comes out must be what the peer has sent next.
    pub(crate) fn receive(&mut self, bytes: &Bytes, is_heard: bool, peer: &[Sent], now: Instant) -> Result<(), Fault> {
        self.idle = None;
        self.session.receive_buffer().extend_from_slice(bytes);
        if is_heard {
            self.session.received(now);
        }
        loop {
            match self.session.next_event(now) {
                Ok(None) => return Ok(()),
                Ok(Some(event)) => self.accept(event, peer, now)?,
                Err(violation) => return Err(format!("{:?} finds a violation: {violation}", self.role)),
            }
        }
    }

    fn accept(&mut self, event: Event, peer: &[Sent], now: Instant) -> Result<(), Fault> {
        let index = self.received;
        let expected = peer.get(index).ok_or_else(|| format!("{:?} got {event:?} that was never sent", self.role))?;
        let is_right = match (&event, expected) {
            (&Event::Data { stream, sequence, ref payload }, &Sent::Data { stream: kind, position, length }) => {
                sequence == index as u64 && stream == kind && payload[..] == *bytes_at(kind as u8, position, length)
            }
            (Event::Signal(name), Sent::Signal(number)) => *name == number.to_string(),
            (&Event::Exit { sequence, exit }, &Sent::Exit(sent)) => sequence == index as u64 && exit == sent,
            _ => false,
        };
        if !is_right {
            return Err(format!("{:?} got {event:.100?} as frame {index} in place of {expected:?}", self.role));
        }
        self.received += 1;
        match event {
            Event::Data { stream, sequence, payload } => {
                match self.sinks.iter_mut().find(|sink| sink.stream == stream && sink.is_open) {
                    Some(sink) => sink.queue.push_back((sequence, payload.len())),
                    None => self.session.consumed(sequence, now),
                }
            }
            Event::Exit { sequence, exit } => self.exit = Some((sequence, exit)),
            _ => {}
        }
        Ok(())
    }

    /// One consumer takes a frame; says whether there was one.
    pub(crate) fn consume(&mut self, index: usize, now: Instant) -> Result<bool, Fault> {
        let sink = &mut self.sinks[index];
        self.idle = None;
        if let Some((sequence, length)) = sink.queue.pop_front() {
            if sink.ended {
                return Err(format!("{:?} got something after the end of {:?}", self.role, sink.stream));
            }
            sink.taken += length;
            sink.ended = length == 0;
            self.session.consumed(sequence, now);
            return Ok(true);
        }
        if let Some((sequence, _)) = self.exit
            && self.sinks.iter().all(|sink| sink.queue.is_empty())
        {
            self.exit = None;
            self.exits_delivered += 1;
            self.session.consumed(sequence, now);
            return Ok(true);
        }
        Ok(false)
    }

    /// Nobody reads any more: what was taken and what comes is dropped.
    pub(crate) fn close_sinks(&mut self, now: Instant) {
        self.idle = None;
        for sink in &mut self.sinks {
            sink.is_open = false;
            for (sequence, _) in sink.queue.drain(..) {
                self.session.consumed(sequence, now);
            }
        }
    }

    // What always holds.

    pub(crate) fn check(&self, peer: &End) -> Result<(), Fault> {
        let kept = self.session.kept_bytes();
        if kept > self.window.max(self.largest_frame) + self.overrun {
            return Err(format!("{:?} keeps {kept} bytes in a window of {}", self.role, self.window));
        }
        // What waits for the consumers, whatever the machine says of it.
        let waiting = self.sinks.iter().flat_map(|sink| &sink.queue).map(|(_, length)| HEADER_BYTES + length).sum();
        let held = self.session.held_bytes().max(waiting);
        if held > self.window.max(peer.largest_frame) {
            return Err(format!("{:?} holds {held} bytes in a window of {}", self.role, self.window));
        }
        if self.received != self.session.received_count() as usize {
            return Err(format!(
                "{:?} has {} frames and says {}",
                self.role,
                self.received,
                self.session.received_count()
            ));
        }
        Ok(())
    }

    /// Once it has done what was due: whoever has consumed everything has said so soon.
    pub(crate) fn check_idle(&mut self, now: Instant) -> Result<(), Fault> {
        let is_idle = self.exit.is_none() && self.sinks.iter().all(|sink| sink.queue.is_empty());
        if !is_idle || self.session.held_bytes() == 0 || self.connection.is_none() || self.is_frozen(now) {
            self.idle = None;
        } else if now > *self.idle.get_or_insert(now) + ACK_DELAY {
            return Err(format!("{:?} has consumed everything, and does not say so", self.role));
        }
        Ok(())
    }

    pub(crate) fn is_frozen(&self, now: Instant) -> bool {
        now < self.frozen_until
    }

    /// When it wants to do something by itself.
    pub(crate) fn next_due(&self, now: Instant) -> Option<Instant> {
        if self.is_frozen(now) {
            return Some(self.frozen_until);
        }
        self.connection.map(|_| self.session.deadline().max(now + Duration::from_micros(1)))
    }
}
