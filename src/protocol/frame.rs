//! The frame codec of `tstunnel/1`: bytes in, frames out, and back. No I/O.
//!
//! A frame is a type (1 byte), a length (3 bytes, big-endian) and that many bytes of payload. The decoder never holds
//! more than it was given, and refuses a frame by its header, before the payload has arrived.

use bytes::{Buf, Bytes, BytesMut};

use crate::error::{Code, Error, printable};

/// Bytes of a frame before its payload.
pub const HEADER_BYTES: usize = 4;
/// Most bytes of a payload: 2^20.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;

/// Memory of a frame that this program makes, and what TLS takes of it at once: eight TLS records, full ones.
pub const FRAME_BYTES: usize = 128 << 10;
/// Most bytes of the payload in there. A pipe holds pages: one that is left with whole ones takes as many bytes as it could hold,
/// and gives them in as few reads.
pub const DATA_BYTES: usize = FRAME_BYTES - (4 << 10);
/// Most bytes of such a frame.
pub const WIRE_BYTES: usize = HEADER_BYTES + DATA_BYTES;

/// Most bytes of an ERROR frame's text that are sent or read.
pub const MAX_ERROR_BYTES: usize = 1024;

/// Which half of the protocol a side plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends stdin and signals.
    Client,
    /// Sends stdout, stderr and the exit status.
    Server,
}

impl Role {
    /// The other side.
    pub fn peer(self) -> Role {
        match self {
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        }
    }
}

/// A frame's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Data for the process; empty ends it.
    Stdin = 0x00,
    /// Data from the process; empty ends it.
    Stdout = 0x01,
    /// Diagnostics from the process; empty ends it.
    Stderr = 0x02,
    /// How the process ended.
    Exit = 0x03,
    /// A signal for the process.
    Signal = 0x04,
    /// A question for a sign of life.
    Ping = 0x10,
    /// Its answer.
    Pong = 0x11,
    /// How many sequenced frames have been consumed.
    Ack = 0x12,
    /// End the process and keep nothing.
    Close = 0x13,
    /// A last word before the sender closes.
    Error = 0x14,
}

impl Kind {
    const ALL: [Kind; 10] = [
        Kind::Stdin,
        Kind::Stdout,
        Kind::Stderr,
        Kind::Exit,
        Kind::Signal,
        Kind::Ping,
        Kind::Pong,
        Kind::Ack,
        Kind::Close,
        Kind::Error,
    ];

    fn from_byte(byte: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Whether frames of this type are numbered, acknowledged and sent again after an interruption.
    pub fn is_sequenced(self) -> bool {
        (self as u8) < 0x10
    }

    /// Whether `role` may send frames of this type.
    pub fn may_be_sent_by(self, role: Role) -> bool {
        match self {
            Kind::Stdin | Kind::Signal | Kind::Close => role == Role::Client,
            Kind::Stdout | Kind::Stderr | Kind::Exit => role == Role::Server,
            Kind::Ping | Kind::Pong | Kind::Ack | Kind::Error => true,
        }
    }

    /// The payload's size, where it is fixed.
    fn fixed_bytes(self) -> Option<usize> {
        match self {
            Kind::Exit => Some(5),
            Kind::Ping | Kind::Pong | Kind::Ack => Some(8),
            Kind::Close => Some(0),
            Kind::Stdin | Kind::Stdout | Kind::Stderr | Kind::Signal | Kind::Error => None,
        }
    }
}

/// One frame as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The type.
    pub kind: Kind,
    /// The payload, at most [`MAX_PAYLOAD_BYTES`].
    pub payload: Bytes,
}

/// Why bytes are not a frame that this peer may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The length is over [`MAX_PAYLOAD_BYTES`].
    TooLong(usize),
    /// The type is below 0x80 and unknown.
    UnknownType(u8),
    /// The peer's role may not send this type.
    WrongDirection(Kind),
    /// A fixed-size payload of another size.
    WrongSize(Kind, usize),
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FrameError::TooLong(length) => write!(f, "a frame of {length} bytes"),
            FrameError::UnknownType(byte) => write!(f, "a frame of unknown type {byte:#04x}"),
            FrameError::WrongDirection(kind) => write!(f, "a {kind:?} frame from the side that may not send it"),
            FrameError::WrongSize(kind, length) => write!(f, "a {kind:?} frame of {length} bytes"),
        }
    }
}

