//! A network that breaks in every way, under real clients, real servers and the real Mutagen: a session survives it with its
//! bytes exact, or ends at once and says why.
//!
//! `TSTUNNEL_LONG=1` makes the tests whose subject is a length of time take that of everyday life instead of the shortest
//! that shows the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "the tests measure, and `--nocapture` shows the figures")]

mod support;

#[path = "resume/address.rs"]
mod address;
#[path = "resume/endings.rs"]
mod endings;
#[path = "resume/exact.rs"]
mod exact;
#[path = "resume/memory.rs"]
mod memory;
#[path = "resume/mutagen.rs"]
mod mutagen;
#[path = "resume/peer.rs"]
mod peer;
#[path = "resume/requests.rs"]
mod requests;
#[path = "resume/run.rs"]
mod run;

/// `long` where everyday lengths of time are asked for, else `short`.
fn length<T>(short: T, long: T) -> T {
    if std::env::var_os("TSTUNNEL_LONG").is_some_and(|value| value == "1") { long } else { short }
}
