//! A permitted command → a process in a group of its own, and its end: stdin closed, one second, SIGTERM to the group,
//! five seconds, SIGKILL.
//!
//! Nothing of the server's environment reaches the process. A command is run only with a [`Permit`].

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{
    Pid, Signal, getpriority_pgrp, kill_process_group, setpriority_process, test_kill_process_group,
};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::time::Instant;

use crate::error::{Code, Error};
use crate::protocol::session::Exit;
use crate::server::account::{DEFAULT_SHELL, Login};
use crate::server::agents::{Agents, Trusted};
use crate::server::child::{Child, Pipes};
use crate::server::policy::{Action, Invocation, Permit};
use crate::server::{descriptors, spawn};

/// Where programs without a slash are looked up, as sshd does where nothing else is configured.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// This program's own file, wherever it is and whatever has taken its place there.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// The folder that a confined agent's file must be in, below the home.
const AGENTS: &str = ".mutagen/agents";
/// From the end of stdin to SIGTERM: an agent that is well ends by itself.
const STDIN_GRACE: Duration = Duration::from_secs(1);
/// From SIGTERM to SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(5);

/// The nice value of whoever gives way to all others.
const LOWEST_PRIORITY: i32 = 19;

/// How often a group without its leader is looked at; there is no event for its end.
const GROUP_POLL: Duration = Duration::from_millis(5);

/// Why a permitted command is not running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartFailure {
    /// The program does not exist: status 127, as a POSIX shell has it.
    Missing(String),
    /// The program cannot be executed: status 126.
    NotExecutable(String),
    /// This machine has no room for another process: later there may be.
    Exhausted(String),
    /// The account's home cannot be entered.
    NoHome(Error),
    /// The server cannot start anything.
    Broken(String),
}

/// A running command.
#[derive(Debug)]
pub struct Process {
    /// Until its number may be a stranger's. Dropped before the child, which is reaped with its own drop.
    listed: Option<Listed>,
    child: Child,
}

/// The process group that a command leads. Its number is its own as long as its [`Process`] says so.
#[derive(Clone, Copy, Debug)]
pub struct Group(Pid);

/// The groups of this server that something may be left of: the kernel knows of no such list.
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// A group's place among [`GROUPS`].
#[derive(Debug)]
struct Listed(Group);

impl Listed {
    fn new(group: Group) -> Listed {
        GROUPS.lock().unwrap_or_else(PoisonError::into_inner).insert(group.0.as_raw_pid());
        Listed(group)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        GROUPS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0.0.as_raw_pid());
    }
}

/// Kills whatever runs: there is no time for the ladder.
pub fn kill_all() {
    let groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
    for group in groups.iter().filter_map(|id| Pid::from_raw(*id)) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// A permitted command that is ready to be started: all that may take its time is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    image: Image,
    /// Of an agent's file.
    version: Option<FileVersion>,
    is_wrapped: bool,
    login: Login,
}

/// What tells a file from what it was before, or from another of its name: nobody but root can set the time of its last change
/// (inode(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileVersion {
    device: u64,
    number: u64,
    size: u64,
    changed: (i64, i64),
}

