//! A model of connections: what is written to one end arrives later, in pieces, in part, or not at all.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use tstunnel::protocol::frame::Role;

/// What travels.
pub(crate) enum Item {
    /// The client asks to go on; it has received so many frames.
    Request(u64),
    /// The server's 101 with its own count.
    Answer(u64),
    /// Bytes of the upgraded connection.
    Bytes(Bytes),
}

/// One direction of a connection.
pub(crate) struct Lane {
    in_flight: VecDeque<(Instant, Item)>,
    bytes: usize,
    capacity: usize,
    last_due: Instant,
    /// Nothing arrives any more, and nobody is told.
    pub(crate) is_silent: bool,
    /// When its reader, once it has read everything, learns that nothing more comes.
    ended: Option<Instant>,
}

impl Lane {
    fn new(capacity: usize, now: Instant) -> Lane {
        Lane { in_flight: VecDeque::new(), bytes: 0, capacity, last_due: now, is_silent: false, ended: None }
    }

    /// How many bytes can be written now. What is written to a lane that has ended goes nowhere.
    pub(crate) fn room(&self) -> usize {
        if self.ended.is_some() { usize::MAX } else { self.capacity.saturating_sub(self.bytes) }
    }

    pub(crate) fn send(&mut self, item: Item, due: Instant) {
        if self.ended.is_some() {
            return;
        }
        if let Item::Bytes(bytes) = &item {
            self.bytes += bytes.len();
        }
        if !self.is_silent {
            self.last_due = self.last_due.max(due);
            self.in_flight.push_back((self.last_due, item));
        }
    }

    /// Bytes that have arrived, at most `limit`.
    pub(crate) fn take_bytes(&mut self, now: Instant, limit: usize) -> Option<Bytes> {
        match self.in_flight.front_mut() {
            Some((due, Item::Bytes(bytes))) if *due <= now => {
                let taken = bytes.split_to(limit.min(bytes.len()));
                self.bytes -= taken.len();
                if bytes.is_empty() {
                    self.in_flight.pop_front();
                }
                Some(taken)
            }
            _ => None,
        }
    }

    /// The count of a request or an answer that has arrived.
    pub(crate) fn take_count(&mut self, now: Instant) -> Option<u64> {
        let &(due, Item::Request(count) | Item::Answer(count)) = self.in_flight.front()? else { return None };
        (due <= now).then(|| {
            self.in_flight.pop_front();
            count
        })
    }

    /// Whether the reader has read everything and knows that nothing more comes.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.in_flight.is_empty() && self.ended.is_some_and(|ended| ended <= now)
    }

    /// The writer ends it; what is in flight still arrives.
    pub(crate) fn end(&mut self, seen: Instant) {
        if !self.is_silent && self.ended.is_none() {
            self.ended = Some(seen.max(self.last_due));
        }
    }

    /// Only `left` bytes of what is in flight still arrive; says whether a byte was lost.
    pub(crate) fn truncate(&mut self, mut left: usize) -> bool {
        let mut lost = false;
        self.in_flight.retain_mut(|(_, item)| match item {
            Item::Bytes(bytes) => {
                lost |= left < bytes.len();
                bytes.truncate(left);
                left -= bytes.len();
                !bytes.is_empty()
            }
            Item::Request(_) | Item::Answer(_) => left > 0,
        });
        lost
    }

    /// Bytes on their way.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the next thing happens here.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        let next = self.in_flight.front().map(|(due, _)| *due).or(self.ended);
        next.filter(|due| *due > now)
    }
}

/// What the server makes of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The request is on its way.
    Requested,
    /// The answer is given; the session gets the connection at this time, if the grant of this number is still the last.
    Granted(u64, Instant),
    /// It is the session's.
    Attached,
    /// It is closed.
    Dropped,
}

/// A connection between the two.
pub(crate) struct Connection {
    pub(crate) to_server: Lane,
    pub(crate) to_client: Lane,
    pub(crate) delay: Duration,
    pub(crate) phase: Phase,
    /// The frames that came with the request, and then those of them that the server lacks.
    pub(crate) early: Option<(u64, Bytes)>,
    pub(crate) client_holds: bool,
    /// Nothing was done to it.
    pub(crate) is_sound: bool,
    /// Since when both ends answer.
    pub(crate) answers_since: Instant,
}

impl Connection {
    pub(crate) fn new(capacity: usize, delay: Duration, phase: Phase, now: Instant) -> Connection {
        Connection {
            to_server: Lane::new(capacity, now),
            to_client: Lane::new(capacity, now),
            delay,
            phase,
            early: None,
            client_holds: true,
            is_sound: true,
            answers_since: now,
        }
    }

    /// The direction in which `role` writes.
    pub(crate) fn from(&mut self, role: Role) -> &mut Lane {
        match role {
            Role::Client => &mut self.to_server,
            Role::Server => &mut self.to_client,
        }
    }

    /// The direction in which `role` reads.
    pub(crate) fn to(&mut self, role: Role) -> &mut Lane {
        self.from(role.peer())
    }

    /// Whether anybody can still notice what happens here.
    pub(crate) fn is_alive(&self) -> bool {
        self.client_holds || self.phase != Phase::Dropped
    }

    /// When the next thing happens here.
    pub(crate) fn next_due(&self, now: Instant) -> Option<Instant> {
        let to_client = if self.client_holds { self.to_client.next_due(now) } else { None };
        let to_server = if self.phase == Phase::Dropped { None } else { self.to_server.next_due(now) };
        let grant = match self.phase {
            Phase::Granted(_, due) if due > now => Some(due),
            _ => None,
        };
        [to_client, to_server, grant].into_iter().flatten().min()
    }
}
