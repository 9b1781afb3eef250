//! One run of the `authorize` command: the question on its stdin, the answer from its stdout, in bounded time and size, as an
//! account that is not root and with nothing of the server's environment. Nothing of its process group outlives a run that failed.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::error::{Code, Error, Result, reason};
use crate::server::account::Login;
use crate::server::child::{self, Child, Pipes};
use crate::server::config::AuthorizeConfig;
use crate::server::descriptors;
use crate::server::process::PATH;
use crate::server::spawn::{Program, Setup};

/// Most bytes of an answer.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
/// How much of its stderr is logged.
const MAX_STDERR_BYTES: u64 = 1 << 10;
/// Permission bits by which others than its owner can change a file.
const OTHERS_WRITE: u32 = 0o022;
/// The bit of a folder where everybody can remove only what is theirs (inode(7)).
const STICKY: u32 = 0o1000;

#[derive(Clone, Debug)]
pub(super) struct Command {
    /// Links resolved.
    file: PathBuf,
    words: Vec<String>,
    login: Login,
    timeout: Duration,
}

impl Command {
    /// # Errors
    /// `config` where the program cannot be executed, or somebody else could change it.
    pub(super) fn new(config: &AuthorizeConfig, login: Login) -> Result<Command> {
        let AuthorizeConfig { program, arguments, timeout, .. } = config;
        let file = check_program(program).map_err(|why| {
            let text = format!("the `authorize` command {}: {why}", program.display());
            Error::new(Code::Config, text).with_hint("put it where only root, or this server's account, can change it")
        })?;
        let words = [program.display().to_string()].into_iter().chain(arguments.iter().cloned()).collect();
        Ok(Command { file, words, login, timeout: *timeout })
    }

    /// Asks, and returns what was answered. Whoever drops this ends the command and its group.
    ///
    /// # Errors
    /// Why there is no answer, as a sentence.
    pub(super) async fn ask(&self, question: &str) -> Result<Vec<u8>, String> {
        match tokio::time::timeout(self.timeout, self.run(question)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {:?}", self.timeout)),
        }
    }

    async fn run(&self, question: &str) -> Result<Vec<u8>, String> {
        let command = self.clone();
        let started = child::aside(move || command.start()).await;
        let (child, pipes) = started.map_err(|error| format!("cannot be started: {error}"))?;
        let mut run = Run { child, is_good: false };
        let Pipes { mut stdin, stdout, stderr } = pipes;
        let asking = async {
            // Whether it reads the question is its own affair.
            let _ = stdin.write_all(question.as_bytes()).await;
            drop(stdin);
            Ok(())
        };
        let ((), answer, said) = tokio::try_join!(asking, whole(stdout), beginning(stderr))?;
        let status = run.child.wait().await.map_err(|error| format!("cannot be waited for: {error}"))?;
        if status.success() {
            run.is_good = true;
            return Ok(answer);
        }
        Err(format!("{status}: {}", String::from_utf8_lossy(&said).trim()))
    }

    /// Blocks; see [`Child::start`].
    fn start(&self) -> io::Result<(Child, Pipes)> {
        Child::start(&Setup {
            login: &self.login,
            folder: Path::new("/"),
            descriptors: descriptors::original(),
            program: Program::OneOf(std::slice::from_ref(&self.file)),
            arguments: &self.words,
            environment: &[("PATH".to_owned(), PATH.to_owned())],
        })
    }
}

/// A run whose process group is ended with it, before the child is reaped, if it has not been a good one.
struct Run {
    child: Child,
    is_good: bool,
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.is_good {
            self.child.kill();
        }
    }
}

async fn whole(stdout: impl AsyncRead + Unpin) -> Result<Vec<u8>, String> {
    let mut answer = Vec::new();
    let read = stdout.take(MAX_ANSWER_BYTES + 1).read_to_end(&mut answer).await;
    read.map_err(|error| format!("cannot be read from: {error}"))?;
    if answer.len() as u64 > MAX_ANSWER_BYTES {
        return Err(format!("the answer is longer than {MAX_ANSWER_BYTES} bytes"));
    }
    Ok(answer)
}

/// The beginning of a stream, which is read to its end.
async fn beginning(mut stderr: impl AsyncRead + Unpin) -> Result<Vec<u8>, String> {
    let mut said = Vec::new();
    let _ = (&mut stderr).take(MAX_STDERR_BYTES).read_to_end(&mut said).await;
    let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    Ok(said)
}

/// The file that `program` leads to, which nobody but root and this account may be able to change, or to put another in place of:
/// what it answers is who may do what.
fn check_program(program: &Path) -> Result<PathBuf, String> {
    let unreadable = |error: io::Error| reason(&error);
    let file = program.canonicalize().map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return Err("it is no program".to_owned());
    }
    let own = rustix::process::geteuid().as_raw();
    for part in program.ancestors().chain(file.ancestors()) {
        let metadata = part.symlink_metadata().map_err(unreadable)?;
        let mode = metadata.permissions().mode();
        let is_open = mode & OTHERS_WRITE != 0 && !metadata.is_symlink() && !(metadata.is_dir() && mode & STICKY != 0);
        if is_open || !matches!(metadata.uid(), uid if uid == 0 || uid == own) {
            return Err(format!("others can change {}", part.display()));
        }
    }
    Ok(file)
}
