//! Descriptors that are short cost new sessions, never live ones.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::process::Stdio;

use crate::raw::{assert_goes_on, connect_from, held_session};
use crate::support::process::{program, run as output_of};
use crate::support::serve::TSTUNNEL;
use crate::support::wait::{SOON, wait_until};
use crate::support_net::child::{Watched, run};
use crate::support_net::fake;
use crate::support_net::report::{check, fails};
use crate::support_net::site::{PRINCIPAL, Plan, Site, text};

/// A command that gives what it executes these limits of open descriptors.
fn limited(soft: u32, hard: u32) -> Vec<String> {
    vec![program("prlimit").display().to_string(), format!("--nofile={soft}:{hard}")]
}

fn site(plan: &Plan, soft: u32, hard: u32) -> Site {
    let mut site = Site::new();
    site.serve_by(plan, &limited(soft, hard));
    site
}

/// The descriptors that the server has open.
fn open(site: &mut Site) -> BTreeSet<usize> {
    let id = site.server().id();
    let entries = fs::read_dir(format!("/proc/{id}/fd")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

#[test]
fn sessions_that_descriptors_have_no_room_for_are_refused_and_live_ones_go_on() {
    let mut site = site(&Plan::any().limit("head_timeout = \"10m\""), 160, 160);
    let log = site.server_log();
    assert!(log.contains("160 open descriptors are enough for 6 sessions"), "{log}");
    let mut held: Vec<Watched> = (0..6).map(|_| held_session(&site)).collect();
    fails(&mut site.exec(&["true"]), 255, "overloaded");
    let answer = run(site.curl("/copy/x").args(["--data-binary", "x"])).ok().text();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.to_ascii_lowercase().contains("retry-after:"), "{answer}");

    // All that strangers and those who ask nothing can hold beside them.
    let silent: Vec<_> = (0..200).map(|_| connect_from(Ipv4Addr::LOCALHOST, site.address())).collect();
    let identities = [PRINCIPAL, "spiffe://tunnel.test/users/bob"].map(|name| site.clients.client(name));
    let idle: Vec<_> = (0..20)
        .filter_map(|index| {
            let mut tls = fake::connect(&site, &identities[index % 2]);
            tls.conn.complete_io(&mut tls.sock).is_ok().then_some(tls)
        })
        .collect();
    assert!(open(&mut site).len() <= 160);
    for session in &mut held {
        assert_goes_on(session);
    }
    drop((silent, idle));
    fails(&mut site.exec(&["true"]), 255, "overloaded");
    let last = held.pop().unwrap();
    last.wait().ok();
    wait_until("its descriptors are another's", SOON, || run(&mut site.exec(&["true"])).status.success());
    for mut session in held {
        assert_goes_on(&mut session);
        session.wait().ok();
    }
    let log = site.server_log();
    assert!(!log.contains("Too many open files") && !log.contains("panicked"), "{log}");
}

#[test]
fn a_server_without_any_descriptor_left_keeps_its_sessions() {
    // A server that looks at its files has one of them open for a moment.
    let mut site = site(&Plan::any().top("watch = false"), 4096, 4096);
    let mut held = [(); 3].map(|()| held_session(&site));
    let id = site.server().id();
    // Where the limit is the first that is free, none is left; where it is the third, two are.
    let open = open(&mut site);
    let free: Vec<usize> = (0..).filter(|number| !open.contains(number)).take(3).collect();
    let set_limit = |count: usize| {
        let limit = format!("--nofile={count}:4096");
        output_of(std::process::Command::new(program("prlimit")).arg(format!("--pid={id}")).arg(limit))
    };
    set_limit(free[0]);
    // It cannot even be accepted.
    let mut refused = Watched::start(site.exec(&["true"]).stdin(Stdio::null()));
    wait_until("the server says so", SOON, || site.server_log().contains("cannot accept"));
    for session in &mut held {
        assert_goes_on(session);
    }
    assert!(refused.ended().is_none_or(|status| !status.success()));
    // One may be accepted, and there is nothing to start a process with.
    set_limit(free[2]);
    drop(refused);
    let ran = run(&mut site.exec(&["true"]));
    check("a session without descriptors", &ran, 255, "overloaded");
    for session in &mut held {
        assert_goes_on(session);
    }
    set_limit(4096);
    run(&mut site.exec(&["true"])).ok();
    assert_eq!(site.server_log().matches("cannot accept").count(), 1, "{}", site.server_log());
    for session in held {
        session.wait().ok();
    }
}

#[test]
fn the_server_takes_what_it_may_have_and_its_processes_get_what_it_was_given() {
    let mut site = site(&Plan::any(), 200, 4096);
    let id = site.server().id();
    let limits = fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["4096", "4096"]);
    assert_eq!(run(&mut site.exec(&["ulimit -Sn; ulimit -Hn"])).ok().text(), "200\n4096\n");
}

#[test]
fn a_server_with_too_few_descriptors_for_one_session_does_not_start() {
    let mut site = Site::start(&Plan::any());
    site.server().kill();
    let words = limited(64, 64);
    let configuration = site.root.join("server.toml");
    let mut serve = site.command(&words[0]);
    serve.args(&words[1..]).args([TSTUNNEL, "serve", "--config", text(&configuration)]);
    let said = fails(&mut serve, 1, "config");
    assert!(said.contains("64 open descriptors leave no room for a session: it takes "), "{said}");
}
