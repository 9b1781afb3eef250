//! What one line of the audit log says. Whatever comes from outside is a [`Text`]: escaped and bounded, there is no other way
//! to make one.

use std::io;

use serde::Serialize;
use time::OffsetDateTime;

use crate::error::Error;
use crate::server::handshake::Peer;
use crate::server::policy::{Action, CommandLine, Permit, Request};
use crate::server::principal;

/// Most bytes of one text: a principal's, a rule's, a reason's.
const MAX_TEXT_BYTES: usize = 1024;
/// Most bytes of all that a request says.
const MAX_REQUEST_BYTES: usize = 4096;
/// Most bytes of one word of it, so that what comes behind a long one shows too.
const MAX_WORD_BYTES: usize = 2048;
/// Most arguments, and most names of variables, of a request.
const MAX_WORDS: usize = 128;

/// One line. The names of its fields are those of the JSON object; what does not apply is left out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Record {
    /// When, RFC 3339, UTC, with milliseconds.
    pub time: String,
    /// What happened.
    pub event: Event,
    /// Joins the lines of a session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Who.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal: Option<Text>,
    /// The serial number of the certificate, in lower-case hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<Text>,
    /// From where: address and port; of a source that is shut out, the address or network alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Text>,
    /// The name that was asked for (SNI).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<Text>,
    /// The host that it stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Text>,
    /// The account whose processes and files these are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<Text>,
    /// What was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Asked>,
    /// What was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// The rule that the verdict, as far as it came, rests on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Text>,
    /// The code of a refusal or a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// The exit status of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
    /// The number of the signal that killed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<u32>,
    /// Payload bytes from the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_in: Option<u64>,
    /// Payload bytes to the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_out: Option<u64>,
    /// How long it lasted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// How often it was interrupted and went on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumes: Option<u32>,
    /// Bytes of the file that was stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Its SHA-256 digest, in lower-case hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// How many lines of this kind were left out before this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_back: Option<u64>,
    /// Why, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Text>,
}

/// What a line is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// A command or a stream was allowed, and is about to be started.
    Session,
    /// An upload was allowed, and is about to be received.
    Upload,
    /// A question was allowed and answered; nothing was started.
    Query,
    /// A request was refused; nothing was started.
    Refused,
    /// An interrupted session goes on over another connection.
    Resume,
    /// A session or an upload has ended.
    End,
    /// A peer was not authenticated.
    Handshake,
    /// A source has failed to authenticate too often: its connections are closed for a time.
    #[serde(rename = "shut-out")]
    ShutOut,
    /// The server serves from now on.
    #[default]
    Start,
    /// The configuration was read again, or could not be.
    Reload,
    /// The server takes nothing new any more.
    Stop,
}

impl Event {
    /// Its priority for syslog(3): notice for what somebody was denied, else informational.
    pub(super) fn priority(self) -> u8 {
        match self {
            Event::Refused | Event::Handshake | Event::ShutOut => 5,
            _ => 6,
        }
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It may begin.
    Allowed,
    /// It may not.
    Refused,
}

impl Record {
    /// Something that happens now.
    pub fn new(event: Event) -> Record {
        Record { time: rfc3339(OffsetDateTime::now_utc()), event, ..Record::default() }
    }

    /// Something that an authenticated peer does now.
    pub fn of(event: Event, peer: &Peer) -> Record {
        Record {
            principal: peer.principal.as_ref().ok().map(|principal| Text::new(&principal.0)),
            serial: peer.chain.first().and_then(|leaf| principal::serial(leaf)).map(|serial| Text::new(&serial)),
            source: Some(Text::new(&peer.address.to_string())),
            server_name: Some(Text::new(&peer.server_name)),
            ..Record::new(event)
        }
    }

    /// The same about something that happens later.
    #[must_use]
    pub fn again(&self, event: Event) -> Record {
        Record { event, time: Record::new(event).time, ..self.clone() }
    }

    /// Says what a permit is about, and what exactly it permits where the request left that open.
    pub fn permitted(&mut self, permit: &Permit) {
        if let (Some(asked), Action::Stream { target }) = (&mut self.request, permit.action()) {
            asked.target.get_or_insert_with(|| Text::new(&target.to_string()));
        }
        self.host = Some(Text::new(permit.host().as_str()));
        self.account = Some(Text::new(permit.account()));
        self.rule = Some(Text::new(permit.rule()));
    }

