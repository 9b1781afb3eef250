//! What a session hands on, and why it cannot go on.

use bytes::Bytes;

use crate::protocol::frame::{FrameError, Kind};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this status.
    Status(u32),
    /// This signal, by number, killed it.
    Signal(u32),
}

impl Exit {
    pub(super) fn encode(self) -> [u8; 5] {
        let (kind, value) = match self {
            Exit::Status(status) => (0, status),
            Exit::Signal(signal) => (1, signal),
        };
        let [a, b, c, d] = value.to_be_bytes();
        [kind, a, b, c, d]
    }

    pub(crate) fn decode(payload: &[u8]) -> Option<Exit> {
        let &[kind, a, b, c, d] = payload else { return None };
        let value = u32::from_be_bytes([a, b, c, d]);
        match kind {
            0 => Some(Exit::Status(value)),
            1 => Some(Exit::Signal(value)),
            _ => None,
        }
    }

    /// The status that stands for it in a process of this side: its own, or 128 + N for signal N.
    pub fn status(self) -> u8 {
        match self {
            Exit::Status(status) => status.min(255) as u8,
            Exit::Signal(signal) => 128 + signal.min(127) as u8,
        }
    }
}

/// What the peer sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Data of one stream; empty ends the stream. To be reported with [`Session::consumed`](super::Session::consumed).
    Data {
        /// Stdin, stdout or stderr.
        stream: Kind,
        /// The frame's number.
        sequence: u64,
        /// The bytes.
        payload: Bytes,
    },
    /// How the process ended. To be reported with [`Session::consumed`](super::Session::consumed).
    Exit {
        /// The frame's number.
        sequence: u64,
        /// The end.
        exit: Exit,
    },
    /// A signal for the process, without `SIG`.
    Signal(String),
    /// The client ends the process now.
    Close,
    /// The peer's last word: `code: text`.
    Error(String),
}

/// Why a session cannot go on with this peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Something that is not a frame.
    Frame(FrameError),
    /// An ACK of frames that were never sent, or of fewer than before.
    AckOutOfRange(u64),
    /// More unacknowledged bytes than the window holds.
    WindowExceeded,
    /// A frame that nothing may follow was followed.
    AfterEnd(Kind),
    /// An EXIT of an unknown kind.
    UnknownExit,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Violation::Frame(error) => error.fmt(f),
            Violation::AckOutOfRange(count) => write!(f, "an acknowledgement of {count} frames, which cannot be"),
            Violation::WindowExceeded => f.write_str("more data than the window holds"),
            Violation::AfterEnd(kind) => write!(f, "a {kind:?} frame after the stream's end"),
            Violation::UnknownExit => f.write_str("an exit of an unknown kind"),
        }
    }
}

impl From<FrameError> for Violation {
    fn from(error: FrameError) -> Violation {
        Violation::Frame(error)
    }
}
