//! The argv of `ssh(1)` → [`Ssh`]. No I/O.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::keywords::OWN_DIAL;
use super::settings::{AddressFamily, SentEnvironment, SessionType, Settings, not_utf8, usage};
use super::{Destination, Invocation, Letters, Step, port_number};
use crate::config::WeakDefaults;
use crate::error::Result;
use crate::protocol::target::Target;

// `-P TAG` is OpenSSH 9.4's; before, it was a letter without a value that nobody used. `-1` is left out: OpenSSH
// refuses it, and says so better.
const FLAGS: &str = "246AaCfGgKkMNnqsTtVvXxYy";
const VALUED: &str = "BbcDEeFIiJLlmOoPpQRSWw";

/// What `ssh` is to do on a host of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ssh {
    /// The host, with the account and port that count.
    pub destination: Destination,
    /// What to do there.
    pub action: Action,
    /// Time-outs, which a configuration file overrides.
    pub defaults: WeakDefaults,
    /// Which addresses may be dialled.
    pub address_family: AddressFamily,
    /// `BatchMode`: nobody is asked for anything.
    pub batch: bool,
    /// What of the environment goes along.
    pub environment: SentEnvironment,
    /// `-n`: stdin is empty.
    pub stdin_null: bool,
    /// `-v`.
    pub verbose: bool,
}

/// What an `ssh` is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run this command line: the words after the host, joined by single spaces, or `RemoteCommand`.
    Command(String),
    /// `-W`: join stdin and stdout to this target, `tcp:HOST:PORT`.
    Forward(String),
}

/// An `ssh` whose destination is known; whether it can be done is asked of [`ParsedSsh::accept`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedSsh {
    /// The host, with the account and port that count.
    pub destination: Destination,
    settings: Settings,
    verbose: bool,
    forward: Option<OsString>,
    words: Vec<OsString>,
}

/// Parses what follows `ssh`.
pub fn parse_ssh(args: &[OsString]) -> Invocation<ParsedSsh> {
    read(args).map_or(Invocation::Foreign, Invocation::Host)
}

fn read(args: &[OsString]) -> Option<ParsedSsh> {
    let mut letters = Letters::new(args, FLAGS, VALUED);
    let mut settings = Settings::default();
    let (mut verbose, mut forward) = (false, None);
    let mut destination: Option<Destination> = None;
    loop {
        match letters.step() {
            // What names no host, or makes the real ssh print and exit.
            Step::Unknown | Step::Flag(b'G' | b'V') | Step::Value(b'Q', _) => return None,
            Step::Flag(b'v') => verbose = true,
            Step::Flag(letter) => flag(&mut settings, letter),
            Step::Value(b'W', target) => forward = Some(target.to_owned()),
            Step::Value(letter, value) => valued(&mut settings, letter, value),
            // Options are taken up again behind the host, and end at the command, or at a `--` before either.
            Step::Word if destination.is_none() => {
                let found = parse_destination(letters.word()?)?;
                settings.ask_destination(&found);
                destination = Some(found);
                if letters.ended {
                    break;
                }
            }
            Step::Word => break,
        }
    }
    let mut destination = destination?;
    destination.user.clone_from(&settings.user);
    destination.port = settings.port;
    let words = letters.args.to_vec();
    Some(ParsedSsh { destination, settings, verbose, forward, words })
}

fn parse_destination(word: &OsStr) -> Option<Destination> {
    let text = word.to_str()?;
    match text.strip_prefix("ssh://") {
        Some(rest) => Destination::from_uri(rest).filter(|(_, path)| path.is_none()).map(|(found, _)| found),
        None => Destination::split(text),
    }
}

