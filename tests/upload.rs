//! `tstunnel upload` as a person and a script see it: a bar at a terminal, silence in a pipe, and stdin as the content.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use support::process::run as succeed;
use support::remote::{Remote, Setup, Transport};
use support::serve::TSTUNNEL;
use support::tree::noise;
use support::user::User;
use support::wait::{SOON, wait_until};
use support_net::fake::{finish, upload_server};
use support_net::report::fails;
use support_net::site::{HOST, SERVER_NAME, Site};

fn setup() -> Setup {
    Setup::new(Transport::Tstunnel).with_any_command()
}

/// Somebody who knows `remote`, at a terminal of a kind where they are at one.
fn user_of(remote: &Remote, terminal: &str) -> User {
    let mut variables: Vec<(&'static str, OsString)> = remote.environment();
    variables.push(("TERM", terminal.into()));
    User::with(variables)
}

/// What a person at a terminal is shown of `tstunnel upload WORDS`, which succeeds.
#[track_caller]
fn at_terminal(user: &User, words: &str) -> String {
    let line = format!("exec {TSTUNNEL} upload {words}");
    let output = user.run("script").args(["-q", "-e", "-c", &line, "/dev/null"]).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{shown}");
    shown
}

/// The same without a terminal, which writes nothing to stdout; with what it says on stderr.
#[track_caller]
fn in_pipe(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{said}");
    said
}

fn upload(user: &User, words: &[&str]) -> Command {
    user.tstunnel(["upload"].iter().chain(words))
}

fn mode(remote: &Remote, name: &str) -> u32 {
    fs::metadata(remote.home().join(name)).unwrap().permissions().mode() & 0o777
}

#[track_caller]
fn assert_refused(output: &Output, status: i32, said: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("tstunnel: error[") && stderr.contains(said), "{stderr}");
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
    assert_eq!(output.status.code(), Some(status));
}

#[test]
fn a_terminal_shows_a_bar_with_the_rate_and_the_time_left() {
    let remote = setup().start();
    let user = user_of(&remote, "xterm");
    fs::create_dir(user.home().join("in")).unwrap();
    for (options, name, seed) in [("", "a", 10), ("--no-compress", "b", 11)] {
        let bytes = noise(3_000_000, seed);
        fs::write(user.home().join("in/file\u{1b}[31m"), &bytes).unwrap();
        let shown = at_terminal(&user, &format!("{options} in/file* host123:{name}"));
        assert!(fs::read(remote.home().join(name)).unwrap() == bytes);
        for part in ["file\\u{1b}[31m", "100%", "[====", "2.86 MiB", "iB/s", "s left", "iB/s in "] {
            assert!(shown.contains(part), "{part}: {shown:?}");
        }
        assert!(!shown.contains("tstunnel: "), "{shown:?}");
    }
}

#[test]
fn without_a_terminal_that_can_show_it_there_is_no_bar() {
    let remote = setup().start();
    let user = user_of(&remote, "dumb");
    fs::write(user.home().join("file"), noise(3_000_000, 2)).unwrap();
    assert_eq!(at_terminal(&user, "file host123"), "");
    let user = user_of(&remote, "xterm");
    fs::write(user.home().join("file"), noise(3_000_000, 3)).unwrap();
    assert_eq!(in_pipe(&mut upload(&user, &["file", "host123"])), "");
}

#[test]
fn what_the_host_had_already_is_told_to_a_person_alone() {
    let remote = setup().start();
    let user = user_of(&remote, "xterm");
    fs::write(user.home().join("file"), noise(100_000, 4)).unwrap();
    assert!(!at_terminal(&user, "file host123:a").contains("had this content"));
    assert!(at_terminal(&user, "file host123:b").contains("tstunnel: host123 had this content already"));
    assert_eq!(in_pipe(&mut upload(&user, &["file", "host123:c"])), "");
}

