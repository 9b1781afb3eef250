//! Failures: one [`Error`] with a [`Code`], a sentence and a hint.
//!
//! The list of codes is the protocol's: it serves the server's refusals (HTTP status), the client's own failures and
//! `tstunnel classify`. `main` prints an error once, as one line and one hint, and turns it into an exit status.

mod nearest;

use std::fmt;

pub use nearest::nearest;

/// The result of anything in this crate that can fail in a way that a person is told of.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal, $status:expr, $retry:ident;)*) => {
        /// What went wrong, in the terms of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Code {
            /// Every code, in the protocol's order.
            pub const ALL: &'static [Code] = &[$(Code::$variant),*];

            /// The code's name, as on the wire and in messages.
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name),* }
            }

            /// What has happened, in a sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Code::$variant => concat!($($doc),*).trim_start()),* }
            }

            /// The HTTP status that a refusal with this code has, where a server can refuse with it at all.
            pub fn http_status(self) -> Option<u16> {
                match self { $(Code::$variant => $status),* }
            }

            /// Whether the same attempt may succeed later.
            pub fn retry(self) -> Retry {
                match self { $(Code::$variant => Retry::$retry),* }
            }
        }
    };
}

/// Whether trying again is worth it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same attempt will fail again until somebody changes something.
    No,
    /// The cause may pass by itself.
    Yes,
    /// Installing the agent is what would help.
    AfterInstall,
}

codes! {
    /// The command line is wrong.
    Usage = "usage", None, No;
    /// A configuration file or value is wrong.
    Config = "config", None, No;
    /// The endpoint's name does not resolve.
    Dns = "dns", None, Yes;
    /// Nothing listens.
    ConnectRefused = "connect-refused", None, Yes;
    /// No answer in time.
    ConnectTimeout = "connect-timeout", None, Yes;
    /// The proxy is unreachable, refused or failed.
    Proxy = "proxy", None, No;
    /// The server's certificate has no path to a trusted root.
    TlsUntrusted = "tls-untrusted", None, No;
    /// The server's certificate is not valid now.
    TlsExpired = "tls-expired", None, No;
    /// The server's certificate is for another name.
    TlsName = "tls-name", None, No;
    /// Any other TLS failure.
    TlsHandshake = "tls-handshake", None, No;
    /// The server rejected this client's certificate.
    ClientCert = "client-cert", None, No;
    /// The peer does not speak this protocol.
    NotTstunnel = "not-tstunnel", None, No;
    /// The certificate names no usable principal, or the account asked for is not in its grant.
    Unauthorized = "unauthorized", Some(403), No;
    /// No such host for this principal.
    HostUnknown = "host-unknown", Some(421), No;
    /// Policy does not allow this command, target or file.
    CommandDenied = "command-denied", Some(403), No;
    /// The program does not exist (exit status 127).
    AgentMissing = "agent-missing", Some(404), AfterInstall;
    /// The program cannot be executed (exit status 126).
    AgentNotExecutable = "agent-not-executable", Some(403), AfterInstall;
    /// A limit of the server's is reached.
    TooMany = "too-many", Some(429), Yes;
    /// The server is stopping or full.
    Overloaded = "overloaded", Some(503), Yes;
    /// The request is malformed, too large, or its digest does not match.
    BadRequest = "bad-request", Some(400), No;
    /// The `/stream` target does not answer.
    TargetUnreachable = "target-unreachable", Some(502), Yes;
    /// A file on the host, or standard output here, could not be written.
    Storage = "storage", Some(507), No;
    /// The session cannot be resumed.
    SessionLost = "session-lost", Some(410), Yes;
    /// The connection broke and could not be resumed in time.
    NetworkLost = "network-lost", None, Yes;
    /// The peer broke this protocol.
    Protocol = "protocol", None, No;
    /// A fault of this program's.
    Internal = "internal", Some(500), No;
}

impl Code {
    /// Finds a code by its name.
    pub fn from_name(name: &str) -> Option<Code> {
        Code::ALL.iter().copied().find(|code| code.name() == name)
    }

    /// The exit status of a program that fails with it. One that stands in for a process leaves small numbers to that, as
    /// OpenSSH does.
    pub fn exit_status(self, stands_in: bool) -> u8 {
        match self {
            Code::AgentMissing if stands_in => 127,
            Code::AgentNotExecutable if stands_in => 126,
            _ if stands_in => 255,
            Code::Usage => 2,
            _ => 1,
        }
    }

