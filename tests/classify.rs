//! `tstunnel classify` over what programs really say: OpenSSH against each of its failures, shells, tstunnel's own reports, and
//! texts that were captured where Windows, or a machine like that, would be needed. Wherever Mutagen's own `ClassifyError` has an
//! answer, it is the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::openssh::{Account, Sshd, stand_ins};
use support::port;
use support::process::{program, run as succeed};
use support::serve::TSTUNNEL;
use support_net::child::{Watched, run, run_with_input};
use support_net::fake::tcp_server;
use tempfile::TempDir;
use tstunnel::error::{Code, Error, Retry};

/// What one failure left behind, and what it means.
#[derive(Debug)]
struct Failure {
    stderr: String,
    status: Option<i32>,
    meaning: Meaning,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Meaning {
    code: Option<Code>,
    install: bool,
    windows: bool,
    retry: bool,
}

/// A code with what its name implies.
fn of(code: Code) -> Meaning {
    let (install, retry) = (code.retry() == Retry::AfterInstall, code.retry() == Retry::Yes);
    Meaning { code: Some(code), install, windows: false, retry }
}

/// What nobody knows.
const UNKNOWN: Meaning = Meaning { code: None, install: false, windows: false, retry: false };

#[track_caller]
fn assert_means(failure: &Failure) {
    let Failure { stderr, status, meaning } = failure;
    let mut command = Command::new(TSTUNNEL);
    command.args(["classify", "--json"]);
    command.args(status.iter().map(|status| format!("--exit-status={status}")));
    let ran = run_with_input(&mut command, stderr.as_bytes());
    let verdict: Value = serde_json::from_slice(&ran.stdout).expect("classify writes JSON");
    let expected = json!({
        "code": meaning.code.map(Code::name),
        "install": meaning.install,
        "windows": meaning.windows,
        "retry": meaning.retry,
        "hint": verdict["hint"],
    });
    assert_eq!(verdict, expected, "{failure:#?}");
    assert!(verdict["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{verdict}");
    let is_known = meaning.code.is_some() || meaning.windows;
    assert_eq!((ran.code(), ran.stderr.as_str()), (Some(i32::from(!is_known)), ""), "{failure:#?}");
}

// --- OpenSSH ------------------------------------------------------------------------------------------------------------

/// A host with a real sshd.
struct Machine {
    sshd: Sshd,
    stand_ins: PathBuf,
    root: PathBuf,
    // Last, so that it is removed after the server has gone.
    _folder: TempDir,
}

impl Machine {
    /// One whose sshd has these lines too.
    fn with(lines: &str) -> Machine {
        let folder = tempfile::Builder::new().prefix("ts-ssh-").tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir(root.join("home")).unwrap();
        let mut sshd = Sshd::start(&root, &Account { home: &root.join("home"), wrapper: None, uploads: true });
        let stand_ins = stand_ins(&root, "machine", sshd.port());
        if !lines.is_empty() {
            let configuration = root.join("sshd_config");
            let text = fs::read_to_string(&configuration).unwrap();
            fs::write(&configuration, format!("{lines}\n{text}")).unwrap();
            sshd.kill();
            sshd.start_again();
        }
        Machine { sshd, stand_ins, root, _folder: folder }
    }

    fn path(&self, name: &str) -> String {
        self.root.join(name).display().to_string()
    }

    /// What `ssh ARGS…` leaves behind.
    fn ssh(&self, args: &[&str], meaning: Meaning) -> Failure {
        failure(Command::new(self.stand_ins.join("ssh")).args(args), meaning)
    }

    /// The same with a command for the host.
    fn exec(&self, line: &str, meaning: Meaning) -> Failure {
        self.ssh(&["machine", line], meaning)
    }

    /// The same of a host that is at another port.
    fn at(&self, port: u16, meaning: Meaning) -> Failure {
        self.ssh(&["-p", &port.to_string(), "-oConnectTimeout=2", "machine", "true"], meaning)
    }

    /// What `scp FILE machine:NAME` leaves behind.
    fn scp(&self, file: &str, name: &str, meaning: Meaning) -> Failure {
        failure(Command::new(self.stand_ins.join("scp")).args([file, &format!("machine:{name}")]), meaning)
    }
}

fn failure(command: &mut Command, meaning: Meaning) -> Failure {
    // As Mutagen runs it.
    let ran = run(command.env("LC_ALL", "C").stdin(Stdio::null()));
    assert!(!ran.status.success(), "{command:?} succeeds");
    Failure { stderr: ran.stderr, status: ran.status.code(), meaning }
}

/// Each of ssh's own failures that can be had here, by the real ssh.
fn of_openssh() -> Vec<Failure> {
    let machine = Machine::with("");
    let file = machine.path("known_hosts");
    let changed = machine.path("changed");
    let other = fs::read_to_string(machine.root.join("client_key.pub")).unwrap();
    fs::write(&changed, format!("machine {other}")).unwrap();
    let option = |option: &str, meaning| machine.ssh(&[option, "machine", "true"], meaning);
    let silent = tcp_server(|mut connection| drop(connection.read_to_end(&mut Vec::new())));
    let old = tcp_server(|mut connection| {
        let _ = connection.write_all(b"SSH-1.5-old\r\n");
        let _ = connection.read_to_end(&mut Vec::new());
    });
    let rude = tcp_server(drop);
    let strict = Machine::with("MaxSessions 0\nDisableForwarding yes");
    let mut legacy = Command::new(machine.stand_ins.join("scp"));

    vec![
        // What the host's shell says; Mutagen's first command among it.
        machine.exec(".mutagen/agents/0.18.1/mutagen-agent synchronizer --log-level=info", of(Code::AgentMissing)),
        machine.exec("no-such-program", of(Code::AgentMissing)),
        machine.exec("bash -c no-such-program", of(Code::AgentMissing)),
        machine.exec("/etc/passwd", of(Code::AgentNotExecutable)),
        machine.exec("echo oh no >&2; exit 3", UNKNOWN),
        machine.exec("kill -9 $$", UNKNOWN),
        // The way there.
        machine.at(port::free(), of(Code::ConnectRefused)),
        machine.at(silent.port(), of(Code::ConnectTimeout)),
        machine.at(old.port(), of(Code::NotTstunnel)),
        machine.at(rude.port(), of(Code::NetworkLost)),
        option("-oHostName=nowhere.invalid", of(Code::Dns)),
        option("-oProxyCommand=false", of(Code::Proxy)),
        option("-oProxyCommand=/no/such/program", of(Code::Proxy)),
        // Who is who.
        option(&format!("-oUserKnownHostsFile={changed}"), of(Code::TlsUntrusted)),
        option("-oUserKnownHostsFile=/dev/null", of(Code::TlsUntrusted)),
        machine.ssh(&["-F", &machine.with_strange_key(), "machine", "true"], of(Code::Unauthorized)),
        machine.ssh(&["-F", &machine.with_exposed_key(), "machine", "true"], of(Code::Config)),
        option("-oKexAlgorithms=diffie-hellman-group1-sha1", of(Code::TlsHandshake)),
        option("-oCiphers=aes128-cbc", of(Code::TlsHandshake)),
        // The command line.
        option("-oNoSuchOption=1", of(Code::Config)),
        option("-z", of(Code::Usage)),
        machine.ssh(&["-F", "/no/such/file", "machine", "true"], of(Code::Config)),
        // Streams, sessions and files.
        machine.ssh(&["-W", &format!("127.0.0.1:{}", port::free()), "machine"], of(Code::TargetUnreachable)),
        strict.ssh(&["-W", "127.0.0.1:9", "machine"], of(Code::CommandDenied)),
        strict.exec("true", of(Code::TooMany)),
        machine.scp(&file, "/no/such/folder/x", of(Code::Storage)),
        machine.scp(&file, "/dev/full", of(Code::Storage)),
        machine.scp("/no/such/file", "x", of(Code::Usage)),
        failure(legacy.args(["-O", &file, "machine:/no/such/folder/x"]), of(Code::Storage)),
        lost(machine),
    ]
}

/// A session whose server is gone.
fn lost(mut machine: Machine) -> Failure {
    let mut command = Command::new(machine.stand_ins.join("ssh"));
    let mut session = Watched::start(command.args(["machine", "echo here; cat"]).stdin(Stdio::piped()));
    session.wait_for_output("here");
    let _stdin = session.stdin();
    machine.sshd.kill();
    let ran = session.wait();
    Failure { stderr: ran.stderr, status: ran.status.code(), meaning: of(Code::NetworkLost) }
}

impl Machine {
    /// A configuration with a key that the host does not know.
    fn with_strange_key(&self) -> String {
        let key = self.path("strange_key");
        succeed(Command::new(program("ssh-keygen")).args(["-q", "-t", "ed25519", "-N", "", "-f", &key]));
        self.with_key("strange_key")
    }

    /// One with a key that everybody can read.
    fn with_exposed_key(&self) -> String {
        let key = self.root.join("exposed_key");
        fs::copy(self.root.join("client_key"), &key).unwrap();
        fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
        self.with_key("exposed_key")
    }

    fn with_key(&self, name: &str) -> String {
        let text = fs::read_to_string(self.root.join("ssh_config")).unwrap();
        let configuration = self.path(&format!("{name}.config"));
        fs::write(&configuration, text.replace("/client_key", &format!("/{name}"))).unwrap();
        configuration
    }
}

// --- what cannot be had here --------------------------------------------------------------------------------------------

/// Texts as they were seen elsewhere: the programs are named, the rest is theirs.
fn captured() -> Vec<Failure> {
    let missing = of(Code::AgentMissing);
    let rows: &[(&str, Option<i32>, Meaning)] = &[
        // cmd.exe: a path with slashes is a command and options to it; one with backslashes that leads nowhere.
        (
            "'.mutagen' is not recognized as an internal or external command,\r\noperable program or batch file.\r\n",
            Some(1),
            Meaning { windows: true, retry: true, ..UNKNOWN },
        ),
        ("The system cannot find the path specified.\r\n", Some(1), Meaning { windows: true, ..missing }),
        // Windows PowerShell 5.1 breaks its lines; PowerShell 7 has another article.
        (
            ".mutagen/agents/0.18.1/mutagen-agent : The term '.mutagen/agents/0.18.1/mutagen-agent' is not \r\n\
             recognized as the name of a cmdlet, function, script file, or operable program. Check the spelling of the \r\n\
             name, or if a path was included, verify that the path is correct and try again.\r\n",
            Some(1),
            Meaning { windows: true, ..missing },
        ),
        (
            ".mutagen/agents/0.18.1/mutagen-agent: The term '.mutagen/agents/0.18.1/mutagen-agent' is not recognized as a \
             name of a cmdlet, function, script file, or executable program.\r\n",
            Some(1),
            Meaning { windows: true, ..missing },
        ),
        // Other shells, by their words alone.
        ("zsh:1: command not found: mutagen-agent\n", None, missing),
        ("mutagen-agent: Command not found.\n", Some(1), missing),
        ("fish: Unknown command: mutagen-agent\n", None, missing),
        ("sh: 1: mutagen-agent: not found\n", None, missing),
        ("ash: mutagen-agent: not found\n", None, missing),
        ("bash: line 1: /data/list: No such file or directory\n", None, UNKNOWN),
        ("cat: x: not found\n", None, UNKNOWN),
        // OpenSSH elsewhere, and against servers that are not at hand.
        ("ssh: connect to host h port 22: No route to host\r\n", Some(255), of(Code::ConnectTimeout)),
        ("ssh: connect to host h port 22: Network is unreachable\r\n", Some(255), of(Code::ConnectTimeout)),
        ("ssh: connect to host h port 22: Operation timed out\r\n", Some(255), of(Code::ConnectTimeout)),
        ("Timeout, server h not responding.\r\n", Some(255), of(Code::NetworkLost)),
        ("client_loop: send disconnect: Broken pipe\r\n", Some(255), of(Code::NetworkLost)),
        ("ann@h: Permission denied (publickey,password,keyboard-interactive).\r\n", Some(255), of(Code::Unauthorized)),
        ("Permission denied, please try again.\r\n", Some(255), of(Code::Unauthorized)),
        (
            "Received disconnect from 192.0.2.1 port 22:2: Too many authentication failures\r\n\
             Disconnected from 192.0.2.1 port 22\r\n",
            Some(255),
            of(Code::Unauthorized),
        ),
        ("Bad owner or permissions on /home/ann/.ssh/config\r\n", Some(255), of(Code::Config)),
        ("subsystem request failed on channel 0\r\nscp: Connection closed\r\n", Some(255), of(Code::CommandDenied)),
        (
            "mux_client_request_session: session request failed: Session open refused by peer\r\n",
            Some(255),
            of(Code::TooMany),
        ),
        ("banner exchange: Connection to UNKNOWN port 65535: Broken pipe\r\n", Some(255), of(Code::Proxy)),
        ("scp: .mutagen-agent1: No space left on device\n", Some(1), of(Code::Storage)),
        ("scp: .mutagen-agent1: Permission denied\n", Some(1), of(Code::Storage)),
        // Statuses alone.
        ("", Some(126), of(Code::AgentNotExecutable)),
        ("", Some(127), missing),
        ("", Some(255), UNKNOWN),
        ("", Some(137), UNKNOWN),
        ("", Some(0), UNKNOWN),
        ("", None, UNKNOWN),
    ];
    let failure = |(stderr, status, meaning): &(&str, Option<i32>, Meaning)| Failure {
        stderr: (*stderr).to_owned(),
        status: *status,
        meaning: *meaning,
    };
    rows.iter().map(failure).collect()
}

/// Every code, as tstunnel itself reports it, behind what a login script says.
fn own_reports() -> Vec<Failure> {
    let reported = |code: &Code| {
        let error = Error::new(*code, "what happened");
        let status = match code {
            Code::AgentMissing => 127,
            Code::AgentNotExecutable => 126,
            _ => 255,
        };
        Failure { stderr: format!("welcome\n{}\n", error.report()), status: Some(status), meaning: of(*code) }
    };
    Code::ALL.iter().map(reported).collect()
}

#[test]
fn what_programs_say_is_known_and_mutagen_agrees_wherever_it_knows() {
    let failures = [of_openssh(), captured(), own_reports()].into_iter().flatten().collect::<Vec<_>>();
    failures.iter().for_each(assert_means);
    let with_status = failures.iter().filter(|failure| failure.status.is_some()).collect::<Vec<_>>();
    let answers = mutagens(&with_status);
    assert_eq!(answers.len(), with_status.len());
    for (failure, answer) in with_status.into_iter().zip(answers) {
        if answer["known"] == true {
            let ours = json!({"install": failure.meaning.install, "windows": failure.meaning.windows, "known": true});
            assert_eq!(answer, ours, "{failure:#?}");
        }
    }
}

/// What Mutagen's own `ClassifyError` says to each.
fn mutagens(failures: &[&Failure]) -> Vec<Value> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mutagen");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutagen-classify");
    let mut build = Command::new(support::process::program("go"));
    build.args(["build", "-buildvcs=false", "-mod=readonly", "-o"]).arg(&program).arg("./classify");
    succeed(build.current_dir(module).envs([("CGO_ENABLED", "0"), ("GOWORK", "off")]));
    let line = |failure: &&Failure| json!({"stderr": failure.stderr, "status": failure.status}).to_string() + "\n";
    let input = failures.iter().map(line).collect::<String>();
    let ran = run_with_input(&mut Command::new(program), input.as_bytes()).ok();
    ran.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

// --- a script's view ----------------------------------------------------------------------------------------------------

#[test]
fn a_script_goes_by_the_exit_status_and_reads_one_line() {
    let script = "if tstunnel classify --exit-status 127 </dev/null >verdict; then read -r code what <verdict; echo $code $what; fi";
    let folder = tempfile::tempdir().unwrap();
    let path = Path::new(TSTUNNEL).parent().unwrap().display().to_string() + ":/usr/bin:/bin";
    let mut shell = Command::new("/bin/sh");
    let ran = run(shell.args(["-c", script]).env("PATH", path).current_dir(folder.path())).ok();
    assert_eq!(ran.text(), "agent-missing install\n");
}

#[test]
fn a_signal_is_told_by_its_name() {
    let mut command = Command::new(TSTUNNEL);
    let ran = run_with_input(command.args(["classify", "--exit-status", "137"]), b"");
    assert_eq!(
        (ran.code(), ran.text().as_str()),
        (Some(1), "unknown\nthe command was ended by SIGKILL: look for who sent that\n")
    );
}
