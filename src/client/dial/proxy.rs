//! A connection to a proxy → one through it: HTTP's `CONNECT` (RFC 9110 §9.3.6) and SOCKS5 (RFC 1928, RFC 1929).
//!
//! The proxy looks up the endpoint's name. What it sends is bounded, and nothing behind its answer is taken: the reader
//! keeps that for TLS. Every failure has the code `proxy`, and the proxy's own words in it where there are any.

use std::io;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::reason;
use crate::config::proxy::{Credentials, Scheme};
use crate::config::{Endpoint, Proxy};
use crate::error::{Code, Error, Result};
use crate::protocol::MAX_HEAD_BYTES;
use crate::protocol::head::Response;

/// SOCKS' own version, and that of its sub-negotiation for users and passwords.
const VERSION: u8 = 5;
const USER_VERSION: u8 = 1;
/// Ways to say who one is (RFC 1928 §3).
const NO_AUTHENTICATION: u8 = 0;
const USER_AND_PASSWORD: u8 = 2;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;
/// The command, and the types of addresses (RFC 1928 §4).
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// How much of a proxy's own words is repeated.
const MAX_REASON_CHARS: usize = 100;

const NO_CREDENTIALS: &str =
    "put them into the proxy's URL, in `proxy` or the variable: SCHEME://USER:PASSWORD@HOST:PORT";
const WRONG_CREDENTIALS: &str =
    "check the user and the password in the proxy's URL; what is no letter or digit is written as %XX there";
const REFUSED: &str = "ask whoever runs the proxy to allow the endpoint, or exempt it: `proxy = \"none\"` or NO_PROXY";

/// Has `proxy` connect to `endpoint` over `stream`, which afterwards is a stream to that.
///
/// # Errors
/// `proxy`.
pub(super) async fn through<S>(stream: &mut S, proxy: &Proxy, endpoint: &Endpoint) -> Result<()>
where
    S: AsyncBufRead + AsyncWrite + Unpin,
{
    let exchange = Exchange { stream, proxy, endpoint };
    match proxy.scheme {
        Scheme::Http | Scheme::Https => exchange.http().await,
        Scheme::Socks5 => exchange.socks().await,
    }
}

struct Exchange<'a, S> {
    stream: &'a mut S,
    proxy: &'a Proxy,
    endpoint: &'a Endpoint,
}

