//! Which of a client's environment variables reach a process: those that a host's patterns name, and never the ones by
//! which a program is made to run something else. The rest is dropped silently, as sshd does. No I/O.

use std::collections::BTreeMap;

use crate::config::pattern;

/// Never taken from a client, whatever the patterns say: they choose what is run and as whom, or what a shell runs first (zsh and fish
/// before each command, too).
const FORBIDDEN: [&str; 21] = [
    "PATH",
    "HOME",
    "SHELL",
    "USER",
    "LOGNAME",
    "PWD",
    "OLDPWD",
    "IFS",
    "ENV",
    "ZDOTDIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_DIRS",
    "XDG_DATA_HOME",
    "FPATH",
    "BASH_ENV",
    "BASHOPTS",
    "SHELLOPTS",
    "PS4",
    "PROMPT_COMMAND",
    "GCONV_PATH",
    "GLIBC_TUNABLES",
];

/// The same for every name that begins so: Mutagen's own (its agent would install itself elsewhere), the dynamic linkers', and fish's.
const FORBIDDEN_PREFIXES: [&str; 5] = ["MUTAGEN_", "LD_", "DYLD_", "fish_", "__fish_"];

/// Keeps what `patterns` allow, sorted by name.
pub(super) fn filtered(asked: &BTreeMap<String, String>, patterns: &[String]) -> Vec<(String, String)> {
    asked
        .iter()
        .filter(|(name, _)| is_name(name) && !is_forbidden(name))
        .filter(|(name, _)| patterns.iter().any(|pattern| pattern::matches(pattern, name)))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Whether `name` is one that a POSIX shell could set (XBD §3.216).
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_forbidden(name: &str) -> bool {
    FORBIDDEN.contains(&name) || FORBIDDEN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(names: &[&str], patterns: &[&str]) -> Vec<String> {
        let asked = names.iter().map(|name| (name.to_string(), "value".to_owned())).collect();
        let patterns: Vec<String> = patterns.iter().map(|pattern| pattern.to_string()).collect();
        filtered(&asked, &patterns).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn only_names_that_a_pattern_covers_are_kept() {
        assert_eq!(kept(&["LC_ALL", "LANG", "LANGUAGE", "TZ"], &["LC_*", "LANG"]), ["LANG", "LC_ALL"]);
        assert!(kept(&["LC_ALL", "lc_all"], &[]).is_empty());
        assert!(kept(&["lc_all"], &["LC_*"]).is_empty());
    }

    #[test]
    fn names_that_choose_what_is_run_are_never_kept() {
        let mut dangerous = FORBIDDEN.to_vec();
        dangerous.extend([
            "MUTAGEN_DATA_DIRECTORY",
            "MUTAGEN_",
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "DYLD_INSERT_LIBRARIES",
            "fish_function_path",
            "__fish_initialized",
        ]);
        assert!(kept(&dangerous, &["*"]).is_empty());
        let exactly = dangerous.clone();
        assert!(kept(&dangerous, &exactly).is_empty());
    }

    #[test]
    fn malformed_names_are_dropped() {
        assert!(kept(&["", "1A", "A-B", "A B", "Ä", "A=B", "BASH_FUNC_ls%%", "A\n"], &["*"]).is_empty());
        assert_eq!(kept(&["_A1"], &["*"]), ["_A1"]);
    }
}
