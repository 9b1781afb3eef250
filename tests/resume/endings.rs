//! What ends a session for good, while its client is away or because it must not come back: it ends at once and says why.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::run::{Run, host};
use crate::support::pki::{Authority, Usage, Validity, params, uri_params};
use crate::support::process::{self, Signal};
use crate::support::remote::{DOMAIN, PRINCIPAL, Remote};
use crate::support::wait::{SOON, wait_for, wait_until};

/// A process that ends, with last words, as soon as a file exists.
fn until(file: &Path) -> String {
    let file = file.display();
    format!("echo $$; while ! test -e '{file}'; do sleep 0.05; done; echo last words; echo and these >&2; exit 9")
}

/// How long a certificate is good that is to expire under a session: longer than a server and a client take to begin it.
const LIFETIME: Duration = Duration::from_secs(10);

/// One that ends with its stdin.
const WAIT: &str = "echo $$; exec cat";

#[test]
fn last_words_and_status_of_a_process_that_ended_during_an_outage_arrive() {
    let remote = host().behind_relay().start();
    let file = remote.folder().join("go");
    let run = Run::start(&remote, "", &until(&file));
    let pid = run.pid();

    remote.relay().refuse(true);
    remote.relay().reset();
    fs::write(&file, "").unwrap();
    wait_until("the process has ended", SOON, || !is_alive(pid));
    remote.relay().refuse(false);

    let (status, output, said) = run.end(SOON);
    assert_eq!(status, Some(9));
    assert_eq!(String::from_utf8(output).unwrap(), format!("{pid}\nlast words\n"));
    assert_eq!(said, "and these\n");
    let end = wait_for("the session is over", SOON, || remote.server().records("end").pop());
    assert_eq!((&end["resumes"], &end["reason"], &end["status"]), (&json!(1), &json!("finished"), &json!(9)));
    let resumes = remote.server().records("resume");
    let [resume] = resumes.as_slice() else { panic!("{resumes:?}") };
    for (field, is_the_same) in
        [("session", true), ("principal", true), ("serial", true), ("host", true), ("source", false)]
    {
        assert!(resume[field].is_string() && (resume[field] == end[field]) == is_the_same, "{field}: {resume} {end}");
    }
}

#[test]
fn process_of_a_client_that_stays_away_ends_and_the_client_is_told() {
    let remote = host().with_grace(Duration::from_secs(1)).behind_relay().start();
    // One that ends neither with its stdin nor at SIGTERM takes the whole ladder.
    let run = Run::start(&remote, "", "trap '' TERM; echo $$; while :; do sleep 0.1; done");
    let pid = run.pid();

    // The client is away longer than it would be patient.
    run.signal(Signal::STOP);
    remote.relay().reset();
    wait_until("the process has ended", SOON, || !is_alive(pid));
    run.signal(Signal::CONT);

    let (status, _, said) = run.end(SOON);
    assert_eq!(status, Some(255));
    assert!(said.contains("error[session-lost]"), "{said}");
    let reason = "interrupted, and not resumed within the grace";
    wait_until("the log says why", SOON, || remote.server().log().contains(reason));
}

#[test]
fn client_that_cannot_come_back_within_the_grace_gives_up() {
    let remote = host().with_grace(Duration::from_secs(1)).behind_relay().start();
    let run = Run::start(&remote, "", WAIT);
    run.pid();
    remote.relay().refuse(true);
    remote.relay().reset();
    let (status, _, said) = run.end(SOON);
    assert_eq!(status, Some(255));
    assert!(said.contains("error[network-lost]") && said.contains("within 1 s"), "{said}");
}

#[test]
fn restarted_server_has_lost_the_session_and_says_so() {
    let mut remote = host().start();
    let run = Run::start(&remote, "", WAIT);
    run.pid();
    remote.kill_server();
    remote.start_server_again();
    assert_stops_at_once(run, "error[session-lost]");
}

#[test]
fn client_that_may_not_resume_ends_with_the_first_break() {
    let remote = host().with_client_setting("resume = false").behind_relay().start();
    let run = Run::start(&remote, "", WAIT);
    run.pid();
    // One that is slow to load its files has made two.
    let connections = remote.relay().accepted();
    remote.relay().reset();
    assert_stops_at_once(run, "error[network-lost]");
    assert_eq!(remote.relay().accepted(), connections, "it has not dialled again");
}

