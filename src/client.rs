//! A resolved host → a connected session, and a file for each command that a person or Mutagen runs.
//!
//! [`dial`] makes the connection and asks for the upgrade, and [`passphrase`] asks a person what the key needs; [`session`] carries streams over it, and
//! [`redial`] keeps that going when the network does not, with [`disturbance`] as its early warning; the rest are commands.

pub mod check;
pub mod classify;
pub mod connect;
pub mod dial;
pub mod disturbance;
pub mod exec;
pub mod footprint;
pub mod mutagen;
pub mod passphrase;
pub mod redial;
pub mod session;
mod signals;
pub mod standin;
pub mod status;
pub mod upload;