fn flag(settings: &mut Settings, letter: u8) {
    match letter {
        b'4' => settings.address_family = Some(AddressFamily::Inet),
        b'6' => settings.address_family = Some(AddressFamily::Inet6),
        b'C' => settings.compress = Some(true),
        b'f' => {
            settings.fork = Some(true);
            settings.stdin_null = Some(true);
        }
        b'M' => settings.complain(usage(
            "-M asks for a connection to share, which tstunnel does not have",
            "leave it away: every session is a connection of its own",
        )),
        b'N' => settings.session_type = Some(SessionType::None),
        b'n' => settings.stdin_null = Some(true),
        b's' => settings.session_type = Some(SessionType::Subsystem),
        b'T' => settings.terminal = Some(false),
        b't' => settings.terminal = Some(true),
        b'X' | b'Y' => settings.x11 = Some(true),
        b'x' => settings.x11 = Some(false),
        // 2 A a g K k q y: agents, Kerberos, gateway ports, syslog, warnings, of which there are none. They make no difference.
        _ => {}
    }
}

fn valued(settings: &mut Settings, letter: u8, value: &OsStr) {
    match letter {
        b'D' | b'L' | b'R' => settings.ask_forward(),
        b'l' => settings.ask_user(value),
        b'o' => settings.line(value),
        b'p' => settings.ask_port(value),
        b'B' | b'b' => settings.complain(usage(
            format!("-{} asks for a source address, which tstunnel does not choose", char::from(letter)),
            OWN_DIAL,
        )),
        b'J' if !value.eq_ignore_ascii_case("none") => {
            settings.complain(usage("-J asks for a jump host, which tstunnel does not have", OWN_DIAL));
        }
        b'O' => settings.complain(usage(
            "-O asks for control of a shared connection, which tstunnel does not have",
            "leave it away: every session is a connection of its own",
        )),
        b'w' => settings.complain(usage(
            "-w asks for a tunnel device, which tstunnel does not have",
            "forward single ports with `mutagen forward create` or `tstunnel connect`",
        )),
        // c E e F I i m P S: ciphers, a file for messages, escape character, OpenSSH's configuration, keys, tags, a control socket that is
        // not there.
        _ => {}
    }
}

impl ParsedSsh {
    /// Takes the command line for a host of ours.
    ///
    /// # Errors
    /// `usage` where it asks for what a tunnel cannot do, or has a value that OpenSSH would not take either.
    pub fn accept(self) -> Result<Ssh> {
        // -W needs neither terminal nor command, and clears -t, -N and -L as in OpenSSH.
        let mut settings = self.settings;
        if self.forward.is_some() {
            settings.clear_forwards = Some(true);
            settings.terminal = Some(false);
            settings.session_type = None;
        }
        settings.complaint(&self.destination.host)?;
        let action = match self.forward {
            Some(target) => Action::Forward(forward_target(&target)?),
            None => Action::Command(command(self.words, settings.remote_command)?),
        };
        Ok(Ssh {
            destination: self.destination,
            action,
            defaults: settings.defaults,
            address_family: settings.address_family.unwrap_or_default(),
            batch: settings.batch.unwrap_or(false),
            environment: settings.environment,
            stdin_null: settings.stdin_null.unwrap_or(false),
            verbose: self.verbose,
        })
    }
}

fn command(words: Vec<OsString>, remote_command: Option<String>) -> Result<String> {
    let line = OsString::from_vec(words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>().join(&b' '));
    let line = line.into_string().map_err(|line| not_utf8("the command", &line))?;
    match (line.is_empty(), remote_command) {
        (false, Some(_)) => Err(usage(
            "RemoteCommand and a command on the command line exclude each other",
            "leave one of them away, or use `-o RemoteCommand=none`",
        )),
        (false, None) => Ok(line),
        (true, Some(command)) => Ok(command),
        (true, None) => Err(usage(
            "no command is given, and an interactive shell needs a terminal, which tstunnel does not carry",
            "give a command, as in `ssh HOST uname -a`",
        )),
    }
}