impl FileVersion {
    /// Of the file that `metadata` is of.
    pub fn of(metadata: &Metadata) -> FileVersion {
        FileVersion {
            device: metadata.dev(),
            number: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A program with its arguments and its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The files to try in turn.
    files: Vec<PathBuf>,
    /// What was verified, and is run instead.
    agent: Option<Trusted>,
    /// The name and the arguments.
    words: Vec<String>,
    /// What is added to the environment that a login gives.
    env: Vec<(String, String)>,
}

/// Finds out what `permit` is to run as `login`, and checks it. Blocks.
///
/// # Errors
/// A [`StartFailure`]; its text is for the client.
pub fn prepare(permit: &Permit, login: Login, agents: &Agents) -> Result<Prepared, StartFailure> {
    let Action::Command { invocation, env, confined_agent, digests } = permit.action() else {
        return Err(StartFailure::Broken("this permit is not for a command".to_owned()));
    };
    let is_wrapped = !permit.wrapper().is_empty();
    let mut words: Vec<String> = permit.wrapper().to_vec();
    match invocation {
        // The wrapper would take it for an option of its own.
        Invocation::Argv(argv) if is_wrapped && argv.first().is_some_and(|word| word.starts_with('-')) => {
            let text = format!("{}: a program behind this host's wrapper cannot begin with `-`", argv[0]);
            return Err(StartFailure::NotExecutable(text));
        }
        Invocation::Argv(argv) => words.extend_from_slice(argv),
        Invocation::Shell(line) => {
            let shell = if is_wrapped { DEFAULT_SHELL.to_owned() } else { login.shell.display().to_string() };
            words.extend([shell, "-c".to_owned(), line.clone()]);
        }
    }
    let Some(program) = words.first() else {
        return Err(StartFailure::Missing("the command is empty".to_owned()));
    };
    let (files, version) = if *confined_agent && !is_wrapped {
        let (path, version) = agent_file(program, &login)?;
        (vec![path], Some(version))
    } else {
        (files(program, &login.home), None)
    };
    let agent = match files.as_slice() {
        _ if digests.is_empty() => None,
        [path] if !is_wrapped => Some(agents.verify(path, &login, digests, !confined_agent).map_err(|error| {
            let untrusted =
                || StartFailure::NotExecutable(format!("{program}: not one of the agents that the host trusts"));
            if error.kind() == io::ErrorKind::PermissionDenied {
                untrusted()
            } else {
                explain(program, &login.home, &error)
            }
        })?),
        _ => {
            let text = format!(
                "{program}: what is behind a wrapper cannot be verified, and this host trusts listed agents alone"
            );
            return Err(StartFailure::NotExecutable(text));
        }
    };
    Ok(Prepared { image: Image { files, agent, words, env: env.clone() }, version, is_wrapped, login })
}

/// The files that `program` may name: relative to the home where it has a slash, else in each folder of [`PATH`].
fn files(program: &str, home: &Path) -> Vec<PathBuf> {
    if program.contains('/') {
        return vec![home.join(program)];
    }
    PATH.split(':').map(|folder| Path::new(folder).join(program)).collect()
}

/// Whether there is no such program for any account; of one that is named relative to a home that is not asked.
pub fn is_missing(program: &str) -> bool {
    let is_relative = program.contains('/') && !program.starts_with('/');
    // What this account may not look at, another one may.
    let is_missing = |file: &PathBuf| file.metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    !is_relative && files(program, Path::new("/")).iter().all(is_missing)
}

/// The file that an agent's name leads to, links resolved, with the account's rights; it must be one below [`AGENTS`], which is no
/// link itself. A home that cannot be entered is no missing agent: nothing could be installed there.
fn agent_file(program: &str, login: &Login) -> Result<(PathBuf, FileVersion), StartFailure> {
    let resolve = || {
        fs::metadata(login.home.join(".")).map_err(|_| spawn::NO_HOME)?;
        let path = login.home.join(program).canonicalize()?;
        let version = FileVersion::of(&path.symlink_metadata()?);
        Ok((path, version, login.home.canonicalize()?.join(AGENTS)))
    };
    let (path, version, agents) = login.as_account(resolve).map_err(|error| explain(program, &login.home, &error))?;
    if path.starts_with(&agents) {
        Ok((path, version))
    } else {
        Err(StartFailure::NotExecutable(format!("{program}: leads out of {AGENTS}")))
    }
}

impl Prepared {
    /// Starts it in the account's home directory. Blocks; see [`spawn::spawn`].
    ///
    /// # Errors
    /// A [`StartFailure`]; its text is for the client.
    pub fn start(self) -> Result<(Process, Pipes), StartFailure> {
        // Where a wrapper starts is its own affair: the home is one behind it.
        let folder = if self.is_wrapped { Path::new("/") } else { &self.login.home };
        let program = self.image.words.first().map_or("", String::as_str);
        let (child, pipes) = with_setup(&self.image, &self.login, folder, Child::start)
            .map_err(|error| explain(program, folder, &error))?;
        let listed = Some(Listed::new(Group(child.id())));
        Ok((Process { listed, child }, pipes))
    }
}

/// What to tell a client where a start failed since `home` cannot be entered.
pub fn no_home(error: &io::Error, home: &Path, code: Code) -> Option<Error> {
    (error.raw_os_error() == Some(spawn::NO_HOME.raw_os_error())).then(|| {
        Error::new(code, format!("the home directory {} cannot be entered on the host", home.display())).with_hint(
            "ask whoever runs the endpoint to make it there, as the account's own, or to correct the host's `home`",
        )
    })
}

/// Starts this program itself as `login` in its home, under another name, without a stderr. Blocks; see [`spawn::spawn`].
///
/// # Errors
/// Those of [`spawn::spawn`], and where there is no descriptor left.
pub fn start_own(name: &str, login: &Login) -> io::Result<(Child, Sender, Receiver)> {
    let image = Image { files: vec![OWN_PROGRAM.into()], agent: None, words: vec![name.to_owned()], env: Vec::new() };
    with_setup(&image, login, &login.home, Child::start_silent)
}

/// Has `image` started, with the environment that a login gives.
fn with_setup<T>(image: &Image, login: &Login, folder: &Path, start: impl FnOnce(&spawn::Setup<'_>) -> T) -> T {
    let Image { files, agent, words, env } = image;
    let text = |path: &Path| path.display().to_string();
    let mut environment: Vec<(String, String)> = [
        ("HOME", text(&login.home)),
        ("USER", login.name.clone()),
        ("LOGNAME", login.name.clone()),
        ("SHELL", text(&login.shell)),
        ("PATH", PATH.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    environment.extend_from_slice(env);
    start(&spawn::Setup {
        login,
        folder,
        descriptors: descriptors::original(),
        program: match agent {
            Some(Trusted { file, is_script, .. }) => spawn::Program::File { file, is_kept: *is_script },
            None => spawn::Program::OneOf(files),
        },
        arguments: words,
        environment: &environment,
    })
}

/// Why `program` does not run in `home`.
fn explain(program: &str, home: &Path, error: &io::Error) -> StartFailure {
    if let Some(error) = no_home(error, home, Code::Internal) {
        return StartFailure::NoHome(error);
    }
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            StartFailure::Missing(format!("{program}: not found"))
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ExecutableFileBusy => {
            StartFailure::NotExecutable(format!("{program}: cannot be executed"))
        }
        io::ErrorKind::ArgumentListTooLong => {
            StartFailure::NotExecutable(format!("{program}: the arguments are too long for this system"))
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
            StartFailure::NotExecutable(format!("{program}: not a program of this system"))
        }
        // Of what is to be verified no link is followed at all.
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            StartFailure::NotExecutable(format!("{program}: is a link or behind a loop of links"))
        }
        _ if descriptors::is_exhaustion(error) => StartFailure::Exhausted(format!("{program}: {error}")),
        _ => StartFailure::Broken(format!("{program}: {error}")),
    }
}

impl Process {
    /// Waits for the process's end. It stays a zombie, and keeps the group's number, unless it is seen that nothing else is left of that.
    /// Cancel-safe.
    pub async fn wait(&mut self) -> Exit {
        let exit = match self.child.wait().await {
            Ok(status) => exit(status),
            Err(error) => {
                tracing::error!(%error, "cannot wait for a process");
                Exit::Status(255)
            }
        };
        self.listed.take_if(|listed| !self.child.keeps_id() || listed.0.has_leader_alone());
        if self.listed.is_none() {
            self.child.let_go();
        }
        exit
    }

    /// Whether it has ended by now.
    pub fn has_ended(&mut self) -> bool {
        let has_ended = self.child.has_ended();
        self.listed.take_if(|_| !self.child.keeps_id());
        has_ended
    }

    /// The group that it leads, until its number may be a stranger's.
    pub fn group(&self) -> Option<Group> {
        self.listed.as_ref().map(|listed| listed.0)
    }
}

impl Group {
    /// Sends a signal, by its name without `SIG` (RFC 4254 §6.9); an unknown one is ignored.
    pub fn signal(self, name: &str) {
        if let Some(signal) = signal_by_name(name) {
            self.kill(signal);
        }
    }

    fn kill(self, signal: Signal) {
        let _ = kill_process_group(self.0, signal);
    }

    /// Whether its leader, a zombie, is seen to be all that is left of it. The kernel does not tell who is in a group, but the highest
    /// priority in it (getpriority(2)): of a zombie that has been given the lowest, that is its own. To give it that takes CAP_SYS_NICE
    /// where the account is another: without it nothing is seen. Nor is whoever was left there with the lowest, too.
    fn has_leader_alone(self) -> bool {
        let given = setpriority_process(Some(self.0), LOWEST_PRIORITY);
        given.is_ok() && getpriority_pgrp(Some(self.0)).is_ok_and(|highest| highest == LOWEST_PRIORITY)
    }

    fn is_alive(self) -> bool {
        test_kill_process_group(self.0).is_ok()
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

    /// Whether it has come as far as a signal.
    pub fn has_signalled(&self) -> bool {
        self.is_started && !matches!(self.next, Some((_, Signal::TERM)))
    }

    /// Whether `exit` may be its doing, after a signal: a program that ends well at SIGTERM, or dies of it or of SIGKILL.
    pub fn explains(exit: Exit) -> bool {
        [Exit::Status(0), Exit::Signal(Signal::TERM.as_raw() as u32), Exit::Signal(Signal::KILL.as_raw() as u32)]
            .contains(&exit)
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
    ladder.start();
    while let (false, Some(group)) = (has_ended, process.group()) {
        tokio::select! {
            _ = process.wait() => has_ended = true,
            () = ladder.step(group) => {}
        }
    }
    // What the process has left behind in its group has had its time with the process. Until here the process, a zombie, keeps the
    // number. From here on only what is left does: between two looks the number could become a stranger's.
    let Some(group) = process.group() else { return };
    group.kill(Signal::TERM);
    process.child.let_go();
    let deadline = Instant::now() + TERM_GRACE;
    while group.is_alive() {
        if Instant::now() >= deadline {
            group.kill(Signal::KILL);
            return;
        }
        tokio::time::sleep(GROUP_POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[tokio::test]
    async fn a_process_that_has_ended_keeps_its_number_where_it_has_left_something() {
        let (mut process, _pipes) = shell("exit 3");
        let Group(id) = process.group().unwrap();
        assert_eq!(process.wait().await, Exit::Status(3));
        assert!(process.has_ended() && process.group().is_none() && !is_there(id), "nothing is left, which is seen");
        // Its child ends when the pipe that is its stdin does.
        let (mut process, pipes) = shell("cat <&0 & exit 4");
        let Group(id) = process.group().unwrap();
        assert_eq!(process.wait().await, Exit::Status(4));
        assert!(process.group().is_some() && is_there(id));
        drop(pipes);
        end(process, Ladder::default(), true).await;
        assert!(!is_there(id));
    }

    fn shell(line: &str) -> (Process, Pipes) {
        let words = ["sh", "-c", line].map(str::to_owned).to_vec();
        let image = Image { files: vec!["/bin/sh".into()], agent: None, words, env: Vec::new() };
        let login = Login { name: "dev".into(), home: "/".into(), shell: "/bin/sh".into(), identity: None };
        Prepared { image, version: None, is_wrapped: false, login }.start().unwrap()
    }

    fn is_there(id: Pid) -> bool {
        Path::new("/proc").join(id.as_raw_pid().to_string()).exists()
    }

    #[test]
    fn what_the_machine_has_run_out_of_is_told_from_what_is_wrong_with_a_program() {
        for (errno, is_exhausted) in [
            (Errno::AGAIN, true),
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::NOMEM, true),
            (Errno::NOENT, false),
            (Errno::ACCESS, false),
            (Errno::NOEXEC, false),
            (Errno::IO, false),
        ] {
            let failure = explain("agent", Path::new("/"), &errno.into());
            assert_eq!(matches!(failure, StartFailure::Exhausted(_)), is_exhausted, "{failure:?}");
        }
    }
}
