//! One table of commands and options. It drives the parser in [`super`], the pages of [`super::help`], and what
//! [`crate::error::nearest()`] may suggest; nothing about the command line's shape is written down a second time. Data alone.

use Commanded::{Connect, Exec, Mutagen, PkiClient, PkiInit, PkiRevoke, PkiServer, Scp, Serve, Ssh};

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
    /// What follows the options in its usage.
    pub operands: &'static str,
    /// How they are read.
    pub words: Words,
    /// One sentence for the main help, without a full stop.
    pub sentence: &'static str,
    /// More for its own help; lines that fit.
    pub more: &'static [&'static str],
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
    NoCompress,
    Raw,
    Sni,
    Source,
    Target,
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
    /// The name of its value, if it takes one.
    pub value: Option<&'static str>,
    /// One sentence, without a full stop.
    pub sentence: &'static str,
    /// The commands that take it.
    pub commands: On,
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

const HOST: On = On::These(&[Connect, Exec, Commanded::Upload]);
const PKI: On = On::These(&[PkiInit, PkiServer, PkiClient, PkiRevoke]);

/// Every command, in the order of the main help.
pub const COMMANDS: &[CommandRow] = &[
    CommandRow {
        id: Ssh,
        name: "ssh",
        operands: "ARGS...",
        words: Words::Verbatim,
        sentence: "stand in for OpenSSH's ssh",
        more: &[
            "Takes ssh's own options. A host that is not tstunnel's goes to the real ssh.",
            "A link of the name `ssh` to this program does the same.",
        ],
        server: false,
    },
    CommandRow {
        id: Scp,
        name: "scp",
        operands: "ARGS...",
        words: Words::Verbatim,
        sentence: "stand in for OpenSSH's scp, to put files there",
        more: &[
            "Takes scp's own options. A host that is not tstunnel's goes to the real scp.",
            "A link of the name `scp` to this program does the same.",
        ],
        server: false,
    },
    CommandRow {
        id: Connect,
        name: "connect",
        operands: "HOST",
        words: Words::Between(1, 1),
        sentence: "join stdin and stdout to a stream on a host",
        more: &[
            "HOST is a host of the configuration, or a tstunnel:// URL, in which",
            "tstunnel://HOST/tcp:localhost:8080 names the target too.",
        ],
        server: false,
    },
    CommandRow {
        id: Exec,
        name: "exec",
        operands: "HOST [--] COMMAND...",
        words: Words::ThenCommand,
        sentence: "run a command on a host; its exit status counts",
        more: &[
            "HOST is a host of the configuration, or a tstunnel:// URL. A COMMAND of one word",
            "is a whole command line; of several, a program and its exact arguments.",
        ],
        server: false,
    },
    CommandRow {
        id: Commanded::Upload,
        name: "upload",
        operands: "FILE HOST[:NAME]",
        words: Words::Between(2, 2),
        sentence: "put a file into the account's home directory",
        more: &["HOST is a host of the configuration, or a tstunnel:// URL whose path is NAME."],
        server: false,
    },
    CommandRow {
        id: Commanded::Classify,
        name: "classify",
        operands: "",
        words: Words::Between(0, 0),
        sentence: "say what a failed command's stderr means",
        more: &["Reads that stderr from stdin. Exits 0 when it knew what happened, 1 when not."],
        server: false,
    },
    CommandRow {
        id: Mutagen,
        name: "mutagen",
        operands: "ARGS...",
        words: Words::Verbatim,
        sentence: "run mutagen, and take tstunnel:// URLs",
        more: &[
            "  tstunnel://HOST/PATH?endpoint=HOST:PORT&cert=FILE&key=FILE       a folder",
            "  tstunnel://HOST/tcp:localhost:8080?endpoint=HOST:PORT&...        a port",
            "",
            "`tstunnel mutagen help` is Mutagen's own help. The variable TSTUNNEL_MUTAGEN",
            "names another mutagen than the one on PATH.",
        ],
        server: false,
    },
    CommandRow {
        id: Commanded::Status,
        name: "status",
        operands: "",
        words: Words::Between(0, 0),
        sentence: "list the live tunnels of this account",
        more: &[
            "Shows those on this machine: bytes from stdin and to stdout and stderr, the last",
            "measured round trip, and how many interruptions a tunnel has survived.",
        ],
        server: false,
    },
    CommandRow {
        id: Serve,
        name: "serve",
        operands: "[HOST COMMAND...]",
        words: Words::PerhapsThenCommand,
        sentence: "run the server",
        more: &[
            "With --check it says what the configuration lets each principal do; with --as",
            "too, whether PRINCIPAL may run COMMAND on HOST, and by which rule. A COMMAND of",
            "one word is a whole line, or upload:NAME or stream:TARGET. Exits 0 for yes, 1",
            "for no.",
        ],
        server: true,
    },
    CommandRow {
        id: PkiInit,
        name: "pki init",
        operands: "[DOMAIN]",
        words: Words::Between(0, 1),
        sentence: "make a certificate authority",
        more: &["DOMAIN is what `pki server` makes a certificate for where it is given no name."],
        server: true,
    },
    CommandRow {
        id: PkiServer,
        name: "pki server",
        operands: "[NAME...]",
        words: Words::Between(0, usize::MAX),
        sentence: "make a server's certificate for DNS names",
        more: &["A NAME may be a wildcard, as in `*.containers.example.net`."],
        server: true,
    },
    CommandRow {
        id: PkiClient,
        name: "pki client",
        operands: "PRINCIPAL",
        words: Words::Between(1, 1),
        sentence: "make a client's certificate",
        more: &["PRINCIPAL is a SPIFFE URI, an e-mail address or a DNS name."],
        server: true,
    },
    CommandRow {
        id: PkiRevoke,
        name: "pki revoke",
        operands: "[NAME]",
        words: Words::Between(0, 1),
        sentence: "revoke a certificate, and renew the list",
        more: &["NAME is a name, a serial number or a certificate's file; without, the list is", "only renewed."],
        server: true,
    },
    CommandRow {
        id: Commanded::Help,
        name: "help",
        operands: "[COMMAND]",
        words: Words::Between(0, 2),
        sentence: "show this, or what a command takes",
        more: &[],
        server: false,
    },
];

