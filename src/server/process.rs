//! A permitted command → a process in a group of its own, and its end: stdin closed, one second, SIGTERM to the group,
//! five seconds, SIGKILL.
//!
//! Nothing of the server's environment reaches the process. Only [`start`] runs programs, and only with a [`Permit`].

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::RwLock;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::Instant;

use crate::protocol::session::Exit;
use crate::server::policy::{Action, Invocation, Permit};

/// Where programs without a slash are looked up, as sshd does where nothing else is configured.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What runs a line where the account has no shell of its own.
const DEFAULT_SHELL: &str = "/bin/sh";
/// The folder that a confined agent's file must be in, below the home.
const AGENTS: &str = ".mutagen/agents";
/// Bytes that a pipe to or from a process holds, where the system allows it.
const PIPE_BYTES: usize = 256 << 10;
/// From the end of stdin to SIGTERM: an agent that is well ends by itself.
const STDIN_GRACE: Duration = Duration::from_secs(1);
/// From SIGTERM to SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(5);

/// How often a group without its leader is looked at; there is no event for its end.
const GROUP_POLL: Duration = Duration::from_millis(20);

/// Held while a program is started, and by whoever has written one: between fork(2) and execve(2) a child holds every
/// descriptor of the server's, and a file that is open for writing cannot be executed (ETXTBSY).
static SPAWNING: RwLock<()> = RwLock::new(());

/// Waits until no child holds a descriptor that was closed before this call.
pub fn wait_for_spawns() {
    drop(SPAWNING.write());
}

/// Why a permitted command is not running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartFailure {
    /// The program does not exist: status 127, as a POSIX shell has it.
    Missing(String),
    /// The program cannot be executed: status 126.
    NotExecutable(String),
    /// The server cannot start anything.
    Broken(String),
}

/// A running command.
#[derive(Debug)]
pub struct Process {
    child: Box<Child>,
    group: Group,
}

/// The process group that a command leads.
#[derive(Clone, Copy, Debug)]
pub struct Group(Option<Pid>);

/// The server's ends of a process's standard streams.
#[derive(Debug)]
pub struct Pipes {
    /// To its stdin.
    pub stdin: ChildStdin,
    /// From its stdout.
    pub stdout: ChildStdout,
    /// From its stderr.
    pub stderr: ChildStderr,
}

/// Starts what `permit` allows, in the host's home directory.
///
/// # Errors
/// A [`StartFailure`]; its text is for the client.
pub fn start(permit: &Permit) -> Result<(Process, Pipes), StartFailure> {
    let home = permit.home();
    let Action::Command { invocation, env, confined_agent } = permit.action() else {
        return Err(StartFailure::Broken("this permit is not for a command".to_owned()));
    };
    let login_shell = login_shell(permit.account());
    if permit.wrapper().is_empty() && !home.is_dir() {
        return Err(StartFailure::Broken(format!("the home directory {} does not exist", home.display())));
    }
    let mut words: Vec<String> = permit.wrapper().to_vec();
    match invocation {
        Invocation::Argv(argv) => {
            let mut argv = argv.clone();
            if words.is_empty()
                && let Some(program) = argv.first_mut()
            {
                *program = resolve(program, home, *confined_agent)?;
            }
            words.append(&mut argv);
        }
        Invocation::Shell(line) => {
            let shell = if words.is_empty() { login_shell.as_str() } else { DEFAULT_SHELL };
            words.extend([shell.to_owned(), "-c".to_owned(), line.clone()]);
        }
    }
    let [program, arguments @ ..] = words.as_slice() else {
        return Err(StartFailure::Missing("the command is empty".to_owned()));
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("HOME", home)
        .env("USER", permit.account())
        .env("LOGNAME", permit.account())
        .env("SHELL", &login_shell)
        .env("PATH", PATH)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(false);
    if permit.wrapper().is_empty() {
        command.current_dir(home);
    } else {
        command.current_dir("/");
    }
    let spawned = {
        let _spawning = SPAWNING.read();
        command.spawn()
    };
    let mut child = spawned.map_err(|error| explain(program, &error))?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(id as i32)));
    let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(StartFailure::Broken("the process has no standard streams".to_owned()));
    };
    let _ = rustix::pipe::fcntl_setpipe_size(&stdin, PIPE_BYTES);
    let _ = rustix::pipe::fcntl_setpipe_size(&stdout, PIPE_BYTES);
    Ok((Process { child: Box::new(child), group }, Pipes { stdin, stdout, stderr }))
}

/// The account's shell (passwd(5)).
fn login_shell(account: &str) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entry =
        passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields.first() == Some(&account));
    match entry.as_deref() {
        Some([_, _, _, _, _, _, shell]) if !shell.is_empty() => (*shell).to_owned(),
        _ => DEFAULT_SHELL.to_owned(),
    }
}