#[test]
fn server_without_a_grace_ends_the_process_with_the_connection() {
    let remote = host().with_limit("resume_grace = \"0s\"").behind_relay().start();
    let run = Run::start(&remote, "", WAIT);
    let pid = run.pid();
    let connections = remote.relay().accepted();
    remote.relay().reset();
    assert_stops_at_once(run, "error[network-lost]");
    wait_until("the process has ended", SOON, || !is_alive(pid));
    assert_eq!(remote.relay().accepted(), connections, "it has not dialled again");
}

#[test]
fn revoked_client_is_not_let_back_in() {
    let mut remote = host().behind_relay().start();
    let run = Run::start(&remote, "", WAIT);
    run.pid();
    remote.server().reconfigure("\ndomain = ", "\ncrl = [\"revoked.crl\"]\ndomain = ");
    break_and_restart(&mut remote);
    let said = assert_stops_at_once(run, "error[client-cert]");
    assert!(said.contains("revoked"), "{said}");
}

#[test]
fn client_whose_certificate_expires_keeps_its_session_but_not_after_a_break() {
    let remote = host().behind_relay().start();
    let end = since_1970() + LIFETIME;
    let clients = remote.clients();
    clients.issue_until(Usage::Client, end, uri_params(&[PRINCIPAL])).write(&remote.folder(), "client");
    let mut run = Run::start(&remote, "", WAIT);
    run.pid();
    wait_until("the certificate has expired", SOON, || since_1970() > end + Duration::from_secs(1));
    run.write(b"still here\n");
    run.wait_for_output("still here\n");

    remote.relay().reset();

    let said = assert_stops_at_once(run, "error[client-cert]");
    assert!(said.contains("expired"), "{said}");
}

#[test]
fn client_that_has_renewed_its_certificate_resumes_with_it() {
    let remote = host().behind_relay().start();
    let end = since_1970() + LIFETIME;
    let (clients, folder) = (remote.clients(), remote.folder());
    clients.issue_until(Usage::Client, end, uri_params(&[PRINCIPAL])).write(&folder, "client");
    let run = Run::start(&remote, "", WAIT);
    run.pid();
    wait_until("the certificate has expired", SOON, || since_1970() > end + Duration::from_secs(1));
    for name in ["client.crt", "client.key"] {
        fs::remove_file(folder.join(name)).unwrap();
    }
    clients.client(PRINCIPAL).write(&folder, "client");

    remote.relay().reset();

    assert_goes_on(run);
}

#[test]
fn client_that_is_told_of_the_servers_next_authority_resumes_under_it() {
    let remote = host().behind_relay().start();
    let folder = remote.folder();
    let mut run = Run::start(&remote, "", WAIT);
    run.pid();
    let next = Authority::new("the servers' next authority");
    let certificate = next.certificate();
    let (half, rest) = certificate.split_at(certificate.len() / 2);
    let mut file = OpenOptions::new().append(true).open(folder.join("servers-ca.crt")).unwrap();

    file.write_all(half.as_bytes()).unwrap();
    remote.relay().reset();
    run.write(b"by what was loaded\n");
    run.wait_for_output("by what was loaded\n");

    file.write_all(rest.as_bytes()).unwrap();
    next.server(&[&format!("*.{DOMAIN}")]).write(&folder, "server");
    wait_until("the server shows it", SOON, || remote.server().log().contains("reloaded"));
    remote.relay().reset();
    assert_goes_on(run);
}

#[test]
fn session_goes_on_after_a_certificate_that_was_not_valid() {
    let mut remote = host().behind_relay().start();
    let authority = certify_anew(&mut remote);
    let run = Run::start(&remote, "debug", WAIT);
    run.pid();
    show_expired(&remote, &authority);
    remote.relay().reset();
    wait_until("an attempt has failed", SOON, || run.said().contains("expired"));

    authority.server(&[&format!("*.{DOMAIN}")]).write(&remote.folder(), "server");

    assert_goes_on(run);
}

#[test]
fn server_whose_certificate_has_expired_is_told_as_that_at_once_or_when_the_time_is_over() {
    let mut remote = host().with_client_setting("resume = \"2s\"").behind_relay().start();
    let authority = certify_anew(&mut remote);
    let run = Run::start(&remote, "", WAIT);
    run.pid();
    show_expired(&remote, &authority);
    remote.relay().reset();
    let (status, _, said) = run.end(SOON);
    assert_eq!(status, Some(255));
    assert!(said.contains("error[network-lost]") && said.contains("within 2 s; last: "), "{said}");
    assert!(said.contains("certificate expired at 2021-01-01"), "{said}");

    assert_stops_at_once(Run::start(&remote, "", WAIT), "error[tls-expired]");
}

