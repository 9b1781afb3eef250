//! `tstunnel status`: the live tunnels of this account on this machine, sessions and uploads. What one of them is, and how a list of
//! them reads.
//!
//! Each listens on an abstract Unix socket (unix(7)) that carries its account and process in its name and
//! vanishes with the process, so that nothing is left behind however that ends. [`report`] is the tunnel's side of it,
//! [`ask`] that of `status`. Anybody may bind any such name and connect to any of them: both sides go by what the kernel
//! says of the peer (`SO_PEERCRED`), and another account gets and gives nothing.

pub mod ask;
pub mod report;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::error::printable;

/// What every name begins with, less the NUL of the abstract namespace; the account's number follows, the process's, and
/// digits that nobody could have guessed and taken before.
const NAME_PREFIX: &str = "tstunnel/";
/// Most characters of a host or a command that a tunnel tells of itself.
const MAX_TEXT_CHARS: usize = 1024;
/// Most bytes of what a tunnel tells: its texts, where JSON escapes all of them, and the rest.
const MAX_DOCUMENT_BYTES: usize = 32 << 10;
/// Most characters of a command in the table.
const MAX_COLUMN_CHARS: usize = 60;

/// A live tunnel, as it tells of itself. Times are seconds since 1970. The program that tells may be older or newer than the one that
/// asks: what has been added since the first has a default, and what is not known is passed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tunnel {
    /// The process. What the tunnel says of it does not count.
    pub pid: u32,
    /// What it carries.
    #[serde(default)]
    pub kind: Kind,
    /// The host as the user wrote it.
    pub host: String,
    /// `HOST:PORT`.
    pub endpoint: String,
    /// The command line, the target, or `upload:NAME`; `None` for the host's default target.
    pub command: Option<String>,
    /// When it was opened.
    pub started: u64,
    /// How long ago that is.
    pub age_seconds: u64,
    /// Bytes from stdin, or how much of a file has been sent.
    pub sent_bytes: u64,
    /// Bytes to stdout and stderr.
    pub received_bytes: u64,
    /// The last measured round trip.
    pub round_trip_ms: Option<f64>,
    /// How long nothing has been heard from the server, where that means anything: it has nothing to say to an upload, nor to a
    /// stream without frames.
    #[serde(default)]
    pub silence_seconds: Option<u64>,
    /// Whether there is a connection now.
    pub state: State,
    /// How many interruptions it has survived.
    pub interruptions: u32,
    /// When the last one began, or the one that lasts.
    pub last_interruption: Option<u64>,
}

/// What a tunnel carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The streams of a command or a target.
    #[default]
    Session,
    /// A file.
    Upload,
    /// What this program does not know yet.
    #[serde(other)]
    Other,
}

/// Whether a tunnel has its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has.
    Connected,
    /// It is on the way to another one.
    Interrupted,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Connected => "connected",
            State::Interrupted => "interrupted",
        }
    }
}

/// The tunnels as a JSON list with a final newline; times are those of RFC 3339, in UTC.
pub fn to_json(tunnels: &[Tunnel]) -> String {
    let list: Vec<serde_json::Value> = tunnels
        .iter()
        .map(|tunnel| {
            serde_json::json!({
                "pid": tunnel.pid,
                "kind": tunnel.kind,
                "host": tunnel.host,
                "endpoint": tunnel.endpoint,
                "command": tunnel.command,
                "started": rfc3339(tunnel.started),
                "age_seconds": tunnel.age_seconds,
                "sent_bytes": tunnel.sent_bytes,
                "received_bytes": tunnel.received_bytes,
                "round_trip_ms": tunnel.round_trip_ms,
                "silence_seconds": tunnel.silence_seconds,
                "state": tunnel.state,
                "interruptions": tunnel.interruptions,
                "last_interruption": tunnel.last_interruption.map(rfc3339),
            })
        })
        .collect();
    format!("{:#}\n", serde_json::Value::Array(list))
}

