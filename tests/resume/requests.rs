//! `POST /resume` as nobody should ask it: refused with the right status, and the session goes on unharmed.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::peer::{Caller, Session};
use super::run::host;
use crate::support::process::{self, Signal};
use crate::support::remote::PRINCIPAL;
use crate::support::tree::{noise, sha256};
use crate::support::wait::{SOON, wait_until};

const BOB: &str = "spiffe://tunnel.test/users/bob";

/// How many requests a burst has, and from how many clients at once.
const BURST: usize = 1000;
const CLIENTS: usize = 8;

#[test]
fn secret_that_is_not_the_sessions_own_is_gone() {
    let remote = host().start();
    let caller = Caller::of(&remote);
    let mut session = Session::start(&caller, "exec cat");
    let other = Session::start(&caller, "exec cat");
    session.assert_alive();
    let (id, secret) = session.token.split_once('.').unwrap();
    let (other_id, other_secret) = other.token.split_once('.').unwrap();
    let changed = if secret.starts_with('A') { "B" } else { "A" }.to_owned() + &secret[1..];
    for token in [
        String::new(),
        ".".to_owned(),
        id.to_owned(),
        format!("{id}."),
        format!(".{secret}"),
        format!("{id}.{}", &secret[..secret.len() - 1]),
        format!("{id}.{}", &secret[..secret.len() / 2]),
        format!("{id}.{changed}"),
        format!("{id}.{secret}AAAA"),
        format!("{id}.{secret}="),
        format!("{id}.{other_secret}"),
        format!("{other_id}.{secret}"),
        format!("{}.{secret}", &id[..id.len() - 2]),
        format!("{secret}.{id}"),
        format!("{id}.{secret}.{secret}"),
        format!("{id}.{}", "A".repeat(8000)),
        format!("{id}.{}", "%".repeat(43)),
    ] {
        let (answer, _) = caller.resume(&token, &session.received.to_string());
        answer.assert_refused(410, "session-lost");
    }
    let fields = [("Connection", "Upgrade"), ("Upgrade", "tstunnel/1"), ("Tstunnel-Received", "1")];
    caller.ask("POST", "/resume", &fields, "").0.assert_refused(410, "session-lost");
    session.assert_alive();
}

#[test]
fn server_that_stops_ends_what_is_interrupted_and_resumes_nothing() {
    let remote = host().start();
    let caller = Caller::of(&remote);
    let mut parked = Session::start(&caller, "exec cat");
    parked.assert_alive();
    // What the server waits for meanwhile.
    let line = "trap '' HUP; trap told=1 TERM; echo up; until [ -e done ] && [ \"$told\" ]; do sleep 0.1; done; exit 5";
    let mut busy = Session::start(&caller, line);
    busy.carry_until(3);
    parked.drop_connection();
    let cats = || process::with_home(remote.home()).iter().filter(|process| process.mentions("cat")).count();
    assert_eq!(cats(), 1);
    remote.server().signal(Signal::TERM);
    wait_until("it drains", SOON, || remote.server().log().contains("stopping"));
    caller.resume(&parked.token, &parked.received.to_string()).0.assert_refused(410, "session-lost");
    caller.start("true").0.assert_refused(503, "overloaded");
    wait_until("it is ended, long before its grace", SOON, || cats() == 0);
    std::fs::write(remote.home().join("done"), "").unwrap();
    busy.carry(false, |session| session.exit() == Some(5));
}

#[test]
fn another_principal_and_another_host_get_the_answer_of_no_session() {
    let remote = host().with_grant(BOB, "host123").with_grant(PRINCIPAL, "host456").start();
    remote.clients().client(BOB).write(&remote.folder(), "bob");
    let mut session = Session::start(&Caller::of(&remote), "exec cat");
    session.assert_alive();
    let received = session.received.to_string();
    let unknown = Caller::of(&remote).resume("AAAA.AAAA", &received).0;
    for (name, host) in [("bob", "host123"), ("client", "host456")] {
        let caller = Caller::named(&remote, name, host);
        let answer = caller.resume(&session.token, &received).0;
        answer.assert_refused(410, "session-lost");
        assert_eq!(answer.body, unknown.body, "whether there is a session is not to be seen");
        assert_eq!(caller.start("true").0.status, 101, "both may use their hosts");
    }
    session.assert_alive();
}

