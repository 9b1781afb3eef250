//! What the server's files say changes while it runs: new sessions go by the new state, live ones that it refuses end, and a state
//! that is broken changes nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use support::pki::{Authority, Identity, Usage, Validity};
use support::port;
use support::process::{self, Signal};
use support::serve::{Server, records};
use support::wait::{SOON, wait_for, wait_until};
use support_net::child::{Watched, run};
use support_net::fake;
use support_net::report::{check, error_line, fails};
use support_net::site::{DOMAIN, HOST, PRINCIPAL, Plan, SERVER_NAME, Site, text};

/// From the signal to the end of what was revoked: sooner than the server looks again by itself, which is every ten seconds.
const AT_ONCE: Duration = Duration::from_secs(8);

const BOB: &str = "spiffe://tunnel.test/users/bob";

/// A site where nothing happens by itself, with two principals and a revocation list that is empty.
fn site(plan: Plan) -> (Site, Identity, Identity) {
    let mut site = Site::new();
    let (ann, bob) = (site.clients.client(PRINCIPAL), site.clients.client(BOB));
    site.write(&ann, "client");
    site.write(&bob, "bob");
    fs::write(site.root.join("clients.crl"), site.clients.revoke(&[], Validity::Now)).unwrap();
    let grant = format!("[[grant]]\nprincipal = \"{BOB}\"\nhosts = [\"{HOST}\"]");
    site.serve(&plan.top("crl = [\"clients.crl\"]").tables(&grant));
    (site, ann, bob)
}

fn by_signal() -> Plan {
    Plan::any().top("watch = false")
}

/// Sends SIGHUP, and waits until the log says once more what comes of it. Returns when it was sent.
#[track_caller]
fn reload(site: &mut Site, outcome: &str) -> Instant {
    let before = site.server_log().matches(outcome).count();
    let sent = Instant::now();
    site.server().signal(Signal::HUP);
    wait_until(&format!("the log says `{outcome}`"), SOON, || site.server_log().matches(outcome).count() > before);
    sent
}

const RELOADED: &str = "reloaded";
const REFUSED: &str = "the new state is refused and the old one stays";

/// Replaces a file as one should.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    if let Ok(of) = fs::metadata(path) {
        fs::set_permissions(&new, of.permissions()).unwrap();
    }
    fs::rename(new, path).unwrap();
}

/// A session that echoes, of the client with the files of this name.
fn echo(site: &Site, client: &str, more: &[&str]) -> Watched {
    site.configure_as(client, site.address(), "");
    let mut words = vec!["exec"];
    words.extend(more);
    words.extend([HOST, "--", "echo here; exec cat"]);
    let mut session = Watched::start(site.tstunnel(&words).stdin(Stdio::piped()));
    session.wait_for_output("here\n");
    site.configure_as("client", site.address(), "");
    session
}

#[track_caller]
fn assert_echoes(session: &mut Watched, word: &str) {
    session.write(format!("{word}\n").as_bytes());
    session.wait_for_output(&format!("{word}\n"));
}

/// Waits until a session has ended by a withdrawal, and returns what its client says.
#[track_caller]
fn assert_withdrawn(session: Watched, code: &str) -> String {
    withdrawn_with_hint(session, code).0
}

/// The same, and its hint.
#[track_caller]
fn withdrawn_with_hint(mut session: Watched, code: &str) -> (String, String) {
    wait_until("the session ends, though its stdin does not", SOON, || session.ended().is_some());
    let ran = session.wait();
    assert_eq!(ran.code(), Some(255), "{}", ran.stderr);
    (error_line("a session that was withdrawn", &ran.stderr, code), hint(&ran.stderr))
}

fn hint(stderr: &str) -> String {
    stderr.lines().find_map(|line| line.strip_prefix("tstunnel: hint: ")).unwrap_or_default().to_owned()
}

