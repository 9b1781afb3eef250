//! When a peer that is silent is asked for a sign of life, and when it is given up. The time comes in; no clock.
//!
//! Any received byte is a sign of life. After `interval` of silence a PING is sent, and another after every further
//! `interval`; the peer is dead when `count` of them in a row have stayed without any byte for `interval` each. One late
//! or lost answer is therefore never the end: `count` is at least two.

use std::time::{Duration, Instant};

/// How patient a side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Silence after which the peer is asked.
    pub interval: Duration,
    /// How many questions in a row may stay without an answer, at least two.
    pub count: u32,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { interval: Duration::from_secs(10), count: 3 }
    }
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Alive,
    /// Send a PING with these bytes.
    Ask([u8; 8]),
    /// Give the connection up.
    Dead,
}

/// The state of one connection's peer.
#[derive(Debug)]
pub struct Liveness {
    policy: Policy,
    heard: Instant,
    asked: Option<Instant>,
    unanswered: u32,
    questions: u64,
    round_trip: Option<Duration>,
}

impl Liveness {
    /// A peer that was just heard.
    pub fn new(policy: Policy, now: Instant) -> Liveness {
        let policy = Policy { interval: policy.interval.max(Duration::from_millis(10)), count: policy.count.max(2) };
        Liveness { policy, heard: now, asked: None, unanswered: 0, questions: 0, round_trip: None }
    }

    /// A byte came.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.unanswered = 0;
    }

    /// A PONG came; only the answer to the last question tells the round trip.
    pub fn answered(&mut self, opaque: &[u8], now: Instant) {
        if opaque == self.questions.to_be_bytes()
            && let Some(asked) = self.asked.take()
        {
            self.round_trip = Some(now.saturating_duration_since(asked));
        }
    }

    /// A new connection stands.
    pub fn restart(&mut self, now: Instant) {
        self.heard(now);
        self.asked = None;
    }

    /// When there will be something to do.
    pub fn deadline(&self) -> Instant {
        self.heard + self.policy.interval * (self.unanswered + 1)
    }

    /// What is due.
    pub fn on_time(&mut self, now: Instant) -> Verdict {
        if now < self.deadline() {
            return Verdict::Alive;
        }
        if self.unanswered >= self.policy.count {
            return Verdict::Dead;
        }
        // After a sleep of the machine many intervals may be over at once; each question still gets its own.
        self.heard = now - self.policy.interval * (self.unanswered + 1);
        self.unanswered += 1;
        self.questions += 1;
        self.asked = Some(now);
        Verdict::Ask(self.questions.to_be_bytes())
    }

    /// The last measured round trip.
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_silent_peer_is_asked_and_then_given_up() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Policy { interval: SECOND, count: 2 }, start);
        assert_eq!(liveness.on_time(start), Verdict::Alive);
        assert!(matches!(liveness.on_time(start + SECOND), Verdict::Ask(_)));
        assert_eq!(liveness.on_time(start + SECOND * 3 / 2), Verdict::Alive);
        assert!(matches!(liveness.on_time(start + SECOND * 2), Verdict::Ask(_)));
        assert_eq!(liveness.on_time(start + SECOND * 3), Verdict::Dead);
    }

    #[test]
    fn one_late_answer_never_kills_even_where_a_count_of_one_is_asked_for() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Policy { interval: SECOND, count: 1 }, start);
        assert!(matches!(liveness.on_time(start + SECOND), Verdict::Ask(_)));
        assert!(matches!(liveness.on_time(start + SECOND * 2), Verdict::Ask(_)));
        liveness.heard(start + SECOND * 5 / 2);
        assert_eq!(liveness.on_time(start + SECOND * 3), Verdict::Alive);
    }

    #[test]
    fn a_jump_of_the_clock_asks_before_it_judges() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Policy { interval: SECOND, count: 2 }, start);
        let later = start + SECOND * 1000;
        assert!(matches!(liveness.on_time(later), Verdict::Ask(_)));
        assert_eq!(liveness.on_time(later), Verdict::Alive);
        assert!(matches!(liveness.on_time(later + SECOND), Verdict::Ask(_)));
        assert_eq!(liveness.on_time(later + SECOND * 2), Verdict::Dead);
    }

    #[test]
    fn the_round_trip_is_that_of_the_last_question() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Policy { interval: SECOND, count: 3 }, start);
        let Verdict::Ask(first) = liveness.on_time(start + SECOND) else { panic!() };
        let Verdict::Ask(second) = liveness.on_time(start + SECOND * 2) else { panic!() };
        liveness.answered(&first, start + SECOND * 3);
        assert_eq!(liveness.round_trip(), None);
        liveness.answered(&second, start + SECOND * 3);
        assert_eq!(liveness.round_trip(), Some(SECOND));
    }
}
