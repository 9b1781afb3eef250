//! (being written)
pub mod config;
pub mod policy;
pub mod principal;