    /// Says what went wrong.
    pub fn failed(&mut self, error: &Error) {
        self.code = Some(error.code.name());
        self.reason = Some(Text::new(&error.text));
    }

    /// The line, with its end.
    pub(super) fn line(&self) -> io::Result<String> {
        let mut line = serde_json::to_string(self)?;
        line.push('\n');
        Ok(line)
    }
}

/// Text from outside, escaped and bounded: printable characters stay as they are, whatever else there may be (control characters,
/// line breaks, what changes the direction of writing, what shows as nothing) becomes `\n` or `\u{202e}`, and a backslash
/// becomes two, so that nothing can pretend to have been escaped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Text(String);

impl Text {
    /// Escapes `text`, and cuts it where it is too long.
    pub fn new(text: &str) -> Text {
        Text(escape(text, MAX_TEXT_BYTES).0)
    }
}

/// Escapes at most so much of `text` that the result has `max_bytes`; tells whether that is all of it.
fn escape(text: &str, max_bytes: usize) -> (String, bool) {
    let mut escaped = String::new();
    for character in text.chars() {
        let before = escaped.len();
        match character {
            '"' | '\'' => escaped.push(character),
            _ => escaped.extend(character.escape_debug()),
        }
        if escaped.len() > max_bytes {
            escaped.truncate(before);
            return (escaped, false);
        }
    }
    (escaped, true)
}

/// What was asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Asked {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<Vec<Text>>,
    /// The names alone: values may be secrets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filename: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<Text>,
    /// Some of it was too long to be kept.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

impl Asked {
    /// A request of which no more is known than its head. `kind` is that of its path.
    pub fn head(kind: &'static str, method: &str, path: &str) -> Asked {
        let mut room = Room::default();
        let (method, path) = (Some(room.text(method)), Some(room.text(path)));
        Asked { kind, method, path, truncated: room.was_short, ..Asked::default() }
    }

    /// A request that was understood.
    pub fn request(request: &Request) -> Asked {
        let mut room = Room::default();
        let mut asked = Asked::default();
        let user = match request {
            Request::Command { line, env, user } => {
                asked.kind = "command";
                match line {
                    CommandLine::Line(line) => asked.command = Some(room.text(line)),
                    CommandLine::Words(program, arguments) => {
                        asked.command = Some(room.text(program));
                        asked.args = Some(room.texts(arguments));
                    }
                }
                asked.env = room.texts(env.keys());
                user
            }
            Request::Copy { filename, user } => {
                asked.kind = "copy";
                asked.filename = Some(room.text(filename));
                user
            }
            Request::Stream { target, user } => {
                asked.kind = "stream";
                asked.target = target.as_ref().map(|target| room.text(target));
                user
            }
            Request::Host { user } => {
                asked.kind = "host";
                user
            }
        };
        asked.user = user.as_ref().map(|user| room.text(user));
        asked.truncated = room.was_short;
        asked
    }
}

/// The room that is left for what a request says.
struct Room {
    bytes: usize,
    was_short: bool,
}

impl Default for Room {
    fn default() -> Room {
        Room { bytes: MAX_REQUEST_BYTES, was_short: false }
    }
}

impl Room {
    fn text(&mut self, text: &str) -> Text {
        let (escaped, is_whole) = escape(text, self.bytes.min(MAX_WORD_BYTES));
        self.bytes -= escaped.len();
        self.was_short |= !is_whole;
        Text(escaped)
    }

    fn texts<'a>(&mut self, texts: impl IntoIterator<Item = &'a String>) -> Vec<Text> {
        let mut kept = Vec::new();
        for text in texts {
            if self.bytes == 0 || kept.len() == MAX_WORDS {
                self.was_short = true;
                break;
            }
            kept.push(self.text(text));
        }
        kept
    }
}

/// A time of RFC 3339.
pub(super) fn rfc3339(time: OffsetDateTime) -> String {
    let (hour, minute, second, millisecond) = time.to_hms_milli();
    let (year, month, day) = time.to_calendar_date();
    let month = u8::from(month);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
}
