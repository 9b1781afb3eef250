//! Signals that mean something else than this process's end, or that alone at another time.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Pid, WaitOptions, waitpid};
use tokio::signal::unix::{self, SignalKind};

use crate::error::{Code, Error, Result};

/// Signals with what each means, but for those that this process was started to ignore (`nohup`).
pub(super) struct Listeners<Meaning>(Vec<(Meaning, unix::Signal)>);

impl<Meaning: Copy> Listeners<Meaning> {
    /// # Errors
    /// `internal` where they cannot be received.
    pub(super) fn new(meanings: impl IntoIterator<Item = (SignalKind, Meaning)>) -> Result<Listeners<Meaning>> {
        let ignored = ignored();
        let is_wanted = |kind: SignalKind| ignored & (1 << (kind.as_raw_value() - 1)) == 0;
        let listen = |(kind, meaning)| Ok((meaning, unix::signal(kind)?));
        let listeners =
            meanings.into_iter().filter(|(kind, _)| is_wanted(*kind)).map(listen).collect::<io::Result<_>>();
        let listeners =
            listeners.map_err(|error| Error::new(Code::Internal, format!("cannot listen for signals: {error}")))?;
        Ok(Listeners(listeners))
    }

    /// The next one. Cancel-safe.
    pub(super) async fn next(&mut self) -> Meaning {
        std::future::poll_fn(|cx| {
            for (meaning, listener) in &mut self.0 {
                if listener.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*meaning);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// The mask of ignored signals (proc(5), `SigIgn`); none where it cannot be read.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// What a person or a service manager ends or stops a process by.
const SIGNALS: [Signal; 5] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTSTP];

/// Signals that are held back, as long as this lives. No other thread runs yet that could get them.
pub(super) struct Held {
    signals: SigSet,
    before: SigSet,
    /// Readable while one is held back; it is never read, so that the signal stays one.
    pending: SignalFd,
}

impl Held {
    pub(super) fn hold() -> io::Result<Held> {
        let signals: SigSet = SIGNALS.into_iter().collect();
        let pending = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
        let before = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Held { signals, before, pending })
    }

    /// What is readable while one is held back.
    pub(super) fn pending(&self) -> &impl AsFd {
        &self.pending
    }

    /// Lets what has come do what it does; returns where it ends nothing.
    pub(super) fn let_through(&self) -> io::Result<()> {
        self.before.thread_set_mask()?;
        self.signals.thread_block()?;
        Ok(())
    }

    /// Runs a command to its end; returns its status and what it said on stderr, its only stream. For it nothing is held back, as std
    /// would have it, and what a terminal sends to this process's group does not reach it.
    pub(super) fn run(&self, command: &Command) -> io::Result<(ExitStatus, String)> {
        let mut attributes = PosixSpawnAttr::init()?;
        attributes.set_flags(
            PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF
                | PosixSpawnFlags::POSIX_SPAWN_SETPGROUP,
        )?;
        attributes.set_sigmask(&self.before)?;
        // Which Rust's programs ignore.
        attributes.set_sigdefault(&Signal::SIGPIPE.into())?;
        attributes.set_pgroup(nix::unistd::Pid::from_raw(0))?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let (mut reader, writer) = io::pipe()?;
        let mut streams = PosixSpawnFileActions::init()?;
        for (number, stream) in [null.as_fd(), null.as_fd(), writer.as_fd()].into_iter().enumerate() {
            streams.add_dup2(stream.as_raw_fd(), number as i32)?;
        }
        let c_string = |text: &OsStr| CString::new(text.as_bytes());
        let program = c_string(command.get_program())?;
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words = words.map(c_string).collect::<Result<Vec<_>, _>>()?;
        let variables = variables(command).iter().map(|variable| c_string(variable)).collect::<Result<Vec<_>, _>>()?;
        let child = posix_spawnp(&program, &streams, &attributes, &words, &variables)?;
        drop(writer);
        let mut said = Vec::new();
        reader.read_to_end(&mut said)?;
        let status = rustix::io::retry_on_intr(|| waitpid(Pid::from_raw(child.as_raw()), WaitOptions::empty()))?;
        let status = status.map(|(_, status)| ExitStatus::from_raw(status.as_raw())).unwrap_or_default();
        Ok((status, String::from_utf8_lossy(&said).into_owned()))
    }
}

/// This process's variables and those of a command, as `NAME=value`.
fn variables(command: &Command) -> Vec<OsString> {
    let mut variables: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => variables.insert(name.to_owned(), value.to_owned()),
            None => variables.remove(name),
        };
    }
    let joined = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        name
    };
    variables.into_iter().map(joined).collect()
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}
