//! How many lines peers that nobody knows may cause: what anybody on the network can do at will must neither fill a disk nor
//! crowd out what matters. No I/O; time comes in.

use std::time::Instant;

/// Lines that are taken at once.
const BURST: f64 = 100.0;
/// Lines a second, beyond that: some 200 MB a day.
const PER_SECOND: f64 = 10.0;

/// A bucket of tokens.
#[derive(Debug)]
pub(super) struct Throttle {
    tokens: f64,
    at: Instant,
    held_back: u64,
}

impl Throttle {
    pub(super) fn new(now: Instant) -> Throttle {
        Throttle { tokens: BURST, at: now, held_back: 0 }
    }

    /// Takes one more; `None` where there are too many, else how many were held back since the last that was taken.
    pub(super) fn admit(&mut self, now: Instant) -> Option<u64> {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * PER_SECOND).min(BURST);
        self.at = now;
        if self.tokens < 1.0 {
            self.held_back += 1;
            return None;
        }
        self.tokens -= 1.0;
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_is_taken_then_a_few_each_second_and_none_is_forgotten() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start);
        assert!((0..100).all(|_| throttle.admit(start) == Some(0)));
        assert!((0..25).all(|_| throttle.admit(start).is_none()));
        assert_eq!(throttle.admit(start + Duration::from_millis(100)), Some(25));
        assert_eq!(throttle.admit(start + Duration::from_millis(150)), None);
        let later = start + Duration::from_secs(3600);
        assert_eq!(throttle.admit(later), Some(1));
        assert!((0..99).all(|_| throttle.admit(later) == Some(0)));
        assert_eq!(throttle.admit(later), None);
        // A clock that stands still or seems to go back gives nothing.
        assert_eq!(throttle.admit(start), None);
    }
}