/// The payload of an ERROR frame that says `error`: its hint, where it has one of its own, is a line below. Neither can add a line.
pub fn last_word(error: &Error) -> String {
    let mut text = format!("{}: {}", error.code, printable(&error.text));
    // Half of a hint would be none.
    if let Some(hint) = error.hint.as_deref().map(printable).filter(|hint| text.len() + hint.len() < MAX_ERROR_BYTES) {
        text.push('\n');
        text.push_str(&hint);
    }
    text
}

/// The error that the payload of an ERROR frame says; one that names no code is the peer's own.
pub fn error_of(last_word: &str) -> Error {
    let (said, hint) = match last_word.split_once('\n') {
        Some((said, hint)) => (said, Some(hint.to_owned())),
        None => (last_word, None),
    };
    match said.split_once(": ").and_then(|(code, text)| Some((Code::from_name(code)?, text))) {
        Some((code, text)) => Error { code, text: text.to_owned(), hint },
        None => Error::new(Code::Protocol, format!("the server ended the session: {last_word}")),
    }
}

/// The header of a frame whose payload has `length` bytes.
pub fn header(kind: Kind, length: usize) -> [u8; HEADER_BYTES] {
    debug_assert!(length <= MAX_PAYLOAD_BYTES);
    let [_, high, middle, low] = (length as u32).to_be_bytes();
    [kind as u8, high, middle, low]
}

/// A whole frame as bytes, in an allocation of its own size.
pub fn encode(kind: Kind, payload: &[u8]) -> Vec<u8> {
    [&header(kind, payload.len()), payload].concat()
}

/// Cuts a stream of bytes into the frames that a peer of one role may send.
#[derive(Debug)]
pub struct Decoder {
    peer: Role,
    buffer: BytesMut,
    /// Bytes still to come of a frame that is ignored.
    skip: usize,
}

impl Decoder {
    /// A decoder of what `peer` sends.
    pub fn new(peer: Role) -> Decoder {
        Decoder { peer, buffer: BytesMut::new(), skip: 0 }
    }

    /// The buffer that received bytes are appended to. It is filled straight from the connection.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// How many bytes are missing of the frame at hand, as its header says; `None` where there is no header.
    pub fn missing_bytes(&self) -> Option<usize> {
        let (&[_, high, middle, low], _) = self.buffer.split_first_chunk()?;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        (self.skip == 0 && length <= MAX_PAYLOAD_BYTES)
            .then(|| (HEADER_BYTES + length).saturating_sub(self.buffer.len()))
    }

