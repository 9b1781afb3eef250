//! argv → a [`Command`]. No I/O: help is a `String`, a file's name is not opened, the environment is not read.
//!
//! [`options`] is the table of commands and options, from which [`help`] writes its pages; [`openssh`] is the grammar behind `ssh` and `scp`, whose arguments
//! pass through here untouched.

pub mod help;
pub mod openssh;
pub mod options;
mod read;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::config::Overrides;
use crate::config::url::{self, Target, TunnelUrl};
use crate::error::{Code, Error, Result, nearest};
use options::{CommandRow, Commanded, Opt, Words};
use read::{Given, read, unknown, usage, utf8};

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Stand in for `ssh`, with its arguments.
    Ssh(Vec<OsString>),
    /// Stand in for `scp`, with its arguments.
    Scp(Vec<OsString>),
    /// `connect`
    Connect(Connect),
    /// `exec`
    Exec(Exec),
    /// `upload`
    Upload(Upload),
    /// `classify`
    Classify(Classify),
    /// Run Mutagen with these arguments.
    Mutagen(Vec<OsString>),
    /// `status`
    Status(Status),
    /// `serve`
    #[cfg(feature = "server")]
    Serve(Serve),
    /// `pki …`
    #[cfg(feature = "server")]
    Pki(Pki),
    /// Write this to stdout: a page of help, or the version.
    Print(String),
}

/// `connect HOST`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// A host, or a `tstunnel://` URL.
    pub host: String,
    /// What the options say about it.
    pub overrides: Overrides,
    /// `tcp:HOST:PORT` or `unix:PATH`, by option or URL; the host's own if `None`.
    pub target: Option<String>,
    /// Plain bytes instead of frames.
    pub raw: bool,
}

/// `exec HOST -- COMMAND…`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// A host, or a `tstunnel://` URL.
    pub host: String,
    /// What the options say about it.
    pub overrides: Overrides,
    /// The program with `args`, a whole command line without.
    pub command: String,
    /// The program's exact arguments, where the command was given as several words.
    pub args: Option<Vec<String>>,
    /// Names to send, with the value that was given; the environment's own if `None`.
    pub env: Vec<(String, Option<String>)>,
    /// Plain bytes instead of frames.
    pub raw: bool,
}

/// `upload FILE HOST[:NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// The local file.
    pub file: PathBuf,
    /// A host, or a `tstunnel://` URL, whose path is then the name.
    pub host: String,
    /// The name on the host; the file's own if `None`.
    pub name: Option<String>,
    /// What the options say about the host.
    pub overrides: Overrides,
    /// Permission bits; the file's own if `None`.
    pub mode: Option<u32>,
    /// Whether the body may be compressed.
    pub compress: bool,
}

/// `classify`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classify {
    /// The exit status that the command had.
    pub exit_status: Option<i32>,
    /// Print JSON.
    pub json: bool,
}

/// `status`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Print JSON.
    pub json: bool,
}

/// `serve`
#[cfg(feature = "server")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serve {
    /// The server's file, if it isn't the usual one.
    pub config: Option<PathBuf>,
    /// What it is to do.
    pub action: ServeAction,
}

/// What `serve` does.
#[cfg(feature = "server")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServeAction {
    /// Serve.
    Run,
    /// Say what the configuration comes to.
    Check,
    /// Answer one question by it.
    Ask(crate::server::check::Question),
}

/// `pki …`
#[cfg(feature = "server")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pki {
    /// The authority's folder, if it isn't the current one.
    pub dir: Option<PathBuf>,
    /// What to do.
    pub action: PkiAction,
}

/// What the small certificate authority is to do.
#[cfg(feature = "server")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PkiAction {
    /// Make the authority, with the domain of its servers.
    Init(Option<String>),
    /// Make a server's certificate for these names; for the authority's domain if there are none.
    Server(Vec<String>),
    /// Make a client's certificate for this principal.
    Client(String),
    /// Revoke a certificate by name, serial number or file, or only renew the list.
    Revoke(Option<String>),
}

/// Parses a command line; `argv0` is the name under which this program was started.
///
/// # Errors
/// `usage`, with the nearest name where one was misspelt.
pub fn parse(argv0: &OsStr, args: Vec<OsString>) -> Result<Command> {
    match program_name(argv0) {
        "ssh" => Ok(Command::Ssh(args)),
        "scp" => Ok(Command::Scp(args)),
        _ => dispatch(args),
    }
}

