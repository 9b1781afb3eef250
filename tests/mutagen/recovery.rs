//! Whatever dies, the session goes on, and nothing is left behind.

use std::fs;
use std::net::TcpStream;
use std::time::Duration;

use super::forward::{Direction, forward};
use crate::TRANSPORT;
use crate::support::mutagen::{Daemon, Session};
use crate::support::process::{Process, Signal};
use crate::support::remote::{Remote, Setup, Transport};
use crate::support::tree::{self, assert_same};
use crate::support::wait::{AFTER_MUTAGENS_PAUSE, SOON, wait_for, wait_until};

/// How long a server keeps what a vanished client left, where a test waits for the end of that.
const GRACE: Duration = Duration::from_secs(2);

#[test]
fn killed_agent_is_replaced() {
    let remote = Setup::new(TRANSPORT).start();
    let daemon = Daemon::start(&remote);
    let (session, agent) = start_session(&daemon, &remote);

    agent.signal(Signal::KILL);

    let new = wait_for_another_agent(&remote, &agent);
    assert_carries_on(&daemon, &remote, &session);
    assert_eq!(remote.agents(), [new], "one drop makes one reconnection");
}

#[test]
fn killed_client_is_replaced_and_its_agent_ends() {
    killed_client_is_replaced(TRANSPORT);
}

/// Mutagen's child is killed, so that it can't say goodbye.
pub(crate) fn killed_client_is_replaced(transport: Transport) {
    let remote = Setup::new(transport).with_grace(GRACE).start();
    let daemon = Daemon::start(&remote);
    let (session, agent) = start_session(&daemon, &remote);
    let tunnels = daemon.tunnels();
    assert_eq!(tunnels.len(), 1, "a session has one tunnel: {tunnels:?}");

    tunnels[0].signal(Signal::KILL);

    wait_for_another_agent(&remote, &agent);
    assert_carries_on(&daemon, &remote, &session);
    wait_until("the first agent has ended", SOON, || !agent.is_alive());
    assert_eq!(remote.agents().len(), 1);
    assert_eq!(daemon.tunnels().len(), 1);
}

#[test]
fn client_ends_within_a_second_of_sigterm_and_takes_its_agent_along() {
    let remote = Setup::new(TRANSPORT).start();
    let daemon = Daemon::start(&remote);
    let (session, agent) = start_session(&daemon, &remote);
    let tunnels = daemon.tunnels();

    tunnels[0].signal(Signal::TERM);

    // Mutagen sends SIGKILL after one second.
    wait_until("the client has ended", Duration::from_secs(1), || !tunnels[0].is_alive());
    wait_until("its agent has ended", SOON, || !agent.is_alive());
    wait_for_another_agent(&remote, &agent);
    assert_carries_on(&daemon, &remote, &session);
}

#[test]
fn restarted_server_is_found_again() {
    let mut remote = Setup::new(TRANSPORT).start();
    let daemon = Daemon::start(&remote);
    let (session, agent) = start_session(&daemon, &remote);

    remote.kill_server();
    wait_until("the agent ends with its server", SOON, || !agent.is_alive());
    remote.start_server_again();

    wait_for("an agent runs again", AFTER_MUTAGENS_PAUSE, || remote.agents().pop());
    assert_carries_on(&daemon, &remote, &session);
    assert_eq!(remote.agents().len(), 1);
}

#[test]
fn cut_connection_is_survived() {
    let remote = Setup::new(TRANSPORT).behind_relay().start();
    let daemon = Daemon::start(&remote);
    let (session, agent) = start_session(&daemon, &remote);
    let tunnels = daemon.tunnels();
    let connections = remote.relay().accepted();

    remote.relay().cut();
    wait_until("the client has connected again", SOON, || remote.relay().accepted() > connections);

    assert_carries_on(&daemon, &remote, &session);
    match TRANSPORT {
        // Neither Mutagen nor the agent noticed anything.
        Transport::Tstunnel => assert_eq!((daemon.tunnels(), remote.agents()), (tunnels, vec![agent])),
        Transport::OpenSsh => assert!(!agent.is_alive()),
    }
}

#[test]
fn stopped_daemon_leaves_nothing_running() {
    let remote = Setup::new(TRANSPORT).start();
    let mut daemon = Daemon::start(&remote);
    start_session(&daemon, &remote);
    let tunnels = daemon.tunnels();

    daemon.stop();

    assert!(!tunnels[0].is_alive());
    remote.wait_until_idle();
}

#[test]
fn killed_daemon_leaves_nothing_running() {
    let remote = Setup::new(TRANSPORT).start();
    let mut daemon = Daemon::start(&remote);
    start_session(&daemon, &remote);
    let tunnels = daemon.tunnels();

    daemon.kill();

    wait_until("the client has ended", SOON, || !tunnels[0].is_alive());
    remote.wait_until_idle();
}

#[test]
fn forward_listens_again_when_its_client_was_killed() {
    let remote = Setup::new(TRANSPORT).with_grace(GRACE).start();
    let daemon = Daemon::start(&remote);
    // Not a Unix socket: an agent that ends in haste leaves its file behind, and Mutagen then never listens again.
    let (session, address) = forward(&daemon, &remote, Direction::FromThere, "tcp:127.0.0.1:1");
    let agent = remote.agents().remove(0);

    daemon.tunnels()[0].signal(Signal::KILL);

    // The port is the first agent's until that has gone, so a first attempt may fail and cost Mutagen's pause.
    wait_until("another agent listens", AFTER_MUTAGENS_PAUSE, || {
        let agents = remote.agents();
        agents.len() == 1 && agents[0].pid != agent.pid && session.status() == "forwarding"
    });
    drop(TcpStream::connect(address).unwrap());
}

/// A session with some files, and the agent that it has.
fn start_session<'a>(daemon: &'a Daemon, remote: &Remote) -> (Session<'a>, Process) {
    tree::generate(&daemon.folder("tree"), 100, 9);
    let session = daemon.create_sync(&daemon.folder("tree"), &remote.url("tree"));
    session.wait_until_ready(SOON);
    let mut agents = remote.agents();
    assert_eq!(agents.len(), 1, "a session has one agent: {agents:?}");
    (session, agents.remove(0))
}

fn wait_for_another_agent(remote: &Remote, than: &Process) -> Process {
    // The first drop of a session is answered at once, without the pause.
    wait_for("another agent runs", SOON, || remote.agents().into_iter().find(|agent| agent.pid != than.pid))
}

/// Edits both sides and waits for the edits to arrive.
fn assert_carries_on(daemon: &Daemon, remote: &Remote, session: &Session<'_>) {
    let (here, there) = (daemon.folder("tree"), remote.home().join("tree"));
    session.wait_until_ready(AFTER_MUTAGENS_PAUSE);
    fs::write(here.join("afterwards"), "here").unwrap();
    fs::write(there.join("afterwards too"), "there").unwrap();
    session.flush();
    assert_same(&here, &there);
    assert!(here.join("afterwards too").exists());
}
