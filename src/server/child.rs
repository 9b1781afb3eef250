//! A child process and the server's ends of its standard streams. One that nobody wants any more is killed, and never left
//! behind as a zombie; until it is reaped its id, and its group's, are nobody else's, so that no signal reaches a stranger.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process_group};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::server::spawn::{self, Setup};
use crate::stdio;

/// How many threads at once find accounts and start children, as long as none of them is held up.
const AT_ONCE: usize = 8;
/// How long the next one waits for any of them to be done, before it is one more. A machine that is busy takes its time, too.
const PATIENCE: Duration = Duration::from_millis(500);

/// The server's ends of a child's standard streams.
#[derive(Debug)]
pub struct Pipes {
    /// To its stdin.
    pub stdin: Sender,
    /// From its stdout.
    pub stdout: Receiver,
    /// From its stderr.
    pub stderr: Receiver,
}

/// A child process. It is killed with this, and with its group, if it has not ended by then.
#[derive(Debug)]
pub struct Child {
    id: Pid,
    /// Until it is reaped.
    process: Option<AsyncFd<OwnedFd>>,
    /// How it has ended, once that was seen.
    status: Option<ExitStatus>,
}

impl Child {
    /// Starts a child whose standard streams are pipes. Blocks; see [`spawn::spawn`].
    ///
    /// # Errors
    /// Those of [`spawn::spawn`], and where there is no descriptor left.
    pub fn start(setup: &Setup<'_>) -> io::Result<(Child, Pipes)> {
        let (stderr, its_stderr) = output()?;
        let (child, stdin, stdout) = Child::with_stderr(setup, its_stderr.as_fd())?;
        Ok((child, Pipes { stdin, stdout, stderr }))
    }

    /// The same where nobody reads its stderr. It does not get the server's: what runs as the account could take that, and write to
    /// the log.
    ///
    /// # Errors
    /// Those of [`Child::start`].
    pub fn start_silent(setup: &Setup<'_>) -> io::Result<(Child, Sender, Receiver)> {
        Child::with_stderr(setup, File::options().write(true).open("/dev/null")?)
    }

    fn with_stderr(setup: &Setup<'_>, stderr: impl AsFd) -> io::Result<(Child, Sender, Receiver)> {
        let (stdin, its_stdin) = input()?;
        let (stdout, its_stdout) = output()?;
        widen(&stdin);
        widen(&stdout);
        let (id, process) = spawn::spawn(setup, [its_stdin.as_fd(), its_stdout.as_fd(), stderr.as_fd()])?;
        let process = stdio::register(process).inspect_err(|_| {
            let _ = kill_process_group(id, Signal::KILL);
        })?;
        Ok((Child { id, process: Some(process), status: None }, stdin, stdout))
    }

    /// Its id, and that of the process group that it leads.
    pub fn id(&self) -> Pid {
        self.id
    }

    /// Waits for its end. It stays a zombie, and its id its own. Cancel-safe.
    ///
    /// # Errors
    /// Where its status is lost, and perhaps its id with it.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        if let (None, Some(process)) = (self.status, &self.process) {
            let status = end(process).await;
            self.see(status)?;
        }
        Ok(self.status.unwrap_or_default())
    }

    /// Whether it has ended by now. It stays a zombie then.
    pub fn has_ended(&mut self) -> bool {
        if let (None, Some(process)) = (self.status, &self.process)
            && let Some(status) = status(process.get_ref()).transpose()
        {
            let _ = self.see(status);
        }
        self.status.is_some()
    }

    fn see(&mut self, status: io::Result<ExitStatus>) -> io::Result<()> {
        if status.is_err() {
            self.process = None;
        }
        self.status = Some(*status.as_ref().unwrap_or(&ExitStatus::from_raw(255 << 8)));
        status.map(drop)
    }

    /// Whether its id, and its group's, are still its own.
    pub fn keeps_id(&self) -> bool {
        self.process.is_some()
    }

    /// Reaps it, if it has ended: its id may be somebody else's from now on.
    pub fn let_go(&mut self) {
        if let Some(ended) = self.process.take_if(|_| self.status.is_some()) {
            bury(ended.get_ref());
        }
    }

    /// Kills its group, and it, if it has not been reaped.
    pub fn kill(&self) {
        if self.process.is_some() {
            let _ = kill_process_group(self.id, Signal::KILL);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.kill();
        }
        if self.has_ended() {
            self.let_go();
        } else if let (Some(process), Ok(runtime)) = (self.process.take(), Handle::try_current()) {
            runtime.spawn(async move {
                let _ = end(&process).await;
                bury(process.get_ref());
            });
        }
    }
}

