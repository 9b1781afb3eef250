//! `exec`, `connect` and `upload` take a `tstunnel://` URL for a host, and need nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::process::Stdio;
use std::thread;

use support::process::run;
use support::remote::{Remote, Setup, Transport};
use support::user::User;

fn remote() -> Remote {
    Setup::new(Transport::Tstunnel).with_any_command().with_targets().start()
}

#[test]
fn exec_runs_a_command_on_a_urls_host() {
    let (user, remote) = (User::new(), remote());
    for target in ["", "/", "/home/dev/app"] {
        let url = remote.tunnel_url(target);
        assert_eq!(run(&mut user.tstunnel(["exec", &url, "--", "echo", "a  b"])), "a  b\n");
    }
}

#[test]
fn upload_gives_the_file_the_name_in_the_url() {
    let (user, remote) = (User::new(), remote());
    fs::write(user.home().join("file"), "contents").unwrap();
    for (target, name) in [("/name", "name"), ("/~/a%20b", "a b"), ("", "file")] {
        run(&mut user.tstunnel(["upload", "file", &remote.tunnel_url(target)]));
        assert_eq!(fs::read_to_string(remote.home().join(name)).unwrap(), "contents");
    }
}

#[test]
fn connect_leads_to_where_the_url_says() {
    let (user, remote) = (User::new(), remote());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = remote.tunnel_url(&format!("/tcp:{}", listener.local_addr().unwrap()));
    let echo = thread::spawn(move || {
        let mut connection = listener.accept().unwrap().0;
        let mut received = Vec::new();
        connection.read_to_end(&mut received).unwrap();
        connection.write_all(&received).unwrap();
        connection.shutdown(Shutdown::Write).unwrap();
    });
    let mut command = user.tstunnel(["connect", &url]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"there and back").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"there and back");
    echo.join().unwrap();
}

#[test]
fn a_url_with_a_misspelt_parameter_is_wrong_usage() {
    let output = User::new().tstunnel(["upload", "file", "tstunnel://host/name?endpont=x"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("error[usage]") && stderr.contains("did you mean `endpoint`?"), "{stderr}");
    assert_eq!(output.status.code(), Some(2));
}
