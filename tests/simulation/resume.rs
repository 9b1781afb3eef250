//! How a simulated session goes on: what `client::redial` does on one side, and `server::sessions` on the other.

use std::time::{Duration, Instant};

use tstunnel::protocol::early::{Early, MAX_EARLY_BYTES};
use tstunnel::protocol::frame::Role;

use super::super::network::{Connection, Item, Phase};
use super::super::{Fault, Seen::*};
use super::{ANSWER_TIMEOUT, Client, Path, World};

impl World<'_> {
    // What the client does about its path, as `client::redial` does it.

    pub(super) fn look_soon(&mut self) {
        if matches!(self.path, Path::Whole) {
            self.path = Path::Dialling(self.now + self.random.millis(300));
        }
    }

    pub(super) fn follow_path(&mut self) -> Result<bool, Fault> {
        let now = self.now;
        if self.client.is_frozen(now) {
            return Ok(false);
        }
        if let Client::Leaving(until) = self.life
            && (until <= now || self.client.connection.is_none())
        {
            self.leave(false);
            return Ok(true);
        }
        if !matches!(self.life, Client::Running) {
            return Ok(false);
        }
        match self.path {
            Path::Whole => Ok(false),
            Path::Dialling(until) => {
                if until > now {
                    return Ok(false);
                }
                let is_mended = self.client.connection.is_some() && !self.client.session.is_suspect();
                let has_failed = !self.is_calm && self.random.one_in(self.habits.dial_fails);
                self.path = Path::Whole;
                if is_mended {
                    self.tally.see(Mended);
                } else if has_failed {
                    self.look_soon();
                } else {
                    self.ask();
                }
                Ok(true)
            }
            Path::Asking { connection, until } => self.follow_asking(connection, until),
        }
    }

    /// Leaves the old connection and asks on a new one.
    fn ask(&mut self) {
        if let Some(old) = self.client.connection {
            self.tally.see(LeftSuspect);
            self.trace(|| format!("the client leaves {old}"));
            self.detach(Role::Client);
        }
        let index = self.connections.len();
        let max = self.habits.max_delay.as_millis() as usize;
        let delay = Duration::from_millis(self.random.below(max + 1) as u64);
        self.connections.push(Connection::new(self.habits.capacity, delay, Phase::Requested, self.now));
        let mut due = self.delay(index);
        if !self.is_calm && self.random.one_in(8) {
            due += self.random.millis(15_000);
        }
        let count = self.client.session.received_count();
        if self.random.one_in(2) {
            let max_bytes = self.random.size(MAX_EARLY_BYTES);
            let early = self.client.session.early(max_bytes);
            self.connections[index].early = early.map(|(first, frames)| (first, frames.into()));
        }
        self.connections[index].to_server.send(Item::Request(count), due);
        self.path = Path::Asking { connection: index, until: self.now + ANSWER_TIMEOUT };
        self.trace(|| format!("the client asks on {index}, having received {count}"));
    }

    fn follow_asking(&mut self, index: usize, until: Instant) -> Result<bool, Fault> {
        let now = self.now;
        if let Some(count) = self.connections[index].to_client.take_count(now) {
            self.client
                .session
                .resume(count, now)
                .map_err(|violation| format!("the client finds the server's count wrong: {violation}"))?;
            self.client.connection = Some(index);
            self.path = Path::Whole;
            self.tally.see(Resumed);
            self.trace(|| format!("the client goes on over {index}; the server has {count}"));
            let limit = self.random.size(5000);
            if let Some(leftover) = self.connections[index].to_client.take_bytes(now, limit) {
                self.take(Role::Client, &leftover, false)?;
            }
            return Ok(true);
        }
        let is_over = self.connections[index].to_client.is_over(now);
        if is_over || until <= now {
            self.tally.see(if is_over { AnswerLost } else { AnswerLate });
            self.close(Role::Client, index);
            self.path = Path::Whole;
            self.look_soon();
            return Ok(true);
        }
        Ok(false)
    }

    // What the server does with requests, as `server::sessions` does it.

    pub(super) fn follow_requests(&mut self) -> Result<bool, Fault> {
        let mut progress = false;
        if self.server.is_frozen(self.now) {
            return Ok(false);
        }
        for index in 0..self.connections.len() {
            match self.connections[index].phase {
                Phase::Requested => {
                    if let Some(count) = self.connections[index].to_server.take_count(self.now) {
                        self.grant(index, count)?;
                        progress = true;
                    } else if self.connections[index].to_server.is_over(self.now) {
                        self.close(Role::Server, index);
                        progress = true;
                    }
                }
                Phase::Granted(generation, due) if due <= self.now => {
                    if generation == self.generation {
                        self.connections[index].phase = Phase::Attached;
                        let now = self.now;
                        let since = &mut self.connections[index].answers_since;
                        *since = now.max(*since);
                        // As `Link::follow`: whatever was attached is left.
                        self.detach(Role::Server);
                        self.server.connection = Some(index);
                        if let Some((_, frames)) = self.connections[index].early.take() {
                            self.tally.see(BroughtAlong);
                            self.take(Role::Server, &frames, false)?;
                        }
                    } else {
                        self.tally.see(GrantVoid);
                        self.close(Role::Server, index);
                    }
                    progress = true;
                }
                _ => {}
            }
        }
        Ok(progress)
    }

    fn grant(&mut self, index: usize, count: u64) -> Result<(), Fault> {
        if let Err(violation) = self.server.session.resume(count, self.now) {
            if matches!(self.path, Path::Asking { connection, .. } if connection == index) {
                return Err(format!("an honest resume is refused: {violation}"));
            }
            self.tally.see(StaleRefused);
            self.close(Role::Server, index);
            return Ok(());
        }
        if let Client::Gone(held) = &mut self.life {
            // A late request of the client's, who has gone: it takes the connection with the last ACK away.
            *held = None;
        }
        if self.server.connection.is_some() {
            self.tally.see(TakenOver);
        }
        self.detach(Role::Server);
        self.generation += 1;
        let mut received = self.server.session.received_count();
        if let Some((first, frames)) = self.connections[index].early.take() {
            let early = Early::decode(first, frames).ok_or("what came with a resume is not whole frames")?;
            let (lacking, with_it) = early.behind(received);
            self.connections[index].early = (!lacking.is_empty()).then_some((received, lacking));
            received = with_it;
        }
        let answer = Item::Answer(received);
        let due = self.delay(index);
        self.connections[index].to_client.send(answer, due);
        let attached = self.now + self.random.millis(50);
        self.connections[index].phase = Phase::Granted(self.generation, attached);
        self.trace(|| format!("the server grants {index} to a client that has {count}"));
        Ok(())
    }
}