#[test]
fn an_upload_that_goes_on_says_so_wherever_it_is() {
    let remote = setup().behind_relay().start();
    remote.relay().cut_after(Some(3_000_000));
    let user = user_of(&remote, "xterm");
    let bytes = noise(8_000_000, 5);
    fs::write(user.home().join("file"), &bytes).unwrap();
    let says = |said: &str| {
        said.contains("tstunnel: the upload was interrupted and goes on at 2.") && said.contains(" of 7.63 MiB (")
    };
    let said = in_pipe(&mut upload(&user, &["file", "host123:piped"]));
    assert!(says(&said) && said.lines().all(|line| line.starts_with("tstunnel: the upload was interrupted")), "{said}");
    assert!(fs::read(remote.home().join("piped")).unwrap() == bytes);
    fs::write(user.home().join("other"), noise(8_000_000, 6)).unwrap();
    let shown = at_terminal(&user, "other host123:shown");
    assert!(says(&shown) && shown.contains("100%"), "{shown:?}");
    assert!(fs::read(remote.home().join("shown")).unwrap() == noise(8_000_000, 6));
}

#[test]
fn an_upload_that_cannot_go_on_says_so_and_not_only_that_nobody_is_there() {
    let remote = setup().behind_relay().with_client_setting("resume = \"1s\"").start();
    // So that it takes more than three seconds, by the pauses alone.
    remote.relay().cut_after(Some(1_000_000));
    let user = user_of(&remote, "xterm");
    File::create(user.home().join("file")).unwrap().set_len(64 << 20).unwrap();
    let output = thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("it is under way", SOON, || !remote.names_in_home(".tstunnel-part-").is_empty());
            remote.relay().refuse(true);
        });
        upload(&user, &["--no-compress", "file", "host123:there"]).output().unwrap()
    });
    assert_refused(
        &output,
        1,
        "[network-lost]: the upload to host123 broke off and could not go on within 1 s; last: ",
    );
}

#[test]
fn an_upload_goes_on_that_a_server_has_given_up_for_the_silence_of_the_network() {
    let remote = setup().behind_relay().with_limit("body_idle_timeout = \"3s\"").start();
    let user = user_of(&remote, "xterm");
    let file = File::create(user.home().join("file")).unwrap();
    file.set_len(512 << 20).unwrap();
    let said = thread::scope(|scope| {
        scope.spawn(|| {
            let written = |name: &String| fs::metadata(remote.home().join(name)).is_ok_and(|part| part.len() > 0);
            wait_until("it is under way", SOON, || remote.names_in_home(".tstunnel-part-").iter().any(written));
            remote.relay().hold(true);
            wait_until("the server gives it up", SOON, || {
                remote.server().log().contains("the body did not come in time")
            });
            remote.relay().hold(false);
        });
        in_pipe(&mut upload(&user, &["--no-compress", "file", "host123:there"]))
    });
    assert_eq!(said.matches("the upload was interrupted and goes on at ").count(), 1, "{said}");
    assert_eq!(fs::metadata(remote.home().join("there")).unwrap().len(), 512 << 20);
}

#[test]
fn an_upload_goes_on_however_long_after_an_interruption_it_is_interrupted_again() {
    let patience = "resume = \"3s\"";
    let limit = "body_idle_timeout = \"4s\"";
    let remote = setup().behind_relay().with_client_setting(patience).with_limit(limit).start();
    let user = user_of(&remote, "xterm");
    File::create(user.home().join("file")).unwrap().set_len(512 << 20).unwrap();
    let held = || {
        let length = |name: &String| fs::metadata(remote.home().join(name)).map_or(0, |part| part.len());
        remote.names_in_home(".tstunnel-part-").iter().map(length).max().unwrap_or(0)
    };
    let said = thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("it is under way", SOON, || held() > 1 << 20);
            remote.relay().reset();
            wait_until("it goes on", SOON, || remote.server().records("upload").len() == 2);
            // A network that makes it wait for longer than the client is patient.
            remote.relay().hold(true);
            wait_until("the server gives it up", SOON, || {
                remote.server().log().contains("the body did not come in time")
            });
            remote.relay().hold(false);
        });
        in_pipe(&mut upload(&user, &["--no-compress", "file", "host123:there"]))
    });
    assert_eq!(said.matches("the upload was interrupted and goes on at ").count(), 2, "{said}");
    assert_eq!(fs::metadata(remote.home().join("there")).unwrap().len(), 512 << 20);
}

