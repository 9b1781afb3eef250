//! (being written)
pub mod openssh;
pub mod options;
