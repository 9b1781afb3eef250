//! What the tests of refusals, of other programs and of streams share: a site with a server, peers that misbehave, and
//! commands that are watched until they end.

#![allow(dead_code, reason = "every test binary uses a part of its own")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

pub(crate) mod child;
pub(crate) mod fake;
pub(crate) mod frames;
pub(crate) mod report;
pub(crate) mod site;
