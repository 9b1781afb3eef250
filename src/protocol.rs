//! The wire's names and limits, shared by both halves. No I/O below this module: bytes in, events out, time passed in.
//!
//! [`head`] reads and writes HTTP/1.1 heads, [`frame`] is the codec of `tstunnel/1`, and [`session`] numbers,
//! acknowledges and keeps frames, with [`liveness`] to judge a silent peer and [`flight`] to measure the path.
//! [`early`] is what comes with a resume. [`encoding`] writes bytes as text, [`file_name`] says
//! what an uploaded file may be called, and [`target`] what a stream may lead to.

pub mod early;
pub mod encoding;
pub mod file_name;
pub mod flight;
pub mod frame;
pub mod head;
pub mod liveness;
pub mod session;
pub mod target;

use std::fmt;
use std::time::Duration;

use crate::error::{Code, Error, Result};

/// The token of the framed protocol in `Upgrade` (RFC 9110 §7.8).
pub const UPGRADE_FRAMED: &str = "tstunnel/1";
/// The token of the plain byte stream in `Upgrade`.
pub const UPGRADE_RAW: &str = "tcp";
/// The path prefix of every request where nothing else is configured.
pub const DEFAULT_UPGRADE_BASE: &str = "/tinyscale/v1";
/// The port of an endpoint that names none.
pub const DEFAULT_PORT: u16 = 443;

/// Most bytes of a request's or an answer's head, in either direction.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Most bytes of a `/command` request's JSON body.
pub const MAX_COMMAND_BYTES: usize = 256 * 1024;
/// Most bytes of a refusal's body that a client reads.
pub const MAX_PROBLEM_BYTES: usize = 16 * 1024;

/// How much of a file a slow disk stores in a second.
const STORED_BYTES_PER_SECOND: u64 = 8 << 20;

/// What both sides add to their patience while a file of so many bytes is stored, which is nothing for most: what a server holds is read and
/// written once more, and all of it is on the disk before it says so.
pub fn time_to_store(bytes: u64) -> Duration {
    Duration::from_secs(bytes / STORED_BYTES_PER_SECOND)
}

/// The header that carries a session's id and secret.
pub const HEADER_SESSION: &str = "Tstunnel-Session";
/// The header that carries the most unacknowledged bytes of sequenced frames, per direction.
pub const HEADER_WINDOW: &str = "Tstunnel-Window";
/// The header that carries the seconds that the server keeps an interrupted session.
pub const HEADER_GRACE: &str = "Tstunnel-Grace";
/// The header that carries how many sequenced frames a side has received.
pub const HEADER_RECEIVED: &str = "Tstunnel-Received";
/// The header by which a server says how many bytes of frames a resume may bring along, and a client how many frames come
/// before those that it does bring.
pub const HEADER_EARLY: &str = "Tstunnel-Early";
/// The header that carries an uploaded file's permission bits, in octal.
pub const HEADER_MODE: &str = "Tstunnel-Mode";
/// The header that carries the account asked for.
pub const HEADER_USER: &str = "Tstunnel-User";
/// The header that carries an uploaded file's own digest (draft-ietf-httpbis-unencoded-digest).
pub const HEADER_UNENCODED_DIGEST: &str = "Unencoded-Digest";
/// The header that carries how much of a broken upload is held (draft-ietf-httpbis-resumable-upload).
pub const HEADER_UPLOAD_OFFSET: &str = "Upload-Offset";

/// What a refusal's `type` begins with (RFC 9457); one of the codes follows.
pub const PROBLEM_TYPE_PREFIX: &str = "urn:tstunnel:";

/// Whether `name` is one or more DNS labels (RFC 1123 §2.1): letters, digits and inner hyphens, at most 253 bytes.
pub fn is_dns_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// Which remote host behind an endpoint: one or more DNS labels, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(String);

impl HostId {
    /// Parses a host id; upper case is folded.
    ///
    /// # Errors
    /// `config` where `text` is not a sequence of DNS labels.
    pub fn parse(text: &str) -> Result<HostId> {
        if is_dns_name(text) {
            Ok(HostId(text.to_ascii_lowercase()))
        } else {
            Err(Error::new(Code::Config, format!("`{text}` is not a host id"))
                .with_hint("a host id is letters, digits and hyphens, in parts joined by dots"))
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a client is, read from its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(pub String);

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The body of `POST /command`, as both sides use it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CommandRequest {
    /// With `args` the program; without, a whole command line.
    pub command: String,
    /// The program's arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Extra environment; the server keeps only the names that it allows.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub env: std::collections::BTreeMap<String, String>,
    /// The same as `NAME=value`, as an older client sends it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub envs: Vec<String>,
    /// The account asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_id_is_dns_labels_in_lower_case() {
        assert_eq!(HostId::parse("Dev-7.Lab").unwrap().as_str(), "dev-7.lab");
        for bad in ["", ".", "a.", "-a", "a-", "a b", "a_b", "ä", "a/b", &"a".repeat(64), &"a.".repeat(130)] {
            assert!(HostId::parse(bad).is_err(), "{bad}");
        }
    }
}
