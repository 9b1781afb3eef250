//! The rows of the commands, and of the groups that some are in. Data alone.

use super::Commanded::{Check, Connect, Exec, Mutagen, PkiClient, PkiInit, PkiRevoke, PkiServer, Scp, Serve, Ssh};
use super::{CommandRow, Commanded, Words};

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
        manual: "A host is tstunnel's where an entry of the configuration matches it, where it ends in a dot and the \
             host of a configured endpoint, or where `TSTUNNEL_HOSTS` names it. The port of `-p` replaces that of its endpoint, \
             but for 22, which changes nothing. `-v` logs as `TSTUNNEL_LOG=debug` does. `-q`, `-E` and what is about SSH's own keys, \
             ciphers and files are taken and change nothing: what fails is said on stderr, where Mutagen reads it.",
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
        manual: "It puts files into the home directory of the account, which is what Mutagen needs. \
             Each has the source's mode, also without `-p`, and a time of its own, also with it. `-v` and `-q` are as for `ssh`.",
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
        manual: "The end of stdin is passed on, and it ends when the stream does: with 0, or with 1 where the target's connection was reset. As an OpenSSH `ProxyCommand` it carries `ssh` to a server on \
             the host: `ProxyCommand tstunnel connect %h --target tcp:127.0.0.1:22`.",
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
        manual: "Standard input, output and error are the command's. The exit status is the command's too, or 128 and \
             the number of the signal that ended it; see EXIT STATUS. What processes that the command leaves behind write later \
             than a second or two after its end is lost. With the command or its session its process group ends: a job \
             behind `nohup` does, one behind `setsid` does not. Without a shell on the host a command line is \
             split at spaces. What stands behind the first word of the COMMAND belongs to it, options too. Words that are not \
             UTF-8 are refused, as they are for `ssh`: a request cannot carry them.",
        server: false,
    },
    CommandRow {
        id: Commanded::Upload,
        name: "upload",
        operands: "FILE HOST[:NAME]",
        words: Words::Between(2, 2),
        sentence: "put a file into the account's home directory",
        more: &[
            "HOST is a host of the configuration, or a tstunnel:// URL whose path is NAME.",
            "FILE `-` is stdin, which needs a NAME. No NAME has a slash.",
        ],
        manual: "The file appears whole or not at all: its digest is compared before it takes the name, and a transfer \
             that breaks is carried on over a new connection. A terminal on stderr is shown a bar, the rate and the \
             time left, and is told when the host had the content already. Elsewhere nothing is said but that an \
             upload was interrupted and where it goes on, a line each time. An upload begins at its beginning: \
             what an earlier one left half done is not taken up. stdin is kept, to its end and before anything is \
             sent, in a file without a name in the folder for temporary files (`TMPDIR`), which must have room for \
             it. It becomes its owner's alone without `--mode`. A file of the name `-` is `./-`.",
        server: false,
    },
    CommandRow {
        id: Check,
        name: "check",
        operands: "HOST",
        words: Words::Between(1, 1),
        sentence: "look at the way to a host, step by step",
        more: &[
            "HOST is a host of the configuration, or a tstunnel:// URL. Exits 0 where nothing",
            "failed, else by what failed first: 3 configuration, 4 name, 5 proxy or TCP,",
            "6 TLS, 7 own certificate, 8 host or policy, 9 agent, 10 Mutagen, 11 target,",
            "12 throughput.",
        ],
        manual: "It prints a line for each step, `ok`, `warning`, `failed`, or `-` for one that is not taken, with what \
             to do below it, and stops where the rest makes no sense. The steps are the configuration, with the source of \
             each value; the endpoint's name, proxy and TCP; TLS, with the server's certificates; the own certificate; what \
             the server thinks of the client; the upgrade; `uname -s -m`, which is what Mutagen asks a host first; a round \
             trip; and whether the agent of the Mutagen on this machine is installed there. A warning is what works, but \
             will not for long or not for everything, such as a certificate that ends within 14 days. Nothing is changed \
             there.",
        server: false,
    },
    CommandRow {
        id: Commanded::Classify,
        name: "classify",
        operands: "",
        words: Words::Between(0, 0),
        sentence: "say what a failed command's stderr means",
        more: &["Reads that stderr from stdin. Exits 0 when it knew what happened, 1 when not."],
        manual: "It knows what tstunnel, OpenSSH, shells, cmd.exe and PowerShell say, and answers like Mutagen's own `ClassifyError` where \
             that has an answer.",
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
            "`tstunnel mutagen help` is Mutagen's own help. The variable `TSTUNNEL_MUTAGEN`",
            "names another mutagen than the one on `PATH`. `tstunnel mutagen env` prints the",
            "lines that set a shell up for plain mutagen; with --shell fish, those of fish.",
        ],
        manual: "What stands behind `mutagen` is Mutagen's own, and so is the exit status, but for `env`. A daemon that is \
             started by it finds tstunnel as its `ssh`. One that runs without is restarted by what starts \
             sessions or the daemon, which says so; its sessions go on by themselves. The variable \
             `TSTUNNEL_MUTAGEN_DAEMON` with the value `keep` refuses instead. What a URL says beyond its host is \
             remembered for the daemon, under a name of its own: a host of the configuration goes on to mean what \
             that says. In the file of `project start` URLs are taken too, in `alpha`, `beta`, \
             `source` and `destination`; files that they name are relative to it. A host that `sync create` or \
             `forward create` leaves to the real ssh, but that is near in spelling to one of the configuration, is pointed \
             out. See tstunnel-mutagen(7).",
        server: false,
    },
    CommandRow {
        id: Commanded::Status,
        name: "status",
        operands: "",
        words: Words::Between(0, 0),
        sentence: "list the live tunnels of this account",
        more: &[
            "Shows those on this machine, sessions and uploads: bytes sent and received, the",
            "last measured round trip, and how many interruptions a tunnel has survived.",
        ],
        manual: "Each tunnel is a process of its own and answers by itself, so that nothing is listed that has ended. The \
             bytes of a session are those from stdin, and to stdout and stderr; of an upload they are how much of the file has been \
             sent. An upload is listed once it has connected, with `upload:NAME` for its command: NAME is the file's on the host.",
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
        manual: "The server is described in tstunnel-serve(8), its file in tstunnel-server.toml(5).",
        server: true,
    },
    CommandRow {
        id: PkiInit,
        name: "pki init",
        operands: "[DOMAIN]",
        words: Words::Between(0, 1),
        sentence: "make a certificate authority",
        more: &["DOMAIN is what `pki server` makes a certificate for where it is given no name."],
        manual: "Each authority has a name of its own, which ends in the beginning of its key's identifier. \
             It makes `ca.crt`, which servers and clients trust, its key, an empty revocation list `ca.crl` and a \
             record of what is issued. What exists is not overwritten. How a second authority takes the place of the \
             first is in tstunnel-serve(8).",
        server: true,
    },
    CommandRow {
        id: PkiServer,
        name: "pki server",
        operands: "[NAME...]",
        words: Words::Between(0, usize::MAX),
        sentence: "make a server's certificate for DNS names",
        more: &["A NAME may be a wildcard, as in `*.containers.example.net`."],
        manual: "Without a NAME it is for the DOMAIN of `pki init` and the names one label below it. It is valid for \
             397 days.",
        server: true,
    },
    CommandRow {
        id: PkiClient,
        name: "pki client",
        operands: "PRINCIPAL",
        words: Words::Between(1, 1),
        sentence: "make a client's certificate",
        more: &["PRINCIPAL is a SPIFFE URI, an e-mail address or a DNS name."],
        manual: "It is valid for 365 days. The files are called after the PRINCIPAL.",
        server: true,
    },
    CommandRow {
        id: PkiRevoke,
        name: "pki revoke",
        operands: "[NAME]",
        words: Words::Between(0, 1),
        sentence: "revoke certificates, and renew the list",
        more: &[
            "NAME is a name, which means all of its certificates, also one made a moment",
            "ago; or a serial number or a certificate's file, which mean one. Without it the",
            "list is only renewed.",
        ],
        manual: "To replace a certificate, move its two files to another folder, make the new one, and revoke the old one \
             by its file there. The list is good for 30 days, after which a server that has it in `crl` lets nobody in: renew it \
             monthly. A server that watches its files ends the live sessions of a revoked certificate.",
        server: true,
    },
    CommandRow {
        id: Commanded::Help,
        name: "help",
        operands: "[COMMAND]",
        words: Words::Between(0, 2),
        sentence: "show what there is, or what a command takes",
        more: &[],
        manual: "With a COMMAND it is what `tstunnel COMMAND --help` shows, else what `tstunnel --help` does.",
        server: false,
    },
];

/// The sentence of a group of commands whose names share their first word.
pub(super) const GROUPS: &[(&str, &str)] = &[("pki", "a small certificate authority")];
