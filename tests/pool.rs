//! Agents that are kept started: who gets one, who does not, and that none is left.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs;
use std::process::{Command, Stdio};

use support::process::{self, Process, Signal};
use support::script;
use support::wait::{SOON, wait_for, wait_until};
use support_net::child::{Watched, run};
use support_net::site::{DOMAIN, HOST, Plan, Site};

const AGENT: &str = ".mutagen/agents/0.18.1/mutagen-agent";
const SYNCHRONIZER: [&str; 2] = [AGENT, "synchronizer"];
const FORWARDER: [&str; 2] = [AGENT, "forwarder"];

/// An agent that says its number, and then what it is sent.
const SCRIPT: &str = "echo \"agent $$\"\nexec cat";

fn site(pool: &str, plan: Plan) -> Site {
    let site = Site::start(&plan.host(pool));
    install(&site, SCRIPT);
    site
}

/// Puts another file in the agent's place.
fn install(site: &Site, body: &str) {
    let folder = site.home.join(".mutagen/agents/0.18.1");
    fs::create_dir_all(&folder).unwrap();
    let new = folder.join("new");
    script::write(&new, body);
    fs::rename(new, folder.join("mutagen-agent")).unwrap();
}

/// Runs a session to its end, and returns the number of its agent.
fn session(site: &Site, words: &[&str]) -> i32 {
    let mut session = Watched::start(site.exec(words).stdin(Stdio::piped()));
    session.wait_for_output("\n");
    let text = session.wait().ok().text();
    text.trim_end().strip_prefix("agent ").expect("an agent says its number").parse().unwrap()
}

fn idle(site: &Site) -> Vec<Process> {
    process::with_home(&site.home)
}

/// Waits until so many agents are idle, and returns their numbers.
fn wait_for_idle(site: &Site, count: usize) -> Vec<i32> {
    wait_for("so many agents are idle", SOON, || {
        let pids: Vec<i32> = idle(site).iter().map(|process| process.pid).collect();
        (pids.len() == count).then_some(pids)
    })
}

#[test]
fn a_session_gets_an_agent_that_was_kept_for_it() {
    let site = site("pool = 2", Plan::mutagen());
    session(&site, &SYNCHRONIZER);
    for _ in 0..5 {
        let kept = wait_for_idle(&site, 2);
        assert!(kept.contains(&session(&site, &SYNCHRONIZER)));
    }
}

#[test]
fn nothing_is_kept_where_no_pool_is_asked_for() {
    let site = site("", Plan::mutagen());
    session(&site, &SYNCHRONIZER);
    site.wait_until_idle();
}

#[test]
fn what_an_agent_says_at_once_and_what_it_is_sent_arrive_exactly() {
    let site = site("pool = 1", Plan::mutagen());
    session(&site, &SYNCHRONIZER);
    let kept = wait_for_idle(&site, 1);
    let mut session = Watched::start(site.exec(&SYNCHRONIZER).stdin(Stdio::piped()));
    session.write(b"hello\n");
    session.wait_for_output("hello");
    assert_eq!(session.wait().ok().text(), format!("agent {}\nhello\n", kept[0]));
}

#[test]
fn an_agent_of_another_mode_takes_the_place_of_what_was_kept() {
    let site = site("pool = 1", Plan::mutagen());
    session(&site, &SYNCHRONIZER);
    let kept = wait_for_idle(&site, 1);
    let forwarder = session(&site, &FORWARDER);
    assert!(!kept.contains(&forwarder));
    wait_until("what was kept has given way", SOON, || {
        let now = idle(&site);
        now.len() == 1 && now[0].pid != kept[0]
    });
    let kept = wait_for_idle(&site, 1);
    assert_eq!(session(&site, &FORWARDER), kept[0]);
}

#[test]
fn an_agent_whose_file_was_replaced_is_not_used() {
    let site = site("pool = 2", Plan::mutagen());
    session(&site, &SYNCHRONIZER);
    let kept = wait_for_idle(&site, 2);
    install(&site, &format!("{SCRIPT}\n# another version"));
    assert!(!kept.contains(&session(&site, &SYNCHRONIZER)));
    wait_until("the old ones are gone", SOON, || idle(&site).iter().all(|process| !kept.contains(&process.pid)));
}