impl<S: AsyncBufRead + AsyncWrite + Unpin> Exchange<'_, S> {
    async fn http(mut self) -> Result<()> {
        let mut head = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n", self.endpoint);
        if let Some(Credentials { user, password }) = &self.proxy.credentials {
            head += &format!("Proxy-Authorization: Basic {}\r\n", BASE64.encode(format!("{user}:{password}")));
        }
        head += "\r\n";
        self.send(head.as_bytes()).await?;
        let response = self.response().await?;
        let reason: String = response.reason.chars().take(MAX_REASON_CHARS).collect();
        let said = format!("{} {reason}", response.status);
        let said = said.trim();
        match (response.status, &self.proxy.credentials) {
            (200..300, _) => Ok(()),
            (401 | 407, None) => Err(self.error(&format!("asks who is there: `{said}`")).with_hint(NO_CREDENTIALS)),
            // tinyproxy answers credentials that are wrong with 401.
            (401 | 407, Some(_)) => {
                Err(self.error(&format!("does not take the credentials: `{said}`")).with_hint(WRONG_CREDENTIALS))
            }
            (500.., _) => {
                let text = format!("could not connect to {}: `{said}`", self.endpoint);
                Err(self.error(&text).with_hint("check the endpoint's name and port as the proxy's network has them"))
            }
            _ => Err(self.error(&format!("refuses {}: `{said}`", self.endpoint)).with_hint(REFUSED)),
        }
    }

    /// The first answer that is not merely interim.
    async fn response(&mut self) -> Result<Response> {
        let mut head = Vec::new();
        loop {
            let received = match self.stream.fill_buf().await {
                Ok(received) => received,
                Err(error) => return Err(self.broke(&error)),
            };
            if received.is_empty() {
                return Err(self.error("closed the connection before its answer was whole"));
            }
            let before = head.len();
            head.extend_from_slice(&received[..received.len().min(MAX_HEAD_BYTES)]);
            let received = head.len() - before;
            match Response::parse(&head).map_err(|error| self.error(&format!("gave no answer: {}", error.text)))? {
                Some((response, length)) => {
                    self.stream.consume(length - before);
                    if !(100..200).contains(&response.status) {
                        return Ok(response);
                    }
                    head.clear();
                }
                None => self.stream.consume(received),
            }
        }
    }

    async fn socks(mut self) -> Result<()> {
        let methods: &[u8] = match self.proxy.credentials {
            None => &[VERSION, 1, NO_AUTHENTICATION],
            Some(_) => &[VERSION, 2, NO_AUTHENTICATION, USER_AND_PASSWORD],
        };
        self.send(methods).await?;
        let [version, method] = self.receive().await?;
        if version != VERSION {
            return Err(self.no_socks());
        }
        match (method, &self.proxy.credentials) {
            (NO_AUTHENTICATION, _) => {}
            (USER_AND_PASSWORD, Some(credentials)) => self.authenticate(credentials).await?,
            (NO_ACCEPTABLE_METHOD, None) => return Err(self.error("asks who is there").with_hint(NO_CREDENTIALS)),
            (NO_ACCEPTABLE_METHOD, Some(_)) => return Err(self.error("takes neither nobody nor a user and a password")),
            _ => return Err(self.error(&format!("chose method {method}, which was not offered"))),
        }
        let request = self.request();
        self.send(&request).await?;
        let [version, reply, _, kind] = self.receive().await?;
        if version != VERSION {
            return Err(self.no_socks());
        }
        if reply != 0 {
            return Err(self.refusal(reply));
        }
        // The address that it connects from, which says nothing here.
        match kind {
            IPV4 => drop(self.receive::<6>().await?),
            IPV6 => drop(self.receive::<18>().await?),
            NAME => {
                let [length] = self.receive().await?;
                let mut rest = [0; u8::MAX as usize + 2];
                self.receive_into(&mut rest[..usize::from(length) + 2]).await?;
            }
            _ => return Err(self.error(&format!("answered with an address of the unknown type {kind}"))),
        }
        Ok(())
    }

    /// RFC 1929.
    async fn authenticate(&mut self, credentials: &Credentials) -> Result<()> {
        let mut message = vec![USER_VERSION];
        for text in [&credentials.user, &credentials.password] {
            message.extend(counted(text));
        }
        self.send(&message).await?;
        let [_, status] = self.receive().await?;
        if status == 0 {
            return Ok(());
        }
        Err(self.error(&format!("does not take the credentials (status {status})")).with_hint(WRONG_CREDENTIALS))
    }

    fn request(&self) -> Vec<u8> {
        let mut request = vec![VERSION, CONNECT, 0];
        match self.endpoint.ip() {
            Some(IpAddr::V4(address)) => {
                request.push(IPV4);
                request.extend(address.octets());
            }
            Some(IpAddr::V6(address)) => {
                request.push(IPV6);
                request.extend(address.octets());
            }
            None => {
                request.push(NAME);
                request.extend(counted(&self.endpoint.host));
            }
        }
        request.extend(self.endpoint.port.to_be_bytes());
        request
    }

    /// What a reply other than 0 means (RFC 1928 §6).
    fn refusal(&self, reply: u8) -> Error {
        let endpoint = self.endpoint;
        let could_not = |why: &str| {
            let text = format!("could not connect to {endpoint}: {why}");
            self.error(&text).with_hint("check the endpoint's name and port as the proxy's network has them")
        };
        match reply {
            1 => could_not("general failure"),
            2 => self.error(&format!("refuses {endpoint}: not allowed by its rules")).with_hint(REFUSED),
            3 => could_not("network unreachable"),
            4 => could_not("host unreachable"),
            5 => could_not("connection refused"),
            6 => could_not("time to live expired"),
            7 => self.error("does not know the command CONNECT"),
            8 => self.error("does not know this type of address"),
            _ => could_not(&format!("reply {reply}")),
        }
    }

    fn no_socks(&self) -> Error {
        self.error("does not speak SOCKS5")
            .with_hint("check the proxy's port, and whether its URL should begin with http://")
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error| self.broke(&error))
    }

    async fn receive<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.receive_into(&mut bytes).await?;
        Ok(bytes)
    }

    async fn receive_into(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.stream.read_exact(bytes).await.map(|_| ()).map_err(|error| self.broke(&error))
    }

    fn broke(&self, error: &io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => self.error("closed the connection before its answer was whole"),
            _ => self.error(&format!("broke the connection: {}", reason(error))),
        }
    }

    fn error(&self, what: &str) -> Error {
        Error::new(Code::Proxy, format!("the proxy {} {what}", self.proxy))
    }
}

