//! What the `authorize` command is asked: one JSON object on its stdin. No I/O.

use std::net::IpAddr;

use serde::Serialize;

use crate::protocol::HostId;
use crate::server::policy::{Asker, CommandLine, Request};

/// One question.
#[derive(Debug, Serialize)]
pub(super) struct Question<'a> {
    principal: &'a str,
    host: &'a str,
    /// IPv4 where it is an IPv4 address in an IPv6 one.
    source: IpAddr,
    /// The account asked for; the host's own if null.
    account: Option<&'a str>,
    request: Asked<'a>,
    /// The certificate's serial number, in hexadecimal.
    serial: Option<&'a str>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Asked<'a> {
    Command {
        command: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        args: Option<&'a [String]>,
    },
    Copy {
        name: &'a str,
    },
    Stream {
        target: Option<&'a str>,
    },
    Host,
}

impl<'a> Question<'a> {
    pub(super) fn new(asker: &'a Asker, host: &'a HostId, request: &'a Request, serial: Option<&'a str>) -> Self {
        Question {
            principal: &asker.principal.0,
            host: host.as_str(),
            source: asker.source.to_canonical(),
            account: request.user(),
            request: match request {
                Request::Command { line: CommandLine::Line(command), .. } => Asked::Command { command, args: None },
                Request::Command { line: CommandLine::Words(command, args), .. } => {
                    Asked::Command { command, args: Some(args) }
                }
                Request::Copy { filename: name, .. } => Asked::Copy { name },
                Request::Stream { target, .. } => Asked::Stream { target: target.as_deref() },
                Request::Host { .. } => Asked::Host,
            },
            serial,
        }
    }

    /// One line.
    pub(super) fn to_json(&self) -> String {
        // Maps with text for keys, and text, are all there is: nothing that JSON cannot say.
        let mut json = serde_json::to_string(self).unwrap_or_default();
        json.push('\n');
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Principal;
    use std::collections::BTreeMap;
    use std::time::SystemTime;

    #[test]
    fn a_question_is_one_line_with_all_that_is_asked() {
        let asker = Asker {
            principal: Principal("spiffe://example.org/a\"b".into()),
            source: "::ffff:10.0.0.1".parse().unwrap(),
            now: SystemTime::UNIX_EPOCH,
            authorized: None,
        };
        let host = HostId::parse("web").unwrap();
        let json = |request: &Request| Question::new(&asker, &host, request, Some("0a")).to_json();
        let command = |line, user: Option<&str>| Request::Command {
            line,
            env: BTreeMap::from([("LC_ALL".into(), "C".into())]),
            user: user.map(Into::into),
        };
        let words = CommandLine::Words("ls".into(), vec!["a b".into(), "\n".into()]);
        for (request, account, expected) in [
            (command(CommandLine::Line("ls -l".into()), None), "null", r#"{"kind":"command","command":"ls -l"}"#),
            (command(words, Some("dev")), "\"dev\"", r#"{"kind":"command","command":"ls","args":["a b","\n"]}"#),
            (Request::Copy { filename: "x".into(), user: None }, "null", r#"{"kind":"copy","name":"x"}"#),
            (Request::Stream { target: None, user: None }, "null", r#"{"kind":"stream","target":null}"#),
            (Request::Host { user: None }, "null", r#"{"kind":"host"}"#),
        ] {
            let whole = format!(
                "{{\"principal\":\"spiffe://example.org/a\\\"b\",\"host\":\"web\",\"source\":\"10.0.0.1\",\
                 \"account\":{account},\"request\":{expected},\"serial\":\"0a\"}}\n"
            );
            assert_eq!(json(&request), whole);
        }
    }
}
