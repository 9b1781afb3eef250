//! Somebody who runs `tstunnel`: a home of their own, and nothing else that the machine's user has.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::process::{Signal, with_home};
use super::serve::TSTUNNEL;

/// A home, and the few variables that every program needs.
pub(crate) struct User {
    environment: Vec<(&'static str, OsString)>,
    root: PathBuf,
    _folder: TempDir,
}

impl User {
    pub(crate) fn new() -> User {
        User::with(Vec::new())
    }

    /// The same with more variables; of two values for one name the later one counts.
    pub(crate) fn with(variables: Vec<(&'static str, OsString)>) -> User {
        let folder = tempfile::Builder::new().prefix("ts-user-").tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for name in ["home", "tmp"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        let mut environment: Vec<(&'static str, OsString)> = vec![
            ("PATH", std::env::var_os("PATH").unwrap_or_default()),
            ("HOME", root.join("home").into()),
            ("TMPDIR", root.join("tmp").into()),
        ];
        environment.extend(variables);
        User { environment, root, _folder: folder }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    /// A `tstunnel` that this user starts in their home.
    pub(crate) fn tstunnel<Argument: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = Argument>) -> Command {
        let mut command = self.run(TSTUNNEL);
        command.args(arguments);
        command
    }

    /// Any program that this user starts in their home.
    pub(crate) fn run(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs(self.environment.iter().cloned()).current_dir(self.home()).stdin(Stdio::null());
        command
    }

    /// Where the ssh stand-in finds what URLs meant.
    pub(crate) fn memory(&self) -> PathBuf {
        self.home().join(".local/state/tstunnel/hosts")
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // A daemon that `mutagen` started by itself is nobody's child.
        for process in with_home(Path::new(&self.home())) {
            process.signal(Signal::KILL);
        }
    }
}
