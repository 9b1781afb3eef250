//! How many unacknowledged bytes are worth keeping: about twice what the path has in flight, so that a fast path beside a
//! slow consumer does not fill the whole window with bytes that wait. The time comes in; no clock.
//!
//! One frame at a time is marked. Between its departure and its acknowledgement the path delivered so many bytes in so
//! much time; the rate, multiplied by the shortest such time seen lately, is the path's bandwidth-delay product. Twice
//! that is allowed, which doubles with every round trip until the path is full.

use std::time::{Duration, Instant};

/// Allowed whatever was measured: enough for loopback at full speed, and a start on any path.
const FLOOR_BYTES: usize = 1 << 20;
/// How long the shortest round trip is remembered; the path may have changed since.
const MEMORY: Duration = Duration::from_secs(10);

/// The measured path of one connection.
#[derive(Debug)]
pub struct Flight {
    limit_bytes: usize,
    delivered_bytes: u64,
    mark: Option<Mark>,
    shortest: Option<(Duration, Instant)>,
}

#[derive(Debug)]
struct Mark {
    /// The frame's number.
    sequence: u64,
    departed: Instant,
    /// What had been delivered when it departed.
    delivered_bytes: u64,
}

impl Default for Flight {
    fn default() -> Flight {
        Flight::new()
    }
}

impl Flight {
    /// A path of which nothing is known.
    pub fn new() -> Flight {
        Flight { limit_bytes: FLOOR_BYTES, delivered_bytes: 0, mark: None, shortest: None }
    }

    /// The most bytes that should be unacknowledged.
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Frame `sequence` has gone onto the connection.
    pub fn departed(&mut self, sequence: u64, now: Instant) {
        let delivered_bytes = self.delivered_bytes;
        self.mark.get_or_insert(Mark { sequence, departed: now, delivered_bytes });
    }

    /// `bytes` more are acknowledged, all frames before `count` now.
    pub fn acknowledged(&mut self, count: u64, bytes: usize, now: Instant) {
        self.delivered_bytes += bytes as u64;
        let Some(mark) = self.mark.take_if(|mark| mark.sequence < count) else { return };
        let time = now.saturating_duration_since(mark.departed).max(Duration::from_micros(1));
        let shortest = match self.shortest {
            Some((shortest, seen)) if shortest < time && now.saturating_duration_since(seen) < MEMORY => shortest,
            _ => {
                self.shortest = Some((time, now));
                time
            }
        };
        let delivered = self.delivered_bytes - mark.delivered_bytes;
        let product = delivered as f64 * shortest.as_secs_f64() / time.as_secs_f64();
        self.limit_bytes = ((2.0 * product) as usize).max(FLOOR_BYTES);
    }

    /// Another connection carries the session on: what was measured was another path.
    pub fn restart(&mut self) {
        *self = Flight::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const FRAME_BYTES: usize = 64 << 10;

    /// Sends as much as is allowed over a path of `rate` bytes a second and a round trip of `round_trip`, whose consumer
    /// takes everything as it comes; returns the limit after `time`.
    fn settle(flight: &mut Flight, rate: f64, round_trip: Duration, time: Duration) -> usize {
        let start = Instant::now();
        let serial = Duration::from_secs_f64(FRAME_BYTES as f64 / rate);
        let mut now = start;
        let mut free_at = start;
        let mut in_flight: VecDeque<Instant> = VecDeque::new();
        let (mut sent, mut acked) = (0, 0);
        while now < start + time {
            while in_flight.len() * FRAME_BYTES < flight.limit_bytes() {
                free_at = free_at.max(now) + serial;
                in_flight.push_back(free_at + round_trip);
                flight.departed(sent, now);
                sent += 1;
            }
            if let Some(arrival) = in_flight.pop_front() {
                now = now.max(arrival);
                acked += 1;
                flight.acknowledged(acked, FRAME_BYTES, now);
            }
        }
        flight.limit_bytes()
    }

    #[test]
    fn a_long_fat_path_is_filled_within_a_second() {
        let mut flight = Flight::new();
        let (rate, round_trip) = (125e6, Duration::from_millis(100));
        let limit = settle(&mut flight, rate, round_trip, Duration::from_secs(1));
        let product = (rate * round_trip.as_secs_f64()) as usize;
        assert!(limit > product && limit < 4 * product, "{limit}");
    }

    #[test]
    fn a_short_path_keeps_little_however_fast_it_is() {
        let mut flight = Flight::new();
        let limit = settle(&mut flight, 1e9, Duration::from_micros(200), Duration::from_secs(1));
        assert!(limit < 4 << 20, "{limit}");
    }

    #[test]
    fn a_new_connection_is_measured_anew() {
        let mut flight = Flight::new();
        settle(&mut flight, 125e6, Duration::from_millis(100), Duration::from_secs(1));
        flight.restart();
        assert_eq!(flight.limit_bytes(), FLOOR_BYTES);
    }
}
