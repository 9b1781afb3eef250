//! The server's log: whatever becomes of those who read it, the server goes on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::process::{Pid, kill_process};
use support::process::Signal;
use support::wait::{SOON, let_pass, wait_for, wait_until};
use support_net::child::run;
use support_net::site::{Plan, Site};

/// A site whose server's log goes through a pipe; and who reads that.
fn piped_site() -> (Site, Pid) {
    let mut site = Site::new();
    let root = site.root.display();
    let launcher =
        format!("mkfifo {root}/pipe; cat {root}/pipe >&2 & echo $! >{root}/reader; exec \"$@\" 2>{root}/pipe");
    site.serve_by(&Plan::any().top("watch = false"), &["sh", "-c", &launcher, "sh"].map(str::to_owned));
    let reader = fs::read_to_string(site.root.join("reader")).unwrap().trim().parse().unwrap();
    (site, Pid::from_raw(reader).unwrap())
}

/// Stops a process, and waits until it has.
fn stop(process: Pid) {
    kill_process(process, Signal::STOP).unwrap();
    let status = format!("/proc/{process}/status");
    wait_until("it has stopped", SOON, || fs::read_to_string(&status).unwrap().contains("State:\tT"));
}

#[test]
fn a_server_whose_log_nobody_reads_any_more_goes_on() {
    let (mut site, reader) = piped_site();
    kill_process(reader, Signal::KILL).unwrap();
    let reloads = site.root.join("audit.log");
    let configuration = site.root.join("server.toml");
    let text = fs::read_to_string(&configuration).unwrap();
    fs::write(&configuration, format!("audit = \"{}\"\n{text}", reloads.display())).unwrap();
    site.server().signal(Signal::HUP);
    wait_until("it has reloaded, which it would have said", SOON, || {
        assert_eq!(site.server().ended(), None);
        fs::read_to_string(&reloads).is_ok_and(|log| log.contains("reload"))
    });
    run(&mut site.exec(&["true"])).ok();
    site.server().signal(Signal::TERM);
    let ended = wait_for("the server ends", SOON, || site.server().ended());
    assert!(ended.success(), "{ended}");
}

#[test]
fn a_server_whose_log_is_not_read_just_now_holds_nobody_up_and_says_later_what_was_lost() {
    let (mut site, reader) = piped_site();
    stop(reader);
    let flags = OFlags::NONBLOCK.bits() as i32;
    let mut pipe = File::options().write(true).custom_flags(flags).open(site.root.join("pipe")).unwrap();
    while pipe.write(&[b'\n'; 4096]).is_ok() {}
    for _ in 0..3 {
        site.server().signal(Signal::HUP);
        run(&mut site.exec(&["true"])).ok();
        let_pass(Duration::from_secs(1));
    }
    kill_process(reader, Signal::CONT).unwrap();
    wait_until("it says what was lost", SOON, || {
        run(&mut site.exec(&["true"])).ok();
        site.server_log().contains("lines of the log were lost")
    });
    stop(reader);
    while pipe.write(&[b'\n'; 4096]).is_ok() {}
    site.server().signal(Signal::TERM);
    let ended = wait_for("the server ends", SOON, || site.server().ended());
    assert!(ended.success(), "{ended}");
    kill_process(reader, Signal::CONT).unwrap();
}
