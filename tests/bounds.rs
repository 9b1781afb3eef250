//! What peers can make the server hold is bounded, and running out of anything costs new sessions, never live ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "bounds/descriptors.rs"]
mod descriptors;
#[path = "bounds/handshakes.rs"]
mod handshakes;
#[path = "bounds/penalties.rs"]
mod penalties;
#[path = "bounds/raw.rs"]
mod raw;
#[path = "bounds/requests.rs"]
mod requests;
mod support;
mod support_net;