/// The file that `program` names: relative to the home where it has a slash, else looked up in [`PATH`].
fn resolve(program: &str, home: &Path, is_confined: bool) -> Result<String, StartFailure> {
    let named = if program.contains('/') {
        home.join(program)
    } else {
        let mut candidates = PATH.split(':').map(|folder| Path::new(folder).join(program));
        candidates.find(|path| path.is_file()).ok_or_else(|| StartFailure::Missing(format!("{program}: not found")))?
    };
    let found = |path: &Path| -> io::Result<PathBuf> {
        let path = if is_confined { path.canonicalize()? } else { path.to_owned() };
        let metadata = path.metadata()?;
        if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(path)
    };
    let path = found(&named).map_err(|error| explain(program, &error))?;
    if is_confined {
        let agents = home.join(AGENTS).canonicalize().map_err(|error| explain(program, &error))?;
        if !path.starts_with(&agents) {
            return Err(StartFailure::NotExecutable(format!("{program}: leads out of {AGENTS}")));
        }
    }
    path.into_os_string().into_string().map_err(|_| StartFailure::Missing(format!("{program}: not found")))
}

fn explain(program: &str, error: &io::Error) -> StartFailure {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            StartFailure::Missing(format!("{program}: not found"))
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ExecutableFileBusy => {
            StartFailure::NotExecutable(format!("{program}: cannot be executed"))
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
            StartFailure::NotExecutable(format!("{program}: not a program of this system"))
        }
        _ => StartFailure::Broken(format!("{program}: {error}")),
    }
}

impl Process {
    /// Waits for the process's end.
    pub async fn wait(&mut self) -> Exit {
        match self.child.wait().await {
            Ok(status) => exit(status),
            Err(error) => {
                tracing::error!(%error, "cannot wait for a process");
                Exit::Status(255)
            }
        }
    }

    /// The group that it leads.
    pub fn group(&self) -> Group {
        self.group
    }
}

impl Group {
    /// Sends a signal, by its name without `SIG` (RFC 4254 §6.9); an unknown one is ignored.
    pub fn signal(self, name: &str) {
        if let Some(signal) = signal_by_name(name) {
            self.kill(signal);
        }
    }

    /// Whether there was anybody to get the signal.
    fn kill(self, signal: Signal) -> bool {
        self.0.is_some_and(|group| kill_process_group(group, signal).is_ok())
    }

    fn is_alive(self) -> bool {
        self.0.is_some_and(|group| test_kill_process_group(group).is_ok())
    }
}

fn exit(status: ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Status(code as u32),
        (None, Some(signal)) => Exit::Signal(signal as u32),
        (None, None) => Exit::Status(255),
    }
}

fn signal_by_name(name: &str) -> Option<Signal> {
    Some(match name {
        "ABRT" => Signal::ABORT,
        "ALRM" => Signal::ALARM,
        "FPE" => Signal::FPE,
        "HUP" => Signal::HUP,
        "ILL" => Signal::ILL,
        "INT" => Signal::INT,
        "KILL" => Signal::KILL,
        "PIPE" => Signal::PIPE,
        "QUIT" => Signal::QUIT,
        "SEGV" => Signal::SEGV,
        "TERM" => Signal::TERM,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        _ => return None,
    })
}

/// The ending ladder: its steps come one after another once it has been started. Stdin is the caller's to close, with
/// the start.
#[derive(Debug, Default)]
pub struct Ladder {
    is_started: bool,
    next: Option<(Instant, Signal)>,
}

impl Ladder {
    /// Starts the ladder, if it has not been.
    pub fn start(&mut self) {
        if !self.is_started {
            self.is_started = true;
            self.next = Some((Instant::now() + STDIN_GRACE, Signal::TERM));
        }
    }

    /// Whether it has been started.
    pub fn is_started(&self) -> bool {
        self.is_started
    }

    /// Waits until the next step is due, and takes it. Never returns after the last one, nor before the start.
    pub async fn step(&mut self, group: Group) {
        let Some((at, signal)) = self.next else { return std::future::pending().await };
        tokio::time::sleep_until(at).await;
        group.kill(signal);
        self.next = (signal == Signal::TERM).then(|| (Instant::now() + TERM_GRACE, Signal::KILL));
    }
}

/// Ends a process whose session is over, and waits until nothing of its group is left.
pub async fn end(mut process: Process, mut ladder: Ladder, mut has_ended: bool) {
    let group = process.group;
    ladder.start();
    while !has_ended {
        tokio::select! {
            _ = process.wait() => has_ended = true,
            () = ladder.step(group) => {}
        }
    }
    // What the process has left behind in its group has had its time with the process.
    if group.kill(Signal::TERM) {
        let deadline = Instant::now() + TERM_GRACE;
        while Instant::now() < deadline && group.is_alive() {
            tokio::time::sleep(GROUP_POLL).await;
        }
        group.kill(Signal::KILL);
    }
}