/// Every option, in the order of help.
pub const OPTIONS: &[OptionRow] = &[
    OptionRow {
        id: Opt::Target,
        long: "target",
        short: None,
        value: Some("TARGET"),
        sentence: "tcp:HOST:PORT or unix:PATH; default: the host's own",
        commands: On::These(&[Connect]),
    },
    OptionRow {
        id: Opt::Env,
        long: "env",
        short: None,
        value: Some("NAME[=VALUE]"),
        sentence: "send a variable that the host allows; repeatable",
        commands: On::These(&[Exec]),
    },
    OptionRow {
        id: Opt::Raw,
        long: "raw",
        short: None,
        value: None,
        sentence: "send plain bytes: no stderr, exit status or resuming",
        commands: On::These(&[Connect, Exec]),
    },
    OptionRow {
        id: Opt::Mode,
        long: "mode",
        short: None,
        value: Some("MODE"),
        sentence: "permission bits in octal; default: the file's own",
        commands: On::These(&[Commanded::Upload]),
    },
    OptionRow {
        id: Opt::NoCompress,
        long: "no-compress",
        short: None,
        value: None,
        sentence: "send the file as it is",
        commands: On::These(&[Commanded::Upload]),
    },
    OptionRow {
        id: Opt::ExitStatus,
        long: "exit-status",
        short: None,
        value: Some("N"),
        sentence: "the exit status that the command had",
        commands: On::These(&[Commanded::Classify]),
    },
    OptionRow {
        id: Opt::Json,
        long: "json",
        short: None,
        value: None,
        sentence: "print JSON: code, install, windows, retry, hint",
        commands: On::These(&[Commanded::Classify]),
    },
    OptionRow {
        id: Opt::Json,
        long: "json",
        short: None,
        value: None,
        sentence: "print a JSON list",
        commands: On::These(&[Commanded::Status]),
    },
    OptionRow {
        id: Opt::Endpoint,
        long: "endpoint",
        short: None,
        value: Some("HOST[:PORT]"),
        sentence: "where to connect",
        commands: HOST,
    },
    OptionRow {
        id: Opt::Cert,
        long: "cert",
        short: None,
        value: Some("FILE"),
        sentence: "the client's certificate chain, PEM",
        commands: HOST,
    },
    OptionRow {
        id: Opt::Key,
        long: "key",
        short: None,
        value: Some("FILE"),
        sentence: "the client's private key, PEM",
        commands: HOST,
    },
    OptionRow {
        id: Opt::Ca,
        long: "ca",
        short: None,
        value: Some("FILE"),
        sentence: "the trust anchors, PEM; default: the system's",
        commands: HOST,
    },
    OptionRow {
        id: Opt::User,
        long: "user",
        short: None,
        value: Some("ACCOUNT"),
        sentence: "the account to ask for",
        commands: HOST,
    },
    OptionRow {
        id: Opt::Sni,
        long: "sni",
        short: None,
        value: Some("NAME"),
        sentence: "the server name, where it is not HOST.ENDPOINT",
        commands: HOST,
    },
    OptionRow {
        id: Opt::UpgradeBase,
        long: "upgrade-base",
        short: None,
        value: Some("PATH"),
        sentence: "the path prefix of requests; default: /tinyscale/v1",
        commands: HOST,
    },
    OptionRow {
        id: Opt::Config,
        long: "config",
        short: None,
        value: Some("FILE"),
        sentence: "read this file alone, not the user's and the system's",
        commands: HOST,
    },
    OptionRow {
        id: Opt::Config,
        long: "config",
        short: None,
        value: Some("FILE"),
        sentence: "default: /etc/tstunnel/server.toml",
        commands: On::These(&[Serve]),
    },
    OptionRow {
        id: Opt::Check,
        long: "check",
        short: None,
        value: None,
        sentence: "read everything, say what it comes to, and start nothing",
        commands: On::These(&[Serve]),
    },
    OptionRow {
        id: Opt::As,
        long: "as",
        short: None,
        value: Some("PRINCIPAL"),
        sentence: "with --check: whose question it is",
        commands: On::These(&[Serve]),
    },
    OptionRow {
        id: Opt::User,
        long: "user",
        short: None,
        value: Some("ACCOUNT"),
        sentence: "with --as: the account to ask for",
        commands: On::These(&[Serve]),
    },
    OptionRow {
        id: Opt::Source,
        long: "source",
        short: None,
        value: Some("ADDRESS"),
        sentence: "with --as: where from; default: 127.0.0.1",
        commands: On::These(&[Serve]),
    },
    OptionRow {
        id: Opt::Authorize,
        long: "authorize",
        short: None,
        value: None,
        sentence: "with --as: ask the `authorize` command too",
        commands: On::These(&[Serve]),
    },
    OptionRow {
        id: Opt::Dir,
        long: "dir",
        short: None,
        value: Some("DIR"),
        sentence: "the authority's folder; default: ./tstunnel-pki",
        commands: PKI,
    },
    OptionRow {
        id: Opt::Help,
        long: "help",
        short: Some('h'),
        value: None,
        sentence: "show this",
        commands: On::Everywhere,
    },
    OptionRow {
        id: Opt::Version,
        long: "version",
        short: Some('V'),
        value: None,
        sentence: "print the version",
        commands: On::Top,
    },
];

/// The sentence of a group of commands whose names share their first word.
const GROUPS: &[(&str, &str)] = &[("pki", "a small certificate authority")];

/// Finds a command by its name of one word or two.
pub fn command(name: &str) -> Option<&'static CommandRow> {
    COMMANDS.iter().find(|row| row.name == name)
}

/// The sentence of a group, where `word` is the first of names of two words.
pub fn group(word: &str) -> Option<&'static str> {
    GROUPS.iter().find(|(name, _)| *name == word).map(|(_, sentence)| *sentence)
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