#[test]
fn session_stands_by_the_certificate_that_resumed_it_last() {
    let remote = host().start();
    let mut session = Session::start(&Caller::of(&remote), "exec cat");
    session.assert_alive();
    remote.clients().client(PRINCIPAL).write(&remote.folder(), "renewed");
    session.drop_connection();
    session.resume_as(&Caller::named(&remote, "renewed", remote.host()));
    session.assert_alive();

    remote.server().reconfigure("\ndomain = ", "\ncrl = [\"revoked.crl\"]\ndomain = ");
    wait_until("the first certificate is revoked", SOON, || remote.server().log().contains("reloaded"));
    assert!(Caller::of(&remote).try_resume(&session.token, "0").is_err());
    session.assert_alive();
}

#[test]
fn session_that_has_ended_or_expired_is_gone() {
    let remote = host().with_grace(Duration::from_secs(1)).start();
    let caller = Caller::of(&remote);
    let mut ended = Session::start(&caller, "exit 3");
    ended.carry(true, |session| session.exit() == Some(3));
    wait_until("the session has ended", SOON, || remote.server().records("end").len() == 1);
    caller.resume(&ended.token, &ended.received.to_string()).0.assert_refused(410, "session-lost");

    let mut expired = Session::start(&caller, "exec cat");
    expired.assert_alive();
    expired.drop_connection();
    wait_until("the session expires", SOON, || remote.server().log().contains("not resumed within the grace"));
    caller.resume(&expired.token, &expired.received.to_string()).0.assert_refused(410, "session-lost");
}

#[test]
fn count_that_cannot_be_is_refused_and_the_session_goes_on() {
    let remote = host().start();
    let caller = Caller::of(&remote);
    let mut session = Session::start(&caller, "exec cat");
    session.assert_alive();
    session.assert_alive();
    assert!(session.acknowledged == 2 && session.received == 2);
    // An acknowledgement has been read once what was sent behind it is answered.
    session.assert_alive();
    let too_many = (session.received + 1).to_string();
    for count in ["", "0", "1", &too_many, "18446744073709551615", "18446744073709551616", "-1", "1.5", "two", "0x2"] {
        caller.resume(&session.token, count).0.assert_refused(400, "bad-request");
    }
    let fields = [("Connection", "Upgrade"), ("Upgrade", "tstunnel/1"), ("Tstunnel-Session", &*session.token)];
    caller.ask("POST", "/resume", &fields, "").0.assert_refused(400, "bad-request");
    session.assert_alive();
    session.drop_connection();
    session.resume().unwrap();
    session.assert_alive();
}

#[test]
fn resume_of_another_kind_is_refused_and_the_session_goes_on() {
    let remote = host().start();
    let caller = Caller::of(&remote);
    let mut session = Session::start(&caller, "exec cat");
    session.assert_alive();
    let (token, received) = (session.token.clone(), session.received.to_string());
    let own = [("Tstunnel-Session", &*token), ("Tstunnel-Received", &*received)];
    let with = |fields: &[(&'static str, &'static str)]| [&own[..], fields].concat();
    for fields in [
        with(&[("Connection", "Upgrade"), ("Upgrade", "tcp")]),
        with(&[("Connection", "Upgrade"), ("Upgrade", "tcp, tstunnel/1")]),
        with(&[("Connection", "Upgrade"), ("Upgrade", "tstunnel/2")]),
        with(&[("Upgrade", "tstunnel/1")]),
        with(&[("Connection", "Upgrade")]),
    ] {
        let answer = caller.ask("POST", "/resume", &fields, "").0;
        answer.assert_refused(426, "bad-request");
        assert_eq!(answer.field("Upgrade"), Some("tstunnel/1, tcp"));
    }
    let answer = caller.ask("GET", "/resume", &with(&[("Connection", "Upgrade"), ("Upgrade", "tstunnel/1")]), "").0;
    answer.assert_refused(405, "bad-request");
    assert_eq!(answer.field("Allow"), Some("POST"));
    session.assert_alive();
}

