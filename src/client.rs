//! (being written)
pub mod classify;
pub mod mutagen;
