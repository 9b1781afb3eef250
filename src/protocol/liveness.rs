//! When a peer that is silent is asked for a sign of life, when its path is suspected, and when it is given up. The time
//! comes in; no clock.
//!
//! Any received byte is a sign of life. How soon a silence is questioned depends on what there was to expect: soon after
//! data was sent, which should be acknowledged; within a second after traffic; and the longer nothing happens the later,
//! up to the policy's interval. A question has some round trips' time; without an answer the path is suspected, and it is
//! for the owner to look for a better one. So is a path on which the peer only asks, and answers nothing: it goes on
//! asking because it hears nothing, which is how a path looks that is dead in one direction. One late or lost answer is never the end: a peer is dead only after `count`
//! intervals of silence in which at least two questions went without an answer.

use std::time::{Duration, Instant};

/// Silence after data was sent that is questioned: well above an acknowledgement's delay.
const AFTER_SENDING: Duration = Duration::from_millis(200);
/// Silence after other traffic that is questioned.
const AFTER_TRAFFIC: Duration = Duration::from_secs(1);
/// How long an answer is waited for at least; a busy machine is no dead path.
const MIN_PATIENCE: Duration = Duration::from_millis(500);

/// A check that comes so much too late: this side has not run, and silence until then says nothing about the peer.
const OVERSLEPT: Duration = Duration::from_secs(1);

/// How patient a side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The longest silence without a question.
    pub interval: Duration,
    /// After how many intervals of silence a peer is dead, at least two.
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
    /// Send a PING with these bytes; the one before has no answer.
    Suspect([u8; 8]),
    /// Give the connection up.
    Dead,
}

/// The state of one connection's peer.
#[derive(Debug)]
pub struct Liveness {
    policy: Policy,
    heard: Instant,
    /// The last data, in either direction.
    active: Instant,
    /// The first data that was sent after the last sign of life.
    sent: Option<Instant>,
    /// The question that waits for an answer.
    asked: Option<Instant>,
    unanswered: u32,
    /// The first question since the last answer; or, if that came later, the last data, which an answer may be queued
    /// behind.
    open: Option<Instant>,
    /// The peer asks instead of answering.
    is_deaf: bool,
    questions: u64,
    /// When the last question was asked, for the round trip.
    last_question: Instant,
    /// When the last question was asked that has its answer.
    answered: Option<Instant>,
    round_trip: Option<Duration>,
}

impl Liveness {
    /// A peer that was just heard.
    pub fn new(policy: Policy, now: Instant) -> Liveness {
        let policy = Policy { interval: policy.interval.max(Duration::from_millis(10)), count: policy.count.max(2) };
        Liveness {
            policy,
            heard: now,
            active: now,
            sent: None,
            asked: None,
            unanswered: 0,
            open: None,
            is_deaf: false,
            questions: 0,
            last_question: now,
            answered: None,
            round_trip: None,
        }
    }

