//! A session's two ends, the connections between them, and a scheduler that does its worst with both.
//!
//! The ends do what `bridge`, `client::redial` and `server::sessions` do. First chaos, then calm: once connections work
//! again, everything must come through within bounded time.

#[path = "chaos.rs"]
mod chaos;
#[path = "resume.rs"]
mod resume;

use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use tstunnel::protocol::frame::{Kind, MAX_PAYLOAD_BYTES, Role};
use tstunnel::protocol::liveness::{Policy, Verdict};

use super::end::End;
use super::network::{Connection, Item, Phase};
use super::random::Random;
use super::{Fault, Seen::*, Tally};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const GOODBYE: Duration = Duration::from_secs(1);
/// How long the scheduler may keep a connection that works from being served: well below any patience.
const MAX_NEGLECT: Duration = Duration::from_millis(200);
/// Virtual time within which everything must come through: both ends' patience with a dead path, and a resume.
const CALM: Duration = Duration::from_secs(200);
/// Most bytes of a stream, but for the few schedules that are large: many shall fit into a minute.
const SMALL_BYTES: usize = 6000;

/// What the client does about its path.
enum Path {
    Whole,
    Dialling(Instant),
    Asking { connection: usize, until: Instant },
}

/// What the client's process has come to.
enum Client {
    Running,
    /// EXIT is delivered; what is queued shall still be sent.
    Leaving(Instant),
    /// Gone; whether its last ACK must arrive on the connection of this number.
    Gone(Option<usize>),
}

/// What this schedule does, and how often.
struct Habits {
    weights: [usize; ACTIONS],
    capacity: usize,
    max_payload: usize,
    max_delay: Duration,
    /// Whether the process reads its stdin to the end.
    reads_all: bool,
    dial_fails: usize,
    /// Of the ends' liveness.
    interval: Duration,
}

const ACTIONS: usize = 16;

pub(crate) struct World<'a> {
    random: Random,
    habits: Habits,
    start: Instant,
    now: Instant,
    served: Instant,
    client: End,
    server: End,
    connections: Vec<Connection>,
    path: Path,
    generation: u64,
    life: Client,
    signals: usize,
    is_calm: bool,
    is_traced: bool,
    tally: &'a mut Tally,
}

