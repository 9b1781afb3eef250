//! OpenSSH's own grammar, for the `ssh` and `scp` stand-ins: an argv → what it asks for. No I/O.
//!
//! Follows `ssh(1)`, `scp(1)` and `ssh_config(5)` of OpenSSH 9. It goes in two steps, because most of the decisions
//! wait for one: whose host it is. [`parse_ssh`] and [`parse_scp`] only find the destination, so that whatever isn't
//! tstunnel's can be handed to the real program untouched, with every option that it knows. `accept` is called for a
//! host that is ours: what makes no difference to a tunnel is dropped, and what a tunnel cannot do is refused in words.
//! Nothing is ignored that would change what the caller gets, and no argument can panic.

mod keywords;
mod scp;
mod settings;
mod ssh;
mod values;

pub use scp::{ParsedScp, Scp, Upload, parse_scp};
pub use settings::{AddressFamily, SentEnvironment};
pub use ssh::{Action, ParsedSsh, Ssh, parse_ssh};

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::protocol::encoding::percent_decode;

/// Who is to answer an argv.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation<T> {
    /// It names no host, or isn't OpenSSH's syntax: the real program's business, its complaint included.
    Foreign,
    /// It names a host, which may or may not be tstunnel's.
    Host(T),
}

/// `[user@]host`, with the port that an option or a URI gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The account asked for.
    pub user: Option<String>,
    /// The host as it was written: any text, never empty, never with a leading hyphen.
    pub host: String,
    /// The port asked for.
    pub port: Option<u16>,
}

impl Destination {
    /// Splits at the last `@`, as OpenSSH does; `None` where OpenSSH would show its usage.
    fn split(text: &str) -> Option<Destination> {
        let (user, host) = match text.rsplit_once('@') {
            Some(("", _)) => return None,
            Some((user, host)) => (Some(user.to_owned()), host),
            None => (None, text),
        };
        Destination::checked(user, host.to_owned(), None)
    }

    /// Parses what follows `ssh://` or `scp://`, as `parse_uri` in OpenSSH's `misc.c`: the destination, and the path
    /// without the slash that leads to it.
    fn from_uri(rest: &str) -> Option<(Destination, Option<String>)> {
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, Some(path)),
            None => (rest, None),
        };
        let (user, host) = match authority.split_once('@') {
            Some((user, host)) => {
                let user = url_decoded(user.split_once(';').map_or(user, |(user, _)| user))?;
                if user.is_empty() {
                    return None;
                }
                (Some(user), host)
            }
            None => (None, authority),
        };
        let (host, port) = match host.strip_prefix('[') {
            Some(bracketed) => {
                let (host, after) = bracketed.split_once(']')?;
                (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
            }
            None => match host.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (host, None),
            },
        };
        let port = match port {
            None | Some("") => None,
            Some(port) => Some(port_number(port)?),
        };
        let path = match path {
            None | Some("") => None,
            Some(path) => Some(url_decoded(path)?),
        };
        Some((Destination::checked(user, host.to_owned(), port)?, path))
    }

    fn checked(user: Option<String>, host: String, port: Option<u16>) -> Option<Destination> {
        (!host.is_empty() && !host.starts_with('-')).then_some(Destination { user, host, port })
    }
}

/// One step of [`Letters`].
enum Step<'a> {
    /// A letter without a value.
    Flag(u8),
    /// A letter with its value, joined or separate.
    Value(u8, &'a OsStr),
    /// What comes next is a word, or nothing.
    Word,
    /// A letter that the program doesn't have, or one whose value is missing.
    Unknown,
}

/// getopt(3) as the BSDs have it, which is what OpenSSH brings along: options end at the first word, and may be taken
/// up again behind it.
struct Letters<'a> {
    args: &'a [OsString],
    flags: &'static [u8],
    valued: &'static [u8],
    /// Bytes of `args[0]` that are used up.
    within: usize,
    /// Whether a `--` was passed.
    ended: bool,
}

impl<'a> Letters<'a> {
    fn new(args: &'a [OsString], flags: &'static str, valued: &'static str) -> Letters<'a> {
        Letters { args, flags: flags.as_bytes(), valued: valued.as_bytes(), within: 0, ended: false }
    }

    fn step(&mut self) -> Step<'a> {
        let Some((first, after)) = self.args.split_first() else { return Step::Word };
        let bytes = first.as_bytes();
        if self.within == 0 {
            match bytes {
                b"--" => {
                    self.args = after;
                    self.ended = true;
                    return Step::Word;
                }
                [b'-', _, ..] => self.within = 1,
                _ => return Step::Word,
            }
        }
        let Some((&letter, rest)) = bytes.get(self.within..).and_then(<[u8]>::split_first) else {
            return Step::Unknown;
        };
        if self.flags.contains(&letter) {
            self.within += 1;
            if rest.is_empty() {
                self.args = after;
                self.within = 0;
            }
            return Step::Flag(letter);
        }
        if !self.valued.contains(&letter) {
            return Step::Unknown;
        }
        self.within = 0;
        self.args = after;
        if !rest.is_empty() {
            return Step::Value(letter, OsStr::from_bytes(rest));
        }
        match after.split_first() {
            Some((value, after)) => {
                self.args = after;
                Step::Value(letter, value)
            }
            None => Step::Unknown,
        }
    }

