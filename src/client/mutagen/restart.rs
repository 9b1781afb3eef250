//! A daemon that starts another `ssh` → none, or one that starts tstunnel. Its sessions are in its files and go on with the next
//! one, so nothing is lost; what it must not come to is a daemon that was stopped and not started again.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::Surroundings;
use super::daemon::{self, Daemon, Standins};
use crate::client::signals::Held;
use crate::error::{Code, Error, Result, reason};

/// How long a daemon may take to stop: it gives each of its sessions' processes two seconds to end by themselves.
const STOPPING: Duration = Duration::from_secs(60);
/// How long a daemon may take to start, on a busy machine.
const STARTING: Duration = Duration::from_secs(20);
/// How often is looked. Nobody tells that a lock has become free without taking it.
const INTERVAL: Duration = Duration::from_millis(20);

/// What is needed to restart a daemon.
pub(super) struct Restart<'a> {
    /// What is known of Mutagen.
    pub(super) surroundings: &'a Surroundings<'a>,
    /// Its data directory, in which a daemon has been.
    pub(super) data_directory: &'a Path,
    /// What the new daemon's `ssh` is.
    pub(super) standins: Standins<'a>,
    /// Whether to start one; else the command that follows is one.
    pub(super) start: bool,
}

impl Restart<'_> {
    /// Stops the daemon that runs, if its `ssh` is not tstunnel, and starts another. Calls `say` with the process that it
    /// is going to stop.
    ///
    /// # Errors
    /// `config` where the daemon does not stop or none starts, or one starts that is no better.
    pub(super) fn run(&self, say: impl FnOnce(i32)) -> Result<()> {
        let folder = self.data_directory.join("daemon");
        let failed = |error: io::Error| {
            Error::new(Code::Config, format!("{} cannot be locked: {}", folder.display(), reason(&error)))
                .with_hint("make that folder readable, or run `mutagen daemon stop`, then this again")
        };
        // Whoever else is at this waits, and then finds it done.
        let lock = File::open(&folder).map_err(failed)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        let Daemon::Other { pid, .. } = self.find() else { return Ok(()) };
        // What would end this process does so when a daemon is there again.
        let held = Held::hold()
            .map_err(|error| Error::new(Code::Internal, format!("signals cannot be held back: {error}")))?;
        say(pid);
        self.stop(pid, &held)?;
        if self.start { self.start(&held) } else { Ok(()) }
    }

    fn find(&self) -> Daemon {
        daemon::find(self.data_directory, &self.standins)
    }

    fn stop(&self, pid: i32, held: &Held) -> Result<()> {
        let said = self.tell("stop", held)?;
        let has_gone = || !matches!(self.find(), Daemon::Other { pid: now, .. } if now == pid);
        // That it could not be told may be because it was about to end.
        let patience = if said.is_empty() { STOPPING } else { STARTING };
        if wait_until(patience, has_gone) {
            return Ok(());
        }
        let why = if said.is_empty() { String::new() } else { format!(": {said}") };
        Err(Error::new(Code::Config, format!("the Mutagen daemon, process {pid}, does not stop{why}"))
            .with_hint(format!("end it by `kill {pid}`, then run this again: sessions go on by themselves")))
    }

    fn start(&self, held: &Held) -> Result<()> {
        let said = self.tell("start", held)?;
        let socket = self.data_directory.join("daemon/daemon.sock");
        let is_there = || !matches!(self.find(), Daemon::None) && UnixStream::connect(&socket).is_ok();
        if !said.is_empty() || !wait_until(STARTING, is_there) {
            let why = if said.is_empty() { "no reason is given" } else { &said };
            return Err(Error::new(Code::Config, format!("the Mutagen daemon was stopped, and did not start: {why}"))
                .with_hint("run `tstunnel mutagen daemon run` to see why; sessions go on once it runs"));
        }
        match self.find() {
            Daemon::Other { pid, .. } => {
                let text =
                    format!("the Mutagen daemon was restarted by something else, without tstunnel, as process {pid}");
                Err(Error::new(Code::Config, text)
                    .with_hint("have the service that starts it run `tstunnel mutagen daemon run`"))
            }
            _ => Ok(()),
        }
    }

    /// Runs `mutagen daemon VERB`; returns what it said, if it failed.
    fn tell(&self, verb: &str, held: &Held) -> Result<String> {
        let mut command = self.surroundings.command(self.standins.folder);
        let (status, said) = held
            .run(command.args(["daemon", verb]))
            .map_err(|error| super::not_started(self.surroundings.mutagen(), &error))?;
        if status.success() {
            return Ok(String::new());
        }
        Ok(said.lines().last().map_or_else(|| status.to_string(), |line| line.trim().to_owned()))
    }
}

/// What `TSTUNNEL_MUTAGEN_DAEMON` says: whether a daemon may be restarted.
///
/// # Errors
/// `config` for another word than its two.
pub(super) fn is_allowed(variable: Option<&OsString>) -> Result<bool> {
    match variable.map(|word| word.to_string_lossy()).as_deref() {
        None | Some("" | "restart") => Ok(true),
        Some("keep") => Ok(false),
        Some(word) => Err(Error::new(Code::Config, format!("TSTUNNEL_MUTAGEN_DAEMON is `{word}`, which says nothing"))
            .with_hint("use restart or keep")),
    }
}

/// Looks until `condition` holds or `limit` is over; returns whether it did.
fn wait_until(limit: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let is_over = Instant::now() >= deadline;
        if condition() {
            return true;
        }
        if is_over {
            return false;
        }
        std::thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_has_two_words() {
        let allowed = |word: &str| is_allowed(Some(&word.into()));
        assert_eq!(
            (is_allowed(None), allowed(""), allowed("restart"), allowed("keep")),
            (Ok(true), Ok(true), Ok(true), Ok(false))
        );
        assert_eq!(allowed("no").unwrap_err().code, Code::Config);
    }
}
