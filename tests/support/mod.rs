//! What the integration tests share: real servers, a real Mutagen, and ways to look at what they did.
//!
//! Each file holds one thing and cleans up after itself when it is dropped. Nothing here waits by sleeping for a fixed
//! time, and nothing is skipped: a program that is missing is a failure with its name in it.

#![allow(dead_code, reason = "every test binary uses a part of its own")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a failing test shows the logs of the processes that it ran")]

pub(crate) mod manual;
pub(crate) mod mutagen;
pub(crate) mod openssh;
pub(crate) mod pki;
pub(crate) mod port;
pub(crate) mod process;
pub(crate) mod recorder;
pub(crate) mod relay;
pub(crate) mod remote;
pub(crate) mod script;
pub(crate) mod serve;
pub(crate) mod tree;
pub(crate) mod user;
pub(crate) mod wait;
