//! A resolved host → a connected session, and a file for each command that a person or Mutagen runs.
//!
//! [`dial`] makes the connection and asks for the upgrade; [`session`] carries streams over it; the rest are commands.

pub mod classify;
pub mod connect;
pub mod dial;
pub mod exec;
pub mod mutagen;
pub mod session;
pub mod standin;
pub mod upload;
