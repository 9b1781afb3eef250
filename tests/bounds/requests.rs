//! What authenticated peers hold before they have a session, and what one source and one home may hold, is bounded.

use std::io::{ErrorKind, Read, Write};
use std::process::Command;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::net::sockopt::set_socket_linger;

use crate::raw::{assert_goes_on, held_session};
use crate::support::pki::Identity;
use crate::support::serve::records;
use crate::support::wait::{SOON, wait_for, wait_until};
use crate::support_net::child::run;
use crate::support_net::fake::{self, ClientTls};
use crate::support_net::report::fails;
use crate::support_net::site::{PRINCIPAL, Plan, SERVER_NAME, Site};

/// Authenticates, and asks nothing.
fn authenticated(site: &Site, identity: &Identity) -> ClientTls {
    let mut tls = fake::connect(site, identity);
    tls.conn.complete_io(&mut tls.sock).unwrap();
    tls
}

/// Waits until one of these is answered, though it has asked nothing, and returns what it is told.
fn answer_to_one_of(peers: &mut [ClientTls]) -> String {
    let is_answered = |tls: &ClientTls| {
        tls.sock.set_nonblocking(true).unwrap();
        let peeked = tls.sock.peek(&mut [0; 1]);
        tls.sock.set_nonblocking(false).unwrap();
        peeked.map_or_else(|error| error.kind() != ErrorKind::WouldBlock, |_| true)
    };
    let index = wait_for("one of them is answered", SOON, || peers.iter().position(is_answered));
    let mut answer = String::new();
    peers[index].read_to_string(&mut answer).expect("the server ends TLS properly");
    answer.to_ascii_lowercase()
}

#[test]
fn authenticated_connections_without_a_session_are_bounded() {
    let site = Site::start(&Plan::any().limit("max_requests = 4").limit("head_timeout = \"10m\""));
    let mut held = held_session(&site);
    let people = ["ann", "bob", "cat"].map(|name| site.clients.client(&format!("spiffe://tunnel.test/users/{name}")));
    let mut peers = Vec::new();
    // Nobody has more than half, and somebody else still gets in.
    peers.extend([(); 3].map(|()| authenticated(&site, &people[0])));
    let answer = answer_to_one_of(&mut peers);
    assert!(answer.starts_with("http/1.1 429 ") && answer.contains("\r\nretry-after: 5\r\n"), "{answer}");
    assert!(answer.contains("urn:tstunnel:too-many"), "{answer}");
    let mut others = [&people[1], &people[1], &people[2]].map(|identity| authenticated(&site, identity));
    let answer = answer_to_one_of(&mut others);
    assert!(answer.starts_with("http/1.1 503 ") && answer.contains("\r\nretry-after: 5\r\n"), "{answer}");
    assert!(answer.contains("urn:tstunnel:overloaded"), "{answer}");
    assert_goes_on(&mut held);
    drop((peers, others));
    wait_until("their places are given back", SOON, || run(&mut site.exec(&["true"])).status.success());
}

#[test]
fn a_client_that_is_refused_before_it_asks_says_so() {
    let site = Site::start(&Plan::any().limit("max_requests = 2").limit("head_timeout = \"10m\""));
    let mut peers = [(); 2].map(|()| authenticated(&site, &site.clients.client(PRINCIPAL)));
    let _ = answer_to_one_of(&mut peers);
    fails(&mut site.exec(&["true"]), 255, "too-many");
    fails(&mut site.tstunnel(&["upload", "/etc/hostname", "host123"]), 1, "too-many");
}

/// The same command from another of loopback's addresses.
fn from(source: &str, command: &mut Command) -> String {
    run(command.args(["--interface", source])).ok().text()
}

#[test]
fn sessions_from_one_source_are_bounded() {
    let site = Site::start(&Plan::any().limit("max_sessions_per_source = 1"));
    let mut held = held_session(&site);
    fails(&mut site.exec(&["true"]), 255, "too-many");
    let answer = from("127.0.0.1", site.curl("/copy/x").args(["--data-binary", "x"]));
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.to_ascii_lowercase().contains("retry-after:"), "{answer}");
    let answer = from("127.0.0.2", site.curl("/copy/x").args(["--data-binary", "x"]));
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert_goes_on(&mut held);
    held.wait().ok();
    wait_until("the place is given back", SOON, || run(&mut site.exec(&["true"])).status.success());
}