    /// The next frame, or `None` until more bytes have come.
    ///
    /// # Errors
    /// A [`FrameError`] as soon as a header says what may not be; the connection is of no use afterwards.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let skipped = self.skip.min(self.buffer.len());
            self.buffer.advance(skipped);
            self.skip -= skipped;
            let Some((&[byte, high, middle, low], _)) = self.buffer.split_first_chunk() else { return Ok(None) };
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            if length > MAX_PAYLOAD_BYTES {
                return Err(FrameError::TooLong(length));
            }
            let Some(kind) = Kind::from_byte(byte) else {
                if byte < 0x80 {
                    return Err(FrameError::UnknownType(byte));
                }
                self.skip = HEADER_BYTES + length;
                continue;
            };
            if !kind.may_be_sent_by(self.peer) {
                return Err(FrameError::WrongDirection(kind));
            }
            if kind.fixed_bytes().is_some_and(|fixed| fixed != length) {
                return Err(FrameError::WrongSize(kind, length));
            }
            if self.buffer.len() < HEADER_BYTES + length {
                return Ok(None);
            }
            self.buffer.advance(HEADER_BYTES);
            return Ok(Some(Frame { kind, payload: self.buffer.split_to(length).freeze() }));
        }
    }

    /// Gives the buffer's memory back, where there is nothing in it.
    pub fn let_go(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// Forgets a frame that was cut off by the end of a connection.
    pub fn reset(&mut self) {
        self.buffer.clear();
        self.skip = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_last_word_says_code_text_and_hint_and_nothing_can_add_a_line() {
        let error = Error::new(Code::Unauthorized, "the certificate was revoked: today");
        assert_eq!(error_of(&last_word(&error)), error);
        let hinted = error.clone().with_hint("get another");
        assert_eq!(last_word(&hinted), "unauthorized: the certificate was revoked: today\nget another");
        assert_eq!(error_of(&last_word(&hinted)), hinted);
        let hostile = Error::new(Code::CommandDenied, "not `a\nb`").with_hint("c\nd");
        let read = error_of(&last_word(&hostile));
        assert_eq!((read.text.as_str(), read.hint()), ("not `a\\nb`", "c\\nd"));
        let long = Error::new(Code::CommandDenied, "x".repeat(MAX_ERROR_BYTES)).with_hint("half of it");
        assert_eq!(error_of(&last_word(&long)).hint, None);
        for foreign in ["", "no code at all", "no-such-code: text\nmore"] {
            let read = error_of(foreign);
            assert!(read.code == Code::Protocol && read.hint.is_none() && read.text.ends_with(foreign), "{read}");
        }
    }

    fn decode_in_pieces(peer: Role, pieces: &[&[u8]]) -> Result<Vec<Frame>, FrameError> {
        let mut decoder = Decoder::new(peer);
        let mut frames = Vec::new();
        for piece in pieces {
            decoder.buffer().extend_from_slice(piece);
            while let Some(frame) = decoder.next_frame()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn a_frame_is_decoded_at_every_split_point() {
        let mut wire = encode(Kind::Stdout, b"hello").to_vec();
        wire.extend_from_slice(&[0x81, 0, 0, 3, 1, 2, 3]);
        wire.extend_from_slice(&encode(Kind::Exit, &[0, 0, 0, 0, 7]));
        for split in 0..=wire.len() {
            let frames = decode_in_pieces(Role::Server, &[&wire[..split], &wire[split..]]).unwrap();
            assert_eq!(frames.len(), 2, "split at {split}");
            assert_eq!(&frames[0].payload[..], b"hello");
            assert_eq!(frames[1].kind, Kind::Exit);
        }
    }

    #[test]
    fn a_header_that_may_not_be_is_refused_before_its_payload() {
        let refuse = |peer, bytes: &[u8]| decode_in_pieces(peer, &[bytes]).unwrap_err();
        assert_eq!(refuse(Role::Client, &[0x00, 0x10, 0x00, 0x01]), FrameError::TooLong((1 << 20) + 1));
        assert_eq!(refuse(Role::Client, &[0x05, 0, 0, 0]), FrameError::UnknownType(5));
        assert_eq!(refuse(Role::Client, &[0x7f, 0, 0, 0]), FrameError::UnknownType(0x7f));
        assert_eq!(refuse(Role::Client, &[0x01, 0, 0, 0]), FrameError::WrongDirection(Kind::Stdout));
        assert_eq!(refuse(Role::Server, &[0x13, 0, 0, 0]), FrameError::WrongDirection(Kind::Close));
        assert_eq!(refuse(Role::Server, &[0x12, 0, 0, 7]), FrameError::WrongSize(Kind::Ack, 7));
        assert_eq!(refuse(Role::Client, &[0x13, 0, 0, 1]), FrameError::WrongSize(Kind::Close, 1));
    }

    #[test]
    fn the_longest_payload_passes() {
        let wire = encode(Kind::Stdin, &vec![7; MAX_PAYLOAD_BYTES]);
        assert_eq!(decode_in_pieces(Role::Client, &[&wire]).unwrap()[0].payload.len(), MAX_PAYLOAD_BYTES);
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20), piece in 1usize..64) {
            let mut wire = Vec::new();
            for payload in &payloads {
                wire.extend_from_slice(&encode(Kind::Stderr, payload));
            }
            let pieces: Vec<&[u8]> = wire.chunks(piece).collect();
            let frames = decode_in_pieces(Role::Server, &pieces).unwrap();
            prop_assert_eq!(frames.iter().map(|frame| frame.payload.to_vec()).collect::<Vec<_>>(), payloads);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), piece in 1usize..64) {
            let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
            let _ = decode_in_pieces(Role::Client, &pieces);
            let _ = decode_in_pieces(Role::Server, &pieces);
        }
    }
}