/// The tunnels as a table for a person, who reads it at `now` (seconds since 1970).
pub fn to_text(tunnels: &[Tunnel], now: u64) -> String {
    if tunnels.is_empty() {
        return "no tunnels\n".to_owned();
    }
    const HEAD: [&str; 10] =
        ["HOST", "ENDPOINT", "PID", "AGE", "SENT", "RECEIVED", "ROUND TRIP", "STATE", "INTERRUPTIONS", "COMMAND"];
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(tunnels.iter().map(|tunnel| cells(tunnel, now)));
    let widths: [usize; 10] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        let line: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn cells(tunnel: &Tunnel, now: u64) -> [String; 10] {
    let ago = tunnel.last_interruption.map(|time| age(now.saturating_sub(time)));
    let state = match (tunnel.state, &ago) {
        (State::Interrupted, Some(ago)) => format!("{} {ago}", tunnel.state.name()),
        _ => tunnel.state.name().to_owned(),
    };
    let interruptions = match (tunnel.interruptions, tunnel.state, ago) {
        (0, ..) => "0".to_owned(),
        (count, State::Connected, Some(ago)) => format!("{count}, last {ago} ago"),
        (count, ..) => count.to_string(),
    };
    [
        shortened(&printable(&tunnel.host), MAX_COLUMN_CHARS),
        shortened(&printable(&tunnel.endpoint), MAX_COLUMN_CHARS),
        tunnel.pid.to_string(),
        age(tunnel.age_seconds),
        size(tunnel.sent_bytes),
        size(tunnel.received_bytes),
        tunnel.round_trip_ms.map_or_else(|| "-".to_owned(), |milliseconds| format!("{milliseconds:.1} ms")),
        state,
        interruptions,
        tunnel
            .command
            .as_ref()
            .map_or_else(|| "(default target)".to_owned(), |command| shortened(&printable(command), MAX_COLUMN_CHARS)),
    ]
}

/// The first `chars` characters, the last of which then says that there were more.
fn shortened(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some(_) => text.chars().take(chars.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// The two largest units, as `2d3h`.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, ..) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    // What would be rounded up to 1024.0 is 1.0 of the next unit.
    while value >= 1023.95
        && let Some(next) = units.next()
    {
        (value, unit) = (value / 1024.0, next);
    }
    format!("{value:.1} {unit}")
}

fn rfc3339(seconds: u64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()?;
    let (date, (hour, minute, second)) = (time.date(), time.to_hms());
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
}

/// A time as seconds since 1970.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel() -> Tunnel {
        Tunnel {
            pid: 4711,
            kind: Kind::Session,
            host: "dev-7".to_owned(),
            endpoint: "containers.tinyscale.net:443".to_owned(),
            command: Some("uname -s -m".to_owned()),
            started: 1_700_000_000,
            age_seconds: 3_725,
            sent_bytes: 10,
            received_bytes: 3 << 20,
            round_trip_ms: Some(12.345),
            silence_seconds: Some(7),
            state: State::Connected,
            interruptions: 0,
            last_interruption: None,
        }
    }

    #[test]
    fn the_table_is_aligned_and_says_when_there_is_nothing() {
        assert_eq!(to_text(&[], 0), "no tunnels\n");
        let interrupted = Tunnel {
            pid: 1,
            host: "a-host-with-a-long-name".to_owned(),
            command: None,
            round_trip_ms: None,
            state: State::Interrupted,
            interruptions: 2,
            last_interruption: Some(1_700_003_600),
            ..tunnel()
        };
        let survived = Tunnel { interruptions: 3, last_interruption: Some(1_700_003_600), ..tunnel() };
        let text = to_text(&[tunnel(), interrupted, survived], 1_700_003_725);
        let expected = "\
HOST                     ENDPOINT                      PID   AGE   SENT  RECEIVED  ROUND TRIP  STATE             INTERRUPTIONS     COMMAND
dev-7                    containers.tinyscale.net:443  4711  1h2m  10 B  3.0 MiB   12.3 ms     connected         0                 uname -s -m
a-host-with-a-long-name  containers.tinyscale.net:443  1     1h2m  10 B  3.0 MiB   -           interrupted 2m5s  2                 (default target)
dev-7                    containers.tinyscale.net:443  4711  1h2m  10 B  3.0 MiB   12.3 ms     connected         3, last 2m5s ago  uname -s -m
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_row_is_one_short_line_of_printable_text_whatever_the_command_holds() {
        let odd = Tunnel { command: Some(format!("printf '\u{1b}[31m\n'{}", "x".repeat(500))), ..tunnel() };
        let text = to_text(&[odd], 0);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.chars().all(|character| character == '\n' || !character.is_control()), "{text:?}");
        assert!(text.ends_with("…\n") && text.lines().all(|line| line.chars().count() < 200), "{text}");
    }

    #[test]
    fn json_has_every_field_under_its_name() {
        let list: serde_json::Value =
            serde_json::from_str(&to_json(&[Tunnel { last_interruption: Some(0), ..tunnel() }])).unwrap();
        let expected = serde_json::json!([{
            "pid": 4711,
            "kind": "session",
            "host": "dev-7",
            "endpoint": "containers.tinyscale.net:443",
            "command": "uname -s -m",
            "started": "2023-11-14T22:13:20Z",
            "age_seconds": 3725,
            "sent_bytes": 10,
            "received_bytes": 3 << 20,
            "round_trip_ms": 12.345,
            "silence_seconds": 7,
            "state": "connected",
            "interruptions": 0,
            "last_interruption": "1970-01-01T00:00:00Z",
        }]);
        assert_eq!(list, expected);
        assert_eq!(to_json(&[]), "[]\n");
    }

    #[test]
    fn ages_and_sizes_are_told_in_units_that_fit() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m0s"), (3_599, "59m59s"), (3_600, "1h0m"), (90_061, "1d1h")]
        {
            assert_eq!(age(seconds), text);
        }
        for (bytes, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.0 KiB"),
            (1_536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn no_number_that_a_session_tells_panics() {
        let odd = Tunnel {
            started: u64::MAX,
            age_seconds: u64::MAX,
            sent_bytes: u64::MAX,
            round_trip_ms: Some(f64::MAX),
            interruptions: u32::MAX,
            last_interruption: Some(u64::MAX),
            ..tunnel()
        };
        assert!(to_json(std::slice::from_ref(&odd)).contains("\"started\": null"));
        assert!(to_text(&[odd], 0).lines().count() == 2);
    }
}
