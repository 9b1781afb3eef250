//! A server that is root: whose account everything runs as, and what one account can do to another.
//!
//! The machine's own accounts stay as they are: the server runs in a mount namespace with an `/etc` of its own, which takes
//! root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "who each process was is shown")]

#[path = "support/mod.rs"]
mod support;
#[path = "support_net/mod.rs"]
mod support_net;

#[path = "accounts/endings.rs"]
mod endings;
#[path = "accounts/grants.rs"]
mod grants;
#[path = "accounts/keyring.rs"]
mod keyring;
#[path = "accounts/machine.rs"]
mod machine;
#[path = "accounts/processes.rs"]
mod processes;
#[path = "accounts/secrets.rs"]
mod secrets;
#[path = "accounts/targets.rs"]
mod targets;
#[path = "accounts/wrapper.rs"]
mod wrapper;
