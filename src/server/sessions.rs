//! A permitted request's streams over an upgraded connection, until one side ends it: processes and targets, with frames
//! and without.

mod command;
mod link;
pub mod raw;
mod stream;

pub use command::{Work, command};
pub use link::Link;
pub use stream::stream;
