//! A child whose streams are read while it runs, so that it never blocks on them, and that is gone when it is dropped.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::support::wait::{SOON, wait_for, wait_until};

/// What a child did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Ran {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("stdout is UTF-8")
    }

    /// Passes it on where the status was 0.
    #[track_caller]
    pub(crate) fn ok(self) -> Ran {
        assert!(self.status.success(), "{}\n{}\n{}", self.status, String::from_utf8_lossy(&self.stdout), self.stderr);
        self
    }
}

/// A running child that leads a process group.
pub(crate) struct Watched {
    child: Child,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
    started: Instant,
    name: String,
}

impl Watched {
    /// Starts it. Whatever of stdout and stderr the command leaves to be inherited is piped and read.
    pub(crate) fn start(command: &mut Command) -> Watched {
        Watched::start_with(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// Starts it with the streams that the command has; pipes are read.
    pub(crate) fn start_with(command: &mut Command) -> Watched {
        let name = format!("{command:?}");
        let started = Instant::now();
        let mut child = command.process_group(0).spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let mut readers = Vec::new();
        if let Some(pipe) = child.stdout.take() {
            readers.push(collect(pipe, &stdout));
        }
        if let Some(pipe) = child.stderr.take() {
            readers.push(collect(pipe, &stderr));
        }
        Watched { child, stdout, stderr, readers, started, name }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its stdin, which must have been piped; dropping it ends it.
    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("stdin is piped and not yet taken")
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped and not yet taken");
        stdin.write_all(bytes).unwrap();
        stdin.flush().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// What it has written so far.
    pub(crate) fn stdout(&self) -> Vec<u8> {
        self.stdout.lock().unwrap().clone()
    }

    pub(crate) fn stdout_bytes(&self) -> usize {
        self.stdout.lock().unwrap().len()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap()).into_owned()
    }

    /// Waits until its stdout contains `text`.
    #[track_caller]
    pub(crate) fn wait_for_output(&mut self, text: &str) {
        let what = format!("{} writes {text:?}", self.name);
        wait_until(&what, SOON, || {
            let found = contains(&self.stdout(), text.as_bytes());
            let ended = self.child.try_wait().unwrap();
            assert!(
                found || ended.is_none() || !self.readers.iter().all(JoinHandle::is_finished),
                "{what}: ended {ended:?}\n{}",
                self.stderr()
            );
            found
        });
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    #[track_caller]
    pub(crate) fn wait(self) -> Ran {
        self.wait_within(SOON)
    }

    /// Waits until it has ended, and everything that had its streams too.
    #[track_caller]
    pub(crate) fn wait_within(mut self, limit: Duration) -> Ran {
        drop(self.child.stdin.take());
        let name = self.name.clone();
        let status = wait_for(&format!("{name} ends"), limit, || self.child.try_wait().unwrap());
        let took = self.started.elapsed();
        wait_until(&format!("the streams of {name} end"), limit, || self.readers.iter().all(JoinHandle::is_finished));
        let stdout = std::mem::take(&mut *self.stdout.lock().unwrap());
        let stderr = std::mem::take(&mut *self.stderr.lock().unwrap());
        Ran { status, stdout, stderr: String::from_utf8(stderr).expect("stderr is UTF-8"), took }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Runs a command to its end; stdin is what the command says, or nothing.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Ran {
    Watched::start(command).wait()
}

/// Runs a command that gets `input`.
#[track_caller]
pub(crate) fn run_with_input(command: &mut Command, input: &[u8]) -> Ran {
    let mut child = Watched::start(command.stdin(Stdio::piped()));
    let mut stdin = child.stdin();
    let input = input.to_vec();
    // One that ends early reads no more, which is its own affair.
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let ran = child.wait_within(Duration::from_secs(60));
    let _ = writer.join().unwrap();
    ran
}

pub(crate) fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() || bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn collect(mut pipe: impl Read + Send + 'static, into: &Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    let into = Arc::clone(into);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            into.lock().unwrap().extend_from_slice(&buffer[..count]);
        }
    })
}