#[test]
fn frames_that_a_resume_brings_along_are_taken_once() {
    let remote = host().start();
    let caller = Caller::of(&remote);
    let (answer, _wire) = caller.start("exec cat");
    assert_eq!(answer.field("Tstunnel-Early"), Some("8192"));
    let mut session = Session::start(&caller, "exec cat");
    // The first two are on the host already, and come once more.
    session.send(b"one ");
    session.send(b"two ");
    session.carry_until(8);
    session.send(b"three ");
    session.send(b"four ");
    session.drop_connection();
    session.resume_early(0);
    assert!(!session.has_unsent());
    session.carry_until(19);
    assert_eq!(session.stdout, b"one two three four ");
    // Behind a gap there is nothing that could be taken.
    session.send(b"five ");
    session.send(b"six ");
    session.drop_connection();
    session.resume_early(5);
    assert!(session.has_unsent());
    session.carry_until(28);
    assert_eq!(session.stdout, b"one two three four five six ");
}

#[test]
fn what_is_no_row_of_frames_is_not_taken_along_and_the_session_goes_on() {
    let remote = host().start();
    let caller = Caller::of(&remote);
    let mut session = Session::start(&caller, "exec cat");
    session.assert_alive();
    let (token, received) = (session.token.clone(), session.received);
    let frame = "\0\0\0\x01a";
    let large = "\0\0\x20\0".to_owned() + &"a".repeat(8192);
    for (early, body, status) in [
        ("", frame, 400),
        ("-1", frame, 400),
        ("x", frame, 400),
        ("18446744073709551615", frame, 400),
        ("18446744073709551616", frame, 400),
        ("1", &frame[..4], 400),
        ("1", "\0\0", 400),
        ("1", "\0\x7f\0\0", 400),
        ("1", "\x01\0\0\x01a", 400),
        ("1", "\x13\0\0\0", 400),
        ("1", "\x12\0\0\x08\0\0\0\0\0\0\0\x01", 400),
        ("1", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("1", &large, 413),
    ] {
        let answer = caller.resume_with(&token, received, early, body).0;
        answer.assert_refused(status, "bad-request");
    }
    caller.resume_with("", 0, "1", frame).0.assert_refused(410, "session-lost");
    session.assert_alive();
}

#[test]
fn of_two_resumes_at_once_one_carries_on() {
    let remote = host().start();
    let caller = Caller::of(&remote);
    let mut session = Session::start(&caller, "exec cat");
    for _ in 0..20 {
        session.assert_alive();
        let (token, received) = (session.token.clone(), session.received.to_string());
        let answers = thread::scope(|scope| {
            let resumes = [(); 2].map(|()| scope.spawn(|| caller.resume(&token, &received)));
            resumes.map(|resume| resume.join().unwrap())
        });
        // The old connection is over; of the new ones that which is not the server's choice is closed.
        session.drop_connection();
        for (answer, wire) in answers {
            assert_eq!(answer.status, 101, "{answer:?}");
            session.attach(wire);
        }
        // A connection that lost is closed, and the session goes on over yet another.
        session.carry(true, |session| session.is_attached());
        session.send(b"more\n");
        let enough = session.stdout.len() + 5;
        session.carry(true, |session| session.stdout.len() >= enough);
        assert!(session.stdout.ends_with(b"more\n"));
    }
}

#[test]
fn server_without_a_grace_offers_no_resume() {
    for limit in ["resume_grace = \"0s\"", "resume_memory_bytes = 0"] {
        let remote = host().with_limit(limit).start();
        let (answer, _wire) = Caller::of(&remote).start("exec cat");
        assert_eq!(answer.status, 101);
        assert_eq!((answer.field("Tstunnel-Session"), answer.field("Tstunnel-Grace")), (None, None), "{limit}");
    }
}

#[test]
fn a_thousand_bad_resumes_leave_the_live_connection_alone() {
    let remote = host().start();
    let caller = Caller::of(&remote);
    let mut session = Session::start(&caller, "exec cat");
    let token = session.token.clone();
    let (id, secret) = token.split_once('.').unwrap();
    let wrong = format!("{id}.{}{}", if secret.starts_with('A') { "B" } else { "A" }, &secret[1..]);
    let (asked, rounds) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (caller, asked, rounds, token, wrong) = (&caller, &asked, &rounds, &token, &wrong);
            scope.spawn(move || {
                // Some of them while there is traffic, however late that begins.
                while asked.fetch_add(1, Ordering::SeqCst) < BURST || rounds.load(Ordering::SeqCst) < 2 {
                    let (token, count) = if client % 2 == 0 { (token, "9999999") } else { (wrong, "0") };
                    let status = caller.resume(token, count).0.status;
                    assert_eq!(status, if client % 2 == 0 { 400 } else { 410 });
                }
            });
        }
        // Not a single connection of its own breaks.
        assert_exact(&mut session, &rounds, || asked.load(Ordering::SeqCst) < BURST);
    });
}