    /// Bytes came.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.sent = None;
        self.asked = None;
        self.unanswered = 0;
    }

    /// Data came, not only control frames.
    pub fn received_data(&mut self, now: Instant) {
        self.active = now;
        self.open = self.open.map(|_| now);
    }

    /// A PING came. Where an answer has been due for some time, the peer has not heard the question.
    pub fn questioned(&mut self, now: Instant) {
        let patience = self.patience();
        if self.open.is_some_and(|open| now.saturating_duration_since(open) >= patience) {
            self.is_deaf = true;
            // The time of a question without an answer is over now.
            self.asked = now.checked_sub(patience).or(Some(now));
        }
    }

    /// Data was sent, which the peer acknowledges.
    pub fn sent_data(&mut self, now: Instant) {
        self.active = now;
        self.sent.get_or_insert(now);
    }

    /// A PONG came; only the answer to the last question counts, for the round trip too.
    pub fn answered(&mut self, opaque: &[u8], now: Instant) {
        (self.open, self.is_deaf) = (None, false);
        if self.questions > 0 && opaque == self.questions.to_be_bytes() {
            self.answered = Some(self.last_question);
            let sample = now.saturating_duration_since(self.last_question);
            // RFC 6298's weight: one late answer does not make the path a slow one.
            self.round_trip = Some(self.round_trip.map_or(sample, |mean| (mean * 7 + sample) / 8));
        }
    }

    /// A new connection stands.
    pub fn restart(&mut self, now: Instant) {
        self.heard(now);
        (self.open, self.is_deaf) = (None, false);
    }

    /// Something has happened to the network or to this machine: the next question is due at once.
    pub fn doubt(&mut self, now: Instant) {
        if self.asked.is_none() {
            self.sent = now.checked_sub(self.policy.interval).or(Some(now));
        }
    }

    /// Whether a question has stayed without an answer.
    pub fn is_suspect(&self) -> bool {
        self.unanswered > 0 || self.is_deaf
    }

    /// Whether a question that was asked then or later has its answer: all that the peer had sent until it got that has come.
    pub fn has_answered_since(&self, then: Instant) -> bool {
        self.answered.is_some_and(|asked| asked >= then)
    }

    /// The mean round trip, once there was an answer.
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// How long nothing has been heard.
    pub fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }

    /// When there will be something to do.
    pub fn deadline(&self) -> Instant {
        match (self.asked, self.sent) {
            (Some(asked), _) => asked + self.patience(),
            (None, Some(sent)) => sent + self.floor(AFTER_SENDING),
            (None, None) => {
                let idle = self.heard.saturating_duration_since(self.active);
                self.heard + idle.clamp(self.floor(AFTER_TRAFFIC), self.policy.interval)
            }
        }
    }

    fn floor(&self, floor: Duration) -> Duration {
        floor.max(self.round_trip.unwrap_or_default() * 2).min(self.policy.interval)
    }

    /// How long an answer is waited for; longer with each question that had none.
    fn patience(&self) -> Duration {
        let once = MIN_PATIENCE.max(self.round_trip.unwrap_or_default() * 4);
        (once * 2u32.saturating_pow(self.unanswered.min(8))).min(self.policy.interval)
    }

    /// What is due.
    pub fn on_time(&mut self, now: Instant) -> Verdict {
        let deadline = self.deadline();
        if now < deadline {
            return Verdict::Alive;
        }
        if now > deadline + OVERSLEPT {
            self.asked = None;
            self.unanswered = 0;
        }
        let has_waited = self.asked.is_some();
        if has_waited {
            self.unanswered += 1;
            if self.silence(now) >= self.policy.interval * self.policy.count && self.unanswered >= 2 {
                return Verdict::Dead;
            }
        }
        self.questions += 1;
        self.asked = Some(now);
        self.open.get_or_insert(now);
        self.last_question = now;
        let opaque = self.questions.to_be_bytes();
        if has_waited { Verdict::Suspect(opaque) } else { Verdict::Ask(opaque) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const POLICY: Policy = Policy { interval: Duration::from_secs(10), count: 3 };

    /// Runs to `end`, and tells when what was due; the peer answers where `answers` says so.
    fn run(liveness: &mut Liveness, start: Instant, end: Duration, answers: bool) -> Vec<(u128, Verdict)> {
        let mut seen = Vec::new();
        loop {
            let now = liveness.deadline();
            if now > start + end {
                return seen;
            }
            let verdict = liveness.on_time(now);
            seen.push((now.duration_since(start).as_millis(), verdict));
            match verdict {
                Verdict::Dead => return seen,
                Verdict::Ask(opaque) if answers => {
                    liveness.heard(now);
                    liveness.answered(&opaque, now);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn questions_become_rarer_the_longer_nothing_happens() {
        let start = Instant::now();
        let mut liveness = Liveness::new(POLICY, start);
        let times: Vec<u128> = run(&mut liveness, start, SECOND * 40, true).into_iter().map(|(time, _)| time).collect();
        assert_eq!(times, [1000, 2000, 4000, 8000, 16000, 26000, 36000]);
    }

    #[test]
    fn silence_after_sending_is_questioned_soon_and_suspected_soon_after() {
        let start = Instant::now();
        let mut liveness = Liveness::new(POLICY, start);
        liveness.sent_data(start);
        liveness.sent_data(start + SECOND / 10);
        let seen = run(&mut liveness, start, SECOND, false);
        assert!(matches!(seen[..], [(200, Verdict::Ask(_)), (700, Verdict::Suspect(_))]), "{seen:?}");
        assert!(liveness.is_suspect());
        liveness.heard(start + SECOND);
        assert!(!liveness.is_suspect());
    }

    #[test]
    fn a_silent_peer_is_dead_only_after_its_intervals() {
        let start = Instant::now();
        let mut liveness = Liveness::new(POLICY, start);
        let seen = run(&mut liveness, start, SECOND * 100, false);
        let (time, verdict) = *seen.last().unwrap();
        assert_eq!(verdict, Verdict::Dead);
        assert!((30_000..41_000).contains(&time), "{time}");
    }

    #[test]
    fn a_jump_of_the_clock_asks_twice_before_it_judges() {
        let start = Instant::now();
        let mut liveness = Liveness::new(POLICY, start);
        let later = start + SECOND * 1000;
        assert!(matches!(liveness.on_time(later), Verdict::Ask(_)));
        assert_eq!(liveness.on_time(later), Verdict::Alive);
        assert!(matches!(liveness.on_time(liveness.deadline()), Verdict::Suspect(_)));
        assert_eq!(liveness.on_time(liveness.deadline()), Verdict::Dead);
    }

    #[test]
    fn a_jump_of_the_clock_while_a_question_is_open_asks_twice_too() {
        let start = Instant::now();
        let mut liveness = Liveness::new(POLICY, start);
        assert!(matches!(liveness.on_time(start + SECOND), Verdict::Ask(_)));
        assert!(matches!(liveness.on_time(liveness.deadline()), Verdict::Suspect(_)));
        assert!(matches!(liveness.on_time(start + SECOND * 1000), Verdict::Ask(_)));
        assert!(matches!(liveness.on_time(liveness.deadline()), Verdict::Suspect(_)));
        assert_eq!(liveness.on_time(liveness.deadline()), Verdict::Dead);
    }

    #[test]
    fn a_count_of_one_still_has_patience_for_two_questions() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Policy { interval: SECOND, count: 1 }, start);
        let seen = run(&mut liveness, start, SECOND * 60, false);
        assert!(seen.len() >= 3 && seen.last().unwrap().0 >= 2000, "{seen:?}");
    }

    #[test]
    fn a_peer_that_only_asks_is_suspected_until_it_answers() {
        let start = Instant::now();
        let mut liveness = Liveness::new(POLICY, start);
        liveness.sent_data(start);
        let asked = liveness.deadline();
        assert!(matches!(liveness.on_time(asked), Verdict::Ask(_)));
        // Questions may cross.
        liveness.heard(asked + SECOND / 10);
        liveness.questioned(asked + SECOND / 10);
        assert!(!liveness.is_suspect());
        let later = asked + SECOND;
        liveness.heard(later);
        liveness.questioned(later);
        assert!(liveness.is_suspect());
        assert!(matches!(liveness.on_time(later), Verdict::Suspect(_)));
        // Another sign of life is no answer.
        liveness.heard(later + SECOND);
        assert!(liveness.is_suspect());
        liveness.answered(&[0; 8], later + SECOND);
        assert!(!liveness.is_suspect());
    }

    #[test]
    fn an_answer_may_be_queued_behind_data() {
        let start = Instant::now();
        let mut liveness = Liveness::new(POLICY, start);
        let asked = liveness.deadline();
        assert!(matches!(liveness.on_time(asked), Verdict::Ask(_)));
        for quarter in 1..40 {
            let now = asked + SECOND / 4 * quarter;
            liveness.heard(now);
            liveness.received_data(now);
            liveness.questioned(now + SECOND / 10);
            assert!(!liveness.is_suspect());
        }
    }

    #[test]
    fn a_slow_path_is_given_its_round_trips() {
        let start = Instant::now();
        let mut liveness = Liveness::new(POLICY, start);
        let Verdict::Ask(opaque) = liveness.on_time(start + SECOND) else { panic!() };
        liveness.heard(start + SECOND * 2);
        liveness.answered(&opaque, start + SECOND * 2);
        assert_eq!(liveness.round_trip(), Some(SECOND));
        liveness.sent_data(start + SECOND * 3);
        assert_eq!(liveness.deadline(), start + SECOND * 5);
        assert!(matches!(liveness.on_time(start + SECOND * 5), Verdict::Ask(_)));
        assert_eq!(liveness.deadline(), start + SECOND * 9);
    }

    #[test]
    fn silence_lasts_from_the_last_sign_of_life() {
        let start = Instant::now();
        let mut liveness = Liveness::new(POLICY, start);
        assert_eq!(liveness.silence(start + SECOND * 5), SECOND * 5);
        liveness.sent_data(start + SECOND * 5);
        assert_eq!(liveness.silence(start + SECOND * 6), SECOND * 6);
        liveness.heard(start + SECOND * 6);
        assert_eq!(liveness.silence(start + SECOND * 6), Duration::ZERO);
    }

    #[test]
    fn a_doubt_is_questioned_at_once() {
        let start = Instant::now() + SECOND * 100;
        let mut liveness = Liveness::new(POLICY, start);
        liveness.doubt(start + SECOND / 100);
        assert!(matches!(liveness.on_time(start + SECOND / 100), Verdict::Ask(_)));
    }

    #[test]
    fn an_answer_counts_from_the_time_of_its_question() {
        let start = Instant::now() + SECOND * 100;
        let mut liveness = Liveness::new(POLICY, start);
        liveness.doubt(start);
        let Verdict::Ask(opaque) = liveness.on_time(start) else { panic!() };
        assert!(!liveness.has_answered_since(start));
        liveness.heard(start + SECOND);
        liveness.answered(&opaque, start + SECOND);
        assert!(liveness.has_answered_since(start) && !liveness.has_answered_since(start + SECOND / 2));
    }
}