    /// Takes the word that [`Step::Word`] announced.
    fn word(&mut self) -> Option<&'a OsStr> {
        let (word, after) = self.args.split_first()?;
        self.args = after;
        Some(word)
    }
}

/// A port as OpenSSH's `a2port` takes it, less the service names.
fn port_number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0 && text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// OpenSSH's `urldecode`: `%XX`, and `+` for a space; `None` where that gives no text.
fn url_decoded(text: &str) -> Option<String> {
    let decoded = percent_decode(&text.replace('+', " "))?;
    String::from_utf8(decoded).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::strategy::Strategy as _;
    use std::os::unix::ffi::OsStringExt as _;

    fn steps(args: &[&str]) -> String {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let mut letters = Letters::new(&args, "4Cqv", "op");
        let mut seen = Vec::new();
        loop {
            match letters.step() {
                Step::Flag(letter) => seen.push(char::from(letter).to_string()),
                Step::Value(letter, value) => seen.push(format!("{}={}", char::from(letter), value.to_string_lossy())),
                Step::Word => break,
                Step::Unknown => {
                    seen.push("?".to_owned());
                    break;
                }
            }
        }
        seen.extend(letters.args.iter().map(|word| format!("[{}]", word.to_string_lossy())));
        seen.join(" ")
    }

    #[test]
    fn letters_are_bundled_and_values_joined_or_separate() {
        assert_eq!(
            steps(&["-4Cq", "-vvv", "-oFoo=bar", "-o", "Foo bar", "host"]),
            "4 C q v v v o=Foo=bar o=Foo bar [host]"
        );
        assert_eq!(steps(&["-4p22", "-qp", "22"]), "4 p=22 q p=22");
        assert_eq!(steps(&["-o", "-4"]), "o=-4");
    }

    #[test]
    fn options_end_at_a_word_a_lone_hyphen_and_two_hyphens() {
        assert_eq!(steps(&["-q", "host", "-v"]), "q [host] [-v]");
        assert_eq!(steps(&["-q", "-", "-v"]), "q [-] [-v]");
        assert_eq!(steps(&["-q", "--", "-v"]), "q [-v]");
        assert_eq!(steps(&["", "-v"]), "[] [-v]");
    }

    #[test]
    fn a_letter_that_is_not_known_or_lacks_its_value_is_unknown() {
        assert_eq!(steps(&["-qz"]), "q ? [-qz]");
        assert_eq!(steps(&["-qp"]), "q ?");
        assert_eq!(steps(&["--help"]), "? [--help]");
        assert_eq!(steps(&["-é"]), "? [-é]");
    }

    proptest::proptest! {
        #[test]
        fn no_argv_panics(words in proptest::collection::vec(
            proptest::prop_oneof![
                proptest::collection::vec(proptest::num::u8::ANY, 0..12),
                "-[46aCnqTtsWoplvF-]{1,3}[a-z=:@ \"'\\\\]{0,8}".prop_map(String::into_bytes),
                "(u@)?(ssh://|scp://)?[a-z\\[\\]:@/%~.é]{0,8}".prop_map(String::into_bytes),
            ],
            0..6,
        )) {
            let args: Vec<OsString> = words.into_iter().map(OsString::from_vec).collect();
            if let Invocation::Host(parsed) = parse_ssh(&args) {
                let host = parsed.destination.host.clone();
                proptest::prop_assert!(!host.is_empty() && !host.starts_with('-'));
                drop(parsed.accept());
            }
            if let Invocation::Host(parsed) = parse_scp(&args) {
                proptest::prop_assert!(!parsed.destinations.is_empty());
                if let Ok(scp) = parsed.accept() {
                    proptest::prop_assert!(scp.uploads.iter().all(|upload| !upload.name.contains('/')));
                }
            }
        }
    }

    #[test]
    fn the_user_is_what_stands_before_the_last_at_sign() {
        let split = |text| Destination::split(text).map(|found| (found.user, found.host));
        assert_eq!(split("dev"), Some((None, "dev".to_owned())));
        assert_eq!(split("a@b@h"), Some((Some("a@b".to_owned()), "h".to_owned())));
        assert_eq!(split("Ä h;|%#[]$\"'"), Some((None, "Ä h;|%#[]$\"'".to_owned())));
        for usage in ["", "@h", "u@", "-h", "u@-h"] {
            assert_eq!(split(usage), None, "{usage}");
        }
    }

    #[test]
    fn a_uri_gives_user_host_port_and_path() {
        let uri = |text| Destination::from_uri(text).map(|(d, path)| (d.user, d.host, d.port, path));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(uri("h"), Some((None, "h".to_owned(), None, None)));
        assert_eq!(uri("u%40x;fingerprint=1@h:33/"), Some((some("u@x"), "h".to_owned(), Some(33), None)));
        assert_eq!(uri("[::1]:22/a%20b+c"), Some((None, "::1".to_owned(), Some(22), some("a b c"))));
        assert_eq!(uri("h//abs"), Some((None, "h".to_owned(), None, some("/abs"))));
        for bad in
            ["", "/x", "@h", "h:0", "h:x", "h:65536", "h:+22", "[::1", "[::1]x", "h/%zz", "h/%00", "h/%f", "h/%ff"]
        {
            assert_eq!(uri(bad), None, "{bad}");
        }
    }
}
