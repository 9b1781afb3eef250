//! The real Mutagen v0.18.1 against a real server: whatever it asks of `ssh` and `scp`, it gets.
//!
//! Every test has a daemon and a server of its own, so that all may run at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

#[path = "mutagen/baseline.rs"]
mod baseline;
#[path = "mutagen/forward.rs"]
mod forward;
#[path = "mutagen/recovery.rs"]
mod recovery;
#[path = "mutagen/results.rs"]
mod results;
#[path = "mutagen/sync.rs"]
mod sync;

use support::remote::Transport;

/// What carries Mutagen in these tests, but for the baseline.
const TRANSPORT: Transport = Transport::Tstunnel;