#[test]
fn a_server_does_not_wait_for_a_file_to_be_read() {
    let limits = ["head_timeout = \"400ms\"", "max_upload_bytes = 1000"];
    let remote = limits.iter().fold(setup().behind_relay(), |setup, limit| setup.with_limit(limit)).start();
    let user = user_of(&remote, "xterm");
    // Nothing that takes less time to read than a server waits.
    File::create(user.home().join("file")).unwrap().set_len(1 << 30).unwrap();
    let before = remote.relay().accepted();
    let output = upload(&user, &["--no-compress", "file", "host123:there"]).output().unwrap();
    assert_refused(&output, 1, "error[bad-request]: the file is larger than ");
    assert!(remote.relay().accepted() - before > 1);
}

#[test]
fn a_file_that_grows_is_uploaded_as_it_was_when_it_was_read() {
    let remote = setup().start();
    let user = user_of(&remote, "xterm");
    let mut file = File::create(user.home().join("log")).unwrap();
    file.set_len(64 << 20).unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    let has_ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !has_ended.load(Ordering::Relaxed) {
                file.write_all(b"another line\n").unwrap();
                thread::sleep(Duration::from_micros(100));
            }
        });
        let output = upload(&user, &["log", "host123"]).output();
        has_ended.store(true, Ordering::Relaxed);
        assert!(output.as_ref().unwrap().status.success(), "{output:?}");
    });
    let (grown, there) = (fs::read(user.home().join("log")).unwrap(), fs::read(remote.home().join("log")).unwrap());
    assert!(there.len() >= 64 << 20 && grown.starts_with(&there), "{} of {}", there.len(), grown.len());
}

#[test]
fn a_pipe_that_nobody_writes_to_is_refused_as_no_regular_file() {
    let remote = setup().start();
    let user = user_of(&remote, "xterm");
    succeed(Command::new("mkfifo").arg(user.home().join("pipe")));
    let said = fails(&mut upload(&user, &["pipe", "host123"]), 2, "usage");
    assert!(said.contains("cannot read pipe: it is not a regular file"), "{said}");
}

/// The system says that a file of /proc has no bytes.
#[test]
fn a_file_is_uploaded_whole_whatever_the_system_says_of_its_size() {
    let remote = setup().start();
    let user = user_of(&remote, "xterm");
    assert_eq!(in_pipe(&mut upload(&user, &["/proc/version", "host123:version"])), "");
    assert_eq!(fs::read(remote.home().join("version")).unwrap(), fs::read("/proc/version").unwrap());
}

#[test]
fn stdin_is_uploaded_under_the_name_that_is_given() {
    let remote = setup().start();
    let user = user_of(&remote, "xterm");
    for (name, bytes) in [("empty", Vec::new()), ("small", b"a\0b".to_vec()), ("large", noise(5_000_000, 7))] {
        let file = user.home().join("source");
        fs::write(&file, &bytes).unwrap();
        let mut command = upload(&user, &["-", &format!("host123:{name}")]);
        assert_eq!(in_pipe(command.stdin(File::open(&file).unwrap())), "");
        assert!(fs::read(remote.home().join(name)).unwrap() == bytes, "{name}");
        assert_eq!(mode(&remote, name), 0o600);
    }
    assert_eq!(fs::read_dir(user.home().join("../tmp")).unwrap().count(), 0);
    let url = remote.tunnel_url("/by%20url");
    let script = format!("(printf one; exec printf two) | {TSTUNNEL} upload --mode 0640 - '{url}'");
    assert_eq!(in_pipe(user.run("sh").args(["-c", &script])), "");
    assert_eq!(fs::read_to_string(remote.home().join("by url")).unwrap(), "onetwo");
    assert_eq!(mode(&remote, "by url"), 0o640);
    fs::write(user.home().join("-"), "a file").unwrap();
    in_pipe(&mut upload(&user, &["./-", "host123"]));
    assert_eq!(fs::read_to_string(remote.home().join("-")).unwrap(), "a file");
}

