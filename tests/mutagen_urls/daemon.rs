//! A daemon that is running already, without tstunnel.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;

use crate::support::mutagen::{Daemon, programs};
use crate::support::process::{Group, Signal, run};
use crate::support::script;
use crate::support::serve::TSTUNNEL;
use crate::support::tree::{self, assert_same};
use crate::support::user::User;
use crate::support::wait::{SOON, wait_for, wait_until};
use crate::{assert_refused, in_home, mutagen, plain_mutagen, remote, sync};

const URL: &str = "tstunnel://host123/app?endpoint=localhost&cert=client.crt&key=client.key";

/// Somebody whose Mutagen is `program`, with the data directory of `daemon`.
fn user_of(daemon: &Daemon, program: PathBuf) -> User {
    User::with(vec![("TSTUNNEL_MUTAGEN", program.into()), ("MUTAGEN_DATA_DIRECTORY", daemon.folder("data").into())])
}

fn user(daemon: &Daemon) -> User {
    user_of(daemon, programs().join("mutagen"))
}

/// A `mutagen` that does `body` first, which knows the real one as `$mutagen`.
fn scripted(daemon: &Daemon, body: &str) -> PathBuf {
    let file = daemon.folder("scripted");
    let mutagen = programs().join("mutagen");
    script::write(&file, &format!("mutagen='{}'\n{body}\nexec \"$mutagen\" \"$@\"", mutagen.display()));
    file
}

