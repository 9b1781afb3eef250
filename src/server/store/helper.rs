//! The process that stores an upload as the account, seen from both ends: a frame with a [`Task`] and then the body's frames on
//! its stdin, one line of JSON for each [`Answer`] on its stdout.
//!
//! A frame is a length of four bytes, big-endian, and so many bytes; one of no bytes ends a body that is whole, and the end of
//! stdin one that is not. The process is this program under another name ([`NAME`]), and does nothing by itself that
//! whoever starts it could not do.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::time::timeout;

use super::{Body, Order, Piece, Stored, wrapped};
use crate::error::{Code, Error, printable};
use crate::protocol::time_to_store;
use crate::server::account::Login;
use crate::server::child::{self, Child};
use crate::server::process;
use crate::server::refusal::Refusal;

/// What `argv[0]` of the process is.
pub const NAME: &str = "tstunnel-store";
/// Longest task and answer.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// Longest frame; a body comes in pieces of what hyper reads.
const MAX_FRAME_BYTES: usize = 1 << 20;

/// What the process is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Store a body.
    Store(Box<Order>),
    /// Say how much of this part is held.
    Held(PathBuf),
    /// Remove this part.
    Remove(PathBuf),
    /// Remove this part, unless somebody has written to it since then.
    Expire(PathBuf, SystemTime),
    /// Remove the parts in this home that nobody has written to since then, but for these.
    Sweep(PathBuf, SystemTime, Vec<PathBuf>),
}

/// What the process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The content is here already, and was used.
    Known(Stored),
    /// The body is wanted.
    Send,
    /// It was stored.
    Stored(Stored),
    /// It was not.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The name of the error's code.
        code: String,
        /// What happened.
        text: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// So many bytes are held.
    Held(u64),
    /// It is done.
    Done,
}

/// All that the process does. What else runs as the account cannot take its descriptors (ptrace(2)).
///
/// # Errors
/// Those of [`run`].
pub fn main() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    run(&mut io::stdin().lock(), &mut io::stdout().lock())
}

/// The process's own side: does what stdin says, and answers on stdout.
///
/// # Errors
/// Where stdin holds no task, or stdout cannot be written.
pub fn run(input: &mut dyn BufRead, output: &mut dyn Write) -> io::Result<()> {
    let mut frame = Vec::new();
    read_frame(input, &mut frame)?;
    let answer = match serde_json::from_slice(&frame)? {
        Task::Held(part) => Answer::Held(super::held(&part)),
        Task::Remove(part) => {
            super::remove(&part);
            Answer::Done
        }
        Task::Expire(part, end) => {
            super::expire(&part, end);
            Answer::Done
        }
        Task::Sweep(home, end, known) => {
            super::sweep(&home, end, &known);
            Answer::Done
        }
        Task::Store(order) => match super::store_known(&order) {
            Ok(Some(stored)) => Answer::Known(stored),
            Err(refusal) => refused(&refusal),
            Ok(None) => {
                let mut body = Frames { input, output: &mut *output, frame };
                let stored = if order.wrapper.is_empty() {
                    super::store(&order, &mut body)
                } else {
                    wrapped::store(&order, &mut body)
                };
                stored.map_or_else(|refusal| refused(&refusal), Answer::Stored)
            }
        },
    };
    say(output, &answer)
}

fn refused(refusal: &Refusal) -> Answer {
    let Refusal { status, error: Error { code, text, hint } } = refusal.clone();
    Answer::Refused { status, code: code.name().to_owned(), text, hint }
}

fn say(output: &mut dyn Write, answer: &Answer) -> io::Result<()> {
    output.write_all(format!("{}\n", serde_json::to_string(answer)?).as_bytes())?;
    output.flush()
}

/// Reads one frame; no bytes are the end of a body.
fn read_frame(input: &mut dyn BufRead, frame: &mut Vec<u8>) -> io::Result<()> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    frame.resize(length, 0);
    input.read_exact(frame)
}

/// A body in frames.
struct Frames<'a> {
    input: &'a mut dyn BufRead,
    output: &'a mut dyn Write,
    frame: Vec<u8>,
}

impl Body for Frames<'_> {
    fn want(&mut self) {
        // Whoever hears nothing any more sends nothing either.
        let _ = say(self.output, &Answer::Send);
    }

    fn next(&mut self) -> Piece<'_> {
        match read_frame(self.input, &mut self.frame) {
            Ok(()) if self.frame.is_empty() => Piece::End,
            Ok(()) => Piece::Data(&self.frame),
            Err(_) => Piece::Broken,
        }
    }
}

/// The server's side: a process that runs. It is killed where it is silent for too long, or no longer wanted.
#[derive(Debug)]
pub struct Helper {
    child: Child,
    /// How long it may take for a piece of a body.
    piece_patience: Duration,
    /// How long it may take for an answer.
    answer_patience: Duration,
    /// It was killed for having taken longer.
    is_late: bool,
    /// Nothing once the body has ended.
    stdin: Option<Sender>,
    stdout: BufReader<Receiver>,
}

