//! What Mutagen makes of how the first command ends. Every test is one row: the host gives that result, Mutagen runs the
//! commands that it runs then and no others, and the user sees the reason.

use std::fs;
use std::process::Stdio;

use crate::TRANSPORT;
use crate::support::mutagen::Daemon;
use crate::support::process::Group;
use crate::support::remote::{Remote, Setup, Transport};
use crate::support::wait::{SOON, wait_until};

use super::sync::{INSTALL, SYNCHRONIZER, UNAME};

/// The same command as a Windows host would want it.
const WITH_BACKSLASHES: &str = r".mutagen\agents\0.18.1\mutagen-agent synchronizer --log-level=info";

const WINDOWS_PROBE: &str = "cmd.exe /c set";

/// What a fresh host sees.
const INSTALLATION: [&str; 5] = [SYNCHRONIZER, UNAME, "scp", INSTALL, SYNCHRONIZER];

/// A host that behaves like Windows behind cmd.exe, of which `$1` is the first word of a command.
const CMD_EXE: &str = r#"case "$1" in
*/*) echo "'.mutagen' is not recognized as an internal or external command," >&2; echo "operable program or batch file." >&2; exit 1;;
*\\*) echo "The system cannot find the path specified." >&2; exit 1;;
cmd.exe) printf 'OS=Windows_NT\r\nPROCESSOR_ARCHITECTURE=AMD64\r\n';;
*) echo "'$1' is not recognized as an internal or external command," >&2; exit 1;;
esac"#;

#[test]
fn status_127_with_any_words_installs_the_agent() {
    assert_installs(&host_whose_agent_does("echo 'whatever this host says' >&2; exit 127"));
}

#[test]
fn status_126_with_any_words_installs_the_agent() {
    assert_installs(&host_whose_agent_does("echo 'whatever this host says' >&2; exit 126"));
}

#[test]
fn silent_status_127_installs_the_agent() {
    assert_installs(&host_whose_agent_does("exit 127"));
}

#[test]
fn command_not_found_installs_the_agent_whatever_the_status() {
    assert_installs(&host_whose_agent_does("echo 'fish: Unknown command; Command not found' >&2; exit 3"));
}

#[test]
fn agent_that_is_not_executable_is_installed_again() {
    let remote = host_whose_agent_does("exit 0");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(remote.agent_file(), mode).unwrap();
    assert_installs(&remote);
}

#[test]
fn agent_that_is_a_folder_is_reported_by_the_installation() {
    let remote = host().start();
    fs::create_dir_all(remote.agent_file().join("not empty")).unwrap();

    let message = fails(&remote);

    assert_eq!(remote.recorder().purposes(), [SYNCHRONIZER, UNAME, "scp", INSTALL]);
    assert_contains(&message, "unable to invoke agent installation: remote error: ");
}

#[test]
fn cmd_exe_host_is_asked_with_backslashes_and_then_for_its_platform() {
    let remote = host().with_wrapper(CMD_EXE).start();

    let message = fails(&remote);

    // Which agent it would want is known by then; the tests have none for Windows.
    assert_eq!(remote.recorder().purposes(), [SYNCHRONIZER, WITH_BACKSLASHES, UNAME, WINDOWS_PROBE]);
    assert_contains(&message, "unable to install agent: unable to get agent for platform: unsupported platform");
}

#[test]
fn missing_path_on_windows_is_asked_with_backslashes_too() {
    let script = CMD_EXE.replace(
        "'.mutagen' is not recognized as an internal or external command,",
        "The system cannot find the path specified.",
    );
    let remote = host().with_wrapper(&script).start();

    fails(&remote);

    assert_eq!(remote.recorder().purposes(), [SYNCHRONIZER, WITH_BACKSLASHES, UNAME, WINDOWS_PROBE]);
}

#[test]
fn cmd_exe_host_that_fails_otherwise_with_backslashes_is_not_installed_on() {
    let script = CMD_EXE.replace("The system cannot find the path specified.", "Access is denied.");
    let remote = host().with_wrapper(&script).start();

    let message = fails(&remote);

    assert_eq!(remote.recorder().purposes(), [SYNCHRONIZER, WITH_BACKSLASHES]);
    assert_contains(&message, "(error output: Access is denied.)");
}

#[test]
fn host_of_unknown_platform_shows_nothing_of_its_probes() {
    let script = r#"case "$1" in
.mutagen/*) exit 127;;
*) echo 'a probe failed' >&2; exit 1;;
esac"#;
    let remote = host().with_wrapper(script).start();

    let message = fails(&remote);

    assert_eq!(remote.recorder().purposes(), [SYNCHRONIZER, UNAME, WINDOWS_PROBE]);
    assert_contains(&message, "unable to probe remote platform: exhausted probing methods");
    assert!(!message.contains("a probe failed"), "{message}");
}

#[test]
fn any_other_failure_is_shown_with_its_words() {
    for status in [1, 2, 125, 255] {
        let remote = host_whose_agent_does(&format!("echo 'the disk is full: grüße' >&2; exit {status}"));
        let message = fails(&remote);
        assert_eq!(remote.recorder().purposes(), [SYNCHRONIZER], "status {status}");
        assert_contains(
            &message,
            "unable to handshake with agent process: unable to receive server magic number: EOF \
             (error output: the disk is full: grüße)",
        );
    }
}

#[test]
fn silent_failure_is_shown_without_a_reason() {
    let remote = host_whose_agent_does("exit 3");
    let message = fails(&remote);
    assert_eq!(remote.recorder().purposes(), [SYNCHRONIZER]);
    assert_contains(&message, "unable to handshake with agent process: unable to receive server magic number: EOF");
    assert!(!message.contains("error output"), "{message}");
}

#[test]
fn agent_that_was_killed_is_shown_as_a_failure_and_not_installed() {
    let remote = host_whose_agent_does("echo 'out of memory' >&2; kill -KILL $$");
    let message = fails(&remote);
    assert_eq!(remote.recorder().purposes(), [SYNCHRONIZER]);
    assert_contains(&message, "(error output: out of memory");
}

#[test]
fn words_that_are_not_utf8_hide_the_reason() {
    let remote = host_whose_agent_does(r"printf 'command not found: gr\374\337e\n' >&2; exit 127");
    let message = fails(&remote);
    assert_eq!(remote.recorder().purposes(), [SYNCHRONIZER], "not even 127 counts then");
    assert_contains(&message, "remote did not return UTF-8 output");
}

#[test]
fn text_before_the_magic_number_stops_mutagen_after_five_seconds() {
    let remote = host_whose_agent_does("echo 'Welcome to this host!'; echo 'and its words' >&2; exec cat >/dev/null");
    let message = fails(&remote);
    assert_eq!(remote.recorder().purposes(), [SYNCHRONIZER]);
    assert_contains(&message, "server magic number incorrect (error output: and its words)");
    remote.wait_until_idle();
}

#[test]
fn host_that_says_nothing_hangs_mutagen_until_the_daemon_ends() {
    let remote = host_whose_agent_does("exec cat >/dev/null");
    let mut daemon = Daemon::start(&remote);
    fs::create_dir(daemon.folder("tree")).unwrap();
    let mut command = daemon.sync_command(&daemon.folder("tree"), &remote.url("tree"));
    let mut create = Group::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
    wait_until("the silent program runs", SOON, || {
        crate::support::process::with_home(remote.home()).iter().any(|process| process.arguments == ["cat"])
    });
    assert!(create.ended().is_none());
    let tunnels = daemon.tunnels();
    assert_eq!(tunnels.len(), 1);

    daemon.kill();

    wait_until("mutagen gives up", SOON, || create.ended().is_some());
    wait_until("the client has ended", SOON, || !tunnels[0].is_alive());
    remote.wait_until_idle();
}

#[test]
fn only_the_first_32_kib_of_words_count_and_the_rest_is_drained() {
    let remote = host_whose_agent_does(
        "echo first >&2; head -c 1000000 /dev/zero | tr '\\0' x >&2; echo 'command not found' >&2; exit 1",
    );
    let message = fails(&remote);
    assert_eq!(remote.recorder().purposes(), [SYNCHRONIZER]);
    assert_contains(&message, "(error output: first");
    assert!(!message.contains("ommand not found"));
}

#[test]
fn refused_upload_is_shown_with_its_words_and_leaves_nothing() {
    let remote = host().without_uploads().start();
    let message = fails(&remote);
    assert_eq!(remote.recorder().purposes(), [SYNCHRONIZER, UNAME, "scp"]);
    let reason = message.split_once("unable to copy agent binary: unable to run SCP process: ");
    let (_, reason) = reason.unwrap_or_else(|| panic!("{message}"));
    assert!(!reason.trim().is_empty() && !reason.contains("exit status"), "{message}");
    assert!(remote.names_in_home(".mutagen-agent").is_empty());
}

#[test]
fn failed_installation_is_shown_with_its_words() {
    let remote = host().start();
    fs::write(remote.home().join(".mutagen"), "in the way of a folder").unwrap();
    let message = fails(&remote);
    assert_eq!(remote.recorder().purposes(), [SYNCHRONIZER, UNAME, "scp", INSTALL]);
    assert_contains(&message, "unable to invoke agent installation: remote error: Error: ");
    assert_contains(&message, "not a directory");
}

#[test]
fn server_that_is_down_is_named_and_nothing_is_installed() {
    let mut remote = host().start();
    remote.kill_server();
    let message = fails(&remote);
    assert_eq!(remote.recorder().purposes(), [SYNCHRONIZER]);
    assert_contains(&message, "(error output: ");
    assert_contains(
        &message,
        match TRANSPORT {
            Transport::OpenSsh => "Connection refused",
            Transport::Tstunnel => "error[connect-refused]",
        },
    );
}

#[test]
fn words_of_a_running_agent_never_stall_the_session() {
    // The real agent, with a neighbour that fills stderr for as long as it lives.
    let remote = host().start();
    let daemon = Daemon::start(&remote);
    let (first, second) = (daemon.folder("first"), daemon.folder("second"));
    fs::create_dir(&first).unwrap();
    crate::support::tree::generate(&second, 100, 10);
    daemon.create_sync(&first, &remote.url("first")).wait_until_ready(SOON);
    let real = remote.agent_file().with_file_name("real");
    fs::rename(remote.agent_file(), &real).unwrap();
    remote.install_script_as_agent(&format!(
        "{{ head -c 3000000 /dev/zero | tr '\\0' '\\n'; }} >&2\nexec '{}' \"$@\"",
        real.display()
    ));

    daemon.create_sync(&second, &remote.url("second")).wait_until_ready(SOON);

    crate::support::tree::assert_same(&second, &remote.home().join("second"));
}

fn host() -> Setup {
    Setup::new(TRANSPORT).recorded()
}

/// A host with a shell script in the agent's place.
fn host_whose_agent_does(script: &str) -> Remote {
    let remote = host().start();
    remote.install_script_as_agent(script);
    remote
}

/// The real agent takes the place of what there was, and the session works.
#[track_caller]
fn assert_installs(remote: &Remote) {
    let daemon = Daemon::start(remote);
    fs::create_dir(daemon.folder("tree")).unwrap();
    daemon.create_sync(&daemon.folder("tree"), &remote.url("tree")).wait_until_ready(SOON);
    assert_eq!(remote.recorder().purposes(), INSTALLATION);
    assert!(remote.has_real_agent());
}

/// Tries to create a session, and returns what the user sees of its failure.
#[track_caller]
fn fails(remote: &Remote) -> String {
    let daemon = Daemon::start(remote);
    fs::create_dir(daemon.folder("tree")).unwrap();
    let result = daemon.try_create_sync(&daemon.folder("tree"), &remote.url("tree"));
    let message = result.err().expect("no session can be created");
    assert!(daemon.sync_sessions().is_empty(), "no session is left behind");
    assert!(daemon.tunnels().is_empty(), "no client is left behind");
    message
}

#[track_caller]
fn assert_contains(message: &str, fragment: &str) {
    assert!(message.contains(fragment), "expected `{fragment}` in\n{message}");
}
