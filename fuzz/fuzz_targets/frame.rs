//! Bytes cut into frames: the same whatever the pieces, and what was cut can be put together again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tstunnel::protocol::early::Early;
use tstunnel::protocol::frame::{Decoder, Frame, FrameError, Role, encode};

fn decode(peer: Role, bytes: &[u8], piece: usize) -> (Vec<Frame>, Option<FrameError>) {
    let mut decoder = Decoder::new(peer);
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// What a resume brings along, to a side that has received any number of frames.
fn early(first: u64, bytes: &[u8]) {
    let Some(early) = Early::decode(first, Bytes::copy_from_slice(bytes)) else { return };
    let (_, end) = early.behind(first);
    for received in [0, first, first + 1, end, end + 1, u64::MAX] {
        let (lacking, count) = early.behind(received);
        let frames = decode(Role::Client, &lacking, usize::MAX);
        assert_eq!((frames.0.len() as u64, frames.1), (count - received, None));
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&piece, bytes)) = data.split_first() else { return };
    for peer in [Role::Client, Role::Server] {
        let whole = decode(peer, bytes, usize::MAX);
        assert_eq!(whole, decode(peer, bytes, usize::from(piece) + 1));
        let again: Vec<u8> = whole.0.iter().flat_map(|frame| encode(frame.kind, &frame.payload)).collect();
        assert_eq!(decode(peer, &again, usize::MAX), (whole.0, None));
    }
    early(u64::from(piece), bytes);
});
