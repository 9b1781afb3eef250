//! Keys with a passphrase: who is asked for it, by the real Mutagen too, and when nobody is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags, open};
use rustix::termios::{LocalModes, tcgetattr};
use support::mutagen::Daemon;
use support::process::{self, Signal, program};
use support::relay::Relay;
use support::remote::{Setup, Transport};
use support::script;
use support::serve::TSTUNNEL;
use support::wait::{SOON, wait_until};
use support_net::child::{Watched, run};
use support_net::report::fails;
use support_net::site::{HOST, Plan, Site, text};

const PASSPHRASE: &str = "correct horse";

/// Gives the key in a file the passphrase.
fn encrypt(key: &Path) {
    let plain = key.with_extension("plain");
    fs::rename(key, &plain).unwrap();
    let mut command = Command::new(program("openssl"));
    command.args(["pkcs8", "-topk8", "-passout", &format!("pass:{PASSPHRASE}"), "-in"]).arg(&plain);
    process::run(command.arg("-out").arg(key));
    fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::remove_file(plain).unwrap();
}

/// A site that runs every command, for a client whose key has the passphrase.
fn site() -> Site {
    let site = Site::start(&Plan::any());
    encrypt(&site.root.join("client.key"));
    site
}

/// A program that answers in the user's place: notes the prompt, then does `body`.
fn askpass(site: &Site, body: &str) -> PathBuf {
    let path = site.root.join("askpass");
    script::write(&path, &format!("printf '%s\\n' \"$1\" >>'{}'\n{body}", text(&site.root.join("asked"))));
    path
}

fn asked(site: &Site) -> Vec<String> {
    let asked = fs::read_to_string(site.root.join("asked")).unwrap_or_default();
    asked.lines().map(str::to_owned).collect()
}

/// A command without a terminal, whatever this test has.
fn detached(site: &Site, askpass: Option<&Path>, require: &str) -> Command {
    detached_as(site, &["exec", HOST, "--", "echo there"], askpass, require)
}

fn detached_as(site: &Site, words: &[&str], askpass: Option<&Path>, require: &str) -> Command {
    let mut command = site.command(program("setsid"));
    command.args(["--wait", TSTUNNEL]).args(words);
    if let Some(askpass) = askpass {
        command.env("SSH_ASKPASS", askpass).env("SSH_ASKPASS_REQUIRE", require);
    }
    command
}

/// A shell's `line` on a terminal of its own.
fn on_terminal(site: &Site, line: &str) -> Command {
    let mut command = site.command(program("script"));
    command.args(["-q", "-e", "-c", line, "/dev/null"]).env("SHELL", "/bin/sh").stdin(Stdio::piped());
    command
}

/// Whether what is typed on the terminal of a session's program shows there.
fn echoes(session: &Watched) -> bool {
    let stdins = process::descendants(session.id()).into_iter().map(|process| format!("/proc/{}/fd/0", process.pid));
    let mut terminals = stdins.filter_map(|path| open(path, OFlags::RDONLY | OFlags::NOCTTY, Mode::empty()).ok());
    let modes = terminals.find_map(|terminal| tcgetattr(terminal).ok());
    modes.is_none_or(|modes| modes.local_modes.contains(LocalModes::ECHO))
}

#[test]
fn the_program_of_ssh_askpass_is_asked_once_and_for_redials_too() {
    let site = site();
    let relay = Relay::to(site.address());
    site.configure(relay.address(), "");
    let askpass = askpass(&site, &format!("echo '{PASSPHRASE}'"));
    let mut command = site.exec(&["echo first; cat"]);
    command.env("SSH_ASKPASS", askpass).env("SSH_ASKPASS_REQUIRE", "force").env("TSTUNNEL_LOG", "info");
    let mut session = Watched::start(command.stdin(Stdio::piped()));
    session.wait_for_output("first\n");
    relay.reset();
    wait_until("the session was resumed", SOON, || session.stderr().contains("resumed milliseconds="));
    session.write(b"second\n");
    session.wait_for_output("second\n");
    assert!(!session.wait().ok().stderr.contains(PASSPHRASE));
    assert_eq!(asked(&site), [format!("Enter passphrase for key '{}': ", text(&site.root.join("client.key")))]);
}