impl Helper {
    /// Starts one as `login`, which may take `patience` for each piece of a body; and for an answer as much longer as `file_bytes` take to
    /// store: those that are here already are copied before the first one, and all are on the disk before the last.
    ///
    /// # Errors
    /// `storage` where it cannot be started.
    pub async fn start(login: &Login, task: &Task, patience: Duration, file_bytes: u64) -> Result<Helper, Refusal> {
        let (home, login) = (login.home.clone(), login.clone());
        let started = child::aside(move || process::start_own(NAME, &login)).await;
        let (child, stdin, stdout) = started.map_err(|error| {
            process::no_home(&error, &home, Code::Storage).map_or_else(|| broken(&error), Refusal::from)
        })?;
        let mut helper = Helper {
            child,
            piece_patience: patience,
            answer_patience: patience + time_to_store(file_bytes),
            is_late: false,
            stdin: Some(stdin),
            stdout: BufReader::new(stdout),
        };
        let task = serde_json::to_vec(task).map_err(|error| broken(&error.into()))?;
        helper.send(&task).await.map_err(|error| broken(&error))?;
        Ok(helper)
    }

    /// Sends one frame, in pieces where it is longer than one may be; one of no bytes ends the body.
    ///
    /// # Errors
    /// Where the process takes no more: its answer says why.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(stdin) = &mut self.stdin else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let sending = async {
            for piece in bytes.chunks(MAX_FRAME_BYTES) {
                stdin.write_all(&(piece.len() as u32).to_be_bytes()).await?;
                stdin.write_all(piece).await?;
            }
            if bytes.is_empty() {
                stdin.write_all(&[0; 4]).await?;
            }
            stdin.flush().await
        };
        let sent = timeout(self.piece_patience, sending).await;
        sent.unwrap_or_else(|_| Err(self.give_up()))
    }

    /// Ends what takes too long.
    fn give_up(&mut self) -> io::Error {
        self.child.kill();
        self.is_late = true;
        io::ErrorKind::TimedOut.into()
    }

    /// Whether it was killed because it took too long.
    pub fn is_late(&self) -> bool {
        self.is_late
    }

    /// Ends it, whatever it is doing: afterwards it writes nothing more.
    pub async fn stop(&mut self) {
        self.child.kill();
        let _ = timeout(self.piece_patience, self.child.wait()).await;
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// What the process refuses, and `storage` where it ended without an answer or gave none in time.
    pub async fn answer(&mut self) -> Result<Answer, Refusal> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.stdout).take(MAX_LINE_BYTES);
        let read = timeout(self.answer_patience, bounded.read_until(b'\n', &mut line)).await;
        let read = read.unwrap_or_else(|_| Err(self.give_up()));
        if self.is_late {
            return Err(late());
        }
        read.map_err(|error| broken(&error))?;
        match serde_json::from_slice(&line) {
            Ok(Answer::Refused { status, code, text, hint }) => {
                let code = Code::from_name(&code).unwrap_or(Code::Storage);
                Err(Refusal { status, error: Error { code, text, hint } })
            }
            Ok(answer) => Ok(answer),
            Err(error) => Err(broken(&error.into())),
        }
    }

    /// Ends the body, whole or not, waits for the last answer and for the process.
    ///
    /// # Errors
    /// Those of [`Helper::answer`].
    pub async fn finish(&mut self, is_whole: bool) -> Result<Answer, Refusal> {
        if is_whole {
            // Where it takes no more it has said why.
            let _ = self.send(&[]).await;
        }
        self.stdin = None;
        let answer = self.answer().await;
        let _ = timeout(self.piece_patience, self.child.wait()).await;
        answer
    }
}

fn late() -> Refusal {
    tracing::warn!("an upload's own process did not answer in time");
    Error::new(Code::Storage, "the file was not stored in time")
        .with_hint("see what holds up the file system of the account's home directory on the host, then start again")
        .into()
}

fn broken(error: &io::Error) -> Refusal {
    // It may repeat what the process has said, which is the account's.
    tracing::warn!(error = %printable(&error.to_string()), "an upload's own process failed");
    Error::new(Code::Storage, "the file cannot be stored: the account's own process failed").into()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What is logged, for a test to read.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Write::write(&mut *self.0.lock().unwrap(), bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_helper_says_adds_no_line_to_the_log() {
        let line = br#"{"x\n{\"event\":\"session\",\"principal\":\"bob\"}\n":1}"#;
        let error: io::Error = serde_json::from_slice::<Answer>(line).unwrap_err().into();
        assert!(error.to_string().contains('\n'), "it repeats what was said: {error}");
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || broken(&error));
        let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(logged.lines().count(), 1, "{logged}");
    }
}
