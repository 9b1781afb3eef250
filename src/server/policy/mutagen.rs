//! What Mutagen itself asks of a host and nothing else (`pkg/agent/dial.go`, `pkg/agent/install.go`): the forms of its commands, word for word.
//!
//! An allow-list of exact forms: no word is compared as a prefix or ignored, so there is no room for an option, a shell
//! metacharacter or a second path. Fails closed. No I/O.

/// One of Mutagen's commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The installed agent, as `synchronizer` or `forwarder`.
    Agent,
    /// `uname -s -m`.
    Probe,
    /// `chmod +x` of an uploaded agent, which a Windows client sends.
    MakeExecutable,
    /// An uploaded agent that installs itself.
    Install,
}

/// Mutagen's log levels (`pkg/logging/level.go`).
const LOG_LEVELS: [&str; 6] = ["disabled", "error", "warn", "info", "debug", "trace"];

/// What the name of an uploaded agent begins with (`pkg/agent/install.go`); a UUID follows.
const UPLOAD_PREFIX: &str = ".mutagen-agent";

/// Longest version; a longer one is not one of Mutagen's.
const MAX_VERSION_BYTES: usize = 64;

/// Which of Mutagen's commands `words` are, if one. Windows' backslash forms are none.
pub(super) fn command<S: AsRef<str>>(words: &[S]) -> Option<Kind> {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    match words.as_slice() {
        [program, "synchronizer" | "forwarder", options @ ..] if is_installed_agent(program) => match options {
            [] => Some(Kind::Agent),
            [level] => {
                let level = level.strip_prefix("--log-level=")?;
                LOG_LEVELS.contains(&level).then_some(Kind::Agent)
            }
            _ => None,
        },
        ["uname", "-s", "-m"] => Some(Kind::Probe),
        ["chmod", "+x", name] if is_uploaded_agent(name) => Some(Kind::MakeExecutable),
        [program, "install"] if program.strip_prefix("./").is_some_and(is_uploaded_agent) => Some(Kind::Install),
        _ => None,
    }
}

/// Whether `name` is what Mutagen calls an agent that it uploads: `.mutagen-agent` and a UUID, with `.exe` for Windows.
pub(super) fn is_uploaded_agent(name: &str) -> bool {
    name.strip_prefix(UPLOAD_PREFIX).is_some_and(|rest| is_uuid(rest.strip_suffix(".exe").unwrap_or(rest)))
}

/// Whether `program` is `.mutagen/agents/VERSION/mutagen-agent`.
fn is_installed_agent(program: &str) -> bool {
    program
        .strip_prefix(".mutagen/agents/")
        .and_then(|rest| rest.strip_suffix("/mutagen-agent").or_else(|| rest.strip_suffix("/mutagen-agent.exe")))
        .is_some_and(is_version)
}

/// Like `0.18.1` or `0.18.0-rc1`: it begins with a digit, so it is neither hidden nor an option, and has no `..`.
fn is_version(text: &str) -> bool {
    text.len() <= MAX_VERSION_BYTES
        && text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'-'))
        && !text.contains("..")
}

