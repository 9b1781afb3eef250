//! Bytes there and back over a plain stream to the server's echo → how long that took.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::client::session::{self, Opened};
use crate::config::Host;
use crate::error::Result;

/// How long bytes are sent for at most: a slow path shows its rate with fewer.
const LONGEST: Duration = Duration::from_secs(10);
/// How long what was sent may take to come back after that.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of one write and of one read.
const CHUNK_BYTES: usize = 256 << 10;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measured {
    /// How many bytes went there and came back.
    pub(super) bytes: u64,
    /// From the first that was sent to the last that came.
    pub(super) took: Duration,
}

impl Measured {
    /// Bytes a second, in each direction.
    pub(super) fn rate(self) -> f64 {
        self.bytes as f64 / self.took.as_secs_f64().max(f64::EPSILON)
    }
}

/// Sends up to `bytes`, and waits until all that was sent has come back.
///
/// # Errors
/// `network-lost`.
pub(super) async fn measure(opened: Opened, host: &Host, bytes: u64) -> Result<Measured> {
    let (connection, leftover) = opened.into_connection();
    let (mut reader, mut writer) = tokio::io::split(connection);
    let started = Instant::now();
    let sending = async {
        let chunk = vec![0; CHUNK_BYTES];
        let mut sent = 0;
        while sent < bytes && started.elapsed() < LONGEST {
            let length = (bytes - sent).min(CHUNK_BYTES as u64);
            writer.write_all(&chunk[..length as usize]).await?;
            sent += length;
        }
        writer.shutdown().await?;
        Ok::<u64, io::Error>(sent)
    };
    let receiving = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut received = leftover.len() as u64;
        loop {
            match reader.read(&mut buffer).await? {
                0 => return Ok::<u64, io::Error>(received),
                count => received += count as u64,
            }
        }
    };
    let lost = |error: &io::Error| {
        let hint =
            "check the network, and ask for no more than the server's `max_upload_bytes`, which is what it sends back";
        session::lost(host, Some(error)).with_hint(hint)
    };
    let moved = timeout(LONGEST + PATIENCE, async { tokio::try_join!(sending, receiving) }).await;
    let (sent, received) = moved
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the echo took too long")))
        .map_err(|error| lost(&error))?;
    if received != sent {
        let text = format!("{received} of {sent} bytes came back");
        return Err(lost(&io::Error::other(text)));
    }
    Ok(Measured { bytes: sent, took: started.elapsed() })
}
