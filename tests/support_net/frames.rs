//! Frames of `tstunnel/1` (tstunnel-protocol(7)), written down once more, so that the two sides do not agree by sharing a mistake.

use std::io::{self, Read};

pub(crate) const STDIN: u8 = 0x00;
pub(crate) const STDOUT: u8 = 0x01;
pub(crate) const STDERR: u8 = 0x02;
pub(crate) const EXIT: u8 = 0x03;
pub(crate) const SIGNAL: u8 = 0x04;
pub(crate) const PING: u8 = 0x10;
pub(crate) const PONG: u8 = 0x11;
pub(crate) const ACK: u8 = 0x12;
pub(crate) const CLOSE: u8 = 0x13;
pub(crate) const ERROR: u8 = 0x14;

/// A frame as it is sent.
pub(crate) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut wire = vec![kind];
    wire.extend_from_slice(&length[1..]);
    wire.extend_from_slice(payload);
    wire
}

/// Reads one frame.
pub(crate) fn read_frame(from: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut header = [0; 4];
    from.read_exact(&mut header)?;
    let length = u32::from_be_bytes([0, header[1], header[2], header[3]]);
    let mut payload = vec![0; length as usize];
    from.read_exact(&mut payload)?;
    Ok((header[0], payload))
}
