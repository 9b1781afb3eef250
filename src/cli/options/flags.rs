//! The rows of the options. Data alone.

use super::Commanded::{Check, Connect, Exec, Mutagen, PkiClient, PkiInit, PkiRevoke, PkiServer, Serve};
use super::{Commanded, On, Opt, OptionRow};

const HOST: On = On::These(&[Connect, Exec, Commanded::Upload, Check]);
const PKI: On = On::These(&[PkiInit, PkiServer, PkiClient, PkiRevoke]);

/// Every option, in the order of help.
pub const OPTIONS: &[OptionRow] = &[
    OptionRow {
        id: Opt::Target,
        long: "target",
        short: None,
        value: Some("TARGET"),
        sentence: "tcp:HOST:PORT or unix:PATH; default: the host's own",
        manual: "The stream on the host: `tcp:HOST:PORT` or `unix:PATH`. The host's configuration must allow it. \
             Without it that is what the URL names, else the host's own default.",
        commands: On::These(&[Connect]),
    },
    OptionRow {
        id: Opt::Target,
        long: "target",
        short: None,
        value: Some("TARGET"),
        sentence: "see whether this target takes connections",
        manual: "Also connects to this target, `tcp:HOST:PORT` or `unix:PATH`, and ends the connection at once.",
        commands: On::These(&[Check]),
    },
    OptionRow {
        id: Opt::Throughput,
        long: "throughput",
        short: None,
        value: Some("[=SIZE]"),
        sentence: "measure it with so many bytes; default: 32M",
        manual: "Also sends SIZE bytes, which may end in `K`, `M` or `G`, to the server's echo, for ten seconds at most, and \
             measures how fast they come back. A server sends back no more than its `max_upload_bytes`.",
        commands: On::These(&[Check]),
    },
    OptionRow {
        id: Opt::Mutagen,
        long: "mutagen",
        short: None,
        value: None,
        sentence: "look at Mutagen and its daemon too",
        manual: "Also looks whether there is a Mutagen, and whether its daemon, if one runs, takes tstunnel's `ssh`. A host that \
             does not allow what Mutagen asks for is then a failure, not a warning.",
        commands: On::These(&[Check]),
    },
    OptionRow {
        id: Opt::Env,
        long: "env",
        short: None,
        value: Some("NAME[=VALUE]"),
        sentence: "send a variable that the host allows; repeatable",
        manual: "Sends the variable NAME, with VALUE, or with the value that it has here. May be given again, for other \
             variables. LANG and LC_* are sent anyhow, also by `ssh`. The host keeps those that its configuration allows and drops \
             the others without a word.",
        commands: On::These(&[Exec]),
    },
    OptionRow {
        id: Opt::Raw,
        long: "raw",
        short: None,
        value: None,
        sentence: "send plain bytes: no stderr, exit status or resuming",
        manual: "Sends plain bytes both ways, without frames. So there is no standard error, no exit status but 0, and \
             nothing that goes on when the connection breaks.",
        commands: On::These(&[Connect, Exec]),
    },
    OptionRow {
        id: Opt::Mode,
        long: "mode",
        short: None,
        value: Some("MODE"),
        sentence: "permission bits in octal; default: the file's own",
        manual: "The permission bits that the file gets, in octal and at most 0777. Without it they are the local \
             file's, or 0600 for stdin.",
        commands: On::These(&[Commanded::Upload]),
    },
    OptionRow {
        id: Opt::NoCompress,
        long: "no-compress",
        short: None,
        value: None,
        sentence: "send the file as it is",
        manual: "Sends the file as it is. Otherwise a file of up to 64 MiB is compressed on the way.",
        commands: On::These(&[Commanded::Upload]),
    },
    OptionRow {
        id: Opt::Shell,
        long: "shell",
        short: None,
        value: Some("SHELL"),
        sentence: "with env: sh, bash, zsh or fish; default: sh",
        manual: "Behind `env`: the shell that evaluates what is printed, which is one of `sh`, `bash`, `dash`, `ksh`, \
             `zsh` and `fish`. The default is `sh`, whose language all but fish share.",
        commands: On::These(&[Mutagen]),
    },
    OptionRow {
        id: Opt::ExitStatus,
        long: "exit-status",
        short: None,
        value: Some("N"),
        sentence: "the exit status that the command had",
        manual: "The exit status that the command had. 126 and 127 are what shells say of a program that cannot be \
             executed or is not there.",
        commands: On::These(&[Commanded::Classify]),
    },
    OptionRow {
        id: Opt::Json,
        long: "json",
        short: None,
        value: None,
        sentence: "print JSON: code, install, windows, retry, hint",
        manual: "Prints one line of JSON: `code`, one of DIAGNOSTICS or null; `install`, `windows` and `retry`, whether \
             installing the agent would help, whether the host is Windows, and whether the same may succeed later; \
             and `hint`, what to do.",
        commands: On::These(&[Commanded::Classify]),
    },
    OptionRow {
        id: Opt::Json,
        long: "json",
        short: None,
        value: None,
        sentence: "print a JSON object",
        manual: "Prints one JSON object instead: `host`, `status`, which is the exit status, `failed`, the name of the step that \
             failed first or null, and `steps`, each with `step`, `outcome` (`ok`, `warning`, `failed` or `skipped`), `text`, \
             `code`, one of DIAGNOSTICS or null, `hints`, and what there is to know of it, such as `chain` or `ms`.",
        commands: On::These(&[Check]),
    },
    OptionRow {
        id: Opt::Json,
        long: "json",
        short: None,
        value: None,
        sentence: "print a JSON list",
        manual: "Prints a JSON list with an object for each tunnel: `pid`, `kind` (`session` or `upload`), `host`, `endpoint`, \
             `command`, `started`, `age_seconds`, `sent_bytes`, `received_bytes`, `round_trip_ms`, `silence_seconds`, `state` \
             (`connected` or `interrupted`), `interruptions` and `last_interruption`. `silence_seconds` is how long nothing has been \
             heard from the server, which is asked for a sign of life after `alive_interval` at the latest; null for an upload, and for a \
             stream without frames.",
        commands: On::These(&[Commanded::Status]),
    },
    OptionRow {
        id: Opt::Endpoint,
        long: "endpoint",
        short: None,
        value: Some("HOST[:PORT]"),
        sentence: "where to connect",
        manual: "Where to connect, by name or address, an IPv6 address in brackets. The port is 443 where it is left \
             out.",
        commands: HOST,
    },
    OptionRow {
        id: Opt::Cert,
        long: "cert",
        short: None,
        value: Some("FILE"),
        sentence: "the client's certificate chain, PEM",
        manual: "The client's certificate and those between it and its authority, PEM.",
        commands: HOST,
    },
    OptionRow {
        id: Opt::Key,
        long: "key",
        short: None,
        value: Some("FILE"),
        sentence: "the client's private key, PEM",
        manual: "The private key of that certificate, PEM, readable by its owner alone.",
        commands: HOST,
    },
    OptionRow {
        id: Opt::Ca,
        long: "ca",
        short: None,
        value: Some("FILE"),
        sentence: "the trust anchors, PEM; default: the system's",
        manual: "The authorities, PEM, one of which must have signed the server's certificate. Where it is given these \
             alone are trusted; else those of the system are.",
        commands: HOST,
    },
    OptionRow {
        id: Opt::User,
        long: "user",
        short: None,
        value: Some("ACCOUNT"),
        sentence: "the account to ask for",
        manual: "The account on the host. Without it that is the host's own.",
        commands: HOST,
    },
    OptionRow {
        id: Opt::Sni,
        long: "sni",
        short: None,
        value: Some("NAME"),
        sentence: "the server name, where it is not HOST.ENDPOINT",
        manual: "The server name to ask for, which the server's certificate must have. Without it that is \
             `HOST.ENDPOINT`, or HOST alone where the endpoint is an address.",
        commands: HOST,
    },
    OptionRow {
        id: Opt::UpgradeBase,
        long: "upgrade-base",
        short: None,
        value: Some("PATH"),
        sentence: "the path prefix of requests; default: /tinyscale/v1",
        manual: "The path that every request begins with, `/tinyscale/v1` by default. It is the server's \
             `upgrade_base`.",
        commands: HOST,
    },
    OptionRow {
        id: Opt::Config,
        long: "config",
        short: None,
        value: Some("FILE"),
        sentence: "read this file alone, not the user's and the system's",
        manual: "Reads this tstunnel.toml(5) alone, not the user's and the system's.",
        commands: HOST,
    },
    OptionRow {
        id: Opt::Config,
        long: "config",
        short: None,
        value: Some("FILE"),
        sentence: "default: /etc/tstunnel/server.toml",
        manual: "The server's file, `/etc/tstunnel/server.toml` by default.",
        commands: On::These(&[Serve]),
    },
    OptionRow {
        id: Opt::Check,
        long: "check",
        short: None,
        value: None,
        sentence: "read everything, say what it comes to, and start nothing",
        manual: "Reads everything that the server would, says what is wrong and what each principal may do, and starts \
             nothing. Whether its addresses are free is not tried.",
        commands: On::These(&[Serve]),
    },
    OptionRow {
        id: Opt::As,
        long: "as",
        short: None,
        value: Some("PRINCIPAL"),
        sentence: "with --check: whose question it is",
        manual: "With `--check`: asks one question for this principal, as its certificate would name it.",
        commands: On::These(&[Serve]),
    },
    OptionRow {
        id: Opt::User,
        long: "user",
        short: None,
        value: Some("ACCOUNT"),
        sentence: "with --as: the account to ask for",
        manual: "With `--as`: the account to ask for.",
        commands: On::These(&[Serve]),
    },
    OptionRow {
        id: Opt::Source,
        long: "source",
        short: None,
        value: Some("ADDRESS"),
        sentence: "with --as: where from; default: 127.0.0.1",
        manual: "With `--as`: the address that the principal comes from, 127.0.0.1 by default.",
        commands: On::These(&[Serve]),
    },
    OptionRow {
        id: Opt::Authorize,
        long: "authorize",
        short: None,
        value: None,
        sentence: "with --as: ask the `authorize` command too",
        manual: "With `--as`: asks the configured `authorize` command too, where the server would.",
        commands: On::These(&[Serve]),
    },
    OptionRow {
        id: Opt::Dir,
        long: "dir",
        short: None,
        value: Some("DIR"),
        sentence: "the authority's folder; default: ./tstunnel-pki",
        manual: "The folder of the authority, `./tstunnel-pki` by default.",
        commands: PKI,
    },
    OptionRow {
        id: Opt::Help,
        long: "help",
        short: Some('h'),
        value: None,
        sentence: "show this",
        manual: "Shows what there is, or what a command takes.",
        commands: On::Everywhere,
    },
    OptionRow {
        id: Opt::Version,
        long: "version",
        short: Some('V'),
        value: None,
        sentence: "print the version",
        manual: "Prints the version.",
        commands: On::Top,
    },
];