/// Whether a command line is one of those that stand in for a process, right or wrong: whoever started it takes its exit
/// status for the process's own.
pub fn stands_in(argv0: &OsStr, args: &[OsString]) -> bool {
    let is_standin = |name: &str| matches!(name, "ssh" | "scp" | "exec" | "connect");
    match program_name(argv0) {
        "ssh" | "scp" => true,
        _ => args.first().and_then(|name| name.to_str()).is_some_and(is_standin),
    }
}

fn program_name(argv0: &OsStr) -> &str {
    let name = Path::new(argv0).file_name().and_then(OsStr::to_str).unwrap_or_default();
    name.strip_suffix(".exe").unwrap_or(name)
}

/// Whether this build has the server half.
const WITH_SERVER: bool = cfg!(feature = "server");

fn dispatch(args: Vec<OsString>) -> Result<Command> {
    let mut words = args.into_iter().peekable();
    let Some(first) = words.next() else {
        return Err(usage("no command is given", "see `tstunnel --help`"));
    };
    match first.to_str() {
        Some("-h" | "--help") => return Ok(Command::Print(help::main_help(WITH_SERVER))),
        Some("-V" | "--version") => {
            return Ok(Command::Print(concat!("tstunnel ", env!("CARGO_PKG_VERSION"), "\n").into()));
        }
        _ => {}
    }
    let mut name = first.to_string_lossy().into_owned();
    if name.starts_with('-') {
        let known = options::options_of(None).map(|row| row.long);
        let meant = nearest(name.trim_start_matches('-'), known).map(|long| format!("--{long}"));
        return Err(unknown("option", &name, meant.as_deref(), "tstunnel --help"));
    }
    if options::group(&name).is_some() {
        match words.peek().and_then(|word| word.to_str()) {
            Some("-h" | "--help") => return group_page(&name),
            Some(second) => name = format!("{name} {second}"),
            None => {
                return Err(usage(
                    format!("`tstunnel {name}` needs a command"),
                    &format!("see `tstunnel {name} --help`"),
                ));
            }
        }
        words.next();
    }
    let row = command_row(&name)?;
    let rest: Vec<OsString> = words.collect();
    if row.words == Words::Verbatim {
        // ssh and scp have no such option, and `mutagen help` is Mutagen's own.
        return Ok(match (row.id, rest.as_slice()) {
            (_, [only]) if only == "--help" => Command::Print(help::command_help(row)),
            (Commanded::Ssh, _) => Command::Ssh(rest),
            (Commanded::Scp, _) => Command::Scp(rest),
            _ => Command::Mutagen(rest),
        });
    }
    let given = read(row, rest)?;
    if given.has(Opt::Help) {
        return Ok(Command::Print(help::command_help(row)));
    }
    given.into_command(row)
}

fn command_row(name: &str) -> Result<&'static CommandRow> {
    let Some(row) = options::command(name) else {
        let known = options::COMMANDS.iter().filter(|row| WITH_SERVER || !row.server).map(|row| row.name);
        return Err(unknown("command", name, nearest(name, known), "tstunnel --help"));
    };
    if row.server && !WITH_SERVER {
        return Err(client_alone(name));
    }
    Ok(row)
}

/// The page of a group; every group there is belongs to the server.
fn group_page(name: &str) -> Result<Command> {
    if WITH_SERVER { Ok(Command::Print(help::group_help(name))) } else { Err(client_alone(name)) }
}

fn client_alone(name: &str) -> Error {
    usage(
        format!("`{name}` is not in this build, which is a client alone"),
        "install tstunnel with the feature `server`",
    )
}

