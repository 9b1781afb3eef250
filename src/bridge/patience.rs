//! How long a connection is left alone for a sink that is late. What it still has stays in the kernel then, where it is already,
//! instead of in new memory of ours. No clock.

use std::time::{Duration, Instant};

use crate::protocol::frame::FRAME_BYTES;

/// How many undelivered bytes make a sink late.
const LATE_BYTES: usize = FRAME_BYTES;
/// Who takes more time than that for them, more than a turn on a busy processor, is slow: what the peer says besides, answers and
/// acknowledgements, must not wait behind what is for him.
const LATE: Duration = Duration::from_millis(5);

/// How the sink that is most behind has kept up.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Patience {
    /// Well.
    #[default]
    Idle,
    /// It is late, and waited for until then.
    Until(Instant),
    /// It is slow, and not waited for before it has caught up.
    Exhausted,
}

impl Patience {
    /// Looks at the sink's undelivered bytes.
    pub(super) fn look(&mut self, undelivered_bytes: usize, now: Instant) {
        *self = match self {
            _ if undelivered_bytes < LATE_BYTES => Patience::Idle,
            Patience::Idle => Patience::Until(now + LATE),
            Patience::Until(end) if now < *end => return,
            Patience::Until(_) | Patience::Exhausted => Patience::Exhausted,
        };
    }

    /// Until when to wait, where there is waiting.
    pub(super) fn end(&self) -> Option<Instant> {
        match self {
            Patience::Until(end) => Some(*end),
            Patience::Idle | Patience::Exhausted => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_sink_is_waited_for_until_it_is_slow() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        patience.look(LATE_BYTES - 1, now);
        assert_eq!(patience.end(), None);
        patience.look(LATE_BYTES, now);
        let end = patience.end().unwrap();
        assert!(end > now);
        patience.look(LATE_BYTES, end - Duration::from_nanos(1));
        assert_eq!(patience.end(), Some(end));
        for later in [end, end + LATE, end + 10 * LATE] {
            patience.look(LATE_BYTES, later);
            assert_eq!(patience, Patience::Exhausted);
        }
    }

    #[test]
    fn a_slow_sink_that_has_caught_up_is_waited_for_again() {
        let (mut patience, now) = (Patience::Exhausted, Instant::now());
        patience.look(LATE_BYTES, now);
        assert_eq!(patience.end(), None);
        patience.look(LATE_BYTES - 1, now);
        patience.look(LATE_BYTES, now);
        assert_eq!(patience.end(), Some(now + LATE));
    }
}
