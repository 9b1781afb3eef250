//! A `/command` request against the `commands` of a host and of a grant: what is run and how, or a refusal. Fails closed. No
//! I/O.
//!
//! - `any`: everything. With `shell` the line goes to the login shell as it is; `args` follow it, quoted.
//! - `mutagen`: [`super::mutagen`]'s forms, never through a shell, whatever `shell` says.
//! - A pattern is compared with the whole line, its words joined by one space. A word that is empty or has white space in
//!   it matches no pattern: joined, it would read like words that were not there.
//! - A pattern and a shell: the shell reads more in a line than words, so a line with one of its special characters is
//!   allowed only where an entry without wildcards is that very line.

use super::mutagen;
use super::{Asked, By, CommandLine};
use crate::config::pattern;
use crate::error::{Code, Error, Result};
use crate::server::config::{Commands, HostConfig};

/// How a command is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// A program and its arguments; at least the program. One with a slash is relative to the home directory.
    Argv(Vec<String>),
    /// A line for the account's login shell, with `-c`.
    Shell(String),
}

/// A command that may be run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Allowed {
    pub(super) invocation: Invocation,
    /// Which of Mutagen's it is, where it may be run because it is one.
    pub(super) kind: Option<mutagen::Kind>,
    /// The entry of the host's `commands` that allows it.
    pub(super) rule: String,
    /// The entry of the grant's, where the grant has any.
    pub(super) granted: Option<String>,
}

/// Most characters of a refused command that its refusal repeats.
const SHOWN_CHARACTERS: usize = 64;

/// Decides on one command: the host has to allow it, and the grant too where it has `commands` of its own. What one of the two
/// keeps from the shell, or confines, is so whatever the other says.
///
/// # Errors
/// `bad-request` for an empty command or a NUL, `command-denied` for what is not allowed.
pub(super) fn decide(
    asked: Asked<'_>,
    host: &HostConfig,
    granted: Option<&Commands>,
    line: &CommandLine,
) -> Result<Allowed> {
    let words = words(line)?;
    let by_host = allowed(&host.commands, host.shell, line, &words).ok_or_else(|| denied(asked, By::Host, &words))?;
    let Some(commands) = granted else { return Ok(by_host) };
    let by_grant = allowed(commands, host.shell, line, &words).ok_or_else(|| denied(asked, By::Grant, &words))?;
    Ok(Allowed {
        invocation: match by_host.invocation {
            Invocation::Argv(words) => Invocation::Argv(words),
            Invocation::Shell(_) => by_grant.invocation,
        },
        kind: by_host.kind.or(by_grant.kind),
        rule: by_host.rule,
        granted: Some(by_grant.rule),
    })
}

/// What `commands` make of a line, if they allow it.
fn allowed(commands: &Commands, shell: bool, line: &CommandLine, words: &[String]) -> Option<Allowed> {
    let argv = || Invocation::Argv(words.to_vec());
    let invocation = || if shell { Invocation::Shell(shell_line(line)) } else { argv() };
    let (invocation, kind, rule) = match commands {
        Commands::Any => (invocation(), None, "any"),
        Commands::Listed { mutagen, patterns } => match mutagen::command(words).filter(|_| *mutagen) {
            Some(kind) => (argv(), Some(kind), "mutagen"),
            None if shell => (invocation(), None, match_for_shell(patterns, line)?),
            None => (invocation(), None, match_words(patterns, words)?),
        },
    };
    Some(Allowed { invocation, kind, rule: rule.to_owned(), granted: None })
}

fn words(line: &CommandLine) -> Result<Vec<String>> {
    let words: Vec<String> = match line {
        CommandLine::Line(line) => line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect(),
        CommandLine::Words(program, arguments) => std::iter::once(program).chain(arguments).cloned().collect(),
    };
    if words.first().is_none_or(|program| program.trim().is_empty()) {
        return Err(Error::new(Code::BadRequest, "the command is empty").with_hint("say which program to run"));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err(Error::new(Code::BadRequest, "the command has a NUL in it"));
    }
    Ok(words)
}

fn match_words<'a>(patterns: &'a [String], words: &[String]) -> Option<&'a str> {
    if words.iter().any(|word| word.is_empty() || word.contains(char::is_whitespace)) {
        return None;
    }
    let joined = words.join(" ");
    patterns.iter().map(String::as_str).find(|pattern| pattern::matches(pattern, &joined))
}