impl Given {
    fn into_command(mut self, row: &CommandRow) -> Result<Command> {
        let mut operands = std::mem::take(&mut self.operands).into_iter();
        let mut next = || operands.next().unwrap_or_default();
        match row.id {
            Commanded::Connect => {
                let host = utf8(next())?;
                let target = match self.text(Opt::Target)? {
                    None => forwarding(&host)?,
                    given => given,
                };
                Ok(Command::Connect(Connect { host, overrides: self.overrides()?, target, raw: self.has(Opt::Raw) }))
            }
            Commanded::Exec => {
                let (host, command) = (utf8(next())?, utf8(next())?);
                let args: Vec<String> = operands.map(utf8).collect::<Result<_>>()?;
                Ok(Command::Exec(Exec {
                    host,
                    overrides: self.overrides()?,
                    command,
                    args: (!args.is_empty()).then_some(args),
                    env: self.environment()?,
                    raw: self.has(Opt::Raw),
                }))
            }
            Commanded::Upload => {
                let file = PathBuf::from(next());
                let (host, name) = host_and_name(utf8(next())?)?;
                Ok(Command::Upload(Upload {
                    file,
                    host,
                    name,
                    overrides: self.overrides()?,
                    mode: self.number(Opt::Mode, "permission bits in octal, such as 0755", permission_bits)?,
                    compress: !self.has(Opt::NoCompress),
                }))
            }
            Commanded::Classify => Ok(Command::Classify(Classify {
                exit_status: self.number(Opt::ExitStatus, "an exit status", |text| text.parse().ok())?,
                json: self.has(Opt::Json),
            })),
            Commanded::Status => Ok(Command::Status(Status { json: self.has(Opt::Json) })),
            Commanded::Help => {
                let name = operands.map(utf8).collect::<Result<Vec<_>>>()?.join(" ");
                match name.as_str() {
                    "" => Ok(Command::Print(help::main_help(WITH_SERVER))),
                    group if options::group(group).is_some() => group_page(group),
                    name => Ok(Command::Print(help::command_help(command_row(name)?))),
                }
            }
            #[cfg(feature = "server")]
            Commanded::Serve => {
                let words: Vec<String> = operands.map(utf8).collect::<Result<_>>()?;
                Ok(Command::Serve(Serve { config: self.path(Opt::Config), action: self.serve_action(words)? }))
            }
            #[cfg(feature = "server")]
            Commanded::PkiInit => {
                let domain = operands.next().map(utf8).transpose()?;
                Ok(self.pki(PkiAction::Init(domain)))
            }
            #[cfg(feature = "server")]
            Commanded::PkiServer => {
                let names = operands.map(utf8).collect::<Result<_>>()?;
                Ok(self.pki(PkiAction::Server(names)))
            }
            #[cfg(feature = "server")]
            Commanded::PkiClient => {
                let principal = utf8(next())?;
                Ok(self.pki(PkiAction::Client(principal)))
            }
            #[cfg(feature = "server")]
            Commanded::PkiRevoke => {
                let what = operands.next().map(utf8).transpose()?;
                Ok(self.pki(PkiAction::Revoke(what)))
            }
            // Those that are read word for word, and the server's where there is none, do not come this far.
            _ => Err(Error::new(Code::Internal, format!("`{}` has no reader", row.name))),
        }
    }

    #[cfg(feature = "server")]
    fn pki(&self, action: PkiAction) -> Command {
        Command::Pki(Pki { dir: self.path(Opt::Dir), action })
    }
}

/// Where a URL such as `tstunnel://HOST/tcp:localhost:8080` leads.
fn forwarding(host: &str) -> Result<Option<String>> {
    if !url::is_tunnel_url(host) {
        return Ok(None);
    }
    Ok(match TunnelUrl::parse(host)?.target {
        Some(Target::Forwarding(target)) => Some(target),
        Some(Target::Path(_)) | None => None,
    })
}

/// `HOST[:NAME]`, or a `tstunnel://` URL, whose path is the name.
fn host_and_name(text: String) -> Result<(String, Option<String>)> {
    if url::is_tunnel_url(&text) {
        let target = TunnelUrl::parse(&text)?.target;
        let name = target.as_ref().map_or("", Target::as_str);
        // Both forms of a path lead into the home, as nothing else can be written.
        let name = name.strip_prefix("~/").or_else(|| name.strip_prefix('/')).unwrap_or(name);
        return Ok((text, Some(name.to_owned()).filter(|name| !name.is_empty())));
    }
    Ok(match text.split_once(':') {
        Some((host, name)) => (host.to_owned(), Some(name.to_owned()).filter(|name| !name.is_empty())),
        None => (text, None),
    })
}

