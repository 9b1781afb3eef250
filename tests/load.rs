//! A server under load: whoever attacks it from outside costs its clients little, and what has ended leaves nothing behind.
//!
//! The tests take turns, so that each has the machine to itself. With `TSTUNNEL_LONG=1` they last as long, and ask as much, as
//! the project promises; without, they are short, and allow for a machine that has other work to do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "these tests print what they have measured")]

#[path = "load/attack.rs"]
mod attack;
#[path = "load/figures.rs"]
mod figures;
#[path = "load/leftovers.rs"]
mod leftovers;
#[path = "load/strangers.rs"]
mod strangers;
mod support;
mod support_net;
#[path = "load/transfer.rs"]
mod transfer;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Whether there is time to ask for all that is promised.
pub(crate) fn is_long() -> bool {
    std::env::var_os("TSTUNNEL_LONG").is_some_and(|value| value == "1")
}

/// Waits for the machine, and has it until this is dropped.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}
