//! A running `tstunnel exec`, and what it writes and says.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::support::process::{Group, Signal};
use crate::support::remote::{Remote, Setup, Transport};
use crate::support::serve::TSTUNNEL;
use crate::support::wait::{SOON, wait_for, wait_until};

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A host that runs every command.
pub(crate) fn host() -> Setup {
    Setup::new(Transport::Tstunnel).with_any_command()
}

/// A command on the host, whose stdin is the test's and whose stdout is kept.
pub(crate) struct Run {
    process: Group,
    stdin: Option<ChildStdin>,
    output: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
    said: PathBuf,
}

impl Run {
    /// Starts `sh -c SCRIPT` there; the client logs at `level`, or as it does when nobody asks.
    pub(crate) fn start(remote: &Remote, level: &str, script: &str) -> Run {
        Run::spawn(remote, level, Command::new(TSTUNNEL), script)
    }

    /// The same by a command that ends in the client's program: `ip netns exec …`.
    pub(crate) fn spawn(remote: &Remote, level: &str, mut command: Command, script: &str) -> Run {
        let said = remote.folder().join(format!("client-{}.said", NEXT.fetch_add(1, Ordering::Relaxed)));
        command
            .args(["exec", remote.host(), "--", "sh", "-c", script])
            .env_remove("TSTUNNEL_LOG")
            .env("TSTUNNEL_CONFIG", remote.folder().join("config.toml"))
            .env("TSTUNNEL_LOG", level)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&said).unwrap());
        let mut process = Group::spawn(&mut command);
        let (stdin, mut stdout) = process.take_pipes().expect("both are pipes");
        let output = Arc::new(Mutex::new(Vec::new()));
        let written = output.clone();
        let reader = thread::spawn(move || {
            let mut chunk = vec![0; 65_536];
            while let Ok(count) = stdout.read(&mut chunk)
                && count > 0
            {
                written.lock().unwrap().extend_from_slice(&chunk[..count]);
            }
        });
        Run { process, stdin: Some(stdin), output, reader: Some(reader), said }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().expect("stdin is open").write_all(bytes).unwrap();
    }

    pub(crate) fn end_stdin(&mut self) {
        self.stdin = None;
    }

    /// Stdin, for a thread that feeds it.
    pub(crate) fn take_stdin(&mut self) -> ChildStdin {
        self.stdin.take().expect("stdin is open")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// How much stdout there was so far.
    pub(crate) fn output_bytes(&self) -> usize {
        self.output.lock().unwrap().len()
    }

    /// Waits for the first line of stdout, which is the number of the process there.
    #[track_caller]
    pub(crate) fn pid(&self) -> i32 {
        let what = "the command says its process id";
        let line = wait_for(what, SOON, || {
            assert!(self.reader.as_ref().is_some_and(|reader| !reader.is_finished()), "{}", self.said());
            let output = self.output.lock().unwrap();
            let end = output.iter().position(|byte| *byte == b'\n')?;
            Some(String::from_utf8_lossy(&output[..end]).into_owned())
        });
        line.parse().unwrap_or_else(|_| panic!("`{line}` is not a process id"))
    }

    /// Waits until stdout contains `text`.
    #[track_caller]
    pub(crate) fn wait_for_output(&self, text: &str) {
        let finds = |output: &[u8]| output.windows(text.len()).any(|window| window == text.as_bytes());
        wait_until(&format!("stdout says {text:?}: {}", self.said()), SOON, || finds(&self.output.lock().unwrap()));
    }

    /// What the client has said on stderr.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    /// How long each interruption took that is over, as the client's log has it.
    pub(crate) fn resumes(&self) -> Vec<u64> {
        resumes(&self.said())
    }

    /// Waits until the session has gone on at least `count` times.
    #[track_caller]
    pub(crate) fn wait_for_resumes(&self, count: usize, limit: Duration) {
        wait_until(&format!("the session was resumed {count} times"), limit, || {
            assert!(self.reader.as_ref().is_some_and(|reader| !reader.is_finished()), "{}", self.said());
            self.resumes().len() >= count
        });
    }

    /// Waits for the end: exit status, stdout, and stderr.
    #[track_caller]
    pub(crate) fn end(mut self, limit: Duration) -> (Option<i32>, Vec<u8>, String) {
        let what = format!("the client ends after {} bytes: {}", self.output_bytes(), self.said());
        let status = wait_for(&what, limit, || self.process.ended());
        self.reader.take().expect("it is joined once").join().unwrap();
        let output = std::mem::take(&mut *self.output.lock().unwrap());
        (status.code(), output, self.said())
    }
}

/// The milliseconds of every `resumed milliseconds=…` in a client's log.
pub(crate) fn resumes(log: &str) -> Vec<u64> {
    let number = |rest: &str| rest.split_whitespace().next().and_then(|word| word.parse().ok());
    log.split("resumed milliseconds=").skip(1).filter_map(number).collect()
}