fn match_for_shell<'a>(patterns: &'a [String], line: &CommandLine) -> Option<&'a str> {
    let text = shell_line(line);
    let is_plain = text.chars().all(|c| c == ' ' || is_plain_in_a_shell(c));
    patterns.iter().map(String::as_str).find(|pattern| {
        if is_plain { pattern::matches(pattern, &text) } else { !pattern::has_wildcard(pattern) && *pattern == text }
    })
}

/// What the login shell gets. `args` are words to it, whatever is in them.
fn shell_line(line: &CommandLine) -> String {
    match line {
        CommandLine::Line(line) => line.clone(),
        CommandLine::Words(program, arguments) => {
            let mut text = program.clone();
            for argument in arguments {
                text.push(' ');
                text.push_str(&quoted(argument));
            }
            text
        }
    }
}

/// One word for a POSIX shell (XCU §2.2.2).
fn quoted(word: &str) -> String {
    if !word.is_empty() && word.chars().all(is_plain_in_a_shell) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// Characters that mean nothing but themselves to a shell, anywhere in a word but `=` in the first.
fn is_plain_in_a_shell(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-_./:,@%+=".contains(character)
}

fn denied(asked: Asked<'_>, by: By, words: &[String]) -> Error {
    let line = words.join(" ");
    let mut shown: String = line.chars().take(SHOWN_CHARACTERS).collect();
    if shown.len() < line.len() {
        shown.push('…');
    }
    let hint = if mutagen::command(words).is_some() {
        by.wants_mutagen()
    } else {
        format!("ask whoever runs the endpoint to allow it in the {}'s `commands`", by.name())
    };
    asked.denied(by, &format!("`{shown}`")).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{HostId, Principal};

    fn decide_for_ann(host: &HostConfig, granted: Option<&Commands>, line: &CommandLine) -> Result<Allowed> {
        let (id, principal) = (HostId::parse("a").unwrap(), Principal("ann".to_owned()));
        decide(Asked { host: &id, principal: &principal }, host, granted, line)
    }

    fn host(mutagen: bool, patterns: &[&str], shell: bool) -> HostConfig {
        let patterns = patterns.iter().map(|pattern| pattern.to_string()).collect();
        HostConfig { shell, commands: Commands::Listed { mutagen, patterns }, ..super::super::tests::host_config() }
    }

    fn any(shell: bool) -> HostConfig {
        HostConfig { shell, commands: Commands::Any, ..super::super::tests::host_config() }
    }

    fn line(text: &str) -> CommandLine {
        CommandLine::Line(text.to_owned())
    }

    fn with_args(program: &str, arguments: &[&str]) -> CommandLine {
        CommandLine::Words(program.to_owned(), arguments.iter().map(|argument| argument.to_string()).collect())
    }

    fn argv(host: &HostConfig, line: &CommandLine) -> Option<Vec<String>> {
        match decide_for_ann(host, None, line).ok()?.invocation {
            Invocation::Argv(words) => Some(words),
            Invocation::Shell(_) => panic!("not through a shell"),
        }
    }

    fn shell(host: &HostConfig, line: &CommandLine) -> Option<String> {
        match decide_for_ann(host, None, line).ok()?.invocation {
            Invocation::Argv(_) => panic!("through a shell"),
            Invocation::Shell(line) => Some(line),
        }
    }

    fn code(host: &HostConfig, line: &CommandLine) -> Code {
        decide_for_ann(host, None, line).unwrap_err().code
    }

    #[test]
    fn a_line_is_split_at_spaces_without_any_quoting() {
        assert_eq!(argv(&any(false), &line("  a 'b  c'\td ")).unwrap(), ["a", "'b", "c'\td"]);
        assert_eq!(argv(&any(false), &with_args("a b", &["", " c"])).unwrap(), ["a b", "", " c"]);
    }

    #[test]
    fn a_shell_gets_the_line_as_it_is_and_arguments_quoted() {
        assert_eq!(shell(&any(true), &line("cd x &&  make")).unwrap(), "cd x &&  make");
        let words = with_args("echo", &["plain-1.0", "", "a b", "it's", "$HOME;id", "\n"]);
        assert_eq!(
            shell(&any(true), &words).unwrap(),
            r"echo plain-1.0 '' 'a b' 'it'\''s' '$HOME;id' '".to_owned() + "\n'"
        );
    }

    #[test]
    fn an_empty_command_or_a_nul_is_a_bad_request() {
        for host in [any(true), any(false), host(true, &["*"], false), host(true, &["*"], true)] {
            for empty in [line(""), line("   "), line("\t"), with_args("", &["a"]), with_args(" ", &[])] {
                assert_eq!(code(&host, &empty), Code::BadRequest, "{empty:?}");
            }
            for nul in [line("a\0b"), with_args("a\0", &[]), with_args("a", &["\0"])] {
                assert_eq!(code(&host, &nul), Code::BadRequest, "{nul:?}");
            }
        }
    }

    #[test]
    fn an_empty_list_denies_every_command() {
        for command in [line("ls"), line("uname -s -m"), with_args("uname", &["-s", "-m"])] {
            assert_eq!(code(&host(false, &[], false), &command), Code::CommandDenied);
            assert_eq!(code(&host(false, &[], true), &command), Code::CommandDenied);
        }
    }

    #[test]
    fn mutagens_commands_never_go_through_a_shell() {
        for shell in [false, true] {
            let host = host(true, &[], shell);
            assert_eq!(argv(&host, &line("uname  -s -m")).unwrap(), ["uname", "-s", "-m"]);
            assert_eq!(argv(&host, &with_args("uname", &["-s", "-m"])).unwrap(), ["uname", "-s", "-m"]);
            assert_eq!(code(&host, &with_args("uname -s", &["-m"])), Code::CommandDenied);
            assert_eq!(code(&host, &line("uname -s -m; id")), Code::CommandDenied);
            assert_eq!(code(&host, &line("uname -s -m\n")), Code::CommandDenied);
        }
    }

    #[test]
    fn only_the_installed_agent_is_confined() {
        let confined = |host: &HostConfig, text: &str| {
            decide_for_ann(host, None, &line(text)).unwrap().kind == Some(mutagen::Kind::Agent)
        };
        let agent = ".mutagen/agents/0.18.1/mutagen-agent synchronizer --log-level=info";
        assert!(confined(&host(true, &[], false), agent));
        assert!(!confined(&host(true, &[], false), "uname -s -m"));
        assert!(!confined(&any(false), agent));
    }

    #[test]
    fn a_pattern_covers_a_whole_line() {
        let host = host(false, &["git status", "git log *", "ls ?"], false);
        assert_eq!(argv(&host, &line("git  status")).unwrap(), ["git", "status"]);
        assert_eq!(argv(&host, &line("git log -1 --all")).unwrap(), ["git", "log", "-1", "--all"]);
        assert_eq!(argv(&host, &with_args("git", &["log", "a;b"])).unwrap(), ["git", "log", "a;b"]);
        for denied in ["git", "git status x", "git logs", "git log", "ls ab", "Git status", "uname -s -m"] {
            assert_eq!(code(&host, &line(denied)), Code::CommandDenied, "{denied}");
        }
        assert_eq!(decide_for_ann(&host, None, &line("git log -1")).unwrap().rule, "git log *");
    }

    #[test]
    fn words_that_would_read_as_others_match_no_pattern() {
        let host = host(false, &["*", "git status"], false);
        for denied in [
            with_args("git status", &[]),
            with_args("git", &["status "]),
            with_args("git", &["status", ""]),
            with_args("git", &["a\tb"]),
            with_args("git", &["a\u{a0}b"]),
            line("git status\n"),
            line("git\tstatus"),
        ] {
            assert_eq!(code(&host, &denied), Code::CommandDenied, "{denied:?}");
        }
    }

    #[test]
    fn with_a_shell_a_wildcard_covers_nothing_that_a_shell_reads_more_in() {
        let host = host(false, &["git log *", "cd app && make test", "* --version"], true);
        assert_eq!(shell(&host, &line("git log -1")).unwrap(), "git log -1");
        assert_eq!(shell(&host, &line("cd app && make test")).unwrap(), "cd app && make test");
        for denied in [
            "git log -1; id",
            "git log $(id)",
            "git log `id`",
            "git log -1 | sh",
            "git log > x",
            "git log -1\nid",
            "git log \"x\"",
            "git log 'x'",
            "git log \\x",
            "git log ~",
            "git log *",
            "git log {a,b}",
            "git log #",
            "git log !x",
            "git log é",
            "cd app && make test2",
            "cd app  && make test",
        ] {
            assert_eq!(code(&host, &line(denied)), Code::CommandDenied, "{denied}");
        }
        assert_eq!(code(&host, &with_args("git", &["log", "a b"])), Code::CommandDenied);
        assert_eq!(code(&host, &with_args("git log $(id)", &["-1"])), Code::CommandDenied);
    }

    #[test]
    fn a_refusal_repeats_only_the_beginning_of_a_command() {
        let error = decide_for_ann(&host(true, &[], false), None, &line(&"é".repeat(1000))).unwrap_err();
        assert!(error.text.chars().count() < 120, "{error}");
    }
}
