//! How many unacknowledged bytes are worth having: what keeps the path busy, and little more. What is sent beyond that
//! only waits somewhere, in a buffer of ours, the kernel's or a router's, and all that comes later waits behind it. The
//! time comes in; no clock.
//!
//! One frame at a time is marked. Between its departure and its acknowledgement the path delivered so many bytes in so
//! much time: a sample of its rate. The best rate seen lately, multiplied by the shortest such time, is the path's
//! bandwidth-delay product, the way BBR has it (draft-ietf-ccwg-bbr). A twentieth more is allowed, so that a path that has
//! become faster is noticed. Until three samples are there, the handshake's round trip is what is known of the path.

use std::time::{Duration, Instant};

use super::frame::WIRE_BYTES;

/// Allowed whatever was measured.
const FLOOR_BYTES: usize = 512 << 10;
/// Allowed before anything was measured.
const START_BYTES: usize = 1 << 20;
/// A handshake takes so long by itself on a busy machine.
const HANDSHAKE: Duration = Duration::from_millis(10);
/// What a path is taken for before it is measured: 8 Gbit/s.
const ASSUMED_BYTES_PER_SECOND: f64 = 1e9;
/// Samples after which the path counts as measured. The first one begins with nothing in flight, and says little.
const START_SAMPLES: usize = 3;
/// Samples that the best rate is taken from.
const RATES: usize = 8;
/// How much of the product is allowed, which has the lateness of acknowledgements in it already; and how much after a sample that
/// was so much better than those before it, which is how a path looks that is not yet full.
const GAIN: f64 = 1.05;
const GROWTH: f64 = 2.0;
const JUMP: f64 = 1.25;
/// How much of it while the queue is drained: no more than the path itself holds. What is sent at once afterwards is a burst,
/// so no less either.
const DRAIN: f64 = 0.9;
/// Allowed beyond that: what passes in the time that acknowledgements are late by. On a near path it is the programs at its ends
/// that are, whenever they wait for a processor, and what is in flight must not shrink with that.
const LATENESS: Duration = Duration::from_millis(2);
const NEAR: Duration = Duration::from_millis(10);
/// Most bytes for that lateness: a path that is so fast has a shorter one.
const MAX_LATENESS_BYTES: f64 = (512 << 10) as f64;
/// A round trip that is shorter than this is one within a machine or a rack. Whoever waits there waits for a processor and not for
/// the path; what is in flight should stay in the processors' caches, with the kernel's copy of it, and is no more than the product.
const LOCAL: Duration = Duration::from_millis(2);
/// Allowed there whatever was measured: six frames. With eight, both ends took up to a tenth more processor time where it was tried.
const LOCAL_BYTES: usize = 6 * WIRE_BYTES;
/// On any other path that is faster than a gigabit network, as much again is allowed: there throughput is lost in every moment in
/// which one of the programs on the way does not run, and a queue is passed quickly.
const FAST_BYTES_PER_SECOND: f64 = 200e6;
/// How long a frame may take to pass, and the least that it may have: a TLS record.
const FRAME: Duration = Duration::from_millis(4);
const MIN_FRAME_BYTES: usize = 16 << 10;
/// How long the shortest round trip is remembered; the path may have changed since.
const MEMORY: Duration = Duration::from_secs(10);
/// How long the first acknowledgement may take beside the round trips: after that the consumer is slow, not the path.
const START_PATIENCE: Duration = Duration::from_millis(100);

/// The measured path of one connection.
#[derive(Debug)]
pub struct Flight {
    limit_bytes: usize,
    /// The handshake's round trip.
    expected: Duration,
    delivered_bytes: u64,
    mark: Option<Mark>,
    /// Bytes a second, in the order in which they were measured.
    rates: [f64; RATES],
    samples: usize,
    /// Samples since one was much better than those before it.
    flat: usize,
    shortest: Option<(Duration, Instant)>,
    /// Less is allowed until a frame comes back that did not wait behind a queue of ours.
    drains: bool,
}

#[derive(Debug)]
struct Mark {
    /// The frame's number.
    sequence: u64,
    departed: Instant,
    /// What had been delivered when it departed.
    delivered_bytes: u64,
    /// Whether the limit was what held the sender back then: otherwise its rate is the source's, not the path's.
    was_full: bool,
}

/// What a path of which only the round trip is known may have in flight.
pub fn assumed_bytes(round_trip: Duration) -> usize {
    (round_trip.saturating_sub(HANDSHAKE).as_secs_f64() * ASSUMED_BYTES_PER_SECOND) as usize
}

impl Flight {
    /// A path whose handshake took `expected` for a round trip; zero where that is not known.
    pub fn new(expected: Duration) -> Flight {
        Flight {
            limit_bytes: assumed_bytes(expected).max(START_BYTES),
            expected,
            delivered_bytes: 0,
            mark: None,
            rates: [0.0; RATES],
            samples: 0,
            flat: 0,
            shortest: None,
            drains: false,
        }
    }

