//! A server's own successor: the same program by the same name, with the same arguments and environment, so that whatever has taken the
//! program's place is started. It is no child as a session's process is one ([`spawn`](crate::server::spawn)): it outlives this process.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::process::Child;
use tokio::time::Instant;

/// How long a successor may take until it accepts connections.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(30);
/// What the service manager has said to this process alone (sd_watchdog_enabled(3), sd_listen_fds(3)).
const OWN_VARIABLES: [&str; 4] = ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// How this process was started, and what it has started in its place.
#[derive(Debug)]
pub struct Successor {
    name: OsString,
    arguments: Vec<OsString>,
    folder: PathBuf,
    /// The program's file at the start, links resolved: where its name does not lead to one any more.
    file: PathBuf,
    started: Option<(Child, Instant)>,
}

impl Successor {
    /// None yet; to be called before anything can have taken the program's place.
    pub fn new() -> Successor {
        let mut arguments = std::env::args_os();
        Successor {
            name: arguments.next().unwrap_or_default(),
            arguments: arguments.collect(),
            folder: std::env::current_dir().unwrap_or_default(),
            file: std::env::current_exe().unwrap_or_default(),
            started: None,
        }
    }

    /// Starts it, unless one is on its way; returns its process id.
    ///
    /// # Errors
    /// Those of fork(2) and execve(2).
    pub fn start(&mut self) -> io::Result<Option<u32>> {
        if self.started.is_some() {
            return Ok(None);
        }
        let mut command = Command::new(self.program());
        command.arg0(&self.name).args(&self.arguments).current_dir(&self.folder);
        for name in OWN_VARIABLES {
            command.env_remove(name);
        }
        let child = tokio::process::Command::from(command).spawn()?;
        let id = child.id();
        self.started = Some((child, Instant::now() + ARRIVAL_TIMEOUT));
        Ok(id)
    }

    /// Whether there is one that has neither arrived nor failed.
    pub fn is_on_its_way(&self) -> bool {
        self.started.is_some()
    }

    /// The file that the program's name leads to now, as it did at the start: relative to a folder or by `PATH`.
    fn program(&self) -> PathBuf {
        let name = Path::new(&self.name);
        let found = if name.components().count() > 1 {
            Some(self.folder.join(name))
        } else {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).map(|folder| self.folder.join(folder).join(name)).find(|file| file.is_file())
        };
        found.filter(|file| file.is_file()).unwrap_or_else(|| self.file.clone())
    }

    /// `process` accepts connections, and nobody waits for a successor any more; returns its id where it is the one.
    pub fn arrived(&mut self, process: Option<i32>) -> Option<u32> {
        let (child, _) = self.started.take()?;
        child.id().filter(|id| i32::try_from(*id).ok() == process)
    }

    /// Waits until it has failed, and says how. Cancel-safe; pending for ever while there is none.
    pub async fn failed(&mut self) -> String {
        let Some((child, deadline)) = &mut self.started else { return std::future::pending().await };
        let how = tokio::select! {
            status = child.wait() => match status {
                Ok(status) => format!("it ended with {status}"),
                Err(error) => error.to_string(),
            },
            () = tokio::time::sleep_until(*deadline) => {
                // It must not come after all when nobody expects it.
                let _ = child.start_kill();
                "it did not take over in time".to_owned()
            }
        };
        self.started = None;
        how
    }
}

impl Default for Successor {
    fn default() -> Successor {
        Successor::new()
    }
}
