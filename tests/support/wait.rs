//! Waiting for a condition, with a deadline; the only place where the tests sleep.

use std::time::{Duration, Instant};

/// How long a wait may last that is expected to be short, on a machine with other work to do.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// How long to wait for what Mutagen does only after its pause of 15 s between two attempts.
pub(crate) const AFTER_MUTAGENS_PAUSE: Duration = Duration::from_secs(50);

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks until `probe` finds something, and returns it; none when `limit` is over.
pub(crate) fn find_within<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        // The time is taken first, so that a probe that was held up by a busy machine still counts.
        let expired = Instant::now() >= deadline;
        let found = probe();
        if found.is_some() || expired {
            return found;
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Looks until `probe` finds something, and returns it; panics with `what` when `limit` is over.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, limit: Duration, probe: impl FnMut() -> Option<T>) -> T {
    find_within(limit, probe).unwrap_or_else(|| panic!("waited {limit:?} in vain: {what}"))
}

/// Looks until `condition` holds; panics with `what` when `limit` is over.
#[track_caller]
pub(crate) fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, limit, || condition().then_some(()));
}

/// Lets a length of time pass that is itself what a test is about: how long a process is suspended, say. Never to wait for
/// something.
pub(crate) fn let_pass(time: Duration) {
    std::thread::sleep(time);
}
