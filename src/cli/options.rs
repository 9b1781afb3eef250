//! One table of commands and options. It drives the parser in [`super`], the pages of [`super::help`], what
//! [`crate::error::nearest()`] may suggest, and what `make pages` writes: the manual page and the shells' completions. Nothing
//! about the command line's shape is written down a second time. Data alone.

mod commands;
mod flags;

pub use commands::COMMANDS;
pub use flags::OPTIONS;

use commands::GROUPS;

/// What a command's name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commanded {
    /// `ssh`
    Ssh,
    /// `scp`
    Scp,
    /// `connect`
    Connect,
    /// `exec`
    Exec,
    /// `upload`
    Upload,
    /// `check`
    Check,
    /// `classify`
    Classify,
    /// `mutagen`
    Mutagen,
    /// `status`
    Status,
    /// `serve`
    Serve,
    /// `pki init`
    PkiInit,
    /// `pki server`
    PkiServer,
    /// `pki client`
    PkiClient,
    /// `pki revoke`
    PkiRevoke,
    /// `help`
    Help,
}

/// How a command's words and options mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// Everything belongs to another program.
    Verbatim,
    /// From `min` to `max` operands, with options anywhere between them.
    Between(usize, usize),
    /// One operand, then a command of one word or more, which nothing behind its first word belongs to us.
    ThenCommand,
    /// The same, or nothing.
    PerhapsThenCommand,
}

/// A row of the table of commands.
#[derive(Debug)]
pub struct CommandRow {
    /// What it stands for.
    pub id: Commanded,
    /// One word, or two.
    pub name: &'static str,
    /// What follows the options in its usage; a word in capitals is completed by its [`Kind::of`].
    pub operands: &'static str,
    /// How they are read.
    pub words: Words,
    /// One sentence for the main help, without a full stop.
    pub sentence: &'static str,
    /// More for its own help; lines that fit. Those that begin with two spaces are shown as they are.
    pub more: &'static [&'static str],
    /// What the manual page says behind that: whole sentences, with what is typed in backticks and placeholders in
    /// capitals.
    pub manual: &'static str,
    /// Whether it needs the feature `server`.
    pub server: bool,
}

/// What an option's name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named for its row")]
pub enum Opt {
    As,
    Authorize,
    Ca,
    Cert,
    Check,
    Config,
    Dir,
    Endpoint,
    Env,
    ExitStatus,
    Help,
    Json,
    Key,
    Mode,
    Mutagen,
    NoCompress,
    Raw,
    Shell,
    Sni,
    Source,
    Target,
    Throughput,
    UpgradeBase,
    User,
    Version,
}

/// A row of the table of options.
#[derive(Debug)]
pub struct OptionRow {
    /// What it stands for.
    pub id: Opt,
    /// Behind `--`.
    pub long: &'static str,
    /// Behind `-`.
    pub short: Option<char>,
    /// The name of its value, if it takes one, as in `[=SIZE]` where that may be left out; [`Kind::of`] reads from it how the value is completed.
    pub value: Option<&'static str>,
    /// One sentence for help, without a full stop.
    pub sentence: &'static str,
    /// What the manual page says instead, written as [`CommandRow::manual`] is.
    pub manual: &'static str,
    /// The commands that take it.
    pub commands: On,
}

/// What a shell offers for a placeholder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Files.
    File,
    /// Folders.
    Folder,
    /// The hosts of the client's configuration.
    Host,
    /// Names of commands.
    Command,
    /// Nothing: only whoever types it knows.
    Text,
}

impl Kind {
    /// What `placeholder` is, which has the same name wherever the same is meant.
    pub fn of(placeholder: &str) -> Kind {
        match placeholder {
            "FILE" => Kind::File,
            "DIR" => Kind::Folder,
            "HOST" | "HOST[:NAME]" => Kind::Host,
            "[COMMAND]" => Kind::Command,
            _ => Kind::Text,
        }
    }
}

/// Where an option may stand.
#[derive(Debug)]
pub enum On {
    /// In front of any command, and behind every one.
    Everywhere,
    /// In front of any command alone.
    Top,
    /// Behind these.
    These(&'static [Commanded]),
}

/// Finds a command by its name of one word or two.
pub fn command(name: &str) -> Option<&'static CommandRow> {
    COMMANDS.iter().find(|row| row.name == name)
}

/// The sentence of a group, where `word` is the first of names of two words.
pub fn group(word: &str) -> Option<&'static str> {
    GROUPS.iter().find(|(name, _)| *name == word).map(|(_, sentence)| *sentence)
}

/// The names that may stand behind `tstunnel`, groups and their commands too.
pub fn names(with_server: bool) -> impl Iterator<Item = &'static str> {
    let commands = COMMANDS.iter().filter(move |row| with_server || !row.server).map(|row| row.name);
    // Every group there is belongs to the server.
    commands.chain(GROUPS.iter().filter(move |_| with_server).map(|(name, _)| *name))
}

/// The options of a command, or those in front of any.
pub fn options_of(command: Option<Commanded>) -> impl Iterator<Item = &'static OptionRow> {
    OPTIONS.iter().filter(move |row| match (&row.commands, command) {
        (On::Everywhere, _) | (On::Top, None) => true,
        (On::Top, Some(_)) | (On::These(_), None) => false,
        (On::These(commands), Some(command)) => commands.contains(&command),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_command_has_an_option_twice() {
        for command in COMMANDS.iter().map(|row| Some(row.id)).chain([None]) {
            let mut names: Vec<String> = options_of(command)
                .flat_map(|row| [Some(row.long.to_owned()), row.short.map(String::from)])
                .flatten()
                .collect();
            let all = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), all, "{command:?}: {names:?}");
        }
    }

    #[test]
    fn no_command_is_listed_twice_and_every_group_has_members() {
        for (index, row) in COMMANDS.iter().enumerate() {
            assert!(COMMANDS.iter().skip(index + 1).all(|other| other.name != row.name && other.id != row.id));
            if let Some((group, _)) = row.name.split_once(' ') {
                assert!(super::group(group).is_some(), "{group}");
            }
        }
        for (group, _) in GROUPS {
            assert!(COMMANDS.iter().any(|row| row.name.starts_with(&format!("{group} "))));
        }
    }

    #[test]
    fn every_row_says_more_in_whole_sentences_for_the_manual_page() {
        let texts =
            COMMANDS.iter().map(|row| (row.name, row.manual)).chain(OPTIONS.iter().map(|row| (row.long, row.manual)));
        for (name, text) in texts {
            assert!(text.starts_with(|first: char| first.is_uppercase() || first.is_ascii_digit()), "{name}: {text}");
            assert!(text.ends_with('.') && !text.contains("  "), "{name}: {text}");
            assert_eq!(text.matches('`').count() % 2, 0, "{name}: {text}");
        }
    }

    #[test]
    fn every_row_has_a_sentence_in_the_style_of_the_rest() {
        let sentences = COMMANDS.iter().map(|row| row.sentence).chain(OPTIONS.iter().map(|row| row.sentence));
        for sentence in sentences {
            assert!(!sentence.is_empty() && !sentence.ends_with('.'), "{sentence}");
            assert!(
                sentence.starts_with(|first: char| first.is_lowercase()) || sentence.starts_with("JSON"),
                "{sentence}"
            );
        }
        for row in OPTIONS {
            assert!(row.long.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{}", row.long);
            assert!(row.value.is_none_or(|value| value == value.to_uppercase()), "{}", row.long);
        }
    }
}