#[test]
fn a_thousand_takeovers_of_a_live_session_leave_its_bytes_exact() {
    let remote = host().start();
    let caller = Caller::of(&remote);
    let mut session = Session::start(&caller, "exec cat");
    let token = session.token.clone();
    let (asked, taken, received) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let (caller, asked, taken, received, token, over) = (&caller, &asked, &taken, &received, &token, &over);
            scope.spawn(move || {
                while asked.fetch_add(1, Ordering::SeqCst) < BURST {
                    let count = received.load(Ordering::SeqCst).to_string();
                    // What has been acknowledged meanwhile makes the count one that cannot be.
                    match caller.resume(token, &count).0.status {
                        101 => _ = taken.fetch_add(1, Ordering::SeqCst),
                        status => assert_eq!(status, 400),
                    }
                }
                over.store(true, Ordering::SeqCst);
            });
        }
        let bytes = noise(2_000_000, 17);
        bytes.chunks(10_000).for_each(|piece| session.send(piece));
        session.carry(true, |session| {
            received.store(session.received, Ordering::SeqCst);
            session.stdout.len() >= bytes.len() && over.load(Ordering::SeqCst)
        });
        assert!(sha256(&session.stdout) == sha256(&bytes), "other bytes came back");
    });
    println!("{} of {BURST} resumes took the session over", taken.load(Ordering::SeqCst));
    assert!(taken.load(Ordering::SeqCst) > BURST / 10);
    session.drop_connection();
    session.resume().unwrap();
    session.assert_alive();
}

/// Sends through `cat` for as long as `goes_on`, but twice at least, and compares.
#[track_caller]
fn assert_exact(session: &mut Session, rounds: &AtomicUsize, goes_on: impl Fn() -> bool) {
    let mut sent = session.stdout.clone();
    while goes_on() || rounds.load(Ordering::SeqCst) < 2 {
        let bytes = noise(300_000, rounds.load(Ordering::SeqCst) as u64 + 1);
        bytes.chunks(10_000).for_each(|piece| session.send(piece));
        sent.extend(bytes);
        session.carry(false, |session| session.stdout.len() >= sent.len());
        rounds.fetch_add(1, Ordering::SeqCst);
    }
    assert!(session.stdout == sent, "other bytes came back");
}