    /// The most bytes that a frame should have: what passes in a few milliseconds, because whatever comes later
    /// waits for all of it.
    pub fn frame_bytes(&self) -> usize {
        match self.samples >= START_SAMPLES {
            true => ((self.best_rate() * FRAME.as_secs_f64()) as usize).max(MIN_FRAME_BYTES),
            false => usize::MAX,
        }
    }

    /// The most bytes that should be unacknowledged.
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Frame `sequence` has gone onto the connection; `is_full` says whether the sender would have sent more but for the
    /// limit.
    pub fn departed(&mut self, sequence: u64, is_full: bool, now: Instant) {
        match &mut self.mark {
            Some(mark) => {
                mark.was_full |= is_full;
                let patience = 4 * self.expected + START_PATIENCE;
                if self.samples == 0 && now.saturating_duration_since(mark.departed) > patience {
                    self.limit_bytes = self.limit_bytes.min(START_BYTES);
                }
            }
            None => {
                let delivered_bytes = self.delivered_bytes;
                self.mark = Some(Mark { sequence, departed: now, delivered_bytes, was_full: is_full });
            }
        }
    }

    /// `bytes` more are acknowledged, all frames before `count` now.
    pub fn acknowledged(&mut self, count: u64, bytes: usize, now: Instant) {
        self.delivered_bytes += bytes as u64;
        let Some(mark) = self.mark.take_if(|mark| mark.sequence < count) else { return };
        let time = now.saturating_duration_since(mark.departed).max(Duration::from_micros(1));
        let rate = (self.delivered_bytes - mark.delivered_bytes) as f64 / time.as_secs_f64();
        self.take_rate(rate, mark.was_full);
        self.take_time(time, now);
        let queues = self.samples > 1 && time > 2 * self.expected.max(START_PATIENCE);
        if self.samples >= START_SAMPLES || queues {
            self.samples = self.samples.max(START_SAMPLES);
            self.limit_bytes = self.measured();
        }
    }

    /// A source that is slower than the path says nothing against it.
    fn take_rate(&mut self, rate: f64, was_full: bool) {
        let best = self.best_rate();
        if rate > best * JUMP {
            self.flat = 0;
        }
        if was_full || (rate > best && self.samples >= START_SAMPLES) {
            self.samples += 1;
            self.flat += 1;
            self.rates.rotate_left(1);
            self.rates[RATES - 1] = rate;
        }
    }

    fn take_time(&mut self, time: Duration, now: Instant) {
        match self.shortest {
            Some((shortest, seen)) if shortest < time && !self.drains => {
                // A queue that is always there would pass for the path.
                self.drains = now.saturating_duration_since(seen) >= MEMORY;
            }
            _ => (self.shortest, self.drains) = (Some((time, now)), false),
        }
    }

