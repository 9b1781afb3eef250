//! Synchronisation: installing the agent, what arrives, and the life of a session.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::TRANSPORT;
use crate::support::mutagen::{self, Daemon, text};
use crate::support::remote::{Setup, Transport};
use crate::support::tree::{self, assert_same, make_executable};
use crate::support::wait::{SOON, wait_until};

/// Mutagen's commands, as PROTOCOL and policy know them.
pub(crate) const SYNCHRONIZER: &str = ".mutagen/agents/0.18.1/mutagen-agent synchronizer --log-level=info";
pub(crate) const UNAME: &str = "uname -s -m";
pub(crate) const INSTALL: &str = "./.mutagen-agent install";

#[test]
fn fresh_host_gets_the_agent_and_two_thousand_files_both_ways() {
    a_fresh_host_gets_the_agent_and_a_tree(TRANSPORT, 2_000);
}

/// Both sides hold half of the files at first, and all of them afterwards.
pub(crate) fn a_fresh_host_gets_the_agent_and_a_tree(transport: Transport, count: usize) {
    let remote = Setup::new(transport).recorded().start();
    let daemon = Daemon::start(&remote);
    let (here, there) = (daemon.folder("tree"), remote.home().join("tree"));
    tree::generate(&here.join("from here"), count / 2, 1);
    tree::generate(&there.join("from there"), count / 2, 2);
    let before = [tree::read(&here.join("from here")), tree::read(&there.join("from there"))];

    let session = daemon.create_sync(&here, &remote.url("tree"));
    let state = session.wait_until_ready(SOON);

    assert!(remote.has_real_agent());
    assert_eq!(remote.recorder().purposes(), [SYNCHRONIZER, UNAME, "scp", INSTALL, SYNCHRONIZER]);
    assert!(remote.names_in_home(".mutagen-agent").is_empty(), "the uploaded agent was moved away");
    assert!(daemon.temporary_files().is_empty(), "the unpacked agent was removed");
    assert_eq!(state.get("conflicts"), None, "{state:#}");
    for side in ["/alpha", "/beta"] {
        for problems in ["scanProblems", "transitionProblems"] {
            assert_eq!(state.pointer(&format!("{side}/{problems}")), None, "{state:#}");
        }
    }
    assert_same(&here, &there);
    assert!(before.iter().all(|tree| tree.len() > count / 2));
    let after = [tree::read(&there.join("from here")), tree::read(&here.join("from there"))];
    assert_eq!(before, after, "nothing changed on its way");
}

#[test]
fn second_session_runs_the_installed_agent_at_once() {
    let remote = Setup::new(TRANSPORT).recorded().start();
    let daemon = Daemon::start(&remote);
    fs::create_dir(daemon.folder("one")).unwrap();
    fs::create_dir(daemon.folder("two")).unwrap();
    daemon.create_sync(&daemon.folder("one"), &remote.url("one")).wait_until_ready(SOON);

    daemon.create_sync(&daemon.folder("two"), &remote.url("two")).wait_until_ready(SOON);

    assert_eq!(remote.recorder().purposes().get(5..), Some([SYNCHRONIZER.to_owned()].as_slice()));
    assert_eq!(remote.agents().len(), 2, "every session has an agent of its own");
}

#[test]
fn host_that_trusts_its_own_bundles_agents_alone_gets_one_and_runs_it_from_memory() {
    let bundle = mutagen::programs().join("mutagen-agents.tar.gz");
    let remote = Setup::new(TRANSPORT).with_host_setting(&format!("trusted_agents = [{bundle:?}]")).start();
    let daemon = Daemon::start(&remote);
    let (here, there) = (daemon.folder("tree"), remote.home().join("tree"));
    tree::generate(&here, 60, 4);

    daemon.create_sync(&here, &remote.url("tree")).wait_until_ready(SOON);

    assert_same(&here, &there);
    for agent in remote.agents() {
        let image = fs::read_link(format!("/proc/{}/exe", agent.pid)).unwrap();
        assert!(image.to_string_lossy().starts_with("/memfd:mutagen-agent"), "{image:?}");
    }
}