#[test]
fn stdin_goes_on_after_an_interruption_too() {
    let remote = setup().behind_relay().start();
    remote.relay().cut_after(Some(3_000_000));
    let user = user_of(&remote, "xterm");
    let bytes = noise(8_000_000, 8);
    fs::write(user.home().join("source"), &bytes).unwrap();
    let mut command = upload(&user, &["-", "host123:name"]);
    let said = in_pipe(command.stdin(File::open(user.home().join("source")).unwrap()));
    assert!(said.contains("goes on at "), "{said}");
    assert!(fs::read(remote.home().join("name")).unwrap() == bytes);
}

#[test]
fn stdin_without_a_name_or_a_place_is_refused_before_anything_is_sent() {
    let remote = setup().start();
    let user = user_of(&remote, "xterm");
    for target in ["host123", "host123:", &remote.tunnel_url(""), &remote.tunnel_url("/")] {
        assert_refused(&upload(&user, &["-", target]).output().unwrap(), 2, "stdin has no name of its own");
    }
    let output = upload(&user, &["-", "host123:x"]).env("TMPDIR", "/no/such/folder").output().unwrap();
    assert_refused(&output, 1, "error[config]: stdin cannot be kept in /no/such/folder");
    let mut unreadable = upload(&user, &["-", "host123:x"]);
    assert_refused(&unreadable.stdin(File::open("/").unwrap()).output().unwrap(), 2, "cannot read stdin");
    assert!(remote.names_in_home("x").is_empty());
}

/// How much is sent to servers that close: more than the system holds of it.
const LARGE: u64 = 16 << 20;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Where a server closes its connection properly.
#[derive(Clone, Copy, Debug)]
enum Closing {
    /// It has asked for the body and taken some of it.
    InTheMiddle,
    /// The same, but it asked only after some had come unasked.
    HavingAskedLate,
    /// It has all, and gives no answer.
    BeforeTheAnswer,
}

/// A server that closes the first `times` uploads, and takes the next one.
fn closing_server(site: &Site, closing: Closing, times: usize) -> SocketAddr {
    let uploads = AtomicUsize::new(0);
    upload_server(&site.servers.server(&[SERVER_NAME]), move |tls, head| {
        if head.starts_with("HEAD ") {
            tls.write_all(b"HTTP/1.1 204 No Content\r\nUpload-Offset: 0\r\n\r\n")?;
            return finish(tls);
        }
        let number = uploads.fetch_add(1, Ordering::SeqCst);
        // Whoever knows that this is a tstunnel server may meet it while it stops.
        if number > 0 && number < times {
            return finish(tls);
        }
        if number > 0 || !matches!(closing, Closing::HavingAskedLate) {
            tls.write_all(CONTINUE)?;
        }
        let is_whole = number > 0 || matches!(closing, Closing::BeforeTheAnswer);
        io::copy(&mut tls.take(if is_whole { LARGE } else { 1 }), &mut io::sink())?;
        if number >= times {
            tls.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")?;
        } else if matches!(closing, Closing::HavingAskedLate) {
            tls.write_all(CONTINUE)?;
        }
        finish(tls)
    })
}

#[test]
fn an_upload_that_the_server_closes_goes_on_or_is_a_lost_network() {
    let site = Site::new();
    let file = site.root.join("file");
    File::create(&file).unwrap().set_len(LARGE).unwrap();
    let words = ["upload", "--no-compress", file.to_str().unwrap(), HOST];
    for closing in [Closing::InTheMiddle, Closing::HavingAskedLate, Closing::BeforeTheAnswer] {
        site.configure(closing_server(&site, closing, 3), "");
        let said = in_pipe(&mut site.tstunnel(&words));
        assert_eq!(said.matches("the upload was interrupted and goes on at 0").count(), 3, "{closing:?}: {said}");
        site.configure(closing_server(&site, closing, 1), "resume = false");
        assert_refused(&site.tstunnel(&words).output().unwrap(), 1, "error[network-lost]: ");
    }
}