fn permission_bits(text: &str) -> Option<u32> {
    let octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    u32::from_str_radix(text, 8).ok().filter(|bits| octal && *bits <= 0o777)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "server")]
    use crate::server::check::Question;
    use std::os::unix::ffi::OsStringExt;

    fn words(line: &[&str]) -> Vec<OsString> {
        line.iter().map(OsString::from).collect()
    }

    fn parsed(line: &[&str]) -> Command {
        parse(OsStr::new("/usr/bin/tstunnel"), words(line)).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    fn refused(line: &[&str]) -> Error {
        let error = parse(OsStr::new("tstunnel"), words(line)).expect_err("is refused");
        assert_eq!(error.code, Code::Usage);
        error
    }

    fn page(line: &[&str]) -> String {
        match parsed(line) {
            Command::Print(page) => page,
            other => panic!("{line:?}: {other:?}"),
        }
    }

    fn exec(line: &[&str]) -> Exec {
        match parsed(line) {
            Command::Exec(exec) => exec,
            other => panic!("{line:?}: {other:?}"),
        }
    }

    #[test]
    fn the_name_it_is_started_under_decides() {
        for (name, scp) in [("ssh", false), ("/a/b/ssh", false), ("ssh.exe", false), ("./scp", true), ("scp.exe", true)]
        {
            let expected = if scp { Command::Scp(words(&["-V"])) } else { Command::Ssh(words(&["-V"])) };
            assert_eq!(parse(OsStr::new(name), words(&["-V"])), Ok(expected));
        }
        for name in ["tstunnel", "ssh2", ""] {
            assert!(matches!(parse(OsStr::new(name), words(&["--version"])), Ok(Command::Print(_))));
        }
    }

    #[test]
    fn ssh_scp_and_mutagen_take_their_arguments_untouched() {
        assert_eq!(parsed(&["ssh", "-V", "--", "-h"]), Command::Ssh(words(&["-V", "--", "-h"])));
        assert_eq!(parsed(&["scp"]), Command::Scp(words(&[])));
        let args = ["sync", "create", "--help", "a", "tstunnel://h/p"];
        assert_eq!(parsed(&[&["mutagen"][..], &args].concat()), Command::Mutagen(words(&args)));
        assert!(page(&["mutagen", "--help"]).contains("tstunnel://"));
    }

    #[test]
    fn every_command_has_a_page_in_three_ways() {
        for row in options::COMMANDS.iter().filter(|row| WITH_SERVER || !row.server) {
            let name: Vec<&str> = row.name.split(' ').collect();
            let expected = help::command_help(row);
            assert_eq!(page(&[&name[..], &["--help"]].concat()), expected);
            assert_eq!(page(&[&["help"][..], &name].concat()), expected);
            if row.words != Words::Verbatim {
                assert_eq!(page(&[&name[..], &["-h"]].concat()), expected);
            }
        }
        assert_eq!(page(&["help"]), page(&["--help"]));
        assert!(page(&["-V"]).starts_with("tstunnel 0"));
    }

    #[test]
    fn one_word_is_a_command_line_and_several_are_exact_arguments() {
        let line = exec(&["exec", "h", "uname -s -m"]);
        assert_eq!((line.command.as_str(), line.args), ("uname -s -m", None));
        for same in [&["exec", "h", "--", "grep", "a b", "--", "-x"][..], &["exec", "h", "grep", "a b", "--", "-x"]] {
            let exact = exec(same);
            assert_eq!(exact.command, "grep");
            assert_eq!(exact.args, Some(vec!["a b".to_owned(), "--".to_owned(), "-x".to_owned()]));
        }
        assert_eq!(exec(&["exec", "h", "--", "-odd"]).command, "-odd");
    }

    #[test]
    fn options_of_exec_end_at_its_command() {
        let found =
            exec(&["exec", "--user", "dev", "h", "--raw", "--env=A=1=2", "--env", "B", "ls", "--raw", "--user=x"]);
        assert_eq!(found.overrides.user.as_deref(), Some("dev"));
        assert_eq!(found.env, [("A".to_owned(), Some("1=2".to_owned())), ("B".to_owned(), None)]);
        assert!(found.raw);
        assert_eq!(found.args, Some(vec!["--raw".to_owned(), "--user=x".to_owned()]));
        assert!(!exec(&["exec", "h", "ls", "--help"]).raw);
    }

    #[test]
    fn host_options_become_overrides() {
        let Command::Connect(connect) = parsed(&[
            "connect",
            "--config=c",
            "--endpoint=e:1",
            "--cert=a",
            "--key=b",
            "--ca=d",
            "--upgrade-base=/x",
            "--sni=n",
            "--user=u",
            "--user=v",
            "tstunnel://h?endpoint=e",
            "--target",
            "unix:/run/s",
        ]) else {
            panic!()
        };
        let overrides = Overrides {
            config: Some("c".into()),
            endpoint: Some("e:1".into()),
            cert: Some("a".into()),
            key: Some("b".into()),
            ca: Some("d".into()),
            upgrade_base: Some("/x".into()),
            sni: Some("n".into()),
            user: Some("v".into()),
        };
        let host = "tstunnel://h?endpoint=e".to_owned();
        assert_eq!(connect, Connect { host, overrides, target: Some("unix:/run/s".into()), raw: false });
    }

    #[test]
    fn a_urls_forwarding_is_the_target_of_connect_unless_an_option_says_otherwise() {
        let target = |line: &[&str]| match parsed(&[&["connect"], line].concat()) {
            Command::Connect(connect) => connect.target,
            other => panic!("{other:?}"),
        };
        assert_eq!(target(&["tstunnel://h/tcp:localhost:80?endpoint=e"]).as_deref(), Some("tcp:localhost:80"));
        assert_eq!(target(&["tstunnel://h/tcp:a:1", "--target=unix:/s"]).as_deref(), Some("unix:/s"));
        assert_eq!(target(&["tstunnel://h/home/dev"]), None);
        assert_eq!(target(&["h"]), None);
    }

    #[test]
    fn upload_splits_host_and_name_and_a_urls_path_is_the_name() {
        let upload = |target: &str| match parsed(&["upload", "f", target]) {
            Command::Upload(Upload { file, host, name, mode: None, compress: true, .. }) if file == Path::new("f") => {
                (host, name)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(upload("h"), ("h".to_owned(), None));
        assert_eq!(upload("h:"), ("h".to_owned(), None));
        assert_eq!(upload("h:a:b"), ("h".to_owned(), Some("a:b".to_owned())));
        for (url, name) in [
            ("Tstunnel://h/n?endpoint=e:1", Some("n")),
            ("tstunnel://h/~/a%20b", Some("a b")),
            ("tstunnel://h/a/b", Some("a/b")),
            ("tstunnel://h/", None),
            ("tstunnel://h", None),
        ] {
            assert_eq!(upload(url), (url.to_owned(), name.map(str::to_owned)));
        }
        assert!(refused(&["upload", "f", "tstunnel://h/n?x=1"]).text.contains("unknown parameter"));
        let Command::Upload(found) = parsed(&["upload", "--mode=0755", "--no-compress", "f", "h"]) else { panic!() };
        assert_eq!((found.mode, found.compress), (Some(0o755), false));
        for mode in ["", "9", "+7", "1777", "rwx", "00000000000000000"] {
            let said = parse(OsStr::new("tstunnel"), words(&["upload", "--mode", mode, "f", "h"]));
            assert_eq!(said.is_ok(), mode.len() > 4, "{mode}");
        }
    }

    #[test]
    fn classify_takes_a_negative_exit_status() {
        let expected = Classify { exit_status: Some(-1), json: true };
        assert_eq!(parsed(&["classify", "--json", "--exit-status", "-1"]), Command::Classify(expected));
        assert!(refused(&["classify", "--exit-status", "x"]).text.contains("not an exit status"));
    }

    #[test]
    fn status_is_a_table_unless_json_is_asked_for() {
        assert_eq!(parsed(&["status"]), Command::Status(Status { json: false }));
        assert_eq!(parsed(&["status", "--json"]), Command::Status(Status { json: true }));
    }

    #[cfg(feature = "server")]
    #[test]
    fn the_servers_commands_are_read() {
        let serve = |config: Option<&str>, action| Command::Serve(Serve { config: config.map(Into::into), action });
        assert_eq!(parsed(&["serve", "--config", "s"]), serve(Some("s"), ServeAction::Run));
        assert_eq!(parsed(&["serve", "--check"]), serve(None, ServeAction::Check));
        let question = Question {
            principal: "ann@example.org".into(),
            host: "web".into(),
            command: vec!["ls".into()],
            source: None,
            user: None,
            authorize: false,
        };
        let asks = |more: &[&str]| parsed(&[&["serve", "--check", "--as", "ann@example.org"][..], more].concat());
        assert_eq!(asks(&["web", "ls"]), serve(None, ServeAction::Ask(question.clone())));
        let asked = Question {
            command: ["ls", "-l", "--user", "x"].map(str::to_owned).into(),
            source: Some(std::net::Ipv6Addr::LOCALHOST.into()),
            user: Some("dev".into()),
            authorize: true,
            ..question
        };
        let more = ["--source", "::1", "web", "--user", "dev", "--authorize", "ls", "-l", "--user", "x"];
        assert_eq!(asks(&more), serve(None, ServeAction::Ask(asked)));
        for wrong in [
            &["serve", "web"][..],
            &["serve", "--check", "web", "ls"],
            &["serve", "--check", "--user", "dev"],
            &["serve", "--check", "--source", "::1"],
            &["serve", "--authorize"],
            &["serve", "--as", "ann", "web", "ls"],
            &["serve", "--check", "--as", "ann"],
            &["serve", "--check", "--as", "ann", "web"],
            &["serve", "--check", "--as", "ann", "--source", "here", "web", "ls"],
        ] {
            refused(wrong);
        }
        let pki = |line: &[&str]| match parsed(line) {
            Command::Pki(pki) => pki,
            other => panic!("{other:?}"),
        };
        assert_eq!(pki(&["pki", "init"]), Pki { dir: None, action: PkiAction::Init(None) });
        let names = vec!["a.b".to_owned(), "*.c".to_owned()];
        let server = Pki { dir: Some("d".into()), action: PkiAction::Server(names) };
        assert_eq!(pki(&["pki", "server", "a.b", "--dir=d", "*.c"]), server);
        assert_eq!(pki(&["pki", "client", "spiffe://x/y"]).action, PkiAction::Client("spiffe://x/y".into()));
        assert_eq!(pki(&["pki", "revoke", "c.crt"]).action, PkiAction::Revoke(Some("c.crt".into())));
        assert_eq!(pki(&["pki", "revoke"]).action, PkiAction::Revoke(None));
        assert!(page(&["pki", "--help"]).contains("revoke [NAME]"));
        assert!(page(&["help", "pki"]).contains("revoke [NAME]"));
    }

    #[cfg(not(feature = "server"))]
    #[test]
    fn the_servers_commands_are_refused_in_words() {
        for line in [&["serve"][..], &["pki", "init"], &["pki", "--help"], &["help", "serve"], &["help", "pki"]] {
            assert!(refused(line).text.contains("a client alone"), "{line:?}");
        }
    }

    #[test]
    fn a_misspelt_name_is_answered_with_the_nearest() {
        for (line, meant) in [
            (&["conect", "h"][..], "`connect`"),
            (&["exec", "--usr=x", "h", "ls"], "`--user`"),
            (&["upload", "--mod", "755", "f", "h"], "`--mode`"),
            (&["--versoin"], "`--version`"),
            (&["help", "clasify"], "`classify`"),
        ] {
            let error = refused(line);
            assert!(error.text.starts_with("there is no ") && error.hint().contains(meant), "{line:?}: {error:?}");
        }
        assert!(!refused(&["frobnicate"]).hint().contains("mean"));
    }

    #[test]
    fn what_is_wrong_is_refused_in_words() {
        for (line, said) in [
            (&[][..], "no command"),
            (&["connect"], "needs HOST"),
            (&["connect", "h", "i"], "`i` is one argument too many"),
            (&["exec", "h"], "needs HOST [--] COMMAND"),
            (&["exec", "-x", "h", "ls"], "`-x`"),
            (&["connect", "h", "--raw=yes"], "--raw"),
            (&["connect", "h", "--user"], "--user"),
            (&["exec", "--env", "=x", "h", "ls"], "names no variable"),
            (&["connect", "--env", "A", "h"], "--env"),
            (&["upload", "f"], "needs FILE HOST"),
            (&["classify", "x"], "too many"),
            (&["status", "x"], "too many"),
        ] {
            let error = refused(line);
            assert!(error.text.contains(said), "{line:?}: {error}");
        }
    }

    #[test]
    fn an_argument_that_is_not_utf8_is_refused_where_it_must_be_text() {
        let odd = || OsString::from_vec(b"\xff".to_vec());
        let parse = |line: Vec<OsString>| parse(OsStr::new("tstunnel"), line);
        assert!(parse(vec![odd()]).is_err());
        assert!(parse(vec!["exec".into(), "h".into(), odd()]).is_err_and(|error| error.text.contains("not UTF-8")));
        assert!(parse(vec!["connect".into(), odd()]).is_err());
        assert!(parse(vec!["upload".into(), odd(), "h".into()]).is_ok());
        assert!(parse(vec!["connect".into(), "--cert".into(), odd(), "h".into()]).is_ok());
    }
}