/// Sends half of a file and hangs up; then asks how much of it is held.
fn held_after_breaking_off(site: &Site, name: &str, digit: u8) -> bool {
    break_off(site, name, digit);
    held(site, name, digit) > 0
}

/// A request about a file with a digest that nothing has.
fn request(method: &str, name: &str, digit: u8, fields: &str) -> String {
    let digest = BASE64.encode([digit; 32]);
    format!(
        "{method} /tinyscale/v1/copy/{name} HTTP/1.1\r\nHost: {SERVER_NAME}\r\n\
         Unencoded-Digest: sha-256=:{digest}:\r\n{fields}\r\n"
    )
}

/// Sends half of a file and hangs up, and waits until the server has seen that.
fn break_off(site: &Site, name: &str, digit: u8) {
    let ends = || records(&site.server_log(), "end").len();
    let before = ends();
    let mut tls = fake::connect(site, &site.clients.client(PRINCIPAL));
    let head = request("POST", name, digit, "Content-Length: 2000\r\n");
    tls.write_all(head.as_bytes()).and_then(|()| tls.write_all(&[b'x'; 1000])).unwrap();
    tls.conn.send_close_notify();
    tls.flush().unwrap();
    // To ask what is held before the server has begun would find nothing.
    wait_until("the server has seen the end", SOON, || ends() > before);
}

/// How much of a file is held.
fn held(site: &Site, name: &str, digit: u8) -> u64 {
    let mut answer = String::new();
    let mut tls = fake::connect(site, &site.clients.client(PRINCIPAL));
    tls.write_all(request("HEAD", name, digit, "").as_bytes()).unwrap();
    tls.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    let answer = answer.to_ascii_lowercase();
    let (_, rest) = answer.split_once("upload-offset: ").unwrap();
    rest.lines().next().unwrap().parse().unwrap()
}

#[test]
fn uploads_that_broke_off_are_held_up_to_a_number() {
    let site = Site::start(&Plan::any().limit("max_held_uploads = 1"));
    assert!(held_after_breaking_off(&site, "first", 1));
    assert!(!held_after_breaking_off(&site, "second", 2));
    assert!(held_after_breaking_off(&site, "first", 1));
    assert_eq!(site.names().len(), 1, "{:?}", site.names());
}

#[test]
fn an_upload_that_goes_on_where_nothing_is_leaves_nothing_that_no_one_removes() {
    let site = Site::start(&Plan::any().limit("max_held_uploads = 1").limit("resume_grace = \"2s\""));
    assert!(held_after_breaking_off(&site, "first", 1));
    let mut tls = fake::connect(&site, &site.clients.client(PRINCIPAL));
    let head = request("POST", "first", 1, "Upload-Offset: 1500\r\nContent-Length: 500\r\n");
    tls.write_all(head.as_bytes()).and_then(|()| tls.write_all(&[b'x'; 500])).unwrap();
    let mut answer = String::new();
    tls.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    wait_until("it is gone", SOON, || site.names().is_empty());
    assert!(held_after_breaking_off(&site, "second", 2));
}

#[test]
fn whoever_only_asks_for_what_is_held_does_not_keep_it() {
    let site = Site::start(&Plan::any().limit("resume_grace = \"2s\""));
    assert!(held_after_breaking_off(&site, "first", 1));
    wait_until("its grace is over", SOON, || held(&site, "first", 1) == 0);
    assert_eq!(site.names(), Vec::<String>::new());
}

#[test]
fn a_plain_stream_gives_its_place_back_when_its_client_is_gone_though_its_target_takes_nothing() {
    let site = Site::start(&Plan::any().limit("max_sessions = 1").host("targets = [\"tcp:127.0.0.1:*\"]"));
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let target = fake::tcp_server(move |connection| {
        let _ = held.lock().unwrap().recv();
        drop(connection);
    });
    let mut tls = fake::connect(&site, &site.clients.client(PRINCIPAL));
    let path = format!("/tinyscale/v1/stream?target=tcp%3A127.0.0.1%3A{}", target.port());
    let answer = fake::post(&mut tls, &path, "Connection: Upgrade\r\nUpgrade: tcp\r\n", "");
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    tls.sock.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    while tls.conn.writer().write(&[7; 1 << 14]).and_then(|_| tls.conn.write_tls(&mut tls.sock)).is_ok() {}
    set_socket_linger(&tls.sock, Some(Duration::ZERO)).unwrap();
    drop(tls);
    wait_until("its place is free", SOON, || run(&mut site.exec(&["true"])).status.success());
    drop(release);
}
