//! A real sshd on a loopback port, with keys of its own and an account whose home is a folder of the test's.
//!
//! It shows what Mutagen does over the transport that it was made for, and that the tests themselves are right.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::process::{self, Group, Signal, program, run};
use super::wait::{SOON, wait_until};
use super::{port, script};

/// How a session on the server is run.
pub(crate) struct Account<'a> {
    /// The account's home, which need not be that of the real one.
    pub(crate) home: &'a Path,
    /// A program that is put before every command, which is then split at spaces and not given to a shell.
    pub(crate) wrapper: Option<&'a Path>,
    /// Whether files may be put there.
    pub(crate) uploads: bool,
}

/// A running sshd.
pub(crate) struct Sshd {
    configuration: PathBuf,
    log: PathBuf,
    port: u16,
    process: Group,
}

impl Sshd {
    /// Makes keys and configuration in `folder` and starts the server.
    pub(crate) fn start(folder: &Path, account: &Account<'_>) -> Sshd {
        fs::create_dir_all(folder).unwrap();
        if rustix::process::geteuid().is_root() {
            // sshd wants this folder, which on Debian the service's unit makes.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        generate_key(&folder.join("host_key"));
        generate_key(&folder.join("client_key"));
        script::write(&folder.join("session"), &session_script(account));

        let port = port::free();
        let configuration = folder.join("sshd_config");
        fs::write(&configuration, server_configuration(folder, port, account.uploads)).unwrap();
        let log = folder.join("sshd.log");
        let process = spawn(&configuration, &log);
        Sshd { configuration, log, port, process }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Kills the listener and every session at once. What the sessions had started is left to notice it.
    pub(crate) fn kill(&mut self) {
        let sessions = process::descendants(self.process.id());
        self.process.kill();
        for session in sessions.iter().filter(|process| process.mentions("sshd")) {
            session.signal(Signal::KILL);
        }
    }

    /// Starts it again on the same port.
    pub(crate) fn start_again(&mut self) {
        self.process = spawn(&self.configuration, &self.log);
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Writes a client configuration in which `host` is the server behind `port`, and a folder with an `ssh` and an `scp` that use
/// it, for MUTAGEN_SSH_PATH or PATH. Returns that folder; the configuration stands beside it as `ssh_config`.
pub(crate) fn stand_ins(folder: &Path, host: &str, port: u16) -> PathBuf {
    let configuration = folder.join("ssh_config");
    fs::write(&configuration, client_configuration(folder, host, port)).unwrap();
    let stand_ins = folder.join("openssh");
    fs::create_dir_all(&stand_ins).unwrap();
    for name in ["ssh", "scp"] {
        let (real, configuration) = (program(name), configuration.display());
        script::write(&stand_ins.join(name), &format!("exec '{}' -F '{configuration}' \"$@\"", real.display()));
    }
    stand_ins
}

/// Lets the configuration of the stand-ins in `folder` know the hosts of those in `other` too.
pub(crate) fn include(folder: &Path, other: &Path) {
    let configuration = folder.join("ssh_config");
    let included = format!("Include {}\n", other.join("ssh_config").display());
    let text = fs::read_to_string(&configuration).unwrap();
    fs::write(&configuration, included + &text).unwrap();
}

fn generate_key(file: &Path) {
    run(Command::new(program("ssh-keygen")).args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(file));
}

/// A bash that believes itself to be inside another leaves the account's own `~/.bashrc` alone, which Debian's otherwise reads
/// for every command that comes by sshd: what stands there must not change what is tested or measured.
fn server_configuration(folder: &Path, port: u16, uploads: bool) -> String {
    let at = folder.display();
    let sftp = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"]
        .into_iter()
        .find(|file| Path::new(file).is_file())
        .expect("the tests need sftp-server: install it");
    let read_only = if uploads { "" } else { " -R" };
    format!(
        "ListenAddress 127.0.0.1:{port}\n\
         HostKey {at}/host_key\n\
         AuthorizedKeysFile {at}/client_key.pub\n\
         ForceCommand {at}/session\n\
         Subsystem sftp {sftp}{read_only}\n\
         StrictModes no\n\
         SetEnv SHLVL=1\n\
         UsePAM no\n\
         PermitRootLogin yes\n\
         PasswordAuthentication no\n\
         KbdInteractiveAuthentication no\n\
         MaxStartups 100\n\
         PrintMotd no\n\
         PidFile none\n\
         UseDNS no\n"
    )
}

/// The forced command: what the client asked for, in the test's home instead of the account's.
fn session_script(account: &Account<'_>) -> String {
    let home = account.home.display();
    let command = match account.wrapper {
        None => "exec /bin/sh -c \"$SSH_ORIGINAL_COMMAND\"".to_owned(),
        Some(wrapper) => format!("set -f\nexec '{}' $SSH_ORIGINAL_COMMAND", wrapper.display()),
    };
    format!("cd '{home}' || exit 1\nexport HOME='{home}'\n{command}")
}

fn client_configuration(folder: &Path, host: &str, port: u16) -> String {
    let at = folder.display();
    let key = fs::read_to_string(folder.join("host_key.pub")).unwrap();
    fs::write(folder.join("known_hosts"), format!("{host} {key}")).unwrap();
    let user = run(Command::new(program("id")).arg("-un"));
    format!(
        "Host {host}\n\
         \x20 HostName 127.0.0.1\n\
         \x20 Port {port}\n\
         \x20 User {user}\n\
         \x20 HostKeyAlias {host}\n\
         \x20 IdentityFile {at}/client_key\n\
         \x20 IdentitiesOnly yes\n\
         \x20 UserKnownHostsFile {at}/known_hosts\n\
         \x20 GlobalKnownHostsFile /dev/null\n\
         \x20 StrictHostKeyChecking yes\n\
         \x20 BatchMode yes\n",
        user = user.trim()
    )
}

/// Starts sshd and waits until it listens.
fn spawn(configuration: &Path, log: &Path) -> Group {
    let output = fs::File::create(log).unwrap();
    let mut process = Group::spawn(
        Command::new(program("sshd"))
            .args(["-D", "-e", "-f"])
            .arg(configuration)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output),
    );
    let text = || fs::read_to_string(log).unwrap_or_default();
    wait_until("sshd listens", SOON, || {
        let ended = process.ended();
        assert!(ended.is_none(), "sshd ended: {ended:?}\n{}", text());
        text().contains("Server listening on")
    });
    process
}
