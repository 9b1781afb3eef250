//! HTTP/1.1 heads, client side (RFC 9112): a request as bytes, an answer's head and problem body from bytes. No I/O.
//!
//! A head is bounded, and what follows its blank line is left alone: after a 101 it belongs to the stream.

use std::fmt::Write as _;
use std::str::FromStr;

use super::{MAX_HEAD_BYTES, PROBLEM_TYPE_PREFIX};
use crate::error::{Code, Error, printable};

/// Most header fields of an answer.
const MAX_FIELDS: usize = 64;

/// Builds a request's head.
#[derive(Debug)]
pub struct Request {
    head: String,
}

impl Request {
    /// A request for `target` in origin-form; `server_name` becomes `Host`.
    pub fn new(method: &str, target: &str, server_name: &str) -> Request {
        Request { head: format!("{method} {target} HTTP/1.1\r\nHost: {server_name}\r\n") }
    }

    /// Adds a field. Line breaks cannot get into a value: they become spaces.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl std::fmt::Display) -> Request {
        let value = value.to_string().replace(['\r', '\n', '\0'], " ");
        let _ = write!(self.head, "{name}: {value}\r\n");
        self
    }

    /// The head as bytes, with its blank line.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.head.push_str("\r\n");
        self.head.into_bytes()
    }
}

/// A field's number: digits alone, without the sign that Rust takes, too.
pub fn number<T: FromStr>(value: &str) -> Option<T> {
    digits(value)?.parse().ok()
}

/// The same of permission bits, in octal.
pub fn permission_bits(value: &str) -> Option<u32> {
    u32::from_str_radix(digits(value)?, 8).ok().filter(|bits| *bits <= 0o777)
}

fn digits(value: &str) -> Option<&str> {
    Some(value).filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// What stands behind it, perhaps nothing.
    pub reason: String,
    fields: Vec<(String, String)>,
}

