//! How long a connection is left alone for a sink that is late. What it still has stays in the kernel then, where it is already,
//! instead of in new memory of ours. No clock.

use std::time::{Duration, Instant};

use crate::protocol::frame::FRAME_BYTES;

/// How many undelivered bytes make a sink late.
const LATE_BYTES: usize = FRAME_BYTES;
/// Who takes more time than that for them, more than a turn on a busy processor, is slow: what the peer says besides, answers and
/// acknowledgements, must not wait behind what is for him.
const LATE: Duration = Duration::from_millis(5);

/// What is known of the sinks.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// While one is late: until when that is waited for.
    until: Option<Instant>,
}

impl Patience {
    /// Whether to wait, where the sink that is most behind has `undelivered_bytes`.
    pub(super) fn waits(&mut self, undelivered_bytes: usize, now: Instant) -> bool {
        if undelivered_bytes < LATE_BYTES {
            self.until = None;
            return false;
        }
        now < *self.until.get_or_insert(now + LATE)
    }

    /// When to look again, where there is waiting.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_sink_is_waited_for_until_it_is_slow() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        assert!(!patience.waits(LATE_BYTES - 1, now));
        assert_eq!(patience.deadline(now), None);
        assert!(patience.waits(LATE_BYTES, now));
        let end = patience.deadline(now).unwrap();
        assert!(patience.waits(LATE_BYTES, end - Duration::from_nanos(1)));
        for later in [end, end + LATE, end + 10 * LATE] {
            assert!(!patience.waits(LATE_BYTES, later));
            assert_eq!(patience.deadline(later), None);
        }
    }

    #[test]
    fn a_slow_sink_that_has_caught_up_is_waited_for_again() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        patience.waits(LATE_BYTES, now);
        assert!(!patience.waits(LATE_BYTES, now + LATE));
        assert!(!patience.waits(0, now + LATE));
        assert!(patience.waits(LATE_BYTES, now + LATE));
    }
}
