//! The header in which a load balancer says from where the connection comes that it passes on: the PROXY protocol, in both versions
//! (HAProxy's proxy-protocol.txt).

use std::fmt;
use std::io;
use std::net::SocketAddr;

use proxy_header::{Error, ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What is read before there is no end to be seen of a header: several times what balancers send, with all they say besides.
const MAX_HEADER_BYTES: usize = 4 << 10;
/// How a header begins, in the first and in the second version (sections 2.1 and 2.2); no TLS record does.
const BEGINNINGS: [&[u8]; 2] = [b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n"];

/// What a connection begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// From where it comes; `None` where the balancer speaks for itself, as to see whether the server is there.
    pub source: Option<SocketAddr>,
    /// What has come behind the header.
    pub rest: Vec<u8>,
}

/// Why the beginning of a connection is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is a header, and none is expected from there.
    Unexpected,
    /// There is none, or none that can be read.
    Missing,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Unexpected => {
                "a header of the PROXY protocol came instead of TLS: name the balancer in `proxy_protocol`, or switch it \
                 off there"
            }
            Fault::Missing => {
                "no header of the PROXY protocol came from an address that `proxy_protocol` names: switch it on in the \
                 balancer, or leave the address out"
            }
        })
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, fault)
    }
}

/// Whether what a connection begins with is a header.
pub fn is_begun(bytes: &[u8]) -> bool {
    BEGINNINGS.iter().any(|beginning| bytes.starts_with(beginning))
}

/// Reads the header that `connection` begins with.
///
/// # Errors
/// A [`Fault`], `UnexpectedEof` where it ends before, and the connection's own.
pub async fn read(connection: &mut (impl AsyncRead + Unpin)) -> io::Result<Header> {
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    let mut bytes = Vec::new();
    let mut connection = connection.take(MAX_HEADER_BYTES as u64);
    loop {
        if connection.read_buf(&mut bytes).await? == 0 {
            let is_whole = bytes.len() == MAX_HEADER_BYTES;
            return Err(if is_whole { Fault::Missing.into() } else { io::ErrorKind::UnexpectedEof.into() });
        }
        if !BEGINNINGS.iter().any(|beginning| beginning.starts_with(&bytes) || bytes.starts_with(beginning)) {
            return Err(Fault::Missing.into());
        }
        match ProxyHeader::parse(&bytes, config) {
            Ok((header, length)) => {
                let source = header.proxied_address().map(|address| address.source);
                return Ok(Header { source, rest: bytes.split_off(length) });
            }
            Err(Error::BufferTooShort) => {}
            Err(_) => return Err(Fault::Missing.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n";
    const HELLO: &[u8] = b"\x16\x03\x01\x00\x05hello";

    /// A header of the second version: `command` is 0x20 (LOCAL) or 0x21 (PROXY), `family` that of `addresses`.
    fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = (addresses.len() as u16).to_be_bytes();
        [BEGINNINGS[1], &[command, family], &length, addresses].concat()
    }

    async fn read_all(bytes: &[u8]) -> io::Result<Header> {
        read(&mut &bytes[..]).await
    }

    #[tokio::test]
    async fn both_versions_say_from_where_a_connection_comes() {
        let four = [&[192, 0, 2, 7, 198, 51, 100, 1][..], &50_000_u16.to_be_bytes(), &443_u16.to_be_bytes()].concat();
        let mut six = [0; 36];
        (six[15], six[31], six[33], six[35]) = (7, 1, 9, 1);
        let with_more = [&four[..], &[0x02, 0, 3, b'a', b'.', b'b']].concat();
        for (header, source) in [
            (V1.to_vec(), Some("192.0.2.7:50000")),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 9 443\r\n".to_vec(), Some("[2001:db8::7]:9")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN whatever it says\r\n".to_vec(), None),
            (v2(0x21, 0x11, &four), Some("192.0.2.7:50000")),
            (v2(0x21, 0x11, &with_more), Some("192.0.2.7:50000")),
            (v2(0x21, 0x21, &six), Some("[::7]:9")),
            (v2(0x20, 0x00, b""), None),
            (v2(0x20, 0x11, &four), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            let source = source.map(|source| source.parse().unwrap());
            let whole = read_all(&[&header[..], HELLO].concat()).await.unwrap();
            assert_eq!(whole, Header { source, rest: HELLO.to_vec() }, "{header:?}");
            let (mut balancer, mut server) = tokio::io::duplex(1);
            let (sent, slow) = tokio::join!(balancer.write_all(&header), read(&mut server));
            assert_eq!((sent.is_ok(), slow.unwrap().source), (true, source), "{header:?}, byte by byte");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused_at_once_and_what_ends_before_its_end_has_ended() {
        let endless = [&v2(0x21, 0x11, &[0; 12])[..14], &[0xff, 0xff], &[0; 1 << 16]].concat();
        for bytes in [
            HELLO,
            b"G",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 999999\r\n",
            b"PROXY TCP9 192.0.2.7 198.51.100.1 50000 443\r\n",
            &[b"PROXY UNKNOWN ", &b"x".repeat(200)[..]].concat(),
            &v2(0x2f, 0x11, &[0; 12]),
            &[&v2(0x21, 0x11, &[0; 11])[..], HELLO].concat(),
            &endless,
        ] {
            let error = read_all(bytes).await.unwrap_err();
            let fault = error.get_ref().and_then(|inner| inner.downcast_ref::<Fault>());
            assert_eq!(fault, Some(&Fault::Missing), "{bytes:?}: {error}");
        }
        for length in 0..V1.len() {
            assert_eq!(read_all(&V1[..length]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{length}");
        }
    }

    #[test]
    fn only_a_header_begins_like_one() {
        assert!(is_begun(V1) && is_begun(&v2(0x20, 0, b"")));
        assert!(!is_begun(HELLO) && !is_begun(b"PROXY") && !is_begun(b""));
    }
}