fn stderr_of(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_session_goes_on_when_its_daemon_is_restarted_for_a_url() {
    let mut daemon = Daemon::start_with(Vec::new());
    let (user, remote) = (user(&daemon), remote());
    let (here, there, over) = (user.home().join("here"), user.home().join("there"), user.home().join("over"));
    tree::generate(&here, 5, 1);
    tree::generate(&over, 5, 2);
    let local = daemon.create_sync(&here, there.to_str().unwrap());
    local.wait_until_ready(SOON);
    let paused = daemon.create_sync(&over, user.home().join("paused").to_str().unwrap());
    paused.pause();
    drop(local);
    drop(paused);

    let created = sync(&user, &over, &remote.tunnel_url(&in_home(&remote, "over"))).output().unwrap();
    let stderr = stderr_of(&created);
    assert!(created.status.success(), "{stderr}");
    let news: Vec<&str> = stderr.lines().filter(|line| line.contains("tstunnel: ")).collect();
    let [line] = news.as_slice() else { panic!("one line: {stderr}") };
    assert!(line.starts_with("tstunnel: restarting the Mutagen daemon, process "), "{stderr}");
    assert!(wait_for("the old daemon has ended", SOON, || daemon.ended()).success());

    // Both sessions are there, and do what they did: one goes on, the other waits.
    assert_eq!(crate::sessions(&user).len(), 3);
    fs::write(here.join("later"), "later").unwrap();
    for session in crate::sessions(&user) {
        let id = session["identifier"].as_str().unwrap().to_owned();
        if session["paused"].as_bool() != Some(true) {
            run(&mut mutagen(&user, &["sync", "flush", &id]));
        }
    }
    assert_same(&here, &there);
    assert_same(&over, &remote.home().join("over"));
    assert_eq!(crate::sessions(&user).iter().filter(|session| session["paused"] == true).count(), 1);

    let again = sync(&user, &over, &remote.tunnel_url(&in_home(&remote, "again"))).output().unwrap();
    assert!(again.status.success() && !stderr_of(&again).contains("tstunnel: "), "{}", stderr_of(&again));
}

#[test]
fn two_at_once_restart_a_daemon_once() {
    let daemon = Daemon::start_with(Vec::new());
    let user = user(&daemon);
    let start = || mutagen(&user, &["daemon", "start"]).stderr(Stdio::piped()).spawn().unwrap();
    let outputs = [start(), start(), start()].map(|child| child.wait_with_output().unwrap());
    assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
    wait_until("the new daemon answers", SOON, || {
        plain_mutagen(&user, &["sync", "list"]).output().unwrap().status.success()
    });
    let listed = mutagen(&user, &["sync", "list"]).output().unwrap();
    assert_eq!(stderr_of(&listed), "");
}

#[test]
fn a_service_takes_the_place_of_a_daemon_that_runs() {
    let mut daemon = Daemon::start_with(Vec::new());
    let user = user(&daemon);
    let mut service = Group::spawn(mutagen(&user, &["daemon", "run"]).stderr(Stdio::null()));
    wait_for("the old daemon has ended", SOON, || daemon.ended());
    wait_until("the new daemon answers", SOON, || {
        plain_mutagen(&user, &["sync", "list"]).output().unwrap().status.success()
    });
    assert!(service.ended().is_none());
    run(&mut mutagen(&user, &["daemon", "stop"]));
    assert!(wait_for("the service has ended", SOON, || service.ended()).success());
}

#[test]
fn a_daemon_is_kept_where_that_is_wanted_and_told_of_by_what_only_looks() {
    let daemon = Daemon::start_with(Vec::new());
    let user = user(&daemon);
    let output = sync(&user, &user.home(), URL).env("TSTUNNEL_MUTAGEN_DAEMON", "keep").output().unwrap();
    assert_refused(&output, 1, "was started without tstunnel", "mutagen daemon stop");
    assert!(!user.memory().exists() && daemon.sync_sessions().is_empty());
    let output = sync(&user, &user.home(), URL).env("TSTUNNEL_MUTAGEN_DAEMON", "kep").output().unwrap();
    assert_refused(&output, 1, "TSTUNNEL_MUTAGEN_DAEMON is `kep`", "keep");

    let listed = mutagen(&user, &["sync", "list"]).output().unwrap();
    assert!(listed.status.success());
    let stderr = stderr_of(&listed);
    assert!(stderr.starts_with("tstunnel: warning: the Mutagen daemon, process "), "{stderr}");
    assert!(stderr.contains("\ntstunnel: hint: run `tstunnel mutagen daemon start`"), "{stderr}");
}

#[test]
fn a_daemon_is_there_again_whatever_ends_the_command_that_restarts_it() {
    for (name, signal) in [("INT", Signal::INT), ("TERM", Signal::TERM), ("HUP", Signal::HUP), ("QUIT", Signal::QUIT)] {
        let mut daemon = Daemon::start_with(Vec::new());
        // All of the group get it, as from a terminal, when the old daemon has ended and the new one is not there yet.
        let [group_file, blocked] = ["group", "blocked"].map(|name| daemon.folder(name).display().to_string());
        let interrupted = format!(
            "if [ \"$2\" = start ]; then\n\
             grep SigBlk /proc/self/status >'{blocked}'\nkill -s {name} -- \"-$(cat '{group_file}')\"\nfi"
        );
        let user = user_of(&daemon, scripted(&daemon, &interrupted));
        // Whoever runs the tests in the background ignores some.
        let mut command = user.run("env");
        let line = format!("echo $$ >'{group_file}'; exec \"$@\"");
        command.args(["--default-signal", "sh", "-c", &line, "sh", TSTUNNEL, "mutagen", "sync", "create", "here", URL]);
        let mut group = Group::spawn(command.stderr(Stdio::null()));
        let status = wait_for("the command has ended", SOON, || group.ended());
        assert_eq!(status.signal(), Some(signal.as_raw()), "{status}");
        wait_for("the old daemon has ended", SOON, || daemon.ended());

        let mut list = plain_mutagen(&user, &["sync", "list"]);
        let listed = list.env("MUTAGEN_DISABLE_AUTOSTART", "1").output().unwrap();
        assert!(listed.status.success(), "{name}: {}", stderr_of(&listed));
        assert!(daemon.sync_sessions().is_empty());
        let blocked = fs::read_to_string(blocked).unwrap();
        assert_eq!(blocked, "SigBlk:\t0000000000000000\n", "the new daemon gets every signal");
    }
}

/// What is said behind the line with the news.
#[track_caller]
fn assert_fails(output: &std::process::Output, said: &str, hint: &str) {
    let stderr = stderr_of(output);
    let lines: Vec<&str> = stderr.lines().collect();
    let [news, error, advice] = lines.as_slice() else { panic!("news, an error and a hint: {stderr}") };
    assert!(news.starts_with("tstunnel: restarting "), "{stderr}");
    assert!(error.starts_with("tstunnel: error[config]: ") && error.contains(said), "{stderr}");
    assert!(advice.contains(hint), "{stderr}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_daemon_that_does_not_stop_is_reported() {
    let daemon = Daemon::start_with(Vec::new());
    daemon.signal(Signal::STOP);
    let user = user(&daemon);
    let output = sync(&user, &user.home(), URL).output().unwrap();
    assert_fails(&output, "does not stop: ", "end it by `kill ");
    daemon.signal(Signal::CONT);
    assert!(daemon.sync_sessions().is_empty());
}

#[test]
fn a_daemon_that_does_not_start_is_reported() {
    let daemon = Daemon::start_with(Vec::new());
    let user = user_of(&daemon, scripted(&daemon, "if [ \"$2\" = start ]; then echo 'no way' >&2; exit 1; fi"));
    let output = sync(&user, &user.home(), URL).output().unwrap();
    assert_fails(&output, "did not start: no way", "tstunnel mutagen daemon run");
}

#[test]
fn a_daemon_that_something_else_starts_without_tstunnel_is_reported_and_not_fought() {
    let daemon = Daemon::start_with(Vec::new());
    let user = user_of(&daemon, scripted(&daemon, "unset MUTAGEN_SSH_PATH"));
    let output = sync(&user, &user.home(), URL).output().unwrap();
    assert_fails(&output, "was restarted by something else, without tstunnel", "have the service that starts it run");
}