#[test]
fn the_program_is_asked_as_ssh_asks_it() {
    for (require, display, is_asked) in [
        ("force", None, true),
        ("never", Some(":0"), false),
        ("prefer", None, false),
        ("", Some(":0"), true),
        ("", None, false),
    ] {
        let site = site();
        let askpass = askpass(&site, &format!("echo '{PASSPHRASE}'"));
        let mut command = detached(&site, Some(&askpass), require);
        command.envs(display.map(|display| ("DISPLAY", display)));
        if is_asked {
            assert_eq!(run(&mut command).ok().text(), "there\n", "{require}, {display:?}");
        } else {
            let said = fails(&mut command, 255, "config");
            assert!(said.contains("there is neither a terminal nor a program"), "{said}");
        }
        assert_eq!(asked(&site).len(), usize::from(is_asked), "{require}, {display:?}");
    }
}

#[test]
fn where_nobody_can_answer_nobody_is_asked() {
    let site = site();
    let said = fails(&mut detached(&site, None, ""), 255, "config");
    assert!(said.contains("the key's passphrase is needed, and could not be asked for"), "{said}");
}

#[test]
fn in_batch_mode_nobody_is_asked() {
    let site = site();
    let askpass = askpass(&site, &format!("echo '{PASSPHRASE}'"));
    let file = site.local_file("file", b"contents");
    let target = format!("{HOST}:file");
    for words in [["ssh", "-oBatchMode=yes", HOST, "echo there"], ["scp", "-B", text(&file), &target]] {
        let said = fails(&mut detached_as(&site, &words, Some(&askpass), "force"), 255, "config");
        assert!(said.contains("could not be asked for: BatchMode"), "{said}");
    }
    assert_eq!(asked(&site).len(), 0);
    let words = ["ssh", "-oBatchMode=no", "-oBatchMode=yes", HOST, "echo there"];
    assert_eq!(run(&mut detached_as(&site, &words, Some(&askpass), "force")).ok().text(), "there\n");
}

#[test]
fn whoever_answers_late_is_connected_all_the_same() {
    let site = Site::start(&Plan::any().limit("handshake_timeout = \"4s\""));
    encrypt(&site.root.join("client.key"));
    let answer = site.root.join("answer");
    let waits = format!("until [ -e '{0}' ]; do :; done; cat '{0}'", text(&answer));
    let askpass = askpass(&site, &waits);
    let session = Watched::start(&mut detached(&site, Some(&askpass), "force"));
    wait_until("the server has given the connection up", SOON, || {
        site.server_log().contains("the handshake did not end in time")
    });
    let draft = site.local_file("draft", PASSPHRASE.as_bytes());
    fs::rename(draft, answer).unwrap();
    assert_eq!(session.wait().ok().text(), "there\n");
}

#[test]
fn a_wrong_passphrase_is_asked_for_three_times() {
    let site = site();
    let said = fails(&mut detached(&site, Some(&askpass(&site, "echo wrong")), "force"), 255, "config");
    assert!(said.contains("wrong three times"), "{said}");
    let asked = asked(&site);
    assert_eq!(asked.len(), 3);
    assert!(asked[2].starts_with("Wrong passphrase, try again for key '"), "{asked:?}");
}

#[test]
fn a_program_that_gives_nothing_usable_is_the_end() {
    for (body, said) in [
        ("exit 1", "gave none (exit status: 1)"),
        ("echo", "none was given"),
        ("yes", "gave none"),
        ("head -c 2000 /dev/zero", "gave too long an answer"),
    ] {
        let site = site();
        let text = fails(&mut detached(&site, Some(&askpass(&site, body)), "force"), 255, "config");
        assert!(text.contains(said), "{body}: {text}");
        assert_eq!(asked(&site).len(), 1, "{body}");
    }
    let site = site();
    let text = fails(&mut detached(&site, Some(Path::new("/does/not/exist")), "force"), 255, "config");
    assert!(text.contains("/does/not/exist cannot be run: "), "{text}");
}

#[test]
fn a_terminal_is_asked_without_an_echo() {
    let site = site();
    let line = format!("'{TSTUNNEL}' exec {HOST} 'echo there'; echo status $?; stty -a");
    let mut session = Watched::start(&mut on_terminal(&site, &line));
    session.wait_for_output("Enter passphrase for key '");
    session.write(b"wrong\n");
    session.wait_for_output("Wrong passphrase, try again");
    session.write(format!("{PASSPHRASE}\n").as_bytes());
    session.wait_for_output("status 0");
    session.wait_for_output(" echo ");
    let shown = session.wait().text();
    assert!(shown.contains("there\r\n") && !shown.contains(PASSPHRASE) && !shown.contains("\nwrong"), "{shown}");
}