    /// What to do about it, where the place that failed has nothing better to say.
    pub fn default_hint(self) -> &'static str {
        match self {
            Code::Usage => "see `tstunnel --help`",
            Code::Config => "correct the value named above and try again",
            Code::Dns => "check the endpoint's spelling and this machine's name servers",
            Code::ConnectRefused => {
                "check the endpoint's port, and that `tstunnel serve` or its load balancer is running"
            }
            Code::ConnectTimeout => "check the route and firewall to the endpoint, or raise `connect_timeout`",
            Code::Proxy => "check the proxy's address and credentials, or set `proxy = \"none\"`",
            Code::TlsUntrusted => "set `ca` to the file of the authority that signed the server's certificate",
            Code::TlsExpired => {
                "check this machine's clock, and ask whoever runs the endpoint to renew its certificate"
            }
            Code::TlsName => "set `sni`, or ask whoever runs the endpoint for a certificate with that name",
            Code::TlsHandshake => "check that the endpoint is a TLS server and speaks TLS 1.3",
            Code::ClientCert => {
                "ask whoever runs the endpoint for a certificate that it accepts, and set `cert` and `key` to it"
            }
            Code::NotTstunnel => "check the endpoint and `upgrade_base`: what answered is another kind of server",
            Code::Unauthorized => "ask whoever runs the endpoint which principal and account they granted to you",
            Code::HostUnknown => "check the host's name, and ask whoever runs the endpoint for a grant to it",
            Code::CommandDenied => {
                "ask whoever runs the endpoint to allow it, in `commands` or `targets` of host and grant"
            }
            Code::AgentMissing => "install the program on the host; Mutagen installs its agent by itself",
            Code::AgentNotExecutable => "give the program its execute bit on the host",
            Code::TooMany | Code::Overloaded => "try again in a moment",
            Code::BadRequest => "check that client and server are of matching versions",
            Code::TargetUnreachable => "check that the target's service is running on the host",
            Code::Storage => "free space in the account's home directory on the host",
            Code::SessionLost => "start again: the session ended on the host",
            Code::NetworkLost => "check the network, then start again",
            Code::Protocol => "check that client and server are of matching versions",
            Code::Internal => "please report this, with what led to it",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A failure that ends what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The kind of failure.
    pub code: Code,
    /// What happened, to which host or file: one lower-case sentence without a full stop.
    pub text: String,
    /// What to do about it; [`Code::default_hint`] if `None`.
    pub hint: Option<String>,
}

impl Error {
    /// Makes an error of `code` that says `text`.
    pub fn new(code: Code, text: impl Into<String>) -> Error {
        Error { code, text: text.into(), hint: None }
    }

    /// Replaces the code's default hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// The hint that is printed below the error.
    pub fn hint(&self) -> &str {
        self.hint.as_deref().unwrap_or(self.code.default_hint())
    }

    /// The two lines that a person sees, without a final newline. Text from a peer cannot add a line or a control
    /// character, nor any of the words that Mutagen takes for something else.
    pub fn report(&self) -> String {
        format!("tstunnel: error[{}]: {}\ntstunnel: hint: {}", self.code, printable(&self.text), printable(self.hint()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text)
    }
}

impl std::error::Error for Error {}

/// What an I/O error says, without Rust's own words around it. A text that is not the system's is as it was written.
pub fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let resolver = text.strip_prefix("failed to lookup address information: ");
    if error.get_ref().is_some() && resolver.is_none() {
        return text;
    }
    let text = resolver.unwrap_or(&text);
    text.split(" (os error").next().unwrap_or(text).to_lowercase()
}

/// What Mutagen searches a failed command's stderr for (`pkg/process/errors.go`); an error of ours that contained one
/// of these would make it install agents or take the host for Windows.
const MUTAGEN_FRAGMENTS: [&str; 3] = [
    "ommand not found",
    "is not recognized as an internal or external command",
    "The system cannot find the path specified",
];

/// Escapes what must not reach a terminal or a log as it is: control characters, and line breaks; text that comes from
/// elsewhere is also kept from reading as one of Mutagen's fragments.
pub fn printable(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control()
            || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
        {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    for fragment in MUTAGEN_FRAGMENTS {
        if escaped.contains(fragment) {
            escaped = escaped.replace(fragment, &fragment.replacen(' ', "_", 1));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_name() {
        for code in Code::ALL {
            assert_eq!(Code::from_name(code.name()), Some(*code));
        }
        assert_eq!(Code::from_name("no-such-code"), None);
    }

    #[test]
    fn a_report_is_one_line_and_one_hint_whatever_the_text_holds() {
        let error = Error::new(Code::NotTstunnel, "it said \"\u{1b}[31mcommand not found\nand more\u{202e}\"");
        let report = error.report();
        assert_eq!(report.lines().count(), 2);
        assert!(
            !report.contains('\u{1b}') && !report.contains('\u{202e}') && !report.contains("ommand not found"),
            "{report}"
        );
    }

    #[test]
    fn an_io_error_says_what_the_system_says() {
        let missing = std::fs::File::open("/no/such/file").unwrap_err();
        assert_eq!(reason(&missing), "no such file or directory");
        let unknown = std::io::Error::other("failed to lookup address information: Name or service not known");
        assert_eq!(reason(&unknown), "name or service not known");
    }

    #[test]
    fn no_hint_contains_a_fragment_that_mutagen_reads() {
        for code in Code::ALL {
            assert!(MUTAGEN_FRAGMENTS.iter().all(|fragment| !code.default_hint().contains(fragment)));
        }
    }
}