#[test]
fn revoked_principal_loses_its_live_sessions_and_nobody_else_does() {
    let (mut site, ann, _) = site(by_signal());
    let mut framed = echo(&site, "client", &[]);
    let mut raw = echo(&site, "client", &["--raw"]);
    let mut other = echo(&site, "bob", &[]);
    let _stdins = [framed.stdin(), raw.stdin()];

    replace(&site.root.join("clients.crl"), &site.clients.revoke(&[&ann], Validity::Now));
    let sent = Instant::now();
    site.server().signal(Signal::HUP);
    wait_until("both have ended", SOON, || framed.ended().is_some() && raw.ended().is_some());
    assert!(sent.elapsed() < AT_ONCE, "{:?}", sent.elapsed());

    let (said, advice) = withdrawn_with_hint(framed, "unauthorized");
    assert!(said.contains("revoked"), "{said}");
    let said = assert_withdrawn(raw, "network-lost");
    assert!(said.contains("lost"), "{said}");
    wait_until("their processes have ended", SOON, || process::with_home(&site.home).len() == 1);
    assert_echoes(&mut other, "still here");
    let next = run(&mut site.exec(&["true"]));
    check("the next attempt", &next, 255, "client-cert");
    assert_eq!(advice, hint(&next.stderr), "what has ended it and what refuses it have the same hint");
    // A client that is slow to load its files leaves a connection without a word, and makes another.
    let refused = |site: &Site| {
        let mut refused = records(&site.server_log(), "handshake");
        refused.retain(|record| record["code"] == "revoked");
        refused
    };
    wait_until("the refusal is recorded", SOON, || !refused(&site).is_empty());
    let refused = refused(&site);
    assert_eq!(refused.len(), 1, "the sessions that ended have not come back: {refused:?}");
}

#[test]
fn withdrawn_session_without_frames_ends_before_its_process_which_sees_the_end_of_its_stdin() {
    let (mut site, ann, _) = site(by_signal());
    let line = "trap '' TERM; echo here; cat; : >stdin-has-ended; exec sleep 1000";
    let words = ["exec", "--raw", HOST, "--", line];
    let mut session = Watched::start(site.tstunnel(&words).stdin(Stdio::piped()));
    session.wait_for_output("here\n");
    replace(&site.root.join("clients.crl"), &site.clients.revoke(&[&ann], Validity::Now));
    reload(&mut site, RELOADED);
    assert_withdrawn(session, "network-lost");
    // A process that ignores all but SIGKILL lives for six seconds more.
    assert_eq!(records(&site.server_log(), "end"), Vec::<Value>::new());
    wait_until("the process has seen the end", SOON, || site.names() == ["stdin-has-ended"]);
}