/// Runs what blocks while it finds an account or starts a child, in the worker that serves a request: what else that had to do goes
/// to another thread.
pub async fn in_place<T>(start: impl FnOnce() -> T) -> T {
    let _turn = turn().await;
    tokio::task::block_in_place(start)
}

/// The same in a thread of its own, where whoever asked may lose patience meanwhile.
///
/// # Errors
/// Its own.
pub async fn aside<T: Send + 'static>(start: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let _turn = turn().await;
    tokio::task::spawn_blocking(start).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// One of a few turns, so that a thousand requests at once are not served by as many threads, which would never end.
struct Turn {
    permit: Option<SemaphorePermit<'static>>,
}

/// Those that are free. There may be more than [`AT_ONCE`] with those that are not.
static TURNS: Semaphore = Semaphore::const_new(AT_ONCE);
/// How many have ended so far.
static ENDED: AtomicUsize = AtomicUsize::new(0);

impl Drop for Turn {
    fn drop(&mut self) {
        ENDED.fetch_add(1, Ordering::Relaxed);
        if let Some(permit) = self.permit.take()
            && TURNS.available_permits() >= AT_ONCE
        {
            permit.forget();
        }
    }
}

/// Waits for a turn. Those who have one may wait for a file system that does not answer: if nobody's ends for a while, there is one
/// more for each who waits, because those ahead may be out for that.
async fn turn() -> Turn {
    let mut free = pin!(TURNS.acquire());
    loop {
        let ended = ENDED.load(Ordering::Relaxed);
        if let Ok(permit) = timeout(PATIENCE, &mut free).await {
            return Turn { permit: permit.ok() };
        }
        if ENDED.load(Ordering::Relaxed) == ended {
            TURNS.add_permits(1);
        }
    }
}

async fn end(process: &AsyncFd<OwnedFd>) -> io::Result<ExitStatus> {
    loop {
        let mut ended = process.readable().await?;
        if let Some(status) = status(process.get_ref())? {
            return Ok(status);
        }
        ended.clear_ready();
    }
}

/// How a process has ended. It stays a zombie then.
fn status(process: &OwnedFd) -> io::Result<Option<ExitStatus>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let ended = rustix::process::waitid(WaitId::PidFd(process.as_fd()), options)?;
    // As wait(2) encodes them.
    let encode = |ended: WaitIdStatus| ended.exit_status().map(|status| status << 8).or(ended.terminating_signal());
    Ok(ended.and_then(encode).map(ExitStatus::from_raw))
}

/// Leaves nothing of a process that has ended.
fn bury(process: &OwnedFd) {
    let _ = rustix::process::waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
}

/// The server's end and the child's of a pipe to it.
fn input() -> io::Result<(Sender, OwnedFd)> {
    let (its, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((Sender::from_owned_fd_unchecked(ours)?, its))
}

/// The same of a pipe from it.
fn output() -> io::Result<(Receiver, OwnedFd)> {
    let (ours, its) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((Receiver::from_owned_fd_unchecked(ours)?, its))
}

fn widen(pipe: impl AsFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, stdio::PIPE_BYTES);
}
