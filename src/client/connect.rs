//! `tstunnel connect`: this process's stdin and stdout ⇄ a byte stream on the host.

use crate::client::dial::Dialler;
use crate::client::session::{self, Offer, Opening};
use crate::error::Result;
use crate::protocol::encoding::percent_encode;
use crate::stdio::Streams;

/// Connects to `target` (`tcp:HOST:PORT` or `unix:PATH`; the host's default if `None`); returns the exit status.
///
/// # Errors
/// Those of [`session::open`] and [`session::run`].
pub async fn run(dialler: &Dialler, target: Option<&str>, offer: Offer, streams: Streams) -> Result<u8> {
    let path = match target {
        Some(target) => format!("/stream?target={}", percent_encode(target)),
        None => "/stream".to_owned(),
    };
    let opening = Opening { path, body: None, offer, command: target.map(str::to_owned) };
    let opened = session::open(dialler, &opening).await?;
    session::run(opened, streams, dialler).await
}