/// A text of at most 255 bytes behind its length.
fn counted(text: &str) -> impl Iterator<Item = u8> + '_ {
    let length = text.len().min(usize::from(u8::MAX)) as u8;
    std::iter::once(length).chain(text.bytes().take(usize::from(length)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{BufReader, duplex};

    use super::*;

    /// What a client makes of a proxy that says `answer` and then ends, and what is left behind the answer.
    async fn outcome(proxy: &str, endpoint: &str, answer: &[u8]) -> (Result<()>, Vec<u8>, Vec<u8>) {
        let (client, mut server) = duplex(1 << 20);
        server.write_all(answer).await.unwrap();
        server.shutdown().await.unwrap();
        let mut client = BufReader::with_capacity(64 << 10, client);
        let endpoint = Endpoint::parse(endpoint).unwrap();
        let result = through(&mut client, &Proxy::parse(proxy).unwrap(), &endpoint).await;
        let (mut left, mut asked) = (Vec::new(), Vec::new());
        client.read_to_end(&mut left).await.unwrap();
        drop(client);
        server.read_to_end(&mut asked).await.unwrap();
        (result, left, asked)
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_left_for_tls() {
        let interim = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.0 200 OK\r\nX: y\r\n\r\n\x16\x03";
        let (result, left, asked) = outcome("http://ann:b%3Ac@p:1", "[::1]:8443", interim).await;
        assert_eq!((result, left.as_slice()), (Ok(()), &b"\x16\x03"[..]));
        let expected =
            "CONNECT [::1]:8443 HTTP/1.1\r\nHost: [::1]:8443\r\nProxy-Authorization: Basic YW5uOmI6Yw==\r\n\r\n";
        assert_eq!(String::from_utf8(asked).unwrap(), expected);

        for (kind, address) in [(IPV4, vec![0; 6]), (IPV6, vec![0; 18]), (NAME, b"\x02ab\0\0".to_vec())] {
            let answer = [&[5, 0, 5, 0, 0, kind][..], &address, b"\x16\x03"].concat();
            let (result, left, asked) = outcome("socks5://p:1", "a.net:443", &answer).await;
            assert_eq!((result, left.as_slice()), (Ok(()), &b"\x16\x03"[..]));
            assert_eq!(asked, b"\x05\x01\0\x05\x01\0\x03\x05a.net\x01\xbb");
        }
    }

    #[tokio::test]
    async fn credentials_are_given_where_they_are_asked_for() {
        let answer = b"\x05\x02\x01\0\x05\0\0\x01\0\0\0\0\0\0";
        let (result, _, asked) = outcome("socks5://ann:secret@p:1", "10.0.0.1:258", answer).await;
        assert_eq!(result, Ok(()));
        assert_eq!(asked, b"\x05\x02\0\x02\x01\x03ann\x06secret\x05\x01\0\x01\x0a\0\0\x01\x01\x02");
        let (result, ..) = outcome("socks5://ann:secret@p:1", "10.0.0.1:1", b"\x05\x02\x01\x01").await;
        assert!(result.unwrap_err().text.contains("does not take the credentials"));
    }

    #[tokio::test]
    async fn every_other_answer_is_a_refusal() {
        let talkative = [b"HTTP/1.1 403 ".to_vec(), vec![b'x'; 1000], b"\r\n\r\n".to_vec()].concat();
        let endless = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; 2 * MAX_HEAD_BYTES]].concat();
        for (answer, said) in [
            (&b""[..], "closed the connection before its answer was whole"),
            (b"HTTP/1.1 200 OK\r\n", "closed the connection before its answer was whole"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "gave no answer"),
            (b"HTTP/1.1 407 Who is it?\r\n\r\n", "asks who is there: `407 Who is it?`"),
            (b"HTTP/1.1 403 Filtered\r\n\r\n", "refuses a.net:443: `403 Filtered`"),
            (b"HTTP/1.1 502\r\n\r\n", "could not connect to a.net:443: `502`"),
            (&talkative, "xx`"),
            (&endless, "longer than"),
        ] {
            let error = outcome("http://p:1", "a.net", answer).await.0.unwrap_err();
            assert!(error.code == Code::Proxy && error.text.contains(said) && error.text.len() < 200, "{error}");
        }
        for (answer, said) in [
            (&b""[..], "closed the connection"),
            (b"\x05", "closed the connection"),
            (b"HTTP/1.1 400 Bad Request\r\n", "does not speak SOCKS5"),
            (b"\x05\xff", "asks who is there"),
            (b"\x05\x02", "chose method 2"),
            (b"\x05\0\x05", "closed the connection"),
            (b"\x05\0\x05\x02\0\x01", "refuses a.net:443: not allowed"),
            (b"\x05\0\x05\x05\0\x01", "connection refused"),
            (b"\x05\0\x05\x77\0\x01", "reply 119"),
            (b"\x05\0\x05\0\0\x09", "unknown type 9"),
            (b"\x05\0\x05\0\0\x03\xffx", "closed the connection"),
        ] {
            let error = outcome("socks5://p:1", "a.net", answer).await.0.unwrap_err();
            assert!(error.code == Code::Proxy && error.text.contains(said), "{answer:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics_or_takes_more_than_it_is(
            begin in prop::sample::select(vec!["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 100 \r\n\r\n", "\x05\0\x05\0\0\x03", "\x05\x02\x01\0\x05"]),
            rest in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let answer = [begin.as_bytes(), &rest].concat();
            for proxy in ["http://p:1", "socks5://ann:secret@p:1"] {
                let (result, left, _) = runtime.block_on(outcome(proxy, "a.net", &answer));
                prop_assert!(answer.ends_with(&left));
                prop_assert!(result.is_ok() || result.unwrap_err().code == Code::Proxy);
            }
        }
    }
}
