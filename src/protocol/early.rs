//! Frames that a request to resume brings along in its body: they cost no round trip of their own. No I/O.

use bytes::{Bytes, BytesMut};

use super::frame::{Decoder, Role};

/// Most bytes of them. With a handshake's last flight and a head they are what a new connection carries before anything of
/// it is acknowledged: ten segments (RFC 6928).
pub const MAX_EARLY_BYTES: usize = 8 << 10;

/// What a client has sent again, or for the first time, in a row and whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Early {
    first: u64,
    bytes: Bytes,
    /// Where each frame ends.
    ends: Vec<usize>,
}

impl Early {
    /// The sequenced frames of a client's in `bytes`, the first of which has number `first`; nothing where that is not all
    /// that there is.
    pub fn decode(first: u64, bytes: Bytes) -> Option<Early> {
        let mut decoder = Decoder::new(Role::Client);
        *decoder.buffer() = BytesMut::from(&*bytes);
        let mut ends = Vec::new();
        while let Some(frame) = decoder.next_frame().ok()? {
            if !frame.kind.is_sequenced() {
                return None;
            }
            ends.push(bytes.len() - decoder.buffer().len());
        }
        let is_whole = ends.last().copied().unwrap_or_default() == bytes.len();
        (is_whole && first.checked_add(ends.len() as u64).is_some()).then_some(Early { first, bytes, ends })
    }

    /// What of it is new to a side that has received `received` frames, and how many it has received with that. Behind a gap
    /// nothing is.
    pub fn behind(&self, received: u64) -> (Bytes, u64) {
        let known = received.checked_sub(self.first).and_then(|known| usize::try_from(known).ok());
        match known {
            Some(known) if known < self.ends.len() => {
                let start = known.checked_sub(1).and_then(|last| self.ends.get(last)).copied().unwrap_or_default();
                (self.bytes.slice(start..), self.first + self.ends.len() as u64)
            }
            _ => (Bytes::new(), received),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::{Kind, encode};

    fn frames(payloads: &[&str]) -> Bytes {
        payloads.iter().flat_map(|payload| encode(Kind::Stdin, payload.as_bytes())).collect::<Vec<_>>().into()
    }

    #[test]
    fn what_was_received_already_is_left_out_and_what_is_behind_a_gap_too() {
        let early = Early::decode(5, frames(&["five", "six", ""])).unwrap();
        for (received, rest, count) in [
            (4, &[][..], 4),
            (5, &["five", "six", ""], 8),
            (6, &["six", ""], 8),
            (7, &[""], 8),
            (8, &[], 8),
            (9, &[], 9),
            (u64::MAX, &[], u64::MAX),
        ] {
            assert_eq!(early.behind(received), (frames(rest), count), "{received}");
        }
        let none = Early::decode(5, Bytes::new()).unwrap();
        assert_eq!(none.behind(5), (Bytes::new(), 5));
    }

    #[test]
    fn whatever_is_not_whole_numbered_frames_of_a_client_is_nothing() {
        let signal = encode(Kind::Signal, b"INT");
        assert!(Early::decode(0, signal.into()).is_some());
        let whole = frames(&["one", "two"]);
        for length in 1..whole.len() {
            let is_whole = length == frames(&["one"]).len();
            assert_eq!(Early::decode(0, whole.slice(..length)).is_some(), is_whole, "{length}");
        }
        for wrong in [
            encode(Kind::Ack, &[0; 8]),
            encode(Kind::Close, b""),
            encode(Kind::Stdout, b"a"),
            vec![0x80, 0, 0, 0],
            vec![0x7f, 0, 0, 0],
            vec![0, 0x7f, 0, 0],
        ] {
            assert_eq!(Early::decode(0, wrong.clone().into()), None, "{wrong:?}");
        }
        assert_eq!(Early::decode(u64::MAX, frames(&["one"])), None);
    }
}
