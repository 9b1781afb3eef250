//! tstunnel carries Mutagen, commands and byte streams to hosts behind one mutually authenticated TLS endpoint.
//!
//! Data flows down this list; nothing points up:
//!
//! - [`error`]: what can go wrong, and how it is said
//! - [`log`]: what is logged → stderr, which holds nothing up
//! - [`cli`]: argv → a command, no I/O; [`cli::openssh`] is OpenSSH's own grammar
//! - [`config`]: files, environment, URL and options → one resolved host
//! - [`protocol`]: heads, frames and the session, no I/O
//! - [`tls`]: roots, certificates and keys → client and server configurations
//! - [`descriptors`]: whether there are enough of them to start with
//! - [`socket`]: a TCP connection's options
//! - [`stdio`]: this process's own standard streams, fast and cancellable
//! - [`bridge`]: drives a session between a connection and local streams, on both sides
//! - [`client`]: a host → a connected session, and a file for each command
//! - [`server`]: listener, policy, processes, uploads
//! - [`pki`]: a small certificate authority

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod bridge;
pub mod cli;
pub mod client;
pub mod config;
pub mod descriptors;
pub mod error;
pub mod log;
#[cfg(feature = "server")]
pub mod pki;
pub mod protocol;
#[cfg(feature = "server")]
pub mod server;
pub mod socket;
pub mod stdio;
pub mod tls;
