//! `tstunnel mutagen`: the real Mutagen takes `tstunnel://` URLs, with a daemon that it starts by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

#[path = "mutagen_urls/at_once.rs"]
mod at_once;
#[path = "mutagen_urls/daemon.rs"]
mod daemon;
#[path = "mutagen_urls/env.rs"]
mod env;
#[path = "mutagen_urls/project.rs"]
mod project;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use serde_json::Value;

use support::mutagen::{programs, text};
use support::port;
use support::process::run;
use support::remote::{Remote, Setup, Transport};
use support::tree::{self, assert_same};
use support::user::User;
use support::wait::{SOON, wait_for};

/// A user who has Mutagen.
fn user() -> User {
    User::with(vec![("TSTUNNEL_MUTAGEN", programs().join("mutagen").into())])
}

fn mutagen(user: &User, arguments: &[&str]) -> Command {
    user.tstunnel(std::iter::once(&"mutagen").chain(arguments))
}

/// The real `mutagen`, as this user runs it without tstunnel.
fn plain_mutagen(user: &User, arguments: &[&str]) -> Command {
    let mut command = user.run(programs().join("mutagen").to_str().unwrap());
    command.args(arguments);
    command
}

/// `sync create`, whose session watches as often as a test wants.
fn sync(user: &User, alpha: &Path, beta: &str) -> Command {
    let alpha = alpha.to_str().unwrap();
    mutagen(user, &["sync", "create", "--no-global-configuration", "--watch-polling-interval=1", alpha, beta])
}

/// The state of every synchronisation session.
fn sessions(user: &User) -> Vec<Value> {
    serde_json::from_str(&run(&mut mutagen(user, &["sync", "list", "--template", "{{json .}}"]))).unwrap()
}

fn remote() -> Remote {
    Setup::new(Transport::Tstunnel).start()
}

fn in_home(remote: &Remote, name: &str) -> String {
    remote.home().join(name).display().to_string()
}

#[track_caller]
fn assert_refused(output: &Output, status: i32, said: &str, hint: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().collect();
    let [error, advice] = lines.as_slice() else { panic!("one line and one hint: {stderr}") };
    assert!(error.starts_with("tstunnel: error[config]: ") && error.contains(said), "{stderr}");
    assert!(advice.starts_with("tstunnel: hint: ") && advice.contains(hint), "{stderr}");
    assert_eq!(output.status.code(), Some(status));
}

#[test]
fn a_fresh_host_is_synchronised_by_a_url_alone() {
    let (user, remote) = (user(), remote());
    let here = user.home().join("tree");
    tree::generate(&here, 50, 1);
    run(&mut sync(&user, &here, &remote.tunnel_url(&in_home(&remote, "tree"))));
    run(&mut mutagen(&user, &["sync", "flush", "--all"]));
    assert!(remote.has_real_agent());
    assert_same(&here, &remote.home().join("tree"));
}

#[test]
fn a_fresh_host_is_forwarded_to_by_a_url_alone() {
    let (user, remote) = (user(), remote());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = format!("/tcp:{}", listener.local_addr().unwrap());
    thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello").unwrap());
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()));
    let source = format!("tcp:{address}");
    let url = remote.tunnel_url(&target);
    run(&mut mutagen(&user, &["forward", "create", "--no-global-configuration", &source, &url]));
    let mut connection = wait_for("the forward listens", SOON, || TcpStream::connect(address).ok());
    connection.set_read_timeout(Some(SOON)).unwrap();
    let mut received = String::new();
    connection.read_to_string(&mut received).unwrap();
    assert_eq!(received, "hello");
}

#[test]
fn urls_with_different_certificates_get_different_aliases() {
    let (user, remote) = (user(), remote());
    let here = user.home().join("tree");
    tree::generate(&here, 5, 2);
    for (certificate, name) in [("client.crt", "a"), ("other.crt", "b"), ("client.crt", "c")] {
        run(&mut sync(&user, &here, &remote.tunnel_url_with(certificate, &in_home(&remote, name))));
    }
    run(&mut mutagen(&user, &["sync", "flush", "--all"]));
    for name in ["a", "b", "c"] {
        assert_same(&here, &remote.home().join(name));
    }
    let sessions = sessions(&user);
    let hosts: BTreeSet<&str> = sessions.iter().map(|session| text(session, "/beta/host")).collect();
    let hosts: Vec<&str> = hosts.into_iter().collect();
    let [plain, longer] = hosts.as_slice() else { panic!("two aliases: {hosts:?}") };
    assert_eq!(*plain, "host123.127.0.0.1");
    assert!(longer.strip_prefix(plain).is_some_and(|rest| rest.starts_with('+')), "{hosts:?}");
    assert_eq!(fs::read_dir(user.memory()).unwrap().count(), 2);
}

#[test]
fn a_host_of_a_file_is_reached_by_a_daemon_that_was_not_told_of_the_file() {
    let (user, remote) = (user(), remote());
    let here = user.home().join("tree");
    tree::generate(&here, 5, 3);
    run(&mut mutagen(&user, &["daemon", "start"]));
    let config = remote.environment().into_iter().find(|(name, _)| *name == "TSTUNNEL_CONFIG").unwrap();
    let url = format!("tstunnel://host123{}", in_home(&remote, "tree"));
    run(sync(&user, &here, &url).envs([config]));
    run(&mut mutagen(&user, &["sync", "flush", "--all"]));
    assert_same(&here, &remote.home().join("tree"));
    let sessions = sessions(&user);
    let host = text(&sessions[0], "/beta/host");
    assert!(
        host.strip_prefix("host123+").is_some_and(|digits| digits.len() == 6),
        "what the file says of host123 is what that name means: {host}"
    );
}

#[test]
fn a_url_that_lacks_something_is_refused_before_mutagen_runs() {
    let user = user();
    let output = sync(&user, &user.home(), "tstunnel://host123/app?endpoint=localhost").output().unwrap();
    assert_refused(&output, 1, "`host123` has no `cert` and `key`", "cert=");
    assert!(!user.memory().exists() && !user.home().join(".mutagen").exists());
}

#[test]
fn a_url_whose_scheme_is_misspelt_is_no_host_of_sshs() {
    let user = user();
    let url = "tstunel://host123/app?endpoint=localhost";
    for mut command in [
        sync(&user, &user.home(), url),
        user.tstunnel(["exec", url, "true"]),
        user.tstunnel(["ssh", url, "true"]),
        user.tstunnel(["upload", "/etc/passwd", url]),
    ] {
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.starts_with("tstunnel: error[usage]: the URL's `tstunel://` is not tstunnel://\n"), "{stderr}");
        assert!(!output.status.success());
    }
    assert!(!user.home().join(".mutagen").exists());
}

#[test]
fn a_mutagen_that_is_not_there_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let user = User::with(vec![("PATH", folder.path().into())]);
    let output = mutagen(&user, &["version"]).output().unwrap();
    assert_refused(&output, 1, "the program `mutagen` is not there", "TSTUNNEL_MUTAGEN");
}
