//! Whether the Mutagen daemon that is running starts tstunnel as its `ssh`. Reads, changes nothing.
//!
//! Mutagen's daemon looks for `ssh` by its own environment (`pkg/ssh/ssh.go`), which is that of whoever started it. It
//! holds a POSIX lock on `daemon/daemon.lock` in its data directory (`pkg/daemon/lock.go`), so the kernel names the
//! process; where `/proc` shows its environment, there is no guessing.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::process::{Flock, FlockType, Pid, fcntl_getlk};

/// What runs for a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// Nothing: the next `mutagen` will start one with our environment.
    None,
    /// One that starts tstunnel.
    Ours,
    /// One that starts another `ssh`.
    Other {
        /// Its process.
        pid: i32,
        /// Its `MUTAGEN_SSH_PATH`.
        ssh_path: Option<PathBuf>,
    },
    /// One whose environment cannot be read.
    Unknown,
}

/// What an `ssh` of ours looks like.
pub struct Standins<'a> {
    /// The folder with the links.
    pub folder: &'a Path,
    /// The program behind them.
    pub program: &'a Path,
}

/// Looks for the daemon of `data_directory`.
pub fn find(data_directory: &Path, standins: &Standins<'_>) -> Daemon {
    // Without the lock's file there has never been one.
    let Ok(lock) = File::open(data_directory.join("daemon/daemon.lock")) else { return Daemon::None };
    match fcntl_getlk(&lock, &Flock::from(FlockType::WriteLock)) {
        Ok(None) => Daemon::None,
        Ok(Some(Flock { pid: Some(pid), .. })) => of_process(pid, standins),
        // Some file systems and other PID namespaces do not tell.
        Ok(Some(_)) | Err(_) => Daemon::Unknown,
    }
}

fn of_process(pid: Pid, standins: &Standins<'_>) -> Daemon {
    let pid = pid.as_raw_nonzero().get();
    match fs::read(format!("/proc/{pid}/environ")) {
        Ok(environment) if !environment.is_empty() => judge(pid, &environment, standins),
        _ => Daemon::Unknown,
    }
}

/// Finds the `ssh` that a daemon with this environment (`NAME=value`, each ended by a NUL) would start.
fn judge(pid: i32, environment: &[u8], standins: &Standins<'_>) -> Daemon {
    let variable = |name: &str| -> Option<OsString> {
        let mut entries = environment.split(|byte| *byte == 0);
        let value = entries.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
        (!value.is_empty()).then(|| OsStr::from_bytes(value).to_owned())
    };
    let ssh_path = variable("MUTAGEN_SSH_PATH").map(PathBuf::from);
    let ssh = match &ssh_path {
        Some(folder) => Some(folder.join("ssh")),
        None => variable("PATH")
            .and_then(|path| std::env::split_paths(&path).map(|folder| folder.join("ssh")).find(|ssh| ssh.is_file())),
    };
    if ssh.is_some_and(|ssh| is_standin(&ssh, standins)) { Daemon::Ours } else { Daemon::Other { pid, ssh_path } }
}

fn is_standin(ssh: &Path, standins: &Standins<'_>) -> bool {
    ssh.parent() == Some(standins.folder)
        || match (ssh.canonicalize(), standins.program.canonicalize()) {
            (Ok(ssh), Ok(program)) => ssh == program,
            _ => false,
        }
}

/// What a Mutagen command has to do with the daemon's `ssh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It starts sessions, or the daemon.
    Must,
    /// It shows or steers sessions that exist.
    May,
    /// It has nothing to do with it, or is what stops the daemon.
    Never,
}

/// What is no option in Mutagen's arguments, or is the value of one.
pub(super) fn words(args: &[OsString]) -> impl Iterator<Item = &str> {
    args.iter().filter_map(|arg| arg.to_str()).filter(|arg| !arg.starts_with('-'))
}

/// Whether Mutagen's command is itself the daemon.
pub fn is_the_daemon(args: &[OsString]) -> bool {
    words(args).take(2).eq(["daemon", "run"])
}

