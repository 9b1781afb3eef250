//! The scheduler: what the ends, the network and the clock do next, by a schedule's habits.

use std::time::Duration;

use tstunnel::protocol::frame::Role;
use tstunnel::protocol::session::Exit;

use super::super::network::Phase;
use super::super::{Fault, Seen::*};
use super::{MAX_NEGLECT, World};

impl World<'_> {
    /// Does one thing, by the schedule's habits.
    pub(super) fn act(&mut self) -> Result<(), Fault> {
        let total = self.habits.weights.iter().sum();
        let mut ticket = self.random.below(total);
        let action = self.habits.weights.iter().position(|weight| {
            let is_it = ticket < *weight;
            ticket = ticket.saturating_sub(*weight);
            is_it
        });
        let role = if self.random.one_in(2) { Role::Client } else { Role::Server };
        match action.unwrap_or(0) {
            0 => self.produce(role),
            1 | 2 => {
                let (limit, places) = (self.random.size(70_000), 1 + self.random.below(16));
                self.transmit(role, limit, places)?;
            }
            3 | 4 => {
                let limit = self.random.size(70_000);
                self.receive(role, limit)?;
            }
            5 => self.consume(role)?,
            6 => {
                self.now += self.random.millis(40);
                if self.now > self.served + MAX_NEGLECT {
                    self.serve()?;
                }
            }
            7 => self.end_something(role),
            8 => {
                let duration = self.random.millis(30_000);
                self.pass(duration)?;
            }
            9 => self.jump()?,
            10 => self.freeze(role),
            11 => self.cut(),
            12 => self.silence(),
            13 if self.is_running(Role::Client) => {
                self.client.session.doubt(self.now);
                self.look_soon();
            }
            14 if self.is_running(Role::Client) && self.signals < 50 => {
                self.client.signal(self.signals);
                self.signals += 1;
            }
            15 => {
                self.keep_time(role)?;
                self.follow_path()?;
                self.follow_requests()?;
            }
            _ => {}
        }
        Ok(())
    }

    fn produce(&mut self, role: Role) {
        if !self.is_running(role) {
            return;
        }
        let count = self.end(role).sources.len();
        let (index, size) = (self.random.below(count), self.random.size(self.habits.max_payload));
        let is_early = self.random.one_in(100);
        let end = self.end(role);
        if is_early {
            end.sources[index].left = 0;
        }
        // A stream that has nothing more ends another time.
        if end.sources[index].left > 0 && !end.produce(index, size) {
            self.tally.see(WindowFull);
        }
    }

    fn consume(&mut self, role: Role) -> Result<(), Fault> {
        if self.is_running(role) {
            let count = self.end(role).sinks.len();
            let index = self.random.below(count);
            let now = self.now;
            self.end(role).consume(index, now)?;
            self.leave_after_exit();
        }
        Ok(())
    }

    /// A half-close, a process's end, a consumer that reads no more.
    fn end_something(&mut self, role: Role) {
        if !self.is_running(role) {
            return;
        }
        let count = self.end(role).sources.len();
        let index = self.random.below(count);
        let end = self.end(role);
        if end.sources[index].left == 0 {
            end.produce(index, 1);
        }
        if role == Role::Server && !self.habits.reads_all {
            if self.random.one_in(8) {
                let now = self.now;
                self.server.close_sinks(now);
            }
            if self.random.one_in(8) {
                self.server.abandon();
            }
        }
        self.end_process();
    }

    /// EXIT follows the ends of its streams.
    pub(super) fn end_process(&mut self) -> bool {
        let may = !self.server.has_ended()
            && self.server.sources.iter().all(|source| !source.is_open)
            && (!self.habits.reads_all || self.server.sinks[0].ended);
        if may {
            let exit =
                if self.random.one_in(2) { Exit::Status(self.random.below(256) as u32) } else { Exit::Signal(9) };
            if self.server.connection.is_none() {
                self.tally.see(ExitWhileAway);
            }
            self.server.end_process(exit);
            self.trace(|| format!("{exit:?}"));
        }
        may
    }

    /// The clock jumps for both: this machine, with both on it, did not run.
    fn jump(&mut self) -> Result<(), Fault> {
        let before = self.now;
        // A shorter jump cannot be told from a peer's silence.
        self.now += self.habits.interval + Duration::from_secs(1 + self.random.size(2000) as u64);
        for connection in self.connections.iter_mut().filter(|connection| connection.answers_since > before) {
            // Who was to wake meanwhile has not run either.
            connection.answers_since = connection.answers_since.max(self.now);
        }
        self.tally.see(Jump);
        self.trace(|| "jump".to_owned());
        self.serve()
    }

    /// One end does nothing for a while.
    fn freeze(&mut self, role: Role) {
        let until = self.now + self.random.millis(60_000);
        self.end(role).frozen_until = until;
        for connection in &mut self.connections {
            connection.answers_since = connection.answers_since.max(until);
        }
        self.tally.see(Freeze);
        self.trace(|| format!("{role:?} freezes"));
    }

    fn pick_connection(&mut self) -> Option<usize> {
        let alive: Vec<usize> =
            (0..self.connections.len()).filter(|index| self.connections[*index].is_alive()).collect();
        (!alive.is_empty()).then(|| self.random.pick(&alive))
    }

    /// A connection breaks at any byte; each end learns it in its own time, or not for long.
    fn cut(&mut self) {
        let Some(index) = self.pick_connection() else { return };
        for role in [Role::Client, Role::Server] {
            let bytes = self.connections[index].from(role).bytes();
            let left = self.random.below(bytes + 2);
            let late = if self.random.one_in(4) { 60_000 } else { 50 };
            let seen = self.now + self.random.millis(late);
            let lane = self.connections[index].from(role);
            let is_inside = lane.truncate(left);
            lane.end(seen);
            if is_inside {
                self.tally.see(CutInFlight);
            }
        }
        if self.connections[index].phase != Phase::Attached {
            self.tally.see(CutWhileAsking);
        }
        self.connections[index].is_sound = false;
        self.tally.see(Cut);
        self.trace(|| format!("cut {index}"));
    }

    /// One direction, or both, carry nothing any more, and nobody is told.
    fn silence(&mut self) {
        let Some(index) = self.pick_connection() else { return };
        let which = self.random.below(3);
        for (number, role) in [Role::Client, Role::Server].into_iter().enumerate() {
            if which != number {
                let bytes = self.connections[index].from(role).bytes();
                let left = self.random.below(bytes + 2);
                let lane = self.connections[index].from(role);
                lane.truncate(left);
                lane.is_silent = true;
            }
        }
        self.connections[index].is_sound = false;
        self.tally.see(HalfOpen);
        self.trace(|| format!("silence {index}"));
    }
}