#[test]
fn an_agent_that_was_written_into_is_not_used() {
    let site = site("pool = 1", Plan::mutagen());
    session(&site, &SYNCHRONIZER);
    let kept = wait_for_idle(&site, 1);
    let file = site.home.join(AGENT);
    let new = site.root.join("new");
    script::write(&new, &SCRIPT.replace("agent $$", "agent 0$$"));
    // In the same file; its agent runs `cat` by now, so it may be written. By a process of its own, as script.rs says.
    process::run(Command::new("cp").arg(&new).arg(&file));
    assert!(!kept.contains(&session(&site, &SYNCHRONIZER)));
}

#[test]
fn an_agent_that_has_ended_meanwhile_is_not_used() {
    let site = site("pool = 2", Plan::mutagen());
    session(&site, &SYNCHRONIZER);
    let kept = wait_for_idle(&site, 2);
    for process in idle(&site) {
        process.signal(Signal::KILL);
    }
    wait_until("they have ended", SOON, || idle(&site).iter().all(|process| !kept.contains(&process.pid)));
    assert!(!kept.contains(&session(&site, &SYNCHRONIZER)));
    wait_for_idle(&site, 2);
}

#[test]
fn an_agent_is_not_kept_for_ever() {
    let site = site("pool = 2", Plan::mutagen().limit("pool_idle = \"1s\""));
    session(&site, &SYNCHRONIZER);
    wait_for_idle(&site, 2);
    site.wait_until_idle();
}

#[test]
fn no_more_are_kept_than_there_may_be_in_all() {
    let site = site("pool = 16", Plan::mutagen().limit("max_pooled = 3"));
    session(&site, &SYNCHRONIZER);
    wait_for_idle(&site, 3);
    session(&site, &SYNCHRONIZER);
    wait_for_idle(&site, 3);
}

#[test]
fn agents_are_not_shared_between_the_policies_of_two_principals() {
    const BOB: &str = "spiffe://tunnel.test/users/bob";
    let grant = format!("[[grant]]\nprincipal = \"{BOB}\"\nhosts = [\"{HOST}\"]");
    let site = site("pool = 1", Plan::mutagen().tables(&grant));
    session(&site, &SYNCHRONIZER);
    let anns = wait_for_idle(&site, 1);
    site.write(&site.clients.client(BOB), "bob");
    site.configure_as("bob", site.address(), "");
    assert!(!anns.contains(&session(&site, &SYNCHRONIZER)));
    let both = wait_for_idle(&site, 2);
    assert!(both.contains(&anns[0]), "ann's agent still waits for her");
}

#[test]
fn a_principal_without_a_grant_gets_nothing_of_what_is_kept() {
    let site = site("pool = 1", Plan::mutagen());
    session(&site, &SYNCHRONIZER);
    let kept = wait_for_idle(&site, 1);
    site.write(&site.clients.client("spiffe://tunnel.test/users/eve"), "eve");
    site.configure_as("eve", site.address(), "");
    assert_eq!(run(&mut site.exec(&SYNCHRONIZER)).code(), Some(255));
    assert_eq!(wait_for_idle(&site, 1), kept);
}

#[test]
fn a_reload_ends_what_was_started_by_the_rules_of_before() {
    let mut site = site("pool = 2", Plan::mutagen());
    session(&site, &SYNCHRONIZER);
    wait_for_idle(&site, 2);
    site.server().reconfigure("pool = 2", "");
    site.server().signal(Signal::HUP);
    site.wait_until_idle();
}

#[test]
fn a_server_that_stops_or_is_killed_leaves_no_agent() {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut site = site("pool = 4", Plan::mutagen());
        session(&site, &SYNCHRONIZER);
        wait_for_idle(&site, 4);
        site.server().signal(signal);
        wait_for("the server ends", SOON, || site.server().ended());
        site.wait_until_idle();
    }
}

#[test]
fn a_pool_behind_a_wrapper_is_refused_at_the_start() {
    let site = Site::new();
    let text = format!(
        "cert = \"server.crt\"\nkey = \"server.key\"\nclient_ca = [\"clients-ca.crt\"]\ndomain = \"{DOMAIN}\"\n\
         [host.{HOST}]\nwrapper = [\"env\"]\npool = 1\n"
    );
    let file = site.root.join("server.toml");
    fs::write(&file, text).unwrap();
    let ran = run(&mut site.tstunnel(&["serve", "--config", file.to_str().unwrap()]));
    assert_eq!(ran.code(), Some(1));
    assert!(ran.stderr.contains("server.toml:7: ") && ran.stderr.contains("wrapper"), "{}", ran.stderr);
}
