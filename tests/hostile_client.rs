//! Clients that mean harm, against the real server: requests that two readers would cut differently, heads and bodies without
//! end, broken handshakes, certificates of every wrong kind, names that lead elsewhere, frames out of place, and a home that
//! changes under an upload. Each is refused as RFC 9112, RFC 8446 and tstunnel-protocol(7) have it, nothing is started or stored for
//! it, and afterwards the server is what it was before.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

#[path = "hostile_client/bodies.rs"]
mod bodies;
#[path = "hostile_client/caller.rs"]
#[allow(dead_code, reason = "another test binary uses the rest")]
mod caller;
#[path = "hostile_client/certificates.rs"]
mod certificates;
#[path = "hostile_client/commands.rs"]
mod commands;
#[path = "hostile_client/flights.rs"]
mod flights;
#[path = "hostile_client/frames.rs"]
mod frames;
#[path = "hostile_client/framing.rs"]
mod framing;
#[path = "hostile_client/heads.rs"]
mod heads;
#[path = "hostile_client/hello.rs"]
mod hello;
#[path = "hostile_client/hellos.rs"]
mod hellos;
#[path = "hostile_client/names.rs"]
mod names;
#[path = "hostile_client/paths.rs"]
mod paths;
#[path = "hostile_client/siege.rs"]
mod siege;
#[path = "hostile_client/targets.rs"]
mod targets;
#[path = "hostile_client/upgrades.rs"]
mod upgrades;