/// Lower-case hexadecimal in groups of 8, 4, 4, 4 and 12 (RFC 9562 §4).
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = ".mutagen-agent0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

    fn kind(line: &str) -> Option<Kind> {
        command(&line.replace("NAME", NAME).split(' ').collect::<Vec<_>>())
    }

    #[test]
    fn every_command_of_mutagen_is_known() {
        for (line, expected) in [
            (".mutagen/agents/0.18.1/mutagen-agent synchronizer --log-level=info", Kind::Agent),
            (".mutagen/agents/0.18.1/mutagen-agent forwarder --log-level=trace", Kind::Agent),
            (".mutagen/agents/0.18.0-rc1/mutagen-agent synchronizer", Kind::Agent),
            (".mutagen/agents/0.18.1/mutagen-agent.exe forwarder --log-level=disabled", Kind::Agent),
            ("uname -s -m", Kind::Probe),
            ("chmod +x NAME", Kind::MakeExecutable),
            ("./NAME install", Kind::Install),
            ("./NAME.exe install", Kind::Install),
        ] {
            assert_eq!(kind(line), Some(expected), "{line}");
        }
    }

    #[test]
    fn everything_near_a_command_of_mutagen_is_unknown() {
        for line in [
            "",
            "uname",
            "uname -a",
            "uname -s -m -r",
            "Uname -s -m",
            "/bin/uname -s -m",
            "./uname -s -m",
            "cmd.exe /c set",
            ".mutagen/agents/0.18.1/mutagen-agent",
            ".mutagen/agents/0.18.1/mutagen-agent install",
            ".mutagen/agents/0.18.1/mutagen-agent housekeep",
            ".mutagen/agents/0.18.1/mutagen-agent synchronizer --log-level=",
            ".mutagen/agents/0.18.1/mutagen-agent synchronizer --log-level=INFO",
            ".mutagen/agents/0.18.1/mutagen-agent synchronizer --log-level info",
            ".mutagen/agents/0.18.1/mutagen-agent synchronizer --log-level=info --help",
            ".mutagen/agents/0.18.1/mutagen-agent synchronizer --help",
            ".mutagen/agents/0.18.1/mutagen-agent synchronizer ",
            "./.mutagen/agents/0.18.1/mutagen-agent synchronizer",
            "/home/dev/.mutagen/agents/0.18.1/mutagen-agent synchronizer",
            "~/.mutagen/agents/0.18.1/mutagen-agent synchronizer",
            ".mutagen/agents//mutagen-agent synchronizer",
            ".mutagen/agents/../mutagen-agent synchronizer",
            ".mutagen/agents/./mutagen-agent synchronizer",
            ".mutagen/agents/0..1/mutagen-agent synchronizer",
            ".mutagen/agents/0.18.1/../mutagen-agent synchronizer",
            ".mutagen/agents/0.18.1/x/mutagen-agent synchronizer",
            ".mutagen/agents/-x/mutagen-agent synchronizer",
            ".mutagen/agents/0.18.1;id/mutagen-agent synchronizer",
            ".mutagen/agents/0.18.1\n/mutagen-agent synchronizer",
            ".mutagen/agents/0.18.1/mutagen-agent.exe.exe synchronizer",
            ".mutagen\\agents\\0.18.1\\mutagen-agent synchronizer",
            ".mutagen/agents/0.18.1/mutagen-agentx synchronizer",
            "chmod +x NAME NAME",
            "chmod 4755 NAME",
            "chmod -R +x NAME",
            "chmod +x ./NAME",
            "chmod +x .bashrc",
            "NAME install",
            "././NAME install",
            "./x/NAME install",
            "./NAME",
            "./NAME install --force",
            "./NAME synchronizer",
            ".\\NAME install",
        ] {
            assert_eq!(kind(line), None, "{line}");
        }
        let long = format!(".mutagen/agents/{}/mutagen-agent", "1".repeat(65));
        assert_eq!(command(&[long.as_str(), "synchronizer"]), None);
    }

    #[test]
    fn a_word_with_a_space_is_not_two_words() {
        assert_eq!(command(&["uname -s", "-m"]), None);
        assert_eq!(command(&["uname -s -m"]), None);
    }

    #[test]
    fn an_uploaded_agent_has_a_whole_uuid_in_lower_case() {
        assert!(is_uploaded_agent(NAME));
        assert!(is_uploaded_agent(&format!("{NAME}.exe")));
        for bad in [
            "",
            ".mutagen-agent",
            ".mutagen-agent.exe",
            &NAME[1..],
            &NAME[..49],
            &format!("{NAME}0"),
            &format!("{NAME}.exe.exe"),
            &format!("{NAME}/"),
            &format!("x/{NAME}"),
            &NAME.to_uppercase(),
            &NAME.replace("4b5a", "4B5A"),
            &NAME.replace("4b5a", "4g5a"),
            &NAME.replace("-4b5a", "4b5a-"),
            &NAME.replace("4b5a", "4bä"),
        ] {
            assert!(!is_uploaded_agent(bad), "{bad}");
        }
    }
}
