//! Records → systemd's journal, by its native protocol (systemd's JOURNAL_NATIVE_PROTOCOL): a datagram of `NAME=value` lines.
//!
//! `MESSAGE` is the JSON line itself, so that `journalctl -o cat` shows what a file would hold; each of its fields is there by
//! itself too, as `TSTUNNEL_PRINCIPAL=…`, for `journalctl TSTUNNEL_HOST=host123`.

use std::fmt::Write as _;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::record::Record;

/// The journal's socket.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
/// How long the journal may take for a record. It is the writer's thread alone that waits.
const PATIENCE: Duration = Duration::from_secs(1);
/// syslog(3)'s LOG_AUTHPRIV.
const FACILITY: u8 = 10;

/// A socket from which the journal is sent records.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// Makes sure that there is a journal.
    pub(super) fn open(path: &Path) -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        // The one that sends is not connected: a journal that is restarted has a new socket under the same path.
        UnixDatagram::unbound()?.connect(path)?;
        Ok(Journal { socket, path: path.to_owned() })
    }

    pub(super) fn send(&self, record: &Record) -> io::Result<()> {
        self.socket.send_to(datagram(record)?.as_bytes(), &self.path).map(|_| ())
    }
}

/// A record's fields. No value has a line break in it, so each is one line.
fn datagram(record: &Record) -> io::Result<String> {
    let line = record.line()?;
    let priority = record.event.priority();
    let mut text = format!(
        "MESSAGE={}\nPRIORITY={priority}\nSYSLOG_FACILITY={FACILITY}\nSYSLOG_IDENTIFIER=tstunnel\n",
        line.trim_end()
    );
    if let Value::Object(fields) = serde_json::to_value(record)? {
        for (name, value) in fields {
            let value = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "TSTUNNEL_{}={value}", name.to_ascii_uppercase());
        }
    }
    Ok(text)
}