#[test]
fn revoked_principal_loses_a_session_whose_client_is_away() {
    let (mut site, ann, _) = site(by_signal());
    let mut tls = fake::connect(&site, &ann);
    let fields = "Connection: Upgrade\r\nUpgrade: tstunnel/1\r\n";
    let answer = fake::post(&mut tls, "/tinyscale/v1/command", fields, r#"{"command": "exec cat"}"#);
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    drop(tls);
    // The answer overtakes the process's start: until execve(2) has returned, /proc may show it without a command line.
    wait_until("the process runs", SOON, || site.running("cat") == 1);
    replace(&site.root.join("clients.crl"), &site.clients.revoke(&[&ann], Validity::Now));
    let sent = reload(&mut site, RELOADED);
    wait_until("the process has ended", SOON, || site.running("cat") == 0);
    assert!(sent.elapsed() < AT_ONCE, "{:?}", sent.elapsed());
    wait_until("the log says why", SOON, || site.server_log().contains("\"reason\":\"withdrawn: "));
}

#[test]
fn revoked_principal_loses_a_stream_that_has_ended_and_whose_client_is_away() {
    let (mut site, ann, _) = site(by_signal().host("targets = [\"tcp:127.0.0.1:*\"]"));
    fake::leave_a_stream_that_has_ended(&site, &ann);
    replace(&site.root.join("clients.crl"), &site.clients.revoke(&[&ann], Validity::Now));
    reload(&mut site, RELOADED);
    wait_until("the session has ended", SOON, || site.server_log().contains("\"reason\":\"withdrawn: "));
}

#[test]
fn revoked_principal_loses_an_upload_and_nothing_is_left_of_it() {
    let (mut site, ann, _) = site(by_signal());
    let mut tls = fake::connect(&site, &ann);
    let head = "POST /tinyscale/v1/copy/file HTTP/1.1\r\nHost: host123.tunnel.test\r\nContent-Length: 1000000\r\n\
                Unencoded-Digest: sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:\r\n\r\nthe beginning";
    tls.write_all(head.as_bytes()).unwrap();
    tls.flush().unwrap();
    let part = |site: &Site| site.names().into_iter().find(|name| name.starts_with(".tstunnel-part-"));
    wait_until("the upload has begun", SOON, || part(&site).is_some());

    replace(&site.root.join("clients.crl"), &site.clients.revoke(&[&ann], Validity::Now));
    reload(&mut site, RELOADED);

    let mut answer = [0; 12];
    tls.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
    wait_until("nothing is left", SOON, || site.names().is_empty());
}

#[test]
fn what_is_left_of_uploads_in_a_home_that_a_reload_brings_goes_with_the_first_upload_there() {
    let (mut site, ..) = site(by_signal());
    let home = site.root.join("another-home");
    fs::create_dir(&home).unwrap();
    let left = home.join(".tstunnel-part-left");
    fs::File::create(&left).unwrap().set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    let before = site.home.clone();
    site.server().reconfigure(text(&before), text(&home));
    reload(&mut site, RELOADED);
    let file = site.local_file("file", b"content");
    run(&mut site.tstunnel(&["upload", text(&file), HOST])).ok();
    wait_until("it is gone", SOON, || !left.exists());
    assert!(home.join("file").exists());
}

#[test]
fn clients_of_a_revoked_authority_lose_their_live_sessions() {
    let mut site = Site::new();
    let intermediate = site.clients.intermediate("an authority below");
    let mut client = intermediate.client(PRINCIPAL);
    client.certificate += &intermediate.certificate();
    site.write(&client, "client");
    let lists = |root: String| format!("{root}{}", intermediate.revoke(&[], Validity::Now));
    fs::write(site.root.join("all.crl"), lists(site.clients.revoke(&[], Validity::Now))).unwrap();
    site.serve(&by_signal().top("crl = [\"all.crl\"]"));
    let mut session = echo(&site, "client", &[]);
    assert_echoes(&mut session, "once");

    replace(&site.root.join("all.crl"), &lists(site.clients.revoke_authority(&intermediate)));
    reload(&mut site, RELOADED);

    let said = assert_withdrawn(session, "unauthorized");
    assert!(said.contains("revoked"), "{said}");
    fails(&mut site.exec(&["true"]), 255, "client-cert");
}

#[test]
fn a_list_that_covers_only_a_part_of_the_chain_costs_new_sessions_and_no_live_one() {
    let (mut site, ..) = site(by_signal());
    let mut session = echo(&site, "client", &[]);
    let other = Authority::new("another authority");
    replace(&site.root.join("clients.crl"), &other.revoke(&[], Validity::Now));
    reload(&mut site, RELOADED);
    fails(&mut site.exec(&["true"]), 255, "client-cert");
    assert_echoes(&mut session, "still here");
}

#[test]
fn authority_that_is_not_trusted_any_more_costs_live_sessions() {
    let (mut site, ..) = site(by_signal());
    let session = echo(&site, "client", &[]);
    replace(&site.root.join("clients-ca.crt"), &Authority::new("another authority").certificate());
    site.server().reconfigure("crl = [\"clients.crl\"]", "");
    reload(&mut site, RELOADED);
    let said = assert_withdrawn(session, "unauthorized");
    assert!(said.contains("no longer trusted"), "{said}");
}

#[test]
fn revocation_that_is_no_longer_checked_is_warned_of_once() {
    let (mut site, ..) = site(by_signal());
    let warned = |site: &Site| site.server_log().matches("revocation is no longer checked").count();
    reload(&mut site, RELOADED);
    assert_eq!(warned(&site), 0);
    site.server().reconfigure("crl = [\"clients.crl\"]", "");
    for _ in 0..2 {
        reload(&mut site, RELOADED);
        assert_eq!(warned(&site), 1, "{}", site.server_log());
    }
}

#[test]
fn grant_that_is_taken_away_ends_its_sessions_with_what_the_policy_says() {
    let (mut site, ..) = site(by_signal());
    let (ann, mut bob) = (echo(&site, "client", &[]), echo(&site, "bob", &[]));
    site.server().reconfigure(&format!("principal = \"{PRINCIPAL}\""), "principal = \"nobody\"");
    let sent = reload(&mut site, RELOADED);
    let said = assert_withdrawn(ann, "host-unknown");
    assert!(sent.elapsed() < AT_ONCE, "{:?}", sent.elapsed());
    assert!(said.starts_with("no longer allowed: "), "{said}");
    assert_echoes(&mut bob, "still here");
    fails(&mut site.exec(&["true"]), 255, "host-unknown");
}

#[test]
fn command_that_is_not_allowed_any_more_ends_and_an_allowed_one_goes_on() {
    let (mut site, ..) = site(by_signal());
    let (mut kept, lost) = (echo(&site, "client", &[]), Watched::start(&mut site.exec(&["sleep 1000"])));
    wait_until("both run", SOON, || site.running("sleep") == 1);
    site.server().reconfigure("commands = \"any\"", "commands = [\"echo here; exec cat\"]\nshell = true");
    reload(&mut site, RELOADED);
    assert_withdrawn(lost, "command-denied");
    assert_echoes(&mut kept, "still here");
    assert_echoes(&mut echo(&site, "client", &[]), "new");
}

#[test]
fn server_certificate_is_rotated_under_fifty_live_sessions() {
    let (mut site, ann, _) = site(by_signal().limit("max_sessions_per_principal = 64"));
    // So many clients that start at once have little of the machine each; and none may leave a connection for another.
    site.configure_more("connect_timeout = \"60s\"\nresume = false");
    let mut sessions: Vec<Watched> = thread::scope(|scope| {
        let site = &site;
        let starting: Vec<_> = (0..50)
            .map(|_| {
                scope.spawn(move || {
                    let line = "echo here; exec cat";
                    let mut session = Watched::start(site.exec(&[line]).stdin(Stdio::piped()));
                    session.wait_for_output("here\n");
                    session
                })
            })
            .collect();
        starting.into_iter().map(|session| session.join().unwrap()).collect()
    });
    let shown = |site: &Site| {
        let mut tls = fake::connect(site, &ann);
        tls.write_all(b"GET /").unwrap();
        tls.flush().unwrap();
        tls.conn.peer_certificates().unwrap()[0].to_vec()
    };
    let der = |identity: &Identity| CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap().to_vec();
    let old = shown(&site);

    let new = site.servers.server(&[&format!("*.{DOMAIN}")]);
    site.write(&new, "server");
    reload(&mut site, RELOADED);

    assert_eq!(shown(&site), der(&new));
    assert_ne!(shown(&site), old);
    for (number, session) in sessions.iter_mut().enumerate() {
        assert_echoes(session, &format!("still here {number}"));
    }
    assert_eq!(records(&site.server_log(), "end"), Vec::<Value>::new());
    for mut session in sessions {
        drop(session.stdin());
        assert_eq!(session.wait().code(), Some(0));
    }
    wait_until("all ends are recorded", SOON, || records(&site.server_log(), "end").len() == 50);
    let ends = records(&site.server_log(), "end");
    let is_whole = |end: &Value| end["resumes"] == 0 && end["reason"] == "finished";
    assert!(ends.iter().all(is_whole), "no connection was another: {ends:?}");
}

#[test]
fn broken_state_is_refused_whole_and_the_old_one_stays() {
    let (mut site, ann, _) = site(by_signal());
    let mut session = echo(&site, "client", &[]);
    let file = |name: &str| site.root.join(name);
    let [toml, crt, key, crl, ca] =
        ["server.toml", "server.crt", "server.key", "clients.crl", "clients-ca.crt"].map(file);
    let whole = fs::read_to_string(&toml).unwrap();
    let expired = site.clients.revoke(&[], Validity::Past);
    let other = site.servers.server(&[SERVER_NAME]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    // Each would also let nobody in, if it counted.
    let denying = whole.replace(PRINCIPAL, "nobody");
    let broken: Vec<(&Path, Option<String>, String)> = vec![
        (&toml, Some(denying.replace("[limits]", "[limit]")), format!("{}:", toml.display())),
        (&toml, Some(denying.replace("127.0.0.1:0", &taken.to_string())), format!("cannot listen on {taken}")),
        (&toml, Some(denying.replace("[\"127.0.0.1:0\"]", "[]")), "names no address".to_owned()),
        (&toml, Some(denying.replace("server.crt", "server.cert")), "server.cert".to_owned()),
        (&key, Some("no key".to_owned()), "no private key".to_owned()),
        (&key, Some(other.key), "the private key is not that of the certificate".to_owned()),
        (&key, None, "server.key".to_owned()),
        (&crt, Some("-----BEGIN CERTIFICATE-----\nAAAA\n".to_owned()), "server.crt:1:".to_owned()),
        (&ca, None, "clients-ca.crt".to_owned()),
        (&crl, None, "clients.crl".to_owned()),
        (&crl, Some(expired), "clients.crl: the revocation list expired at 2021-01-01".to_owned()),
        (&crl, Some("no list".to_owned()), "clients.crl: no certificate revocation list".to_owned()),
    ];
    for (path, text, said) in broken {
        let good = fs::read_to_string(path).unwrap();
        match text {
            Some(text) => replace(path, &text),
            None => fs::remove_file(path).unwrap(),
        }
        reload(&mut site, REFUSED);
        let log = site.server_log();
        let line = log.lines().rfind(|line| line.contains(REFUSED)).unwrap();
        assert!(line.contains(&said), "{line}");
        assert_eq!(run(&mut site.exec(&["echo hello"])).ok().text(), "hello\n", "after {line}");
        assert_echoes(&mut session, "still here");
        fs::write(path, good).unwrap();
        fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
    // A key that others can read is as bad as none.
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    reload(&mut site, REFUSED);
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert!(!site.server_log().contains(RELOADED), "{}", site.server_log());
    replace(&crl, &site.clients.revoke(&[&ann], Validity::Now));
    reload(&mut site, RELOADED);
    assert_withdrawn(session, "unauthorized");
}

#[test]
fn files_that_change_are_noticed_without_a_signal() {
    let (site, ann, _) = site(Plan::any());
    let session = echo(&site, "client", &[]);
    // A key by itself does not fit, and is waited for: this is how most tools replace the two.
    let new = site.servers.server(&[&format!("*.{DOMAIN}")]);
    let began = Instant::now();
    site.write(&new, "server");
    let took = began.elapsed();
    wait_until("the new pair is taken", SOON, || site.server_log().contains(RELOADED));
    // Less than the server waits, unless this test has been held up.
    assert!(!site.server_log().contains(REFUSED) || took > Duration::from_millis(200), "{}", site.server_log());
    // What has nothing to do with it is passed over.
    fs::write(site.root.join("another.crt"), "").unwrap();
    replace(&site.root.join("clients.crl"), &site.clients.revoke(&[&ann], Validity::Now));
    assert_withdrawn(session, "unauthorized");
    assert_eq!(site.server_log().matches(RELOADED).count(), 2, "{}", site.server_log());
}

#[test]
fn file_that_a_broken_state_named_is_noticed_when_it_comes() {
    let (mut site, ..) = site(Plan::any());
    site.server().reconfigure("clients.crl", "later/clients.crl");
    wait_until("it is refused", SOON, || site.server_log().contains(REFUSED));
    fs::create_dir(site.root.join("later")).unwrap();
    fs::write(site.root.join("later/clients.crl"), site.clients.revoke(&[], Validity::Now)).unwrap();
    wait_until("it is taken", SOON, || site.server_log().contains(RELOADED));
}

#[test]
fn without_a_watch_only_the_signal_counts() {
    let (mut site, ann, _) = site(by_signal());
    let mut session = echo(&site, "client", &[]);
    replace(&site.root.join("clients.crl"), &site.clients.revoke(&[&ann], Validity::Now));
    // Longer than a change would take to be noticed.
    support::wait::let_pass(Duration::from_secs(1));
    assert_echoes(&mut session, "still here");
    assert!(!site.server_log().contains(RELOADED));
    reload(&mut site, RELOADED);
    assert_withdrawn(session, "unauthorized");
}

#[test]
fn limits_of_a_new_state_are_for_new_sessions() {
    let (mut site, ..) = site(by_signal().limit("max_sessions = 2"));
    let mut sessions = [echo(&site, "client", &[]), echo(&site, "bob", &[])];
    fails(&mut site.exec(&["true"]), 255, "overloaded");
    site.server().reconfigure("max_sessions = 2", "max_sessions = 3");
    reload(&mut site, RELOADED);
    run(&mut site.exec(&["true"])).ok();
    site.server().reconfigure("max_sessions = 3", "max_sessions = 1");
    reload(&mut site, RELOADED);
    fails(&mut site.exec(&["true"]), 255, "overloaded");
    for session in &mut sessions {
        assert_echoes(session, "still here");
    }
}

#[test]
fn other_addresses_are_listened_on_and_the_old_ones_let_go_of() {
    let (mut site, ..) = site(by_signal());
    let old = site.address();
    let mut session = echo(&site, "client", &[]);
    // Taken by the kernel, and not yet served: it must not be lost.
    let mut early = TcpStream::connect(old).unwrap();
    site.server().reconfigure("127.0.0.1:0", "127.0.0.2:0");
    reload(&mut site, RELOADED);
    let new: SocketAddr = wait_for("it listens elsewhere", SOON, || {
        let log = site.server_log();
        log.split("listening on ").nth(2)?.split_whitespace().next()?.parse().ok()
    });
    assert_eq!(new.ip().to_string(), "127.0.0.2");
    wait_until("the old address refuses", SOON, || TcpStream::connect(old).is_err());
    site.configure(new, "");
    assert_eq!(run(&mut site.exec(&["echo hello"])).ok().text(), "hello\n");
    assert_echoes(&mut session, "still here");
    early.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    early.set_read_timeout(Some(SOON)).unwrap();
    early.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.first(), Some(&21), "a TLS alert: {answer:?}");
}

#[test]
fn peer_whose_handshake_was_before_its_revocation_gets_nothing_after_it() {
    let (mut site, ann, _) = site(by_signal());
    let mut tls = fake::connect(&site, &ann);
    tls.write_all(b"GET /tinyscale/v1/host HTTP/1.1\r\n").unwrap();
    tls.flush().unwrap();
    wait_until("the handshake is done", SOON, || !tls.conn.is_handshaking());
    replace(&site.root.join("clients.crl"), &site.clients.revoke(&[&ann], Validity::Now));
    reload(&mut site, RELOADED);
    tls.write_all(format!("Host: {SERVER_NAME}\r\n\r\n").as_bytes()).unwrap();
    let mut answer = [0; 12];
    tls.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
}

#[test]
fn certificate_that_has_expired_does_not_hide_its_revocation() {
    let (mut site, ..) = site(by_signal());
    let end = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs() + 10;
    let uri = support::pki::uri_params(&[PRINCIPAL]);
    let short = site.clients.issue_until(Usage::Client, Duration::from_secs(end), uri);
    site.write(&short, "client");
    let mut session = echo(&site, "client", &[]);
    wait_until("it has expired", SOON, || {
        std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs() > end + 1
    });
    reload(&mut site, RELOADED);
    assert_echoes(&mut session, "still here");
    replace(&site.root.join("clients.crl"), &site.clients.revoke(&[&short], Validity::Now));
    reload(&mut site, RELOADED);
    let said = assert_withdrawn(session, "unauthorized");
    assert!(said.contains("revoked"), "{said}");
}

/// A certificate in the name of the clients' authority that anybody can make: it has no key of that authority's.
fn made_up(years: [i32; 2]) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "the clients' authority");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    [params.not_before, params.not_after] = years.map(|year| rcgen::date_time_ymd(year, 1, 1));
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

/// What a client sends besides its certificate decides which of several reasons is found.
#[test]
fn certificates_of_ones_own_do_not_hide_a_revocation_or_an_authority_that_is_gone() {
    for years in [[2001, 2002], [2090, 2091]] {
        for is_authority_gone in [false, true] {
            let (mut site, mut ann, _) = site(by_signal());
            ann.certificate += &made_up(years);
            site.write(&ann, "client");
            let session = echo(&site, "client", &[]);
            let list = if is_authority_gone {
                let other = Authority::new("another authority");
                replace(&site.root.join("clients-ca.crt"), &other.certificate());
                other.revoke(&[], Validity::Now)
            } else {
                site.clients.revoke(&[&ann], Validity::Now)
            };
            replace(&site.root.join("clients.crl"), &list);
            reload(&mut site, RELOADED);
            assert_withdrawn(session, "unauthorized");
        }
    }
}

#[test]
fn both_families_of_one_port_are_listened_on_also_when_the_second_comes_later() {
    let (mut site, ..) = site(by_signal());
    let port = port::free();
    let configuration = site.root.join("server.toml");
    let text = fs::read_to_string(&configuration).unwrap();
    let of_four = format!("\"0.0.0.0:{port}\"");
    for addresses in [of_four.clone(), format!("{of_four}, \"[::]:{port}\"")] {
        let listening = format!("listen = [\"127.0.0.1:0\", {addresses}]");
        replace(&configuration, &text.replacen("listen = [\"127.0.0.1:0\"]", &listening, 1));
        reload(&mut site, RELOADED);
    }
    for endpoint in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        site.configure(endpoint, "");
        run(&mut site.exec(&["true"])).ok();
    }
    site.server().kill();
    let both = format!("listen = [\"[::]:{port}\", {of_four}]");
    let text = text.replacen("listen = [\"127.0.0.1:0\"]", &both, 1);
    site.configure(format!("[::1]:{port}"), "");
    fs::write(&configuration, text).unwrap();
    let _server = Server::start(&configuration);
    run(&mut site.exec(&["true"])).ok();
}