/// Reads the need from Mutagen's arguments.
pub fn need(args: &[OsString]) -> Need {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        return Need::Never;
    }
    let mut words = words(args);
    match (words.next(), words.next()) {
        (Some("sync" | "forward"), Some("create" | "resume" | "reset"))
        | (Some("project"), Some("start" | "resume" | "reset" | "run"))
        | (Some("daemon"), Some("start" | "run")) => Need::Must,
        (Some("sync" | "forward" | "project"), Some(_)) => Need::May,
        _ => Need::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Machine {
        folder: tempfile::TempDir,
    }

    impl Machine {
        /// `tstunnel`, `links/ssh` → it, `other/ssh`, `bin` without any.
        fn new() -> Machine {
            let folder = tempfile::tempdir().unwrap();
            for name in ["links", "other", "bin", "copy"] {
                fs::create_dir(folder.path().join(name)).unwrap();
            }
            fs::write(folder.path().join("tstunnel"), "").unwrap();
            fs::write(folder.path().join("other/ssh"), "").unwrap();
            symlink("../tstunnel", folder.path().join("links/ssh")).unwrap();
            symlink("../tstunnel", folder.path().join("copy/ssh")).unwrap();
            Machine { folder }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn judge(&self, environment: &[(&str, &str)]) -> Daemon {
            let mut bytes = Vec::new();
            for (name, value) in environment {
                let value = value.replace('@', self.folder.path().to_str().unwrap());
                bytes.extend_from_slice(format!("{name}={value}\0").as_bytes());
            }
            judge(7, &bytes, &Standins { folder: &self.path("links"), program: &self.path("tstunnel") })
        }
    }

    #[test]
    fn a_daemon_with_our_folder_or_a_link_to_our_program_is_ours() {
        let machine = Machine::new();
        assert_eq!(machine.judge(&[("A", "1"), ("MUTAGEN_SSH_PATH", "@/links")]), Daemon::Ours);
        assert_eq!(machine.judge(&[("MUTAGEN_SSH_PATH", "@/copy")]), Daemon::Ours);
        assert_eq!(machine.judge(&[("PATH", "@/bin:@/copy:@/other")]), Daemon::Ours);
    }

    #[test]
    fn a_daemon_with_another_ssh_is_not() {
        let machine = Machine::new();
        let other = |ssh_path| Daemon::Other { pid: 7, ssh_path };
        assert_eq!(
            machine.judge(&[("PATH", "@/links"), ("MUTAGEN_SSH_PATH", "@/other")]),
            other(Some(machine.path("other")))
        );
        assert_eq!(machine.judge(&[("PATH", "@/bin:@/other:@/links")]), other(None));
        assert_eq!(machine.judge(&[("MUTAGEN_SSH_PATH", ""), ("PATH", "@/bin")]), other(None));
        assert_eq!(machine.judge(&[("XMUTAGEN_SSH_PATH", "@/links"), ("MUTAGEN_SSH_PATHX", "@/links")]), other(None));
    }

    #[test]
    fn without_a_lock_or_its_holder_there_is_no_daemon() {
        let machine = Machine::new();
        let standins = Standins { folder: &machine.path("links"), program: &machine.path("tstunnel") };
        assert_eq!(find(machine.folder.path(), &standins), Daemon::None);
        fs::create_dir(machine.path("daemon")).unwrap();
        fs::write(machine.path("daemon/daemon.lock"), "").unwrap();
        assert_eq!(find(machine.folder.path(), &standins), Daemon::None);
    }

    #[test]
    fn commands_that_start_sessions_need_our_ssh() {
        let need = |line: &str| need(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in [
            "sync create a b",
            "forward resume -a",
            "project start",
            "--x sync reset s",
            "project run x",
            "daemon start",
            "daemon run",
        ] {
            assert_eq!(need(line), Need::Must, "{line}");
        }
        for line in ["sync list", "forward terminate x", "project flush", "sync monitor create"] {
            assert_eq!(need(line), Need::May, "{line}");
        }
        for line in ["daemon stop", "version", "help sync create", "sync create --help", "sync", "", "sync create -h"] {
            assert_eq!(need(line), Need::Never, "{line}");
        }
    }
}