#[test]
fn a_signal_finds_the_terminals_echo_as_it_was() {
    let site = site();
    // Whoever runs these tests may have it ignored.
    let client = format!("env --default-signal=INT '{TSTUNNEL}' exec {HOST} 'echo there'");
    let line = format!("trap : INT; {client}; echo status $?; stty -a");
    let mut session = Watched::start(&mut on_terminal(&site, &line));
    session.wait_for_output("Enter passphrase for key '");
    session.write(b"\x03");
    session.wait_for_output("status 130");
    session.wait_for_output(" echo ");
    let shown = session.wait().text();
    assert!(!shown.contains("there"), "{shown}");

    let mut session = Watched::start(&mut on_terminal(&site, &line));
    session.wait_for_output("Enter passphrase for key '");
    let client =
        process::descendants(session.id()).into_iter().find(|process| process.arguments[0] == TSTUNNEL).unwrap();
    client.signal(Signal::TERM);
    session.wait_for_output("status 143");
    session.wait_for_output(" echo ");
}

#[test]
fn who_is_stopped_at_the_prompt_is_asked_again() {
    let site = site();
    let line = format!(
        "set -m; '{TSTUNNEL}' exec {HOST} 'echo there'; echo status $?; stty -a; echo before; fg; echo status $?"
    );
    let mut session = Watched::start(&mut on_terminal(&site, &line));
    session.wait_for_output("Enter passphrase for key '");
    session.write(b"\x1a");
    session.wait_for_output(" echo ");
    session.wait_for_output("before");
    wait_until("it asks again", SOON, || {
        String::from_utf8_lossy(&session.stdout()).matches("Enter passphrase for key '").count() == 2
    });
    session.write(format!("{PASSPHRASE}\n").as_bytes());
    session.wait_for_output("there");
    session.wait_for_output("status 0");
}

#[test]
fn a_server_asks_nobody() {
    let site = site();
    encrypt(&site.root.join("server.key"));
    let askpass = askpass(&site, &format!("echo '{PASSPHRASE}'"));
    let mut command = site.tstunnel(&["serve", "--config", text(&site.root.join("server.toml")), "--check"]);
    let ran = run(command.env("SSH_ASKPASS", askpass).env("SSH_ASKPASS_REQUIRE", "force"));
    assert_eq!(ran.code(), Some(1));
    assert!(ran.stderr.contains("the private key has a passphrase, and nobody is asked for it here"), "{}", ran.stderr);
    assert!(asked(&site).is_empty());
}

#[test]
fn mutagen_asks_its_user_when_a_session_is_created() {
    let remote = Setup::new(Transport::Tstunnel).start();
    encrypt(&remote.folder().join("client.key"));
    let daemon = Daemon::start(&remote);
    let alpha = daemon.folder("alpha");
    fs::create_dir(&alpha).unwrap();
    fs::write(alpha.join("file"), "contents").unwrap();
    let create = daemon.sync_command(&alpha, &remote.url("beta"));
    let words: Vec<&str> =
        std::iter::once(create.get_program()).chain(create.get_args()).map(|word| word.to_str().unwrap()).collect();
    let line = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let mut command = Command::new(program("script"));
    command.args(["-q", "-e", "-c", &line, "/dev/null"]).env_clear();
    command.envs(create.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("SHELL", "/bin/sh");
    command.current_dir(create.get_current_dir().unwrap()).stdin(Stdio::piped());
    let mut session = Watched::start(&mut command);
    let mut answered = 0;
    // An agent that is installed first takes more than one ssh, and each of them asks.
    wait_until("the session is created", SOON * 2, || {
        let prompts = String::from_utf8_lossy(&session.stdout()).matches("Enter passphrase for key '").count();
        // Mutagen turns the echo off behind its prompt.
        if prompts > answered && !echoes(&session) {
            answered = prompts;
            session.write(format!("{PASSPHRASE}\n").as_bytes());
        }
        session.ended().is_some()
    });
    let ran = session.wait();
    assert_eq!(ran.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stdout));
    assert!(answered > 0 && !ran.text().contains(PASSPHRASE));
    wait_until("the file arrives", SOON, || remote.home().join("beta/file").is_file());
}