#[test]
fn session_whose_path_was_only_slow_outlives_the_servers_certificate() {
    let mut remote = host().behind_relay().start();
    let end = since_1970() + LIFETIME;
    let authority = Authority::new("the servers' authority");
    fs::write(remote.folder().join("servers-ca.crt"), authority.certificate()).unwrap();
    authority.issue_until(Usage::Server, end, params(&[&format!("*.{DOMAIN}")])).write(&remote.folder(), "server");
    break_and_restart(&mut remote);
    let mut run = Run::start(&remote, "debug", WAIT);
    run.pid();
    wait_until("the certificate has expired", SOON, || since_1970() > end + Duration::from_secs(1));

    remote.relay().hold(true);
    run.write(b"still here\n");
    wait_until("another connection has failed", SOON, || run.said().contains("expired"));
    remote.relay().hold(false);

    run.wait_for_output("still here\n");
    run.end_stdin();
    assert_eq!(run.end(SOON).0, Some(0));
}

#[test]
fn client_without_its_grant_is_not_let_back_in() {
    let mut remote = host().behind_relay().start();
    let run = Run::start(&remote, "", WAIT);
    run.pid();
    remote.server().reconfigure("principal = \"spiffe://tunnel.test/users/ann\"", "principal = \"nobody\"");
    break_and_restart(&mut remote);
    assert_stops_at_once(run, "error[host-unknown]");
}

#[test]
fn server_with_another_authority_is_not_trusted_with_the_secret() {
    let mut remote = host().with_client_setting("resume = \"2s\"").behind_relay().start();
    let run = Run::start(&remote, "", WAIT);
    run.pid();
    Authority::new("somebody else").server(&[&format!("*.{DOMAIN}")]).write(&remote.folder(), "server");
    break_and_restart(&mut remote);
    // A portal on a strange network looks the same and passes, so the client keeps trying for as long as it may.
    let (status, _, said) = run.end(SOON);
    assert_eq!(status, Some(255));
    assert!(said.contains("error[network-lost]") && said.contains("within 2 s"), "{said}");
    assert!(remote.server().records("refused").is_empty(), "it was never asked: {}", remote.server().log());
}

/// An authority of the test's own, which the server is certified by from now on.
fn certify_anew(remote: &mut Remote) -> Authority {
    let authority = Authority::new("the servers' authority");
    fs::write(remote.folder().join("servers-ca.crt"), authority.certificate()).unwrap();
    authority.server(&[&format!("*.{DOMAIN}")]).write(&remote.folder(), "server");
    break_and_restart(remote);
    authority
}

/// Lets the server show an expired certificate, as a portal does, and as it looks by a wrong clock.
#[track_caller]
fn show_expired(remote: &Remote, authority: &Authority) {
    let expired = authority.issue(Usage::Server, Validity::Past, params(&[&format!("*.{DOMAIN}")]));
    expired.write(&remote.folder(), "server");
    wait_until("the server shows it", SOON, || remote.server().log().contains("reloaded"));
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

fn is_alive(pid: i32) -> bool {
    process::all().iter().any(|process| process.pid == pid)
}

fn break_and_restart(remote: &mut Remote) {
    remote.relay().refuse(true);
    remote.kill_server();
    remote.start_server_again();
    remote.relay().reset();
    remote.relay().refuse(false);
}

/// The client's patience is two minutes: an end within seconds is an end at once.
#[track_caller]
fn assert_stops_at_once(run: Run, reason: &str) -> String {
    let (status, _, said) = run.end(SOON);
    assert_eq!(status, Some(255), "{said}");
    assert!(said.contains(reason), "{said}");
    assert!(said.lines().count() <= 2, "a line and a hint: {said}");
    said
}

/// What is written comes back, and the command ends by itself.
#[track_caller]
fn assert_goes_on(mut run: Run) {
    run.write(b"still here\n");
    run.wait_for_output("still here\n");
    run.end_stdin();
    assert_eq!(run.end(SOON).0, Some(0));
}
