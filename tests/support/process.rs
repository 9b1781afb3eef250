//! Finding processes in /proc, by what tells one test's from another's: their parent, and the HOME they were given.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command};

pub(crate) use rustix::process::Signal;
use rustix::process::{Pid, kill_process, kill_process_group};

/// A process that was alive when /proc was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) arguments: Vec<OsString>,
}

impl Process {
    /// Sends a signal; one that has ended meanwhile is no failure.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = kill_process(pid, signal);
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        find(self.pid).is_some_and(|now| now.arguments == self.arguments)
    }

    /// What its environment was when it was started.
    pub(crate) fn environment(&self) -> Vec<(OsString, OsString)> {
        environment(self.pid)
    }

    /// Whether this is a Mutagen agent, be it the real one or a script in its place.
    pub(crate) fn is_agent(&self) -> bool {
        self.arguments.iter().take(2).any(|word| Path::new(word).file_name() == Some(OsStr::new("mutagen-agent")))
    }

    /// Whether any of its arguments contains `text`.
    pub(crate) fn mentions(&self, text: &str) -> bool {
        self.arguments.iter().any(|word| word.to_string_lossy().contains(text))
    }
}

/// Every process but kernel threads and those that have ended.
pub(crate) fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").expect("the tests need /proc");
    entries.flatten().filter_map(|entry| find(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// Those that were given `home` as their HOME: all that runs in a remote account.
pub(crate) fn with_home(home: &Path) -> Vec<Process> {
    let is_home = |(name, value): (OsString, OsString)| name == "HOME" && Path::new(&value) == home;
    all().into_iter().filter(|process| process.environment().into_iter().any(is_home)).collect()
}

/// The Mutagen agents that run in the account whose home is `home`.
pub(crate) fn agents(home: &Path) -> Vec<Process> {
    with_home(home).into_iter().filter(Process::is_agent).collect()
}

/// The direct children of `parent`.
pub(crate) fn children(parent: u32) -> Vec<Process> {
    all().into_iter().filter(|process| u32::try_from(process.parent) == Ok(parent)).collect()
}

/// The children of `ancestor`, theirs, and so on.
pub(crate) fn descendants(ancestor: u32) -> Vec<Process> {
    let everything = all();
    let mut found: Vec<Process> = Vec::new();
    let mut parents: Vec<i32> = i32::try_from(ancestor).into_iter().collect();
    while let Some(parent) = parents.pop() {
        for child in everything.iter().filter(|process| process.parent == parent) {
            parents.push(child.pid);
            found.push(child.clone());
        }
    }
    found
}

/// Finds a program in PATH or where Debian keeps those of the administrator.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("the tests need `{name}`: install it"))
}

/// Runs a command to its end and returns its output; panics when it fails.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("the output is UTF-8")
}

/// A child that leads a process group, and takes all of it along when it is dropped.
pub(crate) struct Group(Child);

impl Group {
    pub(crate) fn spawn(command: &mut Command) -> Group {
        Group(command.process_group(0).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.0), signal);
    }

    /// Its stdin and stdout, where they are pipes and nobody has taken them.
    pub(crate) fn take_pipes(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        Some((self.0.stdin.take()?, self.0.stdout.take()?))
    }

    /// Whether the child has ended by now, and how.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.0.try_wait().expect("a child can be waited for")
    }

    /// Kills the child alone, not its group, and reaps it.
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

/// Reads one process; none when it has ended, or is a zombie or a kernel thread.
fn find(pid: i32) -> Option<Process> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may hold anything, so the fields are counted from its end.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = String::from_utf8_lossy(stat.get(end + 2..)?).into_owned();
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let arguments = words(&std::fs::read(format!("/proc/{pid}/cmdline")).ok()?);
    (!matches!(state, "Z" | "X") && !arguments.is_empty()).then_some(Process { pid, parent, arguments })
}

fn environment(pid: i32) -> Vec<(OsString, OsString)> {
    let block = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let split = |word: OsString| {
        let equals = word.as_bytes().iter().position(|byte| *byte == b'=')?;
        let (name, value) = word.as_bytes().split_at(equals);
        Some((OsStr::from_bytes(name).to_owned(), OsStr::from_bytes(value.get(1..)?).to_owned()))
    };
    words(&block).into_iter().filter_map(split).collect()
}

/// Splits a block of words that each end in NUL.
fn words(block: &[u8]) -> Vec<OsString> {
    let block = block.strip_suffix(b"\0").unwrap_or(block);
    if block.is_empty() {
        return Vec::new();
    }
    block.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect()
}