impl Response {
    /// Parses the head at the beginning of `bytes`; `None` until its blank line has come. The number is its length.
    ///
    /// # Errors
    /// `not-tstunnel` where this is no HTTP/1.x answer, or its head is longer than [`MAX_HEAD_BYTES`].
    pub fn parse(bytes: &[u8]) -> Result<Option<(Response, usize)>, Error> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let bounded = &bytes[..bytes.len().min(MAX_HEAD_BYTES)];
        match response.parse(bounded) {
            Ok(httparse::Status::Complete(length)) => {
                let fields = response
                    .headers
                    .iter()
                    .map(|field| {
                        (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).trim().to_owned())
                    })
                    .collect();
                let reason = response.reason.unwrap_or_default().to_owned();
                Ok(Some((Response { status: response.code.unwrap_or(0), reason, fields }, length)))
            }
            Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD_BYTES => Ok(None),
            Ok(httparse::Status::Partial) => {
                Err(Error::new(Code::NotTstunnel, format!("the answer's head is longer than {MAX_HEAD_BYTES} bytes")))
            }
            Err(error) => {
                let start = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
                Err(Error::new(Code::NotTstunnel, format!("the answer is not HTTP ({error}): `{}`", printable(&start))))
            }
        }
    }

    /// A field's value, by its name in lower case; the first, where there are several.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// A field's value as a number, where it is one; its name may be in any case.
    pub fn number<T: FromStr>(&self, name: &str) -> Option<T> {
        number(self.field(&name.to_ascii_lowercase())?)
    }

    /// The body's length, where the head gives one.
    pub fn content_length(&self) -> Option<u64> {
        self.number("Content-Length")
    }

    /// The failure that a refusal stands for: its problem's own code, text and hint, or what its status suggests.
    pub fn refusal(&self, body: &[u8]) -> Error {
        #[derive(serde::Deserialize)]
        struct Problem {
            r#type: String,
            #[serde(default)]
            detail: Option<String>,
            #[serde(default)]
            title: Option<String>,
            #[serde(default)]
            hint: Option<String>,
        }
        let is_problem = self.field("content-type").is_some_and(|kind| kind.starts_with("application/problem+json"));
        let problem = is_problem.then(|| serde_json::from_slice::<Problem>(body).ok()).flatten();
        let code =
            problem.as_ref().and_then(|problem| Code::from_name(problem.r#type.strip_prefix(PROBLEM_TYPE_PREFIX)?));
        if let (Some(code), Some(problem)) = (code, problem) {
            let text = problem.detail.or(problem.title).unwrap_or_else(|| "the server gave no reason".to_owned());
            return Error { code, text, hint: problem.hint };
        }
        Error::new(Code::NotTstunnel, format!("the endpoint answered {} and not in this protocol", self.status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_parsed_at_every_split_point_and_what_follows_is_left() {
        let wire =
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tstunnel/1\r\nTstunnel-Window:  65536 \r\n\r\n\x01\0\0\0";
        let length = wire.len() - 4;
        for end in 0..length {
            assert_eq!(Response::parse(&wire[..end]).unwrap(), None, "{end}");
        }
        let (response, parsed) = Response::parse(wire).unwrap().unwrap();
        assert_eq!((response.status, parsed), (101, length));
        assert_eq!(response.field("tstunnel-window"), Some("65536"));
        assert_eq!(response.field("missing"), None);
    }

    #[test]
    fn a_number_is_digits_alone() {
        assert_eq!((number("0"), number("007"), number(&u64::MAX.to_string())), (Some(0), Some(7), Some(u64::MAX)));
        for wrong in ["", "+5", "-5", "+", " 5", "5 ", "0x5", "5.0", "٥", "18446744073709551616"] {
            assert_eq!(number::<u64>(wrong), None, "{wrong:?}");
        }
        assert_eq!((permission_bits("755"), permission_bits("0000777")), (Some(0o755), Some(0o777)));
        for wrong in ["", "+755", "-755", "0o755", "758", "1000", "40000000000"] {
            assert_eq!(permission_bits(wrong), None, "{wrong:?}");
        }
        let (response, _) = Response::parse(b"HTTP/1.1 200 OK\r\nUpload-Offset: +5\r\n\r\n").unwrap().unwrap();
        assert_eq!(response.number::<u64>("Upload-Offset"), None);
    }

    #[test]
    fn what_is_not_http_is_another_kind_of_server() {
        for wire in [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"\x15\x03\x01\0\x02\x02\x28", b"HTTP/1.1 abc\r\n\r\n"] {
            assert_eq!(Response::parse(wire).unwrap_err().code, Code::NotTstunnel);
        }
    }

    #[test]
    fn a_head_without_end_is_refused_at_its_bound() {
        let mut wire = b"HTTP/1.1 200 OK\r\n".to_vec();
        while wire.len() < MAX_HEAD_BYTES {
            wire.extend_from_slice(format!("X: {}\r\n", "y".repeat(400)).as_bytes());
        }
        assert_eq!(Response::parse(&wire).unwrap_err().code, Code::NotTstunnel);
    }

    #[test]
    fn a_refusal_speaks_with_its_own_code() {
        let wire = b"HTTP/1.1 421 Misdirected Request\r\nContent-Type: application/problem+json\r\n\r\n";
        let (response, _) = Response::parse(wire).unwrap().unwrap();
        let body = br#"{"type":"urn:tstunnel:host-unknown","title":"x","status":421,"detail":"no host `x`"}"#;
        assert_eq!(response.refusal(body), Error::new(Code::HostUnknown, "no host `x`"));
        let body = br#"{"type":"urn:tstunnel:unauthorized","detail":"no","hint":"do this","more":1}"#;
        assert_eq!(response.refusal(body), Error::new(Code::Unauthorized, "no").with_hint("do this"));
        assert_eq!(response.refusal(b"<html>").code, Code::NotTstunnel);
    }

    #[test]
    fn a_field_cannot_add_a_line() {
        let bytes = Request::new("GET", "/", "h").field("X", "a\r\nY: b").into_bytes();
        assert_eq!(bytes, b"GET / HTTP/1.1\r\nHost: h\r\nX: a  Y: b\r\n\r\n");
    }
}
