//! Sessions that have ended leave nothing behind in the server, nor does a server that is killed.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::figures::{Figures, memory_kib};
use crate::support::script;
use crate::support::wait::{SOON, wait_until};
use crate::support_net::child::{Watched, run};
use crate::support_net::fake::{self, ClientTls};
use crate::support_net::frames::{self, frame};
use crate::support_net::site::{PRINCIPAL, Plan, Site};
use crate::turn;

/// How many sessions come one after another, and how many at once.
const ONE_AFTER_ANOTHER: usize = 500;
const AT_ONCE: usize = 200;
/// How much more the allocator may keep of what was freed, after as many sessions one after another again.
const SLACK_KIB: u64 = 1 << 10;
/// What it may keep in all after many at once, the threads that serve them from then on included.
const KEPT_KIB: u64 = 24 << 10;
/// How many sessions have a command that does not read what it is sent, and how much each is sent.
const UNREAD: usize = 20;
const UNREAD_BYTES: usize = 8 << 20;
/// Where an agent is.
const AGENT: &str = ".mutagen/agents/0.18.1/mutagen-agent";

/// A host that takes that many sessions of one client.
fn plan() -> Plan {
    Plan::any()
        .limit(&format!("max_sessions_per_principal = {}", AT_ONCE + 10))
        .limit(&format!("max_sessions_per_source = {}", AT_ONCE + 10))
}

/// Waits until the server holds no more than before, memory aside, and returns what it holds.
#[track_caller]
fn settled(site: &Site, server: u32, before: &Figures) -> Figures {
    site.wait_until_idle();
    let mut now = Figures::of(server);
    wait_until("the server holds no more than before", SOON, || {
        now = Figures::of(server);
        now.descriptors <= before.descriptors && now.children <= before.children
    });
    now
}

/// Says what there was before and after a round, and after another, and checks that there is no more, memory aside.
#[track_caller]
fn check(name: &str, before: Figures, after: [Figures; 2]) {
    println!("{name}: before {before:?}, after one round {:?}, after another {:?}", after[0], after[1]);
    for after in after {
        // The connection of the session before may have been open for a moment longer than that.
        assert!(after.descriptors <= before.descriptors && after.children <= before.children);
    }
}

#[test]
fn sessions_one_after_another_leave_nothing() {
    let _turn = turn();
    let mut site = Site::start(&plan());
    let server = site.server().id();
    let round = |count: usize| {
        for _ in 0..count {
            assert_eq!(run(&mut site.exec(&["echo x"])).ok().text(), "x\n");
        }
    };
    run(&mut site.exec(&["true"])).ok();
    site.wait_until_idle();
    let before = Figures::of(server);
    let after = [(); 2].map(|()| {
        round(ONE_AFTER_ANOTHER / 2);
        settled(&site, server, &before)
    });
    check("one after another", before, after);
    wait_until("no memory is left over", SOON, || memory_kib(server) <= after[0].memory_kib + SLACK_KIB);
}

#[test]
fn sessions_at_once_leave_nothing() {
    let _turn = turn();
    let mut site = Site::start(&plan());
    let server = site.server().id();
    run(&mut site.exec(&["true"])).ok();
    site.wait_until_idle();
    let before = Figures::of(server);
    let after = [(); 2].map(|()| {
        let mut sessions = begin(&site, &["cat"]);
        assert_eq!(Figures::of(server).children, AT_ONCE);
        sessions.iter_mut().for_each(|session| drop(session.stdin()));
        for session in sessions {
            session.wait_within(SOON * 2).ok();
        }
        let after = settled(&site, server, &before);
        wait_until("the memory is given back", SOON, || memory_kib(server) < before.memory_kib + KEPT_KIB);
        after
    });
    check("at once", before, after);
}

#[test]
fn what_sessions_have_held_at_once_goes_back_to_the_system() {
    let _turn = turn();
    let site = Site::start(&plan());
    let server = site.server_id();
    let before_kib = memory_kib(server);
    let mut sessions: Vec<ClientTls> = (0..UNREAD).map(|_| unread(&site)).collect();
    let all_kib = (UNREAD * UNREAD_BYTES / 1024) as u64;
    wait_until("the server holds what nobody reads", SOON, || memory_kib(server) > before_kib + all_kib / 2);
    // One that stays has some of its memory behind theirs.
    for session in &mut sessions[..UNREAD - 1] {
        session.write_all(&frame(frames::CLOSE, b"")).unwrap();
        session.flush().unwrap();
    }
    wait_until("the memory is given back", SOON, || memory_kib(server) < before_kib + all_kib / 4);
}

/// A session that has sent more than its command reads.
fn unread(site: &Site) -> ClientTls {
    let mut tls = fake::connect(site, &site.clients.client(PRINCIPAL));
    let fields = "Connection: Upgrade\r\nUpgrade: tstunnel/1\r\n";
    let answer = fake::post(&mut tls, "/tinyscale/v1/command", fields, "{\"command\": \"exec sleep 1000\"}");
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    let data = frame(frames::STDIN, &[b'x'; 60 << 10]);
    for _ in 0..UNREAD_BYTES / data.len() {
        tls.write_all(&data).unwrap();
    }
    tls.flush().unwrap();
    tls
}

/// Starts as many sessions as there may be at once, and waits until all of them answer.
fn begin(site: &Site, words: &[&str]) -> Vec<Watched> {
    // So many clients that start at once have little of the machine each.
    site.configure_more("connect_timeout = \"60s\"");
    let mut sessions: Vec<Watched> =
        (0..AT_ONCE).map(|_| Watched::start(site.exec(words).stdin(Stdio::piped()))).collect();
    for session in &mut sessions {
        session.write(b"here\n");
        session.wait_for_output("here\n");
    }
    sessions
}

#[test]
fn a_server_that_is_killed_leaves_no_agent() {
    let _turn = turn();
    let mut site = Site::start(&plan());
    let file = site.home.join(AGENT);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    // It lives until its stdin ends, as real ones do.
    script::write(&file, "exec cat");
    let sessions = begin(&site, &[AGENT, "synchronizer"]);
    assert_eq!(site.running("cat"), AT_ONCE);
    site.server().kill();
    site.wait_until_idle();
    drop(sessions);
}
