//! A tunnel's side of `tstunnel status`: a listener beside the session or the upload, and one small document for whoever asks.
//!
//! It can't hold that up: nothing is read, and the document fits the buffer of a socket that has just been made,
//! so that it is written at once or not at all. Only this account is answered, and others who knock are not heard more often
//! than `DEAF` allows.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep_until};

use super::{Kind, MAX_TEXT_CHARS, NAME_PREFIX, State, Tunnel, shortened, unix_seconds};
use crate::config::Host;

/// How long nobody is heard after another account has knocked, or a knock failed: what they cost the session is bounded.
const DEAF: Duration = Duration::from_millis(50);

/// Tells of one tunnel.
#[derive(Debug)]
pub struct Report {
    listener: Option<UnixListener>,
    deaf_until: Option<Instant>,
    account: u32,
    kind: Kind,
    host: String,
    endpoint: String,
    command: Option<String>,
    opened: SystemTime,
}

/// What changes while a tunnel lives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measure {
    /// Bytes sent and received, of streams or a file.
    pub bytes: (u64, u64),
    /// The last measured round trip.
    pub round_trip: Option<Duration>,
    /// How long nothing has been heard, where that means anything.
    pub silence: Option<Duration>,
    /// Whether there is no connection now.
    pub is_interrupted: bool,
    /// Interruptions survived.
    pub interruptions: u32,
    /// When the last one began, or the one that lasts.
    pub last_interruption: Option<SystemTime>,
}

impl Report {
    /// Begins to listen for questions about a tunnel that is open; where the system has no abstract sockets, there
    /// are none.
    pub fn new(host: &Host, kind: Kind, command: Option<&str>) -> Report {
        let account = rustix::process::geteuid().as_raw();
        let listener = listen(account).inspect_err(|error| tracing::debug!(%error, "`status` won't see this")).ok();
        let address = &host.endpoint.host;
        let address = if address.contains(':') { format!("[{address}]") } else { address.clone() };
        Report {
            listener,
            deaf_until: None,
            account,
            kind,
            host: shortened(&host.alias, MAX_TEXT_CHARS),
            endpoint: format!("{address}:{}", host.endpoint.port),
            command: command.map(|command| shortened(command, MAX_TEXT_CHARS)),
            opened: SystemTime::now(),
        }
    }

    /// Waits for the next question of this account's. Cancel-safe.
    pub async fn question(&mut self) -> UnixStream {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        loop {
            if let Some(until) = self.deaf_until {
                sleep_until(until).await;
                self.deaf_until = None;
            }
            if let Ok((stream, _)) = listener.accept().await
                && stream.peer_cred().is_ok_and(|peer| peer.uid() == self.account)
            {
                return stream;
            }
            self.deaf_until = Some(Instant::now() + DEAF);
        }
    }

    /// Answers a question at once, as far as its socket takes it.
    pub fn answer(&self, question: UnixStream, measure: Measure) {
        let Ok(document) = serde_json::to_vec(&self.tunnel(measure, SystemTime::now())) else { return };
        // The runtime has not yet seen that the socket can be written to, which any new one can.
        let _ = question.into_std().and_then(|mut socket| socket.write(&document));
    }

    fn tunnel(&self, measure: Measure, now: SystemTime) -> Tunnel {
        Tunnel {
            pid: std::process::id(),
            kind: self.kind,
            host: self.host.clone(),
            endpoint: self.endpoint.clone(),
            command: self.command.clone(),
            started: unix_seconds(self.opened),
            age_seconds: now.duration_since(self.opened).unwrap_or_default().as_secs(),
            sent_bytes: measure.bytes.0,
            received_bytes: measure.bytes.1,
            round_trip_ms: measure.round_trip.map(|time| time.as_micros() as f64 / 1000.0),
            silence_seconds: measure.silence.map(|time| time.as_secs()),
            state: if measure.is_interrupted { State::Interrupted } else { State::Connected },
            interruptions: measure.interruptions,
            last_interruption: measure.last_interruption.map(unix_seconds),
        }
    }
}

fn listen(account: u32) -> std::io::Result<UnixListener> {
    let mut digits = [0; 8];
    aws_lc_rs::rand::fill(&mut digits).map_err(|_| std::io::ErrorKind::Other)?;
    let name = format!("\0{NAME_PREFIX}{account}/{}/{:016x}", std::process::id(), u64::from_be_bytes(digits));
    // A path that begins with NUL is a name, or an error where there are no such names.
    UnixListener::bind(std::ffi::OsStr::from_bytes(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::status::MAX_DOCUMENT_BYTES;

    #[test]
    fn the_longest_document_is_within_the_limit() {
        let worst = shortened(&"\u{1}".repeat(5 * MAX_TEXT_CHARS), MAX_TEXT_CHARS);
        let report = Report {
            listener: None,
            deaf_until: None,
            account: 0,
            kind: Kind::Session,
            host: worst.clone(),
            endpoint: format!("{}:65535", "x".repeat(253)),
            command: Some(worst),
            opened: SystemTime::UNIX_EPOCH,
        };
        let tunnel = report.tunnel(Measure { bytes: (u64::MAX, u64::MAX), ..Measure::default() }, SystemTime::now());
        assert!(serde_json::to_vec(&tunnel).unwrap().len() < MAX_DOCUMENT_BYTES);
    }
}