/// `HOST:PORT` or `[HOST]:PORT` → `tcp:HOST:PORT`; an IPv6 address keeps its brackets.
fn forward_target(text: &OsStr) -> Result<String> {
    let target = text.to_str().and_then(|text| {
        let (host, port) = text.rsplit_once(':')?;
        let port = port_number(port)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let inner = bare.unwrap_or(host);
        match (inner.is_empty() || inner.contains(['[', ']', '/']), inner.contains(':'), bare.is_some()) {
            (false, true, true) => Some(format!("tcp:[{inner}]:{port}")),
            (false, false, _) => Some(format!("tcp:{inner}:{port}")),
            _ => None,
        }
    });
    let wrong = |why: &str| usage(format!("`{}` in -W {why}", text.display()), "write -W HOST:PORT");
    let target = target.ok_or_else(|| wrong("is not HOST:PORT"))?;
    Target::parse(&target).map_err(|why| wrong(&format!("is no target: {why}")))?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn args(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    fn parsed(words: &[&str]) -> ParsedSsh {
        match parse_ssh(&args(words)) {
            Invocation::Host(parsed) => parsed,
            Invocation::Foreign => panic!("{words:?} is foreign"),
        }
    }

    fn accepted(words: &[&str]) -> Ssh {
        parsed(words).accept().unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    fn refused(words: &[&str]) -> String {
        let error = parsed(words).accept().expect_err("is refused");
        assert_eq!(error.code, crate::error::Code::Usage);
        error.text
    }

    fn place(words: &[&str]) -> (Option<String>, String, Option<u16>) {
        let Destination { user, host, port } = parsed(words).destination;
        (user, host, port)
    }

    fn is_command(ssh: &Ssh, line: &str) -> bool {
        ssh.action == Action::Command(line.to_owned())
    }

    #[test]
    fn mutagens_session_is_parsed() {
        let agent = ".mutagen/agents/0.18.1/mutagen-agent synchronizer --log-level=info";
        let ssh =
            accepted(&["-oConnectTimeout=5", "-oServerAliveInterval=10", "-oServerAliveCountMax=1", "dev@h7", agent]);
        assert_eq!(ssh.destination, Destination { user: Some("dev".into()), host: "h7".into(), port: None });
        assert!(is_command(&ssh, agent));
        assert_eq!(ssh.defaults.connect_timeout, Some(Duration::from_secs(5)));
        assert_eq!(ssh.defaults.alive_interval, Some(Duration::from_secs(10)));
        assert_eq!(ssh.defaults.alive_count, Some(1));
        let with_port = place(&["-oConnectTimeout=5", "-oServerAliveInterval=10", "-p", "2222", "h7", "uname -s -m"]);
        assert_eq!(with_port, (None, "h7".into(), Some(2222)));
    }

    #[test]
    fn a_host_is_taken_as_mutagen_hands_it_over() {
        for host in ["my host", "h'\"q", "a;b|c%d#e[f]$g", "UPPER", "höst", "a/b", "ssh:", "h+1a2b"] {
            assert_eq!(place(&["-oConnectTimeout=5", host, "x"]).1, host);
            let with_user = format!("me@{host}");
            assert_eq!(place(&[&with_user, "x"]), (Some("me".into()), host.into(), None));
        }
    }

    #[test]
    fn rsyncs_call_is_parsed() {
        let ssh = accepted(&["-l", "dev", "h7", "rsync", "--server", "-vlogDtpre.iLsfxCIvu", ".", "dest"]);
        assert_eq!(ssh.destination, Destination { user: Some("dev".into()), host: "h7".into(), port: None });
        assert!(is_command(&ssh, "rsync --server -vlogDtpre.iLsfxCIvu . dest"));
        assert!(!ssh.verbose);
    }

    #[test]
    fn gits_calls_are_parsed() {
        let ssh = accepted(&["-o", "SendEnv=GIT_PROTOCOL", "-p", "2222", "git@h7", "git-upload-pack 'repo'"]);
        assert_eq!(ssh.destination, Destination { user: Some("git".into()), host: "h7".into(), port: Some(2222) });
        assert!(is_command(&ssh, "git-upload-pack 'repo'"));
        assert_eq!(ssh.environment.patterns, ["GIT_PROTOCOL"]);
        assert!(is_command(&accepted(&["git@h7", "git-receive-pack 'repo'"]), "git-receive-pack 'repo'"));
        assert_eq!(parse_ssh(&args(&["-G", "git@h7"])), Invocation::Foreign);
        assert_eq!(parse_ssh(&args(&["-o", "SendEnv=GIT_PROTOCOL", "-G", "h7"])), Invocation::Foreign);
    }

    #[test]
    fn dockers_call_is_parsed() {
        let words =
            ["-o", "ConnectTimeout=30", "-T", "-l", "dev", "-p", "22", "--", "h7", "docker", "system", "dial-stdio"];
        let ssh = accepted(&words);
        assert_eq!(ssh.destination, Destination { user: Some("dev".into()), host: "h7".into(), port: Some(22) });
        assert!(is_command(&ssh, "docker system dial-stdio"));
        assert_eq!(ssh.defaults.connect_timeout, Some(Duration::from_secs(30)));
    }

    #[test]
    fn options_go_on_behind_the_host_until_the_command() {
        assert_eq!(place(&["h7", "-p", "22", "-l", "dev", "cmd", "-v"]), (Some("dev".into()), "h7".into(), Some(22)));
        let ssh = accepted(&["-v", "h7", "-vq", "cmd", "-v", "-p", "1"]);
        assert!(is_command(&ssh, "cmd -v -p 1"));
        assert!(ssh.verbose);
        assert!(is_command(&accepted(&["h7", "--", "-x", "y"]), "-x y"));
        assert!(is_command(&accepted(&["--", "h7", "-x", "y"]), "-x y"));
        assert!(is_command(&accepted(&["h7", "a  b", "", "c"]), "a  b  c"));
    }

    #[test]
    fn the_first_account_and_port_count() {
        assert_eq!(place(&["-l", "a", "b@h"]).0.as_deref(), Some("a"));
        assert_eq!(place(&["b@h", "-l", "a"]).0.as_deref(), Some("b"));
        assert_eq!(place(&["-p", "1", "-oPort=2", "ssh://b@h:3/"]), (Some("b".into()), "h".into(), Some(1)));
        assert_eq!(place(&["ssh://[::1]:3", "-p1"]), (None, "::1".into(), Some(3)));
        assert_eq!(place(&["a@b@h"]), (Some("a@b".into()), "h".into(), None));
    }

    #[test]
    fn what_names_no_host_or_is_not_opensshs_is_foreign() {
        for words in [
            &["-V"][..],
            &[],
            &["-Q", "cipher"],
            &["-Qcipher", "h"],
            &["-G", "h"],
            &["h", "-V"],
            &["-vV", "h", "cmd"],
            &["--help"],
            &["-z", "h"],
            &["-1", "h"],
            &["h", "-z", "cmd"],
            &["-p"],
            &["h", "-p"],
            &[""],
            &["@h", "cmd"],
            &["u@", "cmd"],
            &["--", "-h"],
            &["ssh://h/path", "cmd"],
            &["ssh://h:x"],
            &["-T", "--"],
        ] {
            assert_eq!(parse_ssh(&args(words)), Invocation::Foreign, "{words:?}");
        }
        assert!(matches!(parse_ssh(&args(&["h", "cmd", "-V", "-z"])), Invocation::Host(_)));
    }

    #[test]
    fn an_argument_that_is_not_utf8_does_not_panic() {
        let odd = OsString::from_vec(b"\xff".to_vec());
        let odd_option = OsString::from_vec(b"-l\xff".to_vec());
        let odd_letter = OsString::from_vec(b"-\xff".to_vec());
        let call = |words: &[&OsString]| parse_ssh(&words.iter().map(|word| (*word).clone()).collect::<Vec<_>>());
        let host = OsString::from("h7");
        assert_eq!(call(&[&odd]), Invocation::Foreign);
        assert_eq!(call(&[&odd_letter, &host]), Invocation::Foreign);
        for words in [&[&host, &odd][..], &[&odd_option, &host, &host], &[&OsString::from("-o"), &odd, &host, &host]] {
            let Invocation::Host(parsed) = call(words) else { panic!("{words:?}") };
            assert!(parsed.accept().expect_err("is refused").text.contains("not UTF-8"));
        }
        let Invocation::Host(parsed) = call(&[&OsString::from("-i"), &odd, &host, &host]) else { panic!() };
        assert!(parsed.accept().is_ok());
    }

    #[test]
    fn what_makes_no_difference_is_accepted() {
        let all = "-2AaCgKkqTxyn -i id -c aes128-ctr -m hmac-sha2-256 -e none -I lib.so -P tag -S none -F none -E log -J none";
        let words: Vec<&str> = all.split(' ').chain(["h", "cmd"]).collect();
        let ssh = accepted(&words);
        assert!(ssh.stdin_null && !ssh.verbose);
        assert_eq!(accepted(&["-4", "h", "c"]).address_family, AddressFamily::Inet);
        assert_eq!(accepted(&["-46", "h", "c"]).address_family, AddressFamily::Inet6);
        assert_eq!(accepted(&["-oAddressFamily=inet6", "h", "c"]).address_family, AddressFamily::Inet6);
    }

    #[test]
    fn what_a_tunnel_cannot_do_is_refused_only_once_the_host_is_ours() {
        for (option, word) in [
            ("-t", "terminal"),
            ("-tt", "terminal"),
            ("-X", "X11"),
            ("-Y", "X11"),
            ("-L8080:localhost:80", "forwarded ports"),
            ("-R8080:localhost:80", "forwarded ports"),
            ("-D1080", "forwarded ports"),
            ("-w0:0", "tunnel device"),
            ("-N", "without a command"),
            ("-f", "background"),
            ("-M", "share"),
            ("-Oexit", "shared connection"),
            ("-Jbastion", "jump host"),
            ("-b10.0.0.1", "source address"),
            ("-Beth0", "source address"),
            ("-s", "subsystem"),
            ("-oFoo=bar", "bad configuration option: Foo"),
            ("-p0", "not a port"),
            ("-Wnowhere", "not HOST:PORT"),
        ] {
            assert!(refused(&[option, "h7", "cmd"]).contains(word), "{option}");
            assert!(refused(&["h7", option, "cmd"]).contains(word), "{option}");
        }
        assert!(refused(&["h7", "-s", "sftp"]).contains("subsystem"));
    }

    #[test]
    fn a_later_letter_takes_an_earlier_one_back() {
        accepted(&["-t", "-T", "h", "cmd"]);
        accepted(&["-X", "-x", "h", "cmd"]);
        accepted(&["-T", "-oRequestTTY=force", "h", "cmd"]);
        assert!(refused(&["-T", "-t", "h", "cmd"]).contains("terminal"));
    }

    #[test]
    fn a_session_without_a_command_is_refused() {
        for words in [&["h7"][..], &["-T", "h7"], &["h7", ""], &["-oRemoteCommand=none", "h7"]] {
            assert!(refused(words).contains("an interactive shell needs a terminal"), "{words:?}");
        }
    }

    #[test]
    fn remote_command_is_a_command() {
        assert!(is_command(&accepted(&["-oRemoteCommand=echo \"a  b\"", "h"]), "echo \"a  b\""));
        assert!(refused(&["-oRemoteCommand=ls", "h", "pwd"]).contains("exclude each other"));
    }

    #[test]
    fn stdio_forwarding_is_a_target() {
        let target = |text: &str| accepted(&["-tN", "-D1080", "-W", text, "h7"]).action;
        assert_eq!(target("localhost:22"), Action::Forward("tcp:localhost:22".to_owned()));
        assert_eq!(target("[::1]:22"), Action::Forward("tcp:[::1]:22".to_owned()));
        assert_eq!(target("[db.lab]:5432"), Action::Forward("tcp:db.lab:5432".to_owned()));
        for bad in ["", ":22", "22", "h:", "h:0", "h:x", "::1:22", "[]:22", "/run/s:1", "[h:22"] {
            assert!(refused(&["-W", bad, "h7"]).contains("not HOST:PORT"), "{bad}");
        }
        assert!(refused(&["-W", "127.1:22", "h7"]).contains("a whole IPv4 address"));
    }
}
