//! A host that trusts listed agents alone: what may be put there, what may be run, and that what runs is what was checked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use support::process;
use support::wait::{SOON, wait_for};
use support_net::child::{Watched, run};
use support_net::report::fails;
use support_net::site::{HOST, Plan, Site, text};

const AGENT: &str = ".mutagen/agents/0.18.1/mutagen-agent";
const UPLOADED: &str = ".mutagen-agent0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

/// An agent that says what it is sent.
const SCRIPT: &[u8] = b"#!/bin/sh\necho ready\nexec cat\n";

fn digest(content: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A host that trusts these.
fn site(trusted: &[&[u8]]) -> Site {
    let digests: Vec<String> = trusted.iter().map(|content| format!("{:?}", digest(content))).collect();
    Site::start(&Plan::mutagen().host(&format!("agent_digests = [{}]", digests.join(", "))))
}

fn install(site: &Site, content: &[u8]) -> PathBuf {
    let file = site.home.join(AGENT);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    write_program(&file, content);
    file
}

fn write_program(file: &Path, content: &[u8]) {
    fs::write(file, content).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A program of this machine, by its content.
fn program(name: &str) -> Vec<u8> {
    fs::read(process::program(name)).unwrap()
}

#[test]
fn a_listed_agent_runs_and_another_does_not() {
    let site = site(&[SCRIPT]);
    install(&site, SCRIPT);
    let ran = run(&mut site.exec(&[AGENT, "synchronizer"])).ok();
    assert_eq!(ran.text(), "ready\n");
    let file = install(&site, b"#!/bin/sh\necho evil\n");
    let ran = run(&mut site.exec(&[AGENT, "synchronizer"]));
    assert_eq!((ran.code(), ran.text().as_str()), (Some(126), ""));
    assert!(ran.stderr.contains("not one of the agents that the host trusts"), "{}", ran.stderr);
    fs::remove_file(file).unwrap();
    assert_eq!(run(&mut site.exec(&[AGENT, "synchronizer"])).code(), Some(127));
}

#[test]
fn a_listed_program_runs_from_memory_that_nobody_can_change() {
    let cat = program("cat");
    let mut site = site(&[&cat]);
    let file = install(&site, &cat);
    // What `cat` takes for a file's name, so that it stays until somebody writes.
    let fifo = site.home.join("synchronizer");
    process::run(Command::new("mkfifo").arg(&fifo));
    let session = Watched::start(site.exec(&[AGENT, "synchronizer"]).stdin(Stdio::piped()));
    let server = site.server().id();
    let agent =
        wait_for("the agent runs", SOON, || process::children(server).into_iter().find(process::Process::is_agent));
    fs::write(&file, "something else").unwrap();
    let image = PathBuf::from(format!("/proc/{}/exe", agent.pid));
    assert!(fs::read_link(&image).unwrap().to_string_lossy().starts_with("/memfd:mutagen-agent"));
    assert_eq!(fs::read(&image).unwrap(), cat);
    fs::write(&fifo, "written\n").unwrap();
    assert_eq!(session.wait().ok().text(), "written\n");
}

#[test]
fn what_is_not_listed_is_not_copied_into_memory() {
    let mut site = site(&[SCRIPT]);
    let file = install(&site, b"");
    fs::File::options().write(true).open(file).unwrap().set_len(256 << 20).unwrap();
    let of_server = PathBuf::from(format!("/proc/{}/fd", site.server().id()));
    let is_copy = |name: PathBuf| name.to_string_lossy().starts_with("/memfd:mutagen-agent");
    let has_copy = || {
        let open = fs::read_dir(&of_server).unwrap().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(is_copy)
    };
    let ran = thread::scope(|scope| {
        let running = scope.spawn(|| run(&mut site.exec(&[AGENT, "synchronizer"])));
        while !running.is_finished() {
            assert!(!has_copy());
        }
        running.join().unwrap()
    });
    assert_eq!(ran.code(), Some(126), "{}", ran.stderr);
}

#[test]
fn only_a_listed_agent_may_be_uploaded_and_install_itself() {
    let site = site(&[SCRIPT]);
    let good = site.local_file("good", SCRIPT);
    let evil = site.local_file("evil", b"#!/bin/sh\necho evil\n");
    let upload = |file: &Path| {
        site.tstunnel(&["upload", "--mode", "0700", file.to_str().unwrap(), &format!("{HOST}:{UPLOADED}")])
    };
    fails(&mut upload(&evil), 1, "command-denied");
    assert!(!site.home.join(UPLOADED).exists());
    run(&mut upload(&good)).ok();
    assert_eq!(run(&mut site.exec(&[&format!("./{UPLOADED}"), "install"])).ok().text(), "ready\n");
    // Somebody has changed it on the host.
    write_program(&site.home.join(UPLOADED), b"#!/bin/sh\necho evil\n");
    let ran = run(&mut site.exec(&[&format!("./{UPLOADED}"), "install"]));
    assert_eq!((ran.code(), ran.text().as_str()), (Some(126), ""));
}

#[test]
fn an_agent_that_is_a_link_or_no_file_is_not_run() {
    let site = site(&[SCRIPT]);
    write_program(&site.home.join("elsewhere"), SCRIPT);
    let uploaded = site.home.join(UPLOADED);
    symlink(site.home.join("elsewhere"), &uploaded).unwrap();
    let installer = || site.exec(&[&format!("./{UPLOADED}"), "install"]);
    let is_refused = |what: &str, mut command: Command| {
        let ran = run(&mut command);
        assert_eq!(ran.code(), Some(126), "{what}: {}", ran.stderr);
        assert!(ran.stderr.contains("is a link or behind a loop of links"), "{what}: {}", ran.stderr);
    };
    is_refused("a link", installer());
    fs::remove_file(&uploaded).unwrap();
    symlink(&uploaded, &uploaded).unwrap();
    is_refused("a loop", installer());
    fs::create_dir_all(site.home.join(".mutagen")).unwrap();
    symlink("agents", site.home.join(".mutagen/agents")).unwrap();
    is_refused("a loop of folders", site.exec(&[AGENT, "synchronizer"]));
    fs::remove_file(&uploaded).unwrap();
    process::run(Command::new("mkfifo").arg(&uploaded));
    assert_eq!(run(&mut installer()).code(), Some(126));
    fs::remove_file(&uploaded).unwrap();
    fs::create_dir(&uploaded).unwrap();
    assert_eq!(run(&mut installer()).code(), Some(126));
}

#[test]
fn what_is_not_an_agent_needs_not_be_listed() {
    let site = site(&[SCRIPT]);
    assert!(run(&mut site.exec(&["uname", "-s", "-m"])).ok().text().starts_with("Linux"));
}

#[test]
fn an_agent_behind_a_wrapper_is_not_run_where_only_listed_ones_are_trusted() {
    let site =
        Site::start(&Plan::mutagen().host(&format!("agent_digests = [{:?}]\nwrapper = [\"env\"]", digest(SCRIPT))));
    install(&site, SCRIPT);
    let ran = run(&mut site.exec(&[AGENT, "synchronizer"]));
    assert_eq!(ran.code(), Some(126), "{}", ran.stderr);
}

#[test]
fn what_any_allows_besides_is_not_compared() {
    let site = Site::start(&Plan::any().host(&format!("agent_digests = [{:?}]", digest(SCRIPT))));
    let file = site.local_file("notes", b"no agent");
    run(&mut site.tstunnel(&["upload", text(&file), HOST])).ok();
    run(&mut site.scp(&[text(&file), &format!("{HOST}:{UPLOADED}")])).ok();
    run(&mut site.exec(&["cmp", "notes", UPLOADED])).ok();
}
