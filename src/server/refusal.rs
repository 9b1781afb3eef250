//! An error → the answer that refuses a request: `application/problem+json` (RFC 9457), with the status of its code.

use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, UPGRADE};
use hyper::{Response, StatusCode};

use crate::error::{Code, Error};
use crate::protocol::{PROBLEM_TYPE_PREFIX, UPGRADE_FRAMED, UPGRADE_RAW};

/// The media type of a refusal's body (RFC 9457 §3).
const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";
/// Seconds after which a client that met a limit may ask again.
const RETRY_SECONDS: &str = "5";

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The code, and what the peer may know.
    pub error: Error,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal { status: error.code.http_status().unwrap_or(500), error }
    }
}

impl Refusal {
    /// A malformed request, with the status that says how.
    pub fn bad_request(status: u16, text: impl Into<String>) -> Refusal {
        Refusal { status, error: Error::new(Code::BadRequest, text) }
    }

    /// A file, or what is left of it, that may not be so large.
    pub fn file_too_large(max_bytes: u64) -> Refusal {
        let error = Error::new(Code::BadRequest, format!("the file is larger than {max_bytes} bytes"));
        Refusal { status: 413, error: error.with_hint("ask whoever runs the endpoint to raise `max_upload_bytes`") }
    }

    /// The answer. `allow` are the methods of a path that was asked with another.
    pub fn response(&self, allow: &'static str) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.problem())));
        *response.status_mut() = self.status_code();
        let mut set = |name: HeaderName, value: HeaderValue| {
            response.headers_mut().insert(name, value);
        };
        set(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
        match self.status {
            405 => set(ALLOW, HeaderValue::from_static(allow)),
            426 => {
                if let Ok(value) = HeaderValue::from_str(&format!("{UPGRADE_FRAMED}, {UPGRADE_RAW}")) {
                    set(UPGRADE, value);
                }
            }
            _ if self.may_retry() => set(RETRY_AFTER, HeaderValue::from_static(RETRY_SECONDS)),
            _ => {}
        }
        response
    }

    /// The whole answer as it is sent, for a connection whose head could not be read, or is not.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (problem, date) = (self.problem(), httpdate::fmt_http_date(SystemTime::now()));
        let retry = if self.may_retry() { format!("retry-after: {RETRY_SECONDS}\r\n") } else { String::new() };
        format!(
            "HTTP/1.1 {}\r\ncontent-type: {PROBLEM_MEDIA_TYPE}\r\ncontent-length: {}\r\n{retry}connection: close\r\ndate: {date}\r\n\r\n{problem}",
            self.status_code(),
            problem.len()
        )
        .into_bytes()
    }

    fn may_retry(&self) -> bool {
        matches!(self.status, 429 | 503)
    }

    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn problem(&self) -> String {
        let mut problem = serde_json::json!({
            "type": format!("{PROBLEM_TYPE_PREFIX}{}", self.error.code),
            "title": self.status_code().canonical_reason().unwrap_or("Refused"),
            "status": self.status,
            "detail": self.error.text,
        });
        if let Some(hint) = &self.error.hint {
            problem["hint"] = hint.as_str().into();
        }
        problem.to_string()
    }
}
