//! ClientHellos written by hand (RFC 8446 §4.1.2), right ones and whatever a test makes of them.

use crate::support_net::site::SERVER_NAME;

// Extensions (RFC 8446 §4.2).
pub(crate) const SERVER_NAMES: u16 = 0;
pub(crate) const GROUPS: u16 = 10;
pub(crate) const SIGNATURES: u16 = 13;
pub(crate) const PROTOCOLS: u16 = 16;
pub(crate) const EARLY_DATA: u16 = 42;
pub(crate) const VERSIONS: u16 = 43;
pub(crate) const KEY_SHARES: u16 = 51;

/// Records' content types.
pub(crate) const ALERT: u8 = 21;
pub(crate) const HANDSHAKE: u8 = 22;

/// A ClientHello.
#[derive(Clone)]
pub(crate) struct Hello {
    pub(crate) version: [u8; 2],
    pub(crate) session: Vec<u8>,
    pub(crate) suites: Vec<u8>,
    pub(crate) compressions: Vec<u8>,
    pub(crate) extensions: Vec<(u16, Vec<u8>)>,
}

impl Hello {
    pub(crate) fn good() -> Hello {
        let share = [&[0, 36, 0, 29, 0, 32], [9; 32].as_slice()].concat();
        Hello {
            version: [3, 3],
            session: vec![7; 32],
            suites: vec![0x13, 1, 0x13, 2],
            compressions: vec![0],
            extensions: vec![
                (SERVER_NAMES, server_names(&[(0, SERVER_NAME.as_bytes())])),
                (GROUPS, vec![0, 2, 0, 29]),
                (SIGNATURES, vec![0, 2, 4, 3]),
                (PROTOCOLS, protocols(&[b"http/1.1"])),
                (VERSIONS, vec![2, 3, 4]),
                (KEY_SHARES, share),
            ],
        }
    }

    /// The same without an extension.
    pub(crate) fn without(mut self, kind: u16) -> Hello {
        self.extensions.retain(|(found, _)| *found != kind);
        self
    }

    /// The same with another extension of a kind, or one more.
    pub(crate) fn with(mut self, kind: u16, body: impl Into<Vec<u8>>) -> Hello {
        let body = body.into();
        match self.extensions.iter_mut().find(|(found, _)| *found == kind) {
            Some((_, found)) => *found = body,
            None => self.extensions.push((kind, body)),
        }
        self
    }

    /// The handshake message.
    pub(crate) fn message(&self) -> Vec<u8> {
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|(kind, body)| [kind.to_be_bytes().to_vec(), sized(2, body)].concat())
            .collect();
        let body = [
            self.version.to_vec(),
            vec![5; 32],
            sized(1, &self.session),
            sized(2, &self.suites),
            sized(1, &self.compressions),
            sized(2, &extensions),
        ];
        [vec![1], sized(3, &body.concat())].concat()
    }

    /// As records of at most 16 KiB.
    pub(crate) fn wire(&self) -> Vec<u8> {
        records(&self.message(), 1 << 14)
    }
}

/// Bytes behind their length, in so many bytes.
pub(crate) fn sized(width: usize, bytes: &[u8]) -> Vec<u8> {
    [&bytes.len().to_be_bytes()[8 - width..], bytes].concat()
}

pub(crate) fn server_names(names: &[(u8, &[u8])]) -> Vec<u8> {
    let names: Vec<u8> = names.iter().flat_map(|(kind, name)| [vec![*kind], sized(2, name)].concat()).collect();
    sized(2, &names)
}

pub(crate) fn protocols(names: &[&[u8]]) -> Vec<u8> {
    let names: Vec<u8> = names.iter().flat_map(|name| sized(1, name)).collect();
    sized(2, &names)
}

/// A message as handshake records of this size.
pub(crate) fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|piece| record(HANDSHAKE, piece)).collect()
}

pub(crate) fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    [vec![kind, 3, 1], sized(2, payload)].concat()
}
