//! `tstunnel connect`: this process's stdin and stdout ⇄ a byte stream on the host.

use crate::client::dial::Dialler;
use crate::client::session::{self, Offer, Opening};
use crate::error::Result;
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

/// Percent-encodes everything but unreserved characters (RFC 3986 §2.3), so that the result is one path segment or one
/// query value.
pub fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