#[test]
fn host_with_a_pool_gives_each_session_an_agent_of_its_own() {
    let remote = Setup::new(TRANSPORT).with_host_setting("pool = 2").start();
    let daemon = Daemon::start(&remote);
    for name in ["one", "two", "three"] {
        let (here, there) = (daemon.folder(name), remote.home().join(name));
        tree::generate(&here, 30, 5);
        daemon.create_sync(&here, &remote.url(name)).wait_until_ready(SOON);
        assert_same(&here, &there);
    }
    wait_until("three agents work and two wait", SOON, || remote.agents().len() == 5);
}

#[test]
fn edits_on_both_sides_arrive() {
    let remote = Setup::new(TRANSPORT).start();
    let daemon = Daemon::start(&remote);
    let (here, there) = (daemon.folder("tree"), remote.home().join("tree"));
    tree::generate(&here, 60, 3);
    let session = daemon.create_sync(&here, &remote.url("tree"));
    session.wait_until_ready(SOON);
    assert_same(&here, &there);

    for (edited, other, name) in [(&here, &there, "from here"), (&there, &here, "from there")] {
        let same = |path: &str| tree::read(edited).get(Path::new(path)) == tree::read(other).get(Path::new(path));
        let arrives = |what: &str, path: &str| {
            wait_until(&format!("{what} {name} arrives"), SOON, || same(path));
        };
        fs::write(edited.join(name), "one").unwrap();
        arrives("a new file", name);
        fs::write(edited.join(name), tree::noise(200_000, 4)).unwrap();
        arrives("a change", name);
        make_executable(&edited.join(name));
        arrives("an execute bit", name);
        let renamed = format!("{name}, renamed");
        fs::rename(edited.join(name), edited.join(&renamed)).unwrap();
        arrives("the new name", &renamed);
        arrives("the end of the old name", name);
        let link = format!("link {name}");
        symlink(&renamed, edited.join(&link)).unwrap();
        arrives("a symbolic link", &link);
        let folder = format!("folder {name}");
        fs::create_dir_all(edited.join(&folder).join("in/it")).unwrap();
        arrives("a folder", &format!("{folder}/in/it"));
        fs::remove_file(edited.join(&renamed)).unwrap();
        arrives("a removal", &renamed);
    }
    session.flush();
    assert_same(&here, &there);
}

#[test]
fn paused_session_has_no_agent_and_catches_up_when_resumed() {
    let remote = Setup::new(TRANSPORT).start();
    let daemon = Daemon::start(&remote);
    let (here, there) = (daemon.folder("tree"), remote.home().join("tree"));
    tree::generate(&here, 20, 5);
    let session = daemon.create_sync(&here, &remote.url("tree"));
    session.wait_until_ready(SOON);

    session.pause();
    assert_eq!(session.state().get("paused"), Some(&true.into()));
    assert!(daemon.tunnels().is_empty(), "pause returns when the tunnel has ended: {:?}", daemon.tunnels());
    remote.wait_until_idle();
    fs::write(here.join("while paused"), "here").unwrap();
    fs::write(there.join("while paused too"), "there").unwrap();

    session.resume();
    session.flush();
    assert_same(&here, &there);
    assert!(here.join("while paused too").exists());
    assert_eq!(remote.agents().len(), 1);
}

#[test]
fn flush_returns_when_a_change_has_arrived() {
    let remote = Setup::new(TRANSPORT).start();
    let daemon = Daemon::start(&remote);
    let (here, there) = (daemon.folder("tree"), remote.home().join("tree"));
    fs::create_dir(&here).unwrap();
    let session = daemon.create_sync(&here, &remote.url("tree"));
    session.wait_until_ready(SOON);
    for round in 0..5 {
        fs::write(here.join("file"), format!("round {round}")).unwrap();
        session.flush();
        assert_eq!(fs::read_to_string(there.join("file")).unwrap(), format!("round {round}"));
    }
}