impl<'a> World<'a> {
    pub(crate) fn new(seed: u64, is_traced: bool, tally: &'a mut Tally) -> World<'a> {
        let mut random = Random::new(seed);
        let start = Instant::now() + Duration::from_secs(1000);
        let is_large = random.one_in(50);
        let (total, max_payload) = if is_large { (3 << 20, MAX_PAYLOAD_BYTES) } else { (SMALL_BYTES, SMALL_BYTES) };
        let window = match random.below(4) {
            0 => 1 + random.below(64),
            1 => 64 + random.below(2000),
            _ if is_large => 1 << random.pick(&[16, 20, 24]),
            _ => 1000 + random.below(16_000),
        };
        // A small window lets little through in the time that the calm lasts.
        let total = total.min(40 * window);
        let mut weights = [0usize; ACTIONS];
        for weight in &mut weights {
            *weight = random.pick(&[0, 1, 2, 4, 8]);
        }
        // Without these nothing happens at all; disasters are rarer.
        for action in [0, 1, 2, 3, 4, 5] {
            weights[action] += 2;
        }
        for action in [9, 10, 11, 12, 13] {
            weights[action] = weights[action].div_ceil(4);
        }
        let habits = Habits {
            weights,
            capacity: if is_large { 1 << 20 } else { 4096 + random.below(16_000) },
            max_payload,
            max_delay: Duration::from_millis(random.pick(&[0, 1, 20, 150])),
            reads_all: random.one_in(2),
            dial_fails: random.pick(&[2, 4, 1000]),
            interval: Duration::from_secs(random.pick(&[2, 10])),
        };
        let total = |random: &mut Random| if random.one_in(4) { 0 } else { random.size(total) };
        let client_plan = [(Kind::Stdin, total(&mut random))];
        let server_plan = [(Kind::Stderr, total(&mut random)), (Kind::Stdout, total(&mut random))];
        let policy = Policy { interval: habits.interval, count: random.pick(&[1, 3]) };
        let delay = habits.max_delay / 2;
        let first = Connection::new(habits.capacity, delay, Phase::Attached, start);
        World {
            client: End::new(Role::Client, window, policy, &client_plan, start),
            server: End::new(Role::Server, window, policy, &server_plan, start),
            random,
            habits,
            start,
            now: start,
            served: start,
            connections: vec![first],
            path: Path::Whole,
            generation: 0,
            life: Client::Running,
            signals: 0,
            is_calm: false,
            is_traced,
            tally,
        }
    }

    /// Runs it all.
    pub(crate) fn run(mut self) -> Result<(), Fault> {
        let steps = 50 + self.random.below(350);
        for _ in 0..steps {
            self.act()?;
            self.check()?;
        }
        self.trace(|| "calm".to_owned());
        self.is_calm = true;
        let end = self.now.max(self.client.frozen_until).max(self.server.frozen_until) + CALM;
        while !self.is_done() {
            self.serve()?;
            let produced = self.settle()?;
            self.check()?;
            if !produced && !self.is_done() {
                let next =
                    self.next_due().ok_or_else(|| format!("deadlock: nothing will ever happen\n{}", self.state()))?;
                if next > end {
                    return Err(format!("deadlock: not everything came through\n{}", self.state()));
                }
                self.now = next;
            }
        }
        self.verify()
    }

    fn end(&mut self, role: Role) -> &mut End {
        match role {
            Role::Client => &mut self.client,
            Role::Server => &mut self.server,
        }
    }

    /// Whether this side does anything now.
    fn is_running(&mut self, role: Role) -> bool {
        let now = self.now;
        let is_here = role == Role::Server || matches!(self.life, Client::Running);
        is_here && !self.end(role).is_frozen(now)
    }

    // Time.

    /// Time passes, and everything that is due is done.
    fn pass(&mut self, duration: Duration) -> Result<(), Fault> {
        let end = self.now + duration;
        self.serve()?;
        while let Some(next) = self.next_due().filter(|next| *next <= end) {
            self.now = next;
            self.serve()?;
            self.check()?;
        }
        self.now = end;
        self.serve()
    }

    fn next_due(&self) -> Option<Instant> {
        let path = match self.path {
            Path::Whole => None,
            Path::Dialling(until) | Path::Asking { until, .. } => Some(until),
        };
        let path = path.filter(|until| *until > self.now && !matches!(self.life, Client::Gone(_)));
        let client = if matches!(self.life, Client::Gone(_)) { None } else { self.client.next_due(self.now) };
        let leaving = match self.life {
            Client::Leaving(until) if until > self.now => Some(until),
            _ => None,
        };
        self.connections
            .iter()
            .filter_map(|connection| connection.next_due(self.now))
            .chain([path, client, leaving, self.server.next_due(self.now)].into_iter().flatten())
            .min()
    }

    /// Lets both ends do all that they can do now.
    fn serve(&mut self) -> Result<(), Fault> {
        self.served = self.now;
        for _ in 0..100_000 {
            let mut progress = false;
            for role in [Role::Client, Role::Server] {
                progress |= self.receive(role, usize::MAX)?;
                progress |= self.transmit(role, usize::MAX, 16)?;
                progress |= self.keep_time(role)?;
            }
            progress |= self.follow_path()?;
            progress |= self.follow_requests()?;
            if !progress {
                // A client that leaves only sends.
                if matches!(self.life, Client::Running) {
                    self.client.check_idle(self.now)?;
                }
                return self.server.check_idle(self.now);
            }
        }
        Err("the ends keep each other busy for ever".to_owned())
    }

    /// Once it is calm, everybody reads, writes and ends.
    fn settle(&mut self) -> Result<bool, Fault> {
        let mut progress = false;
        for role in [Role::Client, Role::Server] {
            if !self.is_running(role) {
                continue;
            }
            for index in 0..self.end(role).sources.len() {
                let size = self.habits.max_payload;
                progress |= self.end(role).produce(index, size);
            }
            for index in 0..self.end(role).sinks.len() {
                let now = self.now;
                while self.end(role).consume(index, now)? {
                    progress = true;
                }
            }
        }
        if self.is_running(Role::Server) {
            progress |= self.end_process();
        }
        self.leave_after_exit();
        Ok(progress)
    }

    // What the ends do, as `bridge` does it.

    fn delay(&mut self, index: usize) -> Instant {
        let delay = self.connections[index].delay;
        self.now + if self.random.one_in(4) { delay } else { delay / 2 }
    }

    fn transmit(&mut self, role: Role, limit: usize, places: usize) -> Result<bool, Fault> {
        let now = self.now;
        let is_gone = role == Role::Client && matches!(self.life, Client::Gone(_));
        let Some(index) = self.end(role).connection.filter(|_| !is_gone) else { return Ok(false) };
        if self.end(role).is_frozen(now) {
            return Ok(false);
        }
        let due = self.delay(index);
        let mut left = limit.min(self.connections[index].from(role).room());
        let mut progress = false;
        let end = match role {
            Role::Client => &mut self.client,
            Role::Server => &mut self.server,
        };
        end.session.before_transmit(now);
        while left > 0 && end.session.wants_transmit() {
            let mut slices = [IoSlice::new(&[]); 16];
            let filled = end.session.transmit(&mut slices[..places]);
            let mut bytes = BytesMut::new();
            for slice in &slices[..filled] {
                bytes.extend_from_slice(&slice[..slice.len().min(left - bytes.len())]);
            }
            if bytes.is_empty() {
                return Err(format!("{role:?} wants to transmit, and gives nothing"));
            }
            left -= bytes.len();
            end.session.transmitted(bytes.len(), now);
            self.connections[index].from(role).send(Item::Bytes(bytes.freeze()), due);
            progress = true;
        }
        if role == Role::Client && matches!(self.life, Client::Leaving(_)) && !self.client.session.wants_transmit() {
            self.leave(true);
        }
        Ok(progress)
    }

    fn receive(&mut self, role: Role, limit: usize) -> Result<bool, Fault> {
        let now = self.now;
        if !self.is_running(role) {
            return Ok(false);
        }
        let Some(index) = self.end(role).connection else { return Ok(false) };
        if let Some(bytes) = self.connections[index].to(role).take_bytes(now, limit) {
            self.take(role, &bytes, true)?;
            return Ok(true);
        }
        if self.connections[index].to(role).is_over(now) {
            self.trace(|| format!("{role:?} has lost {index}"));
            self.detach(role);
            return Ok(true);
        }
        Ok(false)
    }

    fn take(&mut self, role: Role, bytes: &Bytes, is_heard: bool) -> Result<(), Fault> {
        let now = self.now;
        match role {
            Role::Client => self.client.receive(bytes, is_heard, &self.server.sent, now),
            Role::Server => self.server.receive(bytes, is_heard, &self.client.sent, now),
        }
    }

    fn keep_time(&mut self, role: Role) -> Result<bool, Fault> {
        let now = self.now;
        if !self.is_running(role) || self.end(role).connection.is_none() || self.end(role).session.deadline() > now {
            return Ok(false);
        }
        match self.end(role).session.on_time(now) {
            Verdict::Alive | Verdict::Ask(_) => {}
            Verdict::Suspect(_) => {
                self.tally.see(Suspect);
                if role == Role::Client {
                    self.look_soon();
                }
            }
            Verdict::Dead => {
                self.tally.see(Dead);
                self.trace(|| format!("{role:?} finds its peer dead"));
                let index = self.end(role).connection.unwrap_or(0);
                let is_shared = self.end(role.peer()).connection == Some(index);
                let is_gone = !matches!(self.life, Client::Running);
                let connection = &self.connections[index];
                if connection.is_sound
                    && is_shared
                    && !is_gone
                    && now > connection.answers_since + Duration::from_secs(4)
                {
                    return Err(format!("{role:?} finds its peer dead on a path that answers"));
                }
                if let Client::Gone(held) = &mut self.life {
                    // The client was frozen for too long, and spoke its last words in vain.
                    *held = None;
                }
                self.detach(role);
            }
        }
        Ok(true)
    }

    /// An end leaves its connection, and closes it.
    fn detach(&mut self, role: Role) {
        let Some(index) = self.end(role).connection.take() else { return };
        self.close(role, index);
        if role == Role::Client {
            self.look_soon();
        }
    }

    fn close(&mut self, role: Role, index: usize) {
        let seen = self.delay(index);
        let connection = &mut self.connections[index];
        match role {
            Role::Client => connection.client_holds = false,
            Role::Server => connection.phase = Phase::Dropped,
        }
        connection.from(role).end(seen);
    }

    fn leave_after_exit(&mut self) {
        if self.client.exits_delivered > 0 && matches!(self.life, Client::Running) {
            self.life = Client::Leaving(self.now + GOODBYE);
            if self.client.connection.is_none() {
                self.leave(false);
            }
        }
    }

    /// The client's process ends; `is_said` where it has sent all that it had to.
    fn leave(&mut self, is_said: bool) {
        let held = self
            .client
            .connection
            .filter(|index| is_said && self.connections[*index].is_sound && self.server.connection == Some(*index));
        if held.is_none() {
            self.tally.see(LastAckLost);
        }
        self.detach(Role::Client);
        if let Path::Asking { connection, .. } = self.path {
            self.close(Role::Client, connection);
        }
        self.path = Path::Whole;
        self.life = Client::Gone(held);
        self.trace(|| "the client has left".to_owned());
    }

    // What must hold.

    fn check(&self) -> Result<(), Fault> {
        self.client.check(&self.server)?;
        self.server.check(&self.client)?;
        if self.client.exits_delivered > 1 {
            return Err("EXIT was delivered twice".to_owned());
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        match self.life {
            Client::Gone(Some(held)) => !self.connections[held].is_sound || self.server.session.is_finished(),
            Client::Gone(None) => true,
            _ => false,
        }
    }

    fn verify(&self) -> Result<(), Fault> {
        if self.client.exits_delivered != 1 || self.client.received != self.server.sent.len() {
            return Err(format!("the client has not got everything\n{}", self.state()));
        }
        let is_whole = |end: &End, peer: &End| {
            end.sinks.iter().all(|sink| {
                let source = peer.sources.iter().find(|source| source.stream == sink.stream);
                sink.ended && source.is_some_and(|source| source.position == sink.taken)
            })
        };
        if !is_whole(&self.client, &self.server) {
            return Err(format!("an output is not whole\n{}", self.state()));
        }
        if self.habits.reads_all && !is_whole(&self.server, &self.client) {
            return Err(format!("stdin is not whole\n{}", self.state()));
        }
        Ok(())
    }

    fn state(&self) -> String {
        format!("{:#?}\n{:#?}", self.client.session, self.server.session)
    }

    #[allow(clippy::print_stderr, reason = "a replay tells its story")]
    fn trace(&self, text: impl FnOnce() -> String) {
        if self.is_traced {
            eprintln!("{:>10.3} {}", (self.now - self.start).as_secs_f64(), text());
        }
    }
}