    fn best_rate(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    fn measured(&self) -> usize {
        let rate = self.best_rate();
        let shortest = self.shortest.map_or(Duration::ZERO, |(shortest, _)| shortest);
        let product = rate * shortest.as_secs_f64();
        let is_local = shortest < LOCAL;
        let grows = self.flat <= START_SAMPLES || (rate > FAST_BYTES_PER_SECOND && !is_local);
        let gain = if grows { GROWTH } else { GAIN };
        let lateness = if is_local {
            Duration::ZERO
        } else if shortest < NEAR {
            NEAR
        } else {
            LATENESS
        };
        let late = (rate * lateness.as_secs_f64()).min(MAX_LATENESS_BYTES);
        let allowed = if self.drains { product * DRAIN } else { product * gain + late };
        (allowed as usize).max(if is_local { LOCAL_BYTES } else { FLOOR_BYTES })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// What the frames have here.
    const SENT_BYTES: usize = 32 << 10;

    /// A path of `rate` bytes a second and `round_trip`, with a queue that has no end, and a source that always has more.
    struct Path {
        flight: Flight,
        now: Instant,
        rate: f64,
        round_trip: Duration,
        free_at: Instant,
        in_flight: VecDeque<(Instant, Instant)>,
        sent: u64,
        acked: u64,
    }

    impl Path {
        fn new(rate: f64, round_trip: Duration, expected: Duration) -> Path {
            let now = Instant::now();
            let flight = Flight::new(expected);
            Path { flight, now, rate, round_trip, free_at: now, in_flight: VecDeque::new(), sent: 0, acked: 0 }
        }

        /// Sends as much as is allowed for `time`; returns the longest that a frame took in the last half of it.
        fn run(&mut self, time: Duration) -> Duration {
            let start = self.now;
            let mut longest = Duration::ZERO;
            while self.now < start + time {
                while (self.in_flight.len() + 1) * SENT_BYTES <= self.flight.limit_bytes() {
                    self.free_at = self.free_at.max(self.now) + Duration::from_secs_f64(SENT_BYTES as f64 / self.rate);
                    self.in_flight.push_back((self.now, self.free_at + self.round_trip));
                    let is_full = (self.in_flight.len() + 1) * SENT_BYTES > self.flight.limit_bytes();
                    self.flight.departed(self.sent, is_full, self.now);
                    self.sent += 1;
                }
                let (departed, arrival) = self.in_flight.pop_front().unwrap();
                self.now = self.now.max(arrival);
                self.acked += 1;
                self.flight.acknowledged(self.acked, SENT_BYTES, self.now);
                if self.now > start + time / 2 {
                    longest = longest.max(self.now - departed);
                }
            }
            longest
        }

        fn product(&self) -> usize {
            (self.rate * self.round_trip.as_secs_f64()) as usize
        }
    }

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_sent_beside_bulk_waits_little_longer_than_the_path_takes() {
        for (megabytes, round_trip, expected) in [(12.5, 50, 50), (1.25, 50, 0), (125.0, 10, 10), (125.0, 200, 200)] {
            let round_trip = MILLISECOND * round_trip;
            let mut path = Path::new(megabytes * 1e6, round_trip, MILLISECOND * expected);
            // What is sent before anything is known has to pass first.
            path.run(MILLISECOND * 9000);
            let longest = path.run(MILLISECOND * 2000);
            let floor = Duration::from_secs_f64(FLOOR_BYTES as f64 / path.rate);
            assert!(
                longest < round_trip * 8 / 5 + LATENESS || longest < round_trip + floor,
                "{megabytes} MB/s: {longest:?}"
            );
        }
    }

    #[test]
    fn a_queue_of_its_own_does_not_pass_for_the_path_however_long_it_lasts() {
        let mut path = Path::new(12.5e6, MILLISECOND * 50, MILLISECOND * 50);
        path.run(MILLISECOND * 10_000);
        for _ in 0..20 {
            let longest = path.run(MILLISECOND * 10_000);
            assert!(longest < MILLISECOND * 80, "{longest:?}");
        }
    }

    #[test]
    fn a_long_fat_path_is_kept_full() {
        for expected in [Duration::ZERO, MILLISECOND * 100] {
            let mut path = Path::new(125e6, MILLISECOND * 100, expected);
            path.run(MILLISECOND * 3000);
            let before = path.acked;
            path.run(MILLISECOND * 5000);
            let rate = ((path.acked - before) as usize * SENT_BYTES) as f64 / 5.0;
            assert!(rate > 0.95 * path.rate, "{rate}");
            assert!(path.flight.limit_bytes() < 2 * path.product());
        }
    }

    #[test]
    fn a_path_that_becomes_faster_is_filled_anew_and_one_that_becomes_slower_is_drained() {
        let mut path = Path::new(12.5e6, MILLISECOND * 50, MILLISECOND * 50);
        path.run(MILLISECOND * 9000);
        path.rate = 125e6;
        path.run(MILLISECOND * 3000);
        let limit = path.flight.limit_bytes();
        assert!(limit > path.product(), "{limit}");
        path.rate = 12.5e6;
        let longest = path.run(MILLISECOND * 20_000);
        assert!(longest < MILLISECOND * 80, "{longest:?}");
    }

    #[test]
    fn a_short_path_has_what_stays_in_a_cache_in_flight_however_fast_it_is() {
        let mut path = Path::new(1e9, Duration::from_micros(200), MILLISECOND);
        path.run(MILLISECOND * 1000);
        assert_eq!(path.flight.limit_bytes(), LOCAL_BYTES);
    }

    #[test]
    fn a_short_path_that_holds_more_is_kept_full() {
        let mut path = Path::new(1.25e9, MILLISECOND, MILLISECOND);
        path.run(MILLISECOND * 1000);
        let before = path.acked;
        path.run(MILLISECOND * 1000);
        let rate = ((path.acked - before) as usize * SENT_BYTES) as f64;
        assert!(rate > 0.95 * path.rate, "{rate}");
        assert!(path.flight.limit_bytes() < 2 * path.product());
    }

    #[test]
    fn a_slow_source_says_nothing_against_the_path() {
        let mut path = Path::new(125e6, MILLISECOND * 50, MILLISECOND * 50);
        path.run(MILLISECOND * 2000);
        let limit = path.flight.limit_bytes();
        for _ in 0..100 {
            path.now += MILLISECOND * 100;
            path.in_flight.clear();
            path.acked = path.sent;
            path.flight.acknowledged(path.acked, 0, path.now);
            path.flight.departed(path.sent, false, path.now);
            path.sent += 1;
            path.now += path.round_trip;
            path.acked += 1;
            path.flight.acknowledged(path.acked, SENT_BYTES, path.now);
        }
        assert!(path.flight.limit_bytes() > limit / 2, "{}", path.flight.limit_bytes());
    }

    #[test]
    fn a_consumer_that_takes_nothing_is_not_sent_all_that_a_long_path_could_hold() {
        let mut flight = Flight::new(MILLISECOND * 100);
        let now = Instant::now();
        assert_eq!(flight.limit_bytes(), 90_000_000);
        flight.departed(0, false, now);
        flight.departed(1, false, now + MILLISECOND * 499);
        assert_eq!(flight.limit_bytes(), 90_000_000);
        flight.departed(2, false, now + MILLISECOND * 501);
        assert_eq!(flight.limit_bytes(), START_BYTES);
    }
}