#[test]
fn terminated_session_leaves_nothing_running() {
    let remote = Setup::new(TRANSPORT).start();
    let daemon = Daemon::start(&remote);
    fs::create_dir(daemon.folder("tree")).unwrap();
    let session = daemon.create_sync(&daemon.folder("tree"), &remote.url("tree"));
    session.wait_until_ready(SOON);
    assert_eq!(remote.agents().len(), 1);

    session.terminate();

    assert!(daemon.tunnels().is_empty(), "terminate returns when the tunnel has ended: {:?}", daemon.tunnels());
    assert!(daemon.sync_sessions().is_empty());
    remote.wait_until_idle();
}

#[test]
fn two_daemons_install_at_once_on_a_fresh_host() {
    let remote = Setup::new(TRANSPORT).start();
    let daemons = [Daemon::start(&remote), Daemon::start(&remote)];
    for (index, daemon) in daemons.iter().enumerate() {
        tree::generate(&daemon.folder("tree"), 50, u64::try_from(index).unwrap());
    }
    std::thread::scope(|scope| {
        for (index, daemon) in daemons.iter().enumerate() {
            let url = remote.url(&format!("tree-{index}"));
            scope.spawn(move || daemon.create_sync(&daemon.folder("tree"), &url).wait_until_ready(SOON));
        }
    });
    for (index, daemon) in daemons.iter().enumerate() {
        assert_same(&daemon.folder("tree"), &remote.home().join(format!("tree-{index}")));
    }
    assert!(remote.has_real_agent());
    assert!(remote.names_in_home(".mutagen-agent").is_empty());
}

#[test]
fn one_daemon_reaches_this_host_and_an_openssh_host_side_by_side() {
    let plain = Setup::new(Transport::OpenSsh).named("plain-host").start();
    let mut remote = Setup::new(TRANSPORT).start();
    remote.fall_through_to(&plain);
    let daemon = Daemon::start(&remote);
    let here = daemon.folder("tree");
    tree::generate(&here, 50, 6);

    let first = daemon.create_sync(&here, &remote.url("tree"));
    let second = daemon.create_sync(&here, &plain.url("tree"));
    first.wait_until_ready(SOON);
    second.wait_until_ready(SOON);

    assert_same(&here, &remote.home().join("tree"));
    assert_same(&here, &plain.home().join("tree"));
    assert_eq!((remote.agents().len(), plain.agents().len()), (1, 1));
    fs::write(plain.home().join("tree/from the plain host"), "hello").unwrap();
    wait_until("a file arrives by way of this machine", SOON, || {
        remote.home().join("tree/from the plain host").exists()
    });
}

#[test]
fn agent_sees_the_accounts_home_and_none_of_mutagens_variables() {
    let remote = Setup::new(TRANSPORT).start();
    let mut variables = remote.environment();
    variables.push(("MUTAGEN_LOG_LEVEL", "debug".into()));
    variables.push(("SOME_SECRET", "of this machine".into()));
    let daemon = Daemon::start_with(variables);
    fs::create_dir(daemon.folder("tree")).unwrap();
    daemon.create_sync(&daemon.folder("tree"), &remote.url("tree")).wait_until_ready(SOON);

    let agents = remote.agents();
    let agent = agents.first().expect("an agent runs");
    assert!(agent.mentions("--log-level=debug"), "{agent:?}");
    let environment = agent.environment();
    let leaked = |name: &str| name.starts_with("MUTAGEN_") || name.starts_with("TSTUNNEL_") || name == "SOME_SECRET";
    assert!(!environment.iter().any(|(name, _)| leaked(&name.to_string_lossy())), "{environment:?}");
    let folder: PathBuf = fs::read_link(format!("/proc/{}/cwd", agent.pid)).unwrap();
    assert_eq!(folder, remote.home());
}

#[test]
fn session_reports_the_remote_agents_own_errors() {
    let remote = Setup::new(TRANSPORT).start();
    let daemon = Daemon::start(&remote);
    fs::create_dir(daemon.folder("tree")).unwrap();
    fs::write(remote.home().join("file"), "in the way").unwrap();

    let session = daemon.create_sync(&daemon.folder("tree"), &remote.url("file/tree"));

    let state = session.wait_until("an error is shown", SOON, |state| !text(state, "/lastError").is_empty());
    assert!(text(&state, "/lastError").contains("beta"), "{state:#}");
}
