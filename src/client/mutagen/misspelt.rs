//! The hosts that Mutagen's arguments start sessions with → a note for each that goes to the real `ssh`, but is near in spelling to one
//! of the configuration's. Reads the configuration, and refuses nothing: it may well be a host of OpenSSH's.

use std::ffi::OsString;

use super::daemon;
use super::rewrite::Kind;
use crate::config::url::{self, is_tunnel_url};
use crate::config::{self, Environment};

/// A line for each such host in `args`.
pub(super) fn notes(args: &[OsString], env: &Environment) -> Vec<String> {
    let mut words = daemon::words(args);
    let kind = match (words.next(), words.next()) {
        (Some("sync"), Some("create")) => Kind::Synchronization,
        (Some("forward"), Some("create")) => Kind::Forwarding,
        _ => return Vec::new(),
    };
    let note = |host: &str| {
        // What is wrong with the configuration is said by whoever needs it.
        let meant = config::misspelt(host, env).ok().flatten()?;
        Some(format!(
            "note: no entry of the configuration is named `{host}`, so the real ssh is asked; did you mean `{meant}`?"
        ))
    };
    words.filter_map(|word| host(word, kind)).filter_map(note).collect()
}

/// The host that `word` is on, by `isSCPSSHURL` and `parseSCPSSH` in Mutagen's `pkg/url/parse_ssh.go`. The value of an option may look
/// like one.
fn host(word: &str, kind: Kind) -> Option<&str> {
    let (place, rest) = word.split_once(':')?;
    let is_ssh = match kind {
        Kind::Synchronization => !place.contains('/'),
        Kind::Forwarding => rest.contains(':') && !url::FORWARDING_PROTOCOLS.contains(&place),
    };
    let is_other = is_tunnel_url(word) || (place.eq_ignore_ascii_case("docker") && rest.starts_with("//"));
    let host = place.split_once('@').map_or(place, |(_, host)| host);
    (is_ssh && !is_other && !host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_what_mutagen_takes_for_one() {
        for (word, expected) in [
            ("h:/p", Some("h")),
            ("h:p", Some("h")),
            ("u@h:22:p", Some("h")),
            ("u@h@x:p", Some("h@x")),
            ("h:tcp:localhost:80", Some("h")),
            ("/a:b", None),
            ("a/b:c", None),
            ("u@:p", None),
            (":p", None),
            ("p", None),
            ("docker://h/p", None),
            ("tstunnel://h/p", None),
        ] {
            assert_eq!(host(word, Kind::Synchronization), expected, "{word}");
        }
        for (word, expected) in [
            ("u@h:tcp:localhost:80", Some("h")),
            ("h:22:unix:/s", Some("h")),
            ("tcp:localhost:80", None),
            ("unix:/a:b", None),
            ("h:80", None),
            ("docker://h:tcp:localhost:80", None),
            ("tstunnel://h/tcp:localhost:80", None),
        ] {
            assert_eq!(host(word, Kind::Forwarding), expected, "{word}");
        }
    }

    #[test]
    fn a_configuration_that_is_wrong_and_one_that_is_not_there_note_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        std::fs::write(&file, "[host.h1x]\nno_such_key = 1\n").unwrap();
        for config in [Some(file), Some(folder.path().join("none")), None] {
            let env = Environment { config, ..Environment::default() };
            assert!(notes(&["sync", "create", "a", "h2x:p"].map(OsString::from), &env).is_empty());
        }
    }
}
